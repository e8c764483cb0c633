"""The scratch file that knows which events are published."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from retold.errors import StoreFull
from retold.relay.known import KnownIds, KnownUntil
from retold.relay.source import Row


def row(event_id: str, entity_id: str = "ann", entity_type: str = "bank.Account") -> Row:
    return (event_id, "bank.Opened", "{}", entity_type, entity_id, None, None)


@pytest.fixture
def known() -> Iterator[KnownIds]:
    with closing(KnownIds()) as opened:
        yield opened


def test_what_was_added_is_not_missing_any_more(known: KnownIds) -> None:
    rows = [row("1"), row("2"), row("3")]
    known.add(["2"])
    assert known.missing(rows) == [row("1"), row("3")]
    assert known.missing([]) == []


def test_an_id_added_twice_counts_once(known: KnownIds) -> None:
    known.add(["1", "2"])
    known.add_published([("bank.Account", "ann", "2"), ("bank.Account", "ann", "3")])
    assert known.count == 3


def test_a_row_is_behind_when_a_later_event_of_its_entity_is_published(known: KnownIds) -> None:
    known.add_published([("bank.Account", "ann", "5"), ("bank.Account", "ann", "3")])
    earlier, later = row("4"), row("6")
    assert known.behind([earlier, later]) == [earlier]


@pytest.mark.parametrize("other", [row("4", "bob"), row("4", "ann", "bank.Savings")])
def test_a_row_of_another_entity_is_not_behind(known: KnownIds, other: Row) -> None:
    known.add_published([("bank.Account", "ann", "5")])
    assert known.behind([other]) == []


def test_ids_of_the_table_make_no_row_behind(known: KnownIds) -> None:
    known.add(["5"])
    assert known.behind([row("4")]) == []


def test_a_filter_ends_where_the_table_was_read(known: KnownIds) -> None:
    known.add(["1"])
    reached = False
    until = KnownUntil(known, lambda: reached)
    assert until.missing([row("1"), row("2")]) == [row("2")]
    assert not until.reached()
    reached = True
    assert until.reached()


def test_a_full_disk_is_told(known: KnownIds) -> None:
    # A limit of the file stands in for that of the disk.
    known._file.execute("PRAGMA max_page_count = 20")
    with pytest.raises(StoreFull, match=r"scratch file.*full"):
        known.add(f"{number:033d}" for number in range(10_000))
