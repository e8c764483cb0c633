"""How a store is doing, as plans that stay cheap however large its tables are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from retold.store.driver import Plan, Statement
from retold.store.moving import keeps_positions, positions

if TYPE_CHECKING:
    from retold.store.dialects import Dialect

COUNTED = 10_000
"""No more are counted of a partition: a lag of this is one of at least so many."""


@dataclass(frozen=True, slots=True)
class Size:
    """events: about how many, None where the database cannot tell yet. newest: the highest event id,
    empty where there is none."""

    events: int | None
    newest: str


@dataclass(frozen=True, slots=True)
class Lag:
    """How far a subscription is. waiting: events of any type behind its positions, at least so many.
    first: the lowest id of them. members: how many work it."""

    subscription: str
    waiting: int
    first: str | None
    members: int


@dataclass(frozen=True, slots=True)
class ParkedCount:
    """failed: events that were given up on. waiting: those behind them."""

    subscription: str
    failed: int
    waiting: int


def size(dialect: Dialect) -> Plan[Size]:
    table = {"postgres": (dialect.tables["events"],), "mysql": (dialect.bare("events"),)}
    about, newest = yield [
        Statement(dialect.queries["status_size"], table.get(dialect.name, ())),
        Statement(dialect.queries["status_newest"]),
    ]
    events = about.rows[0][0] if about.rows else None
    return Size(None if events is None else int(events), newest.rows[0][0] or "")


def parked_counts(dialect: Dialect) -> Plan[list[ParkedCount]]:
    (found,) = yield [Statement(dialect.queries["status_parked"])]
    return [ParkedCount(name, int(failed), int(behind)) for name, failed, behind in found.rows]


def lags(dialect: Dialect) -> Plan[list[Lag]]:
    """Of the subscriptions whose positions this database keeps."""
    if not (yield from keeps_positions(dialect)):
        return []
    sql = dialect.queries
    first = dict((yield from positions(dialect)))
    (shares,) = yield [Statement(sql["status_shares"])]
    if not shares.rows:
        return []
    one_log = dialect.name == "sqlite"
    counts = yield [
        Statement(sql["status_lag"], (*(() if one_log else (partition,)), position, COUNTED))
        for _, partition, position, _ in shares.rows
    ]
    unnumbered = 0
    if not one_log:
        (found,) = yield [Statement(sql["status_unnumbered"], (COUNTED,))]
        unnumbered = int(found.rows[0][0])
    waiting = dict.fromkeys(first, unnumbered)
    owners: dict[str, set[str]] = {name: set() for name in first}
    for (name, _, _, owner), count in zip(shares.rows, counts, strict=True):
        waiting[name] = waiting.get(name, unnumbered) + int(count.rows[0][0])
        if owner:
            owners.setdefault(name, set()).add(owner)
    return [
        Lag(name, waiting[name], first.get(name), len(owners[name] - {"imported"}))
        for name in waiting
    ]
