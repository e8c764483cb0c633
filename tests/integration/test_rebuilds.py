"""Rebuilding projections beside the live ones, on real databases, while others write and read."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager

import pytest

from retold import Cursor, EventStore, Projection
from retold.errors import HandlerFailed, StoreBusy, UsageError
from retold.store import exchanging
from retold.subscriptions import rebuilding
from retold.subscriptions.rebuilding import Progress
from tests.at_work import at_work
from tests.conformance.raw import rows
from tests.integration.accounts import Account, Balances, account, folded, table
from tests.integration.test_lanes import KINDS, SQLITE, wait_for

MYSQL = pytest.mark.parametrize("kind", ["mysql8", "mariadb"])


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


@contextmanager
def writing(url: str, store: EventStore) -> Generator[None]:
    """Accounts are opened and paid into for the time of the block."""
    stop, failures = threading.Event(), list[BaseException]()

    def write() -> None:
        n, paid = 0, "acc-1"
        while not stop.wait(0.002):
            n += 1
            try:
                id = account(store, f"acc-{n}", n, n + 1)
                store.repository(Account).update(paid, Account.pay, 5, 6)
                paid = id if n % 3 == 0 else paid
            except StoreBusy:  # while tables are exchanged
                continue
            except BaseException as error:
                failures.append(error)
                return

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield
    finally:
        stop.set()
        writer.join()
    assert failures == []


def tables(url: str) -> set[str]:
    found = (
        rows(url, "SELECT name FROM sqlite_master WHERE type = 'table'")
        if url.startswith("sqlite")
        else rows(url, "SELECT table_name FROM information_schema.tables")
    )
    return {str(name) for (name,) in found if "balances" in str(name)}


@KINDS
def test_a_table_that_went_wrong_is_right_after_a_rebuild(url: str, store: EventStore) -> None:
    balances = Balances(url)
    for n in range(5):
        account(store, f"acc-{n}", 1, 2, 3)
    store.drain(balances.projection)
    rows(url, "UPDATE balances SET balance = 77")
    told = list[Progress]()
    for _ in range(2):
        assert balances.projection.rebuild(store, told.append)
        assert table(url) == folded(url)
        assert tables(url) == {"balances"}
    assert told[-1].behind == 0
    assert told[-1].applied == 20
    store.repository(Account).update("acc-1", Account.pay, 9)
    store.drain(balances.projection)
    assert table(url) == folded(url)


@KINDS
def test_a_rebuild_beside_members_and_writers_loses_and_doubles_nothing(
    url: str, store: EventStore
) -> None:
    balances = Balances(url, track_versions=True)
    for n in range(20):
        account(store, f"old-{n}", n + 1, n + 2)
    store.drain(balances.projection)
    rows(url, "UPDATE balances SET balance = 77")
    live = Balances(url, track_versions=True)
    with at_work(store, live.projection):
        with writing(url, store):
            for _ in range(2):
                assert balances.projection.rebuild(store)
        wait_for(lambda: table(url) == folded(url))
        changed = store.repository(Account).update("old-1", Account.pay, 9)
        store.wait_for(balances.projection, changed, timeout=20)
    assert table(url) == folded(url)


@pytest.mark.soak  # on PostgreSQL appends that never pause can hold the exchange off for minutes
@KINDS
def test_an_inline_projection_is_rebuilt_while_others_append(url: str) -> None:
    balances = Balances(url, inline=True)
    with EventStore(url) as before:
        for n in range(20):
            account(before, f"old-{n}", n + 1, n + 2)
    with EventStore(url) as store:
        balances.projection.set_up(store.driver)
        assert balances.projection.rebuild(store)
    assert table(url) == folded(url)
    with EventStore(url, projections=[balances.projection]) as store:
        with writing(url, store):
            wait_for(lambda: len(table(url)) > 25)
            assert Balances(url, inline=True).projection.rebuild(store)
            assert Balances(url, inline=True).projection.rebuild(store)
        assert table(url) == folded(url)
        assert balances.projection.lag(store) == 0


@SQLITE
def test_a_rebuild_whose_handler_fails_parks_in_the_new_tables(url: str, store: EventStore) -> None:
    balances = Balances(url)
    account(store, "ann", 1, 13)
    account(store, "bob", 2)
    store.drain(balances.projection)
    balances.failing = {13}
    balances.projection.rebuild(store)
    assert table(url) == {"ann": (1, 1), "bob": (2, 2)}
    assert [one.subscription for one in store.parked()] == ["balances"]
    balances.failing.clear()
    balances.projection.rebuild(store)
    assert table(url) == folded(url)
    assert not list(store.parked())


@SQLITE
def test_a_rebuild_that_stops_leaves_the_live_tables_as_they_are(
    url: str, store: EventStore
) -> None:
    balances = Balances(url, on_error="stop")
    account(store, "ann", 1, 13)
    store.drain(balances.projection)
    before = table(url)
    balances.failing = {13}
    with pytest.raises(HandlerFailed):
        balances.projection.rebuild(store)
    stop = threading.Event()
    stop.set()
    assert not balances.projection.rebuild(store, stop=stop)
    assert table(url) == before
    store.repository(Account).update("ann", Account.pay, 3)
    balances.failing.clear()
    store.drain(balances.projection)
    assert table(url) == folded(url)


@KINDS
def test_of_two_rebuilds_the_first_gives_up(url: str, store: EventStore) -> None:
    balances = Balances(url)
    account(store, "ann", 1)
    store.drain(balances.projection)
    sql, driver = store.driver.dialect.queries, store.driver
    first, second = (
        exchanging.Exchange("balances", "balances.rebuild", ["balances"], token, 0)
        for token in ("1", "2")
    )
    for one in (first, second):
        driver.run(exchanging.begin_rebuild(sql, "balances", "balances.rebuild", one.token))
    with pytest.raises(UsageError, match="somebody else"):
        driver.run(exchanging.exchange(driver.dialect, first))
    driver.run(exchanging.give_up(sql, first))
    driver.run(exchanging.give_up(sql, second))
    assert table(url) == folded(url)


@MYSQL
@pytest.mark.parametrize("renamed", [False, True])
def test_an_exchange_that_was_broken_off_is_finished_by_the_next_rebuild(
    url: str, store: EventStore, renamed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MySQL commits at every change of a table, so somebody may die in between."""
    balances = Balances(url)
    account(store, "ann", 1)
    store.drain(balances.projection)
    rows(url, "UPDATE balances SET balance = 77")

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    # Before the tables are renamed, or behind that and before the positions are.
    monkeypatch.setattr(exchanging, "_adopt" if renamed else "finish", dies)
    with pytest.raises(KeyboardInterrupt):
        balances.projection.rebuild(store)
    monkeypatch.undo()
    assert table(url)["ann"][0] == (1 if renamed else 77)
    with pytest.raises(StoreBusy, match="exchanged"):
        store.drain(balances.projection)
    assert balances.projection.rebuild(store)
    store.repository(Account).update("ann", Account.pay, 5)
    store.drain(balances.projection)
    assert table(url) == folded(url)


@KINDS
def test_a_reset_begins_again_also_while_members_run(url: str, store: EventStore) -> None:
    balances = Balances(url, track_versions=True)
    for n in range(5):
        account(store, f"acc-{n}", 1, 2)
    store.drain(balances.projection)
    rows(url, "UPDATE balances SET balance = 77")
    with at_work(store, balances.projection):
        Balances(url).projection.reset(store)
        account(store, "new", 7)
        wait_for(lambda: table(url) == folded(url))


@KINDS
def test_the_lag_is_what_a_projection_has_not_come_to(url: str, store: EventStore) -> None:
    balances = Balances(url)
    account(store, "ann", 1, 2)
    assert balances.projection.lag(store) == 3
    store.drain(balances.projection)
    assert balances.projection.lag(store) == 0
    store.repository(Account).update("ann", Account.close)
    assert balances.projection.lag(store) == 1
    store.drain(balances.projection)
    assert balances.projection.lag(store) == 0


@SQLITE
def test_what_cannot_be_rebuilt_says_why(store: EventStore, url: str) -> None:
    with pytest.raises(UsageError, match="tables="):
        Projection("x").rebuild(store)
    with pytest.raises(UsageError, match="tables="):
        Projection("x").reset(store)
    with pytest.raises(UsageError, match="setup"):
        Projection("x", tables=["a"]).rebuild(store)
    with pytest.raises(UsageError, match="inline"):
        Projection("x", inline=True, tables=["a"]).reset(store)
    stubborn = Balances(url).projection

    @stubborn.setup
    def make(db: Cursor) -> None:
        db.execute("CREATE TABLE IF NOT EXISTS balances (id VARCHAR(255))")

    with pytest.raises(UsageError, match=r"table\(…\)"):
        stubborn.rebuild(store)
    assert rebuilding.positions_of(store.driver, "balances") == {}
