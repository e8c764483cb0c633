"""`retold run`: handle events with the subscriptions of an application."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from typing import TYPE_CHECKING, Any

from retold.cli.apps import load
from retold.cli.logs import start_logging
from retold.cli.relay import add_places
from retold.cli.settings import Settings
from retold.errors import (
    HandlerFailed,
    PositionGone,
    RelayStopped,
    UnknownEvent,
    UnreadableEvent,
    UnreadableRecord,
    UsageError,
)
from retold.store.event_store import AsyncEventStore, EventStore, StoreOptions
from retold.subscriptions.projection import Projection
from retold.subscriptions.subscription import Subscription

if TYPE_CHECKING:
    import argparse

STOPPED = 3
_WANTED = "a subscription or projection, or a function that returns one or several"
_log = logging.getLogger("retold.run")


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "run",
        help="handle events with the subscriptions and projections of an application",
        description="Run subscriptions and projections until SIGTERM or Ctrl-C: from Kafka where one is named, else "
        "from the database itself. Start it several times to share the work.",
        epilog="Every option --some-name is RETOLD_SOME_NAME in the environment and some-name in "
        "[tool.retold] of the file (--database is RETOLD_DATABASE_URL). Exit codes: 0 stopped when "
        "told to, 2 an error, 3 stopped at an event that a person has to look at.",
    )
    parser.add_argument(
        "subscriptions", nargs="+", metavar="package.module:name", help=_WANTED + " of them"
    )
    add_places(parser)
    parser.add_argument("--log-format", choices=("auto", "text", "json"))
    parser.set_defaults(run=run)


def run(chosen: argparse.Namespace) -> int:
    settings = Settings(chosen)
    url = settings.required("database", "database")
    options = StoreOptions()
    if kafka := settings.text("kafka"):
        options = StoreOptions(kafka=kafka, kafka_settings=settings.kafka())
    named = [one for text in chosen.subscriptions for one in subscriptions(text)]
    inline = [one for one in named if isinstance(one, Projection) and one.inline]
    found = [one for one in named if one not in inline]
    if not found:
        raise UsageError(f"{inline[0].name!r} is inline: name something that is to be run, too")
    options["projections"] = inline
    if doubles := {one.name for one in found if [each.name for each in found].count(one.name) > 1}:
        raise UsageError(f"subscription {min(doubles)!r} is named twice")
    start_logging(settings.text("log-format", "auto"))
    stop = threading.Event()

    def stop_now(number: int, frame: object) -> None:
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop_now)
    _log.info("running %s", ", ".join(one.name for one in found))
    try:
        if any(one.has_async_handlers for one in found):
            asyncio.run(_run_async(AsyncEventStore(url, **options), found, stop))
        else:
            with EventStore(url, **options) as store:
                store.run(*found, stop=stop)
    except (
        *(HandlerFailed, UnknownEvent, UnreadableEvent),
        *(UnreadableRecord, PositionGone, RelayStopped),
    ) as stopped:
        _log.error("%s", stopped)
        return STOPPED
    return 0


async def _run_async(
    store: AsyncEventStore, found: list[Subscription | Projection], stop: threading.Event
) -> None:
    async with store:
        await store.run(*found, stop=stop)


def subscriptions(text: str) -> list[Subscription | Projection]:
    """What `package.module:name` names. Raises UsageError."""
    module_name, _, name = text.partition(":")
    if not (module_name and name):
        raise UsageError(f"{text!r} names no subscription: write package.module:name")
    found: Any = load(text)
    kinds = (Subscription, Projection)
    if not isinstance(found, kinds) and callable(found):
        found = found()
    several: list[Any] = [found] if isinstance(found, kinds) else _listed(found)
    if not several or not all(isinstance(one, kinds) for one in several):
        raise UsageError(f"{text} is not {_WANTED}")
    return several


def _listed(found: Any) -> list[Any]:
    return list(found) if hasattr(found, "__iter__") else [found]
