"""retold's members in `benchmarks.consume`, each run in a process of its own, and what they read."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
import psycopg
import pymysql
from confluent_kafka import murmur2

from benchmarks.consume_floors import LANES, SLEEP_S, Clock
from benchmarks.relay import DATA, PARTITIONS, make_topic
from benchmarks.relay_floors import Measured, Record, login, produce
from retold import (
    Aggregate,
    AsyncDelivery,
    AsyncEventStore,
    Delivery,
    Event,
    EventStore,
    Subscription,
    applies,
)
from retold.brokers.published import BinlogFileOffset
from retold.relay.wire import records

EVENT = "bench.Debited"
"""What benchmarks.relay calls the events that it writes."""


class Line(msgspec.Struct, frozen=True):
    sku: str
    count: int
    price: int


class Ordered(Event, name=EVENT):
    owner: str
    note: str
    lines: list[Line]
    address: str


class CountedUp(Event, name="bench.CountedUp"):
    by: int


class Counter(Aggregate, name="bench.Counter"):
    """What an updating handler changes: one of these for each entity."""

    total: int = 0

    def count_up(self) -> None:
        self.emit(CountedUp(1))

    @applies
    def _counted_up(self, event: CountedUp) -> None:
        self.total += event.by


# --- what is read ---------------------------------------------------------------------------------


def keys(events: int, entities: int) -> Iterator[str]:
    return (f"account-{n % entities}" for n in range(events))


def new_topic(bootstrap: str) -> str:
    topic = f"bench.{uuid4().hex[:8]}"
    make_topic(bootstrap, topic)
    return topic


def records_of(topic: str, events: int, entities: int, data: str = DATA) -> list[Record]:
    """That many events as the relay writes them."""
    first, place = time.time_ns() // 1_000_000, BinlogFileOffset("binlog.000001", 1234567)
    rows = [
        (f"{first:016x}-{n:016x}", EVENT, data, topic, key, None, place)
        for n, key in enumerate(keys(events, entities))
    ]
    return [
        Record(murmur2(key, PARTITIONS), key, value, headers)
        for _, key, value, headers in records(rows)
    ]


def fill_topic(bootstrap: str, events: int, entities: int, data: str = DATA) -> str:
    topic = new_topic(bootstrap)
    produce(bootstrap, topic, records_of(topic, events, entities, data))
    return topic


# --- who reads ------------------------------------------------------------------------------------


def subscription(lanes: int = 1) -> Subscription:
    return Subscription(f"bench-{uuid4().hex}", lanes=lanes)


def run(url: str, bootstrap: str | None, subscribed: Subscription, stop: threading.Event) -> None:
    with open_store(url, bootstrap) as store:
        store.run(subscribed, stop=stop)


def open_store(url: str, bootstrap: str | None) -> EventStore:
    return EventStore(url) if bootstrap is None else EventStore(url, kafka=bootstrap)


def nothing(bootstrap: str | None, topic: str, events: int, url: str, lanes: int = 1) -> Measured:
    clock, stop, subscribed = Clock(events), threading.Event(), subscription(lanes)

    @subscribed.on(Ordered, of=topic)
    def handle(delivery: Delivery[Ordered]) -> None:
        if clock.tick():
            stop.set()

    run(url, bootstrap, subscribed, stop)
    return clock.found


def nothing_async(bootstrap: str, topic: str, events: int, url: str) -> Measured:
    clock, stop, subscribed = Clock(events), threading.Event(), subscription()

    @subscribed.on(Ordered, of=topic)
    async def handle(delivery: AsyncDelivery[Ordered]) -> None:
        if clock.tick():
            stop.set()

    asyncio.run(_run_async(url, bootstrap, subscribed, stop))
    return clock.found


def sleep(bootstrap: str, topic: str, events: int, url: str) -> Measured:
    clock, stop, subscribed = Clock(events), threading.Event(), subscription(LANES)

    @subscribed.on(Ordered, of=topic)
    async def handle(delivery: AsyncDelivery[Ordered]) -> None:
        await asyncio.sleep(SLEEP_S)
        if clock.tick():
            stop.set()

    asyncio.run(_run_async(url, bootstrap, subscribed, stop))
    return clock.found


async def _run_async(
    url: str, bootstrap: str, subscribed: Subscription, stop: threading.Event
) -> None:
    async with AsyncEventStore(url, kafka=bootstrap) as store:
        await store.run(subscribed, stop=stop)


def update(
    bootstrap: str, topic: str, events: int, url: str, lanes: int, entities: int
) -> Measured:
    """A handler that updates an entity; histories begin with one event."""
    clock, stop, subscribed = Clock(events), threading.Event(), subscription(lanes)
    own = uuid4().hex[:8]

    @subscribed.on(Ordered, of=topic)
    def handle(delivery: Delivery[Ordered]) -> None:
        delivery.update(Counter, f"{own}-{delivery.entity_id}", Counter.count_up)
        if clock.tick():
            stop.set()

    with EventStore(url, kafka=bootstrap) as store:
        _begin(store, own, entities)
        store.run(subscribed, stop=stop)
    return clock.found


def update_alone(
    bootstrap: str, topic: str, events: int, url: str, threads: int, entities: int
) -> Measured:
    """The same updates without a subscription, by as many threads, each its own entities."""
    clock, own = Clock(events), uuid4().hex[:8]
    with EventStore(url) as store:
        _begin(store, own, entities)
        counters = store.repository(Counter)

        def work(first: int) -> None:
            for n, key in enumerate(keys(events, entities)):
                if n % entities % threads == first:
                    id = f"{own}-{key}"
                    counters.once(f"{own}-{n}").update(id, Counter.count_up)
                    clock.tick()

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, range(threads)))
    return clock.found


def _begin(store: EventStore, own: str, entities: int) -> None:
    for key in keys(entities, entities):
        store.repository(Counter).with_id(f"{own}-{key}").create(Counter.count_up)


def stuck(
    bootstrap: str | None, topic: str, url: str, seconds: float, lanes: int
) -> tuple[float, float]:
    """MB of memory before the first event, and the most while its handler does not return."""
    came, stop, subscribed = threading.Event(), threading.Event(), subscription(lanes)
    before = 0.0

    def note() -> None:
        nonlocal before
        before = before or memory("VmRSS")
        came.set()

    def end() -> None:
        came.wait()
        time.sleep(seconds)
        stop.set()

    threading.Thread(target=end).start()
    if lanes == 1:

        @subscribed.on(Ordered, of=topic)
        def handle(delivery: Delivery[Ordered]) -> None:
            note()
            stop.wait()

        run(url, bootstrap, subscribed, stop)
    else:
        assert bootstrap is not None

        @subscribed.on(Ordered, of=topic)
        async def wait(delivery: AsyncDelivery[Ordered]) -> None:
            note()
            while not stop.is_set():
                await asyncio.sleep(0.1)

        asyncio.run(_run_async(url, bootstrap, subscribed, stop))
    return before, memory("VmHWM")


def memory(what: str) -> float:
    """A size of this process that Linux counts, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(what))


def read_table(bootstrap: None, topic: str, events: int, url: str) -> Measured:
    """The floor of a database as broker: a bare loop over the table, in the order of ids.

    It overlooks what is committed late.
    """
    clock, decode = Clock(events), msgspec.json.Decoder(Ordered).decode
    cursor, mark = _cursor(url)
    cursor.execute(f"SELECT min(event_id) FROM events WHERE entity_type = {mark}", (topic,))
    (after,) = cursor.fetchone()
    sql = (
        "SELECT event_id, event_type, event_data, entity_type, entity_id, metadata FROM events "
        f"WHERE event_id >= {mark} ORDER BY event_id LIMIT 1000"
    )
    while True:
        cursor.execute(sql, (after,))
        rows = cursor.fetchall()
        for row in rows:
            decode(row[2])
            if clock.tick():
                return clock.found
        after = rows[-1][0] + "."  # behind it


def _cursor(url: str) -> tuple[Any, str]:
    """A cursor, and what stands for a parameter."""
    if url.startswith("sqlite"):
        return sqlite3.connect(url.removeprefix("sqlite:///")).cursor(), "?"
    if url.startswith("postgres"):
        return psycopg.connect(url, autocommit=True).cursor(), "%s"
    database = url.rpartition("/")[2]
    return pymysql.connect(**login(url), database=database, autocommit=True).cursor(), "%s"
