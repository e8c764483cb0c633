"""Correct code. Both type checkers accept every line, and infer what `assert_type` says.

It is never run. Beside it stands wrong.py.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any, assert_type
from uuid import UUID

from retold import (
    Aggregate,
    AsyncDelivery,
    AsyncEventStore,
    AsyncRepository,
    AsyncTransaction,
    Changed,
    Codec,
    Cursor,
    Delivery,
    Entity,
    Event,
    EventStore,
    Personal,
    Projection,
    Raw,
    Recorded,
    Repository,
    Subscription,
    Transaction,
    applies,
    every,
    metadata,
    upcast,
)
from retold.testing import Scenario, given


class Opened(Event, name="typing.Opened"):
    owner: Annotated[str, Personal("owner")]
    balance: int = 0


class Debited(Event, name="typing.Debited", formerly=("typing.Withdrawn",), rename="camel"):
    amount: int


class Viewed(Event, name="typing.Viewed"):
    pass


class Account(
    Aggregate,
    name="typing.Account",
    ignores=(Viewed,),
    snapshots=every(100),
    snapshot_version=2,
):
    owner: str = ""
    balance: int = 0

    def open(self, owner: str, balance: int = 0) -> None:
        self.emit(Opened(owner, balance))

    def debit(self, amount: int, *, note: str = "") -> int:
        self.emit(Debited(amount=amount))
        assert_type(self.id, str)
        return self.balance

    @applies
    def _opened(self, event: Opened) -> None:
        self.owner, self.balance = event.owner, event.balance

    @applies(Debited)
    def _debited(self, event: Debited) -> None:
        self.balance -= event.amount


class Savings(Account, name="typing.Savings"):
    rate: Decimal = Decimal(0)

    @applies
    def _either(self, event: Opened | Debited) -> None: ...


def credit(account: Account, amount: int) -> str:
    """A command may be any function."""
    account.emit(Debited(-amount))
    return account.id


def verbs(store: EventStore) -> None:
    accounts = store.repository(Account)
    assert_type(accounts, Repository[Account])

    created = accounts.create(Account.open, "ann", balance=100)
    assert_type(created, Changed[Account, None])
    assert_type(created.state, Account)
    assert_type(created.events, tuple[Event, ...])

    changed = accounts.update(created.id, Account.debit, 30, note="rent")
    assert_type(changed, Changed[Account, int])
    assert_type(changed.result, int)
    assert_type(changed.duplicate, bool)
    assert_type(accounts.update(UUID(int=1), credit, 3).result, str)
    assert_type(accounts.update("1", lambda account: account.balance > 0).result, bool)
    assert_type(accounts.create_or_update("1", Account.debit, 3), Changed[Account, int])

    assert_type(accounts.with_id("1"), Repository[Account])
    assert_type(accounts.once("key"), Repository[Account])
    assert_type(accounts.expecting(changed.version).update("1", Account.debit, 3).result, int)

    assert_type(accounts.find("1"), Entity[Account])
    assert_type(accounts.find("1").state.balance, int)
    assert_type(accounts.find("1", default=None), Entity[Account] | None)
    assert_type(accounts.find("1", default=0), Entity[Account] | int)
    assert_type(accounts.find("1", at=changed.version), Entity[Account])
    assert_type(accounts.find("1", at=datetime.now(UTC)), Entity[Account])
    assert_type(accounts.find_many(["1", UUID(int=2)]), dict[str, Entity[Account]])
    assert_type(accounts.exists("1"), bool)
    assert_type(accounts.entities(), Iterator[str])
    assert_type(accounts.history("1"), Iterator[Recorded[Event]])

    savings = store.repository(Savings)
    assert_type(savings.create(Account.open, "ann"), Changed[Savings, None])
    assert_type(savings.update("1", credit, 3).state.rate, Decimal)


def entities_are_covariant(saved: Entity[Savings], recorded: Recorded[Opened]) -> None:
    account: Entity[Account] = saved
    event: Recorded[Event] = recorded
    del account, event


async def awaited_verbs(store: AsyncEventStore) -> None:
    accounts = store.repository(Account)
    assert_type(accounts, AsyncRepository[Account])
    assert_type(await accounts.create(Account.open, "ann"), Changed[Account, None])
    assert_type((await accounts.update("1", Account.debit, 3)).result, int)
    assert_type(await accounts.once("key").find("1"), Entity[Account])
    assert_type(await accounts.find("1", default=None), Entity[Account] | None)
    assert_type(accounts.history("1"), AsyncIterator[Recorded[Event]])
    async for recorded in accounts.history("1"):
        assert_type(recorded.event, Event)


def transfer(tx: Transaction, amount: int) -> int:
    accounts = tx.repository(Account)
    accounts.update("1", Account.debit, amount)
    return accounts.update("2", Account.debit, -amount).result


async def transfer_later(tx: AsyncTransaction, amount: int) -> int:
    return (await tx.repository(Account).update("1", Account.debit, amount)).result


def transactions(store: EventStore) -> None:
    assert_type(store.transact(transfer, 3), int)
    assert_type(store.transact(transfer, amount=3), int)
    with store.transaction() as tx:
        assert_type(tx, Transaction)
    assert_type(store.using(object()).repository(Account), Repository[Account])


async def awaited_transactions(store: AsyncEventStore) -> None:
    assert_type(await store.transact(transfer_later, 3), int)
    async with store.transaction() as tx:
        assert_type(tx, AsyncTransaction)


letters = Subscription("typing.letters", start="now", attempts=3)


@letters.on(Opened)
def write(delivery: Delivery[Opened]) -> None:
    assert_type(delivery.event.owner, str)
    changed = delivery.update(Account, delivery.entity_id, Account.debit, 1)
    assert_type(changed, Changed[Account, int])
    assert_type(delivery.step("fee"), Delivery[Opened])
    assert_type(delivery.step("fee").create(Account, Account.open, "bank").result, None)
    assert_type(delivery.find(Account, "1"), Entity[Account])


@letters.on(Debited, of=Account)
async def write_later(delivery: AsyncDelivery[Debited]) -> None:
    assert_type((await delivery.update(Account, "1", Account.debit, 1)).result, int)
    assert_type(await delivery.find(Account, "1"), Entity[Account])


@letters.on(Debited, of="typing.Savings")
def for_any_event(delivery: Delivery[Event]) -> None: ...


balances = Projection("balances", database="postgresql://localhost/reports", tables=["balances"])


@balances.setup
def make_tables(db: Cursor) -> None:
    db.execute(f"CREATE TABLE {balances.table('balances')} (id TEXT)")


@balances.on(Opened, of=Account)
def count(delivery: Delivery[Opened], db: Cursor) -> None:
    assert_type(delivery.event, Opened)
    db.execute("SELECT 1 WHERE 1 = %s", (1,))
    db.executemany("INSERT INTO balances VALUES (%s)", [("a",), ("b",)])
    assert_type(db.rowcount, int)


def projections(store: EventStore) -> None:
    changed = store.repository(Account).create(Account.open, "ann", balance=1)
    store.wait_for(balances, changed, timeout=1)
    assert_type(store.drain(balances, letters), int)
    assert_type(balances.rebuild(store, lambda progress: print(progress.behind)), bool)


def inline_projections() -> EventStore:
    return EventStore("sqlite:///x.db", projections=[Projection("unique", inline=True)])


def subscriptions(store: EventStore) -> None:
    assert_type(store.drain(letters), int)
    store.run(letters)


async def awaited_subscriptions(store: AsyncEventStore) -> None:
    async with store.running(letters) as running:
        assert_type(running, AsyncEventStore)


@upcast("typing.OpenedOnce")
def one(data: dict[str, Any]) -> Event:
    return Opened(data["owner"])


@upcast("typing.OpenedTwice")
def several(data: dict[str, Any]) -> list[Event | Raw]:
    return [Opened(data["owner"]), Raw("typing.OpenedOnce", data)]


@upcast("typing.Nothing")
def nothing(data: dict[str, Any]) -> None: ...


def scenarios() -> None:
    scenario = given(Account, Opened("ann", 100)).when(Account.debit, 30)
    assert_type(scenario, Scenario[Account, int])
    assert_type(scenario.then(Debited(30)).then_state(balance=70).result, int)
    assert_type(scenario.state.balance, int)


def own_types() -> Codec:
    return Codec().add(complex, encode=lambda value: [value.real, value.imag], decode=_complex)


def _complex(kept: list[float]) -> complex:
    return complex(*kept)


def with_metadata() -> None:
    with metadata(user="ann"):
        pass
