"""A storm leaves right handlers right, and finds the wrong ones."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise

import pytest

from retold import Aggregate, AsyncDelivery, Delivery, Event, EventStore, Subscription, applies
from retold.errors import HandlerFailed, RetoldError, UsageError
from retold.testing import fixed_ids, storm, temporary_store

SEEDS = range(20)


class Requested(Event, name="test_storm.Requested"):
    source: str
    target: str
    amount: int


class Settled(Event, name="test_storm.Settled"):
    pass


class Credited(Event, name="test_storm.Credited"):
    amount: int


class Transfer(Aggregate, name="test_storm.Transfer"):
    settled: int = 0

    def request(self, source: str, target: str, amount: int) -> None:
        self.emit(Requested(source, target, amount))

    def settle(self) -> None:
        self.emit(Settled())

    @applies
    def _requested(self, event: Requested) -> None:
        pass

    @applies
    def _settled(self, event: Settled) -> None:
        self.settled += 1


class Account(Aggregate, name="test_storm.Account"):
    balance: int = 0

    def credit(self, amount: int) -> None:
        self.emit(Credited(amount))

    @applies
    def _credited(self, event: Credited) -> None:
        self.balance += event.amount


Handler = Callable[[Delivery[Requested]], None]


def _bank() -> tuple[EventStore, list[str]]:
    """Two accounts, and five transfers of 1 from the first to the second."""
    store = temporary_store(ids=fixed_ids())
    accounts, transfers = store.repository(Account), store.repository(Transfer)
    source, target = (accounts.create(Account.credit, 100).id for _ in range(2))
    for _ in range(5):
        transfers.create(Transfer.request, source, target, 1)
    return store, [source, target]


def _balances(store: EventStore, ids: list[str]) -> list[int]:
    return [store.repository(Account).find(id).state.balance for id in ids]


def _transferring(handler: Handler) -> Subscription:
    subscription = Subscription("transfers")
    subscription.on(Requested)(handler)
    return subscription


def transfer(delivery: Delivery[Requested]) -> None:
    event = delivery.event
    delivery.update(Account, event.source, Account.credit, -event.amount)
    delivery.update(Account, event.target, Account.credit, event.amount)
    delivery.update(Transfer, delivery.entity_id, Transfer.settle)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_right_handler_comes_through(seed: int) -> None:
    store, ids = _bank()
    report = storm(store, _transferring(transfer), seed=seed)
    assert _balances(store, ids) == [95, 105]
    transfers = store.repository(Transfer)
    assert [transfers.find(id).state.settled for id in transfers.entities()] == [1] * 5
    assert report.events == 5
    assert report.deliveries >= 10


def _ends_well(handler: Handler, seed: int) -> bool:
    store, ids = _bank()
    storm(store, _transferring(handler), seed=seed)
    return _balances(store, ids) == [95, 105]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_handler_that_is_not_idempotent_is_found(seed: int) -> None:
    def careless(delivery: Delivery[Requested]) -> None:
        accounts = delivery._store.repository(Account)  # past the delivery
        accounts.update(delivery.event.source, Account.credit, -delivery.event.amount)
        accounts.update(delivery.event.target, Account.credit, delivery.event.amount)

    assert not _ends_well(careless, seed)


def test_a_handler_that_swallows_the_stores_errors_is_found() -> None:
    def forgetful(delivery: Delivery[Requested]) -> None:
        with suppress(RetoldError):
            transfer(delivery)

    # Only where both deliveries of an event are struck is something lost.
    assert not all(_ends_well(forgetful, seed) for seed in range(60))


def test_a_handler_that_relies_on_order_across_entities_is_found() -> None:
    def numbered(seed: int) -> list[int]:
        """The order in which a list of all transfers shows them."""
        store = temporary_store(ids=fixed_ids())
        for n in range(3):
            store.repository(Transfer).create(Transfer.request, "a", "b", n)
        shown: list[int] = []

        def show(delivery: Delivery[Requested]) -> None:
            if delivery.event.amount not in shown:
                shown.append(delivery.event.amount)

        storm(store, _transferring(show), seed=seed)
        return shown

    orders = [numbered(seed) for seed in SEEDS]
    assert all(sorted(order) == [0, 1, 2] for order in orders)
    assert orders.count([0, 1, 2]) < len(orders) / 2


@pytest.mark.parametrize("seed", SEEDS)
def test_the_order_of_an_entity_is_kept(seed: int) -> None:
    store = temporary_store()
    accounts = store.repository(Account)
    ids = [accounts.create(Account.credit, 1).id for _ in range(3)]
    for id in ids:
        for n in (2, 3, 4):
            accounts.update(id, Account.credit, n)
    seen: dict[str, list[int]] = {}
    subscription = Subscription("all")

    @subscription.on(Credited)
    def see(delivery: Delivery[Credited]) -> None:
        seen.setdefault(delivery.entity_id, []).append(delivery.event.amount)

    storm(store, subscription, seed=seed)
    for amounts in seen.values():
        # Whatever came again came with all that lies behind it.
        assert all(later <= earlier + 1 for earlier, later in pairwise(amounts))
        assert amounts[0] == 1
        assert amounts[-1] == 4
        assert all(amounts.count(n) >= 2 for n in (1, 2, 3, 4))


def test_a_seed_does_the_same_again() -> None:
    def told(seed: int) -> tuple[list[int], str]:
        store, _ = _bank()
        seen: list[int] = []

        def see(delivery: Delivery[Requested]) -> None:
            seen.append(delivery.attempt)
            transfer(delivery)

        return seen, repr(storm(store, _transferring(see), seed=seed))

    assert told(7) == told(7)
    assert told(7) != told(8)


def test_everything_that_can_happen_happens() -> None:
    reports = list[tuple[int, int]]()
    for seed in SEEDS:
        store, _ = _bank()
        report = storm(store, _transferring(transfer), seed=seed)
        reports.append((report.killed, report.failed))
    assert all(any(counts) for counts in zip(*reports, strict=True))


def test_what_handlers_cause_is_handled_by_all() -> None:
    store, _ = _bank()
    credited: set[str] = set()
    watching = Subscription("watching")

    @watching.on(Credited)
    def watch(delivery: Delivery[Credited]) -> None:
        credited.add(delivery.event_id)

    storm(store, watching, _transferring(transfer), seed=1)
    assert len(credited) == 12


def test_afterwards_nothing_is_left() -> None:
    store, _ = _bank()
    subscription = _transferring(transfer)
    storm(store, subscription)
    assert store.drain(subscription) == 0


@pytest.mark.parametrize("seed", SEEDS)
def test_a_handler_that_waits_for_another_entity_gets_through(seed: int) -> None:
    store = temporary_store()
    for n in range(3):
        store.repository(Transfer).create(Transfer.request, "a", "b", n)
    done: set[int] = set()

    def after_the_one_before(delivery: Delivery[Requested]) -> None:
        amount = delivery.event.amount
        if amount and amount - 1 not in done:
            raise LookupError("not yet")
        done.add(amount)

    storm(store, _transferring(after_the_one_before), seed=seed)
    assert done == {0, 1, 2}


def test_a_handler_that_always_fails_is_told_with_the_seed() -> None:
    store, _ = _bank()

    def broken(delivery: Delivery[Requested]) -> None:
        raise ZeroDivisionError("never")

    with pytest.raises(HandlerFailed, match=r"broken.*ZeroDivisionError: never") as raised:
        storm(store, _transferring(broken), seed=5)
    assert raised.value.__notes__ == ["in storm(…, seed=5)"]
    assert isinstance(raised.value.__cause__, ZeroDivisionError)


def test_a_misuse_is_told() -> None:
    store, _ = _bank()
    with pytest.raises(UsageError, match="at least one subscription"):
        storm(store)
    subscription = Subscription("later")

    @subscription.on(Requested)
    async def later(delivery: AsyncDelivery[Requested]) -> None: ...

    with pytest.raises(UsageError, match="later is async"):
        storm(store, subscription)
    elsewhere = EventStore("postgresql://nobody@127.0.0.1:1/none")
    with pytest.raises(UsageError, match="SQLite"):
        storm(elsewhere, subscription)
