from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from typing import Any, NamedTuple, TypedDict
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec
import pytest

from retold import Codec, Event
from retold.codecs import equal
from retold.errors import DefinitionError, NotStorable
from tests.unit.declare import declare_event

BERLIN = ZoneInfo("Europe/Berlin")


class Money:
    """A type JSON knows nothing of."""

    def __init__(self, amount: Decimal, currency: str) -> None:
        self.amount = amount
        self.currency = currency

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Money) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((self.amount, self.currency))


class Euros(Money):
    pass


def encode_money(money: Money) -> str:
    return f"{money.amount} {money.currency}"


def decode_money(text: str) -> Money:
    amount, currency = text.split(" ")
    return Money(Decimal(amount), currency)


CODEC = Codec().add(Money, encode=encode_money, decode=decode_money)


class Colour(Enum):
    RED = "red"


class Size(IntEnum):
    SMALL = 1


class Kind(StrEnum):
    NEW = "new"


@dataclass
class Point:
    x: float
    y: float = 0


@dataclass
class Point3(Point):
    z: float = 0


class Circle(msgspec.Struct, tag="circle", frozen=True):
    radius: float


class Square(msgspec.Struct, tag="square", frozen=True):
    side: float


class Pair(NamedTuple):
    left: int
    right: str


class Labels(TypedDict):
    name: str


class Node(msgspec.Struct, frozen=True):
    at: datetime | None = None
    children: tuple[Node, ...] = ()


class AnyHeld(Event, name="test_codecs.AnyHeld"):
    value: Any


class At(Event, name="test_codecs.At"):
    at: datetime


def holding(hint: Any) -> type[Any]:
    """An event class with one field."""
    return declare_event("Holding", name="test_codecs.Holding", fields={"value": hint})


NOON = datetime(2024, 5, 6, 12, tzinfo=UTC)

KEPT = [
    (int, -1),
    (int, 2**64),
    (int, -(2**300)),
    (float, -0.0),
    (float, 5e-324),
    (float, 3),
    (str, "ä\0\U0001f600\u2028"),
    (bytes, b"\x00\xff"),
    (bool, True),
    (None, None),
    (Decimal, Decimal("1.10")),
    (Decimal, Decimal("-1E+400")),
    (UUID, UUID(int=7)),
    (date, date(2024, 2, 29)),
    (time, time(9, 30)),
    (timedelta, timedelta(days=-1, microseconds=1)),
    (datetime, NOON),
    (
        datetime,
        datetime(2024, 5, 6, 12, 0, 0, 7, tzinfo=timezone(timedelta(hours=-3, minutes=-30))),
    ),
    (datetime, datetime(2024, 5, 6, 12, tzinfo=BERLIN)),
    (Colour, Colour.RED),
    (Size, Size.SMALL),
    (Kind, Kind.NEW),
    (Point, Point(1, 2)),
    (Circle | Square, Square(2)),
    (list[Circle | Square], [Circle(1), Square(2)]),
    (Pair, Pair(1, "b")),
    (Labels, {"name": "n"}),
    (Node, Node(NOON, (Node(), Node(NOON)))),
    (dict[str, list[int]], {"a": [1], "": []}),
    (dict[int, str], {1: "a"}),
    (dict[UUID, Point], {UUID(int=1): Point(1)}),
    (dict[datetime, int], {NOON: 1}),
    (tuple[int, ...], (1, 2)),
    (set[int], {1, 2}),
    (frozenset[Node], frozenset({Node(NOON)})),
    (int | None, None),
    (Any, {"a": [1, None, "x", {"b": 1.5}]}),
    (Money, Money(Decimal("1.10"), "EUR")),
    (dict[str, Money | None], {"a": Money(Decimal(1), "EUR"), "b": None}),
]


@pytest.mark.parametrize(("hint", "value"), KEPT, ids=str)
def test_what_is_kept_comes_back_equal(hint: Any, value: Any) -> None:
    cls = holding(hint)
    encoded = CODEC.encode_checked(cls(value), "an event")
    back = CODEC.decoder(cls)(encoded)
    assert back == cls(value)
    assert type(back.value) is type(value) or hint is float


NAIVE = datetime(2024, 5, 6, 12)  # noqa: DTZ001

REFUSED = [
    (float, float("nan"), "null"),
    (float, float("inf"), "null"),
    (float | None, float("nan"), "not equal"),
    (list[float | None], [float("-inf")], "not equal"),
    (Any, float("nan"), "not equal"),
    (float, 2**63 + 1, "not equal"),
    (Decimal, Decimal("NaN"), "not equal"),
    (str, "\ud800", "surrogates"),
    (dict[str, int], {"\udfff": 1}, "surrogates"),
    (datetime, NAIVE, "without a time zone"),
    (Node, Node(children=(Node(NAIVE),)), "without a time zone"),
    (frozenset[Node], frozenset({Node(NAIVE)}), "without a time zone"),
    (dict[datetime, int], {NAIVE: 1}, "without a time zone"),
    (list[datetime] | None, [NOON, NAIVE], "without a time zone"),
    (datetime, datetime(1900, 1, 1, tzinfo=ZoneInfo("Europe/Amsterdam")), "not equal"),
    (str, 1, "Expected `str`"),
    (int, True, "Expected `int`"),
    (int, 1.0, "Expected `int`"),
    (list[int], (1, "a"), "Expected `int`"),
    (tuple[int, ...], [1], "not equal"),
    (Point, Point3(1, 2, 3), "not equal"),
    (Any, (1,), "not equal"),
    (Any, {1: 2}, "not equal"),
    (Any, b"x", "not equal"),
    (Any, NOON, "not equal"),
    (Any, Decimal(1), "not equal"),
    (Any, UUID(int=1), "not equal"),
    (Any, Point(1, 2), "not equal"),
    (Any, Colour, "no JSON form is known"),
    (Any, object(), "no JSON form is known for object"),
    (Any, 1j, "no JSON form is known for complex"),
    (Euros, Euros(Decimal(1), "EUR"), "Euros"),
]


@pytest.mark.parametrize(("hint", "value", "why"), REFUSED, ids=str)
def test_what_json_loses_is_refused(hint: Any, value: Any, why: str) -> None:
    with pytest.raises(NotStorable, match=why) as caught:
        CODEC.encode_checked(holding(hint)(value), "test_codecs.Holding")
    assert caught.value.field == "value"
    assert "test_codecs.Holding cannot be stored" in str(caught.value)
    assert "field 'value'" in str(caught.value)


def test_a_structure_that_holds_itself_is_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(NotStorable):
        CODEC.encode_checked(AnyHeld(endless), "an event")


def test_a_field_renamed_in_json_is_refused_by_its_own_name() -> None:
    cls: Any = declare_event(
        "Renamed", name="test_codecs.Renamed", rename="camel", fields={"in_full": str}
    )
    with pytest.raises(NotStorable) as caught:
        CODEC.encode_checked(cls(1), "an event")
    assert caught.value.field == "in_full"


@pytest.mark.parametrize(
    "at",
    [
        datetime(2024, 10, 27, 2, 30, tzinfo=BERLIN),
        datetime(2024, 10, 27, 2, 30, tzinfo=BERLIN, fold=1),
        datetime(2024, 3, 31, 2, 30, tzinfo=BERLIN),
    ],
)
def test_a_time_at_which_clocks_are_set_is_kept_as_the_instant_it_is(at: datetime) -> None:
    back = CODEC.decoder(At)(CODEC.encode_checked(At(at), "an event"))
    assert back.at.timestamp() == at.timestamp()
    assert equal(back, At(at))


def test_a_type_with_a_json_form_cannot_be_added() -> None:
    """msgspec would never ask, so the functions would be left out without a word."""

    def fail(value: Any) -> Any:
        raise AssertionError

    for known in (Point, Colour, Circle, datetime, Decimal, Pair):
        with pytest.raises(DefinitionError, match="kept as JSON already"):
            Codec().add(known, encode=fail, decode=fail)


def test_subclasses_are_encoded_as_their_base() -> None:
    cls = holding(Money)
    assert CODEC.encode(cls(Euros(Decimal(1), "EUR"))) == b'{"value":"1 EUR"}'
    with pytest.raises(NotStorable, match="no JSON form is known for Money"):
        Codec().encode_checked(cls(Money(Decimal(1), "EUR")), "an event")


def test_unknown_fields_are_skipped_when_reading() -> None:
    assert CODEC.decoder(AnyHeld)('{"later":1,"value":2}') == AnyHeld(2)
