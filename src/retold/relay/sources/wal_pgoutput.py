"""The decoder of PostgreSQL's logical replication stream: pgoutput, protocol 1, inside of COPY.

Frames in, rows out, no I/O. A frame is a keepalive or carries one message. A transaction comes when
it is committed, in one piece: Begin, inserts, Commit. A Relation tells a table's columns before the
first insert of a session and after every change, so columns are found by their names.

An insert is read for every event: straight-line code is made for each shape of the table.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from struct import Struct, error
from typing import cast

from retold.errors import LogUnreadable
from retold.relay.source import MAX_BYTES, MAX_ROWS, Row

NEEDED = ("event_id", "event_type", "event_data", "entity_type", "entity_id", "metadata")
"""The columns of a row, in its order."""

_Frame = bytes | bytearray | memoryview
Get = Callable[[int], tuple[int, _Frame]]
"""As libpq's get_copy_data(1): the length of the next frame and the frame; 0 where there is none
yet, -1 at the end of the stream."""

_Read = Callable[[bytes], Row]

_begin = Struct(">26xQqI").unpack
_commit = Struct(">26xBQQq").unpack
_keepalive = Struct(">xQqB").unpack
_u16 = Struct(">H").unpack_from
_u64 = Struct(">Q").unpack_from
_STREAM, _KEEPALIVE = b"wk"
_BEGIN, _COMMIT, _INSERT, _RELATION = b"BCIR"
# Updates, deletes and truncations are no events; origins and types say nothing about rows.
_IGNORED = frozenset(b"UDTOY")
_NO_TRANSACTION = -1
_ALL = sys.maxsize
_EPOCH = 946_684_800
"""2000-01-01, where PostgreSQL's time begins."""


@dataclass(frozen=True, slots=True)
class Cut:
    """What can be handed out. lsn, inside: the position behind it."""

    rows: list[Row]
    lsn: int
    inside: int
    committed: float


class Decoder:
    """Decodes one stream from a position on.

    end: everything up to here was decoded. inside: the rows of the next transaction that were
    handed out already, by this decoder or an earlier one. asked: the server wants an answer.
    ended: the server has ended the stream.
    """

    def __init__(self, schema: str, table: str, lsn: int, inside: int = 0) -> None:
        self._name = schema, table
        self._from = lsn
        self.end = lsn
        self.inside = inside
        self.asked = False
        self.ended = False
        self._readers: dict[bytes, _Read | None] = {}
        self._rows: list[Row] = []
        self._size: int = 0
        # The part of rows and size that belongs to whole transactions.
        self._whole: int = 0
        self._whole_size: int = 0
        self._stamp = self._committed = 0
        # Rows left to skip in the transaction that is open.
        self._skip: int = _NO_TRANSACTION
        self._met = False

    @property
    def full(self) -> bool:
        return len(self._rows) >= MAX_ROWS or self._size >= MAX_BYTES

    def take(self, get: Get) -> bool:
        """Decode what is there, up to a limit; whether there was anything.

        Raises LogUnreadable.
        """
        rows, readers = self._rows, self._readers
        size, skip = self._size, self._skip
        append = rows.append
        taken = 0
        frame: _Frame = b""
        try:
            for taken in range(MAX_ROWS):
                length, frame = get(1)
                if length <= 0:
                    self.ended = length < 0
                    return taken > 0
                if frame[0] != _STREAM:
                    self._control(frame, skip)
                    continue
                kind = frame[25]
                if kind == _INSERT:
                    insert = bytes(frame)
                    read = readers[insert[26:30]]
                    if read is None:
                        continue
                    if skip:
                        if skip < 0:
                            raise ValueError("an insert outside of a transaction")
                        skip -= 1
                        self._met = True
                        continue
                    append(read(insert))
                    size += length
                    if size >= MAX_BYTES or len(rows) >= MAX_ROWS:
                        break
                elif kind == _BEGIN:
                    if skip != _NO_TRANSACTION:
                        raise ValueError("a transaction inside of another")
                    final, self._stamp, _ = _begin(frame)
                    skip = self.inside if final >= self._from else _ALL
                elif kind == _COMMIT:
                    _, _, end, self._committed = _commit(frame)
                    if skip or len(rows) == self._whole or self.inside:
                        self._end_transaction(end, skip)
                    elif end > self.end:
                        self.end = end
                    skip = _NO_TRANSACTION
                    self._whole, self._whole_size = len(rows), size
                else:
                    self._describe(bytes(frame))
            return True
        except (ValueError, IndexError, KeyError, error) as problem:
            raise self._unreadable(bytes(frame), problem) from problem
        finally:
            self._size, self._skip = size, skip

    def _control(self, frame: _Frame, skip: int) -> None:
        if frame[0] != _KEEPALIVE:
            raise ValueError(f"an unknown frame {bytes(frame[:1])!r}")
        end, _, asked = _keepalive(frame)
        # Inside a transaction the server has not come past it.
        if skip == _NO_TRANSACTION and end > self.end:
            self.end = end
        if asked:
            self.asked = True

    def _end_transaction(self, end: int, skip: int) -> None:
        """What is special: no rows, rows skipped, rows handed out before."""
        if skip == _NO_TRANSACTION:
            raise ValueError("a commit outside of a transaction")
        has_rows, self._met = self._met or len(self._rows) > self._whole, False
        if end <= self._from:
            return
        if has_rows:
            if skip:
                raise ValueError(f"a transaction has {skip} rows less than were published of it")
            self.inside = 0
        if end > self.end:
            self.end = end

    def _describe(self, frame: bytes) -> None:
        if frame[25] == _RELATION:
            relation, name, columns = _relation(frame)
            self._readers[relation] = _reader(columns) if name == self._name else None
        elif frame[25] not in _IGNORED:
            raise ValueError(f"an unknown message {frame[25:26]!r}")

    def _unreadable(self, frame: bytes, problem: Exception) -> LogUnreadable:
        if isinstance(problem, KeyError):
            reason = "an insert into a table that was not described"
        elif isinstance(problem, (IndexError, error)):
            reason = "a message is cut off"
        else:
            reason = str(problem)
        (place,) = _u64(frame, 1) if len(frame) > 25 else (0,)
        return LogUnreadable(reason, f"LSN {lsn_text(place or self.end)}")

    def cut(self) -> Cut | None:
        """The rows of whole transactions; of a transaction that fills everything, a part."""
        rows = self._rows
        if self._whole:
            out, self._rows = rows[: self._whole], rows[self._whole :]
            self._size -= self._whole_size
            self._whole = self._whole_size = 0
            stamp = self._committed
        elif self.full:
            out, self._rows, self._size = rows, [], 0
            self._met = True
            self.inside += len(out)
            stamp = self._stamp
        else:
            return None
        return Cut(out, self.end, self.inside, stamp / 1e6 + _EPOCH)


def lsn_text(lsn: int) -> str:
    """A place in the log as PostgreSQL writes it."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"


def _relation(frame: bytes) -> tuple[bytes, tuple[str, str], list[str]]:
    """A relation's id (its bytes), its schema and name, and the names of its columns."""
    schema, at = _string(frame, 30)
    table, at = _string(frame, at)
    (count,) = _u16(frame, at + 1)  # behind the replica identity
    at += 3
    columns: list[str] = []
    for _ in range(count):
        name, at = _string(frame, at + 1)  # behind the flags
        columns.append(name)
        at += 8  # type and modifier
    if at != len(frame):
        raise ValueError("a description of a table has another length than it says")
    return frame[26:30], (schema, table), columns


def _string(frame: bytes, at: int) -> tuple[str, int]:
    end = frame.index(0, at)
    return frame[at:end].decode(), end + 1


def _reader(columns: list[str]) -> _Read:
    """A function that reads an insert into a table of these columns.

    Its frame: header (25 bytes), I, relation, N, number of columns; then for each column its kind,
    and for a text (t) its length and bytes.
    """
    if missing := [name for name in NEEDED if name not in columns]:
        raise ValueError(f"the table has no column {', '.join(missing)}")
    head = b"N" + len(columns).to_bytes(2, "big")
    lines = ["def read(frame):", f"    if frame[30:33] != {head!r}: raise wrong()", "    end = 33"]
    for number, name in enumerate(columns):
        value = f"c{number} = frame[start:end].decode()"
        if name in NEEDED and name != "metadata":
            lines += [
                "    kind, length = text(frame, end)",
                f"    if kind != {ord('t')}: raise bad({number}, kind)",
                "    start = end + 5",
                "    end = start + length",
                f"    {value}",
            ]
        else:
            lines += [
                "    kind = frame[end]",
                f"    if kind == {ord('t')}:",
                "        kind, length = text(frame, end)",
                "        start = end + 5",
                "        end = start + length",
                f"        {value if name in NEEDED else 'pass'}",
                f"    elif kind == {ord('n')}:",
                "        end += 1",
                f"        c{number} = None",
                f"    else: raise bad({number}, kind)",
            ]
    row = ", ".join(f"c{columns.index(name)}" for name in NEEDED)
    lines += ["    if end != len(frame): raise wrong()", f"    return {row}, None"]

    def wrong() -> ValueError:
        return ValueError("an insert has another length or number of columns than it says")

    def bad(number: int, kind: int) -> ValueError:
        what = {ord("n"): "NULL", ord("u"): "left out"}.get(kind, f"of the kind {chr(kind)!r}")
        return ValueError(f"the column {columns[number]} is {what}")

    names = {"wrong": wrong, "bad": bad, "text": Struct(">BI").unpack_from}
    exec("\n".join(lines), names)  # built from constants and numbers, never from names
    return cast("_Read", names["read"])
