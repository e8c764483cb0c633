"""Accounts, and projections of them whose tables are compared with the events themselves."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

from retold import Aggregate, Cursor, Delivery, Event, EventStore, Projection, Retry, applies
from tests.conformance.raw import rows


class Opened(Event, name="accounts.Opened"):
    email: str


class Paid(Event, name="accounts.Paid"):
    amount: int


class Closed(Event, name="accounts.Closed"):
    pass


class Account(Aggregate, name="accounts.Account"):
    balance: int = 0

    def open(self, email: str) -> None:
        self.emit(Opened(email))

    def pay(self, *amounts: int) -> None:
        for amount in amounts:
            self.emit(Paid(amount))

    def close(self) -> None:
        self.emit(Closed())

    @applies
    def _opened(self, event: Opened) -> None: ...

    @applies
    def _paid(self, event: Paid) -> None:
        self.balance += event.amount

    @applies
    def _closed(self, event: Closed) -> None: ...


def marks(url: str) -> str:
    """A parameter, as the database's client library writes it."""
    return "?" if url.startswith("sqlite") else "%s"


class Balances:
    """A projection that neither forgives an event that is applied twice nor one that is missing:
    the trail depends on the order, too. failing: amounts whose handler raises."""

    def __init__(
        self,
        url: str,
        name: str = "balances",
        of: str | type[Account] = Account,
        **settings: Any,
    ) -> None:
        self.failing = set[int]()
        self.tried = list[int]()
        self.mark = marks(url)
        if not settings.get("inline"):
            settings.setdefault("retry", Retry(attempts=1))
        self.projection = projection = Projection(name, tables=["balances"], **settings)
        projection.setup(self.make)
        projection.on(Opened, of=of)(self.opened)
        projection.on(Paid, of=of)(self.paid)

    def make(self, db: Cursor) -> None:
        db.execute(
            f"CREATE TABLE IF NOT EXISTS {self.projection.table('balances')} "
            "(id VARCHAR(255) PRIMARY KEY, balance BIGINT NOT NULL, trail BIGINT NOT NULL)"
        )

    def opened(self, delivery: Delivery[Opened], db: Cursor) -> None:
        db.execute(
            f"INSERT INTO {self.projection.table('balances')} VALUES ({self.mark}, 0, 0)",
            (delivery.entity_id,),
        )

    def paid(self, delivery: Delivery[Paid], db: Cursor) -> None:
        amount = delivery.event.amount
        self.tried.append(amount)
        db.execute(
            f"UPDATE {self.projection.table('balances')} SET balance = balance + {self.mark}, "
            f"trail = MOD(trail * 31 + {self.mark}, 1000003) WHERE id = {self.mark}"
            if self.mark == "%s"
            else f"UPDATE {self.projection.table('balances')} SET balance = balance + ?, "
            "trail = (trail * 31 + ?) % 1000003 WHERE id = ?",
            (amount, amount, delivery.entity_id),
        )
        assert db.rowcount == 1
        if amount in self.failing:
            raise ZeroDivisionError("no paper")


Table = dict[str, tuple[int, int]]
"""Entity id → balance and trail."""


def folded(url: str) -> Table:
    """What the table must hold, from the rows of the events."""
    found: Table = defaultdict(lambda: (0, 0))
    for id, kind, data in rows(
        url, "SELECT entity_id, event_type, event_data FROM events ORDER BY event_id"
    ):
        balance, trail = found[str(id)]
        if kind == "accounts.Paid":
            amount = json.loads(str(data))["amount"]
            balance, trail = balance + amount, (trail * 31 + amount) % 1_000_003
        found[str(id)] = (balance, trail)
    return dict(found)


def table(url: str, name: str = "balances") -> Table:
    """What a projection's table holds."""
    found = rows(url, f"SELECT id, balance, trail FROM {name}")
    return {str(id): (int(str(balance)), int(str(trail))) for id, balance, trail in found}


def account(store: EventStore, id: str, *amounts: int) -> str:
    store.repository(Account).with_id(id).create(Account.open, f"{id}@example.org")
    if amounts:
        store.repository(Account).update(id, Account.pay, *amounts)
    return id
