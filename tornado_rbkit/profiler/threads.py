"""The profiler's threads and locks, which are invisible to the host's program.

They come from `_thread`, so `threading.enumerate()` does not list them, and the hooks of `threading.setprofile` and
`threading.settrace` do not run on them. In a program patched by gevent or eventlet they are still real threads and
locks, because they use the functions that the patch replaced.
"""

from __future__ import annotations

import _thread
import logging
import signal
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

_running: Final[dict[int, InternalThread]] = {}


def original(name: str) -> Any:
    """Return an attribute of `_thread` as it was before gevent or eventlet replaced it."""
    gevent = sys.modules.get("gevent.monkey")
    if gevent is not None:
        return gevent.get_original("_thread", name)
    eventlet = sys.modules.get("eventlet.patcher")
    if eventlet is not None:
        return getattr(eventlet.original("_thread"), name)
    return getattr(_thread, name)


def internal_threads() -> set[int]:
    """Return the identifiers of the profiler's running threads. Any thread."""
    return set(_running)


def on_internal_thread() -> bool:
    """Return whether the calling thread is one of the profiler's own that does not control it.

    Finalizers of the host may run there, and other threads may wait for it.
    """
    thread = _running.get(original("get_ident")())
    return thread is not None and not thread.controls


def internal_native_ids() -> set[int]:
    """Return the system's identifiers of the profiler's running threads. Any thread."""
    return {thread.native_id for thread in list(_running.values())}


def forget_threads() -> None:
    """Forget the parent's threads in a forked child, where other threads may get their identifiers."""
    global _hiding
    _running.clear()
    _hiding = original("allocate_lock")()


_hiding: Any = original("allocate_lock")()


def hiding() -> Any:
    """Return the lock that keeps the profiler's passing objects out of a list of all objects, for a ``with`` block.

    The thread that lists the objects holds it, and so does any other thread while only its frames refer to objects of
    no class of the profiler, such as a list.
    """
    return _hiding


class Flag:
    """An event that is set once. Any thread. In contrast to `threading.Event`, waiting creates no object."""

    def __init__(self) -> None:
        self._lock = original("allocate_lock")()
        self._lock.acquire()
        self._unset = [True]

    def is_set(self) -> bool:
        """Return True after `set`."""
        return not self._unset

    def set(self) -> None:
        """Wake the waiting threads. May be called twice, also where an interrupt ended the first call."""
        self._unset.clear()
        self._release()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for `set`, for at most `timeout` seconds; return False if the time passed without it."""
        try:
            if self._unset:
                seconds = -1 if timeout is None else max(0.0, timeout)
                # Each form would make an object that a snapshot lists as the host's on the other versions.
                if sys.version_info >= (3, 14):
                    self._lock.acquire(True, seconds)
                else:
                    self._lock.acquire(timeout=seconds)
        finally:
            if not self._unset:
                self._release()  # also where an interrupt arrived with the lock
        return not self._unset

    def _release(self) -> None:
        try:
            self._lock.release()
        except RuntimeError:  # it was released already
            return


class InternalThread:
    """A running daemon thread of the profiler. Its methods may be called on any other thread.

    Args:
        run: the function that the thread runs; it handles its exceptions itself.
        name: the name in `repr`.
        controls: whether it may start and stop the profiler, as the host's threads do.
    """

    def __init__(self, run: Callable[[], None], name: str, *, controls: bool = False) -> None:
        self.name = name
        self.controls = controls
        self.native_id = 0
        self._target = run
        self._ended = Flag()
        original("start_new_thread")(self._run, ())

    def __repr__(self) -> str:
        return f"<InternalThread {self.name}{'' if self.is_alive() else ' ended'}>"

    def is_alive(self) -> bool:
        """Return False once the thread has ended, also in a forked child."""
        return not self._ended.is_set()

    def join(self, timeout: float | None = None) -> bool:
        """Wait for the end of the thread, for at most `timeout` seconds; return False if it still runs."""
        return self._ended.wait(timeout)

    def _run(self) -> None:
        try:  # whatever fails, such as an allocation: others wait for the end
            leave_signals_to_the_host()
            self.native_id = original("get_native_id")()
            _running[original("get_ident")()] = self
            self._target()
        finally:
            _running.pop(original("get_ident")(), None)
            self._ended.set()


if TYPE_CHECKING:
    _Adapter = logging.LoggerAdapter[logging.Logger]
else:  # not generic on Python 3.10
    _Adapter = logging.LoggerAdapter


class InternalLogger(_Adapter):
    """Logs without leaving a trace of the profiler's threads in `threading`.

    A log record asks for the current thread, and `threading` lists a dummy thread for every foreign thread that does.
    """

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """Log as `logging.Logger.log` does."""
        super().log(level, msg, *args, stacklevel=kwargs.pop("stacklevel", 1) + 1, **kwargs)
        if original("get_ident")() in _running:
            threading._active.pop(threading.get_ident(), None)  # type: ignore[attr-defined]


def internal_logger(name: str) -> InternalLogger:
    """Return the logger of a module of the profiler."""
    return InternalLogger(logging.getLogger(name), {})


def leave_signals_to_the_host() -> None:
    """Block every signal on this thread, so that the system delivers them to the threads that expect them."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
