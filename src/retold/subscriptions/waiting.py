"""Reading one's own write: waiting until a projection has come to a change."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING, Any

from retold.aggregates import Aggregate
from retold.entity import Entity
from retold.errors import NotCaughtUp, UsageError
from retold.store.projections import last_wanted, saw

if TYPE_CHECKING:
    from retold.store.event_store import AsyncEventStore, EventStore
    from retold.subscriptions.projection import Projection

_FIRST_S, _LONGEST_S = 0.002, 0.05


def wait_for(
    projection: Projection, store: EventStore, changed: Entity[Any], timeout: float
) -> None:
    """See EventStore.wait_for."""
    kind, id = _entity(projection, changed)
    types = projection.types_of(kind)
    wanted = store.driver.run(last_wanted(store.driver.dialect, kind, id, changed.version, types))
    driver = projection.driver(store)
    sql = driver.dialect.queries
    bell = threading.Event()
    driver.listen(bell)
    deadline, pause = time.monotonic() + timeout, _FIRST_S
    while wanted:
        bell.clear()
        if driver.run(saw(sql, projection.name, kind, id)) >= wanted:
            return
        left = deadline - time.monotonic()
        if left <= 0:
            raise NotCaughtUp(projection.name, kind, id, changed.version, timeout)
        bell.wait(min(pause, left))
        pause = min(pause * 1.5, _LONGEST_S)


async def wait_for_async(
    projection: Projection, store: AsyncEventStore, changed: Entity[Any], timeout: float
) -> None:
    """The same, in a thread."""
    blocking = store.blocking()
    try:
        await asyncio.to_thread(wait_for, projection, blocking, changed, timeout)
    finally:
        await asyncio.to_thread(blocking.close)


def _entity(projection: Projection, changed: Entity[Any]) -> tuple[str, str]:
    if projection.inline:
        raise UsageError(
            f"projection {projection.name!r} is inline: it is never behind, so nothing is waited for"
        )
    if not projection.track_versions:
        raise UsageError(
            f"wait_for needs Projection({projection.name!r}, track_versions=True): without it nobody "
            "knows which entities it has come to"
        )
    state: Aggregate = changed.state
    return type(state).__entity_type__, changed.id
