"""A database that was set back to before what is published."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing

import pytest

from retold import Aggregate, Event, EventStore, applies
from tests.conformance.raw import path_of
from tests.relay.comparison import wrong
from tests.relay.processes import eventually, relay, size
from tests.rig import GivenKafka, Kafka


class Grew(Event, name="test_rewind.Grew"):
    by: int


class Tree(Aggregate, name="test_rewind.Tree"):
    height: int = 0

    def grow(self, by: int) -> None:
        self.emit(Grew(by))

    @applies
    def _grew(self, event: Grew) -> None:
        self.height += event.by


@pytest.fixture
def url(fresh_database: Callable[[str], str]) -> str:
    url = fresh_database("sqlite")
    with EventStore(url) as store:
        store.migrate(polling=True)
    return url


def _set_back(path: str, backup: str) -> None:
    for suffix in ("-wal", "-shm"):
        with closing(open(path + suffix, "ab")) as file:
            file.truncate(0)
    shutil.copy(backup, path)


def test_a_database_that_was_set_back_stops_the_relay_until_that_is_accepted(
    url: str, kafka: Kafka | GivenKafka
) -> None:
    path = path_of(url)
    with EventStore(url) as store:
        tree = store.repository(Tree).create(Tree.grow, 1).id
    with closing(sqlite3.connect(path)) as raw, closing(sqlite3.connect(path + ".bak")) as backup:
        raw.backup(backup)
    with EventStore(url) as store:
        store.repository(Tree).update(tree, Tree.grow, 2)
    with relay(url, kafka.url) as process:
        eventually(lambda: not wrong(url, kafka.url))
        assert process.terminate() == 0
    _set_back(path, path + ".bak")

    with relay(url, kafka.url) as process:
        process.says("set back to before what is published")
        assert process.ends() == 3
    with EventStore(url) as store:
        assert store.repository(Tree).update(tree, Tree.grow, 10).state.height == 11
    with relay(url, kafka.url, "--accept-rewind") as process:
        process.says("the database has lost it")
        eventually(lambda: wrong(url, kafka.url).counts() == {"invented": 1})
        assert process.terminate() == 0
    with relay(url, kafka.url) as process:
        before = size(kafka.url, "test_rewind.Tree")
        with EventStore(url) as store:
            store.repository(Tree).update(tree, Tree.grow, 1)
        eventually(lambda: size(kafka.url, "test_rewind.Tree") > before)
        eventually(lambda: wrong(url, kafka.url).counts() == {"invented": 1})
        assert process.terminate() == 0
