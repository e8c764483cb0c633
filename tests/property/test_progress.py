"""What may be saved, and in which order entities' messages are worked, whatever happens when."""

from __future__ import annotations

from collections import defaultdict

from hypothesis import given
from hypothesis import strategies as st

from retold.brokers.base import Message
from retold.subscriptions.lanes import Lanes
from retold.subscriptions.progress import Progress, Taken


def message(partition: int, position: int, key: str = "ann") -> Message:
    return Message("Account", key, f"{position:04}", "Opened", "{}", None, partition, position)


ARRIVALS = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 5)), max_size=60)
"""Partition, and how far behind the last position of it: others' messages lie between."""


def arriving(steps: list[tuple[int, int]]) -> list[Message]:
    last = defaultdict[int, int](int)
    messages = list[Message]()
    for partition, gap in steps:
        last[partition] += gap
        messages.append(message(partition, last[partition]))
    return messages


@given(ARRIVALS, st.data())
def test_no_position_is_beyond_an_unhandled_message_and_in_the_end_all_are_saved(
    steps: list[tuple[int, int]], data: st.DataObject
) -> None:
    progress, saved = Progress(), dict[int, int]()
    taken = progress.take(arriving(steps))
    for one in data.draw(st.permutations(taken)):
        one.done = True
        progress.advance()
        found = progress.positions()
        assert all(position > saved.get(n, 0) for n, position in found.items())
        saved.update(found)
        for other in taken:
            behind = other.message.position <= saved.get(other.message.partition, 0)
            assert other.done or not behind
    assert progress.in_hand == 0
    assert progress.handled == len(taken)
    assert saved == {one.message.partition: one.message.position for one in taken}


@given(ARRIVALS, st.sets(st.integers(0, 2)), st.data())
def test_what_was_taken_before_a_partition_was_lost_moves_no_position(
    steps: list[tuple[int, int]], held: set[int], data: st.DataObject
) -> None:
    progress, messages = Progress(), arriving(steps)
    before = progress.take(messages)
    for one in data.draw(
        st.lists(st.sampled_from(before), unique_by=id) if before else st.just([])
    ):
        one.done = True
    progress.advance()
    progress.keep(dict.fromkeys(held))
    assert progress.positions().keys() <= held
    again = progress.take(one.message for one in before if one.message.partition not in held)
    for one in before:
        one.done = True
        assert one.hold.alive == (one.message.partition in held)
    progress.advance()
    assert progress.positions().keys() <= held
    assert progress.in_hand == len(again)


@given(ARRIVALS)
def test_a_position_that_comes_again_begins_anew(steps: list[tuple[int, int]]) -> None:
    """The consumer lost the partition and got it back between two looks."""
    progress, messages = Progress(), arriving(steps)
    first, second = progress.take(messages), progress.take(messages)
    for one in first:
        one.done = True
    progress.advance()
    assert progress.positions() == {}
    assert progress.in_hand == len(second)


KEYS = st.lists(st.sampled_from(["ann", "bob", "cid", "dan", "eve"]), max_size=40)


@given(KEYS, st.integers(1, 8), st.data())
def test_each_key_is_worked_in_order_by_one_at_a_time(
    keys: list[str], count: int, data: st.DataObject
) -> None:
    """Workers take turns as they like, and more comes while they work."""
    progress, lanes = Progress(), Lanes(count)
    waiting = progress.take(message(0, n + 1, key) for n, key in enumerate(keys))
    working = dict[int, Taken | None]()
    worked = defaultdict[str, list[int]](list)
    while waiting or working:
        if waiting and (not working or data.draw(st.booleans())):
            some = data.draw(st.integers(1, len(waiting)))
            for lane in lanes.put(waiting[:some]):
                assert lane not in working
                working[lane] = None
            del waiting[:some]
            continue
        lane = data.draw(st.sampled_from(sorted(working)))
        taken = lanes.next(lane)
        if taken is None:
            del working[lane]
            continue
        at_work = {one.message.key for n, one in working.items() if n != lane and one is not None}
        assert taken.message.key not in at_work
        working[lane] = taken
        worked[taken.message.key].append(taken.message.position)
    assert lanes.idle
    expected = defaultdict[str, list[int]](list)
    for n, key in enumerate(keys):
        expected[key].append(n + 1)
    assert worked == expected


def test_a_partition_that_was_lost_for_a_while_begins_anew() -> None:
    progress, first, second = Progress(), object(), object()
    progress.keep({0: first, 1: first})
    before = progress.take(arriving([(0, 1), (1, 1)]))
    progress.keep({0: first, 1: second})
    assert [one.hold.alive for one in before] == [True, False]
    assert [hold.partition for hold in progress.fresh()] == [0, 1]
