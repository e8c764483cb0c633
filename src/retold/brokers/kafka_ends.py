"""Where topics end now."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from retold.brokers.kafka_cluster import Cluster, admin_api
from retold.brokers.kafka_places import committed_as, place, place_name
from retold.brokers.published import topic_name
from retold.store.options import KafkaAddress

# isort: split
# Behind kafka_cluster, which tells what to install.
from confluent_kafka import IsolationLevel

_PATIENCE_S = 10.0


def topic_ends(kafka: KafkaAddress, topics: Sequence[str]) -> dict[str, int]:
    """Place → the position behind the last record that is committed. topics: entity types.

    Raises BrokerUnavailable, BrokerRefused.
    """
    cluster = Cluster(kafka.bootstrap, kafka.settings, _PATIENCE_S, threading.Event())
    known = cluster.partitions([topic_name(one) for one in topics], cluster.patience())
    places = [(topic, number) for topic, count in known.items() for number in range(count)]
    latest = admin_api.OffsetSpec.latest()
    found = cluster.offsets(places, latest, IsolationLevel.READ_COMMITTED)
    return {place_name(*at): place(offset) for at, offset in found.items()}


def records_in(distance: int) -> int:
    """How many records lie between two positions of one partition."""
    return committed_as(distance)[0]
