"""Backfill: events that a subscription passed before it handled them, handled after all.

They are read from the log once more, by a consumer with a position of its own, within the places
between which they were passed. So a backfill goes on where it was broken off, beside the live flow.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from retold.brokers.base import Consumer, Message
from retold.brokers.consumers import open_consumer
from retold.errors import NothingMissed, RetoldError
from retold.metadata import CausedBy
from retold.store import generations
from retold.store.driver import Statement
from retold.store.generations import Missed, Pair
from retold.subscriptions.delivery import AsyncDelivery
from retold.subscriptions.dispatcher import Dispatcher
from retold.subscriptions.handling import Call, Handling, Routes, Steps
from retold.subscriptions.parking import Parking
from retold.subscriptions.progress import Taken
from retold.subscriptions.workers import Inline, Work

if TYPE_CHECKING:
    from retold.brokers.consumers import Assignor
    from retold.store.event_store import AsyncEventStore, EventStore

_MAX_NAME = 255
_PATIENCE_S = 60.0
_log = logging.getLogger("retold.subscriptions")


class Passed:
    """A consumer of the messages that were passed, and of no others."""

    def __init__(
        self, inner: Consumer, missed: Sequence[Missed], told: Callable[[int], None]
    ) -> None:
        self._inner = inner
        self._missed: Mapping[Pair, Missed] = {row.pair: row for row in missed}
        self._told = told

    @property
    def assigned(self) -> bool:
        return self._inner.assigned

    @property
    def held(self) -> Mapping[int, object]:
        return self._inner.held

    def owned(self, partition: int) -> Statement:
        return self._inner.owned(partition)

    def place(self, partition: int) -> str:
        return self._inner.place(partition)

    def reached(self) -> Mapping[int, int]:
        return self._inner.reached()

    def poll(self, limit: int, timeout: float) -> Sequence[Message]:
        while found := self._inner.poll(limit, timeout):
            if messages := [message for message in found if self._is_wanted(message)]:
                self._told(len(messages))
                return messages
        return ()

    def _is_wanted(self, message: Message) -> bool:
        row = self._missed.get((message.topic, message.event_type))
        if row is None or row.up_to is None:
            return False
        place = self.place(message.partition)
        behind = -1 if row.behind is None else row.behind.get(place, -1)
        return behind < message.position <= row.up_to.get(place, -1)

    def commit(self, positions: Mapping[int, int]) -> None:
        self._inner.commit(positions)

    def wake(self) -> None:
        self._inner.wake()

    def close(self) -> None:
        self._inner.close()


def missed_of(store: EventStore, name: str, event_type: str) -> list[Missed]:
    """What is to be backfilled. Raises NothingMissed."""
    rows = store.driver.run(generations.missed(store.driver.dialect.queries, name))
    found = [
        row for row in rows if row.event_type == event_type and row.up_to and not row.backfilled
    ]
    if not found:
        raise NothingMissed(name, event_type)
    return found


def is_missed(store: EventStore, name: str, event_type: str) -> bool:
    """Whether there is something to be backfilled."""
    try:
        return bool(missed_of(store, name, event_type))
    except NothingMissed:
        return False


def progress_name(name: str, event_type: str) -> str:
    """Where the backfill's own position is kept: under a name that no subscription can have."""
    full = f"{name}:{event_type}"
    if len(full) <= _MAX_NAME:
        return full
    return f"{full[: _MAX_NAME - 9]}:{zlib.crc32(full.encode()):08x}"


def backfill(
    store: EventStore,
    name: str,
    event_type: str,
    routes: Routes,
    assignor: Assignor,
    stop: threading.Event,
    told: Callable[[int], None],
    loop: tuple[asyncio.AbstractEventLoop, AsyncEventStore] | None = None,
) -> bool:
    """Handle what was missed of an event type; False where it was stopped, or another process is
    at work on a part of it.

    told: called with the number of events that are about to be handled. Raises NothingMissed, and
    HandlerFailed at the first event whose handler goes on failing.
    """
    missed, own = missed_of(store, name, event_type), progress_name(name, event_type)
    topics = sorted({row.entity_type for row in missed})
    places = {place for row in missed for place in row.up_to or ()}
    until = time.monotonic() + _PATIENCE_S
    while True:
        inner = open_consumer(
            store.driver, own, topics, [event_type], "beginning", store.kafka, assignor
        )
        consumer = Passed(inner, missed, told)
        try:
            _drain(store, name, own, routes, consumer, stop, loop)
            if stop.is_set() or not places <= {consumer.place(n) for n in consumer.held}:
                return False
            store.driver.run(generations.backfilled(store.driver.dialect.queries, name, event_type))
            return True
        except RetoldError as error:
            # One that was killed may be missed a little later.
            if not error.retriable or time.monotonic() > until or stop.wait(1.0):
                raise
            _log.warning("%s: %s", own, error)
        finally:
            consumer.close()


def _drain(
    store: EventStore,
    name: str,
    own: str,
    routes: Routes,
    consumer: Consumer,
    stop: threading.Event,
    loop: tuple[asyncio.AbstractEventLoop, AsyncEventStore] | None,
) -> None:
    handling = Handling(name, routes, store.codec)
    parking = Parking(own, handling, store.driver, consumer, parks=False)
    # Changes have the keys of the subscription itself.
    work = Work(name, parking.steps, store, stop)
    if loop is not None:
        work = Awaiting(name, parking.steps, store, stop, loop)
    Dispatcher(own, consumer, work, Inline(work), parking).consume(stop, drain=True)


class Awaiting(Work):
    """Waits for async handlers, which run on an event loop of another thread."""

    def __init__(
        self,
        subscription: str,
        steps: Callable[[Taken], Steps],
        store: EventStore,
        stop: threading.Event,
        loop: tuple[asyncio.AbstractEventLoop, AsyncEventStore],
    ) -> None:
        super().__init__(subscription, steps, store, stop)
        self._loop, self._async_store = loop

    def call(self, step: Call) -> Exception | None:
        if not inspect.iscoroutinefunction(step.handler):
            return super().call(step)
        return asyncio.run_coroutine_threadsafe(self._await(step), self._loop).result()

    async def _await(self, step: Call) -> Exception | None:
        handler, recorded, attempt = step
        try:
            with CausedBy(recorded.id, recorded.metadata):
                await handler(
                    AsyncDelivery(recorded, self.subscription, attempt, self._async_store)
                )
        except Exception as error:
            return error
        return None
