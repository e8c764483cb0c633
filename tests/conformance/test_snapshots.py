from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from retold import Aggregate, Event, EventStore, applies, every
from tests.conformance.conftest import Opening
from tests.conformance.domain import Account, Credited, Savings, rolling
from tests.conformance.raw import count, literal, rows

NewId = Callable[[], str]


class Grown(Event, name="test_snapshots.Grown"):
    factor: float


class Fragile(Aggregate, name="test_snapshots.Fragile", snapshots=every(2)):
    """Its events survive JSON, its state does not always: it becomes infinite."""

    size: float = 1.0

    def grow(self, factor: float) -> None:
        self.emit(Grown(factor))

    @applies
    def _grown(self, event: Grown) -> None:
        self.size *= event.factor


class Rated(Event, name="test_snapshots.Rated"):
    at: datetime
    rate: Decimal
    tags: tuple[str, ...]


class Rates(Aggregate, name="test_snapshots.Rates", snapshots=every(2)):
    latest: datetime | None = None
    total: Decimal = Decimal(0)
    by_tag: dict[str, list[Decimal]] = {}  # noqa: RUF012 (the Struct copies it)

    def rate(self, at: datetime, rate: Decimal, *tags: str) -> str:
        self.emit(Rated(at, rate, tags))
        return self.id

    @applies
    def _rated(self, event: Rated) -> None:
        self.latest = event.at
        self.total += event.rate
        for tag in event.tags:
            self.by_tag.setdefault(tag, []).append(event.rate)


class Eager(Aggregate, name="test_snapshots.Eager", snapshots=every(1)):
    balance: int = 0

    def credit(self, amount: int) -> None:
        self.emit(Credited(amount))

    @applies
    def _credited(self, event: Credited) -> None:
        self.balance += event.amount


def fill(savings: Savings, times: int) -> None:
    for _ in range(times):
        savings.credit(1)


def credit_often(store: EventStore, times: int) -> tuple[str, list[str]]:
    """Savings credited by 1 in as many updates; its id and its versions."""
    savings = store.repository(Savings)
    made = savings.create(Savings.credit, 1)
    updates = (savings.update(made.id, Savings.credit, 1) for _ in range(times - 1))
    return made.id, [made.version, *(changed.version for changed in updates)]


def kept(url: str, id: str) -> list[str]:
    """The versions of which a snapshot is kept."""
    found = rows(
        url,
        f"SELECT entity_version FROM snapshots WHERE entity_id = {literal(id)} "
        "ORDER BY entity_version",
    )
    return [str(version) for (version,) in found]


class Hideable:
    """Tables of their own, whose one for snapshots can be taken away, or lose nothing any more."""

    def __init__(self, url: str) -> None:
        self._bare = url
        self.url = f"{url}?prefix=hideable_"
        self.hidden = False
        self.refusing = False

    def hide(self) -> None:
        rows(self._bare, "ALTER TABLE hideable_snapshots RENAME TO hideable_hidden")
        self.hidden = True

    def show(self) -> None:
        rows(self._bare, "ALTER TABLE hideable_hidden RENAME TO hideable_snapshots")
        self.hidden = False

    def refuse_deletes(self) -> None:
        table = "hideable_snapshots"
        refuse = f"CREATE TRIGGER hideable_refuses BEFORE DELETE ON {table} FOR EACH ROW "
        if self._bare.startswith("sqlite"):
            rows(self._bare, f"{refuse} BEGIN SELECT RAISE(ABORT, 'refused'); END")
        elif self._bare.startswith("mysql"):
            rows(self._bare, f"{refuse} SIGNAL SQLSTATE '45000'")
        else:
            rule = f"CREATE RULE refuses AS ON DELETE TO {table} DO INSTEAD "
            rows(self._bare, f"{rule} SELECT 1 / (length(OLD.entity_id) - length(OLD.entity_id))")
        self.refusing = True

    def allow_deletes(self) -> None:
        if self._bare.startswith("postgres"):
            rows(self._bare, "DROP RULE refuses ON hideable_snapshots")
        else:
            rows(self._bare, "DROP TRIGGER hideable_refuses")
        self.refusing = False


@pytest.fixture
def hideable(url: str) -> Iterator[Hideable]:
    tables = Hideable(url)
    with EventStore(tables.url) as store:
        store.migrate()
    yield tables
    if tables.hidden:
        tables.show()
    if tables.refusing:
        tables.allow_deletes()


def test_a_snapshot_is_kept_after_as_many_events_as_declared(store: EventStore, url: str) -> None:
    before = store.counts["snapshots"]
    id, versions = credit_often(store, 4)
    assert kept(url, id) == []
    fifth = store.repository(Savings).update(id, Savings.credit, 1)
    assert kept(url, id) == [fifth.version]
    assert fifth.version > versions[-1]
    assert store.counts["snapshots"] - before == 1


def test_the_events_of_one_command_count_one_by_one(store: EventStore, url: str) -> None:
    savings = store.repository(Savings)
    made = savings.create(Savings.credit, 1)
    changed = savings.update(made.id, fill, 7)
    assert kept(url, made.id) == [changed.version]
    assert savings.find(made.id).state.balance == 8


def test_a_create_that_emits_enough_keeps_one(store: EventStore, url: str) -> None:
    savings = store.repository(Savings)
    made = savings.create(fill, 5)
    assert kept(url, made.id) == [made.version]
    hits = store.counts["snapshot_hits"]
    assert savings.find(made.id).state.balance == 5
    assert store.counts["snapshot_hits"] - hits == 1


def test_a_create_or_update_keeps_one(store: EventStore, url: str, new_id: NewId) -> None:
    savings, id = store.repository(Savings), new_id()
    for balance in range(1, 6):
        assert kept(url, id) == []
        assert savings.create_or_update(id, Savings.credit, 1).result == balance
    assert kept(url, id) == [savings.find(id).version]


def test_later_loads_begin_at_the_snapshot(store: EventStore) -> None:
    id, _ = credit_often(store, 6)
    savings = store.repository(Savings)
    hits = store.counts["snapshot_hits"]
    assert savings.find(id).state.balance == 6
    assert savings.update(id, Savings.credit, 1).result == 7
    assert savings.update(id, Savings.look).result == 7
    assert store.counts["snapshot_hits"] - hits == 3


def test_events_before_the_snapshot_are_not_read(store: EventStore, url: str) -> None:
    id, versions = credit_often(store, 7)
    rows(
        url,
        f"UPDATE events SET event_type = 'test_snapshots.Unknown' WHERE entity_id = {literal(id)} "
        f"AND event_id <= {literal(versions[4])}",
    )
    assert store.repository(Savings).find(id).state.balance == 7
    assert store.repository(Savings).find(id).version == versions[-1]


def test_a_state_behind_a_snapshot_equals_a_replay(store: EventStore, url: str) -> None:
    rates, moment = store.repository(Rates), datetime(2024, 2, 29, 12, tzinfo=UTC)
    made = rates.create(Rates.rate, moment, Decimal("0.10"), "a", "ü")
    for n in range(4):
        later = moment + timedelta(days=n, microseconds=1)
        assert rates.update(made.id, Rates.rate, later, Decimal("1.23"), "a").result == made.id
    kept_state = rates.find(made.id).state
    rows(url, f"DELETE FROM snapshots WHERE entity_id = {literal(made.id)}")
    hits = store.counts["snapshot_hits"]
    replayed = rates.find(made.id).state
    assert store.counts["snapshot_hits"] == hits
    assert kept_state == replayed
    assert str(kept_state.total) == str(replayed.total) == "5.02"
    assert kept_state.id == made.id


def test_the_last_two_are_kept(store: EventStore, url: str) -> None:
    id, versions = credit_often(store, 17)
    assert kept(url, id) == [versions[9], versions[14]]


def test_find_at_every_version_is_the_state_at_that_version(store: EventStore) -> None:
    id, versions = credit_often(store, 13)
    savings = store.repository(Savings)
    hits = store.counts["snapshot_hits"]
    for balance, version in enumerate(versions, start=1):
        found = savings.find(id, at=version)
        assert (found.state.balance, found.version) == (balance, version)
    # those before the first snapshot replay
    assert store.counts["snapshot_hits"] - hits == 13 - 4


def test_find_at_a_version_whose_snapshot_is_gone_replays(store: EventStore, url: str) -> None:
    id, versions = credit_often(store, 16)
    assert versions[4] not in kept(url, id)
    assert store.repository(Savings).find(id, at=versions[6]).state.balance == 7


def test_find_at_a_time_does_not_see_snapshots(store: EventStore) -> None:
    id, _ = credit_often(store, 6)
    hits = store.counts["snapshot_hits"]
    savings = store.repository(Savings)
    now = datetime.now(UTC) + timedelta(minutes=1)
    assert savings.find(id, at=now).state.balance == 6
    assert savings.find(id, at=datetime(2001, 1, 1, tzinfo=UTC), default=None) is None
    assert store.counts["snapshot_hits"] == hits


def test_find_many_loads_with_and_without_snapshots(store: EventStore, new_id: NewId) -> None:
    long, _ = credit_often(store, 11)
    short, _ = credit_often(store, 2)
    hits = store.counts["snapshot_hits"]
    found = store.repository(Savings).find_many([short, new_id(), long, short])
    assert [(id, entity.state.balance) for id, entity in found.items()] == [(short, 2), (long, 11)]
    assert found[long].version == store.repository(Savings).find(long).version
    assert store.counts["snapshot_hits"] - hits == 2


def test_two_releases_keep_their_own_side_by_side(store: EventStore, url: str) -> None:
    old, new = store.repository(rolling()), store.repository(rolling(new_state=True))
    made = old.create(rolling().credit, 1)
    for n in range(4):
        old.update(made.id, rolling().credit, 1)
        new.update(made.id, rolling().credit, 1)
        assert old.find(made.id).state.balance == 3 + 2 * n
        state = new.find(made.id).state
        assert (state.balance, getattr(state, "payments")) == (3 + 2 * n, 3 + 2 * n)  # noqa: B009
    types = rows(
        url,
        f"SELECT snapshot_type, count(*) FROM snapshots WHERE entity_id = {literal(made.id)} "
        "GROUP BY snapshot_type",
    )
    assert [int(str(n)) for _, n in types] == [2, 2]
    assert {str(kind).partition("/")[0] for kind, _ in types} == {"conformance.Rolling"}


def test_a_raised_snapshot_version_sees_none_of_the_old_ones(store: EventStore, url: str) -> None:
    old, new = store.repository(rolling()), store.repository(rolling(version=2))
    made = old.create(rolling().credit, 1)
    version = old.update(made.id, rolling().credit, 1).version
    assert kept(url, made.id) == [version]
    hits = store.counts["snapshot_hits"]
    assert new.find(made.id).state.balance == 2
    assert store.counts["snapshot_hits"] == hits
    assert old.find(made.id).state.balance == 2
    assert store.counts["snapshot_hits"] == hits + 1


@pytest.mark.parametrize("text", ["", "{", "null", '{"balance": "many"}'])
def test_a_broken_snapshot_is_replaced_by_a_replay(
    store: EventStore, url: str, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    id, versions = credit_often(store, 8)
    broken = f"UPDATE snapshots SET snapshot_json = {literal(text)} WHERE entity_id = {literal(id)}"
    rows(url, broken)
    savings = store.repository(Savings)
    found = savings.find(id)
    assert (found.state.balance, found.version) == (8, versions[-1])
    assert "cannot be read" in caplog.text
    assert id in caplog.text
    assert savings.find(id, at=versions[5]).state.balance == 6
    assert savings.find_many([id])[id].state.balance == 8
    assert savings.update(id, Savings.credit, 1).result == 9
    # The whole history had to be read, so the next snapshot is due, and it is sound.
    caplog.clear()
    assert savings.find(id).state.balance == 9
    assert caplog.text == ""


def test_snapshots_of_java_are_skipped(store: EventStore, url: str) -> None:
    id, versions = credit_often(store, 7)
    java = "com.example.bank.Savings"
    for version in (versions[2], versions[6]):
        rows(
            url,
            "INSERT INTO snapshots (entity_type, entity_id, entity_version, snapshot_type, "
            f"snapshot_json, triggering_events) VALUES ('conformance.Savings', {literal(id)}, "
            f"""{literal(version)}, '{java}', '{{"balance": 1000}}', '{{}}')""",
        )
    savings = store.repository(Savings)
    for balance, version in enumerate(versions, start=1):
        assert savings.find(id, at=version).state.balance == balance
    for _ in range(10):
        savings.update(id, Savings.credit, 1)
    assert savings.find(id).state.balance == 17
    ((left,),) = rows(
        url,
        f"SELECT count(*) FROM snapshots WHERE entity_id = {literal(id)} "
        f"AND snapshot_type = '{java}'",
    )
    assert int(str(left)) == 2


def test_triggering_events_is_never_null(store: EventStore, url: str) -> None:
    """Java reads it of the previous snapshot, and fails on NULL."""
    id, _ = credit_often(store, 10)
    found = rows(url, f"SELECT triggering_events FROM snapshots WHERE entity_id = {literal(id)}")
    assert len(found) == 2
    assert all(str(text).startswith("{") for (text,) in found)


def test_a_state_that_does_not_survive_json_is_not_kept(
    store: EventStore, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    fragile = store.repository(Fragile)
    made = fragile.create(Fragile.grow, 1e200)
    changed = fragile.update(made.id, Fragile.grow, 1e200)
    assert changed.events == (Grown(1e200),)
    assert kept(url, made.id) == []
    assert made.id in caplog.text
    assert "size" in caplog.text
    assert fragile.find(made.id).state.size == float("inf")
    assert fragile.update(made.id, Fragile.grow, 0.0).version > changed.version


def test_an_aggregate_without_snapshots_never_asks_for_one(
    hideable: Hideable, flavour: str, opened: Opening
) -> None:
    accounts = opened(hideable.url, flavour).repository(Account)
    hideable.hide()
    ann = accounts.create(Account.open, "ann", 100)
    accounts.update(ann.id, Account.credit_often, 20)
    changed = accounts.once("k").update(ann.id, Account.debit, 20)
    assert accounts.find(ann.id).state.balance == 100
    assert accounts.find(ann.id, at=ann.version).state.balance == 100
    assert accounts.find_many([ann.id])[ann.id].version == changed.version


def test_a_snapshot_that_cannot_be_written_does_not_fail_the_change(
    hideable: Hideable, flavour: str, opened: Opening, caplog: pytest.LogCaptureFixture
) -> None:
    store = opened(hideable.url, flavour)
    savings = store.repository(Savings)

    def credit(account: Savings) -> int:
        hideable.hide()
        return account.credit(1)

    made = savings.create(fill, 4)
    changed = savings.once("k").update(made.id, credit)
    assert (changed.result, changed.duplicate) == (5, False)
    other = savings.create(fill, 5)
    assert f"no snapshot of conformance.Savings {made.id}" in caplog.text
    assert f"no snapshot of conformance.Savings {other.id}" in caplog.text
    hideable.show()
    # The connection is as good as new, and the next update keeps what this one could not.
    caplog.clear()
    assert savings.once("k").update(made.id, credit).duplicate
    assert savings.update(made.id, Savings.credit, 1).result == 6
    hits = store.counts["snapshot_hits"]
    assert savings.find(made.id).state.balance == 6
    assert store.counts["snapshot_hits"] - hits == 1
    assert caplog.text == ""


def test_old_snapshots_that_cannot_be_dropped_do_not_fail_the_change(
    hideable: Hideable, flavour: str, opened: Opening, caplog: pytest.LogCaptureFixture
) -> None:
    """The second statement of a batch fails, behind one that is done."""
    store = opened(hideable.url, flavour)
    eager = store.repository(Eager)
    made = eager.create(Eager.credit, 1)
    for _ in range(2):
        eager.update(made.id, Eager.credit, 1)
    hideable.refuse_deletes()
    assert eager.update(made.id, Eager.credit, 1).events == (Credited(1),)
    assert f"no snapshot of test_snapshots.Eager {made.id}" in caplog.text
    caplog.clear()
    assert eager.find(made.id).state.balance == 4
    assert eager.create(Eager.credit, 1).events == (Credited(1),)
    assert store.counts["reconnects"] == 0
    assert caplog.text == ""


def test_in_a_transaction_a_snapshot_commits_with_it(store: EventStore, url: str) -> None:
    id, _ = credit_often(store, 4)
    with store.transaction() as tx:
        savings = tx.repository(Savings)
        changed = savings.update(id, Savings.credit, 1)
        hits = store.counts["snapshot_hits"]
        assert savings.find(id).state.balance == 5
        assert store.counts["snapshot_hits"] - hits == 1
        assert kept(url, id) == []
    assert kept(url, id) == [changed.version]


def test_in_a_transaction_a_snapshot_is_rolled_back_with_it(store: EventStore, url: str) -> None:
    id, _ = credit_often(store, 4)

    def work() -> None:
        with store.transaction() as tx:
            tx.repository(Savings).update(id, fill, 3)
            raise LookupError

    with pytest.raises(LookupError):
        work()
    assert kept(url, id) == []
    hits = store.counts["snapshot_hits"]
    assert store.repository(Savings).find(id).state.balance == 4
    assert store.counts["snapshot_hits"] == hits


def test_writers_that_keep_snapshots_at_once_disturb_nobody(store: EventStore, url: str) -> None:
    eager = store.repository(Eager)
    made = eager.create(Eager.credit, 1)
    start = threading.Barrier(4)
    errors = list[BaseException]()

    def write() -> None:
        start.wait()
        try:
            for _ in range(8):
                eager.update(made.id, Eager.credit, 1)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert count(url, "events", made.id) == 33
    assert eager.find(made.id).state.balance == 33
    last = eager.update(made.id, Eager.credit, 1)
    assert len(kept(url, made.id)) == 2
    assert kept(url, made.id)[-1] == last.version
