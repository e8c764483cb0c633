from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retold.brokers.numbered_log import closed, partition_of
from retold.brokers.shares import quota


@pytest.mark.parametrize(
    ("entity_id", "partition"), [("", 0), ("ann", 3), ("änn", 14), ("acc-0001", 13)]
)
def test_an_entity_stays_in_its_partition_for_ever(entity_id: str, partition: int) -> None:
    assert partition_of(entity_id, 16) == partition


@given(st.integers(1, 64), st.sets(st.text(max_size=3), min_size=1, max_size=70))
def test_quotas_cover_all_partitions_and_differ_by_one_at_most(
    partitions: int, members: set[str]
) -> None:
    found = [quota(partitions, list(members), me) for me in members]
    assert sum(found) == partitions
    assert max(found) - min(found) <= 1


def test_with_an_event_come_the_earlier_ones_of_its_entity_that_were_not_seen_with_it() -> None:
    rows = [("1", "A", "x"), ("2", "A", "y"), ("3", "B", "x"), ("4", "A", "x"), ("5", "A", "x")]
    assert closed({"4"}, rows) == [rows[0], rows[3]]
    assert closed({"3", "5"}, rows) == [rows[0], rows[2], rows[3], rows[4]]
    assert closed(set(), rows) == []


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=20))
def test_what_is_numbered_is_all_that_was_seen_and_whole_up_to_there(
    events: list[tuple[str, bool]],
) -> None:
    rows = [(f"{n:03}", "A", entity) for n, (entity, _) in enumerate(events)]
    seen = {row[0] for row, (_, was) in zip(rows, events, strict=True) if was}
    found = closed(seen, rows)
    assert seen <= {row[0] for row in found}
    for entity in "abc":
        ids = [row[0] for row in rows if row[2] == entity]
        own = [row[0] for row in found if row[2] == entity]
        assert own == ids[: len(own)]
