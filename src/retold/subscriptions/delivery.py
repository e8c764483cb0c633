"""Deliveries: an event handed to a handler, and the changes made because of it.

Every change carries a key made of the event's id, the subscription's name and the step, so a
redelivered event changes nothing a second time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Self, TypeVar
from uuid import UUID

from retold.aggregates import Aggregate
from retold.entity import Changed, Entity
from retold.errors import AmbiguousTrigger, InvalidValue, NotFound
from retold.events import Event
from retold.store.options import check_id
from retold.store.repository import AsyncRepository, Repository, derived_id

if TYPE_CHECKING:
    from retold.recorded import Recorded
    from retold.store.event_store import AsyncEventStore, EventStore

A = TypeVar("A", bound=Aggregate)
E_co = TypeVar("E_co", bound=Event, covariant=True)
R = TypeVar("R")
P = ParamSpec("P")

_MAX_STEP = 60
_VISIBLE_S = 1.0
"""How long to look for what the event tells of. MySQL writes its log before it shows the rows."""


class _Delivered(Generic[E_co]):
    """What both kinds of delivery share: the event, and which changes were already made."""

    event: E_co
    event_id: str
    event_type: str
    entity_type: str
    entity_id: str
    time: datetime
    metadata: Mapping[str, str]
    attempt: int

    def __init__(
        self, recorded: Recorded[E_co], subscription: str, attempt: int, store: Any
    ) -> None:
        self.event = recorded.event
        self.event_id = recorded.id
        self.event_type = recorded.name
        self.entity_type = recorded.entity_type
        self.entity_id = recorded.entity_id
        self.time = recorded.time
        self.metadata = recorded.metadata
        self.attempt = attempt
        self._subscription = subscription
        # The parts an upcaster made of one stored event are events of their own to a handler.
        self._cause = f"{recorded.id}/{recorded.part}" if recorded.part else recorded.id
        self._step = ""
        self._store = store
        self._changed: set[tuple[str, str, str]] = set()

    def step(self, name: str, /) -> Self:
        """A view for another change of the same entity: `delivery.step("fee").update(…)`."""
        if not 0 < len(name) <= _MAX_STEP or "\0" in name:
            raise InvalidValue(f"a step is named by 1 to {_MAX_STEP} characters")
        view = object.__new__(type(self))
        view.__dict__.update(self.__dict__)
        view._step = name
        return view

    def _claim(self, entity_type: str, id: str) -> str:
        """The key of a change; the same entity twice in one step is ambiguous."""
        change = (entity_type, id, self._step)
        if change in self._changed:
            raise AmbiguousTrigger(entity_type, id, self.event_id)
        self._changed.add(change)
        return f"{self._cause}/{self._subscription}/{self._step}"

    def _for_update(self, repository: Any, entity_type: str, id: str | UUID) -> Any:
        return repository._caused_by(self.event_id, self._claim(entity_type, check_id(id)))

    def _for_create(self, repository: Any, entity_type: str) -> Any:
        id = derived_id(self._cause, self._subscription, entity_type, self._step)
        key = self._claim(entity_type, id)
        return repository._caused_by(self.event_id, key, id)

    def _pauses(self, entity_type: str, id: str | UUID) -> Iterator[float]:
        """Between looks at the event's own entity, where it came through Kafka and so may be here
        before its row can be seen."""
        own = (self.entity_type, self.entity_id) == (entity_type, str(id))
        pause, left = 0.001, _VISIBLE_S if own and self._store.kafka is not None else 0.0
        while left > 0:
            yield pause
            pause, left = min(2 * pause, 0.05), left - pause

    def _is_new(self, entity: Entity[Any]) -> bool:
        return entity.version >= self.event_id

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} {self.event_type} {self.event_id} of {self.entity_type} "
            f"{self.entity_id}, attempt {self.attempt}>"
        )


class Delivery(_Delivered[E_co]):
    """An event handed to a plain function.

    event: the event. event_id, event_type, entity_type, entity_id: as stored. time: when it was
    written (aware, UTC). metadata: what was written with it. attempt: 1 for the first try.
    """

    _store: EventStore

    def update(
        self,
        aggregate_class: type[A],
        id: str | UUID,
        command: Callable[Concatenate[A, P], R],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Changed[A, R]:
        """Update an entity because of this event; a redelivery finds it done (`duplicate`).

        Raises what Repository.update raises, and AmbiguousTrigger for the same entity twice.
        """
        repository: Repository[A] = self._for_update(
            self._store.repository(aggregate_class), aggregate_class.__entity_type__, id
        )
        for pause in self._pauses(aggregate_class.__entity_type__, id):
            try:
                return repository.update(id, command, *args, **kwargs)
            except NotFound:
                time.sleep(pause)
        return repository.update(id, command, *args, **kwargs)

    def create(
        self,
        aggregate_class: type[A],
        command: Callable[Concatenate[A, P], R],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Changed[A, R]:
        """Create an entity because of this event; its id follows from the event's."""
        repository: Repository[A] = self._for_create(
            self._store.repository(aggregate_class), aggregate_class.__entity_type__
        )
        return repository.create(command, *args, **kwargs)

    def find(self, aggregate_class: type[A], id: str | UUID, /) -> Entity[A]:
        """As Repository.find; the event's own entity is at least as new as the event."""
        repository = self._store.repository(aggregate_class)
        for pause in self._pauses(aggregate_class.__entity_type__, id):
            try:
                if self._is_new(found := repository.find(id)):
                    return found
            except NotFound:
                pass
            time.sleep(pause)
        return repository.find(id)


class AsyncDelivery(_Delivered[E_co]):
    """An event handed to an async function; the same verbs, awaited."""

    _store: AsyncEventStore

    async def update(
        self,
        aggregate_class: type[A],
        id: str | UUID,
        command: Callable[Concatenate[A, P], R],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Changed[A, R]:
        """As Delivery.update."""
        repository: AsyncRepository[A] = self._for_update(
            self._store.repository(aggregate_class), aggregate_class.__entity_type__, id
        )
        for pause in self._pauses(aggregate_class.__entity_type__, id):
            try:
                return await repository.update(id, command, *args, **kwargs)
            except NotFound:
                await asyncio.sleep(pause)
        return await repository.update(id, command, *args, **kwargs)

    async def create(
        self,
        aggregate_class: type[A],
        command: Callable[Concatenate[A, P], R],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Changed[A, R]:
        """As Delivery.create."""
        repository: AsyncRepository[A] = self._for_create(
            self._store.repository(aggregate_class), aggregate_class.__entity_type__
        )
        return await repository.create(command, *args, **kwargs)

    async def find(self, aggregate_class: type[A], id: str | UUID, /) -> Entity[A]:
        """As Delivery.find."""
        repository = self._store.repository(aggregate_class)
        for pause in self._pauses(aggregate_class.__entity_type__, id):
            try:
                if self._is_new(found := await repository.find(id)):
                    return found
            except NotFound:
                pass
            await asyncio.sleep(pause)
        return await repository.find(id)
