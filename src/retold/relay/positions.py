"""Positions: how far the relay has come in a log, and which log that is.

A position is saved as JSON with every transaction, in the same Kafka transaction as the events it
covers. It names its log, so that a relay started on another one, or on one set back, can tell.
`rows` counts the rows already published of the transaction that begins at the position: 0 but
inside a transaction too large to be published at once.
"""

from __future__ import annotations

import msgspec

from retold.errors import PositionUnreadable


class BinlogPosition(msgspec.Struct, frozen=True, omit_defaults=True, tag="binlog"):
    """A place in the binary log of MySQL or MariaDB.

    flavour: "mysql" or "mariadb". server: MySQL's server_uuid, MariaDB's server_id.
    gtid: everything up to here, as an executed set (MySQL) or the last of each domain (MariaDB);
    empty where the server writes none. file, offset: where the next transaction begins.
    columns: the names of the events table's columns at this place, in order; empty if not known.
    within: the GTID of the transaction that `rows` counts, because another server may send the
    transactions behind a place in another order; empty where there are none.
    """

    flavour: str
    server: str
    gtid: str
    file: str
    offset: int
    columns: tuple[str, ...] = ()
    rows: int = 0
    within: str = ""


class WalPosition(msgspec.Struct, frozen=True, omit_defaults=True, tag="wal"):
    """A place in PostgreSQL's log.

    system: the cluster's system identifier. lsn: behind the commit of the last transaction.
    """

    system: str
    timeline: int
    slot: str
    lsn: int
    rows: int = 0


class PollingPosition(msgspec.Struct, frozen=True, omit_defaults=True, tag="polling"):
    """The ids of the events published last, which may not be marked as published yet.

    table: a text that tells the table from others of its kind. until: in a position got from `now`,
    the highest id there was.
    """

    table: str
    ids: tuple[str, ...] = ()
    until: str = ""


Position = BinlogPosition | WalPosition | PollingPosition


def place_of(position: Position) -> str:
    """The place alone, for people."""
    if isinstance(position, BinlogPosition):
        return f"{position.file}:{position.offset}"
    if isinstance(position, WalPosition):
        return f"{position.lsn >> 32:X}/{position.lsn & 0xFFFFFFFF:X}"
    return position.ids[-1] if position.ids else "the beginning"


class Checkpoint(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is saved: the position, and what else must not change unnoticed.

    partitions: topic → its number of partitions. catching_up: a first start or a resync has not come
    to its end, so it has to begin again; what the log holds up to this place may be published.
    """

    position: Position
    partitions: dict[str, int]
    catching_up: Position | None = None
    version: int = 1


VERSION = 1
_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Checkpoint)


def encode_checkpoint(checkpoint: Checkpoint) -> bytes:
    return _encoder.encode(checkpoint)


def decode_checkpoint(name: str, text: bytes) -> Checkpoint:
    """Raises PositionUnreadable, whose `name` is the relay's."""
    try:
        checkpoint = _decoder.decode(text)
    except msgspec.MsgspecError as error:
        raise PositionUnreadable(str(error), name) from None
    if checkpoint.version != VERSION:
        raise PositionUnreadable(f"it has the version {checkpoint.version}", name)
    return checkpoint
