"""AsyncEventStore behind the blocking API, so that one suite is written once and proves both.

A loop runs in a thread of its own; every verb is sent there and waited for.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from datetime import datetime
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar, cast
from uuid import UUID

from retold import (
    Aggregate,
    AsyncEventStore,
    AsyncRepository,
    AsyncTransaction,
    Changed,
    Entity,
    Event,
    EventStore,
    NotFound,
    Recorded,
    Transaction,
)

A = TypeVar("A", bound=Aggregate)
R = TypeVar("R")
T = TypeVar("T")
P = ParamSpec("P")


class Loop:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result()

    def close(self) -> None:
        self.call(self.loop.shutdown_default_executor())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


class BlockingRepository(Generic[A]):
    def __init__(self, loop: Loop, repository: AsyncRepository[A]) -> None:
        self._loop = loop
        self._async = repository

    def with_id(self, id: str | UUID, /) -> Self:
        return type(self)(self._loop, self._async.with_id(id))

    def once(self, key: str, /) -> Self:
        return type(self)(self._loop, self._async.once(key))

    def expecting(self, version: str, /) -> Self:
        return type(self)(self._loop, self._async.expecting(version))

    def create(
        self, command: Callable[Concatenate[A, P], R], /, *args: P.args, **kwargs: P.kwargs
    ) -> Changed[A, R]:
        return self._loop.call(self._async.create(command, *args, **kwargs))

    def update(
        self,
        id: str | UUID,
        command: Callable[Concatenate[A, P], R],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Changed[A, R]:
        return self._loop.call(self._async.update(id, command, *args, **kwargs))

    def create_or_update(
        self,
        id: str | UUID,
        command: Callable[Concatenate[A, P], R],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Changed[A, R]:
        return self._loop.call(self._async.create_or_update(id, command, *args, **kwargs))

    def find(
        self, id: str | UUID, /, *, at: str | datetime | None = None, default: Any = NotFound
    ) -> Any:
        return self._loop.call(self._async.find(id, at=at, default=default))

    def find_many(self, ids: Iterable[str | UUID], /) -> dict[str, Entity[A]]:
        return self._loop.call(self._async.find_many(ids))

    def exists(self, id: str | UUID, /) -> bool:
        return self._loop.call(self._async.exists(id))

    def history(self, id: str | UUID, /) -> Iterator[Recorded[Event]]:
        pages = self._async.history(id)

        async def following() -> Recorded[Event] | None:
            return await anext(pages, None)  # pyright: ignore[reportArgumentType]

        while (recorded := self._loop.call(following())) is not None:
            yield recorded

    def entities(self) -> Iterator[str]:
        pages = self._async.entities()

        async def following() -> str | None:
            return await anext(pages, None)  # pyright: ignore[reportArgumentType]

        while (id := self._loop.call(following())) is not None:
            yield id


class BlockingTransaction:
    def __init__(self, loop: Loop, transaction: AsyncTransaction) -> None:
        self._loop = loop
        self._async = transaction

    def repository(self, aggregate_class: type[A], /) -> BlockingRepository[A]:
        return BlockingRepository(self._loop, self._async.repository(aggregate_class))


class BlockingStore:
    def __init__(self, url: str, **options: Any) -> None:
        self._loop = Loop()
        self._async = AsyncEventStore(url, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._async, name)

    def repository(self, aggregate_class: type[A], /) -> BlockingRepository[A]:
        return BlockingRepository(self._loop, self._async.repository(aggregate_class))

    def stream(
        self, aggregate_class: type[Aggregate], /, *, since: datetime | str | None = None
    ) -> Iterator[Recorded[Event]]:
        return self._told(self._async.stream(aggregate_class, since=since))

    def _told(self, pages: AsyncIterator[T]) -> Iterator[T]:
        async def following() -> T | None:
            return await anext(pages, None)  # pyright: ignore[reportArgumentType]

        while (item := self._loop.call(following())) is not None:
            yield item

    @contextmanager
    def _block(self, block: AbstractAsyncContextManager[T]) -> Generator[T]:
        entered = self._loop.call(block.__aenter__())

        async def leave(error: BaseException | None) -> bool | None:
            return await block.__aexit__(type(error) if error else None, error, None)

        try:
            yield entered
        except BaseException as error:
            if not self._loop.call(leave(error)):
                raise
        else:
            self._loop.call(leave(None))

    @contextmanager
    def transaction(self) -> Generator[BlockingTransaction]:
        with self._block(self._async.transaction()) as transaction:
            yield BlockingTransaction(self._loop, transaction)

    def transact(self, work: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
        async def in_thread(transaction: AsyncTransaction) -> T:
            blocking = BlockingTransaction(self._loop, transaction)
            return await asyncio.to_thread(work, blocking, *args, **kwargs)

        return self._loop.call(self._async.transact(in_thread))

    def migrate(self) -> list[str]:
        return self._loop.call(self._async.migrate())

    def pending_migrations(self) -> list[str]:
        return self._loop.call(self._async.pending_migrations())

    def __enter__(self) -> Self:
        self._loop.call(self._async.__aenter__())
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        if not self._loop.loop.is_closed():
            self._loop.call(self._async.close())
            self._loop.close()


def open_store(url: str, flavour: str = "sync", **options: Any) -> EventStore:
    """A store of a flavour: the blocking one, the async one, or the blocking one on mysqlclient."""
    if flavour == "async":
        return cast("EventStore", BlockingStore(url, **options))
    return EventStore(with_client(url, flavour), **options)


def with_client(url: str, flavour: str) -> str:
    if flavour == "mysqlclient":
        return url.replace("mysql://", "mysql+mysqlclient://", 1)
    return url


__all__ = ["BlockingStore", "Loop", "Transaction", "open_store", "with_client"]
