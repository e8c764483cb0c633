"""The schema: made once, by whom it should be, and beside what others keep in the database."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from queue import SimpleQueue

import pytest

from retold import EventStore
from retold.errors import InvalidURL, SchemaForeign, SchemaMissing
from tests.conformance.conftest import Opening
from tests.conformance.domain import Account, Listed, Savings
from tests.conformance.raw import path_of, rows
from tests.rig import SERVERS
from tests.steps import STEPS

FreshDatabase = Callable[[str], str]

# The same to a reader in a hurry, and to many a collation.
CONFUSABLE = [
    "ann",
    "ANN",
    "Ann",
    "änn",
    "anñ",
    "ann ",
    " ann",
    "ann  ",
    "\uff41nn",  # as wide as a Chinese character
    "straße",
    "strasse",
]


def _migrate(url: str, outcomes: SimpleQueue[list[str]]) -> None:
    with closing(EventStore(url)) as store:
        outcomes.put(store.migrate())


def _with(url: str, option: str) -> str:
    return f"{url}?{option}"


def _tables(url: str, kind: str) -> set[str]:
    """The tables in a database."""
    query = "SELECT name FROM sqlite_master WHERE type = 'table'"
    if kind != "sqlite":
        own = "current_schema()" if kind.startswith("p") else "DATABASE()"
        query = f"SELECT table_name FROM information_schema.tables WHERE table_schema = {own}"
    return {str(name) for (name,) in rows(url, query)}


def test_migrate_applies_every_step_once(
    kind: str, flavour: str, fresh_database: FreshDatabase, opened: Opening
) -> None:
    store = opened(fresh_database(kind), flavour)
    assert store.pending_migrations() == STEPS
    assert store.pending_migrations() == STEPS
    assert store.migrate() == STEPS
    assert store.pending_migrations() == []
    assert store.migrate() == []


def test_asking_what_is_pending_changes_nothing(kind: str, fresh_database: FreshDatabase) -> None:
    url = fresh_database(kind)
    with closing(EventStore(url)) as store:
        store.pending_migrations()
        store.migration_script()
    if kind == "sqlite":
        assert not Path(path_of(url)).exists()
    else:
        assert _tables(url, kind) == set()


def test_of_many_threads_that_migrate_at_once_one_applies(
    kind: str, fresh_database: FreshDatabase
) -> None:
    url, outcomes = fresh_database(kind), SimpleQueue[list[str]]()
    threads = [threading.Thread(target=_migrate, args=(url, outcomes)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes.get(timeout=1) for _ in threads) == [[], [], [], STEPS]


def test_many_first_users_of_a_new_file_find_its_tables(fresh_database: FreshDatabase) -> None:
    url, failures = fresh_database("sqlite"), list[Exception]()
    start = threading.Barrier(6)

    def use() -> None:
        start.wait()
        try:
            with EventStore(url) as store:
                store.repository(Account).create(Account.open, "ann")
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=use) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert rows(url, "SELECT count(*) FROM entities") == [(6,)]


@pytest.mark.parametrize("flavour", ["sync", "async"])
def test_a_new_sqlite_file_migrates_itself(
    flavour: str, fresh_database: FreshDatabase, opened: Opening
) -> None:
    store = opened(fresh_database("sqlite"), flavour)
    assert store.repository(Account).create(Account.open, "ann", 5).state.balance == 5
    assert store.migrate() == []


def test_a_sqlite_file_that_holds_anything_does_not_migrate_itself(
    fresh_database: FreshDatabase, opened: Opening
) -> None:
    url = fresh_database("sqlite")
    rows(url, "CREATE TABLE songs (title TEXT)")
    store = opened(url)
    with pytest.raises(SchemaMissing, match="Run: retold migrate"):
        store.repository(Account).create(Account.open, "ann")
    assert rows(url, "SELECT name FROM sqlite_master") == [("songs",)]
    assert store.migrate() == STEPS
    store.repository(Account).create(Account.open, "ann")


@pytest.mark.parametrize("kind", SERVERS)
def test_a_server_never_migrates_itself(
    kind: str, fresh_database: FreshDatabase, opened: Opening
) -> None:
    accounts = opened(fresh_database(kind)).repository(Account)
    for use in (
        lambda: accounts.create(Account.open, "ann"),
        lambda: accounts.update("ann", Account.credit, 1),
        lambda: accounts.find("ann"),
        lambda: accounts.exists("ann"),
        lambda: list(accounts.entities()),
    ):
        with pytest.raises(SchemaMissing, match="Run: retold migrate --database URL"):
            use()


def _two_stores_apart(one: EventStore, other: EventStore) -> None:
    assert one.migrate() == STEPS
    assert other.pending_migrations() == STEPS
    with pytest.raises(SchemaMissing):
        other.repository(Account).create(Account.open, "ann")
    assert other.migrate() == STEPS
    assert (one.migrate(), other.migrate()) == ([], [])
    for balance, store in enumerate((one, other)):
        accounts = store.repository(Account).with_id("ann").once("k")
        assert not accounts.create(Account.open, "ann", balance).duplicate
        # Reads and writes that each name several tables, snapshots among them.
        savings = store.repository(Savings)
        savings.with_id("ann").create(Savings.credit, balance)
        for _ in range(6):
            savings.update("ann", Savings.credit, 1)
    for balance, store in enumerate((one, other)):
        accounts = store.repository(Account)
        assert accounts.find("ann").state.balance == balance
        assert list(accounts.entities()) == ["ann"]
        assert len(list(accounts.history("ann"))) == 1
        assert store.repository(Savings).find("ann").state.balance == balance + 6


@pytest.mark.parametrize("prefix", ["Other_", "p" * 46], ids=["capital", "longest"])
def test_a_prefix_keeps_two_stores_in_one_database_apart(
    kind: str, prefix: str, fresh_database: FreshDatabase, opened: Opening
) -> None:
    url = fresh_database(kind)
    _two_stores_apart(opened(url), opened(_with(url, f"prefix={prefix}")))


def test_a_prefix_that_no_database_could_keep_is_refused() -> None:
    with pytest.raises(InvalidURL, match="prefix"):
        EventStore(f"sqlite:///a.db?prefix={'p' * 47}")


@pytest.mark.parametrize("kind", ["postgres15", "postgres18", "pgbouncer"])
def test_a_schema_keeps_two_stores_in_one_database_apart(
    kind: str, fresh_database: FreshDatabase, opened: Opening
) -> None:
    url = fresh_database(kind)
    _two_stores_apart(opened(url), opened(_with(url, "schema=other")))
    _two_stores_apart(
        opened(_with(url, "schema=third")), opened(_with(url, "schema=third&prefix=es_"))
    )


@pytest.mark.parametrize("kind", ["mysql8", "mariadb"])
def test_a_schema_of_mysql_is_another_database(
    kind: str, fresh_database: FreshDatabase, opened: Opening
) -> None:
    url, other = fresh_database(kind), fresh_database(kind).rpartition("/")[2]
    _two_stores_apart(opened(url), opened(_with(url, f"schema={other}")))
    assert rows(url, f"SELECT count(*) FROM `{other}`.handled") == [(1,)]


@pytest.mark.parametrize("table", ["events", "handled"])
def test_a_table_of_somebody_else_is_recognised_and_nothing_is_changed(
    kind: str, table: str, fresh_database: FreshDatabase, opened: Opening
) -> None:
    url = fresh_database(kind)
    rows(url, f"CREATE TABLE {table} (entity_id INTEGER, title VARCHAR(20))")
    rows(url, f"INSERT INTO {table} VALUES (1, 'concert')")
    store = opened(url)
    for _ in range(2):
        with pytest.raises(SchemaForeign, match=f"'{table}'.*Nothing was changed.*prefix="):
            store.migrate()
    assert rows(url, f"SELECT * FROM {table}") == [(1, "concert")]
    assert _tables(url, kind) == {table}

    beside = opened(_with(url, "prefix=es_"))
    assert beside.migrate() == STEPS
    assert beside.repository(Account).create(Account.open, "ann", 5).state.balance == 5


def test_the_script_run_by_hand_leaves_nothing_pending(
    kind: str, fresh_database: FreshDatabase, opened: Opening
) -> None:
    url = fresh_database(kind)
    for option in ("prefix=es_", "schema=es")[: 2 if kind.startswith("p") else 1]:
        store = opened(_with(url, option))
        statements = store.migration_script().split(";\n")
        rows(url, *(part for part in statements if part.strip()))
        assert store.pending_migrations() == []
        assert store.migrate() == []
        store.repository(Savings).create(Savings.credit, 1)


def test_ids_that_differ_in_case_accent_or_space_are_different_entities(
    kind: str, flavour: str, fresh_database: FreshDatabase, opened: Opening
) -> None:
    store = opened(fresh_database(kind), flavour)
    store.migrate()
    listed, savings = store.repository(Listed), store.repository(Savings)
    for n, id in enumerate(CONFUSABLE):
        listed.with_id(id).create(Listed.credit, n)
        savings.with_id(id).create(Savings.credit, n)
    for n, id in enumerate(CONFUSABLE):
        listed.once("k").update(id, Listed.credit, 100 * n)
        for _ in range(6):
            savings.update(id, Savings.credit, 1)
    for n, id in enumerate(CONFUSABLE):
        assert listed.find(id).state.balance == 101 * n
        assert savings.find(id).state.balance == n + 6
        assert len(list(listed.history(id))) == 2
    assert list(listed.entities()) == sorted(CONFUSABLE, key=str.encode)
    assert list(listed.find_many(CONFUSABLE)) == CONFUSABLE
    assert listed.find("aNN", default=None) is None
