"""PostgreSQL's log, followed by logical replication.

A *publication* says what is sent: inserts into the events table. A *slot* keeps the log from the
last confirmed place on, whether a relay runs or not. Both are made at the first start; afterwards
they must be there, because what they did not keep is gone. pgoutput, the server's own plugin, sends
each transaction when it is committed, in the order of commits; a prepared one when its COMMIT
PREPARED comes.

After a failover to a standby the relay goes on if the slot is there and the new primary has all that
was published; the history of its timeline tells.
"""

from __future__ import annotations

import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.errors import ObjectInUse, error_from_result
from psycopg.pq import ExecStatus

from retold.errors import (
    AccessDenied,
    ConnectionLost,
    LogPurged,
    LogReplaced,
    LogRewound,
    StoreBusy,
)
from retold.relay.positions import WalPosition
from retold.relay.source import Chunk
from retold.relay.sources.wal_database import WalDatabase, why_lost
from retold.relay.sources.wal_pgoutput import Decoder, lsn_text
from retold.relay.sources.wal_stream import Stream, stream_error

if TYPE_CHECKING:
    from retold.relay.positions import Position
    from retold.store.url import DatabaseURL

_PROGRESS_S = 10.0
"""How often a position without rows is returned, and the publication looked at."""
_TICK_S = 1.0
_SETTLE_S = 5.0
"""How long `now` waits for transactions that may be on their way to commit."""
_TAKEOVER_S = 10.0
"""How long `start` waits for the slot."""
_PAUSE_S = 0.01
_FLOOD = 10_000
"""Rows a second from which on a read gathers for a moment."""
_GATHER_S = 0.001

# Who is seen idle inside of a transaction has not begun to commit.
_WRITERS = """
    SELECT coalesce(l.pid::text, 'prepared'), l.virtualtransaction
    FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid
    WHERE l.locktype = 'relation' AND l.relation = to_regclass(%s)
    AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND l.mode = 'RowExclusiveLock' AND coalesce(a.state, '') NOT LIKE 'idle in transaction%%'
"""


class WalSource:
    """See relay/source.py for what it promises."""

    def __init__(self, url: DatabaseURL, name: str) -> None:
        self._database = WalDatabase(url, name)
        self._stream: Stream | None = None
        self._identity = "", 0
        self._returned = 0
        self._moved = self._looked = 0.0
        self._flooded = False

    def now(self) -> WalPosition:
        """The end of the log. Makes the publication and the slot where they are missing."""
        database = self._database
        with database.replication() as link:
            system, timeline = _identify(link)
        database.make_publication()
        database.make_slot()
        return WalPosition(system, timeline, database.slot, self._end())

    def skip(self) -> WalPosition:
        return self.now()

    def _end(self) -> int:
        """A place behind all that is visible, and before all that becomes visible later.

        A transaction becomes visible a moment after its commit is in the log, and much later where it
        waits for a standby. So those that may be on the way to commit are waited for.
        """
        # A message in a transaction of its own: its commit flushes what others have left unflushed.
        message = "SELECT pg_logical_emit_message(true, 'retold', '')::text"
        ((lsn,),) = self._database.ask(message)
        writers = self._writers()
        until = time.monotonic() + _SETTLE_S
        while writers:
            if time.monotonic() > until:
                who = ", ".join(sorted(pid for pid, _ in writers))
                raise StoreBusy(f"transactions that write events are open (processes: {who})")
            time.sleep(_PAUSE_S)
            writers &= self._writers()
        return lsn_number(lsn)

    def _writers(self) -> set[tuple[str, str]]:
        return {
            (pid, virtual) for pid, virtual in self._database.ask(_WRITERS, self._database.table)
        }

    def check(self, position: Position) -> None:
        with closing(self._database.replication()) as link:
            self._check(link, position)

    def _check(self, link: psycopg.Connection[Any], position: Position) -> WalPosition:
        if not isinstance(position, WalPosition):
            raise LogReplaced("it is no position in PostgreSQL's log")
        self._identity = _identify(link)
        self._check_history(link, position)
        self._check_slot(position)
        if problem := self._database.check_publication():
            raise LogPurged(problem)
        return position

    def start(self, position: Position) -> None:
        self._end_stream()
        database = self._database
        link = database.replication()
        try:
            position = self._check(link, position)
            schema, table = database.names
            decoder = Decoder(schema, table, position.lsn, position.rows)
            self._stream = self._begin_stream(link, decoder)
        except BaseException:
            link.close()
            raise
        self._returned = position.lsn
        self._moved = self._looked = time.monotonic()

    def _check_history(self, link: psycopg.Connection[Any], position: WalPosition) -> None:
        """The server sends nothing, and says nothing, when asked for a place that it never had."""
        system, timeline = self._identity
        if position.system != system:
            raise LogReplaced(f"the system is {system}, the position is one of {position.system}")
        published = f"{lsn_text(position.lsn)} of timeline {position.timeline} is published"
        if position.timeline > timeline:
            raise LogRewound(f"it is on timeline {timeline}, but {published}")
        if position.timeline < timeline:
            end = _end_of_timeline(link, timeline, position.timeline)
            if position.lsn > end:
                raise LogRewound(
                    f"its timeline {timeline} began at {lsn_text(end)}, but {published}"
                )
        ((flushed,),) = self._database.ask("SELECT pg_current_wal_flush_lsn()::text")
        if position.lsn > lsn_number(flushed):
            raise LogRewound(f"its log ends at {flushed}, but {published}")

    def _check_slot(self, position: WalPosition) -> None:
        slot = self._database.find_slot()
        if slot is None:
            raise LogPurged(f"the replication slot {self._database.slot} does not exist")
        if reason := why_lost(slot):
            raise LogPurged(f"the replication slot {self._database.slot} was lost ({reason})")
        if lsn_number(slot["confirmed_flush_lsn"]) > position.lsn:
            raise LogPurged(
                f"the replication slot {self._database.slot} was moved on to"
                f" {slot['confirmed_flush_lsn']}, but only {lsn_text(position.lsn)} is published"
            )

    def _begin_stream(self, link: psycopg.Connection[Any], decoder: Decoder) -> Stream:
        database = self._database
        command = (
            f"START_REPLICATION SLOT {database.slot} LOGICAL {lsn_text(decoder.end)}"
            f" (proto_version '1', publication_names '{database.publication}')"
        )
        until = time.monotonic() + _TAKEOVER_S
        while True:
            try:
                return Stream(link, command, decoder)
            except ObjectInUse as error:
                if time.monotonic() > until:
                    raise StoreBusy(str(error).strip()) from error
            except psycopg.Error as error:
                raise stream_error(error, broken=bool(link.closed)) from error
            # Whoever still reads from the slot is a relay that no longer leads.
            try:
                database.free_slot()
            except AccessDenied as error:
                raise StoreBusy(
                    f"the slot {database.slot} is in use, and {error.reason}"
                ) from error
            time.sleep(_PAUSE_S)

    def read(self, wait: float) -> Chunk | None:
        stream = self._streaming()
        until = time.monotonic() + wait
        while True:
            if self._flooded:
                # The server sends every message by itself: who wakes up for each does nothing else.
                time.sleep(_GATHER_S)
            cut = stream.take()
            now = time.monotonic()
            self._flooded = cut is not None and len(cut.rows) > _FLOOD * (now - self._moved)
            if cut is not None:
                self._moved = now
                return Chunk(cut.rows, self._position(cut.lsn, cut.inside), cut.committed)
            if now - self._looked > _PROGRESS_S:
                self._looked = now
                if problem := self._database.check_publication():
                    raise LogPurged(problem)
            decoder = stream.decoder
            if decoder.end > self._returned and (stream.pressed or now - self._moved > _PROGRESS_S):
                self._moved, stream.pressed = now, False
                return Chunk((), self._position(decoder.end, decoder.inside))
            if now >= until:
                return None
            stream.wait(min(until - now, _TICK_S))

    def _position(self, lsn: int, rows: int) -> WalPosition:
        self._returned = lsn
        system, timeline = self._identity
        return WalPosition(system, timeline, self._database.slot, lsn, rows)

    def keepalive(self) -> None:
        self._streaming().keepalive()

    def reached(self, position: Position) -> bool:
        assert isinstance(position, WalPosition)
        return self._streaming().decoder.end >= position.lsn

    def confirm(self, position: Position) -> None:
        assert isinstance(position, WalPosition)
        stream = self._stream
        if stream is not None and position.lsn > stream.confirmed:
            stream.confirmed = position.lsn

    def close(self) -> None:
        self._end_stream()
        self._database.close()

    def _streaming(self) -> Stream:
        stream = self._stream
        if stream is None:
            raise ConnectionLost("it was closed, or not started")
        return stream

    def _end_stream(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()


def lsn_number(text: str) -> int:
    high, _, low = text.partition("/")
    return (int(high, 16) << 32) + int(low, 16)


def _identify(link: psycopg.Connection[Any]) -> tuple[str, int]:
    """The system identifier, and the timeline."""
    try:
        row = link.execute("IDENTIFY_SYSTEM").fetchone()
    except psycopg.Error as error:
        raise stream_error(error, broken=bool(link.closed)) from error
    assert row is not None
    return str(row[0]), int(row[1])


def _end_of_timeline(link: psycopg.Connection[Any], timeline: int, earlier: int) -> int:
    """Where the server's timeline left an earlier one; 0 where it does not come from it."""
    # Its bytes are a text, whatever type the server gives them, so no cursor may read them.
    result = link.pgconn.exec_(b"TIMELINE_HISTORY %d" % timeline)
    if result.status != ExecStatus.TUPLES_OK:
        raise stream_error(error_from_result(result), broken=bool(link.closed))
    for line in (result.get_value(0, 1) or b"").decode().splitlines():
        number, _, rest = line.strip().partition("\t")
        if number == str(earlier):
            return lsn_number(rest.split("\t")[0])
    return 0
