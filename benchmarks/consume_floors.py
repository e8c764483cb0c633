"""Those who consume beside retold: bare loops over the Kafka client, and FastStream.

All get the same records and do what an application would: decode the record and the event in it, and
commit behind every batch. None of them keeps what retold promises beyond that.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
import zlib
from collections.abc import Callable, Generator
from contextlib import contextmanager
from importlib import import_module, util
from typing import Any
from uuid import uuid4

import msgspec
import pydantic
from confluent_kafka import Consumer, KafkaException, Message

from benchmarks.relay_floors import Measured

SLEEP_S = 0.005
"""What the async handler waits for."""
LANES = 64
_BATCH = 1000


class NotInstalled(Exception):
    """A contestant that is no part of the development requirements."""


class Clock:
    """Counts events from the first to the last one; joining a group is not counted."""

    def __init__(self, events: int) -> None:
        self._events = events
        self._next = itertools.count(1).__next__
        self._began = self._cpu = 0.0
        self.found = Measured(0, 0.0, 0.0)

    def tick(self) -> bool:
        """One event more; whether it is the last one."""
        number = self._next()
        if number == 1:
            self._began, self._cpu = time.perf_counter(), time.process_time()
        if number < self._events:
            return False
        cpu = 1e6 * (time.process_time() - self._cpu) / self._events
        self.found = Measured(self._events, time.perf_counter() - self._began, cpu)
        return True


class Line(msgspec.Struct):
    sku: str
    count: int
    price: int


class Ordered(msgspec.Struct):
    owner: str
    note: str
    lines: list[Line]
    address: str


class Envelope(msgspec.Struct):
    """What of a record's value a consumer looks at."""

    id: str
    entityId: str
    eventType: str
    eventData: str


_open = msgspec.json.Decoder(Envelope).decode
_read = msgspec.json.Decoder(Ordered).decode


@contextmanager
def _member(bootstrap: str, topic: str) -> Generator[Consumer]:
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": f"floor-{uuid4().hex}",
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
        }
    )
    consumer.subscribe([topic])
    try:
        yield consumer
    finally:
        consumer.close()


def _value(message: Message) -> bytes:
    if (error := message.error()) is not None:
        raise KafkaException(error)
    value = message.value()
    assert isinstance(value, bytes)
    return value


def poll_one_by_one(bootstrap: str, topic: str, events: int) -> Measured:
    clock, waiting = Clock(events), 0
    with _member(bootstrap, topic) as consumer:
        while True:
            message = consumer.poll(1.0)
            if message is None:
                continue
            _read(_open(_value(message)).eventData)
            if clock.tick():
                return clock.found
            waiting += 1
            if waiting == _BATCH:
                consumer.commit(asynchronous=True)
                waiting = 0


def consume_batches(bootstrap: str, topic: str, events: int) -> Measured:
    clock = Clock(events)
    with _member(bootstrap, topic) as consumer:
        while True:
            first = consumer.poll(1.0)
            for message in [first, *consumer.consume(_BATCH, 0)] if first else ():
                _read(_open(_value(message)).eventData)
                if clock.tick():
                    return clock.found
            if first is not None:
                consumer.commit(asynchronous=True)


def sleep_in_tasks(bootstrap: str, topic: str, events: int) -> Measured:
    """A task for each lane with a queue of its own, fed by a thread."""
    clock = Clock(events)

    async def run() -> None:
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        queues = [asyncio.Queue[bytes]() for _ in range(LANES)]

        async def work(queue: asyncio.Queue[bytes]) -> None:
            while True:
                _read(_open(await queue.get()).eventData)
                await asyncio.sleep(SLEEP_S)
                if clock.tick():
                    ended.set()

        def put(records: list[tuple[int, bytes]]) -> None:
            for lane, value in records:
                queues[lane].put_nowait(value)

        def feed() -> None:
            with _member(bootstrap, topic) as consumer:
                while not ended.is_set():
                    first = consumer.poll(0.1)
                    if first is None:
                        continue
                    records = [
                        (zlib.crc32(message.key() or b"") % LANES, _value(message))
                        for message in [first, *consumer.consume(_BATCH, 0)]
                    ]
                    loop.call_soon_threadsafe(put, records)
                    consumer.commit(asynchronous=True)

        feeder = threading.Thread(target=feed)
        feeder.start()
        tasks = [asyncio.ensure_future(work(queue)) for queue in queues]
        await ended.wait()
        await asyncio.to_thread(feeder.join)
        for task in tasks:
            task.cancel()

    asyncio.run(run())
    return clock.found


# --- FastStream -----------------------------------------------------------------------------------


class Record(pydantic.BaseModel):
    """The same, as FastStream wants it."""

    id: str
    entityId: str
    eventType: str
    eventData: str


class Item(pydantic.BaseModel):
    sku: str
    count: int
    price: int


class Order(pydantic.BaseModel):
    owner: str
    note: str
    lines: list[Item]
    address: str


def has_faststream() -> bool:
    return util.find_spec("faststream") is not None


def faststream_one_by_one(bootstrap: str, topic: str, events: int) -> Measured:
    """As it comes."""
    clock, ended = Clock(events), asyncio.Event()

    async def handle(record: Record) -> None:
        Order.model_validate_json(record.eventData)
        if clock.tick():
            ended.set()

    return _with_faststream(bootstrap, topic, clock, ended, handle)


def faststream_batches(bootstrap: str, topic: str, events: int) -> Measured:
    """Its handler takes a list."""
    clock, ended = Clock(events), asyncio.Event()

    async def handle(records: list[Record]) -> None:
        for record in records:
            Order.model_validate_json(record.eventData)
            if clock.tick():
                ended.set()

    return _with_faststream(bootstrap, topic, clock, ended, handle, batch=True, max_records=_BATCH)


def faststream_sleeping(bootstrap: str, topic: str, events: int) -> Measured:
    """Its workers keep no order."""
    clock, ended = Clock(events), asyncio.Event()

    async def handle(record: Record) -> None:
        Order.model_validate_json(record.eventData)
        await asyncio.sleep(SLEEP_S)
        if clock.tick():
            ended.set()

    return _with_faststream(bootstrap, topic, clock, ended, handle, max_workers=LANES)


def _with_faststream(
    bootstrap: str,
    topic: str,
    clock: Clock,
    ended: asyncio.Event,
    handle: Callable[..., Any],
    **options: Any,
) -> Measured:
    if not has_faststream():
        raise NotInstalled("not installed: pip install 'faststream[confluent]'")
    faststream: Any = import_module("faststream.confluent")

    async def run() -> None:
        broker = faststream.KafkaBroker(bootstrap, logger=None)
        broker.subscriber(
            topic,
            group_id=f"faststream-{uuid4().hex}",
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            **options,
        )(handle)
        await broker.start()
        await ended.wait()
        await broker.stop()

    asyncio.run(run())
    return clock.found
