"""The seam between a database's log and the relay.

A *source* follows the events table of one database:

* Order. `read` returns the events in the order of commits; all events of a transaction together,
  and no event of a transaction that was rolled back, wholly or to a savepoint.
* Nothing is skipped. What cannot be read or understood is raised as a RelayStopped, with the place;
  what else happens in the database is ignored. A lost connection is ConnectionLost or
  StoreUnavailable: begin again at the last saved position.
* Positions. Each chunk carries the position behind its last row. Started there, a source returns
  exactly what comes behind. A transaction larger than a chunk comes in several, and then the
  position is inside of it: the place where it began, and the number of its rows returned.
* Progress. Where the log moves on without events, a chunk without rows carries the new position
  now and then, so that the database need not keep its log for an idle relay.
* Waiting. `read` returns as soon as there is something, with all that is there up to a limit, and
  never waits for more. None after `wait` seconds without anything. Where the reader cannot take
  more for the moment it calls `keepalive` once a second instead.
* Confirmation. `confirm(position)` says that everything up to the position is safe in Kafka: only
  then may the database forget its log. It may be called from another thread than `read`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from retold.brokers.published import BinlogFileOffset
from retold.relay.positions import Position

Row = tuple[str, str, str, str, str, str | None, BinlogFileOffset | None]
"""event_id, event_type, event_data, entity_type, entity_id, metadata, place in a binary log."""

MAX_ROWS = 5_000
"""The most rows of a chunk."""
MAX_BYTES = 2_000_000
"""About the most bytes of a chunk; one row may be larger."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows of whole transactions, or of a part of one, and the position behind the last.

    committed: when the last transaction was committed, in seconds since the epoch, where the log
    tells; 0 where it does not.
    """

    rows: Sequence[Row]
    position: Position
    committed: float = 0.0


class Source(Protocol):
    """A database's log. One thread reads; see the top of this module for what it promises."""

    def now(self) -> Position:
        """The end of the log as it is now. Everything committed later comes behind it."""
        ...

    def skip(self) -> Position:
        """The same, for a relay that leaves out what is there: nothing else comes behind it."""
        ...

    def check(self, position: Position) -> None:
        """Raises LogReplaced, LogPurged, LogRewound where the log does not continue the position,
        and LogUnsuitable where it cannot be followed at all."""
        ...

    def start(self, position: Position) -> None:
        """Check the position, connect, and read from it on."""
        ...

    def read(self, wait: float) -> Chunk | None: ...

    def keepalive(self) -> None:
        """Answer the server, if it wants an answer, without reading on."""
        ...

    def reached(self, position: Position) -> bool:
        """Whether everything up to a position of this log, got from `now`, has been read."""
        ...

    def confirm(self, position: Position) -> None: ...

    def close(self) -> None:
        """End the connection; a `read` in another thread returns or raises soon."""
        ...
