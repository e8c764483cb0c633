"""Failing handlers on Kafka: what parks, and that who lost a partition cannot park."""

from __future__ import annotations

import json
import logging
import os
import secrets
import signal
from collections.abc import Callable, Iterator
from contextlib import closing
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from retold import Aggregate, Delivery, Event, EventStore, Retry, Subscription, applies
from retold.brokers.kafka_claims import Claims
from retold.brokers.kafka_places import Share
from retold.brokers.unreadable import UNREADABLE
from retold.cli import main
from retold.errors import AssignmentLost, UnreadableRecord
from retold.ids import EventIds
from retold.store import parked
from retold.store.driver import Plan, Statement
from retold.store.parked import Failure, ParkedEvent, Queue
from tests.at_work import at_work
from tests.consuming.publishing import Topic, batch, behind, event, eventually, take
from tests.integration.test_subscriptions import Started, started
from tests.rig import GivenKafka, Kafka

__all__ = ["started"]  # a fixture


class Noted(Event, name="test_parking_on_kafka.Noted"):
    number: int


class AnyBook(Aggregate, name="test_parking_on_kafka.Book"):
    @applies
    def _noted(self, event: Noted) -> None: ...


class Press:
    """A subscription on a topic of its own whose handler fails on some numbers."""

    def __init__(self, bootstrap: str, folder: Path, *failing: int, **settings: object) -> None:
        self.bootstrap = bootstrap
        self.topic = f"press-{secrets.token_hex(6)}"
        self.store = EventStore(f"sqlite:///{folder}/press.db", kafka=bootstrap)
        self.failing = set(failing)
        self.seen: list[tuple[str, int]] = []
        self.subscription = Subscription(
            self.topic,
            **{"retry": Retry(attempts=1), **settings},  # type: ignore[arg-type]
        )
        self.subscription.on(Noted, of=self.topic)(self.note)
        self._producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 0})
        self._ids = EventIds()

    def note(self, delivery: Delivery[Noted]) -> None:
        number = delivery.event.number
        if number in self.failing:
            raise ZeroDivisionError("no paper")
        self.seen.append((delivery.entity_id, number))

    def publish(self, key: str, *numbers: int) -> None:
        for number in numbers:
            (id,), _ = self._ids.mint(1)
            value = {
                "id": id,
                "entityId": key,
                "entityType": self.topic,
                "eventData": json.dumps({"number": number}),
                "eventType": "test_parking_on_kafka.Noted",
            }
            self.put(json.dumps(value).encode(), key.encode())

    def put(self, value: bytes, key: bytes | None, **headers: bytes) -> None:
        self._producer.produce(self.topic, value, key, headers=list(headers.items()))
        assert self._producer.flush(30) == 0

    def event_id(self) -> str:
        """One that is behind those before, and before those behind."""
        return self._ids.mint(1)[0][0]

    def drain(self) -> int:
        return self.store.drain(self.subscription)

    def queue(self) -> list[ParkedEvent]:
        return list(self.store.parked(self.topic))

    def of(self, key: str) -> list[int]:
        return [number for entity, number in self.seen if entity == key]


@pytest.fixture
def topic(kafka: Kafka | GivenKafka) -> Topic:
    return Topic(kafka.url, 1)


@pytest.fixture
def press(kafka: Kafka | GivenKafka, tmp_path: Path) -> Iterator[Callable[..., Press]]:
    made: list[Press] = []

    def make(*failing: int, **settings: object) -> Press:
        made.append(Press(kafka.url, tmp_path, *failing, **settings))
        return made[-1]

    yield make
    for one in made:
        one.store.close()


def test_an_entity_that_fails_is_parked_in_order_and_comes_back_so(
    press: Callable[..., Press],
) -> None:
    one = press(2)
    one.publish("ann", 1, 2, 3)
    one.publish("bob", 4)
    one.drain()
    assert (one.of("ann"), one.of("bob")) == ([1], [4])
    assert [event.waits for event in one.queue()] == [False, True]
    one.failing.clear()
    assert one.store.parked().retry(one.topic) == 1
    one.publish("ann", 5)
    one.drain()
    assert one.of("ann") == [1, 2, 3, 5]
    assert one.queue() == []


def test_a_record_that_is_no_event_parks_and_what_follows_of_its_key_waits_behind(
    press: Callable[..., Press], capsys: pytest.CaptureFixture[str]
) -> None:
    one = press()
    one.publish("ann", 1)
    one.put(b"no event \xff", b"ann")
    one.publish("ann", 2, 3)
    one.publish("bob", 4)
    one.drain()
    assert (one.of("ann"), one.of("bob")) == ([1], [4])
    broken, *waiting = one.queue()
    assert (broken.entity_type, broken.entity_id) == (one.topic, "ann")
    assert broken.event_type == UNREADABLE
    assert "UnreadableRecord" in (broken.error or "")
    assert all(event.waits for event in waiting)
    at = ["--database", str(one.store._url)]
    assert main(["parked", "show", one.topic, broken.event_id, *at]) == 0
    assert "value_base64" in capsys.readouterr().out
    assert main(["parked", "retry", one.topic, broken.event_id, *at]) == 0
    one.drain()
    assert [event.attempts for event in one.queue()] == [2, 0, 0]
    assert main(["parked", "skip", one.topic, broken.event_id, *at]) == 0
    one.publish("ann", 5)
    one.drain()
    assert one.of("ann") == [1, 2, 3, 5]
    assert one.queue() == []


def test_a_record_that_is_no_event_joins_a_queue_where_it_stood(
    press: Callable[..., Press],
) -> None:
    one = press(1)
    one.publish("ann", 1)
    one.put(b"broken", b"ann")
    one.publish("ann", 2)
    one.put(b"broken too", b"ann", id=one.event_id().encode())
    one.publish("ann", 3)
    one.put(b"broken at the end", b"ann")
    one.drain()
    data = [json.loads(event.data) for event in one.queue()]
    assert [each.get("number") or each["value"] for each in data] == [
        *(1, "broken", 2, "broken too", 3, "broken at the end")
    ]


def test_a_record_that_comes_again_is_parked_once(press: Callable[..., Press]) -> None:
    one = press(1)
    one.put(b"first", b"bob")
    one.publish("ann", 1)
    one.put(b"second", b"ann")
    one.publish("ann", 2)
    one.drain()
    before = one.queue()
    # As after a crash between parking and the commit.
    settings = {"bootstrap.servers": one.bootstrap, "group.id": one.topic}
    with closing(Consumer(settings)) as consumer:
        consumer.commit(offsets=[TopicPartition(one.topic, 0, 0)], asynchronous=False)
    one.drain()
    assert one.queue() == before


def test_a_record_without_a_key_parks_alone(press: Callable[..., Press]) -> None:
    one = press()
    one.put(b"whose is it?", None)
    one.put(b"and this?", b"\xff")
    one.publish("ann", 1)
    one.drain()
    assert one.of("ann") == [1]
    first, second = one.queue()
    assert first.entity_id != second.entity_id
    one.store.parked().skip(one.topic, first.event_id)
    one.drain()
    assert one.queue() == [second]


def test_a_broken_batch_parks_whole(press: Callable[..., Press]) -> None:
    one = press()
    whole = batch([event("ann", 1), event("ann", 2)])
    one.put(whole[:-5], b"ann")
    one.publish("ann", 3)
    one.drain()
    assert one.of("ann") == []
    broken, waiting = one.queue()
    assert broken.event_type == UNREADABLE
    assert waiting.waits


def test_who_wants_to_stop_stops_before_a_record_that_is_no_event(
    press: Callable[..., Press],
) -> None:
    one = press(on_error="stop")
    one.publish("ann", 1)
    one.put(b"no event", b"ann")
    one.publish("ann", 2)
    for _ in range(2):
        with pytest.raises(UnreadableRecord):
            one.drain()
    assert one.of("ann") == [1]
    assert one.queue() == []


# --- members that stand still --------------------------------------------------------------------

_MISSED_S = {"session.timeout.ms": "1000"}


def park_late(name: str, database: str, bootstrap: str, pipe: Connection) -> None:
    """A member that is stopped between taking a message and parking it."""
    topic = Topic(bootstrap, 1, exists=False, database=database)
    topic.name = name
    with closing(topic.member(settings=_MISSED_S)) as consumer, EventStore(database) as store:
        (message,) = take(consumer, 1, limit=1)
        owned = consumer.owned(message.partition)
        pipe.send("taken")
        pipe.recv()
        queue = Queue("letters", message.topic, message.key)
        failed = Failure("no paper", "", 1)
        parking = parked.park(
            store.driver.dialect.queries,
            queue,
            parked.Event(message.event_id, message.event_type, message.data, None),
            failed,
            message.partition,
            message.position,
            owned,
            10,
        )
        try:
            store.driver.run(parking)
        except AssignmentLost:
            pipe.send("refused")
        else:
            pipe.send("parked")


def test_a_member_that_stood_still_cannot_park_what_its_successor_handled(
    kafka: Kafka | GivenKafka, started: Started
) -> None:
    topic = Topic(kafka.url, 1)
    topic.publish(1)
    process, pipe = started(park_late, topic.name, topic.database, kafka.url)
    assert pipe.recv() == "taken"
    os.kill(process.pid or 0, signal.SIGSTOP)
    with closing(topic.member()) as successor, EventStore(topic.database) as store:
        successor.commit(behind(take(successor, 1)))
        os.kill(process.pid or 0, signal.SIGCONT)
        pipe.send("go on")
        assert pipe.recv() == "refused"
        assert list(store.parked()) == []


def fail_late(name: str, database: str, bootstrap: str, pipe: Connection) -> None:
    """A subscription that is stopped in a handler, which fails when it goes on."""
    store = EventStore(database, kafka=bootstrap, kafka_settings=_MISSED_S)
    subscription = Subscription(name, retry=Retry(attempts=1))

    @subscription.on(Noted, of=name)
    def note(delivery: Delivery[Noted]) -> None:
        pipe.send("handling")
        pipe.recv()
        raise ZeroDivisionError

    class Tell(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "took over" in record.getMessage():
                pipe.send("refused")

    logging.getLogger("retold.subscriptions").addHandler(Tell())
    store.run(subscription)


def test_a_handler_that_fails_after_its_member_stood_still_parks_nothing(
    press: Callable[..., Press], started: Started
) -> None:
    one = press()
    one.publish("ann", 1)
    database = f"sqlite:///{one.store._url.database}"
    process, pipe = started(fail_late, one.topic, database, one.bootstrap)
    assert pipe.recv() == "handling"
    os.kill(process.pid or 0, signal.SIGSTOP)
    with at_work(one.store, one.subscription):
        eventually(lambda: one.of("ann") == [1])
        os.kill(process.pid or 0, signal.SIGCONT)
        pipe.send("go on")
        assert pipe.recv() == "refused"
        one.publish("ann", 2)
        eventually(lambda: one.of("ann") == [1, 2])
    assert one.queue() == []


def test_a_stale_claim_does_not_displace_a_later_one(topic: Topic) -> None:
    """Whoever stood still between reading the claims and Kafka's answer."""
    with EventStore(topic.database) as store:
        stale, later = (Claims(store.driver, "letters") for _ in range(2))
        at: tuple[str, int] = (topic.name, 0)
        read = stale.read([at])
        own: dict[tuple[str, int], Share] = {at: Share(at, 5, 5, 5)}
        later.take(later.read([at]), own)
        with pytest.raises(AssignmentLost):
            stale.take(read, {at: Share(at, -1, -1, -1)})
        plan = _one(later.owned(read[at].number, own[at]))
        assert store.driver.run(plan) == [(5,)]


def _one(statement: Statement) -> Plan[list[tuple[int]]]:
    (found,) = yield [statement]
    return [tuple(row) for row in found.rows]


def test_a_partition_keeps_its_number_when_the_topics_wanted_change(topic: Topic) -> None:
    with EventStore(topic.database) as store:
        first = Claims(store.driver, "letters").read([("b", 0), ("b", 1)])
        second = Claims(store.driver, "letters").read([("a", 0), ("b", 1), ("c", 7)])
        assert second["b", 1] == first["b", 1]
        numbers = {at: claim.number for at, claim in (first | second).items()}
        assert sorted(numbers.values()) == [0, 1, 2, 3]
