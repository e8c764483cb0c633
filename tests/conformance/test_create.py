from __future__ import annotations

import threading
from collections.abc import Callable
from uuid import UUID, uuid4

import pytest

from retold import EntityExists, EventStore
from retold.errors import InvalidValue, NothingEmitted, UsageError
from tests.conformance.domain import Account, Opened
from tests.conformance.raw import count, entity_version, event_ids, rows

NewId = Callable[[], str]


def test_create_stores_events_and_gives_a_generated_id(store: EventStore, url: str) -> None:
    accounts = store.repository(Account)
    ann = accounts.create(Account.open, "ann", balance=100)
    assert (ann.state.owner, ann.state.balance) == ("ann", 100)
    assert ann.events == (Opened("ann", 100),)
    assert not ann.duplicate
    assert ann.version == entity_version(url, ann.id)
    found = accounts.find(ann.id)
    assert (found.id, found.version, found.state) == (ann.id, ann.version, ann.state)


def test_generated_ids_differ(store: EventStore) -> None:
    accounts = store.repository(Account)
    assert len({accounts.create(Account.open, "ann").id for _ in range(20)}) == 20


def test_with_id_takes_the_callers_id(store: EventStore, new_id: NewId) -> None:
    id = new_id()
    assert store.repository(Account).with_id(id).create(Account.open, "ann").id == id


def test_a_uuid_is_an_id_stored_as_its_text(store: EventStore, url: str) -> None:
    accounts, id = store.repository(Account), uuid4()
    assert accounts.with_id(id).create(Account.open, "ann", 1).id == str(id)
    assert accounts.update(id, Account.credit, 2).result == 3
    assert accounts.find(id).state == accounts.find(str(id)).state
    assert accounts.exists(UUID(str(id)))
    assert list(accounts.find_many([id])) == [str(id)]
    assert count(url, "events", str(id)) == 2


def test_create_refuses_an_id_in_use_and_changes_nothing(
    store: EventStore, url: str, new_id: NewId
) -> None:
    accounts, id = store.repository(Account), new_id()
    first = accounts.with_id(id).create(Account.open, "ann", 1)
    with pytest.raises(EntityExists) as caught:
        accounts.with_id(id).create(Account.open, "bob", 2)
    assert (caught.value.entity_type, caught.value.entity_id) == ("conformance.Account", id)
    assert caught.value.hint == ""
    assert event_ids(url, id) == [first.version]
    assert accounts.find(id).state.owner == "ann"


def test_of_many_creators_of_one_id_one_succeeds(
    store: EventStore, url: str, new_id: NewId
) -> None:
    accounts, id = store.repository(Account), new_id()
    start, outcomes = threading.Barrier(6), list[str]()

    def create(owner: str) -> None:
        start.wait()
        try:
            accounts.with_id(id).create(Account.exchange, 1, 2)
        except EntityExists:
            outcomes.append("exists")
        else:
            outcomes.append("created")

    threads = [threading.Thread(target=create, args=(str(n),)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["created"] + ["exists"] * 5
    assert count(url, "events", id) == 2


def test_create_refuses_a_command_that_emits_nothing(
    store: EventStore, url: str, new_id: NewId
) -> None:
    accounts, id = store.repository(Account), new_id()
    with pytest.raises(NothingEmitted, match=r"Account\.look"):
        accounts.with_id(id).create(Account.look)
    with pytest.raises(NothingEmitted):
        accounts.with_id(id).once("key").create(Account.look)
    with pytest.raises(NothingEmitted):
        accounts.create_or_update(id, Account.look)
    assert not accounts.exists(id)
    assert count(url, "handled", id) == 0


def test_create_stores_several_events_in_order(store: EventStore, url: str) -> None:
    made = store.repository(Account).create(Account.credit_often, 7)
    ids = event_ids(url, made.id)
    assert len(ids) == 7
    assert made.version == ids[-1] == entity_version(url, made.id)


def test_every_row_is_one_that_eventuate_can_read(store: EventStore, url: str) -> None:
    made = store.repository(Account).create(Account.open, "ann", 5)
    found = rows(
        url,
        "SELECT event_type, event_data, entity_type, triggering_event, metadata, published "
        f"FROM events WHERE entity_id = '{made.id}'",
    )
    data = '{"owner":"ann","balance":5}'
    assert found == [("conformance.Opened", data, "conformance.Account", None, None, 0)]


def test_create_or_update_does_either(store: EventStore, new_id: NewId) -> None:
    accounts, id = store.repository(Account), new_id()
    created = accounts.create_or_update(id, Account.credit, 5)
    assert created.result == 5
    updated = accounts.create_or_update(id, Account.credit, 6)
    assert updated.result == 11
    assert updated.version > created.version
    assert accounts.find(id).state.balance == 11


def test_create_or_update_loses_nothing_to_a_concurrent_creator(
    store: EventStore, new_id: NewId
) -> None:
    accounts, id = store.repository(Account), new_id()
    start = threading.Barrier(4)

    def credit() -> None:
        start.wait()
        for _ in range(5):
            accounts.create_or_update(id, Account.credit, 1)

    threads = [threading.Thread(target=credit) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert accounts.find(id).state.balance == 20


def test_create_or_update_with_a_key_applies_once(store: EventStore, new_id: NewId) -> None:
    accounts, id = store.repository(Account), new_id()
    assert not accounts.once("k").create_or_update(id, Account.credit, 5).duplicate
    again = accounts.once("k").create_or_update(id, Account.credit, 5)
    assert again.duplicate
    assert again.state.balance == 5


def test_create_or_update_at_another_version_is_refused_at_once(
    store: EventStore, new_id: NewId
) -> None:
    from retold import VersionConflict

    accounts, id = store.repository(Account), new_id()
    first = accounts.create_or_update(id, Account.credit, 5)
    accounts.update(id, Account.credit, 5)
    runs = list[int]()

    def count_runs(account: Account) -> None:
        runs.append(1)
        account.credit(1)

    retries = store.counts["retries"]
    with pytest.raises(VersionConflict):
        accounts.expecting(first.version).create_or_update(id, count_runs)
    assert store.counts["retries"] == retries
    assert runs == []


def test_a_view_for_the_other_verb_is_a_mistake(store: EventStore, new_id: NewId) -> None:
    accounts = store.repository(Account)
    with pytest.raises(UsageError, match="with_id"):
        accounts.with_id("x").update(new_id(), Account.credit, 1)
    with pytest.raises(UsageError, match="expecting"):
        accounts.expecting("x").create(Account.open, "ann")


@pytest.mark.parametrize("id", ["", "x" * 256, "a\0b", "\ud800"])
def test_an_id_no_database_could_keep_is_refused(store: EventStore, id: str) -> None:
    accounts = store.repository(Account)
    with pytest.raises(InvalidValue):
        accounts.with_id(id)
    with pytest.raises(InvalidValue):
        accounts.find(id)
