"""The numbered log: committed events in an order that every reader sees alike.

A trigger notes the id of each event in `unnumbered_events`. Whoever wants to read gives the ids that
are there the next positions, and moves them to `event_log`. Positions have no gaps and become
visible in their order, because each numbering begins by a compare-and-set of one counter. See
docs/adr/0017-numbered-log.md for why no event is hidden and an entity's events stay in order.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import msgspec

from retold.brokers.base import Message
from retold.brokers.polling import Start
from retold.errors import LogMissing, SchemaMissing
from retold.ids import id_since
from retold.store.driver import Plan, Result, Statement

PAGE = 1000
"""How many events are numbered at once."""
_LOOKS = 3
"""How often an event must be missing: MariaDB makes up what a statement sees while others commit."""

Row = Sequence[Any]


class LogState(NamedTuple):
    """end: the last position. waiting: events without a position are there."""

    end: int
    partitions: int
    waiting: bool


class Numbered(NamedTuple):
    """given: how many positions. end: the last one now. more: there may be events left that were
    there before."""

    given: int
    end: int
    more: bool


def partition_of(entity_id: str, partitions: int) -> int:
    """Where an entity's events go. Stored with each of them: it must never change."""
    return zlib.crc32(entity_id.encode()) % partitions


def log_state(sql: Mapping[str, str]) -> Plan[LogState]:
    """Raises LogMissing."""
    try:
        (found,) = yield [Statement(sql["log_state"])]
    except SchemaMissing as missing:
        raise LogMissing(missing.reason) from missing
    return _state(found)


def _state(found: Result) -> LogState:
    if not found.rows:
        raise LogMissing("the step that makes it was broken off")
    end, partitions, waiting = found.rows[0]
    return LogState(end, partitions, bool(waiting))


def check_noted(sql: Mapping[str, str]) -> Plan[None]:
    """Raises LogMissing where the newest event was never noted, because the trigger is gone.

    Tools that copy a table to change it, and some backups, leave triggers behind.
    """
    event_id = ""
    for _ in range(_LOOKS):
        (newest,) = yield [Statement(sql["newest_event"])]
        if not newest.rows:
            return
        (event_id,) = newest.rows[0]
        (noted,) = yield [Statement(sql["is_noted"], (event_id, event_id))]
        if noted.rows[0][0]:
            return
        (numbered,) = yield [Statement(sql["is_numbered"], (event_id,))]
        if numbered.rows[0][0]:
            return
    raise LogMissing(f"the trigger that fills it is gone, and missed event {event_id}")


def number(sql: Mapping[str, str]) -> Plan[Numbered]:
    """Give positions to a page of events, unless somebody else does at this moment.

    Raises LogMissing. No lock is held while the network or this process is waited for.
    """
    reads = [Statement(sql["log_state"])]
    if "unnumbered_before" in sql:
        reads.append(Statement(sql["unnumbered_before"], (PAGE,)))
    *reads_of, last = yield [*reads, Statement(sql["unnumbered"], (PAGE,))]
    end, partitions, _ = _state(reads_of[0])
    rows = last.rows
    full = len(rows) == PAGE
    if len(reads_of) > 1:
        rows = closed({event_id for (event_id,) in reads_of[1].rows}, rows)
    gone = [event_id for event_id, _, entity_id in rows if entity_id is None]
    events = [(partition_of(row[2], partitions), row[0]) for row in rows if row[2] is not None]
    if not rows:
        return Numbered(0, end, full)
    if "number" in sql:
        won = yield from _number_in_one_statement(sql, end, events, gone)
    else:
        won = yield from _number_in_one_packet(sql, end, events, gone)
    return Numbered(len(events), end + len(events), full) if won else Numbered(0, end, True)


def closed(before: Collection[str], rows: Sequence[Row]) -> list[Row]:
    """Of rows (event id, entity type, entity id), read behind `before`: those that were there, and
    with each the earlier ones of its entity.

    MariaDB makes up what a statement sees while others commit: it may see an event and miss an
    earlier one of the same entity. A statement that begins later sees that one too.
    """
    last = {(kind, id): event_id for event_id, kind, id in rows if event_id in before}
    return [row for row in rows if row[0] <= last.get((row[1], row[2]), "")]


def _number_in_one_statement(
    sql: Mapping[str, str], end: int, events: Sequence[tuple[int, str]], gone: Sequence[str]
) -> Plan[bool]:
    partitions = [partition for partition, _ in events]
    ids = [event_id for _, event_id in events]
    params = (len(ids), end, end, partitions, ids, [*ids, *gone])
    (numbered,) = yield [Statement(sql["number"], params)]
    return len(numbered.rows) == 1


def _number_in_one_packet(
    sql: Mapping[str, str], end: int, events: Sequence[tuple[int, str]], gone: Sequence[str]
) -> Plan[bool]:
    count = len(events)
    batch = [
        Statement(sql["begin"]),
        *(Statement(sql["number_gone"], (event_id,)) for event_id in gone),
    ]
    if count:
        batch += [
            Statement(sql["number_claim"], (count, end)),
            Statement(sql["number_mark"]),
            Statement(sql["number_log"], (end, msgspec.json.encode(events).decode())),
            Statement(sql["number_done"], (end, end + count)),
        ]
    results = yield [*batch, Statement(sql["number_won"]), Statement(sql["commit"])]
    return bool(not count or results[-2].rows[0][0] == 1)


def read_log(
    sql: Mapping[str, str],
    behind: int,
    until: int,
    partitions: object,
    topics: object,
    types: object,
) -> Plan[list[Message]]:
    """The messages at positions in (behind, until], which must all be given already."""
    params = (behind, until, partitions, topics, types)
    (found,) = yield [Statement(sql["log_read"], params)]
    return [
        Message(topic, key, event_id, event_type, data, metadata, partition, position)
        for position, partition, event_id, event_type, data, topic, key, metadata in found.rows
    ]


def start_position(sql: Mapping[str, str], start: Start) -> Plan[int]:
    """The position behind which a new subscription begins."""
    if start == "beginning":
        return 0
    # What is committed by now has a position below any that follows.
    while (numbered := (yield from number(sql))).more:
        pass
    end = numbered.end
    if isinstance(start, datetime):
        (found,) = yield [Statement(sql["log_position_at"], (id_since(start),))]
        if found.rows[0][0] is not None:
            return int(found.rows[0][0])
    return end
