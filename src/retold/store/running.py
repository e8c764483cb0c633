"""Running subscriptions in threads of a blocking program, until they are told to stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from retold.errors import UsageError

if TYPE_CHECKING:
    from retold.entity import Entity
    from retold.store.event_store import AsyncEventStore, EventStore


class Runnable(Protocol):
    """What a store can run: a subscription."""

    @property
    def name(self) -> str: ...
    def run_on(self, store: EventStore, stop: threading.Event, *, drain: bool) -> int:
        """Handle events until stopped, or with `drain` until there are none; returns how many."""
        ...

    async def run_on_async(self, store: AsyncEventStore, stop: threading.Event) -> None: ...


class Following(Protocol):
    """What a store can wait for: a projection."""

    def wait_on(self, store: EventStore, changed: Entity[Any], timeout: float) -> None: ...
    async def wait_on_async(
        self, store: AsyncEventStore, changed: Entity[Any], timeout: float
    ) -> None: ...


def run_all(
    store: EventStore, subscriptions: Sequence[Runnable], stop: threading.Event | None
) -> None:
    """Run each subscription in a thread of its own until one fails or all are stopped."""
    if not subscriptions:
        raise UsageError("run(…) needs at least one subscription")
    ended = stop or threading.Event()
    failures: list[BaseException] = []

    def terminate(signum: int, frame: object) -> None:
        ended.set()

    def work(subscription: Runnable) -> None:
        try:
            subscription.run_on(store, ended, drain=False)
        except BaseException as error:
            failures.append(error)
            ended.set()

    threads = [
        threading.Thread(target=work, args=(s,), name=f"retold {s.name}", daemon=True)
        for s in subscriptions
    ]
    previous: dict[signal.Signals, Any] = {}
    try:
        if threading.current_thread() is threading.main_thread():
            # Ctrl-C too: a KeyboardInterrupt in join makes Python take the thread for ended.
            for signum in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(signum) not in (signal.SIG_IGN, None):
                    previous[signum] = signal.signal(signum, terminate)
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                thread.join(0.2)
    finally:
        ended.set()
        for signum, handler in previous.items():
            signal.signal(signum, handler)
    if failures:
        raise failures[0]
