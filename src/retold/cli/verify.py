"""`retold verify`: compare the events table with its topics."""

from __future__ import annotations

import sys
import time
from contextlib import closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec

from retold.cli.relay import add_connections
from retold.cli.settings import Settings
from retold.drivers import open_driver
from retold.errors import InvalidValue, MissingExtra
from retold.ids import id_since
from retold.relay.table import Table
from retold.relay.verification import Report, verify
from retold.store.url import parse_url

if TYPE_CHECKING:
    import argparse


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "verify",
        help="compare the events table with its topics",
        description="Check that every event of the table is in its topic once, in its partition, in "
        "order, unchanged, and that nothing else is. Reads only; everything may go on meanwhile.",
        epilog="Exit codes: 0 all is well, 1 something is off, 2 an error.",
    )
    add_connections(parser)
    parser.add_argument("--since", metavar="TIME", help="leave out older events (ISO 8601)")
    parser.add_argument(
        "--patience", metavar="S", help="seconds that an event may still be on its way; default 30"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(run=run)


def run(chosen: argparse.Namespace) -> int:
    settings = Settings(chosen)
    url = parse_url(settings.required("database", "database"))
    kafka = settings.required("kafka", "Kafka broker")
    since = _first_id(settings.text("since"))
    patience = settings.number("patience", 30)
    try:
        from retold.brokers.kafka import KafkaTopics
    except ImportError:
        raise MissingExtra("retold verify", "confluent-kafka", "relay") from None
    progress = _Progress()
    with closing(open_driver(url)) as driver:
        topics = KafkaTopics(kafka, settings.kafka())
        report = verify(Table(driver), topics, patience=patience, since=since, show=progress.show)
    progress.end()
    if settings.flag("json"):
        print(msgspec.json.encode({"sound": report.sound, **vars(report)}).decode())
    else:
        _print(report)
    return 0 if report.sound else 1


def _first_id(since: str) -> str:
    if not since:
        return ""
    try:
        moment = datetime.fromisoformat(since)
    except ValueError:
        raise InvalidValue(f"--since {since!r}: write a time such as 2026-01-31T12:00Z") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return id_since(moment)


def _print(report: Report) -> None:
    print(f"{report.events:,} events in the table, {report.records:,} in the topics")
    for kind, count in report.problems.items():
        if count:
            print(f"{count:,} {kind}:")
            for example in report.examples[kind]:
                print(f"  {example}")
            if count > len(report.examples[kind]):
                print("  …")
    if report.sound:
        print("all is well")
    elif report.problems["missing"]:
        print("Publish what is missing with: retold relay --resync")


class _Progress:
    """One line on a terminal, nothing elsewhere."""

    def __init__(self) -> None:
        self._shown = 0.0
        self._terminal = sys.stderr.isatty()

    def show(self, what: str, fraction: float) -> None:
        if self._terminal and time.monotonic() - self._shown > 0.2:
            self._shown = time.monotonic()
            share = f" {fraction:.0%}" if fraction else ""
            print(f"\r\x1b[Kreading the {what}{share}", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        if self._terminal and self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
