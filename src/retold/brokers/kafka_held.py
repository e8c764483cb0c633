"""What a member has of a subscription's partitions: its own ones, and what is read of them.

The reader's thread fills it and the caller's empties it, under one lock that also tells of changes.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from retold.brokers.base import Message
from retold.brokers.kafka_cluster import Place
from retold.brokers.kafka_places import Share, place
from retold.errors import RetoldError

BUFFERED = 2_000
"""The most messages that are read and not handed out, and a few; and of their bytes."""
BUFFERED_BYTES = 8_000_000


@dataclass(frozen=True, slots=True)
class Stop:
    """In the place of a message behind which nothing of its partition may be handed out."""

    partition: int
    error: RetoldError


class Held:
    """The shares, by the numbers under which the caller knows partitions. The lock is `changed`,
    and whoever calls a method has it."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.shares: dict[int, Share] = {}
        self.buffer: deque[Message | Stop] = deque()
        self._bytes = 0
        self._numbers: dict[Place, int] = {}
        self._places: dict[int, Place] = {}

    def begin(self, number: int, at: Place, share: Share) -> None:
        self.shares[number] = share
        self._numbers[at] = number
        self._places[number] = at

    def place(self, number: int) -> Place:
        """Of a partition that is this member's, or was."""
        return self._places[number]

    def number(self, at: Place) -> int:
        """-1 where it is not this member's, and never was."""
        return self._numbers.get(at, -1)

    def places(self) -> set[Place]:
        return {share.place for share in self.shares.values()}

    def put(self, messages: Iterable[Message | Stop], share: Share) -> None:
        for message in messages:
            self.buffer.append(message)
            self._bytes += 0 if isinstance(message, Stop) else len(message.data)
            share.buffered += 1

    def stop(self, number: int, error: RetoldError) -> None:
        """Hand out nothing more, of no partition, but this error."""
        self.buffer.appendleft(Stop(number, error))
        self.shares[number].buffered += 1

    def hand_out(self, limit: int) -> list[Message]:
        """Raises the error of a stop, again and again."""
        messages: list[Message] = []
        while self.buffer and len(messages) < limit:
            message = self.buffer[0]
            if isinstance(message, Stop):
                if messages:
                    break
                raise message.error
            self.buffer.popleft()
            share = self.shares[message.partition]
            share.handed, share.buffered = message.position, share.buffered - 1
            self._bytes -= len(message.data)
            messages.append(message)
        return messages

    def is_fuller_than(self, part: float) -> bool:
        return len(self.buffer) >= part * BUFFERED or self._bytes >= part * BUFFERED_BYTES

    @property
    def in_hand_at_all(self) -> bool:
        return self.in_hand(list(self.shares))

    def in_hand(self, numbers: Iterable[int]) -> bool:
        """Whether something was handed out that is not committed."""
        return any(self.shares[n].in_hand for n in numbers if n in self.shares)

    def passed(self, numbers: Iterable[int]) -> dict[int, int]:
        """Positions to save where everything behind the last is what nobody wants. They count as
        saved: if that fails, some of it is read again."""
        shares = {n: self.shares[n] for n in numbers if n in self.shares}
        passed = {n: share.read for n, share in shares.items() if share.passed}
        for number, position in passed.items():
            shares[number].saved = position
        return passed

    def at_end(self, ends: Mapping[Place, int]) -> bool:
        """Whether all that is this member's is read up to these offsets."""
        own = (share for share in self.shares.values() if share.place in ends)
        return all(share.read >= place(ends[share.place]) for share in own)

    def take_back(self, numbers: Collection[int]) -> None:
        """Forget what was not handed out."""
        kept: deque[Message | Stop] = deque()
        for message in self.buffer:
            if message.partition not in numbers:
                kept.append(message)
                continue
            share = self.shares[message.partition]
            share.buffered = 0
            share.read = share.handed  # what was read behind it is not handled
            self._bytes -= 0 if isinstance(message, Stop) else len(message.data)
        self.buffer = kept

    def drop(self, numbers: Collection[int]) -> list[Place]:
        """Give partitions up; where they are."""
        self.take_back(numbers)
        dropped = [self.shares.pop(n).place for n in numbers if n in self.shares]
        self.changed.notify_all()
        return dropped
