"""The thread that reads ahead."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

import pytest

from retold.errors import ConnectionLost, LogUnreadable
from retold.relay import reader as module
from retold.relay.positions import Position, WalPosition
from retold.relay.reader import Batch, Reader
from retold.relay.source import Chunk, Row


def at(lsn: int) -> WalPosition:
    return WalPosition("s", 1, "slot", lsn)


def rows(count: int, size: int = 2, first: int = 0) -> list[Row]:
    return [
        (f"{number:033d}", "t.E", "x" * size, "t.T", "ann", None, None)
        for number in range(first, first + count)
    ]


class Script:
    """A source that returns what it is told to, then nothing. An exception is raised."""

    def __init__(self, *answers: Chunk | BaseException) -> None:
        self._answers = list(answers)
        self.all_read = threading.Event()
        self.kept_alive = threading.Event()
        self.end = 1 << 62
        self.at = 0

    def read(self, wait: float) -> Chunk | None:
        if not self._answers:
            self.all_read.set()
            threading.Event().wait(0.001)
            return None
        answer = self._answers.pop(0)
        if isinstance(answer, BaseException):
            self.all_read.set()
            raise answer
        assert isinstance(answer.position, WalPosition)
        self.at = answer.position.lsn
        return answer

    def reached(self, position: Position) -> bool:
        return self.at >= self.end

    def keepalive(self) -> None:
        self.kept_alive.set()

    def now(self) -> Position:
        return at(0)

    def skip(self) -> Position:
        return at(0)

    def check(self, position: Position) -> None: ...
    def start(self, position: Position) -> None: ...
    def confirm(self, position: Position) -> None: ...
    def close(self) -> None: ...


class Known:
    """Knows some ids, until the source has read up to its end."""

    def __init__(self, source: Script, *ids: str) -> None:
        self._source = source
        self._ids = ids

    def missing(self, rows: Sequence[Row]) -> Sequence[Row]:
        return [row for row in rows if row[0] not in self._ids]

    def reached(self) -> bool:
        return self._source.reached(at(0))


Reading = Callable[..., Reader]


@pytest.fixture
def reading() -> Iterator[Reading]:
    opened: list[Reader] = []

    def start(source: Script, known: Known | None = None) -> Reader:
        opened.append(Reader(source, at(0), known))
        return opened[-1]

    yield start
    for reader in opened:
        reader.close()


def ids(batch: Batch | None) -> list[str]:
    assert batch is not None
    return [dict(record.headers)["id"].decode() for record in batch.records]


def test_what_was_read_meanwhile_is_one_batch(reading: Reading) -> None:
    source = Script(Chunk(rows(2), at(2), 20.0), Chunk(rows(1, first=2), at(3)), Chunk([], at(9)))
    reader = reading(source)
    source.all_read.wait(30)
    batch = reader.take(30)
    assert ids(batch) == [row[0] for row in rows(3)]
    assert batch is not None
    assert (batch.position, batch.committed) == (at(9), 20.0)


def test_there_is_none_when_nothing_comes(reading: Reading) -> None:
    assert reading(Script()).take(0.001) is None


@pytest.mark.parametrize(("limit", "size"), [("MAX_ROWS", 2), ("_MOST_BYTES", 1_000_000)])
def test_a_batch_is_no_larger_than_a_transaction(
    reading: Reading, monkeypatch: pytest.MonkeyPatch, limit: str, size: int
) -> None:
    monkeypatch.setattr(module, limit, 10 if limit == "MAX_ROWS" else 10_100_000)
    source = Script(*(Chunk(rows(4, size), at(n)) for n in range(3)))
    monkeypatch.setattr(module, "_AHEAD_BYTES", 1 << 40)
    reader = reading(source)
    source.all_read.wait(30)
    assert [len(ids(reader.take(30))) for _ in range(2)] == [8, 4]


@pytest.mark.parametrize(("limit", "size"), [("_AHEAD_RECORDS", 2), ("_AHEAD_BYTES", 1_000_000)])
def test_reading_ends_when_enough_is_waiting_and_the_server_is_kept_alive(
    reading: Reading, monkeypatch: pytest.MonkeyPatch, limit: str, size: int
) -> None:
    monkeypatch.setattr(module, limit, 12 if limit == "_AHEAD_RECORDS" else 12_000_000)
    monkeypatch.setattr(module, "MAX_ROWS", 4)
    source = Script(*(Chunk(rows(4, size), at(n)) for n in range(9)))
    reader = reading(source)
    assert source.kept_alive.wait(30)
    assert source.at == 2
    assert len(ids(reader.take(30))) == 4
    while source.at < 3:
        source.kept_alive.wait(0.001)


def test_everything_before_an_error_comes_first(reading: Reading) -> None:
    reader = reading(Script(Chunk(rows(1), at(1)), LogUnreadable("what?", "there")))
    assert len(ids(reader.take(30))) == 1
    for _ in range(2):
        with pytest.raises(LogUnreadable):
            reader.take(30)


def test_closing_ends_the_thread_also_when_it_waits_for_room(
    reading: Reading, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_AHEAD_RECORDS", 1)
    source = Script(Chunk(rows(5), at(1)), ConnectionLost("never read"))
    reader = reading(source)
    reader.close()
    assert not reader._thread.is_alive()


# --- what is known already -----------------------------------------------------------------------


def test_known_rows_are_left_out_up_to_the_end(reading: Reading) -> None:
    first, second, third, fourth = (row[0] for row in rows(4))
    source = Script(
        Chunk(rows(2), at(2)), Chunk(rows(1, first=2), at(3)), Chunk(rows(1, first=3), at(4))
    )
    source.end = 3
    reader = reading(source, Known(source, first, third, fourth))
    source.all_read.wait(30)
    until = reader.take(30)
    assert until is not None
    assert (ids(until), until.position, until.last) == ([second], at(3), True)
    behind = reader.take(30)
    assert behind is not None
    assert (ids(behind), behind.last) == ([fourth], False)


def test_the_end_is_told_also_when_nothing_more_comes(reading: Reading) -> None:
    source = Script(Chunk(rows(1), at(1)))
    source.end = 1 << 62
    reader = reading(source, Known(source))
    assert ids(reader.take(30)) == [rows(1)[0][0]]
    source.end = 0
    last = reader.take(30)
    assert last is not None
    assert (last.records, last.position, last.last) == ([], at(1), True)
    assert reader.take(0.01) is None
