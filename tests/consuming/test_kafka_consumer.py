"""What only Kafka does to a consumer: rebalances, batches of events, brokers that go away."""

from __future__ import annotations

import base64
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from importlib import import_module
from itertools import pairwise
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from retold import EventStore
from retold.brokers import kafka_consumer, kafka_held
from retold.brokers.base import Message
from retold.brokers.kafka_consumer import KafkaConsumer
from retold.brokers.published import events_in, topic_name
from retold.brokers.unreadable import UNREADABLE, events_of
from retold.errors import AssignmentLost, BrokerUnavailable, PositionGone, UnreadableRecord
from tests.consuming.publishing import (
    CREDITED,
    ENTITY_TYPE,
    OTHER,
    OnItsOwn,
    Topic,
    Working,
    amounts,
    batch,
    behind,
    event,
    eventually,
    take,
)
from tests.rig import GivenKafka, Kafka, NotPrivate

_admin: Any = import_module("confluent_kafka.admin")
_GOLDEN = Path(__file__).parent.parent / "golden/eventuate"
_PROCESSES = multiprocessing.get_context("forkserver")


@pytest.fixture
def bootstrap(kafka: Kafka | GivenKafka) -> str:
    return kafka.url


@pytest.fixture
def topic(bootstrap: str) -> Topic:
    return Topic(bootstrap, 1)


def committed(topic: Topic, name: str = "letters", partition: int = 0) -> tuple[int, str | None]:
    """The offset of the group, and the note beside it."""
    settings = {"bootstrap.servers": topic.bootstrap, "group.id": f"{topic.name}.{name}"}
    with closing(Consumer(settings)) as consumer:
        (found,) = consumer.committed([TopicPartition(topic.name, partition)], timeout=30)
        return found.offset, found.metadata or None


def nowhere(entity_type: str, patience: float = kafka_consumer.PATIENCE_S) -> KafkaConsumer:
    """A member where no broker is, which needs no database either."""
    driver = EventStore("sqlite:///unused.db").driver
    where = "127.0.0.1:1", "letters", [entity_type], [CREDITED]
    return OnItsOwn(driver, *where, "beginning", patience=patience)


# --- records -------------------------------------------------------------------------------------


@pytest.mark.parametrize("database", ["mariadb", "postgres"])
def test_what_java_published_is_understood(bootstrap: str, database: str) -> None:
    samples = json.loads((_GOLDEN / f"{database}_records.json").read_text())
    rows = json.loads((_GOLDEN / f"{database}_rows.json").read_text())["events"]
    stored = {row["event_id"]: row for row in rows}
    topic = Topic(bootstrap, 1)
    for sample in samples:
        value = sample.get("value")
        topic.put(value.encode() if value else bytes.fromhex(sample["value_hex"]), sample["key"])
    topic.flush()
    types = {row["entity_type"] for row in rows}
    consumer = OnItsOwn(
        EventStore(topic.database).driver,
        bootstrap,
        f"{topic.name}.java",
        sorted(types)[:1],
        sorted({row["event_type"] for row in rows}),
        "beginning",
        topic_of=lambda _: topic.name,
    )
    wanted = [row for row in rows if row["entity_type"] == min(types)]
    published = {id for sample in samples for id in _ids(sample)}
    wanted = [row for row in wanted if row["event_id"] in published]
    with closing(consumer):
        messages = take(consumer, len(wanted))
        assert not consumer.poll(100, 0)
    for message in messages:
        row = stored[message.event_id]
        assert (message.topic, message.key) == (row["entity_type"], row["entity_id"])
        assert (message.event_type, message.data) == (row["event_type"], row["event_data"])
        assert message.metadata == row["metadata"]
    assert {message.event_id for message in messages} == {row["event_id"] for row in wanted}


def _ids(sample: dict[str, Any]) -> list[str]:
    value = sample.get("value")
    found = events_in(value.encode() if value else bytes.fromhex(sample["value_hex"]))
    return [one.id for one in found]


def test_a_nested_java_class_is_found_under_its_topic() -> None:
    consumer = nowhere("Branch$Vault")
    assert consumer._topics == ["Branch_DLR_Vault"] == [topic_name("Branch$Vault")]


def test_a_record_with_several_events_goes_on_inside(topic: Topic) -> None:
    topic.put(batch([event("a", 1), event("b", 2), event("a", 3)]))
    topic.put(batch([event("a", 4), event("b", 5)]))
    topic.flush()
    with closing(topic.member()) as first:
        first.commit(behind(take(first, 2, limit=2)))
    assert committed(topic) == (0, "retold:2")
    with closing(topic.member()) as second:
        messages = take(second, 3)
        assert amounts(messages) == [3, 4, 5]
        second.commit(behind(messages[:1]))
    assert committed(topic) == (1, None)
    with closing(topic.member()) as third:
        third.commit(behind(take(third, 2)))
    assert committed(topic)[0] == 2


def test_an_event_of_another_type_is_passed_over_without_being_parsed(topic: Topic) -> None:
    topic.put(b"no event at all", headers=[("id", b"1"), ("type", OTHER.encode())])
    topic.publish(2)
    with closing(topic.member()) as consumer:
        assert amounts(take(consumer, 1)) == [2]


def test_a_record_that_is_no_event_is_a_message_of_the_entity_that_its_key_names(
    topic: Topic,
) -> None:
    topic.publish(1)
    topic.put(b"no event \xff", "b")
    topic.publish(2)
    with closing(topic.member()) as consumer:
        _, unreadable, _ = take(consumer, 3)
    assert (unreadable.topic, unreadable.key) == (ENTITY_TYPE, "b")
    assert unreadable.event_type == UNREADABLE
    found = json.loads(unreadable.data)
    assert (found["topic"], found["partition"], found["offset"]) == (topic.name, 0, 1)
    assert base64.b64decode(found["value_base64"]) == b"no event \xff"
    with pytest.raises(UnreadableRecord):
        events_of(unreadable)


def test_what_nobody_wants_is_not_read_again(topic: Topic) -> None:
    topic.publish(1)
    topic.publish(*range(2, 30), kind=OTHER)
    with closing(topic.member()) as consumer:
        consumer.commit(behind(take(consumer, 1)))
        assert not consumer.poll(100, 0)
    assert committed(topic)[0] == 29


def test_a_commit_does_not_wait_for_the_next_record(
    topic: Topic, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_consumer, "SLICE_S", 600.0)
    topic.publish(1)
    with closing(topic.member()) as consumer:
        eventually(lambda: not consumer.poll(0, 0.1) and bool(consumer._held.buffer))
        time.sleep(0.3)  # it reads the end of the partition, and polls again
        monkeypatch.undo()
        consumer.commit(behind(take(consumer, 1)))
    assert committed(topic)[0] == 1


def test_records_of_aborted_transactions_are_never_seen(topic: Topic) -> None:
    producer = Producer({"bootstrap.servers": topic.bootstrap, "transactional.id": topic.name})
    producer.init_transactions(30)
    with closing(topic.member()) as consumer:
        for number in range(6):
            producer.begin_transaction()
            value = json.dumps(event("a", number)).encode()
            producer.produce(topic.name, value, b"a", 0)
            producer.flush(30)
            if number % 2:
                producer.abort_transaction(30)
            else:
                producer.commit_transaction(30)
        messages = take(consumer, 3)
        assert amounts(messages) == [0, 2, 4]
        assert not consumer.poll(100, 0)
        consumer.commit(behind(messages))
    # Behind the markers, too: the group has no lag.
    assert committed(topic)[0] == 12


# --- where it begins -----------------------------------------------------------------------------


def test_now_leaves_out_what_is_there_also_after_a_restart(topic: Topic) -> None:
    topic.publish(1, 2)
    with closing(topic.member(start="now")) as consumer:
        assert not consumer.poll(100, 0)
    topic.publish(3)
    with closing(topic.member(start="now")) as consumer:
        assert amounts(take(consumer, 1)) == [3]


def test_a_moment_begins_at_the_first_event_written_then(topic: Topic) -> None:
    """Also where a resync has published the older ones only now."""
    topic.publish(1, 2)
    time.sleep(0.05)
    moment = datetime.now(UTC)
    time.sleep(0.05)
    topic.publish(3, 4)
    with closing(topic.member(start=moment)) as consumer:
        assert amounts(take(consumer, 2)) == [3, 4]
    with closing(topic.member("later", datetime.now(UTC) + timedelta(hours=1))) as consumer:
        assert not consumer.poll(100, 0)


def test_a_topic_that_is_missing_is_waited_for(bootstrap: str) -> None:
    topic = Topic(bootstrap, 2, exists=False)
    with closing(topic.member(start="now")) as consumer:
        assert not consumer.poll(100, 0.5)
        topic.make()
        topic.publish(1, partition=1)
        assert amounts(take(consumer, 1)) == [1]


def test_a_position_that_retention_removed_is_told(topic: Topic, bootstrap: str) -> None:
    topic.publish(1, 2, 3)
    with closing(topic.member()) as consumer:
        consumer.commit(behind(take(consumer, 1, limit=1)))
    admin: Any = _admin.AdminClient({"bootstrap.servers": bootstrap})
    for done in admin.delete_records([TopicPartition(topic.name, 0, 3)]).values():
        done.result(30)
    with closing(topic.member()) as consumer, pytest.raises(PositionGone) as caught:
        take(consumer, 1)
    assert (caught.value.topic, caught.value.partition) == (topic.name, 0)


# --- members -------------------------------------------------------------------------------------


def crowded(bootstrap: str) -> Topic:
    return Topic(bootstrap, 6)


@pytest.mark.parametrize("assignor", ["cooperative-sticky", "range"])
def test_while_members_come_and_go_nothing_is_lost_and_each_key_keeps_its_order(
    bootstrap: str, assignor: str
) -> None:
    topic, total = crowded(bootstrap), 600
    handled = defaultdict[str, list[int]](list)

    def note(message: Message) -> None:
        handled[message.key].append(json.loads(message.data)["amount"])

    workers = [Working(topic.member(assignor=assignor), note)]
    for number in range(total):
        topic.put(
            json.dumps(event(f"k{number % 6}", number)).encode(), f"k{number % 6}", number % 6
        )
        if number % 20 == 0:
            topic.flush()
            time.sleep(0.02)
        if number in (100, 200):
            workers.append(Working(topic.member(assignor=assignor), note))
        if number == 400:
            workers.pop(0).stop()
    topic.flush()
    eventually(lambda: sum(map(len, handled.values())) >= total)
    for worker in workers:
        worker.stop()
    for n in range(6):
        own = handled[f"k{n}"]
        assert list(dict.fromkeys(own)) == list(range(n, total, 6))
        # What was handled came again at most where a partition moved, and in order.
        assert sum(b <= a for a, b in pairwise(own)) <= 4


def work_and_tell(like: tuple[str, str], bootstrap: str, pipe: Connection) -> None:
    topic = Topic(bootstrap, 6, exists=False, database=like[1])
    topic.name = like[0]
    with closing(topic.member(settings={"session.timeout.ms": "1000"})) as consumer:
        while True:
            for message in consumer.poll(10, 0.2):
                pipe.send((message.key, json.loads(message.data)["amount"]))
                consumer.commit(behind([message]))


def test_when_a_member_is_killed_the_others_go_on_where_it_was(bootstrap: str) -> None:
    topic, total = crowded(bootstrap), 300
    told = defaultdict[str, list[int]](list)
    pipes: list[Connection] = []
    processes: list[BaseProcess] = []
    for _ in range(3):
        mine, other = _PROCESSES.Pipe()
        process = _PROCESSES.Process(
            target=work_and_tell, args=((topic.name, topic.database), bootstrap, other), daemon=True
        )
        process.start()
        other.close()
        pipes.append(mine)
        processes.append(process)

    def heard() -> int:
        """How many events all have told of."""
        for pipe in list(pipes):
            try:
                while pipe.poll():
                    key, number = pipe.recv()
                    told[key].append(number)
            except EOFError:
                pipes.remove(pipe)
        return sum(len(set(own)) for own in told.values())

    for number in range(total):
        topic.put(
            json.dumps(event(f"k{number % 6}", number)).encode(), f"k{number % 6}", number % 6
        )
        if number % 10 == 0:
            topic.flush()
            heard()
            time.sleep(0.03)
        if number == 150:
            eventually(lambda: heard() > 0)
            os.kill(processes[0].pid or 0, signal.SIGKILL)
    topic.flush()
    eventually(lambda: heard() == total)
    for each in processes:
        each.kill()
        each.join()
    for n in range(6):
        assert list(dict.fromkeys(told[f"k{n}"])) == list(range(n, total, 6))


def test_what_is_in_hand_may_be_committed_while_its_partition_is_revoked(bootstrap: str) -> None:
    topic = crowded(bootstrap)
    for n in range(6):
        topic.publish(n, key=f"k{n}", partition=n)
    with closing(topic.member(assignor="range")) as first:
        taken = take(first, 6)
        second = Working(topic.member(assignor="range"), lambda message: None)
        eventually(lambda: _revoking(first))
        first.commit(behind(taken))
        eventually(lambda: len(first.held) == 3)
        second.stop()
    assert [committed(topic, partition=n)[0] for n in range(6)] == [1] * 6


def _revoking(consumer: KafkaConsumer) -> bool:
    """Whether it waits for what is in hand."""
    thread = consumer._thread
    frame = sys._current_frames().get(thread.ident or 0) if thread else None
    while frame is not None:
        if frame.f_code.co_name == "_on_revoke":
            return True
        frame = frame.f_back
    return False


@pytest.mark.parametrize("assignor", ["cooperative-sticky", "range"])
def test_a_rebalance_waits_for_a_slow_handler_and_nothing_comes_twice(
    bootstrap: str, assignor: str
) -> None:
    topic = crowded(bootstrap)
    for n in range(18):
        topic.publish(n, key=f"k{n % 6}", partition=n % 6)
    handled: list[int] = []
    begun, go_on = threading.Event(), threading.Event()

    def handle_slowly(message: Message) -> None:
        begun.set()
        assert go_on.wait(30)
        handled.extend(amounts([message]))

    slow, quick = topic.member(assignor=assignor), topic.member(assignor=assignor)
    first = Working(slow, handle_slowly)
    assert begun.wait(30)
    second = Working(quick, lambda message: handled.extend(amounts([message])))
    eventually(lambda: _revoking(slow) or quick.assigned)
    go_on.set()
    eventually(lambda: len(handled) >= 18)
    topic.publish(18)
    eventually(lambda: 18 in handled)
    first.stop()
    second.stop()
    assert sorted(handled) == list(range(19))


def test_a_commit_after_the_revocation_is_refused(
    bootstrap: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_consumer, "REVOKE_S", 0.2)
    topic = crowded(bootstrap)
    for n in range(6):
        topic.publish(n, key=f"k{n}", partition=n)
    with closing(topic.member()) as first, closing(topic.member()) as second:
        taken = take(first, 6)
        again = take(second, 1)
        with pytest.raises(AssignmentLost):
            first.commit(behind(taken))
        # Those that are still its own are saved all the same.
        assert {m.partition for m in again}.isdisjoint(first.held)


def test_a_member_without_a_partition_leaves_the_group_when_it_closes(topic: Topic) -> None:
    admin: Any = _admin.AdminClient({"bootstrap.servers": topic.bootstrap})
    group = f"{topic.name}.letters"

    def members() -> int:
        return len(admin.describe_consumer_groups([group])[group].result(30).members)

    topic.publish(1)
    with closing(topic.member()) as first:
        take(first, 1)
        with closing(topic.member()) as second:
            assert not second.poll(100, 0)
            assert members() == 2
        assert members() == 1


def test_a_handler_slower_than_the_longest_poll_keeps_its_partition(topic: Topic) -> None:
    topic.publish(1, 2)
    quick = {"max.poll.interval.ms": "1000", "session.timeout.ms": "1000"}
    with closing(topic.member(settings=quick)) as consumer:
        taken = take(consumer, 1, limit=1)
        held = consumer.held
        time.sleep(2.5)
        consumer.commit(behind(taken))
        assert consumer.held == held
        assert amounts(take(consumer, 1)) == [2]


def test_a_handler_that_takes_nothing_fills_no_memory(
    topic: Topic, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_held, "BUFFERED", 100)
    monkeypatch.setattr(kafka_consumer, "FULL_S", 0.1)
    for number in range(3_000):
        topic.put(json.dumps(event("a", number)).encode())
    topic.flush()
    with closing(topic.member()) as consumer:
        taken = take(consumer, 1, limit=1)
        eventually(lambda: bool(consumer._paused))
        assert len(consumer._held.buffer) <= 100 + 2 * kafka_consumer.AT_ONCE
        while len(taken) < 3_000:
            taken += consumer.poll(7, 5)
    assert amounts(taken) == list(range(3_000))


def test_commits_while_the_buffer_is_full_do_not_fill_it_further(
    topic: Topic, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_held, "BUFFERED", 100)
    for number in range(5_000):
        topic.put(json.dumps(event("a", number)).encode())
    topic.flush()
    with closing(topic.member()) as consumer:
        for _ in range(15):
            consumer.commit(behind(take(consumer, 1, limit=1)))
            assert len(consumer._held.buffer) <= 100 + 2 * kafka_consumer.AT_ONCE


# --- the broker ----------------------------------------------------------------------------------


@pytest.fixture
def own_kafka(kafka: Kafka | GivenKafka) -> Iterator[Kafka]:
    """A broker that may be killed."""
    if isinstance(kafka, GivenKafka):
        raise NotPrivate("a given broker is not killed")
    own = Kafka()
    own.start()
    try:
        yield own
    finally:
        own.stop()


def test_a_broker_that_restarts_is_waited_for(own_kafka: Kafka) -> None:
    topic = Topic(own_kafka.url, 2)
    handled: list[int] = []
    worker = Working(topic.member(), lambda message: handled.extend(amounts([message])))
    topic.publish(*range(10))
    eventually(lambda: len(handled) == 10)
    own_kafka.kill()
    own_kafka.restart()
    topic.publish(*range(10, 20))
    eventually(lambda: len(set(handled)) == 20)
    worker.stop()
    assert list(dict.fromkeys(handled)) == list(range(20))


def test_a_broker_that_is_not_there_is_told_by_the_first_poll() -> None:
    consumer = nowhere(ENTITY_TYPE, patience=0.5)
    with closing(consumer), pytest.raises(BrokerUnavailable, match=r"127\.0\.0\.1:1"):
        consumer.poll(100, 0)


def test_a_waiting_poll_ends_with_close() -> None:
    consumer = nowhere(ENTITY_TYPE)
    poll = threading.Thread(target=consumer.poll, args=(1, 3600), daemon=True)
    poll.start()
    consumer.close()
    poll.join(20)
    assert not poll.is_alive()
