"""An rbkit server that replays a recording."""

from __future__ import annotations

import logging
import math
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from types import TracebackType
from typing import Final

import zmq

from tornado_rbkit.endpoints import MAX_IPC_PATH, require_descriptors, server_socket
from tornado_rbkit.errors import RbkitError
from tornado_rbkit.recording.recording import DATA, Record

_log = logging.getLogger(__name__)

_TURN: Final = 0.05
"""Seconds per wait for a command or for a slow subscriber."""

_HIGH_WATER_MARK: Final = 32
"""Messages that may wait for one subscriber (ZMQ_SNDHWM); a heap snapshot of Ruby is one message of 50 MB."""

_HANDSHAKE_WITHIN: Final = 1000
"""Records that are searched for the first handshake before the replay starts."""


class ReplayServer:
    """Context manager that publishes the messages of a recording with their timing, from the first subscriber on.

    The replay stops when the last subscriber has left, and restarts for each new one. No message is lost: it waits
    for a subscriber that does not read its messages.

    ``handshake`` is answered with the last recorded reply before the current position, every other command with
    ``ok``, as rbkit does. The sockets are made, used and closed on a thread of their own.

    Attributes:
        ended: a future, done when the thread has ended, with the exception that ended it early.
        pub: the endpoint that it publishes at, set on entering.
        req: the endpoint that it takes commands at, set on entering.
    """

    def __init__(self, records: Callable[[], Iterable[Record]], *, speed: float = 1.0) -> None:
        """Describe a replay; nothing is opened yet.

        Args:
            records: returns an iterator over all records, as `recording.read` does; each is read when it is due.
            speed: the playback speed; 2 is twice as fast as recorded.

        Raises:
            ValueError: `speed` is not finite and above 0.
        """
        if not 0 < speed < math.inf:
            raise ValueError(f"speed={speed!r} is out of range; allowed: more than 0, and finite")
        self.pub = self.req = ""
        self._records = records
        self._speed = speed
        self._handshake = b""
        self._subscribers = 0
        self._has_come = False  # whether a new subscriber waits for the replay to restart
        self._error: RbkitError | None = None
        self._bound = threading.Event()
        self._stop_is_due = threading.Event()
        self._executor = ThreadPoolExecutor(1, "rbkit-replay")
        self.ended: Future[None] = Future()

    def __enter__(self) -> ReplayServer:
        """Start the thread, and return when its sockets are bound.

        Raises:
            OSError: there are too few file descriptors.
            RbkitError: the sockets cannot be opened.
        """
        require_descriptors()
        self.ended = self._executor.submit(self._run)
        self.ended.add_done_callback(lambda _: self._bound.set())
        self._bound.wait()
        if self.ended.done():
            self.__exit__(None, None, None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the sockets and join the thread.

        Raises:
            RecordingError: the file is not a recording, or is cut off.
            RbkitError: the thread ended early.
        """
        self._stop_is_due.set()
        self._executor.shutdown()
        if error is not None:
            return
        cause = self.ended.exception()
        if cause is not None:
            raise RbkitError(f"the replay has ended: {cause}") from cause
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        with (
            tempfile.TemporaryDirectory(prefix="rbkit-") as folder,  # other users cannot enter it
            zmq.Context() as context,
            server_socket(context, zmq.XPUB) as pub,
            server_socket(context, zmq.REP) as rep,
        ):
            pub.linger = rep.linger = 0
            pub.sndhwm = _HIGH_WATER_MARK
            pub.xpub_nodrop = True  # block at the high-water mark instead of dropping
            pub.sndtimeo = int(_TURN * 1000)
            fits = zmq.has("ipc") and len(os.fsencode(folder)) + len("/pub") <= MAX_IPC_PATH
            pub.bind(f"ipc://{folder}/pub" if fits else "tcp://127.0.0.1:*")
            rep.bind(f"ipc://{folder}/req" if fits else "tcp://127.0.0.1:*")
            self.pub = pub.getsockopt_string(zmq.LAST_ENDPOINT)
            self.req = rep.getsockopt_string(zmq.LAST_ENDPOINT)
            self._bound.set()
            self._handshake = self._first_handshake()
            pub.xpub_verboser = True  # a subscriber may arrive before the previous one has left
            while not self._stop_is_due.is_set():
                self._play(self._messages(), pub, rep)

    def _play(self, messages: Iterator[Record], pub: zmq.Socket[bytes], rep: zmq.Socket[bytes]) -> None:
        """Send each message when it is due, until another client subscribes or the last one leaves."""
        message = self._next(messages)  # this also reads the handshake before it
        while not self._has_come:
            self._answer(rep, _TURN)
            self._count_subscribers(pub)
            if self._stop_is_due.is_set():
                return
        self._has_come = False
        started, first = time.monotonic(), message.seconds if message else 0.0
        while self._subscribers and not self._has_come and not self._stop_is_due.is_set():
            wait = _TURN if message is None else started + (message.seconds - first) / self._speed - time.monotonic()
            if wait > 0:
                self._answer(rep, min(wait, _TURN))
            elif message is not None and self._send(pub, message.payload):
                message = self._next(messages)
            else:
                self._answer(rep, 0)
            self._count_subscribers(pub)

    def _send(self, pub: zmq.Socket[bytes], payload: bytes) -> bool:
        """Publish a message; return False if a subscriber's queue is full."""
        try:
            pub.send(payload)
        except zmq.Again:
            return False
        return True

    def _count_subscribers(self, pub: zmq.Socket[bytes]) -> None:
        """Count the subscribers that have arrived and left."""
        while pub.poll(0):
            came = pub.recv()[:1] == b"\1"
            self._subscribers += 1 if came else -1
            self._has_come |= came

    def _next(self, messages: Iterator[Record]) -> Record | None:
        try:
            return next(messages, None)
        except RbkitError as error:
            if self._error is None:  # logged once, however often it is replayed
                _log.error("the recording ends here: %s", error)
                self._error = error
            return None

    def _first_handshake(self) -> bytes:
        """Return the first recorded reply to ``handshake``, for the time before it was recorded."""
        try:
            for record in islice(self._records(), _HANDSHAKE_WITHIN):
                if record.command == "handshake":
                    return record.payload
        except RbkitError:  # reported when it is replayed
            pass
        return b""

    def _messages(self) -> Iterator[Record]:
        """Yield the published messages, and store the handshakes between them."""
        for record in self._records():
            if record.command == "handshake":
                self._handshake = record.payload
            elif record.channel == DATA:
                yield record

    def _answer(self, rep: zmq.Socket[bytes], seconds: float) -> None:
        """Answer a command if one arrives within `seconds`."""
        if rep.poll(int(seconds * 1000)):
            try:
                command = rep.recv_multipart(zmq.NOBLOCK)[0]
            except zmq.Again:  # the message had no envelope
                return
            rep.send(self._handshake if command == b"handshake" and self._handshake else b"ok")
