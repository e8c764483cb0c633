from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest

from retold import (
    Aggregate,
    AsyncDelivery,
    Delivery,
    Event,
    EventStore,
    Raw,
    Subscription,
    UnknownEvent,
    applies,
    upcast,
)
from retold.brokers.database import DatabaseConsumer
from retold.errors import (
    AssignmentLost,
    DefinitionError,
    HandlerFailed,
    InvalidValue,
    StoreBusy,
    UnreadableEvent,
    UsageError,
)
from retold.testing import Clock
from tests.at_work import at_work


class Opened(Event, name="test_subscription.Opened"):
    owner: str


class Credited(Event, name="test_subscription.Credited"):
    amount: int


class Closed(Event, name="test_subscription.Closed"):
    pass


class Unapplied(Event, name="test_subscription.Unapplied"):
    pass


class Shared(Event, name="test_subscription.Shared"):
    pass


class Account(Aggregate, name="test_subscription.Account", ignores=(Closed,)):
    balance: int = 0

    def open(self, owner: str) -> None:
        self.emit(Opened(owner))

    def credit(self, *amounts: int) -> None:
        for amount in amounts:
            self.emit(Credited(amount))

    def close(self) -> None:
        self.emit(Closed())

    def share(self) -> None:
        self.emit(Shared())

    @applies
    def _opened(self, event: Opened) -> None:
        pass

    @applies
    def _credited(self, event: Credited) -> None:
        self.balance += event.amount

    @applies
    def _shared(self, event: Shared) -> None:
        pass


class Club(Aggregate, name="test_subscription.Club", ignores=(Shared,)):
    def share(self) -> None:
        self.emit(Shared())


def ignore(delivery: Delivery[Any]) -> None:
    """A handler for subscriptions that are never run."""


@pytest.fixture
def raw(store: EventStore, tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """The file of the fixture `store`, beside it."""
    path = tmp_path / "events.db"
    with closing(sqlite3.connect(path, isolation_level=None, timeout=30)) as opened:
        yield opened


def position(raw: sqlite3.Connection) -> int:
    """How far the one subscription has come."""
    (found,) = raw.execute("SELECT position FROM subscriptions").fetchone()
    return int(found)


def rewind(raw: sqlite3.Connection) -> None:
    """As if the process had crashed before any position was saved."""
    raw.execute("UPDATE subscriptions SET position = 0")


def amounts_of(subscription: Subscription, seen: list[int]) -> list[int]:
    @subscription.on(Credited)
    def note(delivery: Delivery[Credited]) -> None:
        seen.append(delivery.event.amount)

    return seen


# --- names and settings --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "a b", "a/b", "é", "x" * 201])
def test_a_name_no_topic_could_have_is_refused(name: str) -> None:
    with pytest.raises(DefinitionError):
        Subscription(name)


def test_a_name_has_at_most_100_characters() -> None:
    assert Subscription("x" * 100).name == "x" * 100
    with pytest.raises(InvalidValue, match="100"):
        Subscription("x" * 101)


@pytest.mark.parametrize("attempts", [0, -1])
def test_a_handler_is_tried_at_least_once(attempts: int) -> None:
    with pytest.raises(InvalidValue, match="at least once"):
        Subscription("letters", attempts=attempts)


@pytest.mark.parametrize("start", ["Beginning", "", None, 0])
def test_a_start_nobody_knows_is_refused(start: Any) -> None:
    with pytest.raises(InvalidValue, match="beginning"):
        Subscription("letters", start=start)


def test_a_start_without_a_time_zone_is_refused() -> None:
    with pytest.raises(InvalidValue, match="time zone"):
        Subscription("letters", start=datetime(2024, 1, 1))  # noqa: DTZ001


# --- which events --------------------------------------------------------------------------------


def test_without_of_it_is_the_one_aggregate_that_applies_the_event(store: EventStore) -> None:
    letters, seen = Subscription("letters"), list[str]()

    @letters.on(Opened)
    def write(delivery: Delivery[Opened]) -> None:
        seen.append(f"{delivery.entity_type} {delivery.event.owner}")

    store.repository(Account).create(Account.open, "ann")
    store.drain(letters)
    assert seen == ["test_subscription.Account ann"]


def test_an_aggregate_that_ignores_the_event_counts_too(store: EventStore) -> None:
    letters, seen = Subscription("letters"), list[str]()

    @letters.on(Closed)
    def write(delivery: Delivery[Closed]) -> None:
        seen.append(delivery.entity_id)

    ann = store.repository(Account).create(Account.close)
    store.drain(letters)
    assert seen == [ann.id]


def test_an_event_nobody_applies_is_an_error_that_says_so(store: EventStore) -> None:
    letters = Subscription("letters")
    letters.on(Unapplied)(ignore)
    with pytest.raises(DefinitionError, match="no aggregate of this process") as caught:
        store.drain(letters)
    assert "test_subscription.Unapplied" in str(caught.value)


def test_an_event_several_aggregates_apply_is_an_error_that_lists_them(store: EventStore) -> None:
    letters = Subscription("letters")
    letters.on(Shared)(ignore)
    with pytest.raises(DefinitionError, match="of=") as caught:
        store.drain(letters)
    assert f"{__name__}.Account, {__name__}.Club" in str(caught.value)


@pytest.mark.parametrize("of", [Club, "test_subscription.Club"])
def test_of_names_whose_events_are_meant(store: EventStore, of: str | type[Aggregate]) -> None:
    letters, seen = Subscription("letters"), list[str]()

    @letters.on(Shared, of=of)
    def write(delivery: Delivery[Shared]) -> None:
        seen.append(delivery.entity_id)

    store.repository(Account).create(Account.share)
    club = store.repository(Club).create(Club.share)
    store.drain(letters)
    assert seen == [club.id]


def test_one_event_of_two_aggregates_has_a_handler_for_each(store: EventStore) -> None:
    letters, seen = Subscription("letters"), list[str]()
    for of in (Account, Club):

        @letters.on(Shared, of=of)
        def write(delivery: Delivery[Shared], of: type[Aggregate] = of) -> None:
            seen.append(f"{of.__name__}: {delivery.entity_id}")

    club = store.repository(Club).create(Club.share)
    account = store.repository(Account).create(Account.share)
    store.drain(letters)
    assert seen == [f"Club: {club.id}", f"Account: {account.id}"]


@pytest.mark.parametrize(
    ("first", "second"),
    [(None, None), (Account, Account), (Account, "test_subscription.Account"), (None, Account)],
)
def test_two_handlers_for_one_event_are_an_error(
    store: EventStore, first: Any, second: Any
) -> None:
    letters = Subscription("letters")
    letters.on(Opened, of=first)(ignore)
    with pytest.raises(DefinitionError, match=r"two handlers for test_subscription\.Opened"):  # noqa: PT012
        letters.on(Opened, of=second)(ignore)
        store.drain(letters)


@pytest.mark.parametrize("wrong", [Account, str, "test_subscription.Opened", Opened("ann"), None])
def test_what_is_no_event_class_is_refused(wrong: Any) -> None:
    with pytest.raises(UsageError, match="takes an Event class"):
        Subscription("letters").on(wrong)


def test_a_subscription_without_handlers_is_an_error(store: EventStore) -> None:
    with pytest.raises(DefinitionError, match="no handlers"):
        store.drain(Subscription("letters"))


def test_on_leaves_the_function_as_it_is() -> None:
    assert Subscription("letters").on(Opened)(ignore) is ignore


def test_an_async_handler_needs_an_async_store(store: EventStore) -> None:
    letters = Subscription("letters")

    @letters.on(Opened)
    async def write(delivery: AsyncDelivery[Opened]) -> None: ...

    with pytest.raises(UsageError, match="write is async, so it needs an AsyncEventStore"):
        store.drain(letters)


# --- where it begins -----------------------------------------------------------------------------


def test_a_new_subscription_begins_at_the_first_event(store: EventStore) -> None:
    store.repository(Account).create(Account.credit, 1, 2)
    letters = Subscription("letters")
    seen = amounts_of(letters, [])
    store.drain(letters)
    assert seen == [1, 2]


def test_start_now_begins_at_what_comes_from_now_on(store: EventStore) -> None:
    accounts = store.repository(Account)
    accounts.create(Account.credit, 1)
    letters = Subscription("letters", start="now")
    seen = amounts_of(letters, [])
    assert store.drain(letters) == 0
    accounts.create(Account.credit, 2)
    store.drain(letters)
    assert seen == [2]


def test_start_at_a_time_begins_at_the_first_event_since(
    store: EventStore, store_clock: Clock
) -> None:
    accounts = store.repository(Account)
    for amount in (1, 2, 3):
        accounts.create(Account.credit, amount)
        store_clock.advance(60)
    letters = Subscription("letters", start=datetime(2024, 1, 1, 0, 1, tzinfo=UTC))
    seen = amounts_of(letters, [])
    store.drain(letters)
    assert seen == [2, 3]


def test_start_at_a_time_to_come_leaves_out_what_is_there(
    store: EventStore, store_clock: Clock
) -> None:
    accounts = store.repository(Account)
    accounts.create(Account.credit, 1)
    letters = Subscription("letters", start=datetime(2024, 1, 2, tzinfo=UTC))
    seen = amounts_of(letters, [])
    store.drain(letters)
    store_clock.advance(2 * 24 * 3600)
    accounts.create(Account.credit, 2)
    store.drain(letters)
    assert seen == [2]


def test_a_start_means_nothing_once_there_is_a_position(store: EventStore) -> None:
    accounts, seen = store.repository(Account), list[int]()
    accounts.create(Account.credit, 1)
    first, again = Subscription("letters"), Subscription("letters", start="now")
    for subscription in (first, again):
        amounts_of(subscription, seen)
    store.drain(first)
    accounts.create(Account.credit, 2)
    store.drain(again)
    assert seen == [1, 2]


def test_another_name_is_another_subscription(store: EventStore) -> None:
    store.repository(Account).create(Account.credit, 1)
    for name in ("letters", "Letters", "letters2"):
        subscription = Subscription(name)
        seen = amounts_of(subscription, [])
        store.drain(subscription)
        assert seen == [1]


# --- handling ------------------------------------------------------------------------------------


def test_drain_handles_what_is_there_once_and_returns_the_number(store: EventStore) -> None:
    letters = Subscription("letters")
    seen = amounts_of(letters, [])
    store.repository(Account).create(Account.credit, *range(250))
    assert store.drain(letters) == 250
    assert store.drain(letters) == 0
    assert seen == list(range(250))


def test_drain_handles_what_the_handlers_cause_too(store: EventStore) -> None:
    down, up = Subscription("down"), Subscription("up")

    @down.on(Credited)
    def count_down(delivery: Delivery[Credited]) -> None:
        if delivery.event.amount > 1:
            delivery.update(Account, delivery.entity_id, Account.credit, delivery.event.amount - 1)

    @up.on(Credited)
    def close_at_one(delivery: Delivery[Credited]) -> None:
        if delivery.event.amount == 1:
            delivery.update(Account, delivery.entity_id, Account.close)

    ann = store.repository(Account).create(Account.credit, 4)
    assert store.drain(up, down) == 8
    history = [recorded.event for recorded in store.repository(Account).history(ann.id)]
    assert history == [Credited(4), Credited(3), Credited(2), Credited(1), Closed()]


def test_events_without_a_handler_are_passed_over(store: EventStore) -> None:
    accounts = store.repository(Account)
    letters = Subscription("letters")
    seen = amounts_of(letters, [])
    ann = accounts.create(Account.open, "ann")
    accounts.update(ann.id, Account.credit, 1)
    accounts.update(ann.id, Account.close)
    store.drain(letters)
    assert seen == [1]


def test_drain_says_when_another_member_is_at_work(store: EventStore) -> None:
    letters = Subscription("letters")
    amounts_of(letters, [])
    types = ["test_subscription.Account"], ["test_subscription.Credited"]
    other = DatabaseConsumer(store.driver, "letters", *types, "beginning")
    with closing(other):
        other.poll(1, 0)
        with pytest.raises(AssignmentLost, match="letters"):
            store.drain(letters)
    assert store.drain(letters) == 0


# --- failing -------------------------------------------------------------------------------------


class Trouble(Exception):
    pass


def failing(on: int, until: threading.Event, **settings: Any) -> tuple[Subscription, list[int]]:
    """A subscription whose handler fails on one amount until it is mended."""
    letters, seen = Subscription("letters", **settings), list[int]()

    @letters.on(Credited)
    def write(delivery: Delivery[Credited]) -> None:
        if delivery.event.amount == on and not until.is_set():
            raise Trouble("no paper")
        seen.append(delivery.event.amount)

    return letters, seen


def test_a_handler_that_keeps_failing_stops_the_subscription(store: EventStore) -> None:
    letters, _ = failing(2, threading.Event(), attempts=2, on_error="stop")
    ann = store.repository(Account).create(Account.credit, 1, 2, 3)
    with pytest.raises(HandlerFailed) as caught:
        store.drain(letters)
    error = caught.value
    assert isinstance(error.__cause__, Trouble)
    assert (error.subscription, error.attempts) == ("letters", 2)
    assert error.handler == "failing.<locals>.write"
    assert (error.event_type, error.entity_type) == (
        "test_subscription.Credited",
        "test_subscription.Account",
    )
    assert (error.event_id, error.entity_id) == (
        [recorded.id for recorded in store.repository(Account).history(ann.id)][1],
        ann.id,
    )
    assert error.reason == "Trouble: no paper"


def test_what_was_handled_before_a_failure_is_not_handled_again(
    store: EventStore, raw: sqlite3.Connection
) -> None:
    mended = threading.Event()
    letters, seen = failing(3, mended, attempts=1, on_error="stop")
    store.repository(Account).create(Account.credit, 1, 2, 3, 4)
    for _ in range(2):
        with pytest.raises(HandlerFailed):
            store.drain(letters)
    assert seen == [1, 2]
    assert position(raw) == 2


def test_nothing_is_skipped_and_it_goes_on_once_the_handler_is_mended(store: EventStore) -> None:
    mended = threading.Event()
    letters, seen = failing(2, mended, attempts=1, on_error="stop")
    store.repository(Account).create(Account.credit, 1, 2, 3)
    with pytest.raises(HandlerFailed):
        store.drain(letters)
    mended.set()
    store.drain(letters)
    assert seen == [1, 2, 3]


def test_a_handler_is_tried_as_often_as_said_and_told_which_attempt_it_is(
    store: EventStore,
) -> None:
    letters, tried = Subscription("letters", attempts=3), list[int]()

    @letters.on(Credited)
    def write(delivery: Delivery[Credited]) -> None:
        tried.append(delivery.attempt)
        if delivery.attempt < 3:
            raise Trouble

    store.repository(Account).create(Account.credit, 1, 2)
    store.drain(letters)
    assert tried == [1, 2, 3, 1, 2, 3]


def test_a_database_that_is_busy_does_not_count_as_an_attempt(
    store: EventStore, tmp_path: Path
) -> None:
    """A real writer holds the lock until the handler was refused twice."""
    letters, tried = Subscription("letters", attempts=1), list[int]()
    holder = sqlite3.connect(tmp_path / "events.db", isolation_level=None)

    @letters.on(Credited)
    def close(delivery: Delivery[Credited]) -> None:
        if not tried:
            holder.execute("BEGIN IMMEDIATE")
        if len(tried) == 2:
            holder.execute("ROLLBACK")
        tried.append(delivery.attempt)
        delivery.update(Account, delivery.entity_id, Account.close)

    ann = store.repository(Account).create(Account.credit, 1)
    with (
        closing(holder),
        EventStore(f"sqlite:///{tmp_path / 'events.db'}?timeout=0.02") as impatient,
    ):
        impatient.drain(letters)
    assert tried == [1, 1, 1]
    assert len(list(store.repository(Account).history(ann.id))) == 2


class Warned(logging.Handler):
    """Tells when a subscription has warned of something."""

    def __init__(self) -> None:
        super().__init__()
        self._told = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self._told.set()

    def wait(self) -> None:
        assert self._told.wait(30)


@pytest.fixture
def warned() -> Iterator[Warned]:
    handler, log = Warned(), logging.getLogger("retold.subscriptions")
    log.addHandler(handler)
    yield handler
    log.removeHandler(handler)


def test_a_position_is_saved_once_the_database_is_busy_no_more(
    store: EventStore, raw: sqlite3.Connection, tmp_path: Path, warned: Warned
) -> None:
    letters, handled = Subscription("letters"), threading.Event()
    holder = sqlite3.connect(tmp_path / "events.db", isolation_level=None, check_same_thread=False)

    @letters.on(Credited)
    def write(delivery: Delivery[Credited]) -> None:
        if delivery.event.amount == 1:
            holder.execute("BEGIN IMMEDIATE")
        else:
            handled.set()

    store.repository(Account).create(Account.credit, 1)
    url = f"sqlite:///{tmp_path / 'events.db'}?timeout=0.02"
    with closing(holder), EventStore(url) as impatient, at_work(impatient, letters):
        warned.wait()
        assert position(raw) == 0
        holder.execute("ROLLBACK")
        store.repository(Account).create(Account.credit, 2)
        assert handled.wait(30)
    assert position(raw) == 2


def test_a_member_that_stands_by_waits_for_a_database_that_is_busy(
    store: EventStore, raw: sqlite3.Connection, tmp_path: Path, warned: Warned
) -> None:
    letters, handled = Subscription("letters"), threading.Event()
    letters.on(Credited)(lambda _: handled.set())
    store.drain(letters)  # so that it is known
    store.repository(Account).create(Account.credit, 1)
    soon = time.time_ns() // 1_000_000 + 1000
    raw.execute("UPDATE subscriptions SET owner = 'elsewhere', lease_until = ?", (soon,))
    raw.execute("BEGIN IMMEDIATE")
    url = f"sqlite:///{tmp_path / 'events.db'}?timeout=0.02"
    with EventStore(url) as impatient, at_work(impatient, letters):
        warned.wait()
        raw.execute("ROLLBACK")
        assert handled.wait(30)


def test_a_database_that_is_busy_from_the_start_is_an_error(
    store: EventStore, raw: sqlite3.Connection, tmp_path: Path
) -> None:
    letters = Subscription("letters")
    amounts_of(letters, [])
    raw.execute("BEGIN IMMEDIATE")
    url = f"sqlite:///{tmp_path / 'events.db'}?timeout=0.02"
    with EventStore(url) as impatient, pytest.raises(StoreBusy):
        impatient.run(letters)


def test_a_subscription_is_stopped_between_two_attempts(
    store: EventStore, raw: sqlite3.Connection
) -> None:
    letters, stop = Subscription("letters", attempts=1000), threading.Event()

    @letters.on(Credited)
    def write(delivery: Delivery[Credited]) -> None:
        stop.set()
        raise Trouble

    store.repository(Account).create(Account.credit, 1)
    store.run(letters, stop=stop)
    assert position(raw) == 0


def test_a_plain_function_that_returns_an_awaitable_fails(store: EventStore) -> None:
    """It would never be awaited, and the event taken for handled."""
    letters = Subscription("letters", attempts=1, on_error="stop")

    async def later() -> None: ...

    letters.on(Credited)(lambda _: cast("None", later()))
    store.repository(Account).create(Account.credit, 1)
    with pytest.raises(HandlerFailed, match="async"):
        store.drain(letters)


def test_an_event_nobody_can_read_stops_the_subscription(
    store: EventStore, raw: sqlite3.Connection
) -> None:
    letters = Subscription("letters", on_error="stop")
    seen = amounts_of(letters, [])
    store.repository(Account).create(Account.credit, 1, 2, 3)
    raw.execute("UPDATE events SET event_data = '{}' WHERE position = 2")
    for _ in range(2):
        with pytest.raises(UnreadableEvent, match="amount"):
            store.drain(letters)
    assert (seen, position(raw)) == ([1], 1)


# --- upcasting -----------------------------------------------------------------------------------


class Renamed(Event, name="test_subscription.Renamed", formerly=("test_subscription.Older",)):
    amount: int


class Paid(Event, name="test_subscription.Paid"):
    amount: int


class Fee(Event, name="test_subscription.Fee"):
    amount: int


class Ledger(Aggregate, name="test_subscription.Ledger"):
    total: int = 0

    def rename(self, amount: int) -> None:
        self.emit(Renamed(amount))

    def pay(self, amount: int) -> None:
        self.emit(Paid(amount))

    @applies
    def _counted(self, event: Renamed | Paid | Fee) -> None:
        self.total += event.amount


@upcast("test_subscription.PaidInCents")
def in_euros(data: dict[str, Any]) -> Event:
    return Paid(data["cents"] // 100)


@upcast("test_subscription.PaidWithFee")
def split(data: dict[str, Any]) -> list[Event | Raw]:
    cents = Raw("test_subscription.PaidInCents", {"cents": data["amount"] * 100})
    return [cents, Fee(1), Paid(data["tip"])]


@upcast("test_subscription.Nothing")
def dropped(data: dict[str, Any]) -> None:
    return None


def stored_as(raw: sqlite3.Connection, name: str, data: str) -> None:
    """As if the last event had been written by an older release."""
    last = "position = (SELECT max(position) FROM events)"
    raw.execute(f"UPDATE events SET event_type = ?, event_data = ? WHERE {last}", (name, data))


def test_an_event_stored_under_an_older_name_reaches_the_handler_of_its_class(
    store: EventStore, raw: sqlite3.Connection
) -> None:
    letters, seen = Subscription("letters"), list[tuple[str, Event]]()
    letters.on(Renamed)(lambda delivery: seen.append((delivery.event_type, delivery.event)))
    store.repository(Ledger).create(Ledger.rename, 5)
    stored_as(raw, "test_subscription.Older", '{"amount":5}')
    store.drain(letters)
    assert seen == [("test_subscription.Older", Renamed(5))]


def test_an_upcast_event_reaches_the_handler_of_the_new_class(
    store: EventStore, raw: sqlite3.Connection
) -> None:
    letters, seen = Subscription("letters"), list[Event]()
    letters.on(Paid)(lambda delivery: seen.append(delivery.event))
    store.repository(Ledger).create(Ledger.pay, 5)
    stored_as(raw, "test_subscription.PaidInCents", '{"cents":500}')
    store.drain(letters)
    assert seen == [Paid(5)]


def test_each_part_of_an_upcast_event_reaches_its_handler_in_order(
    store: EventStore, raw: sqlite3.Connection
) -> None:
    letters, seen = Subscription("letters"), list[Event]()
    letters.on(Paid)(lambda delivery: seen.append(delivery.event))
    letters.on(Fee)(lambda delivery: seen.append(delivery.event))
    store.repository(Ledger).create(Ledger.pay, 5)
    stored_as(raw, "test_subscription.PaidWithFee", '{"amount":5,"tip":2}')
    store.drain(letters)
    assert seen == [Paid(5), Fee(1), Paid(2)]


def test_the_parts_of_an_upcast_event_change_one_entity_each_once(
    store: EventStore, raw: sqlite3.Connection
) -> None:
    letters, accounts = Subscription("letters"), store.repository(Account)
    ann = accounts.create(Account.open, "ann")

    @letters.on(Paid)
    def credit(delivery: Delivery[Paid]) -> None:
        delivery.update(Account, ann.id, Account.credit, delivery.event.amount)

    store.repository(Ledger).create(Ledger.pay, 5)
    stored_as(raw, "test_subscription.PaidWithFee", '{"amount":5,"tip":2}')
    for _ in range(2):
        store.drain(letters)
        assert accounts.find(ann.id).state.balance == 7
        rewind(raw)


def test_an_event_upcast_to_nothing_is_passed_over(
    store: EventStore, raw: sqlite3.Connection
) -> None:
    letters, seen = Subscription("letters"), list[Event]()
    letters.on(Paid)(lambda delivery: seen.append(delivery.event))
    store.repository(Ledger).create(Ledger.pay, 5)
    stored_as(raw, "test_subscription.Nothing", "{}")
    store.repository(Ledger).create(Ledger.pay, 6)
    store.drain(letters)
    assert seen == [Paid(6)]
    assert position(raw) == 2


def test_a_chain_to_a_name_nobody_declares_stops_the_subscription(
    store: EventStore, raw: sqlite3.Connection
) -> None:
    letters = Subscription("letters", on_error="stop")
    letters.on(Paid)(ignore)
    store.repository(Ledger).create(Ledger.pay, 5)
    stored_as(raw, "test_subscription.ToNobody", "{}")
    with pytest.raises(UnknownEvent, match=r"test_subscription\.Gone"):
        store.drain(letters)


@upcast("test_subscription.ToNobody")
def to_nobody(data: dict[str, Any]) -> Raw:
    return Raw("test_subscription.Gone", data)
