"""The binary log's event stream: bytes in, rows and the ends of transactions out.

Bytes come as the server sends them, in packets, of which a piece may hold many or a part of one.
Nothing here does I/O, but for the spool that rows of a large transaction wait in, and the question
to the database which columns its table has.

An event is 19 bytes of header (time, kind, server, size, the place in the file where it ends,
flags), its body, and 4 bytes of checksum where the log has them. A transaction is

    GTID · BEGIN · (TABLE_MAP · rows)… · XID or COMMIT        MySQL
    GTID ·         (TABLE_MAP · rows)… · XID or COMMIT        MariaDB

and a change of the schema is GTID · QUERY. Whatever goes on between commits, most events are of no
interest: `_run` is one loop over plain local variables, that passes over those quickly and hands
the rare ones to a method each.
"""

from __future__ import annotations

import logging
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from retold.brokers.published import BinlogFileOffset
from retold.errors import LogUnreadable, MissingExtra
from retold.relay.positions import BinlogPosition
from retold.relay.source import MAX_BYTES, MAX_ROWS, Row
from retold.relay.sources.binlog_gtid import GtidPosition, GtidSet
from retold.relay.sources.binlog_rows import (
    Column,
    Decode,
    TableMap,
    Undecodable,
    decoder,
    mismatch,
    packed_number,
    parse_table_map,
    table_name,
    text_charsets,
)
from retold.relay.sources.binlog_spool import Spool
from retold.relay.sources.binlog_statements import (
    Kind,
    Mentions,
    begins_transaction,
    kind_of,
    savepoint,
)

_log = logging.getLogger("retold.relay")
_u32 = struct.Struct("<I").unpack_from

_HEADER = 19
_PACKET = 5  # three bytes of length, one of sequence, one that says what it is
_LONGEST = 0xFFFFFF  # a packet of this length goes on in the next one
_ARTIFICIAL, _IGNORABLE = 0x20, 0x80
_PIECE = 1 << 16

_QUERY, _ROTATE, _FORMAT, _XID, _EXECUTE_LOAD = 2, 4, 15, 16, 18
_TABLE_MAP, _WRITE_V1, _WRITE_V2 = 19, 23, 30
_INCIDENT, _HEARTBEAT = 26, 27
_GTID, _ANONYMOUS, _PREVIOUS_GTIDS, _GTID_TAGGED = 33, 34, 35, 42
_XA_PREPARE, _PAYLOAD = 38, 40
_MARIADB_CHECKPOINT, _MARIADB_GTID, _MARIADB_GTID_LIST = 161, 162, 163
_QUERY_COMPRESSED, _WRITE_V1_COMPRESSED, _WRITE_V2_COMPRESSED = 165, 166, 169
_ROWS_CHANGED = (24, 25, 31, 32, 39, 167, 168, 170, 171)  # updates and deletes
_OF_A_STATEMENT = (5, 13, 14, 29, 160)  # its variables, its text
_LOAD_BLOCKS = (9, 11, 17)
_MEANINGLESS = (3, 28, 36, 37, 41, 164)
_WRITES = frozenset((_WRITE_V1, _WRITE_V2))
_PASSED = frozenset((*_ROWS_CHANGED, *_OF_A_STATEMENT, *_LOAD_BLOCKS, *_MEANINGLESS))

# Of MariaDB's GTID event
_STANDALONE, _PREPARED_XA = 1, 64

_ERRORS = (Undecodable, ValueError, LookupError, struct.error, zlib.error, OverflowError)
# MySQL's name for rows that belong to no table.
_NO_TABLE = b"\xff" * 6

_CLOSED, _OPEN, _IN_XA = range(3)

FULL_METADATA = (
    "the log does not name the columns, and what the table looked like there is not known. SET "
    "GLOBAL binlog_row_metadata = FULL, so that the log itself says it from now on"
)

Describe = Callable[[str, int], Sequence[Column]]
"""The events table's columns at a place (file, offset). Raises Undecodable if nobody can tell."""


class LogEnded(Exception):
    """The server ended the stream: with an error's number and text, or with number 0."""

    def __init__(self, number: int, text: str) -> None:
        super().__init__(number, text)
        self.number = number
        self.text = text


@dataclass(frozen=True, slots=True)
class Large:
    """A committed transaction that was too large to be held, whose rows are in the spool.

    before: the position where it begins. name: its GTID. skip: its rows returned before.
    """

    before: BinlogPosition
    name: str
    skip: int


class _EventsTable(dict[bytes, Decode]):
    """The decoders for one TABLE_MAP of the events table, by which columns a row event holds.

    The key is what stands there in the event: the number of columns, and a bit for each.
    """

    def __init__(
        self, table_map: TableMap, names: Sequence[str], charsets: Mapping[str, str]
    ) -> None:
        self._table_map = table_map
        self._names = names
        self._charsets = charsets
        count = len(names)
        self.head = (1 if count < 251 else 3) + (count + 7) // 8

    def __missing__(self, key: bytes) -> Decode:
        count, at = packed_number(key, 0)
        if count != len(self._names):
            raise Undecodable(f"rows of {count} columns for a table of {len(self._names)}")
        present = int.from_bytes(key[at:], "little")
        made = decoder(self._table_map, self._names, self._charsets, present)
        self[key] = made
        return made


class Decoder:
    """Follows the stream from a position on.

    `rows` holds rows of committed transactions up to `done`, and behind them those of the one
    under way. `large` is a committed transaction behind `rows[:done]` whose rows are in the spool;
    nothing more is read until it was handed out.
    """

    def __init__(
        self,
        position: BinlogPosition,
        table: tuple[str, str],
        *,
        columns: Sequence[Column],
        collations: Mapping[int, str],
        describe: Describe,
        checksum: bool,
        ignore_case: bool = False,
    ) -> None:
        """table: schema and name. columns: as they are at the position, none if that is not known.
        ignore_case: the server compares names of tables without case."""
        self.rows: list[Row] = []
        self.done = 0
        self.committed = 0
        self.full = False
        self.spool = Spool()
        self.large: Large | None = None

        self.flavour = position.flavour
        self.server = position.server
        self.file = position.file
        self.offset = position.offset
        # Whether the place is behind what is known: a server that was asked by GTIDs passes over
        # that from the beginning of a file on. Until a transaction comes, or nothing more.
        self.lost = bool(position.gtid)
        self._gtids: GtidSet | GtidPosition
        if position.flavour == "mysql":
            self._gtids = GtidSet.parse(position.gtid)
        else:
            self._gtids = GtidPosition.parse(position.gtid)
        # MySQL's set is known from the position, or from the beginning of the next file on.
        self._gtids_known = position.flavour == "mariadb" or bool(position.gtid)
        self._ids: list[bytes] = []  # of committed transactions, not in _gtids yet
        self._id = b""  # of the one under way
        self._skip, self._within = position.rows, position.within

        self._table = table
        self._ignore_case = ignore_case
        self._mentions = Mentions(*table)
        self._columns = tuple(columns)
        self._names = tuple(column.name for column in columns)
        self._stale = not columns
        self._collations = collations
        self._describe = describe
        self._maps: dict[bytes, bytes] = {}  # table id → the last TABLE_MAP for it
        self._tables: dict[bytes, _EventsTable | None] = {_NO_TABLE: None}

        self._checksum: int = 4 if checksum else 0
        self._state = _CLOSED
        self._weight = 0  # bytes of rows[:done]
        self._open_weight = 0
        self._outer = 0  # the end of the event that the present one is a part of
        self._savepoints: dict[bytes, int] = {}
        self._warned = False
        self._handlers: dict[int, Callable[[bytes, int, int], None]] = {
            _QUERY: self._query,
            _QUERY_COMPRESSED: self._query_compressed,
            _EXECUTE_LOAD: self._execute_load,
            _ROTATE: self._rotate,
            _FORMAT: self._format,
            _GTID: self._mysql_gtid,
            _ANONYMOUS: self._anonymous,
            _PREVIOUS_GTIDS: self._previous_gtids,
            _GTID_TAGGED: self._tagged,
            _XA_PREPARE: self._xa_prepared,
            _PAYLOAD: self._payload,
            _INCIDENT: self._incident,
            _WRITE_V1_COMPRESSED: self._compressed_rows,
            _WRITE_V2_COMPRESSED: self._compressed_rows,
            _HEARTBEAT: self._heartbeat,
            _MARIADB_CHECKPOINT: self._progress,
            _MARIADB_GTID_LIST: self._progress,
        }

    # --- what the source takes ----------------------------------------------------------------

    def position(self) -> BinlogPosition:
        """Behind the last committed transaction."""
        self._count_ids()
        return BinlogPosition(
            flavour=self.flavour,
            server=self.server,
            gtid=str(self._gtids),
            file=self.file,
            offset=self.offset,
            columns=() if self._stale else self._names,
            rows=self._skip,
            within=self._within,
        )

    def take(self) -> list[Row]:
        """The rows of committed transactions, which are then no longer here."""
        taken, self.rows = self.rows, self.rows[self.done :]
        del taken[self.done :]
        self.done = self._weight = 0
        self.full = self.large is not None
        return taken

    def forget_large(self) -> None:
        """The large transaction in the spool has been handed out."""
        self.spool.clear()
        self.large = None
        self.full = False

    # --- the loop -----------------------------------------------------------------------------

    def feed(self, data: bytes) -> int:
        """Decode packets; returns where it stopped: before a part of one, or because it is full.

        Raises LogUnreadable, LogEnded.
        """
        return self._run(data, 0, _PACKET, self._checksum)

    def _run(self, data: bytes, at: int, prefix: int, tail: int) -> int:
        """Decode events. prefix: what is before each. tail: what of it is checksum."""
        maps, tables, handlers = self._maps, self._tables, self._handlers
        writes, passed = _WRITES, _PASSED
        rows = self.rows
        append = rows.append
        file, outer = self.file, self._outer
        end = len(data)
        last = end - _HEADER - prefix
        shortest = _HEADER + tail
        event = at
        try:
            while at <= last:
                event = at + prefix
                if prefix:
                    size = data[at] | data[at + 1] << 8 | data[at + 2] << 16
                    behind = at + 4 + size
                    if behind > end:
                        break
                    if data[at + 4] or not shortest < size < _LONGEST:
                        behind = self._long(data, at) if size == _LONGEST else at
                        if behind == at:
                            break
                        at, file = behind, self.file
                        if self.full:
                            break
                        continue
                else:
                    size = _u32(data, event + 9)[0]
                    if size < shortest:
                        raise Undecodable(f"an event of {size} bytes")
                    behind = event + size
                    if behind > end:
                        break
                stop = behind - tail
                kind = data[event + 4]
                body = event + _HEADER
                if kind == _TABLE_MAP:
                    if maps.get(data[body : body + 6]) != data[body:stop]:
                        self._table_map(data[body:stop])
                elif kind in writes:
                    table = tables[data[body : body + 6]]
                    if table is not None:
                        if self._state != _OPEN:
                            self._refuse_rows()
                        begin = body + 8
                        if kind == _WRITE_V2:
                            begin += data[begin] | data[begin + 1] << 8
                        first = begin + table.head
                        place = outer or _u32(data, event + 13)[0]
                        if place < self.offset:
                            place += 1 << 32  # the field has 32 bits only
                        table[data[begin:first]](
                            data, first, stop, append, BinlogFileOffset(file, place)
                        )
                        self._open_weight += size
                        if self._weight + self._open_weight > MAX_BYTES or len(rows) > MAX_ROWS:
                            self._hold(size)
                elif kind == _XID:
                    self._commit(data, event)
                    if self.full:
                        at = behind
                        break
                elif kind == _MARIADB_GTID:
                    # server (in the header) · number · domain
                    self._id = data[event + 5 : event + 9] + data[body : body + 12]
                    flags = data[body + 12]
                    if self._state != _CLOSED:
                        raise Undecodable("a transaction begins inside another")
                    if self.lost:
                        self._find_place(data, event)
                    if not flags & _STANDALONE:
                        self._state = _IN_XA if flags & _PREPARED_XA else _OPEN
                elif kind not in passed:
                    handler = handlers.get(kind)
                    if handler is not None:
                        handler(data, event, stop)
                        file, tail = self.file, self._checksum if prefix else 0
                        shortest = _HEADER + tail
                        if self.full:
                            at = behind
                            break
                    elif not data[event + 17] & _IGNORABLE:
                        raise Undecodable(f"an event of the kind {kind}, which is not known")
                at = behind
        except _ERRORS as error:
            raise self._unreadable(error, data, event) from error
        if prefix and end - at > 4:
            self._control(data, at)
        return at

    def _long(self, data: bytes, at: int) -> int:
        """An event in several packets; where they end, or `at` if they are not all here."""
        parts: list[bytes] = []
        begin = at
        while True:
            if begin + 4 > len(data):
                return at
            size = int.from_bytes(data[begin : begin + 3], "little")
            if begin + 4 + size > len(data):
                return at
            parts.append(data[begin + 4 : begin + 4 + size])
            begin += 4 + size
            if size < _LONGEST:
                break
        event = b"".join(parts)
        del parts
        if event[0]:
            raise Undecodable(f"a packet that begins with {event[0]}")
        if self._run(event, 1, 0, self._checksum) != len(event):
            raise Undecodable("a packet is longer or shorter than its event")
        return begin

    def _control(self, data: bytes, at: int) -> None:
        """A packet that is no event: the server's last words."""
        size = int.from_bytes(data[at : at + 3], "little")
        if self.full or size == _LONGEST or at + 4 + size > len(data):
            return
        packet = data[at + 4 : at + 4 + size]
        if packet[:1] == b"\xff":
            text = packet[3:].decode("utf-8", "replace")
            if text[:1] == "#":  # and five characters of SQLSTATE
                text = text[6:]
            raise LogEnded(int.from_bytes(packet[1:3], "little"), text)
        if packet[:1] == b"\xfe" and size < 9:
            raise LogEnded(0, "the server ended the stream")
        raise self._unreadable(Undecodable(f"a packet of {size} bytes"), data, at)

    def _unreadable(self, error: Exception, data: bytes, event: int) -> LogUnreadable:
        place = self._outer or (_u32(data, event + 13)[0] if event + 17 <= len(data) else 0)
        kind = data[event + 4] if event + 4 < len(data) else 0
        if isinstance(error, Undecodable):
            reason = str(error)
        else:
            reason = (
                f"an event (kind {kind}) that cannot be decoded, {type(error).__name__}: {error}"
            )
        return LogUnreadable(reason, f"{self.file}, before {place or self.offset}")

    # --- transactions -------------------------------------------------------------------------

    def _commit(self, data: bytes, event: int) -> None:
        """The end of a transaction: what was read of it is committed."""
        rows, spool = self.rows, self.spool
        skip = 0
        if self._skip and (not self._within or self._within == self._name()):
            skip = self._skip_rows()
        if spool.rows:
            spool.put(rows[self.done :])
            del rows[self.done :]
            self.large = Large(self.position(), self._name(), skip)
        elif skip:
            del rows[self.done : self.done + skip]
        self.done = len(rows)
        self._weight += self._open_weight
        self._open_weight = 0
        end = self._outer or _u32(data, event + 13)[0]
        if end < self.offset:
            end += 1 << 32
        self.offset = end
        self.committed = _u32(data, event)[0]
        if self._id and self._gtids_known:
            self._ids.append(self._id)
        self._id = b""
        self._state = _CLOSED
        if self._savepoints:
            self._savepoints = {}
        if self.large is not None or self.done >= MAX_ROWS or self._weight >= MAX_BYTES:
            self.full = True
        elif len(self._ids) >= MAX_ROWS:
            self._count_ids()

    def _roll_back(self, keep: int = 0) -> None:
        """Forget the rows of the transaction under way from number `keep` on."""
        if self.spool.rows > keep:
            self.rows[self.done :] = self.spool.cut(keep)
        else:
            del self.rows[self.done + keep - self.spool.rows :]

    def _find_place(self, data: bytes, event: int) -> None:
        self.lost = False
        self.offset = max(self.offset, _u32(data, event + 13)[0] - _u32(data, event + 9)[0])

    def _hold(self, size: int) -> None:
        """Put the rows of the transaction under way into the spool if they are too many; size: of
        the last event, which may be over the limit."""
        few = len(self.rows) <= MAX_ROWS
        if few and (self._open_weight <= size or self._weight + self._open_weight <= MAX_BYTES):
            return
        self.spool.put(self.rows[self.done :])
        del self.rows[self.done :]
        self._open_weight = 0

    def _skip_rows(self) -> int:
        """The rows of this transaction that were returned before it was started again."""
        skip, self._skip, self._within = self._skip, 0, ""
        there = self.spool.rows + len(self.rows) - self.done
        if skip > there:
            raise Undecodable(
                f"{skip} rows of the transaction were published, but it has {there} in the log"
            )
        return skip

    def _name(self) -> str:
        """The GTID of the transaction under way."""
        if not self._id:
            return ""
        made = GtidSet() if self.flavour == "mysql" else GtidPosition()
        made.add_all([self._id])
        return str(made)

    def _count_ids(self) -> None:
        self._gtids.add_all(self._ids)
        self._ids = []

    def _refuse_rows(self) -> None:
        if self._state == _IN_XA:
            raise Undecodable(
                "an XA transaction wrote into the events table. Its rows are in the log before it "
                "is known whether it commits; write events in plain transactions"
            )
        raise Undecodable("rows outside of a transaction")

    # --- events that are not frequent -----------------------------------------------------------

    def _rotate(self, data: bytes, event: int, stop: int) -> None:
        """The file goes on in another one; also sent at the start, to name the first."""
        self._abandon()
        body = event + _HEADER
        self.file = data[body + 8 : stop].decode()
        self.offset = int.from_bytes(data[body : body + 8], "little")

    def _abandon(self) -> None:
        # A server that crashed while writing leaves a part of a transaction at the end of a file,
        # and rolls it back when it comes up.
        self._roll_back()
        self._open_weight = 0
        self._state = _CLOSED
        self._id = b""

    def _format(self, data: bytes, event: int, stop: int) -> None:
        """The beginning of a file. It has a checksum, and the kind of it, in any case."""
        self._abandon()
        end = event + int(_u32(data, event + 9)[0])
        version, header, checksum = data[event + 19], data[event + 75], data[end - 5]
        if version != 4 or header != _HEADER or checksum > 1 or end - event < 100:
            raise Undecodable(f"a log of the version {version} with the checksum {checksum}")
        self._checksum = 4 * checksum
        # Numbers of tables are given out anew when the server starts.
        self._maps.clear()
        self._tables.clear()
        self._tables[_NO_TABLE] = None
        self._progress(data, event, stop)

    def _progress(self, data: bytes, event: int, stop: int) -> None:
        """An event between transactions: what is before its end has been read."""
        end = _u32(data, event + 13)[0]
        if data[event + 17] & _ARTIFICIAL or self._state != _CLOSED or self._id:
            return
        if end > self.offset:
            self.offset = end

    def _heartbeat(self, data: bytes, event: int, stop: int) -> None:
        """Nothing is new; the end is where the server looks for more."""
        if data[event + _HEADER : stop] == self.file.encode():
            self._progress(data, event, stop)
            self.lost = False

    def _mysql_gtid(self, data: bytes, event: int, stop: int) -> None:
        self._anonymous(data, event, stop)
        self._id = data[event + 20 : event + 44]  # server and number
        if self.lost:
            self._find_place(data, event)

    def _anonymous(self, data: bytes, event: int, stop: int) -> None:
        if self._state != _CLOSED:
            raise Undecodable("a transaction begins inside another")
        self._id = b""

    def _tagged(self, data: bytes, event: int, stop: int) -> None:
        raise Undecodable("a transaction has a tagged GTID, which retold cannot follow yet")

    def _previous_gtids(self, data: bytes, event: int, stop: int) -> None:
        # Sent in the middle of a file as well; known from there on is only what begins it.
        if not self._gtids_known and _u32(data, event + 13)[0] >= self.offset:
            self._gtids = GtidSet.decode(data[event + _HEADER : stop])
            self._gtids_known = True
        self._progress(data, event, stop)

    def _xa_prepared(self, data: bytes, event: int, stop: int) -> None:
        self._commit(data, event)

    def _incident(self, data: bytes, event: int, stop: int) -> None:
        raise Undecodable("the server says that its log has lost transactions (INCIDENT)")

    # --- statements ---------------------------------------------------------------------------

    def _query(self, data: bytes, event: int, stop: int) -> None:
        variables = event + 32
        schema = variables + (data[event + 30] | data[event + 31] << 8)
        text = schema + data[event + 27] + 1
        if data[text:stop] == b"BEGIN":
            if self._state != _CLOSED:
                raise Undecodable("a transaction begins inside another")
            self._state = _OPEN
            return
        if text > stop:
            raise Undecodable("a statement that is longer than its event")
        self._statement(data, event, data[schema : text - 1], data[text:stop])

    def _query_compressed(self, data: bytes, event: int, stop: int) -> None:
        schema = event + 32 + (data[event + 30] | data[event + 31] << 8)
        text = schema + data[event + 27] + 1
        self._statement(data, event, data[schema : text - 1], _inflated(data[text:stop]))

    def _execute_load(self, data: bytes, event: int, stop: int) -> None:
        """LOAD DATA as a statement."""
        schema = event + 45 + (data[event + 30] | data[event + 31] << 8)
        text = schema + data[event + 27] + 1
        self._statement(data, event, data[schema : text - 1], data[text:stop])

    def _statement(self, data: bytes, event: int, schema: bytes, text: bytes) -> None:
        match kind_of(text):
            case Kind.BEGIN:
                if self._state != _CLOSED:
                    raise Undecodable("a transaction begins inside another")
                self._state = _OPEN
            case Kind.COMMIT | Kind.XA_DONE:
                self._commit(data, event)
            case Kind.ROLLBACK:
                self._roll_back()
                self._commit(data, event)
            case Kind.SAVEPOINT:
                self._savepoints[savepoint(text)] = self._open_rows()
            case Kind.ROLLBACK_TO:
                self._roll_back_to(text)
            case Kind.XA_START:
                self._state = _IN_XA
            case Kind.XA_END:
                pass
            case Kind.SCHEMA:
                self._schema_change(data, event, schema, text)
            case Kind.ROWS:
                self._written_as_statement(schema, text)
                if self._state == _CLOSED:
                    self._commit(data, event)

    def _open_rows(self) -> int:
        return self.spool.rows + len(self.rows) - self.done

    def _roll_back_to(self, text: bytes) -> None:
        rows = self._open_rows()
        keep = self._savepoints.get(savepoint(text))
        if keep is not None:
            self._roll_back(min(keep, rows))
        elif rows:
            raise Undecodable("a rollback to a savepoint that is not in the log")

    def _schema_change(self, data: bytes, event: int, schema: bytes, text: bytes) -> None:
        if self._mentions(schema, text):
            if self._mentions.fills(text):
                raise Undecodable("the events table was filled by a CREATE TABLE … SELECT")
            # Asked for at the next row: the database may show the change a little later.
            self._stale = True
            self._maps.clear()
        if self._state == _CLOSED:
            if begins_transaction(text):
                self._state = _OPEN
            else:
                self._commit(data, event)

    def _written_as_statement(self, schema: bytes, text: bytes) -> None:
        if self._mentions(schema, text):
            raise Undecodable(
                f"a statement on the events table is in the log as text, not as rows: "
                f"{text[:200].decode('utf-8', 'replace')}. Have every session use "
                f"binlog_format = ROW"
            )
        if not self._warned:
            self._warned = True
            _log.warning(
                "The log holds statements as text, not as rows (first in %s, behind %d). If one of "
                "them writes events through a trigger or a function, they are not seen. Have every "
                "session use binlog_format = ROW.",
                self.file,
                self.offset,
            )

    # --- rows ---------------------------------------------------------------------------------

    def _table_map(self, body: bytes) -> None:
        schema, table, _ = table_name(body)
        known = None
        if self._same(schema, self._table[0]) and self._same(table, self._table[1]):
            known = self._events_table(parse_table_map(body))
        self._maps[body[:6]] = body
        self._tables[body[:6]] = known

    def _same(self, name: str, other: str) -> bool:
        return name == other or (self._ignore_case and name.casefold() == other.casefold())

    def _events_table(self, table_map: TableMap) -> _EventsTable:
        if table_map.names:
            known = {column.name: column for column in self._columns}
            self._columns = tuple(known.get(name) or Column(name, "") for name in table_map.names)
        elif self._stale or len(self._columns) != len(table_map.types):
            self._columns = tuple(self._describe(self.file, self.offset))
            problem = mismatch(table_map, self._columns)
            if problem:
                raise Undecodable(f"{problem}: {FULL_METADATA}")
        self._names = tuple(column.name for column in self._columns)
        self._stale = False
        charsets = text_charsets(table_map, self._columns, self._collations)
        return _EventsTable(table_map, self._names, charsets)

    def _compressed_rows(self, data: bytes, event: int, stop: int) -> None:
        """MariaDB's, where log_bin_compress is on."""
        table = self._tables[data[event + 19 : event + 25]]
        if table is None:
            return
        if self._state != _OPEN:
            self._refuse_rows()
        begin = event + 27
        if data[event + 4] == _WRITE_V2_COMPRESSED:
            begin += data[begin] | data[begin + 1] << 8
        rows = _inflated(data[begin + table.head : stop])
        place = BinlogFileOffset(self.file, self._outer or _u32(data, event + 13)[0])
        table[data[begin : begin + table.head]](rows, 0, len(rows), self.rows.append, place)
        self._open_weight += len(rows)
        self._hold(len(rows))

    def _payload(self, data: bytes, event: int, stop: int) -> None:
        """A whole transaction in one event of MySQL's, as a rule compressed."""
        at = event + _HEADER
        fields: dict[int, int] = {}
        while data[at]:
            field, at = packed_number(data, at)
            size, at = packed_number(data, at)
            fields[field], _ = packed_number(data, at)
            at += size
        at += 1
        if at > stop or fields.get(1, stop - at) != stop - at:
            raise Undecodable("a transaction that is longer or shorter than its event")
        self._outer = _u32(data, event + 13)[0]
        rest = b""
        for piece in _pieces(data[at:stop], fields.get(2, 255)):
            rest += piece
            if len(rest) >= _HEADER and len(rest) >= _u32(rest, 9)[0]:
                rest = rest[self._run(rest, 0, 0, 0) :]
        self._outer = 0
        if rest or self._state != _CLOSED:
            raise Undecodable("a compressed transaction that does not end")


def needed(data: bytes) -> int:
    """How many bytes there must be before `feed` gets on, given the first ones."""
    if len(data) < _PACKET:
        return _PACKET
    size = int.from_bytes(data[:3], "little")
    if size < _LONGEST:
        return 4 + size
    if len(data) < _PACKET + 13:
        return _PACKET + 13
    size = 1 + int(_u32(data, _PACKET + 9)[0])
    return size + 4 * (size // _LONGEST + 1)


def _pieces(payload: bytes, compression: int) -> Iterator[bytes]:
    """The content of a payload, piece by piece: it may be much larger."""
    if compression == 255:
        yield payload
        return
    if compression != 0:
        raise Undecodable(f"a transaction with the compression {compression}")
    zstandard = import_zstandard()
    try:
        with zstandard.ZstdDecompressor().stream_reader(payload) as reader:
            while piece := reader.read(_PIECE):
                yield piece
    except zstandard.ZstdError as error:
        raise Undecodable(f"a compressed transaction: {error}") from error


def import_zstandard() -> Any:
    try:
        return import_module("zstandard")
    except ImportError:
        raise MissingExtra("MySQL's binlog_transaction_compression", "zstandard", "relay") from None


def _inflated(data: bytes) -> bytes:
    """What MariaDB compressed: 0x80 + the bytes of the length, the length, a zlib stream."""
    count = data[0] & 7
    if data[0] & 0xF8 != 0x80 or not 0 < count <= 4:
        raise Undecodable(f"a compression that begins with {data[0]}")
    size = int.from_bytes(data[1 : 1 + count], "big")
    stream = zlib.decompressobj()
    content = stream.decompress(data[1 + count :], size + 1)
    if len(content) != size:
        raise Undecodable(f"{len(content)} bytes where {size} were compressed")
    return content
