"""`retold schema` over the releases of a program, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HEAD = "from typing import Any\nfrom retold import Event, Raw, upcast\n"
V1 = HEAD + "class Opened(Event, name='bank.Opened'):\n    owner: str\n    balance: int\n"
SAFE = V1 + "    note: str = ''\n"
RENAMED = V1.replace("owner", "holder")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")  # releases follow within a second


def _schema(code: str, *arguments: str, app: str = "bank") -> tuple[int, str]:
    Path("bank.py").write_text(code, "utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "retold", "schema", "--app", app, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


def _check(code: str) -> tuple[int, str]:
    return _schema(code, "--check", "events.lock.json")


@pytest.fixture
def locked() -> str:
    assert _schema(V1, "--write", "events.lock.json") == (0, "wrote 1 events to events.lock.json\n")
    return Path("events.lock.json").read_text("utf-8")


@pytest.mark.usefixtures("locked")
def test_the_same_code_passes() -> None:
    assert _check(V1) == (0, "stored events are read as they were stored\n")


def test_an_addition_passes_and_says_that_the_file_wants_writing(locked: str) -> None:
    code, printed = _check(SAFE)
    assert code == 0
    assert "retold schema --app bank --write events.lock.json" in printed
    assert Path("events.lock.json").read_text("utf-8") == locked
    assert _schema(SAFE, "--write", "events.lock.json", app="bank:Opened")[0] == 0
    assert _check(SAFE) == (0, "stored events are read as they were stored\n")


@pytest.mark.usefixtures("locked")
def test_the_upcaster_that_is_shown_mends_a_renamed_field() -> None:
    code, printed = _check(RENAMED)
    assert code == 1
    assert printed.startswith("bank.Opened: the field owner is gone; the field holder is new")
    shown = printed[printed.index("    @upcast") :].rpartition("\n\n")[0]
    upcaster = "\n".join(line.removeprefix("    ") for line in shown.splitlines())
    upcaster = upcaster.replace('"holder": ...', '"holder": old["owner"]')
    mended = RENAMED.replace("bank.Opened", "bank.Opened.v2") + upcaster
    use = "\nfrom retold.upcasting import read_event\nfrom retold import Codec\n"
    use += """print(read_event(Codec(), "bank.Opened", '{"owner": "ann", "balance": 3}'))\n"""
    code, printed = _check(mended + use)
    assert printed.startswith("(Opened(holder='ann', balance=3),)\nstored events are read")
    assert code == 0


@pytest.mark.parametrize(
    ("app", "arguments", "said"),
    [
        ("bank", ("--check", "none.json"), "Write it first: --write none.json"),
        ("bank", ("--check", "other.json"), "this is no schema of events"),
        ("bank", ("--write", "none/a.json"), "none/a.json cannot be written"),
        ("bnak", ("--write", "a.json"), "there is no module 'bnak' here"),
        ("json.none", ("--write", "a.json"), "there is no module 'json.none' here"),
        (":json", ("--write", "a.json"), "there is no module '' here"),
    ],
)
def test_what_cannot_be_done_is_told(app: str, arguments: tuple[str, ...], said: str) -> None:
    Path("other.json").write_text("[]", "utf-8")
    status, printed = _schema(V1, *arguments, app=app)
    assert status == 2
    assert printed.startswith("error: ")
    assert said in printed


def test_a_program_without_events_is_an_error() -> None:
    status, printed = _schema("", "--write", "a.json")
    assert status == 2
    assert "bank declares no event" in printed


def test_an_error_in_the_program_is_shown_where_it_is() -> None:
    status, printed = _schema("import nowhere\n", "--write", "a.json")
    assert status not in (0, 2)
    assert "bank.py" in printed
    assert "No module named 'nowhere'" in printed
