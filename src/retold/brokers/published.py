"""The value of a Kafka record, as Java Eventuate's relay and ours write it, and how to read it.

It is the JSON of `PublishedEvent` (eventuate-common): the event's own JSON and its metadata are
texts inside. The key is the entity's id, the topic its type; `$`, which Kafka does not allow in a
topic's name, is spelt `_DLR_`. One record may also hold several events, in a binary batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import msgspec

E = TypeVar("E")


class BinlogFileOffset(msgspec.Struct, frozen=True, gc=False):
    """Where an event stands in the binary log, as Java Eventuate writes it into the message."""

    binlogFilename: str
    offset: int
    rowsToSkip: int = 0


class PublishedEvent(msgspec.Struct, omit_defaults=True):
    """The value of a record; the names and their order are Eventuate's."""

    id: str
    entityId: str
    entityType: str
    eventData: str
    eventType: str
    binlogFileOffset: BinlogFileOffset | None = None
    metadata: str | None = None


class ReceivedEvent(msgspec.Struct, frozen=True, gc=False):
    """What of it those who handle events want; the rest is not decoded."""

    id: str
    entityId: str
    entityType: str
    eventData: str
    eventType: str
    metadata: str | None = None


def topic_name(entity_type: str) -> str:
    """The topic of an entity type."""
    return entity_type.replace("$", "_DLR_")


_published = msgspec.json.Decoder(PublishedEvent).decode
_received = msgspec.json.Decoder(ReceivedEvent).decode

_BATCH = b"a8c79db675e14c4cbf1eb77d0d6d0f00"


def events_in(value: bytes) -> list[PublishedEvent]:
    """The events of a record: one, or several in the binary batch that Java's relay may write.

    Raises ValueError for anything else.
    """
    return _events(value, _published)


def received_in(value: bytes) -> list[ReceivedEvent]:
    """The same for those who handle events."""
    return _events(value, _received)


def _events(value: bytes, decode: Callable[[bytes], E]) -> list[E]:
    try:
        if value.startswith(_BATCH):
            return [decode(inner) for inner in _batched(value)]
        return [decode(value)]
    except msgspec.MsgspecError as error:
        raise ValueError(str(error)) from None


def _batched(value: bytes) -> list[bytes]:
    """The values in an EventuateKafkaMultiMessage (SBE, little endian): after the header of 40
    bytes a group of headers, then a group of messages, each with headers, a key and a value."""
    at = 40

    def number(size: int) -> int:
        nonlocal at
        part = value[at : at + size]
        if len(part) < size:
            raise ValueError("a batch of events ends too soon")
        at += size
        return int.from_bytes(part, "little")

    def text() -> bytes:
        nonlocal at
        size = number(4)
        part = value[at : at + size]
        if len(part) < size:
            raise ValueError("a batch of events ends too soon")
        at += size
        return part

    def headers() -> None:
        number(2)
        for _ in range(number(2)):
            text()
            text()

    headers()
    number(2)
    found: list[bytes] = []
    for _ in range(number(2)):
        headers()
        text()
        found.append(text())
    return found
