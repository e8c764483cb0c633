"""Drivers over connections: who holds one, for how long, and what happens to a broken one.

Connections that nobody uses lie on a free list. There are as many as plans ran at once, none is
shared, a forked child opens its own, and after a broken one all idle ones are dropped, since what
broke one (a restarted server, a failover) broke them too.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

from retold.errors import ConnectionLost, OutcomeUnknown
from retold.store.dialects import Dialect
from retold.store.doorbell import Doorbell, Heard, HeardAsync
from retold.store.driver import AsyncConnection, Batch, Connection, Plan, Result, adrive, drive

T = TypeVar("T")
C = TypeVar("C", bound="_Closable")

_abandoned: list[object] = []
"""Connections a forked child inherited: using or even closing them would disturb the parent."""


class _Closable(Protocol):
    def abandon(self) -> None:
        """Drop the connection without a word to the server or the file."""
        ...


class OwnConnection(Protocol):
    """A connection of the store's own, as a driver module provides it."""

    def execute(self, batch: Batch) -> Sequence[Result]: ...
    def begin(self) -> None: ...
    def commit(self) -> None: ...
    def reset(self) -> bool:
        """Roll back what is open. False when the connection is of no further use."""
        ...

    def close(self) -> None: ...
    def abandon(self) -> None: ...


class Notices(Protocol):
    """A connection of its own on which the database notifies of something."""

    def wait(self) -> bool:
        """Wait for the next notice; False once closed. Raises ConnectionLost."""
        ...

    def close(self) -> None:
        """Make `wait` return; it may be called from any thread."""
        ...


class FreeList(Generic[C]):
    """Idle connections of one process."""

    def __init__(self) -> None:
        self._idle: deque[C] = deque()
        self._pid = os.getpid()

    def take(self) -> C | None:
        if self._pid != os.getpid():
            _abandoned.append(self._idle)
            self._idle, self._pid = deque(), os.getpid()
        try:
            return self._idle.pop()
        except IndexError:
            return None

    def give(self, connection: C) -> None:
        if self._pid == os.getpid():
            self._idle.append(connection)
        else:
            _abandoned.append(connection)

    def drain(self) -> Iterator[C]:
        while (connection := self.take()) is not None:
            yield connection


class BlockingDriver:
    """The Driver port over connections that block."""

    def __init__(
        self,
        dialect: Dialect,
        connect: Callable[[], OwnConnection],
        doorbell: Doorbell | None = None,
        notices: Callable[[str], Notices | None] | None = None,
    ) -> None:
        self._dialect = dialect
        self._connect = connect
        self._doorbell = doorbell or Doorbell()
        self._notices = notices
        self._free: FreeList[OwnConnection] = FreeList()

    @property
    def dialect(self) -> Dialect:
        return self._dialect

    def listen(self, event: threading.Event) -> None:
        """Set `event` at every commit of this process, for as long as the event lives.

        Not at those on connections of the user's own.
        """
        self._doorbell.listen(event)

    def ring(self) -> None:
        """Set the events of all who listen."""
        self._doorbell.ring()

    def notices(self, channel: str) -> Notices | None:
        """What the database itself notifies of, where it does."""
        return None if self._notices is None else self._notices(channel)

    def open(self) -> None:
        self._free.give(self._free.take() or self._connect())

    def run(self, plan: Plan[T]) -> T:
        connection = self._free.take() or self._connect()
        doorbell = self._doorbell
        try:
            if doorbell.rung_by_connections or not doorbell.listeners:
                result = drive(connection.execute, plan)
            else:
                heard = Heard(connection.execute, self._dialect.appending)
                result = drive(heard.execute, plan)
                if heard.appended:
                    doorbell.ring()
        except BaseException as error:
            self._after(error, connection)
            raise
        self._free.give(connection)
        return result

    @contextmanager
    def connection(self) -> Generator[OwnConnection]:
        """A connection of its own for the time of a block; what it left open is rolled back."""
        connection = self._connect()
        try:
            yield connection
        finally:
            connection.close()

    @contextmanager
    def transaction(self) -> Generator[Connection]:
        connection = self._free.take() or self._connect()
        try:
            try:
                connection.begin()
            except ConnectionLost as error:  # an idle one had died: nothing was begun
                self._after(error, connection)
                connection = self._connect()
                connection.begin()
            yield connection
            try:
                connection.commit()
            except ConnectionLost as error:
                raise OutcomeUnknown(error.reason) from error
        except BaseException as error:
            self._after(error, connection)
            raise
        self._free.give(connection)
        if not self._doorbell.rung_by_connections:
            self._doorbell.ring()

    def _after(self, error: BaseException, connection: OwnConnection) -> None:
        if not isinstance(error, (ConnectionLost, OutcomeUnknown)) and connection.reset():
            self._free.give(connection)
            return
        connection.abandon()
        if isinstance(error, (ConnectionLost, OutcomeUnknown)):
            for idle in self._free.drain():
                idle.abandon()

    def close(self) -> None:
        for connection in self._free.drain():
            connection.close()


class ThreadedDriver:
    """The AsyncDriver port over a blocking driver, on a bounded pool of threads.

    A plan runs in one hop to one thread. A cancelled caller stops waiting, but the plan goes on to
    its end: a connection is never left inside a transaction.
    """

    def __init__(self, blocking: BlockingDriver, threads: int) -> None:
        self.blocking = blocking
        self._threads = threads
        self._pool: ThreadPoolExecutor | None = None
        self._pid = os.getpid()

    @property
    def dialect(self) -> Dialect:
        return self.blocking.dialect

    async def _call(self, function: Callable[[], T]) -> T:
        if self._pool is None or self._pid != os.getpid():
            self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="retold")
            self._pid = os.getpid()
        return await _in_thread(self._pool, function)

    async def open(self) -> None:
        await self._call(self.blocking.open)

    async def run(self, plan: Plan[T]) -> T:
        return await self._call(partial(self.blocking.run, plan))

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[AsyncConnection]:
        # A thread of its own: plans that wait for this transaction's locks may fill the pool.
        thread = ThreadPoolExecutor(1, thread_name_prefix="retold transaction")
        block = self.blocking.transaction()
        try:
            yield _Threaded(thread, await _in_thread(thread, block.__enter__))
        except BaseException as error:
            # Queued behind what the thread is doing, so that also a task cancelled while the
            # transaction began leaves none open.
            await asyncio.shield(_in_thread(thread, partial(_leave, block, error)))
            raise
        else:
            await _in_thread(thread, partial(block.__exit__, None, None, None))
        finally:
            thread.shutdown(wait=False)

    async def close(self) -> None:
        await self._call(self.blocking.close)
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=False)


async def _in_thread(pool: ThreadPoolExecutor, function: Callable[[], T]) -> T:
    run = partial(contextvars.copy_context().run, function)
    future = asyncio.get_running_loop().run_in_executor(pool, run)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        future.add_done_callback(_read_outcome)
        raise


def _leave(block: Any, error: BaseException) -> None:
    try:
        block.__exit__(type(error), error, error.__traceback__)
    except BaseException as raised:
        if raised is not error:
            raise


def _read_outcome(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()  # nobody waits for it any more


class _Threaded:
    def __init__(self, thread: ThreadPoolExecutor, connection: Connection) -> None:
        self._thread = thread
        self._connection = connection

    async def execute(self, batch: Batch) -> Sequence[Result]:
        return await _in_thread(self._thread, partial(self._connection.execute, batch))


class OwnAsyncConnection(Protocol):
    """A connection of the store's own, awaited."""

    async def execute(self, batch: Batch) -> Sequence[Result]: ...
    async def begin(self) -> None: ...
    async def commit(self) -> None: ...
    async def reset(self) -> bool: ...
    async def close(self) -> None: ...
    def abandon(self) -> None: ...


class AwaitingDriver:
    """The AsyncDriver port over a client library that is itself async.

    At most `limit` plans run at once; the others wait for a connection.
    """

    def __init__(
        self,
        dialect: Dialect,
        connect: Callable[[], Any],
        limit: int,
        doorbell: Doorbell | None = None,
    ) -> None:
        self._dialect = dialect
        self._connect = connect
        self._limit = limit
        self._doorbell = doorbell or Doorbell()
        self._free: FreeList[OwnAsyncConnection] = FreeList()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._turns = asyncio.Semaphore(limit)

    @property
    def dialect(self) -> Dialect:
        return self._dialect

    async def _take(self) -> OwnAsyncConnection:
        loop = asyncio.get_running_loop()
        if self._loop is not loop:  # connections belong to the loop they were opened on
            for connection in self._free.drain():
                connection.abandon()
            self._loop, self._turns = loop, asyncio.Semaphore(self._limit)
        await self._turns.acquire()
        try:
            return self._free.take() or await self._connect()
        except BaseException:
            self._turns.release()
            raise

    async def open(self) -> None:
        connection = await self._take()
        self._free.give(connection)
        self._turns.release()

    async def run(self, plan: Plan[T]) -> T:
        connection = await self._take()
        try:
            if not self._doorbell.listeners:
                result = await adrive(connection.execute, plan)
            else:
                heard = HeardAsync(connection.execute, self._dialect.appending)
                result = await adrive(heard.execute, plan)
                if heard.appended:
                    self._doorbell.ring()
        except BaseException as error:
            await self._after(error, connection)
            raise
        else:
            self._free.give(connection)
        finally:
            self._turns.release()
        return result

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[AsyncConnection]:
        connection = await self._take()
        try:
            try:
                await connection.begin()
            except ConnectionLost as error:
                await self._after(error, connection)
                connection = await self._connect()
                await connection.begin()
            yield connection
            try:
                await connection.commit()
            except ConnectionLost as error:
                raise OutcomeUnknown(error.reason) from error
        except BaseException as error:
            await self._after(error, connection)
            raise
        else:
            self._free.give(connection)
            self._doorbell.ring()
        finally:
            self._turns.release()

    async def _after(self, error: BaseException, connection: OwnAsyncConnection) -> None:
        lost = isinstance(error, (ConnectionLost, OutcomeUnknown))
        if not lost and not isinstance(error, asyncio.CancelledError) and await connection.reset():
            self._free.give(connection)
            return
        connection.abandon()
        if lost:
            for idle in self._free.drain():
                idle.abandon()

    async def close(self) -> None:
        for connection in self._free.drain():
            await connection.close()
