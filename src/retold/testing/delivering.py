"""Deliveries by hand: one event, given to a handler as a subscription gives it, several times.

A subscription delivers at least once: after a crash, events come again whose handlers had done
their work. What a handler does must be right all the same, and this is where a test sees it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, overload
from uuid import UUID

from retold.aggregates import Aggregate, appliers_of
from retold.errors import InvalidValue, UsageError
from retold.events import Event, event_name
from retold.ids import milliseconds, moment
from retold.metadata import CausedBy
from retold.recorded import Recorded
from retold.store.event_store import AsyncEventStore, EventStore
from retold.store.options import check_id
from retold.subscriptions.delivery import AsyncDelivery, Delivery
from retold.testing.stores import temporary_async_store, temporary_store

if TYPE_CHECKING:
    from collections.abc import Awaitable

E = TypeVar("E", bound=Event)


@overload
def deliver(
    handler: Callable[[Delivery[E]], None],
    event: E | Recorded[Event],
    /,
    *,
    store: EventStore | None = None,
    times: int = 2,
    of: str | type[Aggregate] | None = None,
    entity_id: str | UUID = "entity-1",
    metadata: Mapping[str, str] | None = None,
    subscription: str = "test",
) -> None: ...
@overload
def deliver(
    handler: Callable[[AsyncDelivery[E]], Awaitable[None]],
    event: E | Recorded[Event],
    /,
    *,
    store: AsyncEventStore | None = None,
    times: int = 2,
    of: str | type[Aggregate] | None = None,
    entity_id: str | UUID = "entity-1",
    metadata: Mapping[str, str] | None = None,
    subscription: str = "test",
) -> Coroutine[Any, Any, None]: ...
def deliver(
    handler: Callable[[Any], Any],
    event: Event | Recorded[Event],
    /,
    *,
    store: EventStore | AsyncEventStore | None = None,
    times: int = 2,
    of: str | type[Aggregate] | None = None,
    entity_id: str | UUID = "entity-1",
    metadata: Mapping[str, str] | None = None,
    subscription: str = "test",
) -> Coroutine[Any, Any, None] | None:
    """Hand an event to a handler `times` times, as the same event delivered again.

    Await it where the handler is async. What the handler raises escapes.

    event: an event, or a recorded one from a history or stream, which says all the rest by itself.
    store: what the delivery finds and changes entities in; an empty one without it.
    of: the entity type the event is of, by class or name; without it the only aggregate of this
    process that applies it. entity_id, metadata: of the event. subscription: its name.

    The event is not stored. Raises NotStorable for an event that could not be.
    """
    if times < 1:
        raise InvalidValue(f"times={times}: an event is delivered at least once")
    if inspect.iscoroutinefunction(handler):
        opened = store or temporary_async_store()
        if not isinstance(opened, AsyncEventStore):
            raise UsageError("an async handler needs store=AsyncEventStore(…)")
    else:
        opened = store or temporary_store()
        if not isinstance(opened, EventStore):
            raise UsageError("a handler that is a plain function needs store=EventStore(…)")
    recorded = (
        event
        if isinstance(event, Recorded)
        else _recorded(event, opened, of, check_id(entity_id), metadata or {})
    )
    if isinstance(opened, AsyncEventStore):
        return _deliver_async(handler, recorded, times, subscription, opened)
    for _ in range(times):
        with CausedBy(recorded.id, recorded.metadata):
            result = handler(Delivery(recorded, subscription, 1, opened))
        if inspect.isawaitable(result):
            if inspect.iscoroutine(result):
                result.close()
            raise UsageError("the handler returned an awaitable: make it async def itself")
    return None


async def _deliver_async(
    handler: Callable[[Any], Any],
    recorded: Recorded[Event],
    times: int,
    subscription: str,
    store: AsyncEventStore,
) -> None:
    for _ in range(times):
        with CausedBy(recorded.id, recorded.metadata):
            await handler(AsyncDelivery(recorded, subscription, 1, store))


def _recorded(
    event: Event,
    store: EventStore | AsyncEventStore,
    of: str | type[Aggregate] | None,
    entity_id: str,
    metadata: Mapping[str, str],
) -> Recorded[Event]:
    """An event as it would come from the store, through JSON."""
    if not isinstance(event, Event):
        raise UsageError(f"deliver takes an event, not {event!r}")
    name = event_name(event)
    encoded = store.codec.encode_checked(event, name)
    ((id,), _) = store._settings.ids.mint(1)
    return Recorded(
        id,
        name,
        store.codec.decoder(type(event))(encoded),
        _entity_type(event, of),
        entity_id,
        moment(milliseconds(id)),
        dict(metadata),
        None,
    )


def _entity_type(event: Event, of: str | type[Aggregate] | None) -> str:
    if of is not None:
        return of if isinstance(of, str) else of.__entity_type__
    found = appliers_of(type(event))
    if len(found) != 1:
        raise UsageError(
            f"deliver(…): say of=…, {len(found)} aggregates of this process apply "
            f"{event_name(event)}"
        )
    return found[0].__entity_type__
