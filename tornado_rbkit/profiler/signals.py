"""Leave signals to the host's threads."""

from __future__ import annotations

import signal


def leave_signals_to_the_host() -> None:
    """Block every signal on this thread, so that the system delivers them to the threads that expect them."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
