"""The messages in a Kafka record."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from retold.brokers.base import Message
from retold.brokers.kafka_places import Share, place
from retold.brokers.published import events_in
from retold.brokers.wants import Wants
from retold.errors import RetoldError, UnreadableRecord
from retold.store.generations import Pair


class Records:
    """Knows which events a subscription wants, and which only a newer generation of it handles."""

    def __init__(
        self, entity_types: Sequence[str], event_types: Sequence[str], wants: Wants | None = None
    ) -> None:
        self._wants = wants
        self.others: frozenset[Pair] = frozenset() if wants is None else wants.others
        pairs = {(entity_type, kind) for entity_type in entity_types for kind in event_types}
        self._own = pairs if wants is None else wants.own
        self._type_headers = frozenset(kind.encode() for kind in event_types)

    def messages(
        self, record: Any, partition: int, share: Share
    ) -> Iterable[Message | RetoldError]:
        """What a record holds for this subscription, but for what is handled already."""
        offset, value = record.offset(), record.value() or b""
        for name, text in record.headers() or ():
            if name == "type" and text not in self._type_headers:
                event_type = text.decode("utf-8", "replace")
                if any(event_type == other for _, other in self.others):
                    break
                share.leave_out(event_type, place(offset))
                return ()
        try:
            events = events_in(value)
        except ValueError as error:
            # It is never passed over: nothing behind it is handed out.
            return [UnreadableRecord(record.topic(), record.partition(), offset, str(error))]
        found: list[Message] = []
        for index, event in enumerate(events, 1):
            position = place(offset, index) if index < len(events) else place(offset + 1)
            pair = event.entityType, event.eventType
            new = position > max(share.saved, share.late.get(pair, share.until))
            if event.id < share.since:
                continue
            share.since = ""
            if new and pair in self.others and self._wants is not None:
                # Nothing behind it is handed out.
                share.stop_at(place(offset, index - 1))
                return [*found, self._wants.outgrown()]
            if pair not in self._own:
                share.leave_out(event.eventType, place(offset, index - 1))
            elif new:
                found.append(
                    Message(
                        event.entityType,
                        event.entityId,
                        event.id,
                        event.eventType,
                        event.eventData,
                        event.metadata,
                        partition,
                        position,
                    )
                )
        return found
