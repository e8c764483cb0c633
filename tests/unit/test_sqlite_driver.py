from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from retold.drivers.sqlite import SqliteConnection, listen, translate
from retold.errors import (
    InvalidURL,
    ReadOnlyStore,
    SchemaMissing,
    StatementTooLarge,
    StoreBusy,
    StoreCorrupt,
    StoreError,
    StoreFull,
    StoreUnavailable,
    TransactionRolledBack,
)
from retold.store.dialects import dialect_for
from retold.store.driver import Statement, UniqueViolation
from retold.store.url import parse_url

Connect = Callable[..., SqliteConnection]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "test.db"


@pytest.fixture
def connect(path: Path, request: pytest.FixtureRequest) -> Connect:
    def connecting(options: str = "") -> SqliteConnection:
        url = parse_url(f"sqlite:///{path}{options}")
        connection = SqliteConnection(url, dialect_for(url))
        request.addfinalizer(connection.close)
        return connection

    return connecting


def run(connection: SqliteConnection, *texts: str, params: tuple[object, ...] = ()) -> list[Any]:
    results = connection.execute([Statement(sql, params) for sql in texts])
    return list(results[-1].rows)


# --- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "level"),
    [("", 2), ("?synchronous=full", 2), ("?synchronous=NORMAL", 1), ("?synchronous=extra", 3)],
)
def test_commits_are_synced_unless_the_url_says_otherwise(
    connect: Connect, options: str, level: int
) -> None:
    connection = connect(options)
    assert run(connection, "PRAGMA synchronous") == [(level,)]
    assert run(connection, "PRAGMA journal_mode") == [("wal",)]


def test_other_values_of_synchronous_are_refused(connect: Connect) -> None:
    with pytest.raises(InvalidURL, match="synchronous is full, normal or extra"):
        connect("?synchronous=off")


def test_a_result_has_rows_and_a_count(connect: Connect) -> None:
    connection = connect()
    run(connection, "CREATE TABLE t (n INTEGER)")
    inserted, selected = connection.execute(
        [
            Statement("INSERT INTO t VALUES (?), (?)", (1, 2)),
            Statement("SELECT n FROM t ORDER BY n"),
        ]
    )
    assert (list(inserted.rows), inserted.rowcount) == ([], 2)
    assert selected.rows == [(1,), (2,)]


def test_a_batch_stops_at_the_first_error(connect: Connect) -> None:
    connection = connect()
    run(connection, "CREATE TABLE t (n INTEGER PRIMARY KEY)", "INSERT INTO t VALUES (1)")
    with pytest.raises(UniqueViolation):
        run(connection, "INSERT INTO t VALUES (1)", "INSERT INTO t VALUES (2)")
    assert run(connection, "SELECT n FROM t") == [(1,)]


# --- errors --------------------------------------------------------------------------------------


def test_a_missing_table_or_column_is_a_missing_schema(connect: Connect) -> None:
    connection = connect()
    run(connection, "CREATE TABLE t (n INTEGER)")
    for sql in ("SELECT * FROM absent", "SELECT absent FROM t"):
        with pytest.raises(SchemaMissing, match="no such"):
            run(connection, sql)


@pytest.mark.parametrize("key", ["INTEGER PRIMARY KEY", "TEXT PRIMARY KEY", "INTEGER UNIQUE"])
def test_a_key_used_twice_is_a_unique_violation(connect: Connect, key: str) -> None:
    connection = connect()
    run(connection, f"CREATE TABLE t (n {key})", "INSERT INTO t VALUES (1)")
    with pytest.raises(UniqueViolation):
        run(connection, "INSERT INTO t VALUES (1)")


def test_another_constraint_is_none(connect: Connect) -> None:
    connection = connect()
    run(connection, "CREATE TABLE t (n INTEGER NOT NULL)")
    with pytest.raises(StoreError, match="NOT NULL"):
        run(connection, "INSERT INTO t VALUES (NULL)")


def test_a_file_that_is_no_database_is_told(connect: Connect, path: Path) -> None:
    path.write_bytes(b"no database " * 1000)
    with pytest.raises(StoreCorrupt, match=r"test\.db"):
        connect()


def test_a_folder_that_does_not_exist_is_told(tmp_path: Path) -> None:
    url = parse_url(f"sqlite:///{tmp_path}/absent/test.db")
    with pytest.raises(StoreUnavailable, match=r"absent/test\.db"):
        SqliteConnection(url, dialect_for(url))


def test_a_file_that_cannot_grow_is_full_and_the_connection_of_further_use(
    connect: Connect,
) -> None:
    connection = connect()
    run(connection, "CREATE TABLE t (x)", "PRAGMA max_page_count = 4", "BEGIN IMMEDIATE")
    with pytest.raises(StoreFull):
        run(connection, "INSERT INTO t VALUES (?)", params=(b"x" * 100_000,))
    assert connection.reset()
    run(connection, "PRAGMA max_page_count = 1000", "INSERT INTO t VALUES (1)")
    assert run(connection, "SELECT count(*) FROM t") == [(1,)]


def test_a_read_only_connection_says_so(connect: Connect) -> None:
    connection = connect()
    run(connection, "CREATE TABLE t (n)", "PRAGMA query_only = on")
    with pytest.raises(ReadOnlyStore):
        run(connection, "INSERT INTO t VALUES (1)")


def test_a_value_too_large_is_told(connect: Connect) -> None:
    connection = connect()
    raw: sqlite3.Connection = connection._raw
    raw.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 1000)
    run(connection, "CREATE TABLE t (x)")
    with pytest.raises(StatementTooLarge):
        run(connection, "INSERT INTO t VALUES (?)", params=("x" * 2000,))


def test_a_lone_surrogate_is_told_without_the_text_it_stands_in(connect: Connect) -> None:
    with pytest.raises(StoreError, match="not valid Unicode") as caught:
        run(connect(), "SELECT ?", params=("secret\ud800",))
    assert "secret" not in str(caught.value)


def test_a_file_locked_for_too_long_is_busy(connect: Connect, path: Path) -> None:
    connection = connect("?timeout=0.05")
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreBusy, match=r"test\.db was locked for 0\.05 s"):
            run(connection, "CREATE TABLE t (n)")
        with pytest.raises(StoreBusy):
            connection.begin()
        other.execute("COMMIT")
    connection.begin()
    connection.commit()


def test_a_writer_waits_for_another_process_s_lock(connect: Connect, path: Path) -> None:
    connection = connect("?timeout=30")
    done = threading.Event()

    def write() -> None:
        run(connection, "CREATE TABLE t (n)")
        done.set()

    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        thread = threading.Thread(target=write)
        thread.start()
        assert not done.wait(0.05)
        other.execute("COMMIT")
        thread.join()
    assert done.is_set()


def test_a_transaction_of_this_process_left_open_is_told_as_such(connect: Connect) -> None:
    first, second = connect(), connect("?timeout=0.05")
    first.begin()
    with pytest.raises(StoreBusy, match="a transaction of this process was open"):
        second.begin()
    assert first.reset()
    second.begin()
    second.commit()


def test_a_read_that_the_file_has_overtaken_must_be_run_again(path: Path) -> None:
    with (
        closing(sqlite3.connect(path, isolation_level=None)) as one,
        closing(sqlite3.connect(path, isolation_level=None, timeout=0)) as other,
    ):
        one.execute("PRAGMA journal_mode = WAL")
        one.execute("CREATE TABLE t (n)")
        other.execute("BEGIN")
        other.execute("SELECT * FROM t").fetchall()
        one.execute("INSERT INTO t VALUES (1)")
        with pytest.raises(sqlite3.OperationalError) as caught:
            other.execute("INSERT INTO t VALUES (2)")
        assert isinstance(translate(caught.value), TransactionRolledBack)
        other.execute("ROLLBACK")


# --- transactions --------------------------------------------------------------------------------


def test_reset_rolls_back_and_lets_the_next_writer_in(connect: Connect) -> None:
    first, second = connect(), connect()
    run(first, "CREATE TABLE t (n)", "BEGIN IMMEDIATE", "INSERT INTO t VALUES (1)")
    assert first.reset()
    assert first.reset(), "with nothing open too"
    run(second, "BEGIN IMMEDIATE", "INSERT INTO t VALUES (2)", "COMMIT")
    assert run(first, "SELECT n FROM t") == [(2,)]


@pytest.mark.parametrize("end", ["close", "abandon"])
def test_the_end_of_a_connection_lets_the_next_writer_in(connect: Connect, end: str) -> None:
    first, second = connect(), connect("?timeout=5")
    first.begin()
    getattr(first, end)()
    second.begin()
    second.commit()


def test_many_threads_write_one_after_the_other(connect: Connect) -> None:
    run(connect(), "CREATE TABLE t (n INTEGER)", "INSERT INTO t VALUES (0)")

    def count() -> None:
        connection = connect()
        for _ in range(20):
            connection.begin()
            ((n,),) = run(connection, "SELECT n FROM t")
            run(connection, "UPDATE t SET n = ?", params=(n + 1,))
            connection.commit()

    threads = [threading.Thread(target=count) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert run(connect(), "SELECT n FROM t") == [(160,)]


# --- the doorbell --------------------------------------------------------------------------------


def test_a_commit_rings_and_a_rollback_does_not(connect: Connect, path: Path) -> None:
    rung, connection = threading.Event(), connect()
    listen(str(path), rung)
    run(connection, "BEGIN IMMEDIATE", "CREATE TABLE t (n)", "ROLLBACK")
    connection.begin()
    connection.reset()
    assert not rung.is_set()
    run(connection, "BEGIN IMMEDIATE", "CREATE TABLE t (n)")
    assert not rung.is_set()
    run(connection, "COMMIT")
    assert rung.is_set()


def test_a_bell_rings_for_all_listeners_of_its_file_by_whatever_path(
    connect: Connect, path: Path
) -> None:
    link = path.with_name("link.db")
    link.symlink_to(path)
    here, there, elsewhere = threading.Event(), threading.Event(), threading.Event()
    listen(str(path), here)
    listen(str(link), there)
    listen(str(path) + "-other", elsewhere)
    connection = connect()
    connection.begin()
    connection.commit()
    assert (here.is_set(), there.is_set(), elsewhere.is_set()) == (True, True, False)
