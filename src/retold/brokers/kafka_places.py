"""Positions in Kafka's partitions, and what a member knows of a partition that is its own.

A position is the place behind an event: where a reader goes on that has handled it. It is the offset
of a record, and the number of events in this record that are handled already: records of Java's
relay may hold several. Kafka keeps the offset, and the number in the text beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from retold.brokers.kafka_cluster import Place
from retold.store.generations import Pair

_BITS = 16
"""A batch counts its events with 16 bits."""
_NOTE = "retold:"
UNBEGUN = "retold:unbegun"
"""The note of an offset that says nothing but that a member was asked for."""


def place(offset: int, handled: int = 0) -> int:
    """The position before a record, or inside it, behind `handled` of its events."""
    return offset << _BITS | handled


def committed_as(position: int, generation: int | None = None) -> tuple[int, str]:
    """A position as Kafka keeps it: the offset, and a note."""
    handled = position & (1 << _BITS) - 1
    if generation is not None:
        return position >> _BITS, f"{_NOTE}{handled}:{generation}"
    return position >> _BITS, f"{_NOTE}{handled}" if handled else ""


def read_committed(offset: int, note: str | None) -> int:
    """The same, back. A note of somebody else's says nothing."""
    return place(offset, _noted(note)[0])


def read_generation(note: str | None) -> int | None:
    """The generation that whoever committed went by."""
    return _noted(note)[1]


def _noted(note: str | None) -> tuple[int, int | None]:
    handled, _, generation = (note or "").removeprefix(_NOTE).partition(":")
    if not (note or "").startswith(_NOTE) or not handled.isdecimal():
        return 0, None
    return int(handled), int(generation) if generation.isdecimal() else None


def place_name(topic: str, number: int) -> str:
    """A partition for those who keep positions elsewhere. No topic has a slash in its name."""
    return f"{topic}/{number}"


@dataclass(slots=True)
class Share:
    """A partition that is this member's, at a place.

    Positions: everything before `read` is read, before `handed` is handed out, before `saved` is
    saved. buffered: the number of messages between handed and read. since: events with smaller ids
    are left out, until the first that has none. word: its claim. limit: nothing behind it may be
    saved, because a newer generation handles what comes there. left_out: where events of each type
    that is not wanted were first and last met. until: what is before it was handled by others; but
    of a name in `late`, only what is before the place noted there. committed: what the group had,
    an offset and its note.
    """

    place: Place
    saved: int
    read: int
    handed: int
    since: str = ""
    buffered: int = 0
    word: str = ""
    limit: int | None = None
    until: int = -1
    late: Mapping[Pair, int] = field(default_factory=dict[Pair, int])
    committed: tuple[int, str] | None = None
    left_out: dict[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])

    def leave_out(self, event_type: str, at: int) -> None:
        first, _ = self.left_out.get(event_type, (at, at))
        self.left_out[event_type] = first, at

    def stop_before(self, event_type: str, cut: int) -> None:
        """A newer generation handles these events from the place `cut` on."""
        first, last = self.left_out.get(event_type, (-1, -1))
        if self.until > cut:
            # Whoever had it before may have passed some: nothing must hide that.
            self.stop_at(cut)
        elif last >= cut:
            self.stop_at(max(first, cut))

    def stop_at(self, position: int) -> None:
        self.limit = position if self.limit is None else min(self.limit, position)

    def behind(self, position: int) -> int:
        """What to save when everything before the position is handled: behind it there may be only
        what nobody wants."""
        if not self.buffered and position >= self.handed:
            position = max(position, self.read)
        return position if self.limit is None else min(position, self.limit)

    @property
    def passed(self) -> bool:
        """Whether there is something to save though nothing was handled."""
        if self.limit is not None:
            return False
        return not (self.buffered or self.since) and self.handed <= max(self.saved, 0) < self.read

    @property
    def in_hand(self) -> bool:
        return self.handed > self.saved
