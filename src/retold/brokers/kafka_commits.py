"""Commits: asked for by the caller, made by the reader, answered by a later poll of the client.

The coordinator of a group answers no commit of a member while that waits for the others to join
again. So nobody waits for an answer in the reader's thread, which has to poll meanwhile; but for
the time of a revocation, when polling is not possible.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from retold.brokers.kafka_cluster import Cluster
from retold.brokers.kafka_held import Held
from retold.brokers.kafka_places import Share, committed_as
from retold.brokers.kafka_starts import LOST
from retold.errors import AssignmentLost, RetoldError

# isort: split
# Behind kafka_cluster, which tells what to install.
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition


@dataclass(slots=True)
class _Request:
    """What the caller asked to commit: by partition its share and the position."""

    handled: dict[int, tuple[Share, int]]
    until: float
    done: bool = False
    failure: RetoldError | None = None


@dataclass(slots=True)
class _Flight:
    """Requests that are under way together, and what they save."""

    requests: list[_Request]
    saves: dict[int, int] = field(default_factory=dict[int, int])
    offsets: list[TopicPartition] = field(default_factory=list[TopicPartition])


class Commits:
    """The commits of one member. patience: how long the group may refuse one, in seconds."""

    def __init__(self, name: str, held: Held, cluster: Cluster, patience: float) -> None:
        self._name = name
        self._held = held
        self._changed = held.changed
        self._cluster = cluster
        self._patience_s = patience
        # Of the subscription: what was committed was passed by one that goes by it.
        self.generation: int | None = None
        self._requests: list[_Request] = []
        # One at a time: an answer does not say which question it answers.
        self._flight: _Flight | None = None

    def ask(self, positions: Mapping[int, int]) -> None:
        """Wait until they are saved. Raises AssignmentLost, BrokerUnavailable, BrokerRefused."""
        with self._changed:
            shares = self._held.shares
            handled = {n: (shares[n], at) for n, at in positions.items() if n in shares}
            if handled:
                request = _Request(handled, time.monotonic() + self._patience_s)
                self._requests.append(request)
                self._changed.notify_all()
                self._changed.wait_for(lambda: request.done)
                if request.failure is not None:
                    raise request.failure
        if len(handled) < len(positions):
            raise AssignmentLost(self._name)

    @property
    def waiting(self) -> bool:
        return bool(self._requests) or self._flight is not None

    @property
    def under_way(self) -> bool:
        return self._flight is not None

    def serve(self, client: Consumer, *, at_once: bool = False) -> None:
        """Send what was asked for, unless something is under way. at_once: and wait for the answer,
        also to what is under way: a position may be saved twice."""
        with self._changed:
            if self._flight is not None and not at_once:
                return
            flight = self._begin()
        if not flight.saves:
            self._answer(flight, None)
            return
        try:
            if at_once:
                client.commit(offsets=flight.offsets, asynchronous=False)
            else:
                client.commit(offsets=flight.offsets, asynchronous=True)
        except KafkaException as error:
            self._answer(flight, error.args[0])
        else:
            if at_once:
                self._answer(flight, None)

    def _begin(self) -> _Flight:
        under_way = self._flight.requests if self._flight else []
        flight = _Flight([*under_way, *self._requests])
        self._requests, self._flight = [], None
        for request in flight.requests:
            for n, (share, position) in list(request.handled.items()):
                if self._held.shares.get(n) is not share:
                    del request.handled[n]
                    request.failure = AssignmentLost(self._name)
                elif (at := share.behind(position)) > max(share.saved, flight.saves.get(n, -1)):
                    flight.saves[n] = at
        if flight.saves:
            flight.offsets = self.offsets(flight.saves)
            self._flight = flight
        return flight

    def offsets(self, positions: Mapping[int, int]) -> list[TopicPartition]:
        """As the client wants them, of partitions that are this member's."""
        return [
            TopicPartition(*self._held.shares[n].place, *committed_as(position, self.generation))
            for n, position in positions.items()
        ]

    def answered(self, error: KafkaError | None, partitions: list[TopicPartition]) -> None:
        """The client's answer. One to a position that nobody waits for is not looked at."""
        flight = self._flight
        if flight is not None and _offsets(flight.offsets) == _offsets(partitions):
            refused = (at.error for at in partitions if at.error is not None)
            self._answer(flight, error or next(refused, None))

    def _answer(self, flight: _Flight, error: KafkaError | None) -> None:
        """What the group does not take now stays asked for: it is about to share out anew, or has
        struck this member off, which the next poll tells."""
        again = error is not None and error.code() in LOST
        with self._changed:
            if self._flight is flight:
                self._flight = None
            for number, position in flight.saves.items():
                if error is None and (share := self._held.shares.get(number)) is not None:
                    share.saved = max(share.saved, position)
            for request in flight.requests:
                if again and time.monotonic() < request.until:
                    self._requests.append(request)
                    continue
                request.done = True
                if again:
                    request.failure = self._cluster.unavailable("committing")
                elif error is not None:
                    request.failure = self._cluster.failure(error, "committing")
            self._changed.notify_all()

    def give_up(self) -> None:
        """The client is gone, and nothing will be answered. The caller has the lock."""
        for request in [*self._requests, *(self._flight.requests if self._flight else ())]:
            request.done, request.failure = True, AssignmentLost(self._name)
        self._requests, self._flight = [], None
        self._changed.notify_all()


def _offsets(partitions: Iterable[TopicPartition]) -> dict[tuple[str, int], int]:
    return {(at.topic, at.partition): at.offset for at in partitions}
