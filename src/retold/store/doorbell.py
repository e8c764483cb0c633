"""Hearing of the commits of one's own process, where the database does not tell."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import ClassVar

from retold.store.driver import Batch, Result


class Doorbell:
    """Rung at the commits of this process on one database; each listener has its own event."""

    rung_by_connections: ClassVar[bool] = False
    """Every commit of a connection rings, so that a driver need not look for what a plan did."""

    def __init__(self) -> None:
        self.listeners: tuple[weakref.ref[threading.Event], ...] = ()
        """Some may be gone; a tuple, because most rings find nobody there."""
        self._lock = threading.Lock()

    def listen(self, event: threading.Event) -> None:
        """Set `event` at every ring, for as long as the event lives."""
        with self._lock:
            living = [listener for listener in self.listeners if listener() is not None]
            self.listeners = (*living, weakref.ref(event))

    def ring(self) -> None:
        for listener in self.listeners:
            if (event := listener()) is not None:
                event.set()


_doorbells: dict[tuple[int, str], Doorbell] = {}


def doorbell(database: str) -> Doorbell:
    """The doorbell of a database in this process."""
    return _doorbells.setdefault((os.getpid(), database), Doorbell())


class Heard:
    """Notices whether a plan writes events."""

    def __init__(
        self, execute: Callable[[Batch], Sequence[Result]], appending: Collection[str]
    ) -> None:
        self._execute = execute
        self._appending = appending
        self.appended = False

    def execute(self, batch: Batch) -> Sequence[Result]:
        results = self._execute(batch)
        self.appended = self.appended or any(sql in self._appending for sql, _ in batch)
        return results


class HeardAsync:
    """The same, awaited."""

    def __init__(
        self, execute: Callable[[Batch], Awaitable[Sequence[Result]]], appending: Collection[str]
    ) -> None:
        self._execute = execute
        self._appending = appending
        self.appended = False

    async def execute(self, batch: Batch) -> Sequence[Result]:
        results = await self._execute(batch)
        self.appended = self.appended or any(sql in self._appending for sql, _ in batch)
        return results
