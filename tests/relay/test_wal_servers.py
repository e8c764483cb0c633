"""The source that follows PostgreSQL's log, on servers that crash, fail over or are set up badly."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from retold.errors import (
    ConnectionLost,
    LogPurged,
    LogRewound,
    LogUnsuitable,
    StoreBusy,
    StoreUnavailable,
)
from retold.relay.positions import Position, WalPosition
from retold.relay.sources import wal, wal_stream
from retold.relay.sources.wal import WalSource
from retold.store.url import parse_url
from tests.relay.wal import (
    PATIENCE_S,
    chunks,
    connect,
    drop_slots,
    ids,
    insert,
    migrate,
    slot,
    wait_until,
)
from tests.rig import Postgres
from tests.rig.databases import query, with_parts

MAJORS = [15, 18]
NewServer = Callable[..., Postgres]


@pytest.fixture(scope="module")
def new_server() -> Iterator[NewServer]:
    """Gives a server of the tests' own; one that was given already with the same options again."""
    with ExitStack() as ended:
        made: dict[tuple[object, ...], Postgres] = {}

        def new(major: int, *settings: str) -> Postgres:
            if (major, *settings) not in made:
                options = [part for setting in settings for part in ("-c", setting)]
                server = made[(major, *settings)] = Postgres(major, *options)
                server.start()
                ended.callback(server.stop)
            return made[(major, *settings)]

        yield new


@pytest.fixture(
    params=[pytest.param(n, marks=pytest.mark.database(f"postgres{n}")) for n in MAJORS]
)
def server(request: pytest.FixtureRequest, new_server: NewServer) -> Postgres:
    return new_server(request.param, "max_prepared_transactions=5", "max_replication_slots=3")


@pytest.fixture
def url(server: Postgres) -> Iterator[str]:
    """A database with retold's tables, for the administrator."""
    url = with_parts(server.url, database="events")
    query(server.url, "CREATE DATABASE events")
    migrate(url)
    yield url
    drop_slots(url)
    query(server.url, "DROP DATABASE events WITH (FORCE)")


@pytest.fixture
def source(url: str) -> Iterator[WalSource]:
    source = WalSource(parse_url(url), "relay")
    source.start(source.now())
    yield source
    source.close()


@contextmanager
def following(source: WalSource, position: Position) -> Generator[list[Position]]:
    """As a relay does: reads and confirms until the connection breaks. Gives the last position."""
    last = [position]

    def follow() -> None:
        while True:
            try:
                chunk = source.read(0.05)
            except StoreUnavailable:
                return
            if chunk is not None:
                source.confirm(chunk.position)
                last[0] = chunk.position

    thread = threading.Thread(target=follow)
    thread.start()
    yield last
    thread.join(30)
    assert not thread.is_alive()


@contextmanager
def setting(server: Postgres, name: str, value: str) -> Generator[None]:
    query(server.url, f"ALTER SYSTEM SET {name} = '{value}'", "SELECT pg_reload_conf()")
    wait_until(lambda: query(server.url, f"SHOW {name}") == [(value,)])
    try:
        yield
    finally:
        query(server.url, f"ALTER SYSTEM RESET {name}", "SELECT pg_reload_conf()")
    wait_until(lambda: query(server.url, f"SHOW {name}") != [(value,)])


# --- transactions --------------------------------------------------------------------------------


def test_a_prepared_transaction_comes_once_when_it_is_committed(
    url: str, source: WalSource
) -> None:
    with connect(url) as link:
        for name in ("kept", "dropped"):
            link.execute("BEGIN")
            insert(link, f"{name} 1", f"{name} 2")
            link.execute(f"PREPARE TRANSACTION '{name}'")  # pyright: ignore[reportArgumentType]
        insert(link, "before")
        link.execute("ROLLBACK PREPARED 'dropped'")
        link.execute("COMMIT PREPARED 'kept'")
        insert(link, "behind")
    assert ids(source) == ["before", "kept 1", "kept 2", "behind"]


def test_a_prepared_transaction_survives_a_restart_of_the_relay(
    url: str, source: WalSource
) -> None:
    with connect(url) as link:
        link.execute("BEGIN")
        insert(link, "prepared")
        link.execute("PREPARE TRANSACTION 'p'")
        insert(link, "a")
        chunk = source.read(PATIENCE_S)
        assert chunk is not None
        assert [row[0] for row in chunk.rows] == ["a"]
        source.confirm(chunk.position)
        source.start(chunk.position)
        link.execute("COMMIT PREPARED 'p'")
        assert ids(source) == ["prepared"]


def test_now_waits_for_a_transaction_that_is_in_the_log_but_not_yet_visible(
    server: Postgres, url: str, source: WalSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wal, "_SETTLE_S", 0.2)
    count = "SELECT count(*) FROM events"
    with connect(url) as link:
        with setting(server, "synchronous_standby_names", "nobody"):
            writer = threading.Thread(target=insert, args=(link, "a"))
            writer.start()
            chunk = source.read(PATIENCE_S)
            assert chunk is not None
            assert [row[0] for row in chunk.rows] == ["a"]
            assert query(url, count) == [(0,)]
            with pytest.raises(StoreBusy, match=str(link.info.backend_pid)):
                source.now()
        writer.join()
        source.now()
        assert query(url, count) == [(1,)]


# --- crashes -------------------------------------------------------------------------------------


def test_a_server_that_shuts_down_need_not_wait_for_an_idle_relay(
    server: Postgres, url: str, source: WalSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wal, "_PROGRESS_S", 3600.0)
    with connect(url) as link, following(source, source.now()) as last:
        insert(link, "a")
        link.execute("CREATE TABLE noise AS SELECT generate_series(1, 1000)")
        server.restart()
    source.start(last[0])
    with connect(url) as link:
        insert(link, "b")
    assert ids(source) == ["b"]


def test_after_a_crash_of_the_server_the_source_goes_on_at_its_position(
    server: Postgres, url: str, source: WalSource
) -> None:
    with connect(url) as link:
        position = source.now()
        insert(link, "a")
        assert ids(source) == ["a"]
        server.kill()
    with pytest.raises(StoreUnavailable):
        ids(source)
    with pytest.raises(StoreUnavailable):
        source.start(position)
    server.restart()
    source.start(position)
    with connect(url) as link:
        insert(link, "b")
    assert ids(source) == ["a", "b"]


def test_a_silent_server_is_noticed(
    server: Postgres, url: str, source: WalSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wal_stream, "_REPORT_S", 0.05)
    monkeypatch.setattr(wal_stream, "_ASK_S", 0.2)
    monkeypatch.setattr(wal_stream, "_SILENCE_S", 1.0)
    monkeypatch.setattr(wal, "_TICK_S", 0.1)
    assert source.read(2.0) is None, "a server that answers is not silent"
    sender = slot(url, "active_pid")
    os.kill(sender, signal.SIGSTOP)
    try:
        with pytest.raises(ConnectionLost, match="silent"):
            source.read(30)
    finally:
        os.kill(sender, signal.SIGCONT)


# --- a log that was lost -------------------------------------------------------------------------


def test_a_slot_that_lost_its_log_stops_the_relay_and_is_made_anew_by_a_resync(
    server: Postgres, url: str, source: WalSource
) -> None:
    position = source.now()
    source.close()
    wait_until(lambda: not slot(url, "active"))
    with setting(server, "max_slot_wal_keep_size", "1MB"):
        for _ in range(3):
            query(url, "SELECT pg_logical_emit_message(false, 'fill', repeat('x', 1000))")
            query(url, "SELECT pg_switch_wal()")
        query(url, "CHECKPOINT")
    with pytest.raises(LogPurged, match=r"retold_relay was lost \(.*\)"):
        source.start(position)
    source.start(source.now())
    with connect(url) as link:
        insert(link, "a")
    assert ids(source) == ["a"]


def test_a_server_without_a_free_slot_is_refused(url: str) -> None:
    for number in range(3):
        query(url, f"SELECT pg_create_logical_replication_slot('taken{number}', 'pgoutput')")
    source = WalSource(parse_url(url), "relay")
    with pytest.raises(LogUnsuitable, match="max_replication_slots"):
        source.now()
    source.close()


@pytest.mark.database("postgres18")
def test_a_server_that_keeps_no_logical_log_is_refused(new_server: NewServer) -> None:
    server = new_server(18, "wal_level=replica")
    source = WalSource(parse_url(server.url), "relay")
    with pytest.raises(LogUnsuitable, match="ALTER SYSTEM SET wal_level = 'logical'"):
        source.now()


# --- failover ------------------------------------------------------------------------------------


class Standby(Postgres):
    """Has the files of a server as they were at a moment, as an asynchronous standby has them."""

    def __init__(self, primary: Postgres) -> None:
        super().__init__(int(primary.name.removeprefix("postgres")), *primary._options)
        ((files,),) = query(primary.url, "SHOW data_directory")
        self._files = Path(str(files))
        # Killed for as long as the copy takes: one of a running server would not be of one moment.
        primary.kill()
        self.start()
        primary.restart()

    def _prepare(self, folder: Path) -> None:
        subprocess.run(["cp", "-a", "--reflink=auto", self._files, folder], check=True)
        (folder / "data/postmaster.pid").unlink(missing_ok=True)
        mark = folder / "data/standby.signal"
        mark.touch()
        owner = self._files.stat()
        os.chown(mark, owner.st_uid, owner.st_gid)

    def _create_user(self) -> None:
        """The copy has it."""

    def promote(self) -> None:
        query(self.url, "SELECT pg_promote()")
        wait_until(lambda: query(self.url, "SELECT pg_is_in_recovery()") == [(False,)])


@pytest.fixture
def new_standby() -> Iterator[Callable[[Postgres], Standby]]:
    with ExitStack() as ended:

        def new(primary: Postgres) -> Standby:
            standby = Standby(primary)
            ended.callback(standby.stop)
            return standby

        yield new


def test_after_a_failover_the_source_goes_on_where_it_was(
    server: Postgres, url: str, source: WalSource, new_standby: Callable[[Postgres], Standby]
) -> None:
    with connect(url) as link:
        insert(link, "a")
        (position,) = [chunk.position for chunk in chunks(source) if chunk.rows]
        insert(link, "b")
    source.close()
    standby = new_standby(server)
    promoted = with_parts(standby.url, database="events")
    heir = WalSource(parse_url(promoted), "relay")
    with closing(heir):
        with pytest.raises(StoreUnavailable, match="it is a standby"):
            heir.start(position)
        standby.promote()
        heir.start(position)
        with connect(promoted) as link:
            insert(link, "c")
        found = list(chunks(heir))
        assert [row[0] for chunk in found for row in chunk.rows] == ["b", "c"]
        last = found[-1].position
        assert isinstance(last, WalPosition)
        assert last.timeline == 2
        heir.start(last)
        assert ids(heir) == []


def test_a_failover_that_lost_what_was_published_stops_the_relay(
    server: Postgres, url: str, source: WalSource, new_standby: Callable[[Postgres], Standby]
) -> None:
    position = source.now()
    standby = new_standby(server)
    source.start(position)
    with connect(url) as link:
        insert(link, "lost")
    (published,) = [chunk.position for chunk in chunks(source) if chunk.rows]
    assert isinstance(published, WalPosition)
    standby.promote()
    promoted = with_parts(standby.url, database="events")
    with connect(promoted) as link:
        insert(link, *(f"new {number}" for number in range(1000)))
    with closing(WalSource(parse_url(promoted), "relay")) as heir:
        assert heir.now().lsn > published.lsn
        with pytest.raises(LogRewound, match="its timeline 2 began at"):
            heir.start(published)
