"""Positions in Kafka's partitions, and what a member knows of a partition that is its own.

A position is the place behind an event: where a reader goes on that has handled it. It is the offset
of a record, and the number of events in this record that are handled already: records of Java's
relay may hold several. Kafka keeps the offset, and the number in the text beside it.
"""

from __future__ import annotations

from dataclasses import dataclass

from retold.brokers.kafka_cluster import Place

_BITS = 16
"""A batch counts its events with 16 bits."""
_NOTE = "retold:"
UNBEGUN = "retold:unbegun"
"""The note of an offset that says nothing but that a member was asked for."""


def place(offset: int, handled: int = 0) -> int:
    """The position before a record, or inside it, behind `handled` of its events."""
    return offset << _BITS | handled


def committed_as(position: int) -> tuple[int, str]:
    """A position as Kafka keeps it: the offset, and a note."""
    handled = position & (1 << _BITS) - 1
    return position >> _BITS, f"{_NOTE}{handled}" if handled else ""


def read_committed(offset: int, note: str | None) -> int:
    """The same, back. A note of somebody else's says nothing."""
    text = (note or "").removeprefix(_NOTE)
    return place(offset, int(text) if note != text and text.isdecimal() else 0)


@dataclass(slots=True)
class Share:
    """A partition that is this member's, at a place.

    Positions: everything before `read` is read, before `handed` is handed out, before `saved` is
    saved. buffered: the number of messages between handed and read. since: events with smaller ids are left out, until the
    first that has none. word: its claim.
    """

    place: Place
    saved: int
    read: int
    handed: int
    since: str = ""
    buffered: int = 0
    word: str = ""

    def behind(self, position: int) -> int:
        """What to save when everything before the position is handled: behind it there may be only
        what nobody wants."""
        if self.buffered or position < self.handed:
            return position
        return max(position, self.read)

    @property
    def passed(self) -> bool:
        """Whether there is something to save though nothing was handled."""
        return not (self.buffered or self.since) and self.handed <= max(self.saved, 0) < self.read

    @property
    def in_hand(self) -> bool:
        return self.handed > self.saved
