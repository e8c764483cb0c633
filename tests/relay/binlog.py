"""A binary log as a server sends it, written event by event, and a decoder fed with it.

    python -m tests.relay.binlog

writes the streams in captures/ anew, from real servers.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import msgspec
import pymysql

from retold import EventStore
from retold.relay.positions import BinlogPosition
from retold.relay.source import Row
from retold.relay.sources.binlog import BinlogSource
from retold.relay.sources.binlog_events import Decoder, needed
from retold.relay.sources.binlog_rows import Column
from retold.relay.sources.binlog_stream import Stream
from retold.store.url import parse_url
from tests.rig import MariaDB, MySQL, Private
from tests.rig.databases import with_parts

CAPTURES = Path(__file__).parent / "captures"
NAMES = (
    "event_id",
    "event_type",
    "event_data",
    "entity_type",
    "entity_id",
    "triggering_event",
    "metadata",
    "published",
)
COLUMNS = tuple(
    Column(name, "tinyint" if name == "published" else "varchar", charset="utf8mb4")
    for name in NAMES
)
COLLATIONS = {46: "utf8mb4", 309: "utf8mb4", 1222: "utf8mb4"}
SERVER = "11111111-2222-3333-4444-555555555555"

VARCHAR, TINYINT = 15, 1


def position(flavour: str = "mysql", **parts: Any) -> BinlogPosition:
    first = BinlogPosition(flavour, SERVER, "", "binlog.000001", 4, NAMES)
    return msgspec.structs.replace(first, **parts)


def decoder(
    start: BinlogPosition | None = None,
    *,
    checksum: bool = False,
    columns: Sequence[Column] = COLUMNS,
    described: Sequence[Column] = COLUMNS,
    **options: Any,
) -> Decoder:
    """described: the columns that the database tells when it is asked."""
    return Decoder(
        start or position(),
        ("shop", "events"),
        columns=columns,
        collations=COLLATIONS,
        describe=lambda file, offset: described,
        checksum=checksum,
        **options,
    )


def feed(decoder: Decoder, data: bytes, piece: int = 1 << 16) -> list[Row]:
    """What comes of a stream in pieces; large transactions are taken as they come."""
    found: list[Row] = []
    rest = b""
    for at in range(0, len(data), piece):
        rest += data[at : at + piece]
        while len(rest) >= needed(rest):
            used = decoder.feed(rest)
            rest = rest[used:]
            found += taken(decoder)
            if not used:
                break
    return found


def taken(decoder: Decoder) -> list[Row]:
    found = decoder.take()
    if decoder.large is not None:
        for part in decoder.spool.parts(decoder.large.skip):
            found += part
        decoder.forget_large()
    return found


def packets(payload: bytes) -> bytes:
    """A payload as it goes over the wire, in as many packets as it needs."""
    made = b""
    for at in range(0, len(payload) + 1, 0xFFFFFF):
        part = payload[at : at + 0xFFFFFF]
        made += struct.pack("<I", len(part)) + part
    return made


def bare(
    kind: int, body: bytes, *, end: int = 0, flags: int = 0, time: int = 1_700_000_000
) -> bytes:
    """An event without a packet around it."""
    return struct.pack("<IBIIIH", time, kind, 1, 19 + len(body), end, flags) + body


class Written:
    """A log in the writing. `bytes` is the stream so far."""

    def __init__(self, offset: int = 4, *, checksum: bool = False) -> None:
        self.bytes = b""
        self.offset = offset
        self._checksum = checksum

    def event(self, kind: int, body: bytes = b"", *, flags: int = 0) -> Written:
        tail = b"\0\0\0\0" if self._checksum else b""
        self.offset += 19 + len(body) + len(tail)
        event = bare(kind, body + tail, end=self.offset & 0xFFFFFFFF, flags=flags)
        self.bytes += packets(b"\0" + event)
        return self

    def raw(self, packet: bytes) -> Written:
        self.bytes += packets(packet)
        return self

    # --- MySQL's transactions

    def gtid(self, number: int = 1) -> Written:
        server = bytes.fromhex(SERVER.replace("-", ""))
        return self.event(33, b"\0" + server + struct.pack("<Q", number))

    def anonymous(self) -> Written:
        return self.event(34, bytes(25))

    def query(self, text: str, schema: str = "shop") -> Written:
        name = schema.encode()
        return self.event(
            2, struct.pack("<IIBHH", 1, 0, len(name), 0, 0) + name + b"\0" + text.encode()
        )

    def begin(self) -> Written:
        return self.query("BEGIN")

    def commit(self) -> Written:
        return self.event(16, bytes(8))

    def insert(self, *ids: str, data: str = "{}") -> Written:
        """Rows of events with these ids."""
        return self.event(19, table_map()).event(30, write_rows(*[row(id, data) for id in ids]))

    def transaction(self, *ids: str) -> Written:
        return self.anonymous().begin().insert(*ids).commit()

    # --- MariaDB's

    def mariadb_gtid(self, number: int, domain: int = 0, flags: int = 0) -> Written:
        return self.event(162, struct.pack("<QIB6x", number, domain, flags))


def table_map(
    schema: str = "shop",
    table: str = "events",
    *,
    id: int = 7,
    types: Sequence[tuple[int, bytes]] = ((VARCHAR, b"\x40\x00"),) * 7 + ((TINYINT, b""),),
    nullable: int = 0b0110_0000,
    optional: bytes = b"",
) -> bytes:
    """Seven VARCHARs of 64 bytes and a TINYINT, unless said otherwise."""
    meta = b"".join(meta for _, meta in types)
    return (
        id.to_bytes(6, "little")
        + b"\1\0"
        + bytes([len(schema)])
        + schema.encode()
        + b"\0"
        + bytes([len(table)])
        + table.encode()
        + b"\0"
        + bytes([len(types)])
        + bytes(code for code, _ in types)
        + bytes([len(meta)])
        + meta
        + nullable.to_bytes((len(types) + 7) // 8, "little")
        + optional
    )


def text(value: str, size: int = 1, charset: str = "utf-8") -> bytes:
    encoded = value.encode(charset)
    return len(encoded).to_bytes(size, "little") + encoded


def row(id: str, data: str = "{}") -> bytes:
    """A row for the table that table_map says."""
    values = [id, "test.Happened", data, "test.Thing", "thing"]
    return b"\x60" + b"".join(map(text, values)) + b"\0"


def write_rows(*rows: bytes, id: int = 7, columns: int = 8, present: int = 0xFF) -> bytes:
    head = id.to_bytes(6, "little") + b"\1\0" + b"\2\0" + bytes([columns])
    return head + present.to_bytes((columns + 7) // 8, "little") + b"".join(rows)


def format_description(checksum: int) -> bytes:
    body = struct.pack("<H50sIB", 4, b"8.0.31", 0, 19) + bytes(41)
    return body + bytes([checksum])


def payload(events: bytes, compression: int | None = None) -> bytes:
    """MySQL's TRANSACTION_PAYLOAD; compression None leaves the events as they are."""
    content = events
    if compression == 0:
        import zstandard

        content = zstandard.ZstdCompressor().compress(events)
    kind = 255 if compression is None else compression
    fields = b"\2" + (b"\1" + bytes([kind]) if kind < 251 else b"\3\xfc" + struct.pack("<H", kind))
    fields += b"\1\x09\xfe" + struct.pack("<Q", len(content))
    return fields + b"\0" + content


def deflated(content: bytes) -> bytes:
    """As MariaDB compresses."""
    return b"\x84" + len(content).to_bytes(4, "big") + zlib.compress(content)


# --- captures -------------------------------------------------------------------------------------

CAPTURED = ("a", "b", "c", "d", "é", "f")
"""The ids of the events in each capture."""


def _capture(server: Private) -> bytes:
    server.start()
    try:
        server.create_database("shop")
        url = with_parts(server.url, database="shop")
        with EventStore(url) as store:
            store.migrate()
        source = BinlogSource(parse_url(url), 4711)
        start = source.now()
        _write(url)
        found: list[bytes] = []
        receive = Stream.receive

        def recording(self: Stream, wait: float) -> bytes:
            found.append(receive(self, wait))
            return found[-1]

        with patch.object(Stream, "receive", recording):
            source.start(start)
            while source.read(1.5) is not None:
                pass
        source.close()
        return b"".join(found)
    finally:
        server.stop()


def _write(url: str) -> None:
    parsed = parse_url(url)
    raw = pymysql.connect(
        host=parsed.host, port=parsed.port, user="root", database="shop", autocommit=True
    )
    insert = "INSERT INTO events VALUES ('{}', 't.H', '{}', 't.T', 'x', NULL, {}, 0)"
    with raw, raw.cursor() as cursor:
        for statement in (
            insert.format("a", "{}", "NULL"),
            "BEGIN",
            insert.format("b", "text " * 100, "'{}'"),
            insert.format("c", "{}", "NULL") + ", ('d', 't.H', '{}', 't.T', 'y', NULL, NULL, 0)",
            "INSERT INTO entities VALUES ('t.T', 'x', 'd')",
            "COMMIT",
            "CREATE TABLE other (a INT)",
            "INSERT INTO other VALUES (1), (2)",
            insert.format("é", "☃", "NULL"),
            "FLUSH BINARY LOGS",
            "UPDATE events SET published = 1",
            insert.format("f", "{}", "NULL"),
            "DELETE FROM events",
        ):
            cursor.execute(statement)


if __name__ == "__main__":
    gtid = ("--gtid-mode=ON", "--enforce-gtid-consistency=ON")
    for name, server in {
        "mysql8": MySQL(*gtid),
        "mysql8-compressed": MySQL(*gtid, "--binlog-transaction-compression=ON"),
        "mariadb": MariaDB(),
        "mariadb-compressed": MariaDB("--log-bin-compress=1", "--log-bin-compress-min-len=10"),
    }.items():
        (CAPTURES / f"{name}.bin").write_bytes(_capture(server))
