"""Who works the lanes: the subscription's own thread, several threads, or an event loop."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from retold.errors import RetoldError, UsageError
from retold.metadata import CausedBy
from retold.subscriptions.delivery import AsyncDelivery, Delivery
from retold.subscriptions.handling import Call, Run, Steps
from retold.subscriptions.lanes import Lanes
from retold.subscriptions.progress import Taken

if TYPE_CHECKING:
    from retold.store.event_store import AsyncEventStore, EventStore

REST_S = 0.1
"""How long messages are handled without a look at anything else."""
THREADS = 32
"""The most threads for plain handlers of one subscription, however many lanes it has."""


class Work:
    """What all workers share: how a message is handled, and what is told of it.

    stop: set by those who want the subscription to end. ending: set once nothing may be begun.
    failure: the first error that stops the subscription. told: called when a lane has nothing to
    do, and when `failure` is there. rested: called now and then between two messages that are
    handled in the thread that puts them.
    """

    def __init__(
        self,
        subscription: str,
        steps: Callable[[Taken], Steps],
        store: EventStore,
        stop: threading.Event,
    ) -> None:
        self.subscription = subscription
        self.steps = steps
        self.store = store
        self.stop = stop
        self.ending = threading.Event()
        self.failure: BaseException | None = None
        self.told: Callable[[], None] = lambda: None
        self.paused: Callable[[], bool] = lambda: False
        """Whether nothing may be begun for now."""
        self.rested: Callable[[], None] = lambda: None

    @property
    def stopped(self) -> bool:
        return self.stop.is_set() or self.ending.is_set()

    def fail(self, error: BaseException) -> None:
        if self.failure is None:
            self.failure = error
        self.ending.set()

    def handle(self, taken: Taken) -> bool:
        """Handle one message in this thread; False when it was stopped before it was."""
        steps = self.steps(taken)
        result: object = None
        while True:
            try:
                step = steps.send(result)
            except StopIteration as end:
                taken.done = end.value
                return taken.done
            if isinstance(step, Call):
                result = self.call(step)
            elif isinstance(step, Run):
                result = self.run(step)
            else:
                result = self._pause(step.seconds)

    def run(self, step: Run) -> object:
        """Run a plan on the store; its result, or the error it raised."""
        try:
            return self.store.driver.run(step.plan)
        except RetoldError as error:
            return error

    def _pause(self, seconds: float) -> bool:
        while (seconds > 0 or self.paused()) and not self.stopped:
            self.stop.wait(min(max(seconds, 0.05), 0.2))  # another lane may fail meanwhile
            seconds -= 0.2
        return self.stopped

    def call(self, step: Call) -> Exception | None:
        """Call a plain handler; the error it raised."""
        handler, recorded, attempt = step
        try:
            with CausedBy(recorded.id, recorded.metadata):
                result = handler(Delivery(recorded, self.subscription, attempt, self.store))
                if result is not None and inspect.isawaitable(result):
                    if inspect.iscoroutine(result):
                        result.close()
                    raise UsageError(
                        "a plain function returned an awaitable, which nobody would await: make "
                        "the handler itself async def"
                    )
        except Exception as error:
            return error
        return None


class Workers(Protocol):
    """Works the messages that it is given, an entity's in their order.

    While the work is paused nothing is begun; `put` begins again what was put before.
    """

    def put(self, messages: Sequence[Taken]) -> None: ...

    @property
    def idle(self) -> bool:
        """Whether nothing is being worked."""
        ...

    def end(self, timeout: float) -> bool:
        """Begin nothing more, and wait for what was begun; whether that ended in time."""
        ...


class Inline:
    """In the thread that puts them, one after the other, in the order of the log."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._queue: deque[Taken] = deque()
        self._rest_at = 0.0

    @property
    def idle(self) -> bool:
        return not self._queue

    def put(self, messages: Sequence[Taken]) -> None:
        work, queue = self._work, self._queue
        queue.extend(messages)
        while queue and not work.stopped and not work.paused():
            taken = queue.popleft()
            if not taken.hold.alive:  # it was lost at a rest
                continue
            if not work.handle(taken):
                return
            if (now := time.monotonic()) >= self._rest_at:
                self._rest_at = now + REST_S
                work.rested()

    def end(self, timeout: float) -> bool:
        return True


class Threads:
    """On a pool of threads."""

    def __init__(self, work: Work, lanes: int) -> None:
        self._work = work
        self._lanes = Lanes(lanes)
        self._pool = ThreadPoolExecutor(
            min(lanes, THREADS), thread_name_prefix=f"retold {work.subscription}"
        )

    @property
    def idle(self) -> bool:
        return self._lanes.idle

    def put(self, messages: Sequence[Taken]) -> None:
        self._lanes.pause(self._work.paused())
        for lane in self._lanes.put(messages):
            self._pool.submit(self._run, lane)

    def _run(self, lane: int) -> None:
        lanes, work = self._lanes, self._work
        try:
            while (taken := lanes.next(lane)) is not None:
                if not work.stopped:
                    work.handle(taken)
        except BaseException as error:
            work.fail(error)
            lanes.close()
            lanes.next(lane)
        work.told()

    def end(self, timeout: float) -> bool:
        self._work.ending.set()
        self._lanes.close()
        ended = self._lanes.wait_idle(timeout)
        self._pool.shutdown(wait=ended)
        return ended


class OnLoop:
    """As tasks on an event loop; plain handlers in threads."""

    def __init__(
        self, work: Work, lanes: int, loop: asyncio.AbstractEventLoop, store: AsyncEventStore
    ) -> None:
        self._work = work
        self._lanes = Lanes(lanes)
        self._loop = loop
        self._store = store
        self._ended = asyncio.Event()
        self._tasks: set[Future[None]] = set()
        self._pool = ThreadPoolExecutor(
            min(lanes, THREADS), thread_name_prefix=f"retold {work.subscription}"
        )

    @property
    def idle(self) -> bool:
        return self._lanes.idle

    def put(self, messages: Sequence[Taken]) -> None:
        self._lanes.pause(self._work.paused())
        for lane in self._lanes.put(messages):
            task = asyncio.run_coroutine_threadsafe(self._run(lane), self._loop)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _run(self, lane: int) -> None:
        lanes, work = self._lanes, self._work
        try:
            while (taken := lanes.next(lane)) is not None:
                if not work.stopped:
                    await self._handle(taken)
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError):  # the loop is ending
                work.ending.set()
            else:
                work.fail(error)
            lanes.close()
            lanes.next(lane)
        work.told()

    async def _handle(self, taken: Taken) -> None:
        steps = self._work.steps(taken)
        result: object = None
        while True:
            try:
                step = steps.send(result)
            except StopIteration as end:
                taken.done = end.value
                return
            if isinstance(step, Call):
                result = await self._call(step)
            elif isinstance(step, Run):
                result = await self._loop.run_in_executor(self._pool, self._work.run, step)
            else:
                result = await self._pause(step.seconds)

    async def _call(self, step: Call) -> Exception | None:
        handler, recorded, attempt = step
        if not inspect.iscoroutinefunction(handler):
            context = contextvars.copy_context()
            return await self._loop.run_in_executor(
                self._pool, lambda: context.run(self._work.call, step)
            )
        try:
            with CausedBy(recorded.id, recorded.metadata):
                await handler(
                    AsyncDelivery(recorded, self._work.subscription, attempt, self._store)
                )
        except asyncio.CancelledError:
            return CancelledError(f"{getattr(handler, '__qualname__', handler)} was cancelled")
        except Exception as error:
            return error
        return None

    async def _pause(self, seconds: float) -> bool:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._ended.wait(), seconds)
        while self._work.paused() and not self._work.stopped:
            await asyncio.sleep(0.2)
        return self._work.stopped

    def end(self, timeout: float) -> bool:
        self._work.ending.set()
        self._lanes.close()
        self._loop.call_soon_threadsafe(self._ended.set)
        ended = self._lanes.wait_idle(timeout)
        self._pool.shutdown(wait=ended)
        return ended
