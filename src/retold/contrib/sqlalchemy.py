"""Events in the transaction of a SQLAlchemy session, through the session's own connection.

    with Session(engine) as session:
        session.add(Order(...))
        using(store, session).repository(Account).update(id, Account.debit, 30)
        session.commit()

Rows and events commit together or not at all. The commit is the session's, and nothing is retried.
Any DBAPI will do, because only SQLAlchemy talks to it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from itertools import count
from typing import Any, cast

from retold.errors import ConnectionLost, MissingExtra, RetoldError, UsageError
from retold.store.dialects import Dialect
from retold.store.driver import ACT, Batch, Result, Statement
from retold.store.event_store import AsyncEventStore, EventStore
from retold.store.migrations import migrations
from retold.store.transactions import AsyncTransaction, Transaction

try:
    from sqlalchemy import Connection, CursorResult
    from sqlalchemy.exc import DBAPIError
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session
    from sqlalchemy.orm import Session, scoped_session
except ImportError:
    raise MissingExtra("retold.contrib.sqlalchemy", "sqlalchemy", "sqlalchemy") from None

_KINDS = {"sqlite": "sqlite", "postgresql": "postgres", "mysql": "mysql", "mariadb": "mysql"}
_BEGIN = Statement("BEGIN IMMEDIATE")


def using(store: EventStore, session: Session | scoped_session[Any] | Connection, /) -> Transaction:
    """Repositories inside the transaction of a session or connection; it may not have begun yet.

    Nothing is committed, rolled back or retried here. After VersionConflict or EntityExists the
    transaction goes on as it was; on SQLite it holds the write lock from the first use on.

    Raises UsageError when the session is on another kind of database than the store.
    """
    if not isinstance(session, (Session, scoped_session, Connection)):
        raise UsageError(
            f"using(…) takes a Session or Connection, not {type(session).__qualname__}; "
            "for an async one there is using_async(…)"
        )
    kept = store._joined
    bind = session if isinstance(session, Connection) else session.get_bind()
    _check_kind(kept.dialect, bind.dialect.name)
    return Transaction(kept, _Joined(session, kept.dialect))


def using_async(
    store: AsyncEventStore,
    session: AsyncSession | async_scoped_session[Any] | AsyncConnection,
    /,
) -> AsyncTransaction:
    """As using, for an AsyncSession or AsyncConnection."""
    if not isinstance(session, (AsyncSession, async_scoped_session, AsyncConnection)):
        raise UsageError(
            f"using_async(…) takes an AsyncSession or AsyncConnection, not "
            f"{type(session).__qualname__}; for a blocking one there is using(…)"
        )
    kept = store._joined
    bind = session if isinstance(session, AsyncConnection) else session.get_bind()
    _check_kind(kept.dialect, bind.dialect.name)
    return AsyncTransaction(kept, _JoinedAsync(session, kept.dialect))


def include_object(
    store: EventStore | AsyncEventStore, /
) -> Callable[[Any, str | None, str, bool, Any], bool]:
    """Alembic's hook that keeps autogenerate away from retold's tables.

    In env.py: `context.configure(…, include_object=include_object(store))`.
    """
    dialect = store._joined.dialect
    made = {table for step in migrations(dialect) for table, _ in step.statements}
    ours = {dialect.bare(table) for table in made | {"retold_migrations"}}

    def include(item: Any, name: str | None, kind: str, reflected: bool, compared: Any) -> bool:
        return not (kind == "table" and name in ours and (item.schema or "") == dialect.schema)

    return include


class _Joined:
    """The session's connection as the store's. It is asked for each time, because a session has
    another one after its commit."""

    def __init__(
        self, session: Session | scoped_session[Any] | Connection, dialect: Dialect
    ) -> None:
        self._session = session
        self._dialect = dialect

    def execute(self, batch: Batch) -> Sequence[Result]:
        session = self._session
        try:
            connection = session if isinstance(session, Connection) else session.connection()
            if batch and batch[0][0] == ACT:
                return self._act(connection, batch[0][1][0])
            if _must_begin(connection, connection.connection):
                batch = [_BEGIN, *batch]
                return self._execute(connection, batch)[1:]
            return self._execute(connection, batch)
        except DBAPIError as error:
            raise _translate(self._dialect, error) from error.orig

    def _act(self, connection: Connection, work: Any) -> Sequence[Result]:
        cursor = connection.connection.cursor()
        try:
            work(cursor)
        except connection.dialect.loaded_dbapi.Error as error:
            driver = import_module(f"retold.drivers.{self._dialect.name}")
            translated: RetoldError = driver.translate(error)
            raise translated from error
        finally:
            cursor.close()
        return (Result((), -1),)

    def _execute(self, connection: Connection, batch: Batch) -> Sequence[Result]:
        style = connection.dialect.paramstyle
        return [
            _result(connection.exec_driver_sql(*_spoken(statement, style))) for statement in batch
        ]


class _JoinedAsync:
    """The same, awaited."""

    def __init__(
        self,
        session: AsyncSession | async_scoped_session[Any] | AsyncConnection,
        dialect: Dialect,
    ) -> None:
        self._session = session
        self._dialect = dialect

    async def execute(self, batch: Batch) -> Sequence[Result]:
        session = self._session
        if batch and batch[0][0] == ACT:
            raise UsageError(
                "an inline projection writes through a blocking connection, and this one is async"
            )
        try:
            connection = (
                session if isinstance(session, AsyncConnection) else await session.connection()
            )
            if _must_begin(connection, await connection.get_raw_connection()):
                return (await self._execute(connection, [_BEGIN, *batch]))[1:]
            return await self._execute(connection, batch)
        except DBAPIError as error:
            raise _translate(self._dialect, error) from error.orig

    async def _execute(self, connection: AsyncConnection, batch: Batch) -> Sequence[Result]:
        style = connection.dialect.paramstyle
        return [
            _result(await connection.exec_driver_sql(*_spoken(statement, style)))
            for statement in batch
        ]


def _result(cursor: CursorResult[Any]) -> Result:
    return Result(cursor.all() if cursor.returns_rows else (), cursor.rowcount)


def _check_kind(dialect: Dialect, name: str) -> None:
    if _KINDS.get(name) != dialect.name:
        raise UsageError(f"the store is on {dialect.name}, but the session is on {name}")


def _must_begin(connection: Connection | AsyncConnection, raw: Any) -> bool:
    """Whether the DBAPI has to be told to begin. Raises UsageError where nothing ever would."""
    if connection.dialect.name != "sqlite":
        # Unknown before SQLAlchemy 2.0.43.
        detect = getattr(connection.dialect, "detect_autocommit_setting", None)
        if detect is not None and detect(raw.dbapi_connection):
            raise UsageError(_AUTOCOMMIT)
        return False
    driver = raw.driver_connection
    if driver.in_transaction:
        return False
    # In its legacy mode sqlite3 begins by itself, but only before a statement it knows to be
    # writing, and SAVEPOINT is none: releasing the outermost savepoint would commit.
    if driver.isolation_level is None or getattr(driver, "autocommit", None) is True:
        raise UsageError(_AUTOCOMMIT)
    return True


_AUTOCOMMIT = (
    "the session's connection is in AUTOCOMMIT, so there is no transaction to join; give the "
    "session an engine with another isolation level"
)


def _spoken(statement: Statement, style: str) -> tuple[str, tuple[Any, ...]]:
    """A statement in the words of a DBAPI."""
    sql, params = statement
    if any(isinstance(param, tuple) for param in params):
        sql, params = _spread(sql, params)
    if style == "numeric_dollar":
        sql = _numbered(sql)
    return sql, tuple(params)


def _spread(sql: str, params: Sequence[object]) -> tuple[str, list[object]]:
    """`IN %s` with each value on its own: not every MySQL client can write a tuple."""
    first, *rest = sql.split("%s")
    text, spread = [first], list[object]()
    for param, after in zip(params, rest, strict=True):
        if isinstance(param, tuple):
            values = cast("tuple[object, ...]", param)
            text += [f"({', '.join(['%s'] * len(values))})", after]
            spread += values
        else:
            text += ["%s", after]
            spread.append(param)
    return "".join(text), spread


@cache
def _numbered(sql: str) -> str:
    """The same with `$1`, `$2` … for `%s`."""
    numbers = count(1)
    return re.sub("%[s%]", lambda mark: f"${next(numbers)}" if mark[0] == "%s" else "%", sql)


def _translate(dialect: Dialect, error: DBAPIError) -> RetoldError:
    """retold's error for the DBAPI's. SQLAlchemy's own is left out: it quotes the parameters."""
    if error.connection_invalidated:
        return ConnectionLost(str(error.orig))
    driver = import_module(f"retold.drivers.{dialect.name}")
    translated: RetoldError = driver.translate(error.orig)
    return translated
