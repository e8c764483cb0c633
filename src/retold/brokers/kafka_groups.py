"""How far a consumer group has come in Kafka, and who is in it. Changes nothing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from retold.brokers.kafka_cluster import Cluster, admin_api
from retold.brokers.published import topic_name
from retold.store.options import KafkaAddress

# isort: split
# Behind kafka_cluster, which tells what to install.
from confluent_kafka import (
    ConsumerGroupTopicPartitions,
    IsolationLevel,
    KafkaException,
    TopicPartition,
)

_PATIENCE_S = 10.0


class GroupPartition(NamedTuple):
    """One partition of a topic.

    position: the offset that is read next, None where the group never committed one. lag: how many
    records there are from there on, those that nobody wants and marks of transactions among them.
    owner: the member it is assigned to.
    """

    topic: str
    partition: int
    position: int | None
    lag: int
    owner: str | None


def group_partitions(
    kafka: KafkaAddress, name: str, entity_types: Iterable[str]
) -> list[GroupPartition]:
    """The partitions of a subscription's topics. Raises BrokerUnavailable, BrokerRefused."""
    cluster = Cluster(kafka.bootstrap, kafka.settings, _PATIENCE_S, None)
    counts = cluster.partitions(map(topic_name, entity_types), cluster.patience())
    places = [(topic, number) for topic, count in counts.items() for number in range(count)]
    if not places:
        return []
    latest, earliest = admin_api.OffsetSpec.latest(), admin_api.OffsetSpec.earliest()
    ends = cluster.offsets(places, latest, IsolationLevel.READ_COMMITTED)
    begins = cluster.offsets(places, earliest)
    wanted = [TopicPartition(*place) for place in places]
    asked = cluster.admin().list_consumer_group_offsets(
        [ConsumerGroupTopicPartitions(name, wanted)], request_timeout=_PATIENCE_S
    )
    described = cluster.admin().describe_consumer_groups([name], request_timeout=_PATIENCE_S)
    found: Any = _result(cluster, asked[name], f"reading the offsets of group {name!r}")
    group: Any = _result(cluster, described[name], f"describing group {name!r}")
    owners = {
        (at.topic, at.partition): f"{member.member_id} on {member.host}"
        for member in group.members
        for at in member.assignment.topic_partitions
    }
    saved = {(at.topic, at.partition): at.offset for at in found.topic_partitions if at.offset >= 0}
    return [
        GroupPartition(
            *place,
            saved.get(place),
            max(0, ends[place] - saved.get(place, begins[place])),
            owners.get(place),
        )
        for place in sorted(places)
    ]


def _result(cluster: Cluster, future: Any, what: str) -> Any:
    try:
        return cluster.result(future, cluster.patience(), what)
    except KafkaException as error:
        raise cluster.failure(error.args[0], what) from None
