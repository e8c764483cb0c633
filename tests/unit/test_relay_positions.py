"""Positions as they are saved: a text that later versions must read."""

from __future__ import annotations

import json

import pytest

from retold.errors import PositionUnreadable
from retold.relay.positions import (
    BinlogPosition,
    Checkpoint,
    PollingPosition,
    Position,
    WalPosition,
    decode_checkpoint,
    encode_checkpoint,
)

SAVED: list[tuple[Position, dict[str, object]]] = [
    (
        BinlogPosition("mysql", "uuid", "uuid:1-9", "binlog.1", 4, ("event_id",), 7, "uuid:10"),
        {
            "type": "binlog",
            "flavour": "mysql",
            "server": "uuid",
            "gtid": "uuid:1-9",
            "file": "binlog.1",
            "offset": 4,
            "columns": ["event_id"],
            "rows": 7,
            "within": "uuid:10",
        },
    ),
    (
        WalPosition("7301", 2, "retold_bank", 1 << 40),
        {"type": "wal", "system": "7301", "timeline": 2, "slot": "retold_bank", "lsn": 1 << 40},
    ),
    (
        PollingPosition("sqlite/17", ("a", "b")),
        {"type": "polling", "table": "sqlite/17", "ids": ["a", "b"]},
    ),
]


@pytest.mark.parametrize(("position", "text"), SAVED)
def test_the_form_is_fixed(position: Position, text: dict[str, object]) -> None:
    checkpoint = Checkpoint(position, {"bank.Account": 12}, catching_up=position)
    saved = {"position": text, "partitions": {"bank.Account": 12}, "catching_up": text}
    assert json.loads(encode_checkpoint(checkpoint)) == saved
    assert decode_checkpoint("bank", json.dumps(saved).encode()) == checkpoint


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"nonsense",
        b"{}",
        b'{"position":{"type":"moon"},"partitions":{}}',
        b'{"position":{"type":"polling","table":7},"partitions":{}}',
        b'{"position":{"type":"polling","table":"t"},"partitions":{},"version":2}',
    ],
)
def test_what_is_no_position_of_this_version_is_refused(text: bytes) -> None:
    with pytest.raises(PositionUnreadable, match="'bank'"):
        decode_checkpoint("bank", text)
