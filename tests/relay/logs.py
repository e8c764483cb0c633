"""The logs that the suite of all sources runs over: how each is written to, and how it is followed."""

from __future__ import annotations

import itertools
import secrets
import sqlite3
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, Self
from urllib.parse import unquote, urlsplit

import psycopg
import pymysql

from retold import EventStore
from retold.drivers import open_driver
from retold.errors import ConnectionLost, StoreUnavailable
from retold.relay.positions import Position
from retold.relay.source import Chunk, Source
from retold.relay.sources.binlog import BinlogSource
from retold.relay.sources.polling import PollingSource
from retold.relay.sources.wal import WalSource
from retold.store.url import parse_url
from tests.conformance.raw import path_of
from tests.rig import MariaDB, MySQL, Postgres, Private, Rig, Server
from tests.rig.databases import query, with_parts

Event = tuple[str, str, str, str, str, str | None]
"""The first six parts of a Row."""

PATIENCE_S = 30.0
_GTID = ("--gtid-mode=ON", "--enforce-gtid-consistency=ON")


@dataclass(frozen=True)
class Kind:
    """One source on one database, and what it promises beyond the least.

    options: of a server of its own. total_order: transactions come whole, in the order of commits;
    otherwise each entity's events do. goes_back: it may be started at any earlier position;
    otherwise at the last one. concurrent: the database takes several transactions at once.
    """

    database: str
    follows: str
    options: tuple[str, ...] = ()
    total_order: bool = True
    goes_back: bool = True
    concurrent: bool = True


def _polling(database: str, *, concurrent: bool = True) -> Kind:
    return Kind(database, "polling", total_order=False, goes_back=False, concurrent=concurrent)


KINDS = {
    "binlog mariadb": Kind("mariadb", "binlog"),
    "binlog mysql8": Kind("mysql8", "binlog"),
    "binlog mysql8 gtid": Kind("mysql8", "binlog", _GTID),
    "binlog mysql8 compressed": Kind(
        "mysql8", "binlog", (*_GTID, "--binlog-transaction-compression=ON")
    ),
    "wal postgres15": Kind("postgres15", "wal"),
    "wal postgres18": Kind("postgres18", "wal"),
    "polling sqlite": _polling("sqlite", concurrent=False),
    "polling postgres18": _polling("postgres18"),
    "polling mariadb": _polling("mariadb"),
}

_numbers = itertools.count(1)


def event(
    entity: str = "thing",
    data: str = "{}",
    metadata: str | None = None,
    *,
    entity_type: str = "test.Thing",
    name: str = "test.Happened",
) -> Event:
    """An event with an id higher than all before."""
    return f"{next(_numbers):016x}-{0:016x}", name, data, entity_type, entity, metadata


COLUMNS = "event_id, event_type, event_data, entity_type, entity_id, metadata"
_INSERT = f"INSERT INTO events ({COLUMNS}) VALUES "


class Link:
    """A connection that writes, beside the store; every statement commits unless in `transaction`."""

    def __init__(self, url: str) -> None:
        self.family = parse_url(url).database_kind
        if self.family == "sqlite":
            self.raw: Any = sqlite3.connect(path_of(url), isolation_level=None, timeout=30)
        elif self.family == "postgres":
            self.raw = psycopg.connect(url, autocommit=True)
        else:
            parts = urlsplit(url)
            self.raw = pymysql.connect(
                host=parts.hostname,
                port=parts.port or 3306,
                user=unquote(parts.username or ""),
                password=unquote(parts.password or ""),
                database=parts.path[1:],
                autocommit=True,
                charset="utf8mb4",
                local_infile=True,
                ssl_disabled=True,  # for the time that every connection would take
            )

    def execute(self, sql: str, params: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        if self.family == "sqlite":
            return list(self.raw.execute(sql.replace("%s", "?"), params))
        cursor = self.raw.cursor()
        cursor.execute(sql, params or None)
        return list(cursor.fetchall()) if cursor.description else []

    def insert(self, *events: Event) -> None:
        """One statement."""
        values = ", ".join(["(%s, %s, %s, %s, %s, %s)"] * len(events))
        self.execute(_INSERT + values, [value for event in events for value in event])

    def insert_many(self, events: Sequence[Event]) -> None:
        for first in range(0, len(events), 500):
            self.insert(*events[first : first + 500])

    @contextmanager
    def transaction(self, end: str = "COMMIT") -> Generator[Self]:
        self.execute("BEGIN")
        yield self
        self.execute(end)

    def load(self, events: Sequence[Event]) -> None:
        """By the way the database has for many rows."""
        if self.family == "postgres":
            with self.raw.cursor().copy(f"COPY events ({COLUMNS}) FROM STDIN") as copy:
                for one in events:
                    copy.write_row(one)
            return
        with NamedTemporaryFile("w", suffix=".tsv", newline="") as file:
            file.writelines("\t".join(map(_escaped, one)) + "\n" for one in events)
            file.flush()
            self.execute(
                f"LOAD DATA LOCAL INFILE '{file.name}' INTO TABLE events CHARACTER SET utf8mb4 "
                f"({COLUMNS})"
            )

    def close(self) -> None:
        with suppress(pymysql.Error, psycopg.Error):  # broken by a test
            self.raw.close()


def _escaped(text: str | None) -> str:
    if text is None:
        return r"\N"
    return text.replace("\\", r"\\").replace("\t", r"\t").replace("\n", r"\n")


class Log:
    """One database with retold's tables, whose log a source follows."""

    def __init__(self, kind: Kind, url: str, admin: str) -> None:
        """url: with the rights of an administrator. admin: without the database."""
        self.kind = kind
        self.url = url
        self.admin = admin
        self._name = secrets.token_hex(8)
        self._open = ExitStack()
        with EventStore(url) as store:
            store.migrate(polling=kind.follows == "polling")

    def source(self, url: str = "") -> Source:
        """One that is not started."""
        source: Source
        parsed = parse_url(url or self.url)
        if self.kind.follows == "wal":
            source = WalSource(parsed, f"relay_{self._name}")
        elif self.kind.follows == "binlog":
            source = BinlogSource(parsed, next(_numbers) + 1_000_000)
        else:
            driver = open_driver(parsed)
            self._open.callback(driver.close)
            source = PollingSource(driver)
        self._open.callback(source.close)
        return source

    def start(self, position: Position | None = None) -> Source:
        """One that reads from a position on; from now on without one."""
        source = self.source()
        source.start(position or source.now())
        return source

    def link(self) -> Link:
        link = Link(self.url)
        self._open.callback(link.close)
        return link

    def close(self) -> None:
        """End what was opened, and let a source that polls find nothing later."""
        self._open.close()
        if self.kind.follows == "polling":
            link = Link(self.url)
            link.execute("DELETE FROM events")
            link.close()

    def break_connections(self) -> None:
        """End all connections to the database, as a proxy or an administrator may."""
        database = parse_url(self.url).database
        if self.kind.database.startswith("postgres"):
            query(
                self.admin,
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = "
                f"'{database}' AND pid <> pg_backend_pid()",
            )
            return
        mine = "SELECT id FROM information_schema.processlist WHERE id <> connection_id()"
        for (id,) in query(self.admin, f"{mine} AND (db = '{database}' OR command LIKE 'Binlog%')"):
            with suppress(pymysql.OperationalError):  # it has ended meanwhile
                query(self.admin, f"KILL {id}")


class Logs:
    """The logs by name: each made when a test first wants it, on servers of the rig or its own."""

    def __init__(self, servers: Rig, folder: Path) -> None:
        self._servers = servers
        self._folder = folder
        self._logs: dict[str, Log] = {}
        self._private: dict[tuple[str, tuple[str, ...]], Private] = {}
        self._made: list[tuple[Server, str]] = []

    def __getitem__(self, name: str) -> Log:
        """A database that other tests use too."""
        if name not in self._logs:
            self._logs[name] = self.new(name)
        return self._logs[name]

    def new(self, name: str, *, private: bool = False) -> Log:
        """A database of its own. private: on a server that a test may end."""
        kind = KINDS[name]
        database = f"test_{secrets.token_hex(8)}"
        if kind.database == "sqlite":
            return Log(kind, f"sqlite:///{self._folder / database}.db", "")
        server = self.server(name, private=private)
        server.create_database(database)
        self._made.append((server, database))
        return Log(kind, with_parts(server.url, database=database), server.url)

    def server(self, name: str, *, private: bool = False) -> Server:
        kind = KINDS[name]
        if not kind.options and not private:
            return self._servers[kind.database]
        key = kind.database, kind.options
        if key not in self._private:
            self._private[key] = _new_server(*key)
            self._private[key].start()
        return self._private[key]

    def close(self) -> None:
        for log in self._logs.values():
            log.close()
        for server, database in self._made:
            if server not in self._private.values():
                drop_slots(server.url, database)
                server.drop_database(database)
        for server in self._private.values():
            server.stop()


def _new_server(database: str, options: tuple[str, ...]) -> Private:
    match database:
        case "mysql8":
            return MySQL(*options)
        case "mariadb":
            return MariaDB(*options)
        case _:
            return Postgres(int(database.removeprefix("postgres")), *options)


def drop_slots(admin: str, database: str) -> None:
    """A database with a slot cannot be dropped."""
    if not admin.startswith("postgres"):
        return
    mine = f"FROM pg_replication_slots WHERE database = '{database}'"
    query(admin, f"SELECT pg_terminate_backend(active_pid) {mine} AND active")
    wait_until(lambda: not query(admin, f"SELECT 1 {mine} AND active"))
    query(admin, f"SELECT pg_drop_replication_slot(slot_name) {mine}")


def wait_until(true: Callable[[], object]) -> None:
    until = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < until, "it never came true"
        time.sleep(0.01)


# --- reading --------------------------------------------------------------------------------------


def chunks(source: Source, end: Position | None = None, *, confirm: bool = True) -> Iterator[Chunk]:
    """All up to an end, which is that of the log as it is now; each confirmed when the next one is
    asked for."""
    end = end or source.now()
    until = time.monotonic() + PATIENCE_S
    while True:
        chunk = source.read(0.02)
        if chunk is not None:
            yield chunk
            if confirm:
                source.confirm(chunk.position)
        elif source.reached(end):
            return
        assert time.monotonic() < until, "the end of the log never came"


def read(source: Source, end: Position | None = None, *, confirm: bool = True) -> list[Event]:
    return events_of(chunks(source, end, confirm=confirm))


def events_of(some: Iterator[Chunk] | Sequence[Chunk]) -> list[Event]:
    return [row[:6] for chunk in some for row in chunk.rows]


class Follower:
    """Reads as a relay does: what comes, and the position behind it, from which it begins again."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.position = source.now()
        self.found: list[Event] = []
        source.start(self.position)

    def read(self) -> Chunk | None:
        chunk = self.source.read(0.1)
        if chunk is not None:
            self.found += events_of([chunk])
            self.position = chunk.position
            self.source.confirm(chunk.position)
        return chunk

    def read_until(self, count: int) -> None:
        """Until so many events have come since it was made."""

        def enough() -> bool:
            if len(self.found) < count:
                self.read()
            return len(self.found) >= count

        wait_until(enough)

    def read_until_it_breaks(self) -> None:
        def broken() -> bool:
            try:
                self.read()
            except (ConnectionLost, StoreUnavailable):
                return True
            return False

        wait_until(broken)

    def begin_again(self) -> None:
        def begun() -> bool:
            try:
                self.source.start(self.position)
            except (ConnectionLost, StoreUnavailable):
                return False
            return True

        wait_until(begun)


def check(log: Log, found: Sequence[Event], *transactions: Sequence[Event]) -> None:
    """Fail unless exactly these events were found, in the order that the source promises.

    transactions: in the order of commits.
    """
    expected = [event for events in transactions for event in events]
    if log.kind.total_order:
        _check_equal(found, expected)
        return
    assert len(found) == len(expected)
    by_entity = _by_entity(found)
    for entity, events in _by_entity(expected).items():
        _check_equal(by_entity.get(entity, []), events)


def _check_equal(found: Sequence[Event], expected: Sequence[Event]) -> None:
    # Not by one comparison: a difference of many thousand rows would be worked out for minutes.
    for number, (one, other) in enumerate(zip(found, expected, strict=False)):
        assert one == other, f"event {number} of {len(expected)}"
    assert len(found) == len(expected)


def _by_entity(events: Sequence[Event]) -> dict[tuple[str, str], list[Event]]:
    found: dict[tuple[str, str], list[Event]] = {}
    for one in events:
        found.setdefault((one[3], one[4]), []).append(one)
    return found
