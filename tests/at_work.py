"""Subscriptions at work beside a test."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager

from retold import EventStore
from retold.store.running import Runnable


@contextmanager
def at_work(store: EventStore, *subscriptions: Runnable) -> Generator[None]:
    """`run` in a thread for the time of the block, in which it must not fail."""
    stop, failures = threading.Event(), list[BaseException]()

    def run() -> None:
        try:
            store.run(*subscriptions, stop=stop)
        except BaseException as error:
            failures.append(error)

    worker = threading.Thread(target=run)
    worker.start()
    try:
        yield
    finally:
        stop.set()
        worker.join()
    assert failures == []
