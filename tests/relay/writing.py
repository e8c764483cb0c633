"""Events written by plain SQL, one after the other or by several writers at once."""

from __future__ import annotations

import json
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, contextmanager
from urllib.parse import unquote, urlsplit

import psycopg
import pymysql

from tests.conformance.raw import path_of

_INSERT = (
    "INSERT INTO events (event_id, event_type, event_data, entity_type, entity_id, metadata, "
    "published) VALUES ({0}, {0}, {0}, {0}, {0}, {0}, 0)"
)
_DATA = json.dumps({"text": 'ä "quoted" \\ 🙂 </', "n": 1})


@contextmanager
def connected(url: str) -> Generator[Callable[[str, Sequence[Sequence[object]]], None]]:
    """Gives a function that runs a statement with each set of parameters, in one transaction."""
    parts = urlsplit(url)
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(path_of(url), timeout=30)) as file:

            def run(sql: str, many: Sequence[Sequence[object]]) -> None:
                with file:
                    file.execute("BEGIN IMMEDIATE")
                    file.executemany(sql.format("?"), many)

            file.isolation_level = None
            file.execute("PRAGMA synchronous = NORMAL")
            yield run
    elif url.startswith("postgres"):
        with psycopg.connect(url) as link:

            def run_postgres(sql: str, many: Sequence[Sequence[object]]) -> None:
                with link.transaction():
                    link.cursor().executemany(sql.format("%s").encode(), many)

            yield run_postgres
    else:
        with pymysql.connect(
            host=parts.hostname,
            port=parts.port or 3306,
            user=unquote(parts.username or ""),
            password=unquote(parts.password or ""),
            database=parts.path[1:],
            charset="utf8mb4",
            ssl_disabled=True,  # for the time that every connection would take
        ) as client:

            def run_mysql(sql: str, many: Sequence[Sequence[object]]) -> None:
                client.cursor().executemany(sql.format("%s"), many)
                client.commit()

            yield run_mysql


class Writer:
    """Writes events of an entity type of its own, which is its topic, by plain SQL.

    Ids rise for each entity, as the store's do. An entity belongs to one writer.
    """

    def __init__(self, url: str, topic: str = "") -> None:
        self.url = url
        self.topic = topic or f"test.{secrets.token_hex(6)}"
        self._name = secrets.token_hex(3)
        self._made = 0

    def rows(self, count: int, entities: int = 7, data: str = _DATA) -> list[tuple[object, ...]]:
        made: list[tuple[object, ...]] = []
        for _ in range(count):
            self._made += 1
            id = f"{time.time_ns() // 1_000_000:016x}-{self._made:016x}"
            event_id = f"{id[:16]}-{self._name}{id[-10:]}"
            metadata = None if self._made % 3 else '{"user":"ann"}'
            entity = f"{self._name}-{self._made % entities}"
            made.append((event_id, "test.Written", data, self.topic, entity, metadata))
        return made

    def write(self, count: int = 1, *, each: int = 1000, entities: int = 7) -> None:
        """In transactions of `each` events."""
        with connected(self.url) as run:
            for first in range(0, count, each):
                run(_INSERT, self.rows(min(each, count - first), entities))

    def insert(self, *made: tuple[object, ...]) -> None:
        with connected(self.url) as run:
            run(_INSERT, made)


@contextmanager
def writing(url: str, topic: str, *, writers: int = 2, pause: float = 0.02) -> Generator[None]:
    """Several writers at work for the time of a block, with small and large transactions."""
    stop = threading.Event()
    failed = list[BaseException]()

    def work() -> None:
        writer = Writer(url, topic)
        try:
            with connected(url) as run:
                while not stop.wait(pause):
                    run(_INSERT, writer.rows(secrets.choice((1, 1, 1, 2, 5, 30))))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(writers)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failed, failed
