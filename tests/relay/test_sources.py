"""One suite that every source passes: what comes, in which order, and where it goes on."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import islice

import pytest

from retold import EventStore
from retold.brokers.published import BinlogFileOffset
from retold.errors import ConnectionLost, StoreUnavailable
from retold.relay.positions import BinlogPosition, PollingPosition, Position, WalPosition
from retold.relay.source import MAX_BYTES, MAX_ROWS, Chunk
from retold.relay.sources import binlog, wal, wal_database
from tests.conformance.domain import Account
from tests.integration.proxy import Proxy
from tests.relay.logs import (
    COLUMNS,
    KINDS,
    PATIENCE_S,
    Event,
    Follower,
    Kind,
    Log,
    Logs,
    check,
    chunks,
    event,
    events_of,
    read,
    wait_until,
)
from tests.rig import Rig
from tests.rig.databases import query

EARLY, LATE = "early", "late"


def sources(where: Callable[[Kind], bool] = lambda kind: True) -> pytest.MarkDecorator:
    """Run a test on these sources."""
    chosen = [
        pytest.param(kind.database, name, id=name) for name, kind in KINDS.items() if where(kind)
    ]
    return pytest.mark.parametrize(("kind", "name"), chosen)


every_source = sources()
those_of_logs = sources(lambda kind: kind.follows != "polling")
those_with_servers = sources(lambda kind: kind.database != "sqlite")
those_with_concurrent_writers = sources(lambda kind: kind.concurrent)


@pytest.fixture(scope="module")
def logs(servers: Rig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Logs]:
    logs = Logs(servers, tmp_path_factory.mktemp("logs"))
    yield logs
    logs.close()


@pytest.fixture
def log(logs: Logs, kind: str, name: str) -> Iterator[Log]:
    log = logs[name]
    yield log
    log.close()


@pytest.fixture
def own_log(logs: Logs, kind: str, name: str) -> Iterator[Log]:
    """A database of its own, whose tables a test may change."""
    log = logs.new(name)
    yield log
    log.close()


def some(count: int, entity: str = "thing", data: str = "{}") -> list[Event]:
    return [event(entity, data) for _ in range(count)]


# --- what comes, and in which order ---------------------------------------------------------------


@every_source
def test_events_come_in_the_order_of_commits(log: Log) -> None:
    source, link = log.start(), log.link()
    written = some(20)
    for one in written:
        link.insert(one)
    check(log, read(source), written)


@those_with_concurrent_writers
def test_what_commits_first_comes_first_whoever_wrote_first(log: Log) -> None:
    source, early, late = log.start(), log.link(), log.link()
    first, second, third = some(1, LATE), some(2, EARLY), some(1, LATE)
    with early.transaction():
        early.insert(second[0])
        late.insert(*first)
        early.insert(second[1])
    late.insert(*third)
    check(log, read(source), first, second, third)


@those_with_concurrent_writers
def test_of_a_transaction_that_is_open_nothing_comes(log: Log) -> None:
    source, early, late = log.start(), log.link(), log.link()
    open_, others = some(3000, EARLY), some(3, LATE)
    found: list[Event] = []
    with early.transaction():
        early.insert_many(open_)
        for one in others:
            late.insert(one)
        while len(found) < len(others):
            chunk = source.read(PATIENCE_S)
            assert chunk is not None
            found += events_of([chunk])
            source.confirm(chunk.position)
        check(log, found, others)
    check(log, read(source), open_)


@those_with_concurrent_writers
def test_long_and_short_transactions_of_several_writers_each_come_whole(log: Log) -> None:
    source = log.start()
    committed: list[list[Event]] = []
    lock = threading.Lock()

    def write(writer: int) -> None:
        link = log.link()
        for turn in range(12):
            with lock:  # ids of one entity must rise
                made = some([1, 3, 400][(turn + writer) % 3], f"writer-{writer}")
            with link.transaction():
                for first in range(0, len(made), 100):
                    link.insert(*made[first : first + 100])
            with lock:
                committed.append(made)

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = read(source)
    assert len(found) == sum(map(len, committed))
    transactions = {made[0]: made for made in committed}
    if log.kind.total_order:
        while found:
            made = transactions.pop(found[0])
            assert found[: len(made)] == made
            del found[: len(made)]
        assert not transactions
    else:
        # Each writer's own entity, in order.
        check(log, found, *sorted(committed))


# --- every row ------------------------------------------------------------------------------------


@every_source
def test_every_row_of_one_insert_comes(log: Log) -> None:
    source, written = log.start(), some(500)
    log.link().insert(*written)
    check(log, read(source), written)


@every_source
def test_every_row_of_an_insert_from_a_select_comes(log: Log) -> None:
    source, link = log.start(), log.link()
    link.execute("CREATE TABLE drafts (number INTEGER PRIMARY KEY, data TEXT)")
    link.execute("INSERT INTO drafts VALUES " + ", ".join(f"({n}, '{n}')" for n in range(300)))
    first = event()[0]
    link.execute(
        f"INSERT INTO events ({COLUMNS}) SELECT "
        + (
            "'{0}' || (1000 + number)" if link.family != "mysql" else "concat('{0}', 1000 + number)"
        ).format(first)
        + ", 'test.Happened', data, 'test.Thing', 'thing', NULL FROM drafts ORDER BY number"
    )
    link.execute("DROP TABLE drafts")
    written = [
        (f"{first}{1000 + n}", "test.Happened", f"{n}", "test.Thing", "thing", None)
        for n in range(300)
    ]
    check(log, read(source), written)


@sources(lambda kind: kind.database != "sqlite")
def test_every_row_of_a_bulk_load_comes(log: Log) -> None:
    if log.kind.database in ("mariadb", "mysql8"):
        query(log.admin, "SET GLOBAL local_infile = 1")
    source, written = log.start(), some(2000, data='{"text": "ü 🎈 \\n"}')
    log.link().load(written)
    check(log, read(source), written)


@every_source
def test_all_statements_of_a_transaction_come_together(log: Log) -> None:
    source, link = log.start(), log.link()
    written = some(7)
    with link.transaction():
        for one in written:
            link.insert(one)
            link.execute("DELETE FROM entities WHERE entity_id = 'nothing'")
            link.execute(
                "INSERT INTO entities (entity_type, entity_id, entity_version) VALUES (%s, %s, %s)",
                ("test.Thing", one[0], one[0]),
            )
    check(log, read(source), written)


@every_source
def test_what_the_store_appends_comes(log: Log) -> None:
    source = log.start()
    with EventStore(log.url) as store:
        accounts = store.repository(Account)
        id = accounts.create(Account.open, "ann", balance=100).id
        accounts.update(id, Account.exchange, 30, 20)
        accounts.update(id, Account.note, "🎈")
    found = read(source)
    assert [one[1] for one in found] == [
        "conformance.Opened",
        "conformance.Debited",
        "conformance.Credited",
        "conformance.Noted",
    ]
    assert {(one[3], one[4]) for one in found} == {("conformance.Account", id)}
    assert found == sorted(found)


@every_source
def test_texts_come_exactly_as_they_were_stored(log: Log) -> None:
    odd = "quote ' \" back\\slash \\n \t\r\n tab, é ß 漢字 🎈 \x01\x1a\x7f\u2028 %s {0} $"
    large = "".join(chr(0x4E00 + n * 7919 % 20000) for n in range(300_000))  # 900 kB
    written = [
        event("id", odd, odd),
        event("", "", "", entity_type="", name=""),
        event(odd, "{}", entity_type="🎈", name="ß"),
        event("id", large, None),
        event("id", "x" * 900_000, large),
        event("id", "{}", "{}"),
    ]
    source, link = log.start(), log.link()
    for one in written:
        link.insert(one)
    check(log, read(source), written)


# --- what does not come ---------------------------------------------------------------------------


@every_source
def test_a_transaction_that_was_rolled_back_does_not_come(log: Log) -> None:
    source, link = log.start(), log.link()
    before, after = some(1), some(1)
    link.insert(*before)
    with link.transaction(end="ROLLBACK"):
        link.insert_many(some(3000))
    link.insert(*after)
    check(log, read(source), before, after)


@every_source
def test_what_was_rolled_back_to_a_savepoint_does_not_come(log: Log) -> None:
    source, link = log.start(), log.link()
    kept = some(4)
    with link.transaction():
        link.insert(kept[0])
        link.execute("SAVEPOINT outside")
        link.insert(*some(2))
        link.execute("SAVEPOINT inside")
        link.insert(*some(2))
        link.execute("ROLLBACK TO SAVEPOINT inside")
        link.insert(*some(2))
        link.execute("ROLLBACK TO SAVEPOINT outside")
        link.insert(kept[1])
        link.execute("SAVEPOINT inside")
        link.insert(kept[2])
        link.execute("RELEASE SAVEPOINT inside")
        link.insert(kept[3])
    check(log, read(source), kept)


@sources(lambda kind: kind.follows == "binlog" and not kind.options)  # refused with GTIDs
def test_what_was_rolled_back_beside_a_table_without_transactions_does_not_come(
    own_log: Log,
) -> None:
    source, link = own_log.start(), own_log.link()
    link.execute("CREATE TABLE notes (note INT) ENGINE = MyISAM")
    kept = some(3)
    link.insert(kept[0])
    with link.transaction(end="ROLLBACK"):
        link.insert(*some(2))
        link.execute("INSERT INTO notes VALUES (1)")
        link.insert(*some(2))
    with link.transaction():
        link.execute("INSERT INTO notes VALUES (2)")
        link.insert(kept[1])
        link.execute("SAVEPOINT s")
        link.insert(*some(2))
        link.execute("INSERT INTO notes VALUES (3)")
        link.execute("ROLLBACK TO s")
        link.insert(kept[2])
    with link.transaction(end="ROLLBACK"):
        link.execute("SAVEPOINT s")
        link.insert(*some(1))
        link.execute("INSERT INTO notes VALUES (4)")
        link.execute("ROLLBACK TO s")
    assert len(link.execute("SELECT * FROM notes")) == 4
    check(own_log, read(source), kept)


@every_source
def test_other_tables_and_other_changes_are_ignored(own_log: Log) -> None:
    source, link = own_log.start(), own_log.link()
    columns = "(event_id VARCHAR(40), event_type TEXT, event_data TEXT)"
    written = some(4)
    link.insert(written[0])
    for table in ("event", "events2", "my_events", "events_old"):
        link.execute(f"CREATE TABLE {table} {columns}")
        link.execute(f"INSERT INTO {table} VALUES ('1', 'events', 'events')")
    if link.family != "sqlite":  # another schema: on MySQL that is another database
        schema = f"other_{secrets.token_hex(4)}"
        link.execute(f"CREATE SCHEMA {schema}")
        link.execute(f"CREATE TABLE {schema}.events {columns}")
        link.execute(f"INSERT INTO {schema}.events VALUES ('1', 'events', 'events')")
        link.execute(f"DROP TABLE {schema}.events")
        link.execute(f"DROP SCHEMA {schema}")
    link.insert(written[1])
    check(own_log, read(source), written[:2])
    link.execute("UPDATE events SET event_data = '[]', published = 1")
    link.insert(written[2])
    link.execute("DELETE FROM events WHERE event_id = %s", (written[0][0],))
    with link.transaction():
        link.execute("INSERT INTO events2 VALUES ('2', '', '')")
        link.insert(written[3])
        link.execute("UPDATE events2 SET event_data = event_id")
    check(own_log, read(source), written[2:])


# --- large transactions ---------------------------------------------------------------------------


@every_source
@pytest.mark.parametrize("large", ["many rows", "many bytes"])
def test_a_large_transaction_comes_in_parts_and_goes_on_behind_each(log: Log, large: str) -> None:
    link = log.link()
    _begin_another_file(log)
    position = log.source().now()
    before = some(1)
    middle = some(MAX_ROWS + 2000) if large == "many rows" else some(12, data="x" * 900_000)
    after = some(1)
    link.insert(*before)
    with link.transaction():
        link.insert_many(middle)
    link.insert(*after)
    end = log.source().now()

    written = [*before, *middle, *after]
    seen = parts = 0
    for some_chunks in _from_each_position(log, position, end):
        found = events_of(some_chunks)
        if log.kind.total_order:
            check(log, found, written[seen:])
        else:
            check(log, found, written[seen : seen + len(found)])
        first = some_chunks[0]
        assert len(first.rows) <= MAX_ROWS
        assert sum(len(row[2]) for row in first.rows) < 1.5 * MAX_BYTES
        seen += len(first.rows)
        parts += 1
    assert seen == len(written)
    assert parts >= 3


def _begin_another_file(log: Log) -> None:
    """Let the binary log have files whose beginning is not that of the log."""
    if log.kind.follows == "binlog":
        link = log.link()
        link.insert(event())
        link.execute("FLUSH BINARY LOGS")
        link.insert(event())


def _from_each_position(log: Log, position: Position, end: Position) -> Iterator[list[Chunk]]:
    """All chunks up to the end; then all from where the first one ended; and so on. Only the first
    where a source must be told what is saved before it goes on."""
    while True:
        with closing(log.start(position)) as source:
            some_chunks = chunks(source, end, confirm=False)
            found = list(some_chunks if log.kind.goes_back else islice(some_chunks, 1))
        if not found:
            return
        yield found
        position = found[0].position


# --- positions ------------------------------------------------------------------------------------


@those_of_logs
def test_at_any_saved_position_exactly_what_comes_behind_is_read(log: Log) -> None:
    source, link = log.start(), log.link()
    written: list[Event] = []
    positions = [(source.now(), 0)]
    for turn in range(2):
        made = some(1 + 2 * turn)
        with link.transaction():
            link.insert(*made)
        link.execute("INSERT INTO entities VALUES ('test', %s, 'version')", (made[0][0],))
        written += made
        told = [chunk.position for chunk in chunks(source, confirm=False)]
        positions += [(position, len(written)) for position in told]
        positions.append((log.source().now(), len(written)))
    end = source.now()
    assert len(positions) > 4
    source.close()
    for position, seen in positions:
        with closing(log.start(position)) as source:
            check(log, read(source, end, confirm=False), written[seen:])


@every_source
def test_a_source_that_stopped_goes_on_behind_the_chunk_that_was_saved_last(log: Log) -> None:
    """Whether it could still confirm it or not."""
    link = log.link()
    position = log.source().now()
    found: list[Event] = []
    written: list[Event] = []
    for turn in range(4):
        made = some(turn + 1)
        link.insert(*made)
        written += made
        source = log.start(position)
        for chunk in chunks(source):
            found += events_of([chunk])
            position = chunk.position
            if turn % 2:
                break
        source.close()
    found += read(log.start(position))
    check(log, found, written)


@every_source
def test_now_is_behind_all_that_is_committed_and_before_the_rest(log: Log) -> None:
    link = log.link()
    link.insert(*some(3))
    first = log.source().now()
    source = log.start(first)
    if log.kind.follows == "polling":  # it begins with what is not marked
        read(source)
    assert read(source, first) == []
    written = some(3)
    link.insert(*written)
    second = source.now()
    assert not source.reached(second)
    check(log, read(source, second), written)
    assert source.reached(first)
    assert source.reached(second)


@every_source
def test_a_position_names_its_log(log: Log) -> None:
    position = log.source().now()
    match log.kind.follows:
        case "binlog":
            assert isinstance(position, BinlogPosition)
            assert position.flavour == ("mariadb" if log.kind.database == "mariadb" else "mysql")
            assert position.server
            assert bool(position.gtid) == (log.kind.database == "mariadb" or bool(log.kind.options))
        case "wal":
            assert isinstance(position, WalPosition)
            assert int(position.system) > 0
            assert position.timeline == 1
        case _:
            assert isinstance(position, PollingPosition)
            assert position.table


@those_of_logs
def test_a_position_is_told_while_the_log_moves_on_without_events(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(binlog, "PROGRESS_S", 0.1)
    monkeypatch.setattr(wal, "_PROGRESS_S", 0.1)
    source, link = log.start(), log.link()
    written = some(1)
    link.insert(*written)
    *_, first = [chunk for chunk in chunks(source) if chunk.rows]
    told: list[Chunk] = []

    def moved() -> bool:
        link.execute("DELETE FROM entities WHERE entity_id = 'nothing'")
        link.execute(
            "INSERT INTO entities VALUES (%s, 'id', 'version')", (f"{time.monotonic_ns()}",)
        )
        chunk = source.read(0.1)
        if chunk is not None:
            told.append(chunk)
        return len(told) == 2

    wait_until(moved)
    assert [chunk.rows for chunk in told] == [(), ()]
    assert first.position != told[0].position != told[1].position
    later = some(1)
    link.insert(*later)
    check(log, read(log.start(told[1].position)), later)


@those_of_logs
def test_a_position_told_right_after_a_start_is_one_to_start_at(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(binlog, "PROGRESS_S", 0.05)
    monkeypatch.setattr(wal, "_PROGRESS_S", 0.05)
    _begin_another_file(log)
    position = log.source().now()
    for _ in range(2):
        source = log.start(position)
        for _ in range(2):
            chunk = source.read(0.1)
            if chunk is not None:
                assert chunk.rows == ()
                position = chunk.position
        source.close()
    written = some(3)
    log.link().insert(*written)
    check(log, read(log.start(position)), written)


@every_source
def test_a_read_without_anything_new_returns_when_its_time_is_over(log: Log) -> None:
    source = log.start()
    before = time.monotonic()
    assert source.read(0.2) is None
    assert time.monotonic() - before >= 0.15


@those_of_logs
def test_a_chunk_says_when_it_was_committed(log: Log) -> None:
    source = log.start()
    before = time.time()
    log.link().insert(event())
    (chunk,) = list(chunks(source))
    assert int(before) <= chunk.committed <= time.time()


@sources(lambda kind: kind.follows == "binlog" and not kind.options)
def test_a_row_of_a_binary_log_tells_its_place_there(log: Log) -> None:
    source, link = log.start(), log.link()
    link.insert(event())
    link.insert(event())
    places = [row[6] for chunk in chunks(source) for row in chunk.rows]
    first, second = places
    assert isinstance(first, BinlogFileOffset)
    assert isinstance(second, BinlogFileOffset)
    assert first.binlogFilename == second.binlogFilename
    assert 0 < first.offset < second.offset


# --- changes of the table -------------------------------------------------------------------------

# Each is followed by an event. They leave what a source needs.
CHANGES = {
    "mysql": (
        "ALTER TABLE events ADD COLUMN extra INT FIRST",
        "ALTER TABLE events MODIFY COLUMN published TINYINT NOT NULL DEFAULT 0 FIRST",
        "CREATE TABLE other (event_id INT)",
        "ALTER TABLE events CHANGE COLUMN extra further INT AFTER entity_id",
        "ALTER TABLE other RENAME COLUMN event_id TO event_type",
        "RENAME TABLE other TO another",
        "ALTER TABLE events DROP COLUMN further, ADD COLUMN data VARCHAR(20) DEFAULT 'x' FIRST",
        "DROP TABLE another",
        "ALTER TABLE events ADD INDEX by_type (event_type)",
    ),
    "postgres": (
        "ALTER TABLE events ADD COLUMN extra jsonb DEFAULT '[]'",
        "ALTER TABLE events RENAME COLUMN triggering_event TO cause",
        "CREATE TABLE other (event_id int)",
        "ALTER TABLE other RENAME TO another",
        'ALTER TABLE events DROP COLUMN cause, ADD COLUMN "odd \'name" int',
        "DROP TABLE another",
        "CREATE INDEX by_type ON events (event_type)",
    ),
    "sqlite": (
        "ALTER TABLE events ADD COLUMN extra TEXT DEFAULT 'x'",
        "ALTER TABLE events RENAME COLUMN extra TO further",
        "CREATE INDEX by_type ON events (event_type)",
    ),
}


@every_source
def test_events_come_right_after_each_change_of_the_table(own_log: Log) -> None:
    source, link = own_log.start(), own_log.link()
    for change in CHANGES[link.family]:
        link.execute(change)
        written = some(2)
        link.insert(*written)
        check(own_log, read(source), written)


@every_source
def test_events_before_and_behind_changes_of_the_table_come_right_afterwards(own_log: Log) -> None:
    if own_log.kind.follows == "binlog":
        query(own_log.admin, "SET GLOBAL binlog_row_metadata = 'FULL'")
    try:
        source, link = own_log.start(), own_log.link()
        written = some(1)
        link.insert(*written)
        for change in CHANGES[link.family]:
            link.execute(change)
            made = some(2)
            link.insert(*made)
            written += made
        check(own_log, read(source), written)
    finally:
        if own_log.kind.follows == "binlog":
            query(own_log.admin, "SET GLOBAL binlog_row_metadata = DEFAULT")


# --- what breaks ----------------------------------------------------------------------------------


@those_with_servers
def test_a_lost_connection_is_an_error_and_the_same_source_begins_again(log: Log) -> None:
    follower = Follower(log.source())
    written, more = some(3), some(3)
    log.link().insert(*written)
    follower.read_until(3)
    log.break_connections()
    if log.kind.follows != "polling":  # whose driver has another connection
        follower.read_until_it_breaks()
    log.link().insert(*more)
    follower.begin_again()
    follower.read_until(6)
    check(log, follower.found, written, more)


@those_of_logs
def test_a_network_that_breaks_at_any_moment_loses_and_doubles_nothing(log: Log) -> None:
    with Proxy(log.url) as proxy:
        follower, link = Follower(log.source(proxy.url)), log.link()
        written = some(1500, data="x" * 2000)
        for turn in range(5):
            link.insert_many(written[turn * 300 : turn * 300 + 300])
            timer = threading.Timer(0.002 * turn, proxy.break_all)
            timer.start()
            while len(follower.found) < 300 * (turn + 1):
                try:
                    follower.read()
                except (ConnectionLost, StoreUnavailable):
                    follower.begin_again()
            timer.join()
        check(log, follower.found, written)


@those_of_logs
def test_a_server_that_cannot_be_reached_is_an_error_until_it_can(log: Log) -> None:
    with Proxy(log.url) as proxy:
        follower = Follower(log.source(proxy.url))
        proxy.refuse()
        proxy.break_all()
        follower.read_until_it_breaks()
        written = some(3)
        log.link().insert(*written)
        for _ in range(2):
            with pytest.raises((ConnectionLost, StoreUnavailable)):
                follower.source.start(follower.position)
        proxy.accept()
        follower.begin_again()
        follower.read_until(3)
        check(log, follower.found, written)


RESTARTED = ("binlog mysql8 gtid", "binlog mariadb", "wal postgres18", "polling postgres18")


@sources(lambda kind: kind in [KINDS[name] for name in RESTARTED])
def test_a_server_that_crashes_and_comes_back_loses_and_doubles_nothing(
    logs: Logs, kind: str, name: str
) -> None:
    log, server = logs.new(name, private=True), logs.server(name, private=True)
    follower = Follower(log.source())
    before, unread, after = some(5), some(5), some(5)
    log.link().insert(*before)
    follower.read_until(5)
    link = log.link()
    link.insert(*unread)
    server.kill()
    follower.read_until_it_breaks()
    server.restart()
    log.link().insert(*after)
    follower.begin_again()
    follower.read_until(15)
    check(log, follower.found, before, unread, after)
    log.close()


@sources(lambda kind: kind in (KINDS["binlog mariadb"], KINDS["wal postgres18"]))
def test_a_source_that_is_not_read_for_a_while_keeps_its_connection(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the server does with clients that take nothing."""
    monkeypatch.setattr(wal_database, "TIMEOUT_S", 2)
    if log.kind.follows == "binlog":
        query(log.admin, "SET GLOBAL net_write_timeout = 1")
    try:
        source, link = log.start(), log.link()
        written = some(24, data="x" * 900_000)  # more than the system's buffers take
        for one in written:
            link.insert(one)
        for _ in range(3):
            time.sleep(0.8)
            source.keepalive()
        check(log, read(source), written)
    finally:
        if log.kind.follows == "binlog":
            query(log.admin, "SET GLOBAL net_write_timeout = DEFAULT")


@every_source
def test_closing_ends_a_read_in_another_thread(log: Log) -> None:
    source = log.start()
    ended = threading.Event()

    def wait() -> None:
        try:
            while source.read(30.0) is not None:
                pass
        except (ConnectionLost, StoreUnavailable):
            pass
        ended.set()

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.05)
    source.close()
    assert ended.wait(10)
    thread.join()
