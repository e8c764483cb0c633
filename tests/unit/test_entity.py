from __future__ import annotations

import pickle
from dataclasses import FrozenInstanceError

import pytest

from retold import Aggregate, Changed, Entity, Event, applies
from retold.errors import NoResult


class Counted(Event, name="test_entity.Counted"):
    n: int


class Counter(Aggregate, name="test_entity.Counter"):
    n: int = 0

    @applies
    def _counted(self, event: Counted) -> None:
        self.n += event.n


def test_an_entity_shows_id_version_and_state() -> None:
    entity = Entity("c-1", "1-1", Counter(n=3))
    assert repr(entity) == "Entity(id='c-1', version='1-1', state=Counter(n=3))"


def test_an_entity_is_immutable() -> None:
    entity = Entity("c-1", "1-1", Counter())
    with pytest.raises(FrozenInstanceError):
        entity.version = "1-2"  # type: ignore[misc] # pyright: ignore[reportAttributeAccessIssue]


def test_entities_compare_by_id_version_and_state() -> None:
    assert Entity("c-1", "1-1", Counter(n=3)) == Entity("c-1", "1-1", Counter(n=3))
    assert Entity("c-1", "1-1", Counter(n=3)) != Entity("c-1", "1-1", Counter(n=4))


@pytest.mark.parametrize("result", [None, 0, "done", NoResult("k")])
def test_a_result_is_what_the_command_returned(result: object) -> None:
    changed: Changed[Counter, object]
    changed = Changed("c-1", "1-1", Counter(), (Counted(1),), _result=result)
    assert changed.result is result
    assert not changed.duplicate


def test_a_duplicate_has_no_result_and_says_so() -> None:
    changed: Changed[Counter, int] = Changed(
        "c-1", "1-1", Counter(), duplicate=True, _key="order-7"
    )
    with pytest.raises(NoResult, match="'order-7'") as caught:
        _ = changed.result
    assert caught.value.key == "order-7"
    assert changed.events == ()


def test_a_result_is_not_shown() -> None:
    """It may be anything, personal data too."""
    changed: Changed[Counter, str] = Changed("c-1", "1-1", Counter(), _result="secret")
    assert "secret" not in repr(changed)


def test_an_entity_survives_pickling() -> None:
    entity = Entity("c-1", "1-1", Counter(n=3))
    assert pickle.loads(pickle.dumps(entity)) == entity
