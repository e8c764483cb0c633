"""Event ids: `%016x-%016x`, time in milliseconds since the epoch, then node and counter.

The format is Eventuate's (`Int128`): 33 characters whose string order is the order of the events of
one entity. What this module guarantees, and Eventuate does not: an id minted *after* a given id
sorts behind it, whatever the clocks of the two hosts say (docs/adr/0001-ids-and-order.md).
"""

from __future__ import annotations

import os
import secrets
import threading
import time
import weakref
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from retold.errors import InvalidValue

if TYPE_CHECKING:
    from collections.abc import Callable

_COUNTERS = 1 << 16
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

MAX_SKEW_MS = 60_000
"""An entity whose last event lies further than this in the future is reported, once a mint."""


def wall_clock() -> int:
    """Milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


def milliseconds(event_id: str) -> int:
    """The time part of an id, in milliseconds since the epoch."""
    try:
        return int(event_id[:16], 16)
    except ValueError:
        raise InvalidValue(f"{event_id!r} is not an event id (%016x-%016x)") from None


def moment(ms: int) -> datetime:
    return _EPOCH + timedelta(0, 0, 0, ms)  # by place: names take longer, and every read does it


def id_since(moment: datetime) -> str:
    """What sorts before every id of an aware moment or later, and behind every earlier one."""
    return f"{int(moment.timestamp() * 1000):016x}"


class EventIds:
    """Mints ids; thread-safe, and a forked child draws a node of its own."""

    def __init__(self, clock: Callable[[], int] = wall_clock, node: int | None = None) -> None:
        self._clock = clock
        self._fixed_node = node
        self._begin()
        _living.add(self)

    def _begin(self) -> None:
        # 47 bits: with the top bit clear, Java's signed comparison of ids agrees with the
        # database's comparison of their text.
        fixed = self._fixed_node
        self._node = secrets.randbits(47) if fixed is None else fixed
        self._raised_node = secrets.randbits(47) if fixed is None else fixed ^ 1 << 46
        self._lock = threading.Lock()
        self._hi = 0
        self._counter = 0
        self._raised_counter = 0

    def mint(self, count: int, after: str = "") -> tuple[list[str], int]:
        """`count` ascending ids, each greater than `after`, and the clock they were minted at (ms).

        Where `after` lies ahead of the clock, the ids are raised above it under a second node: one
        entity last written by a fast clock does not drag every other entity's ids along.
        """
        with self._lock:
            now = self._clock()
            if now > self._hi:
                self._hi, self._counter = now, 0
            elif self._counter + count > _COUNTERS:
                self._hi, self._counter = self._hi + 1, 0
            hi, counter, node = self._hi, self._counter, self._node
            if f"{hi:016x}-{node << 16 | counter:016x}" > after:
                # more ids than a millisecond has counters run on into the next ones
                carry, self._counter = divmod(counter + count, _COUNTERS)
                self._hi += carry
            else:
                hi, counter, node = milliseconds(after) + 1, self._raised_counter, self._raised_node
                self._raised_counter = (counter + count) % _COUNTERS
        if count == 1:
            return [f"{hi:016x}-{node << 16 | counter:016x}"], now
        ids = [
            f"{hi + n // _COUNTERS:016x}-{node << 16 | n % _COUNTERS:016x}"
            for n in range(counter, counter + count)
        ]
        return ids, now


_living: weakref.WeakSet[EventIds] = weakref.WeakSet()


def _after_fork() -> None:
    for generator in _living:
        generator._begin()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
