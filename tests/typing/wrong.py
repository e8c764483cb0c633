"""Wrong code. Both type checkers refuse each line that ends in "error", and no other line.

It is never run, and left out of the checks of the whole project.
"""

# ruff: noqa: B018, F841

from __future__ import annotations

from typing import Any

from retold import (
    Aggregate,
    AsyncDelivery,
    AsyncEventStore,
    Cursor,
    Delivery,
    Event,
    EventStore,
    Projection,
    Repository,
    Subscription,
    Transaction,
    applies,
    metadata,
    upcast,
)
from retold.testing import given
from tests.typing.right import Account, Debited, Opened

# --- declarations


class NamelessEvent(Event):  # error
    n: int


class NamelessAggregate(Aggregate):  # error
    n: int = 0


class OddName(Event, name=7):  # error
    n: int


class OddOption(Event, name="typing.OddOption", frozen=False):  # error
    n: int


class OddSnapshots(Aggregate, name="typing.OddSnapshots", snapshots=100):  # error
    n: int = 0


class Wrong(Aggregate, name="typing.Wrong"):
    n: int = 0

    def no_event(self) -> None:
        self.emit("opened")  # error

    def a_class(self) -> None:
        self.emit(Opened)  # error

    def undeclared(self) -> int:
        return self.total  # error

    def wrong_type(self) -> None:
        self.n = "1"  # error

    def own_id(self) -> None:
        self.id = "1"  # error

    @applies(Opened)  # error
    def of_another_event(self, event: Debited) -> None: ...


# --- events

Opened()  # error
Opened("ann", "100")  # error
Opened("ann", 100, 1)  # error
Debited(sum=3)  # error
Debited(3).sum  # error
Debited(3).amount = 4  # error
Account(balance="3")  # error
Account("ann")  # error


# --- repositories


def verbs(store: EventStore, accounts: Repository[Account]) -> None:
    store.repository(Opened)  # error
    store.repository(Account())  # error
    accounts.create(Account.open, 100, balance="x")  # error
    accounts.create(Account.open)  # error
    accounts.create(Account.open, "ann", balanced=1)  # error
    accounts.create(Account.open("ann"))  # error
    accounts.create(Wrong.no_event)  # error
    accounts.update("1", Account.debit)  # error
    accounts.update("1", Account.debit, "30")  # error
    accounts.update("1", Account.debit, 30, "note")  # error
    accounts.update("1", Account.debit, sum=30)  # error
    accounts.update(1, Account.debit, 30)  # error
    accounts.update("1", Wrong.no_event)  # error
    accounts.update("1", Account.balance)  # error
    accounts.update(id="1", command=Account.debit, amount=30)  # error
    text: str = accounts.update("1", Account.debit, 30).result  # error
    number: int = accounts.create(Account.open, "ann").result  # error
    accounts.find("1").state.balanced  # error
    accounts.find("1").state.balance = "3"  # error
    accounts.find("1").state.total = 1  # error
    accounts.find("1").version = ""  # error
    accounts.find("1", default=None).state  # error
    accounts.find("1", at=3)  # error
    accounts.find(1)  # error
    accounts.with_id(1)  # error
    accounts.once(key="k")  # error
    accounts.expecting(None)  # error
    EventStore("sqlite:///bank.db", retry=3)  # error
    EventStore("sqlite:///bank.db", retries="3")  # error


async def without_await(store: AsyncEventStore) -> None:
    accounts = store.repository(Account)
    accounts.create(Account.open, "ann")  # error
    accounts.find("1").state  # error
    accounts.update("1", Account.debit, 30).result  # error
    for recorded in accounts.history("1"):  # error
        del recorded
    await accounts.update("1", Account.debit, "30")  # error
    with store.transaction():  # error
        pass


def work(tx: Transaction, amount: int) -> None: ...


async def work_later(tx: Transaction, amount: int) -> None: ...


async def transactions(store: EventStore, later: AsyncEventStore) -> None:
    store.transact(work)  # error
    store.transact(work, "3")  # error
    store.transact(work())  # error
    await later.transact(work, 3)  # error
    await later.transact(work_later, 3)  # error


# --- subscriptions

letters = Subscription("letters")
Subscription("letters", start="end")  # error
Subscription("letters", attempts="3")  # error
letters.on(Account)  # error
letters.on(Opened, of=Debited)  # error
letters.on(Opened("ann"))  # error


@letters.on(Opened)  # error
def of_another_event(delivery: Delivery[Debited]) -> None: ...


@letters.on(Opened)  # error
async def async_with_a_plain_delivery(delivery: Delivery[Opened]) -> None: ...


@letters.on(Opened)  # error
def plain_with_an_async_delivery(delivery: AsyncDelivery[Opened]) -> None: ...


@letters.on(Opened)  # error
def of_the_event_itself(event: Opened) -> None: ...


@letters.on(Opened)  # error
def without_a_delivery() -> None: ...


@letters.on  # error
def of_no_event(delivery: Delivery[Opened]) -> None: ...


@letters.on(Opened)
def write(delivery: Delivery[Opened]) -> None:
    delivery.event.amount  # error
    delivery.update(Account, "1", Account.debit, "3")  # error
    delivery.update(Account, "1", Wrong.no_event)  # error
    delivery.create(Account, Account.open)  # error
    delivery.update("1", Account.debit, 3)  # error


@letters.on(Opened)
async def write_later(delivery: AsyncDelivery[Opened]) -> None:
    delivery.update(Account, "1", Account.debit, 3)  # error
    await delivery.update(Account, "1", Account.debit)  # error


balances = Projection("balances", tables=["balances"])
Projection("balances", on_error="skip")  # error
balances.on(Account)  # error


@balances.on(Opened)  # error
def without_a_cursor(delivery: Delivery[Opened]) -> None: ...


@balances.on(Opened)  # error
def projects_another_event(delivery: Delivery[Debited], db: Cursor) -> None: ...


@balances.on(Opened)  # error
async def projects_later(delivery: Delivery[Opened], db: Cursor) -> None: ...


@balances.on(Opened)
def projects(delivery: Delivery[Opened], db: Cursor) -> None:
    delivery.event.amount  # error
    db.commit()  # error


# --- upcasting, the test kit, metadata


@upcast("typing.Wrong")  # error
def returns_data(data: dict[str, Any]) -> dict[str, Any]:
    return data


@upcast  # error
def without_a_name(data: dict[str, Any]) -> Event:
    return Debited(3)


given(Account).when(Account.open)  # error
given(Account).when(Account.debit, "3")  # error
given(Account, Opened).when(Account.open, "ann")  # error
given(Opened("ann"))  # error
given(Account).when(Account.debit, 3).then(Debited)  # error
given(Account).when(Account.debit, 3).result.upper()  # error

with metadata(user=3):  # error
    pass
