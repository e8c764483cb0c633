"""The messages in a Kafka record."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from retold.brokers.base import Message
from retold.brokers.kafka_held import Stop
from retold.brokers.kafka_places import Share, place
from retold.brokers.published import received_in
from retold.brokers.unreadable import UNREADABLE, Unreadable, made_up_id
from retold.brokers.wants import Wants
from retold.store.generations import Pair

_EVENT_ID = re.compile(r"[0-9a-f]{16}-[0-9a-f]{16}").fullmatch


class Records:
    """Knows which events a subscription wants, and which only a newer generation of it handles.

    entity_types: of each topic.
    """

    def __init__(
        self,
        entity_types: Mapping[str, Sequence[str]],
        event_types: Sequence[str],
        wants: Wants | None = None,
    ) -> None:
        self._of_topic = entity_types
        self._wants = wants
        self.others: frozenset[Pair] = frozenset() if wants is None else wants.others
        own = (entity_type for some in entity_types.values() for entity_type in some)
        pairs = {(entity_type, kind) for entity_type in own for kind in event_types}
        self._own = pairs if wants is None else wants.own
        self._type_headers = frozenset(kind.encode() for kind in event_types)

    def messages(self, record: Any, partition: int, share: Share) -> Sequence[Message | Stop]:
        """What a record holds for this subscription, but for what is handled already.

        partition: its number. A record that is no event, or is one no more, is a message, too.
        """
        offset, value = record.offset(), record.value() or b""
        try:
            events = received_in(value)
        except ValueError:
            # Building the list of headers takes longer than reading an event, so they are asked last.
            for name, text in record.headers() or ():
                if name == "type" and text not in self._type_headers:
                    event_type = (text or b"").decode("utf-8", "replace")
                    if any(event_type == other for _, other in self.others):
                        break
                    share.leave_out(event_type, place(offset))
                    return ()
            return [self._unreadable(record, partition)]
        found: list[Message | Stop] = []
        last, late, until = len(events), share.late, share.until
        for index, event in enumerate(events, 1):
            position = place(offset + 1) if index == last else place(offset, index)
            pair = event.entityType, event.eventType
            new = position > share.saved and position > (late.get(pair, until) if late else until)
            if event.id < share.since:
                continue
            share.since = ""
            if new and self._wants is not None and pair in self.others:
                # Nothing behind it is handed out.
                share.stop_at(place(offset, index - 1))
                return [*found, Stop(partition, self._wants.outgrown())]
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

    def _unreadable(self, record: Any, partition: int) -> Message:
        """In the queue of the entity that the key names, under the event id that a header names:
        our relay writes both."""
        headers = [(name, text or b"") for name, text in record.headers() or ()]
        id = dict(headers).get("id", b"").decode("ascii", "replace")
        whole = Unreadable.of(
            record.topic(),
            record.partition(),
            record.offset(),
            record.key(),
            record.value(),
            headers,
        )
        return Message(
            self._of_topic[record.topic()][0],
            whole.entity_id,
            id if _EVENT_ID(id) else made_up_id(partition, record.offset()),
            UNREADABLE,
            whole.text(),
            None,
            partition,
            place(record.offset() + 1),
        )
