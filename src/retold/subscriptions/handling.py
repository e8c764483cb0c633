"""What is done with one message: read it, hand its events to their handlers, try again.

Written once, as a generator that yields what somebody must do, a call or a pause, and is sent the
error of the call, if any. `workers.py` does these things in a thread or on an event loop.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from retold.brokers.base import Message
from retold.brokers.unreadable import UNREADABLE, events_of
from retold.errors import HandlerFailed
from retold.events import Event
from retold.recorded import Recorded, read_row
from retold.store.driver import Plan
from retold.subscriptions.retry import Retry, counts

if TYPE_CHECKING:
    from retold.codecs import Codec

_log = logging.getLogger("retold.subscriptions")


Handler = Callable[[Any], Any]


class Route(NamedTuple):
    """A handler, and how often it is tried."""

    handler: Handler
    retry: Retry


Routes = Mapping[tuple[str, type[Event]], Route]
"""(entity type, event class) → handler."""


class Call(NamedTuple):
    """Call the handler with a delivery of this event, and send the Exception it raised, or None."""

    handler: Handler
    recorded: Recorded[Event]
    attempt: int


class Pause(NamedTuple):
    """Wait, and send whether the subscription is to stop."""

    seconds: float


class Run(NamedTuple):
    """Run a plan on the store, and send its result or the RetoldError it raised."""

    plan: Plan[Any]


Steps = Generator[Call | Pause | Run, Any, bool]


class Handling:
    """How one subscription handles a message."""

    def __init__(self, subscription: str, routes: Routes, codec: Codec) -> None:
        self._subscription = subscription
        self._routes = routes
        self._codec = codec
        self._types = frozenset(name for _, cls in routes for name in cls.__event_names__)

    def steps(self, message: Message) -> Steps:
        """False when it was stopped before the message was handled.

        Raises HandlerFailed, UnknownEvent, UnreadableEvent, UnreadableRecord.
        """
        unreadable = message.event_type == UNREADABLE
        return self._handle_inside(message) if unreadable else self._handle(message)

    def _handle_inside(self, message: Message) -> Steps:
        for inner in events_of(message):
            if inner.event_type in self._types and not (yield from self._handle(inner)):
                return False
        return True

    def _handle(self, message: Message) -> Steps:
        for event in read_row(
            self._codec,
            message.topic,
            message.key,
            message.event_id,
            message.event_type,
            message.data,
            None,
            message.metadata,
        ):
            route = self._routes.get((message.topic, type(event.event)))
            if route is None:
                continue
            error = yield Call(route.handler, event, 1)
            if error is not None and not (yield from self._again(route, event, error)):
                return False
        return True

    def _again(self, route: Route, recorded: Recorded[Event], error: Exception) -> Steps:
        """After a first failure; False when stopped."""
        attempt = failures = 1
        while True:
            if route.retry.gives_up(error, attempt):
                raise HandlerFailed(
                    self._subscription,
                    getattr(route.handler, "__qualname__", repr(route.handler)),
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
            attempt += counts(error)
            if (yield Pause(route.retry.seconds(failures))):
                return False
            failures += 1
            error = yield Call(route.handler, recorded, attempt)
            if error is None:
                return True
