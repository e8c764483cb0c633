"""What a member of a projection does with messages: handlers and position in one transaction.

Messages are applied in the order of the broker, up to `batch` of them in a transaction. Where one
fails, all of them are undone and tried one by one, so that only what fails is tried again, and then
parked: in the read model's database, in the transaction that moves the position past it.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from retold.brokers.base import Consumer, Message
from retold.errors import (
    AssignmentLost,
    HandlerFailed,
    RetoldError,
    StoreError,
    UnknownEvent,
    UnreadableEvent,
    UsageError,
)
from retold.events import Event
from retold.recorded import Recorded, read_row
from retold.store import parked, projections
from retold.store.driver import Plan
from retold.store.parked import SKIP, Failure, Head, Queue, head, heads, marked
from retold.store.projections import HandlerRaised, Member, Parked, Seen
from retold.subscriptions.delivery import Delivery
from retold.subscriptions.handling import Routes
from retold.subscriptions.parking import failure_of
from retold.subscriptions.progress import Hold, Revival, Taken
from retold.subscriptions.retry import Retry, counts
from retold.subscriptions.workers import Work

if TYPE_CHECKING:
    from retold.codecs import Codec
    from retold.store.connections import BlockingDriver

_WAIT = Retry()
_log = logging.getLogger("retold.subscriptions")


class _NoStore:
    """In the place of a delivery's store: a projection changes its read model and nothing else."""

    def __getattr__(self, name: str) -> NoReturn:
        raise UsageError(
            "a projection's handler changes its read model, through db; entities are changed by the "
            "handler of a Subscription"
        )


NO_STORE: Any = _NoStore()


@dataclass(slots=True)
class Settings:
    """How a projection is run. naming: a block in which its tables have the names that are meant."""

    name: str
    routes: Routes
    codec: Codec
    driver: BlockingDriver
    member: Member
    naming: Callable[[], AbstractContextManager[None]]
    batch: int
    track_versions: bool
    parks: bool
    park_limit: int
    applied: Callable[[int], None] = lambda count: None
    """Told how many messages were applied."""


@dataclass(slots=True)
class _Readable:
    """A message and the events in it."""

    taken: Taken
    events: Sequence[Recorded[Event]] = field(default=())


class Projector:
    """The workers and the parked queues of one member."""

    idle = True

    def __init__(self, settings: Settings, consumer: Consumer, work: Work) -> None:
        self._is = settings
        self._driver = settings.driver
        self._dialect = settings.driver.dialect
        self._consumer = consumer
        self._work = work
        self._passed: dict[str, int] = {}
        self._handler = ""  # the one called last

    # --- as the dispatcher's queues ---------------------------------------------------------------

    def load(self, hold: Hold) -> None:
        number = self._number(hold.partition)
        hold.parked = self._driver.run(heads(self._dialect.queries, self._is.name, number))
        if hold.parked:
            _log.warning(
                "%s: events of %d entities are parked (%s)",
                self._is.name,
                len(hold.parked),
                self._consumer.place(hold.partition),
            )

    def wanted(self, holds: dict[int, Hold]) -> list[Revival]:
        self._save_passed(holds)
        numbered = {self._number(n): hold for n, hold in holds.items() if hold.parked}
        if not numbered:
            return []
        found: list[Revival] = []
        for number, *names in self._driver.run(marked(self._dialect.queries, self._is.name)):
            hold, entity = numbered.get(number), (names[0], names[1])
            if hold is not None and entity in hold.parked and entity not in hold.reviving:
                hold.reviving.add(entity)
                message = Message(*entity, "", "", "", None, hold.partition, -1)
                found.append(Revival(message, hold))
        return found

    def _number(self, partition: int) -> int:
        """A partition as parked events of a projection know it: a rebuild hands them on, and it has
        another consumer, which may count partitions otherwise."""
        place = self._consumer.place(partition)
        return zlib.crc32(place.encode()) >> 1 if projections.is_of_kafka(place) else int(place)

    def _save_passed(self, holds: Mapping[int, Hold]) -> None:
        """Move places on where everything up to what was read is applied, or not wanted."""
        passed: dict[str, int] = {}
        for partition, position in self._consumer.reached().items():
            hold, place = holds.get(partition), self._consumer.place(partition)
            if hold is not None and not hold.taken and position > self._passed.get(place, 0):
                passed[place] = position
        if passed:
            sql = self._dialect.queries
            self._driver.run(projections.save_passed(sql, self._is.member, passed))
            self._passed |= passed

    # --- as the dispatcher's workers --------------------------------------------------------------

    def put(self, messages: Sequence[Taken]) -> None:
        """Apply messages in this thread. Raises AssignmentLost, HandlerFailed, ParkedQueueFull."""
        batch: list[Taken] = []
        for taken in messages:
            if isinstance(taken, Revival):
                self._work_queue(taken)
                continue
            batch.append(taken)
            if len(batch) >= self._is.batch:
                self._apply(batch)
                batch = []
        if batch:
            self._apply(batch)

    def end(self, timeout: float) -> bool:
        return True

    def _apply(self, batch: Sequence[Taken]) -> None:
        living = [taken for taken in batch if taken.hold.alive]
        if not living or self._work.stopped:
            return
        try:
            readable = [self._read(taken) for taken in living]
            if not self._waiting(lambda: self._write(readable, 1)):
                return
        except (HandlerRaised, UnknownEvent, UnreadableEvent):
            if len(living) > 1:
                _log.debug("%s: %d events are tried one by one", self._is.name, len(living))
            for taken in living:
                if not self._apply_one(taken):
                    return

    def _apply_one(self, taken: Taken) -> bool:
        """Try one message until it is applied or parked; False when stopped before."""
        try:
            readable = self._read(taken)
        except (UnknownEvent, UnreadableEvent) as error:
            return self._give_up(taken, error)
        attempt, failures = 1, 0
        while True:
            try:
                return self._waiting(partial(self._write, [readable], attempt))
            except HandlerRaised as raised:
                failed = raised.error
            retry = self._retry_of(readable)
            if retry.gives_up(failed, attempt):
                return self._give_up(taken, self._failed(taken.message, attempt, failed))
            failures += 1
            _log.warning(
                "%s: attempt %d on event %s (%s) failed: %s",
                self._is.name,
                attempt,
                taken.message.event_id,
                taken.message.event_type,
                type(failed).__name__,
            )
            attempt += counts(failed)
            if self._paused(retry.seconds(failures)):
                return False

    def _read(self, taken: Taken) -> _Readable:
        """Raises UnknownEvent, UnreadableEvent."""
        message = taken.message
        if self._is_queued(taken):
            return _Readable(taken)
        return _Readable(taken, self._events(message))

    def _events(self, message: Message) -> list[Recorded[Event]]:
        found = read_row(
            self._is.codec,
            message.topic,
            message.key,
            message.event_id,
            message.event_type,
            message.data,
            None,
            message.metadata,
        )
        return [one for one in found if (message.topic, type(one.event)) in self._is.routes]

    def _is_queued(self, taken: Taken) -> bool:
        return (taken.message.topic, taken.message.key) in taken.hold.parked

    def _write(self, batch: Sequence[_Readable], attempt: int) -> Plan[None]:
        """One transaction for messages in their order; those of entities with a queue join it."""
        place = self._consumer.place
        places = {one.taken.message.partition: "" for one in batch}
        places = {partition: place(partition) for partition in places}
        positions: dict[str, int] = {}
        for one in batch:
            message = one.taken.message
            positions[places[message.partition]] = message.position
        new: list[_Readable] = []

        def work(saved: Mapping[str, int]) -> Callable[[Any], None] | None:
            # What another member has applied, or this one before an answer was lost, is left out.
            new.extend(
                one
                for one in batch
                if one.taken.message.position > saved[places[one.taken.message.partition]]
            )
            handled = [event for one in new for event in one.events]
            return (lambda db: self._call(handled, attempt, db)) if handled else None

        def seen() -> Any:
            if not self._is.track_versions:
                return
            last = {(one.taken.message.topic, one.taken.message.key): one for one in new}
            for entity, one in last.items():
                if not self._is_queued(one.taken):
                    yield Seen(*entity, one.taken.message.event_id)

        def parks() -> Any:
            for one in new:
                message, hold = one.taken.message, one.taken.hold
                first = hold.parked.get((message.topic, message.key))
                if first is not None and message.event_id >= first:
                    yield self._parked(message, Failure())

        yield from projections.write(
            self._dialect,
            self._is.member,
            positions,
            work,
            seen=seen(),
            parked=parks(),
            limit=self._is.park_limit,
        )
        for one in batch:
            one.taken.done = True
        self._is.applied(len(batch))

    def _call(self, events: Sequence[Recorded[Event]], attempt: int, db: Any) -> None:
        routes = self._is.routes
        with self._is.naming():
            for event in events:
                handler = routes[event.entity_type, type(event.event)].handler
                self._handler = getattr(handler, "__qualname__", repr(handler))
                call(handler, event, attempt, db)

    # --- failures ---------------------------------------------------------------------------------

    def _retry_of(self, readable: _Readable) -> Retry:
        first = readable.events[0]
        return self._is.routes[first.entity_type, type(first.event)].retry

    def _failed(self, message: Message, attempts: int, error: Exception) -> HandlerFailed:
        raw = error.__cause__ if isinstance(error, RetoldError) and error.__cause__ else error
        failed = HandlerFailed(
            self._is.name,
            self._handler,
            message.event_id,
            message.event_type,
            message.topic,
            message.key,
            attempts,
            f"{type(raw).__name__}: {raw}",
        )
        failed.__cause__ = raw
        # The database as a whole is in trouble, or a table is missing: no parking mends that.
        if isinstance(error, StoreError) and type(error) is not StoreError:
            raise failed from error
        return failed

    def _give_up(self, taken: Taken, error: HandlerFailed | UnknownEvent | UnreadableEvent) -> bool:
        if not self._is.parks:
            raise error
        failure, message = failure_of(error), taken.message

        def park() -> Plan[None]:
            place = self._consumer.place(message.partition)
            yield from projections.write(
                self._dialect,
                self._is.member,
                {place: message.position},
                lambda saved: None,
                parked=[self._parked(message, failure)],
                limit=self._is.park_limit,
            )

        if not self._waiting(park):
            return False
        taken.hold.parked[message.topic, message.key] = message.event_id
        taken.done = True
        _log.error(
            "%s: parked event %s (%s) of %s %s after %d attempts; of this partition events of %d "
            "entities are parked",
            self._is.name,
            message.event_id,
            message.event_type,
            message.topic,
            message.key,
            failure.attempts,
            len(taken.hold.parked),
        )
        return True

    def _parked(self, message: Message, failure: Failure) -> Parked:
        event = parked.Event(message.event_id, message.event_type, message.data, message.metadata)
        queue = Queue(self._is.name, message.topic, message.key)
        return Parked(queue, event, failure, self._number(message.partition))

    # --- the queues -------------------------------------------------------------------------------

    def _work_queue(self, revival: Revival) -> None:
        """Try a queue's events from the first on, until it is empty or one fails."""
        hold, entity = revival.hold, (revival.message.topic, revival.message.key)
        queue = Queue(self._is.name, *entity)
        try:
            while entity in hold.parked and hold.alive and not self._work.stopped:
                first = self._driver.run(head(self._dialect.queries, queue))
                if first is None:
                    del hold.parked[entity]
                elif first.mark is None or not self._work_first(hold, queue, first):
                    return
        finally:
            hold.reviving.discard(entity)

    def _work_first(self, hold: Hold, queue: Queue, first: Head) -> bool:
        event, place = first.event, self._consumer.place(hold.partition)
        message = Message(
            queue.entity_type,
            queue.entity_id,
            event.id,
            event.type,
            event.data,
            event.metadata,
            hold.partition,
            -1,
        )
        following: list[str | None] = []

        def handle() -> Plan[None]:
            act: Callable[[Any], None] | None = None
            if first.mark != SKIP:
                events = self._events(message)
                act = lambda db: self._call(events, first.attempts + 1, db)  # noqa: E731
            following.append(
                (
                    yield from projections.revive(
                        self._dialect, self._is.member, place, queue, event.id, act
                    )
                )
            )

        try:
            if not self._waiting(handle):
                return False
        except (HandlerRaised, UnknownEvent, UnreadableEvent) as error:
            failed = (
                self._failed(message, 1, error.error) if isinstance(error, HandlerRaised) else error
            )
            failure = failure_of(failed, first.attempts)
            _log.error(
                "%s: event %s of %s %s failed again and stays parked",
                self._is.name,
                event.id,
                *queue[1:],
            )
            self._waiting(
                lambda: projections.failed_again(
                    self._dialect, self._is.member, place, queue, event.id, failure
                )
            )
            return False
        if following[-1] is None:
            del hold.parked[queue.entity_type, queue.entity_id]
            _log.info("%s: nothing of %s %s is parked any more", self._is.name, *queue[1:])
            return False
        hold.parked[queue.entity_type, queue.entity_id] = following[-1]
        return True

    # --- waiting ----------------------------------------------------------------------------------

    def _waiting(self, plan: Callable[[], Plan[None]]) -> bool:
        """Run a plan, and wait for a database that is busy or away; False when stopped before.

        An answer that was lost is no harm: the position tells what was committed.
        """
        failures = 0
        while True:
            try:
                self._driver.run(plan())
            except AssignmentLost:
                raise
            except RetoldError as error:
                if not error.retriable:
                    raise
                failures += 1
                _log.warning("%s: %s", self._is.name, error)
                if self._paused(_WAIT.seconds(failures)):
                    return False
            else:
                return True

    def _paused(self, seconds: float) -> bool:
        """Pause; whether it is to stop."""
        self._work.stop.wait(seconds)
        return self._work.stopped


def call(handler: Callable[..., Any], event: Recorded[Event], attempt: int, db: Any) -> None:
    """Hand an event to a projection's handler."""
    handler(Delivery(event, "", attempt, NO_STORE), db)
