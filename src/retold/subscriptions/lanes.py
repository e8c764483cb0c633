"""Lanes: an entity's messages one after the other, different entities' at the same time.

A message goes into the lane that its key (entity id) hashes to, and a lane is worked by one worker
at a time. Whoever works a lane says how: `workers.py` has three ways.
"""

from __future__ import annotations

import threading
import zlib
from collections import deque
from collections.abc import Iterable

from retold.subscriptions.progress import Taken


class Lanes:
    """Queues of messages, and which of them are being worked. Safe to use from several threads."""

    def __init__(self, count: int) -> None:
        self._queues: tuple[deque[Taken], ...] = tuple(deque() for _ in range(count))
        self._busy: set[int] = set()
        self._closed = False
        self._paused = False
        self._changed = threading.Condition()

    def put(self, messages: Iterable[Taken]) -> list[int]:
        """Queue messages; the lanes that somebody must begin to work now."""
        queues, count = self._queues, len(self._queues)
        for taken in messages:
            queues[lane_of(taken.message.key, count)].append(taken)
        with self._changed:
            if self._paused:
                return []
            waiting = [n for n, queue in enumerate(queues) if queue and n not in self._busy]
            self._busy.update(waiting)
        return waiting

    def next(self, lane: int) -> Taken | None:
        """The next message of a lane; None when whoever works it must leave it.

        Messages of a partition that was lost meanwhile are left out.
        """
        queue = self._queues[lane]
        while True:
            if self._paused:
                with self._changed:
                    if self._paused:
                        self._leave(lane)
                        return None
            try:
                taken = queue.popleft()
            except IndexError:
                with self._changed:
                    if queue and not self._closed:
                        continue
                    self._leave(lane)
                    return None
            if taken.hold.alive and not self._closed:
                return taken

    def _leave(self, lane: int) -> None:
        self._busy.discard(lane)
        self._changed.notify_all()

    def pause(self, paused: bool) -> None:
        """Begin nothing while paused. Whoever ends it must `put`, though it be nothing."""
        with self._changed:
            self._paused = paused

    @property
    def idle(self) -> bool:
        return not self._busy

    def close(self) -> None:
        """Begin nothing more."""
        self._closed = True

    def wait_idle(self, timeout: float) -> bool:
        """Until no lane is worked; whether that is so."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._busy, timeout)


def lane_of(key: str, count: int) -> int:
    """The lane of a key. The lower bits of this sum choose partitions, so the upper ones are used:
    a member's few partitions spread over all of its lanes."""
    return (zlib.crc32(key.encode()) >> 16) % count
