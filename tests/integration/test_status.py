"""`retold status` on real databases: what it says, and when it says that something is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest

from retold import Aggregate, Delivery, Event, EventStore, Retry, Subscription, applies
from retold.cli import main
from retold.ids import EventIds, wall_clock
from tests.relay.processes import eventually, relay, size
from tests.rig import GivenKafka, Kafka

KINDS = ["sqlite", "postgres18", "mysql8"]
OLD_MS = 600_000


class Rang(Event, name="test_status.Rang"):
    pass


class Bell(Aggregate, name="test_status.Bell"):
    def ring(self, times: int = 1) -> None:
        for _ in range(times):
            self.emit(Rang())

    @applies
    def _rang(self, event: Rang) -> None:
        pass


@pytest.fixture
def url(kind: str, fresh_database: Callable[[str], str]) -> str:
    url = fresh_database(kind)
    with EventStore(url) as store:
        store.migrate(subscriptions=True)
    return url


@pytest.fixture
def store(url: str) -> Iterator[EventStore]:
    with EventStore(url) as opened:
        yield opened


def _listener(*, fails: bool = False) -> Subscription:
    subscription = Subscription("listener", retry=Retry(attempts=1))

    @subscription.on(Rang, of=Bell)
    def listen(delivery: Delivery[Rang]) -> None:
        if fails:
            raise ValueError("too loud")

    return subscription


def _ring_long_ago(url: str) -> None:
    with EventStore(url, ids=EventIds(lambda: wall_clock() - OLD_MS)) as slow:
        slow.repository(Bell).create(Bell.ring)


@pytest.fixture
def status(
    url: str, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, dict[str, tuple[bool, str]]]]:
    def asked(*more: str) -> tuple[int, dict[str, tuple[bool, str]]]:
        capsys.readouterr()
        code = main(["status", "--json", "--database", url, *more])
        page = json.loads(capsys.readouterr().out)
        assert page["healthy"] == (code == 0)
        return code, {one["about"]: (one["healthy"], one["says"]) for one in page["findings"]}

    return asked


Status = Callable[..., tuple[int, dict[str, tuple[bool, str]]]]


@pytest.mark.parametrize("kind", KINDS)
def test_a_store_whose_subscriptions_keep_up_is_healthy(store: EventStore, status: Status) -> None:
    code, page = status()
    assert code == 0
    assert page["store"][1].endswith("none yet")
    store.repository(Bell).create(Bell.ring, 3)
    store.drain(_listener())
    code, page = status()
    assert code == 0
    assert page["subscription listener"] == (True, "all handled, 0 members")
    assert page["parked"] == (True, "nothing")


@pytest.mark.parametrize("kind", KINDS)
def test_events_ahead_are_counted_and_healthy_while_they_are_young(
    store: EventStore, status: Status
) -> None:
    store.drain(_listener())
    store.repository(Bell).create(Bell.ring, 3)
    code, page = status("--patience", "300")
    assert code == 0
    assert page["subscription listener"][1].startswith("3 events ahead, the first ")


@pytest.mark.parametrize("kind", KINDS)
def test_an_old_event_that_is_not_handled_is_unhealthy(
    store: EventStore, url: str, status: Status
) -> None:
    store.drain(_listener())
    _ring_long_ago(url)
    code, page = status()
    assert code == 1
    healthy, says = page["subscription listener"]
    assert not healthy
    assert says == "1 events ahead, the first 10 min old, 0 members"


@pytest.mark.parametrize("kind", KINDS)
def test_parked_events_are_unhealthy(store: EventStore, status: Status) -> None:
    store.repository(Bell).create(Bell.ring, 3)
    store.drain(_listener(fails=True))
    code, page = status()
    assert code == 1
    assert page["parked listener"] == (
        False,
        "1 failed, 2 wait behind them: retold parked list",
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_store_that_is_not_migrated_is_unhealthy(
    kind: str, fresh_database: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", "--database", fresh_database(kind)]) == 1
    assert capsys.readouterr().out.startswith("!! store  pending 0001_tables, ")


def test_a_store_that_is_away_is_unhealthy(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--database", "postgresql://ann:secret@127.0.0.1:1/none"]) == 1
    said = capsys.readouterr().out
    assert said.startswith("!! store  The database cannot be reached")
    assert "secret" not in said


# --- the relay ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sqlite"])
def test_a_relay_that_publishes_is_healthy_and_one_that_does_not_is_not(
    url: str, store: EventStore, kafka: Kafka | GivenKafka, status: Status
) -> None:
    store.migrate(polling=True)
    code, page = status("--kafka", kafka.url)
    ((about, finding),) = [item for item in page.items() if item[0].startswith("relay ")]
    assert (code, finding) == (1, (False, "has saved no position in Kafka"))

    topic = "test_status.Bell"
    before = size(kafka.url, topic)
    store.repository(Bell).create(Bell.ring)
    with relay(url, kafka.url) as process:
        eventually(lambda: size(kafka.url, topic) > before)
        assert process.terminate() == 0
    code, page = status("--kafka", kafka.url, "--patience", "0")
    assert code == 0
    assert page[about][1].startswith("at ")

    store.repository(Bell).create(Bell.ring)
    code, page = status("--kafka", kafka.url, "--patience", "0")
    assert code == 1
    assert page[about][1].startswith("has published nothing since the newest event")


def test_a_kafka_that_is_away_is_unhealthy(
    fresh_database: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    with EventStore(fresh_database("sqlite")) as store:
        store.migrate()
        url = f"sqlite:///{store._url.database}"
    assert main(["status", "--database", url, "--kafka", "127.0.0.1:1"]) == 1
    assert "Kafka cannot be reached" in capsys.readouterr().out
