"""One transactional producer of Kafka's: begin, write, commit, one transaction at a time.

What is written is sent at once; its commit waits until all of it stands in the log, and tells what
Kafka did not take. So another thread may look, while this one is still committing, whether the next
transaction, of another producer, would come behind it in every partition.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from retold.brokers.base import Record
from retold.brokers.kafka_cluster import SLICE_S, Patience, serve

# isort: split
# Behind kafka_cluster, which tells what to install.
from confluent_kafka import KafkaError, KafkaException, Message, Producer, murmur2

_REST_S = 0.001
"""Kafka goes on with a transaction for a moment after it was committed. Who begins the next one
meanwhile is refused, and librdkafka asks again only after 20 ms."""
_PURGED = {KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT}


class Failure(NamedTuple):
    """A record that was not delivered."""

    error: KafkaError
    topic: str
    partition: int
    value: bytes


class TransactionalProducer:
    """Raises KafkaException, whose error says whether trying again can help.

    make: makes the client, from the settings that this class needs.
    """

    def __init__(self, id: str, make: Callable[[dict[str, Any]], Producer]) -> None:
        self.failures: list[Failure] = []
        self._rested = 0.0
        # One reference, here: when it is dropped, librdkafka ends the client without waiting,
        # whereas close() would flush.
        self._client: Producer | None = make(
            {
                "transactional.id": id,
                "enable.idempotence": True,
                # Commit flushes, so nothing is gained by waiting for more.
                "linger.ms": 0,
                "delivery.report.only.error": True,
                "on_delivery": self._on_failure,
            }
        )

    def fence(self, patience: Patience) -> None:
        """End what another client of this id has under way; it is refused from now on."""
        client = self._running()
        while True:
            try:
                return client.init_transactions(SLICE_S)
            except KafkaException as error:
                serve(client)
                self._pause(error, patience)

    def write(
        self,
        records: Sequence[Record],
        counts: Mapping[str, int],
        last: tuple[str, bytes, bytes],
        patience: Patience,
    ) -> None:
        """Begin a transaction, and write records and a last one.

        counts: topic → number of partitions. last: topic, key and value. Raises TimeoutError too,
        where the records before do not go out.
        """
        client = self._running()
        self.failures.clear()
        time.sleep(max(0.0, self._rested - time.monotonic()))
        client.poll(0)
        client.begin_transaction()
        produce: Any = client.produce
        for topic, key, value, headers in records:
            while True:
                try:
                    produce(topic, value, key, murmur2(key, counts[topic]), None, None, 0, headers)
                    break
                except BufferError:
                    client.poll(0.005)
                    if patience.ended():
                        raise TimeoutError from None
                except KafkaException as error:
                    if error.args[0].code() == KafkaError.MSG_SIZE_TOO_LARGE:
                        self.failures.append(Failure(error.args[0], topic, -1, value))
                    raise
        topic, key, value = last
        produce(topic, value, key, 0)

    def stands(self) -> bool:
        """Whether all that was written stands in the log, acknowledged by its partitions."""
        return not len(self._running())

    def commit(self, patience: Patience) -> None:
        client = self._running()
        while True:
            try:
                client.commit_transaction(SLICE_S)
                break
            except KafkaException as error:
                self._pause(error, patience)
        self._rested = time.monotonic() + _REST_S

    def abort(self) -> KafkaError | None:
        """Try to; what was wrong. The next one to fence would do it, but until then readers could
        read no further."""
        client = self._running()
        try:
            client.abort_transaction(1.0)
        except KafkaException as error:
            reason: KafkaError = error.args[0]
            return reason
        return None

    def serve(self) -> None:
        """Learn what was not delivered."""
        serve(self._running())

    def drop(self) -> None:
        self._client = None

    def _running(self) -> Producer:
        client = self._client
        assert client is not None, "it was dropped"
        return client

    def _pause(self, error: KafkaException, patience: Patience) -> None:
        """Before trying again. Raises the error where that cannot help any more."""
        reason: KafkaError = error.args[0]
        if not reason.retriable() or patience.ended():
            raise error
        if reason.code() != KafkaError._TIMED_OUT:
            time.sleep(0.02)

    def _on_failure(self, error: KafkaError | None, message: Message) -> None:
        if error is not None and error.code() not in _PURGED:
            topic, partition = message.topic() or "", message.partition()
            value = message.value() or b""
            # The values of all those that are too large are needed, and there are few of them.
            if self.failures and error.code() != KafkaError.MSG_SIZE_TOO_LARGE:
                value = b""
            self.failures.append(
                Failure(error, topic, -1 if partition is None else partition, value)
            )
