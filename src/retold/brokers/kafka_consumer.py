"""Kafka as the broker of subscriptions: a member of the consumer group named after one.

A thread of its own reads into a bounded buffer and answers the group, so that a handler may take as
long as it likes. While the buffer is full the partitions are paused. When partitions are revoked,
what is buffered of them is dropped, and what the caller has in hand may be committed for some
seconds more; only then does the group go on. A partition that is assigned is claimed in the store's
database first (kafka_claims.py).

After an error a new client begins at the committed positions, with the next poll but one.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from retold.brokers.base import Message, Places
from retold.brokers.kafka_claims import Claims
from retold.brokers.kafka_cluster import NO_TOPIC, Cluster, Place, admin_api
from retold.brokers.kafka_commits import Commits
from retold.brokers.kafka_held import Held, Stop
from retold.brokers.kafka_places import Share, committed_as, place, place_name
from retold.brokers.kafka_records import Records
from retold.brokers.kafka_starts import Starts
from retold.brokers.moving import Cut, cut_of, place_parked
from retold.brokers.polling import Start
from retold.brokers.published import topic_name
from retold.brokers.wants import Wants
from retold.errors import AssignmentLost, PositionGone
from retold.store.connections import BlockingDriver
from retold.store.driver import Statement

# isort: split
# Behind kafka_cluster, which tells what to install.
from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    IsolationLevel,
    KafkaError,
    KafkaException,
    TopicPartition,
    murmur2,
)

PATIENCE_S = 10.0
"""How long Kafka may be away before a call fails with BrokerUnavailable."""
REVOKE_S = 10.0
"""How long what is in hand may still be committed while its partition is revoked."""
AT_ONCE = 200
"""How many records are taken from the client at once."""
FULL_S = 1.0
"""How long the buffer may be full before the partitions are paused, and what was fetched is lost."""
SLICE_S = 0.1
_ASK_S = 0.2
_SHORT_S = 0.004
_PASSED_S = 5.0
"""How often a position is saved where there is nothing that anybody wants."""

_GONE = {KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE}
_PASSING = {KafkaError._MAX_POLL_EXCEEDED}
_log = logging.getLogger("retold.subscriptions")


class KafkaConsumer:
    """A member of a subscription that reads from Kafka. See brokers/base.py for what it promises.

    driver: of the store's database. topics: entity types. settings: passed on to librdkafka.
    topic_of: entity type → topic.
    """

    def __init__(
        self,
        driver: BlockingDriver,
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
        places: Places | None = None,
        wants: Wants | None = None,
    ) -> None:
        settings = settings or {}
        self._name = name
        entity_types: dict[str, list[str]] = {}
        for entity_type in sorted(topics):
            entity_types.setdefault(topic_of(entity_type), []).append(entity_type)
        self._topics = sorted(entity_types)
        self._topic_of = topic_of
        self._records = Records(entity_types, event_types, wants)
        self._places = places
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
        self._starts = Starts(self._cluster, start, patience, places, wants, topic_of)
        self._driver = driver
        self._cut: Cut | None = None
        self._claims = Claims(driver, name)
        self._held = Held()
        # Guards the shares and what follows, and tells of their changes.
        self._changed = self._held.changed
        self._commits = Commits(name, self._held, self._cluster, patience)
        self._commits.generation = self._generation
        self._thread: threading.Thread | None = None
        self._client: Consumer | None = None
        self._joined = False
        self._woken = False
        self._failure: BaseException | None = None
        # The reader's own.
        self._paused: set[Place] = set()
        self._room_at = time.monotonic()
        self._missing: set[str] = set()

    @property
    def assigned(self) -> bool:
        return bool(self._held.shares)

    @property
    def held(self) -> Mapping[int, object]:
        with self._changed:
            return dict(self._held.shares)

    def owned(self, partition: int) -> Statement:
        with self._changed:
            return self._claims.owned(partition, self._held.shares.get(partition))

    def place(self, partition: int) -> str:
        with self._changed:
            return place_name(*self._held.place(partition))

    def reached(self) -> Mapping[int, int]:
        with self._changed:
            shares = self._held.shares.items()
            return {n: share.read for n, share in shares if share.read >= 0 and not share.buffered}

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
        buffered = bool(self._held.buffer and limit)
        return buffered or bool(self._failure or self._woken or self._closed.is_set())

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
            for share in self._held.shares.values():
                for pair in others:
                    cuts = (rows[pair].up_to if pair in rows else None) or {}
                    share.stop_before(pair[1], cuts.get(place_name(*share.place), 0))
            self._generation = self._commits.generation = generation
            for partition, share in self._held.shares.items():
                if share.limit is not None:
                    self._held.stop(partition, wants.outgrown())

    def _hand_out(self, limit: int) -> Sequence[Message]:
        if messages := self._held.hand_out(limit):
            # To wake the reader for a few costs more than they do.
            if not self._held.is_fuller_than(0.5):
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
        ends: Mapping[Place, int] | None = None
        while not self._is_due():
            if not self._joined and self._missing.issuperset(self._topics):
                return
            if self._joined and ends is None:
                places = self._held.places()
                self._changed.release()
                try:
                    ends = self._cluster.offsets(
                        places, admin_api.OffsetSpec.latest(), IsolationLevel.READ_COMMITTED
                    )
                finally:
                    self._changed.acquire()
            elif ends is not None and self._held.at_end(ends):
                return
            elif not self._changed.wait(max(0.0, until - time.monotonic())):
                raise self._cluster.unavailable(f"reading for subscription {self._name!r}")

    def wake(self) -> None:
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def commit(self, positions: Mapping[int, int]) -> None:
        """As Consumer.commit; a position never goes back. Raises also BrokerUnavailable."""
        self._commits.ask(positions)

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
            if self._places is None:  # they say themselves what another broker has handed out
                self._cut = cut_of(self._driver, self._name)
            start = self._start if self._cut is None else "beginning"
            self._starts = Starts(
                self._cluster, start, self._patience_s, self._places, self._wants, self._topic_of
            )
            known = self._cluster.partitions(self._topics, self._cluster.patience())
            client = self._cluster.member(
                self._own_settings | {"on_commit": self._commits.answered}
            )
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
                self._drop(self._held.shares)
                self._client, self._joined, self._thread = None, False, None
                self._failure = failure
                self._commits.give_up()

    def _end(self, client: Consumer, *, clean: bool) -> None:
        if clean:
            self._save_passed(client, list(self._held.shares))
        # What is in hand is not waited for.
        with self._changed:
            self._drop(self._held.shares)
        for step in (partial(self._leave, client), client.close):
            with contextlib.suppress(KafkaException, RuntimeError):
                step()

    def _leave(self, client: Consumer) -> None:
        """Leave the group. The client's own `close` does not where it has no partition, and ends
        where others are still to join; then they wait for this member until it is missed."""
        client.unsubscribe()
        until = time.monotonic() + self._revoke_s
        while client.memberid() and time.monotonic() < until:
            client.poll(_SHORT_S)

    def _read(self, client: Consumer) -> None:
        look = time.monotonic() + _PASSED_S
        while not self._closed.is_set():
            self._wait_for_room(client)
            self._commits.serve(client)
            # Nothing else wakes it, and who has something in hand, or will at any moment, may commit.
            hurry = self._commits.under_way or self._held.buffer or self._held.in_hand_at_all
            full = self._held.is_fuller_than(1)
            if full:
                # It is here for a commit alone, and each poll for the answer may bring a record.
                self._closed.wait(_SHORT_S)
            first = client.poll(_SHORT_S if hurry else SLICE_S)
            if first is not None:
                self._take_in(first, *(() if full else client.consume(AT_ONCE, 0)))
            if time.monotonic() >= look:
                look = time.monotonic() + _PASSED_S
                self._save_passed(client, list(self._held.shares))

    def _wait_for_room(self, client: Consumer) -> None:
        with self._changed:
            if not self._paused:
                self._changed.wait_for(self._has_room, FULL_S)
                full = self._is_full_for(FULL_S)
            else:
                full = self._held.is_fuller_than(0.5)
            places = self._held.places()
        if full and (more := places - self._paused):
            client.pause([TopicPartition(*at) for at in more])
            self._paused |= more
        elif not full and self._paused:
            client.resume([TopicPartition(*at) for at in places & self._paused])
            self._paused.clear()

    def _is_full_for(self, seconds: float) -> bool:
        now = time.monotonic()
        if not self._held.is_fuller_than(1):
            self._room_at = now
        return now - self._room_at >= seconds

    def _has_room(self) -> bool:
        return not self._held.is_fuller_than(1) or self._commits.waiting or self._closed.is_set()

    def _take_in(self, *records: Any) -> None:
        """Buffer what is wanted of records that were not read yet. Raises what ends this client."""
        found: list[tuple[Share, int, Sequence[Message | Stop]]] = []
        for record in records:
            error, at = record.error(), (record.topic(), record.partition())
            if error is not None and error.code() != KafkaError._PARTITION_EOF:
                self._hear(error, *at)
                continue
            number, offset = self._held.number(at), record.offset()
            share = self._held.shares.get(number)
            if share is None or place(offset) < share.read:
                continue
            if error is not None:
                found.append((share, place(offset), ()))
            else:
                messages = self._records.messages(record, number, share)
                found.append((share, place(offset + 1), messages))
        handled: Collection[str] = ()
        if self._cut is not None:
            handled = self._cut.handled(
                one.event_id for _, _, own in found for one in own if isinstance(one, Message)
            )
        with self._changed:
            for share, behind, messages in found:
                if handled:
                    messages = [
                        one
                        for one in messages
                        if isinstance(one, Stop) or one.event_id not in handled
                    ]
                self._held.put(messages, share)
                share.read = behind
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
        read = self._claims.read([(at.topic, at.partition) for at in partitions])
        shares = self._starts.begin(client, partitions)
        if not self._starts.confirm(client, shares):
            raise AssignmentLost(self._name)
        self._claims.take(read, shares)
        if self._cut is not None:
            self._place_parked({at: claim.number for at, claim in read.items()})
        with self._changed:
            for at in partitions:
                self._missing.discard(at.topic)
                where = at.topic, at.partition
                share = shares[where]
                at.offset = committed_as(share.read)[0] if share.read >= 0 else OFFSET_BEGINNING
                self._held.begin(read[where].number, where, share)
            self._joined = True
            self._changed.notify_all()
        if self._eager:
            client.assign(partitions)
        else:
            client.incremental_assign(partitions)
        if partitions:
            _log.info("%s: %d partitions more", self._name, len(partitions))

    def _place_parked(self, numbers: Mapping[Place, int]) -> None:
        """Take over what was parked before the move, where the partitions are this member's."""
        counts = self._cluster.partitions({topic for topic, _ in numbers}, self._cluster.patience())

        def number_of(entity_type: str, entity_id: str) -> int | None:
            topic = self._topic_of(entity_type)
            if topic not in counts:
                return None
            return numbers.get((topic, murmur2(entity_id.encode(), counts[topic])))

        self._driver.run(place_parked(self._driver.dialect.queries, self._name, number_of))

    def _on_revoke(self, client: Consumer, partitions: list[TopicPartition]) -> None:
        until = time.monotonic() + self._revoke_s
        with self._changed:
            mine = self._of(partitions)
            self._held.take_back(mine)
        while self._in_hand(mine) and time.monotonic() < until:
            with self._changed:
                self._changed.wait(0.02)
            self._commits.serve(client, at_once=True)
        if self._in_hand(mine):
            _log.warning(
                "%s: events in hand were not handled within %.0f s: others get them too",
                self._name,
                self._revoke_s,
            )
        self._save_passed(client, mine)
        with self._changed:
            self._drop(mine)

    def _in_hand(self, numbers: Iterable[int]) -> bool:
        return not self._closed.is_set() and self._held.in_hand(numbers)

    def _on_lost(self, client: Consumer, partitions: list[TopicPartition]) -> None:
        with self._changed:
            self._drop(self._of(partitions))
        _log.warning("%s: %d partitions were lost", self._name, len(partitions))

    def _of(self, partitions: list[TopicPartition]) -> list[int]:
        """The numbers of those that are this member's."""
        numbers = (self._held.number((at.topic, at.partition)) for at in partitions)
        return [number for number in numbers if number in self._held.shares]

    def _save_passed(self, client: Consumer, numbers: Iterable[int]) -> None:
        """Save positions where everything behind the last is what nobody wants."""
        with self._changed:
            if not (passed := self._held.passed(numbers)):
                return
            offsets = self._commits.offsets(passed)
        with contextlib.suppress(KafkaException):
            client.commit(offsets=offsets, asynchronous=True)

    def _drop(self, numbers: Iterable[int]) -> None:
        self._paused.difference_update(self._held.drop(list(numbers)))
