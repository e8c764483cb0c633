"""`retold move`: hand a subscription over from its database to Kafka."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from retold.brokers.moving import move
from retold.cli.migrate import VARIABLE
from retold.errors import UsageError
from retold.store.event_store import EventStore

if TYPE_CHECKING:
    import argparse


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "move",
        help="hand a subscription over from its database to Kafka",
        description="Let a subscription that has the database as its broker go on in Kafka, where it "
        "stopped. Stop its members first, and let a relay publish the events.",
    )
    parser.add_argument("subscription", metavar="SUBSCRIPTION")
    parser.add_argument("--database", metavar="URL", help=f"the database; default: ${VARIABLE}")
    parser.set_defaults(run=run)


def run(chosen: argparse.Namespace) -> int:
    url = chosen.database or os.environ.get(VARIABLE)
    if not url:
        raise UsageError(f"no database is named: pass --database URL or set {VARIABLE}")
    with EventStore(url) as store:
        parked = store.driver.run(move(store.driver.dialect, chosen.subscription))
    print(f"moved {chosen.subscription} to Kafka; {parked} of its events are parked")
    return 0
