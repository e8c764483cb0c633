from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from retold import (
    Aggregate,
    AsyncDelivery,
    AsyncEventStore,
    Delivery,
    Event,
    EventStore,
    NotFound,
    Recorded,
    Subscription,
    applies,
    metadata,
)
from retold.errors import AmbiguousTrigger, HandlerFailed, InvalidValue
from retold.testing import Clock


class Requested(Event, name="test_delivery.Requested"):
    source: str
    target: str
    amount: int


class Credited(Event, name="test_delivery.Credited"):
    amount: int


class Written(Event, name="test_delivery.Written"):
    text: str


class Account(Aggregate, name="test_delivery.Account"):
    balance: int = 0

    def credit(self, amount: int) -> int:
        self.emit(Credited(amount))
        return self.balance

    def look(self) -> int:
        """Emits nothing."""
        return self.balance

    @applies
    def _credited(self, event: Credited) -> None:
        self.balance += event.amount


class Transfer(Aggregate, name="test_delivery.Transfer", ignores=(Requested,)):
    def request(self, source: str, target: str, amount: int = 30) -> None:
        self.emit(Requested(source, target, amount))


class Letter(Aggregate, name="test_delivery.Letter"):
    text: str = ""

    def write(self, text: str) -> None:
        self.emit(Written(text))

    @applies
    def _written(self, event: Written) -> None:
        self.text = event.text


Handler = Callable[[Delivery[Requested]], object]


class Bank:
    """An account, a transfer requested from it to itself, and what handlers make of it."""

    def __init__(self, store: EventStore, raw: sqlite3.Connection) -> None:
        self.store = store
        self.accounts = store.repository(Account)
        self.letters = store.repository(Letter)
        self.transfers = store.repository(Transfer)
        self.ann = self.accounts.create(Account.credit, 100).id
        self._raw = raw

    @property
    def balance(self) -> int:
        return self.accounts.find(self.ann).state.balance

    def request(self, target: str | None = None) -> str:
        """A transfer of 30; its id."""
        return self.transfers.create(Transfer.request, self.ann, target or self.ann).id

    def deliver(self, handler: Handler, name: str = "transfers", attempts: int = 1) -> None:
        """Deliver every event to a handler, also those it was given before."""
        self._raw.execute("UPDATE subscriptions SET position = 0")
        subscription = Subscription(name, attempts=attempts, on_error="stop")

        @subscription.on(Requested)
        def handle(delivery: Delivery[Requested]) -> None:
            handler(delivery)

        self.store.drain(subscription)

    def recorded(self) -> list[Recorded[Event]]:
        return list(self.accounts.history(self.ann))


@pytest.fixture
def bank(store: EventStore, tmp_path: Path) -> Iterator[Bank]:
    path = tmp_path / "events.db"
    with closing(sqlite3.connect(path, isolation_level=None, timeout=30)) as raw:
        yield Bank(store, raw)


# --- what it holds -------------------------------------------------------------------------------


def test_a_delivery_is_the_event_and_what_is_stored_with_it(bank: Bank, store_clock: Clock) -> None:
    got = list[Delivery[Requested]]()
    with metadata(user="ann"):
        id = bank.request()
    bank.deliver(got.append)
    (delivery,) = got
    (recorded,) = bank.transfers.history(id)
    assert delivery.event == Requested(bank.ann, bank.ann, 30)
    assert (delivery.event_id, delivery.event_type) == (recorded.id, "test_delivery.Requested")
    assert (delivery.entity_type, delivery.entity_id) == ("test_delivery.Transfer", id)
    assert (delivery.time, delivery.metadata) == (store_clock.now, {"user": "ann"})
    assert delivery.attempt == 1


def test_its_text_says_which_event_and_not_what_is_in_it(bank: Bank) -> None:
    got = list[Delivery[Requested]]()
    id = bank.request("a secret")
    bank.deliver(got.append)
    assert repr(got[0]) == (
        f"<Delivery test_delivery.Requested {got[0].event_id} of test_delivery.Transfer {id}, "
        "attempt 1>"
    )


# --- update --------------------------------------------------------------------------------------


def credit(delivery: Delivery[Requested]) -> None:
    delivery.update(Account, delivery.event.target, Account.credit, delivery.event.amount)


def test_an_update_happens_once_however_often_the_event_is_delivered(bank: Bank) -> None:
    bank.request()
    for _ in range(3):
        bank.deliver(credit)
    assert bank.balance == 130


def test_a_handler_sees_whether_its_update_was_made_before(bank: Bank) -> None:
    seen = list[tuple[bool, int]]()

    def look(delivery: Delivery[Requested]) -> None:
        changed = delivery.update(Account, bank.ann, Account.credit, 1)
        seen.append((changed.duplicate, changed.state.balance))

    bank.request()
    bank.deliver(look)
    bank.deliver(look)
    assert seen == [(False, 101), (True, 101)]


def test_an_update_that_emits_nothing_is_remembered_too(bank: Bank) -> None:
    seen = list[bool]()
    bank.request()
    for _ in range(2):
        bank.deliver(
            lambda delivery: seen.append(delivery.update(Account, bank.ann, Account.look).duplicate)
        )
    assert seen == [False, True]


def test_an_update_is_made_once_though_the_handler_fails_behind_it(bank: Bank) -> None:
    def fail_first(delivery: Delivery[Requested]) -> None:
        credit(delivery)
        if delivery.attempt == 1:
            raise RuntimeError

    bank.request()
    bank.deliver(fail_first, attempts=2)
    assert bank.balance == 130


def test_an_update_carries_the_event_that_caused_it(bank: Bank) -> None:
    (request,) = bank.transfers.history(bank.request())
    bank.deliver(credit)
    assert [recorded.trigger for recorded in bank.recorded()] == [None, request.id]


def test_two_subscriptions_on_one_event_both_make_their_change(bank: Bank) -> None:
    bank.request()
    for name in ("transfers", "interest", "transfers", "interest"):
        bank.deliver(credit, name)
    assert bank.balance == 160


def test_each_event_makes_its_own_change(bank: Bank) -> None:
    bank.request()
    bank.request()
    bank.deliver(credit)
    assert bank.balance == 160


def test_an_id_may_be_a_uuid(bank: Bank) -> None:
    id = UUID("018f4e6e-0000-7000-8000-000000000000")
    bank.accounts.with_id(id).create(Account.credit, 1)
    bank.request(str(id))
    bank.deliver(lambda delivery: delivery.update(Account, id, Account.credit, 1))
    assert bank.accounts.find(id).state.balance == 2


def test_a_missing_entity_is_not_found_and_can_be_answered(bank: Bank) -> None:
    def refuse(delivery: Delivery[Requested]) -> None:
        try:
            credit(delivery)
        except NotFound:
            delivery.update(Account, delivery.event.source, Account.credit, -1)

    bank.request("nobody")
    for _ in range(2):
        bank.deliver(refuse)
    assert bank.balance == 99


def test_a_missing_entity_that_nobody_answers_stops_the_subscription(bank: Bank) -> None:
    bank.request("nobody")
    with pytest.raises(HandlerFailed, match="NotFound") as caught:
        bank.deliver(credit)
    assert isinstance(caught.value.__cause__, NotFound)


def test_find_shows_an_entity_as_it_is_now(bank: Bank) -> None:
    seen = list[int]()
    bank.request()

    def look(delivery: Delivery[Requested]) -> None:
        credit(delivery)
        seen.append(delivery.find(Account, bank.ann).state.balance)
        with pytest.raises(NotFound):
            delivery.find(Account, "nobody")

    bank.deliver(look)
    assert seen == [130]


# --- several changes -----------------------------------------------------------------------------


def test_the_same_entity_twice_is_ambiguous_and_the_second_change_is_not_made(bank: Bank) -> None:
    def twice(delivery: Delivery[Requested]) -> None:
        credit(delivery)
        credit(delivery)

    bank.request()
    with pytest.raises(HandlerFailed) as caught:
        bank.deliver(twice)
    assert isinstance(caught.value.__cause__, AmbiguousTrigger)
    assert 'delivery.step("fee")' in str(caught.value.__cause__)
    assert bank.balance == 130


def test_a_step_names_another_change_of_the_same_entity(bank: Bank) -> None:
    def with_fee(delivery: Delivery[Requested]) -> None:
        credit(delivery)
        delivery.step("fee").update(Account, bank.ann, Account.credit, -1)

    bank.request()
    for _ in range(2):
        bank.deliver(with_fee)
        assert bank.balance == 129


def test_one_step_twice_is_ambiguous_too(bank: Bank) -> None:
    def twice(delivery: Delivery[Requested]) -> None:
        for _ in range(2):
            delivery.step("fee").update(Account, bank.ann, Account.credit, -1)

    bank.request()
    with pytest.raises(HandlerFailed, match="AmbiguousTrigger"):
        bank.deliver(twice)
    assert bank.balance == 99


def test_two_entities_need_no_step(bank: Bank) -> None:
    bob = bank.accounts.create(Account.credit, 0).id

    def move(delivery: Delivery[Requested]) -> None:
        delivery.update(Account, delivery.event.source, Account.credit, -30)
        delivery.update(Account, delivery.event.target, Account.credit, 30)

    bank.request(bob)
    for _ in range(2):
        bank.deliver(move)
    assert (bank.balance, bank.accounts.find(bob).state.balance) == (70, 30)


def test_a_transfer_to_oneself_loses_nothing(bank: Bank) -> None:
    def move(delivery: Delivery[Requested]) -> None:
        delivery.step("debit").update(Account, delivery.event.source, Account.credit, -30)
        delivery.step("credit").update(Account, delivery.event.target, Account.credit, 30)

    bank.request()
    for _ in range(2):
        bank.deliver(move)
    amounts = [event.amount for r in bank.recorded() if isinstance(event := r.event, Credited)]
    assert amounts == [100, -30, 30]


@pytest.mark.parametrize("name", ["", "x" * 61, "a\0b"])
def test_a_step_no_key_could_hold_is_refused(bank: Bank, name: str) -> None:
    def step(delivery: Delivery[Requested]) -> None:
        with pytest.raises(InvalidValue):
            delivery.step(name)

    bank.request()
    bank.deliver(step)


def test_the_longest_names_of_all_make_a_key_that_can_be_kept(bank: Bank) -> None:
    def step(delivery: Delivery[Requested]) -> None:
        delivery.step("s" * 60).update(Account, bank.ann, Account.credit, 1)

    bank.request()
    for _ in range(2):
        bank.deliver(step, "x" * 100)
    assert bank.balance == 101


# --- create --------------------------------------------------------------------------------------


def test_a_created_entity_has_an_id_that_follows_from_the_event(bank: Bank) -> None:
    made = list[tuple[str, bool]]()

    def write(delivery: Delivery[Requested]) -> None:
        letter = delivery.create(Letter, Letter.write, "dear Ann")
        made.append((letter.id, letter.duplicate))

    bank.request()
    bank.deliver(write)
    bank.deliver(write)
    (first, _), (second, again) = made
    assert first == second
    assert again
    assert list(bank.letters.entities()) == [first]


def test_events_subscriptions_types_and_steps_have_created_entities_of_their_own(
    bank: Bank,
) -> None:
    def write(delivery: Delivery[Requested]) -> None:
        delivery.create(Letter, Letter.write, "dear Ann")
        delivery.step("copy").create(Letter, Letter.write, "dear Bob")
        delivery.create(Account, Account.credit, 1)

    bank.request()
    bank.request()
    for name in ("letters", "copies", "letters"):
        bank.deliver(write, name)
    assert len(list(bank.letters.entities())) == 8
    assert len(list(bank.accounts.entities())) == 1 + 4


def test_creating_twice_in_one_step_is_ambiguous(bank: Bank) -> None:
    def write(delivery: Delivery[Requested]) -> None:
        for text in ("dear Ann", "dear Bob"):
            delivery.create(Letter, Letter.write, text)

    bank.request()
    with pytest.raises(HandlerFailed, match="AmbiguousTrigger"):
        bank.deliver(write)
    assert len(list(bank.letters.entities())) == 1


def test_changing_what_the_same_step_created_is_ambiguous(bank: Bank) -> None:
    """Both changes would have one key, and the second be taken for the first come again."""

    def open_account(delivery: Delivery[Requested]) -> None:
        account = delivery.create(Account, Account.credit, 5)
        delivery.update(Account, account.id, Account.credit, 5)

    bank.request()
    with pytest.raises(HandlerFailed, match="AmbiguousTrigger"):
        bank.deliver(open_account)


# --- metadata ------------------------------------------------------------------------------------


def test_what_a_handler_writes_names_its_cause_and_where_it_all_began(bank: Bank) -> None:
    (request,) = bank.transfers.history(bank.request())
    bank.deliver(credit)
    written = bank.recorded()[-1]
    assert written.metadata == {"correlation_id": request.id, "causation_id": request.id}


def test_a_correlation_id_is_handed_on_along_a_chain(bank: Bank) -> None:
    letters = Subscription("letters", on_error="stop")

    @letters.on(Credited)
    def write(delivery: Delivery[Credited]) -> None:
        delivery.create(Letter, Letter.write, f"{delivery.event.amount}")

    with metadata(correlation_id="request 7", user="ann"):
        bank.request()
    bank.deliver(credit)
    bank.store.drain(letters)
    credited = bank.recorded()[-1]
    written = [
        recorded
        for id in bank.letters.entities()
        for recorded in bank.letters.history(id)
        if recorded.event == Written("30")
    ]
    assert [recorded.metadata for recorded in written] == [
        {"correlation_id": "request 7", "causation_id": credited.id}
    ]


def test_a_handler_s_own_metadata_is_written_too(bank: Bank) -> None:
    def noted(delivery: Delivery[Requested]) -> None:
        with metadata(reviewer="bob"):
            credit(delivery)

    bank.request()
    bank.deliver(noted)
    assert bank.recorded()[-1].metadata["reviewer"] == "bob"
    assert "causation_id" in bank.recorded()[-1].metadata


# --- events that are here before their rows can be seen ---------------------------------------------


class Late:
    """An account whose last change is committed after its event came, as through Kafka it can."""

    def __init__(self, path: Path, *, new: bool) -> None:
        self.url = f"sqlite:///{path}"
        self._store = EventStore(self.url)
        account = self._store.repository(Account).with_id("ann")
        if not new:
            account.create(Account.credit, 100)
        self._ready, self._looked = threading.Event(), threading.Event()
        self._new = new
        self._thread = threading.Thread(target=self._change)

    def _change(self) -> None:
        with self._store.transaction() as tx:
            accounts = tx.repository(Account)
            if self._new:
                changed = accounts.with_id("ann").create(Account.credit, 7)
            else:
                changed = accounts.update("ann", Account.credit, 7)
            self.recorded = list(accounts.history(changed.id))[-1]
            self._ready.set()
            self._looked.wait(30)

    def __enter__(self) -> Recorded[Any]:
        self._thread.start()
        assert self._ready.wait(30)
        return self.recorded

    def __exit__(self, *_: object) -> None:
        self._looked.set()
        self._thread.join()
        self._store.close()

    def commit_soon(self) -> None:
        threading.Timer(0.05, self._looked.set).start()


@pytest.mark.parametrize("new", [True, False])
def test_what_a_handler_finds_is_as_new_as_its_event(tmp_path: Path, new: bool) -> None:
    late = Late(tmp_path / "late.db", new=new)
    with late as recorded, EventStore(late.url, kafka="nowhere:1") as store:
        late.commit_soon()
        delivery = Delivery(recorded, "letters", 1, store)
        assert delivery.find(Account, "ann").version == recorded.id


def test_a_handler_updates_what_its_event_made(tmp_path: Path) -> None:
    late = Late(tmp_path / "late.db", new=True)
    with late as recorded, EventStore(late.url, kafka="nowhere:1") as store:
        late.commit_soon()
        changed = Delivery(recorded, "letters", 1, store).update(Account, "ann", Account.credit, 3)
        assert changed.state.balance == 10


@pytest.mark.parametrize("new", [True, False])
def test_an_async_handler_finds_and_updates_it_too(tmp_path: Path, new: bool) -> None:
    async def work() -> tuple[str, int]:
        async with AsyncEventStore(late.url, kafka="nowhere:1") as store:
            late.commit_soon()
            delivery = AsyncDelivery(recorded, "letters", 1, store)
            found = await delivery.find(Account, "ann")
            changed = await delivery.update(Account, "ann", Account.credit, 3)
            return found.version, changed.state.balance

    late = Late(tmp_path / "late.db", new=new)
    with late as recorded:
        assert asyncio.run(work()) == (recorded.id, 10 if new else 110)


def test_an_entity_that_stays_away_is_not_found_in_the_end(tmp_path: Path) -> None:
    late = Late(tmp_path / "late.db", new=True)
    with late as recorded, EventStore(late.url, kafka="nowhere:1") as store:
        delivery = Delivery(recorded, "letters", 1, store)
        with pytest.raises(NotFound):
            delivery.find(Account, "ann")


# --- awaited -------------------------------------------------------------------------------------


def test_an_async_delivery_has_the_same_verbs(tmp_path: Path) -> None:
    async def work() -> list[Recorded[Event]]:
        transfers, done = Subscription("transfers", attempts=1), asyncio.Event()

        @transfers.on(Credited)
        async def note(delivery: AsyncDelivery[Credited]) -> None:
            letter = await delivery.create(Letter, Letter.write, "dear Ann")
            changed = await delivery.step("sign").update(Letter, letter.id, Letter.write, "signed")
            found = await delivery.find(Letter, letter.id)
            assert found.state == changed.state
            done.set()

        async with AsyncEventStore(f"sqlite:///{tmp_path / 'async.db'}") as store:
            await store.repository(Account).create(Account.credit, 100)
            async with store.running(transfers):
                await done.wait()
            (letter,) = [id async for id in store.repository(Letter).entities()]
            return [recorded async for recorded in store.repository(Letter).history(letter)]

    first, second = asyncio.run(work())
    assert (first.event, second.event) == (Written("dear Ann"), Written("signed"))
    assert first.metadata == second.metadata
    assert first.metadata["causation_id"] == first.trigger == second.trigger


def test_an_async_update_twice_is_ambiguous_too(tmp_path: Path) -> None:
    async def work() -> None:
        transfers = Subscription("transfers", attempts=1, on_error="stop")

        @transfers.on(Credited)
        async def handle(delivery: AsyncDelivery[Credited]) -> None:
            for _ in range(2):
                await delivery.update(Account, delivery.entity_id, Account.look)

        async with AsyncEventStore(f"sqlite:///{tmp_path / 'async.db'}") as store:
            await store.repository(Account).create(Account.credit, 100)
            await store.run(transfers)

    with pytest.raises(HandlerFailed, match="AmbiguousTrigger"):
        asyncio.run(work())
