"""Which driver serves a URL, and how to join a connection of the user's own.

Client libraries are imported when a URL asks for them, so that one needs no more than one uses.
"""

from __future__ import annotations

from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Any

from retold.errors import MissingExtra, UsageError
from retold.store.connections import AwaitingDriver, BlockingDriver, OwnConnection, ThreadedDriver
from retold.store.dialects import Dialect, dialect_for
from retold.store.doorbell import doorbell
from retold.store.driver import AsyncConnection, Connection, Statement, drive
from retold.store.migrations import migrate
from retold.store.url import DatabaseURL

_MODULES = {"sqlite3": "sqlite", "psycopg": "postgres", "pymysql": "mysql", "mysqlclient": "mysql"}
_EXTRAS = {
    "psycopg": ("psycopg", "postgres"),
    "pymysql": ("pymysql", "mysql"),
    "mysqlclient": ("MySQLdb", "mysqlclient"),
}


def _driver_module(url: DatabaseURL) -> ModuleType:
    if url.client in _EXTRAS:
        package, extra = _EXTRAS[url.client]
        try:
            import_module(package)
        except ImportError:
            raise MissingExtra(f"a {url.database_kind}:// URL", package, extra) from None
    return import_module(f"retold.drivers.{_MODULES[url.client]}")


def open_driver(url: DatabaseURL, *, migrates_new_file: bool = True) -> BlockingDriver:
    """A blocking driver. No I/O yet."""
    module = _driver_module(url)
    dialect = dialect_for(url)
    if url.database_kind == "sqlite":
        connect = partial(_sqlite if migrates_new_file else _bare_sqlite, module, url, dialect)
        return BlockingDriver(dialect, connect, module.doorbell(url.database))
    notices = partial(module.notices, url) if url.database_kind == "postgres" else None
    bell = doorbell(f"{url}/{url.schema}/{url.prefix}")
    return BlockingDriver(dialect, partial(module.connect, url), bell, notices)


def _bare_sqlite(module: Any, url: DatabaseURL, dialect: Dialect) -> OwnConnection:
    connection: OwnConnection = module.SqliteConnection(url, dialect)
    return connection


def _sqlite(module: Any, url: DatabaseURL, dialect: Dialect) -> OwnConnection:
    connection = _bare_sqlite(module, url, dialect)
    # A new file migrates itself; one that holds anything is the user's to migrate.
    (found,) = connection.execute([Statement("SELECT count(*) FROM sqlite_master")])
    if found.rows[0][0] == 0:
        drive(connection.execute, migrate(dialect))
    return connection


def open_async_driver(
    url: DatabaseURL, limit: int, *, threads: bool = False
) -> AwaitingDriver | ThreadedDriver:
    """An async driver that runs at most `limit` plans at once. No I/O yet.

    threads: on a blocking client also where there is an async one.
    """
    if threads or url.client != "psycopg":
        return ThreadedDriver(open_driver(url), limit)
    module = _driver_module(url)
    bell = doorbell(f"{url}/{url.schema}/{url.prefix}")
    return AwaitingDriver(dialect_for(url), partial(module.connect_async, url), limit, bell)


def join(raw: object, dialect: Dialect) -> Connection:
    """The user's connection as the store's. Raises UsageError for one the store cannot use."""
    kind, module = _joining(raw, dialect, "Connection")
    if kind == "sqlite3":
        joined: Connection = module.JoinedSqlite(raw)
    elif kind == "psycopg":
        joined = module.JoinedPostgres(raw)
    else:
        joined = module.JoinedMySQL(raw, import_module(kind))
    return joined


def join_async(raw: object, dialect: Dialect) -> AsyncConnection:
    """The user's async connection as the store's (psycopg's AsyncConnection)."""
    _, module = _joining(raw, dialect, "AsyncConnection")
    joined: AsyncConnection = module.JoinedAsyncPostgres(raw)
    return joined


_PACKAGES = {"sqlite3": "sqlite", "psycopg": "postgres", "pymysql": "mysql", "MySQLdb": "mysql"}
_JOINABLE = {
    "Connection": "using(…) takes a connection of sqlite3, psycopg, PyMySQL or mysqlclient, and of "
    "an AsyncEventStore psycopg's AsyncConnection",
    "AsyncConnection": "an AsyncEventStore joins psycopg's AsyncConnection; for another library go "
    "through SQLAlchemy (retold.contrib.sqlalchemy)",
}


def _joining(raw: object, dialect: Dialect, wanted: str) -> tuple[str, ModuleType]:
    """The client library of a connection and our module for it."""
    for cls in type(raw).__mro__:
        package = cls.__module__.partition(".")[0]
        if package in _PACKAGES and cls.__name__ == wanted:
            if _PACKAGES[package] != dialect.name:
                raise UsageError(
                    f"the store is on {dialect.name}, but the connection is {package}'s"
                )
            return package, import_module(f"retold.drivers.{_PACKAGES[package]}")
    raise UsageError(f"{_JOINABLE[wanted]}, not {type(raw).__module__}.{type(raw).__qualname__}")
