"""The publisher and the reader of topics, on a real broker."""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaError, Message, Producer, TopicPartition, murmur2

from retold.brokers.base import Published, Record
from retold.brokers.kafka import KafkaPublisher, KafkaTopics, positions_topic
from retold.errors import (
    BrokerRefused,
    BrokerUnavailable,
    Fenced,
    PositionMissing,
    RecordTooLarge,
)
from tests.relay.publishing import FENCED, numbered
from tests.rig import GivenKafka, Kafka
from tests.rig.databases import PASSWORD

# Its types are incomplete.
_admin: Any = import_module("confluent_kafka.admin")

Broker = Kafka | GivenKafka
Begin = Callable[..., KafkaPublisher]


@pytest.fixture
def topic() -> str:
    return f"test.{secrets.token_hex(6)}"


@pytest.fixture
def name() -> str:
    return f"test-{secrets.token_hex(6)}"


@pytest.fixture
def new(kafka: Broker, name: str) -> Iterator[Begin]:
    """Makes a publisher of the relay `name`."""
    made: list[KafkaPublisher] = []

    def make(settings: Mapping[str, str] | None = None, **options: Any) -> KafkaPublisher:
        made.append(KafkaPublisher(name, kafka.url, settings, **options))
        return made[-1]

    yield make
    for publisher in made:
        publisher.close()


@pytest.fixture
def publisher(new: Begin, topic: str) -> KafkaPublisher:
    """A publisher that has begun its first epoch, with `topic` made."""
    publisher = new()
    assert publisher.begin() is None
    publisher.partitions([topic])
    return publisher


@pytest.fixture
def admin(kafka: Broker) -> Any:
    return _admin.AdminClient({"bootstrap.servers": kafka.url})


def committed(kafka: Broker, topic: str) -> list[Message]:
    """What a reader of committed records finds, without any of the project's code."""
    consumer = Consumer(
        {
            "bootstrap.servers": kafka.url,
            "group.id": secrets.token_hex(8),
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
            "auto.offset.reset": "earliest",
        }
    )
    partitions = consumer.list_topics(topic, timeout=10).topics[topic].partitions
    consumer.assign([TopicPartition(topic, number, 0) for number in partitions])
    found: list[Message] = []
    ended: set[int | None] = set()
    while len(ended) < len(partitions):
        for message in consumer.consume(10_000, 0.1):
            error = message.error()
            if error is None:
                found.append(message)
            else:
                assert error.code() == KafkaError._PARTITION_EOF, error
                ended.add(message.partition())
    consumer.close()
    return found


def numbers(kafka: Broker, topic: str) -> list[int]:
    """The committed numbers, sorted; each key's must lie in one partition, in order."""
    by_key: dict[object, list[tuple[object, int]]] = defaultdict(list)
    for message in committed(kafka, topic):
        by_key[message.key()].append((message.partition(), int(message.value() or b"")))
    for found in by_key.values():
        assert len({partition for partition, _ in found}) == 1
        assert found == sorted(found)
    return sorted(number for found in by_key.values() for _, number in found)


def reader(kafka: Broker, **options: Any) -> KafkaTopics:
    return KafkaTopics(kafka.url, **options)


def read(kafka: Broker, topic: str, **options: Any) -> list[Published]:
    return [record for some in reader(kafka).read([topic], **options) for record in some]


def raw_producer(kafka: Broker, transactional_id: str) -> Producer:
    producer = Producer({"bootstrap.servers": kafka.url, "transactional.id": transactional_id})
    producer.init_transactions(30)
    return producer


def append(kafka: Broker, topic: str, *records: tuple[bytes, bytes | None]) -> None:
    """Write records without a transaction."""
    producer = Producer({"bootstrap.servers": kafka.url})
    for key, value in records:
        producer.produce(topic, value, key)
    assert producer.flush(30) == 0


def finish(asked: Mapping[Any, Any]) -> None:
    """Wait for an administrator's calls."""
    for future in asked.values():
        future.result(30)


# --- epochs and checkpoints -----------------------------------------------------------------------


def test_an_epoch_begins_with_the_checkpoint_of_the_last_transaction(
    new: Begin, publisher: KafkaPublisher, topic: str
) -> None:
    publisher.publish(numbered(topic, 0, 3), b"three")
    publisher.publish([], b"four")
    assert publisher.begin() == b"four"
    assert new().begin() == b"four"


def test_records_arrive_with_key_value_headers_and_in_order(
    kafka: Broker, publisher: KafkaPublisher, topic: str
) -> None:
    records = numbered(topic, 0, 500)
    publisher.publish(records[:100], b"100")
    publisher.publish(records[100:], b"500")
    assert numbers(kafka, topic) == list(range(500))
    message = next(one for one in committed(kafka, topic) if one.value() == b"77")
    assert message.key() == records[77].key
    assert message.headers() == records[77].headers


def test_records_lie_where_javas_client_would_put_them(
    kafka: Broker, publisher: KafkaPublisher, topic: str
) -> None:
    javas = {b"foobar": -790332482, b"abc": 479470107, b"21": -973932308}
    publisher.publish([Record(topic, key, b"{}", []) for key in javas], b"1")
    assert {message.key(): message.partition() for message in committed(kafka, topic)} == {
        key: (value & 0x7FFFFFFF) % 12 for key, value in javas.items()
    }


def test_one_transaction_spans_topics(kafka: Broker, publisher: KafkaPublisher, topic: str) -> None:
    publisher.publish(numbered(topic, 0, 5) + numbered(f"{topic}.b", 0, 5), b"5")
    assert numbers(kafka, topic) == numbers(kafka, f"{topic}.b") == list(range(5))


def test_an_earlier_publisher_of_the_name_is_fenced_and_makes_nothing_visible(
    kafka: Broker, new: Begin, publisher: KafkaPublisher, topic: str
) -> None:
    publisher.publish(numbered(topic, 0, 2), b"2")
    later = new()
    assert later.begin() == b"2"
    with pytest.raises(Fenced):
        publisher.publish(numbered(topic, 2, 2), b"4")
    later.publish(numbered(topic, 2, 1), b"3")
    assert numbers(kafka, topic) == [0, 1, 2]
    assert later.begin() == b"3"


def test_publishers_of_other_names_do_not_meet(
    kafka: Broker, publisher: KafkaPublisher, topic: str, name: str
) -> None:
    other = KafkaPublisher(f"{name}-b", kafka.url)
    assert other.begin() is None
    publisher.publish(numbered(topic, 0, 1), b"mine")
    other.publish(numbered(topic, 1, 1), b"other's")
    assert (publisher.begin(), other.begin()) == (b"mine", b"other's")
    assert numbers(kafka, topic) == [0, 1]


def test_a_checkpoint_is_found_behind_any_number_of_aborted_ones(
    kafka: Broker, publisher: KafkaPublisher, name: str
) -> None:
    publisher.publish([], b"the last")
    producer = raw_producer(kafka, f"retold-relay-{name}")
    for number in range(40):
        producer.begin_transaction()
        producer.produce(positions_topic(name), b"aborted %d" % number, name.encode())
        producer.flush(10)
        producer.abort_transaction(10)
    assert publisher.begin() == b"the last"


def test_a_first_transaction_that_was_never_committed_leaves_a_first_start(
    kafka: Broker, new: Begin, publisher: KafkaPublisher, name: str
) -> None:
    producer = raw_producer(kafka, f"retold-relay-{name}")
    producer.begin_transaction()
    producer.produce(positions_topic(name), b"never", name.encode())
    producer.flush(10)
    del producer
    assert new().begin() is None


def test_a_deleted_beginning_of_the_positions_is_no_first_start(
    new: Begin, name: str, admin: Any
) -> None:
    positions = positions_topic(name)
    finish(admin.create_topics([_admin.NewTopic(positions, 1, 1)]))
    publisher = new()
    publisher.begin()
    publisher.publish([], b"1")
    finish(admin.delete_records([TopicPartition(positions, 0, -1)]))
    with pytest.raises(PositionMissing, match="beginning") as caught:
        publisher.begin()
    assert (caught.value.name, caught.value.topic) == (name, positions)


def test_a_deleted_position_is_no_first_start(
    kafka: Broker, publisher: KafkaPublisher, name: str
) -> None:
    publisher.publish([], b"1")
    append(kafka, positions_topic(name), (name.encode(), None))
    with pytest.raises(PositionMissing, match="deleted"):
        publisher.begin()


def test_somebody_elses_records_in_the_topic_of_positions_are_no_first_start(
    kafka: Broker, publisher: KafkaPublisher, name: str
) -> None:
    append(kafka, positions_topic(name), (b"another", b"1"))
    with pytest.raises(PositionMissing):
        publisher.begin()


def test_the_topic_of_positions_has_one_partition_and_is_compacted(
    kafka: Broker, publisher: KafkaPublisher, name: str, admin: Any
) -> None:
    positions = positions_topic(name)
    assert reader(kafka).partitions([positions]) == {positions: 1}
    settings = configuration(admin, positions)
    assert (settings["cleanup.policy"], settings["segment.ms"]) == ("compact", "600000")


def test_a_topic_of_positions_with_several_partitions_is_refused(
    new: Begin, name: str, admin: Any
) -> None:
    finish(admin.create_topics([_admin.NewTopic(positions_topic(name), 3, 1)]))
    with pytest.raises(BrokerRefused, match="3 partitions"):
        new().begin()


# --- topics ---------------------------------------------------------------------------------------


def configuration(admin: Any, topic: str) -> dict[str, str]:
    resource = _admin.ConfigResource(_admin.ResourceType.TOPIC, topic)
    found = admin.describe_configs([resource])[resource].result(10)
    return {key: entry.value for key, entry in found.items()}


def test_a_missing_topic_is_made_to_keep_everything(new: Begin, topic: str, admin: Any) -> None:
    publisher = new(partitions=5)
    publisher.begin()
    assert publisher.partitions([topic]) == {topic: 5}
    settings = configuration(admin, topic)
    assert (settings["cleanup.policy"], settings["retention.ms"]) == ("delete", "-1")


def test_an_existing_topic_is_used_as_it_is(
    kafka: Broker, publisher: KafkaPublisher, topic: str, admin: Any
) -> None:
    finish(admin.create_topics([_admin.NewTopic(f"{topic}.b", 3, 1)]))
    assert publisher.partitions([topic, f"{topic}.b"]) == {topic: 12, f"{topic}.b": 3}
    publisher.publish(numbered(f"{topic}.b", 0, 20), b"20")
    assert numbers(kafka, f"{topic}.b") == list(range(20))


def test_two_relays_that_make_a_topic_at_once_find_the_same(
    kafka: Broker, publisher: KafkaPublisher, topic: str
) -> None:
    others = [KafkaPublisher(f"unused-{number}", kafka.url) for number in range(4)]
    found: list[dict[str, int]] = []

    def look(one: KafkaPublisher) -> None:
        found.append(one.partitions([f"{topic}.b"]))

    threads = [threading.Thread(target=look, args=[one]) for one in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [{f"{topic}.b": 12}] * 4


def test_an_increase_of_partitions_moves_no_key(
    kafka: Broker, new: Begin, topic: str, admin: Any
) -> None:
    publisher = new({"topic.metadata.refresh.interval.ms": "20"})
    publisher.begin()
    publisher.publish(numbered(topic, 0, 50), b"50")
    finish(admin.create_partitions([_admin.NewPartitions(topic, 40)]))
    for first in range(50, 1050, 10):
        publisher.publish(numbered(topic, first, 10), b"%d" % (first + 10))
    assert numbers(kafka, topic) == list(range(1050))


def test_a_topics_name_that_kafka_does_not_allow_is_refused(publisher: KafkaPublisher) -> None:
    with pytest.raises(BrokerRefused, match=r"bank/Account"):
        publisher.partitions(["bank/Account"])


def test_more_replicas_than_brokers_are_refused(new: Begin, topic: str) -> None:
    publisher = new(replication=3)
    with pytest.raises(BrokerRefused, match=topic):
        publisher.partitions([topic])


def test_asking_for_topics_never_makes_one(kafka: Broker, topic: str, admin: Any) -> None:
    assert reader(kafka).partitions([topic]) == {}
    assert read(kafka, topic) == []
    assert topic not in admin.list_topics(timeout=10).topics


# --- what Kafka refuses ---------------------------------------------------------------------------


def large(topic: str, event_id: str, size: int) -> Record:
    return Record(topic, b"ann", secrets.token_bytes(size), [("id", event_id.encode())])


def insist(publisher: KafkaPublisher, records: list[Record], checkpoint: bytes) -> None:
    """Publish as a relay does: after a failure that may pass, in a new epoch."""
    for _ in range(5):
        try:
            return publisher.publish(records, checkpoint)
        except BrokerUnavailable:
            publisher.begin()
    raise AssertionError("it goes on failing")


@pytest.mark.parametrize("settings", [{}, {"message.max.bytes": "1000000"}])
def test_a_record_too_large_is_named_and_nothing_is_visible(
    kafka: Broker, new: Begin, topic: str, settings: dict[str, str]
) -> None:
    publisher = new(settings)
    publisher.begin()
    publisher.publish(numbered(topic, 0, 1), b"1")
    records = [*numbered(topic, 1, 50), large(topic, "0018-02", 2_000_000), *numbered(topic, 51, 9)]
    with pytest.raises(RecordTooLarge) as caught:
        insist(publisher, records, b"61")
    assert caught.value.event_id == "0018-02"
    assert (caught.value.entity_type, caught.value.entity_id) == (topic, "ann")
    assert numbers(kafka, topic) == [0]
    assert publisher.begin() == b"1"


def test_records_that_are_too_large_only_together_are_published_in_smaller_batches(
    kafka: Broker, publisher: KafkaPublisher, topic: str, admin: Any
) -> None:
    small = _admin.NewTopic(f"{topic}.b", 1, 1, config={"max.message.bytes": "20000"})
    finish(admin.create_topics([small]))
    records = [
        record._replace(headers=[("id", b"x" * 900)]) for record in numbered(f"{topic}.b", 0, 200)
    ]
    insist(publisher, records, b"200")
    assert numbers(kafka, f"{topic}.b") == list(range(200))
    assert publisher.begin() == b"200"


def test_a_topic_that_is_gone_is_named(publisher: KafkaPublisher, topic: str, admin: Any) -> None:
    finish(admin.create_topics([_admin.NewTopic(f"{topic}.b", 1, 1)]))
    publisher._counts[f"{topic}.b"] = 40
    with pytest.raises(BrokerRefused, match=f"{topic}.b"):
        publisher.publish(
            [Record(f"{topic}.b", b"key-%d" % number, b"", []) for number in range(40)], b""
        )


# --- permissions ----------------------------------------------------------------------------------


def grants(user: str, *given: tuple[str, str, str, str]) -> list[Any]:
    """Of: the kind of resource, its name, LITERAL or PREFIXED, the operation."""
    return [
        _admin.AclBinding(
            getattr(_admin.ResourceType, kind),
            resource,
            getattr(_admin.ResourcePatternType, pattern),
            f"User:{user}",
            "*",
            getattr(_admin.AclOperation, operation),
            _admin.AclPermissionType.ALLOW,
        )
        for kind, resource, pattern, operation in given
    ]


_LEAST = [
    ("TRANSACTIONAL_ID", "retold-relay-{name}", "LITERAL", "DESCRIBE"),
    ("TRANSACTIONAL_ID", "retold-relay-{name}", "LITERAL", "WRITE"),
    ("TOPIC", "retold.relay.{name}", "LITERAL", "DESCRIBE"),
    ("TOPIC", "retold.relay.{name}", "LITERAL", "CREATE"),
    ("TOPIC", "retold.relay.{name}", "LITERAL", "READ"),
    ("TOPIC", "retold.relay.{name}", "LITERAL", "WRITE"),
    ("TOPIC", "{topic}", "PREFIXED", "DESCRIBE"),
    ("TOPIC", "{topic}", "PREFIXED", "CREATE"),
    ("TOPIC", "{topic}", "PREFIXED", "READ"),
    ("TOPIC", "{topic}", "PREFIXED", "WRITE"),
]


def least(topic: str, name: str, without: str = "") -> list[Any]:
    return grants(
        "relay",
        *(
            (kind, resource.format(topic=topic, name=name), pattern, operation)
            for kind, resource, pattern, operation in _LEAST
            if f"{resource} {operation}" != without
        ),
    )


def grant(kafka: Broker, admin: Any, given: list[Any], *described: str) -> None:
    """Give the user `relay` permissions; they count a moment later."""
    finish(admin.create_acls(given))
    topics = KafkaTopics(*kafka.login("relay"))
    while True:
        with contextlib.suppress(BrokerRefused):
            topics.partitions(described)
            return


def test_a_relay_runs_with_the_least_permissions(
    kafka: Broker, admin: Any, topic: str, name: str
) -> None:
    bootstrap, settings = kafka.login("relay")
    grant(kafka, admin, least(topic, name), topic, positions_topic(name))
    publisher = KafkaPublisher(name, bootstrap, settings)
    assert publisher.begin() is None
    assert publisher.partitions([topic]) == {topic: 12}
    publisher.publish(numbered(topic, 0, 3), b"3")
    assert publisher.begin() == b"3"
    topics = KafkaTopics(bootstrap, settings)
    assert sum(len(some) for some in topics.read([topic])) == 3


@pytest.mark.parametrize(
    ("without", "named"),
    [
        ("retold-relay-{name} WRITE", "ransactional"),
        ("retold.relay.{name} CREATE", "retold.relay.{name}"),
        ("retold.relay.{name} WRITE", "retold.relay.{name}"),
        ("retold.relay.{name} READ", "retold.relay.{name}"),
        ("{topic} CREATE", "{topic}"),
        ("{topic} WRITE", "{topic}"),
    ],
)
def test_a_permission_that_is_missing_is_named(
    kafka: Broker, admin: Any, topic: str, name: str, without: str, named: str
) -> None:
    bootstrap, settings = kafka.login("relay")
    grant(kafka, admin, least(topic, name, without), topic, positions_topic(name))
    publisher = KafkaPublisher(name, bootstrap, settings)

    def work() -> None:
        publisher.begin()
        publisher.publish(numbered(topic, 0, 3), b"3")
        publisher.begin()

    with pytest.raises(BrokerRefused) as caught:
        work()
    assert named.format(topic=topic, name=name) in caught.value.reason


def test_a_wrong_password_is_told_and_not_shown(kafka: Broker, name: str) -> None:
    bootstrap, settings = kafka.login("relay")
    wrong = settings | {"sasl.password": PASSWORD + "!"}
    with pytest.raises(BrokerUnavailable, match="Invalid username or password") as caught:
        KafkaPublisher(name, bootstrap, wrong, patience=3.0).begin()
    assert PASSWORD not in str(caught.value)


# --- reading --------------------------------------------------------------------------------------


def test_reading_gives_every_visible_record_with_its_place(
    kafka: Broker, publisher: KafkaPublisher, topic: str
) -> None:
    for first in range(0, 6000, 2000):
        publisher.publish(numbered(topic, first, 2000), b"%d" % (first + 2000))
    found = read(kafka, topic)
    assert sorted(int(record.value) for record in found) == list(range(6000))
    expected = {
        (message.partition(), message.offset()): (message.key(), message.value())
        for message in committed(kafka, topic)
    }
    assert {(one.partition, one.offset): (one.key, one.value) for one in found} == expected
    assert all(record.headers == {"id": record.value} for record in found)
    assert all(record.partition == murmur2(record.key, 12) for record in found)


def test_reading_keeps_the_order_of_a_partition(
    kafka: Broker, publisher: KafkaPublisher, topic: str
) -> None:
    publisher.publish(numbered(topic, 0, 5000), b"5000")
    last: dict[int, int] = {}
    for record in read(kafka, topic):
        assert record.offset > last.get(record.partition, -1)
        last[record.partition] = record.offset


def test_reading_begins_at_the_offsets_asked_for(
    kafka: Broker, publisher: KafkaPublisher, topic: str
) -> None:
    publisher.publish(numbered(topic, 0, 700), b"700")
    everything = read(kafka, topic)
    behind = {(topic, partition): 60 for partition in range(12)}
    assert sorted(read(kafka, topic, behind=behind)) == sorted(
        record for record in everything if record.offset >= 60
    )


def test_reading_leaves_out_what_was_aborted(
    kafka: Broker, publisher: KafkaPublisher, topic: str, name: str
) -> None:
    publisher.publish(numbered(topic, 0, 10), b"10")
    producer = raw_producer(kafka, f"{name}-other")
    producer.begin_transaction()
    for record in numbered(topic, 10, 10):
        producer.produce(topic, record.value, record.key)
    producer.flush(10)
    producer.abort_transaction(10)
    assert sorted(int(record.value) for record in read(kafka, topic)) == list(range(10))


def test_reading_waits_for_an_open_transaction_that_hides_records(
    kafka: Broker, publisher: KafkaPublisher, topic: str, name: str
) -> None:
    producer = raw_producer(kafka, f"{name}-other")
    producer.begin_transaction()
    producer.produce(topic, b"0", b"key-0", partition=murmur2(b"key-0", 12))
    producer.flush(10)
    publisher.publish(numbered(topic, 7, 1), b"8")
    with pytest.raises(BrokerUnavailable, match=topic):
        list(reader(kafka, patience=1.0).read([topic]))
    timer = threading.Timer(0.5, producer.commit_transaction, [10])
    timer.start()
    found = read(kafka, topic)
    timer.join()
    assert [record.value for record in found] == [b"0", b"7"]


def test_reading_ends_while_others_go_on_writing(
    kafka: Broker, publisher: KafkaPublisher, topic: str
) -> None:
    publisher.publish(numbered(topic, 0, 1000), b"1000")
    ended = threading.Event()

    def write() -> None:
        first = 1000
        while not ended.is_set():
            publisher.publish(numbered(topic, first, 200), b"%d" % (first + 200))
            first += 200

    thread = threading.Thread(target=write)
    thread.start()
    found = read(kafka, topic)
    ended.set()
    thread.join()
    assert set(range(1000)) <= {int(record.value) for record in found}
    assert len({(record.partition, record.offset) for record in found}) == len(found)


# --- what breaks ----------------------------------------------------------------------------------


class Child:
    """A process that publishes until it is killed."""

    def __init__(self, kafka: Broker, name: str, topic: str, seed: int) -> None:
        root = Path(__file__).parent.parent.parent
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.relay.publishing", kafka.url, name, topic, str(seed)],
            cwd=root,
            env=os.environ | {"PYTHONPATH": f"{root / 'src'}:{root}"},
            stdout=subprocess.PIPE,
        )

    def next_transaction(self) -> None:
        """Wait until one begins."""
        assert self._process.stdout is not None
        assert self._process.stdout.readline(), "it ended by itself"

    def send(self, what: signal.Signals) -> None:
        self._process.send_signal(what)

    def wait(self) -> int:
        assert self._process.stdout is not None
        self._process.stdout.read()
        self._process.stdout.close()
        return self._process.wait()


def test_after_a_crash_at_any_moment_the_checkpoint_covers_what_is_visible(
    kafka: Broker, new: Begin, topic: str, name: str
) -> None:
    seed = random.SystemRandom().randrange(1 << 30)
    print("seed", seed)
    chance = random.Random(seed)
    saved = None
    for number in range(9):
        child = Child(kafka, name, topic, seed + number)
        for _ in range(chance.randrange(1, 20)):
            child.next_transaction()
        time.sleep(chance.random() * 0.03)
        child.send(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        if number % 3 == 2:
            saved = new().begin()
            assert numbers(kafka, topic) == list(range(int(saved or 0)))
    assert saved


def test_a_frozen_publisher_that_wakes_up_is_fenced_and_makes_nothing_visible(
    kafka: Broker, new: Begin, topic: str, name: str
) -> None:
    for number in range(3):
        child = Child(kafka, name, topic, number)
        for _ in range(10):
            child.next_transaction()
        child.send(signal.SIGSTOP)
        later = new()
        following = int(later.begin() or 0)
        later.publish(numbered(topic, following, 5), b"%d" % (following + 5))
        child.send(signal.SIGCONT)
        assert child.wait() == FENCED
        assert numbers(kafka, topic) == list(range(following + 5))
        assert later.begin() == b"%d" % (following + 5)


@pytest.mark.parametrize("times", [1, pytest.param(20, marks=pytest.mark.soak)])
def test_a_broker_that_is_killed_and_comes_back_loses_and_doubles_nothing(
    kafka: Broker, publisher: KafkaPublisher, topic: str, times: int
) -> None:
    """Publishing waits for the broker, or fails and goes on with a new epoch."""
    ended = threading.Event()
    reached = [0]

    def publish() -> None:
        following = 0
        while not ended.is_set():
            try:
                publisher.publish(numbered(topic, following, 50), b"%d" % (following + 50))
                following += 50
            except BrokerUnavailable:
                while True:
                    try:
                        following = int(publisher.begin() or 0)
                        break
                    except BrokerUnavailable:
                        pass
            reached[0] = following

    thread = threading.Thread(target=publish)
    thread.start()
    try:
        for _ in range(times):
            before = reached[0]
            while reached[0] < before + 500:
                assert thread.is_alive()
                time.sleep(0.01)
            kafka.kill()
            kafka.restart()
        before = reached[0]
        while reached[0] < before + 500:
            assert thread.is_alive()
            time.sleep(0.01)
    finally:
        ended.set()
        thread.join()
    saved = int(publisher.begin() or 0)
    assert saved == reached[0]
    assert numbers(kafka, topic) == list(range(saved))


def test_a_broker_that_does_not_answer_makes_publishing_fail_in_bounded_time(
    kafka: Broker, new: Begin, topic: str
) -> None:
    publisher = new({"transaction.timeout.ms": "2000"}, patience=1.0)
    publisher.begin()
    publisher.publish(numbered(topic, 0, 1), b"1")
    kafka.pause()
    try:
        with pytest.raises(BrokerUnavailable):
            publisher.publish(numbered(topic, 1, 1000), b"1001")
        with pytest.raises(BrokerUnavailable):
            publisher.begin()
        with pytest.raises(BrokerUnavailable):
            list(reader(kafka, patience=1.0).read([topic]))
    finally:
        kafka.resume()
    saved = int(new().begin() or 0)
    assert saved in (1, 1001)
    assert numbers(kafka, topic) == list(range(saved))


def test_a_transaction_in_hand_is_finished_when_the_process_is_told_to_stop(
    kafka: Broker, new: Begin, topic: str
) -> None:
    stop = threading.Event()
    publisher = new(stop=stop)
    publisher.begin()
    publisher.partitions([topic])
    stop.set()
    publisher.publish(numbered(topic, 0, 5000), b"5000")
    assert numbers(kafka, topic) == list(range(5000))


def test_a_commit_that_gets_no_answer_is_given_up_soon_after_the_stop(
    kafka: Broker, new: Begin, topic: str
) -> None:
    stop = threading.Event()
    publisher = new({"transaction.timeout.ms": "600000"}, patience=600.0, stop=stop)
    publisher.begin()
    publisher.publish(numbered(topic, 0, 1), b"1")
    kafka.pause()
    try:
        timer = threading.Timer(0.5, stop.set)
        timer.start()
        with pytest.raises(BrokerUnavailable):
            publisher.publish(numbered(topic, 1, 1), b"2")
        timer.join()
    finally:
        kafka.resume()
    assert int(new().begin() or 0) in (1, 2)
