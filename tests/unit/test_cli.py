"""The command line on SQLite: what it prints, where, and its exit codes."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from retold import EventStore
from retold.cli import main
from tests.steps import told

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RETOLD_DATABASE_URL", raising=False)


def _schema(path: Path) -> list[tuple[str, str]]:
    with closing(sqlite3.connect(path)) as database:
        return list(database.execute("SELECT name, sql FROM sqlite_master ORDER BY name"))


def test_alone_it_shows_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "migrate" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        (["e"], "events export"),
        (["events", "--l"], "--last --late"),
        (["parked", "s"], "show skip"),
        (["parked", "list", "--s"], "--subscription"),
        (["import", "--check", "--no"], "--no-positions"),
    ],
)
def test_bash_completes_commands_and_options(typed: list[str], completed: str) -> None:
    asked = f"COMP_WORDS=(retold {' '.join(typed)}); COMP_CWORD={len(typed)}; _retold"
    script = f"source <({sys.executable} -m retold completion bash); {asked}"
    done = subprocess.run(
        ["bash", "-c", script + '; echo "${COMPREPLY[*]}"'],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == completed + "\n"


@pytest.mark.parametrize(
    ("commands", "purpose"),
    [
        ("migrate schema doctor", "Set up"),
        ("run relay", "Run"),
        ("status events show verify", "Look"),
        ("parked", "Mend"),
        ("export import", "Move"),
    ],
)
def test_commands_stand_under_their_purpose(
    commands: str, purpose: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main([])
    under = capsys.readouterr().out.partition(f"\n{purpose}:\n")[2].partition("\n\n")[0]
    assert set(commands.split()) <= {line.split()[0] for line in under.splitlines()}


@pytest.mark.parametrize(
    "command", [["migrate", "--check"], ["parked", "list"], ["status"], ["events"]]
)
@pytest.mark.parametrize("table", ["[tool.retold]", "[other]\n[tool.retold]"])
def test_the_database_comes_from_the_file(command: list[str], table: str, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(f'{table}\ndatabase = "sqlite:///file.db"\n')
    assert main(["migrate"]) == 0
    assert (tmp_path / "file.db").exists()
    assert main(command) == 0


@pytest.mark.parametrize(
    "command",
    [["events"], ["show", "a/b"], ["export", "a.jsonl"], ["parked", "list"], ["status"]],
)
def test_looking_makes_no_file(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--database", "sqlite:///typo.db"]) == (1 if "status" in command else 2)
    assert list(tmp_path.iterdir()) == []
    printed = capsys.readouterr()
    assert "there is no file typo.db" in printed.err or "pending 0001_tables" in printed.out


def test_ctrl_c_ends_a_command_quietly(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(chosen: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("retold.cli.migrate.run", interrupted)
    assert main(["migrate", "--database", "sqlite:///a.db"]) == 130
    assert capsys.readouterr() == ("", "")


def test_migrate_makes_the_tables_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["migrate", "--database", "sqlite:///new.db"]) == 0
    assert capsys.readouterr().out == told("applied")
    assert main(["migrate", "--database", "sqlite:///new.db"]) == 0
    assert capsys.readouterr().out == "nothing to do: the tables are up to date\n"


def test_check_changes_nothing_and_fails_while_a_step_is_pending(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check = ["migrate", "--check", "--database", "sqlite:///new.db"]
    assert main(check) == 1
    assert capsys.readouterr().out == told("pending")
    assert not (tmp_path / "new.db").exists()

    (tmp_path / "new.db").touch()
    assert main(check) == 1

    with EventStore("sqlite:///new.db"):
        pass
    capsys.readouterr()
    assert main(check) == 0
    assert capsys.readouterr().out == "nothing to do: the tables are up to date\n"


def test_a_table_of_somebody_else_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = "sqlite:///theirs.db"
    with closing(sqlite3.connect(tmp_path / "theirs.db")) as theirs:
        theirs.execute("CREATE TABLE events (id INTEGER, title TEXT)")
    assert main(["migrate", "--database", url]) == 2
    happened, advice = capsys.readouterr().err.splitlines()
    assert happened == "error: A table named 'events' exists that retold did not make"
    assert "?prefix=" in advice
    assert main(["migrate", "--database", url + "?prefix=es_"]) == 0


@pytest.mark.parametrize(
    ("url", "contained"),
    [
        ("sqlite:///a.db?prefix=es_", 'CREATE TABLE "es_events"'),
        ("postgresql://nobody:secret@127.0.0.1:1/none?schema=es", 'CREATE TABLE "es"."events"'),
    ],
)
def test_sql_needs_no_connection(
    url: str, contained: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["migrate", "--sql", "--database", url]) == 0
    printed = capsys.readouterr()
    assert contained in printed.out
    assert printed.err == ""
    assert list(tmp_path.iterdir()) == []


def test_the_printed_sql_makes_what_migrate_makes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["migrate", "--sql", "--database", "sqlite:///by-hand.db"])
    with closing(sqlite3.connect(tmp_path / "by-hand.db")) as by_hand:
        by_hand.executescript(capsys.readouterr().out)
    main(["migrate", "--database", "sqlite:///by-command.db"])
    schemas = [_schema(tmp_path / f"by-{how}.db") for how in ("hand", "command")]
    assert schemas[0] == schemas[1]
    assert main(["migrate", "--check", "--database", "sqlite:///by-hand.db"]) == 0


@pytest.mark.parametrize(
    "url",
    [
        "mysql://ann:se@cr/et@host/db",
        "mysql://ann:12/secret@host/db",
        "mysql://ann:se:cr/et@host/db",
        "mysql://ann:se#cret@host/db",
        "mysql:ann:secret@host/db",
        "ann:secret@host/db",
        "oracle://ann:secret@host/db",
        "postgresql://ann:secret@host",
        "postgresql://ann@127.0.0.1:1/db?password=secret",
        "postgresql://ann:secret@127.0.0.1:1/db?no_such_option=1",
        "postgresql://ann:secret@127.0.0.1:1/db",
        "mysql://ann:secret@127.0.0.1:1/db",
        "mysql://ann:secret@127.0.0.1:1/db?ssl=true",
        "sqlite:///no/such/folder/a.db",
        "sqlite:///a.db?synchronous=off",
        "sqlite:///a.db?timeout=long",
    ],
)
def test_an_error_is_two_lines_without_a_password(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["migrate", "--database", url]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    happened, advice = printed.err.splitlines()
    assert happened.startswith("error: ")
    assert advice
    for part in ("secret", "cr/et", "cret", "se@", "12/"):
        assert part not in printed.err


def test_no_database_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["migrate"]) == 2
    assert "RETOLD_DATABASE_URL" in capsys.readouterr().err


def test_the_url_comes_from_the_environment_where_none_is_given() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "retold", "migrate"],
        env={**os.environ, "RETOLD_DATABASE_URL": "sqlite:///from-environment.db"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (
        0,
        told("applied"),
        "",
    )


def test_two_at_once_apply_each_step_once(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "retold", "migrate", "--database", "sqlite:///both.db"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = sorted(process.communicate(timeout=60)[0] for process in both)
    assert [process.returncode for process in both] == [0, 0]
    assert printed == [
        told("applied"),
        "nothing to do: the tables are up to date\n",
    ]
