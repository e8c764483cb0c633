"""`replay` loads what another release has stored, and says what it cannot load."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest

from retold import Aggregate, AsyncEventStore, Event, EventStore, applies, every
from retold.errors import InvalidValue, UsageError
from retold.testing import replay
from tests.conformance.raw import rows
from tests.rig import DATABASES

FreshDatabase = Callable[[str], str]


class Opened(Event, name="test_replay.Opened"):
    balance: int


class Debited(Event, name="test_replay.Debited"):
    amount: int


class Unheard(Event, name="test_replay.Unheard"):
    pass


class Account(Aggregate, name="test_replay.Account"):
    balance: int = 0

    def open(self, balance: int) -> None:
        self.emit(Opened(balance))

    def debit(self, amount: int) -> None:
        self.emit(Debited(amount))

    @applies
    def _opened(self, event: Opened) -> None:
        self.balance = event.balance

    @applies
    def _debited(self, event: Debited) -> None:
        if event.amount == 13:
            raise ArithmeticError("thirteen")
        self.balance -= event.amount


class Savings(Aggregate, name="test_replay.Savings", snapshots=every(2)):
    balance: int = 0

    def open(self, balance: int) -> None:
        self.emit(Opened(balance))
        self.emit(Opened(balance))

    @applies
    def _opened(self, event: Opened) -> None:
        self.balance += event.balance


@pytest.fixture
def store(fresh_database: FreshDatabase) -> Iterator[tuple[str, EventStore]]:
    url = fresh_database("sqlite")
    with EventStore(url) as opened:
        yield url, opened


Stored = tuple[str, EventStore]


def _open(store: EventStore, count: int) -> list[str]:
    accounts = store.repository(Account)
    ids = [accounts.create(Account.open, 100).id for _ in range(count)]
    for id in ids:
        accounts.update(id, Account.debit, 1)
    return ids


@pytest.mark.parametrize("kind", DATABASES)
def test_what_can_be_loaded_is_counted(kind: str, fresh_database: FreshDatabase) -> None:
    with EventStore(fresh_database(kind)) as store:
        store.migrate()
        _open(store, 3)
        report = replay(store, Account)
    assert (report.entities, report.events, report.failures) == (3, 6, ())
    report.check()


def test_the_async_store_is_replayed_too(store: Stored) -> None:
    url, opened = store
    _open(opened, 3)

    async def replayed() -> int:
        async with AsyncEventStore(url) as astore:
            return (await replay(astore, Account)).events

    assert asyncio.run(replayed()) == 6


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("event_type = 'test_replay.Gone'", "which no class in this process declares"),
        ("event_data = '{}'", "cannot be read: Object missing required field `amount`"),
        ("""event_data = '{"amount":"x"}'""", "cannot be read: Expected `int`, got `str`"),
        ("""event_data = '{"amount":13}'""", "ArithmeticError: thirteen"),
        ("event_type = 'test_replay.Unheard', event_data = '{}'", "has no applier for it"),
    ],
)
def test_the_first_event_that_fails_is_named(store: Stored, change: str, reason: str) -> None:
    url, opened = store
    ids = _open(opened, 3)
    version = opened.repository(Account).find(ids[1]).version
    rows(url, f"UPDATE events SET {change} WHERE event_id = '{version}'")
    report = replay(opened, Account)
    (failure,) = report.failures
    assert (failure.entity_id, failure.event_id) == (ids[1], version)
    assert reason in failure.reason
    assert (report.entities, report.events) == (3, 6)
    with pytest.raises(AssertionError) as raised:
        report.check()
    first, *others = str(raised.value).splitlines()
    assert first == f"1 of 3 test_replay.Account cannot be loaded (seed={report.seed})"
    assert any(ids[1] in line and version in line and reason in line for line in others)


def test_many_failures_are_summed_up(store: Stored) -> None:
    url, opened = store
    _open(opened, 15)
    rows(url, """UPDATE events SET event_data = '{}' WHERE event_type = 'test_replay.Debited'""")
    with pytest.raises(AssertionError, match=r"15 × at test_replay\.Debited") as raised:
        replay(opened, Account).check()
    assert "… and 5 more" in str(raised.value)


def test_a_sample_is_drawn_and_drawn_again_by_its_seed(store: Stored) -> None:
    url, opened = store
    ids = _open(opened, 30)
    rows(url, "UPDATE events SET event_data = '{}'")

    def sampled(seed: int | None) -> list[str]:
        return [
            failure.entity_id for failure in replay(opened, Account, sample=5, seed=seed).failures
        ]

    assert len(set(sampled(None))) == 5
    assert sampled(3) == sampled(3)
    assert set().union(*(sampled(seed) for seed in range(60))) == set(ids)
    again = replay(opened, Account, sample=5)
    assert [f.entity_id for f in again.failures] == sampled(again.seed)


@pytest.mark.parametrize("sample", [30, 31, None])
def test_a_sample_as_large_as_the_store_is_all_of_it(store: Stored, sample: int | None) -> None:
    _open(store[1], 30)
    assert replay(store[1], Account, sample=sample).entities == 30


def test_a_snapshot_that_says_otherwise_than_the_events_is_found(store: Stored) -> None:
    url, opened = store
    savings = opened.repository(Savings)
    savings.create(Savings.open, 5)
    replay(opened, Savings).check()
    rows(url, """UPDATE snapshots SET snapshot_json = '{"balance":5}'""")
    with pytest.raises(AssertionError, match=r"events \(balance\); raise snapshot_version="):
        replay(opened, Savings).check()


def test_an_entity_without_events_is_found(store: Stored) -> None:
    url, opened = store
    (id,) = _open(opened, 1)
    rows(url, "DELETE FROM events")
    (failure,) = replay(opened, Account).failures
    assert (failure.entity_id, failure.reason) == (id, "it has no events")


def test_a_store_without_such_entities_proves_nothing(store: Stored) -> None:
    with pytest.raises(AssertionError, match=r"there is no test_replay\.Account"):
        replay(store[1], Account).check()


def test_nothing_is_written(store: Stored) -> None:
    url, opened = store
    opened.repository(Savings).create(Savings.open, 5)
    rows(url, "DELETE FROM snapshots")
    before = rows(url, "SELECT * FROM events"), rows(url, "SELECT * FROM entities")
    replay(opened, Savings).check()
    assert rows(url, "SELECT count(*) FROM snapshots") == [(0,)]
    assert (rows(url, "SELECT * FROM events"), rows(url, "SELECT * FROM entities")) == before


def test_a_misuse_is_told_at_once(store: Stored) -> None:
    with pytest.raises(InvalidValue, match="at least one"):
        replay(store[1], Account, sample=0)
    with pytest.raises(UsageError):
        replay(store[1], Opened)  # type: ignore[arg-type]
