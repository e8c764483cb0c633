"""Consuming against the floors and FastStream: `python -m benchmarks.consume`; docs/benchmarks.md.

Starts its own servers. Every contestant runs in a process of its own and reads the same records; in a
round all take their turns. CPU is of all threads of the process, for each event, from the first event
to the last: on a machine that does other work too, compare that.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from importlib.metadata import version
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

from benchmarks import consume_floors as floors
from benchmarks import consume_members as members
from benchmarks.relay import DATA, Database, Relay, Watcher, open_database, write_steadily
from benchmarks.relay_floors import Measured, Record, produce_one_by_one
from retold import Delivery, EventStore
from tests.at_work import at_work
from tests.rig import Kafka, Rig
from tests.rig.kafka import ORDINARY_JVM

PARTS = ("rates", "lanes", "sleep", "database", "latency", "memory")
DEFAULT = "sqlite,postgres18,mysql8"
PACKAGES = ("retold", "confluent-kafka", "msgspec", "psycopg", "PyMySQL")
_JOINING_S = 3.0
_PATIENCE_S = 60.0
_SPAWN = multiprocessing.get_context("spawn")
_LARGE = '{"owner":"' + 10_000 * "x" + '","note":"","lines":[],"address":""}'


# --- contestants in turns -------------------------------------------------------------------------


class Contestant(NamedTuple):
    name: str
    work: Callable[..., Measured]
    more: tuple[object, ...] = ()


def in_process(work: Callable[..., Any], *arguments: object) -> Any:
    """What a function returns in a new process, or as text why it does not."""
    pipe, other = _SPAWN.Pipe()
    process = _SPAWN.Process(target=_send, args=(other, work, *arguments))
    process.start()
    other.close()
    try:
        found = pipe.recv()
    except EOFError:
        found = "it died"
    process.join()
    return found


def _send(pipe: Connection, work: Callable[..., Any], *arguments: object) -> None:
    try:
        found: Any = work(*arguments)
    except floors.NotInstalled as missing:
        found = str(missing)
    except Exception as error:
        found = f"{type(error).__name__}: {error}"
    pipe.send(found)


def compete(
    contestants: Sequence[Contestant], rounds: int, prepare: Callable[[], tuple[object, ...]]
) -> dict[str, Measured]:
    """A table of medians, and the last round's numbers. The others are compared with the first one,
    within a round. prepare: makes the arguments of all for a round."""
    found: dict[str, list[Measured]] = {one.name: [] for one in contestants}
    failed: dict[str, str] = {}
    for _ in range(rounds):
        arguments = prepare()
        for name, work, more in contestants:
            seen = in_process(work, *arguments, *more) if name not in failed else None
            if isinstance(seen, Measured):
                found[name].append(seen)
            elif seen is not None:
                failed[name] = str(seen)
    print(f"  {'':<34} {'events/s':>10} {'CPU µs':>8} {'÷ first':>8} {'CPU ÷':>7}")
    medians: dict[str, Measured] = {}
    beside = next(iter(found.values()))
    for name, all_seen in found.items():
        if name in failed:
            print(f"  {name:<34} {failed[name]}", flush=True)
            continue
        medians[name] = Measured(
            all_seen[0].events,
            statistics.median(each.seconds for each in all_seen),
            statistics.median(each.cpu for each in all_seen),
        )
        row = f"  {name:<34} {medians[name].rate:>10,.0f} {medians[name].cpu:>8.1f}"
        if len(beside) == rounds:
            pairs = list(zip(all_seen, beside, strict=True))
            rate = statistics.median(ours.rate / bare.rate for ours, bare in pairs)
            cpu = statistics.median(ours.cpu / bare.cpu for ours, bare in pairs)
            row += f" {rate:>8.2f} {cpu:>7.2f}"
        print(row, flush=True)
    return medians


# --- what is measured -----------------------------------------------------------------------------


class Bench:
    """The servers, and what is asked of them."""

    def __init__(self, rig: Rig, kafka: str, folder: Path, arguments: argparse.Namespace) -> None:
        self._rig = rig
        self._kafka = kafka
        self._folder = folder
        self._arguments = arguments
        self._databases: list[str] = arguments.databases.split(",")
        self._rounds: int = arguments.rounds
        self.targets: list[bool] = []

    def _open(self, name: str, *, broker: bool = False) -> Database:
        database = open_database(self._rig, name, self._folder)
        if broker:
            with EventStore(database.url) as store:
                store.migrate(subscriptions=True)
        return database

    def _want(self, what: str, met: bool) -> None:
        self.targets.append(met)
        print(f"  {'ok    ' if met else 'MISSED'} {what}", flush=True)

    def rates(self) -> None:
        events: int = self._arguments.events
        topic, url = members.fill_topic(self._kafka, events, 1000), self._open("sqlite").url
        print(f"a handler that does nothing, {events:,} events on Kafka")
        medians = compete(
            [
                Contestant("bare loop, batches", floors.consume_batches),
                Contestant("bare loop, one by one", floors.poll_one_by_one),
                Contestant("retold", members.nothing, (url,)),
                Contestant("retold, 16 lanes", members.nothing, (url, 16)),
                Contestant("retold, async handler", members.nothing_async, (url,)),
                Contestant("FastStream", floors.faststream_one_by_one),
                Contestant("FastStream, batches", floors.faststream_batches),
            ],
            self._rounds,
            lambda: (self._kafka, topic, events),
        )
        rate = medians["retold"].rate if "retold" in medians else 0
        self._want("≥ 80,000 events/s with the defaults", rate >= 80_000)

    def lanes(self) -> None:
        events: int = self._arguments.updates
        entities = max(16, events // 20)
        topic = members.fill_topic(self._kafka, events, entities)
        print(f"a handler that updates an entity, {events:,} events of {entities:,} on Kafka")
        for name in self._databases:
            url = self._open(name).url
            for lanes in map(int, self._arguments.lanes.split(",")):
                print(f" {name}, {lanes} lanes")
                more = (url, lanes, entities)
                compete(
                    [
                        Contestant(f"updates by {lanes} threads", members.update_alone, more),
                        Contestant("retold", members.update, more),
                    ],
                    self._rounds,
                    lambda: (self._kafka, topic, events),
                )

    def sleep(self) -> None:
        events: int = self._arguments.sleeps
        topic, url = members.fill_topic(self._kafka, events, 1000), self._open("sqlite").url
        print(
            f"an async handler that sleeps {floors.SLEEP_S * 1000:.0f} ms, {floors.LANES} lanes, "
            f"{events:,} events on Kafka: at most {floors.LANES / floors.SLEEP_S:,.0f}/s"
        )
        compete(
            [
                Contestant("bare tasks", floors.sleep_in_tasks),
                Contestant("retold", members.sleep, (url,)),
                Contestant("FastStream, workers without order", floors.faststream_sleeping),
            ],
            self._rounds,
            lambda: (self._kafka, topic, events),
        )

    def database(self) -> None:
        events: int = self._arguments.table_events
        for name in self._databases:
            print(f"a handler that does nothing, {events:,} events in {name} as broker")

            def prepare(name: str = name) -> tuple[object, ...]:
                database = self._open(name, broker=True)
                database.fill("update", "bench.Filled", events)
                database.forget_place()
                return None, "bench.Filled", events, database.url

            medians = compete(
                [
                    Contestant("bare loop, by ids: not safe", members.read_table),
                    Contestant("retold", members.nothing),
                    Contestant("retold, what is numbered already", members.nothing),
                ],
                self._rounds,
                prepare,
            )
            rate = medians["retold"].rate if "retold" in medians else 0
            self._want("≥ 5,000 events/s", rate >= 5_000)

    def latency(self) -> None:
        rate, seconds = self._arguments.rate, self._arguments.seconds
        print(f"delay from commit to handler at {rate:,.0f} events/s, p50 / p99 ms")
        bare, ours = self._through_kafka(int(200 * seconds))
        print(f"  {'Kafka alone, bare loop':<34} {_percentiles(bare)}")
        print(f"  {'Kafka alone, retold':<34} {_percentiles(ours)}", flush=True)
        for name in self._databases:
            found = self._through_relay(name)
            print(f"  {name + ', relay, Kafka':<34} {_percentiles(found)}", flush=True)
        for name in self._databases:
            database = self._open(name, broker=True)
            found = self._delays(database, "bench.Steady", None)
            print(f"  {name + ' as broker':<34} {_percentiles(found)}", flush=True)
            if name != "sqlite":
                most = 15 if name.startswith("postgres") else 60
                self._want(f"p50 ≤ {most} ms", 1000 * found[len(found) // 2] <= most)

    def _through_kafka(self, events: int) -> tuple[list[float], list[float]]:
        """Transactions of one record, from their begin; both consumers at once."""
        topic = members.new_topic(self._kafka)
        made = members.records_of(topic, events, events)
        handled: dict[bytes, float] = {}
        bare: dict[bytes, float] = {}
        watcher = Watcher(self._kafka, topic)
        ended = threading.Event()

        def watch() -> None:
            bare.update(watcher.keys(ended.is_set))

        watching = threading.Thread(target=watch)
        watching.start()
        subscription = members.subscription()

        @subscription.on(members.Ordered, of=topic)
        def handle(delivery: Delivery[members.Ordered]) -> None:
            handled[delivery.entity_id.encode()] = time.monotonic()

        with (
            EventStore(self._open("sqlite").url, kafka=self._kafka) as store,
            at_work(store, subscription),
        ):
            time.sleep(_JOINING_S)
            began: dict[bytes, float] = in_process(_produce, self._kafka, topic, made)
            _wait(lambda: len(handled) >= events and len(bare) >= events)
        ended.set()
        watching.join()
        watcher.close()
        return _delays(began, bare), _delays(began, handled)

    def _through_relay(self, name: str) -> list[float]:
        database = self._open(name)
        topic = members.new_topic(self._kafka)
        relay = Relay(database.url, self._kafka, f"bench-{uuid4().hex[:8]}", "--from-now")
        try:
            return self._delays(database, topic, self._kafka)
        finally:
            relay.end()

    def _delays(self, database: Database, topic: str, kafka: str | None) -> list[float]:
        """Seconds from the return of each commit in another process to the handler, ascending."""
        handled: dict[bytes, float] = {}
        subscription = members.subscription()

        @subscription.on(members.Ordered, of=topic)
        def handle(delivery: Delivery[members.Ordered]) -> None:
            handled[delivery.event_id.encode()] = time.monotonic()

        with members.open_store(database.url, kafka) as store, at_work(store, subscription):
            insert = database.inserter()
            for n in count():  # until the whole way works
                insert(topic, f"{time.time_ns() // 1_000_000:016x}-{n:016x}")
                time.sleep(0.2)
                if handled:
                    break
            rate, seconds = self._arguments.rate, self._arguments.seconds + 1
            job = (database.name, database.url, topic, rate, seconds)
            committed: dict[bytes, float] = in_process(_write, *job)
            _wait(lambda: committed.keys() <= handled.keys())
        warm = min(committed.values()) + 1
        return _delays({key: at for key, at in committed.items() if at > warm}, handled)

    def memory(self) -> None:
        seconds = self._arguments.seconds
        print("memory while a handler does not return, MB: at its first event, and the most")
        url = self._open("sqlite").url
        for what, events, data in (
            ("small events", 50_000, DATA),
            ("events of 10 kB", 10_000, _LARGE),
        ):
            topic = members.fill_topic(self._kafka, events, 1000, data)
            for name, lanes in (("Kafka", 1), (f"Kafka, {floors.LANES} async lanes", floors.LANES)):
                found = in_process(members.stuck, self._kafka, topic, url, seconds, lanes)
                print(f"  {f'{name}, {what}':<44} {_sizes(found)}", flush=True)
        for name in self._databases:
            database = self._open(name, broker=True)
            database.fill("single", "bench.Filled", 20_000)
            database.forget_place()
            found = in_process(members.stuck, None, "bench.Filled", database.url, seconds, 1)
            print(f"  {f'{name} as broker, small events':<44} {_sizes(found)}", flush=True)


def _write(name: str, url: str, topic: str, rate: float, seconds: float) -> object:
    pipe, other = _SPAWN.Pipe()
    write_steadily(name, url, topic, rate, seconds, other)
    return pipe.recv()


def _produce(bootstrap: str, topic: str, made: Sequence[Record]) -> object:
    pipe, other = _SPAWN.Pipe()
    produce_one_by_one(bootstrap, topic, made, other)
    return pipe.recv()


def _delays(began: Mapping[bytes, float], handled: Mapping[bytes, float]) -> list[float]:
    """Seconds, ascending; a handler may be quicker than the return of the commit."""
    return sorted(max(0.0, handled[key] - at) for key, at in began.items())


def _wait(what: Callable[[], bool]) -> None:
    until = time.monotonic() + _PATIENCE_S
    while not what():
        if time.monotonic() > until:
            raise TimeoutError("not all events came")
        time.sleep(0.01)


# --- showing --------------------------------------------------------------------------------------


def _percentiles(seconds: Sequence[float]) -> str:
    p50, p99 = seconds[len(seconds) // 2], seconds[int(len(seconds) * 0.99)]
    return f"{p50 * 1000:.1f} / {p99 * 1000:.1f}"


def _sizes(found: Any) -> str:
    return found if isinstance(found, str) else f"{found[0]:.0f} / {found[1]:.0f}"


QUICK = {
    "rounds": 1,
    "events": 20_000,
    "table_events": 5_000,
    "updates": 400,
    "sleeps": 2_000,
    "seconds": 2,
    "lanes": "1,4",
}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.consume", description=__doc__)
    parser.add_argument("--only", default=",".join(PARTS), help=f"of {','.join(PARTS)}")
    parser.add_argument("--databases", default=DEFAULT)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--events", type=int, default=200_000, help="of `rates`")
    parser.add_argument("--table-events", type=int, default=30_000, help="of `database`")
    parser.add_argument("--updates", type=int, default=4_000, help="events of `lanes`")
    parser.add_argument("--lanes", default="1,4,16", help="of `lanes`")
    parser.add_argument("--sleeps", type=int, default=30_000, help="events of `sleep`")
    parser.add_argument("--rate", type=float, default=500, help="events a second, of `latency`")
    parser.add_argument("--seconds", type=float, default=8, help="of `latency` and `memory`")
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp"), help="for SQLite's files")
    parser.add_argument(
        "--quick", action="store_true", help="a small run that shows that all works"
    )
    if parser.parse_args().quick:
        parser.set_defaults(**QUICK)
    return parser.parse_args()


def main() -> None:
    arguments = _arguments()
    parts: list[str] = arguments.only.split(",")
    if unknown := set(parts) - set(PARTS):
        raise SystemExit(f"no part is called {min(unknown)!r}: {', '.join(PARTS)}")
    began = time.monotonic()
    versions = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    peer = f"faststream {version('faststream')}" if floors.has_faststream() else "no faststream"
    print(
        f"{os.cpu_count()} cores, servers included, load {os.getloadavg()[0]:.1f}; "
        f"Python {platform.python_version()}, {versions}, {peer}; events of {len(DATA.encode())} "
        f"bytes; {arguments.rounds} rounds\n"
    )
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=arguments.folder)))
        rig = stack.enter_context(Rig())
        kafka = Kafka(jvm=ORDINARY_JVM)
        stack.callback(kafka.stop)
        kafka.start()
        bench = Bench(rig, kafka.url, folder, arguments)
        for part in parts:
            getattr(bench, part)()
            print(flush=True)
    met, all_targets = sum(bench.targets), len(bench.targets)
    print(f"{met} of {all_targets} targets met, {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
