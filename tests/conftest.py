from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

import pytest

from tests.rig import DATABASES, SERVERS, Rig

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_KINDS = pytest.StashKey[set[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--databases",
        default=",".join(DATABASES),
        metavar="KINDS",
        help=f"run only the tests of these kinds of database (all: {','.join(DATABASES)})",
    )


def _kinds(item: pytest.Item) -> set[str]:
    """The kinds of database that a test uses: its parameter `kind`, and its `database` marks."""
    kinds = {name for mark in item.iter_markers("database") for name in mark.args}
    if isinstance(item, pytest.Function) and hasattr(item, "callspec"):
        kinds.add(item.callspec.params.get("kind"))
    return kinds & set(DATABASES)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    chosen = set(str(config.getoption("--databases")).split(","))
    if unknown := chosen - set(DATABASES):
        raise pytest.UsageError(f"--databases: unknown {', '.join(sorted(unknown))}")
    left = [item for item in items if not _kinds(item) <= chosen]
    config.hook.pytest_deselected(items=left)
    items[:] = [item for item in items if _kinds(item) <= chosen]


def pytest_collection_finish(session: pytest.Session) -> None:
    session.config.stash[_KINDS] = {kind for item in session.items for kind in _kinds(item)}


@pytest.fixture(scope="session")
def servers(request: pytest.FixtureRequest) -> Iterator[Rig]:
    """The database servers by name, started when a test first wants one."""
    with Rig() as rig:
        # Those that the selected tests are known to use start together, while the first test runs.
        rig.want(request.config.stash[_KINDS] & set(SERVERS))
        yield rig


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
