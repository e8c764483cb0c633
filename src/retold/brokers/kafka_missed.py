"""How many events of a name a subscription has passed in Kafka before it handled that name."""

from __future__ import annotations

from retold.brokers.kafka_cluster import Cluster, Place, admin_api
from retold.brokers.kafka_places import committed_as
from retold.brokers.published import events_in
from retold.brokers.wants import Wants
from retold.store.generations import Missed

_READ = 100_000
"""How many records are looked through, at most."""


def count_missed(cluster: Cluster, wants: Wants, row: Missed) -> None:
    """Count, and say, what was missed. Looks through the last part of the topic only."""
    ends: dict[Place, int] = {}
    for name, position in (row.up_to or {}).items():
        topic, _, number = name.rpartition("/")
        ends[topic, int(number)] = committed_as(position)[0]
    begins = cluster.offsets(ends, admin_api.OffsetSpec.earliest())
    share = _READ // max(1, len(ends))
    ranges = {at: (max(begins[at], end - share), end) for at, end in ends.items()}
    whole = all(start == begins[at] for at, (start, _) in ranges.items())
    events = 0
    for records in cluster.read(ranges, wants.name):
        for record in records:
            kind = record.headers.get("type")
            if kind is None or kind.decode("utf-8", "replace") == row.event_type:
                events += _count(record.value, row)
    wants.counted(row.pair, events, whole=whole)


def _count(value: bytes, row: Missed) -> int:
    try:
        return sum((one.entityType, one.eventType) == row.pair for one in events_in(value))
    except ValueError:
        return 0  # whoever handles events will say so
