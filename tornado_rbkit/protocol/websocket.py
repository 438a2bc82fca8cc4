"""The messages that exist only on the WebSocket: channels, notices, and the reasons of a close."""

from __future__ import annotations

import enum
from typing import Final, NamedTuple

from tornado_rbkit.errors import CommandError

SUBPROTOCOL: Final = "rbkit"
"""The WebSocket subprotocol that a client offers to connect to a profiler."""


class Channel(bytes, enum.Enum):
    """The one-byte prefix of every message a WebSocket client receives."""

    REPLY = b"0"
    DATA = b"1"


# Notices


class Notice(NamedTuple):
    """An unsolicited message on the reply channel: ``client_count:2``, ``dropped:17``, ``server:restarted``.

    Notices are state, not events. At most one notice of each `kind` waits for a slow client:

    - ``client_count``: the newest number replaces an older one.
    - ``dropped``: the numbers are summed.
    - ``server:disconnected`` and ``server:connected``: the newest replaces the older, so a client may get
      ``connected`` without the ``disconnected`` before it, or one ``disconnected`` for several losses.
    - ``server:restarted``: several are merged into one. ``connected`` and ``disconnected`` do not replace it, but it
      may be sent before or after them.
    """

    name: str
    value: str

    @property
    def kind(self) -> str:
        """The name, or ``restarted`` for `RESTARTED`. A newer notice replaces a waiting one of the same kind."""
        return self.value if self == RESTARTED else self.name

    def to_bytes(self) -> bytes:
        return f"{self.name}:{self.value}".encode()


CLIENT_COUNT: Final = "client_count"
DROPPED: Final = "dropped"
NOTICES: Final = frozenset({CLIENT_COUNT, DROPPED, "server"})
RESTARTED: Final = Notice("server", "restarted")


def parse_notice(payload: bytes) -> Notice | None:
    """Return the notice in a message of the reply channel, None if the message is a reply or an error."""
    name, colon, value = payload[:64].partition(b":")
    if colon and name.decode("latin-1") in NOTICES:
        return Notice(name.decode("latin-1"), value.decode("latin-1"))
    return None


def check_reply(command: str, reply: bytes) -> None:
    """Check that clients cannot mistake a profiler's reply for a notice or for an error from the bridge.

    Replies, errors and notices share one channel and are distinguished by their prefixes. If a client took a reply for
    a notice, it would match all later replies to the wrong commands.

    Raises:
        CommandError: ``invalid-reply``, to be sent instead of the reply.
    """
    if CommandError.from_reply(reply) or parse_notice(reply):
        raise CommandError(
            "invalid-reply", f"{command}: the reply begins with {reply[:40]!r}, which is reserved for the bridge"
        )


# Closing

CLOSE_GOING_AWAY: Final = 1001
CLOSE_POLICY: Final = 1008
CLOSE_TOO_BIG: Final = 1009
CLOSE_TRY_AGAIN: Final = 1013

NOT_AUTHORIZED: Final = "not authorized"
"""Prefix of the close reason (`CLOSE_POLICY`) if `authorize` refuses; a client should not reconnect by itself."""

TOO_SLOW: Final = "too slow"
"""Prefix of the close reason (`CLOSE_POLICY`) if a client accepted no data for `stall_timeout`; it may reconnect."""

NO_PONG: Final = "no pong"
"""Prefix of the close reason (`CLOSE_POLICY`) if a client sent no pong for `ping_timeout`; it may reconnect."""


def is_refused(close_code: int | None, close_reason: str | None) -> bool:
    """Return whether reconnecting is useless: closed with `CLOSE_POLICY`, but not with `TOO_SLOW` or `NO_PONG`."""
    return close_code == CLOSE_POLICY and not (close_reason or "").startswith((TOO_SLOW, NO_PONG))
