"""The binary log of MySQL and MariaDB as a source: the relay connects as a replica would.

binlog_server      what the server says of itself, by SQL
binlog_stream      the connection on which it sends its log
binlog_events      bytes → rows and the ends of transactions
binlog_rows        the decoder written for the events table
binlog_statements  what the log's statements mean for that table
binlog_gtid        transaction ids
binlog_spool       where a large transaction waits for its commit
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator, Sequence

import msgspec

from retold.drivers.mysql import translate
from retold.errors import (
    ConnectionLost,
    LogPurged,
    LogReplaced,
    LogRewound,
    LogUnreadable,
    LogUnsuitable,
    RetoldError,
    UsageError,
)
from retold.relay.positions import BinlogPosition, Position
from retold.relay.source import Chunk, Row
from retold.relay.sources.binlog_events import FULL_METADATA, Decoder, LogEnded, needed
from retold.relay.sources.binlog_gtid import GtidPosition, GtidSet, parse_state
from retold.relay.sources.binlog_rows import Column, Undecodable
from retold.relay.sources.binlog_server import Facts, Server
from retold.relay.sources.binlog_statements import Kind, Mentions, keeps_columns, kind_of
from retold.relay.sources.binlog_stream import SILENCE_S, Stream
from retold.store.url import DatabaseURL

PROGRESS_S = 10.0
"""How often the position is told while the log moves on without events."""
_FATAL = 1236  # the number of whatever keeps a server from sending its log
_KILLED = (1053, 1317, 1927, 3169)
_REWOUND = ("not in the master's binlog", "more gtids than", "file size", "impossible position")
_PURGED = ("purged", "could not find")


def server_id_for(name: str) -> int:
    """The id under which the relay of a name connects, from the upper half: people's replicas
    have small ones."""
    return zlib.crc32(name.encode()) | 0x8000_0000


class BinlogSource:
    """See relay/source.py for what it promises."""

    def __init__(self, url: DatabaseURL, server_id: int) -> None:
        """No I/O yet. server_id: the relay's own among the replicas of the server."""
        self._url = url
        self._server_id = server_id
        self._table = url.schema or url.database, f"{url.prefix}events"
        self._mentions = Mentions(*self._table)
        self._server = Server(url)
        self._stream: Stream | None = None
        self._decoder: Decoder | None = None
        self._at: BinlogPosition | None = None  # everything before it has been returned
        self._parts: list[bytes] = []  # received and not decoded
        self._size = 0
        self._needed = 0
        self._error: RetoldError | None = None
        self._large: Iterator[Chunk] | None = None
        self._told = 0.0
        self._told_at = ("", 0)

    # --- where the log is ---------------------------------------------------------------------

    def now(self) -> BinlogPosition:
        """The end of the log.

        On MySQL without GTIDs it waits for those who are committing events at the moment, with a
        read lock on the table, for up to a second: that is for a first start, not for a clock.
        """
        facts = self._facts()
        columns = self._server.settled_columns()
        while True:
            file, offset, gtid = self._server.end(facts)
            before, columns = columns, self._server.settled_columns()
            if columns == before:
                names = tuple(column.name for column in columns)
                return BinlogPosition(facts.flavour, facts.server, gtid, file, offset, names)

    def skip(self) -> BinlogPosition:
        return self.now()

    def reached(self, position: Position) -> bool:
        assert isinstance(position, BinlogPosition)
        at = self._at
        if at is None:
            return False
        if at.server == position.server:
            return (_number(at.file), at.offset) >= (_number(position.file), position.offset)
        if at.flavour == "mysql":
            return not GtidSet.parse(position.gtid).missing_from(GtidSet.parse(at.gtid))
        ours = GtidPosition.parse(at.gtid).last
        return all(
            number <= ours.get(domain, (0, 0))[1]
            for domain, (_, number) in GtidPosition.parse(position.gtid).last.items()
        )

    def confirm(self, position: Position) -> None:
        """Nothing to do: the server keeps its log for as long as it was told."""

    def keepalive(self) -> None:
        """Nothing to do: the server waits with sending, for up to an hour."""

    # --- starting -----------------------------------------------------------------------------

    def check(self, position: Position) -> None:
        self._check(position)

    def _check(self, position: Position) -> tuple[BinlogPosition, Facts]:
        if not isinstance(position, BinlogPosition):
            raise LogReplaced("it was written by a relay that does not read a binary log")
        facts = self._facts()
        if facts.flavour != position.flavour:
            raise LogReplaced(f"it is one of {position.flavour}, the server is {facts.flavour}")
        gtids = bool(position.gtid) and facts.gtids
        if gtids and facts.flavour == "mysql":
            self._check_executed(position, facts)
        elif gtids:
            self._check_domains(position, facts)
        self._check_place(position, facts, gtids)
        return position, facts

    def start(self, position: Position) -> None:
        self._end_stream()
        position, facts = self._check(position)
        gtids = bool(position.gtid) and facts.gtids
        decoder = Decoder(
            msgspec.structs.replace(position, server=facts.server),
            self._table,
            columns=self._columns_at(position),
            collations=facts.collations,
            describe=self._describe,
            checksum=facts.checksum,
            ignore_case=facts.ignore_case,
        )
        self._stream = Stream(self._url, position, self._server_id, gtids=gtids)
        self._decoder = decoder
        self._parts, self._size, self._needed = [], 0, 0
        self._error = self._large = None
        self._at = None  # the place in a position from now() may be ahead of its GTIDs
        self._told = time.monotonic()
        self._told_at = _place_of(position)
        self._first_words(self._stream, decoder)

    def _first_words(self, stream: Stream, decoder: Decoder) -> None:
        """Wait for the first event: a server that cannot go on from here says so instead."""
        try:
            while not self._size:
                self._receive(stream, SILENCE_S)
            self._decode(decoder)
            if self._error is not None and not isinstance(self._error, LogUnreadable):
                raise self._error
        except BaseException:
            self._end_stream()
            raise

    def _facts(self) -> Facts:
        facts = self._server.facts()
        if facts.server_id == self._server_id:
            raise LogUnsuitable(
                f"the server has the server_id {self._server_id}, which is also the relay's; give "
                f"the server another one"
            )
        return facts

    def _check_place(self, position: BinlogPosition, facts: Facts, gtids: bool) -> None:
        """On its own server a place must be there; without GTIDs it means nothing on another."""
        if facts.server != position.server:
            if gtids:
                return
            raise LogReplaced(
                f"it is of the server {position.server}, this is {facts.server}, and no GTID "
                f"tells where to go on"
            )
        files = self._server.files()
        end = max(files, key=_number)
        if _number(position.file) > _number(end):
            raise LogRewound(f"the log ends with {end}, and {position.file} was read")
        if position.offset > files.get(position.file, position.offset):
            raise LogRewound(
                f"{position.file} ends at {files[position.file]}, and was read up to "
                f"{position.offset}"
            )
        if position.file not in files and not gtids:
            raise LogPurged(f"{position.file} is no longer there, the oldest is {min(files)}")
        if position.file in files and gtids and facts.flavour == "mariadb":
            self._check_gtid_at(position)

    def _check_gtid_at(self, position: BinlogPosition) -> None:
        # MariaDB's server_id is 1 nearly everywhere, and so the first transaction 0-1-1.
        here = GtidPosition.parse(self._server.gtid_at(position.file, position.offset) or "").last
        published = GtidPosition.parse(position.gtid).last
        if not here or any(published.get(domain) != last for domain, last in here.items()):
            raise LogReplaced(
                f"at {position.offset} in {position.file} the log of this server has not come to "
                f"{position.gtid}"
            )

    def _check_executed(self, position: BinlogPosition, facts: Facts) -> None:
        published, executed = GtidSet.parse(position.gtid), self._executed()
        missing = published.missing_from(executed)
        if not missing:
            return
        if facts.server != position.server and not published.meets(executed):
            raise LogReplaced("the server has none of the transactions that were published")
        raise LogRewound(f"the server lacks the transactions {missing}")

    def _executed(self) -> GtidSet:
        text = self._server.executed()
        try:
            return GtidSet.parse(text)
        except ValueError as error:
            raise LogUnsuitable(
                f"the server has transactions with tagged GTIDs, which retold cannot follow yet "
                f"({error})"
            ) from error

    def _check_domains(self, position: BinlogPosition, facts: Facts) -> None:
        published = GtidPosition.parse(position.gtid).last
        state = parse_state(self._server.binlog_state())
        if facts.server != position.server and not published.keys() & {d for d, _, _ in state}:
            raise LogReplaced("the server has none of the transactions that were published")
        for domain, (server, number) in published.items():
            there = max((n for d, s, n in state if (d, s) == (domain, server)), default=0)
            if there < number:
                raise LogRewound(
                    f"the server lacks the transaction {domain}-{server}-{number}, its log has "
                    f"{self._server.binlog_state() or 'none'}"
                )

    # --- the columns --------------------------------------------------------------------------

    def _columns_at(self, position: BinlogPosition) -> Sequence[Column]:
        """The columns at the position, with what is known of them now."""
        columns = {column.name: column for column in self._server.settled_columns()}
        return [columns.get(name) or Column(name, "") for name in position.columns]

    def _describe(self, file: str, offset: int) -> Sequence[Column]:
        columns = self._server.columns()
        for schema, text in self._server.changes_behind(file, offset):
            if (
                kind_of(text) is Kind.SCHEMA
                and self._mentions(schema, text)
                and not keeps_columns(text)
            ):
                raise Undecodable(f"the events table was changed again later: {FULL_METADATA}")
        return columns

    # --- reading ------------------------------------------------------------------------------

    def read(self, wait: float) -> Chunk | None:
        stream, decoder = self._stream, self._decoder
        if stream is None or decoder is None:
            raise UsageError("start() comes before read()")
        deadline = time.monotonic() + wait
        waited = False
        while True:
            self._decode(decoder)
            if decoder.done and (decoder.full or self._error is not None):
                return self._rows(decoder)
            if decoder.large is not None:
                return self._part_of_large(decoder)
            if self._error is not None:
                raise self._error
            now = time.monotonic()
            if not decoder.done and waited and now >= deadline:
                return self._nothing(decoder, now)
            waited = True
            came = self._receive(stream, 0.0 if decoder.done else max(deadline - now, 0.0))
            if decoder.done and not came:
                return self._rows(decoder)

    def _receive(self, stream: Stream, wait: float) -> bool:
        data = stream.receive(wait)
        if data:
            self._parts.append(data)
            self._size += len(data)
        return bool(data)

    def _decode(self, decoder: Decoder) -> None:
        """Decode what was received, as far as it is whole and the decoder has room."""
        if not self._size or self._size < self._needed or decoder.full or self._error is not None:
            return
        data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        try:
            rest = data[decoder.feed(data) :]
        except LogEnded as error:
            self._error = self._ended(error, decoder)
        except RetoldError as error:
            # What was committed before it is returned first.
            self._error = error
        else:
            self._parts, self._size, self._needed = [rest], len(rest), needed(rest)

    def _rows(self, decoder: Decoder) -> Chunk:
        position = decoder.large.before if decoder.large is not None else decoder.position()
        return self._returned(Chunk(decoder.take(), position, decoder.committed))

    def _part_of_large(self, decoder: Decoder) -> Chunk:
        if self._large is None:
            self._large = _parts_of_large(decoder)
        chunk = next(self._large)
        if decoder.large is None:
            self._large = None
        return self._returned(chunk)

    def _nothing(self, decoder: Decoder, now: float) -> Chunk | None:
        moved = not decoder.lost and (decoder.file, decoder.offset) != self._told_at
        if moved and now - self._told >= PROGRESS_S:
            return self._returned(Chunk((), decoder.position(), decoder.committed))
        self._at = decoder.position()
        return None

    def _returned(self, chunk: Chunk) -> Chunk:
        assert isinstance(chunk.position, BinlogPosition)
        self._at = chunk.position
        self._told = time.monotonic()
        self._told_at = _place_of(chunk.position)
        return chunk

    def _ended(self, error: LogEnded, decoder: Decoder) -> RetoldError:
        """The server's last words as an error."""
        said = error.text.lower()
        if error.number in (0, *_KILLED) or "same server" in said:
            return ConnectionLost(error.text)
        if error.number != _FATAL:
            return translate(Exception(error.number, error.text))
        if any(words in said for words in _REWOUND):
            return LogRewound(error.text)
        if any(words in said for words in _PURGED):
            return LogPurged(error.text)
        return LogUnreadable(error.text, f"{decoder.file}, behind {decoder.offset}")

    def close(self) -> None:
        self._end_stream()
        self._server.close()

    def _end_stream(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()


def _parts_of_large(decoder: Decoder) -> Iterator[Chunk]:
    large = decoder.large
    assert large is not None
    returned = large.skip
    parts = decoder.spool.parts(large.skip)
    if large.before.rows:
        # Of another transaction a part was returned already, and a position has room for one.
        parts = iter([[row for part in parts for row in part]])
    rows: list[Row] | None = next(parts, None)
    while rows is not None and (following := next(parts, None)) is not None:
        returned += len(rows)
        inside = msgspec.structs.replace(large.before, rows=returned, within=large.name)
        yield Chunk(rows, inside, decoder.committed)
        rows = following
    decoder.forget_large()
    yield Chunk(rows or (), decoder.position(), decoder.committed)


def _place_of(position: BinlogPosition) -> tuple[str, int]:
    return position.file, position.offset


def _number(file: str) -> int:
    """The number at the end of a file's name."""
    digits = file.rpartition(".")[2]
    return int(digits) if digits.isdecimal() else 0
