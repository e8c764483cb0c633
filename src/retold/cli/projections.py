"""`retold projections`: how far read models are, and building them anew."""

from __future__ import annotations

import signal
import sys
import threading
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING

import msgspec

from retold.cli.relay import add_places
from retold.cli.run import subscriptions
from retold.cli.settings import Settings
from retold.errors import UsageError
from retold.store.event_store import EventStore, StoreOptions
from retold.subscriptions.projection import Projection
from retold.subscriptions.rebuilding import Progress, ProjectionState, states

if TYPE_CHECKING:
    import argparse

STOPPED = 1


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "projections",
        help="how far read models are, and building them anew",
        description="See how far projections are behind, and build their tables anew.",
    )
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    listing = verbs.add_parser("list", help="the projections that a database holds, and their lag")
    rebuild = verbs.add_parser(
        "rebuild", help="build new tables from all events beside the live ones, then exchange them"
    )
    reset = verbs.add_parser("reset", help="empty the tables and begin with the first event again")
    for verb in (rebuild, reset):
        verb.add_argument("projection", metavar="package.module:name")
    for verb, act in ((listing, _list), (rebuild, _rebuild), (reset, _reset)):
        add_places(verb)
        verb.add_argument(
            "--json", action="store_true", help="print JSON, a line for each thing told"
        )
        verb.set_defaults(run=run, act=act)


def run(chosen: argparse.Namespace) -> int:
    settings = Settings(chosen)
    url = settings.required("database", "database")
    options = StoreOptions()
    if kafka := settings.text("kafka"):
        options = StoreOptions(kafka=kafka, kafka_settings=settings.kafka())
    store = EventStore(url, **options)
    try:
        code: int = chosen.act(store, chosen)
    finally:
        store.close()
    return code


def _list(store: EventStore, chosen: argparse.Namespace) -> int:
    found = states(store)
    parked = Counter(event.subscription for event in store.parked())
    for state in found:
        if chosen.json:
            _print_json({**asdict(state), "parked": parked[state.name]})
        else:
            print(_line(state, parked[state.name]))
    if not found and not chosen.json:
        print("no projection has begun in this database")
    return 0


def _line(state: ProjectionState, parked: int) -> str:
    lag = "lag unknown" if state.lag is None else f"lag {state.lag}"
    doing = f", {state.doing}" if state.doing else ""
    held = f", {parked} events parked" if parked else ""
    return f"{state.name}: generation {state.generation}, {lag}{held}{doing}"


def _rebuild(store: EventStore, chosen: argparse.Namespace) -> int:
    projection, stop = _named(chosen.projection), threading.Event()

    def stop_now(number: int, frame: object) -> None:
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop_now)

    def tell(progress: Progress) -> None:
        if chosen.json:
            _print_json(asdict(progress))
        else:
            print(f"applied {progress.applied}, {progress.behind} behind", flush=True)

    done = projection.rebuild(store, tell, stop=stop)
    if not chosen.json:
        print(f"rebuilt {projection.name}" if done else "stopped; the tables are as they were")
    return 0 if done else STOPPED


def _reset(store: EventStore, chosen: argparse.Namespace) -> int:
    projection = _named(chosen.projection)
    projection.reset(store)
    if chosen.json:
        _print_json({"reset": projection.name})
    else:
        print(f"reset {projection.name}; its members begin again")
    return 0


def _named(text: str) -> Projection:
    found = subscriptions(text)
    if len(found) != 1 or not isinstance(found[0], Projection):
        raise UsageError(f"{text} is not a projection")
    return found[0]


def _print_json(value: object) -> None:
    sys.stdout.write(msgspec.json.encode(value).decode() + "\n")
    sys.stdout.flush()
