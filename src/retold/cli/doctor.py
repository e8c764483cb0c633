"""`retold doctor`: look at everything a relay needs."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING, TextIO

import msgspec

from retold.cli.relay import add_connections, add_source, relay_name, source_kind
from retold.cli.settings import Settings
from retold.drivers import open_driver
from retold.errors import MissingExtra
from retold.relay.doctor import Doctor
from retold.store.url import parse_url

if TYPE_CHECKING:
    import argparse

    from retold.brokers.kafka_facts import KafkaFacts
    from retold.relay.checks import Check

_SIGNS = {"ok": "✓", "warning": "!", "failed": "✗"}
_COLOURS = {"ok": "32", "warning": "33", "failed": "31"}


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "doctor",
        help="look at everything a relay needs",
        description="Look at a database, at Kafka, and at what this user may do there, and say how "
        "to mend what is wrong. Changes nothing; run it as the relay's user.",
        epilog="Exit codes: 0 all is well, or there are only warnings; 1 something has failed; 2 an "
        "error.",
    )
    add_connections(parser)
    add_source(parser)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(run=run)


def run(chosen: argparse.Namespace) -> int:
    settings = Settings(chosen)
    url = parse_url(settings.required("database", "database"))
    kind, name = source_kind(settings, url), relay_name(settings, url)
    # What librdkafka has to say beside is told by the checks.
    logging.getLogger("retold.kafka").addHandler(logging.NullHandler())
    kafka, partitions = _kafka(settings), settings.number("partitions", 12)
    with closing(open_driver(url, migrates_new_file=False)) as driver:
        found = Doctor(url, driver, kind, name, kafka, partitions).checks()
        checks = list(found) if settings.flag("json") else list(_printed(found, sys.stdout))
    sound = all(check.outcome != "failed" for check in checks)
    if settings.flag("json"):
        print(msgspec.json.encode({"sound": sound, "checks": checks}).decode())
    return 0 if sound else 1


def _kafka(settings: Settings) -> KafkaFacts | None:
    address = settings.text("kafka")
    if not address:
        return None
    try:
        from retold.brokers.kafka_facts import KafkaFacts
    except ImportError:
        raise MissingExtra("retold doctor --kafka", "confluent-kafka", "relay") from None
    return KafkaFacts(address, settings.kafka())


def _printed(checks: Iterator[Check], out: TextIO) -> Iterator[Check]:
    """Each printed as soon as it is known: signs on a terminal that shows them, words elsewhere."""
    encoding = (out.encoding or "").lower().replace("-", "")
    signs = out.isatty() and encoding == "utf8"
    for check in checks:
        word = check.outcome
        sign = f"\x1b[{_COLOURS[word]}m{_SIGNS[word]}\x1b[0m" if signs else f"{word:<7}"
        print(f"{sign} {check.name} {check.found}", file=out, flush=True)
        if check.mend:
            print(f"{'' if signs else '       '}  {check.mend}", file=out, flush=True)
        yield check
