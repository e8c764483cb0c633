"""What a Kafka cluster says of itself, of topics, and of what this user may do. Changes nothing."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from confluent_kafka import KafkaException, TopicCollection

from retold.brokers.kafka import TRANSACTION_S
from retold.brokers.kafka_cluster import NO_TOPIC, SLICE_S, Cluster, serve
from retold.errors import BrokerRefused

PATIENCE_S = 10.0
"""How long Kafka may be away before a question fails."""

# Its types are incomplete.
_admin: Any = import_module("confluent_kafka.admin")


@dataclass(frozen=True, slots=True)
class TopicFacts:
    """One topic.

    copies: of the partition that has the fewest. allowed: what this user may do, in Kafka's words
    for operations (READ, WRITE); None where the brokers do not tell. settings: None where this user
    may not see them.
    """

    partitions: int
    copies: int
    allowed: frozenset[str] | None = None
    settings: Mapping[str, str] | None = None


class KafkaFacts:
    """Questions to a cluster. Each raises BrokerUnavailable after `patience` seconds."""

    def __init__(
        self,
        bootstrap: str,
        settings: Mapping[str, str] | None = None,
        *,
        patience: float | None = None,
    ) -> None:
        self._seconds = PATIENCE_S if patience is None else patience
        self._cluster = Cluster(bootstrap, settings or {}, self._seconds, None)

    def brokers(self) -> int:
        """How many there are now."""
        with self._cluster.translating("describing the cluster"):
            asked = self._cluster.admin().describe_cluster(request_timeout=self._seconds)
            found: Any = self._result(asked, "describing the cluster")
            return len(found.nodes)

    def topics(self, names: Iterable[str]) -> dict[str, TopicFacts]:
        """Of the topics that exist. Raises BrokerRefused for one that this user may not see."""
        wanted = sorted(set(names))
        if not wanted:
            return {}
        asked = self._cluster.admin().describe_topics(
            TopicCollection(wanted),
            include_authorized_operations=True,
            request_timeout=self._seconds,
        )
        found: dict[str, Any] = {}
        for name, future in asked.items():
            what = f"describing topic {name!r}"
            try:
                found[name] = self._result(future, what)
            except KafkaException as error:
                if error.args[0].code() not in NO_TOPIC:
                    raise self._cluster.failure(error.args[0], what) from None
        settings = self._settings(found)
        return {name: _facts(topic, settings.get(name)) for name, topic in found.items()}

    def _settings(self, names: Iterable[str]) -> dict[str, dict[str, str]]:
        resources = [
            _admin.ConfigResource(_admin.ConfigResource.Type.TOPIC, name) for name in names
        ]
        if not resources:
            return {}
        asked = self._cluster.admin().describe_configs(resources, request_timeout=self._seconds)
        found: dict[str, dict[str, str]] = {}
        for resource, future in asked.items():
            what = f"reading the settings of topic {resource.name!r}"
            try:
                entries: Any = self._result(future, what)
            except KafkaException as error:
                if not isinstance(self._cluster.failure(error.args[0], what), BrokerRefused):
                    raise self._cluster.failure(error.args[0], what) from None
            else:
                found[resource.name] = {key: str(one.value) for key, one in entries.items()}
        return found

    def why_not_made(self, topic: str, partitions: int, config: Mapping[str, str]) -> str:
        """Why the topic could not be made by this user; empty where it could."""
        new = _admin.NewTopic(topic, partitions, -1, config=dict(config))
        asked = self._cluster.admin().create_topics(
            [new], validate_only=True, request_timeout=self._seconds
        )
        try:
            self._result(asked[topic], f"asking about topic {topic!r}")
        except KafkaException as error:
            found = self._cluster.failure(error.args[0], "")
            if not isinstance(found, BrokerRefused):
                raise found from None
            return found.reason
        return ""

    def why_no_transactions(self, transactional_id: str) -> str:
        """Why this user may not use transactions; empty where it may.

        It begins none: all that stays is the id, which Kafka forgets after a week. Whoever publishes
        under this id is fenced, so it must be nobody's.
        """
        patience = self._cluster.patience()
        producer = self._cluster.producer(
            {
                "transactional.id": transactional_id,
                "transaction.timeout.ms": int(1000 * TRANSACTION_S),
            }
        )
        while True:
            try:
                producer.init_transactions(SLICE_S)
            except KafkaException as error:
                serve(producer)
                if error.args[0].retriable() and not patience.ended():
                    time.sleep(0.02)
                    continue
                found = self._cluster.failure(error.args[0], "")
                if not isinstance(found, BrokerRefused):
                    raise found from None
                return found.reason
            return ""

    def _result(self, future: Any, what: str) -> Any:
        return self._cluster.result(future, self._cluster.patience(), what)


def _facts(topic: Any, settings: dict[str, str] | None) -> TopicFacts:
    operations = topic.authorized_operations
    return TopicFacts(
        len(topic.partitions),
        min(len(partition.replicas) for partition in topic.partitions),
        None if operations is None else frozenset(one.name for one in operations),
        settings,
    )
