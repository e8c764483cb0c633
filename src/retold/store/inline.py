"""Inline projections: read models written in the transaction of the append.

The append, what the handlers write, and the commit stand or fall together. So a unique index of a
read model decides over entities what no aggregate can: two of eight writers that want one e-mail
address meet in the index, and one of them is `Rejected`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Protocol

from retold.errors import Rejected, RetoldError, StoreBusy
from retold.events import Event
from retold.metadata import decode_metadata
from retold.recorded import Recorded, recorded_time
from retold.store.append import Append
from retold.store.dialects import Dialect
from retold.store.driver import Plan, Result, Statement, UniqueViolation, acting
from retold.store.projections import OWN, SWITCHING, HandlerRaised, still_open


class InlineProjection(Protocol):
    """What a store asks of a projection that goes along with its appends."""

    @property
    def name(self) -> str: ...
    @property
    def inline(self) -> bool: ...
    def wants(self, entity_type: str) -> frozenset[type[Event]]:
        """The events of an entity type that it handles."""
        ...

    def project(self, recorded: Recorded[Event], db: Any) -> None:
        """Handle an event, with a cursor."""
        ...


class Inline:
    """The inline projections that handle events of one entity type."""

    def __init__(self, projections: Sequence[InlineProjection], entity_type: str) -> None:
        wanted = [(one, one.wants(entity_type)) for one in projections]
        self._wanted = [(one, events) for one, events in wanted if events]

    def append(self, dialect: Dialect, change: Append, owned: bool) -> Plan[bool]:
        """As the dialect's own append. Raises also Rejected, and what handlers raise; nothing is
        stored then."""
        interested = [
            one for one, events in self._wanted if any(type(e) in events for e in change.events)
        ]
        if not interested:
            return (yield from dialect.append(dialect.queries, change, owned))
        return (yield from _append(dialect, change, owned, interested))


def _append(
    dialect: Dialect, change: Append, owned: bool, projections: Sequence[InlineProjection]
) -> Plan[bool]:
    sql = dialect.queries
    begin = [Statement(sql["begin"])] if owned else []
    undo = [Statement(sql["inline_rollback"]), Statement(sql["inline_commit"])]
    last = projections[0]
    try:
        _, *states = (
            yield [*begin, Statement(sql["inline_begin"]), *_hold_off(dialect, projections)]
        )[len(begin) :]
        for last, state in zip(projections, states, strict=False):
            yield from _check_switching(dialect, last, state)
        if not (yield from dialect.append(sql, change, False)):
            yield [Statement(sql["rollback"])] if owned else undo
            return False
        recorded = recorded_of(change)
        for last in projections:
            yield acting(partial(_project, last, recorded))
        yield from still_open(sql)
        if owned:
            yield [Statement(sql["commit"])]
    except Exception as error:
        if not owned:
            # The caller may catch this and commit: nothing of the change may stay.
            with suppress(RetoldError):
                yield undo
        if isinstance(error, UniqueViolation):
            raise Rejected(
                last.name, change.entity_type, change.entity_id, constraint_of(error)
            ) from error
        if isinstance(error, HandlerRaised):
            raise error.error from error.error.__cause__
        raise
    return True


def _project(projection: InlineProjection, recorded: Sequence[Recorded[Event]], db: Any) -> None:
    for each in recorded:
        if type(each.event) in projection.wants(each.entity_type):
            projection.project(each, db)


def _hold_off(dialect: Dialect, projections: Sequence[InlineProjection]) -> list[Statement]:
    """Hold off switches of the projections' tables to the end of the transaction."""
    if dialect.name == "sqlite":
        return []  # it has one writer
    return [Statement(dialect.queries["projection_shared"], (one.name, OWN)) for one in projections]


def _check_switching(dialect: Dialect, projection: InlineProjection, state: Result) -> Plan[None]:
    """Raises StoreBusy while a switch is under way."""
    if not state.rows:
        # The row is what a switch locks, so there must be one to hold on to.
        own = (projection.name, OWN, 0)
        yield [Statement(dialect.queries["projection_begin"], own)]
    elif (state.rows[0][1] or "").startswith(SWITCHING):
        raise StoreBusy(f"the tables of projection {projection.name!r} are being exchanged")


def recorded_of(change: Append) -> list[Recorded[Event]]:
    """The events of a change as those who read them later get them."""
    metadata = decode_metadata(change.metadata)
    return [
        Recorded(
            id,
            name,
            event,
            change.entity_type,
            change.entity_id,
            recorded_time(id, metadata),
            metadata,
            change.trigger,
        )
        for id, name, event in zip(change.ids, change.names, change.events, strict=True)
    ]


def constraint_of(error: BaseException) -> str:
    """The name of the constraint that an error of a client library tells, without any values."""
    raw = error.__cause__
    named: str | None = getattr(getattr(raw, "diag", None), "constraint_name", None)
    if named:
        return named
    told = re.search(r"(?:constraint failed: |for key ')([^']+)", str(raw))
    return told[1] if told else "a unique constraint"
