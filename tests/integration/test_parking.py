"""Failing handlers on real databases: what is parked, and how it comes back in order."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection

import pytest

from retold import AsyncDelivery, AsyncEventStore, Delivery, EventStore, Retry, Subscription
from retold.brokers.database import DatabaseConsumer
from retold.brokers.numbered import NumberedConsumer
from retold.cli import main
from retold.errors import AssignmentLost, HandlerFailed, NotParked, ParkedQueueFull, StoreFull
from retold.store import parked
from retold.store.parked import Event, Failure, Queue
from retold.subscriptions import dispatcher
from tests.at_work import at_work
from tests.conformance.raw import rows
from tests.integration.test_lanes import KINDS, SQLITE, Book, Noted, wait_for
from tests.integration.test_subscriptions import Started, started
from tests.rig import Rig

__all__ = ["started"]  # a fixture

ONE_TRY = Retry(attempts=1)


@pytest.fixture
def url(kind: str, fresh_database: Callable[[str], str]) -> str:
    url = fresh_database(kind)
    with EventStore(url) as store:
        store.migrate(subscriptions=True)
    return url


@pytest.fixture
def store(url: str) -> Iterator[EventStore]:
    with EventStore(url) as opened:
        yield opened


class Press:
    """A subscription whose handler fails on some numbers, and what it has handled."""

    def __init__(self, *failing: int, **settings: object) -> None:
        self.failing = set(failing)
        self.seen: list[tuple[str, int]] = []
        self.tried: list[int] = []
        self.subscription = Subscription("press", **{"retry": ONE_TRY, **settings})  # type: ignore[arg-type]
        self.subscription.on(Noted, of=Book)(self.note)

    def note(self, delivery: Delivery[Noted]) -> None:
        self.tried.append(delivery.event.number)
        if delivery.event.number in self.failing:
            raise ZeroDivisionError("no paper")
        self.seen.append((delivery.entity_id, delivery.event.number))

    def of(self, id: str) -> list[int]:
        return [number for entity, number in self.seen if entity == id]


def book(store: EventStore, id: str, *numbers: int) -> str:
    return store.repository(Book).with_id(id).create(Book.note, *numbers).id


def queue(store: EventStore) -> list[tuple[str, int, bool]]:
    """Entity, number and whether it only waits, of all that is parked."""
    return [
        (event.entity_id, json.loads(event.data)["number"], event.waits)
        for event in store.parked("press")
    ]


def ids(store: EventStore) -> list[str]:
    return [event.event_id for event in store.parked("press")]


@KINDS
def test_an_entity_that_fails_is_parked_in_order_and_others_go_on(store: EventStore) -> None:
    press = Press(2)
    book(store, "ann", 1, 2, 3, 4)
    book(store, "bob", 5, 6)
    store.drain(press.subscription)
    assert (press.of("ann"), press.of("bob")) == ([1], [5, 6])
    assert queue(store) == [("ann", 2, False), ("ann", 3, True), ("ann", 4, True)]
    first, *_ = store.parked("press")
    assert (first.attempts, first.error) == (1, "ZeroDivisionError: no paper")
    assert first.traceback is not None
    assert 'raise ZeroDivisionError("no paper")' in first.traceback
    assert [event.attempts for event in store.parked("press")] == [1, 0, 0]


@KINDS
def test_after_a_retry_the_queue_is_handled_in_order_and_the_entity_flows_again(
    store: EventStore,
) -> None:
    press = Press(2)
    book(store, "ann", 1, 2, 3)
    store.drain(press.subscription)
    press.failing.clear()
    store.drain(press.subscription)
    assert press.of("ann") == [1]
    assert store.parked().retry("press") == 1
    store.repository(Book).update("ann", Book.note, 4)
    store.drain(press.subscription)
    store.repository(Book).update("ann", Book.note, 5)
    store.drain(press.subscription)
    assert press.of("ann") == [1, 2, 3, 4, 5]
    assert queue(store) == []


@KINDS
def test_a_retry_that_fails_leaves_the_queue_and_counts_the_attempts(store: EventStore) -> None:
    press = Press(1)
    book(store, "ann", 1, 2)
    store.drain(press.subscription)
    store.parked().retry("press", ids(store)[0])
    store.drain(press.subscription)
    assert queue(store) == [("ann", 1, False), ("ann", 2, True)]
    first, *_ = store.parked("press")
    assert (first.attempts, first.mark) == (2, None)


@KINDS
def test_a_later_event_of_a_queue_that_fails_becomes_its_first(store: EventStore) -> None:
    press = Press(1, 3)
    book(store, "ann", 1, 2, 3, 4)
    store.drain(press.subscription)
    press.failing.discard(1)
    store.parked().retry("press")
    store.drain(press.subscription)
    assert press.of("ann") == [1, 2]
    assert queue(store) == [("ann", 3, False), ("ann", 4, True)]


@KINDS
def test_a_skipped_event_is_never_handled_and_the_rest_follows(store: EventStore) -> None:
    press = Press(2)
    book(store, "ann", 1, 2, 3)
    store.drain(press.subscription)
    store.parked().skip("press", ids(store)[0])
    store.drain(press.subscription)
    assert press.of("ann") == [1, 3]
    assert press.tried == [1, 2, 3]
    assert queue(store) == []


@KINDS
def test_a_member_at_work_notices_a_retry_and_races_the_live_flow_in_order(
    url: str, store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher, "WISHES_S", 0.0)
    press = Press(0, lanes=4)
    book(store, "ann", 0)
    with at_work(store, press.subscription):
        wait_for(lambda: len(queue(store)) == 1)
        for number in range(1, 30):
            store.repository(Book).update("ann", Book.note, number)
            if number == 10:
                press.failing.clear()
                store.parked().retry("press")
        wait_for(lambda: len(press.seen) == 30)
        wait_for(lambda: queue(store) == [])
    assert press.of("ann") == list(range(30))


@KINDS
def test_async_handlers_park_and_are_tried_again(
    url: str, store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher, "WISHES_S", 0.0)
    press, failing, seen = Subscription("press", lanes=4, retry=ONE_TRY), {1}, list[int]()
    book(store, "ann", 1, 2)

    @press.on(Noted, of=Book)
    async def note(delivery: AsyncDelivery[Noted]) -> None:
        if delivery.event.number in failing:
            raise ZeroDivisionError
        seen.append(delivery.event.number)

    async def main() -> None:
        async with AsyncEventStore(url) as opened, opened.running(press):
            while len([event async for event in opened.parked("press")]) < 2:
                await asyncio.sleep(0.01)
            failing.clear()
            assert await opened.parked().retry("press") == 1
            while len(seen) < 2:
                await asyncio.sleep(0.01)

    asyncio.run(main())
    assert seen == [1, 2]


@SQLITE
def test_an_event_nobody_can_read_is_parked(url: str, store: EventStore) -> None:
    press = Press()
    book(store, "ann", 1, 2)
    book(store, "bob", 3)
    rows(url, "UPDATE events SET event_data = '{}' WHERE position = 1")
    store.drain(press.subscription)
    assert press.seen == [("bob", 3)]
    first, second = store.parked("press")
    assert first.error is not None
    assert "UnreadableEvent" in first.error
    assert second.waits


@SQLITE
def test_errors_that_are_named_park_at_once(store: EventStore) -> None:
    press = Press(1, retry=Retry(attempts=50, give_up=(ZeroDivisionError,)))
    book(store, "ann", 1)
    store.drain(press.subscription)
    assert press.tried == [1]


@SQLITE
def test_one_event_more_than_the_limit_stops_the_subscription(store: EventStore) -> None:
    press = Press(1, park_limit=3)
    book(store, "ann", 1, 2, 3, 4)
    for _ in range(2):
        with pytest.raises(ParkedQueueFull, match="3 events"):
            store.drain(press.subscription)
    assert [number for _, number, _ in queue(store)] == [1, 2, 3]


@SQLITE
def test_a_trouble_of_the_database_that_does_not_pass_stops_and_parks_nothing(
    store: EventStore,
) -> None:
    press = Subscription("press", retry=ONE_TRY)

    @press.on(Noted, of=Book)
    def note(delivery: Delivery[Noted]) -> None:
        raise StoreFull("no space left")

    book(store, "ann", 1)
    with pytest.raises(HandlerFailed, match="StoreFull"):
        store.drain(press)
    assert queue(store) == []


@SQLITE
def test_what_comes_again_after_a_crash_is_parked_once_and_what_was_handled_not_at_all(
    url: str, store: EventStore
) -> None:
    press = Press(2)
    book(store, "ann", 1, 2, 3)
    store.drain(press.subscription)
    before = queue(store)
    rows(url, "UPDATE subscriptions SET position = 0")
    store.drain(press.subscription)
    assert queue(store) == before
    assert press.tried == [1, 2]


def owned(store: EventStore) -> DatabaseConsumer | NumberedConsumer:
    """A member that owns everything."""
    kind = DatabaseConsumer if store.driver.dialect.name == "sqlite" else NumberedConsumer
    member = kind(store.driver, "press", ["test_lanes.Book"], ["test_lanes.Noted"], "beginning")
    member.poll(1, 1)
    return member


@KINDS
def test_a_member_that_lost_its_partition_cannot_park(url: str, store: EventStore) -> None:
    book(store, "ann", 1)
    member = owned(store)
    sql, at = store.driver.dialect.queries, Queue("press", "test_lanes.Book", "ann")
    failed = Failure("no paper", "", 1)

    def park(position: int) -> str | None:
        partition = next(iter(member.held))
        statement = member.owned(partition)
        event = Event("1", "test_lanes.Noted", "{}", None)
        return store.driver.run(
            parked.park(sql, at, event, failed, partition, position, statement, 10)
        )

    try:
        assert not park(0)  # a successor has handled it, and the partition came back
        rows(url, "UPDATE subscriptions SET owner = 'elsewhere'")
        with pytest.raises(AssignmentLost):
            park(10)
        assert queue(store) == []
    finally:
        member.close()


@pytest.mark.parametrize("kind", ["postgres18", "mysql8", "sqlite"])
def test_what_was_to_wait_behind_a_queue_that_is_gone_is_handled(
    url: str, store: EventStore
) -> None:
    press = Press(1)
    with at_work(store, press.subscription):
        book(store, "ann", 1)
        wait_for(lambda: len(queue(store)) == 1)
        rows(url, "DELETE FROM parked")
        store.repository(Book).update("ann", Book.note, 2)
        wait_for(lambda: press.of("ann") == [2])
        wait_for(lambda: queue(store) == [])
        store.repository(Book).update("ann", Book.note, 3)
        wait_for(lambda: press.of("ann") == [2, 3])


@pytest.mark.parametrize("kind", ["postgres18", "mysql8", "sqlite"])
def test_a_partition_that_was_somebody_elses_for_a_while_is_held_anew(
    url: str, store: EventStore
) -> None:
    member = owned(store)
    try:
        before = dict(member.held)
        rows(url, "UPDATE subscriptions SET owner = 'elsewhere'")
        rows(
            url,
            "UPDATE subscriptions SET owner = NULL, lease_until = 0"
            if "sqlite" in url
            else "UPDATE subscriptions SET owner = NULL",
        )
        if isinstance(member, NumberedConsumer):
            member._share_at = 0.0
        else:
            member._renew()
        member.poll(1, 1)
        assert member.held.keys() == before.keys()
        assert all(member.held[partition] is not time for partition, time in before.items())
    finally:
        member.close()


@pytest.mark.parametrize("lanes", [1, 4])
@SQLITE
def test_a_member_whose_partition_was_taken_while_a_handler_failed_joins_again(
    url: str, store: EventStore, caplog: pytest.LogCaptureFixture, lanes: int
) -> None:
    press, tried = Subscription("press", lanes=lanes, retry=ONE_TRY), list[int]()

    @press.on(Noted, of=Book)
    def note(delivery: Delivery[Noted]) -> None:
        tried.append(delivery.event.number)
        if len(tried) == 1:
            rows(url, "UPDATE subscriptions SET owner = 'elsewhere', lease_until = 0")
        raise ZeroDivisionError

    book(store, "ann", 1, 2)
    with at_work(store, press):
        wait_for(lambda: len(queue(store)) == 2)
    assert tried == [1, 1]
    assert "took over" in caplog.text


def fail_and_wait(url: str, pipe: Connection) -> None:
    """A member that is killed while it tries a parked event again."""
    press, tries = Subscription("press", retry=ONE_TRY), list[int]()

    @press.on(Noted, of=Book)
    def note(delivery: Delivery[Noted]) -> None:
        tries.append(delivery.event.number)
        if tries == [1]:
            raise ZeroDivisionError
        pipe.send(delivery.event.number)
        threading.Event().wait()

    dispatcher.WISHES_S = 0.0
    with EventStore(url) as store:
        store.run(press)


@KINDS
def test_a_queue_outlives_a_member_that_is_killed_while_it_works_on_it(
    url: str, store: EventStore, started: Started
) -> None:
    book(store, "ann", 1, 2)
    process, pipe = started(fail_and_wait, url)
    wait_for(lambda: len(queue(store)) == 2)
    store.parked().retry("press")
    assert pipe.recv() == 1
    process.kill()
    process.join()
    press = Press()
    wait_for(lambda: bool(_drained(store, press)))
    assert press.of("ann") == [1, 2]
    assert queue(store) == []


def _drained(store: EventStore, press: Press) -> list[tuple[str, int]]:
    with suppress(AssignmentLost):
        store.drain(press.subscription)
    return press.seen


# --- looking and asking --------------------------------------------------------------------------


@SQLITE
def test_what_is_parked_shows_in_the_log(
    store: EventStore, caplog: pytest.LogCaptureFixture
) -> None:
    press = Press(1)
    book(store, "ann", 1)
    with caplog.at_level(logging.WARNING, "retold.subscriptions"):
        store.drain(press.subscription)
    assert "events of 1 entities are parked" in caplog.text
    assert "no paper" not in caplog.text


@SQLITE
def test_what_is_not_parked_cannot_be_asked_for(store: EventStore) -> None:
    with pytest.raises(NotParked):
        store.parked().skip("press", "1")
    assert store.parked().retry("press") == 0


@KINDS
def test_the_command_lists_shows_and_marks(
    url: str, store: EventStore, capsys: pytest.CaptureFixture[str]
) -> None:
    press, at = Press(1), ["--database", url]
    book(store, "ann", 1, 2)
    assert main(["parked", "list", *at]) == 0
    store.drain(press.subscription)
    first, second = ids(store)
    capsys.readouterr()
    assert main(["parked", "list", *at]) == 1
    assert "1 failed, 1 waiting behind them" in capsys.readouterr().out
    assert main(["parked", "list", "--json", "--subscription", "press", *at]) == 1
    assert [event["waits"] for event in json.loads(capsys.readouterr().out)] == [False, True]
    assert main(["parked", "list", "--subscription", "other", *at]) == 0
    assert main(["parked", "show", "press", first, *at]) == 0
    assert "Traceback" in capsys.readouterr().out
    assert main(["parked", "retry", "press", *at]) == 2
    assert main(["parked", "retry", "press", "--all", *at]) == 0
    assert [event.mark for event in store.parked()] == ["retry", None]
    assert main(["parked", "skip", "press", second, *at]) == 0
    assert main(["parked", "skip", "press", second, *at]) == 0
    assert [event.mark for event in store.parked()] == ["retry", "skip"]
    assert main(["parked", "show", "press", "nothing", *at]) == 2
    press.failing.clear()
    store.drain(press.subscription)
    assert press.of("ann") == [1]


# --- servers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["postgres18", "mariadb"])
def test_a_server_that_restarts_while_a_handler_works_parks_nothing(
    kind: str, store: EventStore, servers: Rig
) -> None:
    press = Subscription("press", retry=ONE_TRY)
    again, done = threading.Event(), threading.Event()

    @press.on(Noted, of=Book)
    def note(delivery: Delivery[Noted]) -> None:
        if delivery.event.number == 1:
            if not again.is_set():
                again.set()
                servers[kind].restart()
            delivery.update(Book, "bob", Book.note, 2)
            done.set()

    book(store, "bob", 0)
    book(store, "ann", 1)
    with at_work(store, press):
        assert done.wait(50)
    assert len(list(store.repository(Book).history("bob"))) == 2
    assert queue(store) == []


@pytest.mark.parametrize("kind", ["postgres18"])
def test_of_two_members_each_parks_and_tries_again_what_is_its_own(
    url: str, store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher, "WISHES_S", 0.0)
    presses = Press(0, lanes=2), Press(0, lanes=2)
    presses[1].seen = presses[0].seen
    entities = [f"book-{n}" for n in range(20)]
    with (
        EventStore(url) as other,
        at_work(store, presses[0].subscription),
        at_work(other, presses[1].subscription),
    ):
        for id in entities:
            book(store, id, 0, 1)
        wait_for(lambda: len(queue(store)) == 2 * len(entities))
        for press in presses:
            press.failing.clear()
        assert store.parked().retry("press") == len(entities)
        for id in entities:
            store.repository(Book).update(id, Book.note, 2)
        wait_for(lambda: len(presses[0].seen) >= 3 * len(entities))
        wait_for(lambda: queue(store) == [])
    for id in entities:
        assert presses[0].of(id) == [0, 1, 2]
