"""The rig itself: what the other tests take for granted about their servers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.rig import SERVERS, NotPrivate, Rig
from tests.rig.databases import query
from tests.rig.servers import Given

if TYPE_CHECKING:
    from collections.abc import Callable

_VERSIONS = {
    "mysql8": "8.0.",
    "mariadb": "MariaDB",
    "postgres15": "PostgreSQL 15.",
    "postgres18": "PostgreSQL 18.",
    "pgbouncer": "PostgreSQL 15.",
}


@pytest.mark.parametrize("kind", SERVERS)
def test_a_fresh_database_is_empty_and_answers(
    kind: str, fresh_database: Callable[[str], str]
) -> None:
    url = fresh_database(kind)
    ((version,),) = query(url, "SELECT version()")
    assert _VERSIONS[kind] in str(version)
    own = "public" if "postgres" in kind or kind == "pgbouncer" else url.rpartition("/")[2]
    tables = f"SELECT * FROM information_schema.tables WHERE table_schema = '{own}'"
    assert query(url, tables) == []
    query(url, "CREATE TABLE t (n int)", "INSERT INTO t VALUES (1)")
    assert query(url, "SELECT n FROM t") == [(1,)]


@pytest.mark.parametrize("kind", SERVERS)
def test_committed_data_survives_a_crash(
    kind: str, servers: Rig, fresh_database: Callable[[str], str]
) -> None:
    url = fresh_database(kind)
    query(url, "CREATE TABLE t (n int)", "INSERT INTO t VALUES (1)")
    servers[kind].kill()
    servers[kind].restart()
    assert query(url, "SELECT n FROM t") == [(1,)]
    servers[kind].restart()
    assert query(url, "SELECT n FROM t") == [(1,)]


@pytest.mark.parametrize(
    ("kind", "setting", "expected"),
    [
        (
            "mysql8",
            "@@sync_binlog, @@innodb_flush_log_at_trx_commit, @@binlog_format",
            (1, 1, "ROW"),
        ),
        (
            "mariadb",
            "@@sync_binlog, @@innodb_flush_log_at_trx_commit, @@binlog_format",
            (1, 1, "ROW"),
        ),
        ("postgres15", "current_setting('fsync'), current_setting('wal_level')", ("on", "logical")),
        ("postgres18", "current_setting('fsync'), current_setting('wal_level')", ("on", "logical")),
    ],
)
def test_the_servers_are_durable(
    kind: str, setting: str, expected: tuple[object, ...], servers: Rig
) -> None:
    if isinstance(servers[kind], Given):
        pytest.skip("somebody else's settings")
    assert query(servers[kind].url, f"SELECT {setting}") == [expected]


@pytest.mark.parametrize("kind", ["pgbouncer"])
def test_pgbouncer_pools_transactions(kind: str, fresh_database: Callable[[str], str]) -> None:
    url = fresh_database(kind)
    # One client after the other gets the same server connection: pooled. And what a session
    # sets is there for the next one, as nothing resets it between transactions.
    query(url, "SET application_name = 'first'", "SET work_mem = '7MB'")
    assert query(url, "SHOW work_mem") == [("7MB",)]


def test_a_given_server_is_never_killed() -> None:
    with pytest.raises(NotPrivate):
        Given("postgresql://somebody@127.0.0.1:1/theirs").kill()
