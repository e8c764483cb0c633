"""Writers and servers that end at any moment: what was reported is there, nothing is by half."""

from __future__ import annotations

import itertools
import os
import random
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

import pytest

from retold import EventStore, OutcomeUnknown
from retold.errors import StoreUnavailable
from tests.conformance.blocking import open_store
from tests.conformance.raw import rows
from tests.integration.conftest import every_database
from tests.integration.tally import (
    Ack,
    Tally,
    audit,
    check_acks,
    check_found,
    new_dice,
    new_id,
)
from tests.integration.workers import Worker
from tests.rig import VARIABLES, MariaDB, MySQL, Postgres, Private


def wait_until_quiet(url: str) -> None:
    """Wait until the server has noticed the end of its clients, and does nothing for them."""
    others = {
        "postgresql": "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
        "AND pid <> pg_backend_pid() AND state <> 'idle'",
        "mysql": "SELECT count(*) FROM information_schema.processlist WHERE db = database() "
        "AND id <> connection_id()",
    }.get(url.partition(":")[0])
    while others and rows(url, others) != [(0,)]:
        time.sleep(0.01)


# --- writers -------------------------------------------------------------------------------------


def _write(acks: Connection, url: str, ids: list[str], seed: int) -> None:
    """Every kind of change, until killed."""
    dice = random.Random(seed)
    tallies = EventStore(url).repository(Tally)
    for n in itertools.count():
        tag, id = f"{seed}-{n}", dice.choice(ids)
        amounts = [dice.randrange(1, 10) for _ in range(dice.choice((1, 3)))]
        by = tallies.once(tag) if dice.random() < 0.5 else tallies
        kind = dice.random()
        if kind < 0.1:
            by.once(tag).update(id, Tally.look)
            continue
        if kind < 0.3:
            changed = by.create(Tally.add, tag, *amounts)
        else:
            changed = by.update(id, Tally.add, tag, *amounts)
        acks.send(Ack(changed.id, tag, changed.version, changed.result))


def kill_writers(url: str, rounds: int) -> None:
    dice, ids = new_dice(), [new_id() for _ in range(4)]
    acks: list[Ack] = []
    with EventStore(url) as store:
        for id in ids:
            store.repository(Tally).with_id(id).create(Tally.add, "made", 1)
    for _ in range(rounds):
        writers = [Worker(_write, url, ids, dice.getrandbits(32)) for _ in range(3)]
        for writer in writers:
            writer.wait_until_sent(1)
        for writer in writers:
            time.sleep(dice.uniform(0, 0.03))  # to a moment that nobody chose
            acks += writer.kill()
    wait_until_quiet(url)
    stored = audit(url)
    check_acks(stored, acks)
    with EventStore(url) as store:
        check_found(store, stored)
        for id in ids:
            store.repository(Tally).update(id, Tally.add, "goes on", 1)


@every_database
def test_killed_writers_leave_whole_changes_and_all_that_they_reported(url: str) -> None:
    kill_writers(url, rounds=6)


@pytest.mark.soak
@every_database
def test_many_killed_writers_leave_whole_changes_and_all_that_they_reported(url: str) -> None:
    kill_writers(url, rounds=300)


def _stay_in_a_transaction(inside: Connection, url: str, id: str, other: str) -> None:
    with EventStore(url).transaction() as tx:
        tallies = tx.repository(Tally)
        tallies.update(id, Tally.add, "never", 1, 2)
        tallies.once("never").update(id, Tally.add, "never once", 1)
        tallies.with_id(other).create(Tally.add, "never", 1)
        inside.send("inside")
        threading.Event().wait()


@every_database
def test_a_writer_killed_inside_a_transaction_leaves_nothing(url: str) -> None:
    id, other = new_id(), new_id()
    with EventStore(url) as store:
        tallies = store.repository(Tally)
        tallies.with_id(id).create(Tally.add, "made", 1)
        writer = Worker(_stay_in_a_transaction, url, id, other)
        writer.wait_until_sent(1)
        writer.kill()
        # Its locks are gone with it.
        assert tallies.once("never").update(id, Tally.add, "goes on", 1).result == 2
        assert not tallies.exists(other)
    stored = audit(url)
    assert stored[id].tags == ["made", "goes on"]
    assert other not in stored


# --- servers -------------------------------------------------------------------------------------


@dataclass
class Writing:
    """A thread that updates one entity and goes on whatever the server does."""

    store: EventStore
    id: str
    once: bool
    acks: list[Ack] = field(default_factory=list[Ack])
    refused: list[str] = field(default_factory=list[str])
    unknown: list[str] = field(default_factory=list[str])
    failure: list[BaseException] = field(default_factory=list[BaseException])

    def __call__(self, stop: threading.Event) -> None:
        tallies = self.store.repository(Tally)
        try:
            for n in itertools.count():
                tag = str(n)
                while not stop.is_set():
                    try:
                        by = tallies.once(tag) if self.once else tallies
                        changed = by.update(self.id, Tally.add, tag, 1, 1)
                    except StoreUnavailable:
                        self.refused.append(tag)
                        time.sleep(0.01)
                        if not self.once:
                            break
                    except OutcomeUnknown:
                        self.unknown.append(tag)
                        if not self.once:
                            break
                    else:
                        total = changed.state.total
                        self.acks.append(Ack(self.id, tag, changed.version, total))
                        break
                else:
                    return
        except BaseException as error:
            self.failure.append(error)

    def go_on(self) -> None:
        """Wait until updates succeed again."""
        reached = len(self.acks) + 5
        while len(self.acks) < reached:
            assert not self.failure, self.failure
            time.sleep(0.01)


@contextmanager
def running(writings: list[Writing]) -> Generator[None]:
    stop = threading.Event()
    threads = [threading.Thread(target=writing, args=(stop,)) for writing in writings]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


SERVERS: dict[str, Callable[[], Private]] = {
    "mysql8": MySQL,
    "mariadb": MariaDB,
    "postgres15": lambda: Postgres(15),
    "postgres18": lambda: Postgres(18),
}


@pytest.fixture
def server(kind: str) -> Iterator[Private]:
    """A server for one test, which ends it as it likes."""
    if VARIABLES[kind] in os.environ:
        pytest.skip("a given server is not restarted")
    server = SERVERS[kind]()
    server.start()
    yield server
    server.stop()


@pytest.mark.parametrize("kind", SERVERS)
def test_writers_go_on_by_themselves_when_their_server_crashes_and_restarts(
    server: Private, kind: str
) -> None:
    dice = new_dice()
    url = server.create_database("restarted")
    with EventStore(url) as store:
        store.migrate()
    stores = [open_store(url, flavour) for flavour in ("sync", "async")]
    ids = [new_id() for _ in range(4)]
    for id in ids:
        stores[0].repository(Tally).with_id(id).create(Tally.add, "made", 1)
    writings = [Writing(stores[n % 2], id, once=n < 2) for n, id in enumerate(ids)]
    with running(writings):
        for crash in (True, False):
            for writing in writings:
                writing.go_on()
            time.sleep(dice.uniform(0, 0.05))  # to a moment that nobody chose
            if crash:
                server.kill()
            server.restart()
        for writing in writings:
            writing.go_on()
    stored = audit(url)
    for writing in writings:
        tags = stored[writing.id].tags
        check_acks(stored, writing.acks)
        assert len(tags) == len(set(tags)), "an update was done twice"
        done = {ack.tag for ack in writing.acks}
        extra = set(tags) - done - {"made"}
        # What a writer was not told of is what it was told that nobody knows.
        assert extra <= set(writing.unknown)
    check_found(stores[0], stored)
    for store in stores:
        assert store.counts["reconnects"] > 0
        store.close()
