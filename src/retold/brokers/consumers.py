"""Which consumer serves a subscription: on Kafka where the store names one, else on its database."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from retold.brokers.base import Consumer, Places
from retold.brokers.database import DatabaseConsumer
from retold.brokers.numbered import NumberedConsumer
from retold.brokers.polling import Start
from retold.brokers.wants import Wants
from retold.store.connections import BlockingDriver
from retold.store.options import KafkaAddress

Assignor = Literal["cooperative-sticky", "range"]
"""How a consumer group shares partitions out. Its members must agree; Java's default is range."""


def open_consumer(
    driver: BlockingDriver,
    name: str,
    topics: Sequence[str],
    event_types: Sequence[str],
    start: Start,
    kafka: KafkaAddress | None = None,
    assignor: Assignor = "cooperative-sticky",
    places: Places | None = None,
    wants: Wants | None = None,
) -> Consumer:
    """A member of a subscription. Raises MissingExtra for a Kafka without its client."""
    if kafka is not None:
        from retold.brokers.kafka_consumer import KafkaConsumer

        return KafkaConsumer(
            driver,
            kafka.bootstrap,
            name,
            topics,
            event_types,
            start,
            kafka.settings,
            assignor=assignor,
            places=places,
            wants=wants,
        )
    if driver.dialect.name == "sqlite":
        return DatabaseConsumer(
            driver, name, topics, event_types, start, places=places, wants=wants
        )
    return NumberedConsumer(driver, name, topics, event_types, start, places=places, wants=wants)
