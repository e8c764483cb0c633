"""What a relay needs, as checks: what was found, and how to mend it.

`retold doctor` shows all of them. A relay looks at the same ones, and refuses to follow a log where
one has failed: each is written once, beside the part that depends on it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from retold.errors import (
    AccessDenied,
    LogUnsuitable,
    ReadOnlyStore,
    RelayStopped,
    SchemaForeign,
    SchemaMissing,
    StoreError,
)
from retold.store.driver import Statement
from retold.store.migrations import pending

if TYPE_CHECKING:
    from retold.store.dialects import Dialect
    from retold.store.driver import Plan

_CLOCKS_S = 1.0
_NOW = {
    "postgres": "SELECT extract(epoch FROM clock_timestamp())",
    "mysql": "SELECT UNIX_TIMESTAMP(SYSDATE(3))",
}


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at.

    found: what is so, in words that go on where `name` leaves off. mend: what to do about it, empty
    where all is well.
    """

    name: str
    outcome: Literal["ok", "warning", "failed"]
    found: str
    mend: str = ""


def ok(name: str, found: object) -> Check:
    return Check(name, "ok", str(found))


def warning(name: str, found: str, mend: str) -> Check:
    """The relay works, and something may happen that nobody wants."""
    return Check(name, "warning", found, mend)


def failed(name: str, found: str, mend: str) -> Check:
    """The relay does not work, or would lose events."""
    return Check(name, "failed", found, mend)


def require(checks: Iterable[Check], error: type[RelayStopped] = LogUnsuitable) -> None:
    """Raises the error for the first that failed."""
    for check in checks:
        if check.outcome == "failed":
            raise error(f"{check.name} {check.found}; {check.mend}")


def table_checks(dialect: Dialect, *, polling: bool) -> Plan[list[Check]]:
    """Whether the tables are there, and what a relay does with them is allowed."""
    migrate = "run: retold migrate --database URL" + (" --polling" if polling else "")
    sql = dialect.queries
    checks: list[Check] = []
    try:
        yield [Statement(sql["view_page"], ("", 1))]
        checks.append(ok("events", "can be read"))
    except SchemaMissing as error:
        # PostgreSQL shows where in the statement.
        reason = error.reason.partition(" LINE 1")[0]
        return [failed("events", f"cannot be read: {reason}", migrate)]
    except AccessDenied as error:
        grant = f"grant this user SELECT on {dialect.tables['events']}"
        return [failed("events", f"cannot be read: {error.reason}", grant)]
    checks.append((yield from _migrations(dialect, migrate, polling)))
    if polling:
        checks += yield from _polling(dialect, migrate)
    return checks


def _migrations(dialect: Dialect, migrate: str, polling: bool) -> Plan[Check]:
    try:
        behind = yield from pending(dialect)
    except (AccessDenied, SchemaForeign) as error:
        grant = f"grant this user SELECT on {dialect.tables['retold_migrations']}"
        return warning("migrations", f"cannot be looked at: {error.reason}", grant)
    if not behind:
        return ok("migrations", "are all applied")
    # A log can also be followed in a database that only Java's Eventuate has ever written.
    check = failed if polling else warning
    return check("migrations", f"are missing: {', '.join(behind)}", migrate)


def _polling(dialect: Dialect, migrate: str) -> Plan[list[Check]]:
    (found,) = yield [Statement(dialect.queries["polling_index_exists"])]
    checks = [polling_index(found.rows, migrate)]
    # An id that no event has.
    mark = Statement(dialect.queries["mark_published"], (dialect.many_ids([""]),))
    try:
        yield [mark]
        checks.append(ok("events.published", "can be changed"))
    except (AccessDenied, ReadOnlyStore) as error:
        grant = f"grant this user UPDATE (published) on {dialect.tables['events']}"
        checks.append(failed("events.published", f"cannot be changed: {error.reason}", grant))
    return checks


def polling_index(rows: Sequence[object], mend: str = "run: retold migrate --polling") -> Check:
    """rows: of the query polling_index_exists."""
    if rows:
        return ok("polling index", "is there")
    return failed("polling index", "on the events table is missing", mend)


def direct_check(direct: bool) -> Check:
    """direct: no pooler stands between us and the server, so the lock of a relay lasts."""
    if direct:
        return ok("connection", "is direct")
    return failed(
        "connection",
        "is not direct: a pooler stands in between",
        "give the relay a URL that leads to the server itself",
    )


def clock_checks(dialect: Dialect) -> Plan[list[Check]]:
    """This machine's clock beside the database's. None where they are the same."""
    if dialect.name not in _NOW:
        return []
    began = time.time()
    try:
        (found,) = yield [Statement(_NOW[dialect.name])]
    except StoreError as error:
        return [warning("clock", f"of the database cannot be read: {error.reason}", "look at it")]
    here = (began + time.time()) / 2
    return [clock(float(found.rows[0][0]) - here)]


def clock(ahead: float) -> Check:
    """ahead: how many seconds the database's clock is ahead of this machine's."""
    if abs(ahead) <= _CLOCKS_S:
        return ok("clock", f"differs from the database's by {abs(ahead):.1f} s")
    direction = "behind" if ahead > 0 else "ahead of"
    return warning(
        "clock",
        f"of this machine is {abs(ahead):.1f} s {direction} the database's, so lags are shown wrong "
        "and ids tell a wrong time",
        "let both follow the same time server",
    )
