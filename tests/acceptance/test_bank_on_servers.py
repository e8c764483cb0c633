"""The example bank, unchanged, on servers: alone, and with a relay and Kafka."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import pytest

from examples.bank.audit import audit
from examples.bank.processes import open_accounts
from retold import EventStore
from tests.acceptance.test_bank import run_bank
from tests.rig import Kafka, Rig
from tests.rig.databases import query, with_parts

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def url(kind: str, servers: Rig, fresh_database: Callable[[str], str]) -> str:
    """A database, by a user who may read its log."""
    database = urlsplit(fresh_database(kind)).path[1:]
    return with_parts(servers[kind].url, database=database)


@pytest.fixture
def broker() -> Iterator[Kafka]:
    """A broker of a test's own: the bank's topics have the bank's names."""
    broker = Kafka()
    broker.start()
    yield broker
    broker.stop()


@pytest.mark.parametrize("kind", ["postgres18", "mysql8", "mariadb"])
def test_the_bank_on_a_server_alone_and_an_audit_that_can_fail(url: str) -> None:
    done = run_bank(url, transfers=400)
    assert (done.returncode, done.stderr) == (0, "")
    assert "killed a member at work" in done.stdout
    assert "took over" in done.stdout
    assert "✗" not in done.stdout
    query(url, "UPDATE events SET entity_id = 'nobody' WHERE event_type = 'bank.AccountRefunded'")
    found = [problem for claim in audit(url) for problem in claim.problems]
    assert any("account nobody was never opened" in problem for problem in found)


@pytest.mark.database("kafka")
@pytest.mark.parametrize("kind", ["postgres18", "mysql8"])
def test_the_bank_with_a_relay_and_kafka(url: str, broker: Kafka) -> None:
    done = run_bank(url, "--kafka", broker.url, transfers=100)
    assert (done.returncode, done.stderr) == (0, "")
    assert "killed the relay" in done.stdout
    assert "killed a member" in done.stdout
    assert "all is well" in done.stdout
    assert "✗" not in done.stdout


@pytest.mark.parametrize("kind", ["postgres18"])
def test_a_database_that_has_events_is_left_alone(url: str) -> None:
    with EventStore(url) as store:
        store.migrate()
        open_accounts(store, 1)
    done = run_bank(url, transfers=400)
    assert done.returncode == 1
    assert "the database has events: name an empty one" in done.stderr
