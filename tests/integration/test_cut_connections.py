"""A connection cut at the commit: the change is applied once, or the caller is told."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple
from urllib.parse import urlsplit

import pytest

from retold import Changed, EventStore, OutcomeUnknown, every
from retold.errors import ConnectionLost, StoreUnavailable
from tests.conformance.blocking import open_store
from tests.conformance.raw import count, rows
from tests.integration.proxy import Cut, Proxy, Trap
from tests.integration.tally import Databases, Tally, audit, check_found, new_id
from tests.rig import VARIABLES, MySQL, Rig, Server
from tests.rig.databases import query

CLIENTS = [
    ("mysql8", "sync"),
    ("mysql8", "async"),
    ("mariadb", "mysqlclient"),
    ("postgres15", "sync"),
    ("postgres18", "async"),
]
MYSQL = [("mysql8", "sync"), ("mariadb", "mysqlclient")]
POSTGRES = [("postgres15", "sync"), ("postgres18", "async")]

every_client = pytest.mark.parametrize(("kind", "flavour"), CLIENTS)

# READ COMMITTED is said at the beginning.
_COMMIT = re.compile(rb"COMMIT(?!TED)")
# PostgreSQL appends in one statement, which nothing else looks like: it carries what it stores.
_STATEMENT = re.compile(rb"tally\.Added|Tally\.look")


class Snapped(Tally, name="test_cut_connections.Snapped", snapshots=every(1)):
    """A tally that keeps a snapshot after every change."""


class Change(NamedTuple):
    """A change of one entity, the amounts its events should hold, and whether a key is kept."""

    make: Callable[[EventStore, str], Changed[Tally, object]]
    amounts: tuple[int, ...]
    keyed: bool = False
    creates: bool = False


def _create(store: EventStore, id: str) -> Changed[Tally, object]:
    return store.repository(Tally).with_id(id).create(Tally.add, "cut", 7)


def _create_once(store: EventStore, id: str) -> Changed[Tally, object]:
    return store.repository(Tally).with_id(id).once("k").create(Tally.add, "cut", 7)


def _update(store: EventStore, id: str) -> Changed[Tally, object]:
    return store.repository(Tally).update(id, Tally.add, "cut", 7)


def _update_by_several(store: EventStore, id: str) -> Changed[Tally, object]:
    return store.repository(Tally).update(id, Tally.add, "cut", 7, 8, 9)


def _update_once(store: EventStore, id: str) -> Changed[Tally, object]:
    return store.repository(Tally).once("k").update(id, Tally.add, "cut", 7)


def _look_once(store: EventStore, id: str) -> Changed[Tally, object]:
    return store.repository(Tally).once("k").update(id, Tally.look)


CHANGES = {
    "create": Change(_create, (7,), creates=True),
    "create once": Change(_create_once, (7,), keyed=True, creates=True),
    "update": Change(_update, (7,)),
    "several events": Change(_update_by_several, (7, 8, 9)),
    "update once": Change(_update_once, (7,), keyed=True),
    "nothing, once": Change(_look_once, (), keyed=True),
}

every_change = pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)


Servers = Callable[[str], Server]


@pytest.fixture(scope="module")
def server_of(servers: Rig) -> Iterator[Servers]:
    """The servers by kind; MySQL without TLS, as the proxy must be able to read what is said."""
    plain: list[Server] = []

    def server_of(kind: str) -> Server:
        if kind != "mysql8":
            return servers[kind]
        if VARIABLES[kind] in os.environ:
            pytest.skip("the given server may speak TLS")
        if not plain:
            plain.append(MySQL("--tls-version="))
            plain[0].start()
        return plain[0]

    yield server_of
    for server in plain:
        server.stop()


@pytest.fixture(scope="module")
def databases(server_of: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Databases]:
    with Databases(server_of, tmp_path_factory.mktemp("databases")) as databases:
        yield databases


@pytest.fixture
def proxy(url: str) -> Iterator[Proxy]:
    with Proxy(url) as proxy:
        yield proxy


@pytest.fixture
def store(proxy: Proxy, flavour: str) -> Iterator[EventStore]:
    """A store whose connections go through the proxy; one is open."""
    with open_store(proxy.url, flavour) as store:
        yield store


@pytest.fixture
def direct(url: str) -> Iterator[EventStore]:
    with EventStore(url) as store:
        yield store


@pytest.fixture
def id(direct: EventStore) -> str:
    id = new_id()
    direct.repository(Tally).with_id(id).create(Tally.add, "made", 1)
    return id


def at_the_append(proxy: Proxy, cut: Cut) -> Trap:
    """Cut where the append's commit is asked for."""
    mysql = urlsplit(proxy.url).scheme == "mysql"
    return proxy.cut(_COMMIT if mysql else _STATEMENT, cut)


def check_applied_once(
    change: Change, changed: Changed[Tally, object], direct: EventStore, url: str, id: str
) -> None:
    stored = audit(url)
    before = [] if change.creates else [1]
    assert not changed.duplicate
    assert changed.version == stored[id].version
    assert changed.result == changed.state.total == sum(before) + sum(change.amounts)
    totals = list(stored[id].totals.values())
    amounts = [total - before for before, total in zip([0, *totals], totals, strict=False)]
    assert amounts == [*before, *change.amounts]
    assert stored[id].keys == (["k"] if change.keyed else [])
    check_found(direct, {id: stored[id]})


@every_client
@every_change
@pytest.mark.parametrize("cut", [Cut.LOST, Cut.DELIVERED])
def test_a_change_cut_off_at_its_commit_is_applied_once(
    proxy: Proxy,
    store: EventStore,
    direct: EventStore,
    url: str,
    id: str,
    change: Change,
    cut: Cut,
) -> None:
    id = new_id() if change.creates else id
    trap = at_the_append(proxy, cut)
    changed = change.make(store, id)
    assert trap.sprung.is_set()
    check_applied_once(change, changed, direct, url, id)
    assert store.counts["reconnects"] == 1
    assert store.counts["duplicates"] == 0


@pytest.mark.parametrize(("kind", "flavour"), MYSQL)
@pytest.mark.parametrize("cut", [Cut.LOST, Cut.DELIVERED])
def test_an_update_cut_off_before_its_commit_is_applied_once(
    proxy: Proxy, store: EventStore, direct: EventStore, url: str, id: str, cut: Cut
) -> None:
    proxy.cut(re.compile(b"UPDATE"), cut)
    changed = _update_once(store, id)
    check_applied_once(CHANGES["update once"], changed, direct, url, id)


def snapshots(url: str, id: str) -> list[str]:
    """The versions of which a snapshot is kept."""
    kept = rows(url, f"SELECT entity_version FROM snapshots WHERE entity_id = '{id}' ORDER BY 1")
    return [str(version) for (version,) in kept]


@every_client
@pytest.mark.parametrize("cut", [Cut.LOST, Cut.DELIVERED])
def test_a_change_cut_off_at_its_commit_keeps_the_snapshot_that_is_due(
    proxy: Proxy, store: EventStore, url: str, cut: Cut
) -> None:
    tallies = store.repository(Snapped)
    at_the_append(proxy, cut)
    made = tallies.create(Snapped.add, "cut", 7)
    assert snapshots(url, made.id) == [made.version]
    at_the_append(proxy, cut)
    changed = tallies.update(made.id, Snapped.add, "cut", 7)
    assert snapshots(url, made.id) == [made.version, changed.version]
    assert store.counts["reconnects"] == 2
    assert store.counts["snapshots"] == 2


@every_client
def test_a_connection_that_breaks_at_a_snapshot_is_not_used_again(
    proxy: Proxy, store: EventStore, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    tallies = store.repository(Snapped)
    proxy.cut(re.compile(rb"INSERT INTO \S*snapshots"), Cut.LOST)
    made = tallies.create(Snapped.add, "made", 1)
    assert f"no snapshot of test_cut_connections.Snapped {made.id}" in caplog.text
    assert snapshots(url, made.id) == []
    changed = tallies.update(made.id, Snapped.add, "next", 1)
    assert snapshots(url, made.id) == [changed.version]
    assert store.counts["reconnects"] == 0


def in_thread(work: Callable[[], Changed[Tally, object]]) -> Callable[[], Changed[Tally, object]]:
    """Begin it; what is returned waits for its outcome."""
    outcomes: list[Changed[Tally, object]] = []
    thread = threading.Thread(target=lambda: outcomes.append(work()))
    thread.start()

    def outcome() -> Changed[Tally, object]:
        thread.join()
        return outcomes[0]

    return outcome


@pytest.mark.parametrize(("kind", "flavour"), MYSQL)
@every_change
@pytest.mark.parametrize("arrives", [True, False], ids=["arrives", "is lost"])
def test_a_commit_still_under_way_when_its_client_asks_for_it_counts_once(
    server_of: Servers,
    proxy: Proxy,
    store: EventStore,
    direct: EventStore,
    url: str,
    id: str,
    kind: str,
    change: Change,
    arrives: bool,
) -> None:
    """The server does not know that its client is gone: the old transaction holds its locks."""
    id = new_id() if change.creates else id
    trap = at_the_append(proxy, Cut.LATE)
    outcome = in_thread(lambda: change.make(store, id))
    assert trap.sprung.wait(30)
    waiting = "SHOW GLOBAL STATUS LIKE 'Innodb_row_lock_current_waits'"
    while query(server_of(kind).url, waiting)[0][1] == "0":
        time.sleep(0.01)
    if arrives:
        trap.deliver()
    else:
        trap.discard()
    check_applied_once(change, outcome(), direct, url, id)


@pytest.mark.parametrize(("kind", "flavour"), POSTGRES)
@every_change
def test_an_append_that_arrives_after_its_repetition_changes_nothing(
    proxy: Proxy, store: EventStore, direct: EventStore, url: str, id: str, change: Change
) -> None:
    id = new_id() if change.creates else id
    trap = at_the_append(proxy, Cut.LATE)
    changed = change.make(store, id)
    trap.deliver()
    assert trap.done.wait(30)
    check_applied_once(change, changed, direct, url, id)


@every_client
@pytest.mark.parametrize("cut", [Cut.LOST, Cut.DELIVERED])
def test_a_transaction_cut_off_at_its_commit_says_that_its_outcome_is_unknown(
    proxy: Proxy, store: EventStore, url: str, id: str, cut: Cut
) -> None:
    other = new_id()
    proxy.cut(_COMMIT, cut)

    def change_both() -> None:
        with store.transaction() as tx:
            tx.repository(Tally).update(id, Tally.add, "cut", 7)
            tx.repository(Tally).with_id(other).create(Tally.add, "cut", 8)

    with pytest.raises(OutcomeUnknown):
        change_both()
    stored = audit(url)
    there = cut is Cut.DELIVERED
    assert stored[id].tags == ["made", *["cut"] * there]
    assert (other in stored) == there
    with store.transaction() as tx:
        tx.repository(Tally).update(id, Tally.add, "next", 1)


@every_client
def test_a_transaction_cut_off_before_its_commit_leaves_nothing(
    proxy: Proxy, store: EventStore, url: str, id: str
) -> None:
    def change_twice() -> None:
        with store.transaction() as tx:
            tx.repository(Tally).update(id, Tally.add, "cut", 7)
            proxy.break_all()
            tx.repository(Tally).update(id, Tally.add, "cut", 7)

    with pytest.raises(ConnectionLost):
        change_twice()
    assert store.repository(Tally).update(id, Tally.add, "next", 1).result == 2
    assert audit(url)[id].tags == ["made", "next"]


def settle_briefly(store: EventStore) -> None:
    """Ask twice for an unknown outcome instead of for ten seconds; no user needs to set this."""
    object.__setattr__(store._settings, "settle_tries", 2)


@every_client
@pytest.mark.parametrize("cut", [Cut.LOST, Cut.DELIVERED])
def test_a_server_that_does_not_come_back_leaves_the_outcome_unknown(
    proxy: Proxy, store: EventStore, url: str, id: str, cut: Cut
) -> None:
    settle_briefly(store)
    at_the_append(proxy, cut)
    proxy.refuse()
    accounts = store.repository(Tally)
    with pytest.raises(OutcomeUnknown):
        accounts.once("k").update(id, Tally.add, "cut", 7)
    with pytest.raises(StoreUnavailable):
        accounts.once("k").update(id, Tally.add, "cut", 7)
    there = cut is Cut.DELIVERED
    assert audit(url)[id].tags == ["made", *["cut"] * there]
    proxy.accept()
    # What the error says to do finds it out.
    assert accounts.once("k").update(id, Tally.add, "cut", 7).duplicate == there
    assert audit(url)[id].tags == ["made", "cut"]


@pytest.mark.parametrize(("kind", "flavour"), POSTGRES)
def test_a_replica_that_took_over_read_only_leaves_the_outcome_unknown(
    fresh_database: Callable[[str], str], kind: str, flavour: str
) -> None:
    """Not ReadOnlyStore, which says that nothing was written."""
    url = fresh_database(kind)
    with EventStore(url) as direct:
        direct.migrate()
        id = direct.repository(Tally).create(Tally.add, "made", 1).id
    with Proxy(url) as proxy, open_store(proxy.url, flavour) as store:
        settle_briefly(store)
        at_the_append(proxy, Cut.DELIVERED)
        database = urlsplit(url).path[1:]
        rows(url, f'ALTER DATABASE "{database}" SET default_transaction_read_only = on')
        with pytest.raises(OutcomeUnknown, match="read-only"):
            store.repository(Tally).update(id, Tally.add, "cut", 7)
    assert count(url, "events", id) == 2


@every_client
def test_idle_connections_that_broke_are_not_noticed(
    proxy: Proxy, store: EventStore, id: str
) -> None:
    accounts = store.repository(Tally)
    for n in range(3):
        proxy.break_all()
        assert accounts.find(id).state.total == 1 + 2 * n
        assert accounts.update(id, Tally.add, f"find first {n}", 1).result == 2 + 2 * n
        proxy.break_all()
        assert accounts.update(id, Tally.add, f"update first {n}", 1).result == 3 + 2 * n
