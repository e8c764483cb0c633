"""PostgreSQL through psycopg 3, blocking and async.

Behind a pooler in transaction mode the server changes between statements, so nothing may be kept in
the session: there, statements are not prepared and no setting is made. A pooler is recognised by
the process id it hands out, which is not the server's.
"""

from __future__ import annotations

import re
import select
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any, LiteralString

import psycopg
import psycopg.sql
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

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
    StoreError,
    StoreFull,
    StoreUnavailable,
    TransactionRolledBack,
    UsageError,
    ValueTooLong,
)
from retold.store.driver import ACT, Batch, Result, UniqueViolation
from retold.store.url import DatabaseURL

_BY_STATE: dict[str, Callable[[str], RetoldError]] = {
    "22001": ValueTooLong,
    "25006": ReadOnlyStore,
    "25P02": TransactionRolledBack,
    "28000": AccessDenied,
    "28P01": AccessDenied,
    "3D000": DatabaseMissing,
    "3F000": SchemaMissing,
    "40001": TransactionRolledBack,
    "40P01": TransactionRolledBack,
    "42501": AccessDenied,
    "42703": SchemaMissing,
    "42P01": SchemaMissing,
    "53100": StoreFull,
    "53300": StoreUnavailable,
    "54000": StatementTooLarge,
    "55P03": StoreBusy,
    "57014": StoreBusy,
    "57P01": ConnectionLost,
    "57P02": ConnectionLost,
    "57P03": StoreUnavailable,
    "57P05": ConnectionLost,
}
_BEGIN = "BEGIN ISOLATION LEVEL READ COMMITTED"
_SESSION = """
    SELECT pg_backend_pid(),
           set_config('lock_timeout', '30s', false),
           set_config('default_transaction_isolation', 'read committed', false)
    WHERE pg_backend_pid() = %s
"""
_DONE = Result((), -1)


def _conninfo(url: DatabaseURL) -> dict[str, Any]:
    return {
        "connect_timeout": 10,
        "application_name": "retold",
        **url.options,
        "host": url.options.get("host", url.host),
        "port": url.port,
        "user": url.user or None,
        "password": url.password or None,
        "dbname": url.database,
        "client_encoding": "utf8",
        "autocommit": True,
        "row_factory": tuple_row,
    }


def connect(url: DatabaseURL) -> PostgresConnection:
    """Raises StoreUnavailable, AccessDenied, DatabaseMissing."""
    try:
        raw = psycopg.connect(**_conninfo(url))
        try:
            direct = raw.execute(_SESSION, (raw.info.backend_pid,)).fetchone() is not None
        except BaseException:
            raw.close()
            raise
    except psycopg.Error as error:
        raise _refused(error, url) from error
    raw.prepare_threshold = 1 if direct else None
    return PostgresConnection(raw, direct)


async def connect_async(url: DatabaseURL) -> AsyncPostgresConnection:
    """The same, awaited."""
    try:
        raw = await psycopg.AsyncConnection.connect(**_conninfo(url))
        try:
            session = await raw.execute(_SESSION, (raw.info.backend_pid,))
            direct = await session.fetchone() is not None
        except BaseException:  # a cancellation too
            raw.pgconn.finish()
            raise
    except psycopg.Error as error:
        raise _refused(error, url) from error
    raw.prepare_threshold = 1 if direct else None
    return AsyncPostgresConnection(raw, direct)


class PostgresConnection:
    """One connection of the store's own."""

    def __init__(self, raw: psycopg.Connection[tuple[Any, ...]], direct: bool) -> None:
        self.direct = direct
        """No pooler shares the server's sessions out."""
        self._raw = raw
        self._cursor = raw.cursor()
        self._pipelines = direct and psycopg.Pipeline.is_supported()

    def execute(self, batch: Batch) -> Sequence[Result]:
        try:
            if len(batch) == 1:
                sql, params = batch[0]
                if sql == ACT:
                    return _act(self._raw, params[0])
                cursor = self._cursor.execute(_literal(sql), params or None)
                if cursor.description is not None:
                    return (Result(cursor.fetchall(), cursor.rowcount),)
                return (Result((), cursor.rowcount),)
            if not self._pipelines:
                return [self.execute([statement])[0] for statement in batch]
            with self._raw.pipeline():
                cursors = [
                    self._raw.execute(_literal(sql), params or None) for sql, params in batch
                ]
            return [
                Result(c.fetchall() if c.description is not None else (), c.rowcount)
                for c in cursors
            ]
        except psycopg.Error as error:
            raise translate(error, broken=self._raw.closed) from error

    def begin(self) -> None:
        self._one(_BEGIN)

    def commit(self) -> None:
        self._one("COMMIT")

    def _one(self, sql: LiteralString) -> None:
        try:
            self._raw.execute(sql)
        except psycopg.Error as error:
            raise translate(error, broken=self._raw.closed) from error

    def reset(self) -> bool:
        try:
            if self._raw.info.transaction_status != TransactionStatus.IDLE:
                self._raw.execute("ROLLBACK")
        except psycopg.Error:
            return False
        return not self._raw.closed

    def close(self) -> None:
        self._raw.close()

    def abandon(self) -> None:
        self._raw.close()


def notices(url: DatabaseURL, channel: str) -> PostgresNotices | None:
    """What is notified on a channel; None behind a pooler, which keeps no session to listen in."""
    try:
        raw = psycopg.connect(**_conninfo(url))
        try:
            (pid,) = raw.execute("SELECT pg_backend_pid()").fetchone() or (0,)
            if pid == raw.info.backend_pid:
                raw.execute(psycopg.sql.SQL("LISTEN {}").format(psycopg.sql.Identifier(channel)))
                return PostgresNotices(raw)
        except BaseException:
            raw.close()
            raise
    except psycopg.Error as error:
        raise _refused(error, url) from error
    raw.close()
    return None


class PostgresNotices:
    """A connection that listens."""

    def __init__(self, raw: psycopg.Connection[tuple[Any, ...]]) -> None:
        self._raw = raw
        self._ending, self._end = socket.socketpair()

    def wait(self) -> bool:
        try:
            while True:
                sources: list[Any] = [self._raw, self._ending]
                ready, _, _ = select.select(sources, [], [])
                if self._ending in ready:
                    self._drop()
                    return False
                if any(True for _ in self._raw.notifies(timeout=0)):
                    return True
        except (psycopg.Error, OSError, ValueError) as error:
            self._drop()
            raise ConnectionLost(str(error)) from error

    def _drop(self) -> None:
        self._raw.close()
        self._ending.close()
        self._end.close()

    def close(self) -> None:
        self._end.close()


class AsyncPostgresConnection:
    """The same, awaited."""

    def __init__(self, raw: psycopg.AsyncConnection[tuple[Any, ...]], direct: bool) -> None:
        self._raw = raw
        self._cursor = raw.cursor()
        self._pipelines = direct and psycopg.AsyncPipeline.is_supported()

    async def execute(self, batch: Batch) -> Sequence[Result]:
        _check_no_act(batch)
        try:
            if len(batch) == 1:
                sql, params = batch[0]
                cursor = await self._cursor.execute(_literal(sql), params or None)
                if cursor.description is not None:
                    return (Result(await cursor.fetchall(), cursor.rowcount),)
                return (Result((), cursor.rowcount),)
            if not self._pipelines:
                return [(await self.execute([statement]))[0] for statement in batch]
            async with self._raw.pipeline():
                cursors = [
                    await self._raw.execute(_literal(sql), params or None) for sql, params in batch
                ]
            return [
                Result(await c.fetchall() if c.description is not None else (), c.rowcount)
                for c in cursors
            ]
        except psycopg.Error as error:
            raise translate(error, broken=self._raw.closed) from error

    async def begin(self) -> None:
        await self._one(_BEGIN)

    async def commit(self) -> None:
        await self._one("COMMIT")

    async def _one(self, sql: LiteralString) -> None:
        try:
            await self._raw.execute(sql)
        except psycopg.Error as error:
            raise translate(error, broken=self._raw.closed) from error

    async def reset(self) -> bool:
        try:
            if self._raw.info.transaction_status != TransactionStatus.IDLE:
                await self._raw.execute("ROLLBACK")
        except psycopg.Error:
            return False
        return not self._raw.closed

    async def close(self) -> None:
        await self._raw.close()

    def abandon(self) -> None:
        # Closed without awaiting: the loop it belongs to may be gone, or this task cancelled.
        self._raw.pgconn.finish()


class JoinedPostgres:
    """The user's connection, inside the user's transaction."""

    def __init__(self, raw: psycopg.Connection[Any]) -> None:
        _check_joinable(raw)
        self._raw = raw

    def execute(self, batch: Batch) -> Sequence[Result]:
        _check_joinable(self._raw)
        results: list[Result] = []
        try:
            if batch and batch[0][0] == ACT:
                return _act(self._raw, batch[0][1][0])
            # not the user's kind of cursor, which may want other placeholders
            with psycopg.Cursor(self._raw, row_factory=tuple_row) as cursor:
                for sql, params in batch:
                    cursor.execute(_literal(sql), params or None)
                    rows = cursor.fetchall() if cursor.description is not None else ()
                    results.append(Result(rows, cursor.rowcount))
        except psycopg.Error as error:
            raise translate(error, broken=self._raw.closed) from error
        return results


class JoinedAsyncPostgres:
    """The same, awaited."""

    def __init__(self, raw: psycopg.AsyncConnection[Any]) -> None:
        _check_joinable(raw)
        self._raw = raw

    async def execute(self, batch: Batch) -> Sequence[Result]:
        _check_joinable(self._raw)
        _check_no_act(batch)
        results: list[Result] = []
        try:
            async with psycopg.AsyncCursor(self._raw, row_factory=tuple_row) as cursor:
                for sql, params in batch:
                    await cursor.execute(_literal(sql), params or None)
                    rows = await cursor.fetchall() if cursor.description is not None else ()
                    results.append(Result(rows, cursor.rowcount))
        except psycopg.Error as error:
            raise translate(error, broken=self._raw.closed) from error
        return results


def _check_joinable(raw: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> None:
    if raw.autocommit and raw.info.transaction_status == TransactionStatus.IDLE:
        raise UsageError(
            "using(connection) needs a transaction of yours: open one with connection.transaction()"
        )


def _act(raw: psycopg.Connection[Any], work: Any) -> Sequence[Result]:
    with psycopg.Cursor(raw, row_factory=tuple_row) as cursor:
        work(cursor)
    return (_DONE,)


def _check_no_act(batch: Batch) -> None:
    if batch and batch[0][0] == ACT:
        raise UsageError(
            "an inline projection writes through a blocking connection, and this one is async"
        )


def _literal(sql: str) -> LiteralString:
    # The text comes from queries.sql, never from a caller.
    return sql  # pyright: ignore[reportReturnType]


def translate(error: Exception, *, connecting: bool = False, broken: bool = False) -> RetoldError:
    """retold's error for one of psycopg's, or of any client whose errors carry a SQLSTATE."""
    state = _sqlstate(error)
    message = str(error).strip().replace("\n", " ")
    if state == "23505":
        return UniqueViolation()
    if state in _BY_STATE:
        return _BY_STATE[state](message)
    if broken or (state or "").startswith("08"):
        return ConnectionLost(message)
    if connecting:
        for sign, kind in _SIGNS.items():
            if re.search(sign, message):
                return kind(message)
        return StoreUnavailable(message)
    return StoreError(message)


def _refused(error: psycopg.Error, url: DatabaseURL) -> RetoldError:
    if isinstance(error, psycopg.ProgrammingError) and error.sqlstate is None:
        return InvalidURL(str(url), str(error))  # libpq's word on an option it does not know
    return translate(error, connecting=True)


def _sqlstate(error: Exception) -> str | None:
    state: str | None = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
    return state


# While connecting, libpq tells by its message alone. A server that starts, stops or has too many
# connections also speaks of a database or a role: that is StoreUnavailable.
_SIGNS: Mapping[str, type[StoreError]] = {
    "password authentication failed": AccessDenied,
    "SASL authentication failed": AccessDenied,  # PgBouncer's
    "no pg_hba.conf entry": AccessDenied,
    "no password supplied": AccessDenied,
    'role ".*" (does not exist|is not permitted)': AccessDenied,
    "permission denied for database": AccessDenied,
    'database ".*" does not exist|no such database': DatabaseMissing,
}
