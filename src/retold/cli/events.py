"""`retold events`: list the events of a store, and follow them."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from retold.brokers.following import follow
from retold.cli.apps import add_app, codec_of
from retold.cli.settings import add_database, open_store
from retold.cli.showing import (
    AS_STORED,
    entity_named,
    fields_of,
    first_id_of,
    in_words,
    note,
    print_json,
    print_line,
    time_of,
)
from retold.errors import InvalidValue, RetoldError, UsageError
from retold.store.listing import END, StoredEvent, Wanted, page_of, place_of_last

if TYPE_CHECKING:
    import argparse

    from retold.codecs import Codec
    from retold.store.connections import BlockingDriver

_FOLLOWED_FIRST = 10
_LATE_S = 60.0
_PAUSE_S, _LONG_PAUSE_S = 0.2, 2.0


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "events",
        help="list what is stored, or follow it",
        description="List events, the newest last, in the order of their ids, which is nearly that "
        "of time. With --follow go on with what is committed from now on.",
        epilog="Exit codes: 0 listed; 2 an error; 130 after Ctrl-C, which is how --follow ends.",
    )
    add_database(parser)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--type", metavar="TYPE", help="only of entities of this type")
    which.add_argument("--entity", metavar="TYPE/ID", help="only of this entity")
    parser.add_argument(
        "--event",
        action="append",
        default=[],
        metavar="TYPE",
        help="only events of this type; may be repeated",
    )
    parser.add_argument("--since", metavar="TIME", help="leave out older events (ISO 8601, UTC)")
    parser.add_argument("--until", metavar="TIME", help="leave out events of this time and later")
    parser.add_argument("--last", metavar="N", help="only the last N of them")
    parser.add_argument(
        "--follow",
        "-f",
        action="store_true",
        help=f"go on with new events; begin with the last {_FOLLOWED_FIRST} unless --last or --since",
    )
    parser.add_argument(
        "--late",
        metavar="S",
        help="with --follow on a server's database without the log of `retold migrate "
        "--subscriptions`: how many seconds after its time an event may be committed and is still "
        f"shown; default {_LATE_S:g}",
    )
    add_app(parser, "which masks personal fields")
    parser.add_argument("--json", action="store_true", help="print JSON Lines")
    parser.set_defaults(run=run)


def run(chosen: argparse.Namespace) -> int:
    wanted, last = _wanted(chosen), _number("--last", chosen.last)
    if chosen.follow and last is None and not chosen.since:
        last = _FOLLOWED_FIRST
    late = _number("--late", chosen.late)
    codec = codec_of(chosen.app)
    if codec is None:
        note(AS_STORED)
    store = open_store(chosen)
    try:
        if chosen.follow:
            late_s = _LATE_S if late is None else float(late)
            found = _followed(store.driver, wanted, last, late_s)
        else:
            found = _listed(store.driver, wanted, last)
        for event in found:
            if chosen.json:
                print_json(codec, fields_of(codec, event))
            else:
                print_line(_line(codec, event))
    finally:
        store.close()
    return 0


def _wanted(chosen: argparse.Namespace) -> Wanted:
    if chosen.follow and chosen.until:
        raise UsageError("--follow has no end. Leave out --until")
    entity_type, entity_id = chosen.type or "", ""
    if chosen.entity:
        entity_type, entity_id = entity_named(chosen.entity)
    return Wanted(
        entity_type,
        entity_id,
        frozenset(chosen.event),
        after=first_id_of("--since", chosen.since) if chosen.since else "",
        before=first_id_of("--until", chosen.until) if chosen.until else END,
    )


def _number(option: str, text: str | None) -> int | None:
    if text is None:
        return None
    if not text.isdecimal():
        raise InvalidValue(f"{option} is a number, not {text!r}")
    return int(text)


def _listed(driver: BlockingDriver, wanted: Wanted, last: int | None) -> Iterator[StoredEvent]:
    behind = "" if last is None else driver.run(place_of_last(driver.dialect, wanted, last))
    while True:
        page = driver.run(page_of(driver.dialect, wanted, behind))
        yield from page.events
        if page.ahead is None:
            return
        behind = page.ahead


def _followed(
    driver: BlockingDriver, wanted: Wanted, last: int | None, late_s: float
) -> Iterator[StoredEvent]:
    follower = follow(driver, wanted, last, late_s)
    if not follower.complete:
        print(
            f"note: this database keeps no log, so an event committed more than {late_s:g} s after "
            "the time in its id is not shown. `retold migrate --subscriptions` makes a log that "
            "misses none",
            file=sys.stderr,
            flush=True,
        )
    away = False
    while True:
        try:
            events = follower.look()
        except RetoldError as error:
            if not error.retriable:
                raise
            if not away:
                print(f"waiting: {error}", file=sys.stderr, flush=True)
            away = True
            time.sleep(_LONG_PAUSE_S)
            continue
        away = False
        yield from filter(wanted.holds, events)
        sys.stdout.flush()
        if not events:
            time.sleep(_PAUSE_S)


def _line(codec: Codec | None, event: StoredEvent) -> str:
    return f"{time_of(event)} {event.entity_type}/{event.entity_id} {in_words(codec, event)}"
