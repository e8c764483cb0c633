"""MySQL and MariaDB through PyMySQL, or through mysqlclient for mysql+mysqlclient:// URLs.

A batch goes out as one packet of several statements: one network trip. Both libraries put the
parameters into the text themselves; ours are plain strings, numbers and None.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from importlib import import_module
from ssl import CERT_NONE, PROTOCOL_TLS_CLIENT, SSLContext
from typing import Any

from retold.errors import (
    AccessDenied,
    ConnectionLost,
    DatabaseMissing,
    MissingExtra,
    ReadOnlyStore,
    RetoldError,
    SchemaMissing,
    StatementTooLarge,
    StoreBusy,
    StoreError,
    StoreFull,
    StoreUnavailable,
    TransactionRolledBack,
    TriggerRefused,
    UsageError,
    ValueTooLong,
)
from retold.store.driver import ACT, Batch, Result, Statement, UniqueViolation
from retold.store.url import DatabaseURL

_BY_NUMBER: dict[int, Callable[[str], RetoldError]] = {
    **dict.fromkeys((1044, 1045, 1142, 1143, 1227, 1698), AccessDenied),
    **dict.fromkeys(
        (0, 1053, 1152, 1158, 1159, 1160, 1161, 1927, 2006, 2013, 2055, 4031), ConnectionLost
    ),
    1049: DatabaseMissing,
    **dict.fromkeys((1290, 1792, 1836), ReadOnlyStore),
    **dict.fromkeys((1054, 1146), SchemaMissing),
    **dict.fromkeys((1153, 2020), StatementTooLarge),
    1205: StoreBusy,
    **dict.fromkeys((3, 28, 1021, 1114), StoreFull),
    **dict.fromkeys((1040, 1203, 2002, 2003, 2005), StoreUnavailable),
    **dict.fromkeys((1180, 1213, 1412, 3101), TransactionRolledBack),
    1406: ValueTooLong,
    1419: TriggerRefused,
}
_SESSION = [
    Statement("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED"),
    Statement(
        "SET SESSION sql_mode = 'STRICT_ALL_TABLES,ERROR_FOR_DIVISION_BY_ZERO,"
        "NO_ENGINE_SUBSTITUTION', time_zone = '+00:00', innodb_lock_wait_timeout = 30, "
        "autocommit = 1"
    ),
    Statement("SELECT @@max_allowed_packet"),
]


def connect(url: DatabaseURL) -> MySQLConnection:
    """Raises StoreUnavailable, AccessDenied, DatabaseMissing."""
    raw, library = connect_client(url)
    connection = MySQLConnection(raw, library)
    try:
        limit = connection.execute(_SESSION)[-1].rows[0][0]
    except BaseException:
        connection.abandon()
        raise
    connection.max_packet = int(limit)
    if library.__name__ == "MySQLdb":
        _of_the_c_client.add(connection)
    return connection


def connect_client(url: DatabaseURL) -> tuple[Any, Any]:
    """A connection of the client library's own, as the URL says, and the library."""
    name = "pymysql" if url.client == "pymysql" else "MySQLdb"
    library: Any = import_module(name)
    options: dict[str, Any] = {
        "host": url.host,
        "port": url.port,
        "user": url.user,
        "password": url.password,
        "database": url.database,
        "charset": "utf8mb4",
        "connect_timeout": int(url.options.get("connect_timeout", "10")),
        "read_timeout": int(url.options.get("read_timeout", "60")),
        "write_timeout": int(url.options.get("write_timeout", "60")),
    }
    if "unix_socket" in url.options:
        options["unix_socket"] = url.options["unix_socket"]
    tls = {part: url.options[f"ssl_{part}"] for part in _TLS if f"ssl_{part}" in url.options}
    if tls:
        options["ssl"] = tls
    if name == "pymysql":
        options["client_flag"] = import_module("pymysql.constants.CLIENT").MULTI_STATEMENTS
        options |= {"defer_connect": True, "ssl_disabled": not tls}
    elif url.host == "localhost":
        options["host"] = "127.0.0.1"  # the C client would take a socket, whatever the port says
    try:
        raw = library.connect(**options)
        if name == "pymysql":
            if not tls:
                raw.ssl, raw.ctx = True, _where_there_is_tls()
            raw.connect()
    except library.Error as error:
        raise translate(error) from error
    except RuntimeError as error:
        if "cryptography" in str(error):
            raise MissingExtra("caching_sha2_password", "cryptography", "mysql") from error
        raise
    return raw, library


_TLS = ("ca", "cert", "key")


@cache
def _where_there_is_tls() -> SSLContext:
    """What PyMySQL uses where nothing is said of TLS: whatever certificate the server has, or no TLS
    where it has none. Its own loads all the system's certificates for each connection, to use none
    of them: 20 ms.
    """
    context = SSLContext(PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = CERT_NONE
    return context


_of_the_c_client: weakref.WeakSet[MySQLConnection] = weakref.WeakSet()


def _after_fork() -> None:
    """Keep a forked child from ending its parent's connections.

    The C client says goodbye to the server whenever a connection is deallocated, at the latest when
    the child ends. So the child's end of each leads nowhere from now on.
    """
    nowhere = os.open(os.devnull, os.O_RDWR)
    for connection in tuple(_of_the_c_client):
        with suppress(Exception):  # closed already
            os.dup2(nowhere, connection.fileno())
    os.close(nowhere)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class MySQLConnection:
    """One connection of the store's own."""

    def __init__(self, raw: Any, library: Any) -> None:
        self._raw = raw
        self._errors: type[Exception] = library.Error
        self._cursor = raw.cursor()
        self._open = False  # a transaction, as far as we know
        self.max_packet = 1 << 30

    def execute(self, batch: Batch) -> Sequence[Result]:
        cursor = self._cursor
        try:
            if len(batch) == 1:
                sql, params = batch[0]
                if sql == ACT:
                    return _act(self._raw.cursor(), params[0])
                text = cursor.mogrify(sql, params) if params else sql
            else:
                text = ";".join(
                    _text(cursor.mogrify(sql, params)) if params else sql for sql, params in batch
                )
            # compared in characters first: the exact size costs an encoding
            if len(text) * 4 >= self.max_packet and len(_bytes(text)) + 1 >= self.max_packet:
                raise StatementTooLarge(
                    f"{len(_bytes(text))} bytes, max_allowed_packet is {self.max_packet}"
                )
            cursor.execute(text)
            results = [Result(cursor.fetchall(), cursor.rowcount)]
            while len(results) < len(batch):
                cursor.nextset()
                results.append(Result(cursor.fetchall(), cursor.rowcount))
        except self._errors as error:
            self._open = True  # perhaps: what of the packet ran before the error is not told
            raise translate(error) from error
        if batch[0].sql.startswith("START TRANSACTION"):
            self._open = True
        if batch[-1].sql in ("COMMIT", "ROLLBACK"):
            self._open = False
        return results

    def fileno(self) -> int:
        descriptor: int = self._raw.fileno()
        return descriptor

    def begin(self) -> None:
        self.execute([Statement("START TRANSACTION")])

    def commit(self) -> None:
        self.execute([Statement("COMMIT")])

    def reset(self) -> bool:
        if not self._open:
            return True
        try:
            # An error in the middle of a packet leaves results unread and the COMMIT not run.
            self._drop_results()
            self._raw.rollback()
        except self._errors:
            return False
        self._open = False
        return True

    def _drop_results(self) -> None:
        # By closing: mysqlclient's nextset() fails after a statement that failed.
        self._cursor.close()
        self._cursor = self._raw.cursor()

    def close(self) -> None:
        with suppress(self._errors):  # closed already
            self._raw.close()

    def abandon(self) -> None:
        self.close()


class JoinedMySQL:
    """The user's connection, inside the user's transaction."""

    def __init__(self, raw: Any, library: Any) -> None:
        self._raw = raw
        self._library = library
        self._check()
        self._plain_cursor: Any = import_module(f"{library.__name__}.cursors").Cursor

    def _check(self) -> None:
        if self._raw.get_autocommit():
            raise UsageError(
                "using(connection) needs a transaction of yours, and this connection commits every "
                "statement: connection.autocommit(False)"
            )

    def execute(self, batch: Batch) -> Sequence[Result]:
        results: list[Result] = []
        try:
            self._check()
            cursor = self._raw.cursor(self._plain_cursor)
            if batch and batch[0][0] == ACT:
                return _act(cursor, batch[0][1][0])
            for sql, params in batch:
                cursor.execute(sql, params or None)
                results.append(Result(cursor.fetchall(), cursor.rowcount))
            cursor.close()
        except self._library.Error as error:
            raise translate(error) from error
        return results


def _act(cursor: Any, work: Any) -> Sequence[Result]:
    try:
        work(cursor)
    finally:
        cursor.close()  # reads what it left unread
    return (Result((), -1),)


def _text(sql: str | bytes) -> str:
    return sql.decode() if isinstance(sql, bytes) else sql


def _bytes(sql: str | bytes) -> bytes:
    return sql.encode() if isinstance(sql, str) else sql


def translate(error: Exception) -> RetoldError:
    """retold's error for one of a MySQL client's, told by its number."""
    number = error.args[0] if error.args and isinstance(error.args[0], int) else -1
    message = f"{number}, {error.args[1]}" if len(error.args) > 1 else str(error)
    if number == 1062:
        return UniqueViolation()
    kind = _BY_NUMBER.get(number, StoreError)
    return kind(message)
