"""Appending: the one write that must never lose, duplicate or reorder an event.

The compare-and-set comes first: `UPDATE entities … WHERE entity_version = expected`, or for a new
entity the INSERT of its row. It takes the entity's row lock, held to the commit, so the order of
commits is the order of versions. Everything else is written only where it succeeded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

from retold.errors import RetoldError, TransactionRolledBack
from retold.events import Event
from retold.store.driver import Plan, Statement, UniqueViolation


class Handled(NamedTuple):
    """A key (of a delivery or of `once`) to be kept beside what it caused."""

    key: str
    command: str
    update_id: str
    at_ms: int


class Append(NamedTuple):
    """One change of one entity. `expected` is None for an entity to be created; without events
    only `handled` is written. `key` stands for the entity in the dialect's queries. `events` are what
    `names` and `bodies` were made of."""

    entity_type: str
    entity_id: str
    key: tuple[str, ...]
    expected: str | None
    ids: list[str]
    names: list[str]
    bodies: list[str]
    trigger: str | None
    metadata: str | None
    handled: Handled | None
    events: Sequence[Event] = ()


def _handled_row(change: Append, handled: Handled) -> tuple[object, ...]:
    return (
        change.entity_type,
        change.entity_id,
        handled.key,
        handled.command,
        handled.update_id,
        handled.at_ms,
    )


def append_step_by_step(queries: Mapping[str, str], change: Append, owned: bool) -> Plan[bool]:
    """Compare-and-set, then the rows and the commit: two trips. For SQLite and MySQL.

    In a transaction of somebody else (`owned` False) a savepoint takes the place of the
    transaction, so that a refused append leaves the caller's work as it was.
    """
    around = "" if owned else "joined_"
    begin = Statement(queries[around + "begin"])
    commit = Statement(queries[around + "commit"])
    rollback = [Statement(queries[around + "rollback"])]
    if not owned:
        rollback.append(commit)  # a savepoint outlives the return to it
    rows: list[Statement] = []
    if change.handled is not None:
        rows.append(Statement(queries["insert_handled"], _handled_row(change, change.handled)))
    if not change.ids:
        claim = rows.pop()
    elif change.expected is None:
        claim = Statement(
            queries["insert_entity"], (change.entity_type, change.entity_id, change.ids[-1])
        )
    else:
        claim = Statement(
            queries["update_entity"],
            (change.ids[-1], *change.key, change.expected),
        )
    insert = queries["insert_event"]
    for event_id, name, data in zip(change.ids, change.names, change.bodies, strict=True):
        rows.append(
            Statement(
                insert,
                (
                    event_id,
                    name,
                    data,
                    change.entity_type,
                    change.entity_id,
                    change.trigger,
                    change.metadata,
                ),
            )
        )
    try:
        claimed = (yield [begin, claim])[1].rowcount == 1
        if claimed:
            yield [*rows, commit]
            return True
    except UniqueViolation:
        pass  # the entity, the key or (once in many lifetimes) the event id exists
    except Exception:
        if not owned:
            # The caller may catch this and commit: a version without its events must not stay.
            # Where the whole transaction is gone, so is the savepoint.
            with suppress(RetoldError):
                yield rollback
        raise
    yield rollback
    return False


def append_in_one_statement(queries: Mapping[str, str], change: Append, owned: bool) -> Plan[bool]:
    """Everything in one statement, a transaction of its own. For PostgreSQL."""
    handled = change.handled
    params: list[object]
    if not change.ids:
        assert handled is not None
        (marked,) = yield [Statement(queries["insert_handled"], _handled_row(change, handled))]
        return marked.rowcount == 1
    if change.expected is None:
        name = "create"
        params = [change.entity_type, change.entity_id, change.ids[-1]]
    else:
        name = "append"
        params = [change.ids[-1], change.entity_type, change.entity_id, change.expected]
    if handled is not None:
        name += "_once"
        marker = _handled_row(change, handled)
        if change.expected is None:
            params = [*params, *marker]
        else:
            at = (change.entity_type, change.entity_id)
            params = [*at, change.expected, *marker, change.ids[-1], *at]
    shared = (change.entity_type, change.entity_id, change.trigger, change.metadata)
    if len(change.ids) == 1:
        params += [change.ids[0], change.names[0], change.bodies[0], *shared]
    else:
        name += "_many"
        params += [*shared, change.ids, change.names, change.bodies]
    try:
        (appended,) = yield [Statement(queries[name], params)]
    except UniqueViolation:
        if owned:
            return False  # an event id of another entity: the caller mints again
        raise TransactionRolledBack("an event id collided with another entity's") from None
    return appended.rowcount == len(change.ids)
