"""Every conformance test runs on every database, blocking and async."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from retold import EventStore
from tests.conformance.blocking import open_store
from tests.rig import DATABASES, KINDS, Rig

FLAVOURS = {
    kind: ("sync", "async", "mysqlclient") if kind in ("mysql8", "mariadb") else ("sync", "async")
    for kind in DATABASES
}
PAIRS = [(kind, flavour) for kind in DATABASES for flavour in FLAVOURS[kind]]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    names = metafunc.fixturenames
    marked = {mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")}
    if "flavour" in names and not any("flavour" in str(args) for args in marked):
        metafunc.parametrize(("kind", "flavour"), PAIRS)
    elif "kind" in names and not any("kind" in str(args) for args in marked):
        metafunc.parametrize("kind", KINDS if "broker" in names else DATABASES)


class Shared:
    """One database of each kind with retold's tables, and one store of each flavour on it."""

    def __init__(self, new_database: Callable[[str], str]) -> None:
        self._new_database = new_database
        self._urls: dict[str, str] = {}
        self._stores: dict[tuple[str, str], EventStore] = {}

    def url(self, kind: str) -> str:
        if kind not in self._urls:
            url = self._new_database(kind)
            with EventStore(url) as store:
                store.migrate()
            self._urls[kind] = url
        return self._urls[kind]

    def store(self, kind: str, flavour: str) -> EventStore:
        pair = kind, flavour
        if pair not in self._stores:
            self._stores[pair] = open_store(self.url(kind), flavour)
        return self._stores[pair]

    def close(self) -> None:
        for store in self._stores.values():
            store.close()


@pytest.fixture(scope="session")
def shared(servers: Rig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    made: list[tuple[str, str]] = []

    def new_database(kind: str) -> str:
        name = f"shared_{secrets.token_hex(8)}"
        if kind == "sqlite":
            return f"sqlite:///{tmp_path_factory.mktemp('shared') / name}.db"
        made.append((kind, name))
        return servers[kind].create_database(name)

    databases = Shared(new_database)
    yield databases
    databases.close()
    for kind, name in made:
        servers[kind].drop_database(name)


@pytest.fixture
def url(shared: Shared, kind: str) -> str:
    """A database with retold's tables, which other tests use too: make entities of your own."""
    return shared.url(kind)


@pytest.fixture
def store(shared: Shared, kind: str, flavour: str) -> EventStore:
    """A store on the shared database."""
    return shared.store(kind, flavour)


@pytest.fixture
def rival(shared: Shared, kind: str) -> EventStore:
    """A blocking store on the same database, for what others do while a command runs: an async
    store's own loop may be waiting for that command."""
    return shared.store(kind, "sync")


@pytest.fixture
def new_id() -> Callable[[], str]:
    return lambda: f"acc-{secrets.token_hex(8)}"


Opening = Callable[..., EventStore]


@pytest.fixture
def opened() -> Iterator[Opening]:
    """Opens further stores, which are closed when the test ends."""
    with ExitStack() as stack:

        def opening(url: str, flavour: str = "sync", **options: Any) -> EventStore:
            store = open_store(url, flavour, **options)
            stack.callback(store.close)
            return store

        yield opening
