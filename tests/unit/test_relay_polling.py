"""Polling on SQLite: what it takes for news, and what it marks."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from retold import EventStore
from retold.drivers import open_driver
from retold.errors import LogReplaced, LogUnsuitable
from retold.relay.positions import PollingPosition
from retold.relay.source import Chunk
from retold.relay.sources import polling
from retold.relay.sources.polling import PollingSource
from retold.store.connections import BlockingDriver
from retold.store.url import parse_url


class Database:
    def __init__(self, path: Path) -> None:
        self.url = f"sqlite:///{path}"
        with EventStore(self.url) as store:
            store.migrate(polling=True)
        self._raw = sqlite3.connect(path, isolation_level=None, timeout=30)

    def write(self, *ids: str, data: str = "{}", entity: str = "ann", published: int = 0) -> None:
        self._raw.executemany(
            "INSERT INTO events (event_id, event_type, event_data, entity_type, entity_id, "
            "published) VALUES (?, 't.E', ?, 't.T', ?, ?)",
            [(id, data, entity, published) for id in ids],
        )

    def unmarked(self) -> list[str]:
        found = self._raw.execute("SELECT event_id FROM events WHERE published = 0 ORDER BY 1")
        return [id for (id,) in found]

    def execute(self, sql: str) -> None:
        self._raw.execute(sql)

    def close(self) -> None:
        self._raw.close()


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with closing(Database(tmp_path / "events.db")) as opened:
        yield opened


@pytest.fixture
def driver(database: Database) -> Iterator[BlockingDriver]:
    with closing(open_driver(parse_url(database.url))) as opened:
        yield opened


@pytest.fixture
def source(driver: BlockingDriver) -> Iterator[PollingSource]:
    with closing(PollingSource(driver)) as opened:
        opened.start(opened.now())
        yield opened


def ids(chunk: Chunk | None) -> list[str]:
    assert chunk is not None
    return [row[0] for row in chunk.rows]


def test_rows_come_once_and_are_marked_when_they_are_confirmed(
    source: PollingSource, database: Database
) -> None:
    database.write("1", "2")
    chunk = source.read(0)
    assert chunk is not None
    assert ids(chunk) == database.unmarked() == ["1", "2"]
    assert source.read(0.01) is None
    source.confirm(chunk.position)
    assert database.unmarked() == []
    database.write("3")
    assert ids(source.read(0)) == ["3"]


def test_a_start_marks_what_its_position_holds(driver: BlockingDriver, database: Database) -> None:
    database.write("1", "2", "3")
    with closing(PollingSource(driver)) as first:
        position = first.now()
        first.start(position)
        assert ids(first.read(0)) == ["1", "2", "3"]
    with closing(PollingSource(driver)) as second:
        second.start(PollingPosition(position.table, ("1", "3")))
        assert database.unmarked() == ["2"]
        assert ids(second.read(0)) == ["2"]


def test_an_older_position_confirmed_again_does_not_release_what_is_in_hand(
    source: PollingSource, database: Database
) -> None:
    database.write("1")
    first = source.read(0)
    assert first is not None
    source.confirm(first.position)
    database.write("2")
    assert ids(source.read(0)) == ["2"]
    source.confirm(first.position)
    assert source.read(0.01) is None


def test_an_event_committed_late_with_a_lower_id_comes_too(
    source: PollingSource, database: Database
) -> None:
    end = source.now()
    database.write("5", entity="bob")
    chunk = source.read(0)
    assert chunk is not None
    source.confirm(chunk.position)
    database.write("3")
    assert ids(source.read(0)) == ["3"]
    assert source.reached(end)


def test_the_end_is_reached_when_nothing_up_to_it_is_unmarked(
    source: PollingSource, database: Database
) -> None:
    database.write("1", "2")
    end = source.now()
    database.write("9")
    assert not source.reached(end)
    chunk = source.read(0)
    assert chunk is not None
    assert not source.reached(end)
    source.confirm(chunk.position)
    assert source.read(0) is None
    assert source.reached(end)


def test_the_end_of_an_empty_table_is_reached_after_one_look(source: PollingSource) -> None:
    end = source.now()
    assert not source.reached(end)
    assert source.read(0) is None
    assert source.reached(end)


def test_skipping_marks_what_is_there(
    driver: BlockingDriver, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(polling, "_MOST_ROWS", 2)
    database.write("1", "2", "3", "4", "5")
    with closing(PollingSource(driver)) as source:
        position = source.skip()
        assert database.unmarked() == []
        database.write("4a")
        source.start(position)
        assert ids(source.read(0)) == ["4a"]


def test_a_chunk_is_bounded_in_rows_and_bytes(source: PollingSource, database: Database) -> None:
    def read() -> int:
        chunk = source.read(0)
        assert chunk is not None
        source.confirm(chunk.position)
        return len(chunk.rows)

    database.write(*(f"{number:05}" for number in range(1_500)))
    assert [read(), read()] == [1_000, 500]
    database.write(*(f"{number:05}" for number in range(2_000, 2_012)), data="x" * 450_000)
    assert [read(), read(), read()] == [4, 4, 4]
    database.write("3000", data="x" * 5_000_000)
    assert read() == 1


def test_the_time_is_about_that_of_the_commit(source: PollingSource, database: Database) -> None:
    database.write(f"{1_700_000_000_123:016x}-0000000000000001")
    chunk = source.read(0)
    assert chunk is not None
    assert chunk.committed == 1_700_000_000.123


def test_a_waiting_read_is_woken_by_a_commit_of_this_process(
    source: PollingSource, driver: BlockingDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(polling, "_SHORTEST_S", 60.0)
    found = list[Chunk | None]()
    reading = threading.Thread(target=lambda: found.append(source.read(60)))
    reading.start()
    insert = (
        "INSERT INTO events (event_id, event_type, event_data, entity_type, entity_id) "
        "VALUES ('1', 't.E', '{}', 't.T', 'ann')"
    )
    with driver.connection() as connection:
        connection.begin()
        connection.execute([(insert, ())])  # type: ignore[list-item]
        connection.commit()
    reading.join(30)
    assert ids(found[0]) == ["1"]


def test_closing_ends_a_waiting_read(
    source: PollingSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(polling, "_SHORTEST_S", 60.0)
    reading = threading.Thread(target=lambda: source.read(60))
    reading.start()
    source.close()
    reading.join(30)
    assert not reading.is_alive()


def test_another_table_is_a_stop(source: PollingSource, tmp_path: Path) -> None:
    with (
        closing(Database(tmp_path / "other.db")) as other,
        closing(open_driver(parse_url(other.url))) as driver,
    ):
        other.execute("UPDATE retold_migrations SET applied_at = 1 WHERE number = 1")
        position = PollingSource(driver).now()
        assert position.table == "sqlite/1"
        with pytest.raises(LogReplaced, match="sqlite/1"):
            source.start(position)


def test_without_its_index_it_does_not_begin(driver: BlockingDriver, database: Database) -> None:
    """Not even a first start, which would find out only after it has published the table."""
    database.execute("DROP INDEX events_published_idx")
    source = PollingSource(driver)
    for begin in (source.now, source.skip):
        with pytest.raises(LogUnsuitable, match="migrate --polling"):
            begin()
