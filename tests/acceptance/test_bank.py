"""The example bank as `make demo` runs it, and its audit, which must be able to find something."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from examples.bank.audit import audit

_ROOT = Path(__file__).parents[2]


def python(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", *map(str, arguments)],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )


def run_bank(url: str, *options: object, transfers: int = 200) -> subprocess.CompletedProcess[str]:
    small = ("--transfers", transfers, "--accounts", 20)
    return python("examples.bank", "--database", url, *small, *options)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    """The demo after it ran, and the file it left."""
    path = tmp_path_factory.mktemp("bank") / "bank.db"
    return run_bank(f"sqlite:///{path}"), path


@pytest.fixture
def bank(demo: tuple[object, Path], tmp_path: Path) -> Path:
    """A copy of the demo's file."""
    return Path(shutil.copy(demo[1], tmp_path))


def test_the_demo_carries_out_all_transfers_though_a_worker_is_killed(
    demo: tuple[subprocess.CompletedProcess[str], Path],
) -> None:
    done, _ = demo
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "200 of 200 transfers" in done.stdout
    assert "with SIGKILL" in done.stdout
    assert "took over" in done.stdout


def test_the_demo_shows_a_table_and_an_audit(
    demo: tuple[subprocess.CompletedProcess[str], Path],
) -> None:
    done, _ = demo
    cells = [line.strip("│ \n").split("│") for line in done.stdout.splitlines() if "│" in line]
    table = {name.strip(): value.strip() for name, value in cells}
    assert list(table) == [
        "accounts",
        "transfers completed",
        "transfers refused",
        "events",
        "seconds",
        "events per second",
        "takeover after SIGKILL",
    ]
    assert table["accounts"] == "20"
    completed, refused = int(table["transfers completed"]), int(table["transfers refused"])
    assert completed + refused == 200
    assert completed > 0
    assert refused > 0
    claims = [line for line in done.stdout.splitlines() if line.startswith("✓ ")]
    assert len(claims) == 9
    assert claims[0] == "✓ money in = money out: 19,000 paid in, 19,000 on 20 accounts"
    assert "✗" not in done.stdout


def test_the_audit_of_the_file_finds_no_problem(bank: Path) -> None:
    done = python("examples.bank.audit", f"sqlite:///{bank}")
    assert (done.returncode, done.stderr) == (0, "")
    assert [line[0] for line in done.stdout.splitlines()] == ["✓"] * 8


def test_a_file_that_exists_is_not_written_over(bank: Path) -> None:
    before = bank.read_bytes()
    done = python("examples.bank", "--database", f"sqlite:///{bank}")
    assert done.returncode == 2
    assert "exists: name a new file" in done.stderr
    assert bank.read_bytes() == before


def first(event_type: str) -> str:
    """The position of the first event of a type."""
    return f"(SELECT min(position) FROM events WHERE event_type = 'bank.{event_type}')"


CORRUPTIONS = {
    "an amount is changed": (
        f"""UPDATE events SET event_data = json_set(event_data, '$.amount', 1000000)
        WHERE position = {first("AccountCredited")}""",
        ["from nowhere", "AccountCredited is not as requested"],
    ),
    "money is taken that is not there": (
        f"""UPDATE events SET event_data = json_set(event_data, '$.balance', 0)
        WHERE position = {first("AccountOpened")}""",
        ["is overdrawn"],
    ),
    "a completion is lost": (
        f"DELETE FROM events WHERE position = {first('TransferCompleted')}",
        ["is open", "is not its last event"],
    ),
    "a debit is lost": (
        f"DELETE FROM events WHERE position = {first('AccountDebited')}",
        ["from nowhere", "is completed with ['AccountCredited']"],
    ),
    "a refund is lost": (
        f"DELETE FROM events WHERE position = {first('AccountRefunded')}",
        ["from nowhere", "is refused with ['AccountDebited']"],
    ),
    "a debit is made twice": (
        f"""INSERT INTO events
        (event_id, event_type, event_data, entity_type, entity_id, triggering_event)
        SELECT 'ffff', event_type, event_data, entity_type, entity_id, triggering_event
        FROM events WHERE position = {first("AccountDebited")}""",
        ["from nowhere", "AccountDebited 2 times", "changed ", "is not its last event"],
    ),
    "a transfer ends twice": (
        f"""INSERT INTO events (event_id, event_type, event_data, entity_type, entity_id)
        SELECT 'ffff', 'bank.TransferRefused', '{{}}', entity_type, entity_id
        FROM events WHERE position = {first("TransferCompleted")}""",
        ["ended 2 times"],
    ),
    "a request is lost": (
        f"DELETE FROM events WHERE position = {first('TransferRequested')}",
        ["was never requested"],
    ),
    "money goes to another account": (
        f"UPDATE events SET entity_id = 'nobody' WHERE position = {first('AccountCredited')}",
        ["account nobody was never opened", "AccountCredited is not as requested"],
    ),
    "two events changed places": (
        f"UPDATE events SET position = -1 WHERE position = {first('TransferCompleted')}",
        ["is out of order"],
    ),
    "an event takes effect behind a later one of its entity": (
        """UPDATE events SET triggering_event = (
            SELECT opened.event_id FROM events cause JOIN events opened USING (entity_id)
            WHERE cause.event_id = events.triggering_event
            AND opened.event_type = 'bank.AccountOpened')
        WHERE position = (
            SELECT max(second.position) FROM events first
            JOIN events cause1 ON cause1.event_id = first.triggering_event
            JOIN events cause2 ON cause2.entity_id = cause1.entity_id
            JOIN events second ON second.triggering_event = cause2.event_id
            AND second.entity_id = first.entity_id AND second.event_id > first.event_id
            WHERE first.event_type = 'bank.AccountCredited'
            AND second.event_type = 'bank.AccountCredited')""",
        ["took effect too late"],
    ),
    "an event is parked": (
        """INSERT INTO parked SELECT 'transfers', entity_type, entity_id, event_id, 0, event_type,
        event_data, NULL, 'ValueError: no', '', 5, 0, NULL FROM events WHERE position = 7""",
        ["is parked: ValueError: no"],
    ),
    "an entity has no version": (
        "DELETE FROM entities WHERE entity_id = (SELECT min(entity_id) FROM entities)",
        ["has events but no version"],
    ),
}


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_the_audit_finds_it_when(bank: Path, name: str) -> None:
    corruption, expected = CORRUPTIONS[name]
    with closing(sqlite3.connect(bank)) as database, database:
        assert database.execute(corruption).rowcount == 1
    problems = [problem for claim in audit(f"sqlite:///{bank}") for problem in claim.problems]
    for text in expected:
        assert any(text in problem for problem in problems), problems


def test_the_audit_finds_a_balance_that_is_shown_wrong(bank: Path) -> None:
    *others, last = audit(f"sqlite:///{bank}", {"nobody": 7})
    assert not any(claim.problems for claim in others)
    assert "account nobody: None, shown 7" in last.problems
    assert len(last.problems) == 21


def test_the_audit_says_by_its_exit_code_that_it_found_something(bank: Path) -> None:
    with closing(sqlite3.connect(bank)) as database, database:
        database.execute("DELETE FROM events WHERE event_type = 'bank.TransferCompleted'")
    done = python("examples.bank.audit", f"sqlite:///{bank}")
    assert done.returncode == 1
    assert "✗ no transfer is left open" in done.stdout
    assert " more" in done.stdout
