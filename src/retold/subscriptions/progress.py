"""How far each partition is handled, when its messages are handled out of their order.

What may be saved as a partition's position is the end of its *contiguous prefix*: the last message
before which none is unhandled. No I/O and no threads here; `done` alone may be set by other threads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping

from retold.brokers.base import Message


class Hold:
    """One time for which a partition was assigned. What was taken in it counts only while it lasts."""

    __slots__ = ("alive", "last", "parked", "partition", "reviving", "taken", "time")

    def __init__(self, partition: int, time: object = None) -> None:
        self.partition = partition
        self.time = time
        """What stands for this time, where the consumer has told."""
        self.alive = True
        self.last = -1
        self.taken: deque[Taken] = deque()
        self.parked: dict[tuple[str, str], str] = {}
        """(entity type, entity id) → the first event parked; changed by the entity's lane only."""
        self.reviving: set[tuple[str, str]] = set()
        """Whose queue is being worked."""


class Taken:
    """A message in hand. done: it is handled, or parked."""

    __slots__ = ("done", "hold", "message")

    def __init__(self, message: Message, hold: Hold) -> None:
        self.message = message
        self.hold = hold
        self.done = False


class Revival(Taken):
    """No message but the wish that the queue of its entity is worked. No position waits for it."""

    __slots__ = ()


class Progress:
    """The messages in hand of all partitions."""

    def __init__(self) -> None:
        self.holds: dict[int, Hold] = {}
        self._fresh: list[Hold] = []
        self._ready: dict[int, int] = {}
        self.in_hand = 0
        """Messages that are not behind a position that may be saved."""
        self.unsaved = 0
        """Messages that are, since positions were last given out."""
        self.handled = 0
        """Messages that are, since the beginning."""

    def take(self, messages: Iterable[Message]) -> list[Taken]:
        """Messages in the order of the consumer, each to be marked as done one day.

        A position that comes a second time tells that the partition was lost and assigned anew.
        """
        taken: list[Taken] = []
        holds = self.holds
        for message in messages:
            hold = holds.get(message.partition)
            if hold is None or message.position <= hold.last:
                self._drop(message.partition)
                hold = self._begin(message.partition, hold and hold.time)
            hold.last = message.position
            one = Taken(message, hold)
            hold.taken.append(one)
            taken.append(one)
        self.in_hand += len(taken)
        return taken

    def advance(self) -> None:
        """Look how far the prefixes go now."""
        for partition, hold in self.holds.items():
            queue, position, count = hold.taken, 0, 0
            while queue and queue[0].done:
                position = queue.popleft().message.position
                count += 1
            if count:
                self._ready[partition] = position
                self.in_hand -= count
                self.unsaved += count
                self.handled += count

    def positions(self) -> dict[int, int]:
        """The positions to be saved, each given out once."""
        ready, self._ready, self.unsaved = self._ready, {}, 0
        return ready

    def keep(self, held: Mapping[int, object]) -> None:
        """Forget the partitions that are not this member's any more, or were not for a while, and
        begin with new ones."""
        for partition, hold in list(self.holds.items()):
            if partition not in held or hold.time is not held[partition]:
                self._drop(partition)
        for partition, time in held.items():
            if partition not in self.holds:
                self._begin(partition, time)

    def fresh(self) -> list[Hold]:
        """What was assigned since this was asked last."""
        fresh, self._fresh = self._fresh, []
        return [hold for hold in fresh if hold.alive]

    def _begin(self, partition: int, time: object) -> Hold:
        hold = self.holds[partition] = Hold(partition, time)
        self._fresh.append(hold)
        return hold

    def _drop(self, partition: int) -> None:
        hold = self.holds.pop(partition, None)
        self._ready.pop(partition, None)
        if hold is not None:
            hold.alive = False
            self.in_hand -= len(hold.taken)
