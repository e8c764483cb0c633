"""What is particular to the binary log of MySQL and MariaDB, on real servers."""

from __future__ import annotations

import logging
import secrets
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import msgspec
import pytest

from retold import EventStore
from retold.errors import (
    AccessDenied,
    ConnectionLost,
    LogPurged,
    LogReplaced,
    LogRewound,
    LogUnreadable,
    LogUnsuitable,
    SchemaMissing,
    UsageError,
)
from retold.relay.positions import BinlogPosition, PollingPosition, Position
from retold.relay.source import MAX_ROWS
from retold.relay.sources import binlog_stream
from retold.relay.sources.binlog import BinlogSource, server_id_for
from retold.store.url import parse_url
from tests.relay.logs import Event, Follower, Link, chunks, event, events_of, read, wait_until
from tests.rig import MariaDB, MySQL, Private, Rig, Server
from tests.rig.databases import PASSWORD, query, with_parts

GTID = ("--gtid-mode=ON", "--enforce-gtid-consistency=ON")
both = pytest.mark.parametrize("kind", ["mysql8", "mariadb"])


class World:
    """Databases with retold's tables, sources and connections, which end with the test."""

    def __init__(self, servers: Rig) -> None:
        self._servers = servers
        self._stack = ExitStack()

    def server(self, kind: str, *options: str) -> Server:
        """One of the rig's, or with options one of its own."""
        if not options:
            return self._servers[kind]
        server: Private = MySQL(*options) if kind == "mysql8" else MariaDB(*options)
        server.start()
        self._stack.callback(server.stop)
        return server

    def database(self, server: Server, name: str = "") -> str:
        """The URL of a new database, with the rights of an administrator."""
        name = name or f"test_{secrets.token_hex(8)}"
        server.create_database(name)
        self._stack.callback(self._drop, server, name)
        url = with_parts(server.url, database=name)
        with EventStore(url) as store:
            store.migrate()
        return url

    def _drop(self, server: Server, name: str) -> None:
        if not isinstance(server, Private) or server in self._own():
            server.drop_database(name)

    def _own(self) -> list[Server]:
        return [self._servers["mysql8"], self._servers["mariadb"]]

    def source(self, url: str, id: int = 0) -> BinlogSource:
        source = BinlogSource(parse_url(url), id or server_id_for(secrets.token_hex(8)))
        self._stack.callback(source.close)
        return source

    def start(self, url: str, position: Position | None = None) -> BinlogSource:
        source = self.source(url)
        source.start(position or source.now())
        return source

    def link(self, url: str) -> Link:
        link = Link(url)
        self._stack.callback(link.close)
        return link

    def close(self) -> None:
        self._stack.close()


@pytest.fixture
def world(servers: Rig) -> Iterator[World]:
    world = World(servers)
    yield world
    world.close()


@pytest.fixture
def url(world: World, kind: str) -> str:
    return world.database(world.server(kind))


def some(count: int, entity: str = "thing") -> list[Event]:
    return [event(entity) for _ in range(count)]


def read_until_refused(source: BinlogSource) -> tuple[list[Event], LogUnreadable]:
    found: list[Event] = []
    while True:
        try:
            chunk = source.read(5)
        except LogUnreadable as error:
            return found, error
        assert chunk is not None, "nothing came, and no error"
        found += events_of([chunk])


# --- connecting -----------------------------------------------------------------------------------

GRANTS = {
    "mysql8": ["REPLICATION SLAVE, REPLICATION CLIENT ON *.*", "SELECT ON {}.*"],
    "mariadb": ["REPLICATION SLAVE, BINLOG MONITOR ON *.*", "SELECT ON {}.*"],
}


def relay_user(admin: str, database: str, grants: list[str]) -> str:
    """The URL of a user with these rights only."""
    name = f"relay_{secrets.token_hex(4)}"
    query(admin, f"CREATE USER '{name}'@'%' IDENTIFIED BY '{PASSWORD}'")
    for grant in grants:
        query(admin, f"GRANT {grant.format(f'`{database}`')} TO '{name}'@'%'")
    return with_parts(admin, user=name, password=PASSWORD, database=database)


@both
def test_a_user_with_the_documented_rights_is_enough(world: World, url: str, kind: str) -> None:
    limited = relay_user(world.server(kind).url, parse_url(url).database, GRANTS[kind])
    source, link, written = world.start(limited), world.link(url), some(3)
    link.insert(*written)
    assert read(source) == written


@both
def test_a_user_who_may_not_replicate_is_told(world: World, url: str, kind: str) -> None:
    grants = [GRANTS[kind][1], GRANTS[kind][0].replace("REPLICATION SLAVE, ", "")]
    limited = relay_user(world.server(kind).url, parse_url(url).database, grants)
    source = world.source(limited)
    with pytest.raises(AccessDenied):
        source.start(source.now())


@pytest.mark.database("mysql8")
@pytest.mark.parametrize("kind", ["mysql8"])
def test_the_log_comes_over_tls_where_the_server_offers_it(world: World, url: str) -> None:
    source, link, written = world.start(url), world.link(url), some(2000)
    stream = source._stream
    assert stream is not None
    assert isinstance(stream._socket, ssl.SSLSocket)
    link.insert_many(written)
    assert read(source) == written


@both
def test_a_second_relay_of_the_same_name_ends_the_stream_of_the_first(
    world: World, url: str
) -> None:
    id = server_id_for("same")
    first, second = world.source(url, id), world.source(url, id)
    position = first.now()
    first.start(position)
    second.start(position)

    def ended() -> bool:
        try:
            first.read(0.1)
        except ConnectionLost:
            return True
        return False

    wait_until(ended)
    written = some(1)
    world.link(url).insert(*written)
    assert read(second) == written


@both
def test_a_server_that_falls_silent_is_noticed(
    world: World, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = world.start(url)
    monkeypatch.setattr(binlog_stream, "SILENCE_S", 0.3)  # shorter than between two heartbeats
    with pytest.raises(ConnectionLost, match="nothing for"):
        source.read(30)


@both
def test_a_server_with_nothing_to_send_is_not_silent(
    world: World, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(binlog_stream, "SILENCE_S", 2.0)
    source, written = world.start(url), some(1)
    assert source.read(3.5) is None
    world.link(url).insert(*written)
    assert read(source) == written


def test_reading_comes_after_starting(world: World) -> None:
    with pytest.raises(UsageError, match="start"):
        world.source("mysql://root@localhost/shop").read(0)


def test_the_id_of_a_relay_follows_from_its_name() -> None:
    assert server_id_for("relay") == server_id_for("relay") != server_id_for("another")
    assert all(1 << 31 <= server_id_for(str(n)) < 1 << 32 for n in range(1000))


# --- what a server must be ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mariadb"])
@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ("--skip-log-bin", "no binary log"),
        ("--binlog-format=MIXED", "binlog_format is MIXED"),
        ("--binlog-ignore-db=shop", "leaves the database shop out"),
        ("--binlog-do-db=another", "leaves the database shop out"),
        ("--server-id=77", "server_id 77"),
    ],
)
def test_a_server_that_cannot_be_followed_is_refused(
    world: World, kind: str, option: str, reason: str
) -> None:
    url = world.database(world.server(kind, option), "shop")
    with pytest.raises(LogUnsuitable, match=reason):
        world.source(url, 77).now()


@both
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("MODIFY entity_id VARCHAR(100) CHARACTER SET utf16", "entity_id .* utf16"),
        ("MODIFY event_data LONGBLOB", "event_data .* longblob"),
        ("DROP COLUMN metadata", "no column metadata"),
        ("RENAME TO gone", "events"),
    ],
)
def test_a_table_that_cannot_be_followed_is_refused(
    world: World, url: str, change: str, reason: str
) -> None:
    world.link(url).execute(f"ALTER TABLE events {change}")
    with pytest.raises((LogUnsuitable, SchemaMissing), match=reason):
        world.source(url).now()


@both
def test_columns_of_other_character_sets_are_read(world: World, url: str) -> None:
    link = world.link(url)
    link.execute(
        "ALTER TABLE events MODIFY entity_id VARCHAR(90) CHARACTER SET latin1, "
        "MODIFY entity_type VARCHAR(90) CHARACTER SET ascii, "
        "MODIFY event_data TEXT CHARACTER SET utf8mb3, MODIFY event_type CHAR(90)"
    )
    source = world.start(url)
    written = [event("é€Ÿ", "☃", "😀"), event("", "", "")]
    link.insert(*written)
    assert read(source) == written


# --- what else may be in the log ------------------------------------------------------------------


@both
def test_an_insert_as_a_statement_stops_it_behind_what_came_before(world: World, url: str) -> None:
    source, link, written = world.start(url), world.link(url), some(3)
    link.insert(*written)
    link.execute("SET SESSION binlog_format = STATEMENT")
    link.insert(event("unseen"))
    found, error = read_until_refused(source)
    assert found == written
    assert "binlog_format = ROW" in str(error)
    assert "INSERT INTO events" in str(error)
    with pytest.raises(LogUnreadable):
        source.read(1)


@both
def test_a_bulk_load_as_a_statement_stops_it(world: World, url: str, kind: str) -> None:
    server = world.server(kind)
    query(server.url, "SET GLOBAL local_infile = 1")
    source, link = world.start(url), world.link(url)
    link.execute("SET SESSION binlog_format = STATEMENT")
    link.load(some(3))
    assert read_until_refused(source)[0] == []


@both
def test_statements_on_other_tables_are_warned_of_once(
    world: World, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    source, link, written = world.start(url), world.link(url), some(2)
    link.execute("CREATE TABLE other (a INT, events TEXT)")
    link.execute("SET SESSION binlog_format = STATEMENT")
    link.execute("INSERT INTO other VALUES (1, 'of events')")
    link.execute("UPDATE other SET a = 2")
    link.execute("SET SESSION binlog_format = ROW")
    link.insert(*written)
    with caplog.at_level(logging.WARNING, "retold.relay"):
        assert read(source) == written
    assert len(caplog.records) == 1


@both
def test_events_that_a_trigger_writes_come(world: World, url: str) -> None:
    source, link = world.start(url), world.link(url)
    link.execute("CREATE TABLE orders (id INT PRIMARY KEY)")
    link.execute(
        "CREATE TRIGGER told AFTER INSERT ON orders FOR EACH ROW INSERT INTO events (event_id, "
        "event_type, event_data, entity_type, entity_id) VALUES (NEW.id, 't', '{}', 'T', 'x')"
    )
    link.execute("INSERT INTO orders VALUES (1), (2)")
    assert [one[0] for one in read(source)] == ["1", "2"]


@both
@pytest.mark.parametrize("end", ["XA COMMIT 'a'", "XA ROLLBACK 'a'", ""])
def test_events_of_an_xa_transaction_stop_it(world: World, url: str, end: str) -> None:
    source, link, written = world.start(url), world.link(url), some(1)
    link.insert(*written)
    id = secrets.token_hex(4)
    link.execute(f"XA START '{id}'")
    link.insert(event())
    link.execute(f"XA END '{id}'")
    link.execute(f"XA PREPARE '{id}'")
    try:
        if end:
            link.execute(end.replace("'a'", f"'{id}'"))
        found, error = read_until_refused(source)
        assert found == written
        assert "XA transaction" in str(error)
    finally:
        if not end:
            link.execute(f"XA ROLLBACK '{id}'")


@both
def test_xa_transactions_on_other_tables_are_passed_over(world: World, url: str) -> None:
    source, link, written = world.start(url), world.link(url), some(2)
    link.execute("CREATE TABLE other (a INT)")
    for end in ("PREPARE '{}'", "COMMIT '{}' ONE PHASE"):
        for then in ("COMMIT '{}'", "ROLLBACK '{}'") if "PREPARE" in end else ("",):
            id = secrets.token_hex(4)
            link.execute(f"XA START '{id}'")
            link.execute("INSERT INTO other VALUES (1)")
            link.execute(f"XA END '{id}'")
            for statement in filter(None, (end, then)):
                link.execute("XA " + statement.format(id))
    link.insert(*written)
    assert read(source) == written


@both
def test_a_part_of_a_row_is_read_where_it_holds_what_is_needed(world: World, url: str) -> None:
    link = world.link(url)
    link.execute("ALTER TABLE events ALTER event_type SET DEFAULT 'none'")
    source, written = world.start(url), some(1)
    link.execute("SET SESSION binlog_row_image = MINIMAL")
    link.insert(*written)
    link.execute(
        "INSERT INTO events (event_id, event_type, event_data, entity_type, entity_id) "
        "VALUES ('few', 't', '{}', 'T', 'x')"
    )
    assert read(source) == [*written, ("few", "t", "{}", "T", "x", None)]
    link.execute(
        "INSERT INTO events (event_id, event_data, entity_type, entity_id) "
        "VALUES ('too few', '{}', 'T', 'x')"
    )
    found, error = read_until_refused(source)
    assert found == []
    assert "event_type" in str(error)
    assert "binlog_row_image = FULL" in str(error)


@both
def test_prefix_and_schema_of_the_url_name_the_table(world: World, url: str, kind: str) -> None:
    database = parse_url(url).database
    other = world.database(world.server(kind))
    elsewhere = f"{other}?schema={database}&prefix=my_"
    with EventStore(elsewhere) as store:
        store.migrate()
    source = world.start(elsewhere)
    link = world.link(url)
    link.insert(event())
    link.execute("INSERT INTO my_events SELECT * FROM events")
    assert len(read(source)) == 1


OTHER_COLUMNS = """
    ADD a INT FIRST, ADD b DECIMAL(20,7) DEFAULT 1.5, ADD c DATETIME(3) DEFAULT NOW(3),
    ADD d TIMESTAMP(6) NULL DEFAULT NOW(6), ADD e TIME(2) DEFAULT '12:00:00.25', ADD f JSON,
    ADD g FLOAT DEFAULT 1, ADD h DOUBLE DEFAULT 2, ADD i YEAR DEFAULT 2020,
    ADD j DATE DEFAULT '2020-02-02', ADD k ENUM('x', 'y') DEFAULT 'y' AFTER event_type,
    ADD l SET('x', 'y') DEFAULT 'x,y', ADD m BIT(17) DEFAULT b'101', ADD n BINARY(16) DEFAULT 'n',
    ADD o VARBINARY(300) DEFAULT 'o', ADD p POINT, ADD q BLOB, ADD r MEDIUMINT DEFAULT 3,
    ADD s BIGINT UNSIGNED DEFAULT 4, ADD t CHAR(9) DEFAULT 't', ADD u SMALLINT DEFAULT 5,
    ADD v INT GENERATED ALWAYS AS (1 + 1) VIRTUAL, ADD w INT GENERATED ALWAYS AS (2) STORED
"""


@both
def test_columns_of_any_type_may_stand_beside(world: World, url: str) -> None:
    link = world.link(url)
    link.execute(f"ALTER TABLE events {OTHER_COLUMNS}")
    source, written = world.start(url), some(2)
    link.insert(*written)
    link.execute(
        "INSERT INTO events (event_id, event_type, event_data, entity_type, entity_id, f, p, q, a)"
        " VALUES ('all', 't', '{}', 'T', 'x', '{\"a\": [1, 2]}', ST_GeomFromText('POINT(1 2)'), "
        "REPEAT('q', 300), 1)"
    )
    assert read(source) == [*written, ("all", "t", "{}", "T", "x", None)]


# --- changes of the table -------------------------------------------------------------------------

SWAP = (
    "ALTER TABLE events CHANGE event_type entity_type VARCHAR(255) CHARACTER SET utf8mb4, "
    "CHANGE entity_type event_type VARCHAR(255) CHARACTER SET utf8mb4"
)


@both
def test_columns_that_changed_twice_since_are_not_guessed_at(world: World, url: str) -> None:
    source, link, written = world.start(url), world.link(url), some(2)
    link.insert(*written)
    link.execute(SWAP)
    link.insert(event())
    link.execute(SWAP)
    found, error = read_until_refused(source)
    assert found == written
    assert "binlog_row_metadata = FULL" in str(error)


@both
def test_a_change_that_moves_no_column_may_follow_one_that_does(world: World, url: str) -> None:
    source, link, written = world.start(url), world.link(url), some(3)
    link.insert(written[0])
    link.execute(SWAP)
    link.insert(written[1])
    link.execute("ALTER TABLE events ADD INDEX more (published)")
    link.execute("CREATE INDEX again ON events (entity_type)")
    link.insert(written[2])
    assert read(source) == written


@both
def test_started_before_a_change_it_reads_by_the_names_of_the_position(
    world: World, url: str
) -> None:
    source, link, written = world.source(url), world.link(url), some(2)
    position = source.now()
    link.insert(written[0])
    link.execute(SWAP)
    link.insert(written[1])
    source.start(position)
    assert read(source) == written


@both
def test_started_right_behind_a_change_it_asks_for_the_names(world: World, url: str) -> None:
    source, link, written = world.start(url), world.link(url), some(2)
    link.insert(written[0])
    link.execute(SWAP)
    (chunk,) = chunks(source)
    assert isinstance(chunk.position, BinlogPosition)
    assert chunk.position.columns == ()
    link.insert(written[1])
    assert read(world.start(url, chunk.position)) == written[1:]


@pytest.fixture(scope="module")
def told() -> Iterator[Callable[[str], Private]]:
    """Servers that write the names of columns into their log, and other things that are not the
    default."""
    with ExitStack() as stack:
        made: dict[str, Private] = {}

        def server(kind: str) -> Private:
            if kind not in made:
                common = ("--binlog-row-metadata=FULL", "--binlog-checksum=NONE")
                packets = "--max-allowed-packet=100M"
                made[kind] = (
                    MySQL(*common, packets, "--binlog-transaction-compression=ON")
                    if kind == "mysql8"
                    else MariaDB(
                        *(*common, packets, "--log-bin-compress=1"),
                        "--log-bin-compress-min-len=10",
                    )
                )
                made[kind].start()
                stack.callback(made[kind].stop)
            return made[kind]

        yield server


@both
def test_names_in_the_log_tell_every_change(
    world: World, told: Callable[[str], Private], kind: str
) -> None:
    url = world.database(told(kind))
    source, link, written = world.start(url), world.link(url), some(3)
    for one in written:
        link.insert(one)
        link.execute(SWAP)
    assert read(source) == written


@both
def test_compressed_transactions_without_checksums_come(
    world: World, told: Callable[[str], Private], kind: str
) -> None:
    url = world.database(told(kind))
    source, link = world.start(url), world.link(url)
    small, many = some(2), [event("x", "text " * 50) for _ in range(MAX_ROWS + 2000)]
    link.insert(*small)
    with link.transaction():
        link.insert_many(many)
    link.execute("CREATE TABLE other (a TEXT)")
    found = list(chunks(source))
    assert [
        len(chunk.rows) for chunk in found if not chunk.rows or len(chunk.rows) > MAX_ROWS
    ] == []
    assert events_of(found) == small + many


@both
def test_an_event_larger_than_a_packet_comes(
    world: World, told: Callable[[str], Private], kind: str
) -> None:
    server = told(kind)
    compression = "binlog_transaction_compression" if kind == "mysql8" else "log_bin_compress"
    query(server.url, f"SET GLOBAL {compression} = OFF")
    url = world.database(server)
    source, link = world.start(url), world.link(url)
    written = [event(data="x" * size) for size in (1 << 24, 100, 40_000_000)]
    for one in written:
        link.insert(one)
    found = read(source)
    assert [one[0] for one in found] == [one[0] for one in written]
    assert found == written
    query(server.url, f"SET GLOBAL {compression} = ON")


# --- where the log does not go on -----------------------------------------------------------------


@both
def test_a_position_of_another_kind_of_source_is_refused(world: World, url: str) -> None:
    with pytest.raises(LogReplaced):
        world.source(url).start(PollingPosition("events"))


def moved(position: BinlogPosition, **parts: Any) -> BinlogPosition:
    return msgspec.structs.replace(position, **parts)


@pytest.mark.parametrize("kind", ["mysql8"])
def test_without_gtids_a_position_is_checked_by_its_place(world: World, url: str) -> None:
    source = world.source(url)
    position = source.now()
    assert position.gtid == ""
    elsewhere = "00000000-0000-0000-0000-000000000001"
    with pytest.raises(LogReplaced, match=elsewhere):
        source.start(moved(position, server=elsewhere))
    with pytest.raises(LogRewound, match="was read up to"):
        source.start(moved(position, offset=position.offset + 1))
    with pytest.raises(LogRewound, match="the log ends with"):
        source.start(moved(position, file="binlog.999999"))
    with pytest.raises(LogPurged, match="no longer there"):
        source.start(moved(position, file="binlog.000000"))
    with pytest.raises(LogReplaced, match="mariadb"):
        source.start(moved(position, flavour="mariadb"))
    source.start(position)


@pytest.mark.parametrize(("kind", "options"), [("mysql8", GTID), ("mariadb", ("--server-id=1",))])
def test_a_log_that_was_purged_or_set_back_is_noticed(
    world: World, kind: str, options: tuple[str, ...]
) -> None:
    server = world.server(kind, *options)
    url = world.database(server)
    source, link = world.source(url), world.link(url)
    early = source.now()
    link.insert(event())
    link.execute("FLUSH BINARY LOGS")
    link.insert(event())
    late = source.now()
    elsewhere = "9-9-9" if kind == "mariadb" else "00000000-0000-0000-0000-000000000001:1-5"
    with pytest.raises(LogReplaced, match="none of the transactions"):
        source.start(moved(early, server="another", gtid=elsewhere))
    source.start(early)
    source.close()
    wait_until(lambda: not query(server.url, DUMPS))
    link.execute(f"PURGE BINARY LOGS TO '{late.file}'")
    with pytest.raises(LogPurged):
        world.source(url).start(early)
    world.source(url).start(late)
    wait_until(lambda: purge_all(server.url))
    with pytest.raises((LogRewound, LogReplaced)):
        world.source(url).start(late)
    for _ in range(12):
        link.insert(event())
    with pytest.raises((LogRewound, LogReplaced)):
        world.source(url).start(late)


DUMPS = "SELECT 1 FROM information_schema.processlist WHERE command LIKE 'Binlog Dump%'"


def purge_all(admin: str) -> bool:
    for (id,) in query(admin, DUMPS.replace("1", "id", 1)):
        query(admin, f"KILL {id}")
    if query(admin, DUMPS):
        return False
    query(admin, "RESET MASTER")
    return True


@pytest.mark.parametrize("kind", ["mariadb"])
def test_another_server_with_the_same_id_and_numbers_is_noticed(world: World, kind: str) -> None:
    one, other = world.server(kind, "--server-id=1"), world.server(kind, "--server-id=1")
    first, second = world.database(one), world.database(other)
    world.link(first).insert(*some(3))
    position = world.source(first).now()
    for _ in range(30):
        world.link(second).insert(event())
    with pytest.raises(LogReplaced, match=position.gtid):
        world.source(second).start(position)


# --- failover -------------------------------------------------------------------------------------


class Pair:
    """A server and a replica of it."""

    def __init__(self, world: World, kind: str) -> None:
        self.kind = kind
        options = GTID if kind == "mysql8" else ("--log-slave-updates=ON",)
        self.source = world.server(kind, *options, "--server-id=11")
        self.replica = world.server(kind, *options, "--server-id=12")
        port = parse_url(self.source.url + "x").port
        query(self.source.url, "RESET MASTER")  # the replica has the rig's users already
        query(self.source.url, "CREATE USER 'copy'@'%' IDENTIFIED BY 'copy'")
        query(self.source.url, "GRANT REPLICATION SLAVE ON *.* TO 'copy'@'%'")
        if kind == "mysql8":
            query(self.replica.url, "RESET MASTER")
            how = "SOURCE_AUTO_POSITION=1, GET_SOURCE_PUBLIC_KEY=1"
            query(
                self.replica.url,
                f"CHANGE REPLICATION SOURCE TO SOURCE_HOST='127.0.0.1', SOURCE_PORT={port}, "
                f"SOURCE_USER='copy', SOURCE_PASSWORD='copy', {how}",
                "START REPLICA",
            )
        else:
            query(
                self.replica.url,
                "RESET MASTER",
                "SET GLOBAL gtid_slave_pos = ''",
                f"CHANGE MASTER TO MASTER_HOST='127.0.0.1', MASTER_PORT={port}, "
                "MASTER_USER='copy', MASTER_PASSWORD='copy', MASTER_USE_GTID=slave_pos",
                "START SLAVE",
            )

    def caught_up(self, database: str) -> None:
        count = f"SELECT count(*) FROM {database}.events"

        def same() -> bool:
            try:
                return query(self.source.url, count) == query(self.replica.url, count)
            except Exception:
                return False

        wait_until(same)

    def stop_copying(self) -> None:
        query(self.replica.url, "STOP REPLICA" if self.kind == "mysql8" else "STOP SLAVE")

    def promote(self) -> None:
        self.source.kill()
        self.stop_copying()
        query(self.replica.url, "RESET REPLICA ALL" if self.kind == "mysql8" else "RESET SLAVE ALL")


@both
def test_it_goes_on_at_a_replica_that_was_promoted(world: World, kind: str) -> None:
    pair = Pair(world, kind)
    url = world.database(pair.source, "shop")
    link, written = world.link(url), some(3)
    follower = Follower(world.source(url))
    for one in written:
        link.insert(one)
    follower.read_until(3)
    unread, many = some(2), [event("large") for _ in range(MAX_ROWS + 3000)]
    with link.transaction():
        link.insert_many(many)
    follower.read_until(3 + MAX_ROWS)  # and stops inside of the large one
    inside = follower.position
    assert isinstance(inside, BinlogPosition)
    assert inside.rows > 0
    link.insert(*unread)
    pair.caught_up("shop")
    pair.promote()

    promoted = with_parts(pair.replica.url, database="shop")
    more = some(2)
    world.link(promoted).insert(*more)
    source = world.start(promoted, inside)
    found = follower.found + read(source)
    assert found == written + many + unread + more
    position = source.now()
    assert position.server != inside.server
    assert source.reached(position)
    assert source.reached(inside)


@both
def test_a_replica_that_lost_the_last_transactions_is_refused(world: World, kind: str) -> None:
    pair = Pair(world, kind)
    url = world.database(pair.source, "shop")
    link = world.link(url)
    follower = Follower(world.source(url))
    link.insert(event())
    pair.caught_up("shop")
    pair.stop_copying()
    link.insert(event())
    follower.read_until(2)
    pair.promote()
    promoted = with_parts(pair.replica.url, database="shop")
    with pytest.raises(LogRewound, match="lacks"):
        world.start(promoted, follower.position)
    # nor once it has gone on by itself
    world.link(promoted).insert(*some(2))
    for _ in range(3):
        world.link(promoted).insert(event())
    with pytest.raises(LogRewound):
        world.start(promoted, follower.position)


# --- now ------------------------------------------------------------------------------------------


@both
def test_what_is_in_the_log_and_not_visible_yet_is_not_before_now(world: World, url: str) -> None:
    """Writers commit all the time: what a reader sees after now() is all that is before it."""
    source, stop = world.source(url), threading.Event()

    def write(link: Link) -> None:
        while not stop.is_set():
            link.insert(event("busy"))

    threads = [threading.Thread(target=write, args=(world.link(url),)) for _ in range(4)]
    reader = world.link(url)

    def visible() -> set[str]:
        return {str(id) for (id,) in reader.execute("SELECT event_id FROM events")}

    for thread in threads:
        thread.start()
    try:
        moments = [(source.now(), visible()) for _ in range(30)]
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    everything = visible()
    for position, seen in moments:
        behind = world.start(url, position)
        assert everything - seen <= {one[0] for one in read(behind)}
        behind.close()
