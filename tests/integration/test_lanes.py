"""Lanes on real databases: order for each entity, others at the same time."""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from retold import (
    Aggregate,
    AsyncDelivery,
    AsyncEventStore,
    Delivery,
    Event,
    EventStore,
    Retry,
    Subscription,
    applies,
)
from retold.brokers import numbered
from retold.brokers.numbered import NumberedConsumer
from retold.errors import AssignmentLost, HandlerFailed, InvalidValue
from retold.subscriptions import dispatcher
from retold.subscriptions.lanes import lane_of
from retold.subscriptions.progress import Progress
from tests.at_work import at_work
from tests.conformance.raw import rows

KINDS = pytest.mark.parametrize("kind", ["sqlite", "postgres18", "mysql8", "mariadb"])
SQLITE = pytest.mark.parametrize("kind", ["sqlite"])
POSTGRES = pytest.mark.parametrize("kind", ["postgres18"])
LANES = 4


class Noted(Event, name="test_lanes.Noted"):
    number: int


class Book(Aggregate, name="test_lanes.Book"):
    pages: int = 0

    def note(self, *numbers: int) -> None:
        for number in numbers:
            self.emit(Noted(number))

    @applies
    def _noted(self, event: Noted) -> None:
        self.pages += 1


class Index(Aggregate, name="test_lanes.Index", ignores=(Noted,)):
    def note(self, number: int) -> None:
        self.emit(Noted(number))


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


def ids_of_all_lanes() -> list[str]:
    """An entity for each lane."""
    found = dict[int, str]()
    n = 0
    while len(found) < LANES:
        n += 1
        found.setdefault(lane_of(f"book-{n}", LANES), f"book-{n}")
    return [found[lane] for lane in range(LANES)]


def books(store: EventStore, *numbers: int) -> list[str]:
    """A book in each lane, with these events."""
    ids = ids_of_all_lanes()
    for id in ids:
        store.repository(Book).with_id(id).create(Book.note, *numbers)
    return ids


def saved(url: str) -> int:
    """The sum of all positions."""
    ((total,),) = rows(url, "SELECT sum(position) FROM subscriptions")
    return int(str(total or 0))


def wait_for(true: Callable[[], bool]) -> None:
    waited = threading.Event()
    for _ in range(1500):
        if true():
            return
        waited.wait(0.02)
    raise AssertionError("not within 30 s")


@pytest.mark.parametrize("lanes", [0, -1])
def test_there_is_at_least_one_lane(lanes: int) -> None:
    with pytest.raises(InvalidValue, match="lanes"):
        Subscription("letters", lanes=lanes)


def test_attempts_are_said_once() -> None:
    with pytest.raises(InvalidValue, match="attempts"):
        Subscription("letters", attempts=3, retry=Retry())


@KINDS
def test_entities_of_different_lanes_are_handled_at_once(store: EventStore) -> None:
    """Each handler waits for all others."""
    letters, meeting = Subscription("letters", lanes=LANES), threading.Barrier(LANES + 1)

    @letters.on(Noted, of=Book)
    def meet(delivery: Delivery[Noted]) -> None:
        meeting.wait(30)

    books(store, 1)
    with at_work(store, letters):
        meeting.wait(30)


@KINDS
def test_each_entitys_events_are_handled_in_order_and_once(url: str, store: EventStore) -> None:
    letters, seen = Subscription("letters", lanes=LANES), defaultdict[str, list[int]](list)
    enough = threading.Semaphore(0)

    @letters.on(Noted, of=Book)
    def note(delivery: Delivery[Noted]) -> None:
        seen[delivery.entity_id].append(delivery.event.number)
        enough.release()

    ids = [store.repository(Book).create(Book.note, *range(5)).id for _ in range(40)]
    with at_work(store, letters):
        for n in range(5, 10):
            for id in ids:
                store.repository(Book).update(id, Book.note, n)
        for _ in range(400):
            assert enough.acquire(timeout=30)
    assert seen == {id: list(range(10)) for id in ids}
    assert store.drain(letters) == 0


@KINDS
def test_an_entity_that_fails_holds_up_no_other_lane(url: str, store: EventStore) -> None:
    letters = Subscription("letters", lanes=LANES, retry=Retry(10_000, pause=0.001, longest=0.01))
    mended, seen, enough = threading.Event(), list[tuple[str, int]](), threading.Semaphore(0)
    ids = books(store, 1, 2, 3)

    @letters.on(Noted, of=Book)
    def note(delivery: Delivery[Noted]) -> None:
        if delivery.entity_id == ids[0] and not mended.is_set():
            raise ZeroDivisionError
        seen.append((delivery.entity_id, delivery.event.number))
        enough.release()

    with at_work(store, letters):
        for _ in range(9):
            assert enough.acquire(timeout=30)
        assert {id for id, _ in seen} == set(ids[1:])
        mended.set()
        for _ in range(3):
            assert enough.acquire(timeout=30)
    assert [number for id, number in seen if id == ids[0]] == [1, 2, 3]


@SQLITE
def test_the_position_stays_before_what_is_not_handled(url: str, store: EventStore) -> None:
    """The first event of all waits; those behind it are handled, and come again after a crash."""
    letters, enough, leave = (
        Subscription("letters", lanes=LANES),
        threading.Semaphore(0),
        threading.Event(),
    )
    first, *_ = books(store, 1)

    @letters.on(Noted, of=Book)
    def note(delivery: Delivery[Noted]) -> None:
        if delivery.entity_id == first:
            leave.wait(30)
        enough.release()

    with at_work(store, letters):
        for _ in range(LANES - 1):
            assert enough.acquire(timeout=30)
        store.repository(Index).create(Index.note, 0)
        assert saved(url) == 0
        leave.set()
        wait_for(lambda: saved(url) >= LANES)


@KINDS
def test_what_was_handled_is_saved_without_waiting_once_nothing_is_left(
    url: str, store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look for messages would take an hour; the last handler itself has to end it."""
    monkeypatch.setattr(dispatcher, "_POLL_S", 3600.0)
    monkeypatch.setattr(dispatcher, "_SAVE_S", 3600.0)
    letters, stop = Subscription("letters", lanes=LANES), threading.Event()
    handled = threading.Semaphore(0)
    letters.on(Noted, of=Book)(lambda _: handled.release())
    books(store, 1, 2)
    worker = threading.Thread(target=store.run, args=(letters,), kwargs={"stop": stop})
    worker.start()
    for _ in range(2 * LANES):
        assert handled.acquire(timeout=30)
    wait_for(lambda: bool(saved(url)))
    stop.set()
    store.repository(Book).create(Book.note, 3)  # which wakes it
    worker.join()


@SQLITE
def test_no_more_than_a_window_of_messages_is_in_hand(
    url: str, store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher, "WINDOW", 20)
    letters, leave = Subscription("letters", lanes=LANES), threading.Event()
    taken, limits = threading.Semaphore(0), list[int]()
    found = Progress.take

    def take(progress: Progress, messages: Any) -> Any:
        one = found(progress, messages)
        limits.append(progress.in_hand)
        if progress.in_hand == 20:
            taken.release()
        return one

    monkeypatch.setattr(Progress, "take", take)

    @letters.on(Noted, of=Book)
    def note(delivery: Delivery[Noted]) -> None:
        leave.wait(30)

    books(store, *range(50))
    with at_work(store, letters):
        assert taken.acquire(timeout=30)
        leave.set()
        wait_for(lambda: saved(url) == 50 * LANES)
    assert max(limits) == 20


@KINDS
def test_a_stop_finishes_what_was_begun_and_begins_nothing_more(
    url: str, store: EventStore
) -> None:
    letters, begun, leave = (
        Subscription("letters", lanes=LANES),
        threading.Semaphore(0),
        threading.Event(),
    )
    seen, stop = list[int](), threading.Event()

    @letters.on(Noted, of=Book)
    def note(delivery: Delivery[Noted]) -> None:
        begun.release()
        leave.wait(30)
        seen.append(delivery.event.number)

    books(store, 1, 2, 3)
    worker = threading.Thread(target=store.run, args=(letters,), kwargs={"stop": stop})
    worker.start()
    for _ in range(LANES):
        assert begun.acquire(timeout=30)
    stop.set()
    leave.set()
    worker.join(30)
    assert not worker.is_alive()
    assert seen == [1] * LANES
    store.drain(letters)
    assert seen.count(2) == seen.count(3) == LANES


@SQLITE
def test_a_stop_waits_for_a_handler_only_for_some_time(
    store: EventStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(dispatcher, "END_S", 0.2)
    letters, begun, leave = Subscription("letters", lanes=2), threading.Event(), threading.Event()
    stop = threading.Event()

    @letters.on(Noted, of=Book)
    def note(delivery: Delivery[Noted]) -> None:
        begun.set()
        leave.wait(30)

    store.repository(Book).create(Book.note, 1)
    worker = threading.Thread(target=store.run, args=(letters,), kwargs={"stop": stop})
    worker.start()
    assert begun.wait(30)
    stop.set()
    worker.join(30)
    assert not worker.is_alive()
    assert "did not end" in caplog.text
    leave.set()


@KINDS
def test_a_failure_ends_all_lanes_and_is_raised(url: str, store: EventStore) -> None:
    letters = Subscription("letters", lanes=LANES, attempts=1, on_error="stop")
    ids = books(store, 1)

    @letters.on(Noted, of=Book)
    def note(delivery: Delivery[Noted]) -> None:
        if delivery.entity_id == ids[2]:
            raise ZeroDivisionError

    for _ in range(2):
        with pytest.raises(HandlerFailed, match="ZeroDivisionError"):
            store.run(letters)


@SQLITE
def test_drain_handles_in_the_order_of_the_log_whatever_the_lanes(store: EventStore) -> None:
    letters, seen = Subscription("letters", lanes=LANES), list[str]()
    letters.on(Noted, of=Book)(lambda delivery: seen.append(delivery.event_id))
    books(store, 1, 2, 3)
    assert store.drain(letters) == 3 * LANES
    assert seen == sorted(seen)


# --- async ---------------------------------------------------------------------------------------


@KINDS
def test_async_handlers_run_at_once_on_the_loop_each_entitys_in_order(
    url: str, store: EventStore
) -> None:
    letters, seen = Subscription("letters", lanes=LANES), defaultdict[str, list[int]](list)
    ids = books(store, 1, 2, 3)

    async def main() -> None:
        meeting, enough = asyncio.Barrier(LANES), asyncio.Semaphore(0)
        loop = asyncio.get_running_loop()

        @letters.on(Noted, of=Book)
        async def meet(delivery: AsyncDelivery[Noted]) -> None:
            assert asyncio.get_running_loop() is loop
            await meeting.wait()
            seen[delivery.entity_id].append(delivery.event.number)
            enough.release()

        async with AsyncEventStore(url) as opened, opened.running(letters):
            for _ in range(3 * LANES):
                await asyncio.wait_for(enough.acquire(), 30)

    asyncio.run(main())
    assert seen == {id: [1, 2, 3] for id in ids}
    assert store.drain(plain("letters")) == 0


def plain(name: str) -> Subscription:
    subscription = Subscription(name)
    subscription.on(Noted, of=Book)(lambda _: None)
    return subscription


@SQLITE
def test_an_async_handler_is_tried_again_while_others_go_on(url: str, store: EventStore) -> None:
    retry = Retry(3, pause=0.01, longest=0.01)
    letters = Subscription("letters", lanes=LANES, retry=retry, on_error="stop")
    tried = list[tuple[str, int]]()
    ids = books(store, 1)

    async def main() -> None:
        @letters.on(Noted, of=Book)
        async def note(delivery: AsyncDelivery[Noted]) -> None:
            tried.append((delivery.entity_id, delivery.attempt))
            if delivery.entity_id == ids[0]:
                raise ZeroDivisionError

        async with AsyncEventStore(url) as opened:
            await opened.run(letters)

    with pytest.raises(HandlerFailed, match="failed 3 times"):
        asyncio.run(main())
    assert [attempt for id, attempt in tried if id == ids[0]] == [1, 2, 3]
    assert {id for id, _ in tried} == set(ids)


# --- assignments ---------------------------------------------------------------------------------


def member(store: EventStore, lease_s: float = 60) -> NumberedConsumer:
    return NumberedConsumer(
        store.driver, "letters", ["test_lanes.Book"], ["test_lanes.Noted"], "beginning", lease_s
    )


@POSTGRES
def test_a_partition_in_hand_goes_to_another_member_once_it_is_handled(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, name in ((numbered, "_SHARE_S"), (numbered, "_STANDBY_S")):
        monkeypatch.setattr(module, name, 0.0)
    for _ in range(100):
        store.repository(Book).create(Book.note, 1)
    first, second = member(store), member(store)
    try:
        taken = [message for _ in range(10) for message in first.poll(100, 0)]
        assert len({message.partition for message in taken}) == len(first.held) == 16
        for _ in range(3):
            assert not second.poll(10, 0)
            assert not first.poll(10, 0)
        assert (len(first.held), len(second.held)) == (16, 0)
        first.commit({message.partition: message.position for message in taken})
        wait_for(lambda: not first.poll(10, 0) and not second.poll(10, 0) and len(second.held) == 8)
        assert not set(first.held) & set(second.held)
    finally:
        first.close()
        second.close()


@POSTGRES
def test_a_partition_that_stays_in_hand_is_given_up_all_the_same(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_SHARE_S", "_STANDBY_S"):
        monkeypatch.setattr(numbered, name, 0.0)
    monkeypatch.setattr(numbered, "LEAVE_S", 0.1)
    for _ in range(100):
        store.repository(Book).create(Book.note, 1)
    first, second = member(store), member(store)
    try:
        taken = [message for _ in range(10) for message in first.poll(100, 0)]
        again = list[Any]()

        def shared() -> bool:
            first.poll(10, 0)
            again.extend(second.poll(10, 0))
            return len(second.held) == 8

        wait_for(shared)
        with pytest.raises(AssignmentLost):
            first.commit({message.partition: message.position for message in taken})
        while len(again) < 2:
            again += second.poll(100, 1)
    finally:
        first.close()
        second.close()


@SQLITE
def test_what_is_queued_of_a_lost_assignment_is_dropped(
    url: str, store: EventStore, caplog: pytest.LogCaptureFixture
) -> None:
    """Two are being handled when the assignment is taken; the first one's commit tells of it."""
    letters, seen = Subscription("letters", lanes=LANES), list[int]()
    begun, stolen, noticed = threading.Semaphore(0), threading.Event(), threading.Event()

    @letters.on(Noted, of=Book)
    def note(delivery: Delivery[Noted]) -> None:
        seen.append(delivery.event.number)
        begun.release()
        (stolen if delivery.event.number == 0 else noticed).wait(30)

    first, second, *_ = ids_of_all_lanes()
    store.repository(Book).with_id(first).create(Book.note, 0)
    store.repository(Book).with_id(second).create(Book.note, 1, 2, 3)
    with at_work(store, letters):
        assert begun.acquire(timeout=30)
        assert begun.acquire(timeout=30)
        rows(url, "UPDATE subscriptions SET owner = 'elsewhere', lease_until = 9999999999999")
        stolen.set()
        wait_for(lambda: "took over" in caplog.text)
        noticed.set()
    assert sorted(seen) == [0, 1]
    assert saved(url) == 0
