"""The decoder of the binary log on streams of any shape, whole and damaged."""

from __future__ import annotations

import struct
from contextlib import suppress

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from retold.errors import LogUnreadable
from retold.relay.positions import BinlogPosition
from retold.relay.source import Row
from retold.relay.sources.binlog_events import LogEnded
from tests.relay.binlog import (
    CAPTURED,
    CAPTURES,
    Written,
    bare,
    decoder,
    feed,
    payload,
    position,
    row,
    table_map,
    write_rows,
)

STREAMS = {
    name: (CAPTURES / f"{name}.bin").read_bytes()
    for name in ("mysql8", "mysql8-compressed", "mariadb", "mariadb-compressed")
}


def start(name: str, at: BinlogPosition | None = None) -> BinlogPosition:
    return at or position(name.partition("-")[0].rstrip("8"))


def ids(rows: list[Row]) -> list[str]:
    return [row[0] for row in rows]


def read(name: str, stream: bytes, piece: int = 1 << 16) -> list[Row]:
    return feed(decoder(start(name), checksum=True), stream, piece)


@settings(deadline=None)
@given(st.sampled_from(sorted(STREAMS)), st.integers(1, 6000))
def test_pieces_of_any_size_give_the_same_rows(name: str, piece: int) -> None:
    assert ids(read(name, STREAMS[name], piece)) == list(CAPTURED)


def split(stream: bytes) -> list[bytes]:
    """The packets of a stream, each with its head."""
    packets: list[bytes] = []
    at = 0
    while at < len(stream):
        end = at + 4 + int.from_bytes(stream[at : at + 3], "little")
        packets.append(stream[at:end])
        at = end
    return packets


PACKETS = {name: split(stream) for name, stream in STREAMS.items()}


@st.composite
def damaged(draw: st.DrawFn) -> tuple[str, bytes]:
    """A captured stream with packets lost, doubled, swapped, cut off, grown or overwritten."""
    name = draw(st.sampled_from(sorted(PACKETS)))
    packets = list(PACKETS[name])
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(packets) - 1))
        body = bytearray(packets[at][4:])
        match draw(st.sampled_from(["lose", "double", "swap", "cut", "grow", "overwrite"])):
            case "lose" if len(packets) > 1:
                del packets[at]
                continue
            case "double":
                packets.insert(at, packets[at])
                continue
            case "swap":
                other = draw(st.integers(0, len(packets) - 1))
                packets[at], packets[other] = packets[other], packets[at]
                continue
            case "cut":
                del body[draw(st.integers(0, len(body))) :]
            case "grow":
                body += draw(st.binary(min_size=1, max_size=20))
            case _:
                for _ in range(draw(st.integers(1, 4))):
                    if body:
                        where = draw(st.integers(0, len(body) - 1))
                        body[where] = draw(st.integers(0, 255))
        packets[at] = struct.pack("<I", len(body)) + bytes(body)
    return name, b"".join(packets)


@settings(max_examples=600, deadline=None)
@given(damaged())
def test_a_damaged_stream_is_read_or_refused_with_one_error(stream: tuple[str, bytes]) -> None:
    with suppress(LogUnreadable, LogEnded):
        read(*stream)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(STREAMS)), st.binary(max_size=300))
@example("mysql8", b"\xff\xff\xff\0\0" + b"\xff" * 40)
@example("mysql8", b"\0\0\0\0" * 9)
def test_whatever_follows_a_stream_is_read_or_refused_with_one_error(
    name: str, noise: bytes
) -> None:
    made = decoder(start(name), checksum=True)
    assert ids(feed(made, STREAMS[name])) == list(CAPTURED)
    with suppress(LogUnreadable, LogEnded):
        feed(made, noise)


INNER = (
    bare(2, struct.pack("<IIBHH", 1, 0, 0, 0, 0) + b"\0BEGIN")
    + bare(19, table_map())
    + bare(30, write_rows(row("a"), row("b")))
    + bare(16, bytes(8))
)


@settings(max_examples=300, deadline=None)
@given(st.data(), st.sampled_from([None, 0]))
def test_a_damaged_transaction_in_one_event_is_read_or_refused_with_one_error(
    data: st.DataObject, compression: int | None
) -> None:
    inner = bytearray(INNER)
    for _ in range(data.draw(st.integers(1, 3))):
        inner[data.draw(st.integers(0, len(inner) - 1))] = data.draw(st.integers(0, 255))
    body = bytearray(payload(bytes(inner), compression))
    if data.draw(st.booleans()):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    with suppress(LogUnreadable):
        feed(decoder(), Written().anonymous().event(40, bytes(body)).bytes)


@settings(deadline=None)
@given(st.data())
def test_no_row_holds_a_byte_from_behind_its_packet(data: st.DataObject) -> None:
    # Where a length is damaged the row would end in the next packet, which holds this text.
    secret = "behind" * 50
    body = bytearray(write_rows(row("a")))
    at = data.draw(st.integers(8, len(body) - 1))
    body[at] = data.draw(st.integers(0, 255))
    written = Written().anonymous().begin().event(19, table_map()).event(30, bytes(body)).commit()
    made = decoder()
    with suppress(LogUnreadable):
        made.feed(written.bytes + Written().anonymous().begin().query(secret).bytes)
    for one in made.take():
        assert not any("behind" in str(value) for value in one)


@pytest.mark.parametrize("name", STREAMS)
def test_every_prefix_of_a_stream_gives_a_prefix_of_its_rows(name: str) -> None:
    for packets in range(len(PACKETS[name])):
        found = ids(read(name, b"".join(PACKETS[name][:packets])))
        assert found == list(CAPTURED[: len(found)])
