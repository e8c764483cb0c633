"""Which consumer serves a store that is its own broker."""

from __future__ import annotations

from collections.abc import Sequence

from retold.brokers.base import Consumer
from retold.brokers.database import DatabaseConsumer
from retold.brokers.numbered import NumberedConsumer
from retold.brokers.polling import Start
from retold.store.connections import BlockingDriver


def open_consumer(
    driver: BlockingDriver,
    name: str,
    topics: Sequence[str],
    event_types: Sequence[str],
    start: Start,
) -> Consumer:
    """A member of a subscription on the store's own database."""
    if driver.dialect.name == "sqlite":
        return DatabaseConsumer(driver, name, topics, event_types, start)
    return NumberedConsumer(driver, name, topics, event_types, start)
