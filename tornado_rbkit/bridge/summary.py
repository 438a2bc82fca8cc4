"""What a list of many targets shows of each one."""

from __future__ import annotations

from typing import Any, Final, Protocol, runtime_checkable

from tornado_rbkit.bridge.bridge import Bridge

_MAX_TEXT: Final = 300  # characters


@runtime_checkable
class KnowsTargets(Protocol):
    """A mapping of names to bridges that knows facts about targets to which its bridges are not connected."""

    def facts(self, name: str) -> dict[str, Any]:
        """Return facts that take precedence over `Bridge.summary`; None for a fact that is not known."""

    def figures(self, name: str) -> dict[str, float]:
        """Return ``process_rss`` in bytes and ``process_cpu_ms`` of a target's process, without those not known.

        If they were not read now, ``at`` is when they were, in monotonic seconds of the target's host.
        """


def describe(bridges: object, name: str, bridge: Bridge) -> dict[str, Any]:
    """Return the summary of the bridge that has a name in a mapping, ready for JSON; texts are short and printable."""
    known = bridges.facts(name) if isinstance(bridges, KnowsTargets) else {}
    facts = bridge.summary() | {key: value for key, value in known.items() if value is not None}
    for key in ("process", "trouble"):
        if facts[key] is not None:
            facts[key] = printable(facts[key])
    return facts


def printable(text: str) -> str:
    """Return a text without control and direction characters, and not longer than a list can show."""
    return "".join(character if character.isprintable() else "?" for character in text[:_MAX_TEXT])
