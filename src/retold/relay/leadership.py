"""Leadership: of the relays with one name, one publishes and the others stand by.

The lock lives in the database whose log is followed, on a connection of its own. The server frees it
when the process is gone, and also when the process merely stands still: the lock's session is ended
by the server unless it is heard of every few seconds. The lock keeps two relays from fighting; that
nothing is published twice does not hang on it, because Kafka fences an older publisher.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import threading
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Protocol

from retold.brokers.leases import is_gone, process_identity
from retold.errors import LeadershipLost, LogUnsuitable, RetoldError
from retold.ids import wall_clock
from retold.store.driver import Statement

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from retold.store.connections import BlockingDriver, OwnConnection

KEPT_S = 6.0
"""How long the lock outlives a leader that is not heard of any more."""
_PING_S = 2.0
_TRY_S = 0.5
_log = logging.getLogger("retold.relay")


class Leadership(Protocol):
    """A lock that is held by one relay of a name at a time."""

    def acquire(self, stop: threading.Event) -> bool:
        """Wait until this relay leads; False when told to stop."""
        ...

    def check(self) -> None:
        """Raises LeadershipLost once the lock may belong to another."""
        ...

    def release(self) -> None: ...


class DatabaseLeadership:
    """The lock of one name, in the relay's own database."""

    def __init__(self, driver: BlockingDriver, name: str) -> None:
        self._driver = driver
        self._lock = _LOCKS[driver.dialect.name](driver, name)
        self._lost = ""
        self._heard = 0.0
        self._ended = threading.Event()
        self._pinger: threading.Thread | None = None
        self._block = ExitStack()
        self._connection: OwnConnection | None = None

    def acquire(self, stop: threading.Event) -> bool:
        said: tuple[int, str] | None = None
        while not stop.is_set():
            asked = time.monotonic()
            try:
                if self._try():
                    self._heard = asked
                    self._pinger = threading.Thread(
                        target=self._ping, name="retold relay lock", daemon=True
                    )
                    self._pinger.start()
                    return True
                state = logging.INFO, "another relay leads; standing by"
            except RetoldError as error:
                self._block.close()
                self._connection = None
                if not error.retriable:
                    raise
                state = logging.WARNING, f"cannot ask for the lock: {error}"
            if state != said:
                said = state
                _log.log(*state)
            stop.wait(_TRY_S)
        return False

    def _try(self) -> bool:
        if self._connection is None:
            self._connection = self._block.enter_context(self._driver.connection())
            self._lock.prepare(self._connection)
        return self._lock.take(self._connection)

    def _ping(self) -> None:
        assert self._connection is not None
        while not self._ended.wait(_PING_S):
            # An answer may have waited in a process that stood still: what counts is when it asked.
            asked = time.monotonic()
            try:
                held = self._lock.keep(self._connection)
            except RetoldError as error:
                self._lost = str(error)
                return
            if not held:
                self._lost = "another relay took it"
                return
            self._heard = asked

    def check(self) -> None:
        silent = time.monotonic() - self._heard
        if self._lost or silent > KEPT_S:
            raise LeadershipLost(self._lost or f"it was not renewed for {silent:.0f} s")

    def release(self) -> None:
        self._ended.set()
        if self._pinger is not None:
            self._pinger.join(_PING_S)
            if self._pinger.is_alive():
                return  # the server does not answer; the lock ends with the process
        try:
            if self._connection is not None and not self._lost:
                self._lock.give_back(self._connection)
        except RetoldError as error:
            _log.warning("others must wait for the lock: %s", error)
        finally:
            self._connection = None
            self._block.close()


class _Lock(Protocol):
    """How one kind of database holds a lock for a connection."""

    def __init__(self, driver: BlockingDriver, name: str) -> None: ...
    def prepare(self, connection: OwnConnection) -> None: ...
    def take(self, connection: OwnConnection) -> bool: ...
    def keep(self, connection: OwnConnection) -> bool: ...
    def give_back(self, connection: OwnConnection) -> None: ...


def _row(connection: OwnConnection, sql: str, *params: object) -> Sequence[Any]:
    (result,) = connection.execute([Statement(sql, params)])
    return result.rows[0] if result.rows else ()


class _PostgresLock:
    """A session's advisory lock; the server ends a session that is idle for too long."""

    def __init__(self, driver: BlockingDriver, name: str) -> None:
        text = f"retold-relay/{driver.dialect.schema}/{driver.dialect.prefix}/{name}"
        digest = hashlib.sha256(text.encode()).digest()
        self._key = int.from_bytes(digest[:8], "big", signed=True)

    def prepare(self, connection: OwnConnection) -> None:
        if not getattr(connection, "direct", True):
            raise LogUnsuitable(
                "a pooler stands in between, so give the relay a URL that leads to the server itself"
            )
        idle = int(KEPT_S * 1000)
        _row(connection, "SELECT set_config('idle_session_timeout', %s, false)", str(idle))

    def take(self, connection: OwnConnection) -> bool:
        return bool(_row(connection, "SELECT pg_try_advisory_lock(%s)", self._key)[0])

    def keep(self, connection: OwnConnection) -> bool:
        _row(connection, "SELECT 1")
        return True

    def give_back(self, connection: OwnConnection) -> None:
        _row(connection, "SELECT pg_advisory_unlock(%s)", self._key)


class _MySQLLock:
    """A session's named lock; the server ends a session that is silent for too long."""

    def __init__(self, driver: BlockingDriver, name: str) -> None:
        self._text = f"{driver.dialect.prefix}/{name}"
        self._name = ""

    def prepare(self, connection: OwnConnection) -> None:
        _row(connection, f"SET SESSION wait_timeout = {int(KEPT_S)}")
        (database,) = _row(connection, "SELECT DATABASE()")
        # Names of locks are the server's, not the database's, and at most 64 characters long.
        digest = hashlib.sha256(f"{database}/{self._text}".encode()).hexdigest()
        self._name = f"retold-relay-{digest[:48]}"

    def take(self, connection: OwnConnection) -> bool:
        return bool(_row(connection, "SELECT GET_LOCK(%s, 0) = 1", self._name)[0])

    def keep(self, connection: OwnConnection) -> bool:
        return bool(_row(connection, "SELECT IS_USED_LOCK(%s) = CONNECTION_ID()", self._name)[0])

    def give_back(self, connection: OwnConnection) -> None:
        _row(connection, "SELECT RELEASE_LOCK(%s)", self._name)


class _SqliteLock:
    """A lease in the table of subscriptions, under a name that no subscription can have."""

    def __init__(self, driver: BlockingDriver, name: str) -> None:
        self._sql = driver.dialect.queries
        self._name = f"relay:{name}"
        self._owner = f"{process_identity(os.getpid())}/{secrets.token_hex(4)}"

    def prepare(self, connection: OwnConnection) -> None:
        begin = Statement(self._sql["subscription_begin"], (self._name, 0, 0))
        connection.execute([begin])

    def take(self, connection: OwnConnection) -> bool:
        position, owner, until = _row(connection, self._sql["subscription"], self._name, 0)
        if owner is not None and until > wall_clock() and not is_gone(owner):
            return False
        claim = (self._owner, self._until(), self._name, 0, owner, until, position)
        (claimed,) = connection.execute([Statement(self._sql["subscription_claim"], claim)])
        return claimed.rowcount == 1

    def keep(self, connection: OwnConnection) -> bool:
        renew = (self._until(), self._name, 0, self._owner)
        (renewed,) = connection.execute([Statement(self._sql["subscription_renew"], renew)])
        return renewed.rowcount == 1

    def give_back(self, connection: OwnConnection) -> None:
        release = (self._name, 0, self._owner)
        connection.execute([Statement(self._sql["subscription_release"], release)])

    def _until(self) -> int:
        return wall_clock() + int(KEPT_S * 1000)


_LOCKS: dict[str, type[_Lock]] = {
    "postgres": _PostgresLock,
    "mysql": _MySQLLock,
    "sqlite": _SqliteLock,
}
