"""A Kafka record that is no event, as a message: so that it parks like an event that fails.

Its data are the record, faithfully. It is tried like an event: it may be read by a later retold.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from typing import Self

import msgspec

from retold.brokers.base import Message
from retold.brokers.published import events_in
from retold.errors import UnreadableRecord
from retold.store.parked import MADE_UP

UNREADABLE = "retold.UnreadableRecord"
"""The event type of such a message; no event is called so."""


class Unreadable(msgspec.Struct, omit_defaults=True):
    """A record. What is text is kept as it is, and other bytes in base64, in the field beside it."""

    topic: str
    partition: int
    offset: int
    key: str | None = None
    key_base64: str | None = None
    value: str | None = None
    value_base64: str | None = None
    headers: list[tuple[str, str]] = []
    """Name, and the bytes in base64."""

    @classmethod
    def of(
        cls,
        topic: str,
        partition: int,
        offset: int,
        key: bytes | None,
        value: bytes | None,
        headers: Iterable[tuple[str, bytes]],
    ) -> Self:
        found = [(name, _base64(text)) for name, text in headers]
        return cls(topic, partition, offset, *_either(key), *_either(value), found)

    def text(self) -> str:
        return msgspec.json.encode(self).decode()

    @property
    def raw(self) -> bytes:
        """The record's value."""
        if self.value_base64 is not None:
            return base64.b64decode(self.value_base64)
        return (self.value or "").encode()

    @property
    def entity_id(self) -> str:
        """The key; where that is no id, an id of the record's own, which no entity has."""
        if self.key and len(self.key) <= 255:
            return self.key
        return f"{MADE_UP}{self.partition}.{self.offset}"


def _either(value: bytes | None) -> tuple[str | None, str | None]:
    """As text or in base64."""
    if value is None:
        return None, None
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return None, _base64(value)
    return (None, _base64(value)) if "\0" in text else (text, None)


def _base64(value: bytes) -> str:
    return base64.b64encode(value).decode()


def made_up_id(number: int, offset: int) -> str:
    """The event id of a record that tells none; number: of its partition.

    It is before every id of an event, so that all that comes later waits behind it.
    """
    return f"{MADE_UP}{number}.{offset:016x}"


def events_of(message: Message) -> Sequence[Message]:
    """The events in such a message after all. Raises UnreadableRecord."""
    record = msgspec.json.decode(message.data, type=Unreadable)
    try:
        events = events_in(record.raw)
    except ValueError as error:
        raise UnreadableRecord(record.topic, record.partition, record.offset, str(error)) from None
    at = message.partition, message.position
    return [
        Message(e.entityType, e.entityId, e.id, e.eventType, e.eventData, e.metadata, *at)
        for e in events
    ]
