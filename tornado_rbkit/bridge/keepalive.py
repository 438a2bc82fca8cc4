"""Decides whether a client is alive, by pings and pongs. No I/O and no timers."""

from __future__ import annotations

from tornado_rbkit.frames import JOIN_LIMIT


class Keepalive:
    """The pings of one client: when to send them, and how long to wait for each pong.

    While data is blocked no ping is sent and no pong is demanded: it could not pass the data. The outbox then closes a
    client that takes nothing within `stall_timeout`. Times are in seconds, by any monotonic clock.

    Attributes:
        interval: seconds between pings, 0 for none.
    """

    def __init__(self, *, interval: float, timeout: float, stall_timeout: float) -> None:
        """Create the state of a client that has not been sent a ping.

        Args:
            interval: seconds between pings, 0 for none.
            timeout: seconds within which a pong must arrive.
            stall_timeout: seconds within which it must arrive if unread data may be ahead of the ping.
        """
        self.interval = interval
        self._timeout = timeout
        self._stall_timeout = stall_timeout
        self._pinged_at: float | None = None  # None unless a pong is awaited
        self._sent_before_ping = 0
        self._read = 0  # bytes that the client has certainly read: the bytes before a ping that it answered

    def on_ping(self, now: float, bytes_sent: int) -> float:
        """Record that a ping is sent; return the seconds within which its pong must arrive.

        Args:
            now: the time.
            bytes_sent: bytes of data that the client's connection has accepted so far.
        """
        self._pinged_at = now
        self._sent_before_ping = bytes_sent
        is_behind_data = bytes_sent - self._read > JOIN_LIMIT  # the kernel may still have to send it
        return max(self._timeout, self._stall_timeout if is_behind_data else 0.0)

    def on_pong(self, now: float) -> float | None:
        """Record a pong; return the seconds until the next ping, None if no pong was awaited."""
        if self._pinged_at is None:
            return None
        pinged_at, self._pinged_at = self._pinged_at, None
        self._read = self._sent_before_ping
        return max(0.0, pinged_at + self.interval - now)

    def on_timeout(self, *, blocked: bool) -> bool:
        """Record that a pong has not arrived in time; return whether the client is dead.

        Args:
            blocked: whether data waits that the client's connection does not accept.
        """
        self._pinged_at = None
        return not blocked
