"""What brokers/base.py promises of a consumer. Any broker must pass: each database is its own."""

from __future__ import annotations

import json
import multiprocessing
import os
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import pytest

from retold import EventStore, metadata
from retold.brokers import database
from retold.brokers.base import Consumer, Message
from retold.brokers.kafka import KafkaPublisher
from retold.brokers.numbered import NumberedConsumer
from retold.errors import AssignmentLost
from tests.conformance.domain import Account, Savings
from tests.conformance.kafka_broker import PARTITIONS, KafkaBroker, copying, topics_of
from tests.conformance.raw import rows
from tests.rig import DATABASES, KINDS, Rig

_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload([__name__])

ACCOUNT, SAVINGS = "conformance.Account", "conformance.Savings"
OPENED, CREDITED, NOTED = "conformance.Opened", "conformance.Credited", "conformance.Noted"
WANTED = OPENED, CREDITED, NOTED
LONG_S = 3600.0
"""A wait that no test could sit out."""


class Broker(Protocol):
    """What a broker brings to be tested.

    A value that can be sent to another process. lease_s: after this time a member that is there
    but not heard of has lost its assignment; None as long as no test could wait for.
    """

    def store(self) -> EventStore:
        """A store whose events the broker hands on."""
        ...

    def member(self, name: str, topics: Sequence[str], lease_s: float | None) -> Consumer:
        """A member of a subscription that begins at the first event."""
        ...


ONE_PARTITION = pytest.mark.parametrize("kind", ["sqlite"])
SHARING = pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "sqlite"])
# A lease in a table names a process; Kafka only misses it.
TABLE = pytest.mark.parametrize("kind", DATABASES)

_making = threading.Lock()


class SqliteBroker:
    def __init__(self, path: Path) -> None:
        self._url = f"sqlite:///{path}"

    def store(self) -> EventStore:
        return EventStore(self._url)

    def member(self, name: str, topics: Sequence[str], lease_s: float | None) -> Consumer:
        driver = self.store().driver
        with _making, pytest.MonkeyPatch.context() as patch:
            patch.setattr(database, "LEASE_S", lease_s or LONG_S)
            return database.DatabaseConsumer(driver, name, topics, WANTED, "beginning")


class ServerBroker:
    def __init__(self, url: str) -> None:
        self._url = url

    def store(self) -> EventStore:
        return EventStore(self._url)

    def member(self, name: str, topics: Sequence[str], lease_s: float | None) -> Consumer:
        driver = self.store().driver
        return OnItsOwn(driver, name, topics, WANTED, "beginning", lease_s or LONG_S)


class OnItsOwn(NumberedConsumer):
    """Closes its store with itself."""

    def close(self) -> None:
        super().close()
        self._driver.close()


FILLED = (
    "events",
    "entities",
    "snapshots",
    "handled",
    "unnumbered_events",
    "event_log",
    "subscriptions",
    "subscribers",
)


@pytest.fixture(scope="module")
def numbered(servers: Rig) -> Iterator[Callable[[str], str]]:
    """Gives the URL of a database with a numbered log, which the tests of this module share."""
    made: dict[str, str] = {}
    name = f"consumer_{secrets.token_hex(8)}"

    def url_of(kind: str) -> str:
        if kind not in made:
            made[kind] = servers[kind].create_database(f"{name}_{kind}")
            with EventStore(made[kind]) as store:
                store.migrate(subscriptions=True)
        return made[kind]

    yield url_of
    for kind in made:
        servers[kind].drop_database(f"{name}_{kind}")


@pytest.fixture(scope="module")
def publisher(servers: Rig) -> Iterator[Callable[[], KafkaPublisher]]:
    """Gives the one that publishes for the tests of this module."""
    made: list[KafkaPublisher] = []

    def publishing() -> KafkaPublisher:
        if not made:
            made.append(KafkaPublisher(f"consumer-{secrets.token_hex(4)}", servers.kafka.url))
            made[0].begin()
        return made[0]

    yield publishing
    for publisher in made:
        publisher.close()


@pytest.fixture
def broker(
    kind: str,
    numbered: Callable[[str], str],
    servers: Rig,
    publisher: Callable[[], KafkaPublisher],
    tmp_path: Path,
) -> Iterator[Broker]:
    if kind == "sqlite":
        yield SqliteBroker(tmp_path / "events.db")
    elif kind == "kafka":
        kafka = KafkaBroker(tmp_path / "events.db", servers.kafka.url, WANTED)
        counts = {kafka.topic(ACCOUNT): PARTITIONS, kafka.topic(SAVINGS): 1}
        with kafka.store(), topics_of(kafka.bootstrap, counts), copying(kafka, publisher()):
            yield kafka
    else:
        url = numbered(kind)
        rows(url, *(f"DELETE FROM {table}" for table in FILLED))
        rows(url, "UPDATE numbering SET last_position = 0")
        yield ServerBroker(url)


@pytest.fixture
def store(broker: Broker) -> Iterator[EventStore]:
    with broker.store() as opened:
        yield opened


class Member(Protocol):
    def __call__(
        self, name: str = ..., *, topics: Sequence[str] = ..., lease_s: float | None = ...
    ) -> Consumer: ...


@pytest.fixture
def member(broker: Broker) -> Iterator[Member]:
    """Makes members, which are closed when the test ends."""
    with ExitStack() as stack:

        def make(
            name: str = "letters",
            *,
            topics: Sequence[str] = (ACCOUNT, SAVINGS),
            lease_s: float | None = None,
        ) -> Consumer:
            return stack.enter_context(closing(broker.member(name, topics, lease_s)))

        yield make


Started = Callable[..., tuple[int, Connection]]


@pytest.fixture
def started() -> Iterator[Started]:
    """Starts processes that are killed when the test ends: pid, and a pipe to talk with it."""
    with ExitStack() as stack:

        def start(target: Callable[..., None], *args: Any) -> tuple[int, Connection]:
            pipe, other = _PROCESSES.Pipe()
            process = _PROCESSES.Process(target=target, args=(*args, other))
            process.start()
            other.close()
            stack.callback(process.join)
            stack.callback(process.kill)
            assert process.pid
            return process.pid, pipe

        yield start


def credited(store: EventStore, *amounts: int) -> str:
    """An account with an event for each amount; its id."""
    accounts = store.repository(Account)
    id = accounts.create(Account.credit, amounts[0]).id
    for amount in amounts[1:]:
        accounts.update(id, Account.credit, amount)
    return id


def take(consumer: Consumer, count: int, limit: int = 100) -> list[Message]:
    """The next messages, however many polls they take."""
    taken = list[Message]()
    deadline = time.monotonic() + 30
    while len(taken) < count:
        assert time.monotonic() < deadline, f"{len(taken)} of {count} messages in 30 s"
        taken += consumer.poll(limit, 1)
    return taken


def nothing_more(consumer: Consumer) -> bool:
    return not consumer.poll(100, 0.2)


def amounts(messages: Sequence[Message]) -> list[int]:
    return [json.loads(message.data)["amount"] for message in messages]


def behind(messages: Sequence[Message]) -> dict[int, int]:
    """The positions that say all these messages are handled."""
    return {message.partition: message.position for message in messages}


# --- messages ------------------------------------------------------------------------------------


def test_a_message_is_the_event_as_it_is_stored(store: EventStore, member: Member) -> None:
    with metadata(user="ann"):
        account = store.repository(Account).create(Account.open, "ann", balance=7)
    (message,) = take(member(), 1)
    assert (message.topic, message.key) == (ACCOUNT, account.id)
    assert (message.event_id, message.event_type) == (account.version, OPENED)
    assert json.loads(message.data) == {"owner": "ann", "balance": 7}
    assert json.loads(message.metadata or "") == {"user": "ann"}


def test_messages_of_one_key_come_in_order_from_one_partition(
    store: EventStore, member: Member
) -> None:
    one, other = credited(store, 1), credited(store, 10)
    for n in range(2, 8):
        store.repository(Account).update(one, Account.credit, n)
        store.repository(Account).update(other, Account.credit, 10 * n)
    messages = take(member(), 14, limit=3)
    for key, factor in ((one, 1), (other, 10)):
        own = [message for message in messages if message.key == key]
        assert amounts(own) == [n * factor for n in range(1, 8)]
        assert len({message.partition for message in own}) == 1


def test_positions_grow_within_a_partition(store: EventStore, member: Member) -> None:
    for _ in range(5):
        credited(store, 1, 2)
    last = dict[int, int]()
    for message in take(member(), 10, limit=3):
        assert message.position > last.get(message.partition, -1)
        last[message.partition] = message.position


def test_the_events_of_one_command_come_in_order(store: EventStore, member: Member) -> None:
    store.repository(Account).create(Account.credit_often, 250)
    messages = take(member(), 250)
    assert [message.event_id for message in messages] == sorted(
        message.event_id for message in messages
    )


def test_only_messages_of_the_topics_and_types_wanted_come(
    store: EventStore, member: Member
) -> None:
    accounts = store.repository(Account)
    id = credited(store, 1)
    accounts.update(id, Account.debit, 1)
    store.repository(Savings).create(Savings.credit, 3)
    accounts.update(id, Account.credit, 2)
    only = member(topics=(ACCOUNT,))
    assert amounts(take(only, 2)) == [1, 2]
    assert nothing_more(only)


def test_a_poll_returns_no_more_than_the_limit_and_the_next_one_goes_on(
    store: EventStore, member: Member
) -> None:
    credited(store, *range(1, 8))
    consumer, sizes, taken = member(), list[int](), list[Message]()
    while len(taken) < 7:
        messages = consumer.poll(3, 5)
        sizes.append(len(messages))
        taken += messages
    assert max(sizes) <= 3
    assert amounts(taken) == list(range(1, 8))


def test_messages_that_come_while_one_reads_are_not_left_out(
    store: EventStore, member: Member
) -> None:
    consumer, id = member(), credited(store, 1)
    taken = take(consumer, 1)
    for n in range(2, 6):
        store.repository(Account).update(id, Account.credit, n)
        taken += take(consumer, 1)
    assert amounts(taken) == [1, 2, 3, 4, 5]
    assert nothing_more(consumer)


def test_events_of_a_transaction_that_was_rolled_back_never_come(
    store: EventStore, member: Member
) -> None:
    consumer = member()
    with suppress(ZeroDivisionError), store.transaction() as tx:
        tx.repository(Account).create(Account.credit, 1)
        raise ZeroDivisionError
    assert nothing_more(consumer)
    credited(store, 2)
    assert amounts(take(consumer, 1)) == [2]
    assert nothing_more(consumer)


def test_events_of_an_open_transaction_come_once_it_commits(
    store: EventStore, member: Member
) -> None:
    consumer = member()
    assert nothing_more(consumer)  # the assignment is made, which may want to write
    with store.transaction() as tx:
        tx.repository(Account).create(Account.credit, 1)
        assert nothing_more(consumer)
        tx.repository(Account).create(Account.credit, 2)
    assert sorted(amounts(take(consumer, 2))) == [1, 2]


def write(broker: Broker, count: int) -> None:
    with broker.store() as store:
        accounts = store.repository(Account)
        id = accounts.create(Account.open, "ann").id
        for _ in range(count - 2):
            accounts.update(id, Account.credit, 1)
        with store.transaction() as tx:
            tx.repository(Account).update(id, Account.note, "done")


@pytest.mark.parametrize("limit", [1, 100])
def test_of_what_several_processes_commit_at_once_nothing_is_left_out(
    broker: Broker, store: EventStore, member: Member, limit: int
) -> None:
    consumer, each = member(), 60
    writers = [_PROCESSES.Process(target=write, args=(broker, each)) for _ in range(4)]
    for writer in writers:
        writer.start()
    messages = take(consumer, 4 * each, limit)
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0] * 4
    assert nothing_more(consumer)
    accounts = store.repository(Account)
    ids = list(accounts.entities())
    assert len(ids) == 4
    for id in ids:
        history = [recorded.id for recorded in accounts.history(id)]
        assert [message.event_id for message in messages if message.key == id] == history


# --- commit and redelivery -----------------------------------------------------------------------


def test_messages_that_were_not_committed_come_again(store: EventStore, member: Member) -> None:
    credited(store, 1, 2, 3)
    with closing(member()) as first:
        taken = take(first, 3)
        first.commit(behind(taken[:1]))
    assert take(member(), 2) == taken[1:]


def test_messages_that_were_committed_do_not_come_again(store: EventStore, member: Member) -> None:
    credited(store, 1, 2)
    with closing(member()) as first:
        first.commit(behind(take(first, 2)))
    again = member()
    assert nothing_more(again)
    credited(store, 3)
    assert amounts(take(again, 1)) == [3]


def test_a_commit_of_nothing_changes_nothing(store: EventStore, member: Member) -> None:
    credited(store, 1)
    with closing(member()) as first:
        take(first, 1)
        first.commit({})
    assert amounts(take(member(), 1)) == [1]


def test_subscriptions_do_not_know_of_one_another(store: EventStore, member: Member) -> None:
    credited(store, 1, 2)
    letters, books = member("letters"), member("books")
    letters.commit(behind(take(letters, 2)))
    assert amounts(take(books, 2)) == [1, 2]
    assert letters.assigned
    assert books.assigned


def commit_and_wait(broker: Broker, pipe: Connection) -> None:
    """A process that handles two messages of those that are there."""
    consumer = broker.member("letters", (ACCOUNT,), 0.5)
    consumer.commit(behind(take(consumer, 2, limit=2)))
    pipe.send("committed")
    pipe.recv()


def test_a_commit_outlives_the_process(
    broker: Broker, store: EventStore, member: Member, started: Started
) -> None:
    credited(store, 1, 2, 3)
    process, pipe = started(commit_and_wait, broker)
    assert pipe.recv() == "committed"
    os.kill(process, signal.SIGKILL)
    assert amounts(take(member(), 1)) == [3]


# --- assignment ----------------------------------------------------------------------------------


def test_nobody_is_assigned_before_the_first_poll(member: Member) -> None:
    assert not member().assigned


@ONE_PARTITION
def test_of_two_members_one_gets_the_messages_and_the_other_none(
    store: EventStore, member: Member
) -> None:
    credited(store, 1)
    first, second = member(), member()
    assert amounts(take(first, 1)) == [1]
    assert nothing_more(second)
    assert (first.assigned, second.assigned) == (True, False)
    credited(store, 2)
    assert nothing_more(second)
    assert amounts(take(first, 1)) == [2]


def all_poll_until(members: Sequence[Consumer], done: Callable[[], bool]) -> None:
    """What members do when there is nothing to handle."""
    deadline = time.monotonic() + 30
    while not done():
        assert time.monotonic() < deadline, "the members have not agreed in 30 s"
        for consumer in members:
            assert not consumer.poll(100, 0.02)


def accounts_of_all_partitions(store: EventStore) -> None:
    """More entities than could miss a partition."""
    with store.transaction() as tx:
        for n in range(200):
            tx.repository(Account).create(Account.credit, n)


def take_all(members: Sequence[Consumer], count: int) -> list[list[Message]]:
    """What each member gets of `count` messages."""
    taken: list[list[Message]] = [[] for _ in members]
    deadline = time.monotonic() + 30
    while sum(map(len, taken)) < count:
        assert time.monotonic() < deadline
        for consumer, own in zip(members, taken, strict=True):
            own += consumer.poll(100, 0.02)
            consumer.commit(behind(own))
    return taken


@SHARING
def test_members_have_equal_shares_and_each_message_goes_to_one(
    store: EventStore, member: Member
) -> None:
    members = [member(topics=(ACCOUNT,)) for _ in range(3)]
    # The first has everything until the others come.
    all_poll_until(members[:1], lambda: members[0].assigned)
    all_poll_until(members, lambda: all(consumer.assigned for consumer in members))
    all_poll_until(members, lambda: shares(members) == [5, 5, 6])
    accounts_of_all_partitions(store)
    taken = take_all(members, 200)
    ids = [message.event_id for own in taken for message in own]
    assert len(set(ids)) == len(ids) == 200
    used = [{message.partition for message in own} for own in taken]
    assert sorted(map(len, used)) == [5, 5, 6]
    assert len({partition for own in used for partition in own}) == 16


def shares(members: Sequence[Consumer]) -> list[int]:
    """How many partitions each has, ascending."""
    return sorted(len(consumer.held) for consumer in members)


@SHARING
def test_the_share_of_a_member_that_leaves_goes_to_the_others(
    store: EventStore, member: Member
) -> None:
    members = [member(topics=(ACCOUNT,)) for _ in range(3)]
    all_poll_until(members, lambda: shares(members) == [5, 5, 6])
    members.pop().close()
    all_poll_until(members, lambda: shares(members) == [8, 8])
    members.pop().close()
    all_poll_until(members, lambda: shares(members) == [16])
    accounts_of_all_partitions(store)
    assert len(take(members[0], 200)) == 200


@SHARING
def test_more_members_than_partitions_leave_some_standing_by(
    store: EventStore, member: Member
) -> None:
    members = [member(topics=(ACCOUNT,)) for _ in range(17)]
    all_poll_until(members, lambda: shares(members) == [0, *[1] * 16])
    standing_by = next(consumer for consumer in members if not consumer.assigned)
    members.remove(standing_by)
    members.pop().close()
    all_poll_until([*members, standing_by], lambda: standing_by.assigned)


@SHARING
def test_what_a_member_gives_up_goes_on_behind_its_last_commit(
    store: EventStore, member: Member
) -> None:
    first, second = member(), member()
    accounts_of_all_partitions(store)
    handled = take(first, 60, limit=60)
    first.commit(behind(handled))
    rest = list[Message]()
    all_of = {message.event_id for message in handled}
    while len(all_of) < 200:
        for consumer in (first, second):
            messages = consumer.poll(20, 0.02)
            consumer.commit(behind(messages))
            rest += messages
            all_of |= {message.event_id for message in messages}
    assert len(rest) == 200 - len(handled)


def test_a_member_that_is_not_assigned_may_not_commit(store: EventStore, member: Member) -> None:
    credited(store, 1)
    first, second = member(), member()
    taken = take(first, 1)
    assert nothing_more(second)
    with pytest.raises(AssignmentLost, match="letters"):
        second.commit(behind(taken))


def test_another_member_goes_on_at_once_when_one_closes(store: EventStore, member: Member) -> None:
    credited(store, 1, 2)
    first, second = member(), member()
    taken = take(first, 2)
    first.commit(behind(taken[:1]))
    assert nothing_more(second)
    first.close()
    assert take(second, 1) == taken[1:]


def hold(broker: Broker, lease_s: float | None, pipe: Connection) -> None:
    """A process that is assigned, and commits what it has when it is told to."""
    consumer = broker.member("letters", (ACCOUNT,), lease_s)
    taken = take(consumer, 1)
    pipe.send("assigned")
    pipe.recv()
    try:
        consumer.commit(behind(taken))
        pipe.send("saved")
    except AssignmentLost:
        pipe.send("still assigned" if consumer.assigned else "lost")


@TABLE
def test_another_member_goes_on_at_once_when_the_process_is_dead(
    broker: Broker, store: EventStore, member: Member, started: Started
) -> None:
    """Its lease would hold for an hour."""
    credited(store, 1)
    process, pipe = started(hold, broker, None)
    assert pipe.recv() == "assigned"
    successor = member()
    assert nothing_more(successor)
    os.kill(process, signal.SIGKILL)
    assert amounts(take(successor, 1)) == [1]


def test_another_member_goes_on_when_one_was_not_heard_of_for_the_time_of_its_lease(
    broker: Broker, store: EventStore, member: Member, started: Started
) -> None:
    """A process that is stopped is there all the same."""
    credited(store, 1, 2)
    process, pipe = started(hold, broker, 0.5)
    assert pipe.recv() == "assigned"
    os.kill(process, signal.SIGSTOP)
    successor = member()
    assert amounts(take(successor, 2)) == [1, 2]


def test_who_lost_the_assignment_can_save_nothing(
    broker: Broker, store: EventStore, member: Member, started: Started
) -> None:
    credited(store, 1, 2)
    process, pipe = started(hold, broker, 0.5)
    assert pipe.recv() == "assigned"
    os.kill(process, signal.SIGSTOP)
    successor = member()
    taken = take(successor, 2)
    os.kill(process, signal.SIGCONT)
    pipe.send("commit")
    assert pipe.recv() == "lost"
    successor.close()
    assert take(member(), 2) == taken


def test_a_member_that_lost_the_assignment_gets_it_again_when_it_is_free(
    store: EventStore, member: Member
) -> None:
    credited(store, 1, 2)
    first, second = member(), member()
    take(first, 2)
    first.close()
    taken = take(second, 2)
    second.commit(behind(taken))
    third = member()
    assert nothing_more(third)
    second.close()
    credited(store, 3)
    assert amounts(take(third, 1)) == [3]


def test_a_member_keeps_the_assignment_for_longer_than_its_lease_while_it_handles(
    store: EventStore, member: Member
) -> None:
    credited(store, 1)
    first, second = member(lease_s=1.0), member()
    taken = take(first, 1)
    assert not second.poll(1, 2.5)
    first.commit(behind(taken))


def test_two_members_never_have_messages_at_once(store: EventStore, member: Member) -> None:
    """Four members hand the work over again and again."""
    total, at_work, left = 40, threading.Lock(), threading.Event()
    store.repository(Account).create(Account.credit_often, total)
    handled, failures = list[str](), list[str]()

    def take_turns() -> None:
        while not left.is_set():
            with closing(member()) as consumer:
                messages = consumer.poll(1, 0)
                if not messages:
                    continue
                if not at_work.acquire(blocking=False):
                    failures.append("two at once")
                    continue
                handled.extend(message.event_id for message in messages)
                if len(handled) >= total:
                    left.set()
                consumer.commit(behind(messages))
                at_work.release()

    threads = [threading.Thread(target=take_turns) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(handled) == len(set(handled)) == total


# --- waiting -------------------------------------------------------------------------------------


class Poll(threading.Thread):
    """A poll that would wait for an hour."""

    def __init__(self, consumer: Consumer, limit: int = 100) -> None:
        super().__init__(daemon=True)
        self._consumer, self._limit = consumer, limit
        self.messages: Sequence[Message] | None = None
        self.start()

    def run(self) -> None:
        self.messages = self._consumer.poll(self._limit, LONG_S)

    def returned(self) -> Sequence[Message]:
        self.join(20)
        assert self.messages is not None, "still waiting"
        return self.messages


def test_a_poll_returns_with_the_message_that_is_there(store: EventStore, member: Member) -> None:
    credited(store, 1)
    assert amounts(Poll(member()).returned()) == [1]


def test_a_poll_returns_none_when_its_time_is_over(member: Member) -> None:
    assert member().poll(100, 0) == member().poll(100, 0.05) == ()


def test_a_waiting_poll_returns_when_the_first_message_comes(
    store: EventStore, member: Member
) -> None:
    consumer = member()
    assert nothing_more(consumer)
    poll = Poll(consumer)
    credited(store, 1)
    assert amounts(poll.returned()) == [1]


def test_a_waiting_poll_returns_when_another_process_commits(
    broker: Broker, member: Member
) -> None:
    consumer = member()
    assert nothing_more(consumer)
    poll = Poll(consumer, limit=1)
    writer = _PROCESSES.Process(target=write, args=(broker, 2))
    writer.start()
    (message,) = poll.returned()
    assert message.event_type == OPENED
    writer.join()


def test_wake_makes_a_waiting_poll_return(member: Member) -> None:
    consumer = member()
    assert nothing_more(consumer)
    poll = Poll(consumer)
    consumer.wake()
    assert poll.returned() == ()


def test_wake_makes_a_poll_return_that_stands_by(member: Member) -> None:
    first, second = member(), member()
    assert nothing_more(first)
    poll = Poll(second)
    second.wake()
    assert poll.returned() == ()
    assert not second.assigned


def test_a_poll_after_wake_waits_again(store: EventStore, member: Member) -> None:
    consumer = member()
    consumer.wake()
    assert consumer.poll(100, LONG_S) == ()
    poll = Poll(consumer)
    credited(store, 1)
    assert amounts(poll.returned()) == [1]
