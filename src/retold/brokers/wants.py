"""What a member of a subscription handles, beside what newer members of it handle.

`Wants` is what the member knows of the others, looked at again while it runs. `Fence` is what a
consumer on a database does about it: nothing is handed out, and no position saved, from the first
event on that only a newer generation handles.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from retold.brokers.base import Message
from retold.errors import Outgrown, RetoldError, TransactionRolledBack
from retold.store import generations
from retold.store.generations import Generation, Missed, Pair, Places

if TYPE_CHECKING:
    from retold.store.connections import BlockingDriver

LOOK_S = 1.0
"""How often a member looks for what has changed."""
_TRIES = 20
_log = logging.getLogger("retold.subscriptions")


class Wants:
    """One member's knowledge. own: what it handles. Safe to use from several threads."""

    def __init__(
        self, driver: BlockingDriver, name: str, own: frozenset[Pair], *, in_database: bool = True
    ) -> None:
        self._driver = driver
        self._sql = driver.dialect.queries
        self.name = name
        self.own = own
        self.in_database = in_database
        self.seen = Generation(0, own, paused=False, begun=False)
        self.changed: Callable[[], None] = lambda: None
        """Called when there is something new."""

    @property
    def others(self) -> frozenset[Pair]:
        """What is handled by a newer generation only."""
        return self.seen.wanted - self.own

    def register(self) -> bool:
        """Tell what this member handles; whether the subscription has a new generation by that."""
        tries = 0
        while True:
            plan = generations.register(
                self._sql, self.name, self.own, in_database=self.in_database
            )
            try:
                grown = self._driver.run(plan)
            except TransactionRolledBack:
                tries += 1
                if tries == _TRIES:
                    raise
            else:
                self._see(self._driver.run(generations.generation(self._sql, self.name)))
                return grown

    def look(self) -> None:
        """See what has changed. One query, and another one where it has."""
        found = self._driver.run(generations.changes(self._sql, self.name))
        if found != (self.seen.number, self.seen.paused):
            self._see(self._driver.run(generations.generation(self._sql, self.name)))
            self.changed()

    def _see(self, found: Generation | None) -> None:
        if found is not None:
            self.seen = found

    def offer(self) -> None:
        """Tell that this member stands by, and what it handles."""
        self._driver.run(generations.offer(self._sql, self.name, self.own))

    def begun(self) -> None:
        """Note that the subscription has settled where it begins."""
        self._driver.run(generations.begun(self._sql, self.name))

    def missed(self) -> list[Missed]:
        """What was passed, of the names that this member handles."""
        return [
            row
            for row in self._driver.run(generations.missed(self._sql, self.name))
            if row.pair in self.own
        ]

    def cuts(self, generation: int) -> list[Missed]:
        """What was passed, of all names that came behind a generation."""
        rows = self._driver.run(generations.missed(self._sql, self.name))
        return [row for row in rows if row.generation > generation]

    def measured(self, cuts: Mapping[Pair, Places]) -> None:
        """Say up to where names that are new were passed, if nobody has said it yet."""
        self._driver.run(generations.measured(self._sql, self.name, cuts))

    def counted(self, pair: Pair, events: int, *, whole: bool) -> None:
        """Keep, and say, how many events of a name were missed."""
        self._driver.run(generations.counted(self._sql, self.name, pair, events, whole))
        if events:
            entity_type, event_type = pair
            _log.warning(
                "%s: handles %s of %s from now on; %s%d earlier ones were passed. To handle them "
                "too: retold subscriptions backfill %s %s",
                *(self.name, event_type, entity_type, "" if whole else "at least "),
                *(events, self.name, event_type),
            )

    def outgrown(self) -> Outgrown:
        return Outgrown(self.name, ", ".join(sorted({kind for _, kind in self.others})))


class Watch:
    """Looks every second, in a thread of its own, so that it is seen while a handler works."""

    def __init__(self, wants: Wants) -> None:
        self._wants = wants
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"{wants.name} watch", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._ended.wait(LOOK_S):
            try:
                self._wants.look()
            except RetoldError as error:
                _log.debug("%s: %s", self._wants.name, error)

    def end(self) -> None:
        self._ended.set()
        self._thread.join()


class Fence:
    """Where a consumer that reads a database's log has to stop.

    topics, event_types: what to read, also what only others handle. generation: the one that it goes
    by, None where nobody asks. limits: for partitions in which it
    has met an event that only newer members handle, the last position before it.
    """

    def __init__(
        self, wants: Wants | None, topics: Iterable[str], event_types: Iterable[str]
    ) -> None:
        self._wants = wants
        self._topics, self._types = frozenset(topics), frozenset(event_types)
        self._others: frozenset[Pair] = frozenset()
        self._read_others(frozenset() if wants is None else wants.others)
        self.generation: int | None = None if wants is None else wants.seen.number
        self.limits: dict[int, int] = {}

    def _read_others(self, others: frozenset[Pair]) -> None:
        self._others = others
        self.topics = sorted(self._topics | {topic for topic, _ in others})
        self.event_types = sorted(self._types | {kind for _, kind in others})

    def news(self) -> tuple[int, frozenset[Pair]] | None:
        """A generation that this consumer does not go by yet, and what only that handles."""
        if self._wants is None or self._wants.seen.number == self.generation:
            return None
        return self._wants.seen.number, self._wants.others

    def adopt(self, generation: int, others: frozenset[Pair], passed: Iterable[Message]) -> None:
        """Go by it from now on. passed: messages of these that were read and are not saved."""
        self._read_others(others)
        for message in passed:
            self._limit(message)
        self.generation = generation

    def look(self) -> None:
        """See what is new, after a position was refused."""
        if self._wants is not None:
            self._wants.look()

    def before(self, messages: Sequence[Message]) -> Sequence[Message]:
        """What may be handed out: all before the first that only others handle."""
        if self._others:
            for index, message in enumerate(messages):
                if self._limit(message):
                    return messages[:index]
        return messages

    def _limit(self, message: Message) -> bool:
        if (message.topic, message.event_type) not in self._others:
            return False
        last = message.position - 1
        self.limits[message.partition] = min(last, self.limits.get(message.partition, last))
        return True

    def capped(self, positions: Mapping[int, int]) -> dict[int, int]:
        """The positions that may be saved."""
        if not self.limits:
            return dict(positions)
        return {n: min(at, self.limits.get(n, at)) for n, at in positions.items()}

    def check(self) -> None:
        """Raises Outgrown where there is a limit."""
        if self.limits and self._wants is not None:
            raise self._wants.outgrown()
