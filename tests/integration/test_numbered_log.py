"""The database as its own broker: what is numbered, in which order, whatever writers do."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from datetime import UTC, datetime
from functools import partial
from multiprocessing.connection import Connection

import psycopg
import pytest

from retold import AsyncEventStore, Delivery, EventStore, Subscription
from retold.brokers import numbered
from retold.brokers.numbered import NumberedConsumer
from retold.brokers.shares import take_share
from retold.errors import AssignmentLost, LogMissing, SchemaForeign, TriggerRefused
from retold.store.connections import OwnConnection
from retold.store.driver import Batch, Result, Statement, drive
from tests.conformance.raw import rows
from tests.integration.test_subscriptions import (
    Account,
    Credited,
    Letter,
    Started,
    Transfer,
    moving,
    started,
    work,
)
from tests.rig import Rig

__all__ = ["started"]  # a fixture

SERVERS = pytest.mark.parametrize("kind", ["postgres18", "mysql8", "mariadb"])
POOLED = pytest.mark.parametrize("kind", ["postgres18", "pgbouncer", "mysql8", "mariadb"])
POSTGRES = pytest.mark.parametrize("kind", ["postgres18"])

FreshDatabase = Callable[[str], str]


@pytest.fixture
def url(kind: str, fresh_database: FreshDatabase) -> str:
    url = fresh_database(kind)
    with EventStore(url) as store:
        store.migrate(subscriptions=True)
    return url


@pytest.fixture
def store(url: str) -> Iterator[EventStore]:
    with EventStore(url) as opened:
        yield opened


def noting(name: str, handled: list[int]) -> Subscription:
    """Notes the amount of each credit."""
    subscription = Subscription(name)

    @subscription.on(Credited, of=Account)
    def note(delivery: Delivery[Credited]) -> None:
        handled.append(delivery.event.amount)

    return subscription


def log(url: str) -> list[tuple[int, str, str]]:
    """Position, entity and event id of all that is numbered."""
    found = rows(
        url,
        "SELECT l.position, e.entity_id, e.event_id FROM event_log l"
        " JOIN events e ON e.event_id = l.event_id ORDER BY l.position",
    )
    return [(int(str(n)), str(entity), str(id)) for n, entity, id in found]


def check_log(url: str) -> None:
    """Every event has one position, without gaps, and each entity's are in the order of ids."""
    entries = log(url)
    assert [position for position, _, _ in entries] == list(range(1, len(entries) + 1))
    ids = [id for _, _, id in entries]
    assert sorted(ids) == [str(id) for (id,) in rows(url, "SELECT event_id FROM events ORDER BY 1")]
    assert rows(url, "SELECT event_id FROM unnumbered_events") == []
    by_entity = defaultdict[str, list[str]](list)
    for _, entity, id in entries:
        by_entity[entity].append(id)
    assert all(ids == sorted(ids) for ids in by_entity.values())


# --- the step ------------------------------------------------------------------------------------


@SERVERS
def test_without_the_step_a_subscription_says_what_to_run(
    kind: str, fresh_database: FreshDatabase
) -> None:
    with EventStore(fresh_database(kind)) as store:
        store.migrate()
        with pytest.raises(LogMissing, match="retold migrate --subscriptions"):
            store.drain(noting("letters", []))
        assert store.migrate(subscriptions=True) == ["the log for subscriptions"]
        assert store.migrate(subscriptions=True) == []


@SERVERS
def test_events_from_before_the_step_are_handled_too(
    kind: str, fresh_database: FreshDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retold.store.numbering._PAGE", 3)
    url, handled = fresh_database(kind), list[int]()
    with EventStore(url) as store:
        store.migrate()
        for n in range(10):
            store.repository(Account).create(Account.credit, n)
        store.migrate(subscriptions=True)
        store.repository(Account).create(Account.credit, 10)
        assert store.drain(noting("letters", handled)) == 11
    assert sorted(handled) == list(range(11))
    check_log(url)


@SERVERS
def test_a_step_that_was_broken_off_begins_again(kind: str, fresh_database: FreshDatabase) -> None:
    url, handled = fresh_database(kind), list[int]()
    with EventStore(url) as store:
        store.migrate(subscriptions=True)
        rows(url, "DELETE FROM numbering")  # which is written last
        store.repository(Account).create(Account.credit, 7)
        with pytest.raises(LogMissing, match="broken off"):
            store.drain(noting("letters", handled))
        store.migrate(subscriptions=True)
        store.drain(noting("letters", handled))
    assert handled == [7]


def lose_the_trigger(url: str) -> None:
    """As tools do that copy a table to change it."""
    on = " ON events" if url.startswith("postgres") else ""
    rows(url, f"DROP TRIGGER note_event{on}")


@SERVERS
def test_a_trigger_that_was_lost_is_noticed_and_made_anew(
    kind: str, fresh_database: FreshDatabase
) -> None:
    url, handled = fresh_database(kind), list[int]()
    with EventStore(url) as store:
        store.migrate(subscriptions=True)
        accounts = store.repository(Account)
        ann = accounts.create(Account.credit, 0).id
        store.drain(noting("letters", handled))
        accounts.update(ann, Account.credit, 1)  # noted, and not numbered yet
        lose_the_trigger(url)
        accounts.update(ann, Account.credit, 2)
        with pytest.raises(LogMissing, match="trigger"):
            store.drain(noting("letters", handled))
        assert store.migrate(subscriptions=True) == ["the trigger of the log for subscriptions"]
        assert store.migrate(subscriptions=True) == []
        accounts.update(ann, Account.credit, 3)
        store.drain(noting("letters", handled))
    assert handled == [0, 1, 2, 3]
    check_log(url)


@pytest.mark.parametrize("kind", ["mysql8", "mariadb"])
def test_a_trigger_half_made_anew_is_made_whole(kind: str, fresh_database: FreshDatabase) -> None:
    """Until what was missed is noted, nothing is numbered."""
    url, handled = fresh_database(kind), list[int]()
    with EventStore(url) as store:
        store.migrate(subscriptions=True)
        ann = store.repository(Account).create(Account.credit, 0).id
        rows(url, "UPDATE numbering SET id = 2")
        rows(url, "DELETE FROM unnumbered_events")  # as if it was missed
        store.repository(Account).update(ann, Account.credit, 1)
        with pytest.raises(LogMissing, match="broken off"):
            store.drain(noting("letters", handled))
        assert store.migrate(subscriptions=True) == ["the trigger of the log for subscriptions"]
        store.drain(noting("letters", handled))
    assert handled == [0, 1]
    check_log(url)


@POSTGRES
def test_a_disabled_trigger_is_made_anew(kind: str, fresh_database: FreshDatabase) -> None:
    url, handled = fresh_database(kind), list[int]()
    with EventStore(url) as store:
        store.migrate(subscriptions=True)
        rows(url, "ALTER TABLE events DISABLE TRIGGER note_event")
        store.repository(Account).create(Account.credit, 1)
        with pytest.raises(LogMissing, match="trigger"):
            store.drain(noting("letters", handled))
        store.migrate(subscriptions=True)
        store.drain(noting("letters", handled))
    assert handled == [1]


@SERVERS
def test_an_event_that_is_far_behind_in_the_log_is_no_lost_one(
    kind: str, fresh_database: FreshDatabase
) -> None:
    """A clock that ran ahead made the newest id a long time ago."""
    url, handled = fresh_database(kind), list[int]()
    with EventStore(url) as store:
        store.migrate(subscriptions=True)
        store.repository(Account).create(Account.credit, 1)
        store.drain(noting("letters", handled))
        rows(url, "UPDATE numbering SET last_position = last_position + 20000")
        store.drain(noting("letters", handled))
    assert handled == [1]


@SERVERS
def test_tables_of_somebody_else_are_left_alone(kind: str, fresh_database: FreshDatabase) -> None:
    url = fresh_database(kind)
    with EventStore(url) as store:
        store.migrate()
        rows(url, "CREATE TABLE event_log (line varchar(10))")
        with pytest.raises(SchemaForeign, match="event_log"):
            store.migrate(subscriptions=True)
        store.repository(Account).create(Account.credit, 1)


@SERVERS
def test_several_stores_in_one_database_have_logs_of_their_own(
    kind: str, fresh_database: FreshDatabase
) -> None:
    plain = fresh_database(kind)
    options = ["prefix=one_", "prefix=two_"]
    if kind.startswith("p"):
        options += ["schema=sales", "schema=sales&prefix=old_"]
    for n, option in enumerate(options):
        handled = list[int]()
        with EventStore(f"{plain}?{option}") as store:
            store.migrate(subscriptions=True)
            store.repository(Account).create(Account.credit, n)
            store.drain(noting("letters", handled))
        assert handled == [n]


@pytest.mark.parametrize("kind", ["mysql8", "mariadb"])
def test_a_trigger_that_the_server_refuses_is_explained(
    kind: str, fresh_database: FreshDatabase, servers: Rig
) -> None:
    url, admin = fresh_database(kind), servers[kind].url
    with EventStore(url) as store:
        store.migrate()
        rows(admin, "SET GLOBAL log_bin_trust_function_creators = 0")
        try:
            with pytest.raises(TriggerRefused, match="log_bin_trust_function_creators"):
                store.migrate(subscriptions=True)
        finally:
            rows(admin, "SET GLOBAL log_bin_trust_function_creators = 1")
        store.repository(Account).create(Account.credit, 1)
        store.migrate(subscriptions=True)
        assert store.drain(noting("letters", [])) == 1


@POSTGRES
def test_a_writer_needs_no_rights_on_the_log_and_no_search_path(
    url: str, store: EventStore, servers: Rig, kind: str
) -> None:
    role = "writer_of_events"
    admin = servers[kind].url.rpartition("/")[0] + "/" + url.rpartition("/")[2]
    with closing(psycopg.connect(admin, autocommit=True)) as raw:
        raw.execute(f"CREATE ROLE {role}")
        try:
            raw.execute(f"GRANT INSERT ON public.events TO {role}")
            raw.execute(f"SET ROLE {role}")
            raw.execute("SET search_path = pg_catalog")
            raw.execute(
                "INSERT INTO public.events (event_id, event_type, event_data, entity_type,"
                " entity_id) VALUES ('0', 'test_subscriptions.Credited', '{\"amount\": 3}',"
                " 'test_subscriptions.Account', 'raw')"
            )
            raw.execute("RESET ROLE")
        finally:
            raw.execute("RESET search_path")
            raw.execute(f"DROP OWNED BY {role}")
            raw.execute(f"DROP ROLE {role}")
    handled = list[int]()
    store.drain(noting("letters", handled))
    assert handled == [3]


# --- numbering -----------------------------------------------------------------------------------


@POOLED
def test_a_slow_transaction_neither_blocks_nor_is_left_out(url: str, store: EventStore) -> None:
    handled = list[int]()
    letters, accounts = noting("letters", handled), store.repository(Account)
    with store.transaction() as tx:
        slow = tx.repository(Account).create(Account.credit, 1).id
        ids = [accounts.create(Account.credit, n).id for n in range(2, 30)]
        assert store.drain(letters) == 28
        for id in ids:
            accounts.update(id, Account.credit, 100)
        assert store.drain(letters) == 28
        tx.repository(Account).update(slow, Account.credit, 2)
    accounts.update(slow, Account.credit, 3)
    del handled[:]
    store.drain(letters)
    assert handled == [1, 2, 3]
    check_log(url)


@SERVERS
def test_a_transaction_that_is_rolled_back_leaves_no_gap(url: str, store: EventStore) -> None:
    handled = list[int]()
    letters = noting("letters", handled)
    for n in range(3):
        with suppress(ZeroDivisionError), store.transaction() as tx:
            tx.repository(Account).create(Account.credit, -1)
            store.repository(Account).create(Account.credit, n)
            store.drain(letters)
            raise ZeroDivisionError
    store.drain(letters)
    assert handled == [0, 1, 2]
    check_log(url)


@SERVERS
def test_rows_that_others_insert_many_at_once_are_seen(url: str, store: EventStore) -> None:
    """In any order of ids, more than a page."""
    values = [
        f"('{n * 7919 % 2500:08}', 'test_subscriptions.Credited', '{{\"amount\": {n}}}',"
        f" 'test_subscriptions.Account', 'raw-{n % 50}')"
        for n in range(2500)
    ]
    rows(
        url,
        "INSERT INTO events (event_id, event_type, event_data, entity_type, entity_id) VALUES "
        + ", ".join(values),
    )
    handled = list[int]()
    assert store.drain(noting("letters", handled)) == 2500
    assert sorted(handled) == list(range(2500))
    check_log(url)


@SERVERS
def test_an_event_that_somebody_deletes_stops_nothing(url: str, store: EventStore) -> None:
    handled = list[int]()
    accounts = store.repository(Account)
    gone = accounts.create(Account.credit, 1).id
    rows(url, f"DELETE FROM events WHERE entity_id = '{gone}'")
    accounts.create(Account.credit, 2)
    store.drain(noting("letters", handled))
    assert handled == [2]
    check_log(url)


def claim_and_stop(url: str, pipe: Connection) -> None:
    """A numberer that stops in the middle of its transaction."""
    with EventStore(url) as store, store.driver.connection() as connection:
        sql = store.driver.dialect.queries
        connection.begin()
        connection.execute(
            [Statement("UPDATE numbering SET last_position = last_position + 5 WHERE id = 1")]
        )
        connection.execute([Statement("DELETE FROM unnumbered_events")])
        assert sql
        pipe.send("in the middle")
        pipe.recv()


@SERVERS
def test_a_numberer_that_is_killed_in_its_transaction_leaves_no_trace(
    url: str, store: EventStore, started: Started
) -> None:
    for n in range(5):
        store.repository(Account).create(Account.credit, n)
    process, pipe = started(claim_and_stop, url)
    assert pipe.recv() == "in the middle"
    # Who appends does not wait for who numbers.
    store.repository(Account).create(Account.credit, 5)
    handled = list[int]()
    draining = threading.Thread(target=store.drain, args=(noting("letters", handled),))
    draining.start()
    process.kill()
    draining.join(30)
    assert sorted(handled) == list(range(6))
    check_log(url)


@SERVERS
def test_members_that_number_at_once_number_each_event_once(url: str, store: EventStore) -> None:
    """Each subscription's member numbers what it finds; writers go on meanwhile."""
    counts = [list[int]() for _ in range(3)]
    subscriptions = [noting(f"s{n}", handled) for n, handled in enumerate(counts)]
    failures = list[BaseException]()

    def write(first: int) -> None:
        try:
            accounts = store.repository(Account)
            id = accounts.create(Account.credit, first).id
            for n in range(first + 1, first + 60):
                accounts.update(id, Account.credit, n)
        except BaseException as error:
            failures.append(error)

    stop = threading.Event()
    worker = threading.Thread(target=store.run, args=subscriptions, kwargs={"stop": stop})
    worker.start()
    writers = [threading.Thread(target=write, args=(1000 * n,)) for n in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    deadline = time.monotonic() + 30
    while any(len(handled) < 240 for handled in counts):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    stop.set()
    worker.join()
    assert failures == []
    for handled in counts:
        assert len(handled) == len(set(handled)) == 240
        for n in range(4):
            own = [amount for amount in handled if amount // 1000 == n]
            assert own == sorted(own)
    check_log(url)


# --- start ---------------------------------------------------------------------------------------


@SERVERS
def test_a_subscription_that_starts_now_handles_what_comes_from_now_on(store: EventStore) -> None:
    handled = list[int]()
    letters = Subscription("letters", start="now")
    letters.on(Credited, of=Account)(lambda delivery: handled.append(delivery.event.amount))
    store.repository(Account).create(Account.credit, 1)
    assert store.drain(letters) == 0
    store.repository(Account).create(Account.credit, 2)
    store.drain(letters)
    assert handled == [2]


@SERVERS
def test_a_subscription_may_start_at_a_time(store: EventStore) -> None:
    accounts = store.repository(Account)
    accounts.create(Account.credit, 1)
    time.sleep(0.01)
    moment = datetime.now(UTC)
    accounts.create(Account.credit, 2)
    accounts.create(Account.credit, 3)
    handled = list[int]()
    letters = Subscription("letters", start=moment)
    letters.on(Credited, of=Account)(lambda delivery: handled.append(delivery.event.amount))
    later = Subscription("later", start=datetime(2999, 1, 1, tzinfo=UTC))
    later.on(Credited, of=Account)(lambda delivery: handled.append(-1))
    assert store.drain(later) == 0
    store.drain(letters)
    assert handled == [2, 3]


# --- waking --------------------------------------------------------------------------------------


@pytest.fixture
def never_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Members look when they are woken, and else not for an hour."""
    pause = NumberedConsumer._pause

    def an_hour(member: NumberedConsumer) -> float:
        pause(member)
        return 3600.0

    monkeypatch.setattr(NumberedConsumer, "_pause", an_hour)
    monkeypatch.setattr(numbered, "_SHARE_S", 3600.0)


@pytest.mark.parametrize("kind", ["postgres18", "mysql8"])
@pytest.mark.usefixtures("never_looks")
def test_commits_of_the_same_process_wake_it(url: str, store: EventStore) -> None:
    handled, seen = list[int](), threading.Semaphore(0)
    letters = Subscription("letters")

    @letters.on(Credited, of=Account)
    def note(delivery: Delivery[Credited]) -> None:
        handled.append(delivery.event.amount)
        seen.release()

    store.repository(Account).create(Account.credit, 0)
    member = NumberedConsumer(
        store.driver, "letters", [Account.__entity_type__], ["test_subscriptions.Credited"], "now"
    )

    async def credit(amount: int) -> None:
        async with AsyncEventStore(url) as other:
            await other.repository(Account).create(Account.credit, amount)

    with closing(member):
        assert not member.poll(1, 0)
        for n in range(3):
            waiting = Waiting(member)
            store.repository(Account).create(Account.credit, n)
            waiting.returned()
            waiting = Waiting(member)
            with store.transaction() as tx:
                tx.repository(Account).create(Account.credit, n)
            waiting.returned()
            waiting = Waiting(member)
            asyncio.run(credit(n))
            waiting.returned()


class Waiting(threading.Thread):
    """A poll that would wait for an hour."""

    def __init__(self, member: NumberedConsumer) -> None:
        super().__init__(daemon=True)
        self._member = member
        self._found = False
        self.start()

    def run(self) -> None:
        self._found = bool(self._member.poll(100, 3600))

    def returned(self) -> None:
        self.join(20)
        assert self._found


def number_what_is_there(url: str, pipe: Connection) -> None:
    with EventStore(url) as store:
        store.repository(Account).create(Account.credit, 1)
        store.drain(noting("others", []))


@POSTGRES
@pytest.mark.usefixtures("never_looks")
def test_postgres_notifies_members_of_other_processes(
    url: str, store: EventStore, started: Started
) -> None:
    member = NumberedConsumer(
        store.driver,
        "letters",
        [Account.__entity_type__],
        ["test_subscriptions.Credited"],
        "beginning",
    )
    with closing(member):
        waiting = Waiting(member)
        deadline = time.monotonic() + 20
        while member._notices is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        started(number_what_is_there, url)
        waiting.returned()


# --- members -------------------------------------------------------------------------------------


@SERVERS
def test_a_partition_that_somebody_took_is_noticed_at_the_commit(
    url: str, store: EventStore
) -> None:
    store.repository(Account).create(Account.credit, 1)
    types = [Account.__entity_type__], ["test_subscriptions.Credited"]
    with closing(NumberedConsumer(store.driver, "letters", *types, "beginning")) as member:
        (message,) = member.poll(1, 0)
        rows(url, "UPDATE subscriptions SET owner = 'elsewhere'")
        with pytest.raises(AssignmentLost):
            member.commit({message.partition: message.position})
        assert not member.assigned
    assert rows(url, "SELECT sum(position), count(owner) FROM subscriptions") == [(0, 16)]


class Interrupted:
    """Executes statement by statement, and lets somebody else in behind the nth."""

    def __init__(self, connection: OwnConnection, n: int, act: Callable[[], object]) -> None:
        self._connection, self.left, self._act = connection, n, act

    def execute(self, batch: Batch) -> Sequence[Result]:
        results = list[Result]()
        for statement in batch:
            results += self._connection.execute([statement])
            self.left -= 1
            if self.left == 0:
                self._act()
        return results


@SERVERS
@pytest.mark.parametrize("known", [False, True])
def test_a_member_that_joins_while_another_one_counts_is_not_robbed(
    store: EventStore, known: bool
) -> None:
    """Between any two statements of the other one. Whoever owns a partition keeps it."""
    types = [Account.__entity_type__], ["test_subscriptions.Credited"]
    sql, n, at_end = store.driver.dialect.queries, 0, False
    while not at_end:
        n, name = n + 1, f"letters{n}"
        if known:
            with closing(NumberedConsumer(store.driver, name, *types, "beginning")) as earlier:
                earlier.poll(1, 0)
        with (
            closing(NumberedConsumer(store.driver, name, *types, "beginning")) as rival,
            store.driver.connection() as connection,
        ):
            other = Interrupted(connection, n, partial(rival.poll, 1, 0))
            share = drive(other.execute, take_share(sql, name, "me", 60_000, "beginning"))
            at_end = other.left > 0
            shares = connection.execute([Statement(sql["shares"], (name,))])[0].rows
            owners = {partition: owner for partition, _, owner in shares}
            assert {owners[partition] for partition in rival._read} <= {rival._me}, n
            assert {owners[partition] for partition in share.held} <= {"me"}, n


@SERVERS
def test_a_position_is_saved_as_far_as_nothing_of_ours_comes(url: str, store: EventStore) -> None:
    for _ in range(30):
        store.repository(Letter).create(Letter.write)
    store.repository(Account).create(Account.credit, 1)
    store.drain(noting("letters", []))
    assert rows(url, "SELECT min(position), max(position) FROM subscriptions") == [(31, 31)]


@POOLED
def test_every_event_has_its_effect_once_though_members_are_killed_again_and_again(
    url: str, store: EventStore, started: Started
) -> None:
    accounts, transfers = store.repository(Account), store.repository(Transfer)
    ids = [accounts.create(Account.credit, 0).id for _ in range(5)]
    requested, enough = list[tuple[str, str, int]](), threading.Event()

    def request() -> None:
        n = 0
        while not enough.is_set():
            n += 1
            transfer = ids[n % 5], ids[n * n % 5], n % 7
            transfers.create(Transfer.request, *transfer)
            requested.append(transfer)
            enough.wait(0.005)

    def done() -> int:
        ((count,),) = rows(url, "SELECT count(*) FROM handled")
        return int(str(count))

    workers = [started(work, url)[0] for _ in range(3)]
    requester = threading.Thread(target=request)
    requester.start()
    try:
        for n in range(9):
            before, deadline = done(), time.monotonic() + 20
            while done() < before + 5:
                assert time.monotonic() < deadline, "nobody handles anything any more"
                time.sleep(0.01)
            victim = workers.pop(0)
            assert victim.pid
            os.kill(victim.pid, signal.SIGKILL if n % 3 else signal.SIGTERM)
            victim.join()
            workers.append(started(work, url)[0])
    finally:
        enough.set()
        requester.join()
    for worker in workers:
        worker.kill()
        worker.join()
    store.drain(moving("transfers"))

    expected = Counter[str]()
    for source, target, amount in requested:
        expected[source] -= amount + 1
        expected[target] += amount
    assert {id: accounts.find(id).state.balance for id in ids} == {id: expected[id] for id in ids}
    assert len(list(store.repository(Letter).entities())) == len(requested)
    store.drain(noting("numbering", []))
    check_log(url)
