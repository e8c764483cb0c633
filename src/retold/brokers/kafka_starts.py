"""Where the partitions of a subscription begin, and where they go on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta

from retold.brokers.base import Places
from retold.brokers.kafka_cluster import Cluster, Place, admin_api
from retold.brokers.kafka_missed import count_missed
from retold.brokers.kafka_places import (
    UNBEGUN,
    Share,
    committed_as,
    place,
    place_name,
    read_committed,
    read_generation,
)
from retold.brokers.polling import Start
from retold.brokers.published import topic_name
from retold.brokers.wants import Wants
from retold.ids import id_since
from retold.store.generations import Pair

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

    def __init__(
        self,
        cluster: Cluster,
        start: Start,
        patience: float,
        places: Places | None = None,
        wants: Wants | None = None,
        topic_of: Callable[[str], str] = topic_name,
    ) -> None:
        self._wants = wants
        self._topic_of = topic_of
        self._cluster = cluster
        self._start: Start = start
        self._patience_s = patience
        self._places = places

    def begin(self, client: Consumer, partitions: list[TopicPartition]) -> dict[Place, Share]:
        """Where each partition goes on."""
        if self._places is not None and partitions:
            names = {place_name(at.topic, at.partition): at for at in partitions}
            claimed = self._places.claim(list(names))
            return {
                (at.topic, at.partition): Share(
                    (at.topic, at.partition), claimed[name], claimed[name], claimed[name]
                )
                for name, at in names.items()
            }
        shares: dict[Place, Share] = {}
        new: list[Place] = []
        for at in client.committed(partitions, timeout=self._patience_s) if partitions else ():
            if at.error is not None:
                raise KafkaException(at.error)
            if _has_begun(at):
                shares[at.topic, at.partition] = self._go_on(at)
            else:
                new.append((at.topic, at.partition))
        if new and isinstance(self._start, datetime):
            return shares | self._begin_at(client, new, self._start)
        # Also for "now": at its beginning this subscription committed what there was.
        return shares | {at: Share(at, -1, -1, -1) for at in new}

    def settle(self, client: Consumer, known: Mapping[str, int]) -> None:
        """Before this member joins: settle where a new subscription begins, and up to where events
        were passed that it handles from now on."""
        wants = self._wants
        if self._start == "now" and (wants is None or not wants.seen.begun):
            self.begin_now(client, known)
        if wants is None:
            return
        if not wants.seen.begun:
            # A topic that is made later holds what came later.
            wants.begun()
        if new := [row.pair for row in wants.missed() if row.up_to is None]:
            passed = [at for at in self._committed(client, known) if _has_begun(at)]
            wants.measured(
                {
                    pair: {
                        place_name(at.topic, at.partition): read_committed(at.offset, at.metadata)
                        for at in passed
                        if at.topic == self._topic_of(pair[0])
                    }
                    for pair in new
                }
            )
        for row in wants.missed():
            if row.events is None:
                count_missed(self._cluster, wants, row)

    def _committed(self, client: Consumer, known: Mapping[str, int]) -> list[TopicPartition]:
        wanted = [TopicPartition(topic, n) for topic, count in known.items() for n in range(count)]
        return client.committed(wanted, timeout=self._patience_s) if wanted else []

    def _go_on(self, at: TopicPartition) -> Share:
        """Behind what is committed. But who committed that may not have known of a newer generation,
        and may have passed what that handles: these events are read again."""
        saved, at_offset = read_committed(at.offset, at.metadata), place(at.offset)
        generation = read_generation(at.metadata)
        late: dict[Pair, int] = {}
        if self._wants is not None and generation is not None:
            for row in self._wants.cuts(generation):
                cut = saved
                if row.up_to is not None:
                    cut = row.up_to.get(place_name(at.topic, at.partition), -1)
                if cut < saved:
                    late[row.pair] = cut
        where, committed = (at.topic, at.partition), (at.offset, at.metadata or "")
        if not late:
            return Share(where, saved, at_offset, saved, until=saved, committed=committed)
        begin = min(late.values())
        read = begin if begin < 0 else place(committed_as(begin)[0])
        return Share(where, begin, read, begin, until=saved, late=late, committed=committed)

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
        if share.committed is not None:
            offset, note = share.committed
        elif share.saved >= 0:
            offset, note = committed_as(share.saved)
        else:
            offset, note = max(0, committed_as(share.read)[0]), UNBEGUN
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
        if not places or any(_has_begun(at) for at in self._committed(client, known)):
            return
        ends = self._cluster.offsets(
            places, admin_api.OffsetSpec.latest(), IsolationLevel.READ_COMMITTED
        )
        generation = None if self._wants is None else self._wants.seen.number
        begins = [
            TopicPartition(*at, *committed_as(place(end), generation)) for at, end in ends.items()
        ]
        try:
            client.commit(offsets=begins, asynchronous=False)
        except KafkaException as error:
            # Another member has joined meanwhile, and has done the same.
            if error.args[0].code() not in LOST:
                raise


def _has_begun(at: TopicPartition) -> bool:
    """Whether the group has a position of ours, or of Java's, for the partition."""
    return at.offset >= 0 and at.metadata != UNBEGUN
