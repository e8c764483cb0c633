"""`retold verify`: every kind of problem is found, made by hand with a plain producer."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer, murmur2

from retold import EventStore
from retold.brokers.base import Published
from retold.brokers.kafka import KafkaTopics
from retold.cli import main
from retold.drivers import open_driver
from retold.relay.table import Table
from retold.relay.verification import PROBLEMS, Report, partition_of, verify
from retold.store.url import parse_url
from tests.conformance.raw import rows
from tests.relay.comparison import Found, read_topics
from tests.relay.processes import eventually, relay, size
from tests.relay.processes import verify as verify_command
from tests.relay.writing import Writer, writing
from tests.rig import GivenKafka, Kafka

_PARTITIONS = 4
_GOLDEN = Path(__file__).parent.parent / "golden/eventuate"
_admin: Any = import_module("confluent_kafka.admin")

Stored = tuple[object, ...]
"""event_id, event_type, event_data, entity_type, entity_id, metadata."""


class World:
    """A table on SQLite and its topic; what is published is up to the test."""

    def __init__(self, url: str, kafka: str) -> None:
        self.url = url
        self.kafka = kafka
        with EventStore(url) as store:
            store.migrate(polling=True)
        self.writer = Writer(url)
        self.topic = self.writer.topic
        self._producer = Producer({"bootstrap.servers": kafka, "linger.ms": 0})
        self.make_topic(self.topic)

    def make_topic(self, name: str, partitions: int = _PARTITIONS) -> None:
        admin = _admin.AdminClient({"bootstrap.servers": self.kafka})
        admin.create_topics([_admin.NewTopic(name, partitions, 1)])[name].result(30)

    def store(self, count: int) -> list[Stored]:
        """Events of two entities in the table."""
        made = self.writer.rows(count, entities=2)
        self.writer.insert(*made)
        return made

    def publish(self, *events: Stored, **different: Any) -> None:
        """Send events as the relay would, but for what is different."""
        for event_id, name, data, kind, entity, metadata in events:
            value = {
                "id": event_id,
                "entityId": entity,
                "entityType": kind,
                "eventData": data,
                "eventType": name,
            } | ({"metadata": metadata} if metadata else {})
            key = different.get("key", entity)
            value |= different.get("fields", {})
            partition = murmur2(str(entity).encode(), _PARTITIONS)
            self.send(
                different.get("topic", self.topic),
                different.get("partition", partition),
                str(key).encode(),
                different.get("value", json.dumps(value).encode()),
                different.get("timestamp", 0),
            )
        self._producer.flush(30)

    def send(
        self, topic: str, partition: int, key: bytes, value: bytes, timestamp: int = 0
    ) -> None:
        """timestamp: in milliseconds since the epoch, 0 for now."""
        failed = list[object]()
        self._producer.produce(
            topic,
            value,
            key,
            partition,
            on_delivery=lambda error, _: failed.append(error),
            timestamp=timestamp,
        )
        self._producer.flush(30)
        assert failed == [None]

    def verify(self, *, patience: float = 0, since: str = "") -> Report:
        with closing(open_driver(parse_url(self.url))) as driver:
            topics = KafkaTopics(self.kafka)
            return verify(Table(driver), topics, patience=patience, since=since)

    def problems(self) -> dict[str, int]:
        report = self.verify()
        assert report.examples.keys() == {kind for kind, n in report.problems.items() if n}
        return {kind: count for kind, count in report.problems.items() if count}


@pytest.fixture
def world(fresh_database: Callable[[str], str], kafka: Kafka | GivenKafka) -> World:
    return World(fresh_database("sqlite"), kafka.url)


def test_what_the_relay_published_is_sound(world: World) -> None:
    events = world.store(20)
    world.publish(*events)
    report = world.verify()
    assert report.sound
    assert (report.events, report.records) == (20, 20)
    assert report.problems == dict.fromkeys(PROBLEMS, 0)


def test_an_empty_table_without_topics_is_sound(
    fresh_database: Callable[[str], str], kafka: Kafka | GivenKafka
) -> None:
    with closing(open_driver(parse_url(fresh_database("sqlite")))) as driver:
        assert verify(Table(driver), KafkaTopics(kafka.url)).sound


# --- each kind of problem ------------------------------------------------------------------------


def test_a_missing_event_is_found(world: World) -> None:
    first, second, third, fourth = world.store(4)
    world.publish(first, third, fourth)
    report = world.verify()
    assert report.problems["missing"] == 1
    assert str(second[0]) in report.examples["missing"][0]
    assert world.problems() == {"missing": 1}


def test_events_whose_topic_does_not_exist_are_missing(world: World) -> None:
    Writer(world.url, world.topic + ".other").write(3)
    assert world.problems() == {"missing": 3}


def test_an_event_that_is_there_twice_is_found(world: World) -> None:
    events = world.store(6)
    world.publish(*events, events[-1], events[-1])
    assert world.problems() == {"duplicated": 2}


def test_an_older_event_again_is_twice_and_not_out_of_order(world: World) -> None:
    events = world.store(6)
    world.publish(*events, events[0])
    assert world.problems() == {"duplicated": 1}


def test_an_event_behind_a_later_one_is_found(world: World) -> None:
    events = world.store(6)  # of two entities in turn
    world.publish(*events[:2], *events[4:], *events[2:4])
    assert world.problems() == {"out of order": 2}


@pytest.mark.parametrize(
    "fields",
    [{"eventData": "{}"}, {"eventType": "x"}, {"metadata": "x"}, {"entityId": "x"}],
    ids=lambda fields: next(iter(fields)),
)
def test_an_altered_event_is_found(world: World, fields: dict[str, str]) -> None:
    first, second = world.store(2)
    world.publish(first)
    partition = murmur2(b"x", _PARTITIONS) if "entityId" in fields else None
    place = {} if partition is None else {"partition": partition}
    world.publish(second, fields=fields, **place)
    assert world.problems() == {"altered": 1}


def test_an_event_under_another_key_is_found(world: World) -> None:
    world.publish(*world.store(1), key="somebody")
    assert world.problems() == {"altered": 1}


def test_an_event_in_the_topic_of_another_type_is_found(world: World) -> None:
    other = World(world.url, world.kafka)
    (event,) = other.store(1)
    world.publish(*world.store(2))
    world.publish(event)
    assert world.problems() == {"in another topic": 1}


def test_an_event_in_another_partition_is_found_and_the_others_are_well(world: World) -> None:
    events = world.store(8)
    wrong = (murmur2(str(events[2][4]).encode(), _PARTITIONS) + 1) % _PARTITIONS
    world.publish(*events[:2])
    world.publish(events[2], partition=wrong)
    world.publish(*events[3:])
    assert world.problems() == {"in another partition": 1}


def test_an_event_that_the_table_does_not_have_is_found(world: World) -> None:
    world.publish(*world.store(2), *world.writer.rows(3))
    assert world.problems() == {"not in the table": 3}


@pytest.mark.parametrize("value", [b"", b"hello", b'{"id": 7}', b"\xff\x00", b"[]"])
def test_a_record_that_is_no_event_is_found(world: World, value: bytes) -> None:
    world.publish(*world.store(2))
    world.send(world.topic, 0, b"key", value)
    assert world.problems() == {"unreadable": 1}


def test_only_some_examples_are_kept(world: World) -> None:
    world.store(1_000)
    report = world.verify()
    assert report.problems["missing"] == 1_000
    assert len(report.examples["missing"]) == 10


# --- what is no problem --------------------------------------------------------------------------


def test_an_event_that_comes_late_is_waited_for(world: World) -> None:
    events = world.store(5)
    world.publish(*events[:2])
    coming = threading.Timer(0.3, world.publish, events[2:])
    coming.start()
    report = world.verify(patience=30)
    coming.join()
    assert report.sound
    assert report.records == 5


def test_an_event_that_comes_late_and_altered_is_found(world: World) -> None:
    (event,) = world.store(1)
    coming = threading.Timer(0.3, world.publish, (event,), {"fields": {"eventData": "{}"}})
    coming.start()
    assert world.verify(patience=30).problems["altered"] == 1
    coming.join()


def test_a_topic_that_is_made_late_is_counted_then(world: World) -> None:
    writer = Writer(world.url)
    events = writer.rows(4, entities=4)
    writer.insert(*events)

    def come() -> None:
        world.make_topic(writer.topic)
        world.publish(*events, topic=writer.topic)

    coming = threading.Timer(0.3, come)
    coming.start()
    report = world.verify(patience=30)
    coming.join()
    assert report.sound, report


def test_an_event_committed_after_the_view_is_no_stranger(world: World) -> None:
    """The view is older than the topics: what it lacks is looked for in the table as it is now."""
    world.publish(*world.store(3))
    later = world.writer.rows(2)

    class Late(Table):
        def entity_types(self) -> list[str]:
            world.writer.insert(*later)
            world.publish(*later)
            return super().entity_types()

    with closing(open_driver(parse_url(world.url))) as driver:
        report = verify(Late(driver), KafkaTopics(world.kafka))
    assert report.sound
    assert (report.events, report.records) == (3, 5)


def test_rows_that_eventuates_migrations_leave_are_left_out(world: World) -> None:
    world.publish(*world.store(1))
    Writer(world.url, "CDC-IGNORED").write(2)
    report = world.verify()
    assert report.sound
    assert report.events == 1


def test_since_leaves_out_what_is_older(world: World) -> None:
    old = [(f"{n:016x}-{n:016x}", *event[1:]) for n, event in enumerate(world.writer.rows(5), 1)]
    world.writer.insert(*old)
    world.publish(*old[:2])  # three are missing
    world.publish(*world.store(3))
    assert world.verify(since=f"{6:016x}").sound
    assert world.verify(since=f"{5:016x}").problems["missing"] == 1
    assert world.verify().problems["missing"] == 3


OLD = 1_600_000_000_000
NEW = 1_700_000_000_000
"""Milliseconds since the epoch."""


def made_at(world: World, moment: int, count: int) -> list[Stored]:
    """Events of a time in the table."""
    made = [
        (f"{moment + n:016x}-{n:016x}", *event[1:])
        for n, event in enumerate(world.writer.rows(count))
    ]
    world.writer.insert(*made)
    return made


def test_since_does_not_read_what_was_published_long_before(world: World) -> None:
    world.send(world.topic, 0, b"key", b"not even an event", timestamp=OLD)
    world.publish(*made_at(world, OLD, 3), timestamp=OLD)
    world.publish(*made_at(world, NEW, 3), timestamp=NEW)
    report = world.verify(since=f"{NEW:016x}")
    assert report.sound
    assert (report.events, report.records) == (3, 3)
    assert world.verify().problems["unreadable"] == 1


def test_since_reads_nothing_of_partitions_where_everything_is_older(world: World) -> None:
    world.send(world.topic, 0, b"key", b"not even an event", timestamp=OLD)
    report = world.verify(since=f"{NEW:016x}")
    assert report.sound
    assert report.records == 0


def test_since_finds_an_event_that_was_published_much_later(world: World) -> None:
    """After a resync, or when the relay was down."""
    world.publish(*made_at(world, OLD, 3), timestamp=NEW)
    report = world.verify(since=f"{OLD:016x}")
    assert report.sound
    assert report.records == 3


def test_since_finds_an_event_whose_clock_was_far_ahead(world: World) -> None:
    """Its record seems to be older than the event, by more than anybody expects."""
    world.publish(*made_at(world, NEW, 3), timestamp=OLD)
    world.publish(*made_at(world, NEW + 10, 3), timestamp=NEW)
    report = world.verify(since=f"{NEW:016x}")
    assert report.sound
    assert report.records == 6


class Renamed:
    """Topics under other names: those that Java used may be there from another run."""

    def __init__(self, topics: KafkaTopics, names: Mapping[str, str]) -> None:
        self._topics = topics
        self._names = names
        self._old = {new: old for old, new in names.items()}

    def partitions(self, topics: Iterable[str]) -> dict[str, int]:
        counts = self._topics.partitions(
            self._names[name] for name in topics if name in self._names
        )
        return {self._old[name]: count for name, count in counts.items()}

    def offsets_at(self, topics: Iterable[str], time: int) -> dict[tuple[str, int], int]:
        return {}

    def read(
        self, topics: Iterable[str], behind: Mapping[tuple[str, int], int] | None = None
    ) -> Iterator[Sequence[Published]]:
        for some in self._topics.read(self._names[name] for name in topics if name in self._names):
            yield [record._replace(topic=self._old[record.topic]) for record in some]


def test_what_java_published_is_sound(world: World) -> None:
    """Single records, and binary batches of one or several events."""
    tables: dict[str, list[dict[str, Any]]] = json.loads(
        (_GOLDEN / "mariadb_rows.json").read_text()
    )
    published: list[dict[str, Any]] = json.loads((_GOLDEN / "mariadb_records.json").read_text())
    kinds = sorted({record["topic"] for record in published})
    names = {kind: f"{world.topic}.{number}" for number, kind in enumerate(kinds)}
    for name in names.values():
        world.make_topic(name)
    texts = list[bytes]()
    for record in published:
        texts.append(record.get("value", "").encode() or bytes.fromhex(record["value_hex"]))
        key = record["key"].encode()
        world.send(names[record["topic"]], record["partition"], key, texts[-1])
    columns = ("event_id", "event_type", "event_data", "entity_type", "entity_id", "metadata")
    stored = [
        tuple(event[column] for column in columns)
        for event in tables["events"]
        if any(event["event_id"].encode() in text for text in texts)
    ]
    world.writer.insert(*stored)
    with closing(open_driver(parse_url(world.url))) as driver:
        report = verify(Table(driver), Renamed(KafkaTopics(world.kafka), names), patience=0)
    assert report.sound, report
    assert report.events == report.records == len(stored) > 40


@pytest.mark.parametrize("key", [b"", b"a", b"ab", b"abc", b"abcd", b"\xff\x80", "käyß".encode()])
def test_the_partition_is_the_one_that_kafkas_client_computes(key: bytes) -> None:
    for count in (1, 2, 12, 50):
        assert partition_of(key, count) == murmur2(key, count)


# --- while everything goes on --------------------------------------------------------------------


def test_it_is_sound_while_relay_and_writers_are_at_work(world: World) -> None:
    with relay(world.url, world.kafka) as process, writing(world.url, world.topic):
        eventually(lambda: size(world.kafka, world.topic) > 200)
        for report in [world.verify(patience=30) for _ in range(3)]:
            assert report.sound, report
            assert report.records >= report.events > 100
        assert process.terminate() == 0


# --- the command ---------------------------------------------------------------------------------


def test_exit_codes_and_json(world: World) -> None:
    events = world.store(3)
    world.publish(*events[:2])
    found = verify_command(world.url, world.kafka, "--patience", "0")
    assert (found["code"], found["sound"], found["events"], found["records"]) == (1, False, 3, 2)
    assert found["problems"] == dict.fromkeys(PROBLEMS, 0) | {"missing": 1}
    assert str(events[2][0]) in found["examples"]["missing"][0]
    world.publish(events[2])
    found = verify_command(world.url, world.kafka)
    assert (found["code"], found["sound"], found["examples"]) == (0, True, {})


def test_words_for_people(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    events = world.store(12)
    world.publish(events[0])
    arguments = ["verify", "--database", world.url, "--kafka", world.kafka, "--patience", "0"]
    assert main(arguments) == 1
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[:2] == ["12 events in the table, 1 in the topics", "11 missing:"]
    assert lines[-2:] == ["  …", "Publish what is missing with: retold relay --resync"]
    assert printed.err == ""
    world.publish(*events[1:])
    assert main(arguments) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "all is well"


def test_since_is_a_time(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.store(2)
    arguments = ["verify", "--database", world.url, "--kafka", world.kafka, "--patience", "0"]
    assert main([*arguments, "--since", "2999-01-01T00:00Z"]) == 0
    assert main([*arguments, "--since", "2001-01-01"]) == 1
    assert main([*arguments, "--since", "yesterday"]) == 2
    assert "write a time such as" in capsys.readouterr().err


def by_place(records: Iterable[Found]) -> list[Found]:
    """Partitions are read in no order; within each the order stays."""
    return sorted(records, key=lambda record: record.partition)


def test_nothing_is_written(world: World) -> None:
    world.publish(*world.store(3))
    before = rows(world.url, "SELECT * FROM events ORDER BY position")
    records = by_place(read_topics(world.kafka, [world.topic]))
    assert main(["verify", "--database", world.url, "--kafka", world.kafka]) == 0
    assert rows(world.url, "SELECT * FROM events ORDER BY position") == before
    assert by_place(read_topics(world.kafka, [world.topic])) == records
