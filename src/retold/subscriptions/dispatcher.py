"""The loop between a consumer and the handlers: read, handle, retry, save the position."""

from __future__ import annotations

import asyncio
import inspect
import logging
import random
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from retold.brokers.base import Consumer, Message
from retold.errors import AssignmentLost, HandlerFailed, RetoldError, UsageError
from retold.events import Event
from retold.metadata import metadata
from retold.recorded import Recorded, read_row
from retold.subscriptions.delivery import AsyncDelivery, Delivery

if TYPE_CHECKING:
    from retold.store.event_store import AsyncEventStore, EventStore

Handler = Callable[[Any], Any]

_BATCH = 100
_POLL_S = 0.5
_log = logging.getLogger("retold.subscriptions")


class Dispatcher:
    """Handles one consumer's messages, one after the other."""

    def __init__(
        self,
        subscription: str,
        routes: Mapping[tuple[str, type[Event]], Handler],
        store: EventStore,
        attempts: int,
        loop: tuple[asyncio.AbstractEventLoop, AsyncEventStore] | None,
    ) -> None:
        self._subscription = subscription
        self._routes = routes
        self._store = store
        self._attempts = attempts
        self._loop = loop

    def consume(self, consumer: Consumer, stop: threading.Event, *, drain: bool) -> int:
        """Until `stop` is set, or with `drain` until nothing is left; returns how many messages.

        What was handled is committed, whatever ends the loop.
        """
        handled = tries = 0
        reached = False
        while not stop.is_set():
            try:
                messages = consumer.poll(_BATCH, 0 if drain else _POLL_S)
            except RetoldError as error:
                # What has never worked may be a wrong URL, which no waiting mends.
                if not reached or not error.retriable:
                    raise
                _log.warning("%s: %s", self._subscription, error)
                tries += 1
                _pause(stop, tries)
                continue
            reached, tries = True, 0
            if drain and not consumer.assigned:
                raise AssignmentLost(self._subscription)
            if drain and not messages:
                break
            done: dict[int, int] = {}
            try:
                for message in messages:
                    if stop.is_set() or not self._handle(message, stop):
                        break
                    done[message.partition] = message.position
                    handled += 1
            finally:
                if done:
                    self._save(consumer, done, stop)
        return handled

    def _save(self, consumer: Consumer, done: Mapping[int, int], stop: threading.Event) -> None:
        tries = 0
        while True:
            try:
                consumer.commit(done)
            except AssignmentLost as lost:
                _log.warning("%s", lost)
            except RetoldError as error:
                tries += 1
                if not error.retriable or stop.is_set():
                    raise
                _log.warning("%s: the position was not saved: %s", self._subscription, error)
                _pause(stop, tries)
                continue
            return

    def _handle(self, message: Message, stop: threading.Event) -> bool:
        """Handle one message; False when stopped before it was."""
        recorded = read_row(
            self._store.codec,
            message.topic,
            message.key,
            message.event_id,
            message.event_type,
            message.data,
            None,
            message.metadata,
        )
        for event in recorded:
            handler = self._routes.get((message.topic, type(event.event)))
            if handler is not None and not self._try(handler, event, stop):
                return False
        return True

    def _try(self, handler: Handler, recorded: Recorded[Event], stop: threading.Event) -> bool:
        attempt = tries = 1
        while True:
            try:
                self._call(handler, recorded, attempt)
            except Exception as error:
                # The database's troubles are not the handler's: they are waited for.
                counts = not (isinstance(error, RetoldError) and error.retriable)
                if counts and attempt >= self._attempts:
                    raise HandlerFailed(
                        self._subscription,
                        getattr(handler, "__qualname__", repr(handler)),
                        recorded.id,
                        recorded.name,
                        recorded.entity_type,
                        recorded.entity_id,
                        attempt,
                        f"{type(error).__name__}: {error}",
                    ) from error
                _log.warning(
                    "%s: attempt %d on event %s (%s) failed: %s",
                    self._subscription,
                    attempt,
                    recorded.id,
                    recorded.name,
                    type(error).__name__,
                )
                attempt += counts
                tries += 1
                if _pause(stop, tries):
                    return False
            else:
                return True

    def _call(self, handler: Handler, recorded: Recorded[Event], attempt: int) -> None:
        correlation = recorded.metadata.get("correlation_id", recorded.id)
        with metadata(correlation_id=correlation, causation_id=recorded.id):
            if self._loop is not None and inspect.iscoroutinefunction(handler):
                loop, store = self._loop
                delivery = AsyncDelivery(recorded, self._subscription, attempt, store)
                asyncio.run_coroutine_threadsafe(handler(delivery), loop).result()
            else:
                result = handler(Delivery(recorded, self._subscription, attempt, self._store))
                if inspect.isawaitable(result):
                    if inspect.iscoroutine(result):
                        result.close()
                    raise UsageError(
                        "a plain function returned an awaitable, which nobody would await: make "
                        "the handler itself async def"
                    )


def _pause(stop: threading.Event, tries: int) -> bool:
    """Wait with full jitter, doubling from 50 ms to 5 s; whether it was stopped meanwhile."""
    return stop.wait(random.uniform(0, min(0.05 * (1 << min(tries, 8)), 5.0)))
