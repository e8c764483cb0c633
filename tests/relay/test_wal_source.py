"""The source that follows PostgreSQL's log: what comes, and where it goes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, LiteralString

import msgspec
import psycopg
import pytest

from retold.errors import (
    ConnectionLost,
    LogPurged,
    LogReplaced,
    LogRewound,
    LogUnreadable,
    LogUnsuitable,
    SchemaMissing,
)
from retold.relay.positions import BinlogPosition, WalPosition
from retold.relay.sources import wal, wal_database, wal_pgoutput, wal_stream
from retold.relay.sources.wal import WalSource
from retold.store.url import parse_url
from tests.relay.wal import (
    chunks,
    connect,
    drop_slots,
    ids,
    insert,
    migrate,
    rows,
    slot,
    wait_until,
)
from tests.rig import Rig
from tests.rig.databases import PASSWORD, USER, query, with_parts

newest = pytest.mark.parametrize("kind", ["postgres18"], indirect=True)
"""For what does not depend on the version of the server."""

Link = psycopg.Connection[Any]
NewDatabase = Callable[[str], str]
NewSource = Callable[..., WalSource]


@pytest.fixture(params=["postgres15", "postgres18"])
def kind(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    return kind


@pytest.fixture
def new_database(servers: Rig, fresh_database: NewDatabase) -> Iterator[NewDatabase]:
    """Gives the URL of a database with retold's tables, for a user who may replicate."""
    made: list[str] = []

    def new(kind: str) -> str:
        if servers[kind].user:
            query(servers[kind].url, f"ALTER ROLE {USER} REPLICATION")
        made.append(fresh_database(kind))
        migrate(made[-1])
        return made[-1]

    yield new
    for url in made:
        drop_slots(url)


@pytest.fixture
def url(kind: str, new_database: NewDatabase) -> str:
    return new_database(kind)


@pytest.fixture
def link(url: str) -> Iterator[Link]:
    with connect(url) as link:
        yield link


@pytest.fixture
def new_source(new_database: NewDatabase) -> Iterator[NewSource]:
    made: list[WalSource] = []

    def new(url: str, name: str = "relay") -> WalSource:
        made.append(WalSource(parse_url(url), name))
        return made[-1]

    yield new
    for source in made:
        source.close()


@pytest.fixture
def source(url: str, new_source: NewSource) -> WalSource:
    """One that was started."""
    source = new_source(url)
    source.start(source.now())
    return source


def admin(servers: Rig, kind: str, url: str) -> str:
    """The URL of the same database for the server's administrator."""
    return with_parts(servers[kind].url, database=url.partition("?")[0].rpartition("/")[2])


# --- what comes ----------------------------------------------------------------------------------


def test_transactions_come_in_the_order_of_their_commits(source: WalSource, url: str) -> None:
    with connect(url) as early, connect(url) as late:
        with early.transaction():
            insert(early, "a1")
            insert(late, "b1", "b2")
            insert(early, "a2")
        insert(late, "c1")
    assert ids(source) == ["b1", "b2", "a1", "a2", "c1"]


def test_what_is_not_committed_does_not_come(source: WalSource, link: Link) -> None:
    with link.transaction():
        insert(link, "rolled back")
        raise psycopg.Rollback
    with link.transaction():
        insert(link, "a")
        with link.transaction():
            insert(link, "rolled back to a savepoint")
            raise psycopg.Rollback
        insert(link, "b")
    with link.transaction():
        insert(link, "still open")
        assert ids(source) == ["a", "b"]
        raise psycopg.Rollback


def test_every_row_of_one_statement_comes_once(source: WalSource, link: Link) -> None:
    columns: LiteralString = "event_id, event_type, event_data, entity_type, entity_id"
    link.execute(
        f"INSERT INTO events ({columns})"
        " SELECT 'm' || n, 't', '{}', 'e', 'i' FROM generate_series(100, 199) n"
    )
    with link.cursor().copy(f"COPY events ({columns}) FROM STDIN") as copy:
        for number in range(300, 500):
            copy.write_row((f"c{number}", "t", "{}", "e", "i"))
    expected = [f"m{n}" for n in range(100, 200)] + [f"c{n}" for n in range(300, 500)]
    assert ids(source) == expected


def test_texts_come_exactly_as_they_were_stored(source: WalSource, link: Link) -> None:
    strange = "quote ' double \" back\\slash \t\r\n tab, é ß 漢字 🎈 \x01\x7f\u2028"
    incompressible = "".join(chr(0x4E00 + (n * 7919) % 20000) for n in range(300_000))
    stored = [
        ("1", "type", strange, "entity", "id", strange),
        ("2", "", "", "", "", ""),
        ("3", "type", incompressible, "entity", strange, None),
        ("4", "type", "x" * 3_000_000, "entity", "id", "{}"),
    ]
    link.cursor().executemany(
        "INSERT INTO events (event_id, event_type, event_data, entity_type, entity_id, metadata)"
        " VALUES (%s, %s, %s, %s, %s, %s)",
        stored,
    )
    assert rows(source) == [(*row, None) for row in stored]


def test_other_tables_and_other_changes_are_ignored(
    kind: str, servers: Rig, new_database: NewDatabase, new_source: NewSource
) -> None:
    url = new_database(kind)
    source = new_source(url)
    publication = "CREATE PUBLICATION retold_public_events FOR ALL TABLES"
    query(admin(servers, kind, url), publication)
    source.start(source.now())
    with connect(url) as link:
        link.execute("CREATE TABLE other (event_id text PRIMARY KEY)")
        insert(link, "a", "b")
        link.execute("INSERT INTO other VALUES ('c')")
        link.execute("UPDATE events SET published = 1")
        link.execute("DELETE FROM events WHERE event_id = 'a'")
        with link.transaction():
            link.execute("INSERT INTO other VALUES ('d')")
            insert(link, "e")
            link.execute("UPDATE other SET event_id = event_id || '!'")
        link.execute("TRUNCATE events, other")
        insert(link, "f")
    assert ids(source) == ["a", "b", "e", "f"]


def test_columns_are_found_by_name_after_any_change_of_the_table(
    source: WalSource, link: Link
) -> None:
    insert(link, "a")
    link.execute("ALTER TABLE events ADD COLUMN extra jsonb DEFAULT '[]'")
    insert(link, "b")
    link.execute("ALTER TABLE events RENAME COLUMN triggering_event TO cause")
    with link.transaction():
        insert(link, "c")
        link.execute('ALTER TABLE events DROP COLUMN cause, ADD COLUMN "odd \'name" int')
        insert(link, "d")
    assert [row[0:6] for row in rows(source)] == [
        (id, "test.Happened", "{}", "test.Thing", "thing", None) for id in ("a", "b", "c", "d")
    ]


def test_a_table_that_takes_the_place_of_another_is_followed(source: WalSource, link: Link) -> None:
    insert(link, "a")
    with link.transaction():
        link.execute("ALTER TABLE events RENAME TO events_before")
        link.execute(
            "CREATE TABLE events (published smallint DEFAULT 0, metadata text, entity_id text,"
            " entity_type text, event_data text, event_type text, event_id text PRIMARY KEY)"
        )
        link.execute("ALTER PUBLICATION retold_public_events SET TABLE events")
    insert(link, "b")
    assert [row[0:6] for row in rows(source)] == [
        (id, "test.Happened", "{}", "test.Thing", "thing", None) for id in ("a", "b")
    ]


@newest
def test_a_partitioned_table_is_followed_by_its_own_name(
    url: str, link: Link, new_source: NewSource
) -> None:
    link.execute("DROP TABLE events")
    link.execute(
        "CREATE TABLE events (event_id text PRIMARY KEY, event_type text, event_data text,"
        " entity_type text, entity_id text, metadata text) PARTITION BY HASH (event_id)"
    )
    for number in (0, 1):
        part = f"CREATE TABLE part{number} PARTITION OF events FOR VALUES"
        query(url, f"{part} WITH (MODULUS 2, REMAINDER {number})")
    source = new_source(url)
    source.start(source.now())
    insert(link, *"abcdef")
    assert ids(source) == list("abcdef")


def test_a_needed_column_that_is_gone_stops_the_relay(source: WalSource, link: Link) -> None:
    insert(link, "a")
    with link.transaction():
        link.execute("ALTER TABLE events RENAME COLUMN metadata TO details")
        link.execute("INSERT INTO events VALUES ('b', 't', '{}', 'e', 'i')")
    with pytest.raises(LogUnreadable, match=r"no column metadata") as raised:
        ids(source)
    assert raised.value.place.startswith("LSN ")


@newest
def test_an_event_without_an_entity_stops_the_relay(source: WalSource, link: Link) -> None:
    link.execute("ALTER TABLE events ALTER COLUMN entity_id DROP NOT NULL")
    link.execute("INSERT INTO events VALUES ('b', 't', '{}', 'e', NULL)")
    with pytest.raises(LogUnreadable, match="entity_id is NULL"):
        ids(source)


def test_a_chunk_tells_when_its_last_transaction_was_committed(
    source: WalSource, link: Link
) -> None:
    clock = "SELECT extract(epoch FROM clock_timestamp())::float"
    ((before,),) = link.execute(clock).fetchall()
    insert(link, "a")
    ((after,),) = link.execute(clock).fetchall()
    (chunk,) = [chunk for chunk in chunks(source) if chunk.rows]
    assert before - 1e-5 <= chunk.committed <= after + 1e-5


def test_texts_of_a_latin1_database_come_as_they_are(
    kind: str, servers: Rig, new_source: NewSource
) -> None:
    server = servers[kind]
    url = with_parts(server.url, database="latin_relay")
    query(server.url, "CREATE DATABASE latin_relay TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'")
    try:
        migrate(url)
        source = new_source(url)
        source.start(source.now())
        with connect(url) as link:
            link.execute("SET client_encoding = 'UTF8'")
            link.execute("INSERT INTO events VALUES ('a', 'café', '\"né\"', 'ß', 'ü')")
        assert rows(source) == [("a", "café", '"né"', "ß", "ü", None, None)]
        source.close()
        drop_slots(url)
    finally:
        server.drop_database("latin_relay")


def test_schema_and_prefix_of_the_url_say_which_table(
    url: str, link: Link, new_source: NewSource
) -> None:
    link.execute("CREATE SCHEMA tenant")
    own = f"{url}?schema=tenant&prefix=my_"
    migrate(own)
    source = new_source(own)
    source.start(source.now())
    insert(link, "another tenant's")
    link.execute("INSERT INTO tenant.my_events VALUES ('a', 't', '{}', 'e', 'i')")
    assert ids(source) == ["a"]
    assert slot(url, "slot_name") == "retold_relay_tenant_my_"


# --- positions -----------------------------------------------------------------------------------


def test_from_each_position_exactly_what_is_behind_it_comes(
    source: WalSource, link: Link, url: str, new_source: NewSource
) -> None:
    begin = source.now()
    seen: list[str] = []
    stages: list[tuple[WalPosition, int]] = [(begin, 0)]
    for number in range(6):
        insert(link, *(f"{number}-{part}" for part in range(number + 1)))
        for chunk in chunks(source):
            seen += [row[0] for row in chunk.rows]
            assert isinstance(chunk.position, WalPosition)
            stages.append((chunk.position, len(seen)))
    assert len(seen) == 21
    source.close()
    for position, count in stages:
        again = new_source(url)
        again.start(position)
        assert ids(again) == seen[count:]
        again.close()


def test_a_large_transaction_comes_in_parts_and_goes_on_inside_of_it(
    source: WalSource,
    link: Link,
    url: str,
    new_source: NewSource,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wal_pgoutput, "MAX_ROWS", 100)
    expected = [f"before{n}" for n in range(3)]
    insert(link, *expected)
    expected += [f"large{n}" for n in range(250)]
    insert(link, *expected[3:])
    insert(link, "behind")
    expected.append("behind")
    parts = [chunk for chunk in chunks(source) if chunk.rows]
    assert [row[0] for part in parts for row in part.rows] == expected
    assert max(len(part.rows) for part in parts) == 100
    source.close()
    done, inside = 0, 0
    for part in parts:
        done += len(part.rows)
        assert isinstance(part.position, WalPosition)
        inside += part.position.rows > 0
        again = new_source(url)
        again.start(part.position)
        assert ids(again) == expected[done:]
        again.close()
    assert inside >= 2


@newest
def test_transactions_below_the_limit_are_never_divided(
    source: WalSource, link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wal_pgoutput, "MAX_ROWS", 100)
    for number in range(20):
        insert(link, *(f"{number}-{part}" for part in range(30)))
    for chunk in chunks(source):
        assert len(chunk.rows) % 30 == 0
        assert isinstance(chunk.position, WalPosition)
        assert chunk.position.rows == 0


@newest
def test_two_relays_each_get_everything(
    source: WalSource, link: Link, url: str, new_source: NewSource
) -> None:
    other = new_source(url, "Other-relay")
    other.start(other.now())
    insert(link, "a", "b")
    assert ids(source) == ids(other) == ["a", "b"]


def test_the_server_keeps_its_log_until_a_position_is_confirmed(
    source: WalSource, link: Link, url: str
) -> None:
    def confirmed() -> int:
        return wal.lsn_number(slot(url, "confirmed_flush_lsn::text"))

    began = confirmed()
    insert(link, "a")
    (chunk,) = [chunk for chunk in chunks(source) if chunk.rows]
    assert isinstance(chunk.position, WalPosition)
    published = chunk.position.lsn
    insert(link, "b")
    assert ids(source) == ["b"]
    assert began <= confirmed() < published
    source.confirm(chunk.position)
    source.close()
    wait_until(lambda: confirmed() == published)


def test_an_idle_relay_does_not_hold_the_log_back(
    source: WalSource, link: Link, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wal, "_PROGRESS_S", 0.1)
    link.execute("CREATE TABLE other AS SELECT generate_series(1, 1000)")
    end = source.now()

    def confirmed_all() -> bool:
        chunk = source.read(0.1)
        if chunk is not None:
            assert not chunk.rows
            source.confirm(chunk.position)
        return wal.lsn_number(slot(url, "confirmed_flush_lsn::text")) >= end.lsn

    wait_until(confirmed_all)
    insert(link, "a")
    assert ids(source) == ["a"]


def test_now_does_not_wait_for_a_transaction_that_is_merely_open(
    source: WalSource, link: Link, url: str, new_source: NewSource
) -> None:
    with link.transaction():
        insert(link, "a")
        position = source.now()
    source.close()
    again = new_source(url)
    again.start(position)
    assert ids(again) == ["a"]


# --- connections ---------------------------------------------------------------------------------


@newest
def test_closing_ends_a_read_that_waits(source: WalSource) -> None:
    ended: list[BaseException] = []

    def read() -> None:
        try:
            while True:
                source.read(600)
        except ConnectionLost as error:
            ended.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    source.close()
    reader.join(20)
    assert not reader.is_alive()
    assert ended


def test_the_slot_is_taken_over_from_a_relay_that_does_not_read_any_more(
    source: WalSource, link: Link, url: str, new_source: NewSource
) -> None:
    position = source.now()
    holder = slot(url, "active_pid")
    link.execute(
        "INSERT INTO events SELECT n::text, 't', repeat('x', 10000), 'e', 'i'"
        " FROM generate_series(1, 2000) n"
    )
    heir = new_source(url)
    heir.start(position)
    assert slot(url, "active_pid") not in (holder, None)
    assert ids(heir) == [str(n) for n in range(1, 2001)]
    with pytest.raises(ConnectionLost):
        ids(source)


@newest
def test_a_source_can_be_started_again(source: WalSource, link: Link) -> None:
    position = source.now()
    insert(link, "a")
    assert ids(source) == ["a"]
    source.start(position)
    assert ids(source) == ["a"]


@newest
def test_the_server_waits_for_a_reader_that_cannot_take_more(
    url: str, link: Link, new_source: NewSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wal_database, "TIMEOUT_S", 1)
    monkeypatch.setattr(wal_stream, "_REPORT_S", 0.1)
    source = new_source(url)
    source.start(source.now())
    link.execute(
        "INSERT INTO events SELECT n::text, 't', repeat('x', 10000), 'e', 'i'"
        " FROM generate_series(1, 2000) n"
    )
    until = time.monotonic() + 2.5
    while time.monotonic() < until:
        source.keepalive()
        time.sleep(0.1)
    assert len(ids(source)) == 2000


# --- what makes a relay stop ---------------------------------------------------------------------


@newest
def test_a_position_of_another_log_is_refused(source: WalSource) -> None:
    position = source.now()
    with pytest.raises(LogReplaced, match="the system is"):
        source.start(msgspec.structs.replace(position, system="1"))
    with pytest.raises(LogReplaced):
        source.start(BinlogPosition("mysql", "server", "", "binlog.000001", 4))


@newest
def test_a_position_that_the_server_has_not_come_to_is_refused(source: WalSource) -> None:
    position = source.now()
    with pytest.raises(LogRewound, match="its log ends at"):
        source.start(msgspec.structs.replace(position, lsn=position.lsn + (1 << 40)))
    with pytest.raises(LogRewound, match="it is on timeline 1"):
        source.start(msgspec.structs.replace(position, timeline=2))


@newest
def test_a_slot_that_was_dropped_is_not_made_again(source: WalSource, url: str) -> None:
    position = source.now()
    source.close()
    drop_slots(url)
    with pytest.raises(LogPurged, match="retold_relay does not exist"):
        source.start(position)
    assert slot(url, "slot_name") is None


@newest
def test_a_slot_that_was_moved_on_is_refused(source: WalSource, url: str) -> None:
    position = source.now()
    behind = source.now()
    source.close()
    wait_until(lambda: not slot(url, "active"))
    lsn = wal_pgoutput.lsn_text(behind.lsn)
    query(url, f"SELECT pg_replication_slot_advance('retold_relay', '{lsn}')")
    with pytest.raises(LogPurged, match="was moved on to"):
        source.start(position)


@newest
def test_a_publication_that_was_dropped_is_not_made_again(source: WalSource, url: str) -> None:
    position = source.now()
    query(url, "DROP PUBLICATION retold_public_events")
    with pytest.raises(LogPurged, match="retold_public_events does not exist"):
        source.start(position)


def test_a_dropped_publication_stops_a_relay_at_the_next_event(
    source: WalSource, link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wal, "_PROGRESS_S", 3600.0)  # it does not look at the publication
    link.execute("DROP PUBLICATION retold_public_events")
    insert(link, "a")

    def read() -> bool:
        assert source.read(0.1) is None
        return False

    with pytest.raises(LogPurged):
        wait_until(read)


def test_a_table_taken_out_of_the_publication_stops_a_running_relay(
    source: WalSource, link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wal, "_PROGRESS_S", 0.1)
    link.execute("ALTER PUBLICATION retold_public_events DROP TABLE events")

    def read() -> bool:
        source.read(0.1)
        return False

    with pytest.raises(LogPurged, match=r'ALTER PUBLICATION .* ADD TABLE "events"'):
        wait_until(read)


@pytest.mark.parametrize(
    ("publication", "mend"),
    [
        ("WITH (publish = 'insert')", 'ALTER PUBLICATION .* ADD TABLE "events"'),
        ("FOR TABLE events WITH (publish = 'update')", "ALTER PUBLICATION .* SET .publish"),
        ("FOR TABLE events WHERE (event_id > 'b')", 'ALTER PUBLICATION .* SET TABLE "events"'),
        ("FOR TABLE events (event_id, event_type)", 'ALTER PUBLICATION .* SET TABLE "events"'),
    ],
)
def test_a_publication_that_leaves_events_out_is_refused(
    publication: str, mend: str, url: str, link: Link, new_source: NewSource
) -> None:
    query(url, f"CREATE PUBLICATION retold_public_events {publication}")
    with pytest.raises(LogUnsuitable, match=mend) as raised:
        new_source(url).now()
    query(url, raised.value.reason.partition("run: ")[2])
    source = new_source(url)
    source.start(source.now())
    insert(link, "a")
    assert ids(source) == ["a"]


def test_a_user_who_may_not_make_things_is_told_what_the_owner_has_to_run(
    kind: str, servers: Rig, new_database: NewDatabase, new_source: NewSource
) -> None:
    owners = new_database(kind)
    boss = admin(servers, kind, owners)
    role = f"relay_{owners.rpartition('_')[2]}"
    query(boss, f"CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}'")
    try:
        query(boss, f"GRANT SELECT ON events TO {role}")
        url = with_parts(owners, user=role, password=PASSWORD)
        source = new_source(url)
        for _ in range(2):
            with pytest.raises(LogUnsuitable) as raised:
                source.now()
            statement = raised.value.reason.partition("run: ")[2].partition(" (on RDS")[0]
            query(boss if statement.startswith("ALTER ROLE") else owners, statement)
        source.start(source.now())
        with connect(owners) as link:
            insert(link, "a")
        assert ids(source) == ["a"]
        source.close()
        drop_slots(boss)
    finally:
        query(boss, f"DROP OWNED BY {role}", f"DROP ROLE {role}")


@newest
def test_the_slot_of_another_database_is_refused(
    kind: str, url: str, source: WalSource, new_database: NewDatabase, new_source: NewSource
) -> None:
    with pytest.raises(LogUnsuitable, match="give this relay another name"):
        new_source(new_database(kind)).now()


@newest
def test_a_slot_of_another_kind_is_refused(url: str, new_source: NewSource) -> None:
    query(url, "SELECT pg_create_logical_replication_slot('retold_relay', 'pgoutput', false, true)")
    with pytest.raises(LogUnsuitable, match="of another kind"):
        new_source(url).now()


@newest
def test_a_database_without_tables_is_told_to_migrate(
    kind: str, fresh_database: NewDatabase, new_source: NewSource
) -> None:
    with pytest.raises(SchemaMissing, match="retold migrate"):
        new_source(fresh_database(kind)).now()


@pytest.mark.database("pgbouncer")
def test_a_pooler_in_between_is_refused(fresh_database: NewDatabase, new_source: NewSource) -> None:
    with pytest.raises(LogUnsuitable, match="a pooler stands in between"):
        new_source(fresh_database("pgbouncer")).now()


def test_names_of_slots_that_would_become_the_same_are_told_apart() -> None:
    names = ["orders", "Orders", "orders-a", "orders_a", "ordérs", "o" * 80, "o" * 81]
    made = {wal_database.plain_name("retold", name) for name in names}
    assert len(made) == len(names)
    assert all(len(name) <= 63 for name in made)
    assert "retold_orders" in made
