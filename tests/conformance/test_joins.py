"""`store.using(connection)`: events in a transaction of the user's own."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, closing
from typing import Any, cast
from urllib.parse import unquote, urlsplit

import MySQLdb
import MySQLdb.connections
import MySQLdb.cursors
import psycopg
import pymysql
import pymysql.connections
import pymysql.cursors
import pytest
from psycopg.rows import dict_row

from retold import (
    AsyncEventStore,
    EntityExists,
    EventStore,
    KeyReused,
    NotFound,
    TransactionRolledBack,
    VersionConflict,
)
from retold.errors import StoreBusy, UsageError
from tests.conformance.domain import Account, InsufficientFunds, Savings
from tests.conformance.raw import count, entity_version, event_ids, literal, path_of, rows
from tests.rig import DATABASES

NewId = Callable[[], str]
Connecting = Callable[..., Any]

_SERVERS = [kind for kind in DATABASES if kind != "sqlite"]
_POSTGRES = [kind for kind in _SERVERS if kind not in ("mysql8", "mariadb")]
_MYSQL = ["mysql8", "mariadb"]
_MYSQL_CLIENTS = [(kind, client) for kind in _MYSQL for client in ("pymysql", "MySQLdb")]
_CLIENTS = [
    ("sqlite", "sqlite3"),
    *((kind, "psycopg") for kind in _POSTGRES),
    *_MYSQL_CLIENTS,
]

every_client = pytest.mark.parametrize(("kind", "client"), _CLIENTS)
every_server_client = pytest.mark.parametrize(("kind", "client"), _CLIENTS[1:])
every_mysql_client = pytest.mark.parametrize(("kind", "client"), _MYSQL_CLIENTS)
every_postgres = pytest.mark.parametrize("kind", _POSTGRES)


def connect(url: str, client: str, **options: Any) -> Any:
    """A connection as a user makes one, at its defaults (but for what PgBouncer does not bear)."""
    if client == "sqlite3":
        return sqlite3.connect(path_of(url), **options)
    own = options.pop("factory", None)
    if client == "psycopg":
        return (own or psycopg.Connection).connect(url, prepare_threshold=None, **options)
    parts = urlsplit(url)
    library: Any = pymysql if client == "pymysql" else MySQLdb
    return (own or library.connect)(
        host=parts.hostname,
        port=parts.port or 3306,
        user=unquote(parts.username or ""),
        password=unquote(parts.password or ""),
        database=parts.path[1:],
        charset="utf8mb4",
        **options,
    )


def run(connection: Any, sql: str) -> list[Any]:
    """A statement of the user's, and its rows."""
    cursor = connection.cursor()
    cursor.execute(sql)
    found = list(cursor.fetchall()) if cursor.description else []
    cursor.close()
    return found


@pytest.fixture
def store(rival: EventStore) -> EventStore:
    """A blocking store, whose database the user's connection is on too."""
    return rival


@pytest.fixture
def connecting(store: EventStore, url: str) -> Iterator[Connecting]:
    """Opens connections as users have them; they end with the test."""
    rows(url, "CREATE TABLE IF NOT EXISTS letters (account VARCHAR(100), number INTEGER)")
    with ExitStack() as stack:

        def connecting(client: str, **options: Any) -> Any:
            return stack.enter_context(closing(connect(url, client, **options)))

        yield connecting


def write_letter(connection: Any, account: str, number: int = 1) -> None:
    run(connection, f"INSERT INTO letters (account, number) VALUES ({literal(account)}, {number})")


def letters(url: str, account: str) -> list[int]:
    """The letters that are committed."""
    found = rows(url, f"SELECT number FROM letters WHERE account = {literal(account)} ORDER BY 1")
    return [int(str(number)) for (number,) in found]


def opened_account(store: EventStore, balance: int) -> str:
    return store.repository(Account).create(Account.open, "ann", balance).id


def balance(store: EventStore, id: str) -> int:
    return store.repository(Account).find(id).state.balance


def fill(savings: Savings, times: int) -> None:
    for _ in range(times):
        savings.credit(1)


# --- together or not at all ----------------------------------------------------------------------


@every_client
def test_rows_and_events_commit_together(
    store: EventStore, url: str, client: str, connecting: Connecting, new_id: NewId
) -> None:
    ann, new = opened_account(store, 100), new_id()
    connection = connecting(client)
    write_letter(connection, ann)
    joined = store.using(connection).repository(Account)
    assert joined.update(ann, Account.debit, 30).result == 70
    joined.with_id(new).create(Account.open, "new", 1)
    assert balance(store, ann) == 100
    assert not store.repository(Account).exists(new)
    assert letters(url, ann) == []
    connection.commit()
    assert (balance(store, ann), balance(store, new)) == (70, 1)
    assert letters(url, ann) == [1]
    assert entity_version(url, ann) == event_ids(url, ann)[-1]


@every_client
def test_rows_and_events_roll_back_together(
    store: EventStore, url: str, client: str, connecting: Connecting, new_id: NewId
) -> None:
    ann, new = opened_account(store, 100), new_id()
    connection = connecting(client)
    # The events come first: nothing but them has begun the transaction.
    joined = store.using(connection)
    joined.repository(Account).update(ann, Account.exchange, 30, 3)
    joined.repository(Account).once("k").update(ann, Account.debit, 1)
    joined.repository(Account).once("l").update(ann, Account.look)
    joined.repository(Savings).with_id(new).once("k").create(fill, 5)
    write_letter(connection, ann)
    connection.rollback()
    assert balance(store, ann) == 100
    assert letters(url, ann) == []
    assert (count(url, "events", ann), count(url, "handled", ann)) == (1, 0)
    for table in ("events", "entities", "handled", "snapshots"):
        assert count(url, table, new) == 0
    # nor is anything left locked
    assert store.repository(Account).update(ann, Account.debit, 1).result == 99


@every_client
def test_reads_see_what_the_transaction_wrote(
    store: EventStore, client: str, connecting: Connecting, new_id: NewId
) -> None:
    ann, new = opened_account(store, 100), new_id()
    joined = store.using(connecting(client)).repository(Account)
    before = joined.find(ann)
    now = joined.update(ann, Account.debit, 30)
    assert joined.find(ann).version == now.version
    assert joined.find(ann).state.balance == 70
    assert joined.find(ann, at=before.version).state.balance == 100
    assert joined.find(new, default=None) is None
    joined.with_id(new).create(Account.open, "new", 1)
    assert joined.exists(new)
    assert list(joined.find_many([new, ann])) == [new, ann]
    assert [recorded.id for recorded in joined.history(ann)] == [before.version, now.version]
    assert not store.repository(Account).exists(new)


@every_client
def test_a_snapshot_is_part_of_the_transaction(
    store: EventStore, url: str, client: str, connecting: Connecting
) -> None:
    connection = connecting(client)
    joined = store.using(connection).repository(Savings)
    made = joined.create(fill, 5)
    hits = store.counts["snapshot_hits"]
    assert joined.update(made.id, Savings.credit, 1).result == 6
    assert store.counts["snapshot_hits"] - hits == 1
    connection.commit()
    assert count(url, "snapshots", made.id) == 1
    assert store.repository(Savings).find(made.id).state.balance == 6


@every_client
def test_what_joined_goes_on_with_the_next_transaction(
    store: EventStore, url: str, client: str, connecting: Connecting, new_id: NewId
) -> None:
    """In SQLite a SAVEPOINT outside a transaction is one, and releasing it a commit."""
    ids = [new_id() for _ in range(4)]
    connection = connecting(client)
    joined = store.using(connection).repository(Account)
    joined.with_id(ids[0]).create(Account.open, "first", 1)
    connection.commit()
    joined.with_id(ids[1]).create(Account.open, "second", 1)
    connection.rollback()
    joined.with_id(ids[2]).create(Account.open, "third", 1)
    connection.commit()
    joined.with_id(ids[3]).create(Account.open, "fourth", 1)
    assert [count(url, "events", id) for id in ids] == [1, 0, 1, 0]


# --- refusals leave the transaction usable -------------------------------------------------------


@every_client
def test_what_is_refused_leaves_the_transaction_as_it_was(
    store: EventStore, url: str, client: str, connecting: Connecting, new_id: NewId
) -> None:
    ann = opened_account(store, 100)
    stale = store.repository(Account).find(ann).version
    store.repository(Account).once("k").update(ann, Account.debit, 1)
    connection = connecting(client)
    joined = store.using(connection).repository(Account)
    write_letter(connection, ann, 1)
    with pytest.raises(VersionConflict):
        joined.expecting(stale).update(ann, Account.exchange, 5, 3)
    write_letter(connection, ann, 2)
    with pytest.raises(EntityExists):
        joined.with_id(ann).create(Account.exchange, 5, 3)
    write_letter(connection, ann, 3)
    with pytest.raises(EntityExists):
        joined.with_id(ann).once("other").create(Account.open, "again", 5)
    write_letter(connection, ann, 4)
    with pytest.raises(KeyReused):
        joined.once("k").update(ann, Account.credit, 1)
    write_letter(connection, ann, 5)
    with pytest.raises(NotFound):
        joined.update(new_id(), Account.credit, 1)
    write_letter(connection, ann, 6)
    with pytest.raises(InsufficientFunds):
        joined.update(ann, Account.credit_then_fail, 1)
    write_letter(connection, ann, 7)
    assert joined.once("k").update(ann, Account.debit, 1).duplicate
    write_letter(connection, ann, 8)
    assert joined.update(ann, Account.debit, 9).result == 90
    connection.commit()
    assert balance(store, ann) == 90
    assert (count(url, "events", ann), count(url, "handled", ann)) == (3, 1)
    assert letters(url, ann) == [1, 2, 3, 4, 5, 6, 7, 8]


@every_server_client
def test_a_lost_race_leaves_the_transaction_as_it_was(
    store: EventStore, url: str, client: str, connecting: Connecting
) -> None:
    """SQLite has no such race: the user's transaction is the only writer from its beginning."""
    ann, bob = opened_account(store, 100), opened_account(store, 100)
    connection = connecting(client)
    joined = store.using(connection).repository(Account)

    def overtaken(account: Account) -> None:
        store.repository(Account).update(account.id, Account.credit, 1)
        account.exchange(5, 3)

    write_letter(connection, ann, 1)
    with pytest.raises(VersionConflict):
        joined.update(ann, overtaken)
    with pytest.raises(VersionConflict):
        joined.once("k").update(bob, overtaken)
    write_letter(connection, ann, 2)
    connection.commit()
    assert (balance(store, ann), balance(store, bob)) == (101, 101)
    assert (count(url, "events", ann), count(url, "events", bob)) == (2, 2)
    assert count(url, "handled", bob) == 0
    assert letters(url, ann) == [1, 2]
    # A conflict has not used up the key.
    assert joined.once("k").update(bob, Account.credit, 1).result == 102


@every_server_client
def test_an_id_taken_meanwhile_exists(
    store: EventStore, url: str, client: str, connecting: Connecting, new_id: NewId
) -> None:
    """Also at MySQL's REPEATABLE READ, where the transaction does not see the entity."""
    id = new_id()
    connection = connecting(client)
    joined = store.using(connection).repository(Account)
    assert not joined.exists(id)
    store.repository(Account).with_id(id).create(Account.open, "rival", 1)
    with pytest.raises(EntityExists):
        joined.with_id(id).create(Account.open, "late", 100)
    with pytest.raises(EntityExists):
        joined.with_id(id).once("k").create(Account.open, "late", 100)
    write_letter(connection, id)
    connection.commit()
    assert balance(store, id) == 1
    assert (count(url, "events", id), count(url, "handled", id)) == (1, 0)
    assert letters(url, id) == [1]


# --- isolation is the user's ---------------------------------------------------------------------


@every_mysql_client
def test_an_old_snapshot_of_mysql_does_not_lose_an_update(
    store: EventStore, url: str, client: str, connecting: Connecting
) -> None:
    ann = opened_account(store, 100)
    connection = connecting(client)
    joined = store.using(connection).repository(Account)
    seen = joined.find(ann)
    newest = store.repository(Account).once("theirs").update(ann, Account.credit, 1)
    assert joined.find(ann) == seen  # REPEATABLE READ, the server's default
    for repository in (joined, joined.once("k"), joined.expecting(seen.version)):
        with pytest.raises(VersionConflict) as caught:
            repository.update(ann, Account.credit, 10)
        assert (caught.value.expected, caught.value.actual) == (seen.version, newest.version)
    with pytest.raises(VersionConflict):
        joined.create_or_update(ann, Account.credit, 10)
    # A locking read sees the newest version while the events are the old ones.
    entity = f"FROM entities WHERE entity_type = 'conformance.Account' AND entity_id = '{ann}'"
    ((locked,),) = run(connection, f"SELECT entity_version {entity} FOR UPDATE")
    assert locked == newest.version
    with pytest.raises(VersionConflict):
        joined.update(ann, Account.credit, 10)
    connection.commit()
    assert event_ids(url, ann) == [seen.version, newest.version]
    assert count(url, "handled", ann) == 1
    assert joined.update(ann, Account.credit, 10).result == 111
    connection.commit()
    assert balance(store, ann) == 111


@every_mysql_client
def test_an_old_snapshot_of_mysql_does_not_apply_a_key_twice(
    store: EventStore, url: str, client: str, connecting: Connecting
) -> None:
    ann = opened_account(store, 100)
    connection = connecting(client)
    joined = store.using(connection).repository(Account)
    joined.find(ann)
    store.repository(Account).once("k").update(ann, Account.look)  # leaves the version as it is
    with pytest.raises(VersionConflict):
        joined.once("k").update(ann, Account.look)
    with pytest.raises(VersionConflict):
        joined.once("k").update(ann, Account.credit, 1)
    connection.commit()
    assert joined.once("k").update(ann, Account.look).duplicate
    assert (count(url, "events", ann), count(url, "handled", ann)) == (1, 1)


@every_mysql_client
def test_at_read_committed_the_newest_version_is_updated(
    store: EventStore, client: str, connecting: Connecting
) -> None:
    ann = opened_account(store, 100)
    connection = connecting(client)
    run(connection, "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")
    joined = store.using(connection).repository(Account)
    joined.find(ann)
    store.repository(Account).update(ann, Account.credit, 1)
    assert joined.update(ann, Account.credit, 10).result == 111
    connection.commit()
    assert balance(store, ann) == 111


@every_postgres
@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_an_old_snapshot_of_postgres_must_be_run_again(
    store: EventStore, connecting: Connecting, level: str
) -> None:
    ann = opened_account(store, 100)
    connection = connecting("psycopg")
    run(connection, f"SET TRANSACTION ISOLATION LEVEL {level}")
    joined = store.using(connection).repository(Account)
    joined.find(ann)
    store.repository(Account).update(ann, Account.credit, 1)
    with pytest.raises(TransactionRolledBack):
        joined.update(ann, Account.credit, 10)
    connection.rollback()
    assert joined.update(ann, Account.credit, 10).result == 111
    connection.commit()
    assert balance(store, ann) == 111


@pytest.mark.parametrize("kind", ["sqlite"])
def test_an_old_snapshot_of_sqlite_must_be_run_again(
    store: EventStore, url: str, connecting: Connecting
) -> None:
    ann = opened_account(store, 100)
    connection = connecting("sqlite3", isolation_level=None)
    run(connection, "BEGIN")
    joined = store.using(connection).repository(Account)
    assert joined.find(ann).state.balance == 100
    store.repository(Account).update(ann, Account.credit, 1)
    with pytest.raises(TransactionRolledBack):
        joined.update(ann, Account.credit, 10)
    run(connection, "ROLLBACK")
    run(connection, "BEGIN IMMEDIATE")
    assert store.using(connection).repository(Account).update(ann, Account.credit, 10).result == 111
    run(connection, "COMMIT")
    assert balance(store, ann) == 111
    assert count(url, "events", ann) == 3


@pytest.mark.parametrize("kind", ["sqlite"])
def test_joining_while_another_writes_is_busy(store: EventStore, connecting: Connecting) -> None:
    ann = opened_account(store, 100)
    connection = connecting("sqlite3", timeout=0)
    with store.transaction(), pytest.raises(StoreBusy):
        store.using(connection)
    assert store.using(connection).repository(Account).update(ann, Account.debit, 1).result == 99
    connection.commit()
    assert balance(store, ann) == 99


# --- whose transaction it is ---------------------------------------------------------------------


@every_client
def test_a_connection_that_commits_every_statement_is_refused(
    store: EventStore, client: str, connecting: Connecting
) -> None:
    options = {"isolation_level": None} if client == "sqlite3" else {"autocommit": True}
    connection = connecting(client, **options)
    with pytest.raises(UsageError, match="needs a transaction of yours"):
        store.using(connection)


@every_client
def test_a_connection_that_begins_to_commit_every_statement_is_refused(
    store: EventStore, url: str, client: str, connecting: Connecting, new_id: NewId
) -> None:
    connection, id = connecting(client), new_id()
    joined = store.using(connection).repository(Account)
    joined.exists(id)
    connection.commit()
    if client == "sqlite3":
        connection.isolation_level = None
    elif client == "psycopg":
        connection.autocommit = True
    else:
        connection.autocommit(True)
    with pytest.raises(UsageError, match="needs a transaction of yours"):
        joined.with_id(id).create(Account.open, "ann", 1)
    assert count(url, "events", id) == 0


@pytest.mark.parametrize("kind", ["sqlite"])
def test_a_transaction_begun_by_hand_is_joined(
    store: EventStore, connecting: Connecting, new_id: NewId
) -> None:
    first, second = new_id(), new_id()
    connection = connecting("sqlite3", isolation_level=None)
    run(connection, "BEGIN IMMEDIATE")
    joined = store.using(connection).repository(Account)
    joined.with_id(first).create(Account.open, "ann", 1)
    run(connection, "ROLLBACK")
    run(connection, "BEGIN IMMEDIATE")
    joined.with_id(second).create(Account.open, "ann", 1)
    run(connection, "COMMIT")
    assert not store.repository(Account).exists(first)
    assert store.repository(Account).exists(second)


@every_postgres
@pytest.mark.parametrize("autocommit", [True, False])
def test_a_transaction_block_of_psycopg_is_joined(
    store: EventStore, connecting: Connecting, autocommit: bool, new_id: NewId
) -> None:
    ann, inner = opened_account(store, 100), new_id()
    connection = connecting("psycopg", autocommit=autocommit)

    def fail() -> None:
        with connection.transaction():
            store.using(connection).repository(Account).with_id(inner).create(Account.open, "in")
            raise LookupError

    with connection.transaction():
        store.using(connection).repository(Account).update(ann, Account.debit, 30)
        with pytest.raises(LookupError):
            fail()
        assert balance(store, ann) == 100
    assert balance(store, ann) == 70
    assert not store.repository(Account).exists(inner)


# --- which connections ---------------------------------------------------------------------------


_CLASSES: dict[str, Any] = {
    "sqlite3": sqlite3.Connection,
    "psycopg": psycopg.Connection,
    "pymysql": pymysql.connections.Connection,
    "MySQLdb": MySQLdb.connections.Connection,
}


@every_client
def test_a_subclass_of_the_users_own_is_joined(
    store: EventStore, client: str, connecting: Connecting
) -> None:
    ann = opened_account(store, 100)
    connection = connecting(client, factory=type("Own", (_CLASSES[client],), {}))
    assert type(connection).__module__ == __name__
    store.using(connection).repository(Account).update(ann, Account.debit, 1)
    connection.commit()
    assert balance(store, ann) == 99


def _strange(client: str) -> list[dict[str, Any]]:
    """Ways users set up a connection that change what a cursor of it takes and returns."""
    if client == "psycopg":
        return [
            {"row_factory": dict_row},
            {"cursor_factory": psycopg.ClientCursor},
            {"cursor_factory": psycopg.RawCursor},
        ]
    cursors: Any = pymysql.cursors if client == "pymysql" else MySQLdb.cursors
    return [{"cursorclass": c} for c in (cursors.DictCursor, cursors.SSDictCursor)]


@every_server_client
def test_rows_of_another_shape_do_not_disturb(
    store: EventStore, client: str, connecting: Connecting
) -> None:
    for options in _strange(client):
        ann = opened_account(store, 100)
        connection = connecting(client, **options)
        joined = store.using(connection).repository(Account)
        assert joined.once("k").update(ann, Account.exchange, 5, 3).state.balance == 98
        assert joined.update(ann, Account.debit, 1).result == 97
        assert list(joined.find_many([ann])) == [ann]
        with pytest.raises(EntityExists):
            joined.with_id(ann).create(Account.open, "again")
        connection.commit()
        assert balance(store, ann) == 97


@pytest.mark.parametrize("kind", ["sqlite"])
def test_factories_of_sqlite3_do_not_disturb_and_stay(
    store: EventStore, connecting: Connecting
) -> None:
    ann = opened_account(store, 100)
    connection = connecting("sqlite3")
    connection.row_factory, connection.text_factory = sqlite3.Row, bytes
    joined = store.using(connection).repository(Account)
    assert joined.update(ann, Account.debit, 1).result == 99
    assert joined.find(ann).state.owner == "ann"
    (row,) = run(connection, "SELECT 'text' AS name")
    assert row["name"] == b"text"


@every_client
def test_a_connection_to_another_kind_of_database_is_refused(
    store: EventStore, client: str, connecting: Connecting, opened_elsewhere: EventStore
) -> None:
    with pytest.raises(UsageError, match="but the connection is"):
        opened_elsewhere.using(connecting(client))


@pytest.fixture
def opened_elsewhere(kind: str) -> EventStore:
    """A store on another kind of database, which need not be there."""
    return EventStore("postgresql://localhost/x" if kind == "sqlite" else "sqlite:///elsewhere.db")


@every_client
def test_what_is_no_connection_is_refused(
    store: EventStore, client: str, connecting: Connecting
) -> None:
    cursor = connecting(client).cursor()
    for thing in (cursor, object(), None, "sqlite:///bank.db", store):
        with pytest.raises(UsageError, match="takes a connection"):
            store.using(thing)
    cursor.close()


# --- psycopg's AsyncConnection -------------------------------------------------------------------


@asynccontextmanager
async def connected(
    url: str, **options: Any
) -> AsyncGenerator[tuple[AsyncEventStore, psycopg.AsyncConnection[Any]]]:
    async with AsyncEventStore(url) as store:
        connection = await psycopg.AsyncConnection.connect(url, prepare_threshold=None, **options)
        try:
            yield store, connection
        finally:
            await connection.close()


@every_postgres
def test_async_rows_and_events_commit_or_roll_back_together(
    store: EventStore, url: str, connecting: Connecting
) -> None:
    ann = opened_account(store, 100)
    letter = f"INSERT INTO letters (account, number) VALUES ({literal(ann)}, %s)"

    async def work() -> None:
        async with connected(url, row_factory=dict_row) as (own, connection):
            joined = own.using(connection).repository(Account)
            for number, end in ((1, connection.rollback), (2, connection.commit)):
                await connection.execute(cast("Any", letter), [number])
                await joined.update(ann, Account.exchange, 30, 10)
                assert (await joined.find(ann)).state.balance == 80
                assert (await own.repository(Account).find(ann)).state.balance == 100
                await end()

    asyncio.run(work())
    assert balance(store, ann) == 80
    assert letters(url, ann) == [2]


@every_postgres
def test_async_refusals_leave_the_transaction_as_it_was(store: EventStore, url: str) -> None:
    ann = opened_account(store, 100)
    stale = store.repository(Account).find(ann).version
    store.repository(Account).once("k").update(ann, Account.debit, 1)

    def overtaken(account: Account) -> None:
        store.repository(Account).update(ann, Account.credit, 1)
        account.exchange(5, 3)

    async def work() -> None:
        async with connected(url) as (own, connection):
            joined = own.using(connection).repository(Account)
            bob = await joined.create(Account.open, "bob", 0)
            with pytest.raises(VersionConflict):
                await joined.expecting(stale).update(ann, Account.exchange, 5, 3)
            with pytest.raises(VersionConflict):
                await joined.update(ann, overtaken)
            with pytest.raises(EntityExists):
                await joined.with_id(ann).create(Account.open, "again")
            with pytest.raises(KeyReused):
                await joined.once("k").update(ann, Account.credit, 1)
            assert (await joined.once("k").update(ann, Account.debit, 1)).duplicate
            await joined.update(bob.id, Account.credit, 1)
            await connection.commit()
            assert balance(store, bob.id) == 1

    asyncio.run(work())
    assert balance(store, ann) == 100
    assert (count(url, "events", ann), count(url, "handled", ann)) == (3, 1)


@every_postgres
def test_async_autocommit_needs_a_transaction_block(store: EventStore, url: str) -> None:
    ann = opened_account(store, 100)

    async def work() -> None:
        async with connected(url, autocommit=True) as (own, connection):
            with pytest.raises(UsageError, match="needs a transaction of yours"):
                own.using(connection)
            async with connection.transaction():
                joined = own.using(connection).repository(Account)
                await joined.update(ann, Account.debit, 30)
                assert balance(store, ann) == 100
            with pytest.raises(UsageError, match="needs a transaction of yours"):
                await joined.update(ann, Account.debit, 1)

    asyncio.run(work())
    assert balance(store, ann) == 70


@every_postgres
def test_blocking_and_async_connections_are_not_confused(
    store: EventStore, url: str, connecting: Connecting
) -> None:
    async def work() -> None:
        async with connected(url) as (own, connection):
            with pytest.raises(UsageError, match="AsyncEventStore"):
                store.using(connection)
            with pytest.raises(UsageError, match="AsyncConnection"):
                own.using(connecting("psycopg"))

    asyncio.run(work())


@pytest.mark.parametrize(("kind", "client"), [c for c in _CLIENTS if c[1] != "psycopg"])
def test_an_async_store_joins_no_other_library(
    url: str, client: str, connecting: Connecting
) -> None:
    with pytest.raises(UsageError, match="SQLAlchemy"):
        AsyncEventStore(url).using(connecting(client))
