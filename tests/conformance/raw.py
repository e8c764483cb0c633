"""What is really stored, read and written by raw SQL beside the store."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from urllib.parse import unquote, urlsplit

from tests.rig.databases import query


def rows(url: str, *statements: str) -> list[tuple[object, ...]]:
    """The rows of the last statement; each one is committed on its own."""
    plain = url.partition("?")[0]
    if not plain.startswith("sqlite"):
        return query(plain.replace("mysql+mysqlclient", "mysql"), *statements)
    with closing(sqlite3.connect(path_of(plain), isolation_level=None, timeout=30)) as connection:
        found: list[tuple[object, ...]] = []
        for statement in statements:
            found = connection.execute(statement).fetchall()
        return found


def path_of(url: str) -> str:
    """The file of a SQLite URL."""
    return unquote(urlsplit(url).path)[1:]


def literal(text: str) -> str:
    """A text as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"


def event_ids(url: str, entity_id: str) -> list[str]:
    found = rows(
        url,
        f"SELECT event_id FROM events WHERE entity_id = {literal(entity_id)} ORDER BY event_id",
    )
    return [str(id) for (id,) in found]


def count(url: str, table: str, entity_id: str) -> int:
    ((n,),) = rows(url, f"SELECT count(*) FROM {table} WHERE entity_id = {literal(entity_id)}")
    return int(str(n))


def entity_version(url: str, entity_id: str) -> str:
    ((version,),) = rows(
        url, f"SELECT entity_version FROM entities WHERE entity_id = {literal(entity_id)}"
    )
    return str(version)
