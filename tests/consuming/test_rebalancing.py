"""A rebalance while a handler works: whoever handles the event, it has its effect once."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable

import pytest

from retold import Aggregate, Delivery, Event, EventStore, Subscription, applies
from tests.at_work import at_work
from tests.relay.processes import eventually, relay
from tests.rig import GivenKafka, Kafka

QUICK = {
    "session.timeout.ms": "2000",
    "heartbeat.interval.ms": "100",
    "topic.metadata.refresh.interval.ms": "200",
    "max.poll.interval.ms": "2000",  # half of it is how long a member may keep what it has in hand
}
EVENTS = 8


class Asked(Event, name="test_rebalancing.Asked"):
    pass


class Counted(Event, name="test_rebalancing.Counted"):
    pass


class Question(Aggregate, name="test_rebalancing.Question", ignores=(Asked,)):
    def ask(self) -> None:
        self.emit(Asked())


class AnyCounter(Aggregate, name="test_rebalancing.Counter"):
    count: int = 0

    def start(self) -> None:
        self.emit(Counted())

    @applies
    def _counted(self, event: Counted) -> None:
        self.count += 1


@pytest.mark.parametrize("kind", ["postgres18"])
@pytest.mark.parametrize("in_time", [True, False], ids=["in time", "too late"])
def test_what_a_member_has_in_hand_while_its_partitions_are_shared_out_has_its_effect_once(
    kind: str, fresh_database: Callable[[str], str], kafka: Kafka | GivenKafka, in_time: bool
) -> None:
    """In time: the handler ends while the group waits for it; else others get the event too."""
    run = secrets.token_hex(4)

    class Asking(Question, name=f"test_rebalancing.Question-{run}", ignores=(Asked,)):
        pass

    class Counter(AnyCounter, name=f"test_rebalancing.Counter-{run}"):
        pass

    begun, go_on, shared = threading.Event(), threading.Event(), threading.Event()
    tries = list[str]()

    def counting(slow: bool) -> Subscription:
        subscription = Subscription(f"counting-{run}", lanes=EVENTS if slow else 1)

        @subscription.on(Asked, of=Asking)
        def count(delivery: Delivery[Asked]) -> None:
            tries.append(delivery.event_id)
            if slow:
                begun.set()
                assert go_on.wait(60)
            else:
                shared.set()
            delivery.update(Counter, "counter", Counter.start)

        return subscription

    url = fresh_database(kind)

    def store() -> EventStore:
        return EventStore(url, kafka=kafka.url, kafka_settings=QUICK)

    with EventStore(url) as writing:
        writing.migrate(polling=True)
        counters = writing.repository(Counter)
        counters.with_id("counter").create(Counter.start)
        for _ in range(EVENTS):
            writing.repository(Asking).create(Question.ask)
        with (
            relay(url, kafka.url, "--source", "polling", "--name", run, "--partitions", "4"),
            store() as slow,
            store() as other,
        ):
            with at_work(slow, counting(slow=True)):
                eventually(lambda: len(tries) >= EVENTS // 2 and begun.is_set())
                with at_work(other, counting(slow=False)):
                    if not in_time:
                        assert shared.wait(60)
                    go_on.set()
                    eventually(lambda: counters.find("counter").state.count == EVENTS + 1)
            assert counters.find("counter").state.count == EVENTS + 1
        assert set(tries) >= {event.id for event in writing.stream(Asking)}
        assert len(tries) > EVENTS or in_time
        assert list(writing.parked()) == []
