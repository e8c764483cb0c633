"""The reader: a thread that reads ahead while Kafka commits.

What it has read and encoded waits in memory, up to a bound; whoever publishes takes all of it at
once, so batches grow under load and are small when there is little to do.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from retold.relay.source import MAX_BYTES, MAX_ROWS
from retold.relay.wire import records

if TYPE_CHECKING:
    from retold.brokers.base import Record
    from retold.relay.positions import Position
    from retold.relay.source import Chunk, Row, Source

_WAIT_S = 0.5
_MOST_BYTES = 2 * MAX_BYTES
_AHEAD_BYTES = 3 * MAX_BYTES
_AHEAD_RECORDS = MAX_ROWS


@dataclass(slots=True)
class Batch:
    """What is published in one transaction. committed: when the database committed the last of it,
    in seconds since the epoch; 0 where the log does not tell."""

    records: list[Record]
    position: Position
    committed: float
    size: int
    last: bool = False


class Filter(Protocol):
    """Rows that need not be published, up to some place in the log."""

    def missing(self, rows: Sequence[Row]) -> Sequence[Row]: ...

    def reached(self) -> bool:
        """Whether that place was read, so that everything behind it is new."""
        ...


class Reader:
    """Reads a source that was started. Use `take` from one thread, and `close` in the end."""

    def __init__(self, source: Source, position: Position, known: Filter | None = None) -> None:
        self._source = source
        self._position = position
        self._known = known
        self._ready: deque[Batch] = deque()
        self._changed = threading.Condition()
        self._bytes = self._records = 0
        self._error: BaseException | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="retold relay reader", daemon=True)
        self._thread.start()

    def take(self, wait: float) -> Batch | None:
        """All that was read since, up to the size of a transaction; None after `wait` seconds.

        Raises what ended the reading, once everything before it was taken.
        """
        with self._changed:
            if not self._ready and self._error is None:
                self._changed.wait(wait)
            if not self._ready:
                if self._error is not None:
                    raise self._error
                return None
            batch = self._ready.popleft()
            while self._ready and not batch.last:
                following = self._ready[0]
                if (
                    len(batch.records) + len(following.records) > MAX_ROWS
                    or batch.size + following.size > _MOST_BYTES
                ):
                    break
                self._ready.popleft()
                batch.records += following.records
                batch.size += following.size
                batch.position, batch.last = following.position, following.last
                batch.committed = following.committed or batch.committed
            self._bytes -= batch.size
            self._records -= len(batch.records)
            self._changed.notify_all()
        return batch

    def close(self) -> None:
        """Stop reading. The source is not closed."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        try:
            while self._wait_for_room():
                chunk = self._source.read(_WAIT_S)
                if chunk is not None or self._end_of_known():
                    self._add(self._encode(chunk))
                del chunk  # or its rows would be held until the next one is there
        except BaseException as error:
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _wait_for_room(self) -> bool:
        """False when closed."""
        while True:
            with self._changed:
                if self._closed:
                    return False
                if self._bytes < _AHEAD_BYTES and self._records < _AHEAD_RECORDS:
                    return True
                if self._changed.wait(1.0):
                    continue
            self._source.keepalive()

    def _end_of_known(self) -> bool:
        return self._known is not None and self._known.reached()

    def _encode(self, chunk: Chunk | None) -> Batch:
        rows: Sequence[Row] = ()
        committed = 0.0
        if chunk is not None:
            rows, self._position, committed = chunk.rows, chunk.position, chunk.committed
            if self._known is not None:
                rows = self._known.missing(rows)
        made = records(rows)
        # what a record holds in memory beside its value: key, headers, the objects themselves
        size = sum([len(record.value) for record in made]) + 600 * len(made)
        batch = Batch(made, self._position, committed, size, last=self._end_of_known())
        if batch.last:
            self._known = None
        return batch

    def _add(self, batch: Batch) -> None:
        with self._changed:
            self._ready.append(batch)
            self._bytes += batch.size
            self._records += len(batch.records)
            self._changed.notify_all()
