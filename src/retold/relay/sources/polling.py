"""Polling: the events table itself, asked for rows that are not marked as published.

For any database of the store, without any privilege but those on the table. It costs an index on
`published` and a second write of every row. Rows come in the order of ids, which for one entity is
the order of commits: a statement that sees an event sees all earlier ones of its entity.

Marking follows publishing, and the position holds the ids that may not be marked yet: they are
marked first when a relay starts. So polling, too, publishes each event once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from retold.errors import LogReplaced, LogRewound
from retold.relay.checks import polling_index, require
from retold.relay.positions import PollingPosition
from retold.relay.source import MAX_BYTES, Chunk, Row
from retold.relay.table import fitting, rows_of

if TYPE_CHECKING:
    from retold.relay.positions import Position
    from retold.store.connections import BlockingDriver
    from retold.store.driver import Plan

_MOST_ROWS = 1_000
_SHORTEST_S, _LONGEST_S = 0.002, 0.1
"""How long to wait between two looks at a table without news: twice as long each time."""
_TICK_S = 0.1
_BEHIND_ALL = "\U0010ffff"


class PollingSource:
    """See relay/source.py for what it promises."""

    def __init__(self, driver: BlockingDriver) -> None:
        self._driver = driver
        self._sql = driver.dialect.queries
        self._ids = driver.dialect.many_ids
        self._table = ""
        self._in_hand: tuple[str, ...] = ()
        self._marked = threading.Event()
        self._marked.set()
        self._bell = threading.Event()
        self._closed = threading.Event()
        self._lowest = ""
        driver.listen(self._bell)

    def now(self) -> PollingPosition:
        """Holds the highest id of the table. What is committed later need not have a higher one,
        but it is not marked."""
        self._check_index()
        self._lowest = ""  # what was read before tells nothing about this position
        ((last,),) = self._rows("view_last")
        return PollingPosition(self._identity(), until=last or "")

    def skip(self) -> PollingPosition:
        """Marks what is there before it returns."""
        position = self.now()
        while True:
            ids = [id for id, _ in self._rows("unpublished_sizes", _MOST_ROWS)]
            there = [id for id in ids if id <= position.until]
            if not there:
                return position
            self._mark(there)

    def check(self, position: Position) -> None:
        if not isinstance(position, PollingPosition):
            raise LogReplaced("it is a position in a transaction log, and this relay polls")
        identity = self._identity()
        if position.table != identity:
            raise LogReplaced(f"the table is {identity}, the position is one of {position.table}")
        self._check_index()
        self._check_published((*position.ids, position.until) if position.until else position.ids)

    def start(self, position: Position) -> None:
        self.check(position)
        assert isinstance(position, PollingPosition)
        self._mark(position.ids)
        self._marked.set()
        self._lowest = ""

    def _check_published(self, ids: Sequence[str]) -> None:
        """What was published last must be there: a table set back to before has lost it."""
        there = self._rows("existing", self._ids(list(ids))) if ids else ()
        if lost := set(ids) - {id for (id,) in there}:
            raise LogRewound(
                f"of the {len(ids)} events published last it has {len(there)}; it lacks {min(lost)}"
            )

    def _identity(self) -> str:
        """When the table was made, in milliseconds: a copy of the database keeps it."""
        if not self._table:
            ((made_at,),) = self._rows("made_at")
            self._table = f"{self._driver.dialect.name}/{made_at}"
        return self._table

    def _check_index(self) -> None:
        require([polling_index(self._rows("polling_index_exists"))])

    def read(self, wait: float) -> Chunk | None:
        deadline = time.monotonic() + wait
        pause = _SHORTEST_S
        # Until they are marked, the rows returned last would come again.
        while not self._marked.wait(min(wait, _TICK_S)):
            if time.monotonic() >= deadline:
                return None
        while not self._closed.is_set():
            self._bell.clear()
            rows = self._driver.run(_unpublished(self._sql))
            if rows:
                return self._chunk(rows)
            self._lowest = _BEHIND_ALL
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            self._bell.wait(min(pause, left))
            pause = min(2 * pause, _LONGEST_S)
        return None

    def _chunk(self, found: Sequence[Sequence[Any]]) -> Chunk:
        ids = tuple([row[0] for row in found])
        self._in_hand = ids
        self._marked.clear()
        self._lowest = ids[0]
        rows: list[Row] = [(*row[:5], row[5], None) for row in found]
        return Chunk(rows, PollingPosition(self._identity(), ids), _made_at(ids[-1]))

    def keepalive(self) -> None:
        """The database waits for nothing."""

    def reached(self, position: Position) -> bool:
        """Whether no row up to the highest id was unmarked when the table was read last."""
        assert isinstance(position, PollingPosition)
        return self._lowest > position.until

    def confirm(self, position: Position) -> None:
        assert isinstance(position, PollingPosition)
        self._mark(position.ids)
        # The same position may be saved again, with no rows, while the next rows are in hand.
        if position.ids == self._in_hand:
            self._marked.set()

    def _mark(self, ids: Sequence[str]) -> None:
        if ids:
            self._rows("mark_published", self._ids(list(ids)))

    def _rows(self, query: str, *params: object) -> Sequence[Sequence[Any]]:
        return self._driver.run(rows_of(self._sql[query], *params))

    def close(self) -> None:
        self._closed.set()
        self._marked.set()
        self._bell.set()


def _unpublished(sql: Mapping[str, str]) -> Plan[Sequence[Sequence[Any]]]:
    """The first unpublished rows, as many as one chunk takes."""
    sizes = yield from rows_of(sql["unpublished_sizes"], _MOST_ROWS)
    if not sizes:
        return ()
    return (yield from rows_of(sql["unpublished"], fitting(sizes, MAX_BYTES)))


def _made_at(event_id: str) -> float:
    """The time in an id, which is about that of its commit; 0 for an id of another making."""
    try:
        return int(event_id[:16], 16) / 1000
    except ValueError:
        return 0.0
