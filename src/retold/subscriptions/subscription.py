"""Subscriptions: a name, and a handler for each event it wants."""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import (
    TYPE_CHECKING,
    Any,
    Generic,
    Literal,
    Protocol,
    TypeVar,
    get_args,
    overload,
)

from retold.aggregates import Aggregate
from retold.brokers.base import Consumer
from retold.brokers.consumers import Assignor, open_consumer
from retold.brokers.polling import Start
from retold.brokers.wants import Wants, Watch
from retold.errors import AssignmentLost, InvalidValue, Outgrown, UsageError
from retold.events import Event
from retold.registry import check_name
from retold.subscriptions.backfill import backfill, is_missed
from retold.subscriptions.delivery import AsyncDelivery, Delivery
from retold.subscriptions.dispatcher import Dispatcher
from retold.subscriptions.generations import begin, handled, names, stand_by, stored_names
from retold.subscriptions.handling import Handler, Handling, Route, Routes
from retold.subscriptions.parking import PARK_LIMIT, Parking
from retold.subscriptions.retry import Retry
from retold.subscriptions.routing import Handlers
from retold.subscriptions.workers import Inline, OnLoop, Threads, Work, Workers

if TYPE_CHECKING:
    from retold.store.event_store import AsyncEventStore, EventStore

E = TypeVar("E", bound=Event)

OnError = Literal["park", "stop"]
_log = logging.getLogger("retold.subscriptions")
_MAX_NAME = 100  # a delivery's key holds the name, an event id and a step in 255 characters


class Register(Protocol, Generic[E]):
    """What `on` returns: a plain function gets Delivery, an async one AsyncDelivery."""

    @overload
    def __call__(
        self, handler: Callable[[Delivery[E]], None], /
    ) -> Callable[[Delivery[E]], None]: ...
    @overload
    def __call__(
        self, handler: Callable[[AsyncDelivery[E]], Awaitable[None]], /
    ) -> Callable[[AsyncDelivery[E]], Awaitable[None]]: ...


class Subscription:
    """Handles events in order for each entity, each once in effect.

    name: where its position and its keys are kept; two programs with one name share the work.
    start: where a new subscription begins: "beginning", "now", or an aware datetime.
    lanes: how many entities' events are handled at once in this process, each entity's one after
    the other. With one, the handlers run in the order of the log.
    attempts: how often a handler is tried before it is given up.
    retry: the same with pauses, and errors that no retry mends; for a handler of its own, `on`.
    on_error: what then happens. "park" puts the event, and later ones of its entity behind it, into
    the table `parked`; other entities go on. "stop" ends the subscription before the event.
    park_limit: the most events of one entity that are parked; with one more the subscription stops.
    assignor: on Kafka, how the members share the partitions: "cooperative-sticky", or "range" in a
    consumer group shared with a Java service. All members must say the same.
    """

    def __init__(
        self,
        name: str,
        *,
        start: Start = "beginning",
        lanes: int = 1,
        attempts: int | None = None,
        retry: Retry | None = None,
        on_error: OnError = "park",
        park_limit: int = PARK_LIMIT,
        assignor: Assignor = "cooperative-sticky",
    ) -> None:
        if len(check_name("a subscription", name)) > _MAX_NAME:
            raise InvalidValue(f"a subscription's name has at most {_MAX_NAME} characters")
        if on_error not in ("park", "stop"):
            raise InvalidValue(f'on_error is "park" or "stop", not {on_error!r}')
        if park_limit < 1:
            raise InvalidValue("park_limit: an entity's queue holds at least one event")
        if lanes < 1:
            raise InvalidValue("lanes: there is at least one")
        if attempts is not None and retry is not None:
            raise InvalidValue("attempts belongs into retry=Retry(attempts=…) where that is given")
        if isinstance(start, datetime):
            if start.tzinfo is None:
                raise InvalidValue("start=… needs a datetime with a time zone")
        elif start not in ("beginning", "now"):
            raise InvalidValue(f'start is "beginning", "now" or a datetime, not {start!r}')
        if assignor not in get_args(Assignor):
            raise InvalidValue(f"assignor is one of {', '.join(get_args(Assignor))}")
        self.name = name
        self._assignor: Assignor = assignor
        self._start: Start = start
        self._lanes = lanes
        self._on_error: OnError = on_error
        self._park_limit = park_limit
        self._retry = retry or (Retry() if attempts is None else Retry(attempts))
        self._handlers = Handlers(f"subscription {name!r}")

    def on(
        self,
        event_class: type[E],
        /,
        *,
        of: str | type[Aggregate] | None = None,
        retry: Retry | None = None,
    ) -> Register[E]:
        """Register the handler of an event of one entity type.

        of: the entity type, by name or class. Without it, the one aggregate of this process that
        applies the event. retry: for this handler instead of the subscription's. Raises
        DefinitionError for a second handler of the same event; none or several such aggregates are
        an error when the subscription starts.
        """

        def register(handler: Any) -> Any:
            self._handlers.add(event_class, of, Route(handler, retry or self._retry))
            return handler

        self._handlers.check(event_class)
        return register

    @property
    def has_async_handlers(self) -> bool:
        """Whether it needs an AsyncEventStore."""
        return any(inspect.iscoroutinefunction(handler) for handler in self._handlers)

    def _routes(self) -> Routes:
        return self._handlers.routes()

    def run_on(
        self,
        store: EventStore,
        stop: threading.Event,
        *,
        drain: bool,
        loop: tuple[asyncio.AbstractEventLoop, AsyncEventStore] | None = None,
    ) -> int:
        """Handle messages until stopped, or with `drain` until there are none; returns how many."""
        routes = self._routes()
        awaited = [
            route.handler for route in routes.values() if inspect.iscoroutinefunction(route.handler)
        ]
        if awaited and loop is None:
            raise UsageError(f"{full_name_of(awaited[0])} is async, so it needs an AsyncEventStore")
        wants = Wants(store.driver, self.name, handled(routes), in_database=store.kafka is None)
        watch: Watch | None = None
        try:
            while True:
                begin(store.driver, wants, stop, again=watch is not None)
                if watch is None and not drain:
                    watch = Watch(wants)
                consumer = self._open(store, wants)
                wants.changed = consumer.wake
                try:
                    return self._consume(
                        consumer, store, stop, routes, drain, loop if awaited else None, wants
                    )
                except AssignmentLost as lost:
                    if drain:
                        raise
                    _log.warning("%s", lost)  # noticed while an event was parked: join again
                except Outgrown:
                    if drain:
                        raise
                finally:
                    consumer.close()
                if wants.others and not stop.is_set():
                    stand_by(wants, stop)
                if stop.is_set():
                    return 0
        finally:
            if watch is not None:
                watch.end()

    def _open(self, store: EventStore, wants: Wants) -> Consumer:
        topics, types = names(wants.own)
        return open_consumer(
            store.driver,
            self.name,
            topics,
            types,
            self._start,
            store.kafka,
            self._assignor,
            wants=wants,
        )

    def _consume(
        self,
        consumer: Consumer,
        store: EventStore,
        stop: threading.Event,
        routes: Routes,
        drain: bool,
        loop: tuple[asyncio.AbstractEventLoop, AsyncEventStore] | None,
        wants: Wants,
    ) -> int:
        parking = Parking(
            self.name,
            Handling(self.name, routes, store.codec),
            store.driver,
            consumer,
            parks=self._on_error == "park",
            limit=self._park_limit,
        )
        work = Work(self.name, parking.steps, store, stop)
        work.paused = lambda: wants.seen.paused
        workers: Workers = Inline(work)
        if loop is not None:
            workers = OnLoop(work, self._lanes, *loop)
        elif self._lanes > 1 and not drain:
            workers = Threads(work, self._lanes)
        dispatcher = Dispatcher(self.name, consumer, work, workers, parking)
        return dispatcher.consume(stop, drain=drain)

    def backfill(
        self,
        store: EventStore,
        event: type[Event] | str,
        /,
        *,
        stop: threading.Event | None = None,
        told: Callable[[int], None] = lambda count: None,
        loop: tuple[asyncio.AbstractEventLoop, AsyncEventStore] | None = None,
    ) -> bool:
        """Handle the events of one name that this subscription passed before it handled that name.

        Each once in effect, and an entity's in their order; the live flow goes on meanwhile. What is
        broken off goes on where it was. True when all of it is handled; False where it was stopped,
        or another process is at work on a part of it.

        event: the class, or a stored name. told: called with the number of events to be handled next.
        loop: for async handlers, an event loop that runs in another thread, and a store on it.
        Raises NothingMissed, and HandlerFailed at the first event whose handler goes on failing:
        nothing behind it is handled.
        """
        kinds = (event,) if isinstance(event, str) else stored_names(event)
        routes, ended = self._routes(), stop or threading.Event()
        if loop is None and self.has_async_handlers:
            raise UsageError("async handlers need loop=(event loop, AsyncEventStore)")
        left = [kind for kind in kinds if is_missed(store, self.name, kind)] or kinds[:1]
        return all(
            backfill(store, self.name, kind, routes, self._assignor, ended, told, loop)
            for kind in left
        )

    async def run_on_async(self, store: AsyncEventStore, stop: threading.Event) -> None:
        """The same loop in a thread; async handlers run on this event loop."""
        blocking = store.blocking()
        loop = asyncio.get_running_loop()
        running = asyncio.ensure_future(
            asyncio.to_thread(self.run_on, blocking, stop, drain=False, loop=(loop, store))
        )
        try:
            await asyncio.shield(running)
        except asyncio.CancelledError:
            stop.set()
            await running
            raise
        finally:
            blocking.close()


def full_name_of(handler: Handler) -> str:
    return f"{handler.__module__}.{getattr(handler, '__qualname__', repr(handler))}"
