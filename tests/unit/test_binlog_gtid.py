from __future__ import annotations

import struct
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retold.relay.sources.binlog_gtid import GtidPosition, GtidSet, parse_state

A = "0a000000-0000-0000-0000-000000000001"
B = "0b000000-0000-0000-0000-000000000002"


def raw(server: str, number: int) -> bytes:
    return UUID(server).bytes + struct.pack("<Q", number)


def test_a_set_reads_as_mysql_writes_it() -> None:
    assert str(GtidSet.parse(f"{B}:1-5:7,\n{A.upper()}:3")) == f"{A}:3,{B}:1-5:7"
    assert not GtidSet.parse("")


def test_intervals_that_touch_become_one() -> None:
    assert str(GtidSet.parse(f"{A}:1-3:4-9:11:5-7")) == f"{A}:1-9:11"


@pytest.mark.parametrize(
    "text", [f"{A}:0", f"{A}:5-3", f"{A}:x", "x:1", f"{A}:tag:1", f"{A}:1-2-3"]
)
def test_what_is_no_set_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"interval|badly formed"):
        GtidSet.parse(text)


def test_ids_from_the_log_are_added() -> None:
    gtids = GtidSet.parse(f"{A}:1-5")
    gtids.add_all([raw(A, 6), raw(A, 7), raw(B, 1), raw(A, 9), raw(A, 8)])
    assert str(gtids) == f"{A}:1-9,{B}:1"


@pytest.mark.parametrize(
    ("one", "other", "missing"),
    [
        (f"{A}:1-9", f"{A}:1-9", ""),
        (f"{A}:1-9", "", f"{A}:1-9"),
        (f"{A}:1-9", f"{A}:3-4:6", f"{A}:1-2:5:7-9"),
        (f"{A}:5-6,{B}:1", f"{A}:1-9", f"{B}:1"),
        (f"{A}:1-3", f"{A}:3-9", f"{A}:1-2"),
    ],
)
def test_what_a_server_lacks(one: str, other: str, missing: str) -> None:
    assert str(GtidSet.parse(one).missing_from(GtidSet.parse(other))) == missing


def test_sets_meet_where_they_share_a_transaction() -> None:
    assert GtidSet.parse(f"{A}:1-5").meets(GtidSet.parse(f"{B}:1,{A}:5-9"))
    assert not GtidSet.parse(f"{A}:1-5").meets(GtidSet.parse(f"{B}:1-9,{A}:6"))


numbers = st.sets(st.tuples(st.sampled_from([A, B]), st.integers(1, 40)))


@settings(deadline=None)
@given(numbers, numbers)
def test_a_set_is_the_set_of_its_members(
    one: set[tuple[str, int]], other: set[tuple[str, int]]
) -> None:
    made, difference = GtidSet(), GtidSet()
    second = GtidSet()
    made.add_all([raw(*id) for id in one])
    second.add_all([raw(*id) for id in other])
    difference.add_all([raw(*id) for id in sorted(one - other)])
    assert str(made.missing_from(second)) == str(difference)
    assert made.meets(second) == bool(one & other)
    assert str(GtidSet.parse(str(made))) == str(GtidSet.decode(made.encode())) == str(made)


def test_a_position_keeps_the_last_of_each_domain() -> None:
    position = GtidPosition.parse("0-1-42,7-2-3")
    position.add_all([struct.pack("<IQI", 3, 43, 0), struct.pack("<IQI", 1, 9, 5)])
    assert str(position) == "0-3-43,5-1-9,7-2-3"
    assert not GtidPosition.parse("")


def test_a_state_may_name_several_servers_of_a_domain() -> None:
    assert parse_state("0-1-5,0-2-9, 3-1-1") == [(0, 1, 5), (0, 2, 9), (3, 1, 1)]
    with pytest.raises(ValueError, match="no GTID"):
        parse_state("0-1")
