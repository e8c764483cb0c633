"""The store against the floor: `python -m benchmarks.store`; see docs/benchmarks.md.

Starts its own servers, then measures in turns, round by round: hand-written code on the same client
library (the floor), retold, and the `eventsourcing` package on the same database. Ratios are taken
within a round and their median is shown, so that what slows the machine for a while slows all.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import cycle, repeat
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from benchmarks.floors import Floor, MySQLFloor, PostgresFloor, SqliteFloor
from benchmarks.libraries import Eventsourcing, Retold
from tests.rig import DATABASES, Rig

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from benchmarks.accounts import Contender, Worker

DEFAULT = "sqlite,postgres15,mariadb,mysql8"
PACKAGES = ("retold", "msgspec", "psycopg", "PyMySQL", "mysqlclient", "eventsourcing")
THREADS = (1, 8)
WARM_UP = 6  # psycopg prepares, and PostgreSQL keeps a plan after five executions


@dataclass(frozen=True)
class Operation:
    """`length`: events in the history of every entity it is done to; 0 for a new one."""

    name: str
    what: str
    length: int
    do: Callable[[Worker], Callable[[str], object]]


OPERATIONS = (
    Operation("create", "a new entity with 1 event", 0, lambda worker: worker.create),
    Operation("append", "load 1 event, append 1", 1, lambda worker: worker.update),
    Operation("update", "load 10 events, append 1", 10, lambda worker: worker.update),
    Operation("load 100", "load 100 events", 100, lambda worker: worker.load),
)
LOADED = 300  # entities that are only read, and so can be read again


@dataclass(frozen=True)
class Target:
    """What is wanted of retold: at least `ratio` times a rival's rate."""

    operation: str
    rival: str
    ratio: float
    databases: tuple[str, ...]


EVERYWHERE = ("sqlite", "postgres", "mariadb", "mysql")
TARGETS = (
    Target("append", "floor", 0.90, ("sqlite",)),
    Target("update", "floor", 0.85, EVERYWHERE),
    Target("update", "eventsourcing", 1.3, ("sqlite",)),
    Target("update", "eventsourcing", 3.0, ("postgres",)),
    Target("load 100", "eventsourcing", 10.0, ("sqlite",)),
    Target("load 100", "eventsourcing", 8.0, ("postgres",)),
)


@dataclass
class Measured:
    """Operations per second of each contender, one number a round."""

    database: str
    client: str
    operation: str
    threads: int
    rates: dict[str, list[float]] = field(default_factory=dict[str, list[float]])

    def rate(self, contender: str) -> float:
        return statistics.median(self.rates[contender])

    def ratio(self, rival: str) -> float | None:
        """The median over the rounds of retold's rate through the rival's."""
        if rival not in self.rates:
            return None
        pairs = zip(self.rates["retold"], self.rates[rival], strict=True)
        return statistics.median(ours / theirs for ours, theirs in pairs)

    def targets(self) -> Iterator[tuple[Target, float]]:
        for target in TARGETS:
            ratio = self.ratio(target.rival)
            if (
                target.operation == self.operation
                and self.database.startswith(target.databases)
                and ratio is not None
            ):
                yield target, ratio


# --- measuring -------------------------------------------------------------------------------------


class Bench:
    """One client library on one new database, with every contender on it."""

    def __init__(
        self, database: str, floor: Floor, url: str, *, accounts: int, rival: bool
    ) -> None:
        self.database = database
        self.floor = floor
        retold = Retold(url, floor.reset)
        retold.migrate()
        self._ids = {
            operation.length: [str(uuid4()) for _ in range(accounts)]
            for operation in OPERATIONS
            if operation.length
        }
        self._ids[100] = self._ids[100][:LOADED]
        histories = [(id, length) for length, ids in self._ids.items() for id in ids]
        self._contenders: dict[str, Contender] = {"floor": floor, "retold": retold}
        floor.fill(histories)
        if rival:
            other = Eventsourcing(url, max(THREADS), floor.execute)
            other.fill(histories)
            self._contenders["eventsourcing"] = other
        self._workers = {
            name: [contender.worker() for _ in range(max(THREADS))]
            for name, contender in self._contenders.items()
        }

    def measure(
        self, operation: Operation, threads: int, *, seconds: float, rounds: int
    ) -> Measured:
        measured = Measured(self.database, self.floor.name, operation.name, threads)
        measured.rates = {name: [] for name in self._contenders}
        order = list(self._contenders.items())
        for _ in range(rounds):
            for name, contender in order:
                calls = [operation.do(worker) for worker in self._workers[name][:threads]]
                rate = _rate(calls, self._ids_for(operation), seconds)
                measured.rates[name].append(rate)
                if operation.length < 100:
                    contender.reset()
            order.append(order.pop(0))  # nobody is always first
        return measured

    def _ids_for(self, operation: Operation) -> Iterator[str]:
        """An id for each call: no entity twice, so that histories stay as long as stated."""
        if operation.length == 0:
            return repeat("")
        ids = self._ids[operation.length]
        return cycle(ids) if operation.length == 100 else iter(ids)

    def close(self) -> None:
        for contender in self._contenders.values():
            contender.close()


def _rate(calls: Sequence[Callable[[str], object]], ids: Iterator[str], seconds: float) -> float:
    """Calls per second of one thread for each callable, until the time or the ids run out."""
    counts = [0] * len(calls)
    ends = [0.0] * len(calls)
    failures: list[BaseException] = []
    warm = threading.Barrier(len(calls) + 1)
    go = threading.Event()
    deadline = 0.0

    def work(n: int, call: Callable[[str], object]) -> None:
        done = 0
        try:
            try:
                for _ in range(WARM_UP):
                    call(next(ids))
            finally:
                warm.wait()
            go.wait()
            for id in ids:
                call(id)
                done += 1
                if time.perf_counter() > deadline:
                    break
        except BaseException as error:
            failures.append(error)
        counts[n], ends[n] = done, time.perf_counter()

    workers = [threading.Thread(target=work, args=job, daemon=True) for job in enumerate(calls)]
    for worker in workers:
        worker.start()
    warm.wait()
    began = time.perf_counter()
    deadline = began + seconds
    go.set()
    for worker in workers:
        worker.join()
    if failures:
        raise failures[0]
    return sum(counts) / (max(ends) - began)


def _benches(rig: Rig, name: str, folder: Path, accounts: int) -> Iterator[Bench]:
    """A bench for each client library of a database, made when it is its turn."""
    if name == "sqlite":
        path = str(folder / "retold.db")
        url = f"sqlite:///{path}"
        Path(path).touch()
        yield Bench(name, SqliteFloor(path), url, accounts=accounts, rival=True)
        return
    url = rig[name].create_database(f"bench_{uuid4().hex[:8]}")
    if name.startswith("postgres"):
        yield Bench(name, PostgresFloor(url), url, accounts=accounts, rival=True)
        return
    yield Bench(name, MySQLFloor(url, "pymysql"), url, accounts=accounts, rival=False)
    url = rig[name].create_database(f"bench_{uuid4().hex[:8]}")
    floor = MySQLFloor(url, "MySQLdb")
    url = url.replace("mysql://", "mysql+mysqlclient://")
    yield Bench(name, floor, url, accounts=accounts, rival=False)


def import_seconds(statement: str, tries: int = 7) -> float:
    """How much longer Python takes to start when it runs this import, in seconds."""

    def start(code: str) -> float:
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        return time.perf_counter() - began

    pairs = [(start(statement), start("pass")) for _ in range(tries)]
    return statistics.median(with_it - without for with_it, without in pairs)


# --- showing ---------------------------------------------------------------------------------------


def _machine() -> dict[str, str]:
    return {
        "cores": str(os.cpu_count()),
        "load": f"{os.getloadavg()[0]:.1f}",
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
    }


def _line(values: dict[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


_HEADINGS = (
    f"{'database':<11} {'client':<12} {'operation':<9} {'threads':>7} {'floor':>8} {'retold':>8} "
    f"{'evtsrc':>8} {'÷ floor':>8} {'÷ evtsrc':>9}  targets"
)


def _row(measured: Measured) -> str:
    def ratio(rival: str) -> str:
        value = measured.ratio(rival)
        return "–" if value is None else f"{value:.2f}"

    rival = f"{measured.rate('eventsourcing'):,.0f}" if "eventsourcing" in measured.rates else "–"
    targets = ", ".join(
        f"{'ok' if ratio >= target.ratio else 'MISSED'} (≥ {target.ratio:g} × {target.rival})"
        for target, ratio in measured.targets()
    )
    return (
        f"{measured.database:<11} {measured.client:<12} {measured.operation:<9} "
        f"{measured.threads:>7} {measured.rate('floor'):>8,.0f} {measured.rate('retold'):>8,.0f} "
        f"{rival:>8} {ratio('floor'):>8} {ratio('eventsourcing'):>9}  {targets}"
    ).rstrip()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.store", description=__doc__)
    parser.add_argument("--databases", default=DEFAULT, help=f"of {','.join(DATABASES)}")
    parser.add_argument("--operations", default=",".join(o.name for o in OPERATIONS))
    parser.add_argument("--threads", default=",".join(map(str, THREADS)))
    parser.add_argument("--seconds", type=float, default=0.4, help="of one measurement in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write what was measured to this file")
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp"), help="for SQLite's file")
    return parser.parse_args()


def main() -> None:
    arguments = _arguments()
    names: list[str] = arguments.databases.split(",")
    operations = [o for o in OPERATIONS if o.name in arguments.operations.split(",")]
    threads = [int(n) for n in arguments.threads.split(",")]
    # More than any contender can use up in one measurement.
    accounts = int(arguments.seconds * 12_000) + WARM_UP * max(THREADS)
    began = time.monotonic()
    machine = _machine()
    imports = {name: import_seconds(f"import {name}") for name in ("retold", "psycopg")}
    print(_line(machine))
    print("import:", _line({name: f"{1000 * s:.0f} ms" for name, s in imports.items()}))
    for operation in operations:
        print(f"{operation.name}: {operation.what}")
    print(f"{arguments.rounds} rounds of {arguments.seconds:g} s; operations per second\n")
    results: list[Measured] = []
    settings: dict[str, dict[str, str]] = {}
    with Rig() as rig, tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        rig.want(name for name in names if name != "sqlite")
        for name in names:
            for bench in _benches(rig, name, Path(folder), accounts):
                if name not in settings:
                    settings[name] = bench.floor.settings()
                    print(f"{name}: {_line(settings[name])}")
                    print(_HEADINGS)
                for operation in operations:
                    for n in threads:
                        measured = bench.measure(
                            operation, n, seconds=arguments.seconds, rounds=arguments.rounds
                        )
                        results.append(measured)
                        print(_row(measured), flush=True)
                bench.close()
            print()
    checked = [ratio >= target.ratio for result in results for target, ratio in result.targets()]
    print(f"{sum(checked)} of {len(checked)} targets met, {time.monotonic() - began:.0f} s")
    if arguments.json:
        arguments.json.write_text(
            json.dumps(
                {
                    "machine": machine,
                    "import_seconds": imports,
                    "settings": settings,
                    "results": [
                        {
                            **vars(result),
                            "ratio_floor": result.ratio("floor"),
                            "ratio_eventsourcing": result.ratio("eventsourcing"),
                        }
                        for result in results
                    ],
                },
                indent=1,
            )
        )


if __name__ == "__main__":
    main()
