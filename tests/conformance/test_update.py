from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from retold import EventStore, NotFound, VersionConflict
from retold.errors import UsageError
from tests.conformance.conftest import Opening
from tests.conformance.domain import Account, Credited, Debited, InsufficientFunds
from tests.conformance.raw import count, entity_version, event_ids

NewId = Callable[[], str]


def test_update_returns_result_events_state_and_version(store: EventStore, url: str) -> None:
    accounts = store.repository(Account)
    ann = accounts.create(Account.open, "ann", 100)
    changed = accounts.update(ann.id, Account.debit, 30)
    assert (changed.id, changed.result, changed.events) == (ann.id, 70, (Debited(30),))
    assert changed.state.balance == 70
    assert not changed.duplicate
    assert changed.version > ann.version
    assert changed.version == entity_version(url, ann.id)


def test_update_stores_several_events_together(store: EventStore, url: str) -> None:
    accounts = store.repository(Account)
    ann = accounts.create(Account.open, "ann", 100)
    changed = accounts.update(ann.id, Account.exchange, out=10, back=3)
    assert changed.events == (Debited(10), Credited(3))
    assert accounts.find(ann.id).state.balance == 93
    assert event_ids(url, ann.id)[-1] == changed.version == entity_version(url, ann.id)


def test_update_of_nothing_is_not_found(store: EventStore, url: str, new_id: NewId) -> None:
    id = new_id()
    with pytest.raises(NotFound):
        store.repository(Account).update(id, Account.credit, 1)
    with pytest.raises(NotFound):
        store.repository(Account).once("k").update(id, Account.credit, 1)
    assert count(url, "events", id) == count(url, "handled", id) == 0


def test_a_command_that_emits_nothing_writes_nothing(store: EventStore, url: str) -> None:
    accounts = store.repository(Account)
    ann = accounts.create(Account.open, "ann", 100)
    looked = accounts.update(ann.id, Account.look)
    assert (looked.result, looked.events, looked.version) == (100, (), ann.version)
    assert event_ids(url, ann.id) == [ann.version]


def test_a_command_that_raises_stores_nothing(store: EventStore, url: str, new_id: NewId) -> None:
    accounts, id = store.repository(Account), new_id()
    with pytest.raises(InsufficientFunds):
        accounts.with_id(id).create(Account.credit_then_fail, 1)
    assert not accounts.exists(id)
    ann = accounts.create(Account.open, "ann", 100)
    with pytest.raises(InsufficientFunds):
        accounts.update(ann.id, Account.debit, 101)
    with pytest.raises(InsufficientFunds):
        accounts.once("k").update(ann.id, Account.credit_then_fail, 1)
    assert event_ids(url, ann.id) == [ann.version]
    assert count(url, "handled", ann.id) == 0
    assert accounts.once("k").update(ann.id, Account.credit, 1).result == 101


def test_an_async_command_is_refused_before_anything_is_stored(
    store: EventStore, url: str, new_id: NewId
) -> None:
    accounts, id = store.repository(Account), new_id()
    with pytest.raises(UsageError, match="async"):
        accounts.with_id(id).create(Account.credit_later, 1)
    assert not accounts.exists(id)
    ann = accounts.create(Account.open, "ann")
    with pytest.raises(UsageError, match="async"):
        accounts.update(ann.id, Account.credit_later, 1)
    assert event_ids(url, ann.id) == [ann.version]


def test_an_update_that_lost_runs_again_on_the_new_state(
    store: EventStore, rival: EventStore
) -> None:
    accounts, others = store.repository(Account), rival.repository(Account)
    ann = accounts.create(Account.open, "ann", 100)
    seen = list[int]()

    def halve(account: Account) -> int:
        seen.append(account.balance)
        if len(seen) < 3:  # somebody else is faster, twice
            others.update(ann.id, Account.credit, 10)
        account.debit(account.balance // 2)
        return account.balance

    before = store.counts["conflicts"]
    # On SQLite the writer's lock is taken after the command, as the others take their row's.
    assert accounts.update(ann.id, halve).result == 60
    assert seen == [100, 110, 120]
    assert store.counts["conflicts"] - before == 2
    assert accounts.find(ann.id).state.balance == 60


def test_no_update_of_rivals_is_lost(store: EventStore, url: str) -> None:
    accounts = store.repository(Account)
    ann = accounts.create(Account.open, "ann")
    start = threading.Barrier(6)

    def credit() -> None:
        start.wait()
        for _ in range(10):
            accounts.update(ann.id, Account.credit, 1)

    threads = [threading.Thread(target=credit) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert accounts.find(ann.id).state.balance == 60
    assert count(url, "events", ann.id) == 61


def test_a_loser_whose_retries_are_used_up_gets_a_version_conflict(
    url: str, flavour: str, rival: EventStore, opened: Opening
) -> None:
    hasty = opened(url, flavour, retries=2).repository(Account)
    others = rival.repository(Account)
    ann = hasty.create(Account.open, "ann")
    runs = list[int]()

    def slow(account: Account) -> None:
        runs.append(1)
        others.update(ann.id, Account.credit, 1)
        account.credit(100)

    with pytest.raises(VersionConflict):
        hasty.update(ann.id, slow)
    assert len(runs) == 3
    assert others.find(ann.id).state.balance == 3


def test_expecting_the_version_there_is_updates(store: EventStore) -> None:
    accounts = store.repository(Account)
    ann = accounts.create(Account.open, "ann", 100)
    assert accounts.expecting(ann.version).update(ann.id, Account.debit, 1).result == 99


def test_expecting_another_version_is_refused_without_a_retry(store: EventStore, url: str) -> None:
    accounts = store.repository(Account)
    ann = accounts.create(Account.open, "ann", 100)
    now = accounts.update(ann.id, Account.debit, 1)
    runs = list[int]()

    def debit(account: Account) -> None:
        runs.append(1)
        account.debit(1)

    with pytest.raises(VersionConflict) as caught:
        accounts.expecting(ann.version).update(ann.id, debit)
    assert (caught.value.expected, caught.value.actual) == (ann.version, now.version)
    assert caught.value.retriable
    assert runs == []
    assert event_ids(url, ann.id) == [ann.version, now.version]


def test_expecting_a_version_that_is_overtaken_while_deciding_is_refused(
    store: EventStore, rival: EventStore
) -> None:
    accounts, others = store.repository(Account), rival.repository(Account)
    ann = accounts.create(Account.open, "ann", 100)

    def slow(account: Account) -> None:
        others.update(ann.id, Account.credit, 1)
        account.debit(100)

    with pytest.raises(VersionConflict):
        accounts.expecting(ann.version).update(ann.id, slow)
    assert accounts.find(ann.id).state.balance == 101


def test_a_command_may_have_parameters_called_id_and_command(store: EventStore) -> None:
    accounts = store.repository(Account)
    ann = accounts.create(Account.open, "ann", 1)

    def odd(account: Account, id: int, command: int, self_: int) -> int:
        return account.credit(id + command + self_)

    assert accounts.update(ann.id, odd, id=1, command=2, self_=3).result == 7
