from __future__ import annotations

import re

import pytest

from retold.errors import LogUnreadable
from retold.relay.sources import wal_pgoutput
from retold.relay.sources.wal_pgoutput import Decoder, lsn_text
from tests.relay.pgoutput import (
    COLUMNS,
    begin,
    commit,
    decode,
    event,
    feed,
    ids,
    insert,
    keepalive,
    message,
    relation,
    transaction,
)


def new_decoder(lsn: int = 0, inside: int = 0) -> Decoder:
    """One that knows the table already."""
    decoder = Decoder("public", "events", lsn, inside)
    decode(decoder, [relation()])
    return decoder


def test_a_transaction_gives_its_rows_its_end_and_its_time() -> None:
    row = insert("id", "type", '{"é": "🎈"}', "entity type", "entity", "cause", "{}", "0")
    at = 1_700_000_000_250_000 - 946_684_800_000_000
    (cut,) = decode(new_decoder(), [begin(100, at), row, commit(100, 110, at)])
    assert cut.rows == [("id", "type", '{"é": "🎈"}', "entity type", "entity", "{}", None)]
    assert (cut.lsn, cut.inside, cut.committed) == (110, 0, 1_700_000_000.25)


def test_rows_are_not_handed_out_before_their_commit_is_there() -> None:
    decoder = new_decoder()
    assert decode(decoder, [*transaction(100, "a"), begin(200), event("b")])[0].lsn == 110
    assert decoder.cut() is None
    assert ids(decode(decoder, [event("c"), commit(200, 210)])) == ["b", "c"]


def test_transactions_up_to_the_position_are_left_out() -> None:
    decoder = new_decoder(lsn=210)
    frames = [*transaction(100, "a"), *transaction(200, "b"), *transaction(210, "c")]
    assert ids(decode(decoder, frames)) == ["c"]


def test_rows_published_of_the_next_transaction_are_left_out() -> None:
    decoder = new_decoder(lsn=110, inside=2)
    frames = [*transaction(100, "x", "y", "z"), *transaction(200, "a", "b", "c")]
    (cut,) = decode(decoder, [*frames, *transaction(300, "d")])
    assert [row[0] for row in cut.rows] == ["c", "d"]
    assert (cut.lsn, cut.inside) == (310, 0)


def test_empty_transactions_and_keepalives_do_not_use_up_the_rows_to_leave_out() -> None:
    decoder = new_decoder(lsn=110, inside=2)
    assert decode(decoder, [*transaction(200), keepalive(250)]) == []
    assert (decoder.end, decoder.inside) == (250, 2)
    assert ids(decode(decoder, transaction(300, "a", "b", "c"))) == ["c"]


def test_a_transaction_with_less_rows_than_were_published_stops() -> None:
    with pytest.raises(LogUnreadable, match="2 rows less than were published"):
        decode(new_decoder(lsn=110, inside=3), transaction(200, "a"))


def test_a_keepalive_moves_the_end_but_not_inside_of_a_transaction() -> None:
    decoder = new_decoder()
    decode(decoder, [keepalive(50)])
    assert decoder.end == 50
    decode(decoder, [begin(100), keepalive(105)])
    assert decoder.end == 50
    decode(decoder, [commit(100, 110), keepalive(90)])
    assert decoder.end == 110


def test_a_keepalive_may_ask_for_an_answer() -> None:
    decoder = new_decoder()
    decode(decoder, [keepalive(50)])
    assert not decoder.asked
    decode(decoder, [keepalive(50, asks=True)])
    assert decoder.asked


def test_the_end_of_the_stream_is_noticed() -> None:
    decoder = new_decoder()
    assert not decoder.take(lambda _: (0, b""))
    assert not decoder.ended
    assert not decoder.take(lambda _: (-1, b""))
    assert decoder.ended


def test_a_transaction_that_fills_everything_is_handed_out_in_parts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wal_pgoutput, "MAX_ROWS", 2)
    frames = [*transaction(100, "a"), *transaction(200, *"bcdef"), *transaction(300, "g")]
    cuts = decode(new_decoder(), frames)
    assert [(ids([cut]), cut.lsn, cut.inside) for cut in cuts] == [
        (["a"], 110, 0),
        (["b", "c"], 110, 2),
        (["d", "e"], 110, 4),
        (["f"], 210, 0),
        (["g"], 310, 0),
    ]


def test_the_size_of_rows_counts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wal_pgoutput, "MAX_BYTES", 1000)
    large = [event(id, data="x" * 600) for id in "abc"]
    cuts = decode(new_decoder(), [begin(100), *large, commit(100, 110)])
    assert [(ids([cut]), cut.inside) for cut in cuts] == [(["a", "b"], 2), (["c"], 0)]


def test_columns_are_taken_by_name_and_a_new_description_replaces_the_old() -> None:
    decoder = new_decoder()
    turned = relation([*reversed(COLUMNS), "extra"])
    values = [value and f"{value}!" for value in reversed(COLUMNS)]
    frames = [*transaction(100, "a")[:-1], turned, insert(*values, "more"), commit(100, 110)]
    _, row = decode(decoder, frames)[0].rows
    assert row == (
        "event_id!",
        "event_type!",
        "event_data!",
        "entity_type!",
        "entity_id!",
        "metadata!",
        None,
    )


def test_other_tables_are_ignored() -> None:
    decoder = new_decoder()
    others = [
        relation(["n"], id=2, name="other"),
        relation(id=3, schema="elsewhere"),
        insert("1", id=2),
        insert(*"12345678", id=3),
    ]
    frames = [begin(100), *others, event("a"), insert("2", id=2), commit(100, 110)]
    assert ids(decode(decoder, frames)) == ["a"]


@pytest.mark.parametrize("kind", list("UDTOY"))
def test_messages_that_are_no_inserts_are_ignored(kind: str) -> None:
    frames = [begin(100), message(kind.encode() + b"whatever"), event("a"), commit(100, 110)]
    assert ids(decode(new_decoder(), frames)) == ["a"]


def _changed(frame: bytes, old: bytes, new: bytes) -> bytes:
    assert frame.count(old) == 1
    return frame.replace(old, new)


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (insert(None, *"1234567"), "event_id is NULL"),
        (insert(*"1234", None, *"567"), "entity_id is NULL"),
        (_changed(event("a", metadata="meta"), b"t\0\0\0\4meta", b"u"), "metadata is left out"),
        (_changed(event("a", "data"), b"t\0\0\0\4data", b"b\0\0\0\4data"), "of the kind 'b'"),
        (_changed(event("a", "data"), b"data", b"d\xffta"), "can't decode byte 0xff"),
        (_changed(event("a", "data"), b"\4data", b"\5data"), "event_data|entity_type"),
        (insert(*"1234567"), "number of columns"),
        (event("a") + b"!", "length"),
        (event("a")[:-1], "length"),
        (event("a")[:60], "cut off"),
        (message(b"I"), "not described"),
        (insert(*"12345678", id=9), "not described"),
        (message(b"M\0"), "unknown message b'M'"),
        (message(b""), "cut off"),
        (b"x" * 40, "unknown frame b'x'"),
        (b"k\0", "cut off"),
        (begin(200), "inside of another"),
        (commit(100, 110)[:-1], "cut off"),
        (relation(COLUMNS[1:]), "no column event_id"),
        (relation()[:-1], "length"),
        (relation()[:40], "not found"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_understood_stops(frame: bytes, reason: str) -> None:
    decoder = new_decoder()
    with pytest.raises(LogUnreadable, match=reason) as raised:
        decode(decoder, [*transaction(100, "a"), begin(200), frame])
    assert re.fullmatch(r"LSN [0-9A-F]+/[0-9A-F]+", raised.value.place)


@pytest.mark.parametrize("frame", [event("a"), commit(100, 110)])
def test_what_belongs_into_a_transaction_is_refused_outside(frame: bytes) -> None:
    with pytest.raises(LogUnreadable, match="outside of a transaction"):
        decode(new_decoder(), [frame])


def test_what_comes_before_an_unreadable_message_can_still_be_handed_out() -> None:
    decoder = new_decoder()
    with pytest.raises(LogUnreadable):
        decoder.take(feed([*transaction(100, "a"), message(b"?")]))
    cut = decoder.cut()
    assert cut is not None
    assert ids([cut]) == ["a"]


def test_places_are_written_as_postgresql_writes_them() -> None:
    assert lsn_text(0x16_B374D848) == "16/B374D848"
