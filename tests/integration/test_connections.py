"""Connections to real servers: what they are set to, who shares them, and what replaces a dead one."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from retold import (
    Aggregate,
    AsyncEventStore,
    Event,
    EventStore,
    OutcomeUnknown,
    StoreUnavailable,
    TransactionRolledBack,
    VersionConflict,
    applies,
    every,
    metadata,
)
from retold.store.driver import Plan, Statement
from tests.conformance.blocking import open_store
from tests.conformance.raw import count, rows
from tests.rig import DATABASES, SERVERS, PgBouncer, Rig
from tests.rig.databases import query, with_parts

FreshDatabase = Callable[[str], str]

MYSQL = ("mysql8", "mariadb")
POSTGRES = ("postgres15", "postgres18")
DIRECT = (*MYSQL, *POSTGRES)
BLOCKING = [
    *((kind, "sync") for kind in SERVERS),
    *((kind, "mysqlclient") for kind in MYSQL),
]
BOTH = [*BLOCKING, ("mysql8", "async"), ("postgres18", "async"), ("pgbouncer", "async")]


class Added(Event, name="test_connections.Added"):
    n: int
    text: str = ""


class Tally(Aggregate, name="test_connections.Tally", snapshots=every(4)):
    n: int = 0
    text: str = ""

    def add(self, n: int, text: str = "") -> int:
        self.emit(Added(n, text))
        return self.n

    @applies
    def _added(self, event: Added) -> None:
        self.n += event.n
        self.text = event.text


Opening = Callable[..., EventStore]


@pytest.fixture
def opened() -> Iterator[Opening]:
    """Opens migrated stores, which are closed when the test ends."""
    stores: list[EventStore] = []

    def opening(url: str, flavour: str = "sync") -> EventStore:
        stores.append(open_store(url, flavour))
        stores[-1].migrate()
        return stores[-1]

    yield opening
    for store in stores:
        store.close()


def _plan(sql: str) -> Plan[Any]:
    (result,) = yield [Statement(sql)]
    return result.rows


def _ask(store: EventStore, sql: str) -> list[tuple[Any, ...]]:
    """What a connection of the store's answers."""
    return [tuple(row) for row in store.driver.run(_plan(sql))]


def _until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _connections(servers: Rig, url: str) -> list[object]:
    """The ids of the connections that use a database, as the server knows them."""
    kind, name = _kind(servers, url), url.rpartition("/")[2]
    if kind in MYSQL:
        asked = f"SELECT id FROM information_schema.processlist WHERE db = '{name}'"
    else:
        asked = f"SELECT pid FROM pg_stat_activity WHERE datname = '{name}'"
    return [id for (id,) in query(_admin(servers, kind), asked)]


def _kind(servers: Rig, url: str) -> str:
    port = url.rpartition(":")[2].partition("/")[0]
    return next(
        kind
        for kind in SERVERS
        if kind in servers._servers and servers[kind].url.rpartition(":")[2].startswith(port + "/")
    )


def _admin(servers: Rig, kind: str) -> str:
    return servers["postgres15" if kind == "pgbouncer" else kind].url


def _kill(servers: Rig, url: str) -> None:
    """End every connection to a database from the server's side."""
    kind = _kind(servers, url)
    for id in _connections(servers, url):
        with suppress(Exception):  # gone meanwhile
            ended = f"KILL {id}" if kind in MYSQL else f"SELECT pg_terminate_backend({id})"
            query(_admin(servers, kind), ended)
    _until(lambda: _connections(servers, url) == [])


@pytest.mark.parametrize(("kind", "flavour"), [pair for pair in BLOCKING if pair[0] in MYSQL])
def test_a_mysql_connection_is_read_committed_strict_utc_and_utf8mb4(
    kind: str, flavour: str, fresh_database: FreshDatabase, opened: Opening
) -> None:
    store = opened(fresh_database(kind), flavour)
    isolation = "@@transaction_isolation" if kind == "mysql8" else "@@tx_isolation"
    ((level, mode, zone, commits, wait, *charsets),) = _ask(
        store,
        f"SELECT {isolation}, @@sql_mode, @@time_zone, @@autocommit, @@innodb_lock_wait_timeout, "
        "@@character_set_client, @@character_set_connection, @@character_set_results",
    )
    assert (level, zone, commits, wait) == ("READ-COMMITTED", "+00:00", 1, 30)
    assert {"STRICT_ALL_TABLES", "ERROR_FOR_DIVISION_BY_ZERO", "NO_ENGINE_SUBSTITUTION"} == set(
        str(mode).split(",")
    )
    assert charsets == ["utf8mb4"] * 3


@pytest.mark.parametrize("kind", POSTGRES)
def test_a_postgresql_connection_is_read_committed_whatever_the_database_says(
    kind: str, fresh_database: FreshDatabase, opened: Opening, servers: Rig
) -> None:
    url = fresh_database(kind)
    name = url.rpartition("/")[2]
    for setting in ("default_transaction_isolation = serializable", "client_encoding = latin1"):
        query(servers[kind].url, f'ALTER DATABASE "{name}" SET {setting}')
    store = opened(url)
    for setting, value in (
        ("transaction_isolation", "read committed"),
        ("lock_timeout", "30s"),
        ("client_encoding", "UTF8"),
        ("application_name", "retold"),
    ):
        assert _ask(store, f"SHOW {setting}") == [(value,)]
    with store.driver.transaction() as connection:
        (shown,) = connection.execute([Statement("SHOW transaction_isolation")])
    assert [tuple(row) for row in shown.rows] == [("read committed",)]


@pytest.mark.parametrize("kind", ["pgbouncer"])
def test_a_transaction_through_pgbouncer_is_read_committed(
    kind: str, fresh_database: FreshDatabase, opened: Opening, servers: Rig
) -> None:
    url = fresh_database(kind)
    name = url.rpartition("/")[2]
    level = "default_transaction_isolation = serializable"
    query(_admin(servers, kind), f'ALTER DATABASE "{name}" SET {level}')
    with opened(url).driver.transaction() as connection:
        (shown,) = connection.execute([Statement("SHOW transaction_isolation")])
    assert [tuple(row) for row in shown.rows] == [("read committed",)]


@pytest.mark.parametrize(("kind", "flavour"), BOTH)
def test_every_character_comes_back(
    kind: str, flavour: str, fresh_database: FreshDatabase, opened: Opening
) -> None:
    text = "😀 𝄞 é ￿ \x01 \\ ' \" % %s {} \u2028"
    tallies = opened(fresh_database(kind), flavour).repository(Tally)
    with metadata(note=text):
        made = tallies.with_id(text).once(text).create(Tally.add, 1, text)
    for _ in range(4):  # and in a snapshot
        tallies.update(text, Tally.add, 1, text)
    assert tallies.find(text).state.text == text
    first = next(tallies.history(text))
    assert (first.event, first.metadata, first.trigger) == (Added(1, text), {"note": text}, text)
    assert list(tallies.entities()) == [made.id] == [text]
    assert list(tallies.find_many([text])) == [text]


@pytest.mark.parametrize(("kind", "flavour"), [*BOTH, ("sqlite", "sync"), ("sqlite", "async")])
def test_eight_threads_share_one_store(
    kind: str, flavour: str, fresh_database: FreshDatabase, opened: Opening
) -> None:
    store = opened(fresh_database(kind), flavour)
    tallies = store.repository(Tally)
    shared, failures = tallies.create(Tally.add, 0).id, list[Exception]()
    start = threading.Barrier(8)

    def work() -> None:
        start.wait()
        try:
            own = tallies.create(Tally.add, 0).id
            for n in range(1, 7):
                tallies.update(shared, Tally.add, 1)
                assert tallies.update(own, Tally.add, 1).result == n
                assert len(list(tallies.history(own))) == n + 1
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert tallies.find(shared).state.n == 48
    assert len(list(tallies.entities())) == 9


@pytest.mark.parametrize(("kind", "flavour"), BOTH)
def test_a_connection_that_the_server_ended_is_replaced_unnoticed(
    kind: str, flavour: str, fresh_database: FreshDatabase, opened: Opening, servers: Rig
) -> None:
    url = fresh_database(kind)
    store = opened(url, flavour)
    tallies = store.repository(Tally)
    id = tallies.create(Tally.add, 1).id
    reads: list[Callable[[], object]] = [
        lambda: tallies.find(id).state.n,
        lambda: tallies.exists(id),
        lambda: len(list(tallies.history(id))),
        lambda: len(list(tallies.entities())),
        lambda: len(tallies.find_many([id])),
    ]
    for read in reads:
        _kill(servers, url)
        assert read() == 1

    def transfer(tx: Any) -> int:
        changed: int = tx.repository(Tally).update(id, Tally.add, 1).result
        return changed

    writes: list[Callable[[], object]] = [
        lambda: tallies.update(id, Tally.add, 1).result,
        lambda: tallies.once("k").update(id, Tally.add, 1).result,
        lambda: store.transact(transfer),
    ]
    for n, write in enumerate(writes, 2):
        _kill(servers, url)
        assert write() == n
    _kill(servers, url)
    created = tallies.create(Tally.add, 1).id
    assert (count(url, "events", id), count(url, "events", created)) == (4, 1)


@pytest.mark.parametrize("kind", SERVERS)
def test_keys_are_pruned_on_a_new_connection_where_the_old_one_had_ended(
    kind: str, fresh_database: FreshDatabase, opened: Opening, servers: Rig
) -> None:
    url = fresh_database(kind)
    store = opened(url)
    store.repository(Tally).once("k").create(Tally.add, 1)
    _kill(servers, url)
    assert store.prune_handled() == 0


@pytest.mark.parametrize(("kind", "flavour"), BOTH)
def test_a_connection_that_ends_while_the_command_runs_costs_nothing(
    kind: str, flavour: str, fresh_database: FreshDatabase, opened: Opening, servers: Rig
) -> None:
    url = fresh_database(kind)
    tallies = opened(url, flavour).repository(Tally)
    id = tallies.create(Tally.add, 1).id
    runs = list[int]()

    def unlucky(tally: Tally) -> int:
        runs.append(tally.n)
        if len(runs) == 1:
            _kill(servers, url)
        return tally.add(1)

    assert tallies.update(id, unlucky).result == 2
    assert tallies.find(id).state.n == 2
    assert count(url, "events", id) == 2


@pytest.mark.parametrize(("kind", "flavour"), [pair for pair in BOTH if pair[0] in DIRECT])
def test_a_connection_that_was_idle_for_too_long_is_replaced_unnoticed(
    kind: str, flavour: str, fresh_database: FreshDatabase, opened: Opening, servers: Rig
) -> None:
    url = fresh_database(kind)
    opened(url)
    _until(lambda: _connections(servers, url) == [])
    store = open_store(url, flavour)
    with closing(store):
        tallies = store.repository(Tally)
        limit = "wait_timeout = 1" if kind in MYSQL else "idle_session_timeout = '100ms'"
        setting = _plan(f"SET {limit}")
        if flavour == "async":
            asynchronous: Any = store
            asynchronous._loop.call(asynchronous._driver.run(setting))
        else:
            store.driver.run(setting)
        _until(lambda: _connections(servers, url) == [])
        assert tallies.find("none", default=None) is None
        assert tallies.create(Tally.add, 1).result == 1


@pytest.mark.parametrize("kind", ["mysql8", "mariadb", "postgres18", "pgbouncer"])
def test_a_store_goes_on_when_its_server_was_restarted(
    kind: str, fresh_database: FreshDatabase, opened: Opening, servers: Rig
) -> None:
    url = fresh_database(kind)
    stores = [opened(url), opened(url, "async")]
    repositories = [store.repository(Tally) for store in stores]
    ids = [repository.create(Tally.add, 1).id for repository in repositories]
    servers[kind].restart()
    assert repositories[0].find(ids[0]).state.n == 1
    for repository, id in zip(repositories, ids, strict=True):
        assert repository.update(id, Tally.add, 1).result == 2
        assert count(url, "events", id) == 2


@pytest.mark.parametrize("kind", ["mariadb", "postgres18"])
def test_while_a_server_restarts_callers_are_told_to_try_again_and_nothing_is_lost(
    kind: str, fresh_database: FreshDatabase, opened: Opening, servers: Rig
) -> None:
    tallies = opened(fresh_database(kind)).repository(Tally)
    id = tallies.create(Tally.add, 0).id
    added, unknown, failures = list[int](), list[Exception](), list[Exception]()
    restarted = threading.Event()

    def work() -> None:
        while not restarted.is_set():
            try:
                tallies.update(id, Tally.add, 1)
                added.append(1)
            except StoreUnavailable:
                restarted.wait(0.005)
            except OutcomeUnknown as error:
                unknown.append(error)
            except Exception as error:
                failures.append(error)
                return

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    _until(lambda: len(added) > 10)
    servers[kind].restart()
    before = len(added)
    _until(lambda: len(added) > before + 10 or failures != [])
    restarted.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(added) <= tallies.find(id).state.n <= len(added) + len(unknown)


_FORKING = """
import asyncio, os, sys
from retold import Aggregate, AsyncEventStore, Event, EventStore, applies
from retold.store.driver import Statement

class Added(Event, name="forking.Added"):
    n: int

class Tally(Aggregate, name="forking.Tally"):
    n: int = 0
    def add(self, n: int) -> int:
        self.emit(Added(n))
        return self.n
    @applies
    def _added(self, event: Added) -> None:
        self.n += event.n

url, flavour, question = sys.argv[1:]
if flavour == "async":
    store = AsyncEventStore(url)
    loop = asyncio.new_event_loop()
    finish = loop.run_until_complete
else:
    store = EventStore(url)
    finish = lambda result: result

def connection():
    (result,) = yield [Statement(question)]
    return result.rows[0][0]

def fork(work):
    child = os.fork()
    if child == 0:
        work()
        sys.exit(0)  # as a program ends, not as os._exit would: everything is taken down
    assert os.waitpid(child, 0)[1] == 0

tallies = store.repository(Tally)
id = finish(tallies.create(Tally.add, 1)).id
mine = finish(store._driver.run(connection()))

def use():
    global loop, finish
    if flavour == "async":
        loop = asyncio.new_event_loop()
        finish = loop.run_until_complete
    assert finish(tallies.update(id, Tally.add, 1)).result == 2
    if url[:6] != "sqlite":
        assert finish(store._driver.run(connection())) != mine
    finish(store.close())

fork(lambda: None)
assert finish(store._driver.run(connection())) == mine, "an idle child ended the connection"
fork(use)
assert finish(store._driver.run(connection())) == mine, "a child ended the connection"
assert finish(tallies.update(id, Tally.add, 1)).result == 3
finish(store.close())
"""


@pytest.mark.parametrize(
    ("kind", "flavour"),
    [
        *(("sqlite", flavour) for flavour in ("sync", "async")),
        *((kind, flavour) for kind in ("mysql8", "postgres18") for flavour in ("sync", "async")),
        ("mysql8", "mysqlclient"),
        ("mariadb", "mysqlclient"),
    ],
)
def test_a_forked_child_and_its_parent_both_go_on(
    kind: str, flavour: str, fresh_database: FreshDatabase, opened: Opening
) -> None:
    url = fresh_database(kind)
    opened(url)
    if flavour == "mysqlclient":
        url = url.replace("mysql://", "mysql+mysqlclient://")
    question = {"s": "SELECT 1", "m": "SELECT CONNECTION_ID()", "p": "SELECT pg_backend_pid()"}
    subprocess.run(
        [sys.executable, "-W", "error", "-c", _FORKING, url, flavour, question[url[0]]],
        check=True,
        timeout=50,
    )


class _SmallPgBouncer(PgBouncer):
    """One with a single connection to the server for everybody."""

    def _prepare(self, folder: Path) -> None:
        super()._prepare(folder)
        settings = folder / "pgbouncer.ini"
        text = settings.read_text()
        assert "default_pool_size = 20\n" in text
        settings.write_text(text.replace("default_pool_size = 20\n", "default_pool_size = 1\n"))


@pytest.mark.parametrize("kind", ["pgbouncer"])
def test_stores_share_a_single_connection_of_pgbouncers(
    kind: str, fresh_database: FreshDatabase, opened: Opening, servers: Rig
) -> None:
    bouncer = _SmallPgBouncer(servers["postgres15"])
    bouncer.start()
    try:
        url = with_parts(fresh_database("postgres15"), port=bouncer.port)
        stores = [opened(url, flavour) for flavour in ("sync", "async", "sync")]
        ids = [store.repository(Tally).create(Tally.add, 0).id for store in stores]
        failures = list[Exception]()

        def work(store: EventStore) -> None:
            tallies = store.repository(Tally)
            try:
                for n in range(10):
                    for id in ids:
                        tallies.update(id, Tally.add, 1)
                        tallies.once(f"{store!r} {n}").update(id, Tally.add, 0)
                    assert len(list(tallies.entities())) == 3
                    store.transact(_add_to_all, ids)
            except Exception as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(store,)) for store in stores]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        assert [stores[0].repository(Tally).find(id).state.n for id in ids] == [60] * 3
        for store in stores:
            store.close()
    finally:
        bouncer.stop()


def _add_to_all(tx: Any, ids: list[str]) -> None:
    for id in ids:
        tx.repository(Tally).update(id, Tally.add, 1)


@pytest.mark.parametrize("kind", DATABASES)
def test_an_async_store_serves_one_event_loop_after_the_other(
    kind: str, fresh_database: FreshDatabase, opened: Opening
) -> None:
    url = fresh_database(kind)
    opened(url)
    store = AsyncEventStore(url)
    tallies = store.repository(Tally)

    async def use() -> int:
        made = await tallies.create(Tally.add, 1)
        async with store.transaction() as tx:
            await tx.repository(Tally).update(made.id, Tally.add, 1)
        await asyncio.gather(*(tallies.find(made.id) for _ in range(4)))
        return len([id async for id in tallies.entities()])

    assert [asyncio.run(use()) for _ in range(3)] == [1, 2, 3]
    asyncio.run(store.close())


def _transactions(servers: Rig, kind: str, url: str) -> list[object]:
    """The transactions that are open in a database."""
    if kind == "sqlite":
        rows(url, "BEGIN EXCLUSIVE", "ROLLBACK")
        return []
    name = url.rpartition("/")[2]
    if kind in MYSQL:
        asked = (
            "SELECT trx_id FROM information_schema.innodb_trx JOIN information_schema.processlist "
            f"ON id = trx_mysql_thread_id WHERE db = '{name}'"
        )
    else:
        asked = (
            f"SELECT pid FROM pg_stat_activity WHERE datname = '{name}' AND state <> 'idle' "
            "AND xact_start IS NOT NULL"
        )
    return [id for (id,) in query(_admin(servers, kind), asked)]


@pytest.mark.parametrize("kind", DATABASES)
def test_a_cancelled_update_leaves_no_transaction_open(
    kind: str, fresh_database: FreshDatabase, opened: Opening, servers: Rig
) -> None:
    url = fresh_database(kind)
    opened(url)

    async def cancel_often() -> None:
        store = AsyncEventStore(url, concurrency=3)
        tallies = store.repository(Tally)
        id = (await tallies.create(Tally.add, 0)).id

        async def in_transaction() -> None:
            async with store.transaction() as tx:
                await tx.repository(Tally).update(id, Tally.add, 1)

        cancelled = 0
        for n in range(60):
            work = tallies.update(id, Tally.add, 1) if n % 2 else in_transaction()
            task = asyncio.ensure_future(work)
            await asyncio.sleep(n * 0.0001)
            task.cancel()
            try:
                await task
            except asyncio.CancelledError:
                cancelled += 1
            except (VersionConflict, TransactionRolledBack):
                pass  # a cancelled update goes on in its thread, and was faster
        assert cancelled > 0
        await asyncio.to_thread(_until, lambda: _transactions(servers, kind, url) == [])
        before = (await tallies.find(id)).state.n
        assert (await tallies.update(id, Tally.add, 1)).result == before + 1
        assert before + 2 == len([recorded async for recorded in tallies.history(id)])
        await store.close()

    asyncio.run(cancel_often())
