"""First starts and resyncs on real databases and Kafka, while others write, and cut off anywhere."""

from __future__ import annotations

import json
import os
import random
import re
import secrets
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import psycopg
import pymysql
import pytest
from confluent_kafka import Producer, murmur2

from retold import EventStore
from retold.store.url import parse_url
from tests.conformance.raw import rows
from tests.integration.tally import new_dice
from tests.relay.comparison import read_topics, wrong
from tests.relay.processes import eventually, relay, size, verify
from tests.relay.writing import Writer, writing
from tests.rig import GivenKafka, Kafka, Rig
from tests.rig.databases import query, with_parts

_admin: Any = import_module("confluent_kafka.admin")

KINDS = ("sqlite", "mariadb", "mysql8", "postgres18")
"""Each with the best source it has: polling, the binary log, the write-ahead log."""

Made = Callable[[str], str]


@pytest.fixture
def made(servers: Rig, fresh_database: Callable[[str], str]) -> Iterator[Made]:
    """Makes a database of a kind with retold's tables; gives the URL of one who may replicate."""
    slots = list[tuple[str, str]]()

    def make(kind: str) -> str:
        url = fresh_database(kind)
        with EventStore(url) as store:
            store.migrate(polling=True)
        if kind == "sqlite":
            return url
        name = parse_url(url).database
        if kind.startswith("postgres"):
            slots.append((servers[kind].url, name))
        return with_parts(servers[kind].url, database=name)

    yield make
    for admin, name in slots:
        active = f"pg_replication_slots WHERE database = '{name}' AND active"
        query(admin, f"SELECT pg_terminate_backend(active_pid) FROM {active}")
        eventually(lambda: not query(admin, f"SELECT 1 FROM {active}"))  # noqa: B023
        there = f"pg_replication_slots WHERE database = '{name}'"
        query(admin, f"SELECT pg_drop_replication_slot(slot_name) FROM {there}")


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture
def url(kind: str, made: Made) -> str:
    return made(kind)


@pytest.fixture
def bootstrap(kafka: Kafka | GivenKafka) -> str:
    return kafka.url


def same(url: str, bootstrap: str) -> Callable[[], bool]:
    def look() -> bool:
        # All records are read only once there are enough of them.
        stored = rows(url, "SELECT entity_type, count(*) FROM events GROUP BY entity_type")
        enough = all(size(bootstrap, str(topic)) >= int(str(count)) for topic, count in stored)
        return enough and not wrong(url, bootstrap)

    return look


def delete_topic(bootstrap: str, topic: str) -> None:
    admin = _admin.AdminClient({"bootstrap.servers": bootstrap})
    admin.delete_topics([topic])[topic].result(30)
    eventually(lambda: size(bootstrap, topic) == 0)


# --- a first start -------------------------------------------------------------------------------


def test_a_first_start_publishes_history_and_what_is_written_meanwhile(
    url: str, bootstrap: str
) -> None:
    writer = Writer(url)
    writer.write(3_000)
    with relay(url, bootstrap) as process:
        with writing(url, writer.topic):
            eventually(lambda: size(bootstrap, writer.topic) > 3_500)
        eventually(same(url, bootstrap))
        assert process.terminate() == 0
    found = verify(url, bootstrap)
    assert (found["code"], found["sound"]) == (0, True)


def kill_again_and_again(
    url: str, bootstrap: str, topic: str, kills: int, dice: random.Random, step: int
) -> None:
    """Start relays; SIGKILL each when it has published a little more, sooner or later."""
    for _ in range(kills):
        with relay(url, bootstrap):
            goal = size(bootstrap, topic) + dice.choice((0, 1, step // 10, step))
            eventually(lambda: size(bootstrap, topic) >= goal)  # noqa: B023
            time.sleep(dice.choice((0, 0, 0.05, 0.2)))


@pytest.mark.parametrize("kind", ["sqlite", "mariadb", "postgres18"], indirect=True)
def test_a_first_start_that_is_killed_again_and_again_publishes_everything_once(
    url: str, bootstrap: str
) -> None:
    writer = Writer(url)
    writer.write(10_000, entities=300)
    with writing(url, writer.topic, pause=0.1):
        kill_again_and_again(url, bootstrap, writer.topic, 4, new_dice(), 2_500)
    with relay(url, bootstrap):
        eventually(same(url, bootstrap))
    assert verify(url, bootstrap)["sound"]


@pytest.mark.soak
def test_a_long_first_start_is_killed_every_second(url: str, bootstrap: str) -> None:
    events = int(os.environ.get("RETOLD_TEST_EVENTS", "1000000"))
    writer = Writer(url)
    writer.write(events, each=10_000, entities=5_000)
    with writing(url, writer.topic):
        while size(bootstrap, writer.topic) < events:
            kill_again_and_again(url, bootstrap, writer.topic, 10, new_dice(), events // 50)
        kill_again_and_again(url, bootstrap, writer.topic, 20, new_dice(), 1_000)
    with relay(url, bootstrap):
        eventually(same(url, bootstrap), 600)
    assert verify(url, bootstrap)["sound"]


@pytest.mark.parametrize("kind", ["mariadb", "postgres18"], indirect=True)
def test_from_now_leaves_out_what_is_there_and_nothing_that_comes_later(
    kind: str, url: str, bootstrap: str
) -> None:
    writer = Writer(url)
    writer.write(1_500)
    with relay(url, bootstrap, "--from-now") as process:
        eventually(lambda: size(bootstrap, f"retold.relay.{parse_url(url).database}") > 0)
        writer.write(3)
        eventually(lambda: len(read_topics(bootstrap, [writer.topic])) == 3)
        assert process.terminate() == 0


@pytest.mark.parametrize(
    ("kind", "source"),
    [("mariadb", "binlog"), ("mariadb", "polling"), ("postgres18", "polling")],
    indirect=["kind"],
)
def test_what_was_open_at_a_first_start_is_published_when_it_is_committed(
    url: str, source: str, bootstrap: str
) -> None:
    """Its ids are lower than the highest that the first start saw."""
    writer = Writer(url)
    late = Writer(url, writer.topic).rows(1)
    with opened(url) as (insert, commit):
        insert(late)
        writer.write(1_200)
        with relay(url, bootstrap, "--source", source):
            eventually(lambda: len(read_topics(bootstrap, [writer.topic])) == 1_200)
            commit()
            eventually(same(url, bootstrap))


def test_memory_stays_flat_however_large_the_events(made: Made, bootstrap: str) -> None:
    url = made("sqlite")
    writer = Writer(url)
    writer.write(10_000, entities=1_000)
    writer.insert(*writer.rows(60, data="x" * 900_000))
    with relay(url, bootstrap) as process:
        eventually(lambda: size(bootstrap, writer.topic) > 10_060)
        eventually(lambda: rows(url, "SELECT 1 FROM events WHERE published = 0 LIMIT 1") == [])
        status = Path(f"/proc/{process.pid}/status").read_text()
        assert process.terminate() == 0
    (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", status)
    assert int(peak) < 100_000, "kB"


# --- a resync ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sqlite", "postgres18"], indirect=True)
def test_a_resync_publishes_a_deleted_topic_again(url: str, bootstrap: str) -> None:
    writer = Writer(url)
    writer.write(1_000)
    with relay(url, bootstrap) as process:
        eventually(same(url, bootstrap))
        assert process.terminate() == 0
    delete_topic(bootstrap, writer.topic)
    with relay(url, bootstrap) as process:
        assert process.ends() == 3
        assert "--resync" in process.output
    with relay(url, bootstrap, "--resync") as process, writing(url, writer.topic):
        eventually(lambda: size(bootstrap, writer.topic) > 1_100)
        process.kill()
    with relay(url, bootstrap) as process:  # goes on with what the killed one had begun
        eventually(same(url, bootstrap))
        assert process.terminate() == 0


@pytest.mark.parametrize("kind", ["mysql8"], indirect=True)
def test_a_resync_needs_no_position(url: str, bootstrap: str) -> None:
    writer = Writer(url)
    name = secrets.token_hex(4)
    writer.write(500)
    with relay(url, bootstrap, "--name", name) as process:
        eventually(same(url, bootstrap))
        assert process.terminate() == 0
    delete_topic(bootstrap, f"retold.relay.{name}")
    writer.write(500)
    with relay(url, bootstrap, "--name", name) as process:
        assert process.ends() == 3
        assert "holds no position" in process.output
    with relay(url, bootstrap, "--name", name, "--resync"):
        eventually(same(url, bootstrap))


@pytest.fixture
def with_hole(made: Made, bootstrap: str) -> tuple[str, Writer]:
    """Of ten events of one entity the third is missing in Kafka, and so are the last five."""
    url = made("sqlite")
    writer = Writer(url)
    events = writer.rows(10, entities=1)
    writer.insert(*events)
    admin = _admin.AdminClient({"bootstrap.servers": bootstrap})
    admin.create_topics([_admin.NewTopic(writer.topic, 2, 1)])[writer.topic].result(30)
    producer = Producer({"bootstrap.servers": bootstrap})
    for event_id, name, data, kind, entity, metadata in (*events[:2], *events[3:5]):
        value = {"id": event_id, "entityId": entity, "entityType": kind, "eventData": data}
        value |= {"eventType": name} | ({"metadata": metadata} if metadata else {})
        key = str(entity).encode()
        moment = str(int(str(event_id)[:16], 16))
        headers: Any = {"id": str(event_id), "type": str(name), "time": moment}
        producer.produce(writer.topic, json.dumps(value), key, murmur2(key, 2), headers=headers)
    assert producer.flush(30) == 0
    return url, writer


def test_a_hole_is_not_filled_unless_it_is_asked_for(
    with_hole: tuple[str, Writer], bootstrap: str
) -> None:
    url, writer = with_hole
    for _ in range(2):
        with relay(url, bootstrap, "--resync") as process:
            assert process.ends() == 3
            assert "1 events are missing in Kafka behind later ones" in process.output
            assert "--fill-holes-out-of-order" in process.output
    assert wrong(url, bootstrap).counts() == {"lost": 1}
    with relay(url, bootstrap, "--resync", "--fill-holes-out-of-order") as process:
        eventually(lambda: len(read_topics(bootstrap, [writer.topic])) == 10)
        writer.write(1)
        eventually(lambda: len(read_topics(bootstrap, [writer.topic])) == 11)
        assert process.terminate() == 0
    assert wrong(url, bootstrap).counts() == {"reordered": 1}


@contextmanager
def opened(
    url: str,
) -> Generator[tuple[Callable[[list[tuple[object, ...]]], object], Callable[[], object]]]:
    """A transaction that inserts, and what commits it."""
    insert = (
        "INSERT INTO events (event_id, event_type, event_data, entity_type, entity_id, metadata) "
        "VALUES (%s, %s, %s, %s, %s, %s)"
    )
    parts = parse_url(url)
    if url.startswith("postgres"):
        with psycopg.connect(url) as link:
            yield lambda made: link.cursor().executemany(insert, made), link.commit
    else:
        with pymysql.connect(
            host=parts.host, port=parts.port or 0, user=parts.user, database=parts.database
        ) as client:
            yield lambda made: client.cursor().executemany(insert, made), client.commit
