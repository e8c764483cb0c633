"""The schema of events: canonical JSON, and what a change of it does to what is stored."""

from __future__ import annotations

from dataclasses import make_dataclass
from datetime import datetime
from enum import Enum
from typing import Annotated, Any, Literal, cast

import msgspec
import pytest

from retold import Event, Personal
from retold.errors import InvalidValue
from retold.schema import EventSchema, read_schema, schema_of
from retold.schema_changes import Problem, problems
from tests.unit.declare import declare_event

NAME = "test_schema.Opened"


def _declared(fields: dict[str, Any]) -> list[Any]:
    """A field is a type, or a type and a default."""
    return [
        (name, *cast("tuple[Any, Any]", hint)) if isinstance(hint, tuple) else (name, hint)
        for name, hint in fields.items()
    ]


def _event(fields: dict[str, Any], name: str = NAME, **options: Any) -> type[Event]:
    """A class as one release of a program declares it; the next one replaces it."""
    cls: type[Event] = msgspec.defstruct(  # type: ignore[assignment]
        "Opened", _declared(fields), kw_only=True
    )
    cls.__event_name__ = name
    cls.__event_names__ = (name, *options.pop("formerly", ()))
    return cls


def _found(
    before: dict[str, Any], after: dict[str, Any], upcasters: tuple[str, ...] = ()
) -> list[Problem]:
    return list(problems(schema_of([_event(before)]), [_event(after)], upcasters))


def _reasons(before: Any, after: Any) -> list[str]:
    """What is said of a field `x` whose declaration changes."""
    return [reason for p in _found({"x": before}, {"x": after}) for reason in p.reasons]


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Paint(Enum):
    BLUE = "blue"
    RED = "red"
    GREEN = "green"


def _line(**fields: Any) -> type:
    return make_dataclass("Line", _declared(fields))


class Tree(msgspec.Struct):
    leaves: list[Tree]


class Cat(msgspec.Struct, tag=True):
    name: str


class Dog(msgspec.Struct, tag=True):
    name: str


def test_the_text_is_the_same_for_the_same_classes_in_any_order() -> None:
    one, other = _event({"a": int, "b": (frozenset[str], frozenset("xy"))}), _event({}, "a.B")
    assert schema_of([one, other]).to_json() == schema_of([other, one]).to_json()


def test_a_schema_is_read_back_equal() -> None:
    cls = declare_event("Read", name="test_schema.Read", fields={"a": int}, formerly=("old.Read",))
    schema = schema_of([cls], ["older.Read"])
    assert read_schema(schema.to_json()) == schema
    assert schema.events["test_schema.Read"] == EventSchema({"a": {"type": "int"}}, ["old.Read"])


def test_fields_go_by_their_names_in_json() -> None:
    cls = declare_event("Camel", name="test_schema.Camel", fields={"a_b": int}, rename="camel")
    assert list(schema_of([cls]).events["test_schema.Camel"].fields) == ["aB"]


def test_marks_of_personal_data_are_kept() -> None:
    hint = Annotated[str, Personal("customer")]
    cls = declare_event("Moved", name="test_schema.Moved", fields={"customer": str, "to": hint})
    fields = schema_of([cls]).events["test_schema.Moved"].fields
    assert fields["to"] == {"type": "str", "personal": "customer"}


def test_a_record_that_holds_itself_is_described() -> None:
    (field,) = schema_of([_event({"tree": Tree})]).events[NAME].fields.values()
    leaves = {"type": {"is": "list", "item": {"is": "record above", "levels": 1}}}
    assert field["type"] == {"is": "record", "fields": {"leaves": leaves}}


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"events": {"a": 1}}'])
def test_what_is_no_schema_is_refused(text: str) -> None:
    with pytest.raises(InvalidValue, match="no schema"):
        read_schema(text)


def test_the_schema_of_a_later_retold_is_refused() -> None:
    with pytest.raises(InvalidValue, match="the format 2"):
        read_schema('{"events": {}, "upcasters": [], "retold_schema": 2}')


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (int, (int, 0)),
        (int, int | None),
        (int | None, int | None | str),
        (Literal["a"], Literal["b", "a"]),
        (Colour, Paint),
        (Colour, Literal["red", "blue"]),
        (list[int], tuple[int, ...]),
        (list[int], list[int | None]),
        (dict[str, Literal["a"]], dict[str, Literal["a", "b"]]),
        (_line(a=int), _line(a=int, b=(int, 3))),
        (_line(a=int) | None, _line(a=int, b=(int, 3)) | None),
        (Cat, Cat | Dog),
        (str, Annotated[str, Personal("x")]),
    ],
)
def test_an_addition_is_safe(before: Any, after: Any) -> None:
    assert _reasons(before, after) == []


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        (int, str, "x was int and is str"),
        (int | None, int, "x was None | int and is int"),
        (list[int], set[int], "x was list[int] and is set[int]"),
        (list[int], list[str], "x[] was int and is str"),
        (dict[str, int], dict[str, str], "x[] was int and is str"),
        (tuple[int, str], tuple[str, int], "x was tuple[int, str] and is tuple[str, int]"),
        (Paint, Colour, "x was one of 'blue', 'green', 'red' and is one of 'blue', 'red'"),
        (_line(a=int), _line(a=str), "x.a was int and is str"),
        (_line(a=int), _line(b=(int, 1)), "the field x.a is gone"),
        (_line(a=int), _line(a=int, b=int), "the field x.b is new and has no default, and"),
        (Cat | Dog, Cat, "x was {name} | {name} and is {name}"),
        (Cat, Dog, "x was {name} and is {name}"),
        (int, Annotated[int, msgspec.Meta(ge=0)], "x was int and is int (ge=0)"),
        (int, bytes, "x was int and is bytes"),
        ((int, 0), int, "x has lost its default, and events may be stored without it"),
        ((int, 0), (int, 1), "the default of x was 0 and is 1: events stored without it"),
    ],
)
def test_what_changes_stored_events_is_a_problem(before: Any, after: Any, reason: str) -> None:
    (found,) = _reasons(before, after)
    assert found.startswith(reason)


def test_a_field_gone_and_a_new_one_without_default_are_told_together() -> None:
    (problem,) = _found({"owner": str, "balance": int}, {"holder": str, "balance": int})
    assert problem.reasons == (
        "the field owner is gone",
        "the field holder is new and has no default, and events are stored without it",
    )


def test_a_lost_mark_of_personal_data_is_a_problem_and_no_matter_of_upcasting() -> None:
    (problem,) = _found({"to": Annotated[str, Personal("customer")]}, {"to": str})
    assert problem.reasons == ("to was personal data of 'customer' and is marked no more",)
    assert "@upcast" not in problem.advice


def test_a_new_event_and_a_new_field_with_default_are_safe() -> None:
    after = [_event({"a": int, "b": (str, "")}), _event({}, "test_schema.Closed")]
    assert list(problems(schema_of([_event({"a": int})]), after, ())) == []


def test_the_upcaster_to_write_is_shown() -> None:
    (problem,) = _found(
        {"owner": str, "balance": int, "note": (str, "-"), "at": datetime},
        {"owner": str, "balance": str, "note": (str, ""), "currency": str, "limit": (int, 0)},
    )
    assert str(problem).endswith(
        """
    class Opened(Event, name="test_schema.Opened.v2"): ...

    @upcast("test_schema.Opened")
    def _opened(old: dict[str, Any]) -> Raw:
        return Raw("test_schema.Opened.v2", {**old, "balance": ..., "note": old.get("note", '-'), "currency": ...})"""
    )


def test_an_upcaster_for_a_field_that_is_gone_passes_the_rest_on() -> None:
    (problem,) = _found({"a": int, "b": int}, {"a": int})
    assert problem.advice.endswith('return Raw("test_schema.Opened.v2", old)')


def test_the_next_version_of_a_name_is_counted_on() -> None:
    old, new = (_event({"a": kind}, "shop.OrderPlaced.v9") for kind in (int, str))
    (problem,) = problems(schema_of([old]), [new], ())
    assert 'name="shop.OrderPlaced.v10"' in problem.advice
    assert "def _order_placed_v9(" in problem.advice


def test_an_upcaster_answers_for_every_change() -> None:
    assert _found({"a": int}, {"a": str}, (NAME,)) == []


def test_an_event_that_is_gone_is_a_problem() -> None:
    locked = schema_of([_event({"a": int})])
    (problem,) = problems(locked, [_event({"b": int}, "test_schema.Other")], ())
    assert problem.name == NAME
    assert f'@upcast("{NAME}")' in problem.advice
    assert "formerly" not in problem.advice


def test_a_renamed_event_is_told_how_to_keep_its_old_name() -> None:
    locked = schema_of([_event({"a": int})])
    (problem,) = problems(locked, [_event({"a": int}, "test_schema.Begun")], ())
    assert f'name="test_schema.Begun", formerly=("{NAME}",)' in problem.advice


def test_an_event_renamed_with_its_old_name_kept_is_safe() -> None:
    renamed = _event({"a": int}, "test_schema.Begun", formerly=(NAME,))
    assert list(problems(schema_of([_event({"a": int})]), [renamed], ())) == []


def test_an_event_renamed_and_reshaped_is_compared_with_its_new_class() -> None:
    renamed = _event({"a": str}, "test_schema.Begun", formerly=(NAME,))
    (problem,) = problems(schema_of([_event({"a": int})]), [renamed], ())
    assert problem.reasons == ("a was int and is str",)


def test_a_former_name_that_is_read_no_more_is_a_problem() -> None:
    locked = schema_of([_event({"a": int}, formerly=("test_schema.First",))])
    (problem,) = problems(locked, [_event({"a": int})], ())
    assert problem.name == "test_schema.First"


def test_an_upcaster_that_is_gone_is_a_problem() -> None:
    (problem,) = problems(schema_of([], ["test_schema.Old"]), [], ())
    assert problem.reasons == ("its upcaster is gone, and nothing else reads events of this name",)


def test_a_class_in_place_of_an_upcaster_is_a_problem() -> None:
    (problem,) = problems(schema_of([], [NAME]), [_event({"a": int})], ())
    assert problem.reasons == ("it was upcast, and now Opened reads it as it is stored",)
