"""What stands in a file whose export was broken off: what its events are, and that they are right."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import msgspec

from retold.errors import InvalidValue
from retold.relay.known import KnownIds
from retold.store.listing import StoredEvent


class Kept:
    """The events that a file holds already, in a scratch file: memory stays flat."""

    def __init__(self) -> None:
        self._known = KnownIds()
        # Of the digests of all events in the file, less those that the database turned out to hold.
        self._sum = 0

    def add(self, events: Iterable[StoredEvent]) -> None:
        """Note events that were read in the file."""
        events = list(events)
        self._known.add(event.id for event in events)
        self._sum += sum(map(_digest, events))

    def missing(self, events: list[StoredEvent]) -> list[StoredEvent]:
        """Those of the database's events that the file does not hold."""
        if not self._known.count:
            return events
        rows: Any = events
        missing = self._known.missing(rows)
        ids = {row[0] for row in missing}
        self._sum -= sum(_digest(event) for event in events if event.id not in ids)
        return [event for event in events if event.id in ids]

    def check(self, name: str) -> None:
        """Once all events of the database were asked for: raises InvalidValue where the file holds
        others, or not as they are."""
        if self._sum:
            raise InvalidValue(
                f"{name} holds events that the database does not have, or not as they are there. "
                "Export into a new file"
            )

    def close(self) -> None:
        self._known.close()


def _digest(event: StoredEvent) -> int:
    return int.from_bytes(hashlib.sha256(msgspec.json.encode(event)).digest())
