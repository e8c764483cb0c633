"""`retold export`: write a store into a file, as of one moment."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from retold.cli.export_file import (
    End,
    Event,
    Handled,
    Header,
    Parked,
    Position,
    Tally,
    Writer,
    check,
    read,
    stored,
)
from retold.cli.kept import Kept
from retold.cli.progress import Progress
from retold.cli.settings import add_database, open_store
from retold.errors import InvalidValue, UsageError
from retold.store.driver import drive
from retold.store.listing import Wanted, page_of
from retold.store.moving import handled_page, parked_rows, positions, view

if TYPE_CHECKING:
    import argparse

    from retold.store.connections import BlockingDriver
    from retold.store.driver import Plan


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "export",
        help="write a store into a file",
        description="Write all events as JSON Lines, with the keys of what was handled, parked "
        "events and the positions of subscriptions: the database as it was at one moment, whatever "
        "is written meanwhile. retold import reads it.",
        epilog="Exit codes: 0 the file is whole; 2 an error, or it was broken off: go on with "
        "--resume. The file holds personal data as it is stored.",
    )
    parser.add_argument("file", metavar="FILE", help="a new file; - is the standard output")
    add_database(parser)
    parser.add_argument(
        "--resume", action="store_true", help="go on with a file whose export was broken off"
    )
    parser.set_defaults(run=run)


def run(chosen: argparse.Namespace) -> int:
    with closing(open_store(chosen)) as store:
        if chosen.file == "-":
            if chosen.resume:
                raise UsageError("--resume goes on with a file. Name it")
            with closing(Kept()) as kept:
                end = _export(store.driver, "the output", Writer(sys.stdout.buffer), kept)
            print(_told(end), file=sys.stderr)
            return 0
        written = _into_file(store.driver, chosen.file, resume=chosen.resume)
    print(f"{chosen.file} is whole: nothing to do" if written is None else _told(written))
    return 0


def _told(end: End) -> str:
    return (
        f"exported {end.events:,} events, {end.handled:,} handled keys, {end.parked:,} parked "
        f"events, positions of {end.positions:,} subscriptions\nsha256 {end.sha256}"
    )


def _into_file(driver: BlockingDriver, name: str, *, resume: bool) -> End | None:
    """None where the file is whole already."""
    try:
        resume = resume and Path(name).exists()
        if resume and _is_whole(name):
            return None
        # Nobody else is to read what may be personal.
        flags = os.O_RDWR | (0 if resume else os.O_CREAT | os.O_EXCL)
        with os.fdopen(os.open(name, flags, 0o600), "r+b") as file, closing(Kept()) as kept:
            writer = _resumed(file, name, kept) if resume else Writer(file)
            end = _export(driver, name, writer, kept)
            os.fsync(file.fileno())
            return end
    except FileExistsError:
        raise InvalidValue(
            f"there is a file {name} already. Name another one, or go on with it by --resume"
        ) from None
    except BrokenPipeError:
        raise
    except OSError as error:
        raise InvalidValue(f"{name} cannot be written: {error.strerror}") from None


def _is_whole(name: str) -> bool:
    """Raises InvalidValue for a file that has an end, and is not sound."""
    with open(name, "rb") as file:
        if any(isinstance(line, End) for line, _ in read(file, name, broken_off=True)):
            file.seek(0)
            for _ in check(file, name):
                pass
            return True
    return False


def _resumed(file: BinaryIO, name: str, kept: Kept) -> Writer:
    """Keep the events of a file that was broken off. The rest is written anew: it has to be of the
    same moment as the last of the events."""
    size, events = 0, list[Event]()
    tally: Tally | None = None
    for line, tally in read(file, name, broken_off=True):  # noqa: B007
        if not isinstance(line, (Header, Event)):
            break
        size = file.tell()
        if isinstance(line, Event):
            events.append(line)
        if len(events) == 1000:
            kept.add(map(stored, events))
            events.clear()
    kept.add(map(stored, events))
    file.seek(size)
    file.truncate()
    return Writer(file, tally)


def _export(driver: BlockingDriver, name: str, writer: Writer, kept: Kept) -> End:
    dialect = driver.dialect
    progress = Progress("exported")
    with view(driver) as connection:
        run: Any = partial(drive, connection.execute)
        behind: str | None = ""
        while behind is not None:
            page = run(page_of(dialect, Wanted(), behind))
            # In the order of ids from the beginning, also when it goes on: transactions that were
            # open at the first try have brought ids before the last one in the file.
            writer.write([Event(*event) for event in kept.missing(page.events)])
            progress.show(writer.tally.counts["events"])
            behind = page.ahead
        kept.check(name)
        for keys in _pages(run, partial(handled_page, dialect)):
            writer.write([Handled(*key) for key in keys])
        for rows in _pages(run, partial(parked_rows, dialect)):
            writer.write([Parked(*row) for row in rows])
        writer.write([Position(name, first) for name, first in run(positions(dialect))])
    progress.end()
    return writer.end()


def _pages(run: Any, page_behind: Callable[[Any], Plan[list[Any]]]) -> Iterator[list[Any]]:
    last = None
    while rows := run(page_behind(last)):
        yield rows
        last = rows[-1]
