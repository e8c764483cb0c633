"""The relay's floors: bare loops that read a log and do nothing, or write ready records to Kafka.

Each runs in a process of its own and tells how long it took and how much CPU it used.
"""

from __future__ import annotations

import logging
import sqlite3
import struct
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from importlib import import_module, util
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import psycopg
import pymysql
from confluent_kafka import Producer

_SPAWN = get_context("spawn")
SLOT = "floor"
_SERVER_ID = 4711
_BATCH = 10_000
"""Records of a transaction, as many as the relay's largest."""


class Measured(NamedTuple):
    """cpu: microseconds for each event, of all threads of the process."""

    events: int
    seconds: float
    cpu: float

    @property
    def rate(self) -> float:
        return self.events / self.seconds


class Record(NamedTuple):
    """What the relay makes of an event."""

    partition: int
    key: bytes
    value: bytes
    headers: list[tuple[str, bytes]]


def measured(work: Callable[..., Measured], *args: object) -> Measured:
    """What a piece of work says that was run in a new process."""
    pipe, other = _SPAWN.Pipe()
    process = _SPAWN.Process(target=_send, args=(other, work, *args))
    process.start()
    other.close()
    found: Measured = pipe.recv()
    process.join()
    return found


def _send(pipe: Connection, work: Callable[..., Measured], *args: object) -> None:
    pipe.send(work(*args))


class _Clock:
    """From the first event on: connecting is not counted."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._cpu = time.process_time()

    def stop(self, events: int) -> Measured:
        cpu = 1e6 * (time.process_time() - self._cpu) / events
        return Measured(events, time.perf_counter() - self._began, cpu)


# --- readers --------------------------------------------------------------------------------------


def login(url: str) -> dict[str, Any]:
    parts = urlsplit(url)
    return {
        "host": parts.hostname,
        "port": parts.port,
        "user": unquote(parts.username or ""),
        "password": unquote(parts.password or ""),
    }


def mysql_reader() -> tuple[str, Callable[..., Measured]]:
    """The best-known library if it is installed, else the packets alone."""
    if util.find_spec("pymysqlreplication") is not None:
        return "mysql-replication", read_with_library
    return "packets only", read_packets


def read_with_library(url: str, file: str, offset: int, events: int) -> Measured:
    library: Any = import_module("pymysqlreplication")
    kinds: Any = import_module("pymysqlreplication.row_event")
    logging.disable(logging.WARNING)  # it wants the server to name the columns
    stream = library.BinLogStreamReader(
        connection_settings=login(url),
        server_id=_SERVER_ID,
        log_file=file,
        log_pos=offset,
        resume_stream=True,
        only_events=[kinds.WriteRowsEvent],
        only_schemas=[urlsplit(url).path[1:]],
        only_tables=["events"],
    )
    count, clock = 0, _Clock()
    for event in stream:
        if not count:
            clock = _Clock()
        count += len(event.rows)
        if count >= events:
            break
    found = clock.stop(count)
    stream.close()
    return found


def read_packets(url: str, file: str, offset: int, events: int) -> Measured:
    """Counts the events that hold rows for events, and looks at nothing else."""
    raw: Any = pymysql.connect(**login(url))
    with raw.cursor() as cursor:
        cursor.execute("SET @master_binlog_checksum = @@global.binlog_checksum")
        cursor.execute("SET @mariadb_slave_capability = 4")
    body = struct.pack("<IHI", offset, 0, _SERVER_ID) + file.encode()
    raw._execute_command(0x12, body)
    count, clock = 0, _Clock()
    while count < events:
        data = raw._read_packet()._data
        if data[5] in (23, 30):
            if not count:
                clock = _Clock()
            count += 1
    found = clock.stop(count)
    raw._force_close()
    return found


def read_copy_data(url: str, events: int) -> Measured:
    """Messages of pgoutput as libpq hands them out, not decoded."""
    options: dict[str, Any] = {"replication": "database"}
    with closing(psycopg.connect(url, autocommit=True, **options)) as link:
        pgconn = link.pgconn
        pgconn.exec_(
            f"START_REPLICATION SLOT {SLOT} LOGICAL 0/0 "
            f"(proto_version '1', publication_names '{SLOT}')".encode()
        )
        count, clock = 0, _Clock()
        while count < events:
            _, data = pgconn.get_copy_data(0)
            if data[0] == ord("w") and data[25] == ord("I"):
                if not count:
                    clock = _Clock()
                count += 1
        return clock.stop(count)


def read_table(path: str, events: int) -> Measured:
    """Polling without anything else: a page, then the mark."""
    with closing(sqlite3.connect(path, isolation_level=None)) as raw:
        count, clock = 0, _Clock()
        while count < events:
            page = raw.execute(
                "SELECT event_id, event_type, event_data, entity_type, entity_id, metadata"
                " FROM events WHERE published = 0 ORDER BY event_id LIMIT 1000"
            ).fetchall()
            raw.execute("BEGIN IMMEDIATE")
            raw.executemany(
                "UPDATE events SET published = 1 WHERE event_id = ?", [row[:1] for row in page]
            )
            raw.execute("COMMIT")
            count += len(page)
        found = clock.stop(count)
        raw.execute("UPDATE events SET published = 0")
        return found


# --- producers ------------------------------------------------------------------------------------


def _producer(bootstrap: str, name: str) -> Producer:
    producer = Producer(
        {
            "bootstrap.servers": bootstrap,
            "transactional.id": name,
            "linger.ms": 0,
            "queue.buffering.max.messages": 2 * _BATCH,
        }
    )
    producer.init_transactions(30)
    return producer


def produce(bootstrap: str, topic: str, records: Sequence[Record]) -> Measured:
    """Ready records in the largest transactions there are."""
    producer = _producer(bootstrap, topic)
    send: Any = producer.produce
    clock = _Clock()
    for first in range(0, len(records), _BATCH):
        producer.begin_transaction()
        for partition, key, value, headers in records[first : first + _BATCH]:
            send(topic, value, key, partition, None, None, 0, headers)
        producer.commit_transaction(30)
    return clock.stop(len(records))


def produce_one_by_one(
    bootstrap: str, topic: str, records: Sequence[Record], pipe: Connection
) -> None:
    """Transactions of one record; sends when each began, by the key."""
    producer = _producer(bootstrap, topic)
    send: Any = producer.produce
    began: dict[bytes, float] = {}
    for partition, key, value, headers in records:
        began[key] = time.monotonic()
        producer.begin_transaction()
        send(topic, value, key, partition, None, None, 0, headers)
        producer.commit_transaction(30)
    pipe.send(began)
