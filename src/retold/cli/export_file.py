"""The file that `retold export` writes and `retold import` reads: JSON Lines.

First a header, then events in the order of ids, handled keys, parked events, the positions of
subscriptions, and last a line with their counts and the SHA-256 of all lines before it. What an
event holds is kept as the text that is stored, character for character.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from typing import Any, BinaryIO

import msgspec

from retold.errors import InvalidValue
from retold.store.listing import StoredEvent
from retold.store.moving import HandledKey, ParkedRow

VERSION = 1
_LONGEST_LINE = 256_000_000


class _Line(msgspec.Struct, frozen=True, tag_field="line", tag=str.lower, gc=False):
    pass


class Header(_Line, frozen=True):
    version: int


class Event(_Line, frozen=True):
    id: str
    type: str
    data: str
    entity_type: str
    entity_id: str
    trigger: str | None
    metadata: str | None


class Handled(_Line, frozen=True):
    entity_type: str
    entity_id: str
    key: str
    command: str
    update_id: str
    handled_at: int


class Parked(_Line, frozen=True):
    subscription: str
    entity_type: str
    entity_id: str
    event_id: str
    partition: int
    event_type: str
    data: str
    metadata: str | None
    error: str | None
    traceback: str | None
    attempts: int
    parked_at: int
    mark: str | None


class Position(_Line, frozen=True):
    """first: the lowest id of an event that the subscription has not handled, None for no such."""

    subscription: str
    first: str | None


class End(_Line, frozen=True):
    events: int
    handled: int
    parked: int
    positions: int
    sha256: str


Line = Header | Event | Handled | Parked | Position | End
_COUNTED: dict[type[Line], str] = {
    Event: "events",
    Handled: "handled",
    Parked: "parked",
    Position: "positions",
}
_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Line)


def stored(line: Event) -> StoredEvent:
    return StoredEvent(*_values(line))


def handled(line: Handled) -> HandledKey:
    return HandledKey(*_values(line))


def parked(line: Parked) -> ParkedRow:
    return ParkedRow(*_values(line))


def _values(line: _Line) -> Iterator[Any]:
    return (getattr(line, name) for name in line.__struct_fields__)


class Tally:
    """Counts and digest of the lines so far."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._digest = hashlib.sha256()

    def add(self, line: Line, encoded: bytes) -> None:
        self._digest.update(encoded)
        if name := _COUNTED.get(type(line)):
            self.counts[name] += 1

    def end(self) -> End:
        return End(
            **{name: self.counts[name] for name in _COUNTED.values()},
            sha256=self._digest.hexdigest(),
        )


class Writer:
    """Writes lines, and at last the one that proves them whole."""

    def __init__(self, file: BinaryIO, tally: Tally | None = None) -> None:
        """tally: of what stands in the file already, behind which it goes on."""
        self._file = file
        self.tally = tally or Tally()
        if tally is None:
            self.write([Header(VERSION)])

    def write(self, lines: list[Line]) -> None:
        for line in lines:
            encoded = _encoder.encode(line) + b"\n"
            self.tally.add(line, encoded)
            self._file.write(encoded)

    def end(self) -> End:
        end = self.tally.end()
        self._file.write(_encoder.encode(end) + b"\n")
        self._file.flush()
        return end


def read(file: BinaryIO, name: str, *, broken_off: bool) -> Iterator[tuple[Line, Tally]]:
    """The lines of a file, each with the tally of those before it.

    broken_off: a part of a line at the end is left out. Raises InvalidValue for what is no line of
    ours.
    """
    tally = Tally()
    number = 0
    while encoded := file.readline(_LONGEST_LINE):
        number += 1
        if not encoded.endswith(b"\n"):
            if broken_off:
                return
            raise _cut_off(name)
        try:
            line = _decoder.decode(encoded)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            raise InvalidValue(
                f"{name} was altered since it was written: line {number} cannot be read. Export it "
                "again"
            ) from None
        if (number == 1) != isinstance(line, Header):
            raise InvalidValue(f"{name} is no export: line {number} does not belong there")
        if isinstance(line, Header) and line.version != VERSION:
            raise InvalidValue(
                f"{name} was written by another version of retold. Import it with that one"
            )
        yield line, tally
        tally.add(line, encoded)


def check(file: BinaryIO, name: str) -> Iterator[Line]:
    """The lines of a file; at the end it is proved whole.

    Raises InvalidValue at the latest at its end, so use nothing of it before that.
    """
    end: End | None = None
    for line, tally in read(file, name, broken_off=False):
        if end is not None:
            raise InvalidValue(f"{name} goes on behind its end. Export it again")
        if isinstance(line, End):
            end = line
            if end != tally.end():
                raise InvalidValue(
                    f"{name} was altered since it was written: its digest is another. Export it "
                    "again"
                )
        yield line
    if end is None:
        raise _cut_off(name)


def _cut_off(name: str) -> InvalidValue:
    return InvalidValue(
        f"{name} was cut off: it has no last line. Go on with it by retold export --resume"
    )
