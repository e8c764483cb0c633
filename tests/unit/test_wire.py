"""The form of records on the wire, against what Java's Eventuate CDC published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import murmur2

from retold.brokers.base import Record
from retold.brokers.published import BinlogFileOffset, events_in, topic_name
from retold.relay.source import Row
from retold.relay.wire import records

_GOLDEN = Path(__file__).parent.parent / "golden/eventuate"


def _load(name: str) -> Any:
    return json.loads((_GOLDEN / f"{name}.json").read_text())


def _row(event: dict[str, Any], place: BinlogFileOffset | None) -> Row:
    return (
        event["event_id"],
        event["event_type"],
        event["event_data"],
        event["entity_type"],
        event["entity_id"],
        event["metadata"],
        place,
    )


def _samples(database: str) -> list[tuple[dict[str, Any], Record]]:
    """What Java published, each with what we make of the same row."""
    rows = {event["event_id"]: event for event in _load(f"{database}_rows")["events"]}
    samples: list[tuple[dict[str, Any], Record]] = []
    for published in _load(f"{database}_records"):
        if "value" not in published:
            continue
        value = json.loads(published["value"])
        place = value.get("binlogFileOffset")
        offset = BinlogFileOffset(**place) if place else None
        (record,) = records([_row(rows[value["id"]], offset)])
        samples.append((published, record))
    return samples


@pytest.mark.parametrize(("database", "count"), [("mariadb", 32), ("postgres", 6)])
def test_topic_key_and_value_are_byte_for_byte_what_java_publishes(
    database: str, count: int
) -> None:
    samples = _samples(database)
    assert len(samples) == count
    for published, record in samples:
        assert record.topic == published["topic"]
        assert record.key.decode() == published["key"]
        assert record.value.decode() == published["value"]


@pytest.mark.parametrize("database", ["mariadb", "postgres"])
def test_a_key_has_the_partition_that_java_chose(database: str) -> None:
    for published, record in _samples(database):
        assert murmur2(record.key, published["partitions"]) == published["partition"]


@pytest.mark.parametrize(
    ("key", "value"), [("foobar", -790332482), ("abc", 479470107), ("21", -973932308)]
)
@pytest.mark.parametrize("partitions", [1, 2, 12, 50])
def test_the_partition_is_javas_hash_without_its_sign(
    key: str, value: int, partitions: int
) -> None:
    assert murmur2(key.encode(), partitions) == (value & 0x7FFFFFFF) % partitions


def test_headers_carry_id_type_and_time() -> None:
    event_id = "0000018f4df73e10-0242ac1100080003"
    (record,) = records([(event_id, "bank.Debited", "{}", "bank.Account", "ann", None, None)])
    assert record.headers == [
        ("id", event_id.encode()),
        ("type", b"bank.Debited"),
        ("time", b"%d" % 0x18F4DF73E10),
    ]


def test_an_id_of_another_making_has_no_time() -> None:
    (record,) = records([("17", "bank.Debited", "{}", "bank.Account", "ann", None, None)])
    assert dict(record.headers)["time"] == b"%d" % 0x17
    (record,) = records([("no-hex", "bank.Debited", "{}", "bank.Account", "ann", None, None)])
    assert dict(record.headers)["time"] == b""


def test_the_topic_spells_the_dollar_that_kafka_does_not_allow() -> None:
    assert topic_name("com.acme.Bank$Account") == "com.acme.Bank_DLR_Account"
    (record,) = records([("1", "e", "{}", "com.acme.Bank$Account", "ann", None, None)])
    assert json.loads(record.value)["entityType"] == "com.acme.Bank$Account"


def test_rows_that_eventuates_migrations_left_are_not_published() -> None:
    assert records([("1", "CDC-IGNORED", "CDC-IGNORED", "CDC-IGNORED", "1", None, None)]) == []


def test_the_events_of_a_record_are_read_back() -> None:
    for _, record in _samples("mariadb"):
        (event,) = events_in(record.value)
        assert (event.id.encode(), event.entityId.encode()) == (
            dict(record.headers)["id"],
            record.key,
        )


def test_a_binary_batch_of_javas_holds_several_events() -> None:
    (record,) = _load("mariadb_batch_mixed_keys")
    events = events_in(bytes.fromhex(record["value_hex"]))
    assert len({event.entityId for event in events}) == 3
    assert events[0].entityId == record["key"]
    assert all(event.binlogFileOffset for event in events)


def test_every_event_of_the_database_is_in_a_record_or_a_batch() -> None:
    published = [
        event.id
        for record in _load("mariadb_records")
        for event in events_in(
            record["value"].encode() if "value" in record else bytes.fromhex(record["value_hex"])
        )
    ]
    stored = {event["event_id"]: event for event in _load("mariadb_rows")["events"]}
    assert set(published) == set(stored)


@pytest.mark.parametrize("size", [0, 32, 41, 47, 60, 400])
def test_a_batch_that_was_cut_is_an_error(size: int) -> None:
    (record,) = _load("mariadb_batch_mixed_keys")
    with pytest.raises(ValueError, match=r"too soon|truncated"):
        events_in(bytes.fromhex(record["value_hex"])[:size])
