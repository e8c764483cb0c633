"""Who leads, on every database: threads, processes, signals and broken connections."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing

import pytest

from retold import EventStore
from retold.drivers import open_driver
from retold.errors import LeadershipLost, LogUnsuitable
from retold.relay.leadership import KEPT_S, DatabaseLeadership
from retold.store.url import parse_url
from tests.conformance.raw import rows
from tests.relay.processes import PATIENCE_S, eventually
from tests.rig import Rig

SERVERS = ("mysql8", "mariadb", "postgres15", "postgres18")
KINDS = ("sqlite", *SERVERS)
TAKEOVER_S = 10.0


@pytest.fixture(params=["sqlite", "mysql8", "mariadb", "postgres18"])
def kind(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture
def made(fresh_database: Callable[[str], str]) -> Callable[[str], str]:
    def make(kind: str) -> str:
        url = fresh_database(kind)
        if kind == "sqlite":
            with EventStore(url) as store:
                store.migrate()
        return url

    return make


@pytest.fixture
def url(kind: str, made: Callable[[str], str]) -> str:
    return made(kind)


@pytest.fixture
def urls(made: Callable[[str], str]) -> dict[str, str]:
    """A database of each kind, for what takes seconds on each."""
    return {kind: made(kind) for kind in KINDS}


class Candidate:
    """Asks for the lock in a thread."""

    def __init__(self, url: str, name: str) -> None:
        self._driver = open_driver(parse_url(url))
        self._leadership = DatabaseLeadership(self._driver, name)
        self._stop = threading.Event()
        self._leads = threading.Event()
        self._thread = threading.Thread(target=self._ask)
        self._thread.start()

    def _ask(self) -> None:
        if self._leadership.acquire(self._stop):
            self._leads.set()

    def leads(self, patience: float = PATIENCE_S) -> bool:
        """Wait until it leads."""
        return self._leads.wait(patience)

    def check(self) -> None:
        self._leadership.check()

    def holds(self) -> bool:
        try:
            self.check()
        except LeadershipLost:
            return False
        return True

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._leadership.release()
        self._driver.close()


Asking = Callable[[str, str], Candidate]


@pytest.fixture
def asking() -> Iterator[Asking]:
    with ExitStack() as stack:
        yield lambda url, name: stack.enter_context(closing(Candidate(url, name)))


class Child:
    """A process that asks for the lock."""

    def __init__(self, url: str, name: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.relay.leading", url, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def says(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def send(self, what: signal.Signals) -> None:
        self._process.send_signal(what)

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def starting() -> Iterator[Callable[[str], Child]]:
    """Starts processes that ask for the lock."""
    with ExitStack() as stack:
        yield lambda url: stack.enter_context(closing(Child(url, "bank")))


def connections(servers: Rig, kind: str, url: str) -> set[object]:
    """The server's numbers of all connections to a database."""
    database = parse_url(url).database
    found = f"SELECT id FROM information_schema.processlist WHERE db = '{database}'"
    if kind.startswith("postgres"):
        found = f"SELECT pid FROM pg_stat_activity WHERE datname = '{database}'"
    return {id for (id,) in rows(servers[kind].url, found)}


def cut(servers: Rig, kind: str, *ids: object) -> None:
    kill = "SELECT pg_terminate_backend({})" if kind.startswith("postgres") else "KILL {}"
    for id in ids:
        rows(servers[kind].url, kill.format(id))


# --- one leads -----------------------------------------------------------------------------------


def test_one_leads_and_the_other_takes_over_at_once_when_it_ends(url: str, asking: Asking) -> None:
    first = asking(url, "bank")
    assert first.leads()
    second = asking(url, "bank")
    assert not second.leads(1.2)
    first.check()
    first.close()
    began = time.monotonic()
    assert second.leads()
    assert time.monotonic() - began < KEPT_S / 2
    second.check()


def test_relays_of_other_names_lead_too(url: str, asking: Asking) -> None:
    assert asking(url, "bank").leads()
    assert asking(url, "shop").leads()


@pytest.mark.parametrize("kind", ["mysql8", "postgres18"], indirect=True)
def test_relays_of_other_databases_lead_too(
    kind: str, url: str, fresh_database: Callable[[str], str], asking: Asking
) -> None:
    assert asking(url, "bank").leads()
    assert asking(fresh_database(kind), "bank").leads()
    option = "?schema=other" if kind == "postgres18" else "?prefix=other_"
    assert asking(url + option, "bank").leads()


@pytest.mark.database(*KINDS)
def test_a_leader_keeps_the_lock(urls: dict[str, str], asking: Asking) -> None:
    leaders = [asking(url, "bank") for url in urls.values()]
    assert all(leader.leads() for leader in leaders)
    others = [asking(url, "bank") for url in urls.values()]
    assert not others[0].leads(KEPT_S + 2)
    assert not any(other.leads(0) for other in others)
    for leader in leaders:
        leader.check()


def test_who_is_told_to_stop_stands_by_no_longer(url: str, asking: Asking) -> None:
    assert asking(url, "bank").leads()
    second = asking(url, "bank")
    second.close()
    assert not second.leads(0)


# --- the leader is gone --------------------------------------------------------------------------


@pytest.mark.database(*KINDS)
def test_a_killed_leader_is_followed_in_time(
    urls: dict[str, str], starting: Callable[[str], Child], asking: Asking
) -> None:
    children = [starting(url) for url in urls.values()]
    assert [child.says() for child in children] == ["leads"] * len(KINDS)
    followers = [asking(url, "bank") for url in urls.values()]
    assert not followers[0].leads(0.6)
    for child in children:
        child.send(signal.SIGKILL)
    deadline = time.monotonic() + TAKEOVER_S
    for follower in followers:
        assert follower.leads(deadline - time.monotonic())


@pytest.mark.database(*KINDS)
def test_a_frozen_leader_is_followed_in_time_and_notices_when_it_wakes(
    urls: dict[str, str], starting: Callable[[str], Child], asking: Asking
) -> None:
    children = [starting(url) for url in urls.values()]
    assert [child.says() for child in children] == ["leads"] * len(KINDS)
    followers = [asking(url, "bank") for url in urls.values()]
    for child in children:
        child.send(signal.SIGSTOP)
    deadline = time.monotonic() + TAKEOVER_S
    for follower in followers:
        assert follower.leads(deadline - time.monotonic())
    for child in children:
        child.send(signal.SIGCONT)
    assert [child.says() for child in children] == ["lost"] * len(KINDS)
    assert [child.says() for child in children] == ["ended"] * len(KINDS)
    for follower in followers:
        follower.check()


@pytest.mark.parametrize("kind", SERVERS, indirect=True)
def test_a_leader_whose_connection_breaks_leads_no_more(
    servers: Rig, kind: str, url: str, asking: Asking
) -> None:
    leader = asking(url, "bank")
    assert leader.leads()
    cut(servers, kind, *connections(servers, kind, url))
    eventually(lambda: not leader.holds(), KEPT_S + 2)
    with pytest.raises(LeadershipLost):
        leader.check()


@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
def test_a_leader_whose_lease_another_one_has_leads_no_more(url: str, asking: Asking) -> None:
    leader = asking(url, "bank")
    assert leader.leads()
    rows(url, "UPDATE subscriptions SET owner = 'somebody' WHERE name = 'relay:bank'")
    eventually(lambda: not leader.holds())
    with pytest.raises(LeadershipLost, match="another relay took it"):
        leader.check()


@pytest.mark.parametrize("kind", ["mysql8", "postgres18"], indirect=True)
def test_who_stands_by_goes_on_asking_for_the_same_lock_when_its_connection_breaks(
    servers: Rig, kind: str, url: str, asking: Asking
) -> None:
    leader = asking(url, "bank")
    assert leader.leads()
    leaders = connections(servers, kind, url)
    follower = asking(url, "bank")
    eventually(lambda: connections(servers, kind, url) > leaders)
    before = connections(servers, kind, url)
    cut(servers, kind, *(before - leaders))
    eventually(lambda: bool(connections(servers, kind, url) - before))
    assert not follower.leads(1.2)
    leader.close()
    assert follower.leads()


@pytest.mark.database("pgbouncer")
def test_behind_a_pooler_nobody_leads(fresh_database: Callable[[str], str]) -> None:
    url = fresh_database("pgbouncer")
    with closing(open_driver(parse_url(url))) as driver:
        leadership = DatabaseLeadership(driver, "bank")
        with pytest.raises(LogUnsuitable, match="pooler"):
            leadership.acquire(threading.Event())
        leadership.release()
