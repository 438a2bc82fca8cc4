"""The queue of received messages: nothing is lost without a gap that says how much, and the bound is kept."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.fake_rbkit import collection
from tornado_rbkit.inbox import Gap, Inbox
from tornado_rbkit.protocol import Notice

ENTRY_COST = 256
MAX_BYTES = 2000


def drain(inbox: Inbox) -> list[bytes | Gap | Notice]:
    items: list[bytes | Gap | Notice] = []
    while inbox:
        items += inbox.take()
    return items


@given(st.lists(st.one_of(st.just("take"), st.integers(0, 1500)), max_size=60))
def test_every_message_is_returned_or_counted_in_a_gap(steps: list[str | int]) -> None:
    inbox = Inbox(MAX_BYTES)
    taken: list[bytes | Gap | Notice] = []
    put: list[bytes] = []
    for step in steps:
        if step == "take":
            taken += inbox.take() if inbox else []
        else:
            put.append(collection(len(put), padding=int(step)))
            inbox.put(put[-1])
    waiting = drain(inbox)
    behind_the_next = [item for item in waiting if isinstance(item, bytes)][1:]
    assert sum(len(item) + ENTRY_COST for item in behind_the_next) <= MAX_BYTES
    at = 0
    for item in taken + waiting:
        if isinstance(item, Gap):
            assert item.missing
            at += item.missing
        else:
            assert item == put[at]
            at += 1
    assert at == len(put)


def test_of_dropped_notices_the_newest_of_each_kind_is_kept_and_numbers_are_summed() -> None:
    inbox = Inbox(MAX_BYTES)
    for number in range(20):
        inbox.put(Notice("client_count", str(number)))
        inbox.put(Notice("dropped", "2"))
    totals = {"client_count": 0, "dropped": 0}
    items = drain(inbox)
    assert len(items) <= MAX_BYTES // ENTRY_COST
    for item in items:
        assert isinstance(item, Notice)
        totals[item.name] = int(item.value) + (totals["dropped"] if item.name == "dropped" else 0)
    assert totals == {"client_count": 19, "dropped": 40}


def test_no_gap_is_counted_across_a_reconnection_or_a_restart() -> None:
    for interruption in (Gap(None), Notice("server", "restarted")):
        inbox = Inbox(MAX_BYTES)
        for item in (collection(5), interruption, collection(1000)):
            inbox.put(item)
        assert drain(inbox) == [collection(5), interruption, collection(1000)]
