from __future__ import annotations

from datetime import UTC, datetime

import pytest

from retold import Codec, Event, Recorded, UnknownEvent
from retold.errors import UnreadableEvent
from retold.recorded import read_row

ID = "0000018cc251f400-0000000000000007"


class Paid(Event, name="test_recorded.Paid"):
    amount: int


def read(
    data: str = '{"amount":3}',
    *,
    id: str = ID,
    name: str = "test_recorded.Paid",
    trigger: str | None = None,
    metadata: str | None = None,
) -> Recorded[Event]:
    (recorded,) = read_row(Codec(), "bank.Account", "a-1", id, name, data, trigger, metadata)
    return recorded


def test_a_recorded_event_is_what_the_row_says() -> None:
    assert read(trigger="order-7", metadata='{"user":"ann"}') == Recorded(
        id=ID,
        name="test_recorded.Paid",
        event=Paid(3),
        entity_type="bank.Account",
        entity_id="a-1",
        time=datetime(2024, 1, 1, tzinfo=UTC),
        metadata={"user": "ann"},
        trigger="order-7",
        part=0,
    )


def test_a_recorded_event_is_immutable() -> None:
    recorded = read()
    with pytest.raises(AttributeError, match="immutable"):
        recorded.id = "1-1"  # type: ignore[misc] # pyright: ignore[reportAttributeAccessIssue]


def test_a_row_without_metadata_has_none() -> None:
    assert read(metadata=None).metadata == read(metadata="").metadata == {}


def test_the_true_time_goes_before_that_of_a_raised_id() -> None:
    ahead = f"{0x18CC251F400 + 3_600_000:016x}-{7:016x}"
    recorded = read(id=ahead, metadata='{"retold_time":"1704067200000"}')
    assert recorded.time == datetime(2024, 1, 1, tzinfo=UTC)


def test_a_row_of_an_unknown_type_names_itself() -> None:
    with pytest.raises(UnknownEvent) as caught:
        read(name="test_recorded.Gone")
    assert vars(caught.value) == {
        "event_id": ID,
        "entity_type": "bank.Account",
        "entity_id": "a-1",
        "event_type": "test_recorded.Gone",
    }


def test_a_row_that_cannot_be_read_names_itself_and_shows_no_context_of_msgspec_s() -> None:
    with pytest.raises(UnreadableEvent, match=r"Expected `int`, got `str`") as caught:
        read('{"amount":"3"}')
    assert (caught.value.event_id, caught.value.event_type) == (ID, "test_recorded.Paid")
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
