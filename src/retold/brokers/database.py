"""The database as its own broker, on SQLite: the events table is the log.

SQLite has one writer at a time, so the table's own `position` is the order of commits and a reader
sees every event in it. For the same reason a subscription has one partition and one active member:
more would only queue for the same lock. The others stand by. The active one holds a lease in the
subscription's row; it is taken over when it expires, or at once when its process is gone from this
machine.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
from collections.abc import Mapping, Sequence
from datetime import datetime

import msgspec

from retold.brokers import leases
from retold.brokers.base import Message
from retold.brokers.polling import PollingConsumer, Start
from retold.errors import AssignmentLost, RetoldError
from retold.ids import id_since, wall_clock
from retold.store.connections import BlockingDriver
from retold.store.driver import Batch, Plan, Result, Statement

LEASE_S = leases.LEASE_S
_IDLE_S = 0.04
"""How often another process's commits are looked for."""
_STANDBY_S = 0.25
_PARTITION = 0
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
    ) -> None:
        super().__init__()
        self._driver = driver
        self._sql = driver.dialect.queries
        self._name = name
        self._topics = msgspec.json.encode(sorted(topics)).decode()
        self._types = msgspec.json.encode(sorted(event_types)).decode()
        self._start: Start = start
        self._lease_s = LEASE_S
        self._process = leases.process_identity(os.getpid())
        # The text in the owner column while the lease is held: a new one for each claim, so that
        # nobody takes one of this member's leases for another.
        self._owner: str | None = None
        self._owner_lock = threading.Lock()
        self._position = 0
        driver.listen(self._bell)
        self._renewer = leases.Renewer(name, self._lease_s, self._renew)

    @property
    def assigned(self) -> bool:
        return self._owner is not None

    @property
    def held(self) -> Mapping[int, object]:
        owner = self._owner
        return {} if owner is None else {_PARTITION: owner}

    def owned(self, partition: int) -> Statement:
        return Statement(self._sql["parked_owned"], (self._name, partition, self._owner or ""))

    def _look(self, limit: int) -> Sequence[Message]:
        return self._read(limit) if self.assigned or self._claim() else ()

    def _pause(self) -> float:
        return _IDLE_S if self.assigned else _STANDBY_S

    def _read(self, limit: int) -> list[Message]:
        end = self._value(Statement(self._sql["log_end"]))
        if end <= self._position:
            return []
        (result,) = self._driver.run(
            _batch(
                Statement(
                    self._sql["log_read"], (self._position, end, self._topics, self._types, limit)
                )
            )
        )
        messages = [
            Message(topic, key, event_id, event_type, data, metadata, _PARTITION, position)
            for position, event_id, event_type, data, topic, key, metadata in result.rows
        ]
        # Behind the last of a short read there is nothing of ours up to the end.
        self._position = messages[-1].position if len(messages) == limit else end
        return messages

    def commit(self, positions: Mapping[int, int]) -> None:
        position = positions.get(_PARTITION)
        if position is None:
            return
        owner = self._owner
        if owner is None:
            raise AssignmentLost(self._name)
        params = (position, self._lease_until(), self._name, _PARTITION, owner)
        (saved,) = self._driver.run(_batch(Statement(self._sql["subscription_save"], params)))
        if saved.rowcount != 1:
            self._lost(owner)
            raise AssignmentLost(self._name)

    def _claim(self) -> bool:
        owner = f"{self._process}/{secrets.token_hex(4)}"
        position = self._driver.run(self._claim_plan(owner))
        if position is not None:
            self._position, self._owner = position, owner
        return self.assigned

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
        owner, self._owner = self._owner, None
        if owner is None:
            return
        release = Statement(self._sql["subscription_release"], (self._name, _PARTITION, owner))
        try:
            self._driver.run(_batch(release))
        except RetoldError as error:
            _log.warning("%s: others must wait for the lease to run out: %s", self._name, error)


def _batch(*statements: Statement) -> Plan[Sequence[Result]]:
    batch: Batch = statements
    return (yield batch)
