"""Projections: handlers that keep a read model, each event once in effect.

What the handlers write and how far they have come is one transaction of the read model's database.
docs/adr/0019-projections.md says why that is enough.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import re
import secrets
import threading
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, get_args

from retold.aggregates import Aggregate
from retold.brokers.consumers import Assignor, open_consumer
from retold.drivers import open_driver
from retold.entity import Entity
from retold.errors import AssignmentLost, DefinitionError, InvalidValue, StoreBusy, UsageError
from retold.events import Event
from retold.recorded import Recorded
from retold.registry import check_name
from retold.store import projections
from retold.store.driver import Plan, Statement, acting
from retold.store.options import KafkaAddress
from retold.store.projections import OWN, Member
from retold.store.url import parse_url
from retold.subscriptions.delivery import Delivery
from retold.subscriptions.dispatcher import BATCH, Dispatcher
from retold.subscriptions.handling import Route
from retold.subscriptions.parking import PARK_LIMIT
from retold.subscriptions.projecting import Projector, Settings, call
from retold.subscriptions.rebuilding import Progress, Rebuilding, lag, reset
from retold.subscriptions.retry import Retry
from retold.subscriptions.routing import Handlers, wanted_by
from retold.subscriptions.subscription import OnError
from retold.subscriptions.waiting import wait_for, wait_for_async
from retold.subscriptions.workers import Work

if TYPE_CHECKING:
    from retold.store.connections import BlockingDriver
    from retold.store.event_store import AsyncEventStore, EventStore

E = TypeVar("E", bound=Event)

_MAX_NAME = 80
_TABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,47}")
_log = logging.getLogger("retold.subscriptions")


class Cursor(Protocol):
    """A DB-API cursor of the read model's database, in a transaction that retold begins and ends.

    It is the client library's own (sqlite3, psycopg, PyMySQL, mysqlclient), so parameters are
    written `?` on SQLite and `%s` elsewhere.
    """

    @property
    def description(self) -> Any: ...
    @property
    def rowcount(self) -> int: ...
    def execute(self, sql: Any, params: Any = ..., /) -> Any: ...
    def executemany(self, sql: Any, params: Any, /) -> Any: ...
    def fetchone(self) -> Any: ...
    def fetchmany(self, size: int = ..., /) -> Any: ...
    def fetchall(self) -> Any: ...


Projecting = Callable[[Delivery[E], Cursor], None]


class RegisterProjecting(Protocol, Generic[E]):
    """What `on` of a projection returns."""

    def __call__(self, handler: Projecting[E], /) -> Projecting[E]: ...


class Projection:
    """Keeps a read model: tables of yours, written by handlers of events.

    Each event is in the tables exactly once, in order for each entity, whatever breaks.

    name: where its position is kept, and its parked events; two programs with one name share the work.
    database: URL of the read model's database, where it is not the store's. `retold migrate` makes
    the tables there that retold needs.
    tables: the tables it keeps; `reset` empties them, `rebuild` builds them anew.
    inline: the handlers run in the transaction of the append, on its connection, instead of later:
    pass it to the store, `EventStore(url, projections=[…])`.
    track_versions: also keep how far each entity has come, for `store.wait_for`.
    batch: how many events at most are one transaction.
    attempts, retry, on_error, park_limit, assignor: as those of a Subscription. A retry pauses all of
    the member's partitions.
    """

    has_async_handlers = False

    def __init__(
        self,
        name: str,
        *,
        database: str | None = None,
        tables: Iterable[str] = (),
        inline: bool = False,
        track_versions: bool = False,
        batch: int = BATCH,
        attempts: int | None = None,
        retry: Retry | None = None,
        on_error: OnError = "park",
        park_limit: int = PARK_LIMIT,
        assignor: Assignor = "cooperative-sticky",
    ) -> None:
        check_name("a projection", name)
        if len(name) > _MAX_NAME:
            raise InvalidValue(f"a projection's name has at most {_MAX_NAME} characters")
        if batch < 1:
            raise InvalidValue("batch: a transaction holds at least one event")
        if park_limit < 1:
            raise InvalidValue("park_limit: at least one event of an entity can be parked")
        if on_error not in get_args(OnError):
            raise InvalidValue(f"on_error is one of {', '.join(get_args(OnError))}")
        if assignor not in get_args(Assignor):
            raise InvalidValue(f"assignor is one of {', '.join(get_args(Assignor))}")
        if attempts is not None and retry is not None:
            raise InvalidValue("attempts belongs into retry=Retry(attempts=…) where that is given")
        if inline and (database is not None or track_versions):
            raise InvalidValue(
                "an inline projection is in the store's own database, at the version of the store"
            )
        self.name = name
        self.inline = inline
        self.track_versions = track_versions
        self.tables = tuple(tables)
        for table in self.tables:
            if not _TABLE.fullmatch(table):
                raise InvalidValue(f"tables: {table!r} is no plain SQL name of up to 48 characters")
        self._url = None if database is None else parse_url(database)
        self._own_driver: BlockingDriver | None = None
        self._batch = batch
        self._on_error: OnError = on_error
        self._park_limit = park_limit
        self._assignor: Assignor = assignor
        self._retry = retry or (Retry() if attempts is None else Retry(attempts))
        self._handlers = Handlers(f"projection {name!r}")
        self._setup: Callable[[Cursor], None] | None = None
        self._suffix: ContextVar[str] = ContextVar(f"retold_{name}", default="")

    # --- what it is made of -----------------------------------------------------------------------

    def on(
        self,
        event_class: type[E],
        /,
        *,
        of: str | type[Aggregate] | None = None,
        retry: Retry | None = None,
    ) -> RegisterProjecting[E]:
        """Register the handler of an event of one entity type; a plain function, that gets the
        delivery and a cursor.

        As Subscription.on. Raises DefinitionError for a second handler of the same event, and for an
        async one.
        """

        def register(handler: Any) -> Any:
            if inspect.iscoroutinefunction(handler):
                raise DefinitionError(
                    f"{handler.__qualname__} is async: handlers of a projection are plain functions, "
                    "also for an AsyncEventStore, which runs them in a thread"
                )
            self._handlers.add(event_class, of, Route(handler, retry or self._retry))
            return handler

        self._handlers.check(event_class)
        return register

    def setup(self, function: Callable[[Cursor], None], /) -> Callable[[Cursor], None]:
        """Register the function that makes the tables, named by `table`, where they are missing.

        It is called when a member starts, and by `rebuild`. Write CREATE TABLE IF NOT EXISTS.
        """
        self._setup = function
        return function

    def table(self, name: str, /) -> str:
        """The name under which handlers and `setup` write a table of `tables`: its own, but for the
        time of a rebuild, in which a new one is filled beside it."""
        if name not in self.tables:
            raise UsageError(f"projection {self.name!r} has no table {name!r}: name it in tables=")
        return name + self._suffix.get()

    @contextmanager
    def naming(self, suffix: str) -> Generator[None]:
        """A block in which `table` appends this."""
        token = self._suffix.set(suffix)
        try:
            yield
        finally:
            self._suffix.reset(token)

    # --- running ----------------------------------------------------------------------------------

    def driver(self, store: EventStore) -> BlockingDriver:
        """The connection to the read model's database."""
        if self._url is None:
            return store.driver
        if self._own_driver is None:
            self._own_driver = open_driver(self._url)
        return self._own_driver

    def close(self) -> None:
        """Close idle connections to a database of its own."""
        if self._own_driver is not None:
            self._own_driver.close()

    def run_on(self, store: EventStore, stop: threading.Event, *, drain: bool) -> int:
        """Handle messages until stopped, or with `drain` until there are none; returns how many."""
        if self.inline:
            raise UsageError(
                f"projection {self.name!r} is inline, so it runs with the appends: "
                f"EventStore(url, projections=[…])"
            )
        try:
            self.set_up(self.driver(store))
            return self.run_as(Version(self.name), store, stop, drain=drain)
        finally:
            self.close()

    def run_as(
        self, version: Version, store: EventStore, stop: threading.Event, *, drain: bool
    ) -> int:
        """The same for one version of the read model, whose tables are there."""
        routes = self._handlers.routes()
        driver = self.driver(store)
        while True:
            member = Member(version.name, f"{os.getpid()}-{secrets.token_hex(8)}")
            consumer = open_consumer(
                store.driver,
                version.name,
                *wanted_by(routes),
                "beginning",
                self.kafka(store),
                self._assignor,
                _Claims(driver, member),
            )
            settings = Settings(
                version.name,
                routes,
                store.codec,
                driver,
                member,
                lambda: self.naming(version.suffix),
                self._batch,
                self.track_versions,
                self._on_error == "park" and not self.inline,
                self._park_limit,
                version.applied,
            )
            work = Work(version.name, _no_steps, store, stop)
            projector = Projector(settings, consumer, work)
            try:
                dispatcher = Dispatcher(version.name, consumer, work, projector, projector)
                return dispatcher.consume(stop, drain=drain)
            except (AssignmentLost, StoreBusy) as error:
                if drain or stop.is_set():
                    raise
                _log.warning("%s: joining again: %s", version.name, error)
                stop.wait(0.1 if isinstance(error, AssignmentLost) else 0.5)
            finally:
                consumer.close()

    def kafka(self, store: EventStore) -> KafkaAddress | None:
        """Where its events come from; an inline one's from the database it is in."""
        return None if self.inline else store.kafka

    def set_up(self, driver: BlockingDriver, suffix: str = "") -> None:
        """Make the tables, if there is a `setup`. Raises what it raises."""
        setup = self._setup
        if setup is None:
            return

        def act(db: Any) -> None:
            with self.naming(suffix):
                setup(db)

        driver.run(_set_up(driver.dialect.queries, self.name, act))

    async def run_on_async(self, store: AsyncEventStore, stop: threading.Event) -> None:
        """The same in a thread."""
        blocking = store.blocking()
        running = asyncio.ensure_future(asyncio.to_thread(self.run_on, blocking, stop, drain=False))
        try:
            await asyncio.shield(running)
        except asyncio.CancelledError:
            stop.set()
            await running
            raise
        finally:
            blocking.close()

    # --- rebuilding -------------------------------------------------------------------------------

    def rebuild(
        self,
        store: EventStore,
        progress: Callable[[Progress], None] = lambda progress: None,
        *,
        stop: threading.Event | None = None,
    ) -> bool:
        """Build its `tables` anew, beside those there are, from all events; then exchange them.

        Members may run meanwhile and go on behind the exchange, and readers see the old tables until
        it. progress: called about once a second. False when stopped before, which changes nothing.
        Raises UsageError without `tables` or `setup`.
        """
        try:
            return Rebuilding(self, store, progress, stop or threading.Event()).run()
        finally:
            self.close()

    def reset(self, store: EventStore) -> None:
        """Empty its `tables`, and begin with the first event again; members may run.

        Until they have caught up readers find less. Raises UsageError without `tables`.
        """
        try:
            reset(self, store)
        finally:
            self.close()

    def lag(self, store: EventStore) -> int:
        """How far it is behind the end of the log: in positions of the log, from Kafka in records."""
        try:
            return lag(self, store)
        finally:
            self.close()

    @property
    def makes_tables(self) -> bool:
        """Whether there is a `setup`."""
        return self._setup is not None

    def wanted(self) -> tuple[list[str], list[str]]:
        """The entity types and the stored names of events that it handles."""
        return wanted_by(self._handlers.routes())

    # --- reading one's own write ------------------------------------------------------------------

    def wait_on(self, store: EventStore, changed: Entity[Any], timeout: float) -> None:
        """As EventStore.wait_for."""
        wait_for(self, store, changed, timeout)

    async def wait_on_async(
        self, store: AsyncEventStore, changed: Entity[Any], timeout: float
    ) -> None:
        """As EventStore.wait_for."""
        await wait_for_async(self, store, changed, timeout)

    def types_of(self, entity_type: str) -> list[str]:
        """The stored names of the events of an entity type that it handles."""
        routes = self._handlers.routes()
        return wanted_by({at: route for at, route in routes.items() if at[0] == entity_type})[1]

    # --- inline -----------------------------------------------------------------------------------

    def wants(self, entity_type: str) -> frozenset[type[Event]]:
        """The events of an entity type that it handles."""
        return frozenset(cls for kind, cls in self._handlers.routes() if kind == entity_type)

    def project(self, recorded: Recorded[Event], db: Any) -> None:
        """Handle an event, with a cursor."""
        route = self._handlers.routes()[recorded.entity_type, type(recorded.event)]
        call(route.handler, recorded, 1, db)


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a read model. name: where its position is. suffix: of its tables. applied: told
    how many messages were."""

    name: str
    suffix: str = ""
    applied: Callable[[int], None] = lambda count: None


class _Claims:
    """Positions that a consumer begins at are those of the read model."""

    def __init__(self, driver: BlockingDriver, member: Member) -> None:
        self._driver = driver
        self._member = member

    def claim(self, places: Sequence[str]) -> Mapping[str, int]:
        sql = self._driver.dialect.queries
        return self._driver.run(projections.claim(sql, self._member, places))


def _set_up(sql: Mapping[str, str], name: str, act: Callable[[Any], None]) -> Plan[None]:
    """One member at a time: two that create one table at once disturb each other."""
    own = (name, OWN)
    (found,) = yield [Statement(sql["projection"], own)]
    if not found.rows:
        yield [Statement(sql["projection_begin"], (*own, 0))]
    yield [Statement(sql["begin"]), Statement(sql["projection_locked"], own)]
    yield acting(act)
    yield [Statement(sql["commit"])]


def _no_steps(taken: object) -> Any:
    raise NotImplementedError
