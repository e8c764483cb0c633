from __future__ import annotations

import sqlite3
import subprocess
import sys
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar
from uuid import UUID

import pytest
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    RootModel,
    SecretStr,
    computed_field,
    field_serializer,
)
from pydantic.alias_generators import to_camel

from retold import Aggregate, Codec, Event, EventStore, applies
from retold.contrib.pydantic import pydantic_codec
from retold.errors import NotStorable, UnreadableEvent
from retold.snapshots import every

T = TypeVar("T")
CODEC = pydantic_codec()


class Colour(Enum):
    RED = "red"


class Address(BaseModel):
    street: str = Field(min_length=1)
    since: date


class Customer(BaseModel):
    name: str = Field(min_length=2)
    limit: Decimal = Field(default=Decimal("0.00"), ge=0)
    addresses: list[Address] = []
    seen: datetime | None = None
    key: UUID | None = None
    colour: Colour = Colour.RED
    score: float | None = None


class Strict(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)
    day: date
    price: Decimal
    tags: frozenset[str]


class Camel(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, validate_by_name=True)
    first_name: str


class Computed(BaseModel):
    model_config = ConfigDict(extra="forbid")
    side: int

    @computed_field
    def area(self) -> int:
        return self.side**2


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")


class Numbers(RootModel[list[int]]):
    pass


class Page(BaseModel, Generic[T]):
    items: list[T]


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"
    lives: int


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"


class Pets(BaseModel):
    pets: list[Annotated[Cat | Dog, Field(discriminator="kind")]]


class Base(BaseModel):
    pass


class Derived(Base):
    extra: int = 0


class Looser(BaseModel):
    name: str


class Secret(BaseModel):
    word: SecretStr


class Excluding(BaseModel):
    kept: int
    left_out: int = Field(default=0, exclude=True)


class Private(BaseModel):
    _hidden: int = PrivateAttr(default=0)

    def hide(self, value: int) -> Private:
        self._hidden = value
        return self


class Lossy(BaseModel):
    amount: float

    @field_serializer("amount")
    def _rounded(self, amount: float) -> float:
        return round(amount)


class Registered(Event, name="pydantic-test.Registered"):
    customer: Customer


class Based(Event, name="pydantic-test.Based"):
    value: Base


class Unchecked(Event, name="pydantic-test.Unchecked"):
    customer: Looser


class Shapes(Event, name="pydantic-test.Shapes"):
    strict: Strict
    camel: Camel
    computed: Computed
    open: Open
    numbers: Numbers
    page: Page[int]
    pets: Pets
    many: list[Address]
    by_name: dict[str, Address]
    missing: Address | None = None


ADDRESS = Address(street="Main Street", since=date(2020, 2, 29))
CUSTOMER = Customer(
    name="Zoë",
    limit=Decimal("10.50"),
    addresses=[ADDRESS],
    seen=datetime(2024, 5, 6, 7, 8, 9, 123456, tzinfo=UTC),
    key=UUID(int=7),
    score=0.1,
)


def test_a_model_comes_back_equal() -> None:
    event = Registered(CUSTOMER)
    encoded = CODEC.encode_checked(event, "it")
    assert CODEC.decoder(Registered)(encoded) == event


def test_every_shape_comes_back_equal() -> None:
    event = Shapes(
        strict=Strict(day=date(2020, 1, 1), price=Decimal("1.10"), tags=frozenset({"a", "b"})),
        camel=Camel(first_name="Ann"),
        computed=Computed(side=3),
        open=Open.model_validate({"more": [1, {"deep": None}]}),
        numbers=Numbers([1, 2]),
        page=Page[int](items=[1]),
        pets=Pets(pets=[Cat(lives=7), Dog()]),
        many=[ADDRESS, ADDRESS],
        by_name={"home": ADDRESS},
    )
    encoded = CODEC.encode_checked(event, "it")
    assert CODEC.decoder(Shapes)(encoded) == event
    assert b'"firstName":"Ann"' in encoded
    assert b'"area"' not in encoded


def test_a_codec_keeps_what_it_knew() -> None:
    class Measured(Event, name="pydantic-test.Measured"):
        where: Address
        by: complex

    codec = Codec().add(complex, encode=str, decode=complex)
    assert pydantic_codec(codec) is codec
    event = Measured(ADDRESS, 1 + 2j)
    assert codec.decoder(Measured)(codec.encode_checked(event, "it")) == event


def _changed(**changes: Any) -> Customer:
    """A customer changed behind the constraints, as assignments may do."""
    return CUSTOMER.model_copy(update=changes)


@pytest.mark.parametrize(
    ("customer", "reason"),
    [
        (_changed(name="A"), "name: String should have at least 2 characters"),
        (_changed(limit=Decimal(-1)), "limit: Input should be greater than or equal to 0"),
        (_changed(name=17), "name: Input should be a valid string"),
        (_changed(score="0.5"), "not equal to itself"),
        (_changed(score=float("nan")), "not equal to itself"),
        (_changed(score=float("inf")), "not equal to itself"),
        (_changed(seen=datetime(2024, 1, 1)), "without a time zone"),  # noqa: DTZ001
        (_changed(name="a\ud800"), "surrogates"),
        (_changed(addresses=[ADDRESS.model_copy(update={"street": ""})]), "addresses.0.street"),
        (_changed(addresses=[object()]), "unknown type"),
        (Customer.model_construct(), "name"),
    ],
)
def test_what_breaks_a_constraint_is_refused(customer: Customer, reason: str) -> None:
    with pytest.raises(NotStorable, match=reason) as refused:
        CODEC.encode_checked(Registered(customer), "it")
    assert "field 'customer'" in str(refused.value)


@pytest.mark.parametrize(
    "value",
    [
        Secret(word=SecretStr("hush")),
        Excluding(kept=1, left_out=2),
        Private().hide(1),
        Lossy(amount=1.25),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_its_json_leaves_out_is_refused(value: BaseModel) -> None:
    with pytest.raises(NotStorable, match="not equal to itself"):
        CODEC.encode_checked(value, "it")


def test_a_subclass_is_not_taken_for_its_base() -> None:
    with pytest.raises(NotStorable, match="not equal to itself"):
        CODEC.encode_checked(Based(Derived(extra=1)), "it")


def test_an_error_shows_no_value() -> None:
    refused = _changed(name="hush " * 3, limit="secretly many")
    with pytest.raises(NotStorable) as raised:
        CODEC.encode_checked(Registered(refused), "it")
    chain: BaseException | None = raised.value
    while chain is not None:
        assert "secretly" not in str(chain)
        assert "hush" not in str(chain)
        chain = chain.__cause__


def test_without_the_codec_a_model_is_refused() -> None:
    with pytest.raises(NotStorable, match="no JSON form is known for Customer"):
        Codec().encode_checked(Registered(CUSTOMER), "it")


class Member(Aggregate, name="pydantic-test.Member", snapshots=every(1)):
    customer: Customer | None = None

    def register(self, customer: Customer) -> None:
        self.emit(Registered(customer))

    @applies
    def _registered(self, event: Registered) -> None:
        self.customer = event.customer


class Writer(Aggregate, name="pydantic-test.Writer", ignores=[Unchecked, Registered]):
    def write(self) -> None:
        self.emit(Unchecked(Looser(name="A")))


def test_a_store_keeps_models(tmp_path: Path) -> None:
    with EventStore(f"sqlite:///{tmp_path}/models.db", codec=pydantic_codec()) as store:
        members = store.repository(Member)
        made = members.create(Member.register, CUSTOMER)
        assert members.find(made.id).state.customer == CUSTOMER
        assert store.counts["snapshot_hits"] == 1
        assert [r.event for r in members.history(made.id)] == [Registered(CUSTOMER)]
        with pytest.raises(NotStorable):
            members.update(made.id, Member.register, _changed(name=""))
        assert members.find(made.id).version == made.version


def test_a_row_that_breaks_a_constraint_names_the_event(tmp_path: Path) -> None:
    """Written by somebody else, or before the constraint was there."""
    url = f"sqlite:///{tmp_path}/models.db"

    with EventStore(url, codec=pydantic_codec()) as store:
        made = store.repository(Writer).create(Writer.write)
    raw = sqlite3.connect(f"{tmp_path}/models.db")
    with raw:
        raw.execute("UPDATE events SET event_type = 'pydantic-test.Registered'")
    raw.close()
    with (
        EventStore(url, codec=pydantic_codec()) as store,
        pytest.raises(UnreadableEvent, match="name: String should have at least 2") as raised,
    ):
        list(store.repository(Writer).history(made.id))
    assert raised.value.event_id == made.version


def test_pydantic_is_an_extra() -> None:
    program = (
        "import sys; sys.modules['pydantic'] = None\n"
        "from retold.errors import MissingExtra\n"
        "try: import retold.contrib.pydantic\n"
        "except MissingExtra as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert "pip install 'retold[pydantic]'" in done.stdout
