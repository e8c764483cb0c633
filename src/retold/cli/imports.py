"""`retold import`: bring an exported store into another database."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, cast

from retold.brokers.numbered_log import log_state, number, partition_of
from retold.cli.export_file import (
    End,
    Event,
    Handled,
    Line,
    Parked,
    Position,
    check,
    handled,
    parked,
    stored,
)
from retold.cli.progress import Progress
from retold.cli.settings import add_database, open_store
from retold.errors import InvalidValue, UsageError
from retold.store.driver import Plan, Statement
from retold.store.moving import (
    at_work,
    count,
    existing,
    keeps_positions,
    put_events,
    put_handled,
    put_parked,
    put_position,
)

if TYPE_CHECKING:
    import argparse

    from retold.store.connections import BlockingDriver
    from retold.store.dialects import Dialect

_BATCH_ROWS, _BATCH_BYTES = 500, 1_000_000


class _Found(NamedTuple):
    """What a file holds, and how many of its events the database has."""

    end: End
    positions: list[Position]
    present: int


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "import",
        help="bring an exported store into a database",
        description="Import what retold export wrote into a database that holds nothing else. The "
        "file is proved whole before anything is written, and every event is read back. Repeating "
        "it does no harm: it goes on where it was broken off.",
        epilog="Exit codes: 0 all of the file is in the database; 2 an error. From the standard "
        "input the file is kept in the folder for temporary files meanwhile.",
    )
    parser.add_argument("file", metavar="FILE", help="the file; - is the standard input")
    add_database(parser)
    parser.add_argument(
        "--check", action="store_true", help="only prove the file whole; needs no database"
    )
    parser.add_argument(
        "--no-positions",
        action="store_true",
        help="leave out the positions of subscriptions: they consume from Kafka, or begin anew",
    )
    parser.set_defaults(run=run)


def run(chosen: argparse.Namespace) -> int:
    with ExitStack() as stack:
        file = _opened(chosen.file, stack)
        if chosen.check:
            print(f"the file is whole: {_told(_survey(file, chosen.file, None).end)}")
            return 0
        store = stack.enter_context(closing(open_store(chosen, makes_file=True)))
        store.driver.open()
        print(_import(file, chosen.file, store.driver, positions=not chosen.no_positions))
    return 0


def _opened(name: str, stack: ExitStack) -> BinaryIO:
    if name == "-":
        spool = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
        shutil.copyfileobj(sys.stdin.buffer, spool, 1 << 20)
        return cast("BinaryIO", spool)
    try:
        return stack.enter_context(open(name, "rb"))
    except OSError as error:
        raise InvalidValue(f"{name} cannot be read: {error.strerror}") from None


def _told(end: End) -> str:
    return (
        f"{end.events:,} events, {end.handled:,} handled keys, {end.parked:,} parked events, "
        f"positions of {end.positions:,} subscriptions, sha256 {end.sha256}"
    )


def _import(file: BinaryIO, name: str, driver: BlockingDriver, *, positions: bool) -> str:
    dialect = driver.dialect
    # In this order: what an import that was killed had sent may still be stored meanwhile.
    total = driver.run(count(dialect))
    found = _survey(file, name, driver)
    end = found.end
    if total > found.present:
        more = f"{total - found.present:,} events that {name} does not hold"
        if found.present == end.events:
            return f"nothing to do: all {end.events:,} events are there already, and {more}"
        raise UsageError(
            f"the database holds {more}. Nothing was imported: export again, or import into a "
            "database of its own"
        )
    keeps = driver.run(keeps_positions(dialect))
    if found.positions and positions and not keeps:
        raise UsageError(
            "this database keeps no positions of subscriptions. Run retold migrate --subscriptions "
            "first; or, if they consume from Kafka, say --no-positions"
        )
    partitions = _partitions(driver) if keeps else 0
    own = {
        subscription
        for subscription in {position.subscription for position in found.positions}
        if keeps and driver.run(at_work(dialect, subscription))
    }
    progress = Progress("imported")
    done = imported = 0
    for kind, lines in _batches(file, name):
        if kind is Event:
            imported += driver.run(put_events(dialect, [stored(line) for line in lines]))
            done += len(lines)
            progress.show(done, end.events)
        elif kind is Handled:
            driver.run(put_handled(dialect, [handled(line) for line in lines]))
        elif kind is Parked:
            rows = [parked(line) for line in lines if line.subscription not in own]
            if keeps:
                rows = [r._replace(partition=partition_of(r.entity_id, partitions)) for r in rows]
            driver.run(put_parked(dialect, rows))
    progress.end()
    if (total := driver.run(count(dialect))) != end.events:
        raise UsageError(
            f"the database holds {total:,} events now and the file {end.events:,}: somebody else "
            "writes there. Stop them, and import into an empty database"
        )
    if positions and keeps:
        for position in found.positions:
            at = driver.run(_position(dialect, position.first))
            driver.run(put_position(dialect, position.subscription, partitions, at))
    return f"imported {imported:,} events. The database holds all of the file: {_told(end)}"


def _survey(file: BinaryIO, name: str, driver: BlockingDriver | None) -> _Found:
    """Prove the file whole, and look which of its events the database has."""
    positions: list[Position] = []
    ids: list[str] = []
    present, checked = 0, 0
    end = End(0, 0, 0, 0, "")
    progress = Progress("checked")

    def looked_up() -> int:
        found = driver.run(existing(driver.dialect, ids)) if driver is not None and ids else 0
        ids.clear()
        return found

    file.seek(0)
    for line in check(file, name):
        if isinstance(line, Event):
            ids.append(line.id)
            checked += 1
            if len(ids) == 1000:
                present += looked_up()
                progress.show(checked)
        elif isinstance(line, Position):
            positions.append(line)
        elif isinstance(line, End):
            end = line
    progress.end()
    return _Found(end, positions, present + looked_up())


def _batches(file: BinaryIO, name: str) -> Iterator[tuple[type[Line], list[Any]]]:
    """The lines again, several of a kind at once, in their order."""
    lines: list[Any] = []
    size = 0
    file.seek(0)
    for line in check(file, name):
        weight = len(line.data) if isinstance(line, (Event, Parked)) else 100
        if lines and (
            type(line) is not type(lines[0])
            or len(lines) == _BATCH_ROWS
            or size + weight > _BATCH_BYTES
        ):
            yield type(lines[0]), lines
            lines, size = [], 0
        lines.append(line)
        size += weight
    if lines:
        yield type(lines[0]), lines


def _partitions(driver: BlockingDriver) -> int:
    if driver.dialect.name == "sqlite":
        return 1
    return driver.run(log_state(driver.dialect.queries)).partitions


def _position(dialect: Dialect, first: str | None) -> Plan[int]:
    """Behind which position the event `first` and all later ones are; without one, the end."""
    sql = dialect.queries
    if "log_end" in sql:
        (found,) = yield [Statement(sql["log_end"])]
        end = int(found.rows[0][0])
    else:
        while (numbered := (yield from number(sql))).more:
            pass
        end = numbered.end
    if first is None:
        return end
    (found,) = yield [Statement(sql["log_position_at"], (first,))]
    position = found.rows[0][0]
    return end if position is None else int(position)
