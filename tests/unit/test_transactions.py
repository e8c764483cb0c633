"""What a cancelled task leaves in a transaction of the user's."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path

from retold import Aggregate, AsyncEventStore, AsyncTransaction, Event, EventStore, applies
from retold.drivers.sqlite import JoinedSqlite
from retold.store.driver import Batch, Result


class Moved(Event, name="test_transactions.Moved"):
    by: int


class Robot(Aggregate, name="test_transactions.Robot"):
    place: int = 0

    def move(self, by: int) -> None:
        self.emit(Moved(by))

    @applies
    def _moved(self, event: Moved) -> None:
        self.place += event.by


class Slow:
    """A connection of the user's that waits, when told to, before it goes on."""

    def __init__(self, raw: sqlite3.Connection) -> None:
        self._joined = JoinedSqlite(raw)
        self.waiting = asyncio.Event()
        self.go = asyncio.Event()

    async def execute(self, batch: Batch) -> Sequence[Result]:
        if any("INSERT INTO" in statement.sql for statement in batch):
            self.waiting.set()
            await self.go.wait()
        return self._joined.execute(batch)


async def _cancel_between_version_and_events(path: str, id: str) -> None:
    async with AsyncEventStore(f"sqlite:///{path}") as store:
        with closing(sqlite3.connect(path)) as raw:
            raw.execute("BEGIN IMMEDIATE")
            slow = Slow(raw)
            robots = AsyncTransaction(store._joined, slow).repository(Robot)
            task = asyncio.ensure_future(robots.update(id, Robot.move, 1))
            await slow.waiting.wait()
            task.cancel()
            await asyncio.sleep(0)
            task.cancel()
            slow.go.set()
            with suppress(asyncio.CancelledError):
                await task
            assert task.cancelled()
            raw.commit()


def test_a_cancelled_update_is_whole_in_the_users_transaction(tmp_path: Path) -> None:
    path = str(tmp_path / "robots.db")
    with EventStore(f"sqlite:///{path}") as store:
        robots = store.repository(Robot)
        id = robots.create(Robot.move, 1).id
        asyncio.run(_cancel_between_version_and_events(path, id))
        with closing(sqlite3.connect(path)) as raw:
            ((version,),) = raw.execute("SELECT entity_version FROM entities")
            ((last,),) = raw.execute("SELECT max(event_id) FROM events")
        assert version == last
        assert robots.update(id, Robot.move, 1).state.place == 3
