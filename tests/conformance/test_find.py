from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from retold import EventStore, NotFound, Recorded, metadata
from retold.errors import InvalidValue
from retold.ids import EventIds
from tests.conformance.conftest import Opening
from tests.conformance.domain import Account, Credited, Listed, Opened, Savings
from tests.conformance.raw import event_ids

NewId = Callable[[], str]


def test_find_raises_not_found_or_returns_the_default(store: EventStore, new_id: NewId) -> None:
    accounts, id = store.repository(Account), new_id()
    with pytest.raises(NotFound) as caught:
        accounts.find(id)
    assert (caught.value.entity_type, caught.value.entity_id) == ("conformance.Account", id)
    assert accounts.find(id, default=None) is None
    assert accounts.find(id, default=5) == 5


def test_an_entity_of_another_type_is_not_found(store: EventStore) -> None:
    ann = store.repository(Account).create(Account.open, "ann")
    assert store.repository(Savings).find(ann.id, default=None) is None
    assert not store.repository(Savings).exists(ann.id)


def test_find_at_a_version_gives_the_entity_as_it_was(store: EventStore) -> None:
    accounts = store.repository(Account)
    ann = accounts.create(Account.open, "ann", 10)
    versions = [ann.version] + [accounts.update(ann.id, Account.credit, 1).version for _ in "abc"]
    for n, version in enumerate(versions):
        then = accounts.find(ann.id, at=version)
        assert (then.version, then.state.balance) == (version, 10 + n)


def test_find_before_the_first_version_is_not_found(store: EventStore) -> None:
    accounts = store.repository(Account)
    ann = accounts.create(Account.open, "ann", 10)
    with pytest.raises(NotFound):
        accounts.find(ann.id, at=f"{0:016x}-{0:016x}")


def test_find_at_a_time_gives_the_entity_as_it_was(url: str, flavour: str, opened: Opening) -> None:
    now = 1_700_000_000_000
    accounts = opened(url, flavour, ids=EventIds(clock=lambda: now)).repository(Account)
    began = datetime.fromtimestamp(now / 1000, UTC)
    ann = accounts.create(Account.open, "ann", 10)
    for _ in range(3):
        now += 1000
        accounts.update(ann.id, Account.credit, 1)
    for n in range(4):
        then = began + timedelta(seconds=n)
        assert accounts.find(ann.id, at=then).state.balance == 10 + n
        assert accounts.find(ann.id, at=then + timedelta(milliseconds=999)).state.balance == 10 + n
    with pytest.raises(NotFound):
        accounts.find(ann.id, at=began - timedelta(milliseconds=1))


def test_find_at_a_naive_time_or_nonsense_is_refused(store: EventStore) -> None:
    accounts = store.repository(Account)
    ann = accounts.create(Account.open, "ann")
    with pytest.raises(InvalidValue, match="time zone"):
        accounts.find(ann.id, at=datetime(2024, 1, 1))  # noqa: DTZ001
    with pytest.raises(InvalidValue, match="not an event id"):
        accounts.find(ann.id, at="yesterday")


def test_find_many_returns_those_that_exist_in_the_order_asked_for(
    store: EventStore, new_id: NewId
) -> None:
    accounts = store.repository(Account)
    ids = [accounts.create(Account.open, str(n), n).id for n in range(5)]
    accounts.update(ids[2], Account.credit, 100)
    asked = [ids[3], new_id(), ids[2], ids[0], ids[3]]
    found = accounts.find_many(asked)
    assert list(found) == [ids[3], ids[2], ids[0]]
    assert [entity.state.balance for entity in found.values()] == [3, 102, 0]
    assert found[ids[2]].version == accounts.find(ids[2]).version
    assert accounts.find_many([]) == {}


def test_find_many_sees_snapshots(store: EventStore, new_id: NewId) -> None:
    savings = store.repository(Savings)
    ids = [savings.create(Savings.credit, n).id for n in range(3)]
    for _ in range(7):
        savings.update(ids[1], Savings.credit, 1)
    found = savings.find_many([*ids, new_id()])
    assert [entity.state.balance for entity in found.values()] == [0, 8, 2]


def test_exists(store: EventStore, new_id: NewId) -> None:
    accounts = store.repository(Account)
    assert accounts.exists(accounts.create(Account.open, "ann").id)
    assert not accounts.exists(new_id())


def test_history_tells_everything_recorded(store: EventStore, url: str) -> None:
    accounts = store.repository(Account)
    before = datetime.now(UTC) - timedelta(milliseconds=1)
    with metadata(user="ann", correlation_id="c-1"):
        ann = accounts.create(Account.open, "ann", 1)
    accounts.once("k-1").update(ann.id, Account.credit, 2)
    opening, credit = accounts.history(ann.id)
    assert opening == Recorded(
        ann.version,
        "conformance.Opened",
        Opened("ann", 1),
        "conformance.Account",
        ann.id,
        opening.time,
        {"user": "ann", "correlation_id": "c-1"},
        None,
    )
    assert (credit.event, credit.trigger, credit.metadata) == (Credited(2), "k-1", {})
    assert before <= opening.time <= credit.time <= datetime.now(UTC)
    assert [opening.id, credit.id] == event_ids(url, ann.id)


def test_history_of_nothing_is_not_found(store: EventStore, new_id: NewId) -> None:
    with pytest.raises(NotFound):
        next(store.repository(Account).history(new_id()))


@pytest.mark.parametrize("events", [499, 500, 501, 1234])
def test_history_goes_on_behind_its_pages(store: EventStore, url: str, events: int) -> None:
    accounts = store.repository(Account)
    made = accounts.create(Account.credit_often, events)
    ids = [recorded.id for recorded in accounts.history(made.id)]
    assert ids == event_ids(url, made.id)
    assert len(ids) == events


def test_entities_lists_all_ids_of_a_type_in_byte_order(
    kind: str, flavour: str, fresh_database: Callable[[str], str], opened: Opening
) -> None:
    store = opened(fresh_database(kind), flavour)
    store.migrate()
    listed = store.repository(Listed)
    assert list(listed.entities()) == []
    store.repository(Account).create(Account.open, "not listed")

    def fill(tx_store: Any) -> list[str]:
        repository: Any = tx_store.repository(Listed)
        return [repository.with_id(id).create(Listed.credit, 1).id for id in odd + even]

    odd = ["Zoë", "zoe", "Zoe", "Émile", "emile", "a b", "a-b", "a", "a ", "ab", "😀", "ￜ", "~"]
    even = [f"n-{n}" for n in range(1100)]
    made = store.transact(fill)
    assert list(listed.entities()) == sorted(made, key=str.encode)


def test_a_page_of_entities_that_is_full_to_the_end_is_the_last(
    kind: str, flavour: str, fresh_database: Callable[[str], str], opened: Opening
) -> None:
    store = opened(fresh_database(kind), flavour)
    store.migrate()
    with store.transaction() as tx:
        listed = tx.repository(Listed)
        made = [listed.create(Listed.credit, 1).id for _ in range(500)]
    assert list(store.repository(Listed).entities()) == sorted(made)
