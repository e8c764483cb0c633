"""Where the rows of a transaction wait for its commit when they are too many to be held.

The first megabytes stay in memory, the rest goes to a temporary file.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from tempfile import SpooledTemporaryFile

import msgspec

from retold.relay.source import MAX_BYTES, MAX_ROWS, Row

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Row]).decode


class Spool:
    """Rows in their order, written in blocks, cut back at a rollback to a savepoint."""

    def __init__(self) -> None:
        self.rows = 0
        self._file: SpooledTemporaryFile[bytes] | None = None
        self._blocks: list[tuple[int, int, int]] = []  # row number, where it begins, its size

    def put(self, rows: list[Row]) -> None:
        if self._file is None:
            self._file = SpooledTemporaryFile(MAX_BYTES)  # noqa: SIM115 (closed by clear)
            # or when a relay that stopped in the middle lets go of it
            weakref.finalize(self, self._file.close)
        for at in range(0, len(rows), MAX_ROWS):
            part = rows[at : at + MAX_ROWS]
            block = _encode(part)
            self._blocks.append((self.rows, self._file.tell(), len(block)))
            self._file.write(block)
            self.rows += len(part)

    def cut(self, keep: int) -> list[Row]:
        """Forget the rows from number `keep` on; those before it in the same block come back."""
        kept: list[Row] = []
        while self.rows > keep:
            first, begin, size = self._blocks.pop()
            if first < keep:
                kept = self._block(begin, size)[: keep - first]
            self.rows = first
            self._open.seek(begin)
            self._open.truncate()
        if not self.rows:
            self.clear()
        return kept

    def parts(self, skip: int) -> Iterator[list[Row]]:
        """The rows from number `skip` on, block by block."""
        for first, begin, size in self._blocks:
            rows = self._block(begin, size)
            if skip > first:
                rows = rows[skip - first :]
            if rows:
                yield rows

    def clear(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file = None
        self._blocks = []
        self.rows = 0

    @property
    def _open(self) -> SpooledTemporaryFile[bytes]:
        assert self._file is not None
        return self._file

    def _block(self, begin: int, size: int) -> list[Row]:
        self._open.seek(begin)
        return _decode(self._open.read(size))
