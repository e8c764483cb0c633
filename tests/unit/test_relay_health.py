"""Health over HTTP."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from retold.errors import InvalidValue
from retold.relay.health import Health
from retold.relay.positions import PollingPosition
from retold.relay.progress import Progress, Role


@pytest.fixture
def progress() -> Progress:
    return Progress("bank")


@pytest.fixture
def port(progress: Progress) -> Iterator[int]:
    with closing(Health("127.0.0.1:0", progress)) as health:
        yield health.port


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        with error:
            return error.code, error.read().decode()


def health(port: int) -> tuple[int, dict[str, Any]]:
    status, body = get(port, "/health")
    return status, json.loads(body)


@pytest.mark.parametrize(
    ("role", "live", "leading"),
    [
        ("starting", True, False),
        ("standby", True, False),
        ("catching up", True, True),
        ("leading", True, True),
        ("stopped", False, False),
    ],
)
def test_health_says_what_the_relay_does(
    port: int, progress: Progress, role: Role, live: bool, leading: bool
) -> None:
    progress.role = role
    status, found = health(port)
    assert status == (200 if live else 503)
    assert (found["live"], found["leading"], found["role"]) == (live, leading, role)


def test_a_relay_that_waits_for_something_is_not_well(port: int, progress: Progress) -> None:
    progress.role, progress.error = "leading", "Kafka cannot be reached"
    status, found = health(port)
    assert (status, found["live"], found["error"]) == (503, True, "Kafka cannot be reached")


def test_lag_is_the_age_of_what_was_published_last_while_more_waits(
    port: int, progress: Progress
) -> None:
    progress.add(1, PollingPosition("t"), time.time() - 100, time.monotonic())
    progress.caught_up = False
    assert 99 < health(port)[1]["lag_seconds"] < 200
    progress.caught_up = True
    assert health(port)[1]["lag_seconds"] == 0


def test_metrics_tell_counts_and_role(port: int, progress: Progress) -> None:
    progress.role = "leading"
    progress.add(7, PollingPosition("t"), 0, time.monotonic())
    progress.add(5, PollingPosition("t"), 0, time.monotonic())
    progress.counts["fences"] += 1
    status, body = get(port, "/metrics")
    lines = body.splitlines()
    assert status == 200
    for line in (
        'retold_relay_events_total{relay="bank"} 12.0',
        'retold_relay_transactions_total{relay="bank"} 2.0',
        'retold_relay_fences_total{relay="bank"} 1.0',
        'retold_relay_reconnects_total{relay="bank"} 0.0',
        'retold_relay_role{relay="bank",role="leading"} 1.0',
        'retold_relay_role{relay="bank",role="standby"} 0.0',
    ):
        assert line in lines


def test_metrics_tell_how_large_batches_were_and_how_long_transactions_took(
    port: int, progress: Progress
) -> None:
    for events in (1, 7, 9, 700, 20_000, 0):  # the last one saves a position only
        progress.add(events, PollingPosition("t"), 0, time.monotonic() - 0.3)
    lines = get(port, "/metrics")[1].splitlines()
    for line in (
        'retold_relay_batch_events_bucket{le="1",relay="bank"} 1.0',
        'retold_relay_batch_events_bucket{le="10",relay="bank"} 3.0',
        'retold_relay_batch_events_bucket{le="5000",relay="bank"} 4.0',
        'retold_relay_batch_events_bucket{le="+Inf",relay="bank"} 5.0',
        'retold_relay_batch_events_count{relay="bank"} 5.0',
        'retold_relay_batch_events_sum{relay="bank"} 20717.0',
        'retold_relay_transaction_seconds_bucket{le="0.25",relay="bank"} 0.0',
        'retold_relay_transaction_seconds_bucket{le="60",relay="bank"} 6.0',
        'retold_relay_transaction_seconds_count{relay="bank"} 6.0',
    ):
        assert line in lines


def test_bytes_behind_are_told_where_they_are_known(port: int, progress: Progress) -> None:
    assert "retold_relay_lag_bytes{" not in get(port, "/metrics")[1]
    progress.behind = 4_200_000
    assert 'retold_relay_lag_bytes{relay="bank"} 4.2e+06' in get(port, "/metrics")[1]
    assert health(port)[1]["lag_bytes"] == 4_200_000


def test_metrics_tell_that_something_is_away(port: int, progress: Progress) -> None:
    assert 'retold_relay_failing{relay="bank"} 0.0' in get(port, "/metrics")[1]
    progress.error = "Kafka cannot be reached"
    assert 'retold_relay_failing{relay="bank"} 1.0' in get(port, "/metrics")[1]


def test_other_paths_are_not_found(port: int) -> None:
    assert get(port, "/")[0] == 404


@pytest.mark.parametrize("address", ["0", ":0", "localhost:0", "[::1]:0"])
def test_forms_of_an_address(address: str, progress: Progress) -> None:
    with closing(Health(address, progress)) as server:
        assert server.port > 0


@pytest.mark.parametrize(
    "address", ["", "localhost", "localhost:http", "x:99999", "nowhere.invalid:1"]
)
def test_an_address_that_cannot_be_served_is_told(address: str, progress: Progress) -> None:
    with pytest.raises(InvalidValue, match="--listen"):
        Health(address, progress)


def test_a_port_in_use_is_told(progress: Progress) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InvalidValue, match="in use"):
            Health(str(port), progress)
