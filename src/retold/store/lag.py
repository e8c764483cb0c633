"""Counting events in the log of a database: those not handled yet, and those that were missed."""

from __future__ import annotations

from collections.abc import Iterable

from retold.store.dialects import Dialect
from retold.store.driver import Plan, Statement
from retold.store.generations import Missed, Pair

COUNTED = 10_000
"""No more are counted of a partition: a lag of this is one of at least so many."""
_LOOKED_THROUGH = 100_000
_END = (1 << 63) - 1


def _count(
    dialect: Dialect, partition: int, behind: int, until: int, pairs: Iterable[Pair], limit: int
) -> Statement:
    pairs = list(pairs)
    many = dialect.many_ids
    topics, kinds = sorted({topic for topic, _ in pairs}), sorted({kind for _, kind in pairs})
    return Statement(
        dialect.queries["log_count"], (partition, behind, until, many(topics), many(kinds), limit)
    )


def lags(
    dialect: Dialect, places: Iterable[tuple[int, int]], pairs: Iterable[Pair]
) -> Plan[list[int]]:
    """How many events of these are behind each (partition, position), COUNTED at most."""
    pairs = list(pairs)
    counts = yield [_count(dialect, *place, _END, pairs, COUNTED) for place in places]
    return [count.rows[0][0] for count in counts]


def unnumbered(dialect: Dialect, pairs: Iterable[Pair]) -> Plan[int]:
    """How many of these have no place in the log yet, COUNTED at most."""
    if "unnumbered_count" not in dialect.queries:
        return 0
    topics, kinds = zip(*pairs, strict=True)
    many = dialect.many_ids
    params = (many(sorted(set(topics))), many(sorted(set(kinds))), COUNTED)
    (found,) = yield [Statement(dialect.queries["unnumbered_count"], params)]
    return int(found.rows[0][0])


def count_missed(dialect: Dialect, row: Missed) -> Plan[tuple[int, bool]]:
    """How many events were missed of a name, and whether that is all: only the last part of what was
    passed is looked through."""
    batch, whole = list[Statement](), True
    for name, end in (row.up_to or {}).items():
        floor = (row.behind or {}).get(name, 0)
        begin = max(floor, end - _LOOKED_THROUGH)
        whole = whole and begin == floor
        batch.append(_count(dialect, int(name), begin, end, [row.pair], _LOOKED_THROUGH))
    counts = yield batch
    return sum(count.rows[0][0] for count in counts), whole
