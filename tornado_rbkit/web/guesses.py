"""Delays for clients that guess a token."""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict, deque
from typing import Final

FREE: Final = 3
"""Wrong tokens from one address that are answered at once: typing errors and old links."""

FIRST_DELAY: Final = 0.1
"""Seconds before the answer to the next wrong token; each further one doubles the delay."""

MAX_DELAY: Final = 2.0
"""Upper limit of the delay, in seconds."""

_QUIET: Final = 60.0  # seconds without a wrong token after which the count of an address restarts
_MAX_ADDRESSES: Final = 1024  # beyond this number, the address with the oldest wrong token is forgotten
_MAX_DELAYED: Final = 64  # delayed answers at a time, each holding a connection; further answers are not delayed


class Guesses:
    """Counts wrong tokens by address and computes how long to delay each answer. Web loop only.

    The right token is never delayed, so no client can lock out another client, not even at the same address (a
    proxy's, for instance). A client that does not wait for its answers is therefore not slowed down: the delay only
    stops simple loops from guessing fast. The protection is a long token, such as a generated one.
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
    """Return the network that one client controls: an IPv4 address, or an IPv6 /64."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address
    if ip.version == 4 or ip.ipv4_mapped:
        return str(ip)
    return str(ipaddress.ip_network((int(ip), 64), strict=False))
