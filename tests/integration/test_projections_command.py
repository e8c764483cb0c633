"""`retold projections`, and `retold run` with projections."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from retold import EventStore
from retold.cli import main
from tests.conformance.raw import rows
from tests.integration import projected
from tests.integration.accounts import Account, account, folded, table
from tests.integration.test_lanes import wait_for

BALANCES, INLINE = (f"tests.integration.projected:{name}" for name in ("balances", "inline"))


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/bank.db"


@pytest.fixture
def store(url: str) -> Iterator[EventStore]:
    with EventStore(url) as opened:
        yield opened


def told(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_it_lists_rebuilds_and_resets(
    url: str, store: EventStore, capsys: pytest.CaptureFixture[str]
) -> None:
    at = ["--database", url]
    assert main(["projections", "list", *at]) == 0
    assert "no projection" in capsys.readouterr().out
    account(store, "ann", 1, 2)
    store.drain(projected.balances)
    store.repository(Account).update("ann", Account.pay, 3, 4)
    assert main(["projections", "list", *at]) == 0
    assert capsys.readouterr().out == "balances: generation 0, lag 2\n"
    assert main(["projections", "rebuild", BALANCES, *at]) == 0
    assert capsys.readouterr().out == "applied 5, 0 behind\nrebuilt balances\n"
    assert table(url) == folded(url)
    assert main(["projections", "list", "--json", *at]) == 0
    assert told(capsys) == [
        {"name": "balances", "generation": 1, "lag": 0, "doing": "", "parked": 0}
    ]
    assert main(["projections", "reset", BALANCES, *at]) == 0
    assert table(url) == {}
    assert capsys.readouterr().out == "reset balances; its members begin again\n"
    assert main(["projections", "reset", "--json", BALANCES, *at]) == 0
    assert main(["projections", "rebuild", "--json", BALANCES, *at]) == 0
    assert {"applied": 5, "behind": 0} in told(capsys)
    assert table(url) == folded(url)


def test_what_is_no_projection_or_cannot_be_reset_is_told(
    url: str, store: EventStore, capsys: pytest.CaptureFixture[str]
) -> None:
    at = ["--database", url]
    assert main(["projections", "rebuild", "tests.integration.projected:__name__", *at]) == 2
    assert main(["projections", "reset", INLINE, *at]) == 2
    assert "rebuild it" in capsys.readouterr().err
    assert main(["run", INLINE, *at]) == 2
    assert "is inline" in capsys.readouterr().err


def test_run_works_projections_until_it_is_told_to_stop(url: str, store: EventStore) -> None:
    store.drain(projected.balances)
    process = subprocess.Popen(
        [sys.executable, "-m", "retold", "run", BALANCES, INLINE, "--database", url],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        account(store, "ann", 1, 2)
        wait_for(lambda: table(url) == folded(url))
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
    assert rows(url, "SELECT count(*) FROM parked") == [(0,)]
