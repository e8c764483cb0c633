"""Projections on real databases: each event once in effect, whatever fails."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from retold import (
    AsyncEventStore,
    Cursor,
    Delivery,
    EventStore,
    Projection,
    Retry,
)
from retold.errors import (
    AssignmentLost,
    DefinitionError,
    HandlerFailed,
    InvalidValue,
    NotCaughtUp,
    StoreBusy,
    UsageError,
)
from retold.store import projections
from retold.store.projections import Member
from tests.at_work import at_work
from tests.conformance.raw import rows
from tests.integration.accounts import (
    Account,
    Balances,
    Opened,
    Paid,
    account,
    folded,
    table,
)
from tests.integration.test_lanes import KINDS, SQLITE, wait_for
from tests.integration.test_subscriptions import Started, started

__all__ = ["started"]  # a fixture


@pytest.fixture
def url(kind: str, fresh_database: Callable[[str], str]) -> str:
    url = fresh_database(kind)
    with EventStore(url) as store:
        store.migrate(subscriptions=True)
    return url


@pytest.fixture
def store(url: str) -> Iterator[EventStore]:
    with EventStore(url) as opened:
        yield opened


def position(url: str, name: str = "balances") -> list[object]:
    statement = f"SELECT position FROM projections WHERE name = '{name}' AND place <> ''"
    return [value for (value,) in rows(url, statement)]


@KINDS
def test_the_read_model_is_the_fold_of_the_events(url: str, store: EventStore) -> None:
    balances = Balances(url)
    for n in range(5):
        account(store, f"acc-{n}", 1, 2, 3)
    assert store.drain(balances.projection) == 20
    assert table(url) == folded(url)
    store.repository(Account).update("acc-1", Account.pay, 7)
    assert store.drain(balances.projection) == 1
    assert store.drain(balances.projection) == 0
    assert table(url) == folded(url)


@pytest.mark.parametrize(
    ("kind", "client"), [("pgbouncer", ""), ("mysql8", "+mysqlclient"), ("mariadb", "+mysqlclient")]
)
def test_through_a_pooler_and_by_another_client(url: str, client: str) -> None:
    balances, calm = Balances(url), Balances(url)
    balances.failing = {13}
    with EventStore(url.replace("://", f"{client}://", 1)) as store:
        account(store, "ann", 1, 13, 2)
        account(store, "bob", 2)
        store.drain(balances.projection)
        assert table(url) == {"ann": (1, 1), "bob": (2, 2)}
        balances.failing.clear()
        store.parked().retry("balances")
        with at_work(store, balances.projection):
            wait_for(lambda: table(url) == folded(url))
            assert calm.projection.rebuild(store)
            store.repository(Account).update("bob", Account.pay, 5)
            wait_for(lambda: table(url) == folded(url))


@KINDS
def test_it_runs_beside_a_program_and_knows_its_tables_at_the_next_start(
    url: str, store: EventStore
) -> None:
    balances = Balances(url)
    store.drain(balances.projection)
    for turn in range(2):
        with at_work(store, balances.projection):
            for n in range(1, 10):
                account(store, f"acc-{turn}-{n}", n, n + 1)
            wait_for(lambda: table(url) == folded(url))


@KINDS
def test_a_failing_event_is_undone_and_parked_and_others_go_on(url: str, store: EventStore) -> None:
    balances = Balances(url)
    balances.failing = {13}
    account(store, "ann", 1, 13, 5)
    account(store, "bob", 2)
    store.drain(balances.projection)
    assert table(url) == {"ann": (1, 1), "bob": (2, 2)}
    parked = list(store.parked("balances"))
    assert [(one.waits, one.error) for one in parked] == [
        (False, "ZeroDivisionError: no paper"),
        (True, None),
    ]
    balances.failing.clear()
    assert store.parked().retry("balances") == 1
    store.drain(balances.projection)
    assert table(url) == folded(url)
    assert not list(store.parked("balances"))


@KINDS
def test_a_parked_event_that_fails_again_stays_and_one_that_is_skipped_is_missing(
    url: str, store: EventStore
) -> None:
    balances = Balances(url)
    balances.failing = {13}
    account(store, "ann", 13, 5)
    store.drain(balances.projection)
    first, _ = store.parked("balances")
    store.parked().retry("balances", first.event_id)
    store.drain(balances.projection)
    again, _ = store.parked("balances")
    assert (again.attempts, again.mark) == (2, None)
    store.parked().skip("balances", first.event_id)
    store.drain(balances.projection)
    assert table(url) == {"ann": (5, 5)}
    assert not list(store.parked("balances"))


@KINDS
def test_an_error_of_the_database_undoes_only_its_event(url: str, store: EventStore) -> None:
    balances = Balances(url)
    account(store, "ann", 1)
    account(store, "bob", 2)
    store.drain(balances.projection)
    store.repository(Account).update("ann", Account.open, "again@example.org")
    store.repository(Account).update("bob", Account.pay, 3)
    store.drain(balances.projection)
    assert table(url) == {"ann": (1, 1), "bob": (5, 65)}
    (one,) = store.parked("balances")
    assert one.error is not None
    assert "A row with this key" not in one.error  # the client library's own words are told


@SQLITE
def test_it_stops_at_a_failing_event_where_it_is_told_to(url: str, store: EventStore) -> None:
    balances = Balances(url, on_error="stop")
    balances.failing = {13}
    account(store, "ann", 1, 13, 5)
    with pytest.raises(HandlerFailed, match="paid of subscription 'balances' failed 1 times"):
        store.drain(balances.projection)
    assert table(url) == {"ann": (1, 1)}
    balances.failing.clear()
    store.drain(balances.projection)
    assert table(url) == folded(url)


@SQLITE
def test_a_handler_is_tried_again_alone_before_it_is_parked(url: str, store: EventStore) -> None:
    balances = Balances(url, retry=Retry(attempts=3, pause=0))
    balances.failing = {13}
    account(store, "ann", 1, 13)
    store.drain(balances.projection)
    assert balances.tried == [1, 13, 1, 13, 13, 13]
    assert table(url) == {"ann": (1, 1)}


@SQLITE
def test_a_missing_table_stops_and_parks_nothing(url: str, store: EventStore) -> None:
    projection = Projection("balances", retry=Retry(attempts=1))

    @projection.on(Opened, of=Account)
    def opened(delivery: Delivery[Opened], db: Cursor) -> None:
        db.execute("INSERT INTO nowhere VALUES (1)")

    account(store, "ann")
    with pytest.raises(HandlerFailed, match="no such table: nowhere"):
        store.drain(projection)
    assert not list(store.parked())


@SQLITE
def test_an_event_nobody_can_read_is_parked(url: str, store: EventStore) -> None:
    balances = Balances(url)
    account(store, "ann", 1, 2)
    account(store, "bob", 3)
    rows(url, "UPDATE events SET event_data = '{}' WHERE position = 2")
    store.drain(balances.projection)
    assert table(url) == {"ann": (0, 0), "bob": (3, 3)}
    assert [one.waits for one in store.parked("balances")] == [False, True]


@KINDS
def test_a_handler_that_ends_the_transaction_is_found_out(url: str, store: EventStore) -> None:
    projection = Projection("balances", retry=Retry(attempts=1))

    @projection.on(Opened, of=Account)
    def opened(delivery: Delivery[Opened], db: Cursor) -> None:
        db.execute("COMMIT")

    account(store, "ann")
    store.drain(projection)
    (one,) = store.parked("balances")
    assert one.error is not None
    assert "ended the transaction" in one.error


@SQLITE
def test_a_handler_cannot_change_entities(url: str, store: EventStore) -> None:
    projection = Projection("balances", retry=Retry(attempts=1))

    @projection.on(Opened, of=Account)
    def opened(delivery: Delivery[Opened], db: Cursor) -> None:
        delivery.update(Account, delivery.entity_id, Account.pay, 1)

    account(store, "ann")
    store.drain(projection)
    (one,) = store.parked("balances")
    assert one.error is not None
    assert "UsageError: a projection's handler changes its read model" in one.error


# --- exactly once --------------------------------------------------------------------------------


@KINDS
def test_what_the_broker_delivers_again_is_not_applied_again(url: str, store: EventStore) -> None:
    balances = Balances(url)
    account(store, "ann", 1, 2, 3)
    store.drain(balances.projection)
    rows(url, "UPDATE subscriptions SET position = 0")
    account(store, "bob", 4)
    store.drain(balances.projection)
    assert table(url) == folded(url)
    assert balances.tried == [1, 2, 3, 4]


@KINDS
def test_a_read_model_that_was_set_back_is_caught_up(url: str, store: EventStore) -> None:
    """As after a restore of a backup: the broker knows a position that the read model lost."""
    balances = Balances(url)
    account(store, "ann", 1, 2, 3)
    store.drain(balances.projection)
    rows(url, "DELETE FROM balances", "DELETE FROM projections")
    store.drain(balances.projection)
    assert table(url) == folded(url)


@KINDS
def test_a_member_whose_place_was_claimed_meanwhile_changes_nothing(
    url: str, store: EventStore
) -> None:
    balances = Balances(url)
    account(store, "ann", 1)
    store.drain(balances.projection)
    driver = store.driver
    place = str(rows(url, "SELECT place FROM projections WHERE position > 0")[0][0])
    first, second = Member("balances", "first"), Member("balances", "second")
    (before,) = driver.run(projections.claim(driver.dialect.queries, first, [place])).values()
    driver.run(projections.claim(driver.dialect.queries, second, [place]))

    def write(saved: object) -> Callable[[Any], None]:
        return lambda db: db.execute("DELETE FROM balances")

    plan = projections.write(driver.dialect, first, {place: before + 5}, write)
    with pytest.raises(AssignmentLost):
        driver.run(plan)
    assert table(url) == folded(url)
    assert before in position(url)


@KINDS
@pytest.mark.parametrize("taken", ["projections", "subscriptions"])
def test_a_member_that_loses_its_place_or_its_lease_joins_again_and_applies_once(
    url: str, store: EventStore, taken: str, caplog: pytest.LogCaptureFixture
) -> None:
    balances = Balances(url)
    account(store, "ann", 1)
    store.drain(balances.projection)
    lease = taken == "subscriptions" and url.startswith("sqlite")
    with at_work(store, balances.projection):
        for n in range(1, 4):
            rows(
                url,
                f"UPDATE {taken} SET owner = 'elsewhere'"
                + (", lease_until = 0" if lease else "")
                + (" WHERE place <> ''" if taken == "projections" else ""),
            )
            store.repository(Account).update("ann", Account.pay, n, n + 1)
            wait_for(lambda: table(url) == folded(url))
    if taken == "projections":
        assert "took over" in caplog.text


def apply_slowly(url: str, pipe: Connection) -> None:
    """A member that stands still in the middle of a transaction, to be killed there."""
    balances = Balances(url)
    original = balances.paid

    def paid(delivery: Delivery[Paid], db: Cursor) -> None:
        original(delivery, db)
        if delivery.event.amount == 7:
            pipe.send("applied")
            threading.Event().wait()

    projection = Projection("balances", tables=["balances"])
    balances.projection = projection
    projection.setup(balances.make)
    projection.on(Opened, of=Account)(balances.opened)
    projection.on(Paid, of=Account)(paid)
    with EventStore(url) as store:
        store.run(projection)


@KINDS
def test_a_member_that_is_killed_in_mid_batch_leaves_nothing_half_done(
    url: str, store: EventStore, started: Started
) -> None:
    for n in range(4):
        account(store, f"acc-{n}", 1, 2)
    account(store, "ann", 3, 7, 9)
    process, pipe = started(apply_slowly, url)
    assert pipe.recv() == "applied"
    process.kill()
    process.join()
    balances = Balances(url)

    def caught_up() -> bool:
        with suppress(AssignmentLost):
            store.drain(balances.projection)
        return table(url) == folded(url)

    wait_for(caught_up)


def apply_on(url: str, pipe: Connection) -> None:
    pipe.send("running")
    with EventStore(url) as store:
        store.run(Balances(url).projection)


@KINDS
def test_members_that_come_and_are_killed_under_load_apply_every_event_once(
    url: str, store: EventStore, started: Started
) -> None:
    with EventStore(url) as opened:
        opened.drain(Balances(url).projection)
    stop = threading.Event()

    def write() -> None:
        n = 0
        while not stop.is_set():
            n += 1
            account(store, f"acc-{n}", n, n + 1)
            store.repository(Account).update(f"acc-{max(1, n - 3)}", Account.pay, 5, 6)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(3):
            members = [started(apply_on, url) for _ in range(2)]
            for _, pipe in members:
                pipe.recv()
            size = len(table(url))
            wait_for(lambda size=size: len(table(url)) > size + 3)  # type: ignore[misc]
            for process, _ in members:
                process.kill()
                process.join()
    finally:
        stop.set()
        writer.join()
    with at_work(store, Balances(url).projection):
        wait_for(lambda: table(url) == folded(url))


@SQLITE
def test_a_place_is_not_claimed_while_tables_are_exchanged(store: EventStore, url: str) -> None:
    sql = store.driver.dialect.queries
    rows(url, "INSERT INTO projections VALUES ('balances', '', 0, 'switch/1')")
    with pytest.raises(StoreBusy, match="exchanged"):
        store.driver.run(projections.claim(sql, Member("balances", "me"), ["0"]))


# --- another database ----------------------------------------------------------------------------


@pytest.mark.database("postgres18", "mysql8")
@pytest.mark.parametrize(
    ("kind", "other"),
    [("sqlite", "sqlite"), ("sqlite", "postgres18"), ("postgres18", "mysql8")],
)
def test_a_read_model_in_another_database(
    url: str, store: EventStore, other: str, fresh_database: Callable[[str], str]
) -> None:
    elsewhere = fresh_database(other)
    with EventStore(elsewhere) as there:
        there.migrate()
        balances = Balances(elsewhere, database=elsewhere, track_versions=True)
        balances.failing = {13}
        with closing(balances.projection):
            account(store, "ann", 1, 13)
            account(store, "bob", 2)
            store.drain(balances.projection)
            assert table(elsewhere) == {"ann": (1, 1), "bob": (2, 2)}
            assert len(list(there.parked("balances"))) == 1
            assert not list(store.parked("balances"))
            balances.failing.clear()
            there.parked().retry("balances")
            with at_work(store, balances.projection):
                changed = store.repository(Account).update("ann", Account.pay, 3)
                store.wait_for(balances.projection, changed, timeout=20)
            assert table(elsewhere) == folded(url)


# --- reading one's own write ---------------------------------------------------------------------


@KINDS
def test_a_web_handler_reads_its_own_write(url: str, store: EventStore) -> None:
    balances = Balances(url, track_versions=True)
    with at_work(store, balances.projection):
        account(store, "ann")
        for n in range(1, 10):
            changed = store.repository(Account).update("ann", Account.pay, n)
            store.wait_for(balances.projection, changed, timeout=20)
            assert table(url)["ann"] == folded(url)["ann"]


@SQLITE
def test_events_that_a_projection_does_not_want_are_not_waited_for(
    url: str, store: EventStore
) -> None:
    balances = Balances(url, track_versions=True)
    account(store, "ann", 1)
    store.drain(balances.projection)
    changed = store.repository(Account).update("ann", Account.close)
    store.wait_for(balances.projection, changed, timeout=0)


@SQLITE
def test_who_waits_in_vain_is_told(url: str, store: EventStore) -> None:
    balances = Balances(url, track_versions=True)
    store.drain(balances.projection)
    account(store, "ann", 1)
    found = store.repository(Account).find("ann")
    with pytest.raises(NotCaughtUp, match="balances"):
        store.wait_for(balances.projection, found, timeout=0.01)
    store.drain(balances.projection)
    store.wait_for(balances.projection, found, timeout=0)
    with pytest.raises(UsageError, match="track_versions"):
        store.wait_for(Balances(url, "other").projection, found)


@pytest.mark.parametrize("kind", ["sqlite", "postgres18"])
def test_an_async_store_runs_it_and_waits_for_it(url: str) -> None:
    balances = Balances(url, track_versions=True)

    async def main() -> None:
        async with AsyncEventStore(url) as store, store.running(balances.projection):
            accounts = store.repository(Account)
            changed = await accounts.with_id("ann").create(Account.open, "ann@example.org")
            changed = await accounts.update(changed.id, Account.pay, 5)
            await store.wait_for(balances.projection, changed, timeout=20)

    asyncio.run(main())
    assert table(url) == {"ann": (5, 5)}


# --- definitions ---------------------------------------------------------------------------------


def test_what_cannot_be_a_projection_is_refused_when_it_is_defined(tmp_path: Path) -> None:
    with pytest.raises(InvalidValue, match="plain SQL name"):
        Projection("x", tables=["a; b"])
    with pytest.raises(InvalidValue, match="inline"):
        Projection("x", inline=True, track_versions=True)
    with pytest.raises(InvalidValue, match="batch"):
        Projection("x", batch=0)
    with pytest.raises(UsageError, match="no table 'b'"):
        Projection("x", tables=["a"]).table("b")

    async def later(delivery: Delivery[Opened], db: Cursor) -> None: ...

    with pytest.raises(DefinitionError, match="async"):
        Projection("x").on(Opened, of=Account)(later)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    with pytest.raises(UsageError, match="not inline"):
        EventStore(f"sqlite:///{tmp_path}/x.db", projections=[Projection("x")])
    inline = Projection("x", inline=True)
    with pytest.raises(UsageError, match="is inline"):
        EventStore(f"sqlite:///{tmp_path}/x.db").drain(inline)
