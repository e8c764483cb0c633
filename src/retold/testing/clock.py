"""Time that stands still, and ids that are the same in every run."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from retold.errors import InvalidValue
from retold.ids import EventIds, moment

_START = datetime(2024, 1, 1, tzinfo=UTC)


class Clock:
    """A clock for `EventIds(clock=…)` that moves only when told to, forwards or backwards."""

    def __init__(self, start: datetime = _START) -> None:
        self.set(start)

    def set(self, now: datetime) -> None:
        """Raises InvalidValue for a datetime without time zone."""
        if now.tzinfo is None:
            raise InvalidValue("a clock needs a datetime with a time zone")
        self._ms = (now - moment(0)) // timedelta(milliseconds=1)

    def advance(self, seconds: float = 1.0) -> None:
        """Let time pass, in steps of a millisecond; a negative number sets the clock back."""
        self._ms += round(seconds * 1000)

    @property
    def now(self) -> datetime:
        return moment(self._ms)

    def __call__(self) -> int:
        return self._ms


def fixed_ids(clock: Clock | None = None, node: int = 0) -> EventIds:
    """Ids for `EventStore(url, ids=…)` that follow from the clock and the order of calls alone.

    Two stores that write to one database need two nodes.
    """
    return EventIds(clock or Clock(), node)
