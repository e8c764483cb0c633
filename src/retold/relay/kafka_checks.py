"""What a relay needs of Kafka: judgements on what kafka_facts has found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from retold.relay.checks import Check, failed, ok, warning

if TYPE_CHECKING:
    from retold.brokers.kafka_facts import TopicFacts

EVENT_BYTES = 1_000_000
"""What a record needs: a store's max_event_bytes is 900,000 by default, and something is around."""
_NEEDED = {"DESCRIBE": "Describe", "READ": "Read", "WRITE": "Write"}


def brokers_check(brokers: int) -> Check:
    return ok("Kafka", f"answers, with {brokers} broker" + "s" * (brokers > 1))


def transactions_check(name: str, reason: str) -> Check:
    """reason: why the relay `name` may not use them, empty where it may."""
    if not reason:
        return ok("transactions", "are allowed")
    ids = f"retold-relay-{name} and retold-doctor-{name}"
    return failed(
        "transactions",
        f"are not allowed: {reason}",
        f"allow Write and Describe on the transactional ids {ids}",
    )


def missing_topic_check(topic: str, partitions: int, reason: str) -> Check:
    """reason: why the relay may not make it, empty where it may."""
    name = f"topic {topic}"
    if not reason:
        of = f"with {partitions} partitions" if partitions > 1 else "with one partition"
        return ok(name, f"is made when it is needed, {of}")
    return failed(
        name,
        f"does not exist and may not be made: {reason}",
        "make it, or allow Create on topics of its name",
    )


def events_topic_checks(topic: str, facts: TopicFacts) -> list[Check]:
    """The topic of an entity type."""
    found = f"has {facts.partitions} partition" + "s" * (facts.partitions > 1)
    problems = [*_rights(topic, facts), *_copies(topic, facts)]
    if facts.settings is not None:
        problems += _keeping(topic, facts.settings)
        problems += _size(topic, facts.settings)
        if not problems:
            found += " and keeps everything"
    return problems or [ok(f"topic {topic}", found)]


def positions_topic_checks(topic: str, facts: TopicFacts) -> list[Check]:
    """The topic of the relay's positions."""
    name = f"topic {topic}"
    problems = [*_rights(topic, facts), *_copies(topic, facts)]
    if facts.partitions != 1:
        found = f"has {facts.partitions} partitions and must have one"
        problems.append(failed(name, found, "delete it, then run: retold relay --resync"))
    policy = (facts.settings or {}).get("cleanup.policy", "compact")
    if "delete" in policy:
        found = f"has cleanup.policy={policy}, so the position of a relay that rests is deleted"
        problems.append(failed(name, found, _alter(topic, "cleanup.policy=compact")))
    return problems or [ok(name, "is as it must be")]


def _rights(topic: str, facts: TopicFacts) -> Iterator[Check]:
    name = f"topic {topic}"
    if facts.allowed is not None:
        missing = [word for operation, word in _NEEDED.items() if operation not in facts.allowed]
        if missing:
            words = ", ".join(missing)
            yield failed(name, f"does not allow this user: {words}", f"allow {words} on it")
    if facts.settings is None:
        yield warning(
            name, "does not show this user its settings", "allow DescribeConfigs on it, and look"
        )


def _copies(topic: str, facts: TopicFacts) -> Iterator[Check]:
    name, copies = f"topic {topic}", facts.copies
    least = int((facts.settings or {}).get("min.insync.replicas", 1))
    if copies < least:
        yield failed(
            name,
            f"has {_number(copies)}, fewer than min.insync.replicas={least}, so it takes nothing",
            "give it more with kafka-reassign-partitions",
        )
    elif copies == 1:
        yield warning(
            name,
            "has one copy, so a lost disk loses its events",
            "on several brokers, give it three with kafka-reassign-partitions",
        )
    elif copies == least:
        yield warning(
            name,
            f"has {_number(copies)} and min.insync.replicas={least}, so every restart of a broker "
            "stops the relay",
            "give it one more with kafka-reassign-partitions",
        )
    elif least == 1 and facts.settings is not None:
        yield warning(
            name,
            "has min.insync.replicas=1, so what is published may be on one disk alone",
            _alter(topic, "min.insync.replicas=2"),
        )


def _keeping(topic: str, settings: Mapping[str, str]) -> Iterator[Check]:
    name, policy = f"topic {topic}", settings.get("cleanup.policy", "delete")
    if "compact" in policy:
        yield failed(
            name,
            f"has cleanup.policy={policy}, so Kafka deletes all events of an entity but the last",
            _alter(topic, "cleanup.policy=delete,retention.ms=-1,retention.bytes=-1"),
        )
        return
    for setting in ("retention.ms", "retention.bytes"):
        if (value := settings.get(setting, "-1")) != "-1":
            yield warning(
                name,
                f"has {setting}={value}, so it forgets events, and nothing can be rebuilt from it",
                _alter(topic, f"{setting}=-1"),
            )


def _size(topic: str, settings: Mapping[str, str]) -> Iterator[Check]:
    most = int(settings.get("max.message.bytes", EVENT_BYTES))
    if most < EVENT_BYTES:
        yield warning(
            f"topic {topic}",
            f"takes no record above max.message.bytes={most}, and an event may have 900,000 bytes "
            "and more around it: a larger one stops the relay",
            _alter(topic, "max.message.bytes=1048588") + ", or lower the stores' max_event_bytes",
        )


def _number(copies: int) -> str:
    return "one copy" if copies == 1 else f"{copies} copies"


def _alter(topic: str, setting: str) -> str:
    return f"run: kafka-configs --alter --entity-type topics --entity-name {topic} --add-config {setting}"
