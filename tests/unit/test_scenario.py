from __future__ import annotations

import random
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any
from uuid import UUID

import pytest

from retold import Aggregate, Codec, Event, Personal, applies
from retold.errors import InvalidValue, NoApplier, UsageError
from retold.testing import given


class Opened(Event, name="test_scenario.Opened"):
    owner: Annotated[str, Personal("owner")]
    balance: int


class Debited(Event, name="test_scenario.Debited"):
    amount: int


class Stamped(Event, name="test_scenario.Stamped"):
    at: datetime


class Tagged(Event, name="test_scenario.Tagged"):
    tags: list[str]


class Drawn(Event, name="test_scenario.Drawn"):
    pass


class Viewed(Event, name="test_scenario.Viewed"):
    pass


class Unheard(Event, name="test_scenario.Unheard"):
    pass


class Account(Aggregate, name="test_scenario.Account", ignores=(Viewed,)):
    owner: Annotated[str, Personal("owner")] = ""
    balance: int = 0
    at: datetime | None = None
    tags: tuple[str, ...] = ()
    number: float = 0

    def open(self, owner: str, balance: int = 0) -> str:
        self.emit(Opened(owner, balance))
        return self.id

    def debit(self, amount: int) -> int:
        if amount > self.balance:
            raise ValueError(f"only {self.balance} left")
        self.emit(Debited(amount))
        return self.balance

    def debit_then_fail(self, amount: int) -> None:
        self.emit(Debited(amount))
        raise RuntimeError

    def debit_quietly(self, amount: int) -> None:
        self.balance -= amount

    def debit_twice(self, amount: int) -> None:
        self.emit(Debited(amount))
        self.balance -= amount

    def stamp(self, at: datetime) -> None:
        self.emit(Stamped(at))

    def tag(self, tags: list[str]) -> None:
        self.emit(Tagged(tags))

    def tag_and_change(self, tags: list[str]) -> None:
        self.emit(Tagged(tags))
        tags.append("later")

    def draw(self) -> None:
        self.emit(Drawn())

    def view(self) -> None:
        self.emit(Viewed())

    def shout(self) -> None:
        self.emit(Unheard())

    def look(self) -> int:
        return self.balance

    async def wait(self) -> None:
        self.emit(Viewed())

    @applies
    def _opened(self, event: Opened) -> None:
        self.owner, self.balance = event.owner, event.balance

    @applies
    def _debited(self, event: Debited) -> None:
        self.balance -= event.amount

    @applies
    def _stamped(self, event: Stamped) -> None:
        self.at = event.at

    @applies
    def _tagged(self, event: Tagged) -> None:
        self.tags = tuple(event.tags)

    @applies
    def _drawn(self, event: Drawn) -> None:
        self.number = random.random()


class Money:
    """A type JSON knows nothing of."""

    def __init__(self, amount: Decimal) -> None:
        self.amount = amount

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Money) and other.amount == self.amount

    def __hash__(self) -> int:
        return hash(self.amount)


class Paid(Event, name="test_scenario.Paid"):
    money: Money


class Purse(Aggregate, name="test_scenario.Purse"):
    total: Decimal = Decimal(0)

    def pay(self, money: Money) -> None:
        self.emit(Paid(money))

    @applies
    def _paid(self, event: Paid) -> None:
        self.total += event.money.amount


OPENED = Opened("ann", 100)


def test_given_when_then() -> None:
    scenario = given(Account, OPENED).when(Account.debit, 30).then(Debited(30))
    assert scenario.result == 70
    assert scenario.state.balance == 70
    scenario.then_state(balance=70, owner="ann")


def test_arguments_reach_the_command_by_place_and_by_name() -> None:
    given(Account).when(Account.open, "ann", balance=5).then(Opened("ann", 5))


def test_what_happened_before_is_not_expected() -> None:
    given(Account, OPENED, Debited(1)).when(Account.look).then().then_state(balance=99)


def test_events_of_several_commands_are_expected_together() -> None:
    given(Account, OPENED).when(Account.debit, 1).when(Account.debit, 2).then(
        Debited(1), Debited(2)
    ).then_state(balance=97)


def test_then_expects_only_what_came_since_the_last_then() -> None:
    scenario = given(Account, OPENED).when(Account.debit, 1).then(Debited(1))
    scenario.when(Account.debit, 2).then(Debited(2)).then().then_state(balance=97)


def test_the_result_is_that_of_the_last_command() -> None:
    scenario = given(Account, OPENED)
    assert scenario.result is None
    assert scenario.when(Account.debit, 1).when(Account.look).result == 99


def test_an_exception_escapes_and_changes_nothing() -> None:
    scenario = given(Account, OPENED)
    with pytest.raises(ValueError, match="only 100 left"):
        scenario.when(Account.debit, 101)
    with pytest.raises(RuntimeError):
        scenario.when(Account.debit_then_fail, 10)
    scenario.then().then_state(balance=100)


def test_an_ignored_event_is_emitted_like_any_other() -> None:
    given(Account, Viewed()).when(Account.view).then(Viewed())


def test_an_event_without_an_applier_is_refused_now_and_in_the_past() -> None:
    with pytest.raises(NoApplier):
        given(Account).when(Account.shout)
    with pytest.raises(NoApplier):
        given(Account, Unheard())


def test_an_async_command_is_refused() -> None:
    scenario = given(Account)
    with pytest.raises(UsageError, match="the command wait is async"):
        scenario.when(Account.wait)
    scenario.then()


def test_the_id_is_the_same_in_every_run_and_may_be_chosen() -> None:
    assert given(Account).when(Account.open, "ann").result == "entity-1"
    assert given(Account, id="a-1").when(Account.open, "ann").result == "a-1"
    assert given(Account, id=UUID(int=7)).when(Account.open, "a").result == str(UUID(int=7))
    with pytest.raises(InvalidValue):
        given(Account, id="")


def test_only_aggregates_have_scenarios() -> None:
    wrong: Any = Opened
    with pytest.raises(UsageError, match="is not an Aggregate class"):
        given(wrong)


# --- what fails ----------------------------------------------------------------------------------


def failure(scenario: Any, *expected: Event) -> str:
    with pytest.raises(AssertionError) as caught:
        scenario.then(*expected)
    return str(caught.value)


def test_a_missing_event_is_shown() -> None:
    assert failure(given(Account, OPENED).when(Account.look), Debited(1)) == (
        "look did not emit what was expected\n  missing:  Debited(amount=1)"
    )


def test_an_event_too_many_is_shown() -> None:
    assert failure(given(Account, OPENED).when(Account.debit, 1)) == (
        "debit did not emit what was expected\n  too many: Debited(amount=1)"
    )


def test_a_different_event_is_shown_beside_the_expected_one() -> None:
    scenario = given(Account, OPENED).when(Account.debit, 1).when(Account.debit, 2)
    assert failure(scenario, Debited(1), Debited(3)) == (
        "debit, debit did not emit what was expected\n"
        "  as expected: Debited(amount=1)\n"
        "  expected: Debited(amount=3)\n"
        "  emitted:  Debited(amount=2)\n"
        "            different: amount"
    )


def test_an_event_of_another_class_is_no_match() -> None:
    text = failure(given(Account).when(Account.view), Drawn())
    assert "expected: Drawn()" in text
    assert "emitted:  Viewed()" in text


def test_then_without_a_command_says_so() -> None:
    assert failure(given(Account), Viewed()).startswith("no command did not emit")


def test_personal_data_is_masked_in_a_failure() -> None:
    text = failure(given(Account).when(Account.open, "ann"), Opened("bob", 1))
    assert "ann" not in text
    assert "bob" not in text
    assert "different: owner, balance" in text


def test_a_state_that_differs_shows_the_fields_that_do() -> None:
    scenario = given(Account, OPENED)
    with pytest.raises(AssertionError) as caught:
        scenario.then_state(owner="bob", balance=99, tags=())
    assert str(caught.value) == (
        "the state of Account is not as expected\n"
        "  owner: expected ‹personal›, found ‹personal›\n"
        "  balance: expected 99, found 100"
    )


def test_a_field_that_is_not_declared_is_a_mistake_of_the_test() -> None:
    with pytest.raises(UsageError, match=r"declares no field 'balanse'; its fields are owner, bal"):
        given(Account).then_state(balanse=1)


def test_a_change_without_an_event_is_found_out() -> None:
    message = (
        "debit_quietly changed balance without an event; emit one, and change balance in its "
        "applier"
    )
    assert failure(given(Account, OPENED).when(Account.debit_quietly, 1)) == message
    with pytest.raises(AssertionError, match="changed balance without an event"):
        given(Account, OPENED).when(Account.debit_quietly, 1).then_state(balance=99)


def test_a_change_beside_an_event_is_found_out() -> None:
    text = failure(given(Account, OPENED).when(Account.debit_twice, 1), Debited(1))
    assert text.startswith("debit_twice changed balance without an event")


def test_a_value_that_json_loses_is_found_out() -> None:
    naive = datetime(2024, 1, 1)  # noqa: DTZ001
    text = failure(given(Account).when(Account.stamp, naive), Stamped(naive))
    assert text.startswith("Stamped.at does not survive JSON: it holds a datetime without a time")
    assert failure(given(Account, Stamped(naive)).when(Account.look)).startswith("Stamped.at does")


def test_an_applier_that_gives_another_state_each_time_is_found_out() -> None:
    text = failure(given(Account).when(Account.draw), Drawn())
    assert text.startswith("the appliers of Account give another number each time")


def test_a_problem_outlasts_the_step_it_came_in() -> None:
    scenario = given(Account, OPENED).when(Account.debit_quietly, 1)
    failure(scenario.when(Account.look))
    failure(scenario.when(Account.debit, 1), Debited(1))


def test_an_event_is_what_it_was_when_the_command_returned() -> None:
    tags = ["a"]
    scenario = given(Account).when(Account.tag, tags)
    tags.append("b")
    scenario.when(Account.look).then_state(tags=("a",))


def test_an_event_that_is_changed_after_it_was_applied_is_found_out() -> None:
    text = failure(given(Account).when(Account.tag_and_change, ["a"]), Tagged(["a", "later"]))
    assert text.startswith("tag_and_change changed tags without an event")


def test_a_command_starts_from_what_was_stored() -> None:
    """As after a load: what a command keeps in the state beside its events is gone."""
    scenario = given(Account, OPENED).when(Account.debit_quietly, 60)
    assert scenario.when(Account.debit, 100).result == 0


def test_own_types_need_the_store_s_codec() -> None:
    codec = Codec().add(Money, encode=lambda m: str(m.amount), decode=lambda t: Money(Decimal(t)))
    money = Money(Decimal("1.10"))
    given(Purse, codec=codec).when(Purse.pay, money).then(Paid(money)).then_state(
        total=Decimal("1.10")
    )
    assert "Paid.money does not survive JSON" in failure(
        given(Purse).when(Purse.pay, money), Paid(money)
    )


def test_a_scenario_shows_itself() -> None:
    assert repr(given(Account, OPENED)) == (
        "<Scenario Account 'entity-1': Account(owner=‹personal›, balance=100, at=None, tags=(), "
        "number=0)>"
    )


def test_states_of_different_scenarios_are_independent() -> None:
    one, other = given(Account, OPENED), given(Account, OPENED)
    one.when(Account.debit, 1).then(Debited(1)).then_state(balance=99)
    other.then_state(balance=100)
