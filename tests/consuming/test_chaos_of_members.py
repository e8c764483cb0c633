"""The bank while its members end and come at any moment: each transfer once in effect, in order."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.consuming.chaos import Chaos
from tests.relay.chaos import new_dice
from tests.rig import Kafka, MariaDB, MySQL, Postgres, Private, Rig
from tests.rig.databases import with_parts

SHORT_S = 18.0
_SOAK_S = float(os.environ.get("RETOLD_SOAK_S", "180"))


@pytest.fixture
def broker() -> Iterator[Kafka]:
    """A broker of a test's own: the bank's topics have the bank's names."""
    broker = Kafka()
    broker.start()
    yield broker
    broker.stop()


@pytest.fixture
def url(kind: str, servers: Rig, fresh_database: Callable[[str], str]) -> str:
    """A database, by a user who may read its log."""
    database = urlsplit(fresh_database(kind)).path[1:]
    return with_parts(servers[kind].url, database=database)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("kind", ["mysql8", "postgres18"])
def test_on_kafka_members_and_relay_that_end_at_any_moment_do_no_harm(
    url: str, kind: str, broker: Kafka, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        chaos = Chaos(url, broker.url, tmp_path, new_dice(), stack)
        chaos.blow(SHORT_S)
        chaos.settle()


@pytest.mark.timeout(180)
@pytest.mark.parametrize("kind", ["mysql8", "postgres18"])
def test_on_a_database_members_that_end_at_any_moment_do_no_harm(
    url: str, kind: str, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        chaos = Chaos(url, "", tmp_path, new_dice(), stack)
        chaos.blow(SHORT_S / 2, pause=0.7)
        chaos.settle()


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
@pytest.mark.parametrize("kind", ["mysql8", "postgres18"])
def test_on_kafka_servers_that_end_at_any_moment_do_no_harm(
    own_url: str, kind: str, server: Private, broker: Kafka, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        chaos = Chaos(own_url, broker.url, tmp_path, new_dice(), stack, servers=[server, broker])
        chaos.blow(SHORT_S)
        chaos.settle()


@pytest.mark.timeout(180)
@pytest.mark.parametrize("kind", ["mysql8", "postgres18"])
def test_on_kafka_what_is_parked_and_tried_again_meanwhile_keeps_its_place(
    url: str, kind: str, broker: Kafka, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        chaos = Chaos(url, broker.url, tmp_path, new_dice(), stack, flaky=True)
        chaos.blow(SHORT_S / 2)
        chaos.settle()


@pytest.mark.timeout(180)
@pytest.mark.parametrize("kind", ["mysql8", "postgres18"])
def test_on_a_database_what_is_parked_and_tried_again_meanwhile_keeps_its_place(
    url: str, kind: str, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        chaos = Chaos(url, "", tmp_path, new_dice(), stack, flaky=True)
        chaos.blow(SHORT_S / 2, pause=0.7)
        chaos.settle()


# --- for RETOLD_SOAK_S seconds, 180 without -------------------------------------------------------

flaky = pytest.mark.parametrize("flaky", [False, True], ids=["sound", "flaky"])


@pytest.mark.soak
@flaky
@pytest.mark.parametrize("kind", ["mysql8", "mariadb", "postgres18"])
def test_on_kafka_for_long(
    own_url: str, kind: str, server: Private, broker: Kafka, tmp_path: Path, flaky: bool
) -> None:
    servers = [server, broker]
    with ExitStack() as stack:
        chaos = Chaos(
            own_url, broker.url, tmp_path, new_dice(), stack, servers=servers, flaky=flaky
        )
        chaos.blow(_SOAK_S)
        chaos.settle()


@pytest.mark.soak
@flaky
@pytest.mark.parametrize("kind", ["mysql8", "mariadb", "postgres18"])
def test_on_a_database_for_long(
    own_url: str, kind: str, server: Private, tmp_path: Path, flaky: bool
) -> None:
    with ExitStack() as stack:
        chaos = Chaos(own_url, "", tmp_path, new_dice(), stack, servers=[server], flaky=flaky)
        chaos.blow(_SOAK_S)
        chaos.settle()
