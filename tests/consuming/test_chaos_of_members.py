"""The bank while members, relay and servers end at any moment: each transfer once in effect, in order.

In the flaky runs handlers fail now and then, what they fail at is parked, and an operator has it
tried again while everything goes on.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.consuming.chaos import Chaos
from tests.relay.chaos import new_dice
from tests.rig import Kafka, MariaDB, MySQL, Postgres, Private
from tests.rig.databases import with_parts

SOAK_S = float(os.environ.get("RETOLD_SOAK_S", "180"))


@pytest.fixture
def broker() -> Iterator[Kafka]:
    """A broker of a test's own: the bank's topics have the bank's names."""
    broker = Kafka()
    broker.start()
    yield broker
    broker.stop()


@pytest.fixture
def server(kind: str) -> Iterator[Private]:
    """A database server of a test's own."""
    server = Postgres(18) if kind == "postgres18" else {"mysql8": MySQL, "mariadb": MariaDB}[kind]()
    server.start()
    yield server
    server.stop()


@pytest.fixture
def own_url(server: Private) -> str:
    return with_parts(server.url, database=urlsplit(server.create_database("bank")).path[1:])


@pytest.mark.timeout(240)
@pytest.mark.database("kafka")
@pytest.mark.parametrize(("kind", "flaky"), [("mysql8", False), ("postgres18", True)])
def test_on_kafka_members_relay_and_servers_that_end_at_any_moment_do_no_harm(
    own_url: str, kind: str, server: Private, broker: Kafka, tmp_path: Path, flaky: bool
) -> None:
    on_kafka(own_url, server, broker, tmp_path, 12, flaky=flaky)


@pytest.mark.timeout(240)
@pytest.mark.parametrize(("kind", "flaky"), [("mysql8", True), ("postgres18", False)])
def test_on_a_database_members_that_end_at_any_moment_do_no_harm(
    own_url: str, kind: str, server: Private, tmp_path: Path, flaky: bool
) -> None:
    on_a_database(own_url, server, tmp_path, 8, flaky=flaky)


LONG = pytest.mark.parametrize("flaky", [False, True], ids=["sound", "flaky"])


@pytest.mark.soak
@LONG
@pytest.mark.database("kafka")
@pytest.mark.parametrize("kind", ["mysql8", "mariadb", "postgres18"])
def test_on_kafka_for_long(
    own_url: str, kind: str, server: Private, broker: Kafka, tmp_path: Path, flaky: bool
) -> None:
    on_kafka(own_url, server, broker, tmp_path, SOAK_S, flaky=flaky)


@pytest.mark.soak
@LONG
@pytest.mark.parametrize("kind", ["mysql8", "mariadb", "postgres18"])
def test_on_a_database_for_long(
    own_url: str, kind: str, server: Private, tmp_path: Path, flaky: bool
) -> None:
    on_a_database(own_url, server, tmp_path, SOAK_S, flaky=flaky)


def on_kafka(
    url: str, server: Private, broker: Kafka, folder: Path, seconds: float, *, flaky: bool
) -> None:
    with ExitStack() as stack:
        dice, servers = new_dice(), [server, broker]
        chaos = Chaos(url, broker.url, folder, dice, stack, servers=servers, flaky=flaky)
        chaos.blow(seconds, pause=1.0)
        chaos.settle()


def on_a_database(url: str, server: Private, folder: Path, seconds: float, *, flaky: bool) -> None:
    with ExitStack() as stack:
        chaos = Chaos(url, "", folder, new_dice(), stack, servers=[server], flaky=flaky)
        chaos.blow(seconds, pause=0.7)
        chaos.settle()
