"""Pausing and resuming subscriptions on every broker."""

from __future__ import annotations

import asyncio
import json
import threading
import time

import pytest

from retold import AsyncEventStore, Delivery, Subscription
from retold.brokers import wants
from retold.cli import main
from retold.errors import NotSubscribed
from tests.at_work import at_work
from tests.integration.test_generations import (
    BROKERS,
    DATABASES,
    KAFKA,
    SQLITE,
    AnyReceipt,
    Noted,
    World,
    world,
)
from tests.integration.test_lanes import wait_for

__all__ = ["world"]  # a fixture

OBEYS_S = 0.5


@pytest.fixture(autouse=True)
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wants, "LOOK_S", 0.1)


def quiet(world: World) -> None:
    """Wait until a member must have seen what it is told."""
    time.sleep(OBEYS_S)


@BROKERS
def test_a_paused_subscription_handles_nothing_until_it_is_resumed(
    world: World, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    with at_work(world.store, world.one()):
        world.have_receipts(world.note(1))
        world.store.subscriptions().pause(world.app.name)
        quiet(world)
        noted = world.note(2, 3)
        if kind == "kafka":
            time.sleep(2.5)  # a member of the group that does not poll would be missed by then
        assert len(world.receipts()) == 1
        world.store.subscriptions().resume(world.app.name)
        world.have_receipts(noted)
    assert "lost" not in caplog.text


@DATABASES
def test_a_member_that_starts_while_it_is_paused_waits_too(world: World) -> None:
    world.store.drain(world.one())
    world.store.subscriptions().pause(world.app.name)
    noted = world.note(1)
    assert world.store.drain(world.one()) == 0
    with at_work(world.store, world.one()):
        quiet(world)
        assert world.receipts() == []
        world.store.subscriptions().resume(world.app.name)
        world.have_receipts(noted)


@SQLITE
@pytest.mark.parametrize("lanes", [1, 4])
def test_what_is_in_hand_is_not_begun_while_it_is_paused(world: World, lanes: int) -> None:
    """The handler that was begun ends; the others of the batch wait, in their order."""
    begun, go_on, seen = threading.Event(), threading.Event(), list[int]()
    subscription = Subscription(world.app.name, lanes=lanes)

    @subscription.on(Noted, of=world.app.book)
    def write(delivery: Delivery[Noted]) -> None:
        seen.append(delivery.event.number)
        begun.set()
        assert go_on.wait(30)
        delivery.create(world.app.receipt, AnyReceipt.write, delivery.event_id)

    noted = world.note(*range(50))
    with at_work(world.store, subscription):
        assert begun.wait(30)
        world.store.subscriptions().pause(world.app.name)
        quiet(world)
        go_on.set()
        world.have_receipts(noted[:1])
        quiet(world)
        assert seen == [0]
        world.store.subscriptions().resume(world.app.name)
        world.have_receipts(noted)
    assert seen == list(range(50))


@SQLITE
def test_a_handler_that_fails_is_not_tried_again_while_it_is_paused(world: World) -> None:
    failed, mended = threading.Event(), False
    subscription = Subscription(world.app.name, attempts=3)

    @subscription.on(Noted, of=world.app.book)
    def write(delivery: Delivery[Noted]) -> None:
        if not mended:
            world.store.subscriptions().pause(world.app.name)
            time.sleep(OBEYS_S)
            failed.set()
            raise ZeroDivisionError
        delivery.create(world.app.receipt, AnyReceipt.write, delivery.event_id)

    noted = world.note(1)
    with at_work(world.store, subscription):
        assert failed.wait(30)
        quiet(world)
        assert list(world.store.parked()) == []
        mended = True
        world.store.subscriptions().resume(world.app.name)
        world.have_receipts(noted)


@SQLITE
def test_a_paused_member_stops_when_it_is_told_to(world: World) -> None:
    world.store.drain(world.one())
    world.store.subscriptions().pause(world.app.name)
    world.note(1)
    with at_work(world.store, world.one()):
        quiet(world)


@BROKERS
def test_the_commands_pause_resume_and_list(
    world: World, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    at = ["--database", world.url]
    with at_work(world.store, world.one()):
        world.have_receipts(world.note(1))
    world.note(2, 3)
    assert main(["subscriptions", "pause", world.app.name, *at]) == 0
    assert main(["subscriptions", "list", *at]) == 0
    said = capsys.readouterr().out
    assert f"{world.app.name}: generation 1, paused since" in said
    assert main(["subscriptions", "resume", world.app.name, *at]) == 0
    capsys.readouterr()
    assert main(["subscriptions", "list", "--json", *at]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["paused_at"] is None
    assert found["lag"] == (None if kind == "kafka" else 2)
    assert found["members"] == []
    assert main(["subscriptions", "pause", "nobody", *at]) == 2
    assert "has ever started" in capsys.readouterr().err


@SQLITE
def test_an_async_store_pauses_and_resumes(world: World) -> None:
    world.store.drain(world.one())

    async def main() -> list[bool]:
        async with AsyncEventStore(world.url) as store:
            subscriptions, paused = store.subscriptions(), list[bool]()
            await subscriptions.pause(world.app.name)
            paused += [one.paused_at is not None async for one in subscriptions]
            await subscriptions.resume(world.app.name)
            paused += [one.paused_at is not None async for one in subscriptions]
            with pytest.raises(NotSubscribed):
                await subscriptions.pause("nobody")
            return paused

    assert asyncio.run(main()) == [True, False]


@DATABASES
def test_the_list_knows_who_works_what(world: World) -> None:
    world.store.drain(world.one())
    with at_work(world.store, world.one()):
        wait_for(lambda: len(world.listed.members) == 1)
    assert world.listed.members == frozenset()


@KAFKA
def test_the_list_knows_positions_and_members_in_kafka(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    at = ["--database", world.url, "--kafka", world.options.get("kafka", "")]
    with at_work(world.store, world.one()):
        world.have_receipts(world.note(1))
        assert main(["subscriptions", "list", *at]) == 0
        assert "1 members with 4 partitions" in capsys.readouterr().out
    before = lag(at, capsys)
    world.note(2, 3)
    wait_for(lambda: lag(at, capsys) >= before + 2)


def lag(at: list[str], capsys: pytest.CaptureFixture[str]) -> int:
    assert main(["subscriptions", "list", "--json", *at]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    return int(found["lag"])
