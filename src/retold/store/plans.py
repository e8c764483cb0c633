"""The verbs that write, written once: generators of plans that know no I/O.

A verb runs *attempts*. One attempt loads the entity, runs the command and appends, all on one
connection; what it may write is decided by the compare-and-set alone, never by what it read. A lost
attempt is repeated after a pause; an attempt whose outcome is unknown is settled first, by
repeating the identical append and looking for its own event ids.
"""

from __future__ import annotations

import inspect
import logging
import random
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, Concatenate, ParamSpec, TypeVar

from retold.aggregates import Aggregate
from retold.entity import Changed, Entity
from retold.errors import (
    ConnectionLost,
    EntityExists,
    EventTooLarge,
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
from retold.ids import MAX_SKEW_MS, milliseconds, wall_clock
from retold.metadata import TIME, current_metadata, encode_metadata
from retold.snapshots import encode_state
from retold.store.append import Append, Handled
from retold.store.dialects import Dialect
from retold.store.driver import Batch, Pause, Plan, Statement, Verb
from retold.store.inline import Inline
from retold.store.options import Options, Settings
from retold.store.reading import Loaded, Reading

A = TypeVar("A", bound=Aggregate)
R = TypeVar("R")
P = ParamSpec("P")

Command = Callable[Concatenate[A, P], R]

_log = logging.getLogger("retold.store")


class _Attempt:
    """What an attempt was about to write, so that an unknown outcome can be settled, and whether a
    snapshot is due once it is written."""

    __slots__ = ("append", "changed", "snapshot_due")

    def __init__(self) -> None:
        self.append: Append | None = None
        self.changed: Changed[Any, Any] | None = None
        self.snapshot_due = False


def _name_of(command: Callable[..., object]) -> str:
    name: str = getattr(command, "__qualname__", type(command).__qualname__)
    return name


class Verbs(Reading[A]):
    """The verbs for one aggregate class on one database."""

    def __init__(
        self, aggregate_class: type[A], dialect: Dialect, settings: Settings, *, owned: bool
    ) -> None:
        super().__init__(aggregate_class, dialect, settings, owned=owned)
        self._inline = Inline(settings.projections, self.entity_type)

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
        """Run attempts until one has an outcome, then keep the snapshot that is due."""
        counts = self._settings.counts
        changed: Changed[A, R]
        tries = 0
        while True:
            attempt = _Attempt()
            lost: Exception
            if not self._owned:
                changed = yield start(attempt)
                break
            try:
                changed = yield start(attempt)
                break
            except ConnectionLost as error:
                counts["reconnects"] += 1
                if attempt.append is not None:
                    settled = yield from self._settle(attempt.append)
                    if settled and attempt.changed is not None:
                        changed = attempt.changed
                        break
                lost = error
            except VersionConflict as error:
                counts["conflicts"] += 1
                if once and error.actual != error.expected:
                    raise
                lost = error
            except TransactionRolledBack as error:
                counts["conflicts"] += 1
                lost = error
            tries += 1
            if tries > self._settings.retries:
                raise lost
            counts["retries"] += 1
            # full jitter, doubling from 1 ms to 64 ms: rivals for one entity spread out quickly
            yield Pause(random.uniform(0, 0.001 * (1 << min(tries, 6))))
        if attempt.snapshot_due:
            yield from self._keep_snapshot(changed)
        return changed

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
        written = yield from self._inline.append(self._dialect, append, True)
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
        loaded = Loaded(self._replay.blank(id), "", 0)
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
        loaded: Loaded[A],
        command: Callable[..., R],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Changed[A, R]:
        """Run a command on a loaded state. Raises what the command raises."""
        state = loaded.state
        bound = state._bound
        result = command(state, *args, **kwargs)
        if result is not None and inspect.isawaitable(result):
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
        loaded: Loaded[A],
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
        due = (
            self._strategy is not None
            and append.ids != []
            and self._strategy(loaded.since + len(append.ids))
        )
        attempt.append, attempt.changed, attempt.snapshot_due = append, done, due
        written = yield from self._inline.append(self._dialect, append, self._owned)
        if not written:
            attempt.append, attempt.snapshot_due = None, False
            return (yield from self._refused(append, options, command))
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
            events,
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

    def _keep_snapshot(self, entity: Entity[A]) -> Verb[None]:
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
        batch = [
            Statement(self._sql["insert_snapshot"], row),
            Statement(self._sql["prune_snapshots"], (*kind, *kind)),
        ]
        try:
            yield _plan_of(batch)
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


def _plan_of(batch: Batch) -> Plan[None]:
    yield batch


def _delete(sql: str, params: Sequence[object]) -> Plan[int]:
    (deleted,) = yield [Statement(sql, params)]
    return deleted.rowcount
