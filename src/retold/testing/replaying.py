"""Replay: load what is stored, with the code that is about to be deployed.

For a team's CI, on a copy of production: what no test has thought of is in there.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, overload

from retold.aggregates import Aggregate, Replay, check_aggregate, state_fields
from retold.codecs import equal
from retold.errors import InvalidValue, RetoldError
from retold.store.event_store import AsyncEventStore, EventStore

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable, Iterator, Sequence

_SHOWN = 10


@dataclass(frozen=True, slots=True)
class ReplayFailure:
    """An entity that could not be loaded.

    event_id, event_type: the first event that could not be read or applied, '' where it was none.
    """

    entity_id: str
    event_id: str
    event_type: str
    reason: str


@dataclass(frozen=True, slots=True)
class ReplayReport:
    """What a replay found.

    entities, events: how many were gone through. seed: draws the same sample again.
    """

    entity_type: str
    entities: int
    events: int
    seed: int
    failures: tuple[ReplayFailure, ...] = field(default=())

    def check(self) -> None:
        """Raises AssertionError where an entity could not be loaded, or where there was none."""
        __tracebackhide__ = True
        if not self.entities:
            raise AssertionError(f"there is no {self.entity_type} in this store to replay")
        if not self.failures:
            return
        count = f"{len(self.failures)} of {self.entities} {self.entity_type}"
        lines = [f"{count} cannot be loaded (seed={self.seed})"]
        kinds = Counter(failure.event_type for failure in self.failures)
        lines += [
            f"  {count} × at {kind or 'the entity itself'}" for kind, count in kinds.most_common()
        ]
        for failure in self.failures[:_SHOWN]:
            at = f" at event {failure.event_id} ({failure.event_type})" * bool(failure.event_id)
            lines.append(f"  {failure.entity_id}{at}: {failure.reason}")
        if len(self.failures) > _SHOWN:
            lines.append(f"  … and {len(self.failures) - _SHOWN} more in report.failures")
        raise AssertionError("\n".join(lines))


@overload
def replay(
    store: EventStore,
    aggregate_class: type[Aggregate],
    /,
    *,
    sample: int | None = 1000,
    seed: int | None = None,
) -> ReplayReport: ...
@overload
def replay(
    store: AsyncEventStore,
    aggregate_class: type[Aggregate],
    /,
    *,
    sample: int | None = 1000,
    seed: int | None = None,
) -> Awaitable[ReplayReport]: ...
def replay(
    store: EventStore | AsyncEventStore,
    aggregate_class: type[Aggregate],
    /,
    *,
    sample: int | None = 1000,
    seed: int | None = None,
) -> ReplayReport | Awaitable[ReplayReport]:
    """Load stored entities: every event of them is read, upcast and applied. Writes nothing.

    sample: how many entities, drawn at random, each as likely as any other; None for all. To draw
    them the ids of all entities of the type are read. seed: for the same sample again.

    Where the aggregate keeps snapshots, an entity's must say what its events say. Loading goes on
    behind a failure with the next entity; `report.check()` raises for all of them.
    """
    check_aggregate(aggregate_class)
    if sample is not None and sample < 1:
        raise InvalidValue(f"sample={sample}: a replay needs at least one entity; None is all")
    drawn = random.randrange(1 << 32) if seed is None else seed
    if isinstance(store, AsyncEventStore):
        return asyncio.to_thread(_replay_beside, store, aggregate_class, sample, drawn)
    return _replay(store, aggregate_class, sample, drawn)


def _replay_beside(
    store: AsyncEventStore, aggregate_class: type[Aggregate], sample: int | None, seed: int
) -> ReplayReport:
    with store.blocking() as blocking:
        return _replay(blocking, aggregate_class, sample, seed)


def _replay(
    store: EventStore, aggregate_class: type[Aggregate], sample: int | None, seed: int
) -> ReplayReport:
    repository = store.repository(aggregate_class)
    ids: Iterable[str] = repository.entities()
    if sample is not None:
        ids = _drawn(ids, sample, random.Random(seed))
    entities = events = 0
    failures: list[ReplayFailure] = []
    for id in ids:
        entities += 1
        loading = _Loading(store, aggregate_class, id)
        failure = loading.failure()
        events += loading.events
        if failure is not None:
            failures.append(failure)
    return ReplayReport(aggregate_class.__entity_type__, entities, events, seed, tuple(failures))


def _drawn(ids: Iterable[str], sample: int, chance: random.Random) -> list[str]:
    """A random sample of an iterable of unknown length, in memory for the sample."""
    kept: list[str] = []
    for n, id in enumerate(ids):
        if n < sample:
            kept.append(id)
        elif (place := chance.randrange(n + 1)) < sample:
            kept[place] = id
    return kept


class _Loading:
    """One entity, event by event."""

    def __init__(self, store: EventStore, aggregate_class: type[Aggregate], id: str) -> None:
        self._store = store
        self._class = aggregate_class
        self._id = id
        self._replay = Replay(aggregate_class, store.codec)
        self.events = 0

    def failure(self) -> ReplayFailure | None:
        state, version, event_type = self._replay.blank(self._id), "", ""
        for row in self._rows():
            self.events += 1
            version, event_type = row[0], row[1]
            try:
                self._replay.apply(state, [row])
            except Exception as error:
                return ReplayFailure(self._id, version, event_type, _reason(error))
        if not version:
            return ReplayFailure(self._id, "", "", "it has no events")
        if self._class.__snapshots__ is not None:
            found = self._store.repository(self._class).find(self._id, at=version).state
            if different := [n for n in state_fields(self._class) if _differ(found, state, n)]:
                reason = (
                    f"a snapshot says otherwise than the events ({', '.join(different)}); raise "
                    "snapshot_version="
                )
                return ReplayFailure(self._id, "", "", reason)
        return None

    def _rows(self) -> Iterator[Sequence[Any]]:
        """Page by page, as they are stored."""
        verbs, after = self._store._kept.verbs(self._class), ""
        while rows := self._store._perform(verbs.stored(self._id, after)):
            for row in rows:
                yield row[:3]
            after = rows[-1][0]


def _differ(one: Aggregate, other: Aggregate, name: str) -> bool:
    return not equal(getattr(one, name), getattr(other, name))


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, RetoldError) else f"{type(error).__name__}: {error}"
