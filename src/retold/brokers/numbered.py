"""The database as its own broker, on PostgreSQL, MySQL and MariaDB: a numbered log, shared out.

A member numbers what is there without a number, takes its share of the partitions, and reads them.
It looks again when this process commits, when PostgreSQL notifies that the log has grown, and in any
case after a pause, which is short while there is work and grows while there is none.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence

from retold.brokers import leases
from retold.brokers.base import Message, Places
from retold.brokers.numbered_log import PAGE, check_noted, log_state, number, read_log
from retold.brokers.polling import PollingConsumer, Start
from retold.brokers.shares import leave, move_shares, renew_lease, save_positions, take_share
from retold.brokers.wants import Fence, Wants
from retold.errors import AssignmentLost, RetoldError
from retold.store.connections import BlockingDriver, Notices
from retold.store.dialects import CHANNEL
from retold.store.driver import Statement

_WINDOW = 500
"""How many positions are read at once."""
_GAP_S = {"postgres": 0.012, "mysql": 0.04}
"""The least time between two looks, so that what writers do at once is numbered together: MySQL
writes each numbering to the disk."""
_IDLE_S = 0.04
"""The pause between two looks after a while without a message."""
_LONG_S = 1.0
_STANDBY_S = 0.25
_SHARE_S = 1.0
"""How often members are counted by one that has its share."""
_NOTED_S = 60.0
"""How often it is made sure that the log gets every event."""
LEAVE_S = 30.0
"""How long messages in hand may keep a partition from the member that should have it."""
_log = logging.getLogger("retold.subscriptions")


class NumberedConsumer(PollingConsumer):
    """A member of a subscription on a server's database. See brokers/base.py for what it promises."""

    def __init__(
        self,
        driver: BlockingDriver,
        name: str,
        topics: Sequence[str],
        event_types: Sequence[str],
        start: Start,
        lease_s: float = leases.LEASE_S,
        places: Places | None = None,
        wants: Wants | None = None,
    ) -> None:
        super().__init__()
        self._driver = driver
        self._places = places
        self._sql = driver.dialect.queries
        self._name = name
        self._fence = Fence(wants, topics, event_types)
        self._start: Start = start
        self._lease_ms = int(lease_s * 1000)
        self._me = f"{leases.process_identity(os.getpid())}/{secrets.token_hex(4)}"
        self._joined = False
        self._struck_off = threading.Event()
        # By partition: what is read up to, handed out up to, and saved.
        self._read: dict[int, int] = {}
        self._handed: dict[int, int] = {}
        self._saved: dict[int, int] = {}
        self._times: dict[int, object] = {}
        # Partitions that others should have, and since when: nothing new of them is handed out.
        self._leaving: dict[int, float] = {}
        self._buffer: deque[Message] = deque()
        self._members = 1
        self._share_at = 0.0
        self._noted_at = 0.0
        self._gap_s = _GAP_S[driver.dialect.name]
        self._next_pause = self._gap_s
        self._next_look = 0.0
        self._busy = False  # something is probably there: a look of its own can be saved
        self._listener: threading.Thread | None = None
        self._notices: Notices | None = None
        driver.listen(self._bell)
        self._renewer = leases.Renewer(name, lease_s, self._renew)

    @property
    def assigned(self) -> bool:
        return bool(self._read)

    @property
    def held(self) -> Mapping[int, object]:
        return {partition: self._times[partition] for partition in self._read}

    def place(self, partition: int) -> str:
        return str(partition)

    def reached(self) -> Mapping[int, int]:
        buffered = {message.partition for message in self._buffer}
        return {n: position for n, position in self._read.items() if n not in buffered}

    def owned(self, partition: int) -> Statement:
        return Statement(self._sql["parked_owned"], (self._name, partition, self._me))

    def _many(self, values: Iterable[object]) -> object:
        """The one parameter that stands for several values."""
        return list(values) if self._driver.dialect.name == "postgres" else tuple(values)

    # --- looking ---------------------------------------------------------------------------------

    def _look(self, limit: int) -> Sequence[Message]:
        try:
            self._adopt()
            if time.monotonic() >= self._share_at or self._struck_off.is_set():
                self._take_share()
            if self._read and not self._buffer and not self._fence.limits:
                if self._woken.wait(max(0.0, self._next_look - time.monotonic())):
                    return ()
                self._next_look = time.monotonic() + self._gap_s
                self._fill_buffer()
                if len(self._buffer) > limit:
                    self._next_look = 0.0
        except RetoldError:
            # Whatever happened to the database, what it has saved is what it knows.
            self._keep(())
            self._share_at = 0.0
            raise
        if not self._buffer:
            self._fence.check()
        return self._hand_out(limit)

    def _hand_out(self, limit: int) -> Sequence[Message]:
        messages = [self._buffer.popleft() for _ in range(min(limit, len(self._buffer)))]
        for message in messages:
            self._handed[message.partition] = message.position
        self._busy = bool(messages)
        if messages:
            self._next_pause = self._gap_s
        return messages

    def _fill_buffer(self) -> None:
        """Number what is there, and read on until there are messages or nothing is left."""
        more = True
        while more and not self._buffer and not self._woken.is_set():
            end, near = 0, self._busy
            if not near:
                end, _, more = self._driver.run(log_state(self._sql))
                near = more and end - min(self._read.values()) < PAGE
            if near:
                numbered = self._driver.run(number(self._sql))
                end, more = numbered.end, numbered.more
                if numbered.given:
                    self._driver.ring()
            while self._read_on(end) and not self._buffer and not self._woken.is_set():
                pass
            more = more and not self._fence.limits

    def _read_on(self, end: int) -> bool:
        """Read the next positions of the partitions that are furthest behind; False at the end."""
        staying = {n: at for n, at in self._read.items() if n not in self._leaving}
        behind = min(staying.values(), default=end)
        if behind >= end:
            return False
        others = [position for position in staying.values() if position > behind]
        until = min(end, behind + _WINDOW, *others)
        partitions = [n for n, position in staying.items() if position == behind]
        found = self._read_log(
            behind, until, partitions, self._fence.topics, self._fence.event_types
        )
        messages = self._fence.before(found)
        self._buffer += messages
        if len(messages) < len(found):
            until = found[len(messages)].position - 1
        for partition in partitions:
            self._read[partition] = until
        return len(messages) == len(found)

    def _read_log(
        self,
        behind: int,
        until: int,
        partitions: Iterable[int],
        topics: Iterable[str],
        types: Iterable[str],
    ) -> list[Message]:
        many = self._many(partitions), self._many(topics), self._many(types)
        return self._driver.run(read_log(self._sql, behind, until, *many))

    def _adopt(self) -> None:
        """Go by a new generation, if there is one: stop before what only that handles."""
        while (news := self._fence.news()) is not None:
            generation, others = news
            passed: list[Message] = []
            if others and self._read:
                behind, until = min(self._saved.values()), max(self._read.values())
                topics, types = {topic for topic, _ in others}, {kind for _, kind in others}
                passed = [
                    m
                    for m in self._read_log(behind, until, self._read, topics, types)
                    if self._saved[m.partition] < m.position <= self._read[m.partition]
                ]
            self._fence.adopt(generation, others, passed)
            if self._fence.limits:
                self._buffer.clear()
                for partition, saved in self._saved.items():
                    self._read[partition] = max(self._handed.get(partition, 0), saved)

    def _pause(self) -> float:
        if self._listener is None:
            self._listener = threading.Thread(
                target=self._listen, name=f"{self._name} notices", daemon=True
            )
            self._listener.start()
        if not self.assigned:
            return _STANDBY_S
        # Who numbers an event tells the others, so together they look as often as one alone.
        longest = _IDLE_S if self._notices is None else min(_IDLE_S * self._members, _LONG_S)
        pause = min(self._next_pause, longest)
        self._next_pause = pause * 1.3
        return pause

    def _listen(self) -> None:
        while not self._closed.is_set():
            try:
                notices = self._driver.notices(CHANNEL)
                if notices is None:
                    return
                self._notices = notices
                if self._closed.is_set():
                    notices.close()
                while notices.wait():
                    self._bell.set()
            except RetoldError as error:
                self._notices = None
                _log.debug("%s: looking more often, notices fail: %s", self._name, error)
                self._closed.wait(_LONG_S)

    # --- shares ----------------------------------------------------------------------------------

    def _take_share(self) -> None:
        if time.monotonic() >= self._noted_at:
            self._driver.run(check_noted(self._sql))
            self._noted_at = time.monotonic() + _NOTED_S
        self._struck_off.clear()
        if passed := self._passed():
            self._keep(self._save(passed))
        self._joined = True
        now = time.monotonic()
        in_hand = [
            partition
            for partition, handed in self._handed.items()
            if handed > self._saved[partition] and now - self._leaving.get(partition, now) < LEAVE_S
        ]
        share = self._driver.run(
            take_share(self._sql, self._name, self._me, self._lease_ms, self._start, in_hand)
        )
        # What had to be claimed again was somebody else's meanwhile.
        self._keep({n: at for n, at in share.held.items() if n not in share.claimed})
        self._leave(share.leaving, now)
        new = {n: at for n, at in share.held.items() if n not in self._read}
        if self._places is not None and new:
            new = self._seek(self._places, new)
        for partition, position in new.items():
            self._read[partition] = self._saved[partition] = position
            self._times[partition] = object()
        self._members = share.members
        self._share_at = time.monotonic() + (_SHARE_S if share.fair else _STANDBY_S)

    def _seek(self, places: Places, new: Mapping[int, int]) -> dict[int, int]:
        """Where others say that partitions go on, and that this is saved here too."""
        wanted = places.claim([self.place(partition) for partition in new])
        begins = {partition: wanted[self.place(partition)] for partition in new}
        moved = {n: position for n, position in begins.items() if position != new[n]}
        self._driver.run(move_shares(self._sql, self._name, self._me, moved))
        return begins

    def _leave(self, leaving: Collection[int], now: float) -> None:
        """Hand out nothing more of these partitions."""
        self._leaving = {partition: self._leaving.get(partition, now) for partition in leaving}
        for partition in leaving:
            self._read[partition] = max(self._handed[partition], self._saved[partition])
        if leaving:
            self._buffer = deque(m for m in self._buffer if m.partition not in leaving)

    def _passed(self) -> dict[int, int]:
        """Partitions that were read far beyond their saved position, without a message of ours."""
        return {
            partition: position
            for partition, position in self._read_through().items()
            if position - self._saved[partition] >= _WINDOW
        }

    def _read_through(self) -> dict[int, int]:
        """Where every message up to what is read is handled and saved."""
        buffered = {message.partition for message in self._buffer}
        return {
            partition: position
            for partition, position in self._read.items()
            if partition not in buffered
            and self._handed.get(partition, 0) <= self._saved[partition]
        }

    def _keep(self, held: Mapping[int, int] | Collection[int]) -> None:
        """Forget the partitions that belong to others now."""
        lost = self._read.keys() - set(held)
        for partition in lost:
            for positions in (self._read, self._handed, self._saved):
                positions.pop(partition, None)
            self._times.pop(partition, None)
        if lost:
            self._buffer = deque(m for m in self._buffer if m.partition not in lost)
        if isinstance(held, Mapping):
            for partition in self._saved.keys() & held.keys():
                self._saved[partition] = held[partition]

    def _renew(self) -> None:
        if not self._joined:
            return
        try:
            heard = self._driver.run(renew_lease(self._sql, self._name, self._me, self._lease_ms))
        except RetoldError as error:
            # The lease runs on for a while; if it runs out, the next commit will tell.
            _log.warning("%s: the lease was not renewed: %s", self._name, error)
        else:
            if not heard:
                self._struck_off.set()

    def commit(self, positions: Mapping[int, int]) -> None:
        if not positions:
            return
        held = self._save(positions)
        self._keep(held)
        capped = self._fence.capped(positions)
        if any(held.get(partition, -1) < position for partition, position in capped.items()):
            raise AssignmentLost(self._name)

    def _save(self, positions: Mapping[int, int]) -> dict[int, int]:
        """As save_positions, but never beyond what only a newer generation handles."""
        while True:
            capped = self._fence.capped(positions)
            held = self._driver.run(
                save_positions(self._sql, self._name, self._me, capped, self._fence.generation)
            )
            if held is not None:
                return held
            self._fence.look()
            self._adopt()

    def close(self) -> None:
        self._closed.set()
        self._bell.set()
        self._renewer.end()
        if self._notices is not None:
            self._notices.close()
        if not self._joined:
            return
        self._joined = False
        passed = self._read_through()
        try:
            self._save(passed)
            self._read.clear()
            self._buffer.clear()
            self._driver.run(leave(self._sql, self._name, self._me))
        except RetoldError as error:
            _log.warning("%s: others must wait for the lease to run out: %s", self._name, error)
