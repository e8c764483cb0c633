"""`retold doctor` on real servers: it sees what is wrong, says so, and changes nothing."""

from __future__ import annotations

import contextlib
import io
import json
import secrets
import sqlite3
import threading
import time
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from retold import Aggregate, Event, EventStore
from retold.brokers.kafka import KafkaPublisher, positions_topic
from retold.cli import main
from retold.cli.relay import add_to, assemble
from retold.cli.settings import Settings
from retold.errors import BrokerRefused, LogUnsuitable
from tests.rig import GivenKafka, Kafka, MariaDB, MySQL, Postgres, Rig
from tests.rig.databases import USER, query, with_parts
from tests.rig.servers import Private

# Its types are incomplete.
_admin: Any = import_module("confluent_kafka.admin")

_NOWHERE = "127.0.0.1:1"


class Happened(Event, name="test_doctor.Happened"):
    pass


class Thing(Aggregate, name="test_doctor.Thing", ignores=(Happened,)):
    def happen(self) -> None:
        self.emit(Happened())


Found = dict[str, tuple[str, str, str]]


def look(url: str, *options: str) -> Found:
    """What the doctor finds: outcome, words and mend, by name."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        code = main(["doctor", "--database", url, "--json", *options])
    answer = json.loads(out.getvalue())
    checks = answer["checks"]
    assert answer["sound"] == all(check["outcome"] != "failed" for check in checks)
    assert code == (0 if answer["sound"] else 1)
    return {check["name"]: (check["outcome"], check["found"], check["mend"]) for check in checks}


def wrong(found: Found) -> dict[str, str]:
    return {name: outcome for name, (outcome, _, _) in found.items() if outcome != "ok"}


def migrate(url: str, *, polling: bool = False) -> None:
    with EventStore(url) as store:
        store.migrate(polling=polling)


def start_relay(url: str, kafka: str) -> None:
    """Put a relay together, and let it follow the log for a moment."""
    parser = ArgumentParser()
    add_to(parser.add_subparsers())
    name = f"doctor-{secrets.token_hex(6)}"
    given = ["relay", "--database", url, "--kafka", kafka, "--name", name]
    with ExitStack() as stack:
        relay, _ = assemble(Settings(parser.parse_args(given)), threading.Event(), stack)
        relay.run(threading.Event())


# --- databases -----------------------------------------------------------------------------------


@pytest.fixture
def private() -> Iterator[Callable[[Private], str]]:
    """Starts a server, and gives the URL of a database with tables for its administrator."""
    started: list[Private] = []

    def start(server: Private) -> str:
        server.start()
        started.append(server)
        server.create_database("bank")
        url = with_parts(server.url, database="bank")
        migrate(url)
        return url

    yield start
    for server in started:
        server.stop()


@pytest.mark.parametrize(
    "server",
    [
        pytest.param(MariaDB, marks=pytest.mark.database("mariadb")),
        pytest.param(MySQL, marks=pytest.mark.database("mysql8")),
    ],
)
def test_every_setting_of_a_binary_log_is_looked_at(
    server: Callable[..., Private], private: Callable[[Private], str]
) -> None:
    url = private(
        server(
            "--binlog-format=STATEMENT",
            "--binlog-row-image=MINIMAL",
            "--sync-binlog=0",
            "--innodb-flush-log-at-trx-commit=2",
            "--binlog-expire-logs-seconds=3600",
            "--binlog-ignore-db=bank",
        )
    )
    query(url, "ALTER TABLE events DROP KEY events_idx, ENGINE = MyISAM")
    found = wrong(look(url))
    assert found.pop("gtid_mode", "warning") == "warning"  # MySQL's
    assert found == {
        "binlog_format": "failed",
        "binlog_row_image": "warning",
        "binlog_row_metadata": "warning",
        "sync_binlog": "warning",
        "innodb_flush_log_at_trx_commit": "warning",
        "binlog retention": "warning",
        "engine of events": "failed",
        "binary log": "failed",
        "Kafka": "warning",
    }

    for name in ("binlog_format", "engine of events"):
        _, words, mend = look(url)[name]
        with pytest.raises(LogUnsuitable, match=f"{name} {words}"):
            start_relay(url, _NOWHERE)
        query(url, mend.removeprefix("run: ").partition(", and")[0])
    with pytest.raises(LogUnsuitable, match="leaves the database bank out"):
        start_relay(url, _NOWHERE)


@pytest.mark.database("mariadb")
def test_a_server_without_a_binary_log_is_refused(private: Callable[[Private], str]) -> None:
    url = private(MariaDB("--skip-log-bin"))
    found = look(url)
    assert wrong(found) == {"log_bin": "failed", "Kafka": "warning"}
    with pytest.raises(LogUnsuitable, match="log_bin is off"):
        start_relay(url, _NOWHERE)
    assert "replication" not in found


@pytest.mark.parametrize("kind", ["mysql8", "mariadb"])
def test_a_user_who_may_not_follow_a_binary_log_is_told_the_grant(
    kind: str, servers: Rig, fresh_database: Callable[[str], str]
) -> None:
    url = fresh_database(kind)
    migrate(url)
    if servers[kind].user is None:
        pytest.skip("the databases here are the administrator's")
    admin = servers[kind].url
    try:
        assert look(url)["binary log"][0] == "failed"
        query(admin, f"GRANT REPLICATION CLIENT ON *.* TO '{USER}'@'%'")
        outcome, _, mend = look(url)["replication"]
        assert outcome == "failed"
        assert "REPLICATION SLAVE" in mend
        query(admin, f"GRANT REPLICATION SLAVE ON *.* TO '{USER}'@'%'")
        assert look(url)["replication"][0] == "ok"
    finally:
        query(admin, f"REVOKE REPLICATION SLAVE, REPLICATION CLIENT ON *.* FROM '{USER}'@'%'")


@pytest.mark.database("postgres18")
def test_every_setting_of_a_wal_is_looked_at(private: Callable[[Private], str]) -> None:
    options = ("wal_level=replica", "max_replication_slots=0", "max_slot_wal_keep_size=-1")
    url = private(Postgres(18, *(part for option in options for part in ("-c", option))))
    assert wrong(look(url)) == {
        "wal_level": "failed",
        "max_replication_slots": "warning",
        "max_slot_wal_keep_size": "warning",
        "Kafka": "warning",
    }
    with pytest.raises(LogUnsuitable, match="wal_level is replica"):
        start_relay(url, _NOWHERE)


@pytest.mark.database("postgres18")
def test_publication_and_slot_are_looked_at(
    servers: Rig, fresh_database: Callable[[str], str]
) -> None:
    url = fresh_database("postgres18")
    migrate(url)
    name = url.rpartition("/")[2]
    admin = with_parts(servers["postgres18"].url, database=name)
    relay = ("--name", name)
    assert look(admin, *relay)["publication retold_public_events"][0] == "ok"
    query(admin, "CREATE PUBLICATION retold_public_events WITH (publish = 'insert')")
    outcome, _, mend = look(admin, *relay)["publication"]
    assert outcome == "failed"
    query(admin, mend.removeprefix("run: "))
    assert look(admin, *relay)["publication retold_public_events"][0] == "ok"

    assert look(admin, *relay)["replication slot"][0] == "ok"
    query(admin, f"SELECT pg_create_logical_replication_slot('retold_{name}', 'test_decoding')")
    try:
        outcome, found, _ = look(admin, *relay)["replication slot"]
        assert outcome == "failed"
        assert "another kind" in found
        query(admin, f"SELECT pg_drop_replication_slot('retold_{name}')")
        query(admin, f"SELECT pg_create_logical_replication_slot('retold_{name}', 'pgoutput')")
        assert look(admin, *relay)[f"slot retold_{name}"][0] == "ok"
    finally:
        query(admin, f"SELECT pg_drop_replication_slot('retold_{name}')")


@pytest.mark.database("postgres18")
def test_a_slot_that_lost_its_log_is_told(private: Callable[[Private], str]) -> None:
    url = private(Postgres(18, "-c", "max_slot_wal_keep_size=1MB", "-c", "min_wal_size=32MB"))
    query(url, "SELECT pg_create_logical_replication_slot('retold_bank', 'pgoutput')")
    for _ in range(4):
        query(url, "SELECT pg_logical_emit_message(false, '', repeat('x', 1000))")
        query(url, "SELECT pg_switch_wal()")
    query(url, "CHECKPOINT")
    outcome, found, mend = look(url)["slot retold_bank"]
    assert outcome == "failed"
    assert "has lost its log" in found
    assert "--resync" in mend


@pytest.mark.database("pgbouncer")
@pytest.mark.parametrize("source", ["wal", "polling"])
def test_a_pooler_in_between_is_seen(source: str, fresh_database: Callable[[str], str]) -> None:
    url = fresh_database("pgbouncer")
    migrate(url, polling=True)
    found = look(url, "--source", source)
    assert found["connection"][0] == "failed"
    with pytest.raises(LogUnsuitable, match="a pooler stands in between"):
        start_relay(url, _NOWHERE)


def test_tables_and_migrations_are_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "bank.db"
    url = f"sqlite:///{path}"
    assert look(url)["database"][0] == "failed"
    assert not path.exists()

    sqlite3.connect(path).close()
    assert wrong(look(url))["events"] == "failed"
    with EventStore(url) as store:
        store.repository(Thing).create(Thing.happen)
    assert wrong(look(url)) == {"polling index": "failed", "Kafka": "warning"}
    migrate(url, polling=True)
    assert wrong(look(url)) == {"Kafka": "warning"}
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("DELETE FROM retold_migrations")
    outcome, _, mend = look(url)["migrations"]
    assert outcome == "failed"
    assert "retold migrate" in mend


def test_a_database_that_is_away_is_one_thing_that_failed(kafka: Kafka | GivenKafka) -> None:
    found = look("postgresql://ann:secret@127.0.0.1:1/bank", "--kafka", kafka.url)
    assert found["database"][0] == "failed"
    assert found["Kafka"][0] == "ok"
    assert "secret" not in str(found)


# --- Kafka ---------------------------------------------------------------------------------------


@pytest.fixture
def sqlite(fresh_database: Callable[[str], str]) -> str:
    url = fresh_database("sqlite")
    with EventStore(url) as store:
        store.repository(Thing).create(Thing.happen)
        store.migrate(polling=True)
    return url


@pytest.fixture
def make_topic(kafka: Kafka | GivenKafka) -> Iterator[Callable[..., None]]:
    admin = _admin.AdminClient({"bootstrap.servers": kafka.url})
    made: list[str] = []

    def make(topic: str, partitions: int = 1, **settings: str) -> None:
        config = {key.replace("_", "."): value for key, value in settings.items()}
        admin.create_topics([_admin.NewTopic(topic, partitions, 1, config=config)])[topic].result()
        made.append(topic)

    yield make
    for topic, deleted in admin.delete_topics(made).items() if made else ():
        deleted.result()
        until = time.monotonic() + 30
        while topic in admin.list_topics(timeout=5).topics:
            assert time.monotonic() < until
            time.sleep(0.02)


def test_what_is_not_there_yet_and_may_be_made_is_well(
    sqlite: str, kafka: Kafka | GivenKafka
) -> None:
    found = look(sqlite, "--kafka", kafka.url)
    assert wrong(found) == {}
    assert "is made when it is needed" in found["topic test_doctor.Thing"][1]
    admin = _admin.AdminClient({"bootstrap.servers": kafka.url})
    assert "test_doctor.Thing" not in admin.list_topics(timeout=5).topics


@pytest.mark.parametrize(
    ("settings", "outcome"),
    [
        ({"cleanup_policy": "compact"}, "failed"),
        ({"min_insync_replicas": "2", "retention_ms": "-1"}, "failed"),
        ({"retention_ms": "1000000"}, "warning"),
        ({"retention_ms": "-1", "max_message_bytes": "10000"}, "warning"),
    ],
)
def test_a_topic_is_looked_at_and_refused_by_a_relay_where_it_has_failed(
    settings: dict[str, str],
    outcome: str,
    sqlite: str,
    kafka: Kafka | GivenKafka,
    make_topic: Callable[..., None],
) -> None:
    make_topic("test_doctor.Thing", 3, **settings)
    found = look(sqlite, "--kafka", kafka.url)
    assert wrong(found) == {"topic test_doctor.Thing": outcome}
    if outcome == "failed":
        with pytest.raises(BrokerRefused, match=r"topic test_doctor\.Thing has"):
            start_relay(sqlite, kafka.url)


@pytest.mark.parametrize(
    ("partitions", "policy"), [(2, "compact"), (1, "delete")], ids=["partitions", "policy"]
)
def test_the_topic_of_the_positions_is_looked_at(
    partitions: int,
    policy: str,
    sqlite: str,
    kafka: Kafka | GivenKafka,
    make_topic: Callable[..., None],
) -> None:
    name = f"doctor-{secrets.token_hex(6)}"
    make_topic(positions_topic(name), partitions, cleanup_policy=policy)
    found = look(sqlite, "--kafka", kafka.url, "--name", name)
    assert wrong(found) == {f"topic {positions_topic(name)}": "failed"}


def test_a_user_without_permissions_is_told_which(sqlite: str, kafka: Kafka | GivenKafka) -> None:
    address, login = kafka.login("stranger")
    logged_in = [f"--kafka-setting={key}={value}" for key, value in login.items()]
    found = look(sqlite, "--kafka", address, *logged_in, "--name", "bank")
    assert wrong(found) == {
        "transactions": "failed",
        "topic retold.relay.bank": "failed",
        "topic test_doctor.Thing": "failed",
    }
    assert "retold-relay-bank" in found["transactions"][2]


def test_a_relay_that_runs_is_not_disturbed(sqlite: str, kafka: Kafka | GivenKafka) -> None:
    name = f"doctor-{secrets.token_hex(6)}"
    publisher = KafkaPublisher(name, kafka.url)
    publisher.begin()
    publisher.publish([], b"one")
    look(sqlite, "--kafka", kafka.url, "--name", name)
    publisher.publish([], b"two")
    publisher.close()


def test_a_broker_that_is_away_is_one_thing_that_failed(
    sqlite: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retold.brokers.kafka_facts.PATIENCE_S", 0.5)
    assert wrong(look(sqlite, "--kafka", _NOWHERE)) == {"Kafka": "failed"}


# --- the command ---------------------------------------------------------------------------------


def test_it_prints_a_line_for_each_check_and_one_for_each_mend(
    sqlite: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "--database", sqlite]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("ok      database answers")
    assert lines[-2:] == [
        "warning Kafka was not looked at",
        "         name it with --kafka HOST:PORT",
    ]


@pytest.mark.parametrize(
    ("encoding", "sign"), [("utf-8", "\x1b[32m✓\x1b[0m "), ("latin-1", "ok      ")]
)
def test_a_terminal_gets_signs_if_it_can_show_them(
    encoding: str, sign: str, sqlite: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = io.BytesIO()

    class Terminal(io.TextIOWrapper):
        def isatty(self) -> bool:
            return True

    out = Terminal(raw, encoding=encoding, write_through=True)
    monkeypatch.setattr("sys.stdout", out)
    main(["doctor", "--database", sqlite])
    assert raw.getvalue().decode(encoding).startswith(f"{sign}database answers")


def test_a_wrong_url_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--database", "oracle://bank"]) == 2
    assert capsys.readouterr().err.startswith("error: ")
