from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

from retold import Event
from retold.errors import DefinitionError
from retold.events import event_classes, event_name
from tests.unit.declare import declare_event


class Opened(Event, name="test_events.Opened"):
    owner: str
    balance: int = 0


class Moved(Event, name="test_events.Moved", formerly=("test_events.Shifted",), rename="camel"):
    from_place: str


def test_an_event_is_an_immutable_value() -> None:
    event = Opened("ann", balance=3)
    assert event == Opened("ann", 3)
    assert event != Opened("ann", 4)
    assert hash(event) == hash(Opened("ann", 3))
    assert repr(event) == "Opened(owner='ann', balance=3)"
    with pytest.raises(AttributeError):
        event.balance = 4  # type: ignore[misc] # pyright: ignore[reportAttributeAccessIssue]


def test_an_event_survives_pickle_and_copy() -> None:
    event = Opened("ann", 3)
    assert pickle.loads(pickle.dumps(event)) == event
    assert copy.deepcopy(event) == event


def test_the_stored_name_is_that_of_the_class() -> None:
    assert event_name(Opened) == event_name(Opened("ann")) == "test_events.Opened"
    assert event_classes.get("test_events.Opened") is Opened


def test_an_older_name_is_read_as_the_class() -> None:
    assert event_classes.get("test_events.Shifted") is Moved
    assert event_name(Moved) == "test_events.Moved"


def test_a_name_is_required() -> None:
    with pytest.raises(DefinitionError, match=r"Nameless needs a stored name.*name=…"):
        declare_event("Nameless")


@pytest.mark.parametrize("name", ["a", "A-z_0.9$", "x" * 200])
def test_names_are_what_kafka_accepts_as_a_topic(name: str) -> None:
    declared = declare_event("Named", module=f"tests.named.{len(name)}", name=name)
    assert event_name(declared) == name


@pytest.mark.parametrize("name", ["", "x" * 201, "a b", "a/b", "ä", "a\n", "a:b", "a+b", 7, b"a"])
def test_other_names_are_refused(name: Any) -> None:
    with pytest.raises(DefinitionError, match="cannot name the event Odd"):
        declare_event("Odd", name=name)
    with pytest.raises(DefinitionError, match="cannot name the event Odd"):
        declare_event("Odd", name="test_events.odd", formerly=(name,))
    assert event_classes.get("test_events.odd") is None


def test_two_classes_cannot_share_a_stored_name() -> None:
    declare_event("First", module="tests.one", name="test_events.shared")
    with pytest.raises(DefinitionError) as caught:
        declare_event("Second", module="tests.two", name="test_events.shared")
    for word in ("tests.one.First", "tests.two.Second", "'test_events.shared'"):
        assert word in str(caught.value)


def test_an_older_name_counts_as_a_name() -> None:
    declare_event("Old", module="tests.one", name="test_events.old")
    with pytest.raises(DefinitionError, match=r"tests\.one\.Old"):
        declare_event("New", name="test_events.new", formerly=("test_events.old",))
    assert event_classes.get("test_events.new") is None, "a refused class leaves no name behind"


def test_the_same_class_may_be_defined_again() -> None:
    for _ in range(2):
        again = declare_event("Again", name="test_events.again")
        assert event_classes.get("test_events.again") is again


def test_fields_may_have_other_names_in_json() -> None:
    from retold import Codec

    assert Codec().encode(Moved("here")) == b'{"fromPlace":"here"}'
