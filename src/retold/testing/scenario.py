"""Scenarios: what happened before, a command, what it must emit.

A scenario treats events as the store does. Every command runs on a state replayed from JSON, so
whatever would go wrong after the next load goes wrong in the test: a field that JSON loses, a
command that changes state without an event, an applier that gives another result the next time.
"""

from __future__ import annotations

import inspect
from functools import partial
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar, cast

from retold.aggregates import Aggregate, Replay, check_aggregate, state_fields
from retold.codecs import Codec, equal
from retold.errors import NoApplier, NotStorable, UsageError
from retold.events import Event, event_name
from retold.personal import MASK, masked, personal_fields
from retold.store.options import check_id

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from uuid import UUID

A = TypeVar("A", bound=Aggregate)
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
P = ParamSpec("P")


def given(
    aggregate_class: type[A],
    /,
    *events: Event,
    id: str | UUID = "entity-1",
    codec: Codec | None = None,
) -> Scenario[A, None]:
    """An entity to which these events have happened; without events, one about to be created.

    id: what `self.id` is in commands. codec: the store's, where it knows types of one's own.

    Raises NoApplier for an event the aggregate neither applies nor ignores.
    """
    check_aggregate(aggregate_class)
    return Scenario(aggregate_class, events, check_id(id), codec or Codec())


class Scenario(Generic[A, R_co]):
    """An entity under test. Steps run at once, and each returns the scenario for the next one."""

    def __init__(
        self, aggregate_class: type[A], events: tuple[Event, ...], id: str, codec: Codec
    ) -> None:
        self._class = aggregate_class
        self._replay = Replay(aggregate_class, codec)
        self._codec = codec
        self._id = id
        self._history: list[Callable[[], Event]] = []
        self._emitted: list[Event] = []
        self._commands: list[str] = []
        self._problem = ""
        self._result: Any = None
        self._keep(events)
        self._state = self._replayed()

    @property
    def state(self) -> A:
        """The state after the last command."""
        return self._state

    @property
    def result(self) -> R_co:
        """What the last command returned."""
        return cast("R_co", self._result)

    def when(
        self, command: Callable[Concatenate[A, P], R], /, *args: P.args, **kwargs: P.kwargs
    ) -> Scenario[A, R]:
        """Run a command. What it raises escapes, and then it has changed nothing."""
        name = getattr(command, "__name__", repr(command))
        state = self._replayed()
        result = command(state, *args, **kwargs)
        if inspect.isawaitable(result):
            if inspect.iscoroutine(result):
                result.close()
            raise UsageError(f"the command {name} is async; commands decide without waiting")
        emitted = tuple(state._bound.emitted)  # pyright: ignore[reportPrivateUsage]
        self._commands.append(name)
        self._emitted += emitted
        self._keep(emitted)
        self._check_replay(name, state)
        self._state, self._result = state, result
        return cast("Scenario[A, R]", self)

    def then(self, *events: Event) -> Scenario[A, R_co]:
        """Exactly these events were emitted since the last `then`, and they are fit to be stored.

        Raises AssertionError otherwise.
        """
        __tracebackhide__ = True
        emitted, self._emitted = self._emitted, []
        commands, self._commands = self._commands, []
        if len(events) != len(emitted) or not all(map(equal, events, emitted)):
            raise AssertionError(_comparison(commands, events, emitted))
        self._raise_problem()
        return self

    def then_state(self, **fields: object) -> Scenario[A, R_co]:
        """These fields of the state have these values.

        Raises AssertionError otherwise, and UsageError for a field that is not declared.
        """
        __tracebackhide__ = True
        declared = state_fields(self._class)
        for name in fields:
            if name not in declared:
                raise UsageError(
                    f"{self._class.__name__} declares no field {name!r}; its fields are "
                    f"{', '.join(declared) or 'none'}"
                )
        marked = personal_fields(self._class)
        wrong = [
            f"  {name}: expected {MASK if name in marked else masked(value)}, "
            f"found {MASK if name in marked else masked(getattr(self._state, name))}"
            for name, value in fields.items()
            if not equal(value, getattr(self._state, name))
        ]
        if wrong:
            raise AssertionError(
                "\n".join([f"the state of {self._class.__name__} is not as expected", *wrong])
            )
        self._raise_problem()
        return self

    def __repr__(self) -> str:
        return f"<Scenario {self._class.__name__} {self._id!r}: {masked(self._state)}>"

    def _keep(self, events: tuple[Event, ...]) -> None:
        """Remember events as JSON: what holds them now could still change them."""
        for event in events:
            try:
                encoded = self._codec.encode_checked(event, event_name(event))
            except NotStorable as error:
                where = type(event).__name__ + (f".{error.field}" if error.field else "")
                self._report(f"{where} does not survive JSON: {error.reason}")
                self._history.append(partial(_itself, event))
            else:
                self._history.append(partial(self._codec.decoder(type(event)), encoded))

    def _replayed(self) -> A:
        state = self._replay.blank(self._id)
        bound = state._bound  # pyright: ignore[reportPrivateUsage]
        bound.applying = True
        for read in self._history:
            event = read()
            applier = self._class.__appliers__.get(type(event))
            if applier is not None:
                applier(state, event)
            elif type(event) not in self._class.__ignores__:
                raise NoApplier(self._class.__entity_type__, event_name(event))
        bound.applying = False
        return state

    def _check_replay(self, command: str, state: A) -> None:
        """A replay, now or at any other time, must lead to the state the command has left."""
        first, second = self._replayed(), self._replayed()
        for name in state_fields(self._class):
            value = getattr(first, name)
            if not equal(value, getattr(second, name)):
                self._report(
                    f"the appliers of {self._class.__name__} give another {name} each time; what "
                    "they need (time, chance, ids) belongs into the event"
                )
            elif not equal(value, getattr(state, name)):
                self._report(
                    f"{command} changed {name} without an event; emit one, and change {name} in "
                    "its applier"
                )

    def _report(self, problem: str) -> None:
        self._problem = self._problem or problem

    def _raise_problem(self) -> None:
        __tracebackhide__ = True
        if self._problem:
            raise AssertionError(self._problem)


def _itself(event: Event) -> Event:
    return event


def _comparison(commands: list[str], expected: tuple[Event, ...], emitted: list[Event]) -> str:
    """Both lists side by side, event by event."""
    lines = [f"{', '.join(commands) or 'no command'} did not emit what was expected"]
    pairs: Iterable[tuple[Event | None, Event | None]] = zip_longest(expected, emitted)
    for wanted, found in pairs:
        if found is None:
            lines.append(f"  missing:  {masked(wanted)}")
        elif wanted is None:
            lines.append(f"  too many: {masked(found)}")
        elif equal(wanted, found):
            lines.append(f"  as expected: {masked(found)}")
        else:
            lines.append(f"  expected: {masked(wanted)}")
            lines.append(f"  emitted:  {masked(found)}")
            if different := _differences(wanted, found):
                lines.append(f"            different: {', '.join(different)}")
    return "\n".join(lines)


def _differences(wanted: Event, found: Event) -> list[str]:
    if wanted.__struct_fields__ != found.__struct_fields__:
        return []
    names = found.__struct_fields__
    return [name for name in names if not equal(getattr(wanted, name), getattr(found, name))]
