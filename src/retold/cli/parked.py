"""`retold parked`: events that subscriptions gave up on."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING

import msgspec

from retold.cli.settings import add_database, open_store
from retold.errors import NotParked, UsageError
from retold.store.parked import ParkedEvent

if TYPE_CHECKING:
    import argparse

    from retold.store.event_store import EventStore


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "parked",
        help="events that subscriptions gave up on",
        description="See the events that subscriptions gave up on, and say what becomes of them.",
        epilog="A retry or skip is done by the running member that owns the entity's partition.",
    )
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    listing = verbs.add_parser("list", help="what is parked; exit 1 when there is something")
    listing.add_argument("--subscription", metavar="NAME", help="only of this one")
    show = verbs.add_parser("show", help="one event, with the error and its traceback")
    retry = verbs.add_parser("retry", help="try a failed event again, or with --all every one")
    skip = verbs.add_parser("skip", help="never handle an event; what waits behind it follows")
    for verb in (show, retry, skip):
        verb.add_argument("subscription", metavar="SUBSCRIPTION")
    for verb in (show, skip):
        verb.add_argument("event", metavar="EVENT_ID")
    retry.add_argument("event", metavar="EVENT_ID", nargs="?")
    retry.add_argument("--all", action="store_true", help="every event that failed")
    for verb, act in ((listing, _list), (show, _show), (retry, _retry), (skip, _skip)):
        add_database(verb)
        verb.add_argument("--json", action="store_true", help="print JSON")
        verb.set_defaults(run=run, act=act)


def run(chosen: argparse.Namespace) -> int:
    store = open_store(chosen)
    try:
        code: int = chosen.act(store, chosen)
    finally:
        store.close()
    return code


def _list(store: EventStore, chosen: argparse.Namespace) -> int:
    found = list(store.parked(chosen.subscription))
    if chosen.json:
        _print_json([_fields(event) for event in found])
    else:
        for event in found:
            print(_line(event))
        waiting = sum(event.waits for event in found)
        print(f"{len(found) - waiting} failed, {waiting} waiting behind them")
    return 1 if found else 0


def _show(store: EventStore, chosen: argparse.Namespace) -> int:
    event = _found(store.parked(chosen.subscription), chosen)
    if chosen.json:
        _print_json(_fields(event))
        return 0
    for name, value in _fields(event).items():
        if name != "traceback":
            print(f"{name}: {value}")
    print(event.traceback or "it was not tried: it waits behind another event of its entity")
    return 0


def _found(events: Iterable[ParkedEvent], chosen: argparse.Namespace) -> ParkedEvent:
    for event in events:
        if event.event_id == chosen.event:
            return event
    raise NotParked(chosen.subscription, chosen.event)


def _retry(store: EventStore, chosen: argparse.Namespace) -> int:
    if chosen.all == bool(chosen.event):
        raise UsageError("name an event, or say --all")
    asked = store.parked().retry(chosen.subscription, chosen.event)
    _done(chosen, asked, "to be tried again")
    return 0


def _skip(store: EventStore, chosen: argparse.Namespace) -> int:
    store.parked().skip(chosen.subscription, chosen.event)
    _done(chosen, 1, "to be skipped")
    return 0


def _done(chosen: argparse.Namespace, asked: int, what: str) -> None:
    if chosen.json:
        _print_json({"marked": asked})
    else:
        print(f"marked {asked} {what}")


def _line(event: ParkedEvent) -> str:
    state = f"failed {event.attempts} times: {event.error}" if not event.waits else "waits"
    mark = f" [{event.mark}]" if event.mark else ""
    what = f"{event.event_type} of {event.entity_type} {event.entity_id}"
    return f"{event.subscription} {event.event_id} {what}: {state}{mark}"


def _fields(event: ParkedEvent) -> dict[str, object]:
    return {**asdict(event), "waits": event.waits}


def _print_json(value: object) -> None:
    sys.stdout.write(msgspec.json.encode(value).decode() + "\n")
