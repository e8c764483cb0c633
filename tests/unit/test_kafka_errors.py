"""What a Kafka client's error becomes, and what never gets into a message."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest
from confluent_kafka import KafkaError

from retold.brokers.kafka import KafkaPublisher, KafkaTopics
from retold.brokers.kafka_cluster import Cluster, translate
from retold.errors import BrokerRefused, BrokerUnavailable, Fenced, InvalidValue, UsageError

_NOWHERE = "127.0.0.1:1"


@pytest.mark.parametrize(
    "code",
    [KafkaError._FENCED, KafkaError.PRODUCER_FENCED, KafkaError.INVALID_PRODUCER_EPOCH],
)
def test_a_producer_that_was_replaced_is_fenced(code: int) -> None:
    assert type(translate(KafkaError(code))) is Fenced


@pytest.mark.parametrize(
    "code",
    [
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
        KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
        KafkaError.TOPIC_EXCEPTION,
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError.INVALID_REPLICATION_FACTOR,
        KafkaError.POLICY_VIOLATION,
        KafkaError.INVALID_TRANSACTION_TIMEOUT,
        KafkaError._INVALID_ARG,
        KafkaError._UNKNOWN_PARTITION,
    ],
)
def test_what_a_person_must_mend_stops_the_relay(code: int) -> None:
    error = translate(KafkaError(code, "why"), "making topic 'bank'")
    assert type(error) is BrokerRefused
    assert error.reason == "making topic 'bank': why"
    assert not error.retriable


@pytest.mark.parametrize(
    "code",
    [
        KafkaError._TRANSPORT,
        KafkaError._TIMED_OUT,
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._AUTHENTICATION,
        KafkaError._MSG_TIMED_OUT,
        KafkaError.NOT_ENOUGH_REPLICAS,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.INVALID_PRODUCER_ID_MAPPING,
        KafkaError.INVALID_TXN_STATE,
        KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER,
        KafkaError.UNKNOWN,
    ],
)
def test_with_anything_else_a_new_epoch_may_go_on(code: int) -> None:
    error = translate(KafkaError(code))
    assert type(error) is BrokerUnavailable
    assert error.retriable


@pytest.mark.parametrize(
    "setting", ["transactional.id", "acks", "enable.idempotence", "isolation.level", "group.id"]
)
def test_a_setting_that_exactly_once_rests_on_cannot_be_chosen(setting: str) -> None:
    with pytest.raises(UsageError, match=setting):
        KafkaPublisher("bank", _NOWHERE, {setting: "x"})
    with pytest.raises(UsageError, match=setting):
        KafkaTopics(_NOWHERE, {setting: "x"})


@pytest.mark.parametrize("name", ["", "bank$", "bank/1", "bänk", "b" * 201])
def test_a_name_that_no_topic_may_have_is_refused(name: str) -> None:
    with pytest.raises(InvalidValue, match="name"):
        KafkaPublisher(name, _NOWHERE)


def test_a_setting_librdkafka_does_not_know_is_refused() -> None:
    publisher = KafkaPublisher("bank", _NOWHERE, {"security.protokol": "ssl"})
    with pytest.raises(BrokerRefused, match=r"security\.protokol"):
        publisher.begin()


def test_without_a_broker_kafka_is_unavailable_and_the_reason_says_where() -> None:
    with pytest.raises(BrokerUnavailable, match=r"127\.0\.0\.1:1\b.*refused"):
        KafkaPublisher("bank", _NOWHERE, patience=1.0).begin()
    with pytest.raises(BrokerUnavailable, match=r"127\.0\.0\.1:1\b.*refused"):
        list(KafkaTopics(_NOWHERE, patience=1.0).read(["bank.Account"]))


def test_a_name_that_does_not_resolve_is_told() -> None:
    with pytest.raises(BrokerUnavailable, match="resolve"):
        KafkaPublisher("bank", "no-such-host.invalid:9092", patience=1.0).begin()


def test_waiting_ends_when_the_process_is_told_to_stop() -> None:
    stop = threading.Event()
    publisher = KafkaPublisher("bank", _NOWHERE, patience=600.0, stop=stop)
    timer = threading.Timer(0.3, stop.set)
    timer.start()
    with pytest.raises(BrokerUnavailable, match="told to stop"):
        publisher.begin()
    timer.join()


@pytest.mark.parametrize("setting", ["sasl.password", "ssl.key.password", "sasl.jaas.config"])
def test_no_secret_gets_into_an_error(setting: str) -> None:
    cluster = Cluster(_NOWHERE, {setting: "s3cr3t", "sasl.username": "ann"}, 1.0, None)
    for code in (KafkaError._AUTHENTICATION, KafkaError._INVALID_ARG, KafkaError._FENCED):
        cluster._note(KafkaError(code, "s3cr3t of ann is wrong"))
        error = cluster.failure(KafkaError(code, "s3cr3t of ann is wrong"), "logging in")
        assert "*** of ann is wrong" in str(error)
        assert "s3cr3t" not in str(error)


def test_publishing_needs_an_epoch() -> None:
    with pytest.raises(BrokerUnavailable, match="no epoch"):
        KafkaPublisher("bank", _NOWHERE).publish([], b"{}")


_COLLECTED_IN_THE_CLIENT_S_THREAD = """
import gc, time
from confluent_kafka import TopicCollection
from retold.brokers.kafka_cluster import Cluster

gc.disable()
cluster = Cluster("127.0.0.1:1", {}, 1.0, None)
cluster.admin().describe_topics(TopicCollection(["bank.Account"]), request_timeout=0.5)
cluster.itself = cluster
del cluster
gc.set_threshold(1, 1, 1)
gc.enable()
time.sleep(1.5)  # meanwhile the request fails, in the client's thread
gc.collect()
print("alive")
"""


def test_a_client_is_never_ended_in_its_own_thread() -> None:
    """librdkafka ends the process then; the garbage collector runs wherever something is made."""
    done = subprocess.run(
        [sys.executable, "-c", _COLLECTED_IN_THE_CLIENT_S_THREAD],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == "alive\n", done.stderr
