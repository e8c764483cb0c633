from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Literal

import msgspec
import pytest

from retold import Aggregate, Codec, Event, applies
from retold.aggregates import Binding
from retold.errors import DefinitionError, InvalidValue
from retold.snapshots import decode_state, encode_state, every, snapshot_type
from tests.unit.declare import declare_aggregate

CODEC = Codec()


class Counted(Event, name="unit.test_snapshots.Counted"):
    n: int


class Counter(Aggregate, name="unit.test_snapshots.Counter"):
    n: int = 0
    price: Decimal = Decimal(0)

    def count(self, n: int) -> None:
        self.emit(Counted(n))

    @applies
    def _counted(self, event: Counted) -> None:
        self.n += event.n


def struct(**fields: Any) -> type[msgspec.Struct]:
    """Classes of one name, as two releases of a program have them."""
    return msgspec.defstruct("Line", list(fields.items()))


def enum(**members: str) -> type[Enum]:
    functional: Any = Enum
    made: type[Enum] = functional("Colour", members)
    return made


def tagged(tag: str) -> type[msgspec.Struct]:
    return msgspec.defstruct("Tagged", [("n", int)], tag=tag)


def kind(
    hint: Any = int,
    default: Any = 0,
    *,
    field: str = "value",
    name: str = "unit.test_snapshots.Kind",
    body: dict[str, Any] | None = None,
    more: dict[str, Any] | None = None,
    **options: Any,
) -> str:
    cls = declare_aggregate(
        "Kind",
        name=name,
        fields={field: hint, **(more or {})},
        body={field: default, **(body or {})},
        **options,
    )
    return snapshot_type(cls, CODEC)


def test_every_keeps_a_snapshot_after_so_many_events() -> None:
    strategy = every(3)
    assert [strategy(n) for n in (1, 2, 3, 4)] == [False, False, True, True]


@pytest.mark.parametrize("events", [0, -1])
def test_a_snapshot_needs_an_event(events: int) -> None:
    with pytest.raises(InvalidValue, match="at least one event"):
        every(events)


def test_a_snapshot_is_marked_by_name_and_fingerprint() -> None:
    name, _, fingerprint = snapshot_type(Counter, CODEC).partition("/")
    assert name == "unit.test_snapshots.Counter"
    assert len(fingerprint) == 16
    assert int(fingerprint, 16)


CHANGES: dict[str, tuple[Callable[[], str], Callable[[], str]]] = {
    "name": (kind, lambda: kind(name="unit.test_snapshots.Other")),
    "field": (kind, lambda: kind(field="other")),
    "more fields": (kind, lambda: kind(more={"b": int}, body={"b": 0})),
    "type": (kind, lambda: kind(float, 0)),
    "optional": (kind, lambda: kind(int | None)),
    "default": (kind, lambda: kind(default=1)),
    "snapshot_version": (kind, lambda: kind(snapshot_version=2)),
    "item": (lambda: kind(list[int], []), lambda: kind(list[str], [])),
    "collection": (lambda: kind(list[int], []), lambda: kind(set[int], set())),
    "key": (lambda: kind(dict[str, int], {}), lambda: kind(dict[int, int], {})),
    "constraint": (
        lambda: kind(Annotated[int, msgspec.Meta(ge=0)]),
        lambda: kind(Annotated[int, msgspec.Meta(ge=1)]),
    ),
    "nested field": (
        lambda: kind(list[struct(a=int)], []),  # type: ignore[misc]
        lambda: kind(list[struct(b=int)], []),  # type: ignore[misc]
    ),
    "nested type": (
        lambda: kind(struct(a=int) | None, None),
        lambda: kind(struct(a=str) | None, None),
    ),
    "tag": (lambda: kind(tagged("a") | None, None), lambda: kind(tagged("b") | None, None)),
    "enum": (lambda: kind(enum(A="a") | None, None), lambda: kind(enum(A="b") | None, None)),
    "literal": (
        lambda: kind(Literal["a", "b"], "a"),
        lambda: kind(Literal["a", "c"], "a"),
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_the_schema_changes_the_fingerprint(change: str) -> None:
    before, after = CHANGES[change]
    assert before() == before()
    assert before() != after()


def test_what_is_no_schema_leaves_the_fingerprint_as_it_is() -> None:
    def method(self: Any) -> None:
        """New."""

    assert kind() == kind(body={"__doc__": "Other words.", "method": method}, snapshots=every(2))
    assert kind(Annotated[int, msgspec.Meta(description="a")]) == kind(
        Annotated[int, msgspec.Meta(description="b", extra={"anything": object()})]
    )
    assert kind(enum(A="a") | None, None) == kind(enum(B="a") | None, None)


def test_a_schema_that_holds_itself_has_a_fingerprint() -> None:
    assert snapshot_type(Family, CODEC) == snapshot_type(Family, CODEC)


class Node(msgspec.Struct):
    children: list[Node] = []


class Family(Aggregate, name="unit.test_snapshots.Family"):
    root: Node | None = None


def test_a_state_of_unknown_types_cannot_be_kept() -> None:
    class Odd:
        pass

    odd = Odd()
    with pytest.raises(DefinitionError, match=r"cannot be kept as a snapshot.*Codec\(\)\.add\(…\)"):
        kind(Odd, odd)
    codec = Codec().add(Odd, encode=lambda value: 1, decode=lambda kept: odd)
    cls = declare_aggregate(
        "Taught", name="unit.test_snapshots.Taught", fields={"odd": Odd}, body={"odd": odd}
    )
    assert snapshot_type(cls, codec)


PROGRAM = """
from enum import Enum
from typing import Literal
import msgspec
from retold import Aggregate, Codec
from retold.snapshots import snapshot_type

class Colour(Enum):
    RED = "red"
    BLUE = "blue"

class A(msgspec.Struct, tag=True, frozen=True):
    a: frozenset[Colour] = frozenset(Colour)

class B(msgspec.Struct, tag=True, frozen=True):
    b: frozenset[str] = frozenset()

class Everything(Aggregate, name="everything"):
    words: frozenset[str] = frozenset({"a", "b", "c", "d", "e", "f", "g"})
    union: A | B | None = A()
    literal: Literal["x", "y", 1, 2] = "x"
    mixed: int | float | str | list[int] | dict[str, A] | None = None
    colours: dict[Colour, set[Colour]] = {}

print(snapshot_type(Everything, Codec()))
"""


def test_every_process_has_the_same_fingerprint() -> None:
    printed = {
        subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(printed) == 1


def bound(state: Aggregate) -> Aggregate:
    state._bound = Binding("c-1")
    return state


def test_a_state_comes_back_from_its_snapshot_without_its_binding() -> None:
    state = bound(Counter(n=3, price=Decimal("1.10")))
    text = encode_state(state, CODEC)
    assert text == '{"n":3,"price":"1.10"}'
    assert state.id == "c-1", "still bound"
    assert decode_state(Counter, "c-1", text, CODEC) == Counter(n=3, price=Decimal("1.10"))


@pytest.mark.parametrize("value", [float("nan"), "\ud800"], ids=ascii)
def test_a_state_that_json_loses_is_not_kept_and_still_bound(
    value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    cls = declare_aggregate(
        "Lossy", name="unit.test_snapshots.Lossy", fields={"value": Any}, body={"value": None}
    )
    state: Any = bound(cls())
    state.value = value
    with caplog.at_level(logging.WARNING, "retold.snapshots"):
        assert encode_state(state, CODEC) is None
    assert "no snapshot of unit.test_snapshots.Lossy c-1" in caplog.text
    assert state.id == "c-1"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"n":"3"}', "null", "\x00"], ids=ascii)
def test_a_snapshot_that_cannot_be_read_is_a_warning(
    text: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "retold.snapshots"):
        assert decode_state(Counter, "c-1", text, CODEC) is None
    assert "the snapshot of unit.test_snapshots.Counter c-1 cannot be read" in caplog.text
    assert "replaying all its events instead" in caplog.text
