"""The database as its own broker, on SQLite: the events table is the log.

SQLite has one writer at a time, so the table's own `position` is the order of commits and a reader
sees every event in it. For the same reason a subscription has one partition and one active member:
more would only queue for the same lock. The others stand by. The active one holds a lease in the
subscription's row; it is taken over when it expires, or at once when its process is gone from this
machine.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import threading
from collections.abc import Mapping, Sequence
from datetime import datetime

import msgspec

from retold.brokers import leases
from retold.brokers.base import Message, Places
from retold.brokers.moving import MOVED
from retold.brokers.polling import PollingConsumer, Start
from retold.brokers.wants import Fence, Wants
from retold.errors import AssignmentLost, MovedToKafka, RetoldError
from retold.ids import id_since, wall_clock
from retold.store.connections import BlockingDriver
from retold.store.driver import Batch, Plan, Result, Statement

LEASE_S = leases.LEASE_S
_IDLE_S = 0.04
"""How often another process's commits are looked for."""
_STANDBY_S = 0.25
_PARTITION = 0
_PASSED = 500
"""How many positions without an event of ours are read again, at most, after a crash."""
_log = logging.getLogger("retold.subscriptions")


class DatabaseConsumer(PollingConsumer):
    """A member of a subscription on a SQLite store. See brokers/base.py for what it promises."""

    def __init__(
        self,
        driver: BlockingDriver,
        name: str,
        topics: Sequence[str],
        event_types: Sequence[str],
        start: Start,
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
        self._lease_s = LEASE_S
        self._process = leases.process_identity(os.getpid())
        # The text in the owner column while the lease is held: a new one for each claim, so that
        # nobody takes one of this member's leases for another.
        self._owner: str | None = None
        self._owner_lock = threading.Lock()
        # Read up to, handed out up to, and saved.
        self._position = self._handed = self._saved = 0
        driver.listen(self._bell)
        self._renewer = leases.Renewer(name, self._lease_s, self._renew)

    @property
    def assigned(self) -> bool:
        return self._owner is not None

    @property
    def held(self) -> Mapping[int, object]:
        owner = self._owner
        return {} if owner is None else {_PARTITION: owner}

    def place(self, partition: int) -> str:
        return str(partition)

    def reached(self) -> Mapping[int, int]:
        return {_PARTITION: self._position} if self.assigned else {}

    def owned(self, partition: int) -> Statement:
        return Statement(self._sql["parked_owned"], (self._name, partition, self._owner or ""))

    def _look(self, limit: int) -> Sequence[Message]:
        if not (self.assigned or self._claim()):
            return ()
        self._adopt()
        self._fence.check()
        return self._read(limit) if limit else ()

    def _pause(self) -> float:
        return _IDLE_S if self.assigned else _STANDBY_S

    def _read(self, limit: int) -> Sequence[Message]:
        end = self._value(Statement(self._sql["log_end"]))
        if end <= self._position:
            return []
        fence = self._fence
        found = self._read_log(self._position, end, fence.topics, fence.event_types, limit)
        messages = fence.before(found)
        if messages:
            self._handed = messages[-1].position
        # Behind the last of a short read there is nothing of ours up to the end.
        through = found[-1].position if len(found) == limit else end
        self._position = fence.capped({_PARTITION: through})[_PARTITION]
        if not messages:
            fence.check()
            if self._position - self._saved >= _PASSED and self._handed <= self._saved:
                self._save(self._position)
        return messages

    def _read_log(
        self, behind: int, end: int, topics: Sequence[str], types: Sequence[str], limit: int
    ) -> list[Message]:
        params = (behind, end, _json(topics), _json(types), limit)
        (result,) = self._driver.run(_batch(Statement(self._sql["log_read"], params)))
        return [
            Message(topic, key, event_id, event_type, data, metadata, _PARTITION, position)
            for position, event_id, event_type, data, topic, key, metadata in result.rows
        ]

    def _adopt(self) -> None:
        """Go by a new generation, if there is one: stop before what only that handles."""
        while (news := self._fence.news()) is not None:
            generation, others = news
            topics, types = sorted({topic for topic, _ in others}), sorted({t for _, t in others})
            behind, passed = self._saved, list[Message]()
            while types and (
                page := self._read_log(behind, self._position, topics, types, _PASSED)
            ):
                passed += [m for m in page if (m.topic, m.event_type) in others]
                behind = page[-1].position
                if passed:
                    break
            self._fence.adopt(generation, others, passed)

    def commit(self, positions: Mapping[int, int]) -> None:
        if (position := positions.get(_PARTITION)) is not None:
            self._save(position)

    def _save(self, wanted: int) -> None:
        owner = self._owner
        if owner is None:
            raise AssignmentLost(self._name)
        while True:
            generation = self._fence.generation
            position = max(self._fence.capped({_PARTITION: wanted})[_PARTITION], self._saved)
            params: tuple[object, ...] = (position, self._lease_until())
            params += (self._name, _PARTITION, owner)
            save = Statement(self._sql["subscription_save"], params)
            if generation is not None:
                save = Statement(
                    self._sql["subscription_save_in"], (*params, self._name, generation)
                )
            (saved,) = self._driver.run(_batch(save))
            if saved.rowcount == 1:
                self._saved = position
                return
            self._fence.look()
            if self._fence.news() is None:
                self._lost(owner)
                raise AssignmentLost(self._name)
            self._adopt()

    def _claim(self) -> bool:
        owner = f"{self._process}/{secrets.token_hex(4)}"
        position = self._driver.run(self._claim_plan(owner))
        if position is not None:
            if self._places is not None:
                position = self._seek(self._places, owner, position)
            self._position = self._handed = self._saved = position
            self._owner = owner
        return self.assigned

    def _seek(self, places: Places, owner: str, position: int) -> int:
        """Where others say that it goes on, and that this is saved here too."""
        try:
            place = self.place(_PARTITION)
            wanted = places.claim([place])[place]
            params = (wanted, self._lease_until(), self._name, _PARTITION, owner)
            if wanted != position:
                self._driver.run(_batch(Statement(self._sql["subscription_save"], params)))
        except BaseException:
            self._release(owner)
            raise
        return wanted

    def _claim_plan(self, mine: str) -> Plan[int | None]:
        """Take a lease that nobody holds; the position it begins behind, None if somebody does."""
        sql, at = self._sql, (self._name, _PARTITION)
        (found,) = yield [Statement(sql["subscription"], at)]
        if not found.rows:
            begin = yield from self._start_position()
            _, found = yield [
                Statement(sql["subscription_begin"], (*at, begin)),
                Statement(sql["subscription"], at),
            ]
        position, owner, lease_until = found.rows[0]
        if owner is not None and owner.startswith(MOVED):
            raise MovedToKafka(self._name)
        if owner is not None and lease_until > wall_clock() and not leases.is_gone(owner):
            return None
        # Only from what was just read: of two members one wins, and the position is the newest.
        read = (*at, owner, lease_until, position)
        claim = Statement(sql["subscription_claim"], (mine, self._lease_until(), *read))
        (claimed,) = yield [claim]
        return int(position) if claimed.rowcount == 1 else None

    def _start_position(self) -> Plan[int]:
        if self._start == "beginning":
            return 0
        if isinstance(self._start, datetime):
            since = id_since(self._start)
            (found,) = yield [Statement(self._sql["log_position_at"], (since,))]
        else:
            (found,) = yield [Statement(self._sql["log_end"])]
        return int(found.rows[0][0])

    def _lease_until(self) -> int:
        return wall_clock() + int(self._lease_s * 1000)

    def _renew(self) -> None:
        owner = self._owner
        if owner is None:
            return
        params = (self._lease_until(), self._name, _PARTITION, owner)
        renew = Statement(self._sql["subscription_renew"], params)
        try:
            (renewed,) = self._driver.run(_batch(renew))
        except RetoldError as error:
            # The lease runs on for a while; if it runs out, the next commit will tell.
            _log.warning("%s: the lease was not renewed: %s", self._name, error)
        else:
            if renewed.rowcount != 1:
                self._lost(owner)

    def _lost(self, owner: str) -> None:
        """Give up a lease that another member took; a newer one of this member's stays."""
        with self._owner_lock:
            if self._owner == owner:
                self._owner = None

    def _value(self, statement: Statement) -> int:
        (result,) = self._driver.run(_batch(statement))
        return int(result.rows[0][0])

    def close(self) -> None:
        self._closed.set()
        self._bell.set()
        self._renewer.end()
        owner = self._owner
        if owner is not None and self._position > self._saved >= self._handed:
            with contextlib.suppress(RetoldError):
                self._save(self._position)
        owner, self._owner = self._owner, None
        if owner is not None:
            self._release(owner)

    def _release(self, owner: str) -> None:
        release = Statement(self._sql["subscription_release"], (self._name, _PARTITION, owner))
        try:
            self._driver.run(_batch(release))
        except RetoldError as error:
            _log.warning("%s: others must wait for the lease to run out: %s", self._name, error)


def _json(texts: Sequence[str]) -> str:
    return msgspec.json.encode(texts).decode()


def _batch(*statements: Statement) -> Plan[Sequence[Result]]:
    batch: Batch = statements
    return (yield batch)
