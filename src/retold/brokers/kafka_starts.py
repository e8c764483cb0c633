"""Where the partitions of a subscription begin, and where they go on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from retold.brokers.kafka_cluster import Cluster, Place, admin_api
from retold.brokers.kafka_places import UNBEGUN, Share, committed_as, place, read_committed
from retold.brokers.polling import Start
from retold.ids import id_since

# isort: split
# Behind kafka_cluster, which tells what to install.
from confluent_kafka import Consumer, IsolationLevel, KafkaError, KafkaException, TopicPartition

_MARGIN = timedelta(minutes=10)
"""What clocks of those who write events and of those who publish them may be apart."""
LOST = {
    KafkaError.ILLEGAL_GENERATION,
    KafkaError.UNKNOWN_MEMBER_ID,
    KafkaError.REBALANCE_IN_PROGRESS,
    KafkaError.FENCED_INSTANCE_ID,
    KafkaError._ASSIGNMENT_LOST,
}
"""What a group answers to a member that it may have struck off."""


class Starts:
    """Asks the group, and where it knows nothing goes by the subscription's `start`."""

    def __init__(self, cluster: Cluster, start: Start, patience: float) -> None:
        self._cluster = cluster
        self._start: Start = start
        self._patience_s = patience

    def begin(self, client: Consumer, partitions: list[TopicPartition]) -> dict[Place, Share]:
        """Where each partition goes on."""
        shares: dict[Place, Share] = {}
        new: list[Place] = []
        for at in client.committed(partitions, timeout=self._patience_s) if partitions else ():
            if at.error is not None:
                raise KafkaException(at.error)
            where = at.topic, at.partition
            if at.offset >= 0 and at.metadata != UNBEGUN:
                saved = read_committed(at.offset, at.metadata)
                shares[where] = Share(where, saved, place(at.offset), saved)
            else:
                new.append(where)
        if new and isinstance(self._start, datetime):
            return shares | self._begin_at(client, new, self._start)
        # Also for "now": at its beginning this subscription committed what there was.
        return shares | {at: Share(at, -1, -1, -1) for at in new}

    def _begin_at(
        self, client: Consumer, places: Sequence[Place], start: datetime
    ) -> dict[Place, Share]:
        # The ends first: what comes after that is not overlooked.
        ends = self._cluster.offsets(places, admin_api.OffsetSpec.latest())
        moment = int((start - _MARGIN).timestamp() * 1000)
        wanted = [TopicPartition(*at, moment) for at in places]
        shares: dict[Place, Share] = {}
        for at in client.offsets_for_times(wanted, timeout=self._patience_s):
            where = at.topic, at.partition
            begin = place(at.offset if at.offset >= 0 else ends[where])
            shares[where] = Share(where, -1, begin, -1, id_since(start))
        return shares

    def confirm(self, client: Consumer, shares: Mapping[Place, Share]) -> bool:
        """Whether this member is one of the group's still, at some moment of this call.

        Asked by a commit that changes nothing: only of a member is one taken.
        """
        if not shares:
            return True
        share = max(shares.values(), key=lambda one: one.saved)
        offset, note = (
            committed_as(share.saved)
            if share.saved >= 0
            else (max(0, committed_as(share.read)[0]), UNBEGUN)
        )
        try:
            client.commit(offsets=[TopicPartition(*share.place, offset, note)], asynchronous=False)
        except KafkaException as error:
            if error.args[0].code() in LOST:
                return False
            raise
        return True

    def begin_now(self, client: Consumer, known: Mapping[str, int]) -> None:
        """Commit the ends of what there is, unless this subscription began before."""
        places = [(topic, number) for topic, count in known.items() for number in range(count)]
        wanted = [TopicPartition(*at) for at in places]
        if not wanted or any(
            at.offset >= 0 and at.metadata != UNBEGUN
            for at in client.committed(wanted, timeout=self._patience_s)
        ):
            return
        ends = self._cluster.offsets(
            places, admin_api.OffsetSpec.latest(), IsolationLevel.READ_COMMITTED
        )
        begins = [TopicPartition(*at, end) for at, end in ends.items()]
        try:
            client.commit(offsets=begins, asynchronous=False)
        except KafkaException as error:
            # Another member has joined meanwhile, and has done the same.
            if error.args[0].code() not in LOST:
                raise
