"""Personal data is masked wherever retold shows an event or a state."""

from __future__ import annotations

import logging
import traceback
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime
from io import StringIO
from typing import Annotated, Any, Generic, Literal, NamedTuple, NewType, TypedDict, TypeVar

import msgspec
import pytest
from pydantic import BaseModel
from rich.console import Console
from typing_extensions import TypeAliasType

from retold import (
    Aggregate,
    Changed,
    Codec,
    Entity,
    Event,
    EventStore,
    Personal,
    Recorded,
    applies,
)
from retold.errors import NotStorable, UnreadableEvent
from retold.personal import MASK, masked, personal_fields, shown
from retold.recorded import read_events
from retold.snapshots import decode_state
from retold.testing import given
from tests.unit.declare import declare_event

T = TypeVar("T")
SECRET = "Ann-Lee"

Name = Annotated[str, Personal("customer")]
Aliased = TypeAliasType("Aliased", Annotated[str, Personal("customer")])
New = NewType("New", Name)  # pyright: ignore[reportGeneralTypeIssues]


class Registered(Event, name="test_personal.Registered"):
    customer: str
    name: Annotated[str, Personal("customer")]
    age: int = 0


class Renamed(Event, name="test_personal.Renamed"):
    customer: str
    name: Name
    kind: Annotated[Literal["a", "b"], Personal("customer")] = "a"


class Person(Aggregate, name="test_personal.Person"):
    name: Annotated[str, Personal("id")] = ""
    age: int = 0

    def register(self, name: str, age: int = 0) -> None:
        self.emit(Registered(self.id, name, age))

    def rename_quietly(self, name: str) -> None:
        self.name = name

    @applies
    def _registered(self, event: Registered) -> None:
        self.name, self.age = event.name, event.age

    @applies
    def _renamed(self, event: Renamed) -> None:
        self.name = event.name


@dataclass(frozen=True)
class Data:
    name: Name
    n: int = 0


class Value(msgspec.Struct, frozen=True):
    name: Name
    inner: Data | None = None


class Pair(NamedTuple):
    name: Name
    n: int


class Keyed(TypedDict):
    name: Name


class Tree(TypedDict):
    n: int
    above: Tree | None
    leaf: Keyed | None


class Model(BaseModel):
    name: Name
    n: int = 0


class Box(msgspec.Struct, Generic[T]):
    value: T


class Words(list[Any]):
    pass


def test_a_marked_field_is_masked_and_others_are_not() -> None:
    assert repr(Registered("c-1", SECRET, 7)) == (
        "Registered(customer='c-1', name=‹personal›, age=7)"
    )
    assert repr(Person(name=SECRET, age=7)) == "Person(name=‹personal›, age=7)"
    assert personal_fields(Registered) == {"name": Personal("customer")}


def test_str_and_format_are_masked_too() -> None:
    event = Registered("c-1", SECRET)
    assert SECRET not in f"{event} {event!s} {event!r} {[event]}"


@pytest.mark.parametrize(
    "hint",
    [
        Name,
        Name | None,
        list[Name],
        dict[str, list[Name]],
        dict[Name, int],
        tuple[int, Name],
        Aliased,
        New,
        list[New],
        Annotated[Name, msgspec.Meta(min_length=1)],
        Annotated[list[Name], msgspec.Meta(min_length=1)],
        "Name",
        "list[Name]",
        list["Name"],
        Keyed,
        list[Keyed],
        Tree,
        Box[Name],
        "NotThere",
    ],
    ids=str,
)
def test_a_mark_anywhere_in_an_annotation_marks_the_field(hint: Any) -> None:
    class Holder:
        pass

    Holder.__annotations__ = {"value": hint, "plain": int}
    assert personal_fields(Holder).keys() == {"value"}


@pytest.mark.parametrize("hint", [str, "int", Literal["Name"], list[str], Data, datetime, Any])
def test_other_annotations_mark_nothing(hint: Any) -> None:
    class Holder:
        pass

    Holder.__annotations__ = {"value": hint}
    assert personal_fields(Holder) == {}


@pytest.mark.parametrize(
    "value",
    [
        Data(SECRET),
        Value(SECRET),
        Value("x", Data(SECRET)),
        Pair(SECRET, 1),
        Model(name=SECRET),
        Box(Data(SECRET)),
        [Data(SECRET)],
        (Data(SECRET),),
        {Data(SECRET)},
        frozenset({Data(SECRET)}),
        deque([Data(SECRET)]),
        Words([Data(SECRET)]),
        {"a": [{"b": (Data(SECRET), 1)}]},
        {Data(SECRET): 1},
        Registered("c-1", SECRET),
        [Person(name=SECRET)],
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_marked_field_is_masked_at_any_depth(value: Any) -> None:
    cls: Any = declare_event("Holding", name="test_personal.Holding", fields={"value": Any})
    for text in (masked(value), repr(cls(value))):
        assert SECRET not in text
        assert MASK in text


@pytest.mark.parametrize(
    "value",
    [None, 1, "a", [1], (), (1,), (1, "b"), {1}, set[int](), frozenset({1}), {"a": [1]}],
    ids=repr,
)
def test_what_holds_no_personal_data_is_shown_as_ever(value: object) -> None:
    assert masked(value) == repr(value)


def test_a_value_of_another_type_is_shown_as_ever() -> None:
    assert masked(datetime(2024, 1, 1, tzinfo=UTC)) == repr(datetime(2024, 1, 1, tzinfo=UTC))
    assert masked(deque([1])) == "deque([1])"


def test_a_class_local_to_a_function_rather_hides_too_much() -> None:
    """Its annotations are texts that cannot be read from outside."""
    Hidden = Annotated[str, Personal("customer")]

    class Local(Event, name="test_personal.Local"):
        n: int
        name: Hidden  # pyright: ignore[reportInvalidTypeForm]

    assert repr(Local(1, SECRET)) == "Local(n=1, name=‹personal›)"


def test_a_subclass_inherits_marks_and_may_declare_a_field_anew() -> None:
    class More(Registered, name="test_personal.More"):
        city: str = ""

    class Open(Registered, name="test_personal.Open"):
        name: str

    assert repr(More("c-1", SECRET, city="x")) == (
        "More(customer='c-1', name=‹personal›, age=0, city='x')"
    )
    assert "name='public'" in repr(Open("c-1", "public"))


def test_what_the_store_returns_is_masked() -> None:
    person, event = Person(name=SECRET), Registered("c-1", SECRET)
    changed: Changed[Person, str] = Changed("c-1", "1-1", person, (event,), _result=SECRET)
    now = datetime(2024, 1, 1, tzinfo=UTC)
    recorded = Recorded("1-1", "n", event, "t", "c-1", now, {}, None)
    for value in (Entity("c-1", "1-1", person), changed, recorded):
        assert SECRET not in repr(value)
        assert MASK in repr(value)


def test_rich_shows_the_mask() -> None:
    file = StringIO()
    console = Console(file=file, width=200)
    cls: Any = declare_event("Holding", name="test_personal.Holding", fields={"value": Any})
    event = cls({"a": [Value("x", Data(SECRET))]})
    for value in (
        event,
        Person(name=SECRET),
        Entity("c-1", "1-1", Person(name=SECRET)),
        Registered("c-1", SECRET),
    ):
        console.print(value)
    printed = file.getvalue()
    assert SECRET not in printed
    assert printed.count(MASK) == 5
    assert [name for name, _ in shown(Registered("c-1", SECRET))] == ["customer", "name", "age"]


def test_a_traceback_that_shows_locals_is_masked() -> None:
    def fail(event: Event, state: Person) -> None:
        raise RuntimeError

    try:
        fail(Registered("c-1", SECRET), Person(name=SECRET))
    except RuntimeError as error:
        text = "".join(
            traceback.TracebackException.from_exception(error, capture_locals=True).format()
        )
        assert MASK in text
        assert f"name='{SECRET}'" not in text


@pytest.mark.parametrize(
    "event",
    [
        Renamed("c-1", SECRET, SECRET),  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
        Renamed("c-1", f"{SECRET}\ud800"),
        Renamed("c-1", [SECRET]),  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    ],
    ids=["literal", "surrogate", "type"],
)
def test_a_value_that_cannot_be_stored_is_not_told(event: Event) -> None:
    with pytest.raises(NotStorable) as caught:
        Codec().encode_checked(event, "test_personal.Renamed")
    text = "".join(traceback.format_exception(caught.value))
    assert caught.value.field in ("kind", "name")
    assert SECRET not in text.replace(repr(event), "")


def test_a_value_that_cannot_be_read_is_not_told(caplog: pytest.LogCaptureFixture) -> None:
    data = f'{{"customer":"c-1","name":"x","kind":"{SECRET} - at `$.kind`"}}'
    with pytest.raises(UnreadableEvent, match=r"Invalid enum value - at `\$\.kind`") as caught:
        read_events(Codec(), "t", "c-1", "1-1", "test_personal.Renamed", data)
    assert SECRET not in "".join(traceback.format_exception(caught.value))

    class Kept(Aggregate, name="test_personal.Kept"):
        kind: Literal["a", "b"] = "a"

    with caplog.at_level(logging.WARNING):
        assert decode_state(Kept, "c-1", f'{{"kind":"{SECRET}"}}', Codec()) is None
    assert "Invalid enum value" in caplog.text
    assert SECRET not in caplog.text


def test_failures_of_scenarios_are_masked() -> None:
    new = given(Person)
    with pytest.raises(AssertionError) as emitted:
        new.when(Person.register, SECRET).then(Registered("entity-1", "somebody " + SECRET))
    assert "different: name" in str(emitted.value)
    with pytest.raises(AssertionError) as missing:
        new.when(Person.register, SECRET).then()
    with pytest.raises(AssertionError) as state:
        new.then_state(name=SECRET + "!")
    with pytest.raises(AssertionError) as quiet:
        new.when(Person.rename_quietly, SECRET + "?").then()
    for caught in (emitted, missing, state, quiet):
        assert SECRET not in str(caught.value)
    assert SECRET not in repr(new)


def test_nothing_that_is_logged_or_raised_by_the_store_shows_a_value(
    store: EventStore, caplog: pytest.LogCaptureFixture
) -> None:
    people = store.repository(Person)
    with caplog.at_level(logging.DEBUG):
        ann = people.create(Person.register, SECRET)
        assert SECRET not in repr([ann, *people.history(ann.id)])
        with pytest.raises(NotStorable) as caught:
            people.update(ann.id, Person.register, SECRET + "\ud800")
    assert SECRET not in str(caught.value)
    assert SECRET not in caplog.text
