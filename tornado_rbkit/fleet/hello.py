"""The announcement of an agent: which agent it is, and the targets of its host. No I/O."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import msgpack

from tornado_rbkit.fleet import subjects

VERSION: Final = 1
"""The version of the protocol between agents and bridges."""

MAX_TARGETS: Final = 1024
"""Targets of one host."""

MAX_TEXT: Final = 256
"""Characters of a text in a hello."""

_FACTS: Final = {"process": str, "pid": int, "state": str, "trouble": str, "viewers": int, "recording": list}
_RECORDED: Final = 3  # kinds of profiling


class Hello(NamedTuple):
    """The announcement of an agent. What `parse` returns has only known facts, of bounded size.

    Attributes:
        version: the version of the protocol that it speaks.
        instance: the agent.
        digest: of the list of its targets.
        targets: the facts about each target by name, None without a list.
    """

    version: int
    instance: str
    digest: str
    targets: dict[str, dict[str, Any]] | None = None

    def pack(self) -> bytes:
        """Return the message."""
        hello: dict[str, Any] = {"v": self.version, "instance": self.instance, "digest": self.digest}
        if self.targets is not None:
            hello["targets"] = [{"name": name, **facts} for name, facts in self.targets.items()]
        packed: bytes = msgpack.packb(hello)
        return packed

    @classmethod
    def parse(cls, data: bytes) -> Hello | None:
        """Return the announcement in a message, None if it is not valid."""
        try:
            hello = msgpack.unpackb(data)
            version, instance, digest = hello["v"], hello["instance"], hello["digest"]
            targets = hello.get("targets")
        except (ValueError, TypeError, KeyError, AttributeError, msgpack.UnpackException):
            return None
        texts = (instance, digest)
        if type(version) is not int or not all(type(each) is str and len(each) <= MAX_TEXT for each in texts):
            return None
        if version != VERSION:
            return cls(version, instance, digest, {})
        return cls(version, instance, digest, _facts(targets) if isinstance(targets, list) else None)


def _facts(targets: list[Any]) -> dict[str, dict[str, Any]]:
    """Return the facts in the list of a hello, by target."""
    facts: dict[str, dict[str, Any]] = {}
    for each in targets[:MAX_TARGETS]:
        if not isinstance(each, dict) or type(each.get("name")) is not str:
            continue
        try:
            name = subjects.check_fleet_name(each["name"], "the target")
        except ValueError:
            continue
        known = ((key, each.get(key), kind) for key, kind in _FACTS.items())
        facts[name] = {key: _bounded(value) for key, value, kind in known if type(value) is kind}
    return facts


def _bounded(value: Any) -> Any:
    """Return a fact, cut to its allowed size."""
    if isinstance(value, list):
        return [each[:MAX_TEXT] for each in value[:_RECORDED] if isinstance(each, str)]
    return value[:MAX_TEXT] if isinstance(value, str) else value
