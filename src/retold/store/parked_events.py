"""Looking at parked events, and asking for another try or for none."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from typing import Any

from retold.store.driver import Plan
from retold.store.parked import (
    RETRY,
    SKIP,
    ParkedEvent,
    mark_event,
    mark_failed,
    parked_page,
)

_START = ("", "", "", "")


def _place(event: ParkedEvent) -> tuple[str, str, str, str]:
    return event.subscription, event.entity_type, event.entity_id, event.event_id


class ParkedEvents:
    """The parked events of a store, of all its subscriptions or of one.

    `retry` and `skip` leave a mark. The member of the subscription that owns the entity's partition
    does it within about a second, or once there is one.
    """

    def __init__(
        self, run: Callable[[Plan[Any]], Any], sql: Mapping[str, str], subscription: str | None
    ) -> None:
        self._run = run
        self._sql = sql
        self._subscription = subscription

    def __iter__(self) -> Iterator[ParkedEvent]:
        """Queue by queue, each in order, its failed event first."""
        behind = _START
        while page := self._run(parked_page(self._sql, self._subscription, behind)):
            yield from page
            behind = _place(page[-1])

    def retry(self, subscription: str, event_id: str | None = None) -> int:
        """Ask for another try of a failed event, or of all that failed; how many were asked for.

        Where it succeeds, what waits behind it follows. Raises NotParked.
        """
        if event_id is None:
            asked: int = self._run(mark_failed(self._sql, subscription))
            return asked
        self._run(mark_event(self._sql, subscription, event_id, RETRY))
        return 1

    def skip(self, subscription: str, event_id: str) -> None:
        """Ask that an event is never handled, and that what waits behind it follows.

        Raises NotParked.
        """
        self._run(mark_event(self._sql, subscription, event_id, SKIP))


class AsyncParkedEvents:
    """The same, awaited."""

    def __init__(
        self,
        run: Callable[[Plan[Any]], Awaitable[Any]],
        sql: Mapping[str, str],
        subscription: str | None,
    ) -> None:
        self._run = run
        self._sql = sql
        self._subscription = subscription

    async def __aiter__(self) -> AsyncIterator[ParkedEvent]:
        """As ParkedEvents."""
        behind = _START
        while page := await self._run(parked_page(self._sql, self._subscription, behind)):
            for event in page:
                yield event
            behind = _place(page[-1])

    async def retry(self, subscription: str, event_id: str | None = None) -> int:
        """As ParkedEvents.retry."""
        if event_id is None:
            asked: int = await self._run(mark_failed(self._sql, subscription))
            return asked
        await self._run(mark_event(self._sql, subscription, event_id, RETRY))
        return 1

    async def skip(self, subscription: str, event_id: str) -> None:
        """As ParkedEvents.skip."""
        await self._run(mark_event(self._sql, subscription, event_id, SKIP))
