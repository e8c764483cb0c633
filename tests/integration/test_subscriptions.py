"""Subscriptions at work: real processes, signals, threads and event loops."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import sqlite3
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from retold import (
    Aggregate,
    AsyncDelivery,
    AsyncEventStore,
    Delivery,
    Event,
    EventStore,
    Subscription,
    applies,
)
from retold.brokers import database
from retold.errors import AssignmentLost, HandlerFailed, UsageError
from tests.at_work import at_work

_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload([__name__])


class Requested(Event, name="test_subscriptions.Requested"):
    source: str
    target: str
    amount: int


class Credited(Event, name="test_subscriptions.Credited"):
    amount: int


class Written(Event, name="test_subscriptions.Written"):
    pass


class Account(Aggregate, name="test_subscriptions.Account"):
    balance: int = 0

    def credit(self, amount: int) -> int:
        self.emit(Credited(amount))
        return self.balance

    @applies
    def _credited(self, event: Credited) -> None:
        self.balance += event.amount


class Transfer(Aggregate, name="test_subscriptions.Transfer", ignores=(Requested,)):
    def request(self, source: str, target: str, amount: int) -> None:
        self.emit(Requested(source, target, amount))


class Letter(Aggregate, name="test_subscriptions.Letter", ignores=(Written,)):
    def write(self) -> None:
        self.emit(Written())


def moving(name: str) -> Subscription:
    """Moves the money of each transfer, takes a fee of one and writes a letter."""
    subscription = Subscription(name)

    @subscription.on(Requested)
    def move(delivery: Delivery[Requested]) -> None:
        event = delivery.event
        delivery.step("debit").update(Account, event.source, Account.credit, -event.amount)
        delivery.step("credit").update(Account, event.target, Account.credit, event.amount)
        delivery.step("fee").update(Account, event.source, Account.credit, -1)
        delivery.create(Letter, Letter.write)

    return subscription


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'events.db'}"


@pytest.fixture
def store(url: str) -> Iterator[EventStore]:
    with EventStore(url) as opened:
        yield opened


@pytest.fixture
def raw(store: EventStore, tmp_path: Path) -> Iterator[sqlite3.Connection]:
    path = tmp_path / "events.db"
    with closing(sqlite3.connect(path, isolation_level=None, timeout=30)) as opened:
        yield opened


Started = Callable[..., tuple[BaseProcess, Connection]]


@pytest.fixture
def started() -> Iterator[Started]:
    """Starts processes, with a pipe to talk with them; they are killed when the test ends."""
    with ExitStack() as stack:

        def start(target: Callable[..., None], *args: Any) -> tuple[BaseProcess, Connection]:
            pipe, other = _PROCESSES.Pipe()
            process = _PROCESSES.Process(target=target, args=(*args, other))
            process.start()
            other.close()
            stack.callback(process.join)
            stack.callback(process.kill)
            return process, pipe

        yield start


# --- run and drain -------------------------------------------------------------------------------


def test_several_subscriptions_run_at_once(store: EventStore) -> None:
    """Each handler waits for the other one."""
    meeting, subscriptions = threading.Barrier(3), (Subscription("ann"), Subscription("bob"))
    for subscription in subscriptions:

        @subscription.on(Credited)
        def meet(delivery: Delivery[Credited]) -> None:
            meeting.wait(30)

    store.repository(Account).create(Account.credit, 1)
    with at_work(store, *subscriptions):
        meeting.wait(30)


def test_when_one_subscription_fails_all_are_stopped_and_it_is_raised(store: EventStore) -> None:
    failing, other = Subscription("failing", attempts=1, on_error="stop"), Subscription("other")

    @failing.on(Credited)
    def fail(delivery: Delivery[Credited]) -> None:
        raise ZeroDivisionError

    other.on(Credited)(lambda _: None)
    store.repository(Account).create(Account.credit, 1)
    with pytest.raises(HandlerFailed, match="failing"):
        store.run(other, failing)


def test_drain_goes_on_until_no_subscription_has_anything_left(store: EventStore) -> None:
    first, second = Subscription("first"), Subscription("second")
    for subscription in (first, second):

        @subscription.on(Credited)
        def count_down(delivery: Delivery[Credited]) -> None:
            if left := delivery.event.amount:
                delivery.update(Account, delivery.entity_id, Account.credit, left - 1)

    ann = store.repository(Account).create(Account.credit, 3)
    events = 1 + 2 + 4 + 8
    assert store.drain(first, second) == 2 * events
    assert len(list(store.repository(Account).history(ann.id))) == events


def test_run_without_a_subscription_is_an_error(store: EventStore) -> None:
    with pytest.raises(UsageError, match="at least one"):
        store.run()


def test_two_subscriptions_and_a_transfer_to_oneself_lose_nothing(
    store: EventStore, raw: sqlite3.Connection
) -> None:
    ann = store.repository(Account).create(Account.credit, 100)
    store.repository(Transfer).create(Transfer.request, ann.id, ann.id, 30)
    for _ in range(2):
        store.drain(moving("one"), moving("another"))
        events = [recorded.event for recorded in store.repository(Account).history(ann.id)]
        moved = [Credited(-30), Credited(30), Credited(-1)]
        assert events == [Credited(100), *moved, *moved]
        assert len(list(store.repository(Letter).entities())) == 2
        raw.execute("UPDATE subscriptions SET position = 0")


# --- waking --------------------------------------------------------------------------------------


def test_a_commit_of_the_same_process_is_handled_without_looking_for_it(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody looks for an hour; only the commit itself can wake."""
    monkeypatch.setattr(database, "_IDLE_S", 3600.0)
    monkeypatch.setattr("retold.subscriptions.dispatcher._POLL_S", 3600.0)
    letters, handled = Subscription("letters"), threading.Semaphore(0)
    stop = threading.Event()

    @letters.on(Credited)
    def write(delivery: Delivery[Credited]) -> None:
        if not delivery.event.amount:
            stop.set()
        handled.release()

    ann = store.repository(Account).create(Account.credit, 1)
    worker = threading.Thread(target=store.run, args=(letters,), kwargs={"stop": stop}, daemon=True)
    worker.start()
    for amount in (5, 4, 3, 2, 1, 0):
        assert handled.acquire(timeout=30)
        store.repository(Account).update(ann.id, Account.credit, amount)
    worker.join()


def test_members_may_come_while_others_commit(store: EventStore) -> None:
    """All threads share the bell that commits ring, and a thread may be interrupted anywhere."""
    failures = list[BaseException]()

    def commit() -> None:
        try:
            for _ in range(30):
                store.repository(Account).create(Account.credit, 1)
        except BaseException as error:
            failures.append(error)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    writer = threading.Thread(target=commit)
    writer.start()
    try:
        bells = deque((threading.Event() for _ in range(100)), maxlen=100)
        while writer.is_alive():
            store.driver.listen(bells[-1])
            bells.append(threading.Event())
    finally:
        writer.join()
        sys.setswitchinterval(before)
    assert failures == []
    for bell in bells:
        store.driver.listen(bell)
    store.repository(Account).create(Account.credit, 1)
    assert all(bell.is_set() for bell in bells)


# --- signals -------------------------------------------------------------------------------------


def work_slowly(url: str, pipe: Connection) -> None:
    """A worker that is at the second event until it is told to stop."""
    letters, stop = Subscription("letters"), threading.Event()

    @letters.on(Credited)
    def write(delivery: Delivery[Credited]) -> None:
        pipe.send(delivery.event.amount)
        if delivery.event.amount == 2:
            stop.wait()

    with EventStore(url) as store:
        store.run(letters, stop=stop)
    pipe.send("ended")


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_run_behind_the_event_that_is_being_handled(
    url: str, store: EventStore, raw: sqlite3.Connection, started: Started, signum: signal.Signals
) -> None:
    for amount in (1, 2, 3):
        store.repository(Account).create(Account.credit, amount)
    process, pipe = started(work_slowly, url)
    assert [pipe.recv(), pipe.recv()] == [1, 2]
    assert process.pid
    os.kill(process.pid, signum)
    assert pipe.recv() == "ended"
    process.join()
    assert process.exitcode == 0
    assert raw.execute("SELECT position, owner FROM subscriptions").fetchall() == [(2, None)]


def test_the_signal_handlers_are_as_before_when_run_ends(store: EventStore) -> None:
    letters, stop = Subscription("letters"), threading.Event()
    letters.on(Credited)(lambda _: stop.set())
    store.repository(Account).create(Account.credit, 1)
    before = [signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)]
    store.run(letters, stop=stop)
    assert [signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)] == before


# --- crashes -------------------------------------------------------------------------------------


def work(url: str, pipe: Connection) -> None:
    with EventStore(url) as store:
        store.run(moving("transfers"))


KILLS = 25


def test_every_event_has_its_effect_once_though_workers_are_killed_again_and_again(
    url: str, store: EventStore, raw: sqlite3.Connection, started: Started
) -> None:
    """Two workers; the active one is killed as soon as it has changed something."""
    accounts, transfers = store.repository(Account), store.repository(Transfer)
    ids = [accounts.create(Account.credit, 0).id for _ in range(5)]
    requested, enough = list[tuple[str, str, int]](), threading.Event()

    def request() -> None:
        n = 0
        while not enough.is_set():
            n += 1
            transfer = ids[n % 5], ids[n * n % 5], n % 7
            transfers.create(Transfer.request, *transfer)
            requested.append(transfer)
            enough.wait(0.002)

    def active() -> tuple[int | None, int]:
        """The worker that holds the lease, and how much all workers have done."""
        (owner,) = raw.execute("SELECT max(owner) FROM subscriptions").fetchone()
        (done,) = raw.execute("SELECT count(*) FROM handled").fetchone()
        return int(owner.split("/")[2]) if owner else None, done

    workers = {process.pid: process for process, _ in (started(work, url) for _ in range(2))}
    requester = threading.Thread(target=request)
    requester.start()
    try:
        for _ in range(KILLS):
            _, before = active()
            while True:
                pid, done = active()
                if done > before and pid in workers:
                    break
            killed = workers.pop(pid)
            killed.kill()
            killed.join()
            process, _ = started(work, url)
            workers[process.pid] = process
    finally:
        enough.set()
        requester.join()
    for process in workers.values():
        process.kill()
        process.join()
    store.drain(moving("transfers"))

    expected = Counter[str]()
    for source, target, amount in requested:
        expected[source] -= amount + 1
        expected[target] += amount
    assert {id: accounts.find(id).state.balance for id in ids} == {id: expected[id] for id in ids}
    assert len(list(store.repository(Letter).entities())) == len(requested)
    twice = "SELECT count(*) FROM handled GROUP BY trigger_key, entity_id HAVING count(*) > 1"
    assert raw.execute(twice).fetchall() == []


# --- leases --------------------------------------------------------------------------------------


def test_a_handler_may_take_longer_than_the_lease(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "LEASE_S", 1.0)
    letters, entered, leave = Subscription("letters"), threading.Event(), threading.Event()
    handled = list[int]()

    @letters.on(Credited)
    def write(delivery: Delivery[Credited]) -> None:
        entered.set()
        assert leave.wait(30)
        handled.append(delivery.event.amount)

    store.repository(Account).create(Account.credit, 1)
    with at_work(store, letters):
        assert entered.wait(30)
        types = ["test_subscriptions.Account"], ["test_subscriptions.Credited"]
        rival = database.DatabaseConsumer(store.driver, "letters", *types, "beginning")
        with closing(rival):
            assert not rival.poll(1, 2.5)
            assert not rival.assigned
            leave.set()
    assert store.drain(letters) == 0
    assert handled == [1]


def test_a_lease_that_somebody_took_is_noticed_at_the_commit(
    store: EventStore, raw: sqlite3.Connection
) -> None:
    store.repository(Account).create(Account.credit, 1)
    types = ["test_subscriptions.Account"], ["test_subscriptions.Credited"]
    with closing(database.DatabaseConsumer(store.driver, "letters", *types, "beginning")) as member:
        (message,) = member.poll(1, 0)
        raw.execute("UPDATE subscriptions SET owner = 'elsewhere'")
        with pytest.raises(AssignmentLost):
            member.commit({message.partition: message.position})
        assert not member.assigned
    assert raw.execute("SELECT position, owner FROM subscriptions").fetchall() == [(0, "elsewhere")]


def test_a_worker_whose_assignment_was_taken_goes_on_when_it_is_free_again(
    store: EventStore, raw: sqlite3.Connection, tmp_path: Path
) -> None:
    letters, handled = Subscription("letters"), list[int]()
    enough = threading.Event()

    @letters.on(Credited)
    def write(delivery: Delivery[Credited]) -> None:
        if not handled:
            with closing(sqlite3.connect(tmp_path / "events.db", timeout=30)) as thief, thief:
                thief.execute("UPDATE subscriptions SET owner = 'elsewhere', lease_until = 0")
        handled.append(delivery.event.amount)
        if handled == [1, 2, 1, 2]:
            enough.set()

    ann = store.repository(Account).create(Account.credit, 1)
    store.repository(Account).update(ann.id, Account.credit, 2)
    with at_work(store, letters):
        assert enough.wait(30), handled
    assert raw.execute("SELECT position FROM subscriptions").fetchall() == [(2,)]


# --- async ---------------------------------------------------------------------------------------


def mixed(done: asyncio.Event, loop: asyncio.AbstractEventLoop) -> Subscription:
    """A plain and an async handler."""
    letters = Subscription("letters", attempts=1)

    @letters.on(Requested)
    def plain(delivery: Delivery[Requested]) -> None:
        assert threading.current_thread() is not threading.main_thread()
        delivery.update(Account, delivery.event.target, Account.credit, delivery.event.amount)

    @letters.on(Credited)
    async def awaited(delivery: AsyncDelivery[Credited]) -> None:
        assert asyncio.get_running_loop() is loop
        if delivery.event.amount:
            await delivery.create(Letter, Letter.write)
            done.set()

    return letters


async def request_one(store: AsyncEventStore) -> str:
    ann = await store.repository(Account).create(Account.credit, 0)
    await store.repository(Transfer).create(Transfer.request, ann.id, ann.id, 30)
    return ann.id


async def letters_in(store: AsyncEventStore) -> int:
    return len([id async for id in store.repository(Letter).entities()])


def test_running_handles_for_the_time_of_a_block_by_plain_and_async_handlers(url: str) -> None:
    async def main() -> tuple[int, int]:
        done = asyncio.Event()
        async with AsyncEventStore(url) as store:
            async with store.running(mixed(done, asyncio.get_running_loop())):
                id = await request_one(store)
                await done.wait()
            balance = (await store.repository(Account).find(id)).state.balance
            return balance, await letters_in(store)

    assert asyncio.run(main()) == (30, 1)


def test_an_async_run_ends_when_it_is_told_to_stop(url: str) -> None:
    async def main() -> int:
        done, stop = asyncio.Event(), threading.Event()
        async with AsyncEventStore(url) as store:
            letters = mixed(done, asyncio.get_running_loop())
            running = asyncio.create_task(store.run(letters, stop=stop))
            await request_one(store)
            await done.wait()
            stop.set()
            await running
            return await letters_in(store)

    assert asyncio.run(main()) == 1


def test_an_async_run_that_is_cancelled_ends_behind_the_event_being_handled(
    url: str, store: EventStore, raw: sqlite3.Connection
) -> None:
    async def main() -> None:
        letters, entered, leave = Subscription("letters"), asyncio.Event(), asyncio.Event()
        stop = threading.Event()

        @letters.on(Credited)
        async def write(delivery: AsyncDelivery[Credited]) -> None:
            entered.set()
            await leave.wait()

        async with AsyncEventStore(url) as opened:
            running = asyncio.create_task(opened.run(letters, stop=stop))
            await entered.wait()
            running.cancel()
            while not stop.is_set():
                await asyncio.sleep(0)
            leave.set()
            with pytest.raises(asyncio.CancelledError):
                await running

    for amount in (1, 2):
        store.repository(Account).create(Account.credit, amount)
    asyncio.run(main())
    assert raw.execute("SELECT position, owner FROM subscriptions").fetchall() == [(1, None)]


def test_an_async_run_stops_all_when_a_handler_keeps_failing(url: str) -> None:
    async def main() -> None:
        failing, other = Subscription("failing", attempts=2, on_error="stop"), Subscription("other")

        @failing.on(Credited)
        async def fail(delivery: AsyncDelivery[Credited]) -> None:
            raise ZeroDivisionError

        other.on(Credited)(lambda _: None)
        async with AsyncEventStore(url) as store:
            await store.repository(Account).create(Account.credit, 1)
            await store.run(other, failing)

    with pytest.raises(HandlerFailed, match="ZeroDivisionError"):
        asyncio.run(main())


def test_a_block_that_ends_with_an_error_stops_what_it_ran(
    url: str, store: EventStore, raw: sqlite3.Connection
) -> None:
    async def main() -> None:
        done = asyncio.Event()
        letters = mixed(done, asyncio.get_running_loop())
        async with AsyncEventStore(url) as opened, opened.running(letters):
            await request_one(opened)
            await done.wait()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        asyncio.run(main())
    assert raw.execute("SELECT owner FROM subscriptions").fetchall() == [(None,)]
