"""One suite over every DBAPI that SQLAlchemy may stand on, blocking and async."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest
import sqlalchemy as sa
from sqlalchemy.event import listens_for
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from sqlalchemy.pool import NullPool

from retold import Aggregate, AsyncEventStore, Event, EventStore, applies
from retold.contrib.sqlalchemy import include_object, using, using_async
from retold.errors import (
    EntityExists,
    KeyReused,
    NotFound,
    ReadOnlyStore,
    SchemaMissing,
    StoreBusy,
    StoreError,
    TransactionRolledBack,
    UsageError,
    VersionConflict,
)
from retold.snapshots import every
from retold.store.driver import Verb
from retold.store.repository import AsyncRepository, Repository

T = TypeVar("T")


class Opened(Event, name="sqlalchemy-test.Opened"):
    owner: str
    balance: int


class Debited(Event, name="sqlalchemy-test.Debited"):
    amount: int


class Account(Aggregate, name="sqlalchemy-test.Account"):
    owner: str = ""
    balance: int = 0

    def open(self, owner: str, balance: int) -> None:
        self.emit(Opened(owner, balance))

    def debit(self, *amounts: int) -> int:
        for amount in amounts:
            self.emit(Debited(amount))
        return self.balance

    def look(self) -> int:
        return self.balance

    @applies
    def _opened(self, event: Opened) -> None:
        self.owner, self.balance = event.owner, event.balance

    @applies
    def _debited(self, event: Debited) -> None:
        self.balance -= event.amount


class Counted(Event, name="sqlalchemy-test.Counted"):
    pass


class Counter(Aggregate, name="sqlalchemy-test.Counter", snapshots=every(2)):
    count: int = 0

    def step(self) -> None:
        self.emit(Counted())

    @applies
    def _counted(self, event: Counted) -> None:
        self.count += 1


tables = sa.MetaData()
orders = sa.Table("orders", tables, sa.Column("number", sa.Integer, primary_key=True))

BLOCKING = [
    ("sqlite", "sqlite+pysqlite"),
    ("postgres15", "postgresql+psycopg"),
    ("postgres15", "postgresql+psycopg2"),
    ("postgres18", "postgresql+psycopg"),
    ("mysql8", "mysql+pymysql"),
    ("mysql8", "mysql+mysqldb"),
    ("mariadb", "mysql+pymysql"),
    ("mariadb", "mariadb+mysqldb"),
]
AWAITED = [
    ("sqlite", "sqlite+aiosqlite"),
    ("postgres15", "postgresql+asyncpg"),
    ("postgres15", "postgresql+psycopg_async"),
    ("postgres18", "postgresql+asyncpg"),
    ("mysql8", "mysql+asyncmy"),
    ("mariadb", "mysql+asyncmy"),
]
_SERVERS = [(kind, driver) for kind, driver in [*BLOCKING, *AWAITED] if kind != "sqlite"]

every_dbapi = pytest.mark.parametrize(("kind", "driver"), [*BLOCKING, *AWAITED])
every_server = pytest.mark.parametrize(("kind", "driver"), _SERVERS)


@dataclass
class World:
    """A session, and the store's own view of the same database."""

    outside: EventStore
    join: Callable[[type[Any]], AsyncRepository[Any]]
    execute: Callable[[sa.Executable], Awaitable[sa.Result[Any]]]
    commit: Callable[[], Awaitable[None]]
    rollback: Callable[[], Awaitable[None]]
    savepoint: Callable[[], Awaitable[Callable[[], Awaitable[None]]]]

    @property
    def accounts(self) -> AsyncRepository[Account]:
        return self.join(Account)

    @property
    def committed(self) -> Repository[Account]:
        return self.outside.repository(Account)

    async def order(self, number: int) -> None:
        await self.execute(orders.insert().values(number=number))

    async def orders(self) -> list[int]:
        found = await self.execute(sa.select(orders.c.number).order_by(orders.c.number))
        return [row[0] for row in found]


def _awaited(repository: Repository[Any]) -> AsyncRepository[Any]:
    """A blocking repository with the face of an async one, so that one suite serves both."""
    run = repository._perform  # pyright: ignore[reportPrivateUsage]

    async def perform(verb: Verb[T]) -> T:
        return run(verb)

    return AsyncRepository(repository._verbs, perform)  # pyright: ignore[reportPrivateUsage]


async def _blocking_world(
    url: str, driver: str, test: Callable[[World], Coroutine[Any, Any, None]]
) -> None:
    engine = sa.create_engine(sa.make_url(url).set(drivername=driver))
    tables.create_all(engine)
    with EventStore(url) as store, Session(engine) as session:
        store.migrate()

        async def execute(statement: sa.Executable) -> sa.Result[Any]:
            return session.execute(statement)

        async def commit() -> None:
            session.commit()

        async def rollback() -> None:
            session.rollback()

        async def savepoint() -> Callable[[], Awaitable[None]]:
            nested = session.begin_nested()

            async def undo() -> None:
                nested.rollback()

            return undo

        def join(cls: type[Any]) -> AsyncRepository[Any]:
            return _awaited(using(store, session).repository(cls))

        await test(World(store, join, execute, commit, rollback, savepoint))
    engine.dispose()


async def _awaited_world(
    url: str, driver: str, test: Callable[[World], Coroutine[Any, Any, None]]
) -> None:
    engine = create_async_engine(sa.make_url(url).set(drivername=driver))
    async with engine.begin() as connection:
        await connection.run_sync(tables.create_all)
    async with AsyncEventStore(url) as store, AsyncSession(engine) as session:
        await store.migrate()

        async def savepoint() -> Callable[[], Awaitable[None]]:
            return (await session.begin_nested()).rollback

        def join(cls: type[Any]) -> AsyncRepository[Any]:
            return using_async(store, session).repository(cls)

        with store.blocking() as outside:
            await test(
                World(outside, join, session.execute, session.commit, session.rollback, savepoint)
            )
    await engine.dispose()


@pytest.fixture
def run(
    fresh_database: Callable[[str], str],
) -> Callable[[str, str, Callable[[World], Coroutine[Any, Any, None]]], None]:
    def run(kind: str, driver: str, test: Callable[[World], Coroutine[Any, Any, None]]) -> None:
        world = _awaited_world if (kind, driver) in AWAITED else _blocking_world
        asyncio.run(world(fresh_database(kind), driver, test))

    return run


Run = Callable[[str, str, Callable[[World], Coroutine[Any, Any, None]]], None]


@every_dbapi
def test_rows_and_events_commit_together(kind: str, driver: str, run: Run) -> None:
    async def test(world: World) -> None:
        await world.order(1)
        ann = await world.accounts.create(Account.open, "ann", 100)
        assert (await world.accounts.update(ann.id, Account.debit, 30)).result == 70
        assert world.committed.find(ann.id, default=None) is None
        await world.commit()
        assert world.committed.find(ann.id).state.balance == 70
        assert await world.orders() == [1]

    run(kind, driver, test)


@every_dbapi
def test_rows_and_events_roll_back_together(kind: str, driver: str, run: Run) -> None:
    async def test(world: World) -> None:
        # The events come first: nothing but them could have begun the transaction.
        ann = await world.accounts.create(Account.open, "ann", 100)
        await world.order(1)
        await world.rollback()
        assert world.committed.find(ann.id, default=None) is None
        assert await world.orders() == []
        await world.rollback()
        # The session goes on, and so does what joined it.
        bob = await world.accounts.create(Account.open, "bob", 100)
        await world.accounts.update(bob.id, Account.debit, 1, 2)
        await world.order(2)
        await world.commit()
        assert world.committed.find(bob.id).state.balance == 97
        assert await world.orders() == [2]

    run(kind, driver, test)


@every_dbapi
def test_an_update_alone_rolls_back(kind: str, driver: str, run: Run) -> None:
    async def test(world: World) -> None:
        ann = world.committed.create(Account.open, "ann", 100)
        await world.accounts.update(ann.id, Account.debit, 30)
        await world.rollback()
        assert world.committed.find(ann.id).state.balance == 100

    run(kind, driver, test)


@every_dbapi
def test_events_survive_every_dbapi_as_they_are(kind: str, driver: str, run: Run) -> None:
    text = "Zoë 🐙 :name %s %% ? $1 'quoted' \"twice\" \\ {json} \n"

    async def test(world: World) -> None:
        made = await world.accounts.with_id(text).create(Account.open, text, 2**40)
        await world.accounts.update(text, Account.debit, 1, 2, 3)
        await world.accounts.once(text).update(text, Account.debit, 4, 5)
        await world.commit()
        assert made.id == text
        found = await world.accounts.find(text)
        assert found == world.committed.find(text)
        assert (found.state.owner, found.state.balance) == (text, 2**40 - 15)
        history = [recorded.event async for recorded in world.accounts.history(text)]
        assert history == [Opened(text, 2**40), *(Debited(n) for n in (1, 2, 3, 4, 5))]

    run(kind, driver, test)


@every_dbapi
def test_reading_inside_the_transaction(kind: str, driver: str, run: Run) -> None:
    async def test(world: World) -> None:
        for name in ("a", "b", "c"):
            await world.accounts.with_id(name).create(Account.open, name, 1)
        first = await world.accounts.find("a")
        await world.accounts.update("a", Account.debit, 1)
        assert (await world.accounts.find("a", at=first.version)).state.balance == 1
        assert list(await world.accounts.find_many(["c", "nobody", "a"])) == ["c", "a"]
        assert await world.accounts.find_many([]) == {}
        assert await world.accounts.exists("b")
        assert not await world.accounts.exists("nobody")
        assert [id async for id in world.accounts.entities()] == ["a", "b", "c"]
        with pytest.raises(NotFound):
            await world.accounts.update("nobody", Account.debit, 1)
        await world.rollback()

    run(kind, driver, test)


@every_dbapi
def test_snapshots(kind: str, driver: str, run: Run) -> None:
    async def test(world: World) -> None:
        counters = world.join(Counter)
        made = await counters.create(Counter.step)
        for _ in range(6):
            await counters.update(made.id, Counter.step)
        await world.commit()
        assert (await counters.find(made.id)).state.count == 7
        hits = world.outside.counts["snapshot_hits"]
        assert world.outside.repository(Counter).find(made.id).state.count == 7
        assert world.outside.counts["snapshot_hits"] == hits + 1

    run(kind, driver, test)


@every_dbapi
def test_a_conflict_leaves_the_transaction_usable(kind: str, driver: str, run: Run) -> None:
    async def test(world: World) -> None:
        ann = world.committed.create(Account.open, "ann", 100)
        world.committed.update(ann.id, Account.debit, 1)
        await world.order(1)
        with pytest.raises(VersionConflict):
            await world.accounts.expecting(ann.version).update(ann.id, Account.debit, 30)
        await world.order(2)
        await world.accounts.update(ann.id, Account.debit, 9)
        await world.commit()
        assert world.committed.find(ann.id).state.balance == 90
        assert await world.orders() == [1, 2]

    run(kind, driver, test)


@every_server
def test_a_lost_race_leaves_the_transaction_usable(kind: str, driver: str, run: Run) -> None:
    """Somebody else's update falls between the load and the append. (SQLite has one writer.)"""

    async def test(world: World) -> None:
        ann = world.committed.create(Account.open, "ann", 100)

        def overtaken(account: Account) -> int:
            world.committed.update(ann.id, Account.debit, 1)
            return account.debit(30)

        for number, accounts in enumerate((world.accounts, world.accounts.once("request-1"))):
            await world.order(10 + number)
            with pytest.raises(VersionConflict):
                await accounts.update(ann.id, overtaken)
            await world.accounts.with_id(f"bob-{number}").create(Account.open, "bob", 1)
            await world.order(20 + number)
            await world.commit()
            assert world.committed.exists(f"bob-{number}")
        assert world.committed.find(ann.id).state.balance == 98
        assert await world.orders() == [10, 11, 20, 21]
        await world.commit()
        # A conflict has not used up the key.
        done = await world.accounts.once("request-1").update(ann.id, Account.debit, 8)
        await world.commit()
        assert (done.result, done.duplicate) == (90, False)

    run(kind, driver, test)


@every_dbapi
def test_an_existing_entity_leaves_the_transaction_usable(kind: str, driver: str, run: Run) -> None:
    async def test(world: World) -> None:
        world.committed.with_id("ann").create(Account.open, "ann", 100)
        await world.order(1)
        with pytest.raises(EntityExists):
            await world.accounts.with_id("ann").create(Account.open, "again", 1)
        with pytest.raises(EntityExists):
            await world.accounts.with_id("ann").once("k").create(Account.open, "again", 1)
        await world.order(2)
        await world.accounts.with_id("bob").create(Account.open, "bob", 1)
        await world.commit()
        assert world.committed.find("ann").state.owner == "ann"
        assert world.committed.find("bob").state.owner == "bob"
        assert await world.orders() == [1, 2]

    run(kind, driver, test)


@every_dbapi
def test_a_key_is_handled_once(kind: str, driver: str, run: Run) -> None:
    async def test(world: World) -> None:
        keyed = world.accounts.once("request-1")
        ann = await keyed.create(Account.open, "ann", 100)
        again = await keyed.create(Account.open, "ann", 100)
        assert (again.id, again.duplicate) == (ann.id, True)
        update = world.accounts.once("request-2")
        assert not (await update.update(ann.id, Account.debit, 30)).duplicate
        await world.commit()
        assert (await update.update(ann.id, Account.debit, 30)).duplicate
        with pytest.raises(KeyReused):
            await update.update(ann.id, Account.look)
        # also where nothing is emitted
        silent = world.accounts.once("request-3")
        assert (await silent.update(ann.id, Account.look)).result == 70
        assert (await silent.update(ann.id, Account.look)).duplicate
        await world.rollback()
        assert not (await silent.update(ann.id, Account.look)).duplicate
        await world.commit()
        assert world.committed.find(ann.id).state.balance == 70

    run(kind, driver, test)


@every_dbapi
def test_a_savepoint_of_the_users_takes_the_events_back(kind: str, driver: str, run: Run) -> None:
    async def test(world: World) -> None:
        await world.accounts.with_id("ann").create(Account.open, "ann", 100)
        undo = await world.savepoint()
        await world.order(1)
        await world.accounts.update("ann", Account.debit, 30)
        with pytest.raises(EntityExists):
            await world.accounts.with_id("ann").create(Account.open, "again", 1)
        await undo()
        await world.order(2)
        await world.commit()
        assert world.committed.find("ann").state.balance == 100
        assert await world.orders() == [2]

    run(kind, driver, test)


@every_server
def test_a_deadlock_says_to_run_the_transaction_again(kind: str, driver: str, run: Run) -> None:
    async def test(world: World) -> None:
        for id in ("a", "b"):
            world.committed.with_id(id).create(Account.open, id, 100)
        await world.accounts.update("a", Account.debit, 1)
        held = threading.Event()

        def other() -> Exception | None:
            try:
                with world.outside.transaction() as tx:
                    tx.repository(Account).update("b", Account.debit, 1)
                    held.set()
                    tx.repository(Account).update("a", Account.debit, 1)
            except (TransactionRolledBack, VersionConflict) as error:
                return error
            return None

        theirs = asyncio.ensure_future(asyncio.to_thread(other))
        await asyncio.to_thread(held.wait)
        await asyncio.sleep(0.2)  # until it waits for us
        ours: Exception | None = None
        try:
            await world.accounts.update("b", Account.debit, 1)
            await world.commit()
        except (TransactionRolledBack, VersionConflict) as error:
            ours = error
            await world.rollback()
        errors = [ours, await theirs]
        assert any(isinstance(error, TransactionRolledBack) for error in errors)
        assert ours is None or isinstance(ours, TransactionRolledBack)

    run(kind, driver, test)


@every_server
def test_a_lock_is_not_awaited_for_ever(kind: str, driver: str, run: Run) -> None:
    async def test(world: World) -> None:
        world.committed.with_id("a").create(Account.open, "a", 100)
        short = (
            "SET LOCAL lock_timeout = '100ms'"
            if "postgres" in kind
            else "SET SESSION innodb_lock_wait_timeout = 1"
        )
        with world.outside.transaction() as tx:
            tx.repository(Account).update("a", Account.debit, 1)
            await world.execute(sa.text(short))
            with pytest.raises(StoreBusy):
                await world.accounts.update("a", Account.debit, 1)
            await world.rollback()

    run(kind, driver, test)


@every_server
def test_a_read_only_transaction(kind: str, driver: str, run: Run) -> None:
    async def test(world: World) -> None:
        # MySQL takes a transaction's mode only before it begins.
        begin = "SET TRANSACTION READ ONLY" if "postgres" in kind else "START TRANSACTION READ ONLY"
        await world.execute(sa.text(begin))
        with pytest.raises(ReadOnlyStore):
            await world.accounts.create(Account.open, "ann", 1)
        await world.rollback()

    run(kind, driver, test)


@every_dbapi
def test_missing_tables(kind: str, driver: str, run: Run) -> None:
    async def test(world: World) -> None:
        await world.execute(sa.text("DROP TABLE handled"))
        await world.execute(sa.text("DROP TABLE events"))
        await world.commit()
        with pytest.raises(SchemaMissing) as raised:
            await world.accounts.find("somebody's-secret-id")
        # SQLAlchemy's error would show the parameters, which may be personal.
        cause = raised.value.__cause__
        assert cause is not None
        assert "secret" not in f"{raised.value} {cause}"
        await world.rollback()

    run(kind, driver, test)


# --- SQLite's transactions -----------------------------------------------------------------------


@pytest.fixture
def sqlite(fresh_database: Callable[[str], str]) -> str:
    url = fresh_database("sqlite")
    with EventStore(url) as store:
        store.migrate()
    return url


@pytest.fixture
def engine(sqlite: str) -> sa.Engine:
    engine = sa.create_engine(sqlite, poolclass=NullPool)
    tables.create_all(engine)
    return engine


def test_a_connection_can_be_joined(sqlite: str, engine: sa.Engine) -> None:
    store = EventStore(sqlite)
    with engine.connect() as connection:
        lost = using(store, connection).repository(Account).create(Account.open, "ann", 1)
        connection.rollback()
    with engine.begin() as connection:
        kept = using(store, connection).repository(Account).create(Account.open, "bob", 1)
    accounts = store.repository(Account)
    assert not accounts.exists(lost.id)
    assert accounts.exists(kept.id)
    store.close()


def test_an_async_connection_can_be_joined(sqlite: str) -> None:
    async def main() -> None:
        engine = create_async_engine(
            sa.make_url(sqlite).set(drivername="sqlite+aiosqlite"), poolclass=NullPool
        )
        async with AsyncEventStore(sqlite) as store:
            async with engine.connect() as connection:
                accounts = using_async(store, connection).repository(Account)
                lost = await accounts.create(Account.open, "ann", 1)
            async with engine.begin() as connection:
                accounts = using_async(store, connection).repository(Account)
                kept = await accounts.create(Account.open, "bob", 1)
            assert not await store.repository(Account).exists(lost.id)
            assert await store.repository(Account).exists(kept.id)

    asyncio.run(main())


def test_a_scoped_session_can_be_joined(sqlite: str, engine: sa.Engine) -> None:
    store = EventStore(sqlite)
    session = scoped_session(sessionmaker(engine))
    made = using(store, session).repository(Account).create(Account.open, "ann", 1)
    session.commit()
    session.remove()
    assert store.repository(Account).exists(made.id)
    store.close()


def test_a_transaction_that_the_user_begins(sqlite: str, engine: sa.Engine) -> None:
    """As SQLAlchemy's documentation does it, for SERIALIZABLE and savepoints that work."""

    @listens_for(engine, "connect")
    def _connect(raw: Any, _: object) -> None:
        raw.isolation_level = None

    @listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN")

    store = EventStore(sqlite)
    with Session(engine) as session:
        accounts = using(store, session).repository(Account)
        lost = accounts.create(Account.open, "ann", 1)
        session.rollback()
        kept = accounts.create(Account.open, "bob", 1)
        session.commit()
    assert not store.repository(Account).exists(lost.id)
    assert store.repository(Account).exists(kept.id)
    store.close()


def test_a_stale_read_says_to_run_the_transaction_again(sqlite: str, engine: sa.Engine) -> None:
    store = EventStore(sqlite)
    ann = store.repository(Account).create(Account.open, "ann", 1)
    with Session(engine) as session:
        session.execute(sa.text("BEGIN"))
        assert session.execute(sa.select(orders)).all() == []
        store.repository(Account).update(ann.id, Account.debit, 1)
        with pytest.raises(TransactionRolledBack):
            using(store, session).repository(Account).update(ann.id, Account.debit, 1)
    store.close()


def test_a_locked_file(sqlite: str) -> None:
    engine = sa.create_engine(f"{sqlite}?timeout=0.1", poolclass=NullPool)
    store = EventStore(sqlite)
    with store.transaction() as tx, Session(engine) as session:
        tx.repository(Account).create(Account.open, "ann", 1)
        with pytest.raises(StoreBusy):
            using(store, session).repository(Account).create(Account.open, "bob", 1)
    store.close()


def test_a_failed_append_leaves_nothing_half_done(sqlite: str, engine: sa.Engine) -> None:
    """The version is written before the events; an error between the two takes it back."""
    store = EventStore(sqlite)
    ann = store.repository(Account).create(Account.open, "ann", 1)
    with Session(engine) as session:
        session.execute(
            sa.text(
                "CREATE TRIGGER refuse BEFORE INSERT ON events WHEN NEW.event_data LIKE '%13%' "
                "BEGIN SELECT RAISE(ABORT, 'unlucky'); END"
            )
        )
        session.execute(orders.insert().values(number=1))
        with pytest.raises(StoreError, match="unlucky"):
            using(store, session).repository(Account).update(ann.id, Account.debit, 13)
        session.commit()
        assert session.scalars(sa.select(orders.c.number)).all() == [1]
    store.repository(Account).expecting(ann.version).update(ann.id, Account.debit, 1)
    store.close()


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "driver"), BLOCKING)
def test_autocommit_is_no_transaction_to_join(
    kind: str, driver: str, fresh_database: Callable[[str], str]
) -> None:
    url = fresh_database(kind)
    engine = sa.create_engine(
        sa.make_url(url).set(drivername=driver), isolation_level="AUTOCOMMIT", poolclass=NullPool
    )
    with EventStore(url) as store, Session(engine) as session:
        store.migrate()
        with pytest.raises(UsageError, match="AUTOCOMMIT"):
            using(store, session).repository(Account).create(Account.open, "ann", 1)


@pytest.mark.parametrize(("kind", "driver"), AWAITED)
def test_autocommit_is_no_async_transaction_to_join(
    kind: str, driver: str, fresh_database: Callable[[str], str]
) -> None:
    url = fresh_database(kind)

    async def main() -> None:
        engine = create_async_engine(
            sa.make_url(url).set(drivername=driver),
            isolation_level="AUTOCOMMIT",
            poolclass=NullPool,
        )
        async with AsyncEventStore(url) as store, AsyncSession(engine) as session:
            await store.migrate()
            with pytest.raises(UsageError, match="AUTOCOMMIT"):
                await using_async(store, session).repository(Account).create(Account.open, "a", 1)

    asyncio.run(main())


def test_a_session_on_another_kind_of_database() -> None:
    engine = sa.create_engine("postgresql+psycopg2://somebody@localhost/orders")
    store = EventStore("sqlite:///never-opened.db")
    with Session(engine) as session, pytest.raises(UsageError, match=r"sqlite.*postgresql"):
        using(store, session)
    awaited = create_async_engine("mysql+asyncmy://somebody@localhost/orders")
    with pytest.raises(UsageError, match=r"postgres.*mysql"):
        using_async(AsyncEventStore("postgresql://u@localhost/orders"), AsyncSession(awaited))


def test_something_that_is_no_session(engine: sa.Engine) -> None:
    store = EventStore("sqlite:///never-opened.db")
    with pytest.raises(UsageError, match="Engine"):
        using(store, engine)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    with pytest.raises(UsageError, match="using_async"):
        using(store, AsyncSession())  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    with pytest.raises(UsageError, match="there is using"):
        using_async(AsyncEventStore("sqlite:///never-opened.db"), Session())  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]


def test_sqlalchemy_is_an_extra() -> None:
    program = (
        "import sys; sys.modules['sqlalchemy'] = None\n"
        "from retold.errors import MissingExtra\n"
        "try: import retold.contrib.sqlalchemy\n"
        "except MissingExtra as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert "pip install 'retold[sqlalchemy]'" in done.stdout


# --- Alembic -------------------------------------------------------------------------------------


def test_alembic_leaves_the_stores_tables_alone(sqlite: str, engine: sa.Engine) -> None:
    include = include_object(EventStore(sqlite))
    found = sa.MetaData()
    found.reflect(engine)
    kept = [t.name for t in found.sorted_tables if include(t, t.name, "table", True, None)]
    assert kept == ["orders"]
    assert include(sa.Index("events"), "events", "index", True, None)


def test_alembic_knows_prefix_and_schema() -> None:
    include = include_object(EventStore("postgresql://u@localhost/db?schema=es&prefix=es_"))

    def keeps(name: str, schema: str | None) -> bool:
        return include(sa.Table(name, sa.MetaData(), schema=schema), name, "table", True, None)

    assert not keeps("es_events", "es")
    assert keeps("es_events", None)
    assert keeps("events", "es")
    # PostgreSQL has no table of this name, so one is the user's.
    assert keeps("es_subscriptions", "es")
