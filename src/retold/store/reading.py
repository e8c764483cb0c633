"""Reading: find, history, entities; written once, as plans that know no I/O.

An entity is rebuilt from its latest snapshot, where it has one, and the events behind it, in one
query. Its version is that of the last row loaded, and never what `entities` says: a command may only
build on what it has seen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar

from retold.aggregates import Aggregate, Binding, Replay
from retold.entity import Entity
from retold.errors import ConnectionLost, InvalidValue, NotFound
from retold.events import Event
from retold.ids import milliseconds, moment
from retold.metadata import decode_metadata
from retold.recorded import Recorded, read_row, recorded_time
from retold.snapshots import decode_state, snapshot_type
from retold.store.dialects import Dialect
from retold.store.driver import Plan, Statement, Verb
from retold.store.options import Settings

A = TypeVar("A", bound=Aggregate)
R = TypeVar("R")

_EVERY_VERSION = "g"  # sorts behind every hexadecimal id, in byte order and in any collation
_PAGE = 500
_WALK = 10_000
"""How many events of any type one statement of a stream passes over at most."""


@dataclass(slots=True)
class Loaded(Generic[A]):
    state: A
    version: str
    since: int  # events since the snapshot


class Place(NamedTuple):
    """Where a stream has come to: behind the id `after`, on a walk to the id `end`.

    end: '' before the walk. since: events written earlier are left out; their ids may be raised.
    """

    after: str
    end: str = ""
    since: datetime | None = None


def place_since(since: str | datetime | None) -> Place:
    """Where a stream begins. Raises InvalidValue for what is no id and no aware datetime."""
    if since is None:
        return Place("")
    if isinstance(since, str):
        milliseconds(since)
        return Place(since)
    if since.tzinfo is None:
        raise InvalidValue("stream(since=…) needs a datetime with a time zone")
    ms = max(0, (since - moment(0)) // timedelta(milliseconds=1))
    return Place(f"{ms:016x}", since=moment(ms))


class Reading(Generic[A]):
    """The verbs that only read, and the loading that those which write begin with."""

    def __init__(
        self, aggregate_class: type[A], dialect: Dialect, settings: Settings, *, owned: bool
    ) -> None:
        self.aggregate_class = aggregate_class
        self.entity_type = aggregate_class.__entity_type__
        self._dialect = dialect
        self._sql = dialect.queries
        self._settings = settings
        self._owned = owned
        self._replay = Replay(aggregate_class, settings.codec)
        self._strategy = aggregate_class.__snapshots__
        self._snapshot_type = (
            snapshot_type(aggregate_class, settings.codec) if self._strategy else ""
        )

    def find(self, id: str, at: str | datetime | None = None) -> Verb[Entity[A] | None]:
        """The entity, None where there is none. `at`: as of a version or an aware datetime."""
        if isinstance(at, datetime):
            if at.tzinfo is None:
                raise InvalidValue("find(at=…) needs a datetime with a time zone")
            plan = partial(self._load_at, id, at)
        else:
            if at is not None:
                milliseconds(at)
            plan = partial(self._load, id, at)
        loaded: Loaded[A] = yield from self._reading(plan)
        return Entity(id, loaded.version, loaded.state) if loaded.version else None

    def find_many(self, ids: Sequence[str]) -> Verb[dict[str, Entity[A]]]:
        found: dict[str, Entity[A]] = yield from self._reading(lambda: self._load_many(ids))
        return found

    def exists(self, id: str) -> Verb[bool]:
        return (yield from self._reading(lambda: self._version(id))) != ""

    def history(self, id: str, after: str) -> Verb[tuple[list[Recorded[Event]], str]]:
        """One page of recorded events behind `after`, and where the next page begins ('' : end)."""
        rows = yield from self.stored(id, after)
        if not rows and not after:
            raise NotFound(self.entity_type, id)
        page = [
            recorded
            for event_id, name, data, trigger, metadata in rows
            for recorded in self._recorded(id, event_id, name, data, trigger, metadata)
        ]
        return page, rows[-1][0] if len(rows) == _PAGE else ""

    def _recorded(self, id: str, *event: Any) -> list[Recorded[Event]]:
        """event: the id, name, data, trigger and metadata of one that is stored."""
        return read_row(self._settings.codec, self.entity_type, id, *event)

    def stored(self, id: str, after: str) -> Verb[Sequence[Sequence[Any]]]:
        """One page of an entity's events behind `after`, as they are stored: id, name, data, …"""
        return (
            yield from self._reading(lambda: self._rows("history", (*self._key(id), after, _PAGE)))
        )

    def entities(self, after: str) -> Verb[list[str]]:
        """One page of ids behind `after`."""
        rows: Sequence[Sequence[Any]] = yield from self._reading(
            lambda: self._rows("entities", (self.entity_type, after, _PAGE))
        )
        return [id for (id,) in rows]

    def stream(self, place: Place) -> Verb[tuple[list[Recorded[Event]], Place | None]]:
        """One page of recorded events of this type, in the order of ids, and the next place.

        A page may be empty, where many events of other types lie between.
        """
        after, end, since = place
        walked = _WALK
        if not end:
            rows = yield from self._reading(lambda: self._rows("stream_end", (after, _WALK)))
            end, walked = rows[0]
            if not walked:
                return [], None
        params = (after, end, self.entity_type, _PAGE)
        rows = yield from self._reading(lambda: self._rows("stream", params))
        page = [
            recorded
            for event_id, name, data, id, trigger, metadata in rows
            for recorded in self._recorded(id, event_id, name, data, trigger, metadata)
            if since is None or recorded.time >= since
        ]
        if len(rows) == _PAGE:
            return page, Place(rows[-1][0], end, since)
        return page, Place(end, "", since) if walked == _WALK else None

    def _reading(self, plan: Callable[[], Plan[R]]) -> Verb[R]:
        """Run a plan that only reads; a connection that had died meanwhile is replaced once."""
        try:
            result: R = yield plan()
        except ConnectionLost:
            if not self._owned:
                raise
            result = yield plan()
        return result

    def _rows(self, query: str, params: Sequence[object]) -> Plan[Sequence[Sequence[Any]]]:
        (result,) = yield [Statement(self._sql[query], params)]
        return result.rows

    def _key(self, id: str) -> tuple[str, ...]:
        return self._dialect.key(self.entity_type, id)

    def _version(self, id: str) -> Plan[str]:
        rows = yield from self._rows("entity_version", (self.entity_type, id))
        return next((version for version, stored in rows if stored == id), "")

    def _load_statement(self, id: str, at: str | None) -> Statement:
        key = self._key(id)
        if self._strategy:
            snapshot = (*key, self._snapshot_type, at or _EVERY_VERSION)
            bound = at or _EVERY_VERSION
            return Statement(
                self._sql["load_with_snapshot"],
                (*key, *snapshot, *key, bound, *snapshot),
            )
        if at is not None:
            return Statement(self._sql["load_until"], (*key, at))
        return Statement(self._sql["load"], key)

    def _load(self, id: str, at: str | None = None) -> Plan[Loaded[A]]:
        (result,) = yield [self._load_statement(id, at)]
        return (yield from self._rebuild(id, result.rows, at))

    def _rebuild(
        self, id: str, rows: Sequence[Sequence[Any]], at: str | None = None
    ) -> Plan[Loaded[A]]:
        """State and version from loaded rows. The version is that of the last row, and never what
        `entities` says: a command may only build on what it has seen."""
        state: A | None = None
        version = ""
        if self._strategy:
            if rows and rows[0][3] == 0:
                version = rows[0][0]
                state = decode_state(self.aggregate_class, id, rows[0][2], self._settings.codec)
                if state is None:
                    rows = yield from self._rows(
                        "load_until", (*self._key(id), at or _EVERY_VERSION)
                    )
                else:
                    self._settings.counts["snapshot_hits"] += 1
                    state._bound = Binding(id)
                    rows = rows[1:]
            else:
                rows = list(rows)
            rows = [row[:3] for row in rows]
        if state is None:
            state = self._replay.blank(id)
        version = self._replay.apply(state, rows) or version
        return Loaded(state, version, len(rows))

    def _load_at(self, id: str, at: datetime) -> Plan[Loaded[A]]:
        rows = yield from self._rows("history", (*self._key(id), "", 1 << 31))
        kept: list[Sequence[Any]] = []
        for row in rows:
            if recorded_time(row[0], decode_metadata(row[4])) > at:
                break
            kept.append(row[:3])
        state = self._replay.blank(id)
        return Loaded(state, self._replay.apply(state, kept) or "", len(kept))

    def _load_many(self, ids: Sequence[str]) -> Plan[dict[str, Entity[A]]]:
        unique = list(dict.fromkeys(ids))
        found: dict[str, Entity[A]] = {}
        if not unique:
            return found
        if self._strategy:
            results = yield [self._load_statement(id, None) for id in unique]
            for id, result in zip(unique, results, strict=True):
                loaded = yield from self._rebuild(id, result.rows)
                if loaded.version:
                    found[id] = Entity(id, loaded.version, loaded.state)
            return found
        param = self._dialect.many_ids(unique)
        rows = yield from self._rows("load_many", (self.entity_type, param))
        by_id: dict[str, list[Sequence[Any]]] = {}
        for row in rows:
            by_id.setdefault(row[3], []).append(row[:3])
        for id in unique:
            if id in by_id:
                state = self._replay.blank(id)
                version = self._replay.apply(state, by_id[id]) or ""
                found[id] = Entity(id, version, state)
        return found
