"""Sequenced parking: an event given up on, and the later ones of its entity behind it.

What is done with a message here goes around `handling.py`: a failure puts the event into the table
`parked`, and events of an entity that has a queue there join its end. A retry works the queue from
its beginning, in the lane of the entity, so that nobody adds to it meanwhile; when the last row is
gone, the next message of the lane is handled as it comes.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

from retold.brokers.base import Consumer, Message
from retold.errors import (
    AssignmentLost,
    HandlerFailed,
    RetoldError,
    UnknownEvent,
    UnreadableEvent,
    UnreadableRecord,
)
from retold.store.driver import Plan
from retold.store.parked import (
    MADE_UP,
    SKIP,
    Event,
    Failure,
    Head,
    Queue,
    failed_again,
    head,
    heads,
    marked,
    park,
    unpark,
)
from retold.subscriptions.handling import Handling, Pause, Run, Steps
from retold.subscriptions.progress import Hold, Revival, Taken
from retold.subscriptions.retry import Retry, is_of_the_store

if TYPE_CHECKING:
    from retold.store.connections import BlockingDriver

PARK_LIMIT = 1000
_MAX_ERROR, _MAX_TRACEBACK = 2_000, 20_000
_WAIT = Retry()
_UNHANDLED = HandlerFailed, UnknownEvent, UnreadableEvent, UnreadableRecord
_Unhandled = HandlerFailed | UnknownEvent | UnreadableEvent | UnreadableRecord
"""What parks an event."""
_log = logging.getLogger("retold.subscriptions")


class _Ended(Exception):
    """It was stopped, or the partition is somebody else's."""


class Parking:
    """How one member of a subscription parks. parks: whether it does, or stops at a failure."""

    def __init__(
        self,
        name: str,
        handling: Handling,
        driver: BlockingDriver,
        consumer: Consumer,
        *,
        parks: bool,
        limit: int = PARK_LIMIT,
    ) -> None:
        self._name = name
        self._handling = handling
        self._driver = driver
        self._sql = driver.dialect.queries
        self._consumer = consumer
        self._parks = parks
        self._limit = limit

    # --- in the dispatcher's thread --------------------------------------------------------------

    def load(self, hold: Hold) -> None:
        """Learn which entities of a partition have a queue."""
        hold.parked = self._driver.run(heads(self._sql, self._name, hold.partition))
        if hold.parked:
            _log.warning(
                "%s: events of %d entities are parked (partition %d)",
                self._name,
                len(hold.parked),
                hold.partition,
            )

    def wanted(self, holds: dict[int, Hold]) -> list[Revival]:
        """The queues that are to be worked."""
        if not any(hold.parked for hold in holds.values()):
            return []
        found: list[Revival] = []
        for partition, entity_type, entity_id in self._driver.run(marked(self._sql, self._name)):
            hold, entity = holds.get(partition), (entity_type, entity_id)
            if hold is not None and entity in hold.parked and entity not in hold.reviving:
                hold.reviving.add(entity)
                message = Message(*entity, "", "", "", None, partition, -1)
                found.append(Revival(message, hold))
        return found

    # --- in the lanes ----------------------------------------------------------------------------

    def steps(self, taken: Taken) -> Steps:
        """All that is done with a message. False when it was stopped before that was done."""
        if isinstance(taken, Revival):
            return self._ending(self._work_queue(taken))
        if taken.hold.parked and (taken.message.topic, taken.message.key) in taken.hold.parked:
            return self._ending(self._join(taken))
        if not self._parks:
            return self._handling.steps(taken.message)
        return self._try(taken)

    def _ending(self, steps: Steps) -> Steps:
        try:
            return (yield from steps)
        except _Ended:
            return False

    def _try(self, taken: Taken) -> Steps:
        try:
            return (yield from self._handling.steps(taken.message))
        except _UNHANDLED as error:
            failure = failure_of(error)
        return (yield from self._ending(self._park(taken, failure)))

    def _park(self, taken: Taken, failure: Failure) -> Steps:
        id = yield from self._put(taken, failure)
        if id is not None:
            message, hold = taken.message, taken.hold
            hold.parked[message.topic, message.key] = id
            _log.error(
                "%s: parked event %s (%s) of %s %s after %d attempts; of this partition events of "
                "%d entities are parked",
                self._name,
                id,
                message.event_type,
                message.topic,
                message.key,
                failure.attempts,
                len(hold.parked),
            )
        return True

    def _join(self, taken: Taken) -> Steps:
        """To the end of the queue, unless it comes again and was handled before the queue began."""
        message = taken.message
        head = taken.hold.parked[message.topic, message.key]
        if message.event_id >= head or message.event_id.startswith(MADE_UP):
            yield from self._put(taken, Failure())
        return True

    def _put(self, taken: Taken, failure: Failure) -> Generator[Any, Any, str | None]:
        message = taken.message
        event = Event(message.event_id, message.event_type, message.data, message.metadata)
        queue = Queue(self._name, message.topic, message.key)
        parked: str | None = yield from self._run(
            taken.hold,
            lambda: park(
                self._sql,
                queue,
                event,
                failure,
                message.partition,
                message.position,
                self._consumer.owned(message.partition),
                self._limit,
            ),
        )
        return parked

    def _work_queue(self, taken: Revival) -> Steps:
        """Try a queue's events from the first on, until it is empty or one fails."""
        hold, entity = taken.hold, (taken.message.topic, taken.message.key)
        queue = Queue(self._name, *entity)
        try:
            while entity in hold.parked:
                first: Head | None = yield from self._run(hold, lambda: head(self._sql, queue))
                if first is None:
                    del hold.parked[entity]
                    break
                if first.mark is None or not (yield from self._work_first(hold, queue, first)):
                    break
        finally:
            hold.reviving.discard(entity)
        return True

    def _work_first(self, hold: Hold, queue: Queue, first: Head) -> Generator[Any, Any, bool]:
        """False when the rest of the queue has to wait on."""
        event, owned = first.event, self._consumer.owned
        if first.mark != SKIP:
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
            try:
                if not (yield from self._handling.steps(message)):
                    return False
            except _UNHANDLED as error:
                failure = failure_of(error, first.attempts)
                _log.error(
                    "%s: event %s of %s %s failed again and stays parked",
                    self._name,
                    event.id,
                    *queue[1:],
                )
                yield from self._run(
                    hold,
                    lambda: failed_again(
                        self._sql, queue, event.id, failure, owned(hold.partition)
                    ),
                )
                return False
        following = yield from self._run(
            hold, lambda: unpark(self._sql, queue, event.id, owned(hold.partition))
        )
        if following is None:
            del hold.parked[queue.entity_type, queue.entity_id]
            _log.info("%s: nothing of %s %s is parked any more", self._name, *queue[1:])
            return False
        hold.parked[queue.entity_type, queue.entity_id] = following
        return True

    def _run(self, hold: Hold, plan: Callable[[], Plan[Any]]) -> Generator[Any, Any, Any]:
        """Run a plan, and wait for a database that is busy or away."""
        failures = 0
        while hold.alive:
            result = yield Run(plan())
            if not isinstance(result, RetoldError):
                return result
            if isinstance(result, AssignmentLost):
                if hold.alive:
                    raise result
                break
            if not result.retriable:
                raise result
            _log.warning("%s: parking has to wait: %s", self._name, result)
            failures += 1
            if (yield Pause(_WAIT.seconds(failures))):
                break
        raise _Ended


def failure_of(error: _Unhandled, before: int = 0) -> Failure:
    """What is kept of an error. Raises it where it is the database's, which no parking mends."""
    cause: BaseException = error
    attempts, text = 1, f"{type(error).__name__}: {error}"
    if isinstance(error, HandlerFailed):
        cause, attempts, text = error.__cause__ or error, error.attempts, error.reason
        if isinstance(cause, Exception) and is_of_the_store(cause):
            raise error
    trace = "".join(traceback.format_exception(cause))
    return Failure(
        _storable(text)[:_MAX_ERROR], _storable(trace)[-_MAX_TRACEBACK:], before + attempts
    )


def _storable(text: str) -> str:
    """Without what no database keeps in a text."""
    return text.encode("utf-8", "replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")
