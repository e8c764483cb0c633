from __future__ import annotations

import logging
import struct
from collections.abc import Callable
from unittest.mock import patch

import pytest

from retold.brokers.published import BinlogFileOffset
from retold.errors import LogUnreadable, MissingExtra
from retold.relay.source import MAX_ROWS, Row
from retold.relay.sources.binlog_events import Decoder, LogEnded
from retold.relay.sources.binlog_rows import Column
from tests.relay.binlog import (
    CAPTURED,
    CAPTURES,
    COLUMNS,
    NAMES,
    SERVER,
    TINYINT,
    VARCHAR,
    Written,
    bare,
    decoder,
    deflated,
    feed,
    format_description,
    packets,
    payload,
    position,
    row,
    table_map,
    write_rows,
)

STREAMS = ("mysql8", "mysql8-compressed", "mariadb", "mariadb-compressed")


def ids(rows: list[Row]) -> list[str]:
    return [row[0] for row in rows]


def read(written: Written, decoder_: Decoder | None = None) -> list[str]:
    return ids(feed(decoder_ or decoder(), written.bytes))


def captured(name: str) -> tuple[Decoder, bytes]:
    flavour = name.partition("-")[0].rstrip("8")
    return decoder(position(flavour), checksum=True), (CAPTURES / f"{name}.bin").read_bytes()


# --- what comes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("piece", [1, 3, 1000, 1 << 16])
def test_what_servers_send_is_read_in_pieces_of_any_size(name: str, piece: int) -> None:
    made, stream = captured(name)
    assert ids(feed(made, stream, piece)) == list(CAPTURED)


def test_a_row_holds_what_was_inserted_and_its_place() -> None:
    written = Written(offset=500).anonymous().begin()
    written.insert("a", data="{☃}")
    end = written.offset
    rows = feed(decoder(position(offset=500)), written.commit().bytes)
    place = BinlogFileOffset("binlog.000001", end)
    assert rows == [("a", "test.Happened", "{☃}", "test.Thing", "thing", None, place)]


def test_the_position_is_behind_the_last_transaction_that_is_whole() -> None:
    made = decoder()
    written = Written().transaction("a")
    end = written.offset
    feed(made, written.anonymous().begin().insert("b").bytes)
    assert made.position() == position(offset=end)
    assert made.committed == 1_700_000_000


def test_nothing_of_a_transaction_comes_before_its_commit() -> None:
    made = decoder()
    written = Written().anonymous().begin().insert("a").insert("b")
    assert read(written, made) == []
    assert ids(feed(made, Written(written.offset).commit().bytes)) == ["a", "b"]


def test_a_transaction_may_end_with_a_statement() -> None:
    assert read(Written().anonymous().begin().insert("a").query("COMMIT")) == ["a"]


def test_a_transaction_that_was_rolled_back_does_not_come() -> None:
    written = Written().anonymous().begin().insert("a").query("ROLLBACK").transaction("b")
    assert read(written) == ["b"]


def test_rows_behind_a_savepoint_that_was_rolled_back_to_do_not_come() -> None:
    written = Written().anonymous().begin().insert("a").query("SAVEPOINT `One`").insert("b", "c")
    written.query("SAVEPOINT two").insert("d").query("ROLLBACK TO `one`").insert("e").commit()
    assert read(written) == ["a", "e"]


def test_a_savepoint_of_one_transaction_is_none_of_the_next() -> None:
    written = Written().anonymous().begin().query("SAVEPOINT one").insert("a").commit()
    written.anonymous().begin().insert("b").query("ROLLBACK TO one").commit()
    with pytest.raises(LogUnreadable, match="savepoint"):
        read(written)


def test_what_a_server_left_unfinished_when_it_crashed_does_not_come() -> None:
    written = Written().transaction("a").anonymous().begin().insert("b")
    following = Written().event(4, struct.pack("<Q", 4) + b"binlog.000002", flags=0x20)
    following.event(15, format_description(0) + b"\0\0\0\0").transaction("c")
    made = decoder()
    assert read(written, made) == ["a"]
    assert ids(feed(made, following.bytes)) == ["c"]
    assert made.position().file == "binlog.000002"


def test_other_tables_are_passed_over_whatever_their_columns_are() -> None:
    strange = table_map("shop", "other", id=8, types=[(200, b"")])
    elsewhere = table_map("another", "events", id=9)
    written = Written().anonymous().begin().event(19, strange).event(19, elsewhere)
    written.event(30, write_rows(b"what", id=8)).event(30, write_rows(row("x"), id=9))
    assert read(written.insert("a").commit()) == ["a"]


def test_tables_are_told_apart_by_case_where_the_server_does() -> None:
    written = Written().anonymous().begin()
    written.event(19, table_map("SHOP", "Events")).event(30, write_rows(row("a"))).commit()
    assert read(written) == []
    assert read(written, decoder(ignore_case=True)) == ["a"]


def test_updates_and_deletes_are_passed_over() -> None:
    written = Written().anonymous().begin().event(19, table_map())
    for kind in (24, 25, 31, 32, 39):
        written.event(kind, b"whatever")
    assert read(written.commit().transaction("a")) == ["a"]


def test_a_table_may_get_the_number_of_another() -> None:
    written = Written().transaction("a").anonymous().begin()
    written.event(19, table_map("shop", "other")).event(30, write_rows(b"what")).commit()
    assert read(written.transaction("b")) == ["a", "b"]


def test_row_events_of_the_older_form_are_read() -> None:
    body = write_rows(row("a"), row("b"))
    written = Written().anonymous().begin().event(19, table_map())
    written.event(23, body[:8] + body[10:]).commit()
    assert read(written) == ["a", "b"]


def test_mariadbs_transactions_begin_with_their_gtid() -> None:
    made = decoder(position("mariadb", gtid="0-9-3,5-1-1"))
    written = Written().mariadb_gtid(4).insert("a").commit()
    written.mariadb_gtid(2, domain=5, flags=1).query("CREATE TABLE t (a INT)")
    assert read(written, made) == ["a"]
    assert made.position().gtid == "0-1-4,5-1-2"


def test_mariadbs_compressed_rows_and_statements_are_read() -> None:
    body = write_rows()
    head = body[:8] + body[10:]
    written = Written().mariadb_gtid(1).event(19, table_map())
    written.event(166, head + deflated(row("a") + row("b"))).commit()
    written.mariadb_gtid(2).event(19, table_map())
    written.event(169, body + deflated(row("c"))).commit()
    written.mariadb_gtid(3, flags=1)
    statement = (
        struct.pack("<IIBHH", 1, 0, 4, 0, 0) + b"shop\0" + deflated(b"CREATE TABLE t (a INT)")
    )
    written.event(165, statement)
    made = decoder(position("mariadb"))
    assert read(written, made) == ["a", "b", "c"]
    assert made.position().gtid == "0-1-3"


@pytest.mark.parametrize("compression", [None, 0])
def test_a_transaction_in_one_event_is_read(compression: int | None) -> None:
    inner = bare(2, struct.pack("<IIBHH", 1, 0, 0, 0, 0) + b"\0BEGIN") + bare(19, table_map())
    inner += b"".join(bare(30, write_rows(row(f"a{n}"))) for n in range(2000))
    inner += bare(16, bytes(8))
    made = decoder(checksum=True)
    written = Written(checksum=True).anonymous().event(40, payload(inner, compression))
    rows = feed(made, written.bytes)
    assert ids(rows) == [f"a{n}" for n in range(2000)]
    assert {row[6] for row in rows} == {BinlogFileOffset("binlog.000001", written.offset)}
    assert made.position().offset == written.offset
    feed(made, Written(written.offset, checksum=True).transaction("b").bytes)


def test_a_compressed_transaction_without_the_package_says_what_to_install() -> None:
    written = Written().anonymous().event(40, payload(b"", 0))
    with (
        patch.dict("sys.modules", {"zstandard": None}),
        pytest.raises(MissingExtra, match=r"retold\[relay\]"),
    ):
        read(written)


@pytest.mark.parametrize("over", [-1, 0, 1, 200, 0xFFFFFF])
def test_an_event_of_more_than_one_packet_is_read(over: int) -> None:
    """over: by how many bytes it does not fit into one; at 0 an empty packet follows."""
    types = [(VARCHAR, b"\x40\x00")] * 2 + [(252, b"\4")] + [(VARCHAR, b"\x40\x00")] * 4
    body = table_map(types=[*types, (TINYINT, b"")])

    def rows_of(data: str) -> bytes:
        value = struct.pack("<I", len(data)) + data.encode()
        return write_rows(row("a").replace(b"\2{}", value))

    data = "x" * (0xFFFFFF + over - 20 - len(rows_of("")))
    written = Written().anonymous().begin().event(19, body).event(30, rows_of(data)).commit()
    columns = [
        Column(c.name, "longtext" if c.name == "event_data" else c.type, c.charset) for c in COLUMNS
    ]
    rows = feed(decoder(columns=columns), written.transaction("b").bytes, 1 << 20)
    assert rows[0][2] == data


def test_a_log_without_checksums_may_follow_one_with_them() -> None:
    written = Written(checksum=True).anonymous().begin().insert("a").commit()
    plain = Written().event(15, format_description(0) + b"\0\0\0\0").transaction("b")
    sums = Written(checksum=True).event(15, format_description(1)).transaction("c")
    made = decoder(checksum=True)
    assert ids(feed(made, written.bytes + plain.bytes + sums.bytes)) == ["a", "b", "c"]


def test_places_behind_four_gigabytes_are_told() -> None:
    made = decoder(position(offset=(1 << 32) - 100))
    written = Written(offset=(1 << 32) - 100)
    rows = feed(made, written.transaction("a").bytes)
    place = rows[0][6]
    assert place is not None
    assert place.offset > 1 << 32
    assert made.position().offset == written.offset


# --- positions ------------------------------------------------------------------------------------


def test_rows_returned_before_are_left_out_of_the_first_transaction() -> None:
    written = Written().anonymous().begin().insert("a", "b").insert("c").commit().transaction("d")
    made = decoder(position(rows=2))
    assert read(written, made) == ["c", "d"]
    assert made.position().rows == 0


def test_rows_returned_before_are_left_out_of_the_transaction_with_that_name() -> None:
    made = decoder(position(gtid=f"{SERVER}:1-4", rows=1, within=f"{SERVER}:6"))
    written = Written().gtid(5).begin().insert("a", "b").commit()
    assert read(written, made) == ["a", "b"]
    assert (made.position().rows, made.position().within) == (1, f"{SERVER}:6")
    more = Written(written.offset).gtid(6).begin().insert("c", "d").commit()
    assert ids(feed(made, more.bytes)) == ["d"]
    assert made.position() == position(gtid=f"{SERVER}:1-6", offset=more.offset)


def test_a_transaction_with_fewer_rows_than_were_returned_is_another() -> None:
    with pytest.raises(LogUnreadable, match="2 rows of the transaction"):
        read(Written().transaction("a"), decoder(position(rows=2)))


def test_gtids_that_are_not_all_known_are_not_told() -> None:
    made = decoder()
    read(Written().gtid(7).begin().insert("a").commit(), made)
    assert made.position().gtid == ""


def test_a_new_file_tells_the_gtids_before_it() -> None:
    made = decoder()
    known = struct.pack("<Q", 1) + bytes.fromhex(SERVER.replace("-", ""))
    known += struct.pack("<QQQ", 1, 1, 8)
    written = Written().event(35, known).gtid(8).begin().insert("a").commit()
    read(written, made)
    assert made.position().gtid == f"{SERVER}:1-8"


def test_events_between_transactions_move_the_position() -> None:
    made = decoder(position("mariadb"))
    written = Written().event(15, format_description(0) + b"\0\0\0\0").event(163).event(161)
    read(written, made)
    assert made.position().offset == written.offset
    heartbeat = bare(27, b"binlog.000001", end=5000)
    feed(made, packets(b"\0" + heartbeat))
    assert made.position().offset == 5000
    feed(made, packets(b"\0" + bare(27, b"binlog.000007", end=9000)))
    assert made.position().offset == 5000


def test_the_same_events_inside_a_transaction_do_not() -> None:
    made = decoder()
    feed(made, Written().anonymous().begin().insert("a").bytes)
    feed(made, packets(b"\0" + bare(27, b"binlog.000001", end=5000)))
    assert made.position().offset == 4


# --- large transactions ---------------------------------------------------------------------------


def large(count: int, *, per_event: int = 100) -> list[list[str]]:
    all_ids = [f"{n:06}" for n in range(count)]
    return [all_ids[at : at + per_event] for at in range(0, count, per_event)]


def flat(parts: list[list[str]]) -> list[str]:
    return [id for part in parts for id in part]


def test_a_large_transaction_waits_in_the_spool_behind_the_small_ones_before_it() -> None:
    made = decoder()
    written = Written().transaction("a")
    before = written.offset
    written.gtid().begin()
    for some in large(MAX_ROWS + 500):
        written.insert(*some)
    written.commit().transaction("z")
    used = made.feed(written.bytes)
    assert ids(made.take()) == ["a"]
    assert made.large is not None
    assert made.large.before == position(offset=before)
    assert made.large.name == f"{SERVER}:1"
    assert ids([row for part in made.spool.parts(0) for row in part]) == flat(large(MAX_ROWS + 500))
    made.forget_large()
    assert ids(feed(made, written.bytes[used:])) == ["z"]


@pytest.mark.parametrize("keep", [0, 1, 99, 100, 5_000, MAX_ROWS + 50, MAX_ROWS + 300])
def test_a_large_transaction_is_cut_back_to_a_savepoint(keep: int) -> None:
    written = Written().anonymous().begin()
    written.insert(*["x"] * keep) if keep else written.event(19, table_map())
    written.query("SAVEPOINT one")
    for some in large(MAX_ROWS + 500, per_event=2_000):
        written.insert(*some)
    written.query("ROLLBACK TO one").insert("last").commit()
    assert read(written) == ["x"] * keep + ["last"]


def test_a_large_transaction_that_was_rolled_back_leaves_nothing() -> None:
    written = Written().anonymous().begin()
    for some in large(2 * MAX_ROWS, per_event=2_000):
        written.insert(*some)
    written.query("ROLLBACK").transaction("a")
    made = decoder()
    assert read(written, made) == ["a"]
    assert made.spool.rows == 0


def test_no_more_rows_than_a_chunk_may_have_are_held() -> None:
    made = decoder()
    written = Written()
    for some in large(3 * MAX_ROWS, per_event=999):
        written.transaction(*some)
    rest = written.bytes
    most = 0
    found: list[str] = []
    while rest:
        rest = rest[made.feed(rest) :]
        rows = made.take()
        most = max(most, len(rows))
        found += ids(rows)
        if made.large is not None:
            found += [row[0] for part in made.spool.parts(0) for row in part]
            made.forget_large()
        if not rows and not made.full and not rest:
            break
    assert most <= MAX_ROWS
    assert found == flat(large(3 * MAX_ROWS))


# --- columns --------------------------------------------------------------------------------------

SWAPPED = tuple(
    {"event_id": COLUMNS[4], "entity_id": COLUMNS[0]}.get(column.name, column) for column in COLUMNS
)


def test_the_names_at_the_position_count_until_the_table_changes() -> None:
    made = decoder(described=SWAPPED)
    written = Written().transaction("a").anonymous().query("ALTER TABLE events ADD x INT")
    written.transaction("b")
    rows = feed(made, written.bytes)
    assert [(row[0], row[4]) for row in rows] == [("a", "thing"), ("thing", "b")]
    assert made.position().columns == tuple(column.name for column in SWAPPED)


def test_behind_a_change_of_the_table_the_position_names_no_columns() -> None:
    made = decoder()
    read(Written().transaction("a").anonymous().query("ALTER TABLE events ADD x INT"), made)
    assert made.position().columns == ()


def test_a_change_of_another_table_is_of_no_interest() -> None:
    made = decoder(described=SWAPPED)
    written = Written().transaction("a").anonymous().query("ALTER TABLE other ADD x INT")
    assert read(written.transaction("b"), made) == ["a", "b"]
    assert made.position().columns == NAMES


def test_without_names_the_database_is_asked() -> None:
    made = decoder(position(columns=()), columns=())
    assert read(Written().transaction("a"), made) == ["a"]
    assert made.position().columns == NAMES


def test_names_in_the_log_are_believed() -> None:
    names = b"".join(bytes([len(c.name)]) + c.name.encode() for c in SWAPPED)
    optional = bytes([3, 7]) + b"\x2e" * 7 + bytes([4, len(names)]) + names
    written = Written().anonymous().begin().event(19, table_map(optional=optional))
    written.event(30, write_rows(row("a"))).commit()
    made = decoder()
    assert [row[4] for row in feed(made, written.bytes)] == ["a"]
    assert made.position().columns == tuple(column.name for column in SWAPPED)


@pytest.mark.parametrize(
    "described",
    [COLUMNS[:7], tuple(Column(c.name, "int") for c in COLUMNS)],
    ids=["too few", "other types"],
)
def test_columns_that_do_not_fit_are_not_guessed_at(described: tuple[Column, ...]) -> None:
    made = decoder(columns=COLUMNS[:7], described=described)
    with pytest.raises(LogUnreadable, match="binlog_row_metadata = FULL"):
        read(Written().transaction("a"), made)


# --- what stops it --------------------------------------------------------------------------------


def in_transaction(kind: int, body: bytes = b"") -> Callable[[Written], object]:
    return lambda written: written.anonymous().begin().event(kind, body)


def statement(text: str) -> Callable[[Written], object]:
    return lambda written: written.anonymous().begin().query(text)


XA = "XA START X'61',X'',1"
STOPS: dict[str, tuple[Callable[[Written], object], str]] = {
    "a statement": (statement("INSERT INTO events VALUES (1)"), "binlog_format = ROW"),
    "an update": (statement("UPDATE shop.events SET a = 1"), "binlog_format = ROW"),
    "a filled table": (statement("CREATE TABLE events SELECT 1"), "CREATE TABLE … SELECT"),
    "LOAD DATA": (
        in_transaction(
            18,
            struct.pack("<IIBHHIIIB", 1, 0, 4, 0, 0, 1, 0, 0, 0) + b"shop\0LOAD DATA INTO events",
        ),
        "binlog_format = ROW",
    ),
    "XA": (lambda written: written.anonymous().query(XA).insert("b"), "XA transaction"),
    "XA of MariaDB": (
        lambda written: written.mariadb_gtid(1, flags=64).insert("b"),
        "XA transaction",
    ),
    "an incident": (in_transaction(26), "INCIDENT"),
    "a tagged GTID": (in_transaction(42), "tagged"),
    "an unknown kind": (in_transaction(99), "kind 99"),
    "very old rows": (in_transaction(20), "kind 20"),
    "rows of no table": (in_transaction(30, write_rows(row("b"), id=5)), "kind 30"),
    "rows outside": (lambda written: written.insert("b"), "outside of a transaction"),
    "two beginnings": (lambda written: written.begin().begin(), "inside another"),
    "a gtid inside": (lambda written: written.begin().anonymous(), "inside another"),
    "a short row": (in_transaction(30, write_rows(row("b")[:-1])), "does not end"),
    "other columns": (
        in_transaction(30, write_rows(row("b"), columns=9, present=511)),
        "9 columns",
    ),
    "a part of a row": (in_transaction(30, write_rows(row("b"), present=0x3E)), "event_id"),
    "no text": (in_transaction(30, write_rows(row("b").replace(b"b", b"\xff"))), "decode"),
    "an unknown log": (in_transaction(15, bytes(100)), "version 0"),
    "an unknown compression": (in_transaction(40, payload(b"", 7)), "compression 7"),
    "a broken compression": (in_transaction(40, payload(b"")[:-2] + b"\0\0xx"), "event"),
    "an empty transaction": (
        lambda written: written.event(40, payload(b"")).begin().event(40, payload(b"x")),
        "does not end",
    ),
    "a short packet": (lambda written: written.raw(b"\0short"), "a packet of 6 bytes"),
    "a strange packet": (lambda written: written.raw(b"\7" + bytes(40)), "a packet of 41 bytes"),
}


@pytest.mark.parametrize(("write", "reason"), STOPS.values(), ids=STOPS)
def test_what_must_not_be_guessed_at_stops_it_at_its_place(
    write: Callable[[Written], object], reason: str
) -> None:
    written = Written().transaction("a")
    end = written.offset
    made = decoder(position("mysql"))
    assert read(written, made) == ["a"]
    following = Written(end)
    if "kind 30" in reason or "row" in reason or "columns" in reason or "decode" in reason:
        following.event(19, table_map())
    write(following)
    with pytest.raises(LogUnreadable, match=reason) as caught:
        feed(made, following.bytes)
    assert caught.value.place.startswith("binlog.000001, before ")
    assert made.position().offset == end
    assert made.take() == []


def test_an_unknown_kind_that_may_be_ignored_is() -> None:
    written = Written().anonymous().begin().event(99, b"what", flags=0x80).insert("a").commit()
    assert read(written) == ["a"]


def test_xa_transactions_on_other_tables_are_passed_over() -> None:
    written = Written().anonymous().query(XA).event(19, table_map("shop", "other"))
    written.event(30, write_rows(b"what")).query("XA END X'61',X'',1").event(38, b"\0")
    written.anonymous().query("XA COMMIT X'61',X'',1").transaction("a")
    assert read(written) == ["a"]


def test_statements_on_other_tables_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    written = Written()
    for _ in range(3):
        written.anonymous().begin().query("INSERT INTO other VALUES (1)").query("COMMIT")
    with caplog.at_level(logging.WARNING, "retold.relay"):
        assert read(written.transaction("a")) == ["a"]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "binlog_format = ROW" in caplog.text


@pytest.mark.parametrize(
    ("packet", "number", "said"),
    [
        (b"\xff\xd4\x04#HY000it was purged", 1236, "it was purged"),
        (b"\xff\x1d\x04no state", 1053, "no state"),
        (b"\xfe\0\0\2\0", 0, "the server ended the stream"),
    ],
)
def test_the_servers_last_words_are_told(packet: bytes, number: int, said: str) -> None:
    made = decoder()
    written = Written().transaction("a").raw(packet)
    with pytest.raises(LogEnded) as caught:
        made.feed(written.bytes)
    assert (caught.value.number, caught.value.text) == (number, said)
    assert ids(made.take()) == ["a"]
