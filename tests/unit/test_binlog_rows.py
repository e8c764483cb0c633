from __future__ import annotations

import struct
from collections.abc import Sequence

import pytest

from retold.brokers.published import BinlogFileOffset
from retold.relay.source import Row
from retold.relay.sources.binlog_rows import (
    WANTED,
    Column,
    TableMap,
    Undecodable,
    decoder,
    mismatch,
    parse_table_map,
    text_charsets,
)
from tests.relay.binlog import TINYINT, VARCHAR, table_map, text

PLACE = BinlogFileOffset("binlog.000001", 100)
UTF8: dict[str, str] = dict.fromkeys(WANTED, "utf8mb4")
BLOB, STRING = 252, 254
SHORT = VARCHAR, b"\xff\x00"
LONG = VARCHAR, b"\x00\x01"
CHAR = STRING, b"\xfe\xff"
LONGTEXT = BLOB, b"\4"


def decode(
    body: bytes,
    rows: bytes,
    names: Sequence[str] = WANTED,
    charsets: dict[str, str] = UTF8,
    present: int | None = None,
) -> list[Row]:
    found: list[Row] = []
    everything = (1 << len(names)) - 1
    made = decoder(
        parse_table_map(body), names, charsets, everything if present is None else present
    )
    made(b"before" + rows + b"behind", 6, 6 + len(rows), found.append, PLACE)
    return found


def test_every_kind_of_text_column_is_read() -> None:
    sizes = [1, 2, 3, 4, 1, 2]
    types = [SHORT, LONG, (BLOB, b"\3"), LONGTEXT, CHAR, (BLOB, b"\2")]
    values = ["id", "☃" * 100, "x" * 70_000, "type", "ann", "{}"]
    row = b"\0" + b"".join(text(value, size) for value, size in zip(values, sizes, strict=True))
    found = decode(table_map(types=types), row * 2)
    assert found == [(*values, PLACE)] * 2


def test_a_char_longer_than_a_byte_counts_has_two_bytes_of_length() -> None:
    char = STRING, b"\xee\xfc"  # CHAR(255) of utf8mb4: 1020 bytes
    row = b"\0" + b"".join(text(value, 2) for value in ("a", "b", "c", "d", "e", "f"))
    assert decode(table_map(types=[char] * 6), row) == [("a", "b", "c", "d", "e", "f", PLACE)]


OTHERS = {
    "TINYINT": (TINYINT, b"", b"\x80"),
    "SMALLINT": (2, b"", bytes(2)),
    "MEDIUMINT": (9, b"", bytes(3)),
    "INT": (3, b"", bytes(4)),
    "BIGINT": (8, b"", bytes(8)),
    "FLOAT": (4, b"\4", bytes(4)),
    "DOUBLE": (5, b"\x08", bytes(8)),
    "YEAR": (13, b"", bytes(1)),
    "DATE": (10, b"", bytes(3)),
    "TIME(0)": (19, b"\0", bytes(3)),
    "TIME(6)": (19, b"\6", bytes(6)),
    "DATETIME(0)": (18, b"\0", bytes(5)),
    "DATETIME(3)": (18, b"\3", bytes(7)),
    "TIMESTAMP(0)": (17, b"\0", bytes(4)),
    "TIMESTAMP(5)": (17, b"\5", bytes(7)),
    "old TIMESTAMP": (7, b"", bytes(4)),
    "old TIME": (11, b"", bytes(3)),
    "old DATETIME": (12, b"", bytes(8)),
    "DECIMAL(10,2)": (246, b"\x0a\x02", bytes(5)),
    "DECIMAL(18,9)": (246, b"\x12\x09", bytes(8)),
    "DECIMAL(1,1)": (246, b"\x01\x01", bytes(1)),
    "BIT(1)": (16, b"\1\0", bytes(1)),
    "BIT(16)": (16, b"\0\2", bytes(2)),
    "BIT(17)": (16, b"\1\2", bytes(3)),
    "ENUM": (STRING, b"\xf7\x01", bytes(1)),
    "large ENUM": (STRING, b"\xf7\x02", bytes(2)),
    "SET": (STRING, b"\xf8\x08", bytes(8)),
    "BINARY(16)": (STRING, b"\xfe\x10", b"\x10" + bytes(16)),
    "VARBINARY(300)": (VARCHAR, b"\x2c\x01", b"\x05\x00" + bytes(5)),
    "TINYBLOB": (BLOB, b"\1", b"\2\xff\xff"),
    "JSON": (245, b"\4", b"\3\0\0\0" + bytes(3)),
    "GEOMETRY": (255, b"\4", b"\3\0\0\0" + bytes(3)),
    "VECTOR": (242, b"\4", b"\3\0\0\0" + bytes(3)),
    "compressed VARCHAR": (140, b"\x64\x00", b"\3" + bytes(3)),
    "compressed TEXT": (141, b"\2", b"\3\0" + bytes(3)),
}


@pytest.mark.parametrize(("code", "meta", "value"), OTHERS.values(), ids=OTHERS)
def test_a_column_of_any_type_beside_the_wanted_ones_is_passed_over(
    code: int, meta: bytes, value: bytes
) -> None:
    types = [SHORT, SHORT, (code, meta), SHORT, SHORT, SHORT, SHORT]
    names = ["event_id", "event_type", "more", *WANTED[2:]]
    values = [text(value) for value in "abcdef"]
    row = b"\0" + b"".join([*values[:2], value, *values[2:]])
    null = b"\4" + b"".join(values)
    body = table_map(types=types, nullable=4)
    expected = ("a", "b", "c", "d", "e", "f", PLACE)
    assert decode(body, row + null + row, names) == [expected] * 3


def test_more_than_eight_columns_have_more_than_one_byte_of_nulls() -> None:
    names = [*WANTED, *(f"more{n}" for n in range(12))]
    body = table_map(types=[SHORT] * 6 + [(TINYINT, b"")] * 12, nullable=0x3FFE0)
    row = b"\x20\x00\x03" + b"".join(text(value) for value in "abcde") + bytes(10)
    assert decode(body, row, names) == [("a", "b", "c", "d", "e", None, PLACE)]


def test_metadata_may_be_null_and_the_others_not() -> None:
    body = table_map(types=[SHORT] * 6, nullable=0x3F)
    values = b"".join(text(value) for value in "abcde")
    assert decode(body, b"\x20" + values)[0][5] is None
    with pytest.raises(Undecodable, match="NULL"):
        decode(body, b"\x21" + values)


def test_a_row_that_holds_only_some_columns_is_read_by_those() -> None:
    body = table_map(types=[SHORT] * 6 + [(TINYINT, b"")], nullable=0x20)
    names = [*WANTED, "published"]
    row = b"\0" + b"".join(text(value) for value in "abcde")
    assert decode(body, row, names, present=0x1F) == [("a", "b", "c", "d", "e", None, PLACE)]


@pytest.mark.parametrize("missing", range(6))
def test_a_row_without_a_needed_value_says_what_to_set(missing: int) -> None:
    body = table_map(types=[SHORT] * 6, nullable=0)
    with pytest.raises(Undecodable, match=rf"{WANTED[missing]}.*binlog_row_image = FULL"):
        decode(body, b"", present=0x3F & ~(1 << missing))


def test_a_table_without_a_needed_column_is_told() -> None:
    with pytest.raises(Undecodable, match="no column metadata"):
        decode(table_map(types=[SHORT] * 6), b"", [*WANTED[:5], "meta"])


@pytest.mark.parametrize("name", WANTED)
def test_a_needed_column_must_be_text(name: str) -> None:
    types: list[tuple[int, bytes]] = [SHORT] * 6
    types[WANTED.index(name)] = 245, b"\4"
    with pytest.raises(Undecodable, match=f"column {name} is no text"):
        decode(table_map(types=types), b"")


CHARSETS = {
    "utf8mb4": ("☃😀é", "utf-8"),
    "utf8mb3": ("☃é", "utf-8"),
    "utf8": ("☃é", "utf-8"),
    "ascii": ("abc", "ascii"),
    "latin1": ("é€Ÿ", "cp1252"),
}


@pytest.mark.parametrize(("charset", "sample", "codec"), [(c, *v) for c, v in CHARSETS.items()])
def test_text_is_decoded_from_its_character_set(charset: str, sample: str, codec: str) -> None:
    row = b"\0" + text(sample, charset=codec) * 6
    found = decode(table_map(types=[SHORT] * 6), row, charsets=dict.fromkeys(WANTED, charset))
    assert found == [(*[sample] * 6, PLACE)]


def test_every_byte_is_a_character_in_mysqls_latin1() -> None:
    every = bytes(range(1, 256))
    row = b"\0" + b"".join(text(v) for v in "ab") + b"\xff" + every
    row += b"".join(text(v) for v in "def")
    found = decode(table_map(types=[SHORT] * 6), row, charsets=dict.fromkeys(WANTED, "latin1"))
    assert len(set(found[0][2])) == 255
    assert found[0][2][0x81 - 1] == "\x81"


@pytest.mark.parametrize("charset", ["", "utf16", "big5"])
def test_another_character_set_is_refused(charset: str) -> None:
    charsets = {**UTF8, "entity_id": charset}
    with pytest.raises(Undecodable, match=r"entity_id.*use utf8mb4"):
        decode(table_map(types=[SHORT] * 6), b"", charsets=charsets)


@pytest.mark.parametrize("more", [-1, 1, -10])
def test_rows_end_where_their_event_does(more: int) -> None:
    row = b"\0" + b"".join(text(value) for value in "abcdef")
    damaged = (row + row)[:more] if more < 0 else row + row + bytes(more)
    with pytest.raises((Undecodable, IndexError)):
        decode(table_map(types=[SHORT] * 6), damaged)


# --- TABLE_MAP ------------------------------------------------------------------------------------


def test_a_table_map_tells_its_columns() -> None:
    found = parse_table_map(table_map("shop", "events", types=[SHORT, (TINYINT, b""), LONGTEXT]))
    assert (found.schema, found.table) == ("shop", "events")
    assert found.types == ((VARCHAR, 255), (TINYINT, 0), (BLOB, 4))
    assert (found.names, found.collations) == ((), (0, 0, 0))


def field(kind: int, value: bytes) -> bytes:
    return bytes([kind, len(value)]) + value


def test_a_table_map_may_tell_names_and_collations() -> None:
    types = [SHORT, (TINYINT, b""), LONGTEXT, (STRING, b"\xf7\x01")]
    optional = (
        field(1, b"\x80")
        + field(3, b"\x2e\xfc\x35\x01")
        + field(4, b"\1a\1b\2\xc3\xa9\1d")
        + field(12, b"\xf0")
    )
    found = parse_table_map(table_map(types=types, optional=optional))
    assert found.names == ("a", "b", "é", "d")
    assert found.collations == (46, 0, 309, 0)


def test_most_columns_may_share_a_collation() -> None:
    types = [SHORT, (TINYINT, b""), LONGTEXT, SHORT]
    found = parse_table_map(table_map(types=types, optional=field(2, b"\x2e\1\x08")))
    assert found.collations == (46, 0, 8, 46)


@pytest.mark.parametrize(
    "body",
    [
        table_map(types=[], nullable=0),
        table_map(types=[SHORT])[:-1],
        table_map(types=[SHORT])[:-5],
        table_map(types=[SHORT], optional=b"\4\x05\1a"),
        table_map(types=[SHORT, SHORT], optional=field(4, b"\1a")),
        table_map(types=[SHORT], optional=b"\4\xff"),
        table_map(types=[(VARCHAR, b"\1")]),
    ],
)
def test_a_table_map_that_is_not_whole_is_refused(body: bytes) -> None:
    with pytest.raises((Undecodable, IndexError)):
        parse_table_map(body)


def table(*types: tuple[int, int], collations: tuple[int, ...] = ()) -> TableMap:
    return TableMap("shop", "events", types, 0, (), collations or (0,) * len(types))


def test_columns_of_other_types_or_of_another_number_do_not_match() -> None:
    columns = [Column("a", "varchar"), Column("b", "tinyint"), Column("c", "longtext")]
    assert mismatch(table((VARCHAR, 100), (TINYINT, 0), (BLOB, 4)), columns) == ""
    assert "column b" in mismatch(table((VARCHAR, 100), (VARCHAR, 9), (BLOB, 4)), columns)
    assert "2 columns" in mismatch(table((VARCHAR, 100), (TINYINT, 0)), columns)


def test_a_type_that_the_database_names_in_a_new_way_is_taken_as_it_is() -> None:
    assert mismatch(table((242, 4)), [Column("a", "something_new")]) == ""


def test_the_log_knows_the_character_set_better_than_the_database() -> None:
    columns = [Column("event_id", "varchar", "latin1"), Column("event_type", "varchar", "utf8mb4")]
    found = text_charsets(
        table((VARCHAR, 1), (VARCHAR, 1), collations=(309, 0)), columns, {309: "utf16"}
    )
    assert found == {"event_id": "utf16", "event_type": "utf8mb4"}
    unknown = text_charsets(table((VARCHAR, 1), (VARCHAR, 1), collations=(999, 0)), columns, {})
    assert unknown["event_id"] == "collation 999"


def test_u32_lengths_are_read_in_full() -> None:
    body = table_map(types=[SHORT, SHORT, LONGTEXT, SHORT, SHORT, SHORT])
    data = "x" * 0x010203
    row = b"\0" + text("a") + text("b") + struct.pack("<I", len(data)) + data.encode()
    row += b"".join(text(value) for value in "def")
    assert decode(body, row)[0][2] == data
