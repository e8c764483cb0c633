"""Backfill on every broker: what was passed before it was handled is handled after all."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from retold import AsyncDelivery, AsyncEventStore, Delivery, EventStore, Subscription
from retold.cli import main
from retold.errors import HandlerFailed, NothingMissed, UsageError
from retold.store.event_store import StoreOptions
from tests.at_work import at_work
from tests.integration.test_generations import (
    BROKERS,
    SQLITE,
    AnyBook,
    AnyReceipt,
    App,
    Closed,
    World,
    world,
)
from tests.integration.test_lanes import wait_for
from tests.integration.test_subscriptions import Started, started

__all__ = ["started", "world"]  # fixtures

CLOSED = "test_generations.Closed"


def grown(world: World, count: int) -> list[str]:
    """Events of a name that the subscription came to handle when it had passed them."""
    books = world.store.repository(world.app.book)
    changes = [
        books.with_id(id).create(AnyBook.close_often, n)
        for id, n in (("ann", count - 2), ("bob", 2))
    ]
    closed = [event.id for change in changes for event in books.history(change.id)]
    with at_work(world.store, world.one()):
        world.have_receipts(world.note(1))
    with at_work(world.store, world.two()):
        world.have_receipts(world.close(100, id="ann") + world.close(100, id="cid"))
    return closed


def backfill_slowly(url: str, options: StoreOptions, run: str, pipe: Connection) -> None:
    app = App(run)
    subscription = Subscription(app.name)

    @subscription.on(Closed, of=app.book)
    def write(delivery: Delivery[Closed]) -> None:
        delivery.create(app.receipt, AnyReceipt.write, delivery.event_id)
        pipe.send(delivery.event_id)
        pipe.recv()

    with EventStore(url, **options) as store:
        subscription.backfill(store, Closed)


@BROKERS
def test_a_backfill_that_is_killed_goes_on_beside_the_live_flow(
    world: World, started: Started
) -> None:
    closed = grown(world, 130)
    process, pipe = started(backfill_slowly, world.url, world.options, world.app.run)
    for _ in range(110):
        pipe.recv()
        time.sleep(0.005)  # a position is saved ten times a second
        pipe.send("on")
    process.kill()
    process.join()
    again: list[int] = []
    with at_work(world.other, world.two()):
        assert world.two().backfill(world.store, Closed, told=again.append)
        world.have_receipts(world.close(101))
    assert sum(again) < 60  # what was saved does not come again
    receipts = world.receipts()
    assert set(closed) < set(receipts)
    assert len(receipts) == len(set(receipts)) == 130 + 1 + 3
    in_order = [id for id in receipts if id in closed]
    ann = set(closed[:-2])
    assert [id for id in in_order if id in ann] == closed[:-2]
    assert [row.backfilled for row in world.listed.missed] == [True]
    with pytest.raises(NothingMissed):
        world.two().backfill(world.store, Closed)


@SQLITE
def test_a_backfill_stops_at_an_event_that_cannot_be_handled(world: World) -> None:
    closed, failing = grown(world, 5), True
    subscription = Subscription(world.app.name, attempts=1)

    @subscription.on(Closed, of=world.app.book)
    def write(delivery: Delivery[Closed]) -> None:
        if failing and delivery.event_id == closed[2]:
            raise ZeroDivisionError
        delivery.create(world.app.receipt, AnyReceipt.write, delivery.event_id)

    with pytest.raises(HandlerFailed):
        subscription.backfill(world.store, Closed)
    assert set(closed) & set(world.receipts()) == set(closed[:2])
    failing = False
    assert subscription.backfill(world.store, CLOSED)
    assert set(closed) < set(world.receipts())


@SQLITE
def test_a_backfill_that_is_told_to_stop_is_not_done(world: World) -> None:
    grown(world, 5)
    stop = threading.Event()
    stop.set()
    assert not world.two().backfill(world.store, Closed, stop=stop)
    assert world.two().backfill(world.store, Closed)


@SQLITE
def test_async_handlers_are_awaited_by_a_backfill(world: World) -> None:
    closed, seen = grown(world, 4), list[str]()
    subscription = Subscription(world.app.name)

    @subscription.on(Closed, of=world.app.book)
    async def note(delivery: AsyncDelivery[Closed]) -> None:
        await asyncio.sleep(0)
        seen.append(delivery.event_id)

    async def main() -> bool:
        async with AsyncEventStore(world.url) as store:
            loop = asyncio.get_running_loop(), store
            return await asyncio.to_thread(subscription.backfill, world.store, Closed, loop=loop)

    with pytest.raises(UsageError):
        subscription.backfill(world.store, Closed)
    assert asyncio.run(main())
    assert seen == closed


@SQLITE
def test_what_was_handled_before_it_was_given_up_is_not_backfilled(world: World) -> None:
    """Handled, given up, and taken up again: missed is what came in between."""
    with at_work(world.store, world.two()):
        world.have_receipts(world.close(1))
    with at_work(world.store, world.one()):
        between = world.close(2)
        wait_for(lambda: world.listed.offered is not None)
        world.store.subscriptions().accept(world.app.name)
        world.have_receipts(world.note(3))
    with at_work(world.store, world.two()):
        world.have_receipts(world.note(4))
    asked: list[int] = []
    assert world.two().backfill(world.store, Closed, told=asked.append)
    assert sum(asked) == 1
    assert set(between) < set(world.receipts())


_APPLICATION = """
from tests.integration.test_generations import App, Closed, Noted
letters = App({run!r}).version(Noted, Closed)
"""


@BROKERS
def test_the_command_backfills(
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    closed, module = grown(world, 5), f"app_{world.app.run}"
    (tmp_path / f"{module}.py").write_text(_APPLICATION.format(run=world.app.run))
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    at = ["--database", world.url, "--app", f"{module}:letters"]
    if kafka := world.options.get("kafka"):
        at += ["--kafka", kafka]
    assert main(["subscriptions", "list", "--database", world.url]) == 0
    assert f"missed 5 {CLOSED}" in capsys.readouterr().out
    assert main(["subscriptions", "backfill", world.app.name, CLOSED, *at]) == 0
    assert capsys.readouterr().out == f"handled 5 {CLOSED}\n"
    assert set(closed) < set(world.receipts())
    assert main(["subscriptions", "backfill", world.app.name, CLOSED, *at]) == 2
    assert "has missed no event" in capsys.readouterr().err
    assert main(["subscriptions", "backfill", "nobody", CLOSED, *at]) == 2
