"""Members of two versions of a subscription side by side, on every broker: nothing is skipped."""

from __future__ import annotations

import json
import logging
import random
import secrets
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from retold import Aggregate, Delivery, Event, EventStore, Subscription, applies
from retold.brokers import database
from retold.brokers.kafka import KafkaPublisher, KafkaTopics
from retold.brokers.kafka_places import committed_as
from retold.brokers.numbered_log import partition_of
from retold.brokers.published import events_in
from retold.brokers.wants import Wants
from retold.cli import main
from retold.errors import NothingOffered, NotSubscribed, Outgrown
from retold.store.event_store import StoreOptions
from retold.store.numbering import PARTITIONS
from retold.store.subscribed import Subscribed
from retold.subscriptions import generations
from tests.at_work import at_work
from tests.conformance.kafka_broker import KafkaBroker, copying, topics_of
from tests.conformance.raw import rows
from tests.integration.test_lanes import wait_for
from tests.integration.test_subscriptions import Started, started
from tests.relay.processes import size
from tests.rig import Rig

__all__ = ["started"]  # a fixture

BROKERS = pytest.mark.parametrize("kind", ["sqlite", "postgres18", "mysql8", "mariadb", "kafka"])
DATABASES = pytest.mark.parametrize("kind", ["sqlite", "postgres18", "mysql8", "mariadb"])
SQLITE = pytest.mark.parametrize("kind", ["sqlite"])
KAFKA = pytest.mark.parametrize("kind", ["kafka"])
QUICK = {
    "session.timeout.ms": "2000",
    "heartbeat.interval.ms": "100",
    "topic.metadata.refresh.interval.ms": "200",
    "fetch.wait.max.ms": "20",
}


class Noted(Event, name="test_generations.Noted"):
    number: int


class Closed(Event, name="test_generations.Closed"):
    number: int


class Written(Event, name="test_generations.Written"):
    event_id: str


class AnyBook(Aggregate, name="test_generations.Book", ignores=(Noted, Closed)):
    def note(self, number: int) -> None:
        self.emit(Noted(number))

    def close(self, number: int) -> None:
        self.emit(Closed(number))

    def close_often(self, count: int) -> None:
        for number in range(count):
            self.emit(Closed(number))


class AnyReceipt(Aggregate, name="test_generations.Receipt"):
    def write(self, event_id: str) -> None:
        self.emit(Written(event_id))

    @applies
    def _written(self, event: Written) -> None:
        pass


class App:
    """An application whose entity types, and so topics, are a test's own. It writes a receipt for
    each event that it handles."""

    def __init__(self, run: str) -> None:
        class Book(AnyBook, name=f"test_generations.Book-{run}", ignores=(Noted, Closed)):
            pass

        class Receipt(AnyReceipt, name=f"test_generations.Receipt-{run}"):
            pass

        self.run = run
        self.book: type[AnyBook] = Book
        self.receipt: type[AnyReceipt] = Receipt
        self.name = f"letters-{run}"

    def version(self, *events: type[Noted | Closed], start: str = "beginning") -> Subscription:
        subscription = Subscription(self.name, start=start)  # type: ignore[arg-type]

        def write(delivery: Delivery[Noted | Closed]) -> None:
            delivery.create(self.receipt, AnyReceipt.write, delivery.event_id)

        for event in events:
            subscription.on(event, of=self.book)(write)
        return subscription


class World:
    """A store, the application, and a broker."""

    def __init__(self, app: App, url: str, options: StoreOptions) -> None:
        self.app, self.url, self.options = app, url, options
        self.store = EventStore(url, **options)
        self.other = EventStore(url, **options)

    def one(self) -> Subscription:
        return self.app.version(Noted)

    def two(self) -> Subscription:
        return self.app.version(Noted, Closed)

    def note(self, *numbers: int, id: str = "ann") -> list[str]:
        return [self._write(id, AnyBook.note, number) for number in numbers]

    def close(self, *numbers: int, id: str = "ann") -> list[str]:
        return [self._write(id, AnyBook.close, number) for number in numbers]

    def _write(self, id: str, command: Callable[[AnyBook, int], None], number: int) -> str:
        books = self.store.repository(self.app.book)
        if books.exists(id):
            return books.update(id, command, number).version
        return books.with_id(id).create(command, number).version

    def events(self, entity_type: str, event_type: str) -> list[tuple[str, str, str]]:
        """Id, entity and data, read without retold."""
        return [
            (str(id), str(entity), str(data))
            for id, entity, data in rows(
                self.url,
                "SELECT event_id, entity_id, event_data FROM events WHERE entity_type = "
                f"'{entity_type}' AND event_type = '{event_type}' ORDER BY event_id",
            )
        ]

    def receipts(self) -> list[str]:
        found = self.events(self.app.receipt.__entity_type__, "test_generations.Written")
        return [json.loads(data)["event_id"] for _, _, data in found]

    def have_receipts(self, ids: Sequence[str]) -> None:
        wait_for(lambda: set(ids) <= set(self.receipts()))

    def is_grown(self) -> bool:
        """Whether it is settled from where on a newer member handles more."""
        return any(
            one.generation == 2 and all(row.up_to is not None for row in one.missed)
            for one in self.store.subscriptions()
            if one.name == self.app.name
        )

    @property
    def listed(self) -> Subscribed:
        (found,) = (one for one in self.store.subscriptions() if one.name == self.app.name)
        return found


@contextmanager
def kafka_world(servers: Rig, path: Path, app: App) -> Generator[StoreOptions]:
    broker = KafkaBroker(path, servers.kafka.url, ())
    broker.prefix = ""
    publisher = KafkaPublisher(f"generations-{app.run}", broker.bootstrap)
    publisher.begin()
    counts = {app.book.__entity_type__: 4, app.receipt.__entity_type__: 1}
    with broker.store() as store:
        store.migrate()
        try:
            with topics_of(broker.bootstrap, counts), copying(broker, publisher):
                yield StoreOptions(kafka=broker.bootstrap, kafka_settings=QUICK)
        finally:
            publisher.close()


@pytest.fixture
def world(
    kind: str, servers: Rig, fresh_database: Callable[[str], str], tmp_path: Path
) -> Iterator[World]:
    app = App(secrets.token_hex(4))
    with ExitStack() as stack:
        if kind == "kafka":
            options = stack.enter_context(kafka_world(servers, tmp_path / "events.db", app))
            url = f"sqlite:///{tmp_path / 'events.db'}"
        else:
            url, options = fresh_database(kind), StoreOptions()
            with EventStore(url) as store:
                store.migrate(subscriptions=True)
        opened = World(app, url, options)
        stack.enter_context(opened.store)
        stack.enter_context(opened.other)
        yield opened


# --- side by side --------------------------------------------------------------------------------


@BROKERS
def test_an_older_member_stops_before_what_only_a_newer_one_handles(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    with at_work(world.store, world.one()):
        world.have_receipts(world.note(1, 2))
        with at_work(world.other, world.two()):
            wait_for(world.is_grown)
            closed = world.close(3)
            noted = world.note(4)
            world.have_receipts(closed + noted)
            wait_for(lambda: "It stands by before such an event" in caplog.text)
    assert len(world.receipts()) == 4


@DATABASES
def test_an_older_member_that_is_late_to_know_saves_no_position_behind_it(world: World) -> None:
    """What a drain has read when the newer one registers is not saved."""
    world.note(1)
    slow = Subscription(world.app.name)

    @slow.on(Noted, of=world.app.book)
    def write(delivery: Delivery[Noted]) -> None:
        if delivery.event.number == 1:
            routes = world.two()._routes()
            Wants(world.other.driver, slow.name, generations.handled(routes)).register()
            world.close(2)
            world.note(3)
        delivery.create(world.app.receipt, AnyReceipt.write, delivery.event_id)

    with pytest.raises(Outgrown, match=r"test_generations\.Closed"):
        world.store.drain(slow)
    assert world.store.drain(world.two()) == 2
    assert len(world.receipts()) == 3


@BROKERS
def test_what_was_passed_before_is_said_and_not_handled(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    closed = world.close(1, 2, 3)
    with at_work(world.store, world.one()):
        world.have_receipts(world.note(4))
    with (
        caplog.at_level(logging.WARNING, "retold.subscriptions"),
        at_work(world.store, world.two()),
    ):
        world.have_receipts(world.close(5))
    assert set(closed).isdisjoint(world.receipts())
    (missed,) = world.listed.missed
    assert (missed.pair[1], missed.events, missed.whole) == ("test_generations.Closed", 3, True)
    assert "3 earlier ones were passed" in caplog.text


@BROKERS
def test_after_the_newer_one_is_withdrawn_an_operator_lets_the_older_one_go_on(
    world: World, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    with at_work(world.store, world.two()):
        world.have_receipts(world.note(1))
    with at_work(world.store, world.one()):
        world.close(2)
        noted = world.note(3)
        wait_for(lambda: world.listed.offered is not None)
        assert set(noted).isdisjoint(world.receipts())
        assert main(["subscriptions", "accept", world.app.name, "--database", world.url]) == 0
        assert "test_generations.Closed" in capsys.readouterr().out
        world.have_receipts(noted)
    assert "retold subscriptions accept" in caplog.text
    assert len(world.receipts()) == 2


@BROKERS
def test_a_new_entity_type_is_handled_beside_an_older_member(world: World) -> None:
    """On Kafka its topic is read from the beginning, on databases behind the position saved."""
    receipt, seen = world.app.receipt, list[str]()
    newer = world.one()

    @newer.on(Written, of=receipt)
    def note(delivery: Delivery[Written]) -> None:
        seen.append(delivery.event.event_id)

    with at_work(world.store, world.one()):
        first = world.note(1)
        world.have_receipts(first)
        with at_work(world.other, newer):
            wait_for(world.is_grown)
            second = world.note(2)
            wait_for(lambda: second[0] in seen)
    assert set(first) < set(seen)
    # Names of upcasters count for every entity type, and other tests have some, too.
    own = [row for row in world.listed.missed if row.event_type.startswith("test_generations.")]
    assert [row.events for row in own] == [0]


@SQLITE
def test_what_nobody_offered_cannot_be_accepted(world: World) -> None:
    with pytest.raises(NotSubscribed):
        world.store.subscriptions().accept("nobody")
    world.store.drain(world.one())
    with pytest.raises(NothingOffered):
        world.store.subscriptions().accept(world.app.name)


@KAFKA
def test_what_an_uninformed_member_committed_on_kafka_is_looked_through_again(
    world: World,
) -> None:
    """It committed behind an event that the newer one has begun to want, and died."""
    one = world.one()
    noted = world.note(1)
    with at_work(world.store, one):
        world.have_receipts(noted)
    with at_work(world.store, world.two()):
        wait_for(lambda: [row.up_to is not None for row in world.listed.missed] == [True])
    closed = world.close(2)
    noted = world.note(3)
    with pytest.MonkeyPatch.context() as patch:
        uninformed = Wants.register

        def register(self: Wants) -> bool:
            grown = uninformed(self)
            self.seen = self.seen._replace(number=1, wanted=self.own)
            return grown

        patch.setattr(Wants, "register", register)
        patch.setattr(Wants, "look", Wants.outgrown)
        with at_work(world.store, world.one()):
            world.have_receipts(noted)
    assert set(closed).isdisjoint(world.receipts())
    with at_work(world.store, world.two()):
        world.have_receipts(closed + world.note(4))
    assert len(world.receipts()) == len(set(world.receipts())) == 4


# --- under load ----------------------------------------------------------------------------------


def work(url: str, options: StoreOptions, run: str, newer: bool, pipe: Connection) -> None:
    app = App(run)
    with EventStore(url, **options) as store:
        pipe.send("begun")
        store.run(app.version(Noted, Closed) if newer else app.version(Noted))


@BROKERS
def test_nothing_is_skipped_while_versions_change_and_members_are_killed(
    world: World, kind: str, started: Started
) -> None:
    chance, enough = random.Random(7), threading.Event()

    def write() -> None:
        number = 0
        while not enough.is_set():
            number += 1
            act = world.close if chance.random() < 0.2 else world.note
            act(number, id=f"book-{chance.randrange(12)}")
            enough.wait(0.01)

    def member(*, newer: bool) -> None:
        process, pipe = started(work, world.url, world.options, world.app.run, newer)
        assert pipe.recv() == "begun"
        members.append((newer, process))

    def kill(*, newer: bool) -> None:
        index = next(i for i, (which, _) in enumerate(members) if which == newer)
        _, process = members.pop(index)
        process.kill()
        process.join()

    members: list[tuple[bool, BaseProcess]] = []
    writer = threading.Thread(target=write)
    writer.start()
    try:
        member(newer=False)
        member(newer=False)
        wait_for(lambda: len(world.receipts()) > 20)
        member(newer=True)
        wait_for(lambda: world.listed.generation == 2)
        kill(newer=False)
        member(newer=False)
        enough.wait(0.5)
        kill(newer=True)
        member(newer=True)
        enough.wait(0.5)
        kill(newer=False)
        member(newer=True)
        enough.wait(0.5)
    finally:
        enough.set()
        writer.join()
    kill(newer=False)
    world.have_receipts(wanted(world, kind))
    receipts = world.receipts()
    assert len(receipts) == len(set(receipts))


def wanted(world: World, kind: str) -> list[str]:
    """Ids of the events that must be handled: of those that came to be handled later, the ones that
    were not passed by then. Found out without subscriptions."""
    book = world.app.book.__entity_type__
    # No cut where nothing had been saved by then.
    cuts = dict[str, int]()
    for missed in world.listed.missed:
        assert missed.up_to is not None
        cuts.update(missed.up_to)
    ids = [id for id, _, _ in world.events(book, "test_generations.Noted")]
    if kind == "kafka":
        topics = KafkaTopics(world.options.get("kafka", ""))
        for records in topics.read([book]):
            for record in records:
                (event,) = events_in(record.value)
                cut = cuts.get(f"{record.topic}/{record.partition}", 0)
                if event.eventType.endswith("Closed") and record.offset >= committed_as(cut)[0]:
                    ids.append(event.id)
        return ids
    table = "SELECT position, event_id FROM " + ("events" if kind == "sqlite" else "event_log")
    positions = {str(id): int(str(position)) for position, id in rows(world.url, table)}
    for id, entity, _ in world.events(book, "test_generations.Closed"):
        partition = 0 if kind == "sqlite" else partition_of(entity, PARTITIONS)
        # What has no position yet comes behind all that have one.
        if positions.get(id, 1 << 62) > cuts.get(str(partition), 0):
            ids.append(id)
    return ids


# --- where a subscription begins, and what it passes ---------------------------------------------


@pytest.mark.database("kafka")
def test_from_now_leaves_out_nothing_of_a_topic_that_is_made_later(
    servers: Rig, tmp_path: Path
) -> None:
    app, topics = App(secrets.token_hex(4)), ExitStack()
    options = StoreOptions(kafka=servers.kafka.url, kafka_settings=QUICK)
    world = World(app, f"sqlite:///{tmp_path / 'events.db'}", options)
    letters = app.version(Noted, start="now")
    with world.store, world.other, topics:
        world.store.migrate()
        with at_work(world.store, letters):
            wait_for(lambda: bool(rows(world.url, "SELECT 1 FROM generations WHERE begun = 1")))
        topics.enter_context(kafka_world(servers, tmp_path / "events.db", app))
        noted = world.note(1, 2)
        wait_for(lambda: size(servers.kafka.url, app.book.__entity_type__) >= 2)
        with at_work(world.store, app.version(Noted, start="now")):
            world.have_receipts(noted)


@SQLITE
def test_what_a_subscription_passes_is_not_read_again(world: World) -> None:
    """Its events are rare: the position saved goes with what was read."""
    world.store.drain(world.one())
    for number in range(3):
        world.store.repository(world.app.book).create(AnyBook.close, number)
    world.store.drain(world.one())
    ((position,),) = rows(world.url, "SELECT position FROM subscriptions")
    assert position == 3


@SQLITE
def test_what_is_passed_is_saved_while_it_runs_too(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "_PASSED", 3)
    with at_work(world.store, world.one()):
        world.close(1, 2, 3, 4)
        wait_for(lambda: bool(rows(world.url, "SELECT 1 FROM subscriptions WHERE position >= 3")))


@SQLITE
def test_members_that_handle_different_things_take_turns(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One lost a handler and got another: each stops before what only the other one handles."""
    monkeypatch.setattr(generations, "AGAIN_S", 0.5)
    with (
        at_work(world.store, world.app.version(Noted)),
        at_work(world.other, world.app.version(Closed)),
    ):
        wait_for(world.is_grown)
        for number in range(2):
            world.have_receipts(world.note(number))
            world.have_receipts(world.close(number))
