"""Who gets which connection, and what becomes of one after an error."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from retold.errors import (
    ConnectionLost,
    OutcomeUnknown,
    RetoldError,
    StoreBusy,
    StoreUnavailable,
    TransactionRolledBack,
)
from retold.store.connections import AwaitingDriver, BlockingDriver, FreeList, ThreadedDriver
from retold.store.dialects import dialect_for
from retold.store.driver import Batch, Plan, Result, Statement
from retold.store.url import parse_url

DIALECT = dialect_for(parse_url("sqlite:///unused.db"))
DONE = Result((), 0)


class Fake:
    """A connection that notes what it is told. An SQL text that is a key of `fails` raises; so do
    "begin" and "commit"."""

    def __init__(self, number: int, fails: dict[str, BaseException], resets: bool) -> None:
        self.number = number
        self.calls: list[str] = []
        self._fails = fails
        self._resets = resets

    def _call(self, what: str) -> None:
        self.calls.append(what)
        if what in self._fails:
            raise self._fails.pop(what)

    def execute(self, batch: Batch) -> Sequence[Result]:
        for sql, _ in batch:
            self._call(sql)
        return [DONE] * len(batch)

    def begin(self) -> None:
        self._call("begin")

    def commit(self) -> None:
        self._call("commit")

    def reset(self) -> bool:
        self.calls.append("reset")
        return self._resets

    def close(self) -> None:
        self.calls.append("close")

    def abandon(self) -> None:
        self.calls.append("abandon")


class Server:
    """Hands out connections; an error under a name happens once."""

    def __init__(self) -> None:
        self.connections: list[Fake] = []
        self.fails: dict[str, BaseException] = {}
        self.resets = True
        self.driver = BlockingDriver(DIALECT, self.connect)

    def connect(self) -> Fake:
        if "connect" in self.fails:
            raise self.fails.pop("connect")
        self.connections.append(Fake(len(self.connections), self.fails, self.resets))
        return self.connections[-1]

    def calls(self) -> list[list[str]]:
        return [connection.calls for connection in self.connections]


def plan(*texts: str) -> Plan[str]:
    for text in texts:
        yield [Statement(text)]
    return "done"


@pytest.fixture
def server() -> Server:
    return Server()


# --- the free list -------------------------------------------------------------------------------


def test_the_last_connection_given_back_is_taken_first() -> None:
    """It is the one least likely to have been idle for too long."""
    free: FreeList[Fake] = FreeList()
    assert free.take() is None
    first, second = Fake(1, {}, True), Fake(2, {}, True)
    free.give(first)
    free.give(second)
    assert free.take() is second
    assert list(free.drain()) == [first]
    assert free.take() is None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_takes_none_of_its_parent_s_connections() -> None:
    free: FreeList[Fake] = FreeList()
    idle, held = Fake(1, {}, True), Fake(2, {}, True)
    free.give(idle)
    child = os.fork()
    if child == 0:
        free.give(held)  # was in use at the fork
        os._exit(0 if free.take() is None and idle.calls == held.calls == [] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert free.take() is idle


# --- plans ---------------------------------------------------------------------------------------


def test_a_driver_connects_at_the_first_use(server: Server) -> None:
    assert server.connections == []
    assert server.driver.run(plan("a", "b")) == "done"
    assert server.calls() == [["a", "b"]]


def test_a_connection_is_used_again(server: Server) -> None:
    server.driver.run(plan("a"))
    server.driver.run(plan("b"))
    assert server.calls() == [["a", "b"]]


def test_open_connects_at_once_and_only_once(server: Server) -> None:
    server.driver.open()
    server.driver.open()
    server.driver.run(plan("a"))
    assert server.calls() == [["a"]]


def test_plans_that_run_at_once_have_connections_of_their_own(server: Server) -> None:
    def outer() -> Plan[None]:
        yield [Statement("outer")]
        server.driver.run(plan("inner"))
        yield [Statement("outer again")]

    server.driver.run(outer())
    assert server.calls() == [["outer", "outer again"], ["inner"]]


def test_threads_never_share_a_connection(server: Server) -> None:
    both_inside = threading.Barrier(2)

    def meeting() -> Plan[None]:
        yield [Statement(threading.current_thread().name)]
        both_inside.wait(10)
        yield [Statement(threading.current_thread().name)]

    threads = [
        threading.Thread(target=lambda: server.driver.run(meeting()), name=name) for name in "ab"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(server.calls()) == [["a", "a"], ["b", "b"]]


@pytest.mark.parametrize(
    "error",
    [StoreBusy("x"), TransactionRolledBack("x"), ValueError(), KeyboardInterrupt()],
    ids=repr,
)
def test_after_an_error_a_connection_is_reset_and_used_again(
    server: Server, error: BaseException
) -> None:
    server.fails["bad"] = error
    with pytest.raises(type(error)):
        server.driver.run(plan("bad"))
    server.driver.run(plan("next"))
    assert server.calls() == [["bad", "reset", "next"]]


def test_a_plan_may_survive_an_error(server: Server) -> None:
    def careful() -> Plan[str]:
        try:
            yield [Statement("bad")]
        except StoreBusy:
            yield [Statement("instead")]
        return "survived"

    server.fails["bad"] = StoreBusy("x")
    assert server.driver.run(careful()) == "survived"
    assert server.calls() == [["bad", "instead"]]


def test_a_connection_that_cannot_be_reset_is_abandoned(server: Server) -> None:
    server.resets = False
    server.fails["bad"] = StoreBusy("x")
    with pytest.raises(StoreBusy):
        server.driver.run(plan("bad"))
    server.driver.run(plan("next"))
    assert server.calls() == [["bad", "reset", "abandon"], ["next"]]


@pytest.mark.parametrize("error", [ConnectionLost("x"), OutcomeUnknown("x")], ids=repr)
def test_a_broken_connection_takes_all_idle_ones_with_it(
    server: Server, error: RetoldError
) -> None:
    def breaks() -> Plan[None]:
        server.driver.run(plan("other"))
        yield [Statement("bad")]

    server.fails["bad"] = error
    with pytest.raises(type(error)):
        server.driver.run(breaks())
    assert server.calls() == [["bad", "abandon"], ["other", "abandon"]]
    server.driver.run(plan("next"))
    assert server.calls()[2] == ["next"]


def test_a_server_that_cannot_be_reached_is_asked_again_next_time(server: Server) -> None:
    server.fails["connect"] = StoreUnavailable("x")
    with pytest.raises(StoreUnavailable):
        server.driver.run(plan("a"))
    server.driver.run(plan("b"))
    assert server.calls() == [["b"]]


def test_close_closes_idle_connections_and_the_driver_goes_on(server: Server) -> None:
    server.driver.run(plan("a"))
    server.driver.close()
    server.driver.close()
    server.driver.run(plan("b"))
    assert server.calls() == [["a", "close"], ["b"]]


# --- transactions --------------------------------------------------------------------------------


def test_a_transaction_commits_at_the_end_of_its_block(server: Server) -> None:
    with server.driver.transaction() as connection:
        connection.execute([Statement("a")])
    server.driver.run(plan("b"))
    assert server.calls() == [["begin", "a", "commit", "b"]]


def test_a_transaction_is_rolled_back_by_an_exception(server: Server) -> None:
    with pytest.raises(ValueError, match="mine"), server.driver.transaction():
        raise ValueError("mine")
    assert server.calls() == [["begin", "reset"]]


def test_an_idle_connection_that_had_died_is_replaced_before_a_transaction(
    server: Server,
) -> None:
    server.driver.run(plan("a"))
    server.fails["begin"] = ConnectionLost("x")
    with server.driver.transaction() as connection:
        connection.execute([Statement("b")])
    assert server.calls() == [["a", "begin", "abandon"], ["begin", "b", "commit"]]


def test_a_transaction_that_breaks_in_the_middle_is_lost_and_not_unknown(server: Server) -> None:
    server.fails["a"] = ConnectionLost("x")
    with pytest.raises(ConnectionLost), server.driver.transaction() as connection:
        connection.execute([Statement("a")])
    assert server.calls() == [["begin", "a", "abandon"]]


def test_a_commit_that_breaks_has_an_unknown_outcome(server: Server) -> None:
    server.fails["commit"] = ConnectionLost("it broke")
    with pytest.raises(OutcomeUnknown, match="it broke"), server.driver.transaction():
        pass
    assert server.calls() == [["begin", "commit", "abandon"]]


def test_a_commit_that_is_refused_is_reset(server: Server) -> None:
    server.fails["commit"] = TransactionRolledBack("x")
    with pytest.raises(TransactionRolledBack), server.driver.transaction():
        pass
    assert server.calls() == [["begin", "commit", "reset"]]


# --- async: a blocking driver on threads ---------------------------------------------------------


def test_a_threaded_driver_runs_plans_on_the_blocking_one(server: Server) -> None:
    async def main() -> str:
        driver = ThreadedDriver(server.driver, 2)
        await driver.open()
        result = await driver.run(plan("a"))
        async with driver.transaction() as connection:
            await connection.execute([Statement("b")])
        await driver.close()
        return result

    assert asyncio.run(main()) == "done"
    assert server.calls() == [["a", "begin", "b", "commit", "close"]]


def test_a_threaded_driver_runs_no_more_plans_at_once_than_it_has_threads(server: Server) -> None:
    inside: list[int] = []
    most = 0
    counting = threading.Lock()

    def counted() -> Plan[None]:
        nonlocal most
        with counting:
            inside.append(1)
            most = max(most, len(inside))
        yield [Statement("a")]
        with counting:
            inside.pop()

    async def main() -> None:
        driver = ThreadedDriver(server.driver, 2)
        await asyncio.gather(*[driver.run(counted()) for _ in range(20)])
        await driver.close()

    asyncio.run(main())
    assert most <= 2
    assert len(server.connections) <= 2


def test_a_cancelled_caller_leaves_the_plan_to_its_end(server: Server) -> None:
    entered, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    def slow() -> Plan[None]:
        yield [Statement("begin")]
        entered.set()
        go_on.wait(10)
        yield [Statement("commit")]
        ended.set()

    async def main() -> None:
        driver = ThreadedDriver(server.driver, 1)
        task = asyncio.create_task(driver.run(slow()))
        await asyncio.to_thread(entered.wait, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go_on.set()
        await asyncio.to_thread(ended.wait, 10)
        await driver.close()

    asyncio.run(main())
    assert server.calls() == [["begin", "commit", "close"]]


def test_a_cancelled_transaction_is_rolled_back(server: Server) -> None:
    async def main() -> None:
        driver = ThreadedDriver(server.driver, 1)
        inside = asyncio.Event()

        async def work() -> None:
            async with driver.transaction() as connection:
                await connection.execute([Statement("a")])
                inside.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(work())
        await inside.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert server.calls() == [["begin", "a", "reset"]]


def test_an_error_in_a_threaded_transaction_comes_out_as_it_is(server: Server) -> None:
    error = ValueError("mine")

    async def main() -> None:
        async with ThreadedDriver(server.driver, 1).transaction():
            raise error

    with pytest.raises(ValueError, match="mine") as caught:
        asyncio.run(main())
    assert caught.value is error
    assert server.calls() == [["begin", "reset"]]


# --- async: a client that is async itself --------------------------------------------------------


class AsyncFake:
    """The same connection, awaited; it gives way before each statement."""

    def __init__(self, blocking: Fake) -> None:
        self._blocking = blocking

    async def execute(self, batch: Batch) -> Sequence[Result]:
        await asyncio.sleep(0)
        return self._blocking.execute(batch)

    async def begin(self) -> None:
        self._blocking.begin()

    async def commit(self) -> None:
        self._blocking.commit()

    async def reset(self) -> bool:
        return self._blocking.reset()

    async def close(self) -> None:
        self._blocking.close()

    def abandon(self) -> None:
        self._blocking.abandon()


def awaiting(server: Server, limit: int = 2) -> AwaitingDriver:
    async def connect() -> AsyncFake:
        return AsyncFake(server.connect())

    return AwaitingDriver(DIALECT, connect, limit)


def run(work: Callable[[AwaitingDriver], Any], server: Server, limit: int = 2) -> Any:
    async def main() -> Any:
        return await work(awaiting(server, limit))

    return asyncio.run(main())


def test_an_awaiting_driver_reuses_connections_and_closes_them(server: Server) -> None:
    async def work(driver: AwaitingDriver) -> str:
        await driver.open()
        await driver.run(plan("a"))
        async with driver.transaction() as connection:
            await connection.execute([Statement("b")])
        result = await driver.run(plan("c"))
        await driver.close()
        return result

    assert run(work, server) == "done"
    assert server.calls() == [["a", "begin", "b", "commit", "c", "close"]]


def test_an_awaiting_driver_holds_no_more_connections_than_its_limit(server: Server) -> None:
    async def work(driver: AwaitingDriver) -> None:
        await asyncio.gather(*[driver.run(plan("a", "b", "c")) for _ in range(20)])

    run(work, server, limit=3)
    assert len(server.connections) == 3
    assert sum(len(calls) for calls in server.calls()) == 60


def test_a_failed_connect_gives_its_turn_back(server: Server) -> None:
    async def work(driver: AwaitingDriver) -> str:
        server.fails["connect"] = StoreUnavailable("x")
        with pytest.raises(StoreUnavailable):
            await driver.run(plan("a"))
        return await asyncio.wait_for(driver.run(plan("b")), 10)

    assert run(work, server, limit=1) == "done"


def test_a_cancelled_plan_s_connection_is_abandoned_alone(server: Server) -> None:
    """It may be in the middle of an answer."""

    async def work(driver: AwaitingDriver) -> str:
        inside = asyncio.Event()

        def endless() -> Plan[None]:
            while True:
                yield [Statement("a")]
                inside.set()

        await driver.run(plan("first"))
        other = asyncio.create_task(driver.run(endless()))
        await inside.wait()
        other.cancel()
        with pytest.raises(asyncio.CancelledError):
            await other
        return await asyncio.wait_for(driver.run(plan("next")), 10)

    assert run(work, server, limit=1) == "done"
    assert server.calls()[0][-1] == "abandon"
    assert "reset" not in server.calls()[0]
    assert server.calls()[1:] == [["next"]]


def test_a_broken_awaited_connection_takes_all_idle_ones_with_it(server: Server) -> None:
    async def work(driver: AwaitingDriver) -> None:
        async with driver.transaction():
            await driver.run(plan("other"))
            server.fails["bad"] = ConnectionLost("x")
            with pytest.raises(ConnectionLost):
                async with driver.transaction() as connection:
                    await connection.execute([Statement("bad")])

    run(work, server)
    assert server.calls() == [["begin", "commit"], ["other", "begin", "bad", "abandon"]]


def test_a_broken_awaited_commit_has_an_unknown_outcome(server: Server) -> None:
    async def work(driver: AwaitingDriver) -> None:
        server.fails["commit"] = ConnectionLost("x")
        with pytest.raises(OutcomeUnknown):
            async with driver.transaction():
                pass
        await asyncio.wait_for(driver.run(plan("next")), 10)

    run(work, server, limit=1)
    assert server.calls() == [["begin", "commit", "abandon"], ["next"]]


def test_an_awaited_idle_connection_that_had_died_is_replaced(server: Server) -> None:
    async def work(driver: AwaitingDriver) -> None:
        await driver.run(plan("a"))
        server.fails["begin"] = ConnectionLost("x")
        async with driver.transaction():
            pass

    run(work, server, limit=1)
    assert server.calls() == [["a", "begin", "abandon"], ["begin", "commit"]]


def test_a_connection_belongs_to_the_loop_it_was_opened_on(server: Server) -> None:
    driver = awaiting(server)
    asyncio.run(driver.run(plan("a")))
    asyncio.run(driver.run(plan("b")))
    assert server.calls() == [["a", "abandon"], ["b"]]
