from __future__ import annotations

from typing import Any

import pytest

from retold import OutcomeUnknown, Retry, StoreUnavailable, VersionConflict
from retold.errors import BrokerUnavailable, InvalidValue, NotFound


class NoMoney(Exception):
    pass


@pytest.mark.parametrize("wrong", [{"attempts": 0}, {"pause": -1}, {"pause": 2, "longest": 1}])
def test_numbers_that_mean_nothing_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidValue):
        Retry(**wrong)


def test_a_pause_doubles_up_to_the_longest_and_is_anything_below_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bounds = list[tuple[float, float]]()

    def uniform(low: float, high: float) -> float:
        bounds.append((low, high))
        return high

    monkeypatch.setattr("random.uniform", uniform)
    retry = Retry(pause=0.5, longest=3)
    assert [retry.seconds(n) for n in (1, 2, 3, 4, 5000)] == [0.5, 1, 2, 3, 3]
    assert all(low == 0 for low, _ in bounds)


def test_it_gives_up_at_the_last_attempt() -> None:
    retry = Retry(attempts=2)
    assert not retry.gives_up(NoMoney(), 1)
    assert retry.gives_up(NoMoney(), 2)


def test_it_gives_up_at_once_on_errors_that_are_named() -> None:
    retry = Retry(give_up=(LookupError,))
    assert retry.gives_up(NotFound("Account", "ann"), 1)
    assert not retry.gives_up(NoMoney(), 1)


@pytest.mark.parametrize(
    "error",
    [
        StoreUnavailable("gone"),
        BrokerUnavailable("gone"),
        OutcomeUnknown("gone"),
        VersionConflict("Account", "ann", "1", "2"),
    ],
)
def test_troubles_of_database_and_broker_are_never_the_last_attempt(error: Exception) -> None:
    assert not Retry(attempts=1, give_up=(Exception,)).gives_up(error, 1000)
