"""The subjects of a fleet. No I/O.

Names are part of the subjects because a NATS server enforces permissions for subjects only. A bridge has two names:
the name of its credentials, and a token of its process, so that several processes can share the credentials.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple
from urllib.parse import quote, unquote_to_bytes

MAX_NAME: Final = 64
"""Bytes in a name."""

WHO: Final = "rbkit.who"
"""Bridges publish it; every agent answers with a hello that has the list of its targets."""

HELLOS: Final = "rbkit.hello.*"

ALL_VITALS: Final = "rbkit.vitals.*"

DEFAULT_TARGET: Final = "rbkit"
"""The name of a target without a name: the profiler at rbkit's default ports."""

HOST_TARGET: Final = "_host"
"""Used in place of a target's name by a bridge that asks whether the agent is running."""


class Watcher(NamedTuple):
    """One process of a bridge: the name of its credentials, and the token of the process."""

    bridge: str
    token: str


class Subject(NamedTuple):
    """The names in a subject: of a lease, of a stream, or of a command (else ``command`` is empty)."""

    host: str
    target: str
    watcher: Watcher
    command: str = ""


def check_fleet_name(name: str, what: str) -> str:
    """Return a name of a host, a target or a bridge if it can stand in a subject.

    Raises:
        ValueError: it is empty, too long, or not printable.
    """
    if not _is_valid(name):
        raise ValueError(f"{what} {name!r} is not valid; allowed: 1 to {MAX_NAME} bytes, printable characters")
    return name


def hello(host: str) -> str:
    """Return the subject on which an agent announces its host."""
    return f"rbkit.hello.{_token(host)}"


def vitals(host: str) -> str:
    """Return the subject on which an agent publishes the figures of its processes."""
    return f"rbkit.vitals.{_token(host)}"


def watch(host: str, target: str, watcher: Watcher) -> str:
    """Return the subject on which a bridge leases a stream and grants credit."""
    return _join("watch", host, target, *watcher)


def stream(watcher: Watcher, host: str, target: str) -> str:
    """Return the subject of the frames from an agent to a bridge."""
    return _join("to", *watcher, host, target)


def command(host: str, target: str, watcher: Watcher, name: str) -> str:
    """Return the subject of a command."""
    return _join("cmd", host, target, *watcher, name)


def all_leases(host: str) -> str:
    """Return the subject on which an agent receives the leases of all bridges."""
    return f"rbkit.watch.{_token(host)}.>"


def all_commands(host: str) -> str:
    """Return the subject on which an agent receives the commands of all bridges."""
    return f"rbkit.cmd.{_token(host)}.>"


def parse(subject: str) -> Subject | None:
    """Return the names in the subject of a lease or a command, None if it is another subject.

    A name has one spelling only, else a subject that permissions do not name could stand for one that they do.
    """
    root, *tokens = subject.split(".")
    kind = tokens.pop(0) if tokens else ""
    if root != "rbkit" or len(tokens) != {"watch": 4, "cmd": 5}.get(kind):
        return None
    try:
        host, target, bridge, token, *rest = (unquote_to_bytes(each).decode() for each in tokens)
    except UnicodeDecodeError:
        return None
    names = host, target, bridge, token
    if not all(map(_is_valid, names)) or _join(kind, *names, *rest) != subject:
        return None
    return Subject(host, target, Watcher(bridge, token), rest[0] if rest else "")


def parse_host(subject: str, of_host: Callable[[str], str]) -> str | None:
    """Return the host in a subject that `hello` or `vitals` has made."""
    token = subject.removeprefix(of_host(""))
    try:
        host = unquote_to_bytes(token).decode()
    except UnicodeDecodeError:
        return None
    return host if _is_valid(host) and of_host(host) == subject else None


def permissions_of_host(name: str) -> dict[str, object]:
    """Return what the credentials of a host may publish and subscribe, as in the configuration of nats-server."""
    host = _token(name)
    return {
        "publish": [hello(name), vitals(name), f"rbkit.to.*.*.{host}.>"],
        "subscribe": [all_commands(name), all_leases(name), WHO],
        "allow_responses": {"max": 1, "expires": "10m"},
    }


def permissions_of_bridge(name: str, *, read_only: bool = False) -> dict[str, object]:
    """Return what the credentials of a bridge may publish and subscribe, as in the configuration of nats-server."""
    bridge = _token(name)
    what = "handshake" if read_only else "*"
    return {
        "publish": [f"rbkit.watch.*.*.{bridge}.*", f"rbkit.cmd.*.*.{bridge}.*.{what}", WHO],
        "subscribe": [f"rbkit.to.{bridge}.>", HELLOS, ALL_VITALS, f"{inbox(name)}.>"],
    }


def inbox(name: str) -> str:
    """Return the prefix of the subjects on which a bridge gets replies."""
    return f"_INBOX_{_token(name)}"


def _is_valid(name: str) -> bool:
    return 0 < len(name.encode(errors="surrogatepass")) <= MAX_NAME and name.isprintable()


def _join(kind: str, *names: str) -> str:
    return ".".join(("rbkit", kind, *map(_token, names)))


def _token(name: str) -> str:
    """Escape a name: a token holds no dots, spaces or wildcards."""
    return quote(name, safe="", errors="surrogatepass").replace(".", "%2E")
