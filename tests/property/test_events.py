"""Every event that could be appended loads equal; every other one is refused, and nothing else
happens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, cast
from uuid import UUID

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retold import Aggregate, Codec, Event, EventStore
from retold.errors import EventTooLarge, NotStorable
from tests.unit.declare import declare_aggregate, declare_event


class Colour(Enum):
    RED = "red"
    BLUE = 2


class Size(IntEnum):
    SMALL = 1
    LARGE = 2


class Kind(StrEnum):
    OLD = "old"


@dataclass(frozen=True)
class Point:
    x: float
    label: str | None = None


@dataclass
class Loose:
    at: datetime | None
    items: list[int]


class Circle(msgspec.Struct, tag="circle", frozen=True):
    radius: float


class Square(msgspec.Struct, tag="square", frozen=True):
    side: Decimal
    inner: Circle | Square | None = None


class Pair(NamedTuple):
    left: int
    right: str


class Labels(TypedDict):
    name: str
    size: int


Kept = tuple[Any, st.SearchStrategy[Any]]
"""An annotation, and values for it."""


def _huge(digits: int) -> int:
    return -int(10**digits)


TEXT = st.text(st.characters(exclude_categories=()), max_size=8)
DATETIMES = st.datetimes() | st.datetimes(timezones=st.timezones())
DECIMALS = st.decimals(allow_nan=False) | st.sampled_from([Decimal("NaN"), Decimal("1E+9999")])
CIRCLES = st.builds(Circle, st.floats())
SQUARES = st.builds(Square, DECIMALS, st.none() | CIRCLES)

HASHABLE: list[Kept] = [
    (
        int,
        st.integers()
        | st.integers(-(2**70), 2**70)
        | st.sampled_from([400, 4000, 5000]).map(_huge),
    ),
    (float, st.floats() | st.integers(-(2**60), 2**70)),
    (str, TEXT),
    (bytes, st.binary(max_size=8)),
    (bool, st.booleans()),
    (Decimal, DECIMALS),
    (UUID, st.uuids()),
    (date, st.dates()),
    (time, st.times() | st.times(timezones=st.timezones())),
    (timedelta, st.timedeltas()),
    (datetime, DATETIMES),
    (Colour, st.sampled_from(Colour)),
    (Size, st.sampled_from(Size)),
    (Kind, st.sampled_from(Kind)),
    (Point, st.builds(Point, st.floats(), st.none() | TEXT)),
    (Circle | Square, CIRCLES | SQUARES),
    (Pair, st.builds(Pair, st.integers(), TEXT)),
]
PLAIN: list[Kept] = [
    *HASHABLE,
    (None, st.none()),
    (Decimal, st.just(Decimal("sNaN"))),
    (Loose, st.builds(Loose, st.none() | DATETIMES, st.lists(st.integers(), max_size=3))),
    (Labels, st.fixed_dictionaries({"name": TEXT, "size": st.integers()})),
    (
        Any,
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | TEXT | DATETIMES,
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
            max_leaves=5,
        ),
    ),
    (Any, st.sampled_from([object(), 1j, int, (1,), {1: 2}, {"$personal": 1}, Circle(1.0)])),
]


def _lists(inner: Kept) -> Kept:
    return _of(list, inner[0]), st.lists(inner[1], max_size=3)


def _tuples(inner: Kept) -> Kept:
    return _of(tuple, (inner[0], ...)), st.lists(inner[1], max_size=3).map(tuple)


def _texts_to(inner: Kept) -> Kept:
    return _of(dict, (str, inner[0])), st.dictionaries(TEXT, inner[1], max_size=3)


def _optional(inner: Kept) -> Kept:
    return inner[0] if inner[0] in (Any, None) else inner[0] | None, st.none() | inner[1]


def _of(generic: Any, parameters: Any) -> Any:
    """`generic[parameters]`, which type checkers need not follow."""
    return generic[parameters]


WRAP: list[Callable[[Kept], Kept]] = [_lists, _tuples, _texts_to, _optional]


@st.composite
def kept(draw: st.DrawFn) -> Kept:
    """An annotation of up to three levels."""
    if draw(st.integers(0, 3)) == 0:
        hint, values = draw(st.sampled_from(HASHABLE))
        made: Kept = draw(
            st.sampled_from(
                [
                    (_of(set, hint), st.sets(values, max_size=3)),
                    (_of(frozenset, hint), st.frozensets(values, max_size=3)),
                    (_of(dict, (hint, int)), st.dictionaries(values, st.integers(), max_size=3)),
                ]
            )
        )
    else:
        made = draw(st.sampled_from(PLAIN))
    for wrap in draw(st.lists(st.sampled_from(WRAP), max_size=2)):
        made = wrap(made)
    return made


@st.composite
def events(draw: st.DrawFn) -> Event:
    """An event of one field, with a value that is mostly of the field's type."""
    while True:
        hint, values = draw(kept())
        if draw(st.integers(0, 9)) == 0:
            _, values = draw(st.sampled_from(PLAIN))
        cls: Any = declare_event("Held", name="property.Held", fields={"value": hint})
        try:
            msgspec.json.Decoder(cls)
        except TypeError:  # no JSON object has such keys: a mistake in the declaration
            continue
        return cast("Event", cls(draw(values)))


def same(left: Any, right: Any) -> bool:
    """Equality as Python has it, but for datetimes, which must be of one instant."""
    if isinstance(left, datetime) and isinstance(right, datetime):
        aware = left.tzinfo is not None and right.tzinfo is not None
        return aware and left.timestamp() == right.timestamp()
    for unordered in (dict, set, frozenset):
        if isinstance(left, unordered) and isinstance(right, unordered):
            return _same_items(left, right)
    for ordered in (list, tuple):
        if isinstance(left, ordered) and isinstance(right, ordered):
            return _same_in_order(left, right)
    if isinstance(left, msgspec.Struct) and type(left) is type(right):
        return all(same(getattr(left, n), getattr(right, n)) for n in left.__struct_fields__)
    if isinstance(left, (Point, Loose)) and type(left) is type(right):
        return all(same(value, getattr(right, n)) for n, value in vars(left).items())
    return bool(left == right)


def _same_in_order(left: Any, right: Any) -> bool:
    return len(left) == len(right) and all(map(same, left, right))


def _same_items(left: Any, right: Any) -> bool:
    if len(left) != len(right):
        return False
    pairs = [next(((a, b) for b in right if same(a, b)), None) for a in left]
    if not isinstance(left, dict):
        return None not in pairs
    return all(pair is not None and same(left[pair[0]], right[pair[1]]) for pair in pairs)


CODEC = Codec()


@settings(max_examples=1500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(events())
def test_an_event_is_refused_or_comes_back_equal(event: Event) -> None:
    try:
        encoded = CODEC.encode_checked(event, "property.Held")
    except NotStorable:
        return
    back = CODEC.decoder(type(event))(encoded)
    assert same(event, back), (event, encoded, back)
    encoded.decode()
    # What was loaded can be stored again.
    again = CODEC.decoder(type(event))(CODEC.encode_checked(back, "property.Held"))
    assert same(back, again)


class Holder(Aggregate, name="property.HolderBase"):
    held: Any = None

    def hold(self, event: Event) -> None:
        self.emit(event)


def _apply(self: Any, event: Any) -> None:
    self.held = event


def holder(event_class: type[Event]) -> type[Holder]:
    made: Any = declare_aggregate(
        "Held", name="property.Holder", fields={"held": Any}, body={"held": None, "emits": _emits}
    )
    made.__appliers__[event_class] = _apply
    return cast("type[Holder]", made)


def _emits(self: Any, event: Event) -> None:
    self.emit(event)


def test_a_store_refuses_an_event_or_gives_it_back(tmp_path: Path) -> None:
    with EventStore(f"sqlite:///{tmp_path / 'events.db'}?synchronous=normal") as store:

        @settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
        @given(events())
        def check(event: Event) -> None:
            cls: Any = holder(type(event))
            holders = store.repository(cls)
            before = sum(1 for _ in holders.entities())
            try:
                made = holders.create(cls.emits, event)
            except (NotStorable, EventTooLarge):
                assert sum(1 for _ in holders.entities()) == before
                return
            (recorded,) = holders.history(made.id)
            found: Any = holders.find(made.id)
            assert recorded.id == found.version == made.version
            assert same(event, recorded.event)
            assert same(event, found.state.held)

        check()
