"""Storms: run subscriptions in the worst way that is still allowed.

A broker keeps the order of each entity's events, and no other. It delivers at least once: when a
process dies, what it had handled and not saved comes again. A storm does all that on purpose, drawn
from a seed, so that the same seed does the same again.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from retold.brokers.database import DatabaseConsumer
from retold.errors import AssignmentLost, HandlerFailed, StoreBusy, UsageError
from retold.events import Event
from retold.metadata import CausedBy
from retold.recorded import read_row
from retold.subscriptions.delivery import Delivery
from retold.subscriptions.generations import handled, names
from retold.subscriptions.subscription import full_name_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from retold.brokers.base import Message
    from retold.recorded import Recorded
    from retold.store.event_store import EventStore
    from retold.subscriptions.subscription import Subscription

# How likely each is: before a change of a delivery, behind a handler, and that a position is saved.
_KILLED, _BUSY = 0.1, 0.1
_KILLED_BEHIND, _SAVED = 0.15, 0.3
_BATCH = 1000


@dataclass(slots=True)
class StormReport:
    """What a storm did.

    events: how many events were wanted. deliveries: how often a handler was called. killed: how
    often the process died, in a handler or behind it. failed: how often the store failed a handler.
    """

    seed: int
    events: int = 0
    deliveries: int = 0
    killed: int = 0
    failed: int = 0


def storm(store: EventStore, /, *subscriptions: Subscription, seed: int = 0) -> StormReport:
    """Handle what is there, as `store.drain` does, but through all that production does.

    Every event is delivered at least twice. Events of one entity come in order, those of different
    entities in any; a handler is cut off between two of its changes or behind the last; the store
    fails it with StoreBusy; what was handled and not saved comes again. What handlers cause is
    handled too. Afterwards the test says what must be true.

    The store is one on SQLite, the handlers are plain functions. One that goes on failing although
    nothing else is left to be handled is raised as HandlerFailed.
    """
    if store.driver.dialect.name != "sqlite":
        raise UsageError("a storm needs a store on SQLite, such as temporary_store()")
    if not subscriptions:
        raise UsageError("storm(…) needs at least one subscription")
    chance, report = random.Random(seed), StormReport(seed)
    members = list[_Member]()
    try:
        for subscription in subscriptions:
            members.append(_Member(store, subscription, chance, report))
        _rage(members, chance)
        for member in members:
            member.save()
    except HandlerFailed as error:
        error.add_note(f"in storm(…, seed={seed})")
        raise
    finally:
        for member in members:
            member.close()
    return report


def _rage(members: Sequence[_Member], chance: random.Random) -> None:
    """Until every event was delivered twice and nothing is left."""
    stuck: dict[int, HandlerFailed] = {}
    while True:
        for member in members:
            member.read()
        ahead = [
            (member, queue)
            for member in members
            for queue in member.queues.values()
            if queue.ahead and id(queue) not in stuck
        ]
        if ahead:
            member, queue = chance.choice(ahead)
            failure = member.handle(queue)
            if failure is None:
                stuck.clear()  # what it changed may be what others wait for
            else:
                stuck[id(queue)] = failure
        elif stuck:
            raise next(iter(stuck.values()))
        elif not [member for member in members if member.again()]:
            return


@dataclass(slots=True)
class _Queue:
    """The events of one entity, how far they are handled, and how far that is saved.

    completed: how often each was handled to the end. attempt: at the one that is next.
    """

    messages: list[Message] = field(default_factory=list["Message"])
    completed: list[int] = field(default_factory=list[int])
    handled: int = 0
    saved: int = 0
    attempt: int = 1

    @property
    def ahead(self) -> bool:
        return self.handled < len(self.messages)


class _Killed(BaseException):
    """The process died here: no handler may catch it."""


class _Stormy(Delivery[Event]):
    """A delivery whose changes may not come about."""

    disturb: Callable[[], None]

    def _claim(self, entity_type: str, id: str) -> str:
        self.disturb()
        return super()._claim(entity_type, id)


class _Member:
    """One subscription in the storm."""

    def __init__(
        self,
        store: EventStore,
        subscription: Subscription,
        chance: random.Random,
        report: StormReport,
    ) -> None:
        self._store = store
        self._name = subscription.name
        self._routes = subscription._routes()
        self._chance = chance
        self._report = report
        self.queues: dict[tuple[str, str], _Queue] = {}
        self._end, self._struck, self._handler = 0, False, ""
        for handler, _ in self._routes.values():
            if inspect.iscoroutinefunction(handler):
                raise UsageError(f"{full_name_of(handler)} is async; a storm takes plain functions")
        topics, types = names(handled(self._routes))
        self._consumer = DatabaseConsumer(store.driver, self._name, topics, types, "beginning")

    def read(self) -> None:
        while messages := self._consumer.poll(_BATCH, 0):
            for message in messages:
                queue = self.queues.setdefault((message.topic, message.key), _Queue())
                queue.messages.append(message)
                queue.completed.append(0)
                self._report.events += 1
                self._end = message.position
        if not self._consumer.assigned:
            raise AssignmentLost(self._name)

    def handle(self, queue: _Queue) -> HandlerFailed | None:
        """Deliver an entity's next event; the failure where it was the handler's own."""
        message, self._struck = queue.messages[queue.handled], False
        try:
            for recorded in self._recorded(message):
                self._call(recorded, queue.attempt)
            queue.completed[queue.handled] += 1
            if self._chance.random() < _KILLED_BEHIND:
                raise _Killed
        except _Killed:
            self._report.killed += 1
            for each in self.queues.values():
                each.handled, each.attempt = each.saved, 1
            return None
        except Exception as error:
            queue.attempt += 1
            if self._struck:
                self._report.failed += 1
                return None
            return self._failure(message, queue.attempt - 1, error)
        queue.handled, queue.attempt = queue.handled + 1, 1
        if self._chance.random() < _SAVED:
            queue.saved = queue.handled
        return None

    def again(self) -> bool:
        """Go back to what was handled only once; whether there is such."""
        found = False
        for queue in self.queues.values():
            if 1 in queue.completed:
                queue.handled = queue.saved = queue.completed.index(1)
                found = True
        return found

    def save(self) -> None:
        """All is handled: another run begins behind it."""
        if self._end:
            self._consumer.commit({0: self._end})

    def close(self) -> None:
        self._consumer.close()

    def _recorded(self, message: Message) -> list[Recorded[Event]]:
        return read_row(
            self._store.codec,
            message.topic,
            message.key,
            message.event_id,
            message.event_type,
            message.data,
            None,
            message.metadata,
        )

    def _call(self, recorded: Recorded[Event], attempt: int) -> None:
        route = self._routes.get((recorded.entity_type, type(recorded.event)))
        if route is None:
            return
        self._report.deliveries += 1
        self._handler = full_name_of(route.handler)
        delivery = _Stormy(recorded, self._name, attempt, self._store)
        delivery.disturb = self._disturb
        with CausedBy(recorded.id, recorded.metadata):
            route.handler(delivery)

    def _disturb(self) -> None:
        drawn = self._chance.random()
        if drawn < _KILLED:
            raise _Killed
        if drawn < _KILLED + _BUSY:
            self._struck = True
            raise StoreBusy("the storm has locked it")

    def _failure(self, message: Message, attempts: int, error: Exception) -> HandlerFailed:
        failed = HandlerFailed(
            self._name,
            self._handler,
            message.event_id,
            message.event_type,
            message.topic,
            message.key,
            attempts,
            f"{type(error).__name__}: {error}",
        )
        failed.__cause__ = error
        return failed
