"""The rows of the events table as the binary log spells them.

A TABLE_MAP event says which types the columns of a table have; row events then hold bare values.
For each such description a decoder is written as Python source, a few straight lines for each
column: nothing is looked up while rows are read.
"""

from __future__ import annotations

import codecs
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from retold.brokers.published import BinlogFileOffset
from retold.relay.source import Row

WANTED = ("event_id", "event_type", "event_data", "entity_type", "entity_id", "metadata")
REQUIRED = WANTED[:5]

Decode = Callable[[bytes, int, int, Callable[[Row], None], BinlogFileOffset], None]
"""data, where the rows begin, where they end, what to do with each, their place."""


class Undecodable(ValueError):
    """What the log holds cannot be read, or not be used; the text says why, and what mends it."""


@dataclass(frozen=True, slots=True)
class Column:
    """What the database says of a column. charset is empty for what is no text."""

    name: str
    type: str
    charset: str = ""


@dataclass(frozen=True, slots=True)
class TableMap:
    """What a TABLE_MAP event says; names and collations only if the server was told to write
    them."""

    schema: str
    table: str
    types: tuple[tuple[int, int], ...]
    """Of each column the type, and the two bytes of its metadata as one number."""
    nullable: int
    """A bit for each column."""
    names: tuple[str, ...] = ()
    collations: tuple[int, ...] = ()
    """Of each column; 0 for what is no text."""


# --- types ----------------------------------------------------------------------------------------

_TINY, _SHORT, _LONG, _FLOAT, _DOUBLE = 1, 2, 3, 4, 5
_LONGLONG, _INT24, _DATE, _TIME, _DATETIME, _YEAR = 8, 9, 10, 11, 12, 13
_TIMESTAMP, _NEWDATE, _VARCHAR, _BIT = 7, 14, 15, 16
_TIMESTAMP2, _DATETIME2, _TIME2 = 17, 18, 19
_VARCHAR_COMPRESSED, _BLOB_COMPRESSED = 140, 141
_VECTOR, _JSON, _DECIMAL, _ENUM, _SET = 242, 245, 246, 247, 248
_BLOB, _VAR_STRING, _STRING, _GEOMETRY = 252, 253, 254, 255

_FIXED = {
    **dict.fromkeys((_TINY, _YEAR), 1),
    _SHORT: 2,
    **dict.fromkeys((_INT24, _DATE, _NEWDATE, _TIME), 3),
    **dict.fromkeys((_LONG, _TIMESTAMP, _FLOAT), 4),
    **dict.fromkeys((_LONGLONG, _DOUBLE, _DATETIME), 8),
}
_FRACTIONAL = {_TIMESTAMP2: 4, _DATETIME2: 5, _TIME2: 3}
_PREFIXED = {_BLOB, _BLOB_COMPRESSED, _JSON, _GEOMETRY, _VECTOR}  # metadata: bytes of the length
_ONE_BYTE = {*_PREFIXED, _FLOAT, _DOUBLE, *_FRACTIONAL}
_TWO_BYTES = {_VARCHAR, _VARCHAR_COMPRESSED, _BIT, _VAR_STRING, _DECIMAL, _STRING, _ENUM, _SET}
_BY_NAME = {
    "varchar varbinary": (_VARCHAR, _VARCHAR_COMPRESSED),
    "char binary enum set uuid inet4 inet6": (_STRING,),
    "tinytext text mediumtext longtext": (_BLOB, _BLOB_COMPRESSED),
    "tinyblob blob mediumblob longblob": (_BLOB, _BLOB_COMPRESSED),
    "json": (_JSON,),
    "tinyint": (_TINY,),
    "smallint": (_SHORT,),
    "mediumint": (_INT24,),
    "int": (_LONG,),
    "bigint": (_LONGLONG,),
    "float": (_FLOAT,),
    "double": (_DOUBLE,),
    "decimal": (_DECIMAL,),
    "bit": (_BIT,),
    "date": (_DATE, _NEWDATE),
    "year": (_YEAR,),
    "time": (_TIME, _TIME2),
    "datetime": (_DATETIME, _DATETIME2),
    "timestamp": (_TIMESTAMP, _TIMESTAMP2),
}
_CODES = {name: codes for names, codes in _BY_NAME.items() for name in names.split()}
"""Which types in the log information_schema's names stand for."""


def _real_type(code: int, meta: int) -> tuple[int, int]:
    """CHAR, ENUM and SET share a type, and hide which it is, and the length, in the metadata."""
    if code != _STRING:
        return code, meta
    first, second = meta & 0xFF, meta >> 8
    if first & 0x30 != 0x30:
        return first | 0x30, (first & 0x30 ^ 0x30) << 4 | second
    return first, second


# --- TABLE_MAP ------------------------------------------------------------------------------------


def table_name(body: bytes) -> tuple[str, str, int]:
    """Schema and table of a TABLE_MAP event, and where its columns begin."""
    schema_end = 9 + body[8]
    table_at = schema_end + 2
    table_end = table_at + body[schema_end + 1]
    return (
        body[9:schema_end].decode("utf-8", "replace"),
        body[table_at:table_end].decode("utf-8", "replace"),
        table_end + 1,
    )


def parse_table_map(body: bytes) -> TableMap:
    """Raises Undecodable, IndexError."""
    schema, table, at = table_name(body)
    count, at = packed_number(body, at)
    if not 0 < count <= 4096:
        raise Undecodable(f"a table of {count} columns")
    codes = _take(body, at, count)
    size, at = packed_number(body, at + count)
    meta_end = at + size
    types: list[tuple[int, int]] = []
    for code in codes:
        meta = 0
        if code in _ONE_BYTE:
            meta, at = body[at], at + 1
        elif code in _TWO_BYTES:
            meta, at = body[at] | body[at + 1] << 8, at + 2
        types.append((code, meta))
    if at != meta_end:
        raise Undecodable("the metadata of the columns has another length than it says")
    bitmap = _take(body, at, (count + 7) // 8)
    names, collations = _optional(body, at + len(bitmap), types)
    return TableMap(
        schema, table, tuple(types), int.from_bytes(bitmap, "little"), names, collations
    )


def _optional(
    body: bytes, at: int, types: Sequence[tuple[int, int]]
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Names and collations, as far as binlog_row_metadata let the server write them."""
    names: list[str] = []
    collations = [0] * len(types)
    texts = [
        index
        for index, (code, meta) in enumerate(types)
        if _real_type(code, meta)[0] in (_STRING, _VAR_STRING, _VARCHAR, _BLOB)
        or code in (_VARCHAR_COMPRESSED, _BLOB_COMPRESSED)
    ]
    while at < len(body):
        field = body[at]
        size, at = packed_number(body, at + 1)
        value = _take(body, at, size)
        at += size
        inner = 0
        if field == 2:  # the most frequent collation, then those that differ
            default, inner = packed_number(value, inner)
            for index in texts:
                collations[index] = default
            while inner < size:
                which, inner = packed_number(value, inner)
                collations[texts[which]], inner = packed_number(value, inner)
        elif field == 3:  # the collation of each
            for index in texts:
                collations[index], inner = packed_number(value, inner)
        elif field == 4:
            while inner < size:
                length, inner = packed_number(value, inner)
                names.append(_take(value, inner, length).decode())
                inner += length
    if names and len(names) != len(types):
        raise Undecodable(f"{len(names)} names for {len(types)} columns")
    return tuple(names), tuple(collations)


def packed_number(data: bytes, at: int) -> tuple[int, int]:
    """A number of one to nine bytes, and where it ends."""
    first = data[at]
    if first < 251:
        return first, at + 1
    size = {252: 2, 253: 3, 254: 8}.get(first)
    if size is None:
        raise Undecodable(f"a length that begins with {first}")
    return int.from_bytes(_take(data, at + 1, size), "little"), at + 1 + size


def _take(data: bytes, at: int, size: int) -> bytes:
    if at + size > len(data):
        raise Undecodable("the event is shorter than it says")
    return data[at : at + size]


# --- columns --------------------------------------------------------------------------------------


def mismatch(table_map: TableMap, columns: Sequence[Column]) -> str:
    """How the columns of the database differ from those in the log; empty if they do not."""
    if len(columns) != len(table_map.types):
        return f"{len(table_map.types)} columns in the log, {len(columns)} are known"
    for column, (code, _) in zip(columns, table_map.types, strict=True):
        if code not in _CODES.get(column.type, (code,)):
            return f"column {column.name} is not of the type {column.type} in the log"
    return ""


def text_charsets(
    table_map: TableMap, columns: Sequence[Column], collations: Mapping[int, str]
) -> dict[str, str]:
    """The character set of each wanted column."""
    charsets = {column.name: column.charset for column in columns}
    for column, collation in zip(columns, table_map.collations, strict=True):
        if collation:
            charsets[column.name] = collations.get(collation, f"collation {collation}")
    return {name: charsets[name] for name in WANTED if name in charsets}


# --- the decoder ----------------------------------------------------------------------------------


def _latin1_table() -> str:
    # MySQL's latin1 is Windows' cp1252, with the five bytes that one lacks as control characters.
    return "".join(bytes([byte]).decode("cp1252", "ignore") or chr(byte) for byte in range(256))


CHARSETS = {
    "utf8mb4": "{0}.decode()",
    "utf8mb3": "{0}.decode()",
    "utf8": "{0}.decode()",
    "ascii": "{0}.decode('ascii')",
    "latin1": "charmap({0}, 'strict', latin1)[0]",
}
"""How the text of a character set becomes a str."""


def decoder(
    table_map: TableMap, names: Sequence[str], charsets: Mapping[str, str], present: int
) -> Decode:
    """A decoder of row events that hold the columns whose bits are set in `present`.

    Raises Undecodable.
    """
    lines = _row_lines(table_map, names, charsets, present)
    body = "\n".join(f"        {line}" for line in lines)
    # A slice that reaches behind the event is found out by the comparison at the end.
    source = (
        "def decode(data, at, end, append, place):\n"
        "    while at < end:\n"
        f"{body}\n"
        "    if at != end:\n"
        "        raise Undecodable('a row does not end where the event does')\n"
    )
    space: dict[str, Any] = {
        "u32": struct.Struct("<I").unpack_from,
        "charmap": codecs.charmap_decode,
        "latin1": _latin1_table(),
        "Undecodable": Undecodable,
    }
    exec(source, space)
    decode: Decode = space["decode"]
    return decode


def _row_lines(
    table_map: TableMap, names: Sequence[str], charsets: Mapping[str, str], present: int
) -> list[str]:
    positions = {name: index for index, name in enumerate(names)}
    for name in WANTED:
        if name not in positions:
            raise Undecodable(f"the events table has no column {name} at this place")
        nullable = table_map.nullable >> positions[name] & 1
        if not present >> positions[name] & 1 and (name in REQUIRED or not nullable):
            raise Undecodable(
                f"the row has no value for {name}, because the server writes only part of each "
                f"row; SET GLOBAL binlog_row_image = FULL"
            )
    here = [index for index in range(len(names)) if present >> index & 1]
    size = (len(here) + 7) // 8
    bits = {names[index]: 1 << bit for bit, index in enumerate(here)}
    needed = sum(bits[name] for name in REQUIRED)
    nulls = "data[at]" if size == 1 else f"int.from_bytes(data[at : at + {size}], 'little')"
    lines = [
        f"nulls = {nulls}",
        f"at += {size}",
        f"if nulls & {needed}:",
        "    raise Undecodable('a row has NULL where an event needs a value')",
    ]
    for index in here:
        name = names[index]
        wanted = name in WANTED
        value = _value_lines(*table_map.types[index], f"v_{name}" if wanted else "", name, charsets)
        if name in REQUIRED:
            lines += value
        elif table_map.nullable >> index & 1:
            lines += [f"if nulls & {bits[name]}:", f"    v_{name} = None" if wanted else "    pass"]
            lines += ["else:", *(f"    {line}" for line in value)]
        else:
            lines += [*value]
    metadata = "v_metadata" if "metadata" in bits else "None"
    values = ", ".join([*(f"v_{name}" for name in REQUIRED), metadata, "place"])
    return [*lines, f"append(({values}))"]


def _value_lines(
    code: int, meta: int, variable: str, name: str, charsets: Mapping[str, str]
) -> list[str]:
    """Take a value into a variable, or pass over it."""
    real, length = _real_type(code, meta)
    if variable and real not in (_VARCHAR, _VAR_STRING, _STRING, _BLOB):
        raise Undecodable(f"column {name} is no text in the log (type {code})")
    if real in _PREFIXED:
        lines = _prefix(meta)
    elif real in (_VARCHAR, _VAR_STRING, _VARCHAR_COMPRESSED, _STRING):
        lines = _prefix(1 if length < 256 else 2)
    else:
        return [f"at += {_fixed_size(code, meta, name)}"]
    if variable:
        charset = charsets.get(name, "")
        if charset not in CHARSETS:
            raise Undecodable(
                f"column {name} has the character set {charset or 'binary'}; use utf8mb4"
            )
        lines.append(f"{variable} = {CHARSETS[charset].format('data[start:at]')}")
    return lines


def _prefix(size: int) -> list[str]:
    lengths = {
        1: "data[at]",
        2: "(data[at] | data[at + 1] << 8)",
        3: "(data[at] | data[at + 1] << 8 | data[at + 2] << 16)",
        4: "u32(data, at)[0]",
    }
    if size not in lengths:
        raise Undecodable(f"a length of {size} bytes")
    return [f"start = at + {size}", f"at = start + {lengths[size]}"]


def _fixed_size(code: int, meta: int, name: str) -> int:
    real, length = _real_type(code, meta)
    if real in _FIXED:
        return _FIXED[real]
    if real in _FRACTIONAL:
        return _FRACTIONAL[real] + (meta + 1) // 2
    if real in (_ENUM, _SET):
        return length
    if real == _BIT:
        return (meta >> 8) + ((meta & 0xFF) > 0)
    if real == _DECIMAL:
        precision, scale = meta & 0xFF, meta >> 8
        return _digits(precision - scale) + _digits(scale)
    raise Undecodable(f"column {name} has the type {code}, which is not known")


def _digits(count: int) -> int:
    if count < 0:
        raise Undecodable(f"{count} digits")
    return count // 9 * 4 + (0, 1, 1, 2, 2, 3, 3, 4, 4)[count % 9]
