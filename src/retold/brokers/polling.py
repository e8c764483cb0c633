"""Waiting for what others commit: look, sleep until woken or for a while, look again."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from datetime import datetime
from typing import Literal

from retold.brokers.base import Message

Start = Literal["beginning", "now"] | datetime
"""Where a new subscription begins."""


class PollingConsumer(ABC):
    """The waiting part of a consumer whose messages lie in a table."""

    def __init__(self) -> None:
        self._bell = threading.Event()
        self._woken = threading.Event()
        self._closed = threading.Event()

    @property
    @abstractmethod
    def assigned(self) -> bool:
        """As in Consumer."""

    @abstractmethod
    def _look(self, limit: int) -> Sequence[Message]:
        """Up to `limit` next messages, if any are there; takes assignments that are free."""

    @abstractmethod
    def _pause(self) -> float:
        """How long to sleep, unless woken, before looking again."""

    def poll(self, limit: int, timeout: float) -> Sequence[Message]:
        deadline = time.monotonic() + timeout
        while True:
            self._bell.clear()
            if messages := self._look(limit):
                return messages
            left = deadline - time.monotonic()
            if left <= 0 or self._woken.is_set() or self._closed.is_set():
                self._woken.clear()
                return ()
            self._bell.wait(min(left, self._pause()))

    def wake(self) -> None:
        self._woken.set()
        self._bell.set()
