"""`follow`: every committed event once, however late it commits."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from retold import Aggregate, Event, EventStore, applies
from retold.brokers.following import ById, Follower, follow
from retold.ids import EventIds, wall_clock
from retold.store.listing import StoredEvent, Wanted
from tests.rig import DATABASES

WITH_LOG = [kind for kind in DATABASES if kind != "pgbouncer"]
SERVERS = ["postgres18", "mysql8", "mariadb"]
ALL = Wanted()


class Tick(Event, name="test_following.Tick"):
    n: int


class Tock(Event, name="test_following.Tock"):
    n: int


class Clock(Aggregate, name="test_following.Clock"):
    def tick(self, *numbers: int) -> None:
        for n in numbers:
            self.emit(Tick(n))

    def tock(self, n: int) -> None:
        self.emit(Tock(n))

    @applies
    def _ticked(self, event: Tick | Tock) -> None:
        pass


@pytest.fixture
def store(kind: str, fresh_database: Callable[[str], str]) -> Iterator[EventStore]:
    with EventStore(fresh_database(kind)) as store:
        store.migrate(subscriptions=True)
        yield store


@pytest.fixture
def url(kind: str, fresh_database: Callable[[str], str]) -> str:
    """A database without a log for subscriptions."""
    url = fresh_database(kind)
    with EventStore(url) as store:
        store.migrate()
    return url


@pytest.fixture
def plain(url: str) -> Iterator[EventStore]:
    with EventStore(url) as store:
        yield store


def _new(follower: Follower) -> list[StoredEvent]:
    found: list[StoredEvent] = []
    while events := follower.look():
        found += events
    return found


def _data(events: list[StoredEvent]) -> list[str]:
    return [event.data for event in events]


def _of(*numbers: int) -> list[str]:
    return [f'{{"n":{n}}}' for n in numbers]


@pytest.mark.parametrize("kind", SERVERS)
def test_an_event_that_commits_behind_later_ones_is_seen(store: EventStore) -> None:
    clocks = store.repository(Clock)
    follower = follow(store.driver, ALL, None, 0.0)
    with store.transaction() as tx:
        late = tx.repository(Clock).create(Clock.tick, 1).version
        clocks.create(Clock.tick, 2)
        assert _data(_new(follower)) == _of(2)
    (found,) = _new(follower)
    assert (found.id, found.data) == (late, _of(1)[0])


@pytest.mark.parametrize("kind", SERVERS)
def test_without_a_log_an_event_may_commit_late_by_some_time(plain: EventStore) -> None:
    follower = follow(plain.driver, ALL, None, 3600.0)
    assert not follower.complete
    with plain.transaction() as tx:
        tx.repository(Clock).create(Clock.tick, 1)
        plain.repository(Clock).create(Clock.tick, 2)
        assert _data(_new(follower)) == _of(2)
    assert _data(_new(follower)) == _of(1)
    assert _new(follower) == []


@pytest.mark.parametrize("kind", SERVERS)
def test_without_a_log_old_and_young_events_come_once(url: str, plain: EventStore) -> None:
    with EventStore(url, ids=EventIds(lambda: wall_clock() - 7_200_000)) as slow:
        slow.repository(Clock).create(Clock.tick, *range(250))
    plain.repository(Clock).create(Clock.tick, *range(250, 260))
    follower = follow(plain.driver, ALL, None, 3600.0)
    assert isinstance(follower, ById)
    assert _data(_new(follower)) == _of(*range(260))
    assert _new(follower) == []
    assert len(follower._seen) == 10  # of the old ones nothing is kept in memory
    assert _data(_new(follow(plain.driver, ALL, 3, 3600.0))) == _of(257, 258, 259)


@pytest.mark.parametrize("kind", WITH_LOG)
def test_it_begins_with_the_last_events_that_are_wanted(store: EventStore) -> None:
    clocks = store.repository(Clock)
    clocks.with_id("a").create(Clock.tick, *range(150))
    clocks.update("a", Clock.tock, 150)
    clocks.update("a", Clock.tick, *range(151, 160))
    tocks = Wanted(event_types=frozenset({"test_following.Tock"}))
    follower = follow(store.driver, ALL, 0, 0.0)
    assert _new(follower) == []
    for last, first in ((1, 159), (200, 0)):
        begun = follow(store.driver, ALL, last, 0.0)
        assert _data(_new(begun)) == _of(*range(first, 160))
    found = _data(_new(follow(store.driver, tocks, 1, 0.0)))
    assert found == _of(*range(150, 160))
    clocks.update("a", Clock.tick, 160)
    assert _data(_new(follower)) == _of(160)


@pytest.mark.parametrize("kind", WITH_LOG)
def test_beside_writers_it_sees_every_event_once_and_each_entity_in_order(
    store: EventStore,
) -> None:
    def write(id: str) -> None:
        clocks = store.repository(Clock)
        clocks.with_id(id).create(Clock.tick, 0)
        for n in range(1, 40):
            clocks.update(id, Clock.tick, n)

    writers = [threading.Thread(target=write, args=(f"clock-{n}",)) for n in range(3)]
    follower = follow(store.driver, ALL, None, 0.0)
    found: list[StoredEvent] = []
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        found += follower.look()
    found += _new(follower)
    for n in range(3):
        of_one = [event.data for event in found if event.entity_id == f"clock-{n}"]
        assert of_one == _of(*range(40))
