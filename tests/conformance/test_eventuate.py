"""A database that Java's Eventuate Local made and filled is opened and written as it is.

Its columns are shorter than ours, and on MySQL they compare text as the server's default collation
does: without regard to case, and depending on the server to accents or trailing spaces.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from retold import Aggregate, EntityExists, Event, EventStore, NotFound, applies, every
from retold.errors import ValueTooLong, VersionConflict
from tests.conformance.conftest import Opening
from tests.conformance.raw import rows
from tests.rig import SERVERS
from tests.steps import STEPS

GOLDEN = Path(__file__).parents[1] / "golden" / "eventuate"
LOOSE = ["mysql8", "mariadb"]
# PostgreSQL 15, with and without PgBouncer, differs from 18 in nothing that matters here.
KINDS = [*LOOSE, "postgres18"]
STRICT = [kind for kind in SERVERS if kind not in LOOSE]
ACCOUNT, VAULT = "com.example.banking.Account", "com.example.banking.Branch$Vault"


def on(kinds: Iterable[str], *flavours: str) -> pytest.MarkDecorator:
    """Run a test on these kinds of database: on the blocking store if no flavour is named."""
    pairs = [(kind, flavour) for kind in kinds for flavour in flavours or ("sync",)]
    return pytest.mark.parametrize(("kind", "flavour"), pairs)


class AccountOpened(Event, name="com.example.banking.AccountOpened"):
    owner: str
    balance: int


class AccountDebited(Event, name="com.example.banking.AccountDebited"):
    amount: int


class AccountCredited(Event, name="com.example.banking.AccountCredited", rename="camel"):
    amount: int
    from_account: str


class AccountNoted(Event, name="com.example.banking.AccountNoted"):
    text: str
    tags: tuple[str, ...] = ()
    rate: Decimal | None = None
    author: str | None = None


class Account(Aggregate, name=ACCOUNT, ignores=[AccountNoted], snapshots=every(3)):
    owner: str = ""
    balance: int = 0

    def open(self, owner: str, balance: int) -> None:
        self.emit(AccountOpened(owner, balance))

    def credit(self, amount: int, from_account: str) -> int:
        self.emit(AccountCredited(amount, from_account))
        return self.balance

    def debit(self, amount: int) -> int:
        self.emit(AccountDebited(amount))
        return self.balance

    @applies
    def _opened(self, event: AccountOpened) -> None:
        self.owner, self.balance = event.owner, event.balance

    @applies
    def _credited(self, event: AccountCredited) -> None:
        self.balance += event.amount

    @applies
    def _debited(self, event: AccountDebited) -> None:
        self.balance -= event.amount


class VaultOpened(Event, name="com.example.banking.Branch$VaultOpened"):
    name: str


class VaultRenamed(Event, name="com.example.banking.Branch$VaultRenamed", rename="camel"):
    new_name: str


class Vault(Aggregate, name=VAULT):
    """Takes no snapshots, so that the query without them is tried too."""

    name: str = ""

    def open(self, name: str) -> None:
        self.emit(VaultOpened(name))

    def call(self, name: str) -> str:
        before = self.name
        self.emit(VaultRenamed(name))
        return before

    @applies
    def _opened(self, event: VaultOpened) -> None:
        self.name = event.name

    @applies
    def _renamed(self, event: VaultRenamed) -> None:
        self.name = event.new_name


_MYSQL = """
CREATE TABLE events (event_id VARCHAR(255) PRIMARY KEY, event_type LONGTEXT,
  event_data LONGTEXT CHARACTER SET utf8mb4 COLLATE utf8mb4_unicode_ci NOT NULL,
  entity_type VARCHAR(255) NOT NULL, entity_id VARCHAR(255) NOT NULL,
  triggering_event LONGTEXT, metadata LONGTEXT, published TINYINT DEFAULT 0);
CREATE INDEX events_idx ON events (entity_type, entity_id, event_id);
CREATE INDEX events_published_idx ON events (published, event_id);
CREATE TABLE entities (entity_type VARCHAR(255), entity_id VARCHAR(255),
  entity_version LONGTEXT NOT NULL, PRIMARY KEY (entity_type, entity_id));
CREATE INDEX entities_idx ON entities (entity_type, entity_id);
CREATE TABLE snapshots (entity_type VARCHAR(255), entity_id VARCHAR(255),
  entity_version VARCHAR(255), snapshot_type LONGTEXT NOT NULL, snapshot_json LONGTEXT NOT NULL,
  triggering_events LONGTEXT, PRIMARY KEY (entity_type, entity_id, entity_version));
CREATE TABLE cdc_monitoring (reader_id VARCHAR(255) PRIMARY KEY, last_time BIGINT)
"""
_POSTGRES = """
CREATE SCHEMA eventuate;
CREATE TABLE eventuate.events (event_id VARCHAR(1000) PRIMARY KEY, event_type VARCHAR(1000),
  event_data VARCHAR(1000) NOT NULL, entity_type VARCHAR(1000) NOT NULL,
  entity_id VARCHAR(1000) NOT NULL, triggering_event VARCHAR(1000), metadata VARCHAR(1000),
  published SMALLINT DEFAULT 0);
CREATE INDEX events_idx ON eventuate.events (entity_type, entity_id, event_id);
CREATE INDEX events_published_idx ON eventuate.events (published, event_id);
CREATE TABLE eventuate.entities (entity_type VARCHAR(1000), entity_id VARCHAR(1000),
  entity_version VARCHAR(1000) NOT NULL, PRIMARY KEY (entity_type, entity_id));
CREATE INDEX entities_idx ON eventuate.entities (entity_type, entity_id);
CREATE TABLE eventuate.snapshots (entity_type VARCHAR(1000), entity_id VARCHAR(1000),
  entity_version VARCHAR(1000), snapshot_type VARCHAR(1000) NOT NULL,
  snapshot_json VARCHAR(1000) NOT NULL, triggering_events VARCHAR(1000),
  PRIMARY KEY (entity_type, entity_id, entity_version));
CREATE TABLE eventuate.cdc_monitoring (reader_id VARCHAR(1000) PRIMARY KEY, last_time BIGINT)
"""


class Java(NamedTuple):
    """A database as Java left it. `url` is the store's."""

    kind: str
    plain_url: str
    url: str
    golden: dict[str, list[dict[str, Any]]]

    def table(self, name: str) -> str:
        return f"eventuate.{name}" if "schema" in self.url else name

    def insert(self, table: str, *values: object) -> None:
        rows(self.plain_url, self.insertion(table, values))

    def insertion(self, table: str, *inserted: Iterable[object]) -> str:
        listed = ", ".join(f"({', '.join(map(self._sql, values))})" for values in inserted)
        return f"INSERT INTO {self.table(table)} VALUES {listed}"

    def _sql(self, value: object) -> str:
        if value is None:
            return "NULL"
        return str(value) if isinstance(value, int) else self.text(value)

    def text(self, value: object) -> str:
        """A text as an SQL literal of this database."""
        text = str(value).replace("'", "''")
        return "'" + (text.replace("\\", "\\\\") if self.kind in LOOSE else text) + "'"

    def select(self, query: str) -> list[tuple[object, ...]]:
        """The rows of `SELECT … FROM {table}`."""
        names = {name: self.table(name) for name in ("events", "entities", "snapshots")}
        return rows(self.plain_url, query.format(**names))

    def opened_by_java(self, id: str, name: str, event_id: str) -> None:
        """A vault as Java's client stores it."""
        data = json.dumps({"name": name})
        opened = "com.example.banking.Branch$VaultOpened"
        self.insert("events", event_id, opened, data, VAULT, id, None, None, 0)
        self.insert("entities", VAULT, id, event_id)

    def versions(self, id: str) -> list[str]:
        return [
            row["event_id"]
            for row in sorted(self.golden["events"], key=lambda row: row["event_id"])
            if row["entity_id"] == id
        ]


@pytest.fixture
def java(kind: str, fresh_database: Callable[[str], str]) -> Java:
    """A database with Java's tables and rows."""
    url = fresh_database(kind)
    mysql = kind in LOOSE
    name = "mariadb" if mysql else "postgres"
    golden = json.loads((GOLDEN / f"{name}_rows.json").read_text("utf-8"))
    java = Java(kind, url, url if mysql else f"{url}?schema=eventuate", golden)
    filled = [java.insertion(table, *(row.values() for row in golden[table])) for table in golden]
    rows(url, *(_MYSQL if mysql else _POSTGRES).split(";\n"), *filled)
    return java


@pytest.fixture
def adopted(java: Java, flavour: str, opened: Opening) -> EventStore:
    """A store on it."""
    store = opened(java.url, flavour)
    store.migrate()
    return store


def _columns(java: Java) -> list[tuple[object, ...]]:
    own = "'eventuate'" if java.kind not in LOOSE else "DATABASE()"
    return rows(
        java.plain_url,
        "SELECT table_name, column_name, data_type, character_maximum_length, collation_name "
        f"FROM information_schema.columns WHERE table_schema = {own} "
        "ORDER BY table_name, ordinal_position",
    )


@on(KINDS)
def test_migrate_keeps_javas_tables_and_rows_as_they_are(
    java: Java, flavour: str, opened: Opening
) -> None:
    before = _columns(java)
    queries = [
        f"SELECT * FROM {{{t}}} ORDER BY 1, 2, 3" for t in ("events", "entities", "snapshots")
    ]
    held = [java.select(query) for query in queries]
    store = opened(java.url, flavour)
    assert store.pending_migrations() == STEPS
    assert store.migrate() == STEPS
    after = _columns(java)
    made = {str(row[0]) for row in after} - {str(row[0]) for row in before}
    ours = {"projections", "projection_seen", "generations", "missed", "claims"}
    assert made == ours | {"handled", "parked", "retold_migrations"}
    assert [row for row in after if row[0] not in made] == before
    assert [java.select(query) for query in queries] == held
    assert store.migrate() == store.pending_migrations() == []


@on(KINDS)
def test_the_tables_of_a_service_that_takes_no_snapshots_are_completed(
    java: Java, flavour: str, opened: Opening
) -> None:
    rows(java.plain_url, f"DROP TABLE {java.table('snapshots')}")
    store = opened(java.url, flavour)
    store.migrate()
    accounts = store.repository(Account)
    id = accounts.create(Account.open, "ann", 10).id
    for _ in range(4):
        accounts.update(id, Account.debit, 1)
    assert store.counts["snapshots"] > 0
    assert accounts.find(id).state.balance == 6


@on(KINDS)
def test_what_java_wrote_is_loaded(java: Java, adopted: EventStore) -> None:
    accounts, vaults = adopted.repository(Account), adopted.repository(Vault)
    of_accounts = {
        row["entity_id"] for row in java.golden["events"] if row["entity_type"] == ACCOUNT
    }
    assert set(accounts.entities()) == of_accounts
    for row in java.golden["entities"]:
        repository: Any = accounts if row["entity_type"] == ACCOUNT else vaults
        assert repository.find(row["entity_id"]).version == row["entity_version"]
        assert repository.exists(row["entity_id"])
    (vault,) = vaults.entities()
    assert vaults.find(vault).state.name == ("main" if java.kind in LOOSE else "pgmain")


@on(KINDS)
def test_what_java_recorded_is_told(java: Java, adopted: EventStore) -> None:
    noted = next(row for row in java.golden["events"] if "quote" in row["event_data"])
    accounts = adopted.repository(Account)
    history = list(accounts.history(noted["entity_id"]))
    assert [recorded.id for recorded in history] == java.versions(noted["entity_id"])
    first = history[0]
    assert isinstance(first.event, AccountOpened)
    assert first.metadata["corr"] == "7"
    assert f"{round(first.time.timestamp() * 1000):016x}" == first.id.partition("-")[0]
    (event,) = (recorded.event for recorded in history if recorded.id == noted["event_id"])
    assert event == AccountNoted('quote " back\\slash € 😀 <b>', ("x", "y"), Decimal("1.50"), "zoë")


@on(KINDS)
def test_what_java_recorded_is_streamed(java: Java, adopted: EventStore) -> None:
    ids = sorted(row["event_id"] for row in java.golden["events"] if row["entity_type"] == ACCOUNT)
    streamed = list(adopted.stream(Account))
    assert [recorded.id for recorded in streamed] == ids
    since = streamed[2]
    assert next(adopted.stream(Account, since=since.id)) == streamed[3]
    from_then = list(adopted.stream(Account, since=since.time))
    assert from_then == [recorded for recorded in streamed if recorded.time >= since.time]


@on(LOOSE)
def test_the_event_that_caused_an_update_of_javas_is_told(adopted: EventStore) -> None:
    history = list(adopted.repository(Account).history("acc-target"))
    credit = history[1]
    assert credit.event == AccountCredited(1, "acc-src")
    assert credit.trigger == (
        "etpo:000001a209c439c3-02fc000000010000:com.example.banking.Account:0:2"
    )


@on(SERVERS, "sync", "async")
def test_javas_entities_are_updated(java: Java, adopted: EventStore) -> None:
    id = "acc-bob" if java.kind in LOOSE else "pg-bob"
    accounts = adopted.repository(Account)
    before = accounts.find(id)
    changed = (
        accounts.once("pay").expecting(before.version).update(id, Account.credit, 5, "acc-src")
    )
    assert changed.result == 55
    assert accounts.once("pay").update(id, Account.credit, 5, "acc-src").duplicate
    assert changed.version > before.version
    assert java.select(
        "SELECT event_type, event_data, triggering_event, published FROM {events} "
        f"WHERE event_id = '{changed.version}'"
    ) == [
        (
            "com.example.banking.AccountCredited",
            '{"amount":5,"fromAccount":"acc-src"}',
            "pay",
            0,
        )
    ]
    assert java.select(f"SELECT entity_version FROM {{entities}} WHERE entity_id = '{id}'") == [
        (changed.version,)
    ]


@on(KINDS)
def test_snapshots_of_javas_are_skipped_and_stay(java: Java, adopted: EventStore) -> None:
    snapshot = java.golden["snapshots"][-1]
    id = snapshot["entity_id"]
    # A state that Java's events do not add up to, behind which ours must not begin.
    rows(
        java.plain_url,
        f'UPDATE {java.table("snapshots")} SET snapshot_json = \'{{"owner":"x","balance":-1}}\'',
    )
    held = java.select("SELECT * FROM {snapshots} ORDER BY entity_id, entity_version")
    accounts = adopted.repository(Account)
    before = accounts.find(id).state.balance
    assert before > 0
    for _ in range(7):
        accounts.update(id, Account.debit, 1)
    assert adopted.counts["snapshots"] > 0
    assert adopted.counts["snapshot_hits"] > 0
    assert accounts.find(id).state.balance == before - 7
    theirs = "SELECT * FROM {snapshots} WHERE snapshot_type NOT LIKE '%/%' "
    assert java.select(theirs + "ORDER BY entity_id, entity_version") == held
    # Java fails on a previous snapshot whose column is NULL.
    assert java.select("SELECT 1 FROM {snapshots} WHERE triggering_events IS NULL") == []


# Case and accents, and what each server's default collation confuses beside it.
_SAME = {
    "mysql8": [("ANN", "ann"), ("emile", "émile")],
    "mariadb": [("ANN", "ann"), ("bob", "bob ")],
}


def collisions(*flavours: str) -> pytest.MarkDecorator:
    """Run a test with pairs of ids that the collation of a database takes for the same."""
    return pytest.mark.parametrize(
        ("kind", "flavour", "theirs", "ours"),
        [
            (kind, flavour, *pair)
            for kind in LOOSE
            for flavour in flavours or ("sync",)
            for pair in _SAME[kind]
        ],
    )


@collisions("sync", "async")
def test_an_id_that_the_collation_takes_for_another_is_not_that_one(
    java: Java, adopted: EventStore, theirs: str, ours: str
) -> None:
    java.opened_by_java(theirs, "Java's", f"{1:016x}-{1:016x}")
    vaults = adopted.repository(Vault)
    assert vaults.find(theirs).state.name == "Java's"
    assert not vaults.exists(ours)
    assert vaults.find(ours, default=None) is None
    assert list(vaults.find_many([ours, theirs])) == [theirs]
    for verb in (
        lambda: vaults.update(ours, Vault.call, "ours"),
        lambda: next(vaults.history(ours)),
        lambda: vaults.find(ours, at=f"{2:016x}-{2:016x}"),
    ):
        with pytest.raises(NotFound):
            verb()


@collisions()
def test_a_create_that_collides_says_with_which_id(
    java: Java, adopted: EventStore, theirs: str, ours: str
) -> None:
    java.opened_by_java(theirs, "Java's", f"{1:016x}-{1:016x}")
    vaults = adopted.repository(Vault)
    for verb in (
        lambda: vaults.with_id(ours).create(Vault.open, "ours"),
        lambda: vaults.with_id(ours).once("k").create(Vault.open, "ours"),
        lambda: vaults.create_or_update(ours, Vault.call, "ours"),
    ):
        with pytest.raises(EntityExists) as caught:
            verb()
        assert caught.value.entity_id == ours
        assert repr(theirs) in caught.value.hint
        assert "collation" in str(caught.value)
    assert vaults.find(theirs).state.name == "Java's"
    assert java.select("SELECT count(*) FROM {events} WHERE event_data LIKE '%ours%'") == [(0,)]
    assert rows(java.plain_url, "SELECT count(*) FROM handled") == [(0,)]


@collisions()
def test_of_events_under_two_ids_taken_for_one_each_reads_its_own(
    java: Java, adopted: EventStore, theirs: str, ours: str
) -> None:
    """As Java leaves them when a request spells an id in another way: it updates the same row."""
    for kept, opened in ((VAULT, VaultOpened), (ACCOUNT, AccountOpened)):
        data = '{"name":"Java\'s"}' if kept == VAULT else '{"owner":"Java","balance":9}'
        first, second = (f"{n:016x}-{len(kept):016x}" for n in (1, 2))
        name = opened.__event_name__
        java.insert("events", first, name, data, kept, theirs, None, None, 0)
        java.insert("events", second, name, data.replace("Java", "Our"), kept, ours, None, None, 0)
        java.insert("entities", kept, theirs, second)
    vaults, accounts = adopted.repository(Vault), adopted.repository(Account)
    assert [vaults.find(id).state.name for id in (theirs, ours)] == ["Java's", "Our's"]
    assert [accounts.find(id).state.owner for id in (theirs, ours)] == ["Java", "Our"]
    assert len(list(vaults.history(ours))) == len(list(vaults.history(theirs))) == 1
    assert {id: e.state.name for id, e in vaults.find_many([theirs, ours]).items()} == {
        theirs: "Java's",
        ours: "Our's",
    }
    # The row has the version that ours was loaded at, but it is the row of the other id.
    for repository, change in ((vaults, Vault.call), (accounts, Account.debit)):
        updating: Any = repository
        with pytest.raises(NotFound):
            updating.update(ours, change, 1 if change is Account.debit else "new")
        with pytest.raises(VersionConflict):
            updating.expecting(updating.find(theirs).version).update(
                theirs, change, 1 if change is Account.debit else "new"
            )
    held = java.select(
        f"SELECT entity_version FROM {{entities}} WHERE entity_id = {java.text(theirs)}"
    )
    assert {str(version)[:16] for (version,) in held} == {f"{2:016x}"}


@collisions()
def test_a_snapshot_of_an_id_taken_for_another_is_not_that_ones(
    java: Java, adopted: EventStore, theirs: str, ours: str
) -> None:
    accounts = adopted.repository(Account)
    accounts.with_id(theirs).create(Account.open, "theirs", 100)
    for _ in range(4):
        accounts.update(theirs, Account.debit, 1)
    assert adopted.counts["snapshots"] > 0
    name, data = AccountOpened.__event_name__, '{"owner":"ours","balance":9}'
    java.insert("events", f"{1:016x}-{1:016x}", name, data, ACCOUNT, ours, None, None, 0)
    assert accounts.find(ours).state.owner == "ours"
    assert accounts.find(theirs).state.balance == 96


@on(LOOSE)
def test_comparing_bytes_leaves_the_index_in_use(java: Java, adopted: EventStore) -> None:
    queries = adopted.driver.dialect.queries
    key = (f"'{VAULT}'", "'ann'", "'ann'")
    for name, parameters in (
        ("load", key),
        ("history", (*key, "''", "500")),
        ("update_entity", ("'v'", *key, "'w'")),
    ):
        plan = rows(java.plain_url, "EXPLAIN " + queries[name] % parameters)
        assert "events_idx" in str(plan) or "PRIMARY" in str(plan) or "entities_idx" in str(plan)
        assert "'ALL'" not in str(plan)


@on(["postgres18"])
def test_postgresql_confuses_no_ids(java: Java, adopted: EventStore) -> None:
    vaults = adopted.repository(Vault)
    java.opened_by_java("ANN", "Java's", f"{1:016x}-{1:016x}")
    for id in ("ann", "ANN ", "Änn"):
        vaults.with_id(id).create(Vault.open, id)
    assert [vaults.find(id).state.name for id in ("ANN", "ann", "ANN ", "Änn")] == [
        "Java's",
        "ann",
        "ANN ",
        "Änn",
    ]


@on(STRICT, "sync", "async")
def test_a_value_longer_than_javas_column_is_refused_and_nothing_written(
    java: Java, adopted: EventStore
) -> None:
    accounts = adopted.repository(Account)
    long = "x" * 1000
    with pytest.raises(ValueTooLong, match="Nothing was written"):
        accounts.with_id("new").create(Account.open, long, 1)
    with pytest.raises(ValueTooLong):
        accounts.once("k").update("pg-bob", Account.credit, 5, long)
    assert not accounts.exists("new")
    assert accounts.find("pg-bob").version == java.versions("pg-bob")[-1]
    assert not accounts.once("k").update("pg-bob", Account.credit, 5, "short").duplicate
    assert accounts.find("pg-bob").state.balance == 55
