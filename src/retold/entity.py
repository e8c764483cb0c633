"""What the verbs return: an entity as it is, and what a command changed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from retold.aggregates import Aggregate
from retold.errors import NoResult

if TYPE_CHECKING:
    from retold.events import Event

A_co = TypeVar("A_co", bound=Aggregate, covariant=True)
R_co = TypeVar("R_co", covariant=True)

_NO_RESULT: Any = object()


@dataclass(frozen=True, slots=True)
class Entity(Generic[A_co]):
    """A stored instance of an aggregate: its id, its version, its state.

    version: the id of the last event; pass it to `expecting(version)` to refuse a lost update.
    """

    id: str
    version: str
    state: A_co


@dataclass(frozen=True, slots=True)
class Changed(Entity[A_co], Generic[A_co, R_co]):
    """An entity after a command.

    events: what the command emitted. duplicate: the key had been handled before, so the command
    was not run; `state` is then the entity as it is now, and `result` raises NoResult.
    """

    events: tuple[Event, ...] = ()
    duplicate: bool = False
    _result: Any = field(default=_NO_RESULT, repr=False)
    _key: str = field(default="", repr=False)

    @property
    def result(self) -> R_co:
        """What the command returned. Raises NoResult for a duplicate."""
        if self._result is _NO_RESULT:
            raise NoResult(self._key)
        return cast("R_co", self._result)
