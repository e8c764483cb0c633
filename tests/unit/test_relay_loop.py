"""The relay's loop over a real table and a broker in memory, both of which misbehave."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retold.errors import (
    AccessDenied,
    EventsOutOfOrder,
    LeadershipLost,
    LogReplaced,
    LogRewound,
    LogUnreadable,
    PositionMissing,
    PositionUnreadable,
    TopicChanged,
)
from retold.relay import relay
from retold.relay.positions import (
    Checkpoint,
    PollingPosition,
    WalPosition,
    decode_checkpoint,
    encode_checkpoint,
)
from retold.relay.progress import Progress
from retold.relay.relay import Choices
from retold.relay.source import Chunk
from tests.unit.relay_world import (
    Crash,
    Fault,
    LogSource,
    MakesSource,
    Polling,
    Schedule,
    Stop,
    Where,
    World,
)

TOPIC = "world.Thing"
ENTITIES = ("ann", "bob", "eve")


@pytest.fixture(autouse=True, scope="module")
def _impatient() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(relay, "_TAKE_S", 0.01)
        yield


@pytest.fixture(params=[LogSource, Polling], ids=["log", "polling"])
def makes_source(request: pytest.FixtureRequest) -> MakesSource:
    made: MakesSource = request.param
    return made


@pytest.fixture
def world(tmp_path: Path, makes_source: MakesSource) -> Iterator[World]:
    with World(tmp_path, makes_source) as opened:
        yield opened


@pytest.fixture
def log(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path) as opened:
        yield opened


def checkpoint_of(world: World) -> Checkpoint:
    assert world.broker.checkpoint is not None
    return decode_checkpoint("r", world.broker.checkpoint)


# --- whatever happens ----------------------------------------------------------------------------

_PLACES: dict[Where, tuple[Fault, ...]] = {
    "begin": ("", "write", "away", "crash", "stop"),
    "publish": get_args(Fault),
    "start": ("", "write", "away", "crash"),
    "read": ("", "write", "away", "crash", "stop"),
    "mark": ("", "write", "away", "crash"),
}
_schedules = st.fixed_dictionaries(
    {place: st.lists(st.sampled_from(faults), max_size=8) for place, faults in _PLACES.items()}
)
_entities = st.lists(st.sampled_from(ENTITIES), max_size=12)


@pytest.mark.parametrize("made", [LogSource, Polling], ids=["log", "polling"])
@settings(
    max_examples=80,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(history=_entities, planned=_entities, faults=_schedules, chunk=st.integers(1, 5))
def test_whatever_fails_each_event_is_visible_once_in_order_and_covered(
    made: MakesSource,
    history: list[str],
    planned: list[str],
    faults: dict[Where, list[Fault]],
    chunk: int,
) -> None:
    """What must hold in between, the world checks at every transaction."""
    with (
        tempfile.TemporaryDirectory() as folder,
        World(Path(folder), made, planned, chunk=chunk) as world,
    ):
        for entity in history:
            world.write(entity)
        world.run_to_the_end(faults)
        visible = world.broker.ids()
        assert sorted(visible) == sorted(world.ids())
        for entity in ENTITIES:
            assert world.broker.ids(entity) == sorted(world.broker.ids(entity))


def test_what_comes_after_the_first_start_is_published_in_the_order_of_commits(log: World) -> None:
    log.run()
    for entity in "eve", "ann", "bob", "ann", "eve":
        log.write(entity)
    log.run()
    assert log.broker.ids() == log.ids()


@pytest.mark.parametrize("choices", [Choices(), Choices(resync=True)], ids=["start", "resync"])
def test_what_interrupted_a_first_start_may_have_set_the_database_back(
    world: World, choices: Choices
) -> None:
    """Events come while it begins: they are behind the place where the log is followed from."""
    for _ in range(3):
        world.write("ann")
    with pytest.raises(Crash):
        world.run(Schedule({"publish": ["write", "done, crash"]}))
    assert checkpoint_of(world).catching_up
    published = world.broker.ids()
    assert published == world.ids()
    world.execute("DELETE FROM events WHERE event_id = ?", published[-1])
    with pytest.raises(LogRewound):
        world.run(choices=choices)
    assert world.broker.ids() == published


def test_a_resync_stops_at_a_database_that_lost_what_is_published(world: World) -> None:
    """Also where it has a log of its own by now, whose positions tell nothing."""
    lost, kept = world.write("ann"), world.write("bob")
    world.run()
    world.execute("DELETE FROM events WHERE event_id = ?", lost)
    world.write("eve")
    with pytest.raises(LogRewound, match=lost):
        world.run(choices=Choices(resync=True))
    assert sorted(world.broker.ids()) == sorted([lost, kept])
    with pytest.raises(LogRewound, match=lost):
        world.run(choices=Choices(resync=True))


def test_a_first_start_that_was_interrupted_does_not_go_on_with_another_log(log: World) -> None:
    log.write("ann")
    with pytest.raises(Crash):
        log.run(Schedule({"publish": ["", "done, crash"]}))
    elsewhere = PollingPosition("sqlite/1")
    saved = Checkpoint(elsewhere, {TOPIC: 12}, catching_up=elsewhere)
    log.broker.checkpoint = encode_checkpoint(saved)
    with pytest.raises(LogReplaced):
        log.run()
    log.run(choices=Choices(resync=True))
    assert log.broker.ids() == log.ids()


# --- epochs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["away", "done, away", "fenced", "rival"])
def test_a_relay_that_still_leads_begins_again_by_itself(world: World, fault: Fault) -> None:
    world.run()
    world.write("ann")
    progress = world.run(Schedule({"publish": [fault]}))
    assert world.broker.ids() == world.ids()
    assert progress.counts["fences"] == (fault in ("fenced", "rival"))
    assert progress.counts["reconnects"] == (fault not in ("fenced", "rival"))


@pytest.mark.parametrize("fault", ["away", "fenced"])
def test_a_relay_that_does_not_lead_any_more_ends(world: World, fault: Fault) -> None:
    world.leadership.lost = LeadershipLost("frozen")
    world.write("ann")
    with pytest.raises(LeadershipLost, match="frozen"):
        world.run(Schedule({"publish": [fault]}))
    assert world.broker.ids() == []


def test_an_error_that_does_not_pass_by_itself_is_raised(log: World) -> None:
    class Refused(LogSource):
        def now(self) -> WalPosition:
            raise AccessDenied("no")

    stop = Stop()
    with pytest.raises(AccessDenied):
        log.relay(stop=stop, source=Refused(log, Schedule(), stop)).run(stop)


def test_everything_before_what_cannot_be_read_is_published(log: World) -> None:
    log.run()
    before = [log.write("ann") for _ in range(10)]
    log.readable = log.end()
    log.write("ann")
    with pytest.raises(LogUnreadable):
        log.run()
    assert log.broker.ids() == before
    assert checkpoint_of(log).position == WalPosition("s", 1, "slot", log.readable)


def test_a_relay_that_is_told_to_stop_finishes_the_transaction_in_hand(world: World) -> None:
    world.run()
    world.write("ann")
    world.run(Schedule({"publish": ["stop"]}))
    assert world.broker.ids() == world.ids()


def test_a_relay_that_stopped_says_so(world: World) -> None:
    assert world.run().role == "stopped"


# --- a first start -------------------------------------------------------------------------------


def test_a_first_start_publishes_what_the_table_holds(world: World) -> None:
    written = [world.write(entity) for entity in ENTITIES * 3]
    world.run()
    assert world.broker.ids() == sorted(written)


def test_a_first_start_from_now_leaves_out_what_the_table_holds(world: World) -> None:
    world.left_out = {world.write("ann") for _ in range(5)}
    stop = Stop()
    # The process dies behind its first checkpoint, and the choice is not repeated.
    with pytest.raises(Crash):
        world.run(Schedule({"publish": ["done, crash"]}), Choices(from_now=True))
    later = [world.write("ann"), world.write("bob")]
    world.relay(stop=stop).run(stop)
    assert sorted(world.broker.ids()) == sorted(later)


def test_from_now_means_nothing_once_there_is_a_position(world: World) -> None:
    world.run()
    world.write("ann")
    world.run(choices=Choices(from_now=True))
    assert world.broker.ids() == world.ids()


def test_a_first_start_that_was_cut_off_goes_on_without_being_told(world: World) -> None:
    for _ in range(5):
        world.write("ann")
    with pytest.raises(Crash):
        world.run(Schedule({"publish": ["", "done, crash"]}))
    assert checkpoint_of(world).catching_up
    world.run()
    assert world.broker.ids() == world.ids()


def test_no_position_although_the_topic_holds_events_is_a_stop(world: World) -> None:
    world.write("ann")
    world.run()
    world.broker.checkpoint = None
    with pytest.raises(PositionMissing, match=TOPIC):
        world.run()
    assert world.broker.checkpoint is None


def test_a_position_that_cannot_be_read_is_a_stop(world: World) -> None:
    world.broker.checkpoint = b'{"version": 7}'
    with pytest.raises(PositionUnreadable):
        world.run()


def test_a_position_of_another_kind_of_source_is_a_stop(
    world: World, makes_source: MakesSource
) -> None:
    polls = makes_source is Polling
    strange = WalPosition("s", 1, "slot", 1) if polls else PollingPosition("sqlite/1")
    world.broker.checkpoint = encode_checkpoint(Checkpoint(strange, {}))
    with pytest.raises(LogReplaced):
        world.run()


# --- a resync ------------------------------------------------------------------------------------

RESYNC = Choices(resync=True)


@pytest.mark.parametrize("lost", [None, b"nonsense", b'{"version": 7}'])
def test_a_resync_needs_no_position(world: World, lost: bytes | None) -> None:
    world.write("ann")
    world.run()
    world.broker.checkpoint = lost
    world.write("ann")
    world.run(choices=RESYNC)
    assert world.broker.ids() == world.ids()


def test_a_resync_publishes_nothing_that_is_there(world: World) -> None:
    for entity in ENTITIES * 3:
        world.write(entity)
    world.run()
    assert world.run(choices=RESYNC).counts["events"] == 0


def test_a_resync_makes_a_deleted_topic_anew(world: World) -> None:
    for entity in ENTITIES * 2:
        world.write(entity)
    world.run()
    world.broker.visible.clear()
    world.broker.topics.clear()
    with pytest.raises(TopicChanged, match="--resync"):
        world.run()
    world.run(choices=RESYNC)
    assert sorted(world.broker.ids()) == sorted(world.ids())


def test_a_resync_that_was_cut_off_goes_on_without_being_told(world: World) -> None:
    for entity in ENTITIES * 2:
        world.write(entity)
    world.run()
    world.broker.visible.clear()
    with pytest.raises(Crash):
        world.run(Schedule({"publish": ["", "crash"]}), RESYNC)
    world.run()
    assert sorted(world.broker.ids()) == sorted(world.ids())


def test_a_resync_is_done_once(log: World) -> None:
    """A relay that begins again later does not read all topics again."""
    log.write("ann")
    log.run()
    stop, progress = Stop(), Progress("r")

    class Fencing(LogSource):
        def read(self, wait: float) -> Chunk | None:
            if not progress.counts["fences"]:
                if progress.role != "leading":
                    return None
                log.broker.epoch += 1
                log.write("ann")
            return super().read(wait)

    reads = log.broker.reads
    source = Fencing(log, Schedule(), stop)
    log.relay(choices=RESYNC, stop=stop, progress=progress, source=source).run(stop)
    assert log.broker.ids() == log.ids()
    assert progress.counts["epochs"] == 2
    assert log.broker.reads - reads == 1


def lose(world: World, *lost: str) -> None:
    """Some events are gone from the topic."""
    kept = [
        record for record in world.broker.visible if dict(record.headers)["id"].decode() not in lost
    ]
    world.broker.visible[:] = kept


def test_an_event_missing_behind_a_later_one_is_not_published(world: World) -> None:
    first, hole, third = (world.write("ann") for _ in range(3))
    bob = world.write("bob")
    world.run()
    lose(world, hole, bob)
    world.left_out = {hole}
    for _ in range(2):  # the next start comes to the same end
        with pytest.raises(EventsOutOfOrder, match=f"{hole}.*ann") as caught:
            world.run(choices=RESYNC)
        assert caught.value.count == 1
    assert world.broker.ids() == [first, third, bob]


def test_a_hole_is_filled_when_it_is_asked_for(world: World) -> None:
    first, hole, third = (world.write("ann") for _ in range(3))
    world.run()
    lose(world, hole)
    world.disorderly = {"ann"}
    progress = world.run(choices=Choices(resync=True, fill_holes=True))
    assert world.broker.ids() == [first, third, hole]
    assert progress.counts["holes"] == 1
    fourth = world.write("ann")
    world.run()
    assert world.broker.ids() == [first, third, hole, fourth]


def test_a_record_that_is_no_event_does_not_hinder_a_resync(world: World) -> None:
    world.write("ann")
    world.run()
    (record,) = world.broker.visible
    world.broker.visible.append(record._replace(value=b"hello", headers=[]))
    world.broker.checkpoint = None
    world.write("bob")
    world.run(choices=RESYNC)
    assert world.broker.ids() == world.ids()


# --- partitions ----------------------------------------------------------------------------------


def test_a_changed_number_of_partitions_is_a_stop(world: World) -> None:
    world.write("ann")
    world.run()
    world.broker.topics[TOPIC] = 13
    with pytest.raises(TopicChanged, match=r"had 12 partitions and has 13"):
        world.run()


def test_a_change_is_noticed_while_the_relay_runs(
    log: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "_PARTITIONS_S", 0.0)
    log.write("ann")
    log.run()

    class Watching(LogSource):
        def read(self, wait: float) -> None:
            log.broker.topics[TOPIC] = 13

    stop = Stop()
    with pytest.raises(TopicChanged):
        log.relay(stop=stop, source=Watching(log, Schedule(), stop)).run(stop)


def test_a_changed_number_that_was_accepted_is_the_new_one(world: World) -> None:
    world.write("ann")
    world.run()
    world.broker.topics[TOPIC] = 13
    world.write("ann")
    world.run(choices=Choices(accept_partitions=True))
    world.write("ann")
    world.run()
    assert checkpoint_of(world).partitions == {TOPIC: 13}


def test_a_topic_that_is_gone_is_no_changed_number(world: World) -> None:
    world.write("ann")
    world.run()
    world.broker.topics.clear()
    with pytest.raises(TopicChanged, match="is gone"):
        world.run(choices=Choices(accept_partitions=True))
