from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from retold import (
    AsyncEventStore,
    EntityExists,
    EventStore,
    KeyReused,
    NotFound,
    Transaction,
    TransactionRolledBack,
    VersionConflict,
)
from retold.errors import NotStorable, SchemaMissing, StoreBusy, StoreError, UsageError
from tests.conformance.conftest import Opening
from tests.conformance.domain import Account, InsufficientFunds, Savings
from tests.conformance.raw import count, entity_version, event_ids, path_of, rows
from tests.rig import DATABASES

NewId = Callable[[], str]

WITH_ROW_LOCKS = [kind for kind in DATABASES if kind != "sqlite"]
with_row_locks = pytest.mark.parametrize(
    ("kind", "flavour"),
    [
        (kind, flavour)
        for kind in WITH_ROW_LOCKS
        for flavour in ("sync", "async", "mysqlclient")
        if flavour != "mysqlclient" or kind in ("mysql8", "mariadb")
    ],
)


def opened_accounts(store: EventStore, *balances: int) -> list[str]:
    accounts = store.repository(Account)
    return [accounts.create(Account.open, "ann", balance).id for balance in balances]


def balance(store: EventStore, id: str) -> int:
    return store.repository(Account).find(id).state.balance


def transfer(tx: Transaction, source: str, target: str, amount: int) -> int:
    accounts = tx.repository(Account)
    accounts.update(target, Account.credit, amount)
    return accounts.update(source, Account.debit, amount).result


def in_threads(*works: Callable[[], object]) -> list[BaseException]:
    """Run all at once; what they raised."""
    raised = list[BaseException]()

    def run(work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised


@contextmanager
def missing(url: str, table: str) -> Generator[None]:
    """Take a table away for a while."""
    rows(url, f"ALTER TABLE {table} RENAME TO own_hidden")
    try:
        yield
    finally:
        rows(url, f"ALTER TABLE own_hidden RENAME TO {table}")


@pytest.fixture
def own_tables(url: str) -> str:
    """Tables that no other test uses."""
    own = f"{url}?prefix=own_"
    with EventStore(own) as store:
        store.migrate()
    return own


def within(store: EventStore, work: Callable[[Transaction], object]) -> None:
    """Run some work in a transaction that is never retried."""
    with store.transaction() as tx:
        work(tx)


# --- all or nothing ------------------------------------------------------------------------------


def test_the_changes_of_a_transaction_commit_together(
    store: EventStore, rival: EventStore, new_id: NewId
) -> None:
    ann, bob = opened_accounts(store, 100, 0)
    new = new_id()
    with store.transaction() as tx:
        assert transfer(tx, ann, bob, 30) == 70
        tx.repository(Account).with_id(new).create(Account.open, "new", 1)
        tx.repository(Savings).with_id(new).create(Savings.credit, 5)
        assert rival.repository(Account).find(ann).state.balance == 100
        assert not rival.repository(Account).exists(new)
    assert (balance(rival, ann), balance(rival, bob), balance(rival, new)) == (70, 30, 1)
    assert rival.repository(Savings).find(new).state.balance == 5


def test_an_exception_takes_all_changes_back(store: EventStore, url: str, new_id: NewId) -> None:
    ann, bob = opened_accounts(store, 100, 0)
    new = new_id()

    def work(tx: Transaction) -> None:
        transfer(tx, ann, bob, 30)
        tx.repository(Account).with_id(new).once("k").create(Account.open, "new", 1)
        raise LookupError

    with pytest.raises(LookupError):
        within(store, work)
    assert (balance(store, ann), balance(store, bob)) == (100, 0)
    for table in ("events", "entities", "handled"):
        assert count(url, table, new) == 0


def test_a_command_that_raises_takes_all_changes_back(store: EventStore, url: str) -> None:
    ann, bob = opened_accounts(store, 10, 0)
    with pytest.raises(InsufficientFunds):
        within(store, lambda tx: transfer(tx, ann, bob, 30))
    assert balance(store, bob) == 0
    assert len(event_ids(url, bob)) == 1


def test_an_event_that_cannot_be_stored_takes_nothing_along(store: EventStore) -> None:
    ann, bob = opened_accounts(store, 10, 0)
    with store.transaction() as tx:
        accounts = tx.repository(Account)
        accounts.update(ann, Account.debit, 5)
        with pytest.raises(NotStorable):
            accounts.update(bob, Account.note, "\ud800")
        accounts.update(bob, Account.credit, 5)
    assert (balance(store, ann), balance(store, bob)) == (5, 5)


def test_an_exception_from_the_block_is_the_one_raised(store: EventStore) -> None:
    mine = ValueError("mine")

    def work(tx: Transaction) -> None:
        raise mine

    with pytest.raises(ValueError, match="mine") as caught:
        within(store, work)
    assert caught.value is mine
    with pytest.raises(ValueError, match="mine") as caught:
        store.transact(work)
    assert caught.value is mine


# --- what is seen inside -------------------------------------------------------------------------


def test_reads_see_what_the_transaction_wrote(store: EventStore, new_id: NewId) -> None:
    (ann,) = opened_accounts(store, 100)
    new = new_id()
    with store.transaction() as tx:
        accounts = tx.repository(Account)
        before = accounts.find(ann)
        accounts.update(ann, Account.debit, 30)
        now = accounts.update(ann, Account.debit, 1)
        assert accounts.find(ann).version == now.version
        assert accounts.find(ann).state == now.state
        assert accounts.find(ann, at=before.version).state.balance == 100
        assert not accounts.exists(new)
        accounts.with_id(new).create(Account.open, "new", 1)
        assert accounts.exists(new)
        found = accounts.find_many([new, ann])
        assert [entity.state.balance for entity in found.values()] == [1, 69]
        assert len(list(accounts.history(ann))) == 3


def test_once_inside_a_transaction(store: EventStore, url: str) -> None:
    ann, bob = opened_accounts(store, 100, 0)
    with store.transaction() as tx:
        accounts = tx.repository(Account)
        assert not accounts.once("k").update(ann, Account.debit, 30).duplicate
        assert accounts.once("k").update(ann, Account.debit, 30).duplicate
        assert not accounts.once("k").update(bob, Account.credit, 30).duplicate
        assert not accounts.once("look").update(bob, Account.look).duplicate
        assert accounts.once("look").update(bob, Account.look).duplicate
    assert (balance(store, ann), balance(store, bob)) == (70, 30)
    assert (count(url, "handled", ann), count(url, "handled", bob)) == (1, 2)
    assert store.repository(Account).once("k").update(ann, Account.debit, 30).duplicate


def test_a_key_is_not_used_up_by_a_transaction_that_rolled_back(store: EventStore) -> None:
    (ann,) = opened_accounts(store, 100)
    keyed = store.repository(Account).once("k")

    def work(tx: Transaction) -> None:
        tx.repository(Account).once("k").update(ann, Account.debit, 30)
        raise LookupError

    with pytest.raises(LookupError):
        within(store, work)
    assert keyed.update(ann, Account.debit, 30).result == 70


def test_create_or_update_inside_a_transaction(store: EventStore, new_id: NewId) -> None:
    id = new_id()
    with store.transaction() as tx:
        savings = tx.repository(Savings)
        assert savings.create_or_update(id, Savings.credit, 1).result == 1
        assert savings.create_or_update(id, Savings.credit, 1).result == 2
    assert store.repository(Savings).find(id).state.balance == 2


# --- refusals leave the transaction usable -------------------------------------------------------


def test_what_is_refused_leaves_the_transaction_as_it_was(
    store: EventStore, url: str, new_id: NewId
) -> None:
    ann, bob = opened_accounts(store, 100, 0)
    stale = store.repository(Account).find(ann).version
    store.repository(Account).once("k").update(ann, Account.debit, 1)
    with store.transaction() as tx:
        accounts = tx.repository(Account)
        accounts.update(bob, Account.credit, 1)
        with pytest.raises(VersionConflict):
            accounts.expecting(stale).update(ann, Account.exchange, 5, 3)
        accounts.update(bob, Account.credit, 1)
        with pytest.raises(EntityExists):
            accounts.with_id(ann).create(Account.exchange, 5, 3)
        accounts.update(bob, Account.credit, 1)
        with pytest.raises(EntityExists):
            accounts.with_id(ann).once("other").create(Account.open, "again", 5)
        accounts.update(bob, Account.credit, 1)
        with pytest.raises(KeyReused):
            accounts.once("k").update(ann, Account.credit, 1)
        accounts.update(bob, Account.credit, 1)
        with pytest.raises(NotFound):
            accounts.update(new_id(), Account.credit, 1)
        accounts.update(bob, Account.credit, 1)
    assert (balance(store, ann), balance(store, bob)) == (99, 6)
    assert (count(url, "events", ann), count(url, "handled", ann)) == (2, 1)


@with_row_locks
def test_a_lost_race_leaves_the_transaction_as_it_was(
    store: EventStore, rival: EventStore, url: str
) -> None:
    """SQLite has no such race: a transaction is the only writer from its beginning."""
    ann, bob = opened_accounts(store, 100, 0)

    def overtaken(account: Account) -> None:
        rival.repository(Account).update(ann, Account.credit, 1)
        account.exchange(5, 3)

    with store.transaction() as tx:
        accounts = tx.repository(Account)
        accounts.update(bob, Account.credit, 1)
        with pytest.raises(VersionConflict) as caught:
            accounts.update(ann, overtaken)
        assert caught.value.expected != caught.value.actual
        with pytest.raises(VersionConflict):
            accounts.once("k").update(ann, overtaken)
        accounts.update(bob, Account.credit, 1)
        # READ COMMITTED: now it is seen.
        assert accounts.once("k").update(ann, Account.credit, 1).result == 103
    assert (balance(store, ann), balance(store, bob)) == (103, 2)
    assert (count(url, "events", ann), count(url, "handled", ann)) == (4, 1)


@with_row_locks
def test_an_id_taken_meanwhile_leaves_the_transaction_as_it_was(
    store: EventStore, rival: EventStore, url: str, new_id: NewId
) -> None:
    (bob,) = opened_accounts(store, 0)
    ids = new_id(), new_id()

    def overtaken(account: Account) -> None:
        rival.repository(Account).with_id(account.id).create(Account.open, "rival", 1)
        account.open("late", 100)

    with store.transaction() as tx:
        accounts = tx.repository(Account)
        accounts.update(bob, Account.credit, 1)
        with pytest.raises(EntityExists):
            accounts.with_id(ids[0]).create(overtaken)
        with pytest.raises(EntityExists):
            accounts.with_id(ids[1]).once("k").create(overtaken)
        accounts.update(bob, Account.credit, 1)
    assert (balance(store, ids[0]), balance(store, ids[1]), balance(store, bob)) == (1, 1, 2)
    assert (count(url, "events", ids[1]), count(url, "handled", ids[1])) == (1, 0)


# --- what was broken and caught is not committed in part -----------------------------------------


def test_an_error_of_the_database_that_was_caught_still_ends_the_transaction(
    url: str, own_tables: str, flavour: str, opened: Opening
) -> None:
    store = opened(own_tables, flavour)
    ann, bob = opened_accounts(store, 100, 0)

    def work(tx: Transaction) -> None:
        accounts = tx.repository(Account)
        accounts.update(ann, Account.debit, 30)
        with pytest.raises(SchemaMissing):
            accounts.once("k").update(bob, Account.credit, 30)

    with missing(url, "own_handled"), pytest.raises(TransactionRolledBack, match="own_handled"):
        within(store, work)
    assert (balance(store, ann), balance(store, bob)) == (100, 0)


@with_row_locks
def test_a_deadlock_that_was_caught_still_ends_the_transaction(store: EventStore) -> None:
    ann, bob = opened_accounts(store, 0, 0)
    thirds = opened_accounts(store, 0, 0)
    both_hold_one = threading.Barrier(2)

    def work(first: str, second: str, third: str) -> None:
        with store.transaction() as tx:
            accounts = tx.repository(Account)
            accounts.update(first, Account.credit, 1)
            both_hold_one.wait(30)
            with suppress(TransactionRolledBack):
                accounts.update(second, Account.credit, 1)
            with suppress(TransactionRolledBack):
                accounts.update(third, Account.credit, 1)

    raised = in_threads(
        lambda: work(ann, bob, thirds[0]),
        lambda: work(bob, ann, thirds[1]),
    )
    assert [type(error) for error in raised] == [TransactionRolledBack]
    assert (balance(store, ann), balance(store, bob)) == (1, 1)
    assert sorted(balance(store, third) for third in thirds) == [0, 1]


@pytest.mark.parametrize("kind", WITH_ROW_LOCKS)
def test_an_update_cut_off_in_its_middle_still_ends_the_transaction(
    url: str, rival: EventStore
) -> None:
    """On MySQL the version would be stored without its event, and the entity be stuck for ever."""
    ann, bob = opened_accounts(rival, 100, 0)

    async def work(store: AsyncEventStore) -> None:
        async with store.transaction() as tx:
            accounts = tx.repository(Account)
            await accounts.update(bob, Account.credit, 1)
            with rival.transaction() as other:
                other.repository(Account).update(ann, Account.credit, 1)
                waiting = asyncio.ensure_future(accounts.update(ann, Account.credit, 1))
                await asyncio.sleep(0.2)  # until it waits for the lock
                waiting.cancel()
                await asyncio.wait([waiting])
                assert waiting.cancelled()

    async def cut_off() -> None:
        async with AsyncEventStore(url) as store:
            with pytest.raises(TransactionRolledBack):
                await work(store)

    asyncio.run(cut_off())
    assert (balance(rival, ann), balance(rival, bob)) == (101, 0)
    assert rival.repository(Account).update(ann, Account.credit, 1).result == 102
    assert entity_version(url, ann) == event_ids(url, ann)[-1]


# --- running again -------------------------------------------------------------------------------


def test_transact_returns_what_the_work_returns(store: EventStore) -> None:
    ann, bob = opened_accounts(store, 100, 0)
    assert store.transact(transfer, ann, target=bob, amount=30) == 70
    assert (balance(store, ann), balance(store, bob)) == (70, 30)


def test_transact_runs_everything_again_after_a_conflict(store: EventStore, url: str) -> None:
    ann, bob = opened_accounts(store, 100, 0)
    stale = store.repository(Account).find(ann).version
    store.repository(Account).update(ann, Account.credit, 1)
    expected = [stale, store.repository(Account).find(ann).version]

    def work(tx: Transaction) -> int:
        accounts = tx.repository(Account)
        accounts.update(bob, Account.credit, 1)
        return accounts.expecting(expected.pop(0)).update(ann, Account.debit, 1).result

    assert store.transact(work) == 100
    assert expected == []
    assert balance(store, bob) == 1
    assert len(event_ids(url, bob)) == 2


@with_row_locks
def test_transact_runs_everything_again_on_the_new_state(
    store: EventStore, rival: EventStore
) -> None:
    ann, bob = opened_accounts(store, 100, 0)
    seen = list[int]()

    def halve(account: Account) -> int:
        seen.append(account.balance)
        if len(seen) < 3:
            rival.repository(Account).update(ann, Account.credit, 10)
        account.debit(account.balance // 2)
        return account.balance

    def work(tx: Transaction) -> int:
        tx.repository(Account).update(bob, Account.credit, 1)
        return tx.repository(Account).update(ann, halve).result

    assert store.transact(work) == 60
    assert seen == [100, 110, 120]
    assert (balance(store, ann), balance(store, bob)) == (60, 1)


@with_row_locks
def test_transact_runs_everything_again_after_a_deadlock(store: EventStore) -> None:
    ann, bob = opened_accounts(store, 0, 0)
    both_hold_one = threading.Barrier(2)
    runs = list[str]()

    def work(tx: Transaction, first: str, second: str) -> None:
        accounts = tx.repository(Account)
        accounts.update(first, Account.credit, 1)
        runs.append(first)
        if runs.count(first) == 1:
            both_hold_one.wait(30)
        accounts.update(second, Account.credit, 1)

    raised = in_threads(
        lambda: store.transact(work, ann, bob),
        lambda: store.transact(work, bob, ann),
    )
    assert raised == []
    assert len(runs) > 2
    assert (balance(store, ann), balance(store, bob)) == (2, 2)


def test_transfers_in_both_directions_neither_make_nor_lose_money(
    store: EventStore, rival: EventStore
) -> None:
    ann, bob = opened_accounts(store, 100, 100)

    def in_order(tx: Transaction, ann_gets: int) -> None:
        """Always ann first, so that these conflict and do not deadlock."""
        tx.repository(Account).update(ann, Account.credit, ann_gets)
        tx.repository(Account).update(bob, Account.credit, -ann_gets)

    def pay(store: EventStore, ann_gets: int) -> None:
        for _ in range(5):
            store.transact(in_order, ann_gets)

    raised = in_threads(
        lambda: pay(store, 3), lambda: pay(store, -5), lambda: pay(rival, 3), lambda: pay(rival, -5)
    )
    assert raised == []
    assert (balance(store, ann), balance(store, bob)) == (80, 120)


def test_transact_gives_up_when_the_retries_are_used_up(
    url: str, flavour: str, opened: Opening
) -> None:
    store = opened(url, flavour, retries=2)
    ann, bob = opened_accounts(store, 100, 0)
    stale = store.repository(Account).find(ann).version
    store.repository(Account).update(ann, Account.credit, 1)
    runs = list[int]()

    def work(tx: Transaction) -> None:
        runs.append(1)
        tx.repository(Account).update(bob, Account.credit, 1)
        tx.repository(Account).expecting(stale).update(ann, Account.debit, 1)

    with pytest.raises(VersionConflict):
        store.transact(work)
    assert len(runs) == 3
    assert balance(store, bob) == 0


@pytest.mark.parametrize("error", [EntityExists, NotFound, InsufficientFunds, StoreBusy])
def test_transact_runs_nothing_again_that_would_fail_again(
    store: EventStore, error: type[Exception]
) -> None:
    (ann,) = opened_accounts(store, 100)
    runs = list[int]()

    def work(tx: Transaction) -> None:
        runs.append(1)
        accounts = tx.repository(Account)
        accounts.update(ann, Account.credit, 1)
        if error is EntityExists:
            accounts.with_id(ann).create(Account.open, "again")
        elif error is NotFound:
            accounts.update(f"{ann}-2", Account.credit, 1)
        elif error is InsufficientFunds:
            accounts.update(ann, Account.debit, 102)
        raise StoreBusy("mine")

    with pytest.raises(error):
        store.transact(work)
    assert runs == [1]
    assert balance(store, ann) == 100


def test_a_transaction_is_never_run_again(store: EventStore) -> None:
    ann, bob = opened_accounts(store, 100, 0)
    stale = store.repository(Account).find(ann).version
    store.repository(Account).update(ann, Account.credit, 1)
    runs = list[int]()

    def work(tx: Transaction) -> None:
        runs.append(1)
        tx.repository(Account).update(bob, Account.credit, 1)
        tx.repository(Account).expecting(stale).update(ann, Account.debit, 1)

    with pytest.raises(VersionConflict):
        within(store, work)
    assert runs == [1]
    assert balance(store, bob) == 0


@with_row_locks
def test_a_lost_race_in_a_transaction_is_a_conflict(store: EventStore, rival: EventStore) -> None:
    (ann,) = opened_accounts(store, 100)
    runs = list[int]()

    def overtaken(account: Account) -> None:
        runs.append(1)
        rival.repository(Account).update(ann, Account.credit, 1)
        account.debit(100)

    with pytest.raises(VersionConflict):
        within(store, lambda tx: tx.repository(Account).update(ann, overtaken))
    assert runs == [1]
    assert balance(store, ann) == 101


# --- SQLite, which has one writer ----------------------------------------------------------------


@pytest.mark.parametrize(("kind", "flavour"), [("sqlite", "sync"), ("sqlite", "async")])
def test_a_transaction_waits_for_another_program_that_writes(
    url: str, store: EventStore, flavour: str, opened: Opening
) -> None:
    ann, bob = opened_accounts(store, 100, 0)
    hasty = opened(f"{url}?timeout=0.1", flavour)
    with closing(sqlite3.connect(path_of(url), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreBusy):
            within(hasty, lambda tx: tx.repository(Account).update(ann, Account.credit, 1))
        begun = threading.Event()

        def work() -> None:
            begun.set()
            store.transact(transfer, ann, bob, 30)

        thread = threading.Thread(target=work)
        thread.start()
        begun.wait()
        other.execute("COMMIT")
        thread.join()
    assert (balance(store, ann), balance(store, bob)) == (70, 30)
    within(hasty, lambda tx: transfer(tx, ann, bob, 30))
    assert balance(hasty, bob) == 60


@pytest.mark.parametrize(("kind", "flavour"), [("sqlite", "sync"), ("sqlite", "async")])
def test_writing_past_the_open_transaction_says_what_is_wrong(
    url: str, flavour: str, opened: Opening
) -> None:
    store = opened(f"{url}?timeout=0.1", flavour)
    ann, bob = opened_accounts(store, 100, 0)
    with store.transaction() as tx:
        tx.repository(Account).update(ann, Account.debit, 30)
        assert balance(store, ann) == 100
        with pytest.raises(StoreBusy, match="a transaction of this process"):
            store.repository(Account).update(bob, Account.credit, 30)
        tx.repository(Account).update(bob, Account.credit, 30)
    assert (balance(store, ann), balance(store, bob)) == (70, 30)


# --- around a transaction ------------------------------------------------------------------------


@with_row_locks
def test_what_does_not_go_through_the_transaction_is_no_part_of_it(store: EventStore) -> None:
    ann, bob = opened_accounts(store, 0, 0)

    def work(tx: Transaction) -> None:
        tx.repository(Account).update(ann, Account.credit, 1)
        store.repository(Account).update(bob, Account.credit, 1)
        within(store, lambda inner: inner.repository(Account).update(bob, Account.credit, 1))
        raise LookupError

    with pytest.raises(LookupError):
        within(store, work)
    assert (balance(store, ann), balance(store, bob)) == (0, 2)


def test_a_transaction_inside_another_stores_is_its_own(
    store: EventStore, flavour: str, opened: Opening, tmp_path: Path
) -> None:
    other = opened(f"sqlite:///{tmp_path}/other.db", "async" if flavour == "async" else "sync")
    (ann,) = opened_accounts(store, 0)
    (bob,) = opened_accounts(other, 0)

    def work(tx: Transaction) -> None:
        tx.repository(Account).update(ann, Account.credit, 1)
        within(other, lambda inner: inner.repository(Account).update(bob, Account.credit, 1))
        raise LookupError

    with pytest.raises(LookupError):
        within(store, work)
    assert (balance(store, ann), balance(other, bob)) == (0, 1)


def test_a_transaction_that_does_nothing_is_none_the_worse(store: EventStore) -> None:
    with store.transaction():
        pass
    (ann,) = opened_accounts(store, 1)
    with store.transaction() as tx:
        assert tx.repository(Account).find(ann).state.balance == 1


def test_a_transaction_used_after_its_end_is_refused(store: EventStore, url: str) -> None:
    (ann,) = opened_accounts(store, 100)
    kept = list[Transaction]()
    with store.transaction() as tx:
        accounts = tx.repository(Account)
        accounts.find(ann)

    def fail(tx: Transaction) -> None:
        kept.append(tx)
        raise LookupError

    with pytest.raises(LookupError):
        within(store, fail)
    for repository in (accounts, kept[0].repository(Account)):
        with pytest.raises(UsageError, match="has ended"):
            repository.find(ann)
        with pytest.raises(UsageError, match="has ended"):
            repository.update(ann, Account.debit, 1)
    assert len(event_ids(url, ann)) == 1


class Interrupted(BaseException):
    """Like Ctrl-C."""


def test_no_error_leaves_a_transaction_open(
    store: EventStore, rival: EventStore, new_id: NewId
) -> None:
    """What a transaction left open had locked, the other store could not change."""
    ann, bob = opened_accounts(store, 100, 0)
    stale = store.repository(Account).find(ann).version
    store.repository(Account).update(ann, Account.credit, 1)

    def refused(tx: Transaction) -> None:
        tx.repository(Account).expecting(stale).update(ann, Account.debit, 1)

    def existing(tx: Transaction) -> None:
        tx.repository(Account).with_id(ann).create(Account.open, "again")

    def poor(tx: Transaction) -> None:
        tx.repository(Account).update(ann, Account.debit, 1_000_000)

    def nowhere(tx: Transaction) -> None:
        tx.repository(Account).update(new_id(), Account.debit, 1)

    def unstorable(tx: Transaction) -> None:
        tx.repository(Account).update(ann, Account.note, "\ud800")

    def interrupted(tx: Transaction) -> None:
        raise Interrupted

    for n, work in enumerate((refused, existing, poor, nowhere, unstorable, interrupted), start=1):

        def credit_and_fail(tx: Transaction, work: Callable[[Transaction], None] = work) -> None:
            for id in (ann, bob):
                tx.repository(Account).update(id, Account.credit, 1000)
            work(tx)

        with pytest.raises(BaseException) as caught:  # noqa: PT011
            within(store, credit_and_fail)
        assert not isinstance(caught.value, (StoreError, TransactionRolledBack))
        for id in (ann, bob):
            rival.repository(Account).update(id, Account.credit, 1)
            store.repository(Account).update(id, Account.credit, 1)
        assert (balance(store, ann), balance(store, bob)) == (101 + 2 * n, 2 * n)


def test_a_cancelled_task_leaves_no_transaction_open(url: str, rival: EventStore) -> None:
    (ann,) = opened_accounts(rival, 100)

    async def work(store: AsyncEventStore, inside: asyncio.Event) -> None:
        async with store.transaction() as tx:
            await tx.repository(Account).update(ann, Account.credit, 1)
            inside.set()
            await asyncio.sleep(3600)

    async def cancel() -> None:
        async with AsyncEventStore(url) as store:
            inside = asyncio.Event()
            task = asyncio.ensure_future(work(store, inside))
            await inside.wait()
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
            await asyncio.to_thread(rival.repository(Account).update, ann, Account.credit, 10)
            assert (await store.repository(Account).update(ann, Account.credit, 10)).result == 120

    asyncio.run(cancel())
