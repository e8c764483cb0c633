"""`retold subscriptions`: how far they have come, pausing them, and what older versions may do."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import msgspec

from retold.cli.run import STOPPED, subscriptions
from retold.cli.settings import Settings
from retold.errors import (
    HandlerFailed,
    UnknownEvent,
    UnreadableEvent,
    UnreadableRecord,
    UsageError,
)
from retold.store.event_store import EventStore, StoreOptions
from retold.store.generations import missed
from retold.subscriptions.subscription import Subscription

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from retold.brokers.kafka_groups import GroupPartition
    from retold.store.generations import Missed
    from retold.store.subscribed import Subscribed

_SHOWN_S = 2.0


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "subscriptions",
        help="how far subscriptions have come; pause and resume them",
        description="See how far the subscriptions of a database have come, and say what their "
        "members shall do. Running members obey within about a second.",
    )
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    listing = verbs.add_parser("list", help="position, lag, members, and what is wrong")
    pause = verbs.add_parser("pause", help="begin no handler until it is resumed")
    resume = verbs.add_parser("resume", help="go on")
    accept = verbs.add_parser(
        "accept",
        help="let members go on that stand by because they handle less than a newer version did",
    )
    backfill = verbs.add_parser(
        "backfill",
        help="handle past events of a name that came to be handled later",
        description="Handle the events that a subscription passed before it handled their name. "
        "What is broken off goes on where it was; the live flow goes on beside it.",
        epilog="Exit codes: 0 all is handled, 1 stopped or another process is at work on a part of "
        "it, 2 an error, 3 stopped at an event that a person has to look at.",
    )
    backfill.add_argument(
        "--app",
        metavar="package.module:name",
        help="the subscription, or a function that returns one or several; default: $RETOLD_APP",
    )
    for verb in (listing, backfill):
        verb.add_argument("--kafka", metavar="HOST:PORT[,…]", help="default: $RETOLD_KAFKA")
        verb.add_argument(
            "--kafka-setting", action="append", metavar="NAME=VALUE", help="a setting of librdkafka"
        )
    for verb in (pause, resume, accept, backfill):
        verb.add_argument("subscription", metavar="SUBSCRIPTION")
    backfill.add_argument("event", metavar="EVENT", help="the stored name")
    acts = (
        *((listing, _list), (pause, _pause), (resume, _resume)),
        *((accept, _accept), (backfill, _backfill)),
    )
    for verb, act in acts:
        verb.add_argument("--database", metavar="URL", help="default: $RETOLD_DATABASE_URL")
        verb.add_argument("--config", metavar="FILE", help="a TOML file; default: pyproject.toml")
        verb.add_argument("--json", action="store_true", help="print JSON")
        verb.set_defaults(run=run, act=act)


def run(chosen: argparse.Namespace) -> int:
    settings = Settings(chosen)
    options = StoreOptions()
    if "kafka" in chosen and (kafka := settings.text("kafka")):
        options = StoreOptions(kafka=kafka, kafka_settings=settings.kafka())
    store = EventStore(settings.required("database", "database"), **options)
    try:
        code: int = chosen.act(store, chosen, settings)
    finally:
        store.close()
    return code


def _list(store: EventStore, chosen: argparse.Namespace, settings: Settings) -> int:
    found = [(one, _in_kafka(store, one)) for one in store.subscriptions()]
    if chosen.json:
        _print_json([_fields(one, shares) for one, shares in found])
        return 0
    for one, shares in found:
        print(_line(one, shares))
    print(f"{len(found)} subscriptions")
    return 0


def _in_kafka(store: EventStore, one: Subscribed) -> list[GroupPartition]:
    if store.kafka is None or one.partitions:
        return []
    from retold.brokers.kafka_groups import group_partitions

    return group_partitions(store.kafka, one.name, sorted({topic for topic, _ in one.handles}))


def _line(one: Subscribed, shares: list[GroupPartition]) -> str:
    parts = [f"generation {one.generation}"]
    if one.paused_at is not None:
        parts.append(f"paused since {one.paused_at:%Y-%m-%d %H:%M:%S} UTC")
    if one.partitions:
        lag = one.lag if one.lag_is_whole else f"at least {one.lag}"
        parts.append(f"lag {lag}")
        parts.append(f"{len(one.members)} members with {len(one.partitions)} partitions")
    elif shares:
        owners = {share.owner for share in shares if share.owner is not None}
        parts.append(f"lag {sum(share.lag for share in shares)} records")
        parts.append(f"{len(owners)} members with {len(shares)} partitions")
    else:
        parts.append("no positions in this database (pass --kafka for those in Kafka)")
    if one.parked:
        parts.append(f"{one.parked} parked")
    if one.offered is not None:
        parts.append("an older version stands by")
    parts += [_missed(row) for row in one.missed if row.events and not row.backfilled]
    return f"{one.name}: " + ", ".join(parts)


def _missed(row: Missed) -> str:
    return f"missed {'' if row.whole else 'at least '}{row.events} {row.event_type}"


def _fields(one: Subscribed, shares: list[GroupPartition]) -> dict[str, Any]:
    owners = {share.owner for share in shares if share.owner is not None}
    return {
        "name": one.name,
        "generation": one.generation,
        "handles": sorted(one.handles),
        "offered": None if one.offered is None else sorted(one.offered),
        "paused_at": one.paused_at,
        "lag": one.lag if one.partitions else _lag(shares),
        "lag_is_whole": one.lag_is_whole,
        "members": sorted(one.members or owners),
        "partitions": one.partitions or [share._asdict() for share in shares],
        "parked": one.parked,
        "missed": one.missed,
    }


def _lag(shares: list[GroupPartition]) -> int | None:
    return sum(share.lag for share in shares) if shares else None


def _pause(store: EventStore, chosen: argparse.Namespace, settings: Settings) -> int:
    store.subscriptions().pause(chosen.subscription)
    return _done(chosen, "paused", [])


def _resume(store: EventStore, chosen: argparse.Namespace, settings: Settings) -> int:
    store.subscriptions().resume(chosen.subscription)
    return _done(chosen, "resumed", [])


def _accept(store: EventStore, chosen: argparse.Namespace, settings: Settings) -> int:
    left = store.subscriptions().accept(chosen.subscription)
    return _done(chosen, "accepted", [f"{kind} of {topic}" for topic, kind in left])


def _backfill(store: EventStore, chosen: argparse.Namespace, settings: Settings) -> int:
    app = settings.required("app", "application")
    found = [
        one
        for one in subscriptions(app)
        if isinstance(one, Subscription) and one.name == chosen.subscription
    ]
    if not found:
        raise UsageError(f"{app} has no subscription {chosen.subscription!r}")
    (subscription,) = found
    rows = store.driver.run(missed(store.driver.dialect.queries, subscription.name))
    known = [row for row in rows if row.event_type == chosen.event]
    total = sum(row.events or 0 for row in known)
    of = f"{total}" if all(row.whole for row in known) else f"at least {total}"
    handled, shown = 0, time.monotonic()

    def told(count: int) -> None:
        nonlocal handled, shown
        if time.monotonic() - shown >= _SHOWN_S:
            shown = time.monotonic()
            print(f"{handled} of {of}", file=sys.stderr, flush=True)
        handled += count

    stop = threading.Event()

    def stop_now(number: int, frame: object) -> None:
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop_now)
    try:
        whole = _run_backfill(store, subscription, chosen.event, stop, told)
    except (HandlerFailed, UnknownEvent, UnreadableEvent, UnreadableRecord) as failed:
        print(f"stopped: {failed}", file=sys.stderr)
        return STOPPED
    if chosen.json:
        _print_json({"handled": handled, "whole": whole})
    else:
        print(
            f"handled {handled} {chosen.event}" + ("" if whole else "; run it again for the rest")
        )
    return 0 if whole else 1


def _run_backfill(
    store: EventStore,
    subscription: Subscription,
    event: str,
    stop: threading.Event,
    told: Callable[[int], None],
) -> bool:
    if not subscription.has_async_handlers:
        return subscription.backfill(store, event, stop=stop, told=told)

    async def main() -> bool:
        async with store.asynchronous() as async_store:
            loop = asyncio.get_running_loop(), async_store
            return await asyncio.to_thread(
                subscription.backfill, store, event, stop=stop, told=told, loop=loop
            )

    return asyncio.run(main())


def _done(chosen: argparse.Namespace, what: str, left: list[str]) -> int:
    if chosen.json:
        _print_json({what: chosen.subscription} | ({"no longer handled": left} if left else {}))
    else:
        print(f"{what} {chosen.subscription}")
        for each in left:
            print(f"no longer handled: {each}")
    return 0


def _print_json(value: object) -> None:
    sys.stdout.write(msgspec.json.encode(value).decode() + "\n")
