"""Kafka as the relay's broker, through librdkafka. See brokers/base.py for what is promised.

A relay is one transactional producer, `retold-relay-<name>`; its checkpoints are the records of a
compacted topic with one partition, `retold.relay.<name>`. What a producer of the same name had
under way when another one begins is aborted by Kafka, and Kafka refuses whatever it sends later.

The partition of a record is chosen here, from the number of partitions that the relay was told:
librdkafka would follow an increase as soon as it hears of it, and put the later events of an entity
into another partition than the earlier ones.
"""

from __future__ import annotations

import contextlib
import logging
import re
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from retold.brokers.base import Published, Record
from retold.brokers.kafka_cluster import (
    FENCED,
    PATIENCE_S,
    REFUSED,
    SLICE_S,
    Cluster,
    Patience,
    Place,
    admin_api,
    serve,
)
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
from confluent_kafka import KafkaError, KafkaException, Message, Producer, murmur2

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
_GRACE_S = 5.0
"""How long a transaction may take to finish after the relay was told to stop."""
TRANSACTION_S = 60.0
_MESSAGE_BYTES = 16_000_000
_BATCH_BYTES = 1_000_000
_BUFFER_BYTES = 32_000_000

_PURGED = {KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT}

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


class _Failure(NamedTuple):
    """A record that was not delivered."""

    error: KafkaError
    topic: str
    partition: int
    value: bytes


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
        self._key = name.encode()
        self._positions = positions_topic(name)
        self._partitions = partitions
        self._replication = replication
        self._cluster = Cluster(bootstrap, settings, patience, stop)
        self._transaction_s = _seconds(settings.get("transaction.timeout.ms"), TRANSACTION_S)
        message_bytes = int(settings.get("message.max.bytes", _MESSAGE_BYTES))
        self._batch_bytes = _BATCH_BYTES
        self._own_settings: dict[str, Any] = {
            "transactional.id": f"retold-relay-{name}",
            "transaction.timeout.ms": int(1000 * TRANSACTION_S),
            # Commit flushes, so nothing is gained by waiting for more.
            "linger.ms": 0,
            # The broker's limit is the one that counts.
            "message.max.bytes": message_bytes,
            "queue.buffering.max.kbytes": max(_BUFFER_BYTES, 2 * message_bytes) // 1000,
            "delivery.report.only.error": True,
            "on_delivery": self._on_failure,
        }
        self._producer: Producer | None = None
        self._counts: dict[str, int] = {}
        self._failures: list[_Failure] = []

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
        producer = self._cluster.producer(
            {**self._own_settings, "batch.size": self._batch_bytes, "enable.idempotence": True}
        )
        while True:
            try:
                producer.init_transactions(SLICE_S)
                break
            except KafkaException as error:
                serve(producer)
                if not error.args[0].retriable() or patience.ended():
                    raise self._cluster.failure(error.args[0], "beginning an epoch") from None
                _pause_unless_timed_out(error)
        # The epoch has begun, also where its position is missing: a resync can do without.
        self._producer = producer
        checkpoint = self._read_checkpoint()
        self._cluster.forget_trouble()
        return checkpoint

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

    def publish(self, records: Sequence[Record], checkpoint: bytes) -> None:
        producer = self._producer
        if producer is None:
            raise BrokerUnavailable("no epoch has begun")
        if unknown := {record[0] for record in records} - self._counts.keys():
            self.partitions(unknown)
        self._failures.clear()
        patience = self._cluster.patience(self._transaction_s, _GRACE_S)
        try:
            producer.poll(0)
            producer.begin_transaction()
            self._produce(producer, records, patience)
            producer.produce(self._positions, checkpoint, self._key, 0)
            self._commit(producer, patience)
        except KafkaException as error:
            raise self._give_up(producer, error.args[0], records) from None
        except BaseException:
            self._drop()
            raise

    def _produce(self, producer: Producer, records: Sequence[Record], patience: Patience) -> None:
        produce: Any = producer.produce
        counts = self._counts
        for record in records:
            topic, key, value, headers = record
            while True:
                try:
                    produce(topic, value, key, murmur2(key, counts[topic]), None, None, 0, headers)
                    break
                except BufferError:
                    producer.poll(0.005)
                    if patience.ended():
                        raise self._cluster.unavailable("publishing") from None
                except KafkaException as error:
                    if error.args[0].code() == KafkaError.MSG_SIZE_TOO_LARGE:
                        raise self._too_large(record, error.args[0].str()) from None
                    raise

    def _commit(self, producer: Producer, patience: Patience) -> None:
        while True:
            try:
                return producer.commit_transaction(SLICE_S)
            except KafkaException as error:
                if not error.args[0].retriable() or patience.ended():
                    raise
                _pause_unless_timed_out(error)

    def _on_failure(self, error: KafkaError | None, message: Message) -> None:
        if error is not None and error.code() not in _PURGED:
            topic, partition = message.topic() or "", message.partition()
            value = message.value() or b""
            # The values of all those that are too large are needed, and there are few of them.
            if self._failures and error.code() != KafkaError.MSG_SIZE_TOO_LARGE:
                value = b""
            self._failures.append(
                _Failure(error, topic, -1 if partition is None else partition, value)
            )

    def _give_up(
        self, producer: Producer, error: KafkaError, records: Sequence[Record]
    ) -> RetoldError:
        """End the epoch. Returns what to raise."""
        serve(producer)
        if error.txn_requires_abort():
            # The next epoch would do it; until then, readers could read no further.
            with contextlib.suppress(KafkaException):
                producer.abort_transaction(1.0)
        self._drop()
        if error.code() in FENCED:
            return self._cluster.failure(error, "")
        failures, self._failures = self._failures, []
        too_large = [one for one in failures if one.error.code() == KafkaError.MSG_SIZE_TOO_LARGE]
        if too_large:
            return self._refused_as_too_large(too_large, records)
        for failure in sorted(failures, key=lambda one: one.error.code() not in REFUSED):
            return self._cluster.failure(failure.error, f"writing to topic {failure.topic!r}")
        topics = sorted({record.topic for record in records})
        return self._cluster.failure(
            error, f"publishing to {', '.join([*topics, self._positions])}"
        )

    def _refused_as_too_large(
        self, failures: Sequence[_Failure], records: Sequence[Record]
    ) -> RetoldError:
        """Kafka refuses batches: which of several records is to blame, smaller batches show."""
        batches: dict[Place, list[_Failure]] = {}
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
        # The last reference: librdkafka ends it without waiting, whereas close() would flush.
        self._producer = None


def _seconds(milliseconds: str | None, default: float) -> float:
    return int(milliseconds) / 1000 if milliseconds else default


def _pause_unless_timed_out(error: KafkaException) -> None:
    if error.args[0].code() != KafkaError._TIMED_OUT:
        time.sleep(0.02)
