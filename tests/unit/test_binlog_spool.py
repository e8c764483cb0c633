from __future__ import annotations

from collections.abc import Iterator

import pytest

from retold.brokers.published import BinlogFileOffset
from retold.relay.source import MAX_ROWS, Row
from retold.relay.sources.binlog_spool import Spool


@pytest.fixture
def spool() -> Iterator[Spool]:
    spool = Spool()
    yield spool
    spool.clear()


def rows(first: int, count: int) -> list[Row]:
    place = BinlogFileOffset("binlog.000001", 4711)
    return [(str(n), "t", "☃", "T", "x", None, place) for n in range(first, first + count)]


def content(spool: Spool, skip: int = 0) -> list[Row]:
    return [row for part in spool.parts(skip) for row in part]


def test_rows_come_out_as_they_went_in(spool: Spool) -> None:
    spool.put(rows(0, 5))
    spool.put(rows(5, 7))
    assert spool.rows == 12
    assert content(spool) == rows(0, 12)


def test_a_part_has_no_more_rows_than_a_chunk(spool: Spool) -> None:
    spool.put(rows(0, 2 * MAX_ROWS + 1))
    assert [len(part) for part in spool.parts(0)] == [MAX_ROWS, MAX_ROWS, 1]


@pytest.mark.parametrize("skip", [0, 1, 4, 5, 6, 9, 10])
def test_rows_that_were_returned_before_are_left_out(spool: Spool, skip: int) -> None:
    spool.put(rows(0, 5))
    spool.put(rows(5, 5))
    assert content(spool, skip) == rows(skip, 10 - skip)


@pytest.mark.parametrize("keep", range(11))
def test_cut_back_it_goes_on_from_there(spool: Spool, keep: int) -> None:
    spool.put(rows(0, 5))
    spool.put(rows(5, 5))
    spool.put(spool.cut(keep))
    assert content(spool) == rows(0, keep)
    spool.put(rows(100, 3))
    assert content(spool) == rows(0, keep) + rows(100, 3)


def test_cleared_it_is_empty_and_can_be_used_again(spool: Spool) -> None:
    spool.put(rows(0, 5))
    spool.clear()
    assert (spool.rows, content(spool)) == (0, [])
    spool.put(rows(7, 1))
    assert content(spool) == rows(7, 1)


def test_what_does_not_fit_into_memory_goes_to_a_file(spool: Spool) -> None:
    large: Row = ("1", "t", "x" * 1_000_000, "T", "x", None, None)
    for _ in range(10):
        spool.put([large])
    assert [row == large for row in content(spool)] == [True] * 10
