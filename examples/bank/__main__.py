"""The bank at work: `make demo`, or `python -m examples.bank --help`.

Several processes request transfers and several stand ready to carry them out, all on one SQLite
file. Half-way the worker at the head is killed without warning; another takes over where it was.
In the end an audit reads the file without retold.
"""

from __future__ import annotations

import argparse
import multiprocessing
import signal
import sqlite3
import sys
import tempfile
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import FrameType
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from examples.bank.audit import audit, lines
from examples.bank.domain import Account
from examples.bank.processes import open_accounts, request, work
from retold import EventStore

_SPAWN = multiprocessing.get_context("spawn")
_LOOK_S = 0.02


class Failed(Exception):
    """The demo cannot go on."""


class Bank:
    """What the demo sees of the bank from outside, by plain SQL."""

    def __init__(self, path: Path) -> None:
        self._database = sqlite3.connect(path)
        self._seen = 0
        self.completed = self.refused = 0

    def look(self) -> int:
        """How many transfers have come to their end; counts what is new since the last look."""
        rows = self._database.execute(
            "SELECT position, event_type FROM events WHERE position > ? ORDER BY position",
            (self._seen,),
        )
        for self._seen, event_type in rows:
            self.completed += event_type == "bank.TransferCompleted"
            self.refused += event_type == "bank.TransferRefused"
        return self.completed + self.refused

    def events(self) -> int:
        (count,) = self._database.execute("SELECT count(*) FROM events").fetchone()
        return int(count)

    def active_worker(self) -> int | None:
        """The process that holds the subscription's lease: host/namespace/pid/start/token."""
        row = self._database.execute(
            "SELECT owner FROM subscriptions WHERE name = 'transfers'"
        ).fetchone()
        return int(row[0].split("/")[2]) if row and row[0] else None

    def close(self) -> None:
        self._database.close()


class Processes:
    """The demo's processes; `close` ends those that still run."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._workers: list[SpawnProcess] = []
        self._requesters: list[SpawnProcess] = []

    def start_worker(self) -> None:
        self._workers.append(_started(_SPAWN.Process(target=work, args=(self._url,))))

    def start_requester(self, accounts: Sequence[str], count: int, seed: int) -> None:
        args = (self._url, accounts, count, seed)
        self._requesters.append(_started(_SPAWN.Process(target=request, args=args)))

    def kill_worker(self, pid: int) -> None:
        """SIGKILL, as a crash or the kernel's out-of-memory killer would."""
        (worker,) = [each for each in self._workers if each.pid == pid]
        self._workers.remove(worker)
        worker.kill()
        worker.join()

    def check(self) -> None:
        """Raises Failed when a process ended that should not have."""
        if any(worker.exitcode is not None for worker in self._workers):
            raise Failed("a worker stopped; its error is above")
        if any(requester.exitcode for requester in self._requesters):
            raise Failed("a requester failed; its error is above")

    def close(self) -> None:
        everyone = self._workers + self._requesters
        for process in everyone:
            process.terminate()
        for process in everyone:
            process.join(10)
            process.kill()


def _started(process: SpawnProcess) -> SpawnProcess:
    """Start a process that leaves Ctrl-C to this one."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process.start()
    finally:
        signal.signal(signal.SIGINT, before)
    return process


# --- showing it ----------------------------------------------------------------------------------


class Bar(Protocol):
    def show(self, done: int) -> None: ...
    def say(self, text: str) -> None: ...


class _RichBar:
    def __init__(self, progress: Progress, total: int) -> None:
        self._progress = progress
        self._task = progress.add_task("transfers", total=total)

    def show(self, done: int) -> None:
        self._progress.update(self._task, completed=done)

    def say(self, text: str) -> None:
        self._progress.console.print(text, highlight=False)


class _PlainBar:
    """A line for every tenth, where no terminal is there to draw on."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._tenths = 0

    def show(self, done: int) -> None:
        if (tenths := done * 10 // self._total) > self._tenths:
            self._tenths = tenths
            self.say(f"{done:,} of {self._total:,} transfers")

    def say(self, text: str) -> None:
        print(text, flush=True)


@contextmanager
def _bar(console: Console, total: int) -> Generator[Bar]:
    if not console.is_terminal:
        yield _PlainBar(total)
        return
    columns = (TextColumn("{task.description}"), BarColumn(None), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        yield _RichBar(progress, total)


# --- the demo ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Options:
    transfers: int
    accounts: int
    workers: int
    database: Path | None


@dataclass
class Takeover:
    killed: int
    by: int
    seconds: float


def _shares(total: int, parts: int) -> Iterator[int]:
    for part in range(parts):
        yield total // parts + (part < total % parts)


def _carry_out(options: Options, bank: Bank, processes: Processes, bar: Bar) -> Takeover:
    """Watch until every transfer has ended; kill the active worker half-way."""
    takeover: Takeover | None = None
    while (done := bank.look()) < options.transfers:
        bar.show(done)
        processes.check()
        pid = bank.active_worker()
        if takeover is None and done >= options.transfers // 2 and pid is not None:
            processes.kill_worker(pid)
            began = time.monotonic()
            bar.say(f"half-way: killed the active worker (process {pid}) with SIGKILL")
            processes.start_worker()
            while (successor := bank.active_worker()) in (pid, None):
                processes.check()
                time.sleep(_LOOK_S / 10)  # to measure by
            takeover = Takeover(pid, successor or 0, time.monotonic() - began)
            bar.say(f"process {successor} took over; another worker was started to stand by")
        time.sleep(_LOOK_S)
    bar.show(done)
    if takeover is None:
        raise Failed("every transfer was done before a worker could be killed: use more of them")
    return takeover


def _run(options: Options, path: Path, console: Console) -> bool:
    """The whole demo; whether the audit found the bank in order."""
    with ExitStack() as stack:
        store = stack.enter_context(EventStore(f"sqlite:///{path}"))
        accounts = open_accounts(store, options.accounts)
        bank = stack.enter_context(closing(Bank(path)))
        processes = stack.enter_context(closing(Processes(f"sqlite:///{path}")))
        console.print(
            f"{options.transfers:,} transfers between {options.accounts:,} accounts, in {path}",
            highlight=False,
        )
        for _ in range(options.workers):
            processes.start_worker()
        began = time.monotonic()
        for seed, share in enumerate(_shares(options.transfers, 2)):
            processes.start_requester(accounts, share, seed)
        with _bar(console, options.transfers) as bar:
            takeover = _carry_out(options, bank, processes, bar)
        seconds = time.monotonic() - began
        processes.close()
        customers = store.repository(Account).find_many(accounts)
        claims = audit(str(path), {id: found.state.balance for id, found in customers.items()})
        events = bank.events()
    table = Table(show_header=False)
    for name, value in (
        ("accounts", f"{options.accounts:,}"),
        ("transfers completed", f"{bank.completed:,}"),
        ("transfers refused", f"{bank.refused:,}"),
        ("events", f"{events:,}"),
        ("seconds", f"{seconds:.1f}"),
        ("events per second", f"{events / seconds:,.0f}"),
        ("takeover after SIGKILL", f"{takeover.seconds * 1000:,.0f} ms"),
    ):
        table.add_row(name, value)
    console.print(table)
    for line in lines(claims):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    return not any(claim.problems for claim in claims)


def _options() -> Options:
    parser = argparse.ArgumentParser(prog="python -m examples.bank", description=__doc__)
    parser.add_argument("--transfers", type=int, default=2500, metavar="N")
    parser.add_argument("--accounts", type=int, default=100, metavar="N")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="one is active at once")
    parser.add_argument("--database", type=Path, metavar="FILE", help="a new file, to be kept")
    given = parser.parse_args()
    if min(given.transfers, given.accounts, given.workers) < 1:
        parser.error("there must be at least one transfer, one account and one worker")
    if given.database is not None and given.database.exists():
        parser.error(f"{given.database} exists: name a new file")
    return Options(given.transfers, given.accounts, given.workers, given.database)


def _terminated(signum: int, frame: FrameType | None) -> None:
    sys.exit(128 + signum)


def main() -> int:
    options = _options()
    signal.signal(signal.SIGTERM, _terminated)
    console = Console()
    try:
        with tempfile.TemporaryDirectory(prefix="retold-bank-") as folder:
            path = options.database or Path(folder, "bank.db")
            return 0 if _run(options, path, console) else 1
    except Failed as failed:
        print(f"{failed}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
