"""What the statements in the binary log mean for one table.

In ROW format the log holds rows, and as statements only what begins and ends transactions, and
changes of the schema. A session may have switched to STATEMENT format, though: then the log holds
its INSERT as text, and nobody can tell from it what was inserted.
"""

from __future__ import annotations

import enum
import re

from retold.relay.sources.binlog_rows import WANTED


class Kind(enum.Enum):
    BEGIN = enum.auto()
    COMMIT = enum.auto()
    ROLLBACK = enum.auto()
    SAVEPOINT = enum.auto()
    ROLLBACK_TO = enum.auto()
    XA_START = enum.auto()
    XA_END = enum.auto()
    XA_DONE = enum.auto()
    """The end of an XA transaction, or of its first part."""
    SCHEMA = enum.auto()
    """Changes no rows that the log does not hold beside it."""
    ROWS = enum.auto()
    """May change rows."""


_XA = {b"START": Kind.XA_START, b"BEGIN": Kind.XA_START, b"END": Kind.XA_END}
_SCHEMA = frozenset(
    b"CREATE ALTER DROP RENAME TRUNCATE GRANT REVOKE ANALYZE OPTIMIZE REPAIR CHECK FLUSH SET "
    b"COMMENT INSTALL UNINSTALL IMPORT LOCK UNLOCK RESET CHANGE START STOP".split()
)
# Comments but the ones that are executed; texts. What is not closed reaches to the end.
_NOISE = re.compile(
    rb"/\*(?!M?!).*?(?:\*/|\Z)|(?:--[ \t]|\#)[^\n]*|'(?:[^'\\]|\\.|'')*+'?", re.DOTALL
)
_WORDS = re.compile(rb"[\s(;]*(?:/\*M?!\d*[\s(]*)?([A-Za-z]+)(?:\s+([A-Za-z]+))?")
_SAVEPOINT = re.compile(
    rb"\s*(?:SAVEPOINT|ROLLBACK\s+TO(?:\s+SAVEPOINT)?)\s+(.*)", re.IGNORECASE | re.DOTALL
)
_STARTS_TRANSACTION = re.compile(rb"\bSTART\s+TRANSACTION\s*\Z", re.IGNORECASE)
_KEEPS_COLUMNS = re.compile(
    rb"[\s(]*(?:TRUNCATE|ANALYZE|OPTIMIZE|GRANT|REVOKE|ALTER"
    rb"|(?:CREATE|DROP)\s+(?:(?:UNIQUE|FULLTEXT|SPATIAL|OR|REPLACE|IF|NOT|EXISTS|DEFINER\s*=\s*\S+)"
    rb"\s+)*(?:INDEX|TRIGGER|VIEW|PROCEDURE|FUNCTION|EVENT))\b",
    re.IGNORECASE,
)
_MOVES_COLUMNS = re.compile(
    rb"\bALTER\b.*\b(?:FIRST|AFTER|RENAME|" + "|".join(WANTED).encode() + rb")\b",
    re.IGNORECASE | re.DOTALL,
)


def kind_of(text: bytes) -> Kind:
    found = _WORDS.match(text) or _WORDS.match(_NOISE.sub(b" ", text[:10_000]))
    if not found:
        return Kind.ROWS
    first, second = found[1].upper(), (found[2] or b"").upper()
    match first:
        case b"BEGIN":
            return Kind.BEGIN
        case b"COMMIT":
            return Kind.COMMIT
        case b"ROLLBACK":
            return Kind.ROLLBACK_TO if second == b"TO" else Kind.ROLLBACK
        case b"SAVEPOINT":
            return Kind.SAVEPOINT
        case b"XA":
            return _XA.get(second, Kind.XA_DONE)
        case b"START" if second == b"TRANSACTION":
            return Kind.BEGIN
        case b"SET" if second == b"STATEMENT":
            return Kind.ROWS
        case _:
            return Kind.SCHEMA if first in _SCHEMA else Kind.ROWS


def begins_transaction(text: bytes) -> bool:
    """Whether a change of the schema has its rows behind it: CREATE TABLE … START TRANSACTION."""
    return _STARTS_TRANSACTION.search(text) is not None


def savepoint(text: bytes) -> bytes:
    """The name in SAVEPOINT and ROLLBACK TO."""
    found = _SAVEPOINT.match(text)
    return found[1].strip(b"` \t\r\n;").lower() if found else b""


class Mentions:
    """Finds the statements that name a table."""

    def __init__(self, schema: str, table: str) -> None:
        self._schema = schema.encode().lower()
        self._table = table.encode().lower()
        self._words = _word(self._table)
        self._schema_words = _word(self._schema)
        created = rb"\bCREATE\s+(?:OR\s+REPLACE\s+)?TABLE\s+(?:IF\s+NOT\s+EXISTS\s+)?(?:\S+\.)?`?"
        self._filled = re.compile(
            created + re.escape(self._table) + rb"`?[\s(].*\bSELECT\b", re.IGNORECASE | re.DOTALL
        )

    def __call__(self, schema: bytes, text: bytes) -> bool:
        """Whether a statement, run in a schema, names the table: rather too often than not."""
        if self._table not in text.lower():
            return False
        bare = _NOISE.sub(b" ", text)
        if not self._words.search(bare):
            return False
        return schema.lower() == self._schema or self._schema_words.search(bare) is not None

    def fills(self, text: bytes) -> bool:
        """Whether it is CREATE TABLE … SELECT for the table."""
        return self._filled.search(_NOISE.sub(b" ", text)) is not None


def keeps_columns(text: bytes) -> bool:
    """Whether a change of the table leaves the columns that are read where they are."""
    bare = _NOISE.sub(b" ", text)
    return _KEEPS_COLUMNS.match(bare) is not None and _MOVES_COLUMNS.search(bare) is None


def _word(name: bytes) -> re.Pattern[bytes]:
    return re.compile(
        rb"(?<![\w$\x80-\xff])" + re.escape(name) + rb"(?![\w$\x80-\xff])", re.IGNORECASE
    )
