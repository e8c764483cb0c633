"""What goes wrong between a program and its database: each has a class and words of its own, and none
shows a password."""

from __future__ import annotations

import logging
import os
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from retold import Aggregate, Event, EventStore, StoreUnavailable, applies
from retold.errors import (
    AccessDenied,
    ConnectionLost,
    DatabaseMissing,
    InvalidURL,
    ReadOnlyStore,
    RetoldError,
    SchemaMissing,
    StatementTooLarge,
    StoreBusy,
    StoreCorrupt,
    StoreFull,
)
from retold.store.driver import Plan, Statement
from tests.conformance.blocking import open_store
from tests.conformance.raw import count, path_of, rows
from tests.rig import SERVERS, NotPrivate, Rig
from tests.rig.databases import PASSWORD, query, with_parts
from tests.rig.process import free_port
from tests.rig.servers import Private

FreshDatabase = Callable[[str], str]

MYSQL = ("mysql8", "mariadb")
POSTGRES = ("postgres15", "postgres18")
FLAVOURS = [
    *((kind, "sync") for kind in SERVERS),
    ("mysql8", "async"),
    ("postgres18", "async"),
    ("mariadb", "mysqlclient"),
]
on_servers = pytest.mark.parametrize(("kind", "flavour"), FLAVOURS)

SECRET = "s3cr3t/@:"
_LOGIN = "ann:s3cr3t"  # no test's own line in a traceback shows it


class Written(Event, name="test_database_errors.Written"):
    text: str


class Page(Aggregate, name="test_database_errors.Page"):
    lines: int = 0

    def write(self, text: str, times: int = 1) -> int:
        for _ in range(times):
            self.emit(Written(text))
        return self.lines

    @applies
    def _written(self, event: Written) -> None:
        self.lines += 1


Opening = Callable[..., EventStore]


@pytest.fixture
def opened() -> Iterator[Opening]:
    """Opens stores, which are closed when the test ends."""
    stores: list[EventStore] = []

    def opening(url: str, flavour: str = "sync") -> EventStore:
        stores.append(open_store(url, flavour))
        return stores[-1]

    yield opening
    for store in stores:
        store.close()


@pytest.fixture(autouse=True)
def logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Nothing that is logged shows a password, however much is."""
    with caplog.at_level(logging.DEBUG):
        yield
    assert not _shows_a_password(caplog.text)


def _shows_a_password(text: str) -> bool:
    return any(secret in text for secret in (SECRET, PASSWORD, "s3cr3t", "p@ss", "p%40ss"))


@contextmanager
def refused(kind: type[RetoldError], *told: str) -> Generator[None]:
    """The block raises exactly this error, which says what to do and shows no password."""
    with pytest.raises(RetoldError) as caught:
        yield
    error = caught.value
    assert type(error) is kind, error
    for part in told:
        assert part in str(error)
    chain = "".join(traceback.format_exception(error))
    for text in (str(error), repr(error), repr(error.args), repr(vars(error)), chain):
        assert not _shows_a_password(text)


def _tell(store: EventStore, flavour: str, *statements: str) -> None:
    """Run statements on the one connection that a store has used so far."""

    def plan() -> Plan[None]:
        yield [Statement(sql) for sql in statements]

    if flavour == "async":
        asynchronous: Any = store
        asynchronous._loop.call(asynchronous._async._driver.run(plan()))
    else:
        store.driver.run(plan())


# --- connecting ----------------------------------------------------------------------------------


@on_servers
def test_a_server_that_is_not_there(
    kind: str, flavour: str, fresh_database: FreshDatabase, opened: Opening
) -> None:
    url = with_parts(fresh_database(kind), port=free_port())
    with refused(StoreUnavailable, "cannot be reached", "URL is right"):
        opened(url, flavour).repository(Page).exists("x")
    with refused(StoreUnavailable):
        opened(url, flavour).migrate()


@pytest.mark.parametrize("scheme", ["mysql", "mysql+mysqlclient", "postgresql"])
def test_a_host_that_does_not_exist(scheme: str, opened: Opening) -> None:
    with refused(StoreUnavailable, "URL is right"):
        opened(f"{scheme}://{_LOGIN}@nowhere.invalid/bank").migrate()


@pytest.mark.parametrize(
    ("scheme", "option", "kind"),
    [
        ("mysql", "read_timeout=1", ConnectionLost),
        ("postgresql", "connect_timeout=2", StoreUnavailable),
    ],
)
def test_a_server_that_does_not_answer(
    scheme: str, option: str, kind: type[RetoldError], opened: Opening
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"{scheme}://{_LOGIN}@127.0.0.1:{silent.getsockname()[1]}/bank?{option}"
        with refused(kind):
            opened(url).migrate()


@on_servers
def test_a_wrong_password(
    kind: str, flavour: str, fresh_database: FreshDatabase, opened: Opening
) -> None:
    url = with_parts(fresh_database(kind), user="retold", password=SECRET)
    with refused(AccessDenied, "Check user, password and grants"):
        opened(url, flavour).repository(Page).exists("x")


@pytest.mark.parametrize("kind", SERVERS)
def test_an_unknown_user(kind: str, fresh_database: FreshDatabase, opened: Opening) -> None:
    url = with_parts(fresh_database(kind), user="nobody_at_all", password=SECRET)
    with refused(AccessDenied):
        opened(url).repository(Page).exists("x")


@on_servers
def test_a_database_that_does_not_exist(
    kind: str, flavour: str, servers: Rig, opened: Opening
) -> None:
    # As the administrator: to others MySQL does not tell which databases there are.
    url = with_parts(servers[kind].url, database="there_is_none")
    with refused(DatabaseMissing, "there_is_none", "Create it, or correct the URL"):
        opened(url, flavour).repository(Page).exists("x")


@pytest.mark.parametrize("kind", POSTGRES)
def test_a_server_with_no_connection_left_for_the_database(
    kind: str, fresh_database: FreshDatabase, opened: Opening, servers: Rig
) -> None:
    url = fresh_database(kind)
    name = url.rpartition("/")[2]
    query(servers[kind].url, f'ALTER DATABASE "{name}" CONNECTION LIMIT 0')
    with refused(StoreUnavailable, "too many connections for database"):
        opened(url).migrate()
    query(servers[kind].url, f'REVOKE CONNECT ON DATABASE "{name}" FROM PUBLIC, retold')
    with refused(AccessDenied, "permission denied for database"):
        opened(url).migrate()


_BLOCKED = """
import sys
for package in sys.argv[2].split(","):
    sys.modules[package] = None
from retold import EventStore, AsyncEventStore, RetoldError
try:
    for store in (EventStore, AsyncEventStore):
        store(sys.argv[1])
    EventStore(sys.argv[1]).migrate()
except RetoldError as error:
    print(type(error).__name__, error)
"""


def _without(packages: list[str], url: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", _BLOCKED, url, ",".join(packages)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return done.stdout


@pytest.mark.parametrize(
    ("url", "package", "extra"),
    [
        ("postgresql://ann:s3cr3t@localhost/bank", "psycopg", "postgres"),
        ("mysql://ann:s3cr3t@localhost/bank", "pymysql", "mysql"),
        ("mysql+mysqlclient://ann:s3cr3t@localhost/bank", "MySQLdb", "mysqlclient"),
    ],
)
def test_a_client_that_is_not_installed(url: str, package: str, extra: str) -> None:
    printed = _without([package], url)
    assert printed.startswith("MissingExtra")
    assert f"Run: pip install 'retold[{extra}]'" in printed
    assert "s3cr3t" not in printed


def test_sqlite_needs_nothing_that_is_not_installed(tmp_path: Path) -> None:
    packages = ["psycopg", "psycopg_pool", "pymysql", "MySQLdb", "cryptography", "sqlalchemy"]
    assert _without(packages, f"sqlite:///{tmp_path}/bank.db") == ""


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://ann:s3cr3t@127.0.0.1:1/bank?no_such_option=1",
        "mysql://ann:s3cr3t@127.0.0.1:1/bank?no_such_option=1",
        "mysql://ann:s3cr3t@127.0.0.1:none/bank",
        "sqlite://ann:s3cr3t@host/bank.db",
        "sqlite:///:memory:",
    ],
)
def test_a_url_that_says_nothing_useful(url: str, opened: Opening) -> None:
    with refused(InvalidURL, "Expected sqlite:///path"):
        opened(url).migrate()


# --- tables --------------------------------------------------------------------------------------


@on_servers
def test_a_database_without_tables(
    kind: str, flavour: str, fresh_database: FreshDatabase, opened: Opening
) -> None:
    pages = opened(fresh_database(kind), flavour).repository(Page)
    with refused(SchemaMissing, "Run: retold migrate --database URL"):
        pages.create(Page.write, "x")
    with refused(SchemaMissing):
        pages.once("k").create(Page.write, "x")


@pytest.mark.parametrize("kind", [*POSTGRES, "pgbouncer"])
def test_a_schema_that_does_not_exist(
    kind: str, fresh_database: FreshDatabase, opened: Opening
) -> None:
    url = fresh_database(kind) + "?schema=there_is_none"
    with refused(SchemaMissing, "there_is_none", "Run: retold migrate"):
        opened(url).repository(Page).create(Page.write, "x")


@pytest.mark.parametrize("kind", ["sqlite", *SERVERS])
def test_tables_that_are_behind(kind: str, fresh_database: FreshDatabase, opened: Opening) -> None:
    url = fresh_database(kind)
    store = opened(url)
    store.migrate()
    store.close()
    rows(url, "ALTER TABLE handled DROP COLUMN update_id")
    with refused(SchemaMissing, "missing or behind", "Run: retold migrate"):
        store.repository(Page).once("k").create(Page.write, "x")


# --- writing -------------------------------------------------------------------------------------


def _nothing_was_written(store: EventStore, url: str) -> None:
    """And the store still works."""
    pages = store.repository(Page)
    assert list(pages.entities()) == []
    assert rows(url, "SELECT count(*) FROM events") == [(0,)]
    assert pages.with_id("later").create(Page.write, "x").result == 1
    assert count(url, "events", "later") == 1


@pytest.mark.parametrize(("kind", "flavour"), [pair for pair in FLAVOURS if pair[0] in POSTGRES])
def test_a_read_only_postgresql(
    kind: str, flavour: str, fresh_database: FreshDatabase, opened: Opening
) -> None:
    url = fresh_database(kind)
    opened(url).migrate()
    only = opened(url + "?options=-c%20default_transaction_read_only%3Don", flavour)
    with refused(ReadOnlyStore, "Connect to the primary"):
        only.repository(Page).create(Page.write, "x")
    with refused(ReadOnlyStore):
        only.repository(Page).once("k").create(Page.write, "x")
    assert not only.repository(Page).exists("x")
    _nothing_was_written(opened(url), url)


@pytest.mark.parametrize(("kind", "flavour"), [pair for pair in FLAVOURS if pair[0] in MYSQL])
def test_a_read_only_mysql(
    kind: str, flavour: str, fresh_database: FreshDatabase, opened: Opening, servers: Rig
) -> None:
    if not isinstance(servers[kind], Private):
        raise NotPrivate("a global setting of somebody else's server")
    url = fresh_database(kind)
    store = opened(url, flavour)
    store.migrate()
    query(servers[kind].url, "SET GLOBAL read_only = 1")
    try:
        with refused(ReadOnlyStore, "Connect to the primary"):
            store.repository(Page).create(Page.write, "x")
        assert not store.repository(Page).exists("x")
    finally:
        query(servers[kind].url, "SET GLOBAL read_only = 0")
    _nothing_was_written(store, url)


@contextmanager
def _as_somebody_who_may_not_write(folder: Path) -> Generator[None]:
    """The files of a folder are read-only, also for root."""
    modes = {path: path.stat().st_mode for path in (folder, *folder.iterdir())}
    for path in modes:
        path.chmod(0o555 if path.is_dir() else 0o444)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        for path, mode in modes.items():
            path.chmod(mode)


@pytest.mark.parametrize("flavour", ["sync", "async"])
def test_a_read_only_sqlite_file(flavour: str, opened: Opening) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        url = f"sqlite:///{folder / 'bank.db'}"
        writer = opened(url)
        writer.repository(Page).with_id("first").create(Page.write, "x")
        with _as_somebody_who_may_not_write(folder):
            reader = opened(url, flavour)
            pages = reader.repository(Page)
            assert pages.find("first").state.lines == 1
            with refused(ReadOnlyStore, "make the file and its folder writable"):
                pages.create(Page.write, "x")
            with refused(ReadOnlyStore):
                pages.update("first", Page.write, "x")
            reader.close()
        assert writer.repository(Page).update("first", Page.write, "x").result == 2
        writer.close()


@on_servers
def test_a_lock_held_for_too_long(
    kind: str, flavour: str, fresh_database: FreshDatabase, opened: Opening, servers: Rig
) -> None:
    url = fresh_database(kind)
    holder = opened(url)
    holder.migrate()
    if kind == "pgbouncer":
        name = url.rpartition("/")[2]
        query(servers["postgres15"].url, f"ALTER DATABASE \"{name}\" SET lock_timeout = '300ms'")
    store = opened(url, flavour)
    pages = store.repository(Page)
    pages.with_id("p").create(Page.write, "x")
    if kind in MYSQL:
        _tell(store, flavour, "SET innodb_lock_wait_timeout = 1")
    elif kind != "pgbouncer":
        _tell(store, flavour, "SET lock_timeout = '300ms'")
    with holder.transaction() as tx:
        tx.repository(Page).update("p", Page.write, "holder's")
        with refused(StoreBusy, "Look for a long transaction"):
            pages.update("p", Page.write, "late")
    assert pages.update("p", Page.write, "x").result == 3


@pytest.mark.parametrize("flavour", ["sync", "async"])
def test_a_lock_on_a_sqlite_file_held_for_too_long(
    flavour: str, fresh_database: FreshDatabase, opened: Opening
) -> None:
    url = fresh_database("sqlite")
    store = opened(url + "?timeout=0.2", flavour)
    pages = store.repository(Page)
    pages.with_id("p").create(Page.write, "x")
    with closing(sqlite3.connect(path_of(url), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with refused(StoreBusy, "locked for 0.2 s", "Look for a long transaction"):
            pages.update("p", Page.write, "late")
        assert pages.find("p").state.lines == 1
    holding, done = threading.Event(), threading.Event()

    def hold() -> None:
        with opened(url).transaction():
            holding.set()
            done.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    holding.wait(30)
    with refused(StoreBusy, "of this process"):
        pages.update("p", Page.write, "late")
    done.set()
    thread.join()
    assert pages.update("p", Page.write, "x").result == 2


@pytest.mark.parametrize("flavour", ["sync", "async"])
def test_a_sqlite_file_that_may_not_grow(
    flavour: str, fresh_database: FreshDatabase, opened: Opening
) -> None:
    url = fresh_database("sqlite")
    store = opened(url, flavour)
    store.repository(Page).exists("x")
    _tell(store, flavour, "PRAGMA max_page_count = 40")
    with refused(StoreFull, "Nothing was written", "Free space"):
        store.repository(Page).once("k").create(Page.write, "x" * 1000, 400)
    assert rows(url, "SELECT count(*) FROM handled") == [(0,)]
    _nothing_was_written(store, url)


@contextmanager
def _tiny_disk(folder: Path) -> Generator[None]:
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)],
        stderr=subprocess.DEVNULL,
        check=False,
    )
    if made.returncode:
        pytest.skip("this user may not mount a small disk")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_full(tmp_path: Path) -> None:
    with _tiny_disk(tmp_path):
        url = f"sqlite:///{tmp_path / 'bank.db'}"
        with EventStore(url) as store:
            pages = store.repository(Page)
            pages.with_id("p").create(Page.write, "x")
            filler = tmp_path / "filler"
            filler.write_bytes(b"x" * 300_000)
            with refused(StoreFull, "Nothing was written", "Free space"):
                pages.update("p", Page.write, "x" * 10_000, 100)
            assert pages.find("p").state.lines == 1
            with refused(StoreFull), store.transaction() as tx:
                tx.repository(Page).update("p", Page.write, "x")
                tx.repository(Page).create(Page.write, "x" * 10_000, 100)
            assert count(url, "events", "p") == 1
            filler.unlink()
            assert pages.update("p", Page.write, "x" * 10_000, 10).result == 11
            assert rows(url, "PRAGMA integrity_check") == [("ok",)]


@pytest.mark.parametrize(("kind", "flavour"), [pair for pair in FLAVOURS if pair[0] in MYSQL])
def test_a_statement_larger_than_the_server_accepts(
    kind: str, flavour: str, fresh_database: FreshDatabase, opened: Opening, servers: Rig
) -> None:
    if not isinstance(servers[kind], Private):
        raise NotPrivate("a global setting of somebody else's server")
    url, admin = fresh_database(kind), servers[kind].url
    ((limit,),) = query(admin, "SELECT @@GLOBAL.max_allowed_packet")
    query(admin, f"SET GLOBAL max_allowed_packet = {1 << 20}")
    try:
        store = opened(url, flavour)
        store.migrate()
        pages = store.repository(Page)
        with refused(StatementTooLarge, "max_allowed_packet", "Nothing was written"):
            pages.create(Page.write, "x" * 300_000, 4)
        with refused(StatementTooLarge):
            pages.once("k").create(Page.write, "é" * 150_000, 4)
        assert rows(url, "SELECT count(*) FROM handled") == [(0,)]
        _nothing_was_written(store, url)
        assert pages.create(Page.write, "x" * 300_000, 3).result == 3
    finally:
        query(admin, f"SET GLOBAL max_allowed_packet = {limit}")


# --- a SQLite file that is none ------------------------------------------------------------------


def test_a_file_that_is_no_database(tmp_path: Path, opened: Opening) -> None:
    path = tmp_path / "bank.db"
    path.write_bytes(b"Dear diary, " * 100)
    with refused(StoreCorrupt, "bank.db", "Restore it from a backup"):
        opened(f"sqlite:///{path}").repository(Page).exists("x")
    assert path.read_bytes() == b"Dear diary, " * 100


def test_a_damaged_file(fresh_database: FreshDatabase, opened: Opening) -> None:
    url = fresh_database("sqlite")
    with EventStore(url) as store:
        store.repository(Page).with_id("p").create(Page.write, "x" * 500, 200)
    path = Path(path_of(url))
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xa5" * (len(content) - 4096)
    path.write_bytes(content)
    with refused(StoreCorrupt, "Restore it from a backup"):
        opened(url).repository(Page).find("p")


def test_a_folder_that_is_missing_or_in_the_place_of_the_file(
    tmp_path: Path, opened: Opening
) -> None:
    for path in (tmp_path / "no" / "such" / "bank.db", tmp_path):
        with refused(StoreUnavailable, str(path), "URL is right"):
            opened(f"sqlite:///{path}").repository(Page).exists("x")
