"""The names on the wire."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tornado_rbkit.fleet import subjects
from tornado_rbkit.fleet.subjects import MAX_NAME, Subject, Watcher, check_fleet_name

PRINTABLE = st.characters(exclude_categories=("C", "Z")) | st.just(" ")
NAMES = st.text(PRINTABLE, min_size=1, max_size=MAX_NAME // 4)  # a character is at most four bytes


@given(NAMES, NAMES, NAMES, NAMES, NAMES)
def test_every_name_comes_back_and_is_one_token(host: str, target: str, bridge: str, token: str, command: str) -> None:
    watcher = Watcher(bridge, token)
    lease = subjects.watch(host, target, watcher)
    assert subjects.parse(lease) == Subject(host, target, watcher)
    assert subjects.parse(subjects.command(host, target, watcher, command)) == Subject(host, target, watcher, command)
    assert subjects.parse_host(subjects.hello(host), subjects.hello) == host
    for subject in (lease, subjects.stream(watcher, host, target)):
        assert subject.count(".") == 5
        assert not set(subject) & set("*> \t\r\n")


@pytest.mark.parametrize(
    "subject",
    [
        "",
        "rbkit",
        "rbkit.watch",
        "rbkit.watch.a.b.c",
        "rbkit.cmd.a.b.c.d",
        "other.watch.a.b.c.d",
        "rbkit.x.a.b.c.d",
        "rbkit.watch.%FF.b.c.d",
        f"rbkit.watch.{'a' * 65}.b.c.d",
        "rbkit.watch.%61.b.c.d",
        "rbkit.cmd.a.b.c.d.trigger%5Fgc",
        "rbkit.watch.a.b%0Ac.c.d",
        "rbkit.watch..b.c.d",
        "rbkit.hello.%61",
        "rbkit.hello.a%0A",
        "rbkit.hello.a.b",
    ],
)
def test_other_subjects_are_nothing(subject: str) -> None:
    assert subjects.parse(subject) is None
    assert subjects.parse_host(subject, subjects.hello) is None


@pytest.mark.parametrize("name", ["", "a" * 65, "ä" * 33, "a\nb", "\ud800"])
def test_a_name_that_cannot_stand_in_a_subject_is_refused_in_clear_words(name: str) -> None:
    with pytest.raises(ValueError, match="allowed: 1 to 64 bytes, printable characters"):
        check_fleet_name(name, "the name of the host")
