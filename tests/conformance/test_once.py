from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from retold import EventStore, KeyReused, VersionConflict
from retold.errors import InvalidValue, NoResult
from tests.conformance.domain import Account, Savings
from tests.conformance.raw import count, event_ids

NewId = Callable[[], str]


def test_a_repeated_key_applies_once(store: EventStore, url: str) -> None:
    accounts = store.repository(Account)
    ann = accounts.create(Account.open, "ann", 100)
    first = accounts.once("pay-1").update(ann.id, Account.debit, 30)
    assert (first.duplicate, first.result) == (False, 70)
    accounts.update(ann.id, Account.credit, 5)
    again = accounts.once("pay-1").update(ann.id, Account.debit, 30)
    assert again.duplicate
    assert again.events == ()
    assert again.state.balance == 75
    assert again.version == accounts.find(ann.id).version
    with pytest.raises(NoResult, match="pay-1"):
        _ = again.result
    assert len(event_ids(url, ann.id)) == 3


def test_another_key_applies_again(store: EventStore) -> None:
    accounts = store.repository(Account)
    ann = accounts.create(Account.open, "ann", 100)
    assert accounts.once("a").update(ann.id, Account.debit, 1).result == 99
    assert accounts.once("b").update(ann.id, Account.debit, 1).result == 98
    assert accounts.once("A").update(ann.id, Account.debit, 1).result == 97
    assert accounts.once("a ").update(ann.id, Account.debit, 1).result == 96


def test_a_key_belongs_to_one_entity(store: EventStore) -> None:
    accounts = store.repository(Account)
    for owner in ("ann", "bob"):
        id = accounts.create(Account.open, owner, 100).id
        assert not accounts.once("same").update(id, Account.debit, 1).duplicate


def test_a_key_with_another_command_is_refused(store: EventStore) -> None:
    accounts = store.repository(Account)
    ann = accounts.create(Account.open, "ann", 100)
    accounts.once("k").update(ann.id, Account.debit, 1)
    with pytest.raises(KeyReused) as caught:
        accounts.once("k").update(ann.id, Account.credit, 1)
    assert caught.value.key == "k"
    assert (caught.value.recorded, caught.value.command) == ("Account.debit", "Account.credit")
    assert accounts.find(ann.id).state.balance == 99


def test_create_with_a_key_creates_once(store: EventStore, url: str, new_id: NewId) -> None:
    accounts, key = store.repository(Account), new_id()
    first = accounts.once(key).create(Account.open, "ann", 1)
    again = accounts.once(key).create(Account.open, "ann", 1)
    assert again.id == first.id
    assert (first.duplicate, again.duplicate) == (False, True)
    assert again.state == first.state
    assert event_ids(url, first.id) == [first.version]
    with pytest.raises(KeyReused):
        accounts.once(key).create(Account.credit, 1)


def test_create_with_a_key_and_an_id_creates_once(store: EventStore, new_id: NewId) -> None:
    accounts, id = store.repository(Account), new_id()
    assert accounts.with_id(id).once("k").create(Account.open, "ann").id == id
    assert accounts.once("k").with_id(id).create(Account.open, "ann").duplicate


def test_a_duplicate_wins_over_a_conflict(store: EventStore) -> None:
    accounts = store.repository(Account)
    ann = accounts.create(Account.open, "ann", 100)
    call = accounts.expecting(ann.version).once("k")
    assert call.update(ann.id, Account.debit, 1).result == 99
    assert call.update(ann.id, Account.debit, 1).duplicate
    with pytest.raises(VersionConflict):
        accounts.expecting(ann.version).once("other").update(ann.id, Account.debit, 1)


def test_a_command_that_emits_nothing_is_remembered_too(store: EventStore, url: str) -> None:
    accounts = store.repository(Account)
    ann = accounts.create(Account.open, "ann", 100)
    first = accounts.once("k").update(ann.id, Account.look)
    assert (first.duplicate, first.result, first.version) == (False, 100, ann.version)
    runs = list[int]()
    assert accounts.once("k").update(ann.id, Account.look).duplicate
    with pytest.raises(KeyReused):
        accounts.once("k").update(ann.id, lambda _: runs.append(1))
    assert runs == []
    assert count(url, "handled", ann.id) == 1


def test_a_key_is_known_behind_a_snapshot(store: EventStore, url: str, new_id: NewId) -> None:
    savings, key = store.repository(Savings), new_id()
    ann = savings.once(key).create(Savings.credit, 1)
    savings.once("second").update(ann.id, Savings.credit, 1)
    for _ in range(12):
        savings.update(ann.id, Savings.credit, 1)
    assert count(url, "snapshots", ann.id) == 2
    again = savings.once("second").update(ann.id, Savings.credit, 1)
    assert again.duplicate
    assert again.state.balance == 14
    assert savings.once(key).create(Savings.credit, 1).duplicate


def test_of_many_with_one_key_one_applies_and_the_others_are_duplicates(
    store: EventStore, url: str
) -> None:
    accounts = store.repository(Account)
    ann = accounts.create(Account.open, "ann", 100)
    for command, events in ((Account.debit, 2), (Account.exchange, 4)):
        start, outcomes = threading.Barrier(6), list[bool]()

        def pay(command: object = command, start: threading.Barrier = start) -> None:
            start.wait()
            arguments = (1,) if command is Account.debit else (1, 1)
            paying: Any = accounts.once(str(command))
            changed = paying.update(ann.id, command, *arguments)
            outcomes.append(changed.duplicate)  # noqa: B023

        threads = [threading.Thread(target=pay) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(outcomes) == [False] + [True] * 5
        assert count(url, "events", ann.id) == events


def test_of_many_creators_with_one_key_one_creates(
    store: EventStore, url: str, new_id: NewId
) -> None:
    accounts, key = store.repository(Account), new_id()
    start, outcomes = threading.Barrier(6), list[tuple[str, bool]]()

    def create() -> None:
        start.wait()
        made = accounts.once(key).create(Account.open, "ann", 1)
        outcomes.append((made.id, made.duplicate))

    threads = [threading.Thread(target=create) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(duplicate for _, duplicate in outcomes) == [False] + [True] * 5
    assert len({id for id, _ in outcomes}) == 1
    assert count(url, "events", outcomes[0][0]) == 1


def test_a_conflict_does_not_eat_the_key(store: EventStore, rival: EventStore, url: str) -> None:
    accounts, others = store.repository(Account), rival.repository(Account)
    ann = accounts.create(Account.open, "ann", 100)
    runs = list[int]()

    def slow(account: Account) -> int:
        runs.append(account.balance)
        if len(runs) == 1:
            others.update(ann.id, Account.credit, 1)
        return account.debit(10)

    changed = accounts.once("k").update(ann.id, slow)
    assert (changed.duplicate, changed.result, runs) == (False, 91, [100, 101])
    assert count(url, "handled", ann.id) == 1


@pytest.mark.parametrize("key", ["", "x" * 256, "a\0b"])
def test_a_key_no_database_could_keep_is_refused(store: EventStore, key: str) -> None:
    with pytest.raises(InvalidValue):
        store.repository(Account).once(key)


def test_a_key_of_255_characters_is_kept(store: EventStore) -> None:
    accounts, key = store.repository(Account), "😀é" * 127 + "x"
    ann = accounts.create(Account.open, "ann", 100)
    assert not accounts.once(key).update(ann.id, Account.debit, 1).duplicate
    assert accounts.once(key).update(ann.id, Account.debit, 1).duplicate


def test_the_cost_of_a_duplicate_does_not_grow_with_the_history(
    store: EventStore, url: str, kind: str
) -> None:
    """The key is looked up in a table of its own by its primary key: the plan shows it."""
    accounts = store.repository(Account)
    ann = accounts.create(Account.credit_often, 700)
    accounts.once("k").update(ann.id, Account.credit, 1)
    assert accounts.once("k").update(ann.id, Account.credit, 1).duplicate
    assert count(url, "handled", ann.id) == 1
    if kind == "sqlite":
        from tests.conformance.raw import rows

        plan = rows(
            url,
            "EXPLAIN QUERY PLAN SELECT command FROM handled WHERE entity_type = 'a' "
            "AND entity_id = 'b' AND trigger_key = 'c'",
        )
        assert "SEARCH handled USING" in str(plan)
