"""Following a store: every committed event once, as it comes, whatever its type.

Ids are minted before the commit, so a transaction that commits late brings ids below those seen
already: who follows by ids alone misses them. SQLite's positions and the numbered log are orders of
commits, and nothing can be missed there. A server without that log (`retold migrate
--subscriptions` makes it) has no such order to read: there, what is younger than some time is read
again at each look, and what was not seen before is new.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from retold.brokers.numbered_log import log_state, number
from retold.errors import LogMissing
from retold.ids import milliseconds, wall_clock
from retold.store.driver import Plan, Statement
from retold.store.listing import StoredEvent, Wanted, events_with, place_of_last

if TYPE_CHECKING:
    from retold.store.connections import BlockingDriver
    from retold.store.dialects import Dialect

_WINDOW = 100
"""How many positions are read at once: events may be large."""
_IDS = 5000


class Follower(Protocol):
    """Begins at the last events that are wanted, or behind an id, and goes on for ever."""

    def look(self) -> list[StoredEvent]:
        """The next events of all types, in their order; none where nothing came."""
        ...

    @property
    def complete(self) -> bool:
        """Whether no event can be missed, however late it commits."""
        ...


def follow(driver: BlockingDriver, wanted: Wanted, last: int | None, late_s: float) -> Follower:
    """last: begin with so many of the events wanted; None: with all of them.
    late_s: without a log, how many seconds after the time in its id an event may be committed.
    """
    dialect = driver.dialect
    if dialect.name == "sqlite":
        return ByPosition(driver, wanted, last)
    try:
        driver.run(log_state(dialect.queries))
    except LogMissing:
        return ById(driver, wanted, last, late_s)
    return ByPosition(driver, wanted, last)


class ByPosition:
    """In the order of the log."""

    complete = True

    def __init__(self, driver: BlockingDriver, wanted: Wanted, last: int | None) -> None:
        self._driver = driver
        self._sql = driver.dialect.queries
        self._end = driver.run(self._end_plan())
        self._position = 0
        if last is not None:
            self._position = self._before_last(wanted, last)
        elif wanted.after:
            (found,) = driver.run(_one(self._sql["log_position_at"], wanted.after))
            self._position = self._end if found is None else int(found)

    def look(self) -> list[StoredEvent]:
        events: list[StoredEvent] = []
        if self._position >= self._end:
            self._end = self._driver.run(self._end_plan())
        while not events and self._position < self._end:
            until = min(self._position + _WINDOW, self._end)
            read = self._driver.run(_read(self._sql, self._position, until))
            events = [event for _, event in read]
            self._position = until
        return events

    def _end_plan(self) -> Plan[int]:
        if "log_end" in self._sql:
            (end,) = yield from _one(self._sql["log_end"])
            return int(end)
        # As any reader of the log does: what is committed gets its place in it.
        return (yield from number(self._sql)).end

    def _before_last(self, wanted: Wanted, count: int) -> int:
        """The position behind which the last `count` of the events wanted are."""
        until = self._end
        while until > 0:
            behind = max(0, until - _WINDOW)
            for position, event in reversed(self._driver.run(_read(self._sql, behind, until))):
                if count == 0:
                    return position
                count -= wanted.holds(event)
            until = behind
        return 0 if count else until


class ById:
    """In the order of ids, and what is young is looked at again and again."""

    complete = False

    def __init__(
        self, driver: BlockingDriver, wanted: Wanted, last: int | None, late_s: float
    ) -> None:
        self._driver = driver
        self._dialect = driver.dialect
        self._late_ms = int(late_s * 1000)
        begin = wanted.after
        if last is not None:
            begin = driver.run(place_of_last(self._dialect, wanted, last))
        self._behind = begin
        # Of the events that may have to be read again: those that were handed out.
        self._seen: set[str] = set()
        if begin:
            self._pass_over(begin)

    def _pass_over(self, begin: str) -> None:
        """What lies before the beginning, and is young, is no news."""
        behind = self._late(milliseconds(begin))
        while page := [id for id in self._driver.run(_ids(self._dialect, behind)) if id <= begin]:
            self._seen.update(page)
            behind = page[-1]

    def look(self) -> list[StoredEvent]:
        young = self._late(wall_clock())
        new: list[str] = []
        while len(new) < _WINDOW:
            page = self._driver.run(_ids(self._dialect, self._behind))
            for id in page:
                self._behind = id
                if id in self._seen:
                    continue
                if id > young:
                    self._seen.add(id)
                new.append(id)
                if len(new) == _WINDOW:
                    break
            if len(page) < _IDS and len(new) < _WINDOW:
                self._behind = young
                self._seen = {id for id in self._seen if id > young}
                break
        return self._driver.run(events_with(self._dialect, new))

    def _late(self, ms: int) -> str:
        """What sorts before all ids of events that may come so much later."""
        return f"{max(0, ms - self._late_ms):016x}"


def _read(sql: Mapping[str, str], behind: int, until: int) -> Plan[list[tuple[int, StoredEvent]]]:
    if until <= behind:
        return []
    (found,) = yield [Statement(sql["follow_read"], (behind, until))]
    return [(int(row[0]), StoredEvent(*row[1:])) for row in found.rows]


def _ids(dialect: Dialect, behind: str) -> Plan[list[str]]:
    (found,) = yield [Statement(dialect.queries["list_ids"], (behind, _IDS))]
    return [id for (id,) in found.rows]


def _one(sql: str, *params: object) -> Plan[tuple[Any, ...]]:
    (found,) = yield [Statement(sql, params)]
    return tuple(found.rows[0])
