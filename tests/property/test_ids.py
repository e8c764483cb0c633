"""Ids ascend and are never given twice, whatever clocks do and whatever they must sort behind."""

from __future__ import annotations

import re
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from retold.ids import EventIds, milliseconds, moment
from retold.testing import Clock

TIMES = st.integers(0, 2**47) | st.integers(1_000, 1_010)
HALF = st.integers(0, 2**64 - 1) | st.sampled_from([0, 2**63, 2**64 - 1])
ANYBODY_S = st.tuples(TIMES, HALF).map(lambda halves: "{:016x}-{:016x}".format(*halves))
SHAPE = re.compile(r"[0-9a-f]{16}-[0-7][0-9a-f]{15}")


@dataclass(frozen=True)
class Mint:
    """One call. `after`: an id of anybody's, or which of the ids minted so far, counted back."""

    generator: int
    clock: int
    count: int
    after: str | int


MINTS = st.builds(
    Mint,
    generator=st.integers(0, 1),
    clock=TIMES,
    count=st.integers(1, 5) | st.sampled_from([1000, 4000]),
    after=st.just("") | ANYBODY_S | st.integers(0, 50),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(MINTS, max_size=15), st.booleans())
def test_ids_of_any_history(mints: list[Mint], fixed: bool) -> None:
    now = [0]
    nodes = (7, 8) if fixed else (None, None)
    generators = [EventIds(clock=lambda: now[0], node=node) for node in nodes]
    minted: list[str] = []
    last = ["", ""]
    for mint in mints:
        now[0] = mint.clock
        after = mint.after
        if isinstance(after, int):
            after = minted[-1 - after % len(minted)] if minted else ""
        ids, clock = generators[mint.generator].mint(mint.count, after)
        assert clock == mint.clock
        assert len(ids) == mint.count
        assert all(SHAPE.fullmatch(id) for id in ids)
        assert ids == sorted(set(ids)), "ascending"
        assert ids[0] > after
        if after == "":  # nobody else's clock has a say
            assert ids[0] > last[mint.generator]
            assert milliseconds(ids[0]) >= mint.clock
            last[mint.generator] = ids[-1]
        minted += ids
    assert len(set(minted)) == len(minted), "never twice"


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(TIMES, st.integers(1, 3)), min_size=1, max_size=30))
def test_one_entity_s_versions_ascend_though_every_writer_s_clock_is_another(
    writes: list[tuple[int, int]],
) -> None:
    version = ""
    for clock, count in writes:
        ids, _ = EventIds(Clock(moment(clock))).mint(count, version)
        assert [version, *ids] == sorted({version, *ids})
        version = ids[-1]
