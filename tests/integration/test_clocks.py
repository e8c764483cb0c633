"""Writers whose clocks are wrong: order is kept, the true time is kept, and somebody is told."""

from __future__ import annotations

import logging
import random
from datetime import UTC, datetime, timedelta
from typing import Self

import pytest

from retold import EventStore, VersionConflict
from retold.ids import EventIds, milliseconds
from retold.metadata import TIME
from retold.testing import Clock
from tests.integration.tally import Tally, audit, check_found, new_id

NOON = datetime(2024, 6, 1, 12, tzinfo=UTC)

# Every way to append, and every way to say that an event id is there already.
pytestmark = pytest.mark.parametrize("kind", ["sqlite", "mysql8", "postgres18"])


class Host:
    """A store on a host with a clock of its own."""

    def __init__(self, url: str, now: datetime, node: int | None = None) -> None:
        self.clock = Clock(now)
        self.store = EventStore(url, ids=EventIds(self.clock, node))
        self.tallies = self.store.repository(Tally)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.store.close()


@pytest.mark.parametrize("ahead", [timedelta(hours=1), timedelta(hours=-1), timedelta(seconds=30)])
def test_hosts_with_different_clocks_keep_the_order_of_one_entity(
    url: str, ahead: timedelta
) -> None:
    id = new_id()
    with Host(url, NOON) as one, Host(url, NOON + ahead) as other:
        versions = [one.tallies.with_id(id).create(Tally.add, "made", 1).version]
        for n in range(20):
            host = (one, other, other, one)[n % 4]
            changed = host.tallies.update(id, Tally.add, f"tag {n}", n, 1)
            versions.append(changed.version)
            host.clock.advance(0.001)
        assert versions == sorted(set(versions))
        stored = audit(url)[id]
        assert stored.tags == ["made", *(f"tag {n}" for n in range(20))]
        assert stored.ids[::2] == versions
        check_found(one.store, {id: stored})


def test_a_clock_set_back_keeps_the_order_of_one_entity(url: str) -> None:
    id = new_id()
    with Host(url, NOON) as host:
        first = host.tallies.with_id(id).create(Tally.add, "made", 1)
        host.clock.advance(-3600)
        second = host.tallies.update(id, Tally.add, "an hour back", 1)
        assert second.version > first.version
    # A process started after that does not remember the time before.
    with Host(url, NOON - timedelta(hours=1)) as restarted:
        third = restarted.tallies.update(id, Tally.add, "restarted", 1)
        assert third.version > second.version
    assert audit(url)[id].tags == ["made", "an hour back", "restarted"]


def test_the_recorded_time_is_true_whatever_the_id_had_to_be(url: str) -> None:
    id = new_id()
    with Host(url, NOON + timedelta(hours=1)) as fast, Host(url, NOON) as right:
        fast.tallies.with_id(id).create(Tally.add, "made", 1)
        changed = right.tallies.update(id, Tally.add, "raised", 1)
        right.clock.advance(7200)
        right.tallies.update(id, Tally.add, "later", 1)
        made, raised, later = right.tallies.history(id)
    assert milliseconds(changed.version) > milliseconds(made.id)
    assert raised.time == NOON
    assert raised.metadata[TIME] == str(int(NOON.timestamp() * 1000))
    assert made.time == NOON + timedelta(hours=1)
    assert later.time == NOON + timedelta(hours=2)
    assert TIME not in made.metadata
    assert TIME not in later.metadata


@pytest.mark.parametrize(("ahead", "times"), [(61, 1), (59, 0)])
def test_a_clock_more_than_a_minute_ahead_is_logged_and_counted(
    url: str, ahead: int, times: int, caplog: pytest.LogCaptureFixture
) -> None:
    id = new_id()
    with Host(url, NOON + timedelta(seconds=ahead)) as fast, Host(url, NOON) as right:
        fast.tallies.with_id(id).create(Tally.add, "made", 1)
        with caplog.at_level(logging.WARNING, "retold.store"):
            right.tallies.update(id, Tally.add, "raised", 1)
        assert right.store.counts["clock_skew"] == times
        assert fast.store.counts["clock_skew"] == 0
    assert len(caplog.records) == times
    for record in caplog.records:
        assert id in record.getMessage()
        assert "61 s in the future" in record.getMessage()


def test_one_entity_from_the_future_does_not_drag_others_along(url: str) -> None:
    id, other = new_id(), new_id()
    with Host(url, NOON + timedelta(hours=1)) as fast, Host(url, NOON) as right:
        fast.tallies.with_id(id).create(Tally.add, "made", 1)
        right.tallies.update(id, Tally.add, "raised", 1)
        made = right.tallies.with_id(other).create(Tally.add, "made", 1)
        assert milliseconds(made.version) == int(NOON.timestamp() * 1000)
        (recorded,) = right.tallies.history(other)
        assert recorded.time == NOON


@pytest.mark.parametrize("keyed", [False, True], ids=["plain", "once"])
def test_an_event_id_that_another_entity_has_is_minted_again(url: str, keyed: bool) -> None:
    """Two generators with one node at one moment, as copies of a virtual machine may have them."""
    node = random.getrandbits(40)
    one_id, other_id = new_id(), new_id()
    with Host(url, NOON, node) as one, Host(url, NOON, node) as other:
        made = one.tallies.with_id(one_id).create(Tally.add, "made", 1)
        creating, updating = other.tallies.with_id(other_id), other.tallies
        if keyed:
            creating, updating = creating.once("c"), updating.once("u")
        assert creating.create(Tally.add, "made", 1).version > made.version
        assert other.store.counts["conflicts"] == 1
        for n in range(3):
            one.tallies.update(one_id, Tally.add, f"tag {n}", 1, 1)
        updated = updating.update(other_id, Tally.add, "collides", 5, 6)
        assert (updated.duplicate, updated.result) == (False, 12)
        assert other.store.counts["conflicts"] > 1
    stored = audit(url)
    assert stored[one_id].tags == ["made", "tag 0", "tag 1", "tag 2"]
    assert stored[other_id].tags == ["made", "collides"]


def test_a_collision_of_event_ids_is_no_conflict_for_who_expects_a_version(url: str) -> None:
    node = random.getrandbits(40)
    with Host(url, NOON, node) as one, Host(url, NOON, node) as other:
        made = one.tallies.with_id(new_id()).create(Tally.add, "made", 1)
        one.clock.advance(0.001)
        other.clock.advance(0.001)
        rival = one.tallies.with_id(new_id()).create(Tally.add, "made", 1)
        expecting = other.tallies.expecting(made.version)
        assert expecting.update(made.id, Tally.add, "mine", 1).result == 2
        assert other.store.counts["conflicts"] == 1
        assert audit(url)[rival.id].tags == ["made"]
        with pytest.raises(VersionConflict):
            expecting.update(made.id, Tally.add, "late", 1)
