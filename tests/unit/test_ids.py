from __future__ import annotations

import os
import re
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest

from retold.errors import InvalidValue
from retold.ids import EventIds, milliseconds, moment
from retold.testing import Clock, fixed_ids


def mint(ids: EventIds, count: int = 1, after: str = "") -> list[str]:
    return ids.mint(count, after)[0]


def test_an_id_is_time_node_and_counter() -> None:
    clock = Clock(moment(0x18CC251F400))
    ids = EventIds(clock, node=0xABC)
    assert mint(ids) == ["0000018cc251f400-00000000" + "0abc0000"]
    assert mint(ids, 2) == [
        "0000018cc251f400-000000000abc0001",
        "0000018cc251f400-000000000abc0002",
    ]
    clock.advance(0.001)
    assert ids.mint(1) == (["0000018cc251f401-000000000abc0000"], 0x18CC251F401)


def test_a_random_node_leaves_the_top_bit_clear() -> None:
    """Java compares the two halves as signed numbers."""
    for _ in range(100):
        (id,) = mint(EventIds())
        assert re.fullmatch(r"[0-9a-f]{16}-[0-7][0-9a-f]{15}", id)


def test_a_clock_set_back_does_not_set_ids_back() -> None:
    clock = Clock()
    ids = fixed_ids(clock)
    (before,) = mint(ids)
    clock.advance(-3600)
    assert mint(ids)[0] > before


def test_a_full_counter_runs_on_into_the_next_millisecond() -> None:
    ids = fixed_ids(Clock(moment(1000)))
    first = mint(ids, 65_535)
    second = mint(ids, 2)
    third = mint(ids, 65_535)
    fourth = mint(ids, 200_000)
    every = [*first, *second, *third, *fourth, *mint(ids)]
    assert every == sorted(set(every))


def test_an_id_sorts_behind_one_from_the_future() -> None:
    ids = fixed_ids(Clock(moment(1000)))
    ahead = f"{5000:016x}-ffffffffffffffff"
    (raised,) = mint(ids, after=ahead)
    assert raised > ahead
    assert milliseconds(raised) == 5001


def test_one_entity_from_the_future_does_not_drag_others_along() -> None:
    ids = fixed_ids(Clock(moment(1000)))
    mint(ids, after=f"{5000:016x}-{0:016x}")
    assert milliseconds(mint(ids)[0]) == 1000


def test_ids_raised_above_different_ones_are_different() -> None:
    ids = fixed_ids(Clock(moment(1000)))
    ahead = f"{5000:016x}-{0:016x}"
    minted = [id for _ in range(10) for id in mint(ids, 3, after=ahead)]
    assert len(set(minted)) == 30


def test_threads_never_get_the_same_id() -> None:
    ids = EventIds(Clock(), node=1)
    with ThreadPoolExecutor(8) as pool:
        counts = [1 + n % 3 for n in range(2000)]
        minted = list(pool.map(mint, [ids] * len(counts), counts))
    every = [id for batch in minted for id in batch]
    assert len(every) == len(set(every))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_draws_a_node_of_its_own() -> None:
    ids = EventIds(Clock())
    (mine,) = mint(ids)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, mint(ids)[0].encode())
        os._exit(0)
    os.waitpid(child, 0)
    theirs = os.read(reader, 100).decode()
    os.close(reader)
    os.close(writer)
    assert mine[17:29] != theirs[17:29]
    assert len(theirs) == 33


def test_the_time_of_an_id() -> None:
    assert moment(milliseconds("0000018cc251f400-0000000000000000")) == datetime(
        2024, 1, 1, tzinfo=UTC
    )
    with pytest.raises(InvalidValue, match="is not an event id"):
        milliseconds("latest")
