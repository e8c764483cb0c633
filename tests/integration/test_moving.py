"""`retold export` and `retold import`: a store in one database becomes the same store in another."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest

from retold import Aggregate, Delivery, Event, EventStore, Retry, Subscription, applies, metadata
from retold.cli import main
from retold.store.driver import Plan, Statement
from tests.conformance.raw import rows

EVENTS = (
    "SELECT event_id, event_type, event_data, entity_type, entity_id, triggering_event, metadata "
    "FROM events ORDER BY event_id"
)
VERSIONS = "SELECT entity_type, entity_id, entity_version FROM entities ORDER BY 1, 2"
HANDLED = (
    "SELECT entity_type, entity_id, trigger_key, command, update_id, handled_at FROM handled "
    "ORDER BY 1, 2, 3"
)
PAIRS = [
    ("sqlite", "postgres18"),
    ("postgres18", "mysql8"),
    ("mysql8", "mariadb"),
    ("mariadb", "sqlite"),
]
_pairs = pytest.mark.parametrize(
    ("source", "target"),
    [pytest.param(*pair, marks=pytest.mark.database(*pair), id="-".join(pair)) for pair in PAIRS],
)
_every_kind = pytest.mark.parametrize("kind", ["sqlite", "postgres18", "mysql8", "mariadb"])


class Said(Event, name="test_moving.Said"):
    text: str


class Talk(Aggregate, name="test_moving.Talk"):
    count: int = 0

    def say(self, *texts: str) -> None:
        for text in texts:
            self.emit(Said(text))

    @applies
    def _said(self, event: Said) -> None:
        self.count += 1


Fresh = Callable[[str], str]


@pytest.fixture
def fresh(fresh_database: Fresh) -> Fresh:
    """A new database with the tables, subscriptions' included."""

    def made(kind: str) -> str:
        url = fresh_database(kind)
        with EventStore(url) as store:
            store.migrate(subscriptions=True)
        return url

    return made


def _contents(url: str) -> list[list[tuple[object, ...]]]:
    return [list(map(tuple, rows(url, statement))) for statement in (EVENTS, VERSIONS, HANDLED)]


def _export(url: str, file: Path, *more: str) -> None:
    assert main(["export", str(file), "--database", url, *more]) == 0


def _import(url: str, file: Path, *more: str) -> None:
    assert main(["import", str(file), "--database", url, *more]) == 0


@_pairs
def test_a_store_is_the_same_in_the_other_database(
    source: str, target: str, fresh: Fresh, tmp_path: Path
) -> None:
    old, new, file = fresh(source), fresh(target), tmp_path / "export.jsonl"
    with EventStore(old) as store:
        talks = store.repository(Talk)
        with metadata(user="ann", quoted='"\\\n\t\u2028'):
            talks.with_id('it\'s 100% \\ "ü" 🎉').create(
                Talk.say, "100% \\ 'quoted' \"\n", "🎉\x7f\u2028", ""
            )
        talks.once("key-1").create(Talk.say, "once")
        for n in range(700):
            talks.with_id(f"talk-{n}").create(Talk.say, "x" * n)
        talks.once("key-2").update("talk-1", Talk.say, "again")
    _export(old, file)
    _import(new, file)
    assert _contents(new) == _contents(old)
    _import(new, file)
    assert _contents(new) == _contents(old)
    with EventStore(new) as store:
        talks = store.repository(Talk)
        assert talks.once("key-2").update("talk-1", Talk.say, "again").duplicate
        assert talks.update("talk-1", Talk.say, "more").state.count == 3


@_every_kind
def test_an_export_beside_writers_holds_the_first_events_of_each_entity(
    kind: str, fresh: Fresh, tmp_path: Path
) -> None:
    url, stop = fresh(kind), threading.Event()
    file = tmp_path / "export.jsonl"
    with EventStore(url) as store:
        talks = store.repository(Talk)
        ids = [talks.create(Talk.say, "first").id for _ in range(8)]

        def write(mine: list[str]) -> None:
            n = 0
            while not stop.is_set():
                n += 1
                talks.once(f"{n}").update(mine[n % len(mine)], Talk.say, "a", "b")

        writers = [threading.Thread(target=write, args=(ids[n::2],)) for n in range(2)]
        for writer in writers:
            writer.start()
        try:
            for n in range(2):
                _export(url, tmp_path / f"{n}.jsonl")
            _export(url, file)
        finally:
            stop.set()
            for writer in writers:
                writer.join()
        written: dict[str, list[str]] = defaultdict(list)
        keys: set[tuple[str, str]] = set()
        for line in map(json.loads, file.read_text("utf-8").splitlines()):
            if line["line"] == "event":
                written[line["entity_id"]].append(line["id"])
            elif line["line"] == "handled":
                keys.add((line["entity_id"], line["key"]))
        for id in ids:
            history = list(talks.history(id))
            assert written[id] == [event.id for event in history[: len(written[id])]]
            # A key is there exactly where both of its events are.
            kept = history[1 : len(written[id])]
            assert {(id, str(event.trigger)) for event in kept} == {k for k in keys if k[0] == id}
            assert len(kept) % 2 == 0


def _texts(file: Path) -> list[str]:
    lines = map(json.loads, file.read_text("utf-8").splitlines())
    return [json.loads(line["data"])["text"] for line in lines if line["line"] == "event"]


def _broken_off(file: Path, size: int) -> None:
    with file.open("r+b") as cut:
        cut.truncate(size)


@_every_kind
def test_an_export_that_was_broken_off_is_resumed_with_what_was_committed_late(
    kind: str, fresh: Fresh, tmp_path: Path
) -> None:
    url, file = fresh(kind), tmp_path / "export.jsonl"
    with EventStore(url) as store:
        talks = store.repository(Talk)
        talks.create(Talk.say, "1")
        if kind == "sqlite":  # has one writer at a time: nothing can be late
            talks.create(Talk.say, "late")
            late = None
        else:
            late = store.transaction()
            late.__enter__().repository(Talk).create(Talk.say, "late")
        talks.create(Talk.say, "2")
        _export(url, file)
        _broken_off(file, len(file.read_bytes()) - 300)
        if late is not None:
            assert _texts_of_whole_lines(file) == ["1"]
            late.__exit__(None, None, None)
        talks.create(Talk.say, "3")
        _export(url, file, "--resume")
        _export(url, file, "--resume")
        assert sorted(_texts(file)) == ["1", "2", "3", "late"]
        new = fresh("sqlite")
        _import(new, file)
        assert _contents(new) == _contents(url)


def _texts_of_whole_lines(file: Path) -> list[str]:
    whole = file.read_text("utf-8").rpartition("\n")[0].splitlines()
    lines = map(json.loads, whole)
    return [json.loads(line["data"])["text"] for line in lines if line["line"] == "event"]


def test_every_place_to_break_off_an_export_can_be_resumed(fresh: Fresh, tmp_path: Path) -> None:
    url, file = fresh("sqlite"), tmp_path / "export.jsonl"
    with EventStore(url) as store:
        store.repository(Talk).once("key").create(Talk.say, "a", "b")
    _export(url, file)
    whole = file.read_bytes()
    for size in range(0, len(whole), 29):
        _broken_off(file, size)
        _export(url, file, "--resume")
        assert file.read_bytes() == whole


def test_a_file_of_another_database_is_not_resumed(
    fresh: Fresh, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url, other, file = fresh("sqlite"), fresh("sqlite"), tmp_path / "export.jsonl"
    for each in (url, other):
        with EventStore(each) as store:
            store.repository(Talk).create(Talk.say, each)
    _export(other, file)
    _broken_off(file, len(file.read_bytes()) - 20)
    assert main(["export", str(file), "--resume", "--database", url]) == 2
    assert "Export into a new file" in capsys.readouterr().err
    assert main(["import", "--check", str(file)]) == 2


def test_a_file_that_is_there_is_not_written_over(
    fresh: Fresh, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("mine\n")
    for more in ([], ["--resume"]):
        assert main(["export", str(file), "--database", fresh("sqlite"), *more]) == 2
        assert file.read_text() == "mine\n"
    assert "there is a file" in capsys.readouterr().err


def test_only_its_owner_may_read_the_file(fresh: Fresh, tmp_path: Path) -> None:
    _export(fresh("sqlite"), tmp_path / "export.jsonl")
    assert (tmp_path / "export.jsonl").stat().st_mode & 0o777 == 0o600


# --- what is not sound ----------------------------------------------------------------------------


def _replaced(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    return lambda whole: whole.replace(old, new, 1)


def _cut(size: int) -> Callable[[bytes], bytes]:
    return lambda whole: whole[:-size]


def _twice(whole: bytes) -> bytes:
    return whole + whole


def _and_more(whole: bytes) -> bytes:
    return whole + b"x"


def _zeros(whole: bytes) -> bytes:
    return b"\0" * len(whole)


def _without_line(number: int) -> Callable[[bytes], bytes]:
    def drop(whole: bytes) -> bytes:
        lines = whole.splitlines(keepends=True)
        return b"".join(lines[:number] + lines[number + 1 :])

    return drop


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(_cut(100), id="cut in a line"),
        pytest.param(_without_line(4), id="cut behind a line"),
        pytest.param(_cut(1), id="cut before the last newline"),
        pytest.param(_replaced(b"first", b"fi\\u0000st"), id="another value"),
        pytest.param(_replaced(b"test_moving.Talk", b"test_moving.Walk"), id="another type"),
        pytest.param(_replaced(b'"line":"event"', b'"line":"evnt"'), id="no line of ours"),
        pytest.param(_replaced(b"key-1", b"key-2"), id="another key"),
        pytest.param(_replaced(b'"events":2', b'"events":1'), id="another count"),
        pytest.param(_replaced(b'"version":1', b'"version":2'), id="another version"),
        pytest.param(_without_line(0), id="no header"),
        pytest.param(_without_line(2), id="a line less"),
        pytest.param(_twice, id="twice"),
        pytest.param(_and_more, id="something behind it"),
        pytest.param(_zeros, id="zeros"),
        pytest.param(_cut(10_000), id="empty"),
    ],
)
def test_a_file_that_is_not_whole_is_refused_before_anything_is_written(
    damage: Callable[[bytes], bytes],
    fresh: Fresh,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    old, new, file = fresh("sqlite"), fresh("sqlite"), tmp_path / "export.jsonl"
    with EventStore(old) as store:
        store.repository(Talk).once("key-1").create(Talk.say, "first", "second")
    _export(old, file)
    whole = file.read_bytes()
    assert whole.count(b"\n") == 5
    damaged = damage(whole)
    assert damaged != whole
    file.write_bytes(damaged)
    assert main(["import", str(file), "--database", new]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert _contents(new) == [[], [], []]


@_every_kind
def test_a_database_that_holds_other_events_is_left_as_it_is(
    kind: str, fresh: Fresh, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new, file = fresh("sqlite"), fresh(kind), tmp_path / "export.jsonl"
    for url in (old, new):
        with EventStore(url) as store:
            store.repository(Talk).with_id("a").create(Talk.say, url)
    before = _contents(new)
    _export(old, file)
    assert main(["import", str(file), "--database", new]) == 2
    assert "the database holds 1 events that" in capsys.readouterr().err
    assert _contents(new) == before


def test_an_event_that_is_there_otherwise_is_found(
    fresh: Fresh, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new, file = fresh("sqlite"), fresh("sqlite"), tmp_path / "export.jsonl"
    with EventStore(old) as store:
        store.repository(Talk).create(Talk.say, "a")
    _export(old, file)
    _import(new, file)
    with EventStore(new) as store:
        store.driver.run(_one('UPDATE events SET event_data = \'{"text":"b"}\''))
    assert main(["import", str(file), "--database", new]) == 2
    assert "is not in this database as it is in the file" in capsys.readouterr().err


def _one(sql: str) -> Plan[None]:
    yield [Statement(sql)]


@_every_kind
def test_an_import_that_was_killed_goes_on(kind: str, fresh: Fresh, tmp_path: Path) -> None:
    old, new, file = fresh("sqlite"), fresh(kind), tmp_path / "export.jsonl"
    with EventStore(old) as store:
        for _ in range(40):
            store.repository(Talk).once(os.urandom(4).hex()).create(Talk.say, *["x" * 3000] * 50)
    _export(old, file)
    command = [sys.executable, "-m", "retold", "import", str(file), "--database", new]
    count = "SELECT count(*) FROM events"
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        while process.poll() is None and not rows(new, count)[0][0]:
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert rows(new, count)[0][0]
    _import(new, file)
    assert _contents(new) == _contents(old)


@_every_kind
def test_two_imports_at_once_are_one(kind: str, fresh: Fresh, tmp_path: Path) -> None:
    old, new, file = fresh("sqlite"), fresh(kind), tmp_path / "export.jsonl"
    with EventStore(old) as store:
        for _ in range(50):
            store.repository(Talk).once(os.urandom(4).hex()).create(Talk.say, *["x" * 100] * 40)
    _export(old, file)
    command = [sys.executable, "-m", "retold", "import", str(file), "--database", new]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2)]
    for process in both:
        process.communicate(timeout=60)
    assert [process.returncode for process in both] == [0, 0]
    assert _contents(new) == _contents(old)


def test_an_import_into_a_store_that_has_gone_on_does_nothing(
    fresh: Fresh, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new, file = fresh("sqlite"), fresh("sqlite"), tmp_path / "export.jsonl"
    with EventStore(old) as store:
        store.repository(Talk).with_id("a").create(Talk.say, "a")
    _export(old, file)
    _import(new, file)
    with EventStore(new) as store:
        store.repository(Talk).update("a", Talk.say, "b")
    before = _contents(new)
    capsys.readouterr()
    _import(new, file)
    assert capsys.readouterr().out.startswith("nothing to do: all 1 events are there already")
    assert _contents(new) == before


# --- subscriptions --------------------------------------------------------------------------------


class Ears:
    """A subscription that fails on some texts, and what it has heard."""

    def __init__(self, *failing: str) -> None:
        self.heard: list[str] = []
        self.subscription = Subscription("ears", retry=Retry(attempts=1))

        @self.subscription.on(Said, of=Talk)
        def hear(delivery: Delivery[Said]) -> None:
            if delivery.event.text in failing:
                raise ValueError("I do not want to hear it")
            self.heard.append(delivery.event.text)


@_pairs
def test_a_subscription_goes_on_where_it_was(
    source: str, target: str, fresh: Fresh, tmp_path: Path
) -> None:
    old, new = fresh(source), fresh(target)
    with EventStore(old) as store:
        talks = store.repository(Talk)
        for text in ("a", "b", "c"):
            talks.with_id(text).create(Talk.say, text)
        ears = Ears()
        store.drain(ears.subscription)
        assert sorted(ears.heard) == ["a", "b", "c"]
        _export(old, tmp_path / "handled.jsonl")
        talks.update("a", Talk.say, "d")
        _export(old, tmp_path / "one-more.jsonl")
    _import(new, tmp_path / "handled.jsonl")
    _import(new, tmp_path / "one-more.jsonl")
    with EventStore(new) as store:
        ears = Ears()
        store.drain(ears.subscription)
        assert ears.heard == ["d"]
        _import(new, tmp_path / "one-more.jsonl")
        store.repository(Talk).update("a", Talk.say, "e")
        store.drain(ears.subscription)
        assert ears.heard == ["d", "e"]


def test_a_relays_lease_is_no_position(fresh: Fresh, tmp_path: Path) -> None:
    url, file = fresh("sqlite"), tmp_path / "export.jsonl"
    rows(
        url, "INSERT INTO subscriptions (name, partition, position) VALUES ('relay:polling', 0, 0)"
    )
    _export(url, file)
    assert b'"positions":0' in file.read_bytes()


@_pairs
def test_a_parked_event_moves_with_what_waits_behind_it(
    source: str, target: str, fresh: Fresh, tmp_path: Path
) -> None:
    old, new, file = fresh(source), fresh(target), tmp_path / "export.jsonl"
    with EventStore(old) as store:
        store.repository(Talk).with_id("a").create(Talk.say, "bad", "behind")
        store.drain(Ears("bad").subscription)
        parked = list(store.parked())
        assert len(parked) == 2
    _export(old, file)
    _import(new, file)
    with EventStore(new) as store:
        assert list(store.parked()) == parked
        assert store.parked().retry("ears") == 1
        ears = Ears()
        store.drain(ears.subscription)
        assert ears.heard == ["bad", "behind"]
        _import(new, file)
        assert list(store.parked()) == []


@pytest.mark.parametrize("kind", ["mysql8", "postgres18"])
def test_positions_need_a_database_that_keeps_them(
    kind: str,
    fresh: Fresh,
    fresh_database: Fresh,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    old, new, file = fresh("sqlite"), fresh_database(kind), tmp_path / "export.jsonl"
    with EventStore(old) as store:
        store.repository(Talk).create(Talk.say, "a")
        store.drain(Ears().subscription)
    _export(old, file)
    assert main(["migrate", "--database", new]) == 0
    assert main(["import", str(file), "--database", new]) == 2
    assert "--no-positions" in capsys.readouterr().err
    assert rows(new, "SELECT count(*) FROM events")[0][0] == 0
    _import(new, file, "--no-positions")
    assert rows(new, "SELECT count(*) FROM events")[0][0] == 1
