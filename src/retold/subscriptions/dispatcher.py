"""The loop between a consumer and the lanes: read, hand out, save the position."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Protocol

from retold.brokers.base import Consumer, Message
from retold.errors import AssignmentLost, RetoldError
from retold.subscriptions.progress import Hold, Progress, Revival, Taken
from retold.subscriptions.workers import Work, Workers

BATCH = 100
WINDOW = 1000
"""The most messages in hand. No more are read while there are so many."""
END_S = 30.0
"""How long a stop waits for handlers that were begun."""
_SAVE_S = 0.1
"""How long what is handled may stay unsaved. A save is a commit, which costs as much as many events."""
_POLL_S = 0.5
WISHES_S = 1.0
"""How often it is looked for parked events that are to be tried again or skipped."""
_log = logging.getLogger("retold.subscriptions")


class Queues(Protocol):
    """The queues of parked events of the partitions that are this member's."""

    def load(self, hold: Hold) -> None:
        """Learn which entities of a partition have one."""
        ...

    def wanted(self, holds: dict[int, Hold]) -> list[Revival]:
        """Those that are to be worked."""
        ...


class Dispatcher:
    """Reads one consumer's messages and keeps its positions. Used by one thread."""

    def __init__(
        self,
        subscription: str,
        consumer: Consumer,
        work: Work,
        workers: Workers,
        parking: Queues,
    ) -> None:
        self._subscription = subscription
        self._consumer = consumer
        self._work = work
        self._workers = workers
        self._parking = parking
        self._wishes_at = 0.0
        self._progress = Progress()
        self._room = threading.Event()
        self._saved_at = time.monotonic()
        self._reached = False
        self._tries = 0
        work.told = self._told
        work.rested = lambda: self._save(work.stop)

    def consume(self, stop: threading.Event, *, drain: bool) -> int:
        """Until `stop` is set, or with `drain` until nothing is left; returns how many messages.

        What was begun is finished, and what was handled is saved, whatever ends the loop.
        """
        progress, workers = self._progress, self._workers
        try:
            while not self._work.stopped:
                messages = self._poll(stop, drain)
                if messages is None:
                    continue
                if drain and not self._consumer.assigned:
                    raise AssignmentLost(self._subscription)
                progress.keep(self._consumer.held)
                taken = progress.take(messages)
                revived = self._parked(drain)
                if drain and not taken and not revived:
                    break  # also where it is paused
                if revived:  # what is parked does not come again while its queue is worked
                    self._save(stop, at_once=True)
                workers.put([*revived, *taken])
                self._save(stop, at_once=not messages)
                self._wait_for_room(stop)
        finally:
            in_time = workers.end(END_S)
            if not in_time:
                _log.warning("%s: a handler did not end in %g s", self._subscription, END_S)
            self._save(stop, at_once=True)
        if self._work.failure is not None:
            raise self._work.failure
        return progress.handled

    def _poll(self, stop: threading.Event, drain: bool) -> Sequence[Message] | None:
        """None when it failed and may succeed later."""
        limit = 0 if self._work.paused() else min(BATCH, WINDOW - self._progress.in_hand)
        try:
            messages = self._consumer.poll(limit, 0 if drain else self._patience())
        except RetoldError as error:
            # What has never worked may be a wrong URL, which no waiting mends.
            if not self._reached or not error.retriable:
                raise
            _log.warning("%s: %s", self._subscription, error)
            self._progress.keep(self._consumer.held)
            self._tries += 1
            _pause(stop, self._tries)
            return None
        self._reached, self._tries = True, 0
        return messages

    def _patience(self) -> float:
        """How long to wait for messages: until something is to be saved."""
        if not self._progress.unsaved:
            return _POLL_S
        return max(0.001, self._saved_at + _SAVE_S - time.monotonic())

    def _parked(self, drain: bool) -> Sequence[Taken]:
        """What to do for the queues of parked events; learns of those of new partitions first."""
        for hold in self._progress.fresh():
            self._wait_for_store(partial(self._parking.load, hold))
        now = time.monotonic()
        if self._work.paused() or (not drain and now - self._wishes_at < WISHES_S):
            return ()
        self._wishes_at = now
        wanted: list[Revival] = []
        self._wait_for_store(lambda: wanted.extend(self._parking.wanted(self._progress.holds)))
        return wanted

    def _wait_for_store(self, act: Callable[[], None]) -> None:
        tries = 0
        while True:
            try:
                return act()
            except RetoldError as error:
                tries += 1
                if not error.retriable or self._work.stopped:
                    raise
                _log.warning("%s: %s", self._subscription, error)
                _pause(self._work.stop, tries)

    def _told(self) -> None:
        """A lane has nothing to do, or failed."""
        self._room.set()
        if self._workers.idle or self._work.ending.is_set():
            self._consumer.wake()

    def _wait_for_room(self, stop: threading.Event) -> None:
        self._progress.advance()
        while self._progress.in_hand >= WINDOW and not self._work.stopped:
            if self._work.paused():
                return
            self._room.clear()
            self._room.wait(0.02)
            self._save(stop)

    # --- positions -------------------------------------------------------------------------------

    def _save(self, stop: threading.Event, *, at_once: bool = False) -> None:
        """Save what is handled: now and then, and when nothing more comes at once.

        However much it is: what is handled within a moment is handled again within one.
        """
        progress = self._progress
        progress.advance()
        if not progress.unsaved:
            return
        now = time.monotonic()
        late = now - self._saved_at >= _SAVE_S
        if not (at_once or late):
            return
        self._saved_at = now
        self._commit(progress.positions(), stop)
        progress.keep(self._consumer.held)

    def _commit(self, positions: Mapping[int, int], stop: threading.Event) -> None:
        tries = 0
        while True:
            try:
                self._consumer.commit(positions)
            except AssignmentLost as lost:
                _log.warning("%s", lost)
            except RetoldError as error:
                tries += 1
                if not error.retriable or stop.is_set():
                    raise
                _log.warning("%s: the position was not saved: %s", self._subscription, error)
                _pause(stop, tries)
                continue
            return


def _pause(stop: threading.Event, tries: int) -> None:
    """Wait with full jitter, doubling from 0.1 s to 5 s."""
    stop.wait(random.uniform(0, min(0.05 * (1 << min(tries, 8)), 5.0)))
