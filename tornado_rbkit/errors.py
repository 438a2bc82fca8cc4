"""The errors that this package raises, all subclasses of `RbkitError`.

Errors of the profiler, and errors that hold an object of one package (`ConnectionLost`), are defined in the module
that raises them.
"""

from __future__ import annotations

from typing import ClassVar, Final

_ERROR: Final = b"error:"  # prefix of an error that is sent in place of a reply


class RbkitError(Exception):
    """Base class of the errors that this package raises.

    Attributes:
        exit_status: the exit status of a command that ends with the error: 1 for a failure, 2 for wrong arguments.
    """

    exit_status: ClassVar[int] = 1


class DecodeError(RbkitError, ValueError):
    """A payload is not an rbkit message."""


class CommandError(RbkitError):
    """A command was not carried out.

    Attributes:
        reason: one word for programs, sent after ``error:``.
        text: one sentence for people.
    """

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(f"{reason}: {text}")
        self.reason = reason
        self.text = text

    def to_reply(self) -> bytes:
        """Return the bytes that are sent instead of the reply."""
        return f"error:{self.reason} {self.text}".encode()

    @classmethod
    def from_reply(cls, payload: bytes) -> CommandError | None:
        """Return the error in a reply, None if it is not an error."""
        if not payload.startswith(_ERROR):
            return None
        reason, _, text = payload[len(_ERROR) :].decode(errors="replace").partition(" ")
        return cls(reason, text)


class EndpointError(RbkitError, ValueError):
    """An endpoint that no socket can connect to."""

    exit_status = 2


class RecordingError(RbkitError, ValueError):
    """The file is not a recording, or ends in the middle of a record."""

    exit_status = 2


class BridgeFullError(RbkitError):
    """A client cannot join: `max_clients` is reached, the bridge is closed, or it cannot open a connection."""


class DiscoveryError(RbkitError):
    """Discovery has failed; all bridges of the `DiscoveredTargets` are closed."""


class ServerFailedError(RbkitError):
    """A child process did not start or has ended; it has printed the reason itself."""
