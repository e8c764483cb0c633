"""`retold relay`: publish every event of a database to Kafka."""

from __future__ import annotations

import logging
import re
import signal
import threading
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from retold.cli.logs import start_logging
from retold.cli.settings import Settings
from retold.drivers import open_driver
from retold.errors import InvalidValue, LeadershipLost, MissingExtra, RelayStopped
from retold.relay.backlog import Backlog
from retold.relay.doctor import refuse
from retold.relay.leadership import DatabaseLeadership
from retold.relay.positions import place_of
from retold.relay.progress import Progress
from retold.relay.relay import Choices, Parts, Relay
from retold.relay.table import Table
from retold.store.url import DatabaseURL, parse_url

if TYPE_CHECKING:
    import argparse
    from collections.abc import Generator

    from retold.cli.logs import StatusLine
    from retold.relay.source import Source
    from retold.store.connections import BlockingDriver

STOPPED, LOST = 3, 4
_SOURCES = {"mysql": "binlog", "postgres": "wal", "sqlite": "polling"}
_SHOWN_S = 0.5
_NAME = re.compile(r"[A-Za-z0-9._-]{1,100}")
_log = logging.getLogger("retold.relay")


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "relay",
        help="publish every event of a database to Kafka",
        description="Follow a database's log and publish every committed event to Kafka, once and "
        "in order. Runs until SIGTERM or Ctrl-C; of several relays of one name one publishes, the "
        "others stand by.",
        epilog="Every option --some-name is RETOLD_SOME_NAME in the environment and some-name in "
        "[tool.retold] of the file (--database is RETOLD_DATABASE_URL). Exit codes: 0 stopped when "
        "told to, 2 an error, 3 stopped because a person has to decide, 4 another relay took over.",
    )
    add_connections(parser)
    add_source(parser)
    parser.add_argument("--server-id", metavar="N", help="among MySQL's replicas; default: by name")
    parser.add_argument("--partitions", metavar="N", help="of topics made by the relay; default 12")
    parser.add_argument("--listen", metavar="HOST:PORT", help="serve /health and /metrics")
    parser.add_argument("--log-format", choices=("auto", "text", "json"))
    parser.add_argument(
        "--from-now", action="store_true", help="first start: leave out what the table holds"
    )
    parser.add_argument(
        "--resync", action="store_true", help="publish what is missing in Kafka, then go on"
    )
    parser.add_argument(
        "--fill-holes-out-of-order",
        action="store_true",
        help="with --resync: publish missing events also behind later ones of their entity",
    )
    parser.add_argument(
        "--accept-partitions",
        action="store_true",
        help="go on with a topic whose number of partitions has changed",
    )
    parser.add_argument(
        "--accept-rewind",
        action="store_true",
        help="the database was set back on purpose: list what it has lost, resync, and go on",
    )
    parser.set_defaults(run=run)


def add_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--source", choices=("auto", "binlog", "wal", "polling"), help="how to follow the database"
    )


def add_connections(parser: argparse.ArgumentParser) -> None:
    """The options of every command that knows a relay: its name, its database and Kafka."""
    add_places(parser)
    parser.add_argument("--name", metavar="NAME", help="of the relay; default: the database's name")


def add_places(parser: argparse.ArgumentParser) -> None:
    """Where the database is, and Kafka."""
    parser.add_argument("--database", metavar="URL", help="default: $RETOLD_DATABASE_URL")
    parser.add_argument("--kafka", metavar="HOST:PORT[,…]", help="default: $RETOLD_KAFKA")
    parser.add_argument("--config", metavar="FILE", help="a TOML file; default: pyproject.toml")
    parser.add_argument(
        "--kafka-setting",
        action="append",
        metavar="NAME=VALUE",
        help="a setting of librdkafka, such as security.protocol=SSL; may be repeated",
    )


def run(chosen: argparse.Namespace) -> int:
    settings = Settings(chosen)
    status = start_logging(settings.text("log-format", "auto"))
    stop = threading.Event()
    _set_at_signals(stop)
    try:
        with ExitStack() as stack:
            relay, progress = assemble(settings, stop, stack)
            if status is not None:
                stack.enter_context(_showing(status, progress))
            relay.run(stop)
    except RelayStopped as stopped:
        _log.error("%s", stopped)
        return STOPPED
    except LeadershipLost as lost:
        _log.error("%s", lost)
        return LOST
    return 0


def _set_at_signals(stop: threading.Event) -> None:
    def handle(number: int, frame: object) -> None:
        stop.set()
        signal.signal(number, signal.SIG_DFL)  # a second one ends the process at once

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handle)


def assemble(settings: Settings, stop: threading.Event, stack: ExitStack) -> tuple[Relay, Progress]:
    """A relay with its parts.

    Raises MissingExtra, InvalidURL, InvalidValue, UsageError, and RelayStopped for what `refuse`
    finds; at the rest of what a relay needs its source looks, in each epoch.
    """
    url = parse_url(settings.required("database", "database"))
    kafka = settings.required("kafka", "Kafka broker")
    name = relay_name(settings, url)
    try:
        from retold.brokers.kafka import KafkaPublisher, KafkaTopics
        from retold.brokers.kafka_facts import KafkaFacts
    except ImportError:
        raise MissingExtra("retold relay", "confluent-kafka", "relay") from None
    driver = stack.enter_context(closing(open_driver(url)))
    kind = source_kind(settings, url)
    parts = Parts(
        source=source(settings, kind, url, driver, name),
        publisher=KafkaPublisher(
            name, kafka, settings.kafka(), partitions=settings.number("partitions", 12), stop=stop
        ),
        topics=KafkaTopics(kafka, settings.kafka(), stop=stop),
        table=Table(driver),
        # What one polling relay marks as published, another one would not find.
        leadership=DatabaseLeadership(driver, "polling" if kind == "polling" else name),
    )
    refuse(url, driver, kind, KafkaFacts(kafka, settings.kafka(), patience=5.0), name)
    progress = Progress(name)
    if kind != "polling":
        stack.enter_context(closing(Backlog(driver, progress)))
    if address := settings.text("listen"):
        from retold.relay.health import Health

        health = stack.enter_context(closing(Health(address, progress)))
        _log.info("health and metrics on port %d", health.port)
    choices = Choices(
        from_now=settings.flag("from-now"),
        resync=settings.flag("resync") or settings.flag("accept-rewind"),
        fill_holes=settings.flag("fill-holes-out-of-order"),
        accept_partitions=settings.flag("accept-partitions"),
        accept_rewind=settings.flag("accept-rewind"),
    )
    return Relay(parts, progress, choices), progress


def relay_name(settings: Settings, url: DatabaseURL) -> str:
    """The relay's name: its position, its lock and its slot go by it."""
    database = Path(url.database).stem if url.database_kind == "sqlite" else url.database
    default = "-".join(part for part in (database, url.schema, url.prefix) if part)
    name = settings.text("name", re.sub(r"[^A-Za-z0-9._-]", "-", default))
    if not _NAME.fullmatch(name):
        raise InvalidValue(f"--name {name!r}: write 1 to 100 of A-Z a-z 0-9 . _ -")
    return name


def source_kind(settings: Settings, url: DatabaseURL) -> str:
    """The way to follow a database that was chosen, or the best there is for its kind."""
    best = _SOURCES[url.database_kind]
    kind = settings.text("source", "auto")
    if kind == "auto":
        return best
    if kind not in (best, "polling"):
        raise InvalidValue(f"--source {kind} cannot follow {url.database_kind}; try {best}")
    return kind


def source(
    settings: Settings, kind: str, url: DatabaseURL, driver: BlockingDriver, name: str
) -> Source:
    if kind == "polling":
        from retold.relay.sources.polling import PollingSource

        return PollingSource(driver)
    if kind == "wal":
        from retold.relay.sources.wal import WalSource

        return WalSource(url, name)
    from retold.relay.sources.binlog import BinlogSource, server_id_for

    return BinlogSource(url, settings.number("server-id", server_id_for(name)))


@contextmanager
def _showing(status: StatusLine, progress: Progress) -> Generator[None]:
    """Show how the relay is doing, twice a second, for the time of the block."""
    ended = threading.Event()

    def show() -> None:
        before = 0
        while not ended.wait(_SHOWN_S):
            events = progress.counts["events"]
            status.show(_line(progress, (events - before) / _SHOWN_S))
            before = events

    shower = threading.Thread(target=show, name="retold relay status", daemon=True)
    shower.start()
    try:
        yield
    finally:
        ended.set()
        shower.join()
        status.end()


def _line(progress: Progress, rate: float) -> str:
    behind = progress.behind
    parts = [f"{progress.name}: {progress.role}"]
    if progress.role == "catching up":
        parts.append(f"{progress.fraction:.0%}")
    parts += [
        f"{progress.counts['events']:,} events",
        f"{rate:,.0f}/s",
        f"lag {progress.lag():.1f} s" + ("" if behind is None else f", {behind / 1e6:,.1f} MB"),
    ]
    if progress.position is not None:
        parts.append(f"at {place_of(progress.position)}")
    if progress.error:
        parts.append("waiting: " + progress.error)
    return " · ".join(parts)
