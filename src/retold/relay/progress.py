"""How a relay is doing, for whoever shows it: the status line, /health, /metrics."""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from retold.relay.positions import Position

Role = Literal["starting", "standby", "catching up", "leading", "stopped"]

EVENTS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000)
SECONDS = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Histogram:
    """How many values there were up to each bound. counts: one for each bound, the last for the
    rest."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def copy(self) -> Histogram:
        copy = Histogram(self.bounds)
        copy.counts, copy.sum = list(self.counts), self.sum
        return copy


@dataclass
class Progress:
    """Written by the relay, read by others. Times are in seconds since the epoch.

    counts: events, transactions, epochs, fences, reconnects, holes, lost.
    caught_up: nothing was waiting when the relay looked last.
    committed: when the database committed what was published last.
    behind: bytes of the log behind the position; None where nobody can tell.
    batches: how many events a transaction had, but for those that only save a position.
    seconds: how long a transaction took, in seconds.
    """

    name: str
    role: Role = "starting"
    position: Position | None = None
    committed: float = 0.0
    published: float = 0.0
    caught_up: bool = False
    fraction: float = 0.0
    behind: int | None = None
    error: str = ""
    counts: Counter[str] = field(default_factory=Counter[str])
    batches: Histogram = field(default_factory=lambda: Histogram(EVENTS))
    seconds: Histogram = field(default_factory=lambda: Histogram(SECONDS))
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, events: int, position: Position, committed: float, began: float) -> None:
        """A transaction was published; it began at `began` on the monotonic clock."""
        with self.lock:
            self.position = position
            self.published = time.time()
            self.committed = committed or self.committed
            self.seconds.add(time.monotonic() - began)
            if events:
                self.batches.add(events)
            self.counts["events"] += events
            self.counts["transactions"] += 1

    def lag(self) -> float:
        """How long the newest event of the database waits for being published, in seconds; what
        the log tells about its age when it is read, 0 when nothing waits."""
        return 0.0 if self.caught_up else max(0.0, time.time() - (self.committed or time.time()))
