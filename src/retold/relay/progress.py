"""How a relay is doing, for whoever shows it: the status line, /health, /metrics."""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from retold.relay.positions import Position

Role = Literal["starting", "standby", "catching up", "leading", "stopped"]


@dataclass
class Progress:
    """Written by the relay, read by others. Times are in seconds since the epoch.

    counts: events, transactions, epochs, fences, reconnects, holes, lost.
    caught_up: nothing was waiting when the relay looked last.
    committed: when the database committed what was published last.
    """

    name: str
    role: Role = "starting"
    position: Position | None = None
    committed: float = 0.0
    published: float = 0.0
    caught_up: bool = False
    fraction: float = 0.0
    batch: int = 0
    seconds: float = 0.0
    error: str = ""
    counts: Counter[str] = field(default_factory=Counter[str])
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, events: int, position: Position, committed: float, began: float) -> None:
        """A transaction was published; it began at `began` on the monotonic clock."""
        with self.lock:
            self.position = position
            self.published = time.time()
            self.committed = committed or self.committed
            self.seconds = time.monotonic() - began
            self.batch = events
            self.counts["events"] += events
            self.counts["transactions"] += 1

    def lag(self) -> float:
        """How long the newest event of the database waits for being published, in seconds; what
        the log tells about its age when it is read, 0 when nothing waits."""
        return 0.0 if self.caught_up else max(0.0, time.time() - (self.committed or time.time()))
