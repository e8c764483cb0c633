"""A server's database as its own broker: `python -m benchmarks.brokers`.

What subscriptions cost those who append, how many events a second a handler gets, how long after a
commit, and what a member costs that waits. Appends are measured in turns on a database without the
log and on one with it, first with nobody reading it, then with a member at work.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import statistics
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from multiprocessing.connection import Connection

from benchmarks.accounts import Account, Debited
from benchmarks.subscriptions import debit_often
from retold import Delivery, EventStore, Subscription
from tests.rig import SERVERS, Rig

_SPAWN = multiprocessing.get_context("spawn")
DEFAULT = "postgres15,postgres18,pgbouncer,mysql8,mariadb"


def nothing(name: str) -> Subscription:
    subscription = Subscription(name, start="now")

    @subscription.on(Debited, of=Account)
    def handle(delivery: Delivery[Debited]) -> None: ...

    return subscription


# --- what appends lose -----------------------------------------------------------------------------


def append(urls: dict[str, str], pipe: Connection) -> None:
    """Updates of ever new accounts where and for as long as one is told."""
    stores = {name: EventStore(url) for name, url in urls.items()}
    ids = dict.fromkeys(urls, "")
    while told := pipe.recv():
        name, seconds = told
        accounts = stores[name].repository(Account)
        done, began = 0, time.monotonic()
        while time.monotonic() < began + seconds:
            if done % 20 == 0:  # so that histories stay short
                ids[name] = accounts.create(Account.open, "ann", 1000).id
            accounts.update(ids[name], Account.debit, "", 1)
            done += 1
        pipe.send(done / (time.monotonic() - began))
    for store in stores.values():
        store.close()


class Writers:
    """Processes that append at once."""

    def __init__(self, urls: dict[str, str], count: int) -> None:
        self._pipes: list[Connection] = []
        for _ in range(count):
            pipe, other = _SPAWN.Pipe()
            _SPAWN.Process(target=append, args=(urls, other), daemon=True).start()
            self._pipes.append(pipe)

    def rate(self, name: str, seconds: float) -> float:
        """Appends a second of all of them."""
        for pipe in self._pipes:
            pipe.send((name, seconds))
        return sum(float(pipe.recv()) for pipe in self._pipes)

    def compare(self, rounds: int, seconds: float) -> tuple[float, float, float]:
        """Appends a second without and with the log, and the ratio; in turns, a slice each."""
        for name in ("plain", "logged"):
            self.rate(name, seconds)
        found = [(self.rate("plain", seconds), self.rate("logged", seconds)) for _ in range(rounds)]
        plain, logged = (statistics.median(each) for each in zip(*found, strict=True))
        return plain, logged, statistics.median(with_log / bare for bare, with_log in found)

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.send(None)


def member(url: str, pipe: Connection) -> None:
    stop = threading.Event()
    with EventStore(url) as store:
        worker = threading.Thread(
            target=store.run, args=(nothing("at-work"),), kwargs={"stop": stop}
        )
        worker.start()
        pipe.send("ready")
        pipe.recv()
        stop.set()
        worker.join()


@contextmanager
def at_work(url: str) -> Generator[None]:
    """A member in a process of its own."""
    pipe, other = _SPAWN.Pipe()
    process = _SPAWN.Process(target=member, args=(url, other))
    process.start()
    pipe.recv()
    time.sleep(1)  # it begins
    yield
    pipe.send("stop")
    process.join()


# --- how many events a second ----------------------------------------------------------------------


def rate(url: str, entities: int, each: int) -> float:
    with EventStore(url) as store:
        store.drain(nothing("rate"))
        for _ in range(entities):
            store.repository(Account).create(debit_often, each)
        began = time.perf_counter()
        handled = store.drain(nothing("rate"))
        assert handled == entities * each
        return handled / (time.perf_counter() - began)


# --- how long after the commit ---------------------------------------------------------------------


def write(url: str, seconds: float, rate: float) -> dict[str, float]:
    """Debit at a steady rate; when each commit returned (CLOCK_MONOTONIC)."""
    committed: dict[str, float] = {}
    with EventStore(url) as store:
        accounts = store.repository(Account)
        id, began = "", time.monotonic()
        for n in range(int(seconds * rate)):
            time.sleep(max(0.0, began + n / rate - time.monotonic()))
            if n % 20 == 0:
                id = accounts.create(Account.open, "ann", 1000).id
            changed = accounts.update(id, Account.debit, "", 1)
            committed[changed.version] = time.monotonic()
    return committed


def write_and_send(url: str, seconds: float, rate: float, pipe: Connection) -> None:
    pipe.send(write(url, seconds, rate))


def latencies(url: str, seconds: float, rate: float) -> list[float]:
    """Seconds from the return of a commit in another process to the handler, ascending."""
    handled: dict[str, float] = {}
    subscription, stop = Subscription("latency", start="now"), threading.Event()

    @subscription.on(Debited, of=Account)
    def handle(delivery: Delivery[Debited]) -> None:
        handled[delivery.event_id] = time.monotonic()

    with EventStore(url) as store:
        worker = threading.Thread(target=store.run, args=(subscription,), kwargs={"stop": stop})
        worker.start()
        time.sleep(1)
        pipe, other = _SPAWN.Pipe()
        writer = _SPAWN.Process(target=write_and_send, args=(url, seconds, rate, other))
        writer.start()
        committed: dict[str, float] = pipe.recv()
        writer.join()
        while not committed.keys() <= handled.keys():
            time.sleep(0.01)
        stop.set()
        worker.join()
    return sorted(max(0.0, handled[id] - at) for id, at in committed.items())


# --- what waiting costs ----------------------------------------------------------------------------


def idle(url: str, seconds: float) -> float:
    """The share of a core that a member uses while it waits, in percent."""
    stop = threading.Event()
    with EventStore(url) as store:
        worker = threading.Thread(target=store.run, args=(nothing("idle"),), kwargs={"stop": stop})
        worker.start()
        time.sleep(2)
        before, began = _used(), time.monotonic()
        time.sleep(seconds)
        cpu = 100 * (_used() - before) / (time.monotonic() - began)
        stop.set()
        worker.join()
    return cpu


def _used() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


# --- showing ---------------------------------------------------------------------------------------


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.brokers", description=__doc__)
    parser.add_argument("--databases", default=DEFAULT, help=f"of {','.join(SERVERS)}")
    parser.add_argument("--writers", default="1,4")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--slice", type=float, default=0.3, help="seconds of appends in a round")
    parser.add_argument("--seconds", type=float, default=5, help="of a latency or idle measurement")
    parser.add_argument("--entities", type=int, default=200)
    parser.add_argument("--each", type=int, default=100, help="events of each entity")
    parser.add_argument("--rate", type=float, default=100, help="events a second, for latency")
    return parser.parse_args()


def _measure(plain: str, logged: str, arguments: argparse.Namespace) -> None:
    for count in map(int, arguments.writers.split(",")):
        writers = Writers({"plain": plain, "logged": logged}, count)
        bare, with_log, ratio = writers.compare(arguments.rounds, arguments.slice)
        print(
            f"  appends/s, {count} writers: {bare:,.0f}; with the log {with_log:,.0f}, × {ratio:.2f}"
        )
        with at_work(logged):
            bare, with_log, ratio = writers.compare(arguments.rounds, arguments.slice)
        print(f"    a member at work: {bare:,.0f}; {with_log:,.0f}, × {ratio:.2f}", flush=True)
        writers.close()
    handled = statistics.median(rate(logged, arguments.entities, arguments.each) for _ in range(3))
    print(f"  events/s through a handler that does nothing: {handled:,.0f}", flush=True)
    found = latencies(logged, arguments.seconds, arguments.rate)
    p50, p99 = found[len(found) // 2], found[int(len(found) * 0.99)]
    print(f"  delay to another process p50 / p99: {p50 * 1000:.1f} / {p99 * 1000:.1f} ms")
    print(f"  CPU of a member that waits: {idle(logged, arguments.seconds):.2f} %", flush=True)


def main() -> None:
    arguments = _arguments()
    print(f"{os.cpu_count()} cores, servers included")
    with Rig() as rig:
        for name in arguments.databases.split(","):
            print(name)
            urls: list[str] = []
            for subscriptions in (False, True):
                database = f"brokers_{name}_{subscriptions}".lower()
                urls.append(rig[name].create_database(database))
                with EventStore(urls[-1]) as store:
                    store.migrate(subscriptions=subscriptions)
            plain, logged = urls
            _measure(plain, logged, arguments)
            for subscriptions in (False, True):
                rig[name].drop_database(f"brokers_{name}_{subscriptions}".lower())


if __name__ == "__main__":
    main()
