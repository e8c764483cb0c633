from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest

from retold import Aggregate, Codec, Event, applies
from retold.aggregates import Binding, Replay, appliers_of, state_fields
from retold.errors import (
    DefinitionError,
    NoApplier,
    UnknownEvent,
    UnreadableEvent,
    UsageError,
)
from retold.testing import given
from tests.unit.declare import declare_aggregate, declare_event


class Placed(Event, name="test_aggregates.Placed"):
    customer: str


class LineAdded(Event, name="test_aggregates.LineAdded"):
    sku: str
    quantity: int
    price: int


class LineChanged(Event, name="test_aggregates.LineChanged"):
    sku: str
    quantity: int


class LineRemoved(Event, name="test_aggregates.LineRemoved"):
    sku: str


class Viewed(Event, name="test_aggregates.Viewed"):
    pass


class Unheard(Event, name="test_aggregates.Unheard"):
    pass


class Line(msgspec.Struct, frozen=True):
    """A child entity: a value in the state of the root, which has an identity within it."""

    sku: str
    quantity: int
    price: int


class Order(Aggregate, name="test_aggregates.Order", ignores=(Viewed,)):
    customer: str = ""
    lines: dict[str, Line] = {}  # noqa: RUF012 (every state gets its own)

    def place(self, customer: str) -> None:
        self.emit(Placed(customer))

    def add(self, sku: str, quantity: int, price: int) -> int:
        if sku in self.lines:
            self.emit(LineChanged(sku, self.lines[sku].quantity + quantity))
        else:
            self.emit(LineAdded(sku, quantity, price))
        return self.total

    def remove(self, sku: str) -> None:
        if sku in self.lines:
            self.emit(LineRemoved(sku))

    def view(self) -> str:
        self.emit(Viewed())
        return self.id

    def forget_the_applier(self) -> None:
        self.emit(Unheard())

    @property
    def total(self) -> int:
        return sum(line.quantity * line.price for line in self.lines.values())

    @applies
    def _placed(self, event: Placed) -> None:
        self.customer = event.customer

    @applies
    def _added(self, event: LineAdded) -> None:
        self.lines[event.sku] = Line(event.sku, event.quantity, event.price)

    @applies
    def _changed(self, event: LineChanged | LineRemoved) -> None:
        if isinstance(event, LineRemoved):
            del self.lines[event.sku]
        else:
            line = self.lines[event.sku]
            self.lines[event.sku] = msgspec.structs.replace(line, quantity=event.quantity)


def test_an_order_with_lines() -> None:
    order = (
        given(Order, Placed("ann"))
        .when(Order.add, "tea", 2, price=5)
        .then(LineAdded("tea", 2, 5))
        .when(Order.add, "tea", 1, price=5)
        .then(LineChanged("tea", 3))
        .then_state(lines={"tea": Line("tea", 3, 5)})
    )
    assert order.result == 15
    order.when(Order.remove, "tea").then(LineRemoved("tea")).then_state(lines={}, customer="ann")
    order.when(Order.remove, "tea").then()


def test_two_states_share_no_default() -> None:
    one, other = given(Order).when(Order.add, "tea", 1, 1).state, given(Order).state
    assert one.lines
    assert other.lines == {}


def test_an_ignored_event_needs_no_applier() -> None:
    given(Order, Viewed()).when(Order.view).then(Viewed())


def test_an_event_that_is_neither_applied_nor_ignored_is_refused() -> None:
    with pytest.raises(NoApplier) as caught:
        given(Order).when(Order.forget_the_applier)
    for word in ("test_aggregates.Order", "test_aggregates.Unheard", "@applies", "ignores="):
        assert word in str(caught.value)


def test_the_id_is_known_in_commands_only() -> None:
    assert given(Order, id="o-1").when(Order.view).result == "o-1"
    with pytest.raises(UsageError, match="belongs to no entity"):
        _ = Order().id
    with pytest.raises(UsageError, match="for commands"):
        Order().emit(Placed("ann"))


def test_an_undeclared_attribute_is_an_error() -> None:
    with pytest.raises(AttributeError):
        Order().totl = 1  # type: ignore[attr-defined] # pyright: ignore[reportAttributeAccessIssue]


def test_states_compare_by_their_fields() -> None:
    assert Order() == Order()
    assert Order(customer="ann") != Order()
    other: object = 1
    assert Order() != other
    assert state_fields(Order) == ("customer", "lines")
    assert repr(Order(customer="ann")) == "Order(customer='ann', lines={})"


def test_emit_takes_events() -> None:
    bound = Order()
    bound._bound = Binding("o-1")
    wrong: Any
    for wrong in ("placed", Placed, None):
        with pytest.raises(UsageError, match="emit takes an event"):
            bound.emit(wrong)


def test_an_applier_must_not_emit() -> None:
    class Echo(Aggregate, name="test_aggregates.Echo"):
        def shout(self) -> None:
            self.emit(Viewed())

        @applies
        def _viewed(self, event: Viewed) -> None:
            self.emit(event)

    with pytest.raises(UsageError, match="an applier must not emit"):
        given(Echo).when(Echo.shout)


def test_appliers_are_inherited_and_overridden() -> None:
    class Special(Order, name="test_aggregates.Special"):
        discount: int = 0

        @applies
        def _special(self, event: Placed) -> None:
            self.customer = event.customer.upper()

    given(Special).when(Special.place, "ann").then(Placed("ann")).then_state(customer="ANN")
    given(Special).when(Special.add, "tea", 1, 1).then(LineAdded("tea", 1, 1))
    given(Order).when(Order.place, "ann").then(Placed("ann")).then_state(customer="ann")
    assert Special in appliers_of(Placed)
    assert Order in appliers_of(Viewed)
    assert appliers_of(Unheard) == ()


def test_applies_may_name_a_class_that_annotations_cannot() -> None:
    class Local(Event, name="test_aggregates.Local"):
        n: int

    class Holder(Aggregate, name="test_aggregates.Holder"):
        n: int = 0

        def hold(self, n: int) -> None:
            self.emit(Local(n))

        @applies(Local)
        def _local(self, event: Local) -> None:
            self.n = event.n

    given(Holder).when(Holder.hold, 3).then(Local(3)).then_state(n=3)


def test_an_annotation_that_cannot_be_read_says_what_to_do() -> None:
    def _hidden(self: Any, event: Any) -> None: ...

    _hidden.__annotations__["event"] = "NotThere"
    with pytest.raises(DefinitionError, match=r"@applies\(EventClass\)"):
        declare_aggregate("Blind", name="test_aggregates.Blind", body={"_hidden": applies(_hidden)})


def _no_annotation(self: Any, event: Any) -> None: ...


def _two_events(self: Any, one: Placed, two: Placed) -> None: ...


def _no_event(self: Any, event: str) -> None: ...


@pytest.mark.parametrize("method", [_no_annotation, _two_events, _no_event])
def test_an_applier_takes_one_event(method: Any) -> None:
    body: dict[str, Any] = {method.__name__: applies(method)}
    with pytest.raises(DefinitionError, match="an applier takes one event"):
        declare_aggregate("Odd", name="test_aggregates.Odd", body=body)


def test_a_name_is_required_and_unique() -> None:
    with pytest.raises(DefinitionError, match="Nameless needs a stored name"):
        declare_aggregate("Nameless")
    with pytest.raises(DefinitionError, match="cannot name the aggregate Odd"):
        declare_aggregate("Odd", name="a b")
    with pytest.raises(DefinitionError) as caught:
        declare_aggregate("Other", name="test_aggregates.Order")
    assert "tests.declared.Other" in str(caught.value)
    assert "test_aggregates.Order" in str(caught.value)


def test_events_and_aggregates_may_share_a_name() -> None:
    declare_event("Both", name="test_aggregates.Both")
    declare_aggregate("BothToo", name="test_aggregates.Both")


@dataclass
class Mutable:
    items: list[int] = field(default_factory=list[int])


@pytest.mark.parametrize("default", [[1], {"a": 1}, {1}, Mutable()])
def test_a_mutable_default_is_refused(default: Any) -> None:
    with pytest.raises(DefinitionError, match="default"):
        declare_aggregate(
            "Shared",
            name="test_aggregates.Shared",
            fields={"value": Any},
            body={"value": default},
        )


def test_every_field_needs_a_default() -> None:
    with pytest.raises(DefinitionError, match="needs an immutable or empty default"):
        declare_aggregate("Needy", name="test_aggregates.Needy", fields={"value": int})


@pytest.mark.parametrize("name", ["id", "emit", "_bound"])
def test_a_field_must_not_hide_what_every_aggregate_has(name: str) -> None:
    with pytest.raises(DefinitionError, match=f"Hiding.{name} hides"):
        declare_aggregate(
            "Hiding", name="test_aggregates.Hiding", fields={name: str}, body={name: ""}
        )


def replay(*rows: tuple[str, str, str]) -> Order:
    replay = Replay(Order, Codec())
    state = replay.blank("o-1")
    replay.apply(state, rows)
    return state


def test_replaying_rows() -> None:
    order = replay(
        ("1-1", "test_aggregates.Placed", '{"customer":"ann"}'),
        ("1-2", "test_aggregates.Viewed", "{}"),
        ("1-3", "test_aggregates.LineAdded", '{"sku":"tea","quantity":2,"price":5}'),
        ("1-4", "test_aggregates.LineAdded", '{"sku":"bun","quantity":1,"price":1,"new":true}'),
    )
    assert order.total == 11
    empty = Replay(Order, Codec())
    assert empty.apply(empty.blank("o-1"), []) is None


def test_a_row_of_an_unknown_type_names_itself_and_what_to_do() -> None:
    with pytest.raises(UnknownEvent) as caught:
        replay(("1-1", "test_aggregates.Gone", "{}"))
    for word in ("1-1", "test_aggregates.Order", "'o-1'", "'test_aggregates.Gone'", "@upcast"):
        assert word in str(caught.value)


@pytest.mark.parametrize("before", [0, 1])
@pytest.mark.parametrize("data", ["{}", "", "[]", '{"customer":1}', "\x00"])
def test_a_row_that_cannot_be_read_names_itself(before: int, data: str) -> None:
    good = [("1-1", "test_aggregates.Placed", '{"customer":"ann"}')] * before
    with pytest.raises(UnreadableEvent) as caught:
        replay(*good, ("1-2", "test_aggregates.Placed", data))
    assert caught.value.event_id == "1-2"
    assert caught.value.entity_id == "o-1"


def test_an_own_type_that_cannot_be_decoded_names_the_row_too() -> None:
    class Token:
        pass

    def fail(value: object) -> Token:
        raise KeyError(value)

    issued = declare_event("Issued", name="test_aggregates.Issued", fields={"token": Token})
    codec = Codec().add(Token, encode=lambda token: 1, decode=fail)
    holder = declare_aggregate("Issuer", name="test_aggregates.Issuer", ignores=(issued,))
    rows = Replay(holder, codec)
    for _ in range(2):
        with pytest.raises(UnreadableEvent, match="KeyError"):
            rows.apply(rows.blank("i"), [("1-1", "test_aggregates.Issued", '{"token":1}')])


def test_an_applier_s_own_error_stays() -> None:
    with pytest.raises(KeyError, match="tea"):
        replay(("1-1", "test_aggregates.LineRemoved", '{"sku":"tea"}'))


def test_a_stored_event_without_applier_is_an_error() -> None:
    with pytest.raises(NoApplier):
        replay(("1-1", "test_aggregates.Unheard", "{}"))
