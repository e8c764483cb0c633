"""A relay whose database is gone: with a replica it goes on, with an older state it stops."""

from __future__ import annotations

import json
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pymysql
import pytest
from confluent_kafka import Producer

from retold import EventStore
from retold.cli import main
from tests.relay.chaos import STOPPED_FOR_A_PERSON
from tests.relay.comparison import compare, read_topics
from tests.relay.logs import Event, Link, event, wait_until
from tests.relay.processes import PATIENCE_S, Relay
from tests.rig import GivenKafka, Kafka, MariaDB, MySQL, Postgres, Private
from tests.rig.databases import PASSWORD, USER, query, with_parts

Broker = Kafka | GivenKafka


@pytest.fixture
def name() -> str:
    """Of the database, the relay and the topic."""
    return f"failover_{secrets.token_hex(6)}"


def some(name: str, count: int) -> list[Event]:
    return [event(f"key-{n % 7}", entity_type=name) for n in range(count)]


class Case:
    """Two servers, one of which takes over from the other, and relays that follow them."""

    def __init__(self, name: str, kafka: Broker, folder: Path, stack: ExitStack) -> None:
        self.name = name
        self._kafka = kafka
        self._folder = folder
        self._stack = stack

    def url(self, server: Private) -> str:
        return with_parts(server.url, database=self.name)

    def make_database(self, server: Private) -> None:
        server.create_database(self.name)
        with EventStore(self.url(server)) as store:
            store.migrate()

    def write(self, server: Private, events: list[Event]) -> None:
        link = Link(self.url(server))
        for first in range(0, len(events), 20):
            link.insert(*events[first : first + 20])
        link.close()

    def relay(self, server: Private) -> Relay:
        log = self._folder / f"relay-{server.port}-{secrets.token_hex(2)}.log"
        relay = Relay(self.url(server), self._kafka.url, "--name", self.name, log=log)
        self._stack.callback(relay.close)
        relay.start()
        return relay

    def check(self, server: Private, relay: Relay) -> None:
        """The topics hold what the server's table holds, and the relay is well."""
        until = time.monotonic() + PATIENCE_S
        while (found := compare(self.url(server), self._kafka.url))[1].lost:
            assert time.monotonic() < until, f"{found[1]}\n{relay.last_words()}"
        events, wrong = found
        assert events
        assert not wrong, str(wrong)
        relay.check()

    def check_it_stops(self, server: Private) -> None:
        """A relay stops because the server lacks what was published."""
        relay = self.relay(server)
        assert relay.ends() == STOPPED_FOR_A_PERSON
        assert "set back" in relay.last_words()
        assert "--accept-rewind" in relay.last_words()

    def check_it_stops_in_a_first_start(self, server: Private) -> None:
        """The same, where the last relay was killed before its first start had come to an end."""
        topic = f"retold.relay.{self.name}"
        last = read_topics(self._kafka.url, [topic])[-1]
        saved = json.loads(last.value)
        saved["catching_up"] = saved["position"]
        producer = Producer({"bootstrap.servers": self._kafka.url})
        producer.produce(topic, json.dumps(saved).encode(), last.key, 0)
        assert producer.flush(PATIENCE_S) == 0
        self.check_it_stops(server)

    def publish(self, server: Private) -> None:
        """With a relay that ends afterwards."""
        relay = self.relay(server)
        wait_until(self._follows_the_log)
        self.check(server, relay)
        assert relay.terminate() == 0

    def _follows_the_log(self) -> bool:
        """Whether its position is not that of a first start any more."""
        positions = read_topics(self._kafka.url, [f"retold.relay.{self.name}"])
        return bool(positions) and "catching_up" not in json.loads(positions[-1].value)


@pytest.fixture
def case(name: str, kafka: Broker, tmp_path: Path) -> Iterator[Case]:
    with ExitStack() as stack:
        yield Case(name, kafka, tmp_path, stack)


# --- MySQL and MariaDB ----------------------------------------------------------------------------


class Pair:
    """A primary and a replica of MySQL's, with GTIDs."""

    follow = (
        "CHANGE REPLICATION SOURCE TO SOURCE_HOST='127.0.0.1', SOURCE_PORT={port}, "
        "SOURCE_USER='{user}', SOURCE_PASSWORD='{password}', SOURCE_AUTO_POSITION=1, "
        "GET_SOURCE_PUBLIC_KEY=1"
    )
    start = "START REPLICA"
    stop = "STOP REPLICA"
    forget = "RESET REPLICA ALL"

    def __init__(self, *options: str) -> None:
        """options: of the replica."""
        gtids = ("--gtid-mode=ON", "--enforce-gtid-consistency=ON")
        self.primary: Private = MySQL(*gtids)
        self.replica: Private = MySQL(*gtids, "--server-id=2", *options)

    def begin(self) -> None:
        with ThreadPoolExecutor() as pool:
            list(pool.map(Private.start, (self.primary, self.replica)))
        query(self.primary.url, f"GRANT REPLICATION SLAVE ON *.* TO '{USER}'@'%'")
        login = {"port": self.primary.port, "user": USER, "password": PASSWORD}
        query(
            self.replica.url,
            # Its own user, which comes from the primary now, and all traces of it.
            f"DROP USER '{USER}'@'%'",
            "RESET MASTER",
            self.follow.format(**login),
            self.start,
        )

    def wait_until_the_replica_has(self, events: int, url: Callable[[Private], str]) -> None:
        def there() -> bool:
            try:
                return query(url(self.replica), "SELECT count(*) FROM events") == [(events,)]
            except pymysql.Error:  # not even the table
                return False

        wait_until(there)

    def stop_replicating(self) -> None:
        query(self.replica.url, self.stop)

    def promote(self) -> None:
        self.primary.kill()
        query(self.replica.url, self.stop, self.forget)

    def end(self) -> None:
        self.primary.stop()
        self.replica.stop()


class MariaDBPair(Pair):
    follow = (
        "CHANGE MASTER TO MASTER_HOST='127.0.0.1', MASTER_PORT={port}, MASTER_USER='{user}', "
        "MASTER_PASSWORD='{password}', MASTER_USE_GTID=slave_pos"
    )
    start = "START SLAVE"
    stop = "STOP SLAVE"
    forget = "RESET SLAVE ALL"

    def __init__(self, *options: str) -> None:
        self.primary = MariaDB("--log-slave-updates")
        self.replica = MariaDB("--log-slave-updates", "--server-id=2", *options)


@pytest.fixture
def pair(kind: str) -> Iterator[Pair]:
    yield from begun(Pair() if kind == "mysql8" else MariaDBPair())


@pytest.fixture
def deaf_pair(kind: str) -> Iterator[Pair]:
    """A pair whose replica does not log what it replicates."""
    silent = "--skip-log-slave-updates"
    yield from begun(Pair(silent) if kind == "mysql8" else MariaDBPair(silent))


def begun(pair: Pair) -> Iterator[Pair]:
    try:
        pair.begin()
        yield pair
    finally:
        pair.end()


both_kinds = pytest.mark.parametrize("kind", ["mysql8", "mariadb"])


@both_kinds
def test_a_relay_goes_on_with_the_replica_that_took_over(case: Case, pair: Pair, kind: str) -> None:
    case.make_database(pair.primary)
    before, unpublished, after = (some(case.name, 40) for _ in range(3))
    case.write(pair.primary, before)
    case.publish(pair.primary)
    case.write(pair.primary, unpublished)
    pair.wait_until_the_replica_has(80, case.url)
    pair.promote()
    case.write(pair.replica, after)
    relay = case.relay(pair.replica)
    case.check(pair.replica, relay)
    # The position is one of the new server now.
    relay.kill()
    case.write(pair.replica, some(case.name, 5))
    case.publish(pair.replica)


@both_kinds
def test_a_relay_stops_where_the_replica_lost_what_was_published(
    case: Case, pair: Pair, kind: str
) -> None:
    case.make_database(pair.primary)
    case.write(pair.primary, some(case.name, 20))
    pair.wait_until_the_replica_has(20, case.url)
    pair.stop_replicating()
    case.write(pair.primary, some(case.name, 3))
    case.publish(pair.primary)
    pair.promote()
    case.write(pair.replica, some(case.name, 10))
    case.check_it_stops(pair.replica)
    case.check_it_stops_in_a_first_start(pair.replica)


@both_kinds
def test_a_replica_that_does_not_log_what_it_replicates_is_refused(
    case: Case, deaf_pair: Pair, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    primary, replica = deaf_pair.primary, deaf_pair.replica
    case.make_database(primary)
    deaf_pair.wait_until_the_replica_has(0, case.url)
    looked_at = "log_slave_updates" if kind == "mariadb" else "log_replica_updates"

    def look(server: Private) -> dict[str, dict[str, str]]:
        main(["doctor", "--database", case.url(server), "--json"])
        return {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"]}

    check = look(replica)[looked_at]
    assert check["outcome"] == "failed"
    assert f"--{looked_at.replace('_', '-')}" in check["mend"]
    relay = case.relay(replica)
    assert relay.ends() == STOPPED_FOR_A_PERSON
    assert looked_at in relay.last_words()
    # It has become a primary, and its own changes are in its log.
    deaf_pair.promote()
    assert look(replica)[looked_at]["outcome"] == "ok"


# --- PostgreSQL -----------------------------------------------------------------------------------


class Copy(Postgres):
    """A server on the data that another one had when it was stopped."""

    def __init__(self, original: Postgres, major: int) -> None:
        super().__init__(major)
        self._original = original

    def _prepare(self, folder: Path) -> None:
        data = _folder(self._original) / "data"
        subprocess.run(["cp", "-a", "--reflink=auto", data, folder], check=True)
        (folder / "data/postmaster.pid").unlink(missing_ok=True)

    def _create_user(self) -> None:
        """It is there."""

    def take_over(self) -> None:
        """As a standby that is promoted, or a restore to a point in time: on a new timeline."""
        assert self._daemon is not None
        self._daemon.end(signal.SIGINT)
        data = _folder(self) / "data"
        marker = data / "standby.signal"
        marker.touch()
        shutil.chown(marker, data.owner(), data.group())
        self._launch()
        query(self.url, "SELECT pg_promote()")


def _folder(server: Private) -> Path:
    assert server._daemon is not None
    return server._daemon._folder


@pytest.fixture
def primary(kind: str) -> Iterator[Postgres]:
    server = Postgres(int(kind.removeprefix("postgres")))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def backup(primary: Postgres, kind: str) -> Iterator[Callable[[], Copy]]:
    """Stops the server for a moment and makes a copy, which is started."""
    made: list[Copy] = []

    def make() -> Copy:
        copy = Copy(primary, int(kind.removeprefix("postgres")))
        assert primary._daemon is not None
        primary._daemon.end(signal.SIGINT)
        made.append(copy)
        copy.start()
        primary.restart()
        return copy

    yield make
    for copy in made:
        copy.stop()


@pytest.mark.parametrize("kind", ["postgres18"])
def test_a_relay_goes_on_with_the_standby_that_took_over(
    case: Case, primary: Postgres, backup: Callable[[], Copy], kind: str
) -> None:
    """Where the standby has the slot, as it has since PostgreSQL 17 if it is told to."""
    case.make_database(primary)
    case.write(primary, some(case.name, 20))
    case.publish(primary)
    case.write(primary, some(case.name, 20))
    standby = backup()
    primary.kill()
    standby.take_over()
    case.write(standby, some(case.name, 20))
    relay = case.relay(standby)
    case.check(standby, relay)


@pytest.mark.parametrize("kind", ["postgres15"])
def test_a_relay_stops_where_a_restored_backup_lacks_what_was_published(
    case: Case, primary: Postgres, backup: Callable[[], Copy], kind: str
) -> None:
    case.make_database(primary)
    case.write(primary, some(case.name, 5))
    restored = backup()
    case.write(primary, some(case.name, 300))
    case.publish(primary)
    case.check_it_stops(restored)
    case.check_it_stops_in_a_first_start(restored)
    # So long a log of its own that it could hold what was published.
    restored.take_over()
    case.write(restored, some(case.name, 600))
    case.check_it_stops(restored)
