"""The libraries: retold, and the `eventsourcing` package with the same account."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit
from uuid import UUID

from eventsourcing.application import Application
from eventsourcing.domain import Aggregate as ESAggregate
from eventsourcing.domain import event

from benchmarks.accounts import OPENING, Account, Worker
from retold import EventStore

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from eventsourcing.persistence import StoredEvent


class Retold:
    """retold with its defaults."""

    name = "retold"

    def __init__(self, url: str, reset: Callable[[], None]) -> None:
        self._store = EventStore(url)
        self._reset = reset
        self.accounts = self._store.repository(Account)

    def migrate(self) -> None:
        self._store.migrate()

    def worker(self) -> Worker:
        accounts = self.accounts

        def create(_: str) -> None:
            accounts.create(Account.open, "ann", OPENING)

        def update(id: str) -> None:
            accounts.update(id, Account.debit, "transfer-1", 10)

        return Worker(create, update, accounts.find)

    def reset(self) -> None:
        self._reset()

    def close(self) -> None:
        self._store.close()


class ESAccount(ESAggregate):
    @event("Opened")
    def __init__(self, owner: str, amount: int) -> None:
        self.balance = amount
        self.transfers = 0

    def debit(self, transfer: str, amount: int) -> None:
        if amount > self.balance:
            raise ValueError("not enough money")
        self._debited(transfer, amount)

    @event("Debited")
    def _debited(self, transfer: str, amount: int) -> None:
        self.balance -= amount
        self.transfers += 1


class Eventsourcing:
    """The `eventsourcing` package with its defaults, and a connection for each thread."""

    name = "eventsourcing"

    def __init__(self, url: str, threads: int, execute: Callable[[str], object]) -> None:
        """`execute` runs a statement in the same database."""
        self._execute = execute
        self._app: Application[UUID] = Application(_environment(url, threads))
        # Each module has its own names for the table and for the column that counts.
        recorder: Any = self._app.recorder
        self._table: str = recorder.events_table_name
        self._counter = "rowid" if url.startswith("sqlite") else "notification_id"
        self._mark = 0

    def fill(self, histories: Sequence[tuple[str, int]]) -> None:
        """Make accounts of so many events."""
        samples = {length: self._history(length) for length in {length for _, length in histories}}
        for first in range(0, len(histories), 500):
            events = [
                replace(stored, originator_id=UUID(id))
                for id, length in histories[first : first + 500]
                for stored in samples[length]
            ]
            self._app.recorder.insert_events(events)
        self._mark = self._app.recorder.max_notification_id() or 0

    def _history(self, length: int) -> list[StoredEvent]:
        account = ESAccount("ann", OPENING)
        for _ in range(length - 1):
            account.debit("transfer-1", 10)
        return [self._app.mapper.to_stored_event(happened) for happened in account.collect_events()]

    def worker(self) -> Worker:
        app = self._app

        def create(_: str) -> None:
            app.save(ESAccount("ann", OPENING))

        def update(id: str) -> None:
            account: ESAccount = app.repository.get(UUID(id))
            account.debit("transfer-1", 10)
            app.save(account)

        def load(id: str) -> ESAccount:
            account: ESAccount = app.repository.get(UUID(id))
            return account

        return Worker(create, update, load)

    def reset(self) -> None:
        self._execute(f"DELETE FROM {self._table} WHERE {self._counter} > {self._mark}")
        if self._counter != "rowid":
            self._execute(f"VACUUM ANALYZE {self._table}")

    def close(self) -> None:
        self._app.close()


def _environment(url: str, threads: int) -> dict[str, str]:
    parts = urlsplit(url)
    if parts.scheme == "sqlite":
        return {
            "PERSISTENCE_MODULE": "eventsourcing.sqlite",
            "SQLITE_DBNAME": parts.path[1:],
            "SQLITE_LOCK_TIMEOUT": "30",
        }
    return {
        "PERSISTENCE_MODULE": "eventsourcing.postgres",
        "POSTGRES_DBNAME": parts.path[1:],
        "POSTGRES_HOST": parts.hostname or "",
        "POSTGRES_PORT": str(parts.port),
        "POSTGRES_USER": unquote(parts.username or ""),
        "POSTGRES_PASSWORD": unquote(parts.password or ""),
        "POSTGRES_POOL_SIZE": str(threads),
    }
