"""Events of all entities in the order of ids, for people and tools that look at them.

A page is read in two steps: keys and sizes of what comes next, then the rows that are wanted and fit
into memory. Nothing is held open between pages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from retold.store.driver import Plan, Statement

if TYPE_CHECKING:
    from retold.store.dialects import Dialect

END = "g"
"""Sorts behind every event id."""
_KEYS = 2000
_PAGE_BYTES = 1_000_000


class StoredEvent(NamedTuple):
    """A row of the events table."""

    id: str
    type: str
    data: str
    entity_type: str
    entity_id: str
    trigger: str | None
    metadata: str | None


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which events: those of an entity type, of one entity of it, of some event types; empty is all.
    Their ids lie between `after` and `before`, both left out."""

    entity_type: str = ""
    entity_id: str = ""
    event_types: frozenset[str] = frozenset()
    after: str = ""
    before: str = END

    def holds(self, event: StoredEvent) -> bool:
        return (
            self.of_types(event.entity_type, event.type)
            and (not self.entity_id or event.entity_id == self.entity_id)
            and self.after < event.id < self.before
        )

    def of_types(self, entity_type: str, event_type: str) -> bool:
        return (not self.entity_type or entity_type == self.entity_type) and (
            not self.event_types or event_type in self.event_types
        )


class Page(NamedTuple):
    """Events, and behind which id the next page begins; None at the end."""

    events: list[StoredEvent]
    ahead: str | None


def page_of(dialect: Dialect, wanted: Wanted, after: str) -> Plan[Page]:
    """The events wanted next behind an id. It may be empty before the end."""
    keys = yield from _keys(dialect, wanted, "", after, wanted.before)
    ids: list[str] = []
    left = _PAGE_BYTES
    ahead: str | None = None
    for event_id, entity_type, event_type, size in keys:
        if wanted.of_types(entity_type, event_type):
            left -= size
            if ids and left < 0:
                break
            ids.append(event_id)
        ahead = event_id
    else:
        ahead = ahead if len(keys) == _KEYS else None
    return Page((yield from events_with(dialect, ids)), ahead)


def events_with(dialect: Dialect, ids: list[str]) -> Plan[list[StoredEvent]]:
    """The events with these ids that are there, in the order of ids."""
    if not ids:
        return []
    (found,) = yield [Statement(dialect.queries["list_rows"], (dialect.many_ids(ids),))]
    return [StoredEvent(*row) for row in found.rows]


def place_of_last(dialect: Dialect, wanted: Wanted, count: int) -> Plan[str]:
    """The id behind which the last `count` of the events wanted are; '' where there are no more."""
    before = wanted.before
    while True:
        keys = yield from _keys(dialect, wanted, "_back", wanted.after, before)
        for event_id, entity_type, event_type in keys:
            if count == 0:
                return str(event_id)
            count -= wanted.of_types(entity_type, event_type)
        if len(keys) < _KEYS:
            return wanted.after
        before = keys[-1][0]


def _keys(
    dialect: Dialect, wanted: Wanted, back: str, after: str, before: str
) -> Plan[Sequence[Sequence[Any]]]:
    query = "list_entity_keys" if wanted.entity_id else "list_keys"
    entity = dialect.key(wanted.entity_type, wanted.entity_id) if wanted.entity_id else ()
    params = (*entity, max(after, wanted.after), before, _KEYS)
    (found,) = yield [Statement(dialect.queries[query + back], params)]
    return found.rows
