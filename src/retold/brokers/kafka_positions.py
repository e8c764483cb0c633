"""The positions a relay has saved in Kafka, for somebody who only looks."""

from __future__ import annotations

from collections.abc import Mapping

from retold.brokers.kafka import KafkaTopics, positions_topic

_PATIENCE_S = 5.0
_FAR_MS = 1 << 60
"""Later than any record: the offset at this time is the end."""


class PublishedPosition:
    """Reads the topic in which the relay of a name saves its position with every transaction."""

    def __init__(self, name: str, bootstrap: str, settings: Mapping[str, str]) -> None:
        self._key = name.encode()
        self._topic = positions_topic(name)
        self._place = self._topic, 0
        self._topics = KafkaTopics(bootstrap, settings, patience=_PATIENCE_S)

    def last(self) -> bytes | None:
        """The last one, from near the topic's end; None where there is none.

        Raises BrokerUnavailable, BrokerRefused.
        """
        if not self._topics.partitions([self._topic]):
            return None
        start, width = self._topics.offsets_at([self._topic], _FAR_MS)[self._place], 16
        while start > 0:
            start, width = max(0, start - width), 4 * width
            found: bytes | None = None
            for some in self._topics.read([self._topic], {self._place: start}):
                found = next((one.value for one in reversed(some) if one.key == self._key), found)
            if found:
                return found
        return None

    def saved_since(self, ms: int) -> bool:
        """Whether one was saved at this time or later, in milliseconds since the epoch."""
        end = self._topics.offsets_at([self._topic], _FAR_MS)[self._place]
        return self._topics.offsets_at([self._topic], ms)[self._place] < end
