"""A subscription that had the database as its broker goes on in Kafka, where it stopped."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator
from itertools import pairwise
from multiprocessing.connection import Connection
from urllib.parse import urlsplit

import pytest

from retold import Aggregate, Delivery, Event, EventStore, Retry, Subscription, applies
from retold.brokers.moving import move
from retold.cli import main
from retold.errors import MembersAtWork, MovedToKafka, NotMoved, UsageError
from tests.at_work import at_work
from tests.integration.test_subscriptions import Started, started
from tests.relay.processes import eventually, relay
from tests.rig import GivenKafka, Kafka, Rig
from tests.rig.databases import with_parts

__all__ = ["started"]  # a fixture

KINDS = pytest.mark.parametrize("kind", ["sqlite", "postgres18", "mariadb", "mysql8"])
ONE = pytest.mark.parametrize("kind", ["sqlite"])
QUICK = {"topic.metadata.refresh.interval.ms": "200"}
_MISSED_SOON = {"session.timeout.ms": "1000"}


class Noted(Event, name="test_moving.Noted"):
    number: int


class AnyBook(Aggregate, name="test_moving.Book"):
    def note(self, *numbers: int) -> None:
        for number in numbers:
            self.emit(Noted(number))

    @applies
    def _noted(self, event: Noted) -> None: ...


Seen = list[tuple[str, int]]


class Press:
    """A subscription to books of a test's own, on a database and then on Kafka."""

    def __init__(self, url: str, kafka: str) -> None:
        self.url, self.bootstrap = url, kafka
        self.name = f"press-{secrets.token_hex(4)}"

        class Book(AnyBook, name=f"test_moving.Book-{self.name}"):
            pass

        self._books = Book
        self.topic = Book.__entity_type__
        self.failing: set[int] = set()
        self.seen: Seen = []
        self.subscription = subscription(self.name, self.topic, self._note)
        self.store = EventStore(url)
        self.on_kafka = EventStore(url, kafka=kafka, kafka_settings=QUICK)

    def _note(self, entity: str, number: int) -> None:
        if number in self.failing:
            raise ZeroDivisionError("no paper")
        self.seen.append((entity, number))

    def write(self, book: str, *numbers: int) -> None:
        books = self.store.repository(self._books)
        for number in numbers:
            if books.exists(book):
                books.update(book, AnyBook.note, number)
            else:
                books.with_id(book).create(AnyBook.note, number)

    def of(self, book: str) -> list[int]:
        return [number for entity, number in self.seen if entity == book]

    def close(self) -> None:
        self.store.close()
        self.on_kafka.close()


def subscription(name: str, topic: str, note: Callable[[str, int], None]) -> Subscription:
    made = Subscription(name, lanes=4, retry=Retry(attempts=1), start="now")

    @made.on(Noted, of=topic)
    def handle(delivery: Delivery[Noted]) -> None:
        note(delivery.entity_id, delivery.event.number)

    return made


@pytest.fixture
def press(
    kind: str, servers: Rig, fresh_database: Callable[[str], str], kafka: Kafka | GivenKafka
) -> Iterator[Press]:
    url = fresh_database(kind)
    if kind != "sqlite":
        url = with_parts(servers[kind].url, database=urlsplit(url).path[1:])
    with EventStore(url) as store:
        store.migrate(polling=kind == "sqlite", subscriptions=True)
    made = Press(url, kafka.url)
    made.store.drain(made.subscription)  # it begins now
    yield made
    made.close()


@KINDS
def test_what_was_handled_does_not_come_again_and_what_was_not_comes_in_order(
    press: Press,
) -> None:
    books = [f"book-{n}" for n in range(5)]
    for book in books:
        press.write(book, 1, 2, 3)
    press.store.drain(press.subscription)
    handled, press.seen[:] = set(press.seen), []
    assert len(handled) == 15
    for book in books:
        press.write(book, 4, 5)  # which nobody handles yet
    with pytest.raises(NotMoved):
        press.on_kafka.drain(press.subscription)
    assert main(["move", press.name, "--database", press.url]) == 0
    with pytest.raises(MovedToKafka):
        press.store.drain(press.subscription)
    with relay(press.url, press.bootstrap), at_work(press.on_kafka, press.subscription):
        for book in books:
            press.write(book, 6)
        eventually(lambda: len(press.seen) == 15)
    for book in books:
        assert press.of(book) == [4, 5, 6]


@KINDS
def test_parked_events_come_along_and_their_entity_goes_on_behind_them(press: Press) -> None:
    press.failing = {2}
    for book in ("ann", "bob", "eve"):
        press.write(book, 1)
    press.write("ann", 2, 3)
    press.write("bob", 2)
    press.store.drain(press.subscription)
    assert main(["move", press.name, "--database", press.url]) == 0
    with relay(press.url, press.bootstrap), at_work(press.on_kafka, press.subscription):
        for book in ("ann", "bob", "eve"):
            press.write(book, 4)
        eventually(lambda: press.of("eve") == [1, 4])
        eventually(lambda: len(list(press.store.parked(press.name))) == 5)
        press.failing.clear()
        assert press.store.parked().retry(press.name) == 2
        eventually(lambda: not list(press.store.parked(press.name)))
        for book in ("ann", "bob"):
            press.write(book, 5)
        eventually(lambda: press.of("ann")[-1] == press.of("bob")[-1] == 5)
    assert press.of("ann") == [1, 2, 3, 4, 5]
    assert press.of("bob") == [1, 2, 4, 5]


def work(url: str, kafka: str | None, name: str, topic: str, pipe: Connection) -> None:
    """A member that tells what it handles."""
    lock = threading.Lock()

    def note(entity: str, number: int) -> None:
        with lock:
            pipe.send((entity, number))

    store = (
        EventStore(url, kafka=kafka, kafka_settings=QUICK | _MISSED_SOON)
        if kafka is not None
        else EventStore(url)
    )
    store.run(subscription(name, topic, note))


@KINDS
def test_members_that_are_killed_before_and_after_the_move_lose_nothing(
    press: Press, started: Started
) -> None:
    books = [f"book-{n}" for n in range(6)]
    seen: Seen = []

    def kill_after(kafka: str | None, count: int) -> None:
        process, pipe = started(work, press.url, kafka, press.name, press.topic)
        for _ in range(count):
            seen.append(pipe.recv())
        process.kill()
        process.join()
        try:
            while True:
                seen.append(pipe.recv())
        except EOFError:
            pass

    for number in range(1, 21):
        for book in books:
            press.write(book, number)
    kill_after(None, 40)
    assert main(["move", press.name, "--database", press.url]) == 0
    with relay(press.url, press.bootstrap):
        kill_after(press.bootstrap, 20)
        for number in range(21, 26):
            for book in books:
                press.write(book, number)
        kill_after(press.bootstrap, 5)
        with at_work(press.on_kafka, press.subscription):
            eventually(lambda: {(book, 25) for book in books} <= set(press.seen))
    seen += press.seen
    for book in books:
        own = [number for entity, number in seen if entity == book]
        assert list(dict.fromkeys(own)) == list(range(1, 26))
        # Only what a member that was killed had not saved comes again, and in order.
        assert sum(b <= a for a, b in pairwise(own)) <= 3


@ONE
def test_members_at_work_are_not_moved_under_their_hands(press: Press) -> None:
    press.write("ann", 1)
    with at_work(press.store, press.subscription):
        eventually(lambda: press.of("ann") == [1])
        with pytest.raises(MembersAtWork):
            press.store.driver.run(move(press.store.driver.dialect, press.name))
        press.write("ann", 2)
        eventually(lambda: press.of("ann") == [1, 2])


@ONE
def test_what_is_not_there_is_not_moved_and_twice_is_once(press: Press) -> None:
    dialect = press.store.driver.dialect
    with pytest.raises(UsageError, match="no subscription 'books'"):
        press.store.driver.run(move(dialect, "books"))
    for _ in range(2):
        assert press.store.driver.run(move(dialect, press.name)) == 0
