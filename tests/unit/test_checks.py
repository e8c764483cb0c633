"""What is judged well, worth a warning, or a failure; and what a relay refuses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from retold.brokers.kafka_facts import TopicFacts
from retold.errors import BrokerRefused, LogUnsuitable
from retold.relay.checks import Check, clock, direct_check, failed, ok, require, warning
from retold.relay.kafka_checks import (
    events_topic_checks,
    missing_topic_check,
    positions_topic_checks,
    transactions_check,
)
from retold.relay.sources.binlog_checks import (
    compression_checks,
    engine_check,
    filter_check,
    replica_check,
    settings_checks,
)
from retold.relay.sources.wal_checks import server_checks, slot_checks, slot_room

_MYSQL = {
    "version": "8.0.31",
    "log_bin": "ON",
    "binlog_format": "ROW",
    "server_id": "7",
    "binlog_row_image": "FULL",
    "binlog_row_metadata": "FULL",
    "sync_binlog": "1",
    "innodb_flush_log_at_trx_commit": "1",
    "gtid_mode": "ON",
    "binlog_expire_logs_seconds": "2592000",
    "expire_logs_days": "0",
}
_TOPIC = TopicFacts(
    partitions=12,
    copies=3,
    allowed=frozenset({"DESCRIBE", "READ", "WRITE"}),
    settings={
        "cleanup.policy": "delete",
        "retention.ms": "-1",
        "retention.bytes": "-1",
        "max.message.bytes": "1048588",
        "min.insync.replicas": "2",
    },
)


def topic(**changed: Any) -> TopicFacts:
    """A topic as it should be, but for some facts; settings in Kafka's words."""
    facts = {key: changed.pop(key) for key in ("copies", "partitions", "allowed") if key in changed}
    settings = {key.replace("_", "."): value for key, value in changed.items()}
    return replace(_TOPIC, **facts, settings={**(_TOPIC.settings or {}), **settings})


def outcomes(checks: list[Check]) -> dict[str, str]:
    return {check.name: check.outcome for check in checks if check.outcome != "ok"}


def test_a_relay_refuses_what_has_failed_and_says_how_to_mend_it() -> None:
    checks = [ok("a", "is fine"), warning("b", "is odd", "look"), failed("c", "is bad", "do this")]
    require(checks[:2])
    with pytest.raises(LogUnsuitable, match="c is bad; do this"):
        require(checks)
    with pytest.raises(BrokerRefused, match="c is bad; do this"):
        require(checks, BrokerRefused)


def test_what_is_well_needs_no_mend_and_everything_else_has_one() -> None:
    everything = [
        *settings_checks({**_MYSQL, "binlog_format": "MIXED", "sync_binlog": "0"}),
        *server_checks(direct=False, major=13, wal_level="replica"),
        *events_topic_checks("bank", topic(cleanup_policy="compact", copies=1)),
        slot_room("-1"),
        clock(3),
    ]
    assert all((check.mend == "") == (check.outcome == "ok") for check in everything)


# --- MySQL and MariaDB ---------------------------------------------------------------------------


def test_a_server_as_it_should_be_has_nothing_to_mend() -> None:
    assert outcomes(settings_checks(_MYSQL)) == {}


@pytest.mark.parametrize(
    ("setting", "value", "outcome"),
    [
        ("log_bin", "OFF", "failed"),
        ("binlog_format", "STATEMENT", "failed"),
        ("binlog_format", "MIXED", "failed"),
        ("server_id", "0", "failed"),
        ("binlog_row_image", "MINIMAL", "warning"),
        ("binlog_row_image", "NOBLOB", "warning"),
        ("binlog_row_metadata", "MINIMAL", "warning"),
        ("sync_binlog", "0", "warning"),
        ("sync_binlog", "1000", "warning"),
        ("innodb_flush_log_at_trx_commit", "2", "warning"),
        ("gtid_mode", "OFF_PERMISSIVE", "warning"),
    ],
)
def test_each_setting_is_looked_at(setting: str, value: str, outcome: str) -> None:
    assert outcomes(settings_checks({**_MYSQL, setting: value})) == {setting: outcome}


@pytest.mark.parametrize("name", ["log_replica_updates", "log_slave_updates"])
def test_a_server_must_log_what_it_gets_from_others(name: str) -> None:
    primary, replica = {**_MYSQL, name: "OFF"}, {**_MYSQL, name: "ON"}
    assert outcomes([replica_check(primary), replica_check(replica, follows=True)]) == {}
    assert outcomes([replica_check(primary, follows=True)]) == {name: "failed"}
    assert outcomes([replica_check({**primary, "wsrep_on": "ON"})]) == {name: "failed"}
    assert f"--{name.replace('_', '-')}" in replica_check(primary, follows=True).mend


@pytest.mark.parametrize(
    ("seconds", "days", "found"),
    [
        ("0", "0", "has no end"),
        ("2592000", "0", "is 30 days"),
        ("0", "10.000000", "is 10 days"),
        ("3600", "0", "is 1 hours: a relay that is down for longer needs a resync"),
        ("0", "1", "is 24 hours: a relay that is down for longer needs a resync"),
    ],
)
def test_how_long_the_log_is_kept_is_said(seconds: str, days: str, found: str) -> None:
    values = {**_MYSQL, "binlog_expire_logs_seconds": seconds, "expire_logs_days": days}
    (check,) = [check for check in settings_checks(values) if check.name == "binlog retention"]
    assert check.found == found


def test_an_old_server_without_row_metadata_is_mended_by_other_means() -> None:
    values = {key: value for key, value in _MYSQL.items() if key != "binlog_row_metadata"}
    (check,) = [one for one in settings_checks(values) if one.name == "binlog_row_metadata"]
    assert check.outcome == "warning"
    assert "SET GLOBAL" not in check.mend


def test_mariadb_always_has_gtids() -> None:
    values = {key: value for key, value in _MYSQL.items() if key != "gtid_mode"}
    assert outcomes(settings_checks({**values, "version": "10.11.6-MariaDB-log"})) == {}


def test_without_a_log_nothing_else_is_said_of_it() -> None:
    assert [one.name for one in settings_checks({**_MYSQL, "log_bin": "OFF"})] == ["log_bin"]


def test_compression_is_fine_where_it_can_be_read() -> None:
    on = {"log_bin_compress": "ON", "binlog_transaction_compression": "ON"}
    assert [one.outcome for one in compression_checks(on)] == ["ok", "ok"]
    assert list(compression_checks(dict.fromkeys(on, "OFF"))) == []


@pytest.mark.parametrize("engine", ["MyISAM", "Aria", None])
def test_rows_that_no_transaction_holds_are_refused(engine: str | None) -> None:
    assert engine_check(engine).outcome == "failed"
    assert engine_check("InnoDB").outcome == "ok"


@pytest.mark.parametrize(
    ("only", "never", "outcome"),
    [
        ("", "", "ok"),
        ("bank,other", "", "ok"),
        ("other", "", "failed"),
        ("", "bank", "failed"),
        ("", "banking", "ok"),
    ],
)
def test_a_database_that_is_left_out_of_the_log_is_refused(
    only: str, never: str, outcome: str
) -> None:
    assert filter_check("bank", only, never).outcome == outcome


# --- PostgreSQL ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "refused"),
    [
        ({}, {}),
        ({"direct": False}, {"connection": "failed"}),
        ({"major": 13}, {"PostgreSQL": "failed"}),
        ({"wal_level": "replica"}, {"wal_level": "failed"}),
    ],
)
def test_a_server_that_cannot_be_followed_is_refused(
    changed: dict[str, Any], refused: dict[str, str]
) -> None:
    server: dict[str, Any] = {"direct": True, "major": 14, "wal_level": "logical", **changed}
    assert outcomes(list(server_checks(**server))) == refused


def test_a_slot_without_bounds_may_fill_the_disk() -> None:
    assert slot_room("-1").outcome == "warning"
    assert slot_room("20GB").outcome == "ok"


def test_a_slot_is_judged_by_what_it_keeps_and_who_reads_it() -> None:
    slot = {"slot_name": "retold_bank", "active": False, "wal_status": "extended"}
    much = 5 << 30

    def judged(lost: str = "", kept: int = 0, **changed: object) -> list[str]:
        return [check.outcome for check in slot_checks({**slot, **changed}, lost, kept)]

    assert [check.outcome for check in slot_checks(None, "", 0)] == ["ok"]
    assert judged() == ["ok"]
    assert judged(kept=much) == ["warning"]
    assert judged(kept=much, active=True) == ["ok"]
    assert judged(wal_status="unreserved", active=True) == ["warning"]
    assert judged(lost="wal_removed") == ["failed"]


def test_a_pooler_is_refused_for_every_source() -> None:
    assert direct_check(False).outcome == "failed"


# --- Kafka ---------------------------------------------------------------------------------------


def test_a_topic_as_it_should_be_has_nothing_to_mend() -> None:
    (check,) = events_topic_checks("bank", _TOPIC)
    assert (check.outcome, check.found) == ("ok", "has 12 partitions and keeps everything")
    (check,) = positions_topic_checks("p", topic(partitions=1, cleanup_policy="compact"))
    assert check.outcome == "ok"


@pytest.mark.parametrize(
    ("changed", "outcome", "words"),
    [
        ({"cleanup_policy": "compact"}, "failed", "all events of an entity but the last"),
        ({"cleanup_policy": "compact,delete"}, "failed", "all events of an entity but the last"),
        ({"retention_ms": "604800000"}, "warning", "forgets events"),
        ({"retention_bytes": "1000000000"}, "warning", "forgets events"),
        ({"max_message_bytes": "500000"}, "warning", "stops the relay"),
        ({"copies": 1}, "failed", "fewer than min.insync.replicas=2"),
        ({"copies": 1, "min_insync_replicas": "1"}, "warning", "one copy"),
        ({"copies": 2}, "warning", "every restart of a broker"),
        ({"min_insync_replicas": "1"}, "warning", "on one disk alone"),
        ({"allowed": frozenset({"DESCRIBE", "READ"})}, "failed", "does not allow this user: Write"),
        ({"allowed": frozenset[str]()}, "failed", "this user: Describe, Read, Write"),
    ],
)
def test_each_fact_of_a_topic_is_looked_at(
    changed: dict[str, Any], outcome: str, words: str
) -> None:
    (check,) = events_topic_checks("bank", topic(**changed))
    assert check.outcome == outcome
    assert words in check.found
    assert check.name == "topic bank"


def test_brokers_that_do_not_tell_what_is_allowed_are_believed() -> None:
    assert [one.outcome for one in events_topic_checks("bank", topic(allowed=None))] == ["ok"]


def test_settings_that_may_not_be_seen_are_a_warning() -> None:
    (check,) = events_topic_checks("bank", replace(_TOPIC, settings=None))
    assert (check.outcome, check.mend) == (
        "warning",
        "allow DescribeConfigs on it, and look",
    )


@pytest.mark.parametrize(
    "changed",
    [
        {"partitions": 3, "cleanup_policy": "compact"},
        {"partitions": 1, "cleanup_policy": "delete"},
        {"partitions": 1, "cleanup_policy": "compact,delete"},
    ],
)
def test_a_topic_that_would_lose_the_position_is_refused(changed: dict[str, Any]) -> None:
    (check,) = positions_topic_checks("p", topic(**changed))
    assert check.outcome == "failed"


def test_a_missing_topic_is_well_where_it_may_be_made() -> None:
    assert missing_topic_check("bank", 12, "").outcome == "ok"
    assert missing_topic_check("bank", 12, "not authorized").outcome == "failed"


def test_transactions_that_are_not_allowed_are_mended_for_relay_and_doctor() -> None:
    check = transactions_check("bank", "not authorized")
    assert check.outcome == "failed"
    assert "retold-relay-bank and retold-doctor-bank" in check.mend
    assert transactions_check("bank", "").outcome == "ok"


# --- clocks --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ahead", "words"),
    [(2.5, "2.5 s behind the database's"), (-90.0, "90.0 s ahead of the database's")],
)
def test_clocks_that_differ_are_a_warning(ahead: float, words: str) -> None:
    assert clock(ahead).outcome == "warning"
    assert words in clock(ahead).found
    assert clock(ahead / 100).outcome == "ok"
