"""An rbkit server that says again what a recorded one said."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Iterator
from types import TracebackType

import zmq

from tornado_rbkit.protocol import RbkitError
from tornado_rbkit.recording import DATA, Record

_log = logging.getLogger(__name__)


class ReplayServer:
    """Publishes the messages of a recording with their timing, from the first subscriber on, while it is entered.

    It answers ``handshake`` as the recorded process did the last time before, and ``ok`` to all else, as rbkit does.
    Its sockets are made, used and closed on a thread of its own.

    Attributes:
        pub: the endpoint it publishes at, once it is entered.
        req: the endpoint it takes commands at, once it is entered.
    """

    def __init__(self, records: Iterable[Record], *, speed: float = 1.0) -> None:
        """Describe a replay.

        Args:
            records: as `recording.read` yields them; taken one at a time, as they are due.
            speed: 2 is twice as fast as it was.

        Raises:
            ValueError: `speed` is not above 0.
        """
        if not speed > 0:
            raise ValueError(f"speed={speed!r} is out of range; allowed: more than 0")
        self.pub = self.req = ""
        self._records = records
        self._speed = speed
        self._handshake = b""
        self._error: RbkitError | None = None
        self._bound = threading.Event()
        self._stop_is_due = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rbkit-replay", daemon=True)

    def __enter__(self) -> ReplayServer:
        """Start the thread, and return once its sockets are bound."""
        self._thread.start()
        self._bound.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the sockets and join the thread.

        Raises:
            RecordingError: the recording turned out to be none, or to be cut off.
        """
        self._stop_is_due.set()
        self._thread.join()
        if self._error is not None and error is None:
            raise self._error

    def _run(self) -> None:
        with zmq.Context() as context, context.socket(zmq.XPUB) as pub, context.socket(zmq.REP) as rep:
            pub.linger = rep.linger = 0
            pub.sndhwm = 0  # nothing is lost that was recorded
            pub.bind("tcp://127.0.0.1:*")
            rep.bind("tcp://127.0.0.1:*")
            self.pub = pub.getsockopt_string(zmq.LAST_ENDPOINT)
            self.req = rep.getsockopt_string(zmq.LAST_ENDPOINT)
            self._bound.set()
            try:
                self._publish(pub, rep)
            except RbkitError as error:
                _log.error("the recording ends here: %s", error)
                self._error = error
            while not self._stop_is_due.is_set():
                self._answer(rep, 0.05)

    def _publish(self, pub: zmq.Socket[bytes], rep: zmq.Socket[bytes]) -> None:
        """Send all messages when they are due, counting from the first subscription."""
        messages = self._messages()
        message = next(messages, None)  # with the handshake before it
        while not self._stop_is_due.is_set() and not pub.poll(0):
            self._answer(rep, 0.05)
        started, first = time.monotonic(), message.seconds if message else 0.0
        while message is not None and not self._stop_is_due.is_set():
            wait = started + (message.seconds - first) / self._speed - time.monotonic()
            if wait > 0:
                self._answer(rep, min(wait, 0.05))
            else:
                pub.send(message.payload)
                message = next(messages, None)

    def _messages(self) -> Iterator[Record]:
        """Yield the published messages, and take in the handshakes between them."""
        for record in self._records:
            if record.command == "handshake":
                self._handshake = record.payload
            elif record.channel == DATA:
                yield record

    def _answer(self, rep: zmq.Socket[bytes], seconds: float) -> None:
        """Answer a command if one comes within that time."""
        if rep.poll(int(seconds * 1000)):
            command = rep.recv_multipart()[0]
            rep.send(self._handshake if command == b"handshake" and self._handshake else b"ok")
