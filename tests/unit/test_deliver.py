"""`deliver` hands an event to a handler as a subscription does, again and again."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import pytest

from retold import Aggregate, AsyncDelivery, Delivery, Event, NotFound, applies
from retold.errors import InvalidValue, NotStorable, UsageError
from retold.testing import (
    Clock,
    deliver,
    fixed_ids,
    temporary_async_store,
    temporary_store,
)


class Requested(Event, name="test_deliver.Requested"):
    account: str
    amount: float


class Debited(Event, name="test_deliver.Debited"):
    amount: float


class Transfer(Aggregate, name="test_deliver.Transfer"):
    def request(self, account: str, amount: float) -> None:
        self.emit(Requested(account, amount))

    @applies
    def _requested(self, event: Requested) -> None:
        pass


class Account(Aggregate, name="test_deliver.Account"):
    balance: float = 0

    def debit(self, amount: float) -> None:
        self.emit(Debited(amount))

    @applies
    def _debited(self, event: Debited) -> None:
        self.balance -= event.amount


def debit(delivery: Delivery[Requested]) -> None:
    delivery.update(Account, delivery.event.account, Account.debit, delivery.event.amount)


async def debit_async(delivery: AsyncDelivery[Requested]) -> None:
    await delivery.update(Account, delivery.event.account, Account.debit, delivery.event.amount)


def test_what_a_delivery_changes_is_changed_once() -> None:
    store = temporary_store()
    accounts = store.repository(Account)
    ann = accounts.create(Account.debit, 0)
    deliver(debit, Requested(ann.id, 30), store=store, times=3)
    assert accounts.find(ann.id).state.balance == -30


def test_what_a_handler_does_elsewhere_is_done_each_time() -> None:
    sent: list[float] = []

    def careless(delivery: Delivery[Requested]) -> None:
        sent.append(delivery.event.amount)

    deliver(careless, Requested("a", 30))
    assert sent == [30, 30]


def test_two_events_are_two_changes_and_so_is_one_event_to_two_subscriptions() -> None:
    store = temporary_store()
    accounts = store.repository(Account)
    ann = accounts.create(Account.debit, 0)
    deliver(debit, Requested(ann.id, 30), store=store)
    deliver(debit, Requested(ann.id, 30), store=store)
    assert accounts.find(ann.id).state.balance == -60
    *_, recorded = store.repository(Transfer).history(
        store.repository(Transfer).create(Transfer.request, ann.id, 5).id
    )
    deliver(debit, recorded, store=store, subscription="one")
    deliver(debit, recorded, store=store, subscription="other")
    assert accounts.find(ann.id).state.balance == -70


def test_an_async_handler_is_awaited() -> None:
    async def debited() -> float:
        async with temporary_async_store() as store:
            accounts = store.repository(Account)
            ann = await accounts.create(Account.debit, 0)
            await deliver(debit_async, Requested(ann.id, 30), store=store)
            return (await accounts.find(ann.id)).state.balance

    assert asyncio.run(debited()) == -30


def test_an_async_handler_gets_a_store_of_its_own_too() -> None:
    seen: list[AsyncDelivery[Requested]] = []

    async def look(delivery: AsyncDelivery[Requested]) -> None:
        seen.append(delivery)

    asyncio.run(deliver(look, Requested("a", 1)))
    assert len(seen) == 2


def test_the_delivery_says_what_a_subscriptions_would() -> None:
    seen: list[Delivery[Requested]] = []
    store = temporary_store(ids=fixed_ids(Clock()))
    deliver(
        seen.append,
        Requested("a", 1),
        store=store,
        entity_id="transfer-1",
        metadata={"user": "ann"},
    )
    first, second = seen
    assert first is not second
    assert first.event_id == second.event_id
    assert (first.entity_type, first.entity_id) == ("test_deliver.Transfer", "transfer-1")
    assert (first.event_type, first.attempt) == ("test_deliver.Requested", 1)
    assert (first.event, first.time, first.metadata) == (
        Requested("a", 1),
        Clock().now,
        {"user": "ann"},
    )


def test_a_recorded_event_is_delivered_as_it_is() -> None:
    store = temporary_store()
    transfers = store.repository(Transfer)
    (recorded,) = transfers.history(transfers.create(Transfer.request, "a", 1).id)
    seen: list[Delivery[Requested]] = []
    deliver(seen.append, recorded, store=store, times=1)
    assert [(d.event_id, d.entity_id) for d in seen] == [(recorded.id, recorded.entity_id)]


def test_changes_say_which_event_caused_them() -> None:
    store = temporary_store()
    accounts = store.repository(Account)
    ann = accounts.create(Account.debit, 0)
    seen: list[str] = []

    def noting(delivery: Delivery[Requested]) -> None:
        seen.append(delivery.event_id)
        debit(delivery)

    deliver(noting, Requested(ann.id, 30), store=store, metadata={"correlation_id": "c"})
    *_, last = accounts.history(ann.id)
    assert last.trigger == seen[0]
    assert last.metadata == {"correlation_id": "c", "causation_id": seen[0]}


def test_what_the_handler_raises_escapes() -> None:
    with pytest.raises(NotFound):
        deliver(debit, Requested("nobody", 30))


def test_an_event_that_could_not_be_stored_is_refused() -> None:
    with pytest.raises(NotStorable):
        deliver(debit, Requested("a", float("nan")))


def test_an_event_of_a_foreign_entity_is_named_by_its_type() -> None:
    class Foreign(Event, name="test_deliver.Foreign"):
        pass

    seen: list[Delivery[Foreign]] = []
    with pytest.raises(UsageError, match="say of="):
        deliver(seen.append, Foreign())
    deliver(seen.append, Foreign(), of="their.Thing", times=1)
    assert seen[0].entity_type == "their.Thing"


def test_a_misuse_is_told() -> None:
    def forgetful(delivery: Delivery[Requested]) -> Awaitable[None]:
        return debit_async(delivery)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

    wrong: Any = deliver
    with pytest.raises(UsageError, match="async def itself"):
        wrong(forgetful, Requested("a", 1))
    with pytest.raises(UsageError, match="AsyncEventStore"):
        wrong(debit_async, Requested("a", 1), store=temporary_store())
    with pytest.raises(UsageError, match="store=EventStore"):
        wrong(debit, Requested("a", 1), store=temporary_async_store())
    with pytest.raises(InvalidValue, match="at least once"):
        deliver(debit, Requested("a", 1), times=0)
    with pytest.raises(UsageError, match="takes an event"):
        wrong(debit, "Requested")


def test_a_temporary_store_leaves_nothing_behind() -> None:
    store = temporary_store()
    store.repository(Account).create(Account.debit, 1)
    file = Path(store._url.database)
    assert file.exists()
    store.close()
    assert list(store.repository(Account).entities())
    del store
    gc.collect()
    assert not file.parent.exists()


def test_two_temporary_stores_are_two() -> None:
    one, other = temporary_store(), temporary_store()
    id = one.repository(Account).create(Account.debit, 1).id
    assert not other.repository(Account).exists(id)
