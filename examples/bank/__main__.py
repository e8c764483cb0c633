"""The bank at work: `make demo`, or `python -m examples.bank --help`.

Several processes request transfers and several stand ready to carry them out: on one SQLite file, on
a server's database, or with a relay and Kafka in between; the URLs make the difference. Half-way a
member that is at work is killed without warning, and before that the relay; others go on where they
were. In the end an audit reads the database without retold.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.table import Table

from examples.bank.audit import audit, lines
from examples.bank.domain import Account
from examples.bank.members import Failed, Processes, topics, verify
from examples.bank.processes import open_accounts
from examples.bank.showing import Bar, bar
from examples.bank.tables import Tables, is_sqlite
from retold import EventStore, RetoldError

_ENDINGS = "('bank.TransferCompleted', 'bank.TransferRefused')"


class Bank:
    """What the demo sees of the bank from outside, by plain SQL."""

    def __init__(self, url: str) -> None:
        self._tables = Tables(url)
        # A server's time is better spent on transfers.
        self.pause = 0.02 if is_sqlite(url) else 0.1
        self.completed = self.refused = 0

    def look(self) -> int:
        """How many transfers have come to their end."""
        found = self._tables.rows(
            f"SELECT event_type, count(*) FROM events WHERE event_type IN {_ENDINGS} "
            "GROUP BY event_type"
        )
        counts: dict[str, int] = dict(found)
        self.completed = counts.get("bank.TransferCompleted", 0)
        self.refused = counts.get("bank.TransferRefused", 0)
        return self.completed + self.refused

    def events(self) -> int:
        ((count,),) = self._tables.rows("SELECT count(*) FROM events")
        return int(count)

    def owners(self) -> set[int]:
        """The processes that hold a share of the subscription: host/namespace/pid/start/token."""
        rows = self._tables.rows("SELECT owner FROM subscriptions WHERE name = 'transfers'")
        return {int(owner.split("/")[2]) for (owner,) in rows if owner}

    def close(self) -> None:
        self._tables.close()


@dataclass(frozen=True)
class Options:
    transfers: int
    accounts: int
    members: int
    database: str
    kafka: str


def _shares(total: int, parts: int) -> Iterator[int]:
    for part in range(parts):
        yield total // parts + (part < total % parts)


class _Show:
    """Watches the transfers, and does the killing."""

    def __init__(self, options: Options, bank: Bank, processes: Processes, bar: Bar) -> None:
        self._options, self._bank, self._processes, self._bar = options, bank, processes, bar
        self.takeover: float | None = None
        """Seconds until the share of the killed member was somebody else's; Kafka does not say."""

    def carry_out(self) -> None:
        """Watch until every transfer has ended."""
        total = self._options.transfers
        relay_killed, member_killed = not self._options.kafka, False
        while (done := self._bank.look()) < total:
            self._bar.show(done)
            self._processes.check()
            if not relay_killed and done >= total // 4:
                relay_killed = True
                self._kill_the_relay()
            if not member_killed and done >= total // 2:
                member_killed = self._kill_a_member()
            time.sleep(self._bank.pause)
        self._bar.show(done)
        if not member_killed:
            raise Failed("every transfer was done before a member could be killed: use more")

    def _kill_the_relay(self) -> None:
        pid = self._processes.kill_relay()
        self._processes.start_relay()
        self._bar.say(f"killed the relay (process {pid}) with SIGKILL; started another one")

    def _kill_a_member(self) -> bool:
        """False when none is at work."""
        if self._options.kafka:
            pid = self._processes.kill_member()
            self._processes.start_member()
            self._bar.say(f"half-way: killed a member (process {pid}) with SIGKILL")
            self._bar.say("Kafka misses it after 6 s; another one was started")
            return True
        owners = self._bank.owners()
        if not owners:
            return False
        pid = self._processes.kill_member(min(owners))
        began = time.monotonic()
        self._bar.say(f"half-way: killed a member at work (process {pid}) with SIGKILL")
        self._processes.start_member()
        while not (heirs := self._bank.owners()) or pid in heirs:
            self._processes.check()
            time.sleep(0.002)  # to measure by
        self.takeover = time.monotonic() - began
        who = ", ".join(map(str, sorted(heirs)))
        self._bar.say(f"process {who} took over; another member was started")
        return True


def _run(options: Options, folder: Path, console: Console) -> bool:
    """The whole demo; whether the audit found the bank in order."""
    url, kafka = options.database, options.kafka
    with ExitStack() as stack:
        store = stack.enter_context(EventStore(url))
        store.migrate(
            subscriptions=not kafka and not is_sqlite(url), polling=bool(kafka) and is_sqlite(url)
        )
        bank = stack.enter_context(closing(Bank(url)))
        _refuse_what_is_there(bank, kafka)
        accounts = open_accounts(store, options.accounts)
        processes = stack.enter_context(closing(Processes(url, kafka, folder)))
        where = f"{url.rpartition('@')[2]}" + (f", through Kafka at {kafka}" if kafka else "")
        console.print(
            f"{options.transfers:,} transfers between {options.accounts:,} accounts, in {where}",
            highlight=False,
            soft_wrap=True,
        )
        if kafka:
            # A new relay finds its place in the log sooner while nobody writes.
            processes.start_relay()
            _wait_for_topic("bank.Account", kafka, processes)
        began = time.monotonic()
        for seed, share in enumerate(_shares(options.transfers, 2)):
            processes.start_customer(accounts, share, seed)
        if kafka:
            # Members look for topics that are not there every few seconds only.
            _wait_for_topic("bank.Transfer", kafka, processes)
        for _ in range(options.members):
            processes.start_member()
        with bar(console, options.transfers) as shown:
            show = _Show(options, bank, processes, shown)
            show.carry_out()
        seconds = time.monotonic() - began
        same, said = verify(url, kafka) if kafka else (True, "")
        processes.close()
        customers = store.repository(Account).find_many(accounts)
        claims = audit(url, {id: found.state.balance for id, found in customers.items()})
        events = bank.events()
    table = Table(show_header=False)
    for name, value in (
        ("accounts", f"{options.accounts:,}"),
        ("transfers completed", f"{bank.completed:,}"),
        ("transfers refused", f"{bank.refused:,}"),
        ("events", f"{events:,}"),
        ("seconds", f"{seconds:.1f}"),
        ("events per second", f"{events / seconds:,.0f}"),
    ):
        table.add_row(name, value)
    if show.takeover is not None:
        table.add_row("takeover after SIGKILL", f"{show.takeover * 1000:,.0f} ms")
    console.print(table)
    for line in lines(claims):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if kafka:
        console.print(f"{'✓' if same else '✗'} retold verify:", highlight=False)
        for line in said.splitlines():
            console.print(f"    {line}", highlight=False, markup=False, soft_wrap=True)
    return same and not any(claim.problems for claim in claims)


def _wait_for_topic(name: str, kafka: str, processes: Processes) -> None:
    while name not in topics(kafka):
        processes.check()
        time.sleep(0.1)


def _refuse_what_is_there(bank: Bank, kafka: str) -> None:
    """The audit is of this run alone."""
    if bank.events():
        raise Failed("the database has events: name an empty one")
    if kafka and (there := [topic for topic in topics(kafka) if topic.startswith("bank.")]):
        raise Failed(f"Kafka has the topic {there[0]} already: delete it, or name another Kafka")


def _options(folder: Path) -> Options:
    parser = argparse.ArgumentParser(prog="python -m examples.bank", description=__doc__)
    parser.add_argument("--transfers", type=int, metavar="N")
    parser.add_argument("--accounts", type=int, default=100, metavar="N")
    parser.add_argument("--members", type=int, metavar="N", help="that carry out transfers")
    parser.add_argument(
        "--database",
        metavar="URL",
        help="default: $RETOLD_DATABASE_URL, or a SQLite file that goes",
    )
    parser.add_argument("--kafka", metavar="HOST:PORT", help="default: $RETOLD_KAFKA, or none")
    given = parser.parse_args()
    database = given.database or os.environ.get("RETOLD_DATABASE_URL", "")
    kafka = given.kafka or os.environ.get("RETOLD_KAFKA", "")
    on_server = bool(kafka or (database and not is_sqlite(database)))
    transfers = (1000 if on_server else 2500) if given.transfers is None else given.transfers
    members = (3 if on_server else 2) if given.members is None else given.members
    if min(transfers, given.accounts, members) < 1:
        parser.error("there must be at least one transfer, one account and one member")
    path = Path(database.removeprefix("sqlite:///").partition("?")[0])
    if database and is_sqlite(database) and path.exists():
        parser.error(f"{path} exists: name a new file")
    database = database or f"sqlite:///{folder / 'bank.db'}"
    return Options(transfers, given.accounts, members, database, kafka)


def _terminated(signum: int, frame: FrameType | None) -> None:
    sys.exit(128 + signum)


def main() -> int:
    signal.signal(signal.SIGTERM, _terminated)
    try:
        with tempfile.TemporaryDirectory(prefix="retold-bank-") as name:
            folder = Path(name)
            return 0 if _run(_options(folder), folder, Console()) else 1
    except (Failed, RetoldError) as failed:
        print(f"{failed}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
