"""What the tests of the source that follows PostgreSQL's log have in common."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import psycopg

from retold import EventStore
from retold.relay.source import Chunk, Row
from retold.relay.sources.wal import WalSource
from tests.rig.databases import query

PATIENCE_S = 30.0
INSERT = """
    INSERT INTO events (event_id, event_type, event_data, entity_type, entity_id, metadata)
    VALUES (%s, 'test.Happened', '{}', 'test.Thing', 'thing', NULL)
"""


def connect(url: str) -> psycopg.Connection[Any]:
    return psycopg.connect(url.partition("?")[0], autocommit=True)


def migrate(url: str) -> None:
    with EventStore(url) as store:
        store.migrate()


def insert(link: psycopg.Connection[Any], *ids: str) -> None:
    """One transaction, or a part of the one that is open."""
    with link.transaction():
        link.cursor().executemany(INSERT, [(id,) for id in ids])


def chunks(source: WalSource) -> Iterator[Chunk]:
    """All chunks up to the end of the log as it is now."""
    end = source.now()
    until = time.monotonic() + PATIENCE_S
    while not source.reached(end):
        assert time.monotonic() < until, "the end of the log never came"
        chunk = source.read(0.1)
        if chunk is not None:
            yield chunk


def rows(source: WalSource) -> list[Row]:
    return [row for chunk in chunks(source) for row in chunk.rows]


def ids(source: WalSource) -> list[str]:
    return [row[0] for row in rows(source)]


def slot(url: str, column: str) -> Any:
    """A column of the one slot of a database; None where there is no slot."""
    database = urlsplit(url).path[1:]
    found = query(
        url.partition("?")[0],
        f"SELECT {column} FROM pg_replication_slots WHERE database = '{database}'",
    )
    return found[0][0] if found else None


def drop_slots(url: str) -> None:
    """A database with a slot in use cannot be dropped."""
    mine = f"FROM pg_replication_slots WHERE database = '{urlsplit(url).path[1:]}'"
    query(url, f"SELECT pg_terminate_backend(active_pid) {mine} AND active")
    wait_until(lambda: not query(url, f"SELECT 1 {mine} AND active"))
    query(url, f"SELECT pg_drop_replication_slot(slot_name) {mine}")


def wait_until(true: Callable[[], object]) -> None:
    until = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < until, "it never came true"
        time.sleep(0.01)
