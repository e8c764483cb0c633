"""The database as its own broker, on SQLite: the events table is the log.

SQLite has one writer at a time, so the table's own `position` is the order of commits and a reader
sees every event in it. For the same reason a subscription has one partition and one active member:
more would only queue for the same lock. The others stand by. The active one holds a lease in the
subscription's row; it is taken over when it expires, or at once when its process is gone from this
machine.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Literal

import msgspec

from retold.brokers.base import Message
from retold.errors import AssignmentLost, RetoldError, UsageError
from retold.store.connections import BlockingDriver
from retold.store.driver import Batch, Plan, Result, Statement

Start = Literal["beginning", "now"] | datetime

LEASE_MS = 30_000
_RENEW_S = 8.0
_IDLE_S = 0.04
"""How often another process's commits are looked for."""
_STANDBY_S = 0.25
_PARTITION = 0


class DatabaseConsumer:
    """A member of a subscription on a SQLite store. See brokers/base.py for what it promises."""

    def __init__(
        self,
        driver: BlockingDriver,
        name: str,
        topics: Sequence[str],
        event_types: Sequence[str],
        start: Start,
    ) -> None:
        if driver.dialect.name != "sqlite":
            raise UsageError(
                f"subscriptions without a message broker run on SQLite so far, and this store is "
                f"on {driver.dialect.name}"
            )
        self._driver = driver
        self._sql = driver.dialect.queries
        self._name = name
        self._topics = msgspec.json.encode(sorted(topics)).decode()
        self._types = msgspec.json.encode(sorted(event_types)).decode()
        self._start: Start = start
        self._owner = f"{_process_identity(os.getpid())}/{secrets.token_hex(4)}"
        self._assigned = False
        self._position = 0
        self._bell = threading.Event()
        self._closed = threading.Event()
        driver.listen(self._bell)
        # A handler may take longer than the lease: it is renewed beside it.
        self._renewer = threading.Thread(target=self._renew, name=f"{name} lease", daemon=True)
        self._renewer.start()

    @property
    def assigned(self) -> bool:
        return self._assigned

    def poll(self, limit: int, timeout: float) -> Sequence[Message]:
        deadline = time.monotonic() + timeout
        while True:
            self._bell.clear()
            if self._assigned or self._claim():
                messages = self._read(limit)
                if messages:
                    return messages
            left = deadline - time.monotonic()
            if left <= 0 or self._closed.is_set():
                return ()
            self._bell.wait(min(left, _IDLE_S if self._assigned else _STANDBY_S))

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
        lease = _now() + LEASE_MS
        params = (position, lease, self._name, _PARTITION, self._owner)
        (saved,) = self._driver.run(_batch(Statement(self._sql["subscription_save"], params)))
        if saved.rowcount != 1:
            self._assigned = False
            raise AssignmentLost(self._name)

    def _claim(self) -> bool:
        row = self._driver.run(self._claim_plan())
        if row is not None:
            self._assigned, self._position = True, row
        return self._assigned

    def _claim_plan(self) -> Plan[int | None]:
        sql, at = self._sql, (self._name, _PARTITION)
        (found,) = yield [Statement(sql["subscription"], at)]
        if not found.rows:
            begin = yield from self._start_position()
            _, found = yield [
                Statement(sql["subscription_begin"], (*at, begin)),
                Statement(sql["subscription"], at),
            ]
        position, owner, lease_until = found.rows[0]
        if owner is not None and lease_until > _now() and not _is_gone(owner):
            return None
        mine = (self._owner, _now() + LEASE_MS)
        claim = Statement(sql["subscription_claim"], (*mine, *at, owner, lease_until))
        (claimed,) = yield [claim]
        return int(position) if claimed.rowcount == 1 else None

    def _start_position(self) -> Plan[int]:
        if self._start == "beginning":
            return 0
        if isinstance(self._start, datetime):
            since = f"{int(self._start.timestamp() * 1000):016x}"
            (found,) = yield [Statement(self._sql["log_position_at"], (since,))]
        else:
            (found,) = yield [Statement(self._sql["log_end"])]
        return int(found.rows[0][0])

    def _renew(self) -> None:
        while not self._closed.wait(_RENEW_S):
            if not self._assigned:
                continue
            params = (_now() + LEASE_MS, self._name, _PARTITION, self._owner)
            renew = Statement(self._sql["subscription_renew"], params)
            try:
                (renewed,) = self._driver.run(_batch(renew))
            except RetoldError:
                continue  # the lease runs on; the next commit will tell
            if renewed.rowcount != 1:
                self._assigned = False

    def _value(self, statement: Statement) -> int:
        (result,) = self._driver.run(_batch(statement))
        return int(result.rows[0][0])

    def wake(self) -> None:
        self._bell.set()

    def close(self) -> None:
        self._closed.set()
        self._bell.set()
        if self._assigned:
            self._assigned = False
            params = (self._name, _PARTITION, self._owner)
            self._driver.run(_batch(Statement(self._sql["subscription_release"], params)))


def _batch(*statements: Statement) -> Plan[Sequence[Result]]:
    batch: Batch = statements
    return (yield batch)


def _now() -> int:
    return time.time_ns() // 1_000_000


def _process_identity(pid: int) -> str:
    """Machine, process namespace, pid and start time; a later process with this pid differs."""
    try:
        namespace = os.readlink("/proc/self/ns/pid")
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            started = file.read().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        namespace, started = "-", "-"
    return f"{socket.gethostname()}/{namespace}/{pid}/{started}"


def _is_gone(owner: str) -> bool:
    """Whether an owner ran on this machine and provably runs no more."""
    host, namespace, pid, started, _ = owner.split("/")
    mine = _process_identity(os.getpid()).split("/")
    if [host, namespace] != mine[:2] or not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return _process_identity(int(pid)).split("/")[3] != started
