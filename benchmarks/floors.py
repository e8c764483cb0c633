"""The floors: the best plain code for one client library, written by hand for this one aggregate.

They read and write retold's own tables, with a compare-and-set, one connection a thread, prepared
statements where the client has them, and msgspec for the events. What they leave out is what a
library adds: another aggregate, another database, retries, checks of what is written, and errors
that say what to do.
"""

from __future__ import annotations

import itertools
import sqlite3
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, cast
from urllib.parse import unquote, urlsplit

import msgspec
import psycopg

from benchmarks.accounts import OPENING, Worker

TYPE = "bench.Account"
OPENED = "bench.Opened"
DEBITED = "bench.Debited"
_EVENTS = "event_id, event_type, event_data, entity_type, entity_id, published"
_LOAD = """
    SELECT event_id, event_type, event_data FROM events
    WHERE entity_type = %s AND entity_id = %s ORDER BY event_id
"""
_CREATE = "INSERT INTO entities (entity_type, entity_id, entity_version) VALUES (%s, %s, %s)"
_UPDATE = """
    UPDATE entities SET entity_version = %s
    WHERE entity_type = %s AND entity_id = %s AND entity_version = %s
"""
_INSERT = f"INSERT INTO events ({_EVENTS}) VALUES (%s, %s, %s, %s, %s, 0)"

Row = Sequence[Any]


class Opened(msgspec.Struct, frozen=True):
    owner: str
    amount: int


class Debited(msgspec.Struct, frozen=True):
    transfer: str
    amount: int


_encode = msgspec.json.Encoder().encode
_decode_opened = msgspec.json.Decoder(Opened).decode
_decode_debited = msgspec.json.Decoder(Debited).decode
_numbers = itertools.count(1)


def new_id() -> str:
    return f"{time.time_ns() // 1_000_000:016x}-{next(_numbers):016x}"


class Conflict(Exception):
    """Somebody else changed the entity meanwhile."""


class Connection(ABC):
    """One thread's connection."""

    @abstractmethod
    def select(self, id: str) -> Sequence[Row]: ...

    @abstractmethod
    def insert(self, id: str, version: str, data: str) -> None: ...

    @abstractmethod
    def append(self, id: str, expected: str, version: str, data: str) -> None: ...

    @abstractmethod
    def close(self) -> None: ...

    def load(self, id: str) -> tuple[str, int, int]:
        rows = self.select(id)
        if not rows:
            raise LookupError(id)
        balance = transfers = 0
        for _, name, data in rows:
            if name == DEBITED:
                balance -= _decode_debited(data).amount
                transfers += 1
            elif name == OPENED:
                balance = _decode_opened(data).amount
            else:
                raise ValueError(name)
        return rows[-1][0], balance, transfers

    def create(self, _: str) -> None:
        version = new_id()
        self.insert(new_id(), version, _encode(Opened("ann", OPENING)).decode())

    def update(self, id: str) -> None:
        version, balance, _ = self.load(id)
        if balance < 10:
            raise ValueError("not enough money")
        self.append(id, version, new_id(), _encode(Debited("transfer-1", 10)).decode())


class Floor(ABC):
    """A floor's tables: filled once, reset between measurements."""

    name: str

    def __init__(self) -> None:
        self._connections: list[Connection] = []
        self._mark = ""

    def worker(self) -> Worker:
        connection = self.connect()
        self._connections.append(connection)
        return Worker(connection.create, connection.update, connection.load)

    @abstractmethod
    def connect(self) -> Connection: ...

    @abstractmethod
    def settings(self) -> dict[str, str]:
        """What decides whether a commit is durable, as the server tells it."""

    @abstractmethod
    def execute(self, sql: str, rows: Sequence[Row] = ()) -> Sequence[Row]:
        """Run a statement, once for each row where there are any, and commit."""

    def fill(self, histories: Sequence[tuple[str, int]]) -> None:
        """Make accounts of so many events, a day ago."""
        yesterday = time.time_ns() // 1_000_000 - 86_400_000
        opened = _encode(Opened("ann", OPENING)).decode()
        debited = _encode(Debited("transfer-1", 10)).decode()
        events: list[Row] = []
        entities: list[Row] = []
        for id, length in histories:
            version = ""
            for n in range(length):
                version = f"{yesterday:016x}-{next(_numbers):016x}"
                name, data = (DEBITED, debited) if n else (OPENED, opened)
                events.append((version, name, data, TYPE, id))
            entities.append((TYPE, id, version))
        self.execute(_INSERT, events)
        self.execute(_CREATE, entities)
        self.execute("CREATE TABLE made_entities AS SELECT * FROM entities")
        self._mark = f"{yesterday + 1:016x}"
        self.tidy()

    def reset(self) -> None:
        self.execute(f"DELETE FROM events WHERE event_id > '{self._mark}'")
        self.execute("DELETE FROM entities")
        self.execute("INSERT INTO entities SELECT * FROM made_entities")
        self.tidy()

    def tidy(self) -> None:  # noqa: B027
        """What the database needs after many deletes."""

    def close(self) -> None:
        for connection in self._connections:
            connection.close()


# --- SQLite ----------------------------------------------------------------------------------------


def _question_marks(sql: str) -> str:
    return sql.replace("%s", "?")


class _Sqlite(Connection):
    _load = _question_marks(_LOAD)
    _create = _question_marks(_CREATE)
    _update = _question_marks(_UPDATE)
    _insert = _question_marks(_INSERT)

    def __init__(self, path: str, writing: threading.Lock) -> None:
        self.raw = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self.raw.execute("PRAGMA synchronous = FULL")
        self._writing = writing

    def select(self, id: str) -> Sequence[Row]:
        return self.raw.execute(self._load, (TYPE, id)).fetchall()

    def insert(self, id: str, version: str, data: str) -> None:
        execute = self.raw.execute
        with self._writing:
            execute("BEGIN IMMEDIATE")
            execute(self._create, (TYPE, id, version))
            execute(self._insert, (version, OPENED, data, TYPE, id))
            execute("COMMIT")

    def append(self, id: str, expected: str, version: str, data: str) -> None:
        execute = self.raw.execute
        # One lock for all threads: SQLite's own waiting would make them starve one another.
        with self._writing:
            execute("BEGIN IMMEDIATE")
            if execute(self._update, (version, TYPE, id, expected)).rowcount != 1:
                execute("ROLLBACK")
                raise Conflict(id)
            execute(self._insert, (version, DEBITED, data, TYPE, id))
            execute("COMMIT")

    def close(self) -> None:
        self.raw.close()


class SqliteFloor(Floor):
    name = "sqlite3"

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path
        self._writing = threading.Lock()
        self._own = _Sqlite(path, self._writing).raw

    def connect(self) -> _Sqlite:
        return _Sqlite(self._path, self._writing)

    def settings(self) -> dict[str, str]:
        level = int(self._own.execute("PRAGMA synchronous").fetchone()[0])
        return {
            "version": sqlite3.sqlite_version,
            "journal_mode": str(self._own.execute("PRAGMA journal_mode").fetchone()[0]),
            "synchronous": ("OFF", "NORMAL", "FULL", "EXTRA")[level],
        }

    def execute(self, sql: str, rows: Sequence[Row] = ()) -> Sequence[Row]:
        self._own.execute("BEGIN IMMEDIATE")
        if rows:
            self._own.executemany(_question_marks(sql), rows)
            found: Sequence[Row] = ()
        else:
            found = self._own.execute(sql).fetchall()
        self._own.execute("COMMIT")
        return found

    def close(self) -> None:
        super().close()
        self._own.close()


# --- PostgreSQL ------------------------------------------------------------------------------------


class _Postgres(Connection):
    # A statement is its own transaction: one trip, one commit.
    _create = f"""
        WITH e AS (INSERT INTO entities (entity_type, entity_id, entity_version)
                   VALUES (%s, %s, %s) ON CONFLICT DO NOTHING RETURNING 1)
        INSERT INTO events ({_EVENTS}) SELECT %s, %s, %s, %s, %s, 0 FROM e
    """
    _append = f"""
        WITH u AS ({_UPDATE} RETURNING 1)
        INSERT INTO events ({_EVENTS}) SELECT %s, %s, %s, %s, %s, 0 FROM u
    """

    def __init__(self, url: str) -> None:
        self._raw = psycopg.connect(url, autocommit=True)
        self._raw.prepare_threshold = 0
        cursor = self._raw.cursor()
        # The texts are this module's own.
        self._execute = cast("Callable[..., psycopg.Cursor[Any]]", cursor.execute)

    def select(self, id: str) -> Sequence[Row]:
        return self._execute(_LOAD, (TYPE, id)).fetchall()

    def insert(self, id: str, version: str, data: str) -> None:
        row = (TYPE, id, version, version, OPENED, data, TYPE, id)
        if self._execute(self._create, row).rowcount != 1:
            raise Conflict(id)

    def append(self, id: str, expected: str, version: str, data: str) -> None:
        row = (version, TYPE, id, expected, version, DEBITED, data, TYPE, id)
        if self._execute(self._append, row).rowcount != 1:
            raise Conflict(id)

    def close(self) -> None:
        self._raw.close()


class PostgresFloor(Floor):
    name = "psycopg"

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = url
        self._own = psycopg.connect(url, autocommit=True)

    def connect(self) -> _Postgres:
        return _Postgres(self._url)

    def settings(self) -> dict[str, str]:
        names = ("server_version", "fsync", "synchronous_commit", "full_page_writes", "wal_level")
        return {name: str(self.execute(f"SHOW {name}")[0][0]) for name in names}

    def execute(self, sql: str, rows: Sequence[Row] = ()) -> Sequence[Row]:
        with self._own.cursor() as cursor:
            if rows:
                with self._own.transaction():
                    cursor.executemany(cast("Any", sql), rows)
                return ()
            cursor.execute(cast("Any", sql))
            return cursor.fetchall() if cursor.description else ()

    def tidy(self) -> None:
        self.execute("VACUUM ANALYZE events")
        self.execute("VACUUM ANALYZE entities")

    def close(self) -> None:
        super().close()
        self._own.close()


# --- MySQL and MariaDB -----------------------------------------------------------------------------


class _MySQL(Connection):
    # Two trips: the compare-and-set, then, where it has succeeded, the event and the commit.
    _begin_update = f"START TRANSACTION; {_UPDATE}"
    _begin_create = f"START TRANSACTION; {_CREATE}"
    _insert_commit = f"{_INSERT}; COMMIT"

    def __init__(self, raw: Any) -> None:
        self._raw = raw
        self._cursor = raw.cursor()

    def select(self, id: str) -> Sequence[Row]:
        self._cursor.execute(_LOAD, (TYPE, id))
        rows: Sequence[Row] = self._cursor.fetchall()
        return rows

    def insert(self, id: str, version: str, data: str) -> None:
        self._write(self._begin_create, (TYPE, id, version), id, version, OPENED, data)

    def append(self, id: str, expected: str, version: str, data: str) -> None:
        self._write(self._begin_update, (version, TYPE, id, expected), id, version, DEBITED, data)

    def _write(self, claim: str, params: Row, id: str, version: str, name: str, data: str) -> None:
        cursor = self._cursor
        cursor.execute(claim, params)
        cursor.nextset()
        if cursor.rowcount != 1:
            self._raw.rollback()
            raise Conflict(id)
        cursor.execute(self._insert_commit, (version, name, data, TYPE, id))
        cursor.nextset()

    def close(self) -> None:
        self._raw.close()


class MySQLFloor(Floor):
    def __init__(self, url: str, library: str) -> None:
        super().__init__()
        self.name = "PyMySQL" if library == "pymysql" else "mysqlclient"
        self._library: Any = import_module(library)
        self._url = url
        self._own = self._connect()
        self._own.autocommit(True)

    def _connect(self) -> Any:
        parts = urlsplit(self._url)
        options: dict[str, Any] = {
            "host": parts.hostname,
            "port": parts.port,
            "user": unquote(parts.username or ""),
            "password": unquote(parts.password or ""),
            "database": parts.path[1:],
            "charset": "utf8mb4",
        }
        if self._library.__name__ == "pymysql":
            options["client_flag"] = import_module("pymysql.constants.CLIENT").MULTI_STATEMENTS
        raw = self._library.connect(**options)
        raw.autocommit(True)
        raw.cursor().execute("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")
        return raw

    def connect(self) -> _MySQL:
        return _MySQL(self._connect())

    def settings(self) -> dict[str, str]:
        names = ("version", "sync_binlog", "innodb_flush_log_at_trx_commit", "log_bin")
        row = self.execute("SELECT " + ", ".join(f"@@{name}" for name in names))[0]
        return {name: str(value) for name, value in zip(names, row, strict=True)}

    def execute(self, sql: str, rows: Sequence[Row] = ()) -> Sequence[Row]:
        cursor = self._own.cursor()
        found: Sequence[Row] = ()
        if rows:
            self._own.begin()
            for start in range(0, len(rows), 1000):
                cursor.executemany(sql, rows[start : start + 1000])
            self._own.commit()
        else:
            cursor.execute(sql)
            found = cursor.fetchall()
        cursor.close()
        return found

    def close(self) -> None:
        super().close()
        self._own.close()
