"""The bank's tables as they are: read by plain SQL, without retold."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from importlib import import_module
from typing import Any
from urllib.parse import unquote, urlsplit


def is_sqlite(url: str) -> bool:
    return url.startswith("sqlite:")


class Tables:
    """A connection to a bank's database, named as for retold. Each statement sees what is committed."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        # Only who has a server needs its client.
        if is_sqlite(url):
            self._connection: Any = sqlite3.connect(unquote(parts.path)[1:], isolation_level=None)
        elif parts.scheme.startswith("postgres"):
            psycopg = import_module("psycopg")
            self._connection = psycopg.connect(url.partition("?")[0], autocommit=True)
        else:
            self._connection = import_module("pymysql").connect(
                host=parts.hostname or "127.0.0.1",
                port=parts.port or 3306,
                user=unquote(parts.username or ""),
                password=unquote(parts.password or ""),
                database=unquote(parts.path[1:]),
                charset="utf8mb4",
                autocommit=True,
            )

    def rows(self, sql: str, *values: object) -> Sequence[tuple[Any, ...]]:
        """values: for each `?` of the statement."""
        if not isinstance(self._connection, sqlite3.Connection):
            sql = sql.replace("?", "%s")
        with closing(self._connection.cursor()) as cursor:
            cursor.execute(sql, values)
            found: Sequence[tuple[Any, ...]] = cursor.fetchall()
            return found

    def close(self) -> None:
        self._connection.close()
