"""A Kafka cluster: how to log in, how long to wait, what its errors mean, what stands in topics.

librdkafka keeps trying by itself where that can help. So there are three ways to fail: Kafka
refuses (a person must mend something), another producer has taken over, and everything else, where
beginning again with a new client is right.
"""

from __future__ import annotations

import contextlib
import logging
import re
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future
from importlib import import_module
from typing import Any, TypeVar

from retold.brokers.base import Published
from retold.errors import (
    BrokerRefused,
    BrokerUnavailable,
    Fenced,
    MissingExtra,
    RetoldError,
    UsageError,
)

try:
    from confluent_kafka import (
        Consumer,
        IsolationLevel,
        KafkaError,
        KafkaException,
        Producer,
        TopicCollection,
        TopicPartition,
    )
except ImportError:
    raise MissingExtra("Kafka", "confluent-kafka", "kafka") from None

PATIENCE_S = 30.0
"""How long Kafka may be away before a call fails with BrokerUnavailable."""
SLICE_S = 0.25
"""How long librdkafka may wait at a time; signals are not handled meanwhile."""
_AGAIN_S = 10.0
"""How often the same line of librdkafka's is logged."""

_log = logging.getLogger("retold.kafka")
# Its types are incomplete.
admin_api: Any = import_module("confluent_kafka.admin")

_T = TypeVar("_T")
Place = tuple[str, int]
"""A topic and a partition."""

# What the user says of the connection is for all clients; the rest is for the producer only.
_SHARED = (
    *("security.", "sasl.", "ssl.", "enable.ssl.", "enable.sasl.", "https.", "socket.", "broker."),
    *("client.", "reconnect.", "metadata.", "api.", "connections.", "retry.", "debug"),
)
_RESERVED = {
    *("bootstrap.servers", "transactional.id", "enable.idempotence", "acks", "group.id"),
    *("request.required.acks", "partitioner", "isolation.level", "enable.auto.commit"),
    *("batch.size", "batch.num.messages", "delivery.report.only.error", "enable.partition.eof"),
    *("auto.offset.reset", "enable.auto.offset.store", "allow.auto.create.topics"),
    *("partition.assignment.strategy", "group.protocol"),
}
_SECRET = re.compile(r"password|secret|token|\.pem$|jaas|oauthbearer\.config")

FENCED = {
    KafkaError._FENCED,
    KafkaError.PRODUCER_FENCED,
    KafkaError.INVALID_PRODUCER_EPOCH,
}
REFUSED = {
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.INVALID_CONFIG,
    KafkaError.INVALID_PARTITIONS,
    KafkaError.INVALID_RECORD,
    KafkaError.INVALID_REPLICATION_FACTOR,
    KafkaError.INVALID_REQUEST,
    KafkaError.INVALID_TIMESTAMP,
    KafkaError.INVALID_TRANSACTION_TIMEOUT,
    KafkaError.POLICY_VIOLATION,
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.TOPIC_EXCEPTION,
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError.UNSUPPORTED_COMPRESSION_TYPE,
    KafkaError.UNSUPPORTED_FOR_MESSAGE_FORMAT,
    KafkaError.UNSUPPORTED_VERSION,
    KafkaError._INVALID_ARG,
    KafkaError._UNKNOWN_PARTITION,
    KafkaError._UNKNOWN_TOPIC,
    KafkaError._UNSUPPORTED_FEATURE,
}
NO_TOPIC = {KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC}
_LISTING = "listing the offsets of topics"


def translate(error: KafkaError, what: str = "") -> RetoldError:
    """The error to raise. `what` was being done, or to what."""
    reason = f"{what}: {error.str()}" if what else error.str()
    if error.code() in FENCED:
        return Fenced(f"{reason}; or a transaction took longer than transaction.timeout.ms")
    if error.code() in REFUSED:
        return BrokerRefused(reason)
    return BrokerUnavailable(reason)


def serve(producer: Producer) -> None:
    """Call the callbacks that are due: log lines, errors, reports of deliveries that failed."""
    # It raises a fatal error again that was raised already.
    with contextlib.suppress(KafkaException):
        producer.poll(0)


class _Repetitions(logging.Filter):
    """Drops what was logged a moment ago: librdkafka tells of every attempt to connect."""

    def __init__(self) -> None:
        super().__init__()
        self._told: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        # But for the numbers of clients, threads, milliseconds.
        line, now = re.sub(r"\d+", "", record.getMessage()), time.monotonic()
        if now - self._told.get(line, -_AGAIN_S) < _AGAIN_S:
            return False
        if len(self._told) > 1000:
            self._told.clear()
        self._told[line] = now
        return True


_client_log = logging.getLogger("retold.kafka.client")
_client_log.addFilter(_Repetitions())


_retired: list[Any] = []
"""Administrators' clients whose owners are gone, to be ended by the next call of anybody's.

The garbage collector may run in a client's own thread, and a client that ends there ends the process.
"""


def _nothing() -> None:
    pass


class Patience:
    """How long to wait: until some time has passed, or the process is told to stop."""

    def __init__(self, seconds: float, stop: threading.Event, grace: float = 0.0) -> None:
        self._until = time.monotonic() + seconds
        self._stop = stop
        self._grace: float | None = grace

    def ended(self) -> bool:
        now = time.monotonic()
        if self._grace is not None and self._stop.is_set():
            self._until = min(self._until, now + self._grace)
            self._grace = None
        return now >= self._until


class Cluster:
    """Where Kafka is, how to log in there, and what was wrong last."""

    def __init__(
        self,
        bootstrap: str,
        settings: Mapping[str, str],
        patience: float,
        stop: threading.Event | None,
    ) -> None:
        if reserved := sorted(_RESERVED & settings.keys()):
            raise UsageError(
                f"the Kafka setting {reserved[0]!r} is not to be chosen: retold sets it"
            )
        self._bootstrap = bootstrap
        self._settings = dict(settings)
        self._secrets = [text for key, text in settings.items() if _SECRET.search(key) and text]
        self._seconds = patience
        self._stop = stop or threading.Event()
        self._admin: Any = None
        self._retire: Callable[[], object] = _nothing
        self._trouble = ""

    def patience(self, seconds: float | None = None, grace: float = 0.0) -> Patience:
        return Patience(self._seconds if seconds is None else seconds, self._stop, grace)

    # --- clients ----------------------------------------------------------------------------------

    def producer(self, own: dict[str, Any]) -> Producer:
        """A producer; the user's settings win over `own`."""
        with self.translating("the producer's settings"):
            return Producer(
                {**self._own(), **own, **self._settings, **self._common()}, logger=_client_log
            )

    def consumer(self, own: dict[str, Any]) -> Consumer:
        with self.translating("the consumer's settings"):
            return Consumer(
                {**self._own(), **own, **self._shared(), **self._common()}, logger=_client_log
            )

    def member(self, own: dict[str, Any]) -> Consumer:
        """A consumer that joins a group; the user's settings win over `own`."""
        with self.translating("the consumer's settings"):
            return Consumer(
                {**self._own(), **own, **self._settings, **self._common()}, logger=_client_log
            )

    def admin(self) -> Any:
        """The administrator's client, the same one until `forget_admin`."""
        _retired.clear()
        if self._admin is None:
            with self.translating("the settings"):
                self._admin = admin_api.AdminClient(
                    {**self._own(), **self._shared(), **self._common()}, logger=_client_log
                )
            self._retire = weakref.finalize(self, _retired.append, self._admin)
        self._admin.poll(0)
        return self._admin

    def forget_admin(self) -> None:
        """End the administrator's client; calls that wait for an answer of its get none."""
        self._admin = None
        self._retire()
        _retired.clear()

    def _common(self) -> dict[str, Any]:
        # Weak: a client that refers to its owner would have to be found by the garbage collector.
        note = weakref.WeakMethod(self._note)

        def call(error: KafkaError) -> None:
            if (method := note()) is not None:
                method(error)

        return {"bootstrap.servers": self._bootstrap, "error_cb": call}

    def _own(self) -> dict[str, Any]:
        # Back soon after the broker is.
        return {"reconnect.backoff.max.ms": 1000}

    def _shared(self) -> dict[str, str]:
        return {key: text for key, text in self._settings.items() if key.startswith(_SHARED)}

    # --- failures ---------------------------------------------------------------------------------

    def _note(self, error: KafkaError) -> None:
        # That all brokers are down says less than why the last one is.
        if error.code() != KafkaError._ALL_BROKERS_DOWN:
            self._trouble = self._without_secrets(error.str())

    def failure(self, error: KafkaError, what: str) -> RetoldError:
        """What to raise for an error; the reason of a time-out is the last trouble there was."""
        found = translate(error, what)
        if isinstance(found, BrokerUnavailable):
            found.reason += self._why()
        if isinstance(found, BrokerUnavailable | BrokerRefused | Fenced):
            found.reason = self._without_secrets(found.reason)
        return found

    def unavailable(self, what: str) -> BrokerUnavailable:
        why = "told to stop while waiting" if self._stop.is_set() else "no answer in time"
        return BrokerUnavailable(f"{what}: {why}{self._why()}")

    def forget_trouble(self) -> None:
        self._trouble = ""

    def _why(self) -> str:
        if self._admin is not None:
            self._admin.poll(0)
        return f" ({self._trouble})" if self._trouble else ""

    @contextlib.contextmanager
    def translating(self, what: str) -> Generator[None]:
        try:
            yield
        except KafkaException as error:
            raise self.failure(error.args[0], what) from None

    def _without_secrets(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text

    # --- asking -----------------------------------------------------------------------------------

    def result(self, future: Future[_T], patience: Patience, what: str) -> _T:
        """What an administrator's call returns. Raises KafkaException, BrokerUnavailable."""
        while True:
            try:
                return future.result(SLICE_S)
            except TimeoutError:
                if patience.ended():
                    raise self.unavailable(what) from None

    def partitions(self, topics: Iterable[str], patience: Patience) -> dict[str, int]:
        """Of the topics that exist. Never makes one."""
        names = sorted(set(topics))
        counts: dict[str, int] = {}
        if not names:
            return counts
        asked = self.admin().describe_topics(TopicCollection(names), request_timeout=self._seconds)
        for topic, future in asked.items():
            try:
                described = self.result(future, patience, f"describing topic {topic!r}")
            except KafkaException as error:
                if error.args[0].code() in NO_TOPIC:
                    continue
                raise self.failure(error.args[0], f"describing topic {topic!r}") from None
            counts[topic] = len(described.partitions)
        return counts

    def create(
        self, topic: str, partitions: int, replication: int, config: Mapping[str, str]
    ) -> dict[str, int]:
        """Make a topic, unless somebody else has meanwhile; its number of partitions."""
        what = f"making topic {topic!r}"
        patience = self.patience()
        new = admin_api.NewTopic(topic, partitions, replication, config=dict(config))
        made = self.admin().create_topics([new], request_timeout=self._seconds)[topic]
        try:
            self.result(made, patience, what)
            _log.info("made topic %s with %d partitions", topic, partitions)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise self.failure(error.args[0], what) from None
        # Other brokers may hear of it a little later.
        while not (counts := self.partitions([topic], patience)):
            if patience.ended():
                raise self.unavailable(what)
            time.sleep(0.02)
        return counts

    def offsets(
        self,
        places: Iterable[Place],
        which: Any,
        # Behind the last record, whether it is visible yet or not.
        isolation: IsolationLevel = IsolationLevel.READ_UNCOMMITTED,
    ) -> dict[Place, int]:
        """The first offset, or the one behind the last, of each partition."""
        places = list(places)
        if not places:
            return {}
        patience = self.patience()
        while True:
            asked = self.admin().list_offsets(
                {TopicPartition(*place): which for place in places},
                isolation_level=isolation,
                request_timeout=self._seconds,
            )
            try:
                return {
                    (at.topic, at.partition): self.result(future, patience, _LISTING).offset
                    for at, future in asked.items()
                }
            except KafkaException as error:
                # The leader of a new partition may not know yet that it leads, and after an election
                # librdkafka goes on asking with what it knew before: a new client asks anew.
                self.forget_admin()
                failure = self.failure(error.args[0], _LISTING)
                passing = isinstance(failure, BrokerUnavailable) or error.args[0].code() in NO_TOPIC
                if not passing or patience.ended():
                    raise failure from None
                time.sleep(0.1)

    def read(
        self, ranges: Mapping[Place, tuple[int, int]], group: str
    ) -> Iterator[list[Published]]:
        """The visible records of ranges of offsets, up to the very end of each."""
        open_ = {place: end for place, (start, end) in ranges.items() if start < end}
        if not open_:
            return
        consumer = self.consumer(
            {
                # Never joined: librdkafka wants a name, and partitions are assigned by hand.
                "group.id": group,
                "isolation.level": "read_committed",
                "enable.auto.commit": False,
                "allow.auto.create.topics": False,
                "enable.partition.eof": True,
                "auto.offset.reset": "error",
                "fetch.wait.max.ms": 10,
                "fetch.max.bytes": 8_000_000,
                "queued.max.messages.kbytes": 8_000,
                # How long fetching rests when that much is waiting.
                "fetch.queue.backoff.ms": 5,
                "max.poll.interval.ms": 86_400_000,
            }
        )
        consumer.assign([TopicPartition(*place, ranges[place][0]) for place in open_])
        patience = self.patience()
        while open_:
            first = consumer.poll(SLICE_S)
            if first is None:
                # A transaction that some other producer left open hides what is behind it.
                if patience.ended():
                    topic, partition = next(iter(open_))
                    raise self.unavailable(f"reading partition {partition} of topic {topic!r}")
                continue
            found: list[Published] = []
            done: list[Place] = []
            heard = False
            for message in (first, *consumer.consume(1000, 0)):
                error = message.error()
                topic, partition = message.topic() or "", message.partition() or 0
                place = topic, partition
                end = open_.get(place)
                if error is not None and error.code() != KafkaError._PARTITION_EOF:
                    # The group's name needs no permission, as it is not used.
                    if error.code() == KafkaError.GROUP_AUTHORIZATION_FAILED:
                        continue
                    raise self.failure(error, f"reading topic {topic!r}")
                heard = True
                if end is None:
                    continue
                offset = message.offset() or 0
                if offset < end and error is None:
                    key, value = message.key() or b"", message.value() or b""
                    headers: Any = message.headers() or ()
                    found.append(Published(topic, partition, offset, key, value, dict(headers)))
                # The notice of a partition's end has the offset behind everything.
                if offset >= end:
                    del open_[place]
                    done.append(place)
            if done and open_:
                consumer.pause([TopicPartition(*place) for place in done])
            if found:
                yield found
            if heard:
                patience = self.patience()
