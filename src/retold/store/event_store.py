"""The event store: repositories, transactions and subscriptions on one database."""

from __future__ import annotations

import asyncio
import os
import random
import threading
import time
from collections import Counter
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime, timedelta
from typing import Any, Concatenate, ParamSpec, Self, TypedDict, TypeVar, Unpack

from retold.aggregates import Aggregate
from retold.codecs import Codec
from retold.drivers import join, join_async, open_async_driver, open_driver
from retold.entity import Entity
from retold.errors import (
    RetoldError,
    TransactionRolledBack,
    UsageError,
    VersionConflict,
)
from retold.events import Event
from retold.ids import EventIds
from retold.recorded import Recorded
from retold.store.connections import BlockingDriver
from retold.store.inline import InlineProjection
from retold.store.migrations import (
    collation,
    index_for_polling,
    migrate,
    pending,
    script,
    step_names,
)
from retold.store.numbering import install
from retold.store.options import KafkaAddress, Settings
from retold.store.parked_events import AsyncParkedEvents, ParkedEvents
from retold.store.performing import performing, performing_async
from retold.store.plans import forget_handled
from retold.store.reading import Place, place_since
from retold.store.repository import AsyncRepository, Repository
from retold.store.running import Following, Runnable, run_all
from retold.store.subscribed import AsyncSubscriptions, Subscriptions
from retold.store.transactions import AsyncTransaction, Kept, Transaction
from retold.store.url import parse_url

A = TypeVar("A", bound=Aggregate)
T = TypeVar("T")
P = ParamSpec("P")

MAX_EVENT_BYTES = 900_000
"""Below Kafka's default message limit of 1 MB, with room for the envelope."""


class StoreOptions(TypedDict, total=False):
    """The keyword arguments both kinds of store take."""

    codec: Codec
    max_event_bytes: int
    retries: int
    ids: EventIds
    kafka: str
    kafka_settings: Mapping[str, str]
    projections: Sequence[InlineProjection]


class _Store:
    """What both kinds of store share."""

    def __init__(self, url: str, **options: Unpack[StoreOptions]) -> None:
        """
        url: sqlite:///path, postgresql://… or mysql://…; see docs/urls.md for its options.
        codec: teaches the store types of one's own.
        max_event_bytes: the largest event accepted, in bytes of JSON.
        retries: how often an update is tried again after losing to another.
        ids: where event ids come from; for tests.
        kafka: "host:port[,host:port…]". A relay publishes the events there, and subscriptions of
        this store consume them from there instead of from the database.
        kafka_settings: more for the Kafka client, in librdkafka's names, such as sasl.password.
        projections: inline ones; their handlers write in the transaction of each append.

        Raises InvalidURL and MissingExtra. Does no I/O.
        """
        self._url = parse_url(url)
        kafka, kafka_settings = options.get("kafka"), options.get("kafka_settings", {})
        if kafka_settings and not kafka:
            raise UsageError("kafka_settings say how to reach a Kafka: name it by kafka=…")
        self._kafka = KafkaAddress(kafka, dict(kafka_settings)) if kafka else None
        self._settings = Settings(
            codec=options.get("codec") or Codec(),
            ids=options.get("ids") or EventIds(),
            max_event_bytes=options.get("max_event_bytes", MAX_EVENT_BYTES),
            retries=options.get("retries", 50),
            projections=tuple(options.get("projections", ())),
        )
        for projection in self._settings.projections:
            if not projection.inline:
                raise UsageError(
                    f"projection {projection.name!r} is not inline: run it, by store.run(…)"
                )

    @property
    def codec(self) -> Codec:
        return self._settings.codec

    @property
    def kafka(self) -> KafkaAddress | None:
        """The Kafka that subscriptions consume from."""
        return self._kafka

    @property
    def counts(self) -> Counter[str]:
        """What happened so far: conflicts, retries, duplicates, reconnects, snapshots,
        snapshot_hits, clock_skew."""
        return self._settings.counts

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._url}>"

    def _pauses(self) -> Generator[float]:
        """Waits between the tries of a transaction, in seconds."""
        for n in range(self._settings.retries):
            yield random.uniform(0, 0.001 * (1 << min(n + 1, 6)))


class EventStore(_Store):
    """An event store for blocking code: `EventStore("sqlite:///bank.db")`.

    Safe to share between threads and to use after a fork. Connections open at the first use;
    `with store:` opens at once and closes at the end.
    """

    def __init__(self, url: str, **options: Unpack[StoreOptions]) -> None:
        super().__init__(url, **options)
        self._options = options
        self._text_url = url
        self._driver = open_driver(self._url)
        self._kept = Kept(self._driver.dialect, self._settings, owned=True)
        self._joined = Kept(self._driver.dialect, self._settings, owned=False)
        self._perform = performing(self._driver.run)

    __init__.__doc__ = _Store.__init__.__doc__

    @property
    def driver(self) -> BlockingDriver:
        """The connection to the database, for what is built upon the store."""
        return self._driver

    def repository(self, aggregate_class: type[A], /) -> Repository[A]:
        """The repository of an aggregate class; cheap, and safe to keep at module level."""
        return Repository(self._kept.verbs(aggregate_class), self._perform)

    def stream(
        self, aggregate_class: type[Aggregate], /, *, since: datetime | str | None = None
    ) -> Iterator[Recorded[Event]]:
        """The recorded events of all entities of one type, in the order of event ids.

        since: an aware datetime, and events written earlier are left out; or an event id, and the
        stream begins behind it. Read page by page, so that memory stays flat; nothing is held open
        between pages.

        Each entity's events are in their own order. Between entities the order is that of ids,
        nearly that of time, and *not* that of commits: a transaction that commits late stores ids
        below those already read. So a stream is for going through what is there, not for following
        what comes; that is what subscriptions are for.

        It walks through the ids of the whole events table from `since` on, other types included.
        Raises InvalidValue for a datetime without time zone, UnknownEvent, UnreadableEvent.
        """
        verbs, place = self._kept.verbs(aggregate_class), place_since(since)

        def pages() -> Iterator[Recorded[Event]]:
            ahead: Place | None = place
            while ahead is not None:
                page, ahead = self._perform(verbs.stream(ahead))
                yield from page

        return pages()

    # --- transactions ----------------------------------------------------------------------------

    @contextmanager
    def transaction(self) -> Generator[Transaction]:
        """A transaction over several entities: all changes commit at the end of the block.

        Never retried. Raises TransactionRolledBack on a deadlock ("run it again"), and
        VersionConflict where an entity was changed meanwhile.
        """
        with self._driver.transaction() as connection:
            tx = Transaction(self._joined, connection, owned=True)
            try:
                yield tx
                tx._check_whole()
            finally:
                tx._close()

    def transact(
        self, work: Callable[Concatenate[Transaction, P], T], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run `work(tx, …)` in a transaction; the whole of it again after a conflict or deadlock.

        `work` may run several times, so it must change nothing but the store.
        """
        for pause in self._pauses():
            try:
                with self.transaction() as tx:
                    return work(tx, *args, **kwargs)
            except RetoldError as error:
                if not _again(error):
                    raise
            time.sleep(pause)
        with self.transaction() as tx:
            return work(tx, *args, **kwargs)

    def using(self, connection: object, /) -> Transaction:
        """Join a transaction of yours on a connection of sqlite3, psycopg, PyMySQL or mysqlclient.

        Nothing is committed, rolled back or retried here. After VersionConflict or EntityExists
        your transaction goes on as it was.
        """
        return Transaction(self._joined, join(connection, self._driver.dialect))

    # --- schema and upkeep -----------------------------------------------------------------------

    def migrate(self, *, polling: bool = False, subscriptions: bool = False) -> list[str]:
        """Create or update the tables; the names of the steps that were applied.

        polling: also make the index that a relay needs which polls the table.
        subscriptions: also make what subscriptions need on PostgreSQL, MySQL and MariaDB without
        a message broker; each append pays a little for it.

        Idempotent, and safe when two processes migrate at once. Raises SchemaForeign when a table
        of one of our names was made by something else.
        """
        with self._schema_driver() as driver:
            steps = driver.run(migrate(driver.dialect))
            if polling:
                steps += driver.run(index_for_polling(driver.dialect))
            if subscriptions:
                steps += driver.run(install(driver.dialect))
            return steps

    def pending_migrations(self) -> list[str]:
        """The names of the steps `migrate` would apply. Changes nothing."""
        if self._url.database_kind == "sqlite" and not os.path.exists(self._url.database):
            return step_names(self._driver.dialect)
        with self._schema_driver() as driver:
            return driver.run(pending(driver.dialect))

    def migration_script(self) -> str:
        """All statements that make the tables, for somebody who runs them by hand.

        Connects to MySQL and MariaDB only, whose names for a collation by bytes differ.
        """
        dialect = self._driver.dialect
        if dialect.name != "mysql":
            return script(dialect, "")
        with self._schema_driver() as driver:
            return script(dialect, driver.run(collation(dialect)))

    @contextmanager
    def _schema_driver(self) -> Generator[BlockingDriver]:
        """A driver that leaves even a new SQLite file as it is."""
        driver = open_driver(self._url, migrates_new_file=False)
        try:
            yield driver
        finally:
            driver.close()

    def prune_handled(self, older_than: timedelta = timedelta(days=30)) -> int:
        """Forget keys handled longer ago than this; returns how many.

        A delivery or an idempotency key repeated after that would be handled again.
        """
        return self._perform(forget_handled(self._driver.dialect, older_than))

    # --- subscriptions ---------------------------------------------------------------------------

    def run(self, *subscriptions: Runnable, stop: threading.Event | None = None) -> None:
        """Handle events until `stop` is set, or until Ctrl-C or SIGTERM in the main thread.

        Raises HandlerFailed when a handler keeps failing and its subscription is to stop then.
        """
        run_all(self, subscriptions, stop)

    def drain(self, *subscriptions: Runnable) -> int:
        """Handle what is there and return; the number of events handled.

        What the handlers themselves cause is handled too.
        """
        total = 0
        while True:
            handled = 0
            for subscription in subscriptions:
                handled += subscription.run_on(self, threading.Event(), drain=True)
            total += handled
            if not handled:
                return total

    def wait_for(
        self, projection: Following, changed: Entity[Any], /, timeout: float = 5.0
    ) -> None:
        """Wait until a projection with `track_versions=True` has come to a change, so that whoever
        made it finds it in the read model.

        changed: what a verb returned. Returns at once where the projection handles none of the
        entity's events. Raises NotCaughtUp after `timeout` seconds.
        """
        projection.wait_on(self, changed, timeout)

    def parked(self, subscription: str | None = None) -> ParkedEvents:
        """The events that subscriptions, or this one, gave up on."""
        return ParkedEvents(self._driver.run, self._driver.dialect.queries, subscription)

    def subscriptions(self) -> Subscriptions:
        """The subscriptions that have ever started on this database."""
        return Subscriptions(self._driver.run, self._driver.dialect)

    # --- life ------------------------------------------------------------------------------------

    def asynchronous(self) -> AsyncEventStore:
        """An async store on the same database, for handlers that are async."""
        return AsyncEventStore(self._text_url, **self._options)

    def __enter__(self) -> Self:
        self._driver.open()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close idle connections; the store opens new ones when it is used again."""
        self._driver.close()


class AsyncEventStore(_Store):
    """An event store for async code: the same verbs, awaited.

    On PostgreSQL through psycopg's async connections; on SQLite and MySQL on a bounded pool of
    threads. `concurrency` is the number of verbs that run at once, default 10.
    """

    def __init__(self, url: str, *, concurrency: int = 10, **options: Unpack[StoreOptions]) -> None:
        super().__init__(url, **options)
        self._options = options
        self._text_url = url
        threads = bool(self._settings.projections)  # their handlers are blocking
        self._driver = open_async_driver(self._url, concurrency, threads=threads)
        self._kept = Kept(self._driver.dialect, self._settings, owned=True)
        self._joined = Kept(self._driver.dialect, self._settings, owned=False)
        self._perform = performing_async(self._driver.run)

    def repository(self, aggregate_class: type[A], /) -> AsyncRepository[A]:
        """As EventStore.repository."""
        return AsyncRepository(self._kept.verbs(aggregate_class), self._perform)

    def stream(
        self, aggregate_class: type[Aggregate], /, *, since: datetime | str | None = None
    ) -> AsyncIterator[Recorded[Event]]:
        """As EventStore.stream."""
        verbs, place = self._kept.verbs(aggregate_class), place_since(since)

        async def pages() -> AsyncIterator[Recorded[Event]]:
            ahead: Place | None = place
            while ahead is not None:
                page, ahead = await self._perform(verbs.stream(ahead))
                for recorded in page:
                    yield recorded

        return pages()

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[AsyncTransaction]:
        """As EventStore.transaction."""
        async with self._driver.transaction() as connection:
            tx = AsyncTransaction(self._joined, connection, owned=True)
            try:
                yield tx
                tx._check_whole()
            finally:
                tx._close()

    async def transact(
        self,
        work: Callable[Concatenate[AsyncTransaction, P], Awaitable[T]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """As EventStore.transact; `work` is async."""
        for pause in self._pauses():
            try:
                async with self.transaction() as tx:
                    return await work(tx, *args, **kwargs)
            except RetoldError as error:
                if not _again(error):
                    raise
            await asyncio.sleep(pause)
        async with self.transaction() as tx:
            return await work(tx, *args, **kwargs)

    def using(self, connection: object, /) -> AsyncTransaction:
        """As EventStore.using, for psycopg's AsyncConnection."""
        return AsyncTransaction(self._joined, join_async(connection, self._driver.dialect))

    async def migrate(self, *, polling: bool = False, subscriptions: bool = False) -> list[str]:
        """As EventStore.migrate."""
        return await asyncio.to_thread(
            self.blocking().migrate, polling=polling, subscriptions=subscriptions
        )

    async def pending_migrations(self) -> list[str]:
        """As EventStore.pending_migrations."""
        return await asyncio.to_thread(self.blocking().pending_migrations)

    async def migration_script(self) -> str:
        """As EventStore.migration_script."""
        return await asyncio.to_thread(self.blocking().migration_script)

    async def prune_handled(self, older_than: timedelta = timedelta(days=30)) -> int:
        """As EventStore.prune_handled."""
        return await self._perform(forget_handled(self._driver.dialect, older_than))

    async def wait_for(
        self, projection: Following, changed: Entity[Any], /, timeout: float = 5.0
    ) -> None:
        """As EventStore.wait_for."""
        await projection.wait_on_async(self, changed, timeout)

    def parked(self, subscription: str | None = None) -> AsyncParkedEvents:
        """As EventStore.parked."""
        return AsyncParkedEvents(self._driver.run, self._driver.dialect.queries, subscription)

    def subscriptions(self) -> AsyncSubscriptions:
        """As EventStore.subscriptions."""
        return AsyncSubscriptions(self._driver.run, self._driver.dialect)

    def blocking(self) -> EventStore:
        """A blocking store on the same database, for handlers that are plain functions."""
        return EventStore(self._text_url, **self._options)

    async def run(self, *subscriptions: Runnable, stop: threading.Event | None = None) -> None:
        """Handle events until `stop` is set or the task is cancelled.

        Handlers may be plain functions, which run in threads, or async ones.
        """
        ended = stop or threading.Event()
        tasks = [asyncio.ensure_future(s.run_on_async(self, ended)) for s in subscriptions]
        try:
            await asyncio.gather(*tasks)
        finally:
            ended.set()
            await asyncio.gather(*tasks, return_exceptions=True)

    @asynccontextmanager
    async def running(self, *subscriptions: Runnable) -> AsyncGenerator[AsyncEventStore]:
        """Run subscriptions for the time of a block: a web framework's lifespan."""
        stop = threading.Event()
        task = asyncio.ensure_future(self.run(*subscriptions, stop=stop))
        try:
            yield self
        finally:
            stop.set()
            await task

    async def __aenter__(self) -> Self:
        await self._driver.open()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def close(self) -> None:
        """As EventStore.close."""
        await self._driver.close()


def _again(error: RetoldError) -> bool:
    """Whether running the whole transaction again can help."""
    return isinstance(error, (TransactionRolledBack, VersionConflict))
