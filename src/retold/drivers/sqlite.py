"""SQLite through the standard library's sqlite3.

The file is in WAL mode and every commit is synced (`?synchronous=normal` gives that up). SQLite has
one writer at a time: the threads of a process queue for a lock of ours, and processes retry with
short random pauses instead of SQLite's growing ones, so that nobody starves.
"""

from __future__ import annotations

import os
import random
import sqlite3
import threading
import time
from collections.abc import Sequence
from typing import Any, cast

from retold.errors import (
    InvalidURL,
    ReadOnlyStore,
    RetoldError,
    SchemaMissing,
    StatementTooLarge,
    StoreBusy,
    StoreCorrupt,
    StoreError,
    StoreFull,
    StoreUnavailable,
    TransactionRolledBack,
    UsageError,
)
from retold.store.dialects import Dialect
from retold.store.doorbell import Doorbell
from retold.store.driver import ACT, Batch, Result, UniqueViolation
from retold.store.url import DatabaseURL

_BUSY, _LOCKED = 5, 6
_BUSY_SNAPSHOT = 517
_UNIQUE = {1555, 2067, 2579}  # PRIMARYKEY, UNIQUE, ROWID
_ERRORS: dict[int, type[StoreError]] = {
    8: ReadOnlyStore,
    10: StoreError,
    11: StoreCorrupt,
    13: StoreFull,
    14: StoreUnavailable,
    18: StatementTooLarge,
    26: StoreCorrupt,
}


class FileBell(Doorbell):
    """The doorbell of a file, and the lock for which the threads that write it queue."""

    rung_by_connections = True

    def __init__(self) -> None:
        super().__init__()
        self.writing = threading.Lock()


_bells: dict[tuple[int, str], FileBell] = {}


def doorbell(path: str) -> FileBell:
    """The doorbell of a file in this process."""
    return _bells.setdefault((os.getpid(), os.path.realpath(path)), FileBell())


def listen(path: str, event: threading.Event) -> None:
    """Set `event` at every commit of this process on a file, for as long as the event lives."""
    doorbell(path).listen(event)


class SqliteConnection:
    """One connection of the store's own."""

    def __init__(self, url: DatabaseURL, dialect: Dialect) -> None:
        self._timeout = float(url.options.get("timeout", "30"))
        synchronous = url.options.get("synchronous", "full").upper()
        if synchronous not in ("FULL", "NORMAL", "EXTRA"):
            raise InvalidURL(str(url), "synchronous is full, normal or extra")
        self._path = url.database
        self._bell = doorbell(url.database)
        self._pid = os.getpid()
        self._writing = False
        try:
            self._raw = sqlite3.connect(
                url.database,
                timeout=0,
                isolation_level=None,
                check_same_thread=False,
                cached_statements=256,
            )
        except sqlite3.Error as error:
            raise translate(error, url.database) from error
        try:
            self._execute("PRAGMA synchronous = " + synchronous)
            if self._execute("PRAGMA journal_mode").rows[0][0] != "wal":
                self._execute("PRAGMA journal_mode = WAL")
        except ReadOnlyStore:
            pass  # a read-only file can still be read
        except BaseException:
            self._raw.close()
            raise

    def execute(self, batch: Batch) -> Sequence[Result]:
        if batch and batch[0][0] == ACT:
            return _act(self._raw, batch[0][1][0], self._path)
        return [self._execute(sql, params) for sql, params in batch]

    def _execute(self, sql: str, params: Sequence[object] = ()) -> Result:
        if sql == "BEGIN IMMEDIATE":
            self.begin()
            return _DONE
        try:
            cursor = self._raw.execute(sql, params)
            rows = cursor.fetchall()
        except sqlite3.Error as error:
            cursor = self._again(error, sql, params)
            rows = cursor.fetchall()
        except UnicodeEncodeError as error:
            raise StoreError(f"a value is not valid Unicode ({error.reason})") from None
        if self._writing and not self._raw.in_transaction:
            self._end_writing(rung=sql == "COMMIT")
        return Result(rows, cursor.rowcount)

    def _again(self, error: sqlite3.Error, sql: str, params: Sequence[object]) -> sqlite3.Cursor:
        """Repeat a statement that found the file busy: it has had no effect."""
        deadline = time.monotonic() + self._timeout
        wait = 0.0002
        while _is_busy(error):
            if time.monotonic() > deadline:
                raise StoreBusy(f"{self._path} was locked for {self._timeout:g} s") from error
            time.sleep(random.uniform(0, wait))
            wait = min(wait * 1.5, 0.004)
            try:
                return self._raw.execute(sql, cast("tuple[str, ...]", params))
            except sqlite3.Error as repeated:
                error = repeated
        raise translate(error, self._path) from error

    def begin(self) -> None:
        if not self._bell.writing.acquire(timeout=self._timeout):
            raise StoreBusy(
                f"a transaction of this process was open on {self._path} for {self._timeout:g} s"
            )
        self._writing = True
        try:
            try:
                self._raw.execute("BEGIN IMMEDIATE")
            except sqlite3.Error as error:
                self._again(error, "BEGIN IMMEDIATE", ())
        except BaseException:
            self._end_writing(rung=False)
            raise

    def commit(self) -> None:
        self._execute("COMMIT")

    def _end_writing(self, *, rung: bool) -> None:
        self._writing = False
        self._bell.writing.release()
        if rung:
            self._bell.ring()

    def reset(self) -> bool:
        try:
            if self._raw.in_transaction:
                self._raw.rollback()
        except sqlite3.Error:
            return False
        finally:
            if self._writing:
                self._end_writing(rung=False)
        return True

    def close(self) -> None:
        self.reset()
        self._raw.close()

    def abandon(self) -> None:
        self.close()

    def __del__(self) -> None:
        raw = getattr(self, "_raw", None)
        if raw is not None and self._pid == os.getpid():
            raw.close()


_DONE = Result((), -1)


class JoinedSqlite:
    """The user's connection, inside the user's transaction."""

    def __init__(self, raw: sqlite3.Connection) -> None:
        self._raw = raw
        self._begin()

    def _begin(self) -> None:
        # sqlite3 in its legacy mode begins by itself, but only before a statement it knows to be
        # writing, and SAVEPOINT is none: it would be a transaction of its own, its release a commit.
        raw = self._raw
        if raw.in_transaction:
            return
        if raw.isolation_level is None or getattr(raw, "autocommit", False) is True:
            raise UsageError(
                "using(connection) needs a transaction of yours: execute BEGIN IMMEDIATE first"
            )
        try:
            raw.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            raise translate(error, "the connection") from error

    def execute(self, batch: Batch) -> Sequence[Result]:
        self._begin()
        if batch and batch[0][0] == ACT:
            return _act(self._raw, batch[0][1][0], "the connection")
        text_factory, self._raw.text_factory = self._raw.text_factory, str
        try:
            results: list[Result] = []
            for sql, params in batch:
                cursor = self._raw.cursor()
                cursor.row_factory = None  # the user's connection may have one of its own
                cursor.execute(sql, cast("tuple[str, ...]", params))
                rows = cursor.fetchall() if cursor.description is not None else ()
                results.append(Result(rows, cursor.rowcount))
        except sqlite3.Error as error:
            raise translate(error, "the connection") from error
        finally:
            self._raw.text_factory = text_factory
        return results


def _act(raw: sqlite3.Connection, work: Any, path: str) -> Sequence[Result]:
    cursor = raw.cursor()
    try:
        work(cursor)
    except sqlite3.Error as error:
        raise translate(error, path) from error
    finally:
        cursor.close()
    return (_DONE,)


def _is_busy(error: sqlite3.Error) -> bool:
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code != _BUSY_SNAPSHOT and code & 0xFF in (_BUSY, _LOCKED)


def translate(error: sqlite3.Error, path: str = "the database") -> RetoldError:
    """retold's error for one of sqlite3's."""
    code: int = getattr(error, "sqlite_errorcode", 0)
    message = f"{path}: {error}"
    if code in _UNIQUE:
        return UniqueViolation()
    if code == _BUSY_SNAPSHOT:
        return TransactionRolledBack("the database changed since this transaction read it")
    if code & 0xFF in (_BUSY, _LOCKED):
        return StoreBusy(message)
    if "no such table" in str(error) or "no such column" in str(error):
        return SchemaMissing(message)
    return _ERRORS.get(code & 0xFF, StoreError)(message)
