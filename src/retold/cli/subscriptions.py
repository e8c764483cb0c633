"""`retold subscriptions`: how far they have come, pausing them, and what older versions may do."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import msgspec

from retold.cli.settings import Settings
from retold.store.event_store import EventStore

if TYPE_CHECKING:
    import argparse

    from retold.store.generations import Missed
    from retold.store.subscribed import Subscribed


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
    for verb in (pause, resume, accept):
        verb.add_argument("subscription", metavar="SUBSCRIPTION")
    for verb, act in ((listing, _list), (pause, _pause), (resume, _resume), (accept, _accept)):
        verb.add_argument("--database", metavar="URL", help="default: $RETOLD_DATABASE_URL")
        verb.add_argument("--config", metavar="FILE", help="a TOML file; default: pyproject.toml")
        verb.add_argument("--json", action="store_true", help="print JSON")
        verb.set_defaults(run=run, act=act)


def run(chosen: argparse.Namespace) -> int:
    settings = Settings(chosen)
    store = EventStore(settings.required("database", "database"))
    try:
        code: int = chosen.act(store, chosen, settings)
    finally:
        store.close()
    return code


def _list(store: EventStore, chosen: argparse.Namespace, settings: Settings) -> int:
    found = list(store.subscriptions())
    if chosen.json:
        _print_json([_fields(one) for one in found])
        return 0
    for one in found:
        print(_line(one))
    print(f"{len(found)} subscriptions")
    return 0


def _line(one: Subscribed) -> str:
    parts = [f"generation {one.generation}"]
    if one.paused_at is not None:
        parts.append(f"paused since {one.paused_at:%Y-%m-%d %H:%M:%S} UTC")
    if one.partitions:
        lag = one.lag if one.lag_is_whole else f"at least {one.lag}"
        parts.append(f"lag {lag}")
        parts.append(f"{len(one.members)} members with {len(one.partitions)} partitions")
    else:
        parts.append("no positions in this database")
    if one.parked:
        parts.append(f"{one.parked} parked")
    if one.offered is not None:
        parts.append("an older version stands by")
    parts += [_missed(row) for row in one.missed if row.events and not row.backfilled]
    return f"{one.name}: " + ", ".join(parts)


def _missed(row: Missed) -> str:
    return f"missed {'' if row.whole else 'at least '}{row.events} {row.event_type}"


def _fields(one: Subscribed) -> dict[str, Any]:
    return {
        "name": one.name,
        "generation": one.generation,
        "handles": sorted(one.handles),
        "offered": None if one.offered is None else sorted(one.offered),
        "paused_at": one.paused_at,
        "lag": one.lag if one.partitions else None,
        "lag_is_whole": one.lag_is_whole,
        "members": sorted(one.members),
        "partitions": one.partitions,
        "parked": one.parked,
        "missed": one.missed,
    }


def _pause(store: EventStore, chosen: argparse.Namespace, settings: Settings) -> int:
    store.subscriptions().pause(chosen.subscription)
    return _done(chosen, "paused", [])


def _resume(store: EventStore, chosen: argparse.Namespace, settings: Settings) -> int:
    store.subscriptions().resume(chosen.subscription)
    return _done(chosen, "resumed", [])


def _accept(store: EventStore, chosen: argparse.Namespace, settings: Settings) -> int:
    left = store.subscriptions().accept(chosen.subscription)
    return _done(chosen, "accepted", [f"{kind} of {topic}" for topic, kind in left])


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
