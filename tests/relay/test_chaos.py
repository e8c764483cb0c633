"""Relays, brokers and databases that end at any moment: what is in the table is in the topics.

Every event, once, in the order of its entity, unchanged: `retold verify` says so, and so does a
comparison that knows nothing of the project.
"""

from __future__ import annotations

import os
import random
import secrets
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from confluent_kafka import murmur2

from tests.integration.proxy import Proxy
from tests.relay.chaos import LOST_THE_LOCK, Positions, Writers, new_dice
from tests.relay.comparison import Found, Stored, compare, differences
from tests.relay.logs import KINDS, Log, Logs, event
from tests.relay.processes import PATIENCE_S, Relay, verify
from tests.rig import Kafka, Rig, Server
from tests.rig.databases import query

SHORT = ("binlog mariadb", "binlog mysql8", "wal postgres18", "polling sqlite")


def sources(*names: str) -> pytest.MarkDecorator:
    chosen = [pytest.param(KINDS[name].database, name, id=name) for name in names]
    return pytest.mark.parametrize(("kind", "name"), chosen)


@pytest.fixture(scope="module")
def broker() -> Iterator[Kafka]:
    """A broker of its own, that is kept busy without disturbing others."""
    broker = Kafka()
    try:
        broker.start()
        yield broker
    finally:
        broker.stop()


@pytest.fixture(scope="module")
def logs(servers: Rig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Logs]:
    logs = Logs(servers, tmp_path_factory.mktemp("chaos"))
    yield logs
    logs.close()


@pytest.fixture
def log(logs: Logs, kind: str, name: str) -> Iterator[Log]:
    log = logs.new(name)
    if KINDS[name].database in ("mysql8", "mariadb"):
        query(log.admin, "SET GLOBAL local_infile = 1")
    yield log
    log.close()


def check_all(log: Log, bootstrap: str, relay: Relay) -> None:
    """Once the relay has come to the end, the topics hold what the table holds."""
    report = verify(log.url, bootstrap, "--patience", str(int(PATIENCE_S)))
    assert report["sound"], f"{report}\n{relay.last_words()}"
    events, wrong = compare(log.url, bootstrap)
    assert not wrong, str(wrong)
    assert report["events"] == report["records"] == events
    print(f"{events} events")


# --- killed relays --------------------------------------------------------------------------------


@pytest.mark.timeout(240)
@sources(*SHORT)
def test_a_relay_that_is_killed_again_and_again_loses_doubles_and_reorders_nothing(
    log: Log, broker: Kafka, tmp_path: Path, kind: str, name: str
) -> None:
    live_and_die(log, broker.url, tmp_path, kills=20)


def live_and_die(log: Log, bootstrap: str, folder: Path, kills: int) -> None:
    dice = new_dice()
    name = f"chaos-{secrets.token_hex(6)}"
    history = [event(f"old-{n % 50}", entity_type=name) for n in range(3000)]
    log.link().insert_many(history)  # so that it begins by catching up with the table
    relay = Relay(log.url, bootstrap, "--name", name, log=folder / "relay.log")
    positions = Positions(bootstrap, name)
    writers = Writers(log.url, name, dice)
    try:
        for _ in range(kills):
            relay.start()
            live(relay, positions, dice)
            relay.check()
            relay.kill()
        relay.start()
        changes = writers.stop()
        assert changes > kills
        check_all(log, bootstrap, relay)
        assert relay.terminate() == 0
    finally:
        writers.stop()
        relay.close()
        positions.close()


def live(relay: Relay, positions: Positions, dice: random.Random) -> None:
    """Until a moment that nobody chose."""
    fate = dice.random()
    if fate < 0.35:  # at its start, maybe
        time.sleep(dice.uniform(0, 0.7))
        return
    before = positions.end()
    positions.wait_for(before + dice.randint(1, 12), relay.check)
    time.sleep(dice.uniform(0, 0.01))
    if fate > 0.9:
        relay.send(signal.SIGSTOP)
        time.sleep(dice.uniform(0, 0.3))
        relay.send(signal.SIGCONT)
        time.sleep(dice.uniform(0, 0.03))


# --- everything breaks ----------------------------------------------------------------------------


class BrokenKafka(Kafka):
    """A broker that is reached through a proxy, so that its network can break."""

    def __init__(self) -> None:
        super().__init__()
        self.proxy = Proxy(f"kafka://broker@127.0.0.1:{self.port}/")
        addresses = (
            f"PLAINTEXT://127.0.0.1:{self.proxy.port},SASL_PLAINTEXT://127.0.0.1:{self._login_port}"
        )
        self._options = ("--override", f"advertised.listeners={addresses}")


class Storm:
    """Two relays of one name, and all that may happen to them and to what they need."""

    def __init__(
        self,
        log: Log,
        server: Server | None,
        kafka: BrokenKafka,
        folder: Path,
        dice: random.Random,
        stack: ExitStack,
    ) -> None:
        self.name = f"storm-{secrets.token_hex(6)}"
        self._dice = dice
        self._server = server
        self._kafka = kafka
        bootstrap = f"127.0.0.1:{kafka.proxy.port}"
        self._networks = [kafka.proxy]
        url = log.url
        if server is not None:
            database = stack.enter_context(Proxy(log.url))
            self._networks.append(database)
            url = database.url
        self.relays = [
            Relay(url, bootstrap, "--name", self.name, log=folder / f"relay-{number}.log")
            for number in (1, 2)
        ]
        for relay in self.relays:
            stack.callback(relay.close)
            relay.start()
        self.positions = Positions(bootstrap, self.name)
        stack.callback(self.positions.close)
        self._events: dict[Callable[[], None], int] = {
            self._calm: 4,
            self._kill: 6,
            self._freeze: 2,
            self._break_connections: 3,
            self._cut_a_network: 2,
            self._kill_the_broker: 1,
        }
        if server is not None:
            self._events[self._kill_the_database] = 1

    def blow(self, seconds: float) -> int:
        """How many things happened."""
        until = time.monotonic() + seconds
        happened = 0
        while time.monotonic() < until:
            (what,) = self._dice.choices(list(self._events), list(self._events.values()))
            what()
            self.keep_up()
            time.sleep(self._dice.uniform(0, 1.5))
            happened += 1
        return happened

    def keep_up(self) -> None:
        """Start again what has ended, as whoever runs relays does."""
        for relay in self.relays:
            code = relay.code()
            if code is not None:
                assert code in (LOST_THE_LOCK, -signal.SIGKILL), f"{code}: {relay.last_words()}"
                relay.start()

    def _calm(self) -> None:
        """Whatever happened before, they go on."""
        before = self.positions.end()
        self.positions.wait_for(before + 10, self.keep_up)

    def _kill(self) -> None:
        self._dice.choice(self.relays).kill()

    def _freeze(self) -> None:
        relay = self._dice.choice(self.relays)
        relay.send(signal.SIGSTOP)
        time.sleep(self._dice.choice((0.1, 2, 9)))  # the last is longer than a lock is kept
        relay.send(signal.SIGCONT)

    def _break_connections(self) -> None:
        self._dice.choice(self._networks).break_all()

    def _cut_a_network(self) -> None:
        network = self._dice.choice(self._networks)
        network.refuse()
        network.break_all()
        time.sleep(self._dice.choice((0.1, 1, 8)))
        _accept(network)

    def _kill_the_broker(self) -> None:
        self._kafka.kill()
        time.sleep(self._dice.choice((0, 1, 5)))
        self._kafka.restart()

    def _kill_the_database(self) -> None:
        assert self._server is not None
        self._server.kill()
        time.sleep(self._dice.choice((0, 1, 8)))
        self._server.restart()


def _accept(network: Proxy) -> None:
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        with suppress(OSError):  # the last listener may not have ended yet
            network.accept()
            return
        time.sleep(0.01)


SOAKED = tuple(name for name in KINDS if name != "polling postgres18")


@pytest.mark.soak
@sources(*SOAKED)
def test_a_storm_loses_doubles_and_reorders_nothing(
    servers: Rig, tmp_path: Path, kind: str, name: str
) -> None:
    """For RETOLD_SOAK_S seconds, 180 without."""
    dice = new_dice()
    with ExitStack() as stack:
        logs = Logs(servers, tmp_path)
        stack.callback(logs.close)
        log = logs.new(name, private=True)
        server = None if kind == "sqlite" else logs.server(name, private=True)
        if kind in ("mysql8", "mariadb"):
            query(log.admin, "SET GLOBAL local_infile = 1")
            # Else a change of the table, behind which it is changed again, would stop a relay.
            query(log.admin, "SET GLOBAL binlog_row_metadata = 'FULL'")
        kafka = BrokenKafka()
        stack.callback(kafka.stop)
        stack.enter_context(kafka.proxy)
        kafka.start()
        storm = Storm(log, server, kafka, tmp_path, dice, stack)
        writers = Writers(log.url, storm.name, dice, rough=True)
        stack.callback(writers.stop)
        happened = storm.blow(float(os.environ.get("RETOLD_SOAK_S", "180")))
        writers.stop()
        storm.keep_up()
        check_all(log, f"127.0.0.1:{kafka.proxy.port}", storm.relays[0])
        print(f"{happened} things happened")
        storm.keep_up()
        assert [relay.terminate() for relay in storm.relays] == [0, 0]


@pytest.mark.soak
@sources(*SHORT)
def test_a_relay_that_is_killed_hundreds_of_times_loses_doubles_and_reorders_nothing(
    log: Log, broker: Kafka, tmp_path: Path, kind: str, name: str
) -> None:
    live_and_die(log, broker.url, tmp_path, kills=300)


# --- the comparison itself ------------------------------------------------------------------------


def stored(number: int, data: str = "{}") -> Stored:
    return Stored(f"{number:016x}-{0:016x}", "t", data, "topic", "key", None)


def found(row: Stored, value: str = "", partition: int = -1) -> Found:
    text = value or (
        f'{{"id":"{row.id}","entityId":"key","entityType":"topic","eventData":"{row.data}",'
        f'"eventType":"t","binlogFileOffset":{{}}}}'
    )
    headers = {
        "id": row.id.encode(),
        "type": b"t",
        "time": b"%d" % int(row.id[:16], 16),
    }
    place = murmur2(b"key", 12) if partition < 0 else partition
    return Found("topic", place, 12, b"key", text.encode(), headers)


ROWS = [stored(number) for number in range(1, 6)]
RECORDS = [found(row) for row in ROWS]


def test_the_comparison_finds_nothing_where_all_is_well() -> None:
    assert not differences(ROWS, RECORDS)


def test_the_comparison_finds_a_lost_event() -> None:
    assert differences(ROWS, RECORDS[1:]).lost == [ROWS[0].id]
    assert differences(ROWS, [*RECORDS[:2], *RECORDS[3:]]).lost == [ROWS[2].id]


def test_the_comparison_finds_a_doubled_event() -> None:
    assert differences(ROWS, [*RECORDS, RECORDS[1]]).doubled == [ROWS[1].id]


def test_the_comparison_finds_an_event_that_was_rolled_back() -> None:
    assert differences(ROWS[:-1], RECORDS).invented == [ROWS[-1].id]


def test_the_comparison_finds_two_events_in_the_wrong_order() -> None:
    wrong = differences(ROWS, [RECORDS[1], RECORDS[0], *RECORDS[2:]])
    assert len(wrong.reordered) == 1
    assert not wrong.lost


@pytest.mark.parametrize(
    "record",
    [
        found(ROWS[4], partition=murmur2(b"key", 12) + 1),
        found(ROWS[4])._replace(key=b"other"),
        found(ROWS[4])._replace(headers={}),
        found(stored(5, data="[]")),
    ],
    ids=["partition", "key", "headers", "data"],
)
def test_the_comparison_finds_an_altered_event(record: Found) -> None:
    assert len(differences(ROWS, [*RECORDS[:4], record]).altered) == 1
