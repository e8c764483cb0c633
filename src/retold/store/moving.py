"""Moving a store to another database: what is read from the one and written to the other, as plans.

Events keep their ids, handled keys and parked events go along, and of each subscription the first
event it has not handled. Snapshots stay behind: they are never needed.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from retold.errors import StoreBusy, TransactionRolledBack, UsageError
from retold.store.driver import Plan, Statement, UniqueViolation, drive
from retold.store.listing import StoredEvent, events_with
from retold.store.migrations import columns_of_tables

if TYPE_CHECKING:
    from retold.store.connections import BlockingDriver, OwnConnection
    from retold.store.dialects import Dialect

_PAGE = 1000
_VIEWS = 100
_TRIES = 5
_FIRST = ("", "", "", "")


class HandledKey(NamedTuple):
    """A row of the table of handled keys; handled_at in milliseconds since the epoch."""

    entity_type: str
    entity_id: str
    key: str
    command: str
    update_id: str
    handled_at: int


class ParkedRow(NamedTuple):
    """A row of the table of parked events; parked_at in milliseconds since the epoch."""

    subscription: str
    entity_type: str
    entity_id: str
    event_id: str
    partition: int
    event_type: str
    data: str
    metadata: str | None
    error: str | None
    traceback: str | None
    attempts: int
    parked_at: int
    mark: str | None


# --- reading --------------------------------------------------------------------------------------


@contextmanager
def view(driver: BlockingDriver) -> Generator[OwnConnection]:
    """A connection that sees the database as of one moment, for the time of the block.

    MariaDB makes up what a view sees while others commit: it may hold an event and miss an earlier
    one of its entity. A view that is opened later holds that one too; so where both hold as many
    events, nothing is missing. Raises StoreBusy where that does not come about.
    """
    with ExitStack() as stack:
        seeing = stack.enter_context(driver.connection())
        if _is_mariadb(driver, seeing):
            later = stack.enter_context(driver.connection())
            for _ in range(_VIEWS):
                _begin_views(driver, seeing, later)
                counts = [drive(each.execute, count(driver.dialect)) for each in (seeing, later)]
                later.reset()
                if counts[0] == counts[1]:
                    break
                seeing.reset()
            else:
                raise StoreBusy(
                    "others commit all the time, and no whole view of the events could be had"
                )
        else:
            _begin_views(driver, seeing)
        yield seeing


def _begin_views(driver: BlockingDriver, *connections: OwnConnection) -> None:
    """Of several one begins right behind the other."""
    sql = driver.dialect.queries
    for part in (*sql["view_begin"].split(";"), sql["view_first"]):
        for connection in connections:
            connection.execute([Statement(part.strip())])


def _is_mariadb(driver: BlockingDriver, connection: OwnConnection) -> bool:
    sql = driver.dialect.queries.get("server_version")
    if sql is None:
        return False
    (found,) = connection.execute([Statement(sql)])
    return "MariaDB" in str(found.rows[0][0])


def count(dialect: Dialect) -> Plan[int]:
    """How many events there are, counted one by one."""
    rows = yield from _rows(dialect, "import_count")
    return int(rows[0][0])


def handled_page(dialect: Dialect, last: HandledKey | None) -> Plan[list[HandledKey]]:
    """The next page of handled keys; empty at the end."""
    type_, id, key = last[:3] if last else ("", "", "")
    at = (type_, type_, id, type_, id, key) if dialect.name == "mysql" else (type_, id, key)
    return [
        HandledKey(*row) for row in (yield from _rows(dialect, "import_handled_page", *at, _PAGE))
    ]


def parked_rows(dialect: Dialect, last: ParkedRow | None) -> Plan[list[ParkedRow]]:
    """The next page of parked events; empty at the end."""
    behind = last[:4] if last else _FIRST
    rows = yield from _rows(dialect, "parked_list", None, None, *behind, _PAGE)
    return [ParkedRow(*row) for row in rows]


def positions(dialect: Dialect) -> Plan[list[tuple[str, str | None]]]:
    """Of each subscription that this database keeps: the lowest id of an event not handled yet, None
    where all are. Those that consume from Kafka have their positions there."""
    if not (yield from keeps_positions(dialect)):
        return []
    rows = yield from _rows(dialect, "import_positions")
    waiting = None
    if "import_unnumbered" in dialect.queries:
        ((waiting,),) = yield from _rows(dialect, "import_unnumbered")
    return [(name, min(filter(None, (first, waiting)), default=None)) for name, first in rows]


def keeps_positions(dialect: Dialect) -> Plan[bool]:
    """Whether subscriptions can have their positions in this database."""
    if dialect.name == "sqlite":
        return True
    found = yield from columns_of_tables(dialect)
    return dialect.bare("subscriptions").lower() in found and dialect.bare("numbering") in found


# --- writing --------------------------------------------------------------------------------------


def existing(dialect: Dialect, ids: Sequence[str]) -> Plan[int]:
    """How many of these events are there."""
    rows = yield from _rows(dialect, "existing", dialect.many_ids(list(ids)))
    return len(rows)


def put_events(dialect: Dialect, events: Sequence[StoredEvent]) -> Plan[int]:
    """Store those that are not there, and read them back; how many were stored.

    Raises UsageError where an event is there that is not the same, and where what is read back is
    not what was written.
    """
    sql = dialect.queries
    for _ in range(_TRIES):
        present = yield from _present(dialect, events)
        _check_same([event for event in events if event.id in present], present)
        missing = [event for event in events if event.id not in present]
        if not missing:
            return 0
        versions = {(event.entity_type, event.entity_id): event.id for event in missing}
        try:
            yield [
                Statement(sql["begin"]),
                *_inserts(dialect, "import_event", missing),
                *_inserts(
                    dialect, "import_entity", [(*key, id) for key, id in sorted(versions.items())]
                ),
                Statement(sql["commit"]),
            ]
        except (UniqueViolation, TransactionRolledBack):
            # Another import; or what one that was killed had sent is stored by the server only now.
            yield [Statement(sql["rollback"])]
        else:
            _check_same(missing, (yield from _present(dialect, missing)))
            return len(missing)
    raise UsageError(
        "somebody else writes to this database. Stop them, then import again: what is there "
        "already is left as it is"
    )


def _present(dialect: Dialect, events: Sequence[StoredEvent]) -> Plan[dict[str, StoredEvent]]:
    found = yield from events_with(dialect, [event.id for event in events])
    return {event.id: event for event in found}


def _check_same(events: Iterable[StoredEvent], found: dict[str, StoredEvent]) -> None:
    for event in events:
        if found.get(event.id) != event:
            raise UsageError(
                f"event {event.id} of {event.entity_type} {event.entity_id!r} is not in this "
                "database as it is in the file. Import into an empty database"
            )


def put_handled(dialect: Dialect, keys: Sequence[HandledKey]) -> Plan[None]:
    """Keep the keys that are not there."""
    yield from _put(dialect, "import_handled", keys)


def put_parked(dialect: Dialect, rows: Sequence[ParkedRow]) -> Plan[None]:
    """Park the events that are not."""
    yield from _put(dialect, "import_parked", rows)


def at_work(dialect: Dialect, subscription: str) -> Plan[bool]:
    """Whether a subscription has run on this database: its position and its parked events are its
    own then."""
    rows = yield from _rows(dialect, "import_at_work", subscription)
    return bool(rows[0][0])


def put_position(dialect: Dialect, subscription: str, partitions: int, position: int) -> Plan[None]:
    """Let a subscription begin behind a position, unless it has run here."""
    sql = dialect.queries
    of_each = [(subscription, n) for n in range(partitions)]
    yield [
        Statement(sql["begin"]),
        *(Statement(sql["import_position"], (*at, position)) for at in of_each),
        *(Statement(sql["import_position_on"], (position, *at)) for at in of_each),
        Statement(sql["commit"]),
    ]


def _put(dialect: Dialect, query: str, rows: Sequence[Sequence[object]]) -> Plan[None]:
    if not rows:
        return
    sql = dialect.queries
    yield [
        Statement(sql["begin"]),
        *_inserts(dialect, query, rows),
        Statement(sql["commit"]),
    ]


def _inserts(dialect: Dialect, query: str, rows: Sequence[Sequence[object]]) -> Iterator[Statement]:
    """A statement for each row, or one for all where the database takes columns."""
    sql = dialect.queries
    if many := sql.get(f"{query}_many"):
        yield Statement(many, [list(column) for column in zip(*rows, strict=True)])
    else:
        yield from (Statement(sql[query], row) for row in rows)


def _rows(dialect: Dialect, query: str, *params: object) -> Plan[Sequence[Sequence[Any]]]:
    (found,) = yield [Statement(dialect.queries[query], params)]
    return found.rows
