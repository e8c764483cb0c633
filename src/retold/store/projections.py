"""How far projections have come, as plans on the database of their read models.

A *place* is a partition of the broker under a name that stays: `3`, or `bank.Account/3` on Kafka. Its
row says up to where the read model holds everything, and who may go on from there. What handlers
write and the row's new position are one transaction that begins by locking the row of an owner: a
member whose place was claimed by another one changes nothing.

The row with an empty place is the projection's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from retold.errors import (
    AssignmentLost,
    ConnectionLost,
    RetoldError,
    StoreBusy,
    TransactionRolledBack,
    UsageError,
)
from retold.store.dialects import Dialect
from retold.store.driver import Plan, Statement, acting
from retold.store.parked import Event, Failure, Queue, join

OWN = ""
"""The place that stands for the projection itself."""
SWITCHING = "switch/"
"""What the owner of this row begins with while the tables are exchanged."""
Work = Callable[[Any], None]


class HandlerRaised(Exception):
    """What a handler of a projection raised; its transaction is to be undone."""

    def __init__(self, error: Exception) -> None:
        self.error = error


class Member(NamedTuple):
    """Who writes: one member of one projection."""

    projection: str
    owner: str


class Seen(NamedTuple):
    """The last event of an entity in the read model."""

    entity_type: str
    entity_id: str
    event_id: str


class Parked(NamedTuple):
    """An event that goes to the queue of its entity instead of to the handlers."""

    queue: Queue
    event: Event
    failure: Failure
    partition: int


@dataclass(frozen=True, slots=True)
class ProjectionPlace:
    """A row: position is everything that is in the read model, owner is who goes on."""

    projection: str
    place: str
    position: int
    owner: str | None


def claim(sql: Mapping[str, str], member: Member, places: Sequence[str]) -> Plan[dict[str, int]]:
    """Take places over; where each goes on.

    Raises StoreBusy while the tables are exchanged, and UsageError where the read model was filled
    from another broker: its positions say nothing here, and events would be applied again.
    """
    name, owner = member
    own = (name, OWN)
    (found,) = yield [Statement(sql["projection"], own)]
    if not found.rows:
        yield [Statement(sql["projection_begin"], (*own, 0))]
    _, state = yield [Statement(sql["begin"]), Statement(sql["projection_locked"], own)]
    if state.rows and (state.rows[0][1] or "").startswith(SWITCHING):
        yield [Statement(sql["rollback"])]
        raise StoreBusy(f"the tables of projection {name!r} are being exchanged")
    (known,) = yield [Statement(sql["projection_places"], (name,))]
    for other, position, _ in known.rows:
        if position and is_of_kafka(other) != is_of_kafka(places[0]):
            raise UsageError(
                f"projection {name!r} holds events from {_broker(other)}, and is to go on from "
                f"{_broker(places[0])}, where positions are others: it would apply events again. "
                f"Rebuild it from there, by retold projections rebuild"
            )
    held: dict[str, int] = {}
    for place in sorted(places):
        at = (name, place)
        (found,) = yield [Statement(sql["projection_locked"], at)]
        if not found.rows:
            yield [Statement(sql["projection_begin"], (*at, 0))]
        held[place] = int(found.rows[0][0]) if found.rows else 0
    yield [
        *(Statement(sql["projection_take"], (owner, name, place)) for place in held),
        Statement(sql["commit"]),
    ]
    return held


def is_of_kafka(place: str) -> bool:
    """Whether a place is a topic's partition, and not one of a database's log."""
    return "/" in place


def _broker(place: str) -> str:
    return "Kafka" if is_of_kafka(place) else "the database's own log"


def write(
    dialect: Dialect,
    member: Member,
    positions: Mapping[str, int],
    work: Callable[[Mapping[str, int]], Work | None],
    *,
    seen: Iterable[Seen] = (),
    parked: Iterable[Parked] = (),
    limit: int = 0,
) -> Plan[None]:
    """Call handlers and move positions on, in one transaction.

    positions: place → where it stands then. work: given where the places stand now, what is to be
    done with a cursor, None where there is nothing. Raises AssignmentLost, HandlerRaised,
    ParkedQueueFull.
    """
    sql = dialect.queries
    saved = yield from _begin(dialect, member, list(positions))
    if (act := work(saved)) is not None:
        yield from _act(sql, act)
    name, owner = member
    for one in parked:
        yield from join(sql, *one, limit)
    yield [
        *_saw(sql, name, seen),
        *(
            Statement(sql["projection_save"], (position, name, place, owner, position))
            for place, position in positions.items()
        ),
        Statement(sql["commit"]),
    ]


def revive(
    dialect: Dialect, member: Member, place: str, queue: Queue, event_id: str, act: Work | None
) -> Plan[str | None]:
    """Handle the first event of a queue, or nothing for one to be skipped, and take it away, in one
    transaction; the id of the next one. Raises AssignmentLost, HandlerRaised."""
    sql = dialect.queries
    yield from _begin(dialect, member, [place])
    if act is not None:
        yield from _act(sql, act)
    saw = _saw(sql, member.projection, [Seen(*queue[1:], event_id)] if act is not None else ())
    yield [*saw, Statement(sql["unpark"], (*queue, event_id))]
    (found,) = yield [Statement(sql["parked_head"], queue)]
    following = str(found.rows[0][0]) if found.rows else None
    if following is not None:
        yield [Statement(sql["parked_next"], (*queue, following))]
    yield [Statement(sql["commit"])]
    return following


def failed_again(
    dialect: Dialect, member: Member, place: str, queue: Queue, event_id: str, failure: Failure
) -> Plan[None]:
    """Note that the first event of a queue failed again. Raises AssignmentLost."""
    sql = dialect.queries
    yield from _begin(dialect, member, [place])
    note = Statement(sql["parked_failed"], (*failure, *queue, event_id))
    yield [note, Statement(sql["commit"])]


def _begin(dialect: Dialect, member: Member, places: list[str]) -> Plan[dict[str, int]]:
    """Lock the rows of places; where they stand. Raises AssignmentLost."""
    sql = dialect.queries
    params = (member.projection, dialect.many_ids(places), member.owner)
    *_, found = yield [
        Statement(sql["begin"]),
        Statement(sql["inline_begin"]),
        Statement(sql["projection_owned"], params),
    ]
    saved = {str(place): int(position) for place, position in found.rows}
    if len(saved) < len(places):
        raise AssignmentLost(member.projection)
    return saved


def _act(sql: Mapping[str, str], act: Work) -> Plan[None]:
    try:
        yield acting(act)
    except RetoldError as error:
        if error.retriable:
            raise
        raise HandlerRaised(error) from error
    except Exception as error:
        raise HandlerRaised(error) from error
    yield from still_open(sql)


def still_open(sql: Mapping[str, str]) -> Plan[None]:
    """Raises HandlerRaised where a handler has ended the transaction it is a part of."""
    try:
        yield [Statement(sql["inline_commit"])]
    except ConnectionLost:
        raise
    except (RetoldError, TransactionRolledBack) as error:
        ended = UsageError(
            "a handler of a projection ended the transaction, by a commit, by a statement that "
            "commits by itself (DDL on MySQL, executescript on SQLite), or by going on after an error "
            f"of the database: leave all that to retold ({error})"
        )
        raise HandlerRaised(ended) from error


def _saw(sql: Mapping[str, str], name: str, seen: Iterable[Seen]) -> list[Statement]:
    return [Statement(sql["projection_seen_save"], (name, *one)) for one in seen]


def save_passed(sql: Mapping[str, str], member: Member, positions: Mapping[str, int]) -> Plan[None]:
    """Move places on over events that the projection does not want."""
    name, owner = member
    for place, position in positions.items():
        yield [Statement(sql["projection_save"], (position, name, place, owner, position))]


def places(sql: Mapping[str, str]) -> Plan[list[ProjectionPlace]]:
    """All that is known of all projections."""
    (found,) = yield [Statement(sql["projections_list"])]
    return [ProjectionPlace(*row) for row in found.rows]


def saw(sql: Mapping[str, str], name: str, entity_type: str, entity_id: str) -> Plan[str]:
    """The id of the entity's last event in the read model, '' where there is none."""
    (found,) = yield [Statement(sql["projection_seen"], (name, entity_type, entity_id))]
    return str(found.rows[0][0]) if found.rows else ""


def last_wanted(
    dialect: Dialect, entity_type: str, entity_id: str, version: str, types: Sequence[str]
) -> Plan[str]:
    """The id of the last event of these types that an entity has at a version, '' for none."""
    params = (*dialect.key(entity_type, entity_id), version, dialect.many_ids(list(types)))
    (found,) = yield [Statement(dialect.queries["projection_last_event"], params)]
    return str(found.rows[0][0] or "")
