"""`entities` and `history` read page by page: in order, in bounded memory, holding nothing open."""

from __future__ import annotations

import threading
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from retold import Aggregate, Event, EventStore, applies
from tests.conformance.conftest import Opening
from tests.conformance.raw import rows
from tests.rig import DATABASES

FreshDatabase = Callable[[str], str]

PAGE = 500


class Counted(Event, name="test_listing.Counted"):
    n: int


class Counter(Aggregate, name="test_listing.Counter"):
    n: int = 0

    def count(self) -> None:
        self.emit(Counted(self.n + 1))

    @applies
    def _counted(self, event: Counted) -> None:
        self.n = event.n


class Unused(Aggregate, name="test_listing.Unused"):
    pass


def _id(n: int) -> str:
    return f"{n:016x}-{0:016x}"


def _fill_entities(url: str, ids: list[str]) -> None:
    values = [f"('test_listing.Counter', '{id}', '{_id(1)}')" for id in ids]
    _insert(url, "entities (entity_type, entity_id, entity_version)", values)


def _fill_history(url: str, entity_id: str, events: int) -> None:
    columns = "event_id, event_type, event_data, entity_type, entity_id"
    values = [
        f"""('{_id(n)}', 'test_listing.Counted', '{{"n":{n}}}', 'test_listing.Counter', """
        f"'{entity_id}')"
        for n in range(1, events + 1)
    ]
    _insert(url, f"events ({columns})", values)


def _insert(url: str, into: str, values: list[str]) -> None:
    chunks = [values[n : n + 5000] for n in range(0, len(values), 5000)]
    rows(url, *(f"INSERT INTO {into} VALUES {', '.join(chunk)}" for chunk in chunks))


@pytest.fixture
def fresh(
    kind: str, flavour: str, fresh_database: FreshDatabase, opened: Opening
) -> tuple[str, EventStore]:
    """A database of the test's own, and a store on it."""
    url = fresh_database(kind)
    store = opened(url, flavour)
    store.migrate()
    return url, store


Fresh = tuple[str, EventStore]

# A database of its own for each test costs time: not every client of every server gets one.
SYNC = [(kind, "sync") for kind in DATABASES]
everywhere = pytest.mark.parametrize(
    ("kind", "flavour"), [*SYNC, ("sqlite", "async"), ("postgres18", "async"), ("mysql8", "async")]
)


def test_of_a_type_without_entities_nothing_is_listed(store: EventStore) -> None:
    assert list(store.repository(Unused).entities()) == []


@everywhere
def test_entities_made_meanwhile_are_listed_where_the_reader_has_not_been_yet(
    fresh: Fresh,
) -> None:
    url, store = fresh
    _fill_entities(url, [f"m{n:04}" for n in range(2 * PAGE + 10)])
    listing = store.repository(Counter).entities()
    listed = [next(listing)]
    _fill_entities(url, ["a", "m0001x", "z"])
    listed += listing
    assert listed[-1] == "z"
    assert "a" not in listed
    assert len(listed) == len(set(listed)) == 2 * PAGE + 11
    assert listed == sorted(listed)


@everywhere
def test_events_appended_meanwhile_are_told(fresh: Fresh) -> None:
    url, store = fresh
    _fill_entities(url, ["e"])
    _fill_history(url, "e", 2 * PAGE)
    rows(url, f"UPDATE entities SET entity_version = '{_id(2 * PAGE)}'")
    counters = store.repository(Counter)
    history = counters.history("e")
    told = [next(history)]
    counters.update("e", Counter.count)
    told += history
    assert [recorded.event for recorded in told] == [Counted(n) for n in range(1, 2 * PAGE + 2)]


def _half_consumed(url: str, store: EventStore) -> list[Iterator[Any]]:
    _fill_entities(url, [f"m{n:04}" for n in range(2 * PAGE + 10)])
    _fill_history(url, "e", 2 * PAGE + 10)
    counters = store.repository(Counter)
    readers: list[Iterator[Any]] = [counters.entities(), counters.history("e")]
    for reader in readers:
        for _ in range(PAGE + 5):
            next(reader)
    return readers


@everywhere
def test_a_half_read_listing_holds_nothing_open(fresh: Fresh, kind: str) -> None:
    url, store = fresh
    readers = _half_consumed(url, store)
    if kind == "sqlite":
        # Busy (1) while somebody reads from the log that is to be emptied.
        rows(url, "DELETE FROM snapshots")
        assert rows(url, "PRAGMA wal_checkpoint(TRUNCATE)") == [(0, 0, 0)]
        rows(url, "ALTER TABLE entities ADD COLUMN note TEXT")
    else:
        limit = "lock_timeout = '3s'" if kind.startswith("p") else "lock_wait_timeout = 3"
        for table in ("entities", "events"):
            # Waits for every transaction that has read the table, if only once.
            rows(url, f"SET {limit}", f"ALTER TABLE {table} ADD COLUMN note VARCHAR(5)")
    assert [len(list(reader)) for reader in readers] == [PAGE + 5] * 2


@everywhere
def test_an_abandoned_listing_leaves_the_connection_to_others(fresh: Fresh) -> None:
    url, store = fresh
    for reader in _half_consumed(url, store):
        del reader
    counters = store.repository(Counter)
    made = counters.create(Counter.count)
    assert counters.update(made.id, Counter.count).state.n == 2


@pytest.mark.parametrize(("kind", "flavour"), SYNC)
def test_several_threads_read_one_listing_each(fresh: Fresh) -> None:
    url, store = fresh
    _fill_entities(url, [f"m{n:04}" for n in range(2 * PAGE + 10)])
    counts = list[int]()
    listing = store.repository(Counter).entities
    threads = [
        threading.Thread(target=lambda: counts.append(len(list(listing())))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts == [2 * PAGE + 10] * 4


def _peak(reading: Iterator[object]) -> tuple[int, int]:
    """How many items an iterator gives, and the most memory that took (bytes)."""
    tracemalloc.start()
    try:
        count = sum(1 for _ in reading)
        return count, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("kind", "flavour"), SYNC)
def test_listing_needs_memory_for_a_page_and_not_for_all(fresh: Fresh) -> None:
    url, store = fresh
    _fill_entities(url, [f"{'e' * 200}{n}" for n in range(20_000)])
    _fill_history(url, "e", 20_000)
    counters = store.repository(Counter)
    for reader in (counters.entities(), counters.history("e")):
        next(reader)  # what is made once
    # All 20,000 take 5 MB as bare ids, and 10 MB as recorded events.
    for listing in (counters.entities(), counters.history("e")):
        count, peak = _peak(listing)
        assert count == 20_000
        assert peak < 2_000_000


@pytest.mark.soak
@pytest.mark.parametrize(("kind", "flavour"), [("sqlite", "sync")])
def test_memory_stays_flat_over_a_million(fresh: Fresh) -> None:
    url, store = fresh
    numbers = (
        "WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers "
        "WHERE n < 1000000) "
    )
    rows(
        url,
        "INSERT INTO events (event_id, event_type, event_data, entity_type, entity_id) "
        + numbers
        + "SELECT printf('%016x-%016x', n, 0), 'test_listing.Counted', "
        "json_object('n', n), 'test_listing.Counter', 'e' FROM numbers",
        "INSERT INTO entities (entity_type, entity_id, entity_version) "
        + numbers
        + "SELECT 'test_listing.Counter', printf('%08d', n), 'v' FROM numbers",
    )
    counters = store.repository(Counter)
    for reader in (counters.entities(), counters.history("e")):
        count, peak = _peak(reader)
        assert count == 1_000_000
        assert peak < 2_000_000
