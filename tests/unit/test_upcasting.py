"""What old events mean today, as `history` and `find` read them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from retold import Aggregate, Codec, Event, Raw, Recorded, UnknownEvent, applies, upcast
from retold.aggregates import Replay
from retold.errors import DefinitionError, NoApplier, NotFound, UnreadableEvent
from retold.recorded import read_row
from tests.unit.declare import declare_event


class Named(Event, name="test_upcasting.Named", formerly=("test_upcasting.Titled",)):
    first: str
    last: str = ""


class Aged(Event, name="test_upcasting.Aged"):
    years: int


class Person(Aggregate, name="test_upcasting.Person"):
    name: str = ""
    years: int = 0

    @applies
    def _named(self, event: Named) -> None:
        self.name = f"{event.first} {event.last}"

    @applies
    def _aged(self, event: Aged) -> None:
        self.years += event.years


@upcast("test_upcasting.FullNamed")
def split_name(data: dict[str, Any]) -> Event:
    return Named(*data["name"].split(" "))


@upcast("test_upcasting.NamedAndAged")
def two(data: dict[str, Any]) -> list[Event | Raw]:
    return [Raw("test_upcasting.FullNamed", {"name": data["name"]}), Aged(data["age"])]


@upcast("test_upcasting.Viewed")
def dropped(data: dict[str, Any]) -> None: ...


@upcast("test_upcasting.Imported")
def chained(data: dict[str, Any]) -> Raw:
    return Raw("test_upcasting.NamedAndAged", {"name": data.pop("who"), "age": int(data["age"])})


@upcast("test_upcasting.Copied")
def to_a_class_by_name(data: dict[str, Any]) -> Raw:
    return Raw("test_upcasting.Titled", data)


@upcast("test_upcasting.Lost")
def to_an_unknown_name(data: dict[str, Any]) -> Raw:
    return Raw("test_upcasting.Nowhere", data)


@upcast("test_upcasting.Ring")
def ring(data: dict[str, Any]) -> Raw:
    return Raw("test_upcasting.Ring", data)


@upcast("test_upcasting.Conditional")
def conditional(data: dict[str, Any]) -> tuple[Event, ...]:
    return (Aged(data["age"]),) if data["age"] else ()


def read(name: str, data: str) -> list[Recorded[Event]]:
    return list(
        read_row(
            Codec(), "test_upcasting.Person", "p-1", f"{1:016x}-{2:016x}", name, data, None, None
        )
    )


def events(name: str, data: str = "{}") -> list[Event]:
    return [recorded.event for recorded in read(f"test_upcasting.{name}", data)]


def test_a_renamed_event_is_read_as_its_class() -> None:
    assert events("Titled", '{"first":"Ann"}') == [Named("Ann")]


def test_one_event_becomes_another() -> None:
    assert events("FullNamed", '{"name":"Ann Lee"}') == [Named("Ann", "Lee")]


def test_one_event_becomes_several_in_order_each_with_its_part() -> None:
    recorded = read("test_upcasting.NamedAndAged", '{"name":"Ann Lee","age":7}')
    assert [r.event for r in recorded] == [Named("Ann", "Lee"), Aged(7)]
    assert [r.part for r in recorded] == [0, 1]
    assert {r.name for r in recorded} == {"test_upcasting.NamedAndAged"}


def test_an_event_is_dropped() -> None:
    assert events("Viewed") == []
    assert events("Conditional", '{"age":0}') == []
    assert events("Conditional", '{"age":1}') == [Aged(1)]


def test_upcasters_are_chained() -> None:
    assert events("Imported", '{"who":"Ann Lee","age":"7"}') == [Named("Ann", "Lee"), Aged(7)]


def test_a_raw_event_may_have_the_name_of_a_class() -> None:
    assert events("Copied", '{"first":"Ann"}') == [Named("Ann")]


def test_a_replay_casts_too() -> None:
    replay = Replay(Person, Codec())
    state = replay.blank("p-1")
    rows = [
        ("1-1", "test_upcasting.Imported", '{"who":"Ann Lee","age":"7"}'),
        ("1-2", "test_upcasting.Viewed", "{}"),
        ("1-3", "test_upcasting.Aged", '{"years":1}'),
        ("1-4", "test_upcasting.NamedAndAged", '{"name":"Ann Day","age":1}'),
    ]
    assert replay.apply(state, rows) == "1-4"
    assert state == Person(name="Ann Day", years=9)


def test_what_an_upcaster_makes_needs_an_applier() -> None:
    class Nameless(Aggregate, name="test_upcasting.Nameless"):
        @applies(Aged)
        def aged(self, event: Aged) -> None: ...

    replay = Replay(Nameless, Codec())
    with pytest.raises(NoApplier, match=r"test_upcasting\.Named "):
        replay.apply(replay.blank("n"), [("1-1", "test_upcasting.FullNamed", '{"name":"Ann Lee"}')])


def test_a_raw_event_of_an_unknown_name_names_it() -> None:
    with pytest.raises(UnknownEvent) as caught:
        events("Lost")
    assert caught.value.event_type == "test_upcasting.Nowhere"
    assert caught.value.entity_id == "p-1"


def test_upcasters_that_go_round_in_a_circle_are_found_out() -> None:
    with pytest.raises(UnreadableEvent, match="round in a circle"):
        events("Ring")


def _empty_generator() -> Iterator[Event]:
    yield from ()


NO_EVENTS: list[tuple[Any, str]] = [
    ({}, "dict"),
    ({"first": "Ann"}, "dict"),
    ("", "str"),
    (0, "int"),
    (False, "bool"),
    ([Aged(1), None], "NoneType"),
    ([{}], "dict"),
    (Aged, "type|_EventMeta"),
    (_empty_generator(), "generator"),
]


@pytest.mark.parametrize(("returned", "type_name"), NO_EVENTS)
def test_what_is_no_event_is_refused_and_never_dropped(returned: Any, type_name: str) -> None:
    def wrong(data: dict[str, Any]) -> Any:
        return returned

    upcast("test_upcasting.Wrong")(wrong)
    with pytest.raises(
        UnreadableEvent, match=f"returned ({type_name}); it returns an event, a Raw"
    ):
        events("Wrong")


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("FullNamed", "{}", "KeyError: 'name'"),
        ("FullNamed", "[]", "Expected `object`, got `array`"),
        ("FullNamed", "{", "malformed|truncated"),
        ("Copied", '{"first":1}', "Expected `str`, got `int`"),
    ],
)
def test_an_event_that_cannot_be_cast_names_its_row(name: str, data: str, reason: str) -> None:
    with pytest.raises(UnreadableEvent, match=reason) as caught:
        events(name, data)
    error = caught.value
    assert (error.event_id, error.entity_type, error.entity_id, error.event_type) == (
        f"{1:016x}-{2:016x}",
        "test_upcasting.Person",
        "p-1",
        f"test_upcasting.{name}",
    )
    assert f"@upcast('test_upcasting.{name}')" in str(error)


def test_an_upcaster_s_own_error_is_the_cause() -> None:
    with pytest.raises(UnreadableEvent) as caught:
        events("FullNamed")
    assert isinstance(caught.value.__cause__, KeyError)


def test_an_error_of_retold_s_passes_through() -> None:
    def looks_elsewhere(data: dict[str, Any]) -> None:
        raise NotFound("other.Thing", "t-1")

    upcast("test_upcasting.Elsewhere")(looks_elsewhere)
    with pytest.raises(NotFound):
        events("Elsewhere")


def test_two_upcasters_for_a_name_are_refused() -> None:
    with pytest.raises(DefinitionError, match=r"two.*split_name.*'test_upcasting\.FullNamed'"):
        upcast("test_upcasting.FullNamed")(two)
    assert events("FullNamed", '{"name":"Ann Lee"}') == [Named("Ann", "Lee")]


def test_a_name_is_read_by_a_class_or_an_upcaster_not_both() -> None:
    with pytest.raises(DefinitionError, match=r"Aged"):
        upcast("test_upcasting.Aged")(dropped)
    with pytest.raises(DefinitionError, match=r"Named"):
        upcast("test_upcasting.Titled")(dropped)
    with pytest.raises(DefinitionError, match=r"dropped"):
        declare_event("Viewed", name="test_upcasting.Viewed")


def test_a_function_may_be_defined_again() -> None:
    for n in (1, 2):

        def again(data: dict[str, Any], n: int = n) -> Event:
            return Aged(n)

        upcast("test_upcasting.Again")(again)
        assert events("Again") == [Aged(n)]


def test_a_name_that_could_never_have_been_stored_is_refused() -> None:
    with pytest.raises(DefinitionError, match="cannot name an event to upcast"):
        upcast("not a name")


def test_a_decorated_function_stays_callable() -> None:
    assert split_name({"name": "Ann Lee"}) == Named("Ann", "Lee")
