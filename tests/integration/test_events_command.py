"""`retold events` and `retold show`: in a pipe, on a terminal, on every database."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from retold import Aggregate, Event, EventStore, applies, metadata
from retold.cli import main
from retold.ids import EventIds
from retold.store import listing

KINDS = ["sqlite", "postgres18", "mysql8", "mariadb"]
COMMAND = [sys.executable, "-m", "retold"]
APP = """
from typing import Annotated
from retold import Aggregate, Codec, Event, EventStore, applies, upcast, Raw
from retold.personal import Personal

class Money:
    def __init__(self, cents): self.cents = cents
    def __eq__(self, other): return self.cents == other.cents
    def __repr__(self): return f"{self.cents / 100:.2f}"

class Opened(Event, name="shop.Opened"):
    owner: Annotated[str, Personal("owner")]
    balance: Money

class Paid(Event, name="shop.Paid"):
    amount: int

class Account(Aggregate, name="shop.Account"):
    owner: Annotated[str, Personal("owner")] = ""
    balance: int = 0
    def open(self, owner, balance): self.emit(Opened(owner, Money(balance)))
    def pay(self, *amounts):
        for amount in amounts: self.emit(Paid(amount))
    @applies
    def _opened(self, event: Opened) -> None: self.owner, self.balance = event.owner, event.balance.cents
    @applies
    def _paid(self, event: Paid) -> None: self.balance -= event.amount

codec = Codec().add(Money, encode=lambda money: money.cents, decode=Money)
store = EventStore("sqlite:///shop.db", codec=codec)
if __name__ == "__main__":
    accounts = store.repository(Account)
    accounts.with_id("ann/1").create(Account.open, "Ann Smith", 100)
    accounts.update("ann/1", Account.pay, 1, 2)
"""


class Walked(Event, name="test_events_command.Walked"):
    metres: int


class Rested(Event, name="test_events_command.Rested"):
    note: str = ""


class Dog(Aggregate, name="test_events_command.Dog"):
    def walk(self, *metres: int) -> None:
        for each in metres:
            self.emit(Walked(each))

    def rest(self, note: str = "") -> None:
        self.emit(Rested(note))

    @applies
    def _walked(self, event: Walked | Rested) -> None:
        pass


class Cat(Aggregate, name="test_events_command.Cat"):
    def rest(self) -> None:
        self.emit(Rested())

    @applies
    def _rested(self, event: Rested) -> None:
        pass


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("RETOLD_")]:
        if not name.startswith("RETOLD_TEST"):
            monkeypatch.delenv(name)


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program beside its database, which the settings name."""
    Path("shop.py").write_text(APP, "utf-8")
    Path("pyproject.toml").write_text('[tool.retold]\ndatabase = "sqlite:///shop.db"\n')
    subprocess.run([sys.executable, "shop.py"], check=True)


def _piped(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, check=False)


@contextmanager
def _running(*arguments: str) -> Generator[subprocess.Popen[str]]:
    """A command whose output is read as it comes."""
    process = subprocess.Popen(
        [*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def _on_terminal(*arguments: str) -> tuple[int, str]:
    """The exit code of a command, and all that a terminal would show."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen([*COMMAND, *arguments], stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    while select.select([ours], [], [], 20)[0]:
        try:
            some = os.read(ours, 65536)
        except OSError:  # Linux's way to say that the other end was closed
            break
        if not some:
            break
        shown += some
    os.close(ours)
    return process.wait(timeout=20), shown.decode()


# --- events, on every database --------------------------------------------------------------------


@pytest.fixture
def url(kind: str, fresh_database: Callable[[str], str]) -> str:
    url = fresh_database(kind)
    clock = iter(range(1_800_000_000_000, 1_900_000_000_000, 1000))
    with EventStore(url, ids=EventIds(clock.__next__)) as store:
        store.migrate()
        dogs, cats = store.repository(Dog), store.repository(Cat)
        dogs.with_id("rex").create(Dog.walk, 1, 2)
        cats.with_id("rex").create(Cat.rest)
        with metadata(user="ann"):
            dogs.with_id("Rex").create(Dog.rest, "in the sun")
        dogs.update("rex", Dog.walk, 3)
        dogs.update("rex", Dog.rest)
    return url


FILTERS: list[tuple[tuple[str, ...], str]] = [
    ((), "012345"),
    (("--type", "test_events_command.Cat"), "2"),
    (("--type", "test_events_command.D"), ""),
    (("--entity", "test_events_command.Dog/rex"), "0145"),
    (("--entity", "test_events_command.Dog/Rex"), "3"),
    (("--event", "test_events_command.Rested"), "235"),
    (
        ("--event", "test_events_command.Rested", "--event", "test_events_command.Walked"),
        "012345",
    ),
    (
        ("--event", "test_events_command.Walked", "--entity", "test_events_command.Dog/rex"),
        "014",
    ),
    (("--last", "2"), "45"),
    (("--last", "2", "--event", "test_events_command.Walked"), "14"),
    (("--last", "99"), "012345"),
    (("--last", "0"), ""),
    (("--last", "1", "--entity", "test_events_command.Dog/rex"), "5"),
    (("--since", "2027-01-15T08:00:01Z"), "2345"),
    (("--until", "2027-01-15T08:00:01"), "01"),
    (("--since", "2027-01-15T09:00:01+01:00", "--until", "2027-01-15T08:00:02Z"), "2"),
    (("--since", "2027-01-15T08:00:01Z", "--last", "1"), "5"),
    (("--until", "2027-01-15T08:00:01Z", "--last", "9"), "01"),
]


@pytest.mark.parametrize("kind", KINDS)
def test_filters(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["events", "--json", "--database", url]) == 0
    lines = capsys.readouterr().out.splitlines()
    for keys in (2000, 3):
        monkeypatch.setattr(listing, "_KEYS", keys)
        for filters, wanted in FILTERS:
            assert main(["events", "--json", "--database", url, *filters]) == 0
            found = capsys.readouterr().out.splitlines()
            assert found == [lines[int(n)] for n in wanted], filters


@pytest.mark.parametrize("kind", ["sqlite"])
def test_an_event_in_json(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["events", "--json", "--entity", "test_events_command.Dog/Rex", "--database", url])
        == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert len(found.pop("id")) == 33
    assert found == {
        "time": "2027-01-15T08:00:02.000Z",
        "entity_type": "test_events_command.Dog",
        "entity_id": "Rex",
        "type": "test_events_command.Rested",
        "data": {"note": "in the sun"},
        "trigger": None,
        "metadata": {"user": "ann"},
    }


def test_pages_are_cut_where_memory_would_grow(
    fresh_database: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(listing, "_PAGE_BYTES", 100)
    url = fresh_database("sqlite")
    with EventStore(url) as store:
        dogs = store.repository(Dog)
        for n in range(20):
            dogs.create(Dog.rest, f"{n}".rjust(n * 10, "."))
    assert main(["events", "--json", "--database", url]) == 0
    found = map(json.loads, capsys.readouterr().out.splitlines())
    assert [int(event["data"]["note"].strip(".")) for event in found] == list(range(20))


# --- events, in a pipe and on a terminal ----------------------------------------------------------


@pytest.mark.usefixtures("shop")
def test_a_pipe_gets_lines_and_nothing_else() -> None:
    done = _piped("events")
    assert (done.returncode, done.stderr) == (0, "")
    times, entities, what = zip(
        *(line.split(" ", 2) for line in done.stdout.splitlines()), strict=True
    )
    assert all(time.endswith("Z") for time in times)
    assert set(entities) == {"shop.Account/ann/1"}
    assert what == (
        'shop.Opened {"owner":"Ann Smith","balance":100}',
        'shop.Paid {"amount":1}',
        'shop.Paid {"amount":2}',
    )


@pytest.mark.usefixtures("shop")
def test_with_the_application_personal_fields_are_masked() -> None:
    for command in (["events"], ["show", "shop.Account/ann/1"], ["events", "--json"]):
        done = _piped(*command, "--app", "shop:store")
        assert done.returncode == 0, done.stderr
        assert "Ann" not in done.stdout
        assert "‹personal›" in done.stdout


@pytest.mark.usefixtures("shop")
def test_a_terminal_is_told_that_nothing_is_masked() -> None:
    code, shown = _on_terminal("events", "--last", "1")
    assert code == 0
    assert "note: events are shown as they are stored" in shown
    assert _on_terminal("events", "--last", "1", "--app", "shop:store")[1].count("\n") == 1


@pytest.mark.usefixtures("shop")
def test_what_a_terminal_would_obey_is_spelt_out(tmp_path: Path) -> None:
    with EventStore("sqlite:///shop.db") as store:
        store.repository(Dog).with_id("\x1b[2J\n").create(Dog.rest)
    code, shown = _on_terminal("events", "--type", "test_events_command.Dog")
    assert code == 0
    assert "/\\x1b[2J\\n test_events_command.Rested" in shown
    assert "\x1b" not in shown


@pytest.mark.usefixtures("shop")
def test_a_closed_pipe_is_no_fault() -> None:
    with EventStore("sqlite:///shop.db") as store:
        for _ in range(30):
            store.repository(Dog).create(Dog.rest, "x" * 20_000)
    process = subprocess.Popen(
        [*COMMAND, "events"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141


@pytest.mark.usefixtures("shop")
def test_follow_goes_on_until_it_is_interrupted() -> None:
    with _running("events", "--follow", "--json", "--event", "shop.Paid") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        first = [json.loads(process.stdout.readline())["data"]["amount"] for _ in range(2)]
        assert first == [1, 2]
        more = (
            "import shop; shop.store.repository(shop.Account).update('ann/1', shop.Account.pay, 3)"
        )
        subprocess.run([sys.executable, "-c", more], check=True)
        assert json.loads(process.stdout.readline())["data"] == {"amount": 3}
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 130
        assert (process.stdout.read(), process.stderr.read()) == ("", "")


@pytest.mark.usefixtures("shop")
def test_follow_ends_when_its_pipe_is_closed() -> None:
    with _running("events", "--follow") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline()
        process.stdout.close()
        with EventStore("sqlite:///shop.db") as store:
            deadline = time.monotonic() + 20
            while process.poll() is None and time.monotonic() < deadline:
                store.repository(Dog).create(Dog.rest)
        assert process.wait(timeout=1) == 141
        assert process.stderr.read() == ""


@pytest.mark.parametrize("kind", ["postgres18"])
def test_follow_says_what_it_may_miss_where_there_is_no_log(url: str) -> None:
    with _running("events", "--follow", "--database", url) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert "retold migrate --subscriptions" in process.stderr.readline()
        assert process.stdout.readline()


# --- show -----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("shop")
def test_show_gives_each_event_and_the_state_after_it() -> None:
    done = _piped("show", "shop.Account/ann/1", "--app", "shop:store")
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.split("Z ")[-1] for line in done.stdout.splitlines()]
    assert lines == [
        "Opened(owner=‹personal›, balance=1.00)",
        "  Account(owner=‹personal›, balance=100)",
        "Paid(amount=1)",
        "  Account(owner=‹personal›, balance=99)",
        "Paid(amount=2)",
        "  Account(owner=‹personal›, balance=97)",
    ]
    found = _piped("show", "shop.Account/ann/1", "--app", "shop:store", "--json").stdout
    states = [json.loads(line) for line in found.splitlines()]
    assert states[0]["data"] == {"owner": "‹personal›", "balance": 100}
    assert [one["state"]["balance"] for one in states] == [100, 99, 97]


@pytest.mark.usefixtures("shop")
def test_show_without_the_application_shows_what_is_stored() -> None:
    done = _piped("show", "shop.Account/ann/1", "--json")
    first = json.loads(done.stdout.splitlines()[0])
    assert first["data"] == {"owner": "Ann Smith", "balance": 100}
    assert "state" not in first


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("show", "shop.Account/bob"), "There is no shop.Account with id 'bob'\nCheck the id"),
        (("show", "shop.Account"), "'shop.Account' names no entity\nWrite its type and id"),
        (("show", "shop.Acc/ann/1", "--app", "shop"), "declares no aggregate 'shop.Acc'\nIt"),
        (("show", "shop.Account/ann/1", "--app", "shp"), "there is no module 'shp' here"),
        (("show", "a/b", "--app", "shop:shelf"), "module 'shop' has no 'shelf'"),
        (("events", "--since", "yesterday"), "--since 'yesterday' is no time\nWrite 2026"),
        (("events", "--last", "all"), "--last is a number, not 'all'"),
        (("events", "--follow", "--until", "2026-01-01"), "--follow has no end\nLeave out"),
        (("events", "--config", "none.toml"), "the file none.toml cannot be read"),
    ],
)
@pytest.mark.usefixtures("shop")
def test_an_error_is_one_line_what_and_one_line_what_to_do(
    arguments: tuple[str, ...], said: str
) -> None:
    done = _piped(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") <= 2
    assert "Traceback" in _piped(*arguments, "--debug").stderr


def test_a_fault_of_the_application_shows_where_it_is() -> None:
    Path("faulty.py").write_text("1 / 0\n")
    done = _piped("events", "--app", "faulty", "--database", "sqlite:///a.db")
    assert done.returncode == 70
    assert 'faulty.py", line 1' in done.stderr
    assert "ZeroDivisionError" in done.stderr
