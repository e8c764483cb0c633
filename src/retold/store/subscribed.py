"""The subscriptions of a store: how far they have come, and pausing them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from retold.store.dialects import Dialect
from retold.store.driver import Plan, Statement
from retold.store.generations import Missed, Pair, accept, decoded, missed, pause, positions
from retold.store.lag import COUNTED, lags, unnumbered


@dataclass(frozen=True, slots=True)
class Partition:
    """One partition of a subscription.

    position: everything up to it is handled. owner: the member that works it; None for nobody. lag:
    how many events of this subscription are behind the position, 10,000 at most.
    """

    number: int
    position: int
    owner: str | None
    lag: int


@dataclass(frozen=True, slots=True)
class Subscribed:
    """A subscription that has started once.

    generation: how often what it handles has changed. handles: entity type and event type of all
    that. paused_at: aware, UTC; None where it is not paused. offered: what a member handles that
    stands by, because it handles less. partitions: none where Kafka keeps the positions.
    unnumbered: events of this subscription that have no place in the log yet, 10,000 at most.
    parked: how many events are. missed: what it passed before it handled that.
    """

    name: str
    generation: int
    handles: frozenset[Pair]
    offered: frozenset[Pair] | None
    paused_at: datetime | None
    partitions: tuple[Partition, ...]
    unnumbered: int
    parked: int
    missed: tuple[Missed, ...]

    @property
    def lag(self) -> int:
        """How many events are not handled yet; see `lag_is_whole`."""
        return self.unnumbered + sum(partition.lag for partition in self.partitions)

    @property
    def lag_is_whole(self) -> bool:
        """Whether there are no more than that."""
        counted = (self.unnumbered, *(partition.lag for partition in self.partitions))
        return max(counted) < COUNTED

    @property
    def members(self) -> frozenset[str]:
        """Those that work a partition."""
        return frozenset(one.owner for one in self.partitions if one.owner is not None)


def subscribed(dialect: Dialect) -> Plan[list[Subscribed]]:
    """All subscriptions that have ever started, by name."""
    sql = dialect.queries
    found, counts = yield [Statement(sql["generation_list"]), Statement(sql["parked_counts"])]
    parked = {str(name): int(count) for name, count in counts.rows}
    listed: list[Subscribed] = []
    for name, number, wanted, offered, paused_at in found.rows:
        handles = decoded(wanted)
        places = yield from positions(sql, name)
        behind = yield from lags(dialect, [place[:2] for place in places], handles)
        shares = [Partition(*place, lag) for place, lag in zip(places, behind, strict=True)]
        waiting = (yield from unnumbered(dialect, handles)) if places else 0
        listed.append(
            Subscribed(
                name,
                number,
                handles,
                None if offered is None else decoded(offered),
                None if paused_at is None else datetime.fromtimestamp(paused_at / 1000, UTC),
                tuple(shares),
                waiting,
                parked.get(name, 0),
                tuple((yield from missed(sql, name))),
            )
        )
    return listed


class Subscriptions:
    """The subscriptions of a store. What is said here, every running member obeys within about a
    second."""

    def __init__(self, run: Callable[[Plan[Any]], Any], dialect: Dialect) -> None:
        self._run = run
        self._dialect = dialect

    def __iter__(self) -> Iterator[Subscribed]:
        """All that have ever started, by name."""
        found: list[Subscribed] = self._run(subscribed(self._dialect))
        return iter(found)

    def pause(self, name: str) -> None:
        """Begin no handler until `resume`. Partitions and positions stay. Raises NotSubscribed."""
        self._run(pause(self._dialect.queries, name, paused=True))

    def resume(self, name: str) -> None:
        """Go on. Raises NotSubscribed."""
        self._run(pause(self._dialect.queries, name, paused=False))

    def accept(self, name: str) -> list[Pair]:
        """Let members go on that stand by because they handle less than was handled before; entity
        and event types that nobody handles any more because of it.

        Raises NotSubscribed, NothingOffered.
        """
        left: list[Pair] = self._run(accept(self._dialect.queries, name))
        return left


class AsyncSubscriptions:
    """The same, awaited."""

    def __init__(self, run: Callable[[Plan[Any]], Awaitable[Any]], dialect: Dialect) -> None:
        self._run = run
        self._dialect = dialect

    async def __aiter__(self) -> AsyncIterator[Subscribed]:
        """As Subscriptions."""
        for one in await self._run(subscribed(self._dialect)):
            yield one

    async def pause(self, name: str) -> None:
        """As Subscriptions.pause."""
        await self._run(pause(self._dialect.queries, name, paused=True))

    async def resume(self, name: str) -> None:
        """As Subscriptions.resume."""
        await self._run(pause(self._dialect.queries, name, paused=False))

    async def accept(self, name: str) -> list[Pair]:
        """As Subscriptions.accept."""
        left: list[Pair] = await self._run(accept(self._dialect.queries, name))
        return left
