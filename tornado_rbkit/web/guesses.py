"""Slowing down clients that guess a token."""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict, deque
from typing import Final

FREE: Final = 3
"""Wrong tokens of one address that are answered at once: typing errors, and old links."""

FIRST_DELAY: Final = 0.1
"""Seconds before the answer to the next one; each one after it waits twice as long."""

MAX_DELAY: Final = 2.0
"""Seconds."""

_QUIET: Final = 60.0  # seconds without a wrong token, after which an address begins anew
_MAX_ADDRESSES: Final = 1024  # then the one that was quiet for longest is forgotten
_MAX_DELAYED: Final = 64  # answers at a time, each of which holds a connection; those beyond are not delayed


class Guesses:
    """Counts wrong tokens by address and says how long to delay the answers. The web loop only.

    The right token is never delayed, so that no client can lock out another one, not even at the same address (that of
    a proxy, for instance). It follows that a client which does not wait for its answer is not slowed down: this keeps
    simple loops from guessing fast, and a long token, as the one that is made up, is what protects.
    """

    def __init__(self) -> None:
        self._counts: OrderedDict[str, tuple[int, float]] = OrderedDict()
        self._delayed: deque[float] = deque()  # when each answer that is delayed is due

    def add(self, address: str | None) -> float:
        """Count a wrong token from an address; return the seconds by which to delay the answer."""
        now = time.monotonic()
        key = _network(address or "")
        count, last = self._counts.pop(key, (0, now))
        count = 1 if now - last > _QUIET else count + 1
        self._counts[key] = count, now
        if len(self._counts) > _MAX_ADDRESSES:
            self._counts.popitem(last=False)
        delay = 0.0 if count <= FREE else min(FIRST_DELAY * 2.0 ** min(count - FREE - 1, 30), MAX_DELAY)
        self._delayed = deque(due for due in self._delayed if due > now)
        if not delay or len(self._delayed) >= _MAX_DELAYED:
            return 0.0
        self._delayed.append(now + delay)
        return delay


def _network(address: str) -> str:
    """Return what one client has for itself: an IPv4 address, or the 64 bits of an IPv6 network."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address
    if ip.version == 4 or ip.ipv4_mapped:
        return str(ip)
    return str(ipaddress.ip_network((int(ip), 64), strict=False))
