"""Parked events: what handlers gave up on, and what waits behind it, as plans.

The rows of one entity are its queue. Its first row is the event that failed; later events of the
entity are put behind it by the member that owns their partition, and nobody else adds or removes a
row. Whoever else wants something leaves a mark.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

from retold.errors import AssignmentLost, NotParked, ParkedQueueFull
from retold.store.driver import Plan, Statement

RETRY, SKIP = "retry", "skip"
MADE_UP = "."
"""What is in the id of an event whose own nobody knows. It is before all that ids consist of, so
that such an id alone is before, and one made of another by adding to it is right behind that."""
_PAGE = 500


class Queue(NamedTuple):
    """Whose events are parked: of which entity, for which subscription."""

    subscription: str
    entity_type: str
    entity_id: str


class Event(NamedTuple):
    """An event as its row in the events table has it."""

    id: str
    type: str
    data: str
    metadata: str | None


class Failure(NamedTuple):
    """Why an event is parked; without one it waits behind another."""

    error: str | None = None
    traceback: str | None = None
    attempts: int = 0


class Head(NamedTuple):
    """The first event of a queue, how often it was tried, and what is wanted of it."""

    event: Event
    attempts: int
    mark: str | None


@dataclass(frozen=True, slots=True)
class ParkedEvent:
    """An event that a subscription gave up on, or that waits behind such a one of its entity.

    error, traceback, attempts: of the last try; None and 0 where it only waits. mark: "retry" or
    "skip" once asked for and not yet done. parked_at: aware, UTC.
    """

    subscription: str
    entity_type: str
    entity_id: str
    event_id: str
    event_type: str
    data: str
    metadata: str | None
    error: str | None
    traceback: str | None
    attempts: int
    parked_at: datetime
    mark: str | None

    @property
    def waits(self) -> bool:
        """Whether it waits behind another event of its entity, and was not tried."""
        return self.error is None


# --- what the owner of a partition does -----------------------------------------------------------


def park(
    sql: Mapping[str, str],
    queue: Queue,
    event: Event,
    failure: Failure,
    partition: int,
    position: int,
    owned: Statement,
    limit: int,
) -> Plan[str | None]:
    """Put an event at the end of its entity's queue; its id there, None where another member
    handled it.

    Raises AssignmentLost, and ParkedQueueFull at `limit` events.
    """
    yield [Statement(sql["begin"])]
    saved = yield from _owned(queue, owned)
    if saved >= position:
        yield [Statement(sql["rollback"])]
        return None
    if event.id.startswith(MADE_UP):
        (found,) = yield [Statement(sql["parked_queue"], queue)]
        event = event._replace(id=id_in_queue(event, found.rows))
    yield from join(sql, queue, event, failure, partition, limit)
    yield [Statement(sql["commit"])]
    return event.id


def join(
    sql: Mapping[str, str],
    queue: Queue,
    event: Event,
    failure: Failure,
    partition: int,
    limit: int,
) -> Plan[None]:
    """The same in a transaction of the caller's, who has seen to the partition.

    Raises ParkedQueueFull at `limit` events.
    """
    row = (*queue, event.id, partition, *event[1:], *failure, time.time_ns() // 1_000_000)
    new, found = yield [Statement(sql["park"], row), Statement(sql["parked_count"], queue)]
    if found.rows[0][0] > limit:
        raise ParkedQueueFull(*queue, limit)
    if failure.error is None and new.rowcount and found.rows[0][0] == 1:
        # What it was to wait behind is gone: nothing else would have it tried.
        yield [Statement(sql["parked_next"], (*queue, event.id))]


def id_in_queue(event: Event, rows: Sequence[Sequence[str]]) -> str:
    """Under which id an event without one of its own is the last of a queue.

    rows: id and data of those that are there. It may be there already; then it keeps its id.
    """
    for id, text in rows:
        if MADE_UP in id and text == event.data:
            return id
    last = rows[-1][0] if rows else ""
    if not last or last.startswith(MADE_UP):
        return event.id
    id, _, number = last.partition(MADE_UP)
    return f"{id}{MADE_UP}{int(number or '0', 16) + 1:03x}"


def unpark(
    sql: Mapping[str, str], queue: Queue, event_id: str, owned: Statement
) -> Plan[str | None]:
    """Take the first event away; the id of the next one, None where the queue is empty now.

    What waited behind it is to be tried, too. Raises AssignmentLost.
    """
    yield [Statement(sql["begin"])]
    yield from _owned(queue, owned)
    yield [Statement(sql["unpark"], (*queue, event_id))]
    (found,) = yield [Statement(sql["parked_head"], queue)]
    following = str(found.rows[0][0]) if found.rows else None
    if following is not None:
        yield [Statement(sql["parked_next"], (*queue, following))]
    yield [Statement(sql["commit"])]
    return following


def failed_again(
    sql: Mapping[str, str],
    queue: Queue,
    event_id: str,
    failure: Failure,
    owned: Statement,
) -> Plan[None]:
    """Note that the first event failed again. Raises AssignmentLost."""
    yield [Statement(sql["begin"])]
    yield from _owned(queue, owned)
    note = Statement(sql["parked_failed"], (*failure, *queue, event_id))
    yield [note, Statement(sql["commit"])]


def _owned(queue: Queue, owned: Statement) -> Plan[int]:
    """The position saved of the partition. Raises AssignmentLost."""
    (found,) = yield [owned]
    if not found.rows:
        raise AssignmentLost(queue.subscription)
    return int(found.rows[0][0])


def heads(sql: Mapping[str, str], name: str, partition: int) -> Plan[dict[tuple[str, str], str]]:
    """(entity type, entity id) → id of the first event parked, of one partition."""
    (found,) = yield [Statement(sql["parked_heads"], (name, partition))]
    return {(kind, id): event_id for kind, id, event_id in found.rows}


def marked(sql: Mapping[str, str], name: str) -> Plan[list[tuple[int, str, str]]]:
    """Partition, entity type and entity id of the queues that something is wanted of."""
    (found,) = yield [Statement(sql["parked_marked"], (name,))]
    return [(int(partition), kind, id) for partition, kind, id in found.rows]


def head(sql: Mapping[str, str], queue: Queue) -> Plan[Head | None]:
    (found,) = yield [Statement(sql["parked_head"], queue)]
    if not found.rows:
        return None
    *event, attempts, mark = found.rows[0]
    return Head(Event(*event), attempts, mark)


# --- what everybody may do ------------------------------------------------------------------------


def parked_page(
    sql: Mapping[str, str], subscription: str | None, behind: Sequence[str]
) -> Plan[list[ParkedEvent]]:
    """The next events parked, of all subscriptions or one; queues one after the other, in order.

    behind: subscription, entity type, entity id and event id of the last one seen.
    """
    params = (subscription, subscription, *behind, _PAGE)
    (found,) = yield [Statement(sql["parked_list"], params)]
    return [_parked(row) for row in found.rows]


def _parked(row: Sequence[Any]) -> ParkedEvent:
    name, kind, id, event_id, _, event_type, data, meta, error, trace, attempts, at, mark = row
    when = datetime.fromtimestamp(at / 1000, UTC)
    return ParkedEvent(
        name, kind, id, event_id, event_type, data, meta, error, trace, attempts, when, mark
    )


def mark_event(sql: Mapping[str, str], name: str, event_id: str, mark: str) -> Plan[None]:
    """Ask for one event. Raises NotParked."""
    at = (name, event_id)
    (found,) = yield [Statement(sql["parked_exists"], at)]
    if not found.rows:
        raise NotParked(*at)
    yield [Statement(sql["parked_mark"], (mark, *at))]


def mark_failed(sql: Mapping[str, str], name: str) -> Plan[int]:
    """Ask for another try of every event that failed; how many."""
    (found,) = yield [Statement(sql["parked_mark_failed"], (name,))]
    return found.rowcount
