"""Frames of a logical replication stream as PostgreSQL sends them, and a decoder fed with them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from struct import pack

from retold.relay.sources.wal_pgoutput import Cut, Decoder, Get

COLUMNS = (
    "event_id",
    "event_type",
    "event_data",
    "entity_type",
    "entity_id",
    "triggering_event",
    "metadata",
    "published",
)


def keepalive(end: int, *, asks: bool = False) -> bytes:
    return pack(">cQqB", b"k", end, 0, asks)


def message(text: bytes, lsn: int = 0) -> bytes:
    return pack(">cQQq", b"w", lsn, lsn, 0) + text


def begin(commit: int, at: int = 0) -> bytes:
    """at: microseconds since 2000."""
    return message(pack(">cQqI", b"B", commit, at, 700), commit)


def commit(commit: int, end: int, at: int = 0) -> bytes:
    return message(pack(">cBQQq", b"C", 0, commit, end, at), end)


def relation(
    columns: Iterable[str] = COLUMNS, *, id: int = 1, schema: str = "public", name: str = "events"
) -> bytes:
    described = [b"\1" + column.encode() + b"\0" + pack(">Ii", 25, -1) for column in columns]
    head = pack(">cI", b"R", id) + f"{schema}\0{name}\0d".encode()
    return message(head + pack(">H", len(described)) + b"".join(described))


def value(text: str | None) -> bytes:
    if text is None:
        return b"n"
    return pack(">cI", b"t", len(text.encode())) + text.encode()


def insert(*values: str | None, id: int = 1) -> bytes:
    head = pack(">cIcH", b"I", id, b"N", len(values))
    return message(head + b"".join(map(value, values)), 5)


def event(id: str, data: str = "{}", metadata: str | None = None) -> bytes:
    """An insert into a table of COLUMNS."""
    return insert(id, "test.Happened", data, "test.Thing", "thing", None, metadata, "0")


def transaction(lsn: int, *ids: str) -> list[bytes]:
    """Its commit is at lsn, and ends at lsn + 10."""
    return [begin(lsn), *map(event, ids), commit(lsn, lsn + 10)]


def feed(frames: Sequence[bytes]) -> Get:
    """Gives the frames as a connection does, and 0 when there are no more."""
    left = iter(frames)

    def get(_: int) -> tuple[int, memoryview]:
        frame = next(left, b"")
        return len(frame), memoryview(frame)

    return get


def decode(decoder: Decoder, frames: Sequence[bytes]) -> list[Cut]:
    """All that can be handed out once the frames were decoded."""
    cuts: list[Cut] = []
    get = feed(frames)
    more = True
    while more:
        more = decoder.take(get)
        while (cut := decoder.cut()) is not None:
            cuts.append(cut)
    return cuts


def ids(cuts: Iterable[Cut]) -> list[str]:
    return [row[0] for cut in cuts for row in cut.rows]
