from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

import pytest

from tests.rig import KINDS, VARIABLES, Rig

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.rig import GivenKafka, Kafka

_KINDS = pytest.StashKey[set[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--databases",
        default=",".join(KINDS),
        metavar="KINDS",
        help=f"run only the tests of these databases, and of Kafka (all: {','.join(KINDS)})",
    )


def _kinds(item: pytest.Item) -> set[str]:
    """What a test uses: its parameter `kind`, its `database` marks, the fixture `kafka`."""
    kinds = {name for mark in item.iter_markers("database") for name in mark.args}
    if isinstance(item, pytest.Function) and hasattr(item, "callspec"):
        kinds.add(item.callspec.params.get("kind"))
    if isinstance(item, pytest.Function) and "kafka" in item.fixturenames:
        kinds.add("kafka")
    return kinds & set(KINDS)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    chosen = set(str(config.getoption("--databases")).split(","))
    if unknown := chosen - set(KINDS):
        raise pytest.UsageError(f"--databases: unknown {', '.join(sorted(unknown))}")
    left = [item for item in items if not _kinds(item) <= chosen]
    config.hook.pytest_deselected(items=left)
    items[:] = [item for item in items if _kinds(item) <= chosen]


def pytest_collection_finish(session: pytest.Session) -> None:
    session.config.stash[_KINDS] = {kind for item in session.items for kind in _kinds(item)}


@pytest.fixture(scope="session")
def servers(request: pytest.FixtureRequest) -> Iterator[Rig]:
    """The servers by name, started when a test first wants one."""
    with Rig() as rig:
        # Those that the selected tests are known to use start together, while the first test runs.
        rig.want(request.config.stash[_KINDS] & set(VARIABLES))
        yield rig


@pytest.fixture(scope="session")
def kafka(servers: Rig) -> Kafka | GivenKafka:
    """The Kafka broker. Topics stay there until the session ends: give them names of their own."""
    return servers.kafka


@pytest.fixture
def fresh_database(servers: Rig, tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """Gives the URL of a new empty database of a kind; it goes when the test ends."""
    made: list[tuple[str, str]] = []

    def fresh(kind: str) -> str:
        name = f"test_{secrets.token_hex(8)}"
        if kind == "sqlite":
            return f"sqlite:///{tmp_path / name}.db"
        made.append((kind, name))
        return servers[kind].create_database(name)

    yield fresh
    for kind, name in made:
        servers[kind].drop_database(name)
