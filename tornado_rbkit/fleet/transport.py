"""The bridge's connection to a target of an agent."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import msgpack
import zmq
from tornado.ioloop import IOLoop

from tornado_rbkit.errors import CommandError
from tornado_rbkit.fleet import subjects
from tornado_rbkit.fleet.control import LEASE_TIMEOUT, ControlConnection
from tornado_rbkit.fleet.framing import WINDOW, StreamReceiver
from tornado_rbkit.fleet.link import (
    DATA_PATIENCE,
    ForbiddenError,
    Link,
    LinkError,
    Message,
    NoRespondersError,
    RequestTimeoutError,
)
from tornado_rbkit.frames import Buffer, Encoding
from tornado_rbkit.protocol import check_reply
from tornado_rbkit.upstream.options import UpstreamOptions
from tornado_rbkit.upstream.subscriber import Subscriber
from tornado_rbkit.upstream.types import CommandResult, ConnectionState, TransportListener

_log = logging.getLogger(__name__)

LEASE_INTERVAL: Final = 1.0
"""Seconds between two leases of a target."""

_REPLY_GRACE: Final = 1.0  # seconds for the reply to a command after its deadline: the agent refuses it then
_CREDIT_STEP: Final = WINDOW // 4
"""Bytes of new credit that are worth a message."""


@dataclass(frozen=True)
class FleetEndpoint:
    """A target of an agent. Implements `tornado_rbkit.upstream.types.Endpoint`.

    Attributes:
        control: the control connection. A bridge to this endpoint runs on that connection's thread.
        host: the name of the host.
        target: the name of the target there.
    """

    control: ControlConnection = field(repr=False)
    host: str
    target: str

    @property
    def parts(self) -> tuple[str]:
        """The label."""
        return (self.label,)

    @property
    def label(self) -> str:
        """``HOST~TARGET``."""
        return f"{self.host}~{self.target}"

    def transport(
        self,
        io_loop: IOLoop,
        listener: TransportListener,
        options: UpstreamOptions,
        *,
        on_thread: bool,
        context: Callable[[], zmq.Context[zmq.Socket[bytes]]],
    ) -> FleetTransport:
        """Return a connection, which is not open yet."""
        return FleetTransport(self, io_loop, listener, options, on_thread=on_thread)


class _StreamSource:
    """The messages of a stream. Implements `tornado_rbkit.upstream.source.Source`."""

    def __init__(self, receiver: StreamReceiver, on_taken: Callable[[], None]) -> None:
        self._receiver = receiver
        self._on_taken = on_taken
        self._on_ready: Callable[[], None] | None = None
        self._loop = asyncio.get_running_loop()

    def take(self, max_bytes: int, max_messages: int) -> tuple[list[Buffer], bool]:
        """Return the messages that are ready, within the two bounds."""
        taken = self._receiver.take(max_bytes, max_messages)
        self._on_taken()
        return taken

    def watch(self, on_ready: Callable[[], None]) -> None:
        """Call a function when messages are ready."""
        self._on_ready = on_ready
        if self._receiver.has_messages:
            self._loop.call_soon(self.on_messages)

    def unwatch(self) -> None:
        """Stop calling the function."""
        self._on_ready = None

    def on_messages(self) -> None:
        """Tell the subscriber that messages may be ready."""
        if self._on_ready is not None:
            self._on_ready()


class FleetTransport:
    """A lease of a target, its stream and its commands. Implements `tornado_rbkit.upstream.types.Transport`.

    The lease is renewed each second. Its reply has the state of the profiler's connection, and the time by the agent's
    clock, in which the deadlines of commands are given.
    """

    def __init__(
        self,
        endpoint: FleetEndpoint,
        io_loop: IOLoop,
        listener: TransportListener,
        options: UpstreamOptions,
        *,
        on_thread: bool,
    ) -> None:
        """Describe a connection; see `Endpoint.transport` for the arguments."""
        control, host, target = endpoint.control, endpoint.host, endpoint.target
        self._control = control
        self._endpoint = endpoint
        self._listener = listener
        self._lease_subject = subjects.watch(host, target, control.watcher)
        self._stream_subject = subjects.stream(control.watcher, host, target)
        self._receiver = StreamReceiver(max_message_bytes=options.max_message_bytes)
        self._subscriber = Subscriber(
            io_loop,
            listener.on_batch,
            on_thread=on_thread,
            flush_interval=options.flush_interval,
            rcvhwm=options.rcvhwm,
            max_pending_bytes=options.max_pending_bytes,
            compression_level=options.compression_level,
        )
        self._subscriber.max_rest = options.flush_interval  # longer rests would only delay what the agent has gathered
        self._viewers = 0
        self._granted = 0
        self._instance = ""  # of the agent; "" without a lease
        self._asked = ""  # the instance that the command in flight was sent to
        self._failed = ""  # why the command in flight is cancelled
        self._clock_offset = 0.0  # at most: the agent's clock less this process's
        self._connected = False
        self._elsewhere = 0  # clients of the target at other bridges
        self._state = 0  # of the receiver, as it was last reported
        self._tasks: list[asyncio.Task[None]] = []
        self._command: asyncio.Task[bytes] | None = None

    def open(self) -> None:
        """Begin to lease the target."""
        self._source = _StreamSource(self._receiver, self._grant_if_worthwhile)
        self._subscriber.open(self._source)
        self._data = Link(
            self._control.servers,
            f"rbkit bridge {self._control.watcher.bridge} {self._endpoint.label}",
            patience=DATA_PATIENCE,
        )
        self._taken = asyncio.Event()
        label, start = self._endpoint.label, self._control.tasks.start
        self._tasks = [
            start(step, f"the connection to {label}", self._listener.on_failure)
            for step in (self._data.run(), self._keep_lease(), self._keep_credit())
        ]

    def set_encodings(self, encodings: frozenset[Encoding], clients: int, generation: int) -> None:
        """Set the encodings of the batches."""
        self._viewers = clients
        self._subscriber.set_encodings(encodings, clients, generation)

    def request(self, command: str, timeout: float) -> None:
        """Send a command to the agent, with a deadline."""
        self._failed = ""
        self._command = asyncio.get_running_loop().create_task(self._request(command, timeout))
        self._command.add_done_callback(partial(self._on_asked, command, time.monotonic()))

    def stop(self) -> None:
        """Stop receiving, and fail the command in flight."""
        self._subscriber.close()
        for task in self._tasks:
            task.cancel()
        self._fail_command("the bridge has closed the connection")
        self._control.tasks.start(self._end_lease(), "ending a lease")

    def close(self) -> None:
        """Do nothing: the tasks that `stop` has cancelled close the connection for data."""

    # The lease

    async def _keep_lease(self) -> None:
        await self._data.subscribe(self._stream_subject, self._on_frame)
        await self._data.wait_until_up()  # frames sent earlier would be lost
        repeated = False
        while True:
            begun = self._receiver.stream
            try:
                await self._renew()
            except NoRespondersError:
                self._lose()
                self._fail_command("the agent has ended; it may have been carried out")
            except LinkError as error:
                _log.debug("the lease of %s failed: %s", self._endpoint.label, error)
                self._lose()
            # A new stream needs credit at once, but not one after the other, whatever the agent answers.
            repeated = not repeated and self._receiver.stream not in (0, begun)
            if not repeated:
                await asyncio.sleep(LEASE_INTERVAL)

    async def _renew(self) -> None:
        """Lease the target once.

        Raises:
            LinkError: the agent has not replied.
        """
        stream, grant = self._receiver.stream, self._receiver.grant
        viewers = self._viewers
        lease = {"instance": self._instance, "stream": stream, "grant": grant, "viewers": viewers}
        data = await self._control.link.request(self._lease_subject, msgpack.packb(lease), LEASE_TIMEOUT)
        reply = _unpacked(data)
        if "stream" not in reply:
            self._lose()
            return
        self._receiver.on_lease(reply["stream"], reply["sent"], reply["state"])
        self._instance = reply["instance"]
        if self._instance != self._asked:
            self._fail_command("the agent was restarted; it may have been carried out")
        self._clock_offset = reply["now"] - time.monotonic()
        self._granted = grant if stream == self._receiver.stream else 0
        self._report_state(elsewhere=max(0, reply["viewers"] - viewers))

    async def _end_lease(self) -> None:
        with contextlib.suppress(LinkError):
            await self._control.link.publish(self._lease_subject, msgpack.packb({"end": True}))

    def _lose(self) -> None:
        """Report that the agent, or the connection to it, is lost."""
        self._instance = ""
        self._report(connected=False)

    def _report_state(self, elsewhere: int | None = None) -> None:
        """Report the state of the profiler's connection to the agent, and a loss in between."""
        if not self._instance:
            return
        state, before = self._receiver.state, self._state
        self._state = state
        if state > before + 1 and self._connected:
            self._report(connected=False)
            self._subscriber.reset_counter()
        connected = bool(state % 2)
        if self._connected and not connected:
            self._subscriber.reset_counter()
        self._report(connected=connected, elsewhere=elsewhere)

    def _report(self, *, connected: bool, elsewhere: int | None = None) -> None:
        """Report a change of the connection, or of the clients elsewhere if their number is known by now."""
        elsewhere = self._elsewhere if elsewhere is None else elsewhere
        if (connected, elsewhere) != (self._connected, self._elsewhere):
            self._connected, self._elsewhere = connected, elsewhere
            missing = () if connected else self._endpoint.parts
            self._listener.on_connection(ConnectionState(missing, elsewhere=elsewhere))

    # The stream

    def _on_frame(self, message: Message) -> None:
        state = self._receiver.state
        self._receiver.receive(message.data)
        if self._receiver.state != state:
            self._report_state()
        if self._receiver.has_messages:
            self._source.on_messages()
        self._grant_if_worthwhile()

    def _grant_if_worthwhile(self) -> None:
        if self._receiver.grant - self._granted >= _CREDIT_STEP:
            self._taken.set()

    async def _keep_credit(self) -> None:
        while True:
            await self._taken.wait()
            self._taken.clear()
            stream, grant = self._receiver.stream, self._receiver.grant
            if not stream or grant <= self._granted:
                continue
            self._granted = grant
            with contextlib.suppress(LinkError):  # the next lease grants it too
                await self._control.link.publish(
                    self._lease_subject, msgpack.packb({"stream": stream, "grant": grant})
                )

    # Commands

    def _fail_command(self, reason: str) -> None:
        """Fail the command in flight, if there is one."""
        if self._command is not None and not self._command.done():
            self._failed = reason
            self._command.cancel()

    def _on_asked(self, command: str, asked_at: float, asking: asyncio.Task[bytes]) -> None:
        """Report the result of a command; its task may have been cancelled, even before it began."""
        failed = CommandError("unavailable", f"{command}: {self._failed}")
        error = failed if asking.cancelled() else asking.exception()
        if error is not None and not isinstance(error, CommandError):
            _log.error("asking for %s failed", command, exc_info=error)
            error = CommandError("unavailable", f"{command}: the bridge's log has the reason")
        reply = asking.result() if error is None else error.to_reply()
        seconds = time.monotonic() - asked_at
        self._listener.on_result(CommandResult(reply, error or CommandError.from_reply(reply), seconds))

    async def _request(self, command: str, timeout: float) -> bytes:
        """Return the reply to a command.

        Raises:
            CommandError: there is none.
        """
        label = self._endpoint.label
        if not self._instance:
            raise CommandError("unavailable", f"{command}: not sent, because the agent of {label} is not connected")
        self._asked = self._instance
        deadline = time.monotonic() + self._clock_offset + timeout
        watcher = self._control.watcher
        subject = subjects.command(self._endpoint.host, self._endpoint.target, watcher, command)
        asked = msgpack.packb({"instance": self._instance, "deadline": deadline})
        try:
            reply = await self._control.link.request(subject, asked, timeout + _REPLY_GRACE)
        except ForbiddenError as error:
            raise CommandError("forbidden", f"{command}: {error}") from None
        except RequestTimeoutError:
            text = f"no reply to {command} within {timeout:g} s; it may still be carried out (`command_timeouts`)"
            raise CommandError("timeout", text) from None
        except NoRespondersError:
            raise CommandError("unavailable", f"{command}: not sent, because the agent of {label} is gone") from None
        except LinkError as error:
            raise CommandError("unavailable", f"{command}: {error}; it may have been carried out") from None
        if CommandError.from_reply(reply) is None:
            check_reply(command, reply)  # the agent has done so, if it is one
        return reply


def _unpacked(data: bytes) -> dict[str, Any]:
    """Return the reply to a lease, {} if it is not valid."""
    try:
        reply = msgpack.unpackb(data)
        reply.setdefault("viewers", 0)
        numbers = [reply[name] for name in ("stream", "sent", "state", "viewers")]
        instance, now = reply["instance"], reply["now"]
    except (ValueError, TypeError, KeyError, AttributeError, msgpack.UnpackException):
        return {}
    is_valid = (
        all(type(number) is int and number >= 0 for number in numbers)
        and type(instance) is str
        and 0 < len(instance) <= subjects.MAX_NAME
        and type(now) is float
        and math.isfinite(now)
    )
    return dict(reply) if is_valid else {}
