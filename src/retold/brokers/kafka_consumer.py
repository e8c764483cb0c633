"""Kafka as the broker of subscriptions: a member of the consumer group named after one.

A thread of its own reads into a bounded buffer and answers the group, so that a handler may take as
long as it likes. While the buffer is full the partitions are paused. When partitions are revoked,
what is buffered of them is dropped, and what the caller has in hand may be committed for some
seconds more; only then does the group go on.

After an error a new client begins at the committed positions, with the next poll but one.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from retold.brokers.base import Message
from retold.brokers.kafka_cluster import NO_TOPIC, Cluster, Place, admin_api
from retold.brokers.kafka_places import Share, committed_as, named, place
from retold.brokers.kafka_records import Records
from retold.brokers.kafka_starts import LOST, Starts
from retold.brokers.polling import Start
from retold.brokers.published import topic_name
from retold.brokers.wants import Wants
from retold.errors import (
    AssignmentLost,
    PositionGone,
    RetoldError,
)

# isort: split
# Behind kafka_cluster, which tells what to install.
from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    IsolationLevel,
    KafkaError,
    KafkaException,
    TopicPartition,
)

PATIENCE_S = 10.0
"""How long Kafka may be away before a call fails with BrokerUnavailable."""
REVOKE_S = 10.0
"""How long what is in hand may still be committed while its partition is revoked."""
_SLICE_S = 0.1
_SHORT_S = 0.004
_AT_ONCE = 200
_BUFFERED = 2_000
_BUFFERED_BYTES = 8_000_000
_FULL_S = 1.0
"""How long the buffer may be full before the partitions are paused, and what was fetched is lost."""
_ASK_S = 0.2
_PASSED_S = 5.0
"""How often a position is saved where there is nothing that anybody wants."""

_GONE = {KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE}
_PASSING = {KafkaError._MAX_POLL_EXCEEDED}
_log = logging.getLogger("retold.subscriptions")


@dataclass(slots=True)
class _Commit:
    """A commit asked for. The reader makes it: the client lets one thread in at a time."""

    handled: Mapping[int, tuple[Share, int]]
    until: float
    done: bool = False
    failure: RetoldError | None = None


class KafkaConsumer:
    """A member of a subscription that reads from Kafka. See brokers/base.py for what it promises.

    topics: entity types. settings: passed on to librdkafka. topic_of: entity type → topic.
    """

    def __init__(
        self,
        bootstrap: str,
        name: str,
        topics: Sequence[str],
        event_types: Sequence[str],
        start: Start,
        settings: Mapping[str, str] | None = None,
        *,
        assignor: str = "cooperative-sticky",
        topic_of: Callable[[str], str] = topic_name,
        patience: float = PATIENCE_S,
        wants: Wants | None = None,
    ) -> None:
        settings = settings or {}
        self._name = name
        self._topics = sorted({topic_of(entity_type) for entity_type in topics})
        self._numbers = {topic: number for number, topic in enumerate(self._topics)}
        self._records = Records(topics, event_types, wants)
        self._wants = wants
        # The one that is gone by: the notes of commits name it.
        self._generation = None if wants is None else wants.seen.number
        self._asked_at = 0.0
        self._start: Start = start
        self._patience_s = patience
        self._eager = assignor == "range"
        longest = int(settings.get("max.poll.interval.ms", 300_000)) / 1000
        self._revoke_s = min(REVOKE_S, longest / 2)
        self._own_settings: dict[str, Any] = {
            "group.id": name,
            "partition.assignment.strategy": assignor,
            "session.timeout.ms": 30_000,
            "heartbeat.interval.ms": 1_000,
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "allow.auto.create.topics": False,
            "auto.offset.reset": "error",
            "enable.partition.eof": True,
            # How soon a topic that is missing is found when it is made.
            "topic.metadata.refresh.interval.ms": 5_000,
            "socket.timeout.ms": 15_000,
            # A broker answers when there is something. That long a new partition waits to be asked
            # for, as there is one question to a broker at a time.
            "fetch.wait.max.ms": 100,
            "fetch.max.bytes": 8_000_000,
            "queued.max.messages.kbytes": 8_000,
            # How long fetching rests when that much is waiting.
            "fetch.queue.backoff.ms": 5,
        }
        self._closed = threading.Event()
        self._cluster = Cluster(bootstrap, settings, patience, self._closed)
        self._starts = Starts(self._cluster, start, patience, wants, topic_of)
        self._thread: threading.Thread | None = None
        # Guards what follows, and tells of its changes.
        self._changed = threading.Condition()
        self._client: Consumer | None = None
        self._joined = False
        self._woken = False
        self._failure: BaseException | None = None
        self._shares: dict[int, Share] = {}
        self._buffer: deque[tuple[int, Message | RetoldError]] = deque()
        self._bytes = 0
        self._commits: list[_Commit] = []
        # The reader's own.
        self._paused: set[Place] = set()
        self._missing: set[str] = set()

    @property
    def assigned(self) -> bool:
        return bool(self._shares)

    @property
    def held(self) -> Collection[int]:
        with self._changed:
            return tuple(self._shares)

    def owned(self, partition: int) -> None:
        """The group knows, and the store's database does not."""

    # --- the caller's side ------------------------------------------------------------------------

    def poll(self, limit: int, timeout: float) -> Sequence[Message]:
        """As Consumer.poll. Without a timeout it joins the group and reads to the end of what there
        is first. Raises BrokerUnavailable, BrokerRefused, PositionGone, UnreadableRecord."""
        deadline = time.monotonic() + timeout
        self._adopt()
        with self._changed:
            if self._thread is None and not self._closed.is_set() and self._failure is None:
                self._thread = threading.Thread(
                    target=self._work, name=f"{self._name} reader", daemon=True
                )
                self._thread.start()
            while not self._is_due(limit):
                left = deadline - time.monotonic()
                # Whether Kafka is there at all is told by the first poll.
                if left <= 0 and self._client is not None:
                    break
                self._changed.wait(max(left, 0.05))
            if not self._is_due(limit) and timeout <= 0 and limit:
                self._reach_end()
            return self._hand_out(limit)

    def _is_due(self, limit: int = 1) -> bool:
        waits = self._buffer if limit else ()
        return bool(waits or self._failure or self._woken or self._closed.is_set())

    def named(self, partition: int) -> str:
        return named(self._place(partition))

    def _adopt(self) -> None:
        """Go by a new generation, if there is one: stop before what only that handles.

        Not before it is known up to where that is missed. What is committed until then is noted as
        by the generation before, so that whoever takes the partition looks it through again.
        """
        wants, now = self._wants, time.monotonic()
        if wants is None or wants.seen.number == self._generation or now < self._asked_at:
            return
        self._asked_at = now + _ASK_S
        generation, others = wants.seen.number, wants.others
        rows = {row.pair: row for row in wants.cuts(0) if row.pair in others}
        if any(row.up_to is None for row in rows.values()):
            return
        with self._changed:
            self._records.others = others
            for partition, share in self._shares.items():
                for pair in others:
                    cuts = (rows[pair].up_to if pair in rows else None) or {}
                    share.stop_before(pair[1], cuts.get(self.named(partition), 0))
            self._generation = generation
            for partition, share in self._shares.items():
                if share.limit is not None:
                    self._buffer.appendleft((partition, wants.outgrown()))
                    share.buffered += 1

    def _hand_out(self, limit: int) -> Sequence[Message]:
        messages: list[Message] = []
        while self._buffer and len(messages) < limit:
            partition, head = self._buffer[0]
            if isinstance(head, RetoldError):
                if messages:
                    break
                raise head
            self._buffer.popleft()
            share = self._shares[partition]
            share.handed, share.buffered = head.position, share.buffered - 1
            self._bytes -= len(head.data)
            messages.append(head)
        if messages:
            self._changed.notify_all()
            return messages
        self._woken = False
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        return ()

    def _reach_end(self) -> None:
        """Wait until all is read that is there by now, or until there is a message."""
        until = time.monotonic() + self._patience_s + self._revoke_s
        ends: dict[int, int] | None = None
        while not self._is_due():
            if not self._joined and self._missing.issuperset(self._topics):
                return
            if self._joined and ends is None:
                places = [self._place(partition) for partition in self._shares]
                self._changed.release()
                try:
                    found = self._cluster.offsets(
                        places, admin_api.OffsetSpec.latest(), IsolationLevel.READ_COMMITTED
                    )
                finally:
                    self._changed.acquire()
                ends = {self._partition(*place): end for place, end in found.items()}
            elif ends is not None and all(
                partition not in self._shares or self._shares[partition].end >= end
                for partition, end in ends.items()
            ):
                return
            elif not self._changed.wait(max(0.0, until - time.monotonic())):
                raise self._cluster.unavailable(f"reading for subscription {self._name!r}")

    def wake(self) -> None:
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def commit(self, positions: Mapping[int, int]) -> None:
        """As Consumer.commit; a position never goes back. Raises also BrokerUnavailable."""
        with self._changed:
            handled = {n: (self._shares[n], at) for n, at in positions.items() if n in self._shares}
            if handled:
                request = _Commit(handled, time.monotonic() + self._patience_s)
                self._commits.append(request)
                self._changed.notify_all()
                self._changed.wait_for(lambda: request.done)
                if request.failure is not None:
                    raise request.failure
        if len(handled) < len(positions):
            raise AssignmentLost(self._name)

    def _serve_commits(self, client: Consumer) -> None:
        """Commit what the caller asked for. What the group does not take now stays asked for: it is
        about to share out anew, or has struck this member off, which the next poll tells."""
        with self._changed:
            requests, self._commits = self._commits, []
        for request in requests:
            try:
                done = self._save(client, request.handled)
                if not done and time.monotonic() >= request.until:
                    raise self._cluster.unavailable("committing")
            except RetoldError as error:
                done, request.failure = True, error
            with self._changed:
                request.done = done
                if not done:
                    self._commits.append(request)
                self._changed.notify_all()

    def _save(self, client: Consumer, handled: Mapping[int, tuple[Share, int]]) -> bool:
        """False where the group does not take it now. Raises AssignmentLost."""
        with self._changed:
            if any(self._shares.get(n) is not share for n, (share, _) in handled.items()):
                raise AssignmentLost(self._name)
            saves = {n: share.behind(position) for n, (share, position) in handled.items()}
            saves = {n: at for n, at in saves.items() if at > handled[n][0].saved}
            offsets = self._offsets(saves)
        if saves:
            try:
                client.commit(offsets=offsets, asynchronous=False)
            except KafkaException as error:
                if error.args[0].code() in LOST:
                    return False
                raise self._cluster.failure(error.args[0], "committing") from None
        with self._changed:
            for partition, position in saves.items():
                handled[partition][0].saved = position
        return True

    def _offsets(self, positions: Mapping[int, int]) -> list[TopicPartition]:
        return [
            TopicPartition(*self._place(partition), *committed_as(position, self._generation))
            for partition, position in positions.items()
        ]

    def close(self) -> None:
        self._closed.set()
        with self._changed:
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join(self._patience_s + self._revoke_s)

    # --- the reader's side ------------------------------------------------------------------------

    def _work(self) -> None:
        """One client's life, in a thread."""
        failure: BaseException | None = None
        client: Consumer | None = None
        try:
            known = self._cluster.partitions(self._topics, self._cluster.patience())
            client = self._cluster.member(self._own_settings)
            self._starts.settle(client, known)
            client.subscribe(
                self._topics,
                on_assign=self._on_assign,
                on_revoke=self._on_revoke,
                on_lost=self._on_lost,
            )
            with self._changed:
                self._client = client
                self._changed.notify_all()
            self._read(client)
        except KafkaException as error:
            failure = self._cluster.failure(error.args[0], f"subscription {self._name!r}")
        except BaseException as error:
            failure = error
        finally:
            if client is not None:
                self._end(client, clean=failure is None)
            with self._changed:
                self._drop(list(self._shares))
                self._client, self._joined, self._thread = None, False, None
                self._failure = failure
                for request in self._commits:
                    request.done, request.failure = True, AssignmentLost(self._name)
                self._commits.clear()
                self._changed.notify_all()

    def _end(self, client: Consumer, *, clean: bool) -> None:
        with contextlib.suppress(KafkaException, RuntimeError):
            if clean:
                self._save_passed(client, list(self._shares))
            # What is in hand is not waited for.
            with self._changed:
                self._drop(list(self._shares))
            client.close()

    def _read(self, client: Consumer) -> None:
        look = time.monotonic() + _PASSED_S
        while not self._closed.is_set():
            self._wait_for_room(client)
            self._serve_commits(client)
            # Nothing else wakes it, and who has something in hand may commit at any moment.
            first = client.poll(_SHORT_S if self._in_hand(list(self._shares)) else _SLICE_S)
            if first is not None:
                self._take_in(first, *client.consume(_AT_ONCE, 0))
            if time.monotonic() >= look:
                look = time.monotonic() + _PASSED_S
                self._save_passed(client, list(self._shares))

    def _wait_for_room(self, client: Consumer) -> None:
        with self._changed:
            if not self._paused:
                full = not self._changed.wait_for(self._has_room, _FULL_S)
            else:
                full = 2 * len(self._buffer) > _BUFFERED or 2 * self._bytes > _BUFFERED_BYTES
            places = {self._place(partition) for partition in self._shares}
        if full and (more := places - self._paused):
            client.pause([TopicPartition(*place) for place in more])
            self._paused |= more
        elif not full and self._paused:
            client.resume([TopicPartition(*place) for place in places & self._paused])
            self._paused.clear()

    def _has_room(self) -> bool:
        room = len(self._buffer) < _BUFFERED and self._bytes < _BUFFERED_BYTES
        return room or bool(self._commits) or self._closed.is_set()

    def _take_in(self, *records: Any) -> None:
        with self._changed:
            for record in records:
                error = record.error()
                topic, number, offset = record.topic(), record.partition(), record.offset()
                if error is not None and error.code() != KafkaError._PARTITION_EOF:
                    self._hear(error, topic, number)
                    continue
                partition = self._partition(topic, number)
                share = self._shares.get(partition)
                if share is None or place(offset) < share.read:
                    continue
                if error is not None:
                    share.end = offset
                    share.read = max(share.read, place(offset))
                    continue
                for message in self._records.messages(record, partition, share):
                    self._buffer.append((partition, message))
                    share.buffered += 1
                    if isinstance(message, Message):
                        self._bytes += len(message.data)
                share.read = place(offset + 1)
            self._changed.notify_all()

    def _hear(self, error: KafkaError, topic: str | None, number: int | None) -> None:
        """What the client has to say instead of a record. Raises what ends this client."""
        code = error.code()
        if code in NO_TOPIC:
            if topic is not None and topic not in self._missing:
                self._missing.add(topic)
                _log.warning("%s: waiting for topic %s, which does not exist", self._name, topic)
        elif code in _GONE:
            raise PositionGone(
                self._name, topic or "", -1 if number is None else number, error.str()
            )
        elif code not in _PASSING:
            raise self._cluster.failure(error, f"subscription {self._name!r}")

    # --- assignments ------------------------------------------------------------------------------

    def _on_assign(self, client: Consumer, partitions: list[TopicPartition]) -> None:
        shares = self._starts.begin(client, partitions)
        with self._changed:
            for at in partitions:
                self._missing.discard(at.topic)
                share = shares[at.topic, at.partition]
                if share.read >= 0:
                    at.offset = committed_as(share.read)[0]
                else:
                    at.offset = OFFSET_BEGINNING
                self._shares[self._partition(at.topic, at.partition)] = share
            self._joined = True
            self._changed.notify_all()
        if self._eager:
            client.assign(partitions)
        else:
            client.incremental_assign(partitions)
        if partitions:
            _log.info("%s: %d partitions more", self._name, len(partitions))

    def _on_revoke(self, client: Consumer, partitions: list[TopicPartition]) -> None:
        mine = [self._partition(at.topic, at.partition) for at in partitions]
        until = time.monotonic() + self._revoke_s
        with self._changed:
            self._drop_buffered(set(mine))
        while self._in_hand(mine) and time.monotonic() < until:
            with self._changed:
                self._changed.wait(0.02)
            self._serve_commits(client)
        if self._in_hand(mine):
            _log.warning(
                "%s: events in hand were not handled within %.0f s: others get them too",
                self._name,
                self._revoke_s,
            )
        self._save_passed(client, mine)
        with self._changed:
            self._drop(mine)

    def _in_hand(self, partitions: Iterable[int]) -> bool:
        return not self._closed.is_set() and any(
            self._shares[n].in_hand for n in partitions if n in self._shares
        )

    def _on_lost(self, client: Consumer, partitions: list[TopicPartition]) -> None:
        with self._changed:
            self._drop([self._partition(at.topic, at.partition) for at in partitions])
        _log.warning("%s: %d partitions were lost", self._name, len(partitions))

    def _save_passed(self, client: Consumer, partitions: Iterable[int]) -> None:
        """Save positions where everything behind the last is what nobody wants."""
        with self._changed:
            shares = {n: self._shares[n] for n in partitions if n in self._shares}
            passed = {n: share.read for n, share in shares.items() if share.passed}
            for partition, position in passed.items():
                shares[partition].saved = position
            offsets = self._offsets(passed)
        if passed:
            # If it fails, some of that is read again.
            with contextlib.suppress(KafkaException):
                client.commit(offsets=offsets, asynchronous=True)

    def _drop_buffered(self, partitions: set[int]) -> None:
        kept: deque[tuple[int, Message | RetoldError]] = deque()
        for partition, message in self._buffer:
            if partition not in partitions:
                kept.append((partition, message))
                continue
            share = self._shares[partition]
            share.buffered = 0
            share.read = share.handed  # what was read behind it is not handled
            if isinstance(message, Message):
                self._bytes -= len(message.data)
        self._buffer = kept

    def _drop(self, partitions: Iterable[int]) -> None:
        self._drop_buffered(set(partitions))
        for partition in partitions:
            self._shares.pop(partition, None)
            self._paused.discard(self._place(partition))
        self._changed.notify_all()

    # --- names ------------------------------------------------------------------------------------

    def _partition(self, topic: str, number: int) -> int:
        """A partition of a topic as this member's callers know it."""
        return number * len(self._topics) + self._numbers[topic]

    def _place(self, partition: int) -> Place:
        number, topic = divmod(partition, len(self._topics))
        return self._topics[topic], number
