"""Subscriptions on SQLite against the floor: `python -m benchmarks.subscriptions`.

Three questions, each answered for retold and beside it, in the same run, for a bare loop over
`sqlite3` that reads and writes the same rows: how many events a second a handler gets, how long
after a commit, and what a member costs that waits.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import sqlite3
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.accounts import Account, Debited, Opened
from benchmarks.floors import new_id
from retold import Aggregate, Delivery, EventStore, Subscription, applies

_SPAWN = multiprocessing.get_context("spawn")
_LOOK_S = 0.04  # as often as retold looks for other processes' commits
_END = "SELECT max(position) FROM events"
_READ = """
    SELECT position, event_id, event_data, entity_id FROM events
    WHERE position > ? AND +entity_type = 'bench.Account' AND +event_type = 'bench.Debited'
    ORDER BY position LIMIT 100
"""
_SAVE = "UPDATE subscriptions SET position = ? WHERE name = 'floor'"
_BEGIN = "INSERT INTO subscriptions (name, partition, position) VALUES ('floor', 0, ?)"


class Sent(msgspec.Struct, frozen=True):
    transfer: str
    amount: int


_decode = msgspec.json.Decoder(Sent).decode


class Counted(Aggregate, name="bench.Counted"):
    """What the updating handler changes: one of these for each account."""

    count: int = 0

    def count_up(self) -> None:
        self.emit(Debited("", 1))

    @applies
    def _counted(self, event: Debited) -> None:
        self.count += 1


def debit_often(account: Account, times: int) -> None:
    account.emit(Opened("ann", 1_000_000))
    for n in range(times):
        account.debit(str(n), 1)


def fill(store: EventStore, entities: int, each: int) -> None:
    """Accounts with a history to be handled, and an entity to be changed beside each."""
    for _ in range(entities):
        account = store.repository(Account).create(debit_often, each)
        store.repository(Counted).with_id(account.id).create(Counted.count_up)


def connect(path: str) -> sqlite3.Connection:
    raw = sqlite3.connect(path, isolation_level=None, timeout=30, check_same_thread=False)
    raw.execute("PRAGMA synchronous = FULL")
    return raw


# --- how many events a second ----------------------------------------------------------------------

Run = Callable[[str], int]
"""Handles what is in a file; returns how many events."""


def retold_nothing(path: str) -> int:
    subscription = Subscription("nothing")

    @subscription.on(Debited, of=Account)
    def handle(delivery: Delivery[Debited]) -> None: ...

    with EventStore(f"sqlite:///{path}") as store:
        return store.drain(subscription)


def retold_update(path: str) -> int:
    subscription = Subscription("update")

    @subscription.on(Debited, of=Account)
    def handle(delivery: Delivery[Debited]) -> None:
        delivery.update(Counted, delivery.entity_id, Counted.count_up)

    with EventStore(f"sqlite:///{path}") as store:
        return store.drain(subscription)


def floor_nothing(path: str) -> int:
    return _floor(path, lambda raw, event_id, entity_id: None)


def floor_update(path: str) -> int:
    return _floor(path, _count_up)


def _floor(path: str, handle: Callable[[sqlite3.Connection, str, str], None]) -> int:
    """Read a batch, decode and handle each event, save the position behind the batch."""
    handled = position = 0
    with closing(connect(path)) as raw:
        raw.execute("DELETE FROM subscriptions WHERE name = 'floor'")
        raw.execute(_BEGIN, (0,))
        while rows := raw.execute(_READ, (position,)).fetchall():
            for _, event_id, data, entity_id in rows:
                _decode(data)
                handle(raw, event_id, entity_id)
            position = rows[-1][0]
            raw.execute(_SAVE, (position,))
            handled += len(rows)
    return handled


def _count_up(raw: sqlite3.Connection, event_id: str, entity_id: str) -> None:
    """Load the entity, and write one event and the key in one transaction, as an update does."""
    key = ("bench.Counted", entity_id)
    history = raw.execute(
        "SELECT event_id, event_data FROM events WHERE entity_type = ? AND entity_id = ?"
        " ORDER BY event_id",
        key,
    ).fetchall()
    for _, data in history:
        _decode(data)
    id = new_id()
    raw.execute("BEGIN IMMEDIATE")
    raw.execute(
        "UPDATE entities SET entity_version = ?"
        " WHERE entity_type = ? AND entity_id = ? AND entity_version = ?",
        (id, *key, history[-1][0]),
    )
    raw.execute("INSERT INTO handled VALUES (?, ?, ?, 'count_up', ?, 0)", (*key, event_id, id))
    raw.execute(
        "INSERT INTO events (event_id, event_type, event_data, entity_type, entity_id,"
        ' triggering_event) VALUES (?, \'bench.Counted\', \'{"transfer":"","amount":1}\', ?, ?, ?)',
        (id, *key, event_id),
    )
    raw.execute("COMMIT")


def rates(
    folder: Path, floor: Run, retold: Run, entities: int, each: int, rounds: int
) -> tuple[float, float, float]:
    """Events a second of both and their ratio: medians over rounds, in which each has a new file."""
    found = list[tuple[float, float]]()
    for n in range(rounds):
        bare = _rate(str(folder / f"floor{n}.db"), floor, entities, each)
        ours = _rate(str(folder / f"retold{n}.db"), retold, entities, each)
        found.append((bare, ours))
    floors, retolds = zip(*found, strict=True)
    ratio = statistics.median(ours / bare for bare, ours in found)
    return statistics.median(floors), statistics.median(retolds), ratio


def _rate(path: str, run: Run, entities: int, each: int) -> float:
    with EventStore(f"sqlite:///{path}") as store:
        fill(store, entities, each)
    began = time.perf_counter()
    handled = run(path)
    seconds = time.perf_counter() - began
    assert handled == entities * each
    for name in Path(path).parent.glob(f"{Path(path).name}*"):
        name.unlink()
    return handled / seconds


# --- how long after the commit ---------------------------------------------------------------------

Times = dict[str, float]


def write(path: str, seconds: float, rate: float) -> Times:
    """Debit an account at a steady rate; when each commit returned (CLOCK_MONOTONIC)."""
    committed: Times = {}
    with EventStore(f"sqlite:///{path}") as store:
        accounts = store.repository(Account)
        id = ""
        began = time.monotonic()
        for n in range(int(seconds * rate)):
            time.sleep(max(0.0, began + n / rate - time.monotonic()))
            if n % 20 == 0:  # so that histories stay short
                id = accounts.create(Account.open, "ann", 1000).id
            changed = accounts.update(id, Account.debit, "", 1)
            committed[changed.version] = time.monotonic()
    return committed


def write_and_send(path: str, seconds: float, rate: float, pipe: Connection) -> None:
    pipe.send(write(path, seconds, rate))


@contextmanager
def retold_listening(path: str, handled: Times) -> Generator[None]:
    subscription, stop = Subscription("latency"), threading.Event()

    @subscription.on(Debited, of=Account)
    def handle(delivery: Delivery[Debited]) -> None:
        handled[delivery.event_id] = time.monotonic()

    with EventStore(f"sqlite:///{path}") as store:
        worker = threading.Thread(target=store.run, args=(subscription,), kwargs={"stop": stop})
        worker.start()
        yield
        stop.set()
        worker.join()


@contextmanager
def floor_listening(path: str, handled: Times) -> Generator[None]:
    """The same reads; woken by commits of this process where there are any, else by the clock."""
    stop, bell = threading.Event(), threading.Event()

    def listen() -> None:
        with closing(connect(path)) as raw:
            (position,) = raw.execute(_END).fetchone()
            position = position or 0
            raw.execute(_BEGIN, (position,))
            while not stop.is_set():
                bell.wait(_LOOK_S)
                bell.clear()
                (end,) = raw.execute(_END).fetchone()
                if (end or 0) <= position:
                    continue
                for _, event_id, data, _ in raw.execute(_READ, (position,)).fetchall():
                    _decode(data)
                    handled[event_id] = time.monotonic()
                position = end
                raw.execute(_SAVE, (position,))

    with EventStore(f"sqlite:///{path}") as store:
        store.driver.listen(bell)
        worker = threading.Thread(target=listen)
        worker.start()
        yield
        stop.set()
        worker.join()


def latencies(
    path: str, listening: Callable[[str, Times], Any], seconds: float, rate: float, *, across: bool
) -> list[float]:
    """Seconds from the return of a commit to the handler, ascending; `across` processes."""
    handled: Times = {}
    with EventStore(f"sqlite:///{path}"), listening(path, handled):
        if across:
            pipe, other = _SPAWN.Pipe()
            writer = _SPAWN.Process(target=write_and_send, args=(path, seconds, rate, other))
            writer.start()
            committed: Times = pipe.recv()
            writer.join()
        else:
            committed = write(path, seconds, rate)
        while len(handled) < len(committed):
            time.sleep(0.01)
    # In the same process the handler may be quicker than the return.
    return sorted(max(0.0, handled[id] - at) for id, at in committed.items())


# --- what waiting costs ----------------------------------------------------------------------------


def idle_retold(path: str, seconds: float, pipe: Connection) -> None:
    with retold_listening(path, {}):
        pipe.send(_cpu(seconds))


def idle_floor(path: str, seconds: float, pipe: Connection) -> None:
    with floor_listening(path, {}):
        pipe.send(_cpu(seconds))


def _cpu(seconds: float) -> float:
    """The share of a core this process uses while it waits, in percent."""
    time.sleep(1)  # what starts is not counted
    before, began = _used(), time.monotonic()
    time.sleep(seconds)
    return 100 * (_used() - before) / (time.monotonic() - began)


def _used() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def idle(path: str, target: Callable[[str, float, Connection], None], seconds: float) -> float:
    pipe, other = _SPAWN.Pipe()
    process = _SPAWN.Process(target=target, args=(path, seconds, other))
    process.start()
    cpu: float = pipe.recv()
    process.join()
    return cpu


# --- showing ---------------------------------------------------------------------------------------


def _percentiles(seconds: list[float]) -> str:
    p50, p99 = seconds[len(seconds) // 2], seconds[int(len(seconds) * 0.99)]
    return f"{p50 * 1000:.1f} / {p99 * 1000:.1f} ms"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.subscriptions", description=__doc__)
    parser.add_argument("--entities", type=int, default=100)
    parser.add_argument("--each", type=int, default=50, help="events of each entity")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5, help="of a latency or idle measurement")
    parser.add_argument("--rate", type=float, default=200, help="events a second, for latency")
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp"), help="for the files")
    return parser.parse_args()


def main() -> None:
    arguments = _arguments()
    print(f"SQLite {sqlite3.sqlite_version}, synchronous=FULL, {os.cpu_count()} cores\n")
    print(f"{'':<44} {'floor':>16} {'retold':>16} {'÷ floor':>8}")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        for what, floor, retold in (
            ("events/s, a handler that does nothing", floor_nothing, retold_nothing),
            ("events/s, a handler that updates an entity", floor_update, retold_update),
        ):
            bare, ours, ratio = rates(
                folder, floor, retold, arguments.entities, arguments.each, arguments.rounds
            )
            print(f"{what:<44} {bare:>16,.0f} {ours:>16,.0f} {ratio:>8.2f}", flush=True)
        for what, across in (("the same process", False), ("another process", True)):
            found = [
                latencies(
                    str(folder / f"{listening.__name__}{across}.db"),
                    listening,
                    arguments.seconds,
                    arguments.rate,
                    across=across,
                )
                for listening in (floor_listening, retold_listening)
            ]
            row = " ".join(f"{_percentiles(each):>16}" for each in found)
            print(f"{'delay p50 / p99, commit in ' + what:<44} {row}", flush=True)
        path = str(folder / "idle.db")
        bare = idle(path, idle_floor, arguments.seconds)
        active = idle(path, idle_retold, arguments.seconds)
        print(f"{'CPU of a member that waits':<44} {bare:>14.2f} % {active:>14.2f} %", flush=True)
        with retold_listening(path, {}):
            time.sleep(0.5)  # this process is the active member now
            waiting = idle(path, idle_retold, arguments.seconds)
        print(f"{'CPU of a member that stands by':<44} {'':>16} {waiting:>14.2f} %")


if __name__ == "__main__":
    main()
