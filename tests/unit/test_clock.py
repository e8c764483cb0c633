from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from retold.errors import InvalidValue
from retold.testing import Clock, fixed_ids


def test_a_clock_stands_still_until_told_to_move() -> None:
    clock = Clock()
    assert clock() == clock() == 1_704_067_200_000
    assert clock.now == datetime(2024, 1, 1, tzinfo=UTC)


def test_a_clock_advances_in_steps_of_a_millisecond() -> None:
    clock = Clock(datetime(2024, 5, 6, tzinfo=UTC))
    clock.advance()
    clock.advance(0.0014)
    clock.advance(seconds=-0.5)
    assert clock.now == datetime(2024, 5, 6, 0, 0, 0, 501_000, tzinfo=UTC)


def test_a_clock_is_set_in_any_time_zone() -> None:
    clock = Clock()
    clock.set(datetime(2024, 5, 6, 14, tzinfo=timezone(timedelta(hours=2))))
    assert clock.now == datetime(2024, 5, 6, 12, tzinfo=UTC)


def test_a_naive_time_is_refused() -> None:
    with pytest.raises(InvalidValue, match="time zone"):
        Clock(datetime(2024, 5, 6))  # noqa: DTZ001


def test_fixed_ids_are_the_same_in_every_run() -> None:
    assert fixed_ids().mint(2) == (
        ["0000018cc251f400-0000000000000000", "0000018cc251f400-0000000000000001"],
        1_704_067_200_000,
    )
    assert fixed_ids().mint(3) == fixed_ids().mint(3)


def test_fixed_ids_follow_the_clock() -> None:
    clock = Clock()
    ids = fixed_ids(clock)
    ids.mint(1)
    clock.advance()
    assert ids.mint(1)[0] == ["0000018cc251f7e8-0000000000000000"]


def test_stores_with_different_nodes_mint_different_ids() -> None:
    one, other = fixed_ids(node=1), fixed_ids(node=2)
    assert not set(one.mint(5)[0]) & set(other.mint(5)[0])
