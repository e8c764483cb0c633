"""The relay against the floors: `python -m benchmarks.relay`; see docs/benchmarks.md.

Starts its own servers, and measures `retold relay` as a process, from outside: what a consumer that
reads committed records sees, and what the system says of the process. Beside it, in the same round,
bare loops: one that only reads the log, and one that only writes ready records to Kafka.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import version
from itertools import count
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pymysql
from confluent_kafka import Consumer, KafkaException, TopicPartition, murmur2

from benchmarks.relay_floors import (
    SLOT,
    Measured,
    Record,
    login,
    measured,
    mysql_reader,
    produce,
    produce_one_by_one,
    read_copy_data,
    read_table,
)
from retold import EventStore
from tests.rig import Kafka, Rig
from tests.rig.databases import with_parts
from tests.rig.kafka import ORDINARY_JVM

DEFAULT = "mariadb,mysql8,postgres18,sqlite"
SHAPES = {
    "single": "one event in each transaction",
    "update": "an event and a new version of its entity in each transaction",
}
PACKAGES = ("retold", "confluent-kafka", "PyMySQL", "psycopg", "msgspec")
PARTITIONS = 12
_ENTITIES = 1000
_PATIENCE_S = 120.0
_SPAWN = get_context("spawn")
# Its types are incomplete.
_admin: Any = import_module("confluent_kafka.admin")
# 280 bytes as applications store them: quotes, escapes, letters of more than one byte.
DATA = json.dumps(
    {
        "owner": "Ann-Sofie Müller",
        "note": 'said "now", then left\n',
        "lines": [{"sku": f"A-{n:05}", "count": n, "price": 1999} for n in range(4)],
        "address": "Straße 1, 12345 Köln",
    },
    ensure_ascii=False,
)


@dataclass(frozen=True)
class Target:
    """What is wanted: at most or at least a number; or a number of times what is beside it."""

    what: str
    databases: tuple[str, ...]
    value: float
    least: bool = False
    times: str = ""


TARGETS = (
    Target("events/s", ("mariadb", "mysql8"), 80_000, least=True),
    Target("events/s", ("postgres",), 60_000, least=True),
    Target("p50 ms", ("mariadb", "mysql8", "postgres"), 4.0),
    Target("p99 ms", ("mariadb", "mysql8", "postgres"), 1.3, times="floor p99 ms"),
    Target("RSS MB", ("",), 80),
    Target("large RSS MB", ("",), 80),
    Target("start s", ("",), 1.0),
    Target("restart s", ("",), 2.0),
)


# --- databases ------------------------------------------------------------------------------------


class Database:
    """One database with retold's tables, filled by its own means, and its floor."""

    reader = ""
    polling = False

    def __init__(self, name: str, url: str) -> None:
        self.name = name
        self.url = url
        self._numbers = count(1)
        with EventStore(url) as store:
            store.migrate(polling=self.polling)

    def settings(self) -> dict[str, str]:
        raise NotImplementedError

    def note_place(self) -> None:
        """Where the floor will begin to read."""

    def forget_place(self) -> None:
        """Where no floor will."""

    def fill(self, shape: str, topic: str, events: int) -> None:
        """So many transactions, quickly: they need not be durable."""
        raise NotImplementedError

    def fill_at_once(self, topic: str, megabytes: int) -> int:
        """One transaction; how many events it has."""
        raise NotImplementedError

    def read(self, events: int) -> Measured:
        """The floor's turn."""
        raise NotImplementedError

    def inserter(self) -> Callable[[str, str], object]:
        """Inserts one event, durably: topic and event id."""
        raise NotImplementedError

    def rows(self, topic: str) -> list[tuple[str, str]]:
        """Id and entity of a topic's events."""
        raise NotImplementedError

    def first_id(self) -> int:
        return time.time_ns() // 1_000_000 - 86_400_000


_COLUMNS = "event_id, event_type, event_data, entity_type, entity_id"
_VALUES = "VALUES (%s, 'bench.Debited', %s, %s, %s)"
_INSERT = f"INSERT INTO events ({_COLUMNS}) {_VALUES}"


class MySQLDatabase(Database):
    # Runs in the server, because 50,000 round trips take longer than all that is measured.
    _procedure = f"""
        CREATE PROCEDURE fill(topic TEXT, data TEXT, first BIGINT, events INT, updates INT)
        BEGIN
            DECLARE n INT DEFAULT 0;
            DECLARE id VARCHAR(40);
            WHILE n < events DO
                SET id = LOWER(CONCAT(LPAD(HEX(first + n DIV 50), 16, '0'), '-', LPAD(HEX(n), 16, '0')));
                START TRANSACTION;
                IF updates THEN
                    UPDATE entities SET entity_version = id
                    WHERE entity_type = topic AND entity_id = CONCAT('account-', n % {_ENTITIES});
                END IF;
                INSERT INTO events ({_COLUMNS}) VALUES
                (id, 'bench.Debited', data, topic, CONCAT('account-', n % {_ENTITIES}));
                COMMIT;
                SET n = n + 1;
            END WHILE;
        END
    """

    def __init__(self, name: str, url: str) -> None:
        super().__init__(name, url)
        self.reader, self._read = mysql_reader()
        self._raw = self._connect()
        self._place: tuple[Any, ...] = ()
        self._execute(self._procedure)

    def _connect(self) -> Any:
        return pymysql.connect(
            **login(self.url),
            database=self.url.rpartition("/")[2],
            charset="utf8mb4",
            autocommit=True,
        )

    def _execute(self, sql: str, *params: object) -> list[Any]:
        with self._raw.cursor() as cursor:
            cursor.execute(sql, params or None)
            return list(cursor.fetchall())

    def settings(self) -> dict[str, str]:
        names = (
            *("version", "sync_binlog", "innodb_flush_log_at_trx_commit", "binlog_row_image"),
            "binlog_checksum",
        )
        (row,) = self._execute("SELECT " + ", ".join(f"@@global.{name}" for name in names))
        return {name: str(value) for name, value in zip(names, row, strict=True)}

    def note_place(self) -> None:
        self._place = self._execute("SHOW MASTER STATUS")[0][:2]

    def _durable(self, yes: bool) -> None:
        self._execute(f"SET GLOBAL sync_binlog = {int(yes)}")
        self._execute(f"SET GLOBAL innodb_flush_log_at_trx_commit = {1 if yes else 2}")

    def fill(self, shape: str, topic: str, events: int) -> None:
        entities = [(topic, f"account-{n}", "0") for n in range(_ENTITIES)]
        self._durable(False)
        with self._raw.cursor() as cursor:
            cursor.executemany("INSERT INTO entities VALUES (%s, %s, %s)", entities)
        self.note_place()
        updates = int(shape == "update")
        self._execute(
            "CALL fill(%s, %s, %s, %s, %s)", topic, DATA, self.first_id(), events, updates
        )
        self._durable(True)

    def fill_at_once(self, topic: str, megabytes: int) -> int:
        self._durable(False)
        rows = 1000 * megabytes // 500  # of a page, and pages
        page = [
            (f"{self.first_id():016x}-{n:016x}", "x" * 10_000, topic, f"account-{n}")
            for n in range(50)
        ]
        events = 0
        self._raw.begin()
        with self._raw.cursor() as cursor:
            for part in range(max(1, rows)):
                cursor.executemany(_INSERT, [(f"{id}{part}", *rest) for id, *rest in page])
                events += len(page)
        self._raw.commit()
        self._durable(True)
        return events

    def read(self, events: int) -> Measured:
        return measured(self._read, self.url, *self._place, events)

    def inserter(self) -> Callable[[str, str], object]:
        cursor = self._connect().cursor()
        return lambda topic, id: cursor.execute(_INSERT, (id, DATA, topic, id))

    def rows(self, topic: str) -> list[tuple[str, str]]:
        return self._execute("SELECT event_id, entity_id FROM events WHERE entity_type = %s", topic)


class PostgresDatabase(Database):
    reader = "get_copy_data"

    _fill = f"""
        DO $$ BEGIN
            FOR n IN 0..{{events}} - 1 LOOP
                {{update}}
                INSERT INTO events ({_COLUMNS}) VALUES
                (lpad(to_hex({{first}} + n / 50), 16, '0') || '-' || lpad(to_hex(n), 16, '0'),
                 'bench.Debited', {{data}}, '{{topic}}', 'account-' || n % {_ENTITIES});
                COMMIT;
            END LOOP;
        END $$
    """
    _update = f"""
        UPDATE entities SET entity_version = lpad(to_hex(n), 16, '0')
        WHERE entity_type = '{{topic}}' AND entity_id = 'account-' || n % {_ENTITIES};
    """

    def __init__(self, name: str, url: str) -> None:
        super().__init__(name, url)
        self._link = psycopg.connect(url, autocommit=True)
        self._execute(f"CREATE PUBLICATION {SLOT} FOR TABLE events WITH (publish = 'insert')")
        self._has_slot = False

    def _execute(self, sql: str, params: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        run: Any = self._link.execute
        cursor = run(sql, params or None)
        return list(cursor.fetchall()) if cursor.description else []

    def settings(self) -> dict[str, str]:
        names = ("server_version", "fsync", "synchronous_commit", "wal_level")
        return {name: str(self._execute(f"SHOW {name}")[0][0]) for name in names}

    def note_place(self) -> None:
        if self._has_slot:
            self._execute(f"SELECT pg_drop_replication_slot('{SLOT}')")
        self._execute(f"SELECT pg_create_logical_replication_slot('{SLOT}', 'pgoutput')::text")
        self._has_slot = True

    def forget_place(self) -> None:
        self._execute(f"SELECT pg_drop_replication_slot('{SLOT}')")
        self._has_slot = False

    def fill(self, shape: str, topic: str, events: int) -> None:
        self._execute(
            "INSERT INTO entities SELECT %s, 'account-' || n, '0' "
            f"FROM generate_series(0, {_ENTITIES - 1}) n",
            (topic,),
        )
        self.note_place()
        self._execute("SET synchronous_commit = off")
        update = self._update.format(topic=topic) if shape == "update" else ""
        data = "'" + DATA.replace("'", "''") + "'"
        self._execute(
            self._fill.format(
                events=events, update=update, first=self.first_id(), data=data, topic=topic
            )
        )
        self._execute("SET synchronous_commit = on")

    def fill_at_once(self, topic: str, megabytes: int) -> int:
        events = 100 * megabytes
        self._execute(
            f"INSERT INTO events ({_COLUMNS}) SELECT lpad(to_hex(%s), 16, '0') || '-' ||"
            " lpad(to_hex(n), 16, '0'), 'bench.Debited', repeat(md5(n::text), 312), %s,"
            f" 'account-' || mod(n, {_ENTITIES}) FROM generate_series(1, %s) n",
            (self.first_id(), topic, events),
        )
        return events

    def read(self, events: int) -> Measured:
        return measured(read_copy_data, self.url, events)

    def inserter(self) -> Callable[[str, str], object]:
        link: Any = psycopg.connect(self.url, autocommit=True)
        return lambda topic, id: link.execute(_INSERT, (id, DATA, topic, id))

    def rows(self, topic: str) -> list[tuple[str, str]]:
        found = self._execute(
            "SELECT event_id, entity_id FROM events WHERE entity_type = %s", (topic,)
        )
        return [(str(id), str(entity)) for id, entity in found]


class SqliteDatabase(Database):
    reader = "a page, the mark"
    polling = True

    def __init__(self, name: str, url: str) -> None:
        super().__init__(name, url)
        self._path = url.removeprefix("sqlite:///")
        self._raw = sqlite3.connect(self._path, isolation_level=None)

    def settings(self) -> dict[str, str]:
        return {"version": sqlite3.sqlite_version, "journal": "WAL"}

    def fill(self, shape: str, topic: str, events: int) -> None:
        execute = self._raw.execute
        first = self.first_id()
        execute("PRAGMA synchronous = OFF")
        self._raw.executemany(
            "INSERT INTO entities VALUES (?, ?, '0')",
            [(topic, f"account-{n}") for n in range(_ENTITIES)],
        )
        for n in range(events):
            id, entity = f"{first + n // 50:016x}-{n:016x}", f"account-{n % _ENTITIES}"
            execute("BEGIN IMMEDIATE")
            if shape == "update":
                execute(
                    "UPDATE entities SET entity_version = ?"
                    " WHERE entity_type = ? AND entity_id = ?",
                    (id, topic, entity),
                )
            execute(_INSERT.replace("%s", "?"), (id, DATA, topic, entity))
            execute("COMMIT")
        execute("PRAGMA synchronous = FULL")

    def fill_at_once(self, topic: str, megabytes: int) -> int:
        first, events = self.first_id(), 100 * megabytes
        self._raw.execute("BEGIN IMMEDIATE")
        self._raw.executemany(
            _INSERT.replace("%s", "?"),
            ((f"{first:016x}-{n:016x}", "x" * 10_000, topic, f"a-{n}") for n in range(events)),
        )
        self._raw.execute("COMMIT")
        return events

    def read(self, events: int) -> Measured:
        # What the relay published is marked; the floor reads it once more.
        self._raw.execute("UPDATE events SET published = 0")
        found = measured(read_table, self._path, events)
        self._raw.execute("UPDATE events SET published = 1")
        return found

    def inserter(self) -> Callable[[str, str], object]:
        raw = sqlite3.connect(self._path, isolation_level=None, timeout=30)
        return lambda topic, id: raw.execute(_INSERT.replace("%s", "?"), (id, DATA, topic, id))

    def rows(self, topic: str) -> list[tuple[str, str]]:
        return self._raw.execute(
            "SELECT event_id, entity_id FROM events WHERE entity_type = ?", (topic,)
        ).fetchall()


def open_database(rig: Rig, name: str, folder: Path) -> Database:
    if name == "sqlite":
        return SqliteDatabase(name, f"sqlite:///{folder}/{uuid4().hex[:8]}.db")
    database = f"bench_{uuid4().hex[:8]}"
    rig[name].create_database(database)
    # An administrator, who may follow the log and set what fills the table quickly.
    url = with_parts(rig[name].url, database=database)
    return (PostgresDatabase if name.startswith("postgres") else MySQLDatabase)(name, url)


# --- the relay, from outside ----------------------------------------------------------------------


class Relay:
    """`retold relay` as a process."""

    def __init__(self, url: str, bootstrap: str, name: str, *options: str) -> None:
        command = [sys.executable, "-m", "retold", "relay", "--database", url]
        self.began = time.monotonic()
        self._process = subprocess.Popen(
            [*command, "--kafka", bootstrap, "--name", name, "--log-format=json", *options],
            stderr=subprocess.DEVNULL,
        )

    def cpu(self) -> float:
        """Seconds of all its threads."""
        fields = self._file("stat").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def most_memory(self) -> float:
        """The most it ever had, in MB."""
        (line,) = [line for line in self._file("status").splitlines() if line.startswith("VmHWM")]
        return int(line.split()[1]) / 1024

    def _file(self, name: str) -> str:
        return Path(f"/proc/{self._process.pid}/{name}").read_text()

    def end(self, how: signal.Signals = signal.SIGTERM) -> None:
        self._process.send_signal(how)
        self._process.wait()


@dataclass
class Arrivals:
    """What a consumer saw: when, how many, and the last offset of each partition by then."""

    first: float = 0.0
    last: float = 0.0
    events: int = 0
    in_first: int = 0
    """Events of the first transaction."""


class Watcher:
    """A consumer of one topic, from its end on."""

    def __init__(self, bootstrap: str, topic: str, partitions: int = PARTITIONS) -> None:
        self._consumer = Consumer(
            {
                "bootstrap.servers": bootstrap,
                "group.id": uuid4().hex,
                "isolation.level": "read_committed",
                "enable.auto.commit": False,
                "fetch.error.backoff.ms": 5,
                "topic.metadata.refresh.fast.interval.ms": 10,
            }
        )
        places = [TopicPartition(topic, number) for number in range(partitions)]
        for place in places:
            place.offset = self._end(place)
        self._consumer.assign(places)
        self._consumer.poll(0.2)

    def _end(self, place: TopicPartition) -> int:
        until = time.monotonic() + _PATIENCE_S
        while True:
            try:
                return int(self._consumer.get_watermark_offsets(place, timeout=30)[1])
            except KafkaException:  # a new topic has no leader for a moment
                if time.monotonic() > until:
                    raise
                time.sleep(0.05)

    def count(self, events: int, at_first: Callable[[], object] = lambda: None) -> Arrivals:
        """Wait for so many. at_first: called when the first has come."""
        seen = Arrivals()
        following: dict[int, int] = {}
        later: set[int] = set()
        until = time.monotonic() + _PATIENCE_S
        while seen.events < events:
            messages = self._consumer.consume(5000, 0.05)
            if not messages:
                if time.monotonic() > until:
                    raise TimeoutError(f"{seen.events} of {events} events came")
                continue
            seen.last = time.monotonic()
            if not seen.first:
                seen.first = seen.last
                at_first()
            for message in messages:
                if message.error() is not None:
                    raise KafkaException(message.error())
                partition, offset = message.partition() or 0, message.offset() or 0
                # The end of a transaction takes an offset.
                if partition not in later and following.get(partition, offset) != offset:
                    later.add(partition)
                following[partition] = offset + 1
                seen.in_first += partition not in later
            seen.events += len(messages)
        return seen

    def keys(self, stop: Callable[[], bool]) -> Iterator[tuple[bytes, float]]:
        """The key of each record as it comes, and when."""
        while not stop():
            message = self._consumer.poll(0.05)
            if message is not None and message.error() is None:
                yield message.key() or b"", time.monotonic()

    def close(self) -> None:
        self._consumer.close()


def make_topic(bootstrap: str, topic: str) -> None:
    client = _admin.AdminClient({"bootstrap.servers": bootstrap})
    client.create_topics([_admin.NewTopic(topic, PARTITIONS)])[topic].result(30)


# --- measuring ------------------------------------------------------------------------------------


@dataclass
class Found:
    """One database: what → a number for each round; None where it was not measured."""

    database: str
    reader: str
    settings: dict[str, str]
    values: dict[str, list[float]] = field(default_factory=dict[str, list[float]])

    def add(self, what: str, value: float) -> None:
        self.values.setdefault(what, []).append(value)

    def value(self, what: str) -> float | None:
        return statistics.median(self.values[what]) if what in self.values else None


class Bench:
    """One database and the broker."""

    def __init__(self, database: Database, bootstrap: str) -> None:
        self._database = database
        self._kafka = bootstrap
        self._name = f"bench-{uuid4().hex[:8]}"
        self.found = Found(database.name, database.reader, database.settings())

    def _topic(self) -> str:
        topic = f"bench.{uuid4().hex[:8]}"
        make_topic(self._kafka, topic)
        return topic

    def _relay(self, *options: str) -> Relay:
        return Relay(self._database.url, self._kafka, self._name, *options)

    def begin(self) -> None:
        """Let the relay have a position behind what is there."""
        topic = self._topic()
        watcher = Watcher(self._kafka, topic)
        insert = self._database.inserter()
        relay = self._relay("--from-now")
        ended = threading.Event()

        def write() -> None:
            for number in count():
                if ended.wait(0.1):
                    return
                insert(topic, f"{time.time_ns() // 1_000_000:016x}-{number:016x}")

        writer = threading.Thread(target=write)
        if isinstance(self._database, SqliteDatabase):  # whose connections are a thread's own
            time.sleep(3)
        else:
            writer.start()
            watcher.count(1)
            ended.set()
            writer.join()
        time.sleep(1)
        relay.end()
        watcher.close()

    def catch_up(self, shape: str, events: int) -> None:
        topic = self._topic()
        self._database.fill(shape, topic, events)
        watcher = Watcher(self._kafka, topic)
        relay = self._relay()
        try:
            used: list[float] = []
            seen = watcher.count(events, lambda: used.append(relay.cpu()))
            used.append(relay.cpu())
            rest = max(1, seen.events - seen.in_first)
            self.found.add(f"{shape} events/s", _rate_behind_first(seen))
            self.found.add(f"{shape} CPU µs", 1e6 * (used[1] - used[0]) / rest)
            self.found.add(f"{shape} RSS MB", relay.most_memory())
        finally:
            relay.end()
            watcher.close()
        floor = self._database.read(events)
        self.found.add(f"{shape} reader/s", floor.rate)
        self.found.add(f"{shape} reader CPU µs", floor.cpu)
        records = [_record(id, entity, topic) for id, entity in self._database.rows(topic)]
        producer = measured(produce, self._kafka, self._topic(), records)
        self.found.add(f"{shape} producer/s", producer.rate)
        self.found.add(f"{shape} producer CPU µs", producer.cpu)

    def large_transaction(self, megabytes: int) -> None:
        topic = self._topic()
        events = self._database.fill_at_once(topic, megabytes)
        watcher = Watcher(self._kafka, topic)
        relay = self._relay()
        try:
            watcher.count(events)
            self.found.add("large RSS MB", relay.most_memory())
        finally:
            relay.end()
            watcher.close()

    def latency(self, rate: float, seconds: float) -> None:
        topic = self._topic()
        watcher = Watcher(self._kafka, topic)
        relay = self._relay()
        try:
            came = self._while_writing(topic, watcher, rate, seconds, lambda: None)
        finally:
            relay.end()
            watcher.close()
        self._add_delays("", came)
        topic = self._topic()
        watcher = Watcher(self._kafka, topic)
        records = [_record(str(n), str(n), topic) for n in range(int(min(rate, 200) * seconds))]
        pipe, other = _SPAWN.Pipe()
        process = _SPAWN.Process(
            target=produce_one_by_one, args=(self._kafka, topic, records, other)
        )
        process.start()
        other.close()
        arrived = dict(_first_times(watcher, len(records)))
        began: dict[bytes, float] = pipe.recv()
        process.join()
        watcher.close()
        self._add_delays("floor ", [arrived[key] - at for key, at in began.items()])

    def _add_delays(self, prefix: str, delays: Sequence[float]) -> None:
        ordered = sorted(delays)[:]
        self.found.add(f"{prefix}p50 ms", 1000 * ordered[len(ordered) // 2])
        self.found.add(f"{prefix}p99 ms", 1000 * ordered[int(len(ordered) * 0.99)])

    def _while_writing(
        self,
        topic: str,
        watcher: Watcher,
        rate: float,
        seconds: float,
        during: Callable[[], None],
    ) -> list[float]:
        """Seconds from the return of each commit to its record; the first second is not counted."""
        pipe, other = _SPAWN.Pipe()
        job = (self._database.name, self._database.url, topic, rate, seconds + 1, other)
        writer = _SPAWN.Process(target=write_steadily, args=job)
        writer.start()
        other.close()
        arrived: dict[bytes, float] = {}
        written: dict[bytes, float] = {}
        ended = threading.Event()

        def watch() -> None:
            until = 0.0
            for key, at in watcher.keys(ended.is_set):
                arrived.setdefault(key, at)
                if written and (len(arrived) >= len(written) or time.monotonic() > until):
                    return
                until = until or time.monotonic() + _PATIENCE_S

        thread = threading.Thread(target=watch)
        thread.start()
        during()
        written.update(pipe.recv())
        writer.join()
        deadline = time.monotonic() + _PATIENCE_S
        while len(arrived) < len(written) and time.monotonic() < deadline:
            time.sleep(0.01)
        ended.set()
        thread.join()
        self._written, self._arrived = written, arrived
        warm = min(written.values()) + 1
        return [arrived[key] - at for key, at in written.items() if at > warm]

    def start(self) -> None:
        """From the process's start to the first record, when one event waits."""
        topic = self._topic()
        watcher = Watcher(self._kafka, topic)
        self._database.inserter()(topic, f"{time.time_ns() // 1_000_000:016x}-{0:016x}")
        relay = self._relay()
        seen = watcher.count(1)
        self.found.add("start s", seen.first - relay.began)
        relay.end()
        watcher.close()

    def restart(self, rate: float) -> None:
        """From a SIGKILL to the next record, when the relay is started again at once."""
        topic = self._topic()
        watcher = Watcher(self._kafka, topic)
        relays = [self._relay()]
        killed = 0.0

        def kill() -> None:
            nonlocal killed
            time.sleep(3)
            relays[0].end(signal.SIGKILL)
            killed = time.monotonic()
            relays.append(self._relay())

        self._while_writing(topic, watcher, rate, 6, kill)
        relays[1].end()
        watcher.close()
        later = [self._arrived[key] for key, at in self._written.items() if at > killed]
        self.found.add("restart s", min(later) - killed)


def _rate_behind_first(seen: Arrivals) -> float:
    """Events a second, from the moment the first transaction is there on."""
    rest = seen.events - seen.in_first
    if not rest:  # all came in one transaction
        return 0.0
    return rest / (seen.last - seen.first)


def _first_times(watcher: Watcher, events: int) -> Iterator[tuple[bytes, float]]:
    """The key of each of so many records, and when it came."""
    until = time.monotonic() + _PATIENCE_S
    for seen, found in enumerate(watcher.keys(lambda: time.monotonic() > until), 1):
        yield found
        if seen == events:
            return


def _record(id: str, entity: str, topic: str) -> Record:
    value = {
        "id": id,
        "entityId": entity,
        "entityType": topic,
        "eventData": DATA,
        "eventType": "bench.Debited",
        "binlogFileOffset": {"binlogFilename": "binlog.000001", "offset": 1234567, "rowsToSkip": 0},
    }
    key = entity.encode()
    headers = [("id", id.encode()), ("type", b"bench.Debited"), ("time", b"1700000000000")]
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    return Record(murmur2(key, PARTITIONS), key, text, headers)


def write_steadily(
    name: str, url: str, topic: str, rate: float, seconds: float, pipe: Connection
) -> None:
    """In a process of its own; sends when each commit returned, by the key."""
    kind = {"sqlite": SqliteDatabase}.get(
        name, PostgresDatabase if name.startswith("postgres") else MySQLDatabase
    )
    database = kind.__new__(kind)
    database.url = url
    if isinstance(database, SqliteDatabase):
        database._path = url.removeprefix("sqlite:///")
    insert = database.inserter()
    committed: dict[bytes, float] = {}
    began = time.monotonic()
    for number in range(int(seconds * rate)):
        time.sleep(max(0.0, began + number / rate - time.monotonic()))
        id = f"{time.time_ns() // 1_000_000:016x}-{number:016x}"
        insert(topic, id)
        committed[id.encode()] = time.monotonic()
    pipe.send(committed)


# --- showing --------------------------------------------------------------------------------------


def _machine() -> dict[str, str]:
    return {
        "cores": str(os.cpu_count()),
        "load": f"{os.getloadavg()[0]:.1f}",
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
    }


def _line(values: dict[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def targets(found: Found) -> Iterator[tuple[str, bool]]:
    """Each target that applies, in words, and whether it is met."""
    for target in TARGETS:
        if not found.database.startswith(target.databases):
            continue
        names = [f"{shape} {target.what}" for shape in SHAPES] + [target.what]
        for name in names:
            value = found.value(name)
            limit = target.value
            if target.times:
                beside = found.value(target.times)
                if beside is None:
                    continue
                limit *= beside
            if value is not None:
                met = value >= limit if target.least else value <= limit
                yield f"{name} {'≥' if target.least else '≤'} {limit:,.4g}", met


def show(found: Found) -> None:
    def text(what: str, form: str = ",.0f") -> str:
        value = found.value(what)
        return "–" if value is None else format(value, form)

    print(
        f"{'catch-up':<10} {'retold/s':>10} {'reader/s':>10} {'producer/s':>11} {'retold µs':>10} "
        f"{'reader µs':>10} {'producer µs':>12} {'RSS MB':>7}"
    )
    for shape in SHAPES:
        columns = [
            f"{text(f'{shape} events/s'):>10}",
            f"{text(f'{shape} reader/s'):>10}",
            f"{text(f'{shape} producer/s'):>11}",
            f"{text(f'{shape} CPU µs', '.1f'):>10}",
            f"{text(f'{shape} reader CPU µs', '.1f'):>10}",
            f"{text(f'{shape} producer CPU µs', '.1f'):>12}",
            f"{text(f'{shape} RSS MB'):>7}",
        ]
        print(f"{shape:<10} {' '.join(columns)}")
    print(
        f"commit → readable p50 / p99: {text('p50 ms', '.1f')} / {text('p99 ms', '.1f')} ms; "
        f"bare transactions of one record: {text('floor p50 ms', '.1f')} / "
        f"{text('floor p99 ms', '.1f')} ms"
    )
    print(
        f"start → first record {text('start s', '.2f')} s; SIGKILL → next record "
        f"{text('restart s', '.2f')} s; RSS in a large transaction {text('large RSS MB')} MB"
    )
    for words, met in targets(found):
        print(f"  {'ok    ' if met else 'MISSED'} {words}")
    print(flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.relay", description=__doc__)
    parser.add_argument("--databases", default=DEFAULT)
    parser.add_argument("--events", type=int, default=50_000, help="to catch up with")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rate", type=float, default=500, help="events a second, for latency")
    parser.add_argument("--seconds", type=float, default=8, help="of a latency measurement")
    parser.add_argument("--large", type=int, default=1000, help="MB of a transaction; 0: none")
    parser.add_argument("--json", type=Path, help="write what was measured to this file")
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp"), help="for SQLite's file")
    return parser.parse_args()


def main() -> None:
    arguments = _arguments()
    names: list[str] = arguments.databases.split(",")
    began = time.monotonic()
    machine = _machine()
    print(_line(machine))
    for shape, what in SHAPES.items():
        print(f"{shape}: {what}, {len(DATA.encode())} bytes of data")
    print(f"{arguments.rounds} rounds of {arguments.events:,} events\n")
    results: list[Found] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=arguments.folder)))
        rig = stack.enter_context(Rig())
        rig.want(name for name in names if name != "sqlite")
        kafka = Kafka(jvm=ORDINARY_JVM)
        stack.callback(kafka.stop)
        kafka.start()
        for name in names:
            bench = Bench(open_database(rig, name, folder), kafka.url)
            print(f"== {name}: {_line(bench.found.settings)}; reader: {bench.found.reader}")
            bench.begin()
            for _ in range(arguments.rounds):
                for shape in SHAPES:
                    bench.catch_up(shape, arguments.events)
                bench.latency(arguments.rate, arguments.seconds)
                bench.start()
                bench.restart(arguments.rate)
            if arguments.large:
                bench.large_transaction(arguments.large)
            results.append(bench.found)
            show(bench.found)
    checked = [met for found in results for _, met in targets(found)]
    print(f"{sum(checked)} of {len(checked)} targets met, {time.monotonic() - began:.0f} s")
    if arguments.json:
        written = {"machine": machine, "results": [vars(found) for found in results]}
        arguments.json.write_text(json.dumps(written, indent=1))


if __name__ == "__main__":
    main()
