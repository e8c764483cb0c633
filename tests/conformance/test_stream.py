"""`store.stream` tells all events of one type: in the order of ids, in bounded memory."""

from __future__ import annotations

import re
import tracemalloc
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from itertools import islice

import pytest

from retold import Aggregate, Event, EventStore, Recorded, UnknownEvent, applies, upcast
from retold.errors import InvalidValue
from retold.ids import EventIds, moment
from retold.testing import Clock
from tests.conformance.conftest import Opening
from tests.conformance.raw import rows
from tests.rig import DATABASES

FreshDatabase = Callable[[str], str]

PAGE, WALK = 500, 1200
TYPE, OTHER = "test_stream.Counter", "test_stream.Other"


class Counted(Event, name="test_stream.Counted"):
    n: int


class Counter(Aggregate, name="test_stream.Counter"):
    n: int = 0

    def count(self) -> None:
        self.emit(Counted(self.n + 1))

    @applies
    def _counted(self, event: Counted) -> None:
        self.n = event.n


class Other(Aggregate, name="test_stream.Other"):
    n: int = 0

    def count(self) -> None:
        self.emit(Counted(self.n + 1))

    @applies
    def _counted(self, event: Counted) -> None:
        self.n = event.n


class Unused(Aggregate, name="test_stream.Unused"):
    pass


@upcast("test_stream.CountedTwice")
def _twice(old: dict[str, int]) -> list[Event]:
    return [Counted(old["n"]), Counted(old["n"] + 1)]


def _id(n: int) -> str:
    return f"{n:016x}-{0:016x}"


def _fill(
    url: str, events: Iterable[tuple[int, str, str]], name: str = Counted.__event_name__
) -> None:
    """Events by (number, entity type, entity id); the number makes the id and the data."""
    values = [
        f"""('{_id(n)}', '{name}', '{{"n":{n}}}', '{entity_type}', '{entity_id}')"""
        for n, entity_type, entity_id in events
    ]
    into = "events (event_id, event_type, event_data, entity_type, entity_id)"
    chunks = [values[n : n + 5000] for n in range(0, len(values), 5000)]
    rows(url, *(f"INSERT INTO {into} VALUES {', '.join(chunk)}" for chunk in chunks))


@pytest.fixture(autouse=True)
def short_walks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a few events are enough to see where walks meet."""
    monkeypatch.setattr("retold.store.reading._WALK", WALK)


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
# What no SQL decides.
somewhere = pytest.mark.parametrize(
    ("kind", "flavour"), [("sqlite", "sync"), ("sqlite", "async"), ("postgres18", "async")]
)


def _numbers(stream: Iterable[Recorded[Event]]) -> list[int]:
    return [r.event.n for r in stream if isinstance(r.event, Counted)]


def test_of_a_type_without_events_nothing_is_told(store: EventStore) -> None:
    assert list(store.stream(Unused)) == []


def test_an_event_is_told_as_the_history_tells_it(store: EventStore) -> None:
    counters = store.repository(Counter)
    id = counters.create(Counter.count).id
    counters.once("a key").update(id, Counter.count)
    assert [r for r in store.stream(Counter) if r.entity_id == id] == list(counters.history(id))


@everywhere
def test_entities_are_interleaved_by_id_and_other_types_left_out(fresh: Fresh) -> None:
    url, store = fresh
    _fill(url, [(1, TYPE, "b"), (2, OTHER, "a"), (3, TYPE, "a"), (4, TYPE, "b"), (5, OTHER, "b")])
    told = list(store.stream(Counter))
    assert [(r.entity_id, r.id) for r in told] == [("b", _id(1)), ("a", _id(3)), ("b", _id(4))]
    assert {r.entity_type for r in told} == {TYPE}


@somewhere
@pytest.mark.parametrize("count", [PAGE, WALK, WALK + PAGE])
def test_no_event_is_left_out_or_told_twice_where_pages_meet(fresh: Fresh, count: int) -> None:
    url, store = fresh
    _fill(url, ((n, TYPE, f"e{n % 7}") for n in range(1, count + 1)))
    assert _numbers(store.stream(Counter)) == list(range(1, count + 1))


@everywhere
def test_a_few_events_are_found_behind_many_of_another_type(fresh: Fresh) -> None:
    url, store = fresh
    mine = {3, WALK, WALK + 1, 2 * WALK + 10}
    _fill(
        url,
        ((n, TYPE if n in mine else OTHER, f"e{n % 7}") for n in range(1, 2 * WALK + 21)),
    )
    assert _numbers(store.stream(Counter)) == sorted(mine)


@everywhere
def test_a_stream_begins_behind_an_id(fresh: Fresh) -> None:
    url, store = fresh
    _fill(url, ((n, TYPE, "e") for n in range(1, 11)))
    assert _numbers(store.stream(Counter, since=_id(7))) == [8, 9, 10]
    assert _numbers(store.stream(Counter, since=_id(10))) == []


@somewhere
def test_a_stream_can_be_taken_up_behind_the_last_event_that_was_told(fresh: Fresh) -> None:
    url, store = fresh
    _fill(url, ((n, TYPE, "e") for n in range(1, PAGE + 11)))
    first = list(islice(store.stream(Counter), 3))
    rest = store.stream(Counter, since=first[-1].id)
    assert _numbers(first) + _numbers(rest) == list(range(1, PAGE + 11))


@everywhere
def test_a_stream_begins_with_the_first_event_written_at_a_moment(fresh: Fresh) -> None:
    url, store = fresh
    _fill(url, ((n, TYPE, "e") for n in range(1, 11)))
    assert _numbers(store.stream(Counter, since=moment(8))) == [8, 9, 10]
    # A millisecond is the finest that is stored.
    assert _numbers(store.stream(Counter, since=moment(8) + timedelta(microseconds=9))) == [
        8,
        9,
        10,
    ]
    assert _numbers(store.stream(Counter, since=moment(-5))) == list(range(1, 11))


def test_an_event_whose_id_a_fast_clock_raised_counts_by_its_true_time(
    url: str, opened: Opening
) -> None:
    clock = Clock(datetime(2030, 1, 1, tzinfo=UTC))
    ids = EventIds(clock)
    store = opened(url, ids=ids)
    counters = store.repository(Counter)
    id = counters.create(Counter.count).id
    clock.set(datetime(2029, 1, 1, tzinfo=UTC))
    slow = opened(url, ids=EventIds(clock))
    slow.repository(Counter).update(id, Counter.count)

    def told(since: datetime) -> list[int]:
        return _numbers(r for r in store.stream(Counter, since=since) if r.entity_id == id)

    assert told(datetime(2029, 1, 1, tzinfo=UTC)) == [1, 2]
    assert told(datetime(2029, 6, 1, tzinfo=UTC)) == [1]


@pytest.mark.parametrize("since", [datetime(2024, 1, 1), "yesterday", ""])  # noqa: DTZ001
def test_what_is_no_moment_is_refused_at_once(store: EventStore, since: datetime | str) -> None:
    with pytest.raises(InvalidValue):
        next(store.stream(Counter, since=since))


@somewhere
def test_old_events_are_told_as_todays(fresh: Fresh) -> None:
    url, store = fresh
    _fill(url, [(1, TYPE, "e")], "test_stream.CountedTwice")
    assert [(r.event, r.part) for r in store.stream(Counter)] == [(Counted(1), 0), (Counted(2), 1)]


@somewhere
def test_an_event_that_nobody_knows_is_an_error_and_not_skipped(fresh: Fresh) -> None:
    url, store = fresh
    _fill(url, [(1, TYPE, "e")], "test_stream.Forgotten")
    with pytest.raises(UnknownEvent, match=_id(1)):
        next(store.stream(Counter))


@everywhere
def test_events_stored_ahead_of_the_reader_are_told(fresh: Fresh) -> None:
    url, store = fresh
    _fill(url, ((2 * n, TYPE, "e") for n in range(1, WALK + 2)))
    stream = store.stream(Counter)
    told = _numbers([next(stream)])
    _fill(url, [(2 * PAGE + 1, TYPE, "e"), (2 * WALK + 9, TYPE, "e"), (1, TYPE, "late")])
    told += _numbers(stream)
    assert {2 * PAGE + 1, 2 * WALK + 9} <= set(told)
    assert 1 not in told  # as the documentation warns
    assert told == sorted(set(told))


@everywhere
def test_a_half_read_stream_holds_nothing_open(fresh: Fresh, kind: str) -> None:
    url, store = fresh
    _fill(url, ((n, TYPE, "e") for n in range(1, PAGE + 11)))
    stream = store.stream(Counter)
    next(stream)
    if kind == "sqlite":
        # Busy (1) while somebody reads from the log that is to be emptied.
        rows(url, "DELETE FROM snapshots")
        assert rows(url, "PRAGMA wal_checkpoint(TRUNCATE)") == [(0, 0, 0)]
    else:
        limit = "lock_timeout = '3s'" if kind.startswith("p") else "lock_wait_timeout = 3"
        # Waits for every transaction that has read the table, if only once.
        rows(url, f"SET {limit}", "ALTER TABLE events ADD COLUMN note VARCHAR(5)")
    assert len(list(stream)) == PAGE + 9


@pytest.mark.parametrize(("kind", "flavour"), SYNC)
def test_a_page_is_read_along_the_ids(fresh: Fresh, kind: str) -> None:
    """Also while the database has no statistics. By the index of entities every page would go
    through all events of the type, and a million of them would be read a thousand times."""
    url, store = fresh
    _fill(url, ((n, TYPE, f"e{n}") for n in range(1, 20_001)))
    sql = store.driver.dialect.queries["stream"]
    for value in (f"'{_id(5)}'", f"'{_id(WALK + 5)}'", f"'{TYPE}'", str(PAGE)):
        sql = re.sub(r"%s|\?", value, sql, count=1)
    explain = "EXPLAIN QUERY PLAN " if kind == "sqlite" else "EXPLAIN "
    plan = str(rows(url, explain + sql))
    assert "events_idx" not in plan.replace("PRIMARY,events_idx", "")
    primary = {"sqlite": "autoindex_events_1 (event_id>? AND event_id<?)", "mysql8": "'PRIMARY'"}
    primary["mariadb"] = primary["mysql8"]
    assert primary.get(kind, "events_pkey") in plan


def _peak(reading: Iterable[object]) -> tuple[int, int]:
    """How many items an iterator gives, and the most memory that took (bytes)."""
    tracemalloc.start()
    try:
        count = sum(1 for _ in reading)
        return count, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("kind", "flavour"), SYNC)
def test_a_stream_needs_memory_for_a_page_and_not_for_all(fresh: Fresh) -> None:
    url, store = fresh
    _fill(url, ((n, TYPE, f"e{n}") for n in range(1, 20_001)))
    next(store.stream(Counter))  # what is made once
    # All 20,000 take 10 MB as recorded events.
    count, peak = _peak(store.stream(Counter))
    assert count == 20_000
    assert peak < 2_000_000


@pytest.mark.soak
@pytest.mark.parametrize(("kind", "flavour"), [("sqlite", "sync")])
def test_memory_stays_flat_over_a_million(fresh: Fresh) -> None:
    url, store = fresh
    rows(
        url,
        "WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers "
        "WHERE n < 1000000) "
        "INSERT INTO events (event_id, event_type, event_data, entity_type, entity_id) "
        "SELECT printf('%016x-%016x', n, 0), 'test_stream.Counted', "
        "json_object('n', n), 'test_stream.Counter', printf('e%d', n % 1000) FROM numbers",
    )
    count, peak = _peak(store.stream(Counter))
    assert count == 1_000_000
    assert peak < 2_000_000
