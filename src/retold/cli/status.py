"""`retold status`: the store, its relay, its subscriptions and what is parked, on one page."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from retold.cli.relay import add_connections, relay_name
from retold.cli.settings import Settings
from retold.errors import MissingExtra, RetoldError
from retold.ids import milliseconds
from retold.store.event_store import EventStore
from retold.store.status import COUNTED, Lag, lags, parked_counts, size
from retold.store.url import parse_url

if TYPE_CHECKING:
    import argparse

_PATIENCE_S = 60
_TOO_FAR_BYTES = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the page; facts: what it says, for programs."""

    about: str
    healthy: bool
    says: str
    facts: Mapping[str, object] = field(default_factory=dict[str, object])


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "status",
        help="store, relay, subscriptions and parked events on one page",
        description="Look whether the store can be reached and is migrated, whether its relay and "
        "its subscriptions keep up, and whether events are parked. Cheap, and changes nothing. The "
        "relay's position is in Kafka: it is looked at where --kafka or RETOLD_KAFKA is given.",
        epilog="Exit codes: 0 all is healthy; 1 something is not; 2 an error, such as a wrong URL.",
    )
    add_connections(parser)
    parser.add_argument(
        "--patience",
        metavar="S",
        help="how many seconds old an event may be that the relay or a subscription has not handled; "
        f"default {_PATIENCE_S}",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(run=run)


def run(chosen: argparse.Namespace) -> int:
    settings = Settings(chosen)
    store = EventStore(settings.required("database", "database"))
    patience = settings.number("patience", _PATIENCE_S)
    with closing(store):
        found = list(_findings(settings, store, patience))
    healthy = all(finding.healthy for finding in found)
    if chosen.json:
        print(msgspec.json.encode({"healthy": healthy, "findings": found}).decode())
    else:
        _print(found)
    return 0 if healthy else 1


def _findings(settings: Settings, store: EventStore, patience: int) -> Iterator[Finding]:
    driver = store.driver
    newest = ""
    try:
        pending = store.pending_migrations()
        if pending:
            yield Finding(
                "store",
                False,
                f"pending {', '.join(pending)}: run retold migrate",
                {"pending": pending},
            )
            return
        found = driver.run(size(driver.dialect))
        newest = found.newest
        about = "" if found.events is None else f"about {found.events:,} events, "
        age = f"the newest {_age(newest)} old" if newest else "none yet"
        yield Finding(
            "store", True, f"{store.driver.dialect.name}, migrated, {about}{age}", asdict(found)
        )
        for lag in driver.run(lags(driver.dialect)):
            yield _of_subscription(lag, patience)
        parked = driver.run(parked_counts(driver.dialect))
        for count in parked:
            yield Finding(
                f"parked {count.subscription}",
                False,
                f"{count.failed:,} failed, {count.waiting:,} wait behind them: retold parked list",
                asdict(count),
            )
        if not parked:
            yield Finding("parked", True, "nothing")
    except RetoldError as error:
        yield Finding("store", False, str(error))
    if settings.text("kafka"):
        yield _of_relay(settings, store, newest, patience)


def _of_subscription(lag: Lag, patience: int) -> Finding:
    members = "1 member" if lag.members == 1 else f"{lag.members} members"
    name = f"subscription {lag.subscription}"
    if lag.first is None:
        return Finding(name, True, f"all handled, {members}", asdict(lag))
    least = "at least " if lag.waiting >= COUNTED else ""
    return Finding(
        name,
        _seconds(lag.first) <= patience,
        f"{least}{lag.waiting:,} events ahead, the first {_age(lag.first)} old, {members}",
        asdict(lag),
    )


def _of_relay(settings: Settings, store: EventStore, newest: str, patience: int) -> Finding:
    from retold.relay.backlog import bytes_behind
    from retold.relay.positions import decode_checkpoint, place_of

    # What librdkafka has to say beside is told by the finding.
    logging.getLogger("retold.kafka").addHandler(logging.NullHandler())
    name = relay_name(settings, parse_url(settings.required("database", "database")))
    about = f"relay {name}"
    try:
        from retold.brokers.kafka_positions import PublishedPosition
    except ImportError:
        raise MissingExtra("retold status --kafka", "confluent-kafka", "relay") from None
    try:
        published = PublishedPosition(name, settings.text("kafka"), settings.kafka())
        text = published.last()
        if text is None:
            return Finding(about, False, "has saved no position in Kafka")
        checkpoint = decode_checkpoint(name, text)
        late = newest and _seconds(newest) > patience
        if late and not published.saved_since(milliseconds(newest)):
            return Finding(
                about,
                False,
                f"has published nothing since the newest event, {_age(newest)} ago: does it run?",
            )
        behind = _ask(lambda: store.driver.run(bytes_behind(checkpoint.position)))
    except RetoldError as error:
        return Finding(about, False, str(error))
    parts = [f"at {place_of(checkpoint.position)}"]
    if behind is not None:
        parts.append(f"{behind / 1e6:,.1f} MB behind")
    if checkpoint.catching_up:
        parts.append("catching up")
    facts = {"position": checkpoint.position, "behind_bytes": behind}
    return Finding(about, behind is None or behind < _TOO_FAR_BYTES, ", ".join(parts), facts)


def _ask(question: Callable[[], Any]) -> Any:
    """The answer, None where this user may not ask."""
    try:
        return question()
    except RetoldError:
        return None


def _seconds(event_id: str) -> float:
    return max(0.0, time.time() - milliseconds(event_id) / 1000)


def _age(event_id: str) -> str:
    seconds = _seconds(event_id)
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def _print(found: list[Finding]) -> None:
    width = max(len(finding.about) for finding in found)
    colours = sys.stdout.isatty()
    for finding in found:
        sign = "ok" if finding.healthy else "!!"
        if colours:
            sign = f"\x1b[{32 if finding.healthy else 31}m{sign}\x1b[0m"
        print(f"{sign} {finding.about:<{width}}  {finding.says}")
