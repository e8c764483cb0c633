"""Projections whose events come through a relay and Kafka: all of it real."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from urllib.parse import urlsplit

import pytest

from retold import EventStore
from retold.errors import UsageError
from retold.subscriptions.rebuilding import states
from tests.at_work import at_work
from tests.conformance.raw import rows
from tests.consuming.publishing import QUICK
from tests.integration.accounts import Account, Balances, folded, table
from tests.integration.test_subscriptions import Started, started
from tests.relay.processes import eventually, relay, size
from tests.rig import GivenKafka, Kafka, Rig
from tests.rig.databases import with_parts

__all__ = ["started"]  # a fixture

_MISSED_SOON = QUICK | {"session.timeout.ms": "6000"}


def own_account() -> type[Account]:
    """Accounts with a topic of the test's own."""

    class Own(Account, name=f"accounts.Account-{secrets.token_hex(4)}"):
        pass

    return Own


@pytest.fixture
def url(kind: str, servers: Rig, fresh_database: Callable[[str], str]) -> str:
    """A database, by a user who may read its log."""
    url = fresh_database(kind)
    if kind != "sqlite":
        url = with_parts(servers[kind].url, database=urlsplit(url).path[1:])
    with EventStore(url) as store:
        store.migrate(polling=kind == "sqlite")
    return url


def write(store: EventStore, own: type[Account], id: str, *amounts: int) -> None:
    store.repository(own).with_id(id).create(own.open, f"{id}@example.org")
    store.repository(own).update(id, own.pay, *amounts)


@pytest.mark.parametrize("kind", ["sqlite", "mariadb", "postgres18"])
def test_the_read_model_is_the_fold_of_the_events(url: str, kafka: Kafka | GivenKafka) -> None:
    own = own_account()
    balances = Balances(url, own.__entity_type__, of=own)
    with EventStore(url, kafka=kafka.url, kafka_settings=QUICK) as store, relay(url, kafka.url):
        write(store, own, "ann", 1, 2)
        eventually(lambda: size(kafka.url, own.__entity_type__) >= 3)
        store.drain(balances.projection)
        assert table(url) == folded(url)
        with at_work(store, balances.projection):
            for n in range(1, 10):
                write(store, own, f"acc-{n}", n, n + 1)
            eventually(lambda: table(url) == folded(url))


@pytest.mark.parametrize("kind", ["sqlite"])
def test_the_read_model_says_where_it_goes_on_whatever_the_group_has_committed(
    url: str, kafka: Kafka | GivenKafka
) -> None:
    own = own_account()
    balances = Balances(url, own.__entity_type__, of=own)
    with EventStore(url, kafka=kafka.url, kafka_settings=QUICK) as store, relay(url, kafka.url):
        write(store, own, "ann", 1, 2)
        eventually(lambda: size(kafka.url, own.__entity_type__) >= 3)
        store.drain(balances.projection)
        # Set back, as after a restore: what follows is read again, though the group is past it.
        rows(url, "DELETE FROM balances", "UPDATE projections SET position = 0 WHERE place <> ''")
        store.drain(balances.projection)
        assert table(url) == folded(url)
        # Ahead of the group, as after a commit that Kafka did not hear of.
        store.drain(Balances(url, own.__entity_type__, of=own).projection)
        assert table(url) == folded(url)
        assert balances.tried == [1, 2, 1, 2]


@pytest.mark.parametrize("kind", ["sqlite"])
def test_a_failing_event_is_parked_and_comes_back_in_order(
    url: str, kafka: Kafka | GivenKafka
) -> None:
    own = own_account()
    balances = Balances(url, own.__entity_type__, of=own)
    balances.failing = {13}
    with EventStore(url, kafka=kafka.url, kafka_settings=QUICK) as store, relay(url, kafka.url):
        write(store, own, "ann", 1, 13, 5)
        write(store, own, "bob", 2)
        eventually(lambda: size(kafka.url, own.__entity_type__) >= 6)
        store.drain(balances.projection)
        assert table(url) == {"ann": (1, 1), "bob": (2, 2)}
        assert [one.waits for one in store.parked()] == [False, True]
        balances.failing.clear()
        store.parked().retry(own.__entity_type__)
        store.drain(balances.projection)
        assert table(url) == folded(url)


@pytest.mark.parametrize("kind", ["sqlite"])
def test_it_is_rebuilt_from_the_topic_beside_the_members(
    url: str, kafka: Kafka | GivenKafka
) -> None:
    own = own_account()
    balances = Balances(url, own.__entity_type__, of=own)
    with EventStore(url, kafka=kafka.url, kafka_settings=QUICK) as store, relay(url, kafka.url):
        write(store, own, "ann", 1, 2)
        eventually(lambda: size(kafka.url, own.__entity_type__) >= 3)
        store.drain(balances.projection)
        rows(url, "UPDATE balances SET balance = 77")
        assert balances.projection.lag(store) == 0
        with at_work(store, Balances(url, own.__entity_type__, of=own).projection):
            assert balances.projection.rebuild(store)
            write(store, own, "bob", 4)
            eventually(lambda: table(url) == folded(url))
        (state,) = states(store)
        assert (state.generation, state.doing) == (1, "")


@pytest.mark.parametrize("kind", ["sqlite"])
def test_what_a_rebuild_has_parked_is_tried_again_by_the_members(
    url: str, kafka: Kafka | GivenKafka
) -> None:
    own = own_account()
    balances = Balances(url, own.__entity_type__, of=own)
    balances.failing = {13}
    with EventStore(url, kafka=kafka.url, kafka_settings=QUICK) as store, relay(url, kafka.url):
        for n in range(8):
            write(store, own, f"acc-{n}", 1, 13, n + 2)
        eventually(lambda: size(kafka.url, own.__entity_type__) >= 32)
        assert balances.projection.rebuild(store)
        assert len([one for one in store.parked() if not one.waits]) == 8
        balances.failing.clear()
        write(store, own, "new", 4)
        eventually(lambda: size(kafka.url, own.__entity_type__) >= 34)
        assert store.parked().retry(own.__entity_type__) == 8
        store.drain(balances.projection)
        assert table(url) == folded(url)


@pytest.mark.parametrize("kind", ["sqlite"])
def test_a_read_model_from_the_database_goes_on_from_kafka_only_after_a_rebuild(
    url: str, kafka: Kafka | GivenKafka
) -> None:
    own = own_account()
    balances = Balances(url, own.__entity_type__, of=own)
    with EventStore(url) as before:
        write(before, own, "ann", 1, 2)
        before.drain(balances.projection)
    with EventStore(url, kafka=kafka.url, kafka_settings=QUICK) as store, relay(url, kafka.url):
        eventually(lambda: size(kafka.url, own.__entity_type__) >= 3)
        with pytest.raises(UsageError, match="from the database's own log, and is to go on from K"):
            store.drain(balances.projection)
        assert table(url) == folded(url)
        assert balances.projection.rebuild(store)
        write(store, own, "bob", 4)
        eventually(lambda: size(kafka.url, own.__entity_type__) >= 5)
        store.drain(balances.projection)
        assert table(url) == folded(url)


def apply_on(url: str, kafka: str, entity_type: str, pipe: Connection) -> None:
    balances = Balances(url, entity_type, of=entity_type)
    with EventStore(url, kafka=kafka, kafka_settings=_MISSED_SOON) as store:
        pipe.send("running")
        store.run(balances.projection)


@pytest.mark.parametrize("kind", ["postgres18"])
def test_members_that_are_killed_under_load_apply_every_event_once(
    url: str, kafka: Kafka | GivenKafka, started: Started
) -> None:
    own = own_account()
    with EventStore(url) as store:
        Balances(url).projection.set_up(store.driver, "")
    stop = threading.Event()

    def load() -> None:
        n = 0
        with EventStore(url) as store:
            while not stop.wait(0.002):
                n += 1
                write(store, own, f"acc-{n}", n, n + 1)

    writer = threading.Thread(target=load)
    with relay(url, kafka.url):
        writer.start()
        try:
            for _ in range(2):
                members = [started(apply_on, url, kafka.url, own.__entity_type__) for _ in range(2)]
                for _, pipe in members:
                    pipe.recv()
                before = len(table(url))
                eventually(lambda before=before: len(table(url)) > before + 5)  # type: ignore[misc]
                for process, _ in members:
                    process.kill()
                    process.join()
        finally:
            stop.set()
            writer.join()
        balances = Balances(url, own.__entity_type__, of=own)
        with (
            EventStore(url, kafka=kafka.url, kafka_settings=_MISSED_SOON) as store,
            at_work(store, balances.projection),
        ):
            eventually(lambda: table(url) == folded(url))
