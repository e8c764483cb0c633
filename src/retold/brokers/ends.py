"""Where the log ends now, by places, for those who keep positions elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from retold.brokers.numbered_log import log_state, number
from retold.store.connections import BlockingDriver
from retold.store.driver import Plan, Statement
from retold.store.options import KafkaAddress


def log_ends(
    driver: BlockingDriver, topics: Sequence[str], kafka: KafkaAddress | None = None
) -> dict[str, int]:
    """Place → the position up to which a member would read now. topics: entity types.

    Raises LogMissing, BrokerUnavailable.
    """
    if kafka is not None:
        from retold.brokers.kafka_ends import topic_ends

        return topic_ends(kafka, topics)
    if driver.dialect.name == "sqlite":
        return {"0": driver.run(last_position(driver.dialect.queries))}
    return driver.run(_numbered(driver.dialect.queries))


def behind(ends: Mapping[str, int], positions: Mapping[str, int]) -> int:
    """How far behind the end of the log a reader at these positions is: in positions of the log, and
    on Kafka in records of its partitions."""
    left = {place: max(0, end - positions.get(place, 0)) for place, end in ends.items()}
    if any("/" in place for place in ends):
        from retold.brokers.kafka_ends import records_in

        return sum(records_in(distance) for distance in left.values())
    return max(left.values(), default=0)


def last_position(sql: Mapping[str, str]) -> Plan[int]:
    (found,) = yield [Statement(sql["log_end"])]
    return int(found.rows[0][0])


def _numbered(sql: Mapping[str, str]) -> Plan[dict[str, int]]:
    partitions = (yield from log_state(sql)).partitions
    while (numbered := (yield from number(sql))).more:
        pass
    return {str(partition): numbered.end for partition in range(partitions)}
