"""Many processes on few entities: no update is lost, none is done twice, nobody starves."""

from __future__ import annotations

import random
from collections import Counter
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier, Event

import pytest

from retold import EventStore
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
from tests.integration.workers import Worker, processes


def _update(acks: Connection, number: int, url: str, ids: list[str], times: int, seed: int) -> None:
    dice = random.Random(seed + number)
    with EventStore(url) as store:
        tallies = store.repository(Tally)
        for n in range(times):
            id = ids[0] if n % 2 else dice.choice(ids[1:])
            amounts = [dice.randrange(1, 10) for _ in range(dice.choice((1, 1, 3)))]
            tag = f"{number}-{n}"
            by = tallies.once(tag) if dice.random() < 0.3 else tallies
            changed = by.update(id, Tally.add, tag, *amounts)
            acks.send(Ack(id, tag, changed.version, changed.result))


def contend(url: str, times: int) -> None:
    """Eight processes update one entity, and in turn one of a hot set of ten."""
    ids = [new_id() for _ in range(11)]
    with EventStore(url) as store:
        for id in ids:
            store.repository(Tally).with_id(id).create(Tally.add, "made", 1)
        seed = new_dice().getrandbits(32)
        workers = [Worker(_update, number, url, ids, times, seed) for number in range(8)]
        acks: list[list[Ack]] = [worker.finish() for worker in workers]
        stored = {id: entity for id, entity in audit(url).items() if id in ids}
        check_acks(stored, [ack for of_one in acks for ack in of_one])
        check_found(store, stored)
    # Nothing but what was reported, either.
    assert [len(of_one) for of_one in acks] == [times] * 8
    assert sum(len(entity.tags) for entity in stored.values()) == 8 * times + len(ids)
    assert len(stored[ids[0]].tags) == 8 * (times // 2) + 1


@every_database
def test_no_update_of_eight_processes_is_lost_or_done_twice(url: str) -> None:
    contend(url, times=20)


@pytest.mark.soak
@every_database
def test_no_update_of_eight_processes_is_lost_or_done_twice_for_minutes(url: str) -> None:
    contend(url, times=600)


def _race(outcomes: Connection, url: str, id: str, keys: list[str], start: Barrier) -> None:
    with EventStore(url) as store:
        tallies = store.repository(Tally)
        for key in keys:
            once = tallies.once(key)
            start.wait()
            if key.startswith("update"):
                changed = once.update(id, Tally.add, key, 1, 1)
            elif key.startswith("look"):
                changed = once.update(id, Tally.look)
            else:
                changed = once.create(Tally.add, key, 1)
            outcomes.send((key, changed.id, changed.duplicate))


@every_database
def test_of_processes_with_one_key_at_the_same_moment_one_applies(url: str) -> None:
    id = new_id()
    keys = [f"{change} {new_id()}" for change in ("update", "look", "create") for _ in range(8)]
    with EventStore(url) as store:
        store.repository(Tally).with_id(id).create(Tally.add, "made", 1)
    start = processes.Barrier(4)
    workers = [Worker(_race, url, id, keys, start) for _ in range(4)]
    outcomes = Counter(outcome for worker in workers for outcome in worker.finish())
    stored = audit(url)
    assert len(outcomes) == 2 * len(keys)
    for (key, changed, duplicate), times in outcomes.items():
        assert times == (3 if duplicate else 1), key
        assert stored[changed].keys.count(key) == 1
        assert stored[changed].tags.count(key) == (0 if key.startswith("look") else 1)
    assert len(stored[id].tags) == 1 + 8


def _go_on(acks: Connection, url: str, id: str, stop: Event) -> None:
    with EventStore(url) as store:
        tallies, n = store.repository(Tally), 0
        while not stop.is_set():
            changed = tallies.update(id, Tally.add, str(n), 1)
            acks.send(Ack(id, str(n), changed.version, changed.result))
            n += 1


@pytest.mark.parametrize("kind", ["sqlite"])
def test_no_writer_to_one_file_starves_while_the_others_go_on(url: str) -> None:
    """Whoever waits five seconds for the file's lock ends with StoreBusy."""
    ids = [new_id() for _ in range(8)]
    with EventStore(url) as store:
        for id in ids:
            store.repository(Tally).with_id(id).create(Tally.add, "made", 1)
    stop = processes.Event()
    workers = [Worker(_go_on, f"{url}?timeout=5", id, stop) for id in ids]
    for worker in workers:
        worker.wait_until_sent(1)
    # All are under way: from here on, each gets its turn again and again.
    for worker in workers:
        worker.wait_until_sent(len(worker.sent) + 10)
    stop.set()
    acks: list[Ack] = [ack for worker in workers for ack in worker.finish()]
    stored = audit(url)
    check_acks(stored, acks)
    assert sum(len(stored[id].tags) for id in ids) == len(ids) + len(acks)
