"""The step of the schema that lets a server's database be its own broker.

It is no numbered step, because every append pays for its trigger, and only subscriptions want it.
The counter's row is made last: while it is not there, nobody numbers, so that of what is put in
here nothing can have been numbered yet, and a step that was broken off begins again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from retold.errors import SchemaForeign
from retold.store.dialects import Dialect
from retold.store.driver import Plan, Statement
from retold.store.migrations import collation, columns_of_tables

PARTITIONS = 16
"""How many members a subscription can have at work at once; kept with the counter."""
_PAGE = 5000
_AT_WORK = 1
"""The counter's id where it is not paused."""
_COLUMNS = {
    "unnumbered_events": {"event_id"},
    "event_log": {"position", "partition", "event_id"},
    "subscriptions": {"name", "partition", "position", "owner"},
    "subscribers": {"name", "member", "lease_until"},
    "numbering": {"id", "last_position", "partitions"},
}


def install(dialect: Dialect) -> Plan[list[str]]:
    """Make the tables and the trigger, and note the events there are; what was made.

    Waits for the transactions that write events, and they for it.
    """
    sql = dialect.queries
    if dialect.name == "sqlite":
        return []  # its events table is a log
    yield from _check_free(dialect)
    if dialect.name == "postgres":
        return (yield from _install_postgres(dialect))
    yield [Statement(part) for part in sql["migrations_begin"].split(";")]
    try:
        done = yield from _install_mysql(dialect)
    finally:
        yield [Statement(sql["migrations_end"])]
    return done


def _check_free(dialect: Dialect) -> Plan[None]:
    """Raises SchemaForeign where a table of one of these names is somebody else's."""
    found = yield from columns_of_tables(dialect)
    for name, columns in _COLUMNS.items():
        if not columns <= found.get(dialect.bare(name).lower(), columns):
            raise SchemaForeign(repr(dialect.bare(name)))


_DONE = ["the log for subscriptions"]


_MENDED = ["the trigger of the log for subscriptions"]


def _make(dialect: Dialect, **names: str) -> Iterator[Statement]:
    blocks = [block for block in dialect.queries if block.startswith("make_")]
    return _filled(dialect, blocks, **names)


def _filled(dialect: Dialect, blocks: Iterable[str], **names: str) -> Iterator[Statement]:
    for block in blocks:
        sql = dialect.queries[block]
        for name, value in names.items():
            sql = sql.replace(f"@{name}@", value)
        yield Statement(sql)


def _install_postgres(dialect: Dialect) -> Plan[list[str]]:
    sql = dialect.queries
    guard = [Statement(part) for part in sql["broker_guard"].split(";")]
    commit = Statement(sql["commit"])
    home, exists = (yield [*guard, Statement(sql["broker_home"]), Statement(sql["broker_exists"])])[
        -2:
    ]
    if not exists.rows[0][0]:
        yield list(_make(dialect, home=str(home.rows[0][0])))
    yield [commit]
    behind = ""
    while True:
        # The lock is the transaction's, as a pooler wants it, so each page looks anew.
        counter = (yield [*guard, Statement(sql["broker_counter"])])[-1]
        if counter.rows:
            mended = yield from _mend_postgres(dialect, str(home.rows[0][0]))
            yield [commit]
            return mended if exists.rows[0][0] and not behind else _DONE
        (page,) = yield [Statement(sql["broker_fill"], (behind, _PAGE))]
        if page.rows[0][0] is None:
            yield [Statement(sql["broker_ready"], (PARTITIONS,)), commit]
            return _DONE
        yield [commit]
        behind = page.rows[0][0]


def _mend_postgres(dialect: Dialect, home: str) -> Plan[list[str]]:
    """Make the trigger anew, where it is gone or disabled, and note what it missed.

    In the caller's transaction: writers wait meanwhile, and nobody sees a part of it, so that no
    later event of an entity is numbered before one that was missed.
    """
    (exists,) = yield [Statement(dialect.queries["broker_trigger_exists"])]
    if exists.rows[0][0]:
        return []
    blocks = ["broker_drop_trigger", "broker_drop_function", "make_note_event", "make_trigger"]
    yield [*_filled(dialect, blocks, home=home), Statement(dialect.queries["broker_fill_missing"])]
    return _MENDED


def _install_mysql(dialect: Dialect) -> Plan[list[str]]:
    sql = dialect.queries
    yield list(_make(dialect, collation=(yield from collation(dialect))))
    trigger, counter = yield [
        Statement(sql["broker_trigger_exists"]),
        Statement(sql["broker_counter"]),
    ]
    if trigger.rows and counter.rows and counter.rows[0][0] == _AT_WORK:
        return []
    if counter.rows:
        # The trigger was lost. What it missed is noted before anything more is numbered, so that no
        # later event of an entity is numbered before it.
        yield [Statement(sql["broker_pause"])]
    if not trigger.rows:
        yield [Statement(sql["broker_wait"])]
        yield [Statement(sql["broker_trigger"])]
    if counter.rows:
        yield [Statement(sql["broker_fill_missing"])]
        yield [Statement(sql["broker_resume"])]
        return _MENDED
    behind = ""
    while True:
        (page,) = yield [Statement(sql["broker_page"], (behind, _PAGE))]
        if (end := page.rows[0][0]) is None:
            yield [Statement(sql["broker_ready"], (PARTITIONS,))]
            return _DONE
        yield [Statement(sql["broker_fill"], (behind, end))]
        behind = end
