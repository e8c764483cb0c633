"""Exchanging the tables of a projection for new ones, as plans.

The new tables stand beside the old ones under names of their own. In one transaction the members
lose their places, the tables change names, and the new ones' positions become the projection's.
MySQL commits at every change of a table, so there a mark stands meanwhile that keeps everybody away,
and whoever rebuilds next finishes what was broken off: all tables change names in one statement,
and what they are called tells whether it was run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from retold.errors import SchemaMissing, StoreBusy, UsageError
from retold.store.dialects import Dialect
from retold.store.driver import Plan, Statement
from retold.store.projections import OWN, SWITCHING

_REBUILDING = "rebuild/"


@dataclass(frozen=True, slots=True)
class Exchange:
    """name: of the projection. build: under which the new tables' positions are. token: of whoever
    rebuilds. generation: of the old tables."""

    name: str
    build: str
    tables: Sequence[str]
    token: str
    generation: int

    @property
    def suffix(self) -> str:
        """Of the new tables; never the same twice, since what belongs to a table keeps its name."""
        return f"__{self.generation + 1}"


def begin_rebuild(
    sql: Mapping[str, str], name: str, build: str, token: str
) -> Plan[tuple[int, bool]]:
    """Note that somebody rebuilds, and forget what was built before; the generation of the tables,
    and whether an exchange was broken off."""
    own = (name, OWN)
    (found,) = yield [Statement(sql["projection"], own)]
    if not found.rows:
        yield [Statement(sql["projection_begin"], (*own, 0))]
    _, state = yield [Statement(sql["begin"]), Statement(sql["projection_locked"], own)]
    generation, owner = state.rows[0]
    broken_off = (owner or "").startswith(SWITCHING)
    mark = (SWITCHING if broken_off else _REBUILDING) + token
    forget = (
        []
        if broken_off
        else [
            Statement(sql["projection_forget"], (build,)),
            Statement(sql["projection_seen_forget"], (build,)),
            Statement(sql["projection_parked_forget"], (build,)),
        ]
    )
    yield [*forget, Statement(sql["projection_take"], (mark, *own)), Statement(sql["commit"])]
    return int(generation), broken_off


def give_up(sql: Mapping[str, str], exchange: Exchange) -> Plan[None]:
    """Take the note away."""
    own = (exchange.name, OWN)
    _, state = yield [Statement(sql["begin"]), Statement(sql["projection_locked"], own)]
    mine = state.rows and state.rows[0][1] == _REBUILDING + exchange.token
    done = [Statement(sql["projection_take"], (None, *own))] if mine else []
    yield [*done, Statement(sql["commit"])]


def drop_tables(tables: Sequence[str]) -> Plan[None]:
    for table in tables:
        yield [Statement(f"DROP TABLE IF EXISTS {table}")]


def are_there(tables: Sequence[str]) -> Plan[bool]:
    for table in tables:
        yield [Statement(f"SELECT 1 FROM {table} WHERE 1 = 0")]
    return True


def lock(dialect: Dialect, exchange: Exchange) -> Plan[None]:
    """Begin the exchange: wait for members and appends, and keep them away from now on.

    Raises UsageError where somebody else rebuilds.
    """
    sql, own = dialect.queries, (exchange.name, OWN)
    _, state = yield [Statement(sql["begin"]), Statement(sql["projection_locked"], own)]
    if state.rows[0][1] != _REBUILDING + exchange.token:
        raise UsageError(f"somebody else began to rebuild projection {exchange.name!r} meanwhile")
    yield [Statement(sql["projection_release"], (exchange.name,))]


def exchange(
    dialect: Dialect, plan: Exchange, last: Callable[[], Plan[bool]] | None = None
) -> Plan[bool]:
    """Lock and exchange. last: what is to be done in between; if False, the exchange is not."""
    sql = dialect.queries
    yield from lock(dialect, plan)
    if last is not None and not (yield from last()):
        yield [Statement(sql["rollback"])]
        return False
    yield from exchange_locked(dialect, plan)
    return True


def exchange_locked(dialect: Dialect, plan: Exchange) -> Plan[None]:
    """The exchange, when it is locked."""
    sql, own = dialect.queries, (plan.name, OWN)
    if dialect.name == "mysql":
        mark = Statement(sql["projection_take"], (SWITCHING + plan.token, *own))
        yield [mark, Statement(sql["commit"])]
        yield from finish(dialect, plan)
        return
    for table in plan.tables:
        yield [
            Statement(f"DROP TABLE IF EXISTS {table}__old"),
            Statement(f"ALTER TABLE {table} RENAME TO {table}__old"),
            Statement(f"ALTER TABLE {table}{plan.suffix} RENAME TO {table}"),
            Statement(f"DROP TABLE {table}__old"),
        ]
    yield [*_adopt(sql, plan), Statement(sql["commit"])]


def finish(dialect: Dialect, plan: Exchange) -> Plan[None]:
    """On MySQL: what follows the mark, also where it was broken off before."""
    sql = dialect.queries
    new = [table + plan.suffix for table in plan.tables]
    try:
        there = yield from are_there(new)
    except SchemaMissing:
        there = False
    if there:
        yield from drop_tables([f"{table}__old" for table in plan.tables])
        renamed = ", ".join(
            f"{table} TO {table}__old, {table}{plan.suffix} TO {table}" for table in plan.tables
        )
        yield [Statement(f"RENAME TABLE {renamed}")]
    yield [Statement(sql["begin"]), *_adopt(sql, plan), Statement(sql["commit"])]
    yield from drop_tables([f"{table}__old" for table in plan.tables])


def _adopt(sql: Mapping[str, str], plan: Exchange) -> list[Statement]:
    """Positions, versions and parked events of the new tables become the projection's."""
    name, build = plan.name, plan.build
    return [
        Statement(sql["projection_forget"], (name,)),
        Statement(sql["projection_seen_forget"], (name,)),
        Statement(sql["projection_parked_forget"], (name,)),
        Statement(sql["projection_rename"], (name, build)),
        Statement(sql["projection_seen_rename"], (name, build)),
        Statement(sql["projection_parked_rename"], (name, build)),
        Statement(sql["projection_forget"], (build,)),
        Statement(sql["projection_generation"], (plan.generation + 1, name)),
    ]


def empty(sql: Mapping[str, str], name: str, tables: Sequence[str]) -> Plan[None]:
    """Empty the tables and forget how far they have come, in one transaction."""
    own = (name, OWN)
    _, state = yield [Statement(sql["begin"]), Statement(sql["projection_locked"], own)]
    if state.rows and (state.rows[0][1] or "").startswith(SWITCHING):
        raise StoreBusy(f"the tables of projection {name!r} are being exchanged")
    yield [
        Statement(sql["projection_forget"], (name,)),
        *(Statement(f"DELETE FROM {table}") for table in tables),
        Statement(sql["projection_seen_forget"], (name,)),
        Statement(sql["projection_parked_forget"], (name,)),
        Statement(sql["commit"]),
    ]


def forget_subscription(sql: Mapping[str, str], name: str) -> Plan[None]:
    yield [Statement(sql["projection_forget_subscription"], (name,))]


def check_rebuildable(name: str, tables: Sequence[str], makes_tables: bool) -> None:
    """Raises UsageError."""
    if not tables:
        raise UsageError(
            f"projection {name!r} does not say which tables it keeps: name them in tables="
        )
    if not makes_tables:
        raise UsageError(
            f"nobody makes new tables of projection {name!r}: register a function by @….setup"
        )
