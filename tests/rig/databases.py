"""What the rig says to a server, whichever it is: make a database, drop it, answer."""

from __future__ import annotations

from typing import cast
from urllib.parse import quote, unquote, urlsplit

import psycopg
import pymysql
from psycopg import sql

USER = "retold"
# With characters that a URL must escape, so that every test parses such a URL.
PASSWORD = "p@ss/w:rd"


def with_parts(
    url: str,
    *,
    port: int | None = None,
    user: str | None = None,
    password: str | None = None,
    database: str | None = None,
) -> str:
    """The same URL with some of its parts changed."""
    parts = urlsplit(url)
    login = quote(user, safe="") if user is not None else (parts.username or "")
    secret = quote(password, safe="") if password is not None else (parts.password or "")
    netloc = f"{login}{':' if secret else ''}{secret}@{parts.hostname}:{port or parts.port}"
    path = parts.path if database is None else f"/{database}"
    return parts._replace(netloc=netloc, path=path).geturl()


def _is_mysql(url: str) -> bool:
    return urlsplit(url).scheme.startswith(("mysql", "mariadb"))


def query(url: str, *statements: str) -> list[tuple[object, ...]]:
    """The rows of the last statement; each one is committed on its own."""
    return _query_mysql(url, statements) if _is_mysql(url) else _query_postgres(url, statements)


def _query_mysql(url: str, statements: tuple[str, ...]) -> list[tuple[object, ...]]:
    parts = urlsplit(url)
    with pymysql.connect(
        host=parts.hostname,
        port=parts.port or 3306,
        user=unquote(parts.username or ""),
        password=unquote(parts.password or ""),
        database=parts.path.removeprefix("/") or None,
        autocommit=True,
        connect_timeout=5,
        # TLS takes longer than most of what is asked here.
        ssl_disabled=parts.hostname in ("127.0.0.1", "localhost"),
    ) as connection:
        cursor = connection.cursor()
        for statement in statements:
            cursor.execute(statement)
        return list(cast("tuple[tuple[object, ...], ...]", cursor.fetchall()))


def _query_postgres(url: str, statements: tuple[str, ...]) -> list[tuple[object, ...]]:
    # No prepared statements: they do not survive a transaction-pooling PgBouncer.
    with psycopg.connect(url, autocommit=True, connect_timeout=5, prepare_threshold=None) as link:
        rows: list[tuple[object, ...]] = []
        for statement in statements:
            cursor = link.execute(sql.SQL(statement))  # pyright: ignore[reportArgumentType]
            rows = list(cursor.fetchall()) if cursor.description else []
        return rows


def create(admin: str, name: str, *, owner: str | None) -> None:
    """Make the database `name`; `owner` gets the rights on it, and no others."""
    if _is_mysql(admin):
        query(admin, f"CREATE DATABASE `{name}`")
        if owner is not None:
            query(admin, f"GRANT ALL ON `{name}`.* TO '{owner}'@'%'")
    else:
        query(admin, f'CREATE DATABASE "{name}"' + (f' OWNER "{owner}"' if owner else ""))


def drop(admin: str, name: str) -> None:
    """Drop the database `name`, and with it the connections that a failed test left open."""
    if _is_mysql(admin):
        in_use = f"SELECT id FROM information_schema.processlist WHERE db = '{name}'"
        for (connection,) in query(admin, in_use):
            try:
                query(admin, f"KILL {connection}")
            except pymysql.OperationalError as error:
                if error.args[0] != 1094:  # it has ended meanwhile
                    raise
        query(admin, f"DROP DATABASE IF EXISTS `{name}`")
    else:
        query(admin, f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
