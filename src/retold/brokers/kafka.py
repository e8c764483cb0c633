"""Kafka as the relay's broker, through librdkafka. See brokers/base.py for what is promised.

A relay is two transactional producers, `retold-relay-<name>` and `retold-relay-<name>:2`; its
checkpoints are the records of a compacted topic with one partition, `retold.relay.<name>`. What the
producers of the same name had under way when others begin is ended by Kafka, which refuses whatever
they send later.

The two take turns, so that one writes while the other commits. Order hangs on two rules: a
transaction is written only when the one before it stands in the log, and its commit is asked for
only when that one is committed. So what is visible is always the first so many transactions,
wherever this ends. And a position is read only after both producers of the one before are fenced.

The partition of a record is chosen here, from the number of partitions that the relay was told:
librdkafka would follow an increase as soon as it hears of it, and put the later events of an entity
into another partition than the earlier ones.
"""

from __future__ import annotations

import contextlib
import logging
import re
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from retold.brokers.base import Published, Record
from retold.brokers.kafka_cluster import (
    FENCED,
    PATIENCE_S,
    REFUSED,
    Cluster,
    Patience,
    Place,
    admin_api,
)
from retold.brokers.kafka_transactions import Failure, TransactionalProducer
from retold.errors import (
    BrokerRefused,
    BrokerUnavailable,
    InvalidValue,
    PositionMissing,
    RecordTooLarge,
    RetoldError,
)

# isort: split
# Behind kafka_cluster, which tells what to install.
from confluent_kafka import KafkaError, KafkaException, Producer

PARTITIONS = 12
"""The number of partitions of a topic that the relay makes: it cannot be changed later."""
EVENTS_TOPIC = {"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1"}
"""The settings of such a topic: it keeps what it holds."""
POSITIONS_TOPIC = {
    "cleanup.policy": "compact",
    # Old checkpoints go soon: the start of a relay reads few of them.
    "segment.ms": "600000",
    "min.cleanable.dirty.ratio": "0.01",
}
_LOOK_S = 0.0003
"""How often to look whether a transaction stands in the log."""
_GRACE_S = 5.0
"""How long a transaction may take to finish after the relay was told to stop."""
TRANSACTION_S = 60.0
_MESSAGE_BYTES = 16_000_000
_BATCH_BYTES = 1_000_000
_BUFFER_BYTES = 32_000_000

_log = logging.getLogger("retold.kafka")


def positions_topic(name: str) -> str:
    """The topic of a relay's checkpoints."""
    return f"retold.relay.{name}"


class KafkaTopics:
    """Reads what stands in topics."""

    def __init__(
        self,
        bootstrap: str,
        settings: Mapping[str, str] | None = None,
        *,
        group: str = "retold",
        patience: float = PATIENCE_S,
        stop: threading.Event | None = None,
    ) -> None:
        self._cluster = Cluster(bootstrap, settings or {}, patience, stop)
        self._group = group

    def partitions(self, topics: Iterable[str]) -> dict[str, int]:
        return self._cluster.partitions(topics, self._cluster.patience())

    def offsets_at(self, topics: Iterable[str], time: int) -> dict[Place, int]:
        places = self._places(topics)
        # In this order: what comes between the two answers is no older.
        ends = self._cluster.offsets(places, admin_api.OffsetSpec.latest())
        found = self._cluster.offsets(places, admin_api.OffsetSpec.for_timestamp(time))
        return {place: end if found[place] < 0 else found[place] for place, end in ends.items()}

    def _places(self, topics: Iterable[str]) -> list[Place]:
        counts = self.partitions(topics)
        return [(topic, number) for topic, count in counts.items() for number in range(count)]

    def read(
        self, topics: Iterable[str], behind: Mapping[Place, int] | None = None
    ) -> Iterator[Sequence[Published]]:
        places = self._places(topics)
        ends = self._cluster.offsets(places, admin_api.OffsetSpec.latest())
        begins = self._cluster.offsets(places, admin_api.OffsetSpec.earliest())
        if behind:
            begins = {place: max(begin, behind.get(place, 0)) for place, begin in begins.items()}
        ranges = {place: (begins[place], ends[place]) for place in places}
        return self._cluster.read(ranges, self._group)


@dataclass(slots=True)
class _UnderWay:
    """A transaction whose commit was asked for. records: until they stand in the log."""

    producer: TransactionalProducer
    patience: Patience
    records: Sequence[Record]
    done: Future[None]


def _commit(
    producer: TransactionalProducer, patience: Patience, committed: Callable[[], object]
) -> None:
    producer.commit(patience)
    committed()


class KafkaPublisher:
    """Publishes for the relay `name`.

    settings: passed on to librdkafka. partitions, replication: of topics made here; -1 is the
    broker's own default. stop: set when the process is to end: then nothing is waited for any more,
    but for the transaction in hand a few seconds.
    """

    def __init__(
        self,
        name: str,
        bootstrap: str,
        settings: Mapping[str, str] | None = None,
        *,
        partitions: int = PARTITIONS,
        replication: int = -1,
        patience: float = PATIENCE_S,
        stop: threading.Event | None = None,
    ) -> None:
        if not re.fullmatch(r"[A-Za-z0-9._-]{1,200}", name):
            raise InvalidValue(
                f"the relay's name {name!r} cannot be part of a Kafka topic's: letters, digits, "
                f"'.', '_' and '-' can, up to 200"
            )
        settings = settings or {}
        self._name = name
        # No other relay's name gives one of these: a name has no colon.
        self._ids = (f"retold-relay-{name}", f"retold-relay-{name}:2")
        self._key = name.encode()
        self._positions = positions_topic(name)
        self._partitions = partitions
        self._replication = replication
        self._cluster = Cluster(bootstrap, settings, patience, stop)
        self._transaction_s = _seconds(settings.get("transaction.timeout.ms"), TRANSACTION_S)
        message_bytes = int(settings.get("message.max.bytes", _MESSAGE_BYTES))
        self._batch_bytes = _BATCH_BYTES
        self._own_settings: dict[str, Any] = {
            "transaction.timeout.ms": int(1000 * TRANSACTION_S),
            # The broker's limit is the one that counts.
            "message.max.bytes": message_bytes,
            "queue.buffering.max.kbytes": max(_BUFFER_BYTES, 2 * message_bytes) // 1000,
        }
        self._counts: dict[str, int] = {}
        self._producers: list[TransactionalProducer] = []
        self._committer: ThreadPoolExecutor | None = None
        self._under_way: _UnderWay | None = None

    # --- an epoch ---------------------------------------------------------------------------------

    def begin(self) -> bytes | None:
        self._drop()
        self._counts = {}
        patience = self._cluster.patience()
        positions = self._cluster.partitions([self._positions], patience) or self._cluster.create(
            self._positions,
            1,
            self._replication,
            POSITIONS_TOPIC,
        )
        if positions[self._positions] != 1:
            raise BrokerRefused(
                f"topic {self._positions!r} has {positions[self._positions]} partitions and must "
                f"have one"
            )
        producers: list[TransactionalProducer] = []
        for id in self._ids:
            producers.append(TransactionalProducer(id, self._client))
            with self._cluster.translating(f"beginning an epoch of {id!r}"):
                producers[-1].fence(patience)
        # The epoch has begun, also where its position is missing: a resync can do without.
        self._producers = producers
        self._committer = ThreadPoolExecutor(1, "retold relay committer")
        checkpoint = self._read_checkpoint()
        self._cluster.forget_trouble()
        return checkpoint

    def _client(self, own: dict[str, Any]) -> Producer:
        return self._cluster.producer(
            {**self._own_settings, "batch.size": self._batch_bytes, **own}
        )

    def _read_checkpoint(self) -> bytes | None:
        """The last visible one, from near the topic's end: it may hold millions.

        Every transaction leaves a marker behind its records, and aborted ones leave both; so it is
        looked for further and further back. None only when the topic is whole, from its first
        offset to its end, and nothing in it was ever committed.
        """
        place = self._positions, 0
        end = self._cluster.offsets([place], admin_api.OffsetSpec.latest())[place]
        begin = self._cluster.offsets([place], admin_api.OffsetSpec.earliest())[place]
        start, width = end, 16
        foreign = False
        while start > begin:
            start, stop, width = max(begin, end - width), start, 4 * width
            last: Published | None = None
            for some in self._cluster.read({place: (start, stop)}, f"retold-relay-{self._name}"):
                last = next((record for record in reversed(some) if record.key == self._key), last)
                foreign = foreign or last is None
            if last is not None and last.value:
                return last.value
            if last is not None:
                raise PositionMissing("its position was deleted", self._name, self._positions)
        if foreign:
            raise PositionMissing("they are of something else", self._name, self._positions)
        if begin > 0:
            raise PositionMissing("its beginning was deleted", self._name, self._positions)
        return None

    # --- topics -----------------------------------------------------------------------------------

    def partitions(self, topics: Iterable[str]) -> dict[str, int]:
        names = set(topics)
        counts = self._cluster.partitions(names, self._cluster.patience())
        for topic in sorted(names - counts.keys()):
            counts |= self._cluster.create(
                topic,
                self._partitions,
                self._replication,
                EVENTS_TOPIC,
            )
            _log.warning("topic %s keeps its events for ever, personal data among them", topic)
        self._counts |= counts
        return counts

    # --- a transaction ----------------------------------------------------------------------------

    def publish(
        self, records: Sequence[Record], checkpoint: bytes, committed: Callable[[], object]
    ) -> None:
        if self._committer is None:
            raise BrokerUnavailable("no epoch has begun")
        if unknown := {record[0] for record in records} - self._counts.keys():
            self.partitions(unknown)
        producer = self._producers[0]
        patience = self._cluster.patience(self._transaction_s, _GRACE_S)
        last = self._positions, self._key, checkpoint
        with self._ending_if_it_fails():
            self._wait_until_the_one_before_stands()
            try:
                producer.write(records, self._counts, last, patience)
            except (KafkaException, TimeoutError) as error:
                self.settle()  # the transaction before is not to blame
                raise self._failure(producer, error, records) from None
            self.settle()
            self._producers.reverse()
            done = self._committer.submit(_commit, producer, patience, committed)
            self._under_way = _UnderWay(producer, patience, records, done)

    def _wait_until_the_one_before_stands(self) -> None:
        under_way = self._under_way
        while under_way is not None and not under_way.producer.stands():
            with contextlib.suppress(TimeoutError):
                under_way.done.exception(_LOOK_S)
                self.settle()
                return
        if under_way is not None:
            under_way.records = ()

    def settle(self) -> None:
        under_way = self._under_way
        if under_way is None:
            return
        with self._ending_if_it_fails():
            try:
                under_way.done.result()
            except KafkaException as error:
                raise self._failure(under_way.producer, error, under_way.records) from None
        self._under_way = None

    @contextlib.contextmanager
    def _ending_if_it_fails(self) -> Generator[None]:
        """The epoch, as nobody knows what a transaction that failed has left."""
        try:
            yield
        except BaseException:
            self._drop()
            raise

    def _failure(
        self,
        producer: TransactionalProducer,
        error: KafkaException | TimeoutError,
        records: Sequence[Record],
    ) -> RetoldError:
        """What to raise."""
        producer.serve()
        reason: KafkaError | None = error.args[0] if isinstance(error, KafkaException) else None
        if reason is not None and reason.txn_requires_abort():
            producer.abort()
        if reason is not None and reason.code() in FENCED:
            return self._cluster.failure(reason, "")
        failures = producer.failures
        too_large = [one for one in failures if one.error.code() == KafkaError.MSG_SIZE_TOO_LARGE]
        if too_large:
            return self._refused_as_too_large(too_large, records)
        for failure in sorted(failures, key=lambda one: one.error.code() not in REFUSED):
            return self._cluster.failure(failure.error, f"writing to topic {failure.topic!r}")
        topics = sorted({record.topic for record in records})
        what = f"publishing to {', '.join([*topics, self._positions])}"
        return self._cluster.failure(reason, what) if reason else self._cluster.unavailable(what)

    def _refused_as_too_large(
        self, failures: Sequence[Failure], records: Sequence[Record]
    ) -> RetoldError:
        """Kafka refuses batches: which of several records is to blame, smaller batches show."""
        batches: dict[Place, list[Failure]] = {}
        for failure in failures:
            batches.setdefault((failure.topic, failure.partition), []).append(failure)
        alone = [batch[0] for batch in batches.values() if len(batch) == 1]
        if not alone and self._batch_bytes > 1:
            self._batch_bytes = max(1, self._batch_bytes // 10)
            return BrokerUnavailable(
                f"topic {failures[0].topic!r} takes no batches as large; trying again with "
                f"{self._batch_bytes} bytes"
            )
        largest = max(alone or failures, key=lambda one: len(one.value))
        reason = f"{len(largest.value)} bytes, and topic {largest.topic!r} takes less"
        for record in records:
            if record.value == largest.value and record.topic == largest.topic:
                return self._too_large(record, reason)
        return BrokerRefused(f"a record in topic {largest.topic!r} is too large: {reason}")

    def _too_large(self, record: Record, reason: str) -> RecordTooLarge:
        event_id = dict(record.headers).get("id", b"").decode()
        return RecordTooLarge(reason, event_id, record.topic, record.key.decode())

    def close(self) -> None:
        self._drop()

    def _drop(self) -> None:
        """End the epoch: at most a moment is waited for, and nobody else uses the clients then."""
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            under_way.patience.end()
            with contextlib.suppress(Exception):
                under_way.done.result()
        if self._committer is not None:
            self._committer.shutdown()
            self._committer = None
        for producer in self._producers:
            producer.drop()
        self._producers = []


def _seconds(milliseconds: str | None, default: float) -> float:
    return int(milliseconds) / 1000 if milliseconds else default
