"""The decoder of PostgreSQL's log on streams of any shape, whole and damaged."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from struct import unpack_from
from unittest.mock import patch

from hypothesis import example, given, settings
from hypothesis import strategies as st

from retold.errors import LogUnreadable
from retold.relay.sources import wal_pgoutput
from retold.relay.sources.wal_pgoutput import Cut, Decoder
from tests.relay.pgoutput import decode, ids, keepalive, relation, transaction

CAPTURES = Path(__file__).parents[1] / "relay/captures"


def captured(name: str) -> list[bytes]:
    """The frames of a stream that was really sent, each behind its length."""
    text = (CAPTURES / name).read_bytes()
    frames: list[bytes] = []
    at = 0
    while at < len(text):
        (length,) = unpack_from(">I", text, at)
        frames.append(text[at + 4 : at + 4 + length])
        at += 4 + length
    return frames


STREAMS = {name: captured(name) for name in ("postgres15.bin", "postgres18.bin")}


def test_the_captured_streams_are_whole() -> None:
    for frames in STREAMS.values():
        cuts = decode(Decoder("public", "events", 0), frames)
        assert ids(cuts) == ["a", "b", "c", "d", "é", "f", "g"]


@st.composite
def damaged(draw: st.DrawFn) -> list[bytes]:
    """A captured stream with frames lost, doubled, swapped, cut off, grown or overwritten."""
    frames = list(draw(st.sampled_from(sorted(STREAMS.items())))[1])
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(frames) - 1))
        frame = bytearray(frames[at])
        match draw(st.sampled_from(["lose", "double", "swap", "cut", "grow", "overwrite"])):
            case "lose" if len(frames) > 1:
                del frames[at]
                continue
            case "double":
                frames.insert(at, frames[at])
                continue
            case "swap":
                other = draw(st.integers(0, len(frames) - 1))
                frames[at], frames[other] = frames[other], frames[at]
                continue
            case "cut":
                del frame[draw(st.integers(1, max(1, len(frame)))) :]
            case "grow":
                frame += draw(st.binary(min_size=1, max_size=8))
            case _:
                where = draw(st.integers(0, len(frame) - 1))
                new = draw(st.binary(min_size=1, max_size=8))
                frame[where : where + len(new)] = new
        frames[at] = bytes(frame)
    return frames


@settings(max_examples=500)
@given(damaged(), st.integers(0, 3))
def test_a_damaged_stream_gives_texts_or_one_error(frames: list[bytes], inside: int) -> None:
    decoder = Decoder("public", "events", 0, inside)
    cuts: list[Cut] = []
    with suppress(LogUnreadable):
        cuts = decode(decoder, frames)
    for cut in cuts:
        for row in cut.rows:
            assert all(isinstance(text, str) for text in row[:5])


@given(st.lists(st.integers(0, 7), max_size=8), st.integers(1, 6), st.data())
@example([7, 0, 1], 3, None)
def test_from_any_position_exactly_what_is_behind_it_comes(
    sizes: list[int], limit: int, data: st.DataObject | None
) -> None:
    frames: list[bytes] = []
    expected: list[str] = []
    for number, size in enumerate(sizes):
        own = [f"{number}-{part}" for part in range(size)]
        frames += transaction(100 * (number + 1), *own)
        if data is not None and data.draw(st.booleans()):
            frames.append(keepalive(100 * (number + 1) + 50))
        expected += own
    with patch.object(wal_pgoutput, "MAX_ROWS", limit):
        cuts = decode(Decoder("public", "events", 0), [relation(), *frames])
        assert ids(cuts) == expected
        done = 0
        for cut in cuts:
            assert len(cut.rows) <= limit
            done += len(cut.rows)
            again = Decoder("public", "events", cut.lsn, cut.inside)
            assert ids(decode(again, [relation(), *frames])) == expected[done:]
