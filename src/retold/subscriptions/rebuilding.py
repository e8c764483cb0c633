"""Rebuilding a projection beside the live one, emptying it, and how far it is behind."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from retold.brokers.ends import behind, last_position, log_ends
from retold.errors import AssignmentLost, LogMissing, RetoldError, SchemaMissing, UsageError
from retold.recorded import read_row
from retold.store import exchanging
from retold.store.connections import BlockingDriver
from retold.store.driver import Plan, Statement, acting, drive
from retold.store.exchanging import Exchange
from retold.store.projections import OWN, ProjectionPlace, places

if TYPE_CHECKING:
    from retold.store.event_store import EventStore
    from retold.subscriptions.projection import Projection, Version

REBUILD = ".rebuild"
"""What follows a projection's name in that of its new tables' positions."""
_TELL_S = 1.0
_WAIT_S = 60.0
"""How long it is waited for the partitions, which a broken-off rebuild may still hold."""
_TRIES = 100
_LOOK_S = 0.05
_REST = 1000
"""How many events at most are applied while nobody can append."""
_log = logging.getLogger("retold.subscriptions")


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a rebuild is. applied: events so far. behind: what is left, as of `Projection.lag`."""

    applied: int
    behind: int


def positions_of(driver: BlockingDriver, name: str) -> dict[str, int]:
    """Place → what is in the read model."""
    return {
        at.place: at.position
        for at in driver.run(places(driver.dialect.queries))
        if at.projection == name and at.place != OWN
    }


@dataclass(frozen=True, slots=True)
class ProjectionState:
    """What a database knows of a projection. lag: as of `Projection.lag`, None where the events are
    not in this database nor in the store's Kafka. doing: "rebuilding", "exchanging" or nothing."""

    name: str
    generation: int
    lag: int | None
    doing: str


def states(store: EventStore) -> list[ProjectionState]:
    """All projections whose read models are in the store's database."""
    found: dict[str, dict[str, ProjectionPlace]] = {}
    for at in store.driver.run(places(store.driver.dialect.queries)):
        found.setdefault(at.projection, {})[at.place] = at
    return [
        _state(store, name, known)
        for name, known in found.items()
        if name.removesuffix(REBUILD) == name or name.removesuffix(REBUILD) not in found
    ]


def _state(store: EventStore, name: str, known: dict[str, ProjectionPlace]) -> ProjectionState:
    own = known.pop(OWN, None)
    doing = {"rebuild": "rebuilding", "switch": "exchanging"}
    owner = (own.owner if own else None) or ""
    return ProjectionState(
        name,
        own.position if own else 0,
        _lag_of(store, {place: at.position for place, at in known.items()}),
        doing.get(owner.partition("/")[0], ""),
    )


def _lag_of(store: EventStore, positions: Mapping[str, int]) -> int | None:
    if not positions:
        return None  # an inline one, or one that has not begun
    topics = {place.rpartition("/")[0] for place in positions if "/" in place}
    if topics:
        return (
            behind(log_ends(store.driver, sorted(topics), store.kafka), positions)
            if store.kafka
            else None
        )
    try:
        ends = log_ends(store.driver, ())
    except LogMissing:
        return None
    if any(position > ends.get(place, 0) for place, position in positions.items()):
        return None  # the read model of another store
    return behind(ends, positions)


def lag(projection: Projection, store: EventStore) -> int:
    """See Projection.lag."""
    if projection.inline:
        return 0
    ends = log_ends(store.driver, projection.wanted()[0], store.kafka)
    return behind(ends, positions_of(projection.driver(store), projection.name))


def reset(projection: Projection, store: EventStore) -> None:
    """See Projection.reset."""
    if projection.inline:
        raise UsageError(
            f"projection {projection.name!r} is inline: nothing would fill it again; rebuild it"
        )
    if not projection.tables:
        raise UsageError(
            f"projection {projection.name!r} does not say which tables it keeps: name them in tables="
        )
    driver = projection.driver(store)
    projection.set_up(driver)
    driver.run(exchanging.empty(driver.dialect.queries, projection.name, projection.tables))


class Rebuilding:
    """One rebuild of one projection."""

    def __init__(
        self,
        projection: Projection,
        store: EventStore,
        progress: Callable[[Progress], None],
        stop: threading.Event,
    ) -> None:
        exchanging.check_rebuildable(projection.name, projection.tables, projection.makes_tables)
        self._projection = projection
        self._store = store
        self._progress = progress
        self._stop = stop
        self._driver = projection.driver(store)
        self._sql = self._driver.dialect.queries
        self._build = projection.name + REBUILD
        self._suffix = ""
        self._applied = 0
        self._told_at = self._looked_at = time.monotonic()
        self._until: Mapping[str, int] = {}
        self._reached = threading.Event()

    def run(self) -> bool:
        """False when stopped."""
        projection, driver = self._projection, self._driver
        token = secrets.token_hex(8)
        projection.set_up(driver)
        generation, broken_off = driver.run(
            exchanging.begin_rebuild(self._sql, projection.name, self._build, token)
        )
        plan = Exchange(projection.name, self._build, projection.tables, token, generation)
        if broken_off:
            _log.warning("%s: finishing an exchange that was broken off", projection.name)
            driver.run(exchanging.finish(driver.dialect, plan))
            self._clean_up()
            return True
        done, self._suffix = False, plan.suffix
        try:
            self._make_tables(plan)
            done = self._fill(self._version(plan)) and self._exchange(plan)
        finally:
            if not done:
                with suppress(RetoldError):
                    driver.run(exchanging.give_up(self._sql, plan))
        self._clean_up()
        return done

    def _version(self, plan: Exchange) -> Version:
        from retold.subscriptions.projection import Version

        return Version(self._build, plan.suffix, self._tell)

    def _make_tables(self, plan: Exchange) -> None:
        new = [table + plan.suffix for table in plan.tables]
        self._driver.run(exchanging.drop_tables(new))
        self._projection.set_up(self._driver, plan.suffix)
        try:
            self._driver.run(exchanging.are_there(new))
        except SchemaMissing as error:
            raise UsageError(
                f"the setup of projection {plan.name!r} did not make {' and '.join(new)}: it must name "
                f"each table by table(…) ({error.reason})"
            ) from None

    def _fill(self, version: Version) -> bool:
        """Apply everything up to where the log ends when most is done. False when stopped."""
        self._catch_up(version)
        self._catch_up(version)
        return not self._stop.is_set()

    def _catch_up(self, version: Version) -> None:
        """Apply everything up to where the log ends now, and not what is added all the time."""
        self._until, self._reached = self._ends(), threading.Event()
        deadline = time.monotonic() + _WAIT_S
        while not (self._stop.is_set() or self._is_at(self._until)):
            applied = self._applied
            try:
                self._projection.run_as(version, self._store, self._reached, drain=True)
            except AssignmentLost:
                _log.debug("%s: waiting for the partitions", version.name)
            if self._applied > applied:
                deadline = time.monotonic() + _WAIT_S
            elif not self._is_at(self._until):
                if time.monotonic() > deadline:
                    raise AssignmentLost(self._build)
                self._stop.wait(0.1)

    def _ends(self) -> Mapping[str, int]:
        topics, _ = self._projection.wanted()
        return log_ends(self._store.driver, topics, self._projection.kafka(self._store))

    def _is_at(self, ends: Mapping[str, int]) -> bool:
        return behind(ends, positions_of(self._driver, self._build)) == 0

    def _exchange(self, plan: Exchange) -> bool:
        dialect, failures = self._driver.dialect, 0
        while not self._stop.is_set():
            try:
                if not self._projection.inline:
                    return self._driver.run(exchanging.exchange(dialect, plan))
                if dialect.name != "sqlite":
                    return self._exchange_inline(plan)
                if self._driver.run(exchanging.exchange(dialect, plan, self._apply_rest)):
                    return True
                self._catch_up(self._version(plan))
            except RetoldError as error:
                failures += 1
                # Readers of the old tables, or a long transaction, are in the way.
                if not error.retriable or failures == _TRIES:
                    raise
                _log.warning("%s: the exchange has to wait: %s", plan.name, error)
                self._stop.wait(0.5)
        return False

    def _apply_rest(self) -> Plan[bool]:
        """On SQLite, where nobody can append meanwhile nor write on another connection: apply what
        there still is in the transaction of the exchange. False where that is much."""
        projection, sql = self._projection, self._sql
        end = yield from last_position(sql)
        rows = yield from places(sql)
        position = max(at.position for at in rows if at.projection == self._build)
        topics, types = (msgspec.json.encode(names).decode() for names in projection.wanted())
        (found,) = yield [Statement(sql["log_read"], (position, end, topics, types, _REST + 1))]
        if len(found.rows) > _REST:
            return False
        recorded = [
            event
            for _, event_id, event_type, data, topic, key, metadata in found.rows
            for event in read_row(
                self._store.codec, topic, key, event_id, event_type, data, None, metadata
            )
            if type(event.event) in projection.wants(topic)
        ]

        def act(db: Any) -> None:
            with projection.naming(self._suffix):
                for event in recorded:
                    projection.project(event, db)

        yield acting(act)
        self._applied += len(recorded)
        return True

    def _exchange_inline(self, plan: Exchange) -> bool:
        """While appends wait, apply what there still is, and exchange."""
        dialect = self._driver.dialect
        with self._driver.connection() as connection:
            drive(connection.execute, exchanging.lock(dialect, plan))
            self._catch_up(self._version(plan))
            if self._stop.is_set():
                return False
            drive(connection.execute, exchanging.exchange_locked(dialect, plan))
        return True

    def _tell(self, count: int) -> None:
        self._applied += count
        now = time.monotonic()
        if self._stop.is_set() or (now - self._looked_at >= _LOOK_S and self._is_at(self._until)):
            self._reached.set()
        self._looked_at = now
        if now - self._told_at >= _TELL_S:
            self._told_at = now
            left = behind(self._ends(), positions_of(self._driver, self._build))
            self._progress(Progress(self._applied, left))

    def _clean_up(self) -> None:
        self._progress(Progress(self._applied, 0))
        with suppress(SchemaMissing):  # a store on Kafka has no such table
            sql = self._store.driver.dialect.queries
            self._store.driver.run(exchanging.forget_subscription(sql, self._build))
