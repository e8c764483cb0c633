"""The verbs of the store, written once: generators of plans that know no I/O.

A verb runs *attempts*. One attempt loads the entity, runs the command and appends, all on one
connection; what it may write is decided by the compare-and-set alone, never by what it read. A lost
attempt is repeated after a pause; an attempt whose outcome is unknown is settled first, by
repeating the identical append and looking for its own event ids.
"""

from __future__ import annotations

import inspect
import logging
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar
from uuid import UUID

from retold.aggregates import Aggregate, Binding, Replay
from retold.codecs import Codec
from retold.entity import Changed, Entity
from retold.errors import (
    ConnectionLost,
    EntityExists,
    EventTooLarge,
    InvalidValue,
    KeyReused,
    NotFound,
    NothingEmitted,
    OutcomeUnknown,
    RetoldError,
    StoreBusy,
    StoreError,
    TransactionRolledBack,
    UsageError,
    VersionConflict,
)
from retold.events import Event, event_name
from retold.ids import MAX_SKEW_MS, EventIds, milliseconds, wall_clock
from retold.metadata import TIME, current_metadata, decode_metadata, encode_metadata
from retold.recorded import Recorded, read_row, recorded_time
from retold.snapshots import decode_state, encode_state, snapshot_type
from retold.store.append import Append, Handled
from retold.store.dialects import Dialect
from retold.store.driver import Pause, Plan, Statement, Verb

A = TypeVar("A", bound=Aggregate)
R = TypeVar("R")
P = ParamSpec("P")

Command = Callable[Concatenate[A, P], R]

_log = logging.getLogger("retold.store")

_EVERY_VERSION = "g"  # sorts behind every hexadecimal id, in byte order and in any collation
_PAGE = 500


@dataclass(frozen=True, slots=True)
class Settings:
    """What a store's verbs share.

    retries: how often an update lost to another one is tried again.
    settle_tries: how often the database is asked for an unknown outcome, about a second apart.
    """

    codec: Codec
    ids: EventIds
    max_event_bytes: int
    retries: int
    settle_tries: int = 12
    counts: Counter[str] = field(default_factory=Counter[str])


@dataclass(frozen=True, slots=True)
class Options:
    """How one call differs from the default; the views of a repository set these."""

    id: str | None = None
    key: str | None = None
    expected: str | None = None
    trigger: str | None = None


class _Attempt:
    """What an attempt was about to write, so that an unknown outcome can be settled."""

    __slots__ = ("append", "changed")

    def __init__(self) -> None:
        self.append: Append | None = None
        self.changed: Changed[Any, Any] | None = None


@dataclass(slots=True)
class _Loaded(Generic[A]):
    state: A
    version: str
    since: int  # events since the snapshot


def check_id(value: str | UUID) -> str:
    """An entity id as stored. Raises InvalidValue for what no database could keep."""
    id = str(value) if isinstance(value, UUID) else value
    if not isinstance(id, str):
        raise UsageError(f"an entity id is a str or a UUID, not {type(value).__name__}")
    if not 0 < len(id) <= 255 or "\0" in id:
        raise InvalidValue("an entity id is 1 to 255 characters without NUL")
    try:
        id.encode()
    except UnicodeEncodeError:
        raise InvalidValue("an entity id must be valid Unicode") from None
    return id


def check_key(key: str) -> str:
    if not isinstance(key, str) or not 0 < len(key) <= 255 or "\0" in key:
        raise InvalidValue("a key is a text of 1 to 255 characters without NUL")
    return key


def _name_of(command: Callable[..., object]) -> str:
    name: str = getattr(command, "__qualname__", type(command).__qualname__)
    return name


class Verbs(Generic[A]):
    """The verbs for one aggregate class on one database."""

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

    # --- reading ---------------------------------------------------------------------------------

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
        loaded: _Loaded[A] = yield from self._reading(plan)
        return Entity(id, loaded.version, loaded.state) if loaded.version else None

    def find_many(self, ids: Sequence[str]) -> Verb[dict[str, Entity[A]]]:
        found: dict[str, Entity[A]] = yield from self._reading(lambda: self._load_many(ids))
        return found

    def exists(self, id: str) -> Verb[bool]:
        return (yield from self._reading(lambda: self._version(id))) != ""

    def history(self, id: str, after: str) -> Verb[tuple[list[Recorded[Event]], str]]:
        """One page of recorded events behind `after`, and where the next page begins ('' : end)."""
        rows: Sequence[Sequence[Any]] = yield from self._reading(
            lambda: self._rows("history", (*self._key(id), after, _PAGE))
        )
        if not rows and not after:
            raise NotFound(self.entity_type, id)
        page = [
            recorded
            for event_id, name, data, trigger, metadata in rows
            for recorded in read_row(
                self._settings.codec,
                self.entity_type,
                id,
                event_id,
                name,
                data,
                trigger,
                metadata,
            )
        ]
        return page, rows[-1][0] if len(rows) == _PAGE else ""

    def entities(self, after: str) -> Verb[list[str]]:
        """One page of ids behind `after`."""
        rows: Sequence[Sequence[Any]] = yield from self._reading(
            lambda: self._rows("entities", (self.entity_type, after, _PAGE))
        )
        return [id for (id,) in rows]

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

    def _load(self, id: str, at: str | None = None) -> Plan[_Loaded[A]]:
        (result,) = yield [self._load_statement(id, at)]
        return (yield from self._rebuild(id, result.rows, at))

    def _rebuild(
        self, id: str, rows: Sequence[Sequence[Any]], at: str | None = None
    ) -> Plan[_Loaded[A]]:
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
        return _Loaded(state, version, len(rows))

    def _load_at(self, id: str, at: datetime) -> Plan[_Loaded[A]]:
        rows = yield from self._rows("history", (*self._key(id), "", 1 << 31))
        kept: list[Sequence[Any]] = []
        for row in rows:
            if recorded_time(row[0], decode_metadata(row[4])) > at:
                break
            kept.append(row[:3])
        state = self._replay.blank(id)
        return _Loaded(state, self._replay.apply(state, kept) or "", len(kept))

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

    # --- writing ---------------------------------------------------------------------------------

    def create(
        self, options: Options, command: Command[A, P, R], /, *args: P.args, **kwargs: P.kwargs
    ) -> Verb[Changed[A, R]]:
        """A new entity. Raises EntityExists, NothingEmitted, KeyReused."""
        id = options.id or self._settings.ids.mint(1)[0][0]
        return (
            yield from self._persist(
                lambda attempt: self._create(id, options, attempt, command, args, kwargs)
            )
        )

    def update(
        self,
        id: str,
        options: Options,
        command: Command[A, P, R],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Verb[Changed[A, R]]:
        """Load, run, append; again on a conflict. Raises NotFound, VersionConflict, KeyReused."""
        return (
            yield from self._persist(
                lambda attempt: self._update(id, options, attempt, command, args, kwargs),
                once=options.expected is not None,
            )
        )

    def create_or_update(
        self,
        id: str,
        options: Options,
        command: Command[A, P, R],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Verb[Changed[A, R]]:
        return (
            yield from self._persist(
                lambda attempt: self._update(
                    id, options, attempt, command, args, kwargs, may_create=True
                ),
                once=options.expected is not None,
            )
        )

    def _persist(
        self, start: Callable[[_Attempt], Plan[Changed[A, R]]], *, once: bool = False
    ) -> Verb[Changed[A, R]]:
        """Run attempts until one has an outcome."""
        counts = self._settings.counts
        if not self._owned:
            changed: Changed[A, R] = yield start(_Attempt())
            return changed
        tries = 0
        while True:
            attempt = _Attempt()
            lost: Exception
            try:
                changed = yield start(attempt)
            except ConnectionLost as error:
                counts["reconnects"] += 1
                if attempt.append is not None:
                    settled = yield from self._settle(attempt.append)
                    if settled and attempt.changed is not None:
                        return attempt.changed
                lost = error
            except VersionConflict as error:
                counts["conflicts"] += 1
                if once and error.actual != error.expected:
                    raise
                lost = error
            except TransactionRolledBack as error:
                counts["conflicts"] += 1
                lost = error
            else:
                return changed
            tries += 1
            if tries > self._settings.retries:
                raise lost
            counts["retries"] += 1
            # full jitter, doubling from 1 ms to 64 ms: rivals for one entity spread out quickly
            yield Pause(random.uniform(0, 0.001 * (1 << min(tries, 6))))

    def _settle(self, append: Append) -> Verb[bool]:
        """Whether an append of unknown outcome is in the store, after repeating it if it is not.

        The old connection's transaction may still be running on the server. It holds the entity's
        row lock, so the repeated compare-and-set waits for it, and then either finds it undone or
        loses to it and finds its events.
        """
        for n in range(self._settings.settle_tries):
            try:
                done: bool = yield self._repeat(append)
            except (StoreError, TransactionRolledBack) as error:
                # Whatever the reason is that the answer is not to be had, it is no answer. A lock
                # that was waited for in vain is held by the old transaction, which may yet commit.
                if n + 1 == self._settings.settle_tries or isinstance(error, StoreBusy):
                    raise OutcomeUnknown(str(error)) from error
                yield Pause(min(0.05 * (1 << n), 1.0))
            else:
                return done
        raise OutcomeUnknown("the outcome was never asked for")

    def _repeat(self, append: Append) -> Plan[bool]:
        written = yield from self._dialect.append(self._sql, append, True)
        if written:
            return True
        if append.ids:
            return bool((yield from self._rows("event_exists", (*append.key, append.ids[-1]))))
        handled = append.handled
        assert handled is not None
        rows = yield from self._handled(append.entity_id, handled.key)
        return bool(rows) and rows[0][1] == handled.update_id

    def _handled(self, id: str, key: str) -> Plan[Sequence[Sequence[Any]]]:
        return (yield from self._rows("handled", (self.entity_type, id, key)))

    def _create(
        self,
        id: str,
        options: Options,
        attempt: _Attempt,
        command: Callable[..., R],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Plan[Changed[A, R]]:
        if options.key is not None:
            rows = yield from self._handled(id, options.key)
            if rows:
                return (yield from self._duplicate(id, options.key, command, rows[0][0]))
        loaded = _Loaded(self._replay.blank(id), "", 0)
        changed = self._run(loaded, command, args, kwargs)
        if not changed.events:
            raise NothingEmitted(self.entity_type, _name_of(command))
        return (yield from self._write(None, loaded, changed, options, attempt, command))

    def _update(
        self,
        id: str,
        options: Options,
        attempt: _Attempt,
        command: Callable[..., R],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        may_create: bool = False,
    ) -> Plan[Changed[A, R]]:
        if options.key is None:
            loaded = yield from self._load(id)
        else:
            lookup = Statement(self._sql["handled"], (self.entity_type, id, options.key))
            handled, rows = yield [lookup, self._load_statement(id, None)]
            loaded = yield from self._rebuild(id, rows.rows)
            if handled.rows:
                _check_command(self.entity_type, id, options.key, command, handled.rows[0][0])
                self._settings.counts["duplicates"] += 1
                return Changed(id, loaded.version, loaded.state, duplicate=True, _key=options.key)
        if not loaded.version and not may_create:
            raise NotFound(self.entity_type, id)
        if options.expected is not None and loaded.version != options.expected:
            raise VersionConflict(self.entity_type, id, options.expected, loaded.version)
        changed = self._run(loaded, command, args, kwargs)
        if not changed.events and not loaded.version:
            raise NothingEmitted(self.entity_type, _name_of(command))
        expected = loaded.version or None
        try:
            return (yield from self._write(expected, loaded, changed, options, attempt, command))
        except EntityExists as error:
            if error.hint:
                raise
            # Somebody created it between our look and our append: look again.
            raise VersionConflict(self.entity_type, id, "", "(created meanwhile)") from error

    def _duplicate(
        self, id: str, key: str, command: Callable[..., R], recorded: str
    ) -> Plan[Changed[A, R]]:
        _check_command(self.entity_type, id, key, command, recorded)
        self._settings.counts["duplicates"] += 1
        loaded = yield from self._load(id)
        return Changed(id, loaded.version, loaded.state, duplicate=True, _key=key)

    def _run(
        self,
        loaded: _Loaded[A],
        command: Callable[..., R],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Changed[A, R]:
        """Run a command on a loaded state. Raises what the command raises."""
        state = loaded.state
        bound = state._bound
        result = command(state, *args, **kwargs)
        if inspect.isawaitable(result):
            if inspect.iscoroutine(result):
                result.close()
            raise UsageError(
                f"the command {_name_of(command)} is async. Commands decide and emit, without "
                "waiting: make it a plain def and pass what it needs as arguments"
            )
        events, bound.emitted = tuple(bound.emitted), []
        return Changed(bound.id, loaded.version, state, events, False, result)

    def _write(
        self,
        expected: str | None,
        loaded: _Loaded[A],
        changed: Changed[A, R],
        options: Options,
        attempt: _Attempt,
        command: Callable[..., R],
    ) -> Plan[Changed[A, R]]:
        """Append what a command emitted, or find out why that was refused."""
        id = changed.id
        if not changed.events and options.key is None:
            return changed
        append = self._append_of(id, expected, changed.events, options, command)
        version = append.ids[-1] if append.ids else changed.version
        done: Changed[A, R] = Changed(
            id, version, changed.state, changed.events, False, changed._result
        )
        attempt.append, attempt.changed = append, done
        written = yield from self._dialect.append(self._sql, append, self._owned)
        if not written:
            attempt.append = None
            return (yield from self._refused(append, options, command))
        if self._strategy is not None and append.ids:
            since = loaded.since + len(append.ids)
            if self._strategy(since):
                yield from self._keep_snapshot(done)
        return done

    def _append_of(
        self,
        id: str,
        expected: str | None,
        events: Sequence[Event],
        options: Options,
        command: Callable[..., object],
    ) -> Append:
        settings = self._settings
        bodies: list[str] = []
        names: list[str] = []
        for event in events:
            name = event_name(event)
            encoded = settings.codec.encode_checked(event, name)
            if len(encoded) > settings.max_event_bytes:
                raise EventTooLarge(name, len(encoded), settings.max_event_bytes)
            names.append(name)
            bodies.append(encoded.decode())
        ids, now = settings.ids.mint(max(1, len(events)), expected or "")
        metadata = current_metadata()
        ahead = milliseconds(ids[0]) - now
        if ahead > 1000:
            # The id had to lie in the future; the true time is kept beside it.
            metadata = {**metadata, TIME: str(now)}
            if ahead > MAX_SKEW_MS:
                settings.counts["clock_skew"] += 1
                _log.warning(
                    "%s %s was last changed %d s in the future: the clock of a writer is wrong",
                    self.entity_type,
                    id,
                    ahead // 1000,
                )
        handled = None
        if options.key is not None:
            handled = Handled(options.key, _name_of(command), ids[-1], now)
        return Append(
            self.entity_type,
            id,
            self._key(id),
            expected,
            ids if events else [],
            names,
            bodies,
            options.trigger or options.key,
            encode_metadata(metadata),
            handled,
        )

    def _refused(
        self, append: Append, options: Options, command: Callable[..., R]
    ) -> Plan[Changed[A, R]]:
        """Tell duplicate, conflict, existing and missing apart after an append wrote nothing."""
        id = append.entity_id
        if options.key is not None:
            rows = yield from self._handled(id, options.key)
            if rows:
                return (yield from self._duplicate(id, options.key, command, rows[0][0]))
        rows = yield from self._rows("entity_version", (self.entity_type, id))
        if not self._owned and (rows[0][0] if rows else None) == append.expected:
            # The user's transaction may be too old to see what refused the append.
            rows = yield from self._rows("newest_entity_version", (self.entity_type, id))
        if append.expected is None:
            if rows and rows[0][1] != id:
                hint = f" as {rows[0][1]!r}, which this database's collation takes for the same id"
                raise EntityExists(self.entity_type, id, hint)
            if rows:
                raise EntityExists(self.entity_type, id)
        elif not rows or rows[0][1] != id:
            raise NotFound(self.entity_type, id)
        # Where the version is as expected after all, an event id collided: mint and try again.
        actual = rows[0][0] if rows else ""
        raise VersionConflict(self.entity_type, id, append.expected or "", actual)

    def _keep_snapshot(self, entity: Entity[A]) -> Plan[None]:
        """Keep a snapshot and drop all but the last two.

        After the append and outside its transaction: a snapshot is a cache, and the lock on the
        entity is not held for it (docs/adr/0009-snapshots.md).
        """
        text = encode_state(entity.state, self._settings.codec)
        if text is None:
            return
        kind = (*self._key(entity.id), self._snapshot_type)
        # Java reads triggering_events of the previous snapshot and fails on NULL.
        nothing = '{"topicsToPartitionsAndOffsets":{},"empty":true}'
        row = (self.entity_type, entity.id, entity.version, self._snapshot_type, text, nothing)
        try:
            yield [
                Statement(self._sql["insert_snapshot"], row),
                Statement(self._sql["prune_snapshots"], (*kind, *kind)),
            ]
        except RetoldError as error:
            if not self._owned:
                raise
            # The append is committed, and this call must say so.
            _log.warning("no snapshot of %s %s: %s", self.entity_type, entity.id, error)
        else:
            self._settings.counts["snapshots"] += 1


def _check_command(
    entity_type: str, id: str, key: str, command: Callable[..., object], recorded: str
) -> None:
    name = _name_of(command)
    if recorded != name:
        raise KeyReused(entity_type, id, key, name, recorded)


def forget_handled(dialect: Dialect, older_than: timedelta) -> Verb[int]:
    """Delete old keys, a thousand at a time so that no lock is held for long; returns how many."""
    before = wall_clock() - int(older_than.total_seconds() * 1000)
    total = 0
    while True:
        try:
            forgotten: int = yield _delete(dialect.queries["forget_handled"], (before, 1000))
        except ConnectionLost:
            # Most likely an idle one that had died; and deleting twice does no harm.
            forgotten = yield _delete(dialect.queries["forget_handled"], (before, 1000))
        total += forgotten
        if forgotten < 1000:
            return total


def _delete(sql: str, params: Sequence[object]) -> Plan[int]:
    (deleted,) = yield [Statement(sql, params)]
    return deleted.rowcount
