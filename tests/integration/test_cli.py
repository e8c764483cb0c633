"""`retold migrate` against real servers."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from retold.cli import main
from tests.rig.databases import query, with_parts
from tests.steps import told

if TYPE_CHECKING:
    from collections.abc import Callable

SERVERS = ("mysql8", "mariadb", "postgres15", "postgres18", "pgbouncer")


@pytest.mark.parametrize("kind", SERVERS)
def test_migrate(
    kind: str, fresh_database: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    url = fresh_database(kind)
    assert main(["migrate", "--check", "--database", url]) == 1
    assert capsys.readouterr().out == told("pending")
    assert main(["migrate", "--database", url]) == 0
    assert capsys.readouterr().out == told("applied")
    assert main(["migrate", "--database", url]) == 0
    assert main(["migrate", "--check", "--database", url]) == 0
    assert query(url, "SELECT count(*) FROM events") == [(0,)]


@pytest.mark.parametrize("kind", SERVERS)
def test_the_printed_sql_runs_by_hand(
    kind: str, fresh_database: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    url = fresh_database(kind)
    assert main(["migrate", "--sql", "--database", url]) == 0
    statements = [part for part in capsys.readouterr().out.split(";\n") if part.strip()]
    query(url, *statements)
    assert main(["migrate", "--check", "--database", url]) == 0


@pytest.mark.parametrize("kind", SERVERS)
def test_two_at_once_apply_each_step_once(kind: str, fresh_database: Callable[[str], str]) -> None:
    command = [sys.executable, "-m", "retold", "migrate", "--database", fresh_database(kind)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = sorted(process.communicate(timeout=60)[0] for process in both)
    assert [process.returncode for process in both] == [0, 0]
    assert printed == [
        told("applied"),
        "nothing to do: the tables are up to date\n",
    ]


@pytest.mark.parametrize("kind", SERVERS)
def test_a_wrong_password_is_told_and_not_shown(
    kind: str, fresh_database: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    url = with_parts(fresh_database(kind), password="s3cr3t/@:")
    assert main(["migrate", "--database", url]) == 2
    printed = capsys.readouterr()
    happened, advice = printed.err.splitlines()
    assert happened.startswith("error: The database refused this user: ")
    assert advice == "Check user, password and grants."
    assert "s3cr3t" not in printed.err + printed.out


@pytest.mark.parametrize("kind", SERVERS)
def test_a_missing_database_is_told(
    kind: str, fresh_database: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    url = with_parts(fresh_database(kind), database="there_is_none")
    assert main(["migrate", "--database", url]) == 2
    happened, advice = capsys.readouterr().err.splitlines()
    assert "there_is_none" in happened
    assert advice
