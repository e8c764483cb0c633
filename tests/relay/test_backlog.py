"""How much of a log lies behind a position, as real servers say."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import closing

import pytest

from retold.drivers import open_driver
from retold.relay.backlog import Backlog, bytes_behind
from retold.relay.positions import BinlogPosition
from retold.relay.progress import Progress
from retold.store.url import parse_url
from tests.relay.logs import KINDS, Log, Logs, event, wait_until
from tests.rig import Rig
from tests.rig.databases import query

DATA = '{"text":"' + secrets.token_hex(5_000) + '"}'  # that cannot be compressed


@pytest.fixture(scope="module")
def logs(servers: Rig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Logs]:
    logs = Logs(servers, tmp_path_factory.mktemp("logs"))
    yield logs
    logs.close()


@pytest.fixture
def log(logs: Logs, name: str, kind: str) -> Iterator[Log]:
    log = logs.new(name)
    yield log
    log.close()


def kinds(*names: str) -> pytest.MarkDecorator:
    chosen = [pytest.param(KINDS[name].database, name, id=name) for name in names]
    return pytest.mark.parametrize(("kind", "name"), chosen)


@kinds("binlog mariadb", "binlog mysql8", "wal postgres18")
def test_what_is_written_behind_a_position_is_counted(log: Log, kind: str) -> None:
    progress = Progress("bank", position=log.start().now())
    with (
        closing(open_driver(parse_url(log.url))) as driver,
        closing(Backlog(driver, progress, every=0.01)),
    ):
        if not kind.startswith("postgres"):
            query(log.admin, "FLUSH BINARY LOGS")  # what follows is in another file
        log.link().insert_many([event("key", DATA) for _ in range(100)])
        wait_until(lambda: (progress.behind or 0) > 100 * len(DATA))
        progress.position = log.source().now()
        wait_until(lambda: (progress.behind or 0) < len(DATA))


@kinds("polling sqlite")
def test_a_table_that_is_polled_has_no_bytes_behind(log: Log) -> None:
    with closing(open_driver(parse_url(log.url))) as driver:
        assert driver.run(bytes_behind(log.start().now())) is None


def test_while_the_database_is_away_nobody_knows() -> None:
    progress = Progress("bank", position=BinlogPosition("mysql", "", "", "log.1", 4), behind=7)
    with (
        closing(open_driver(parse_url("mysql://bank@127.0.0.1:1/bank"))) as driver,
        closing(Backlog(driver, progress, every=0.01)),
    ):
        wait_until(lambda: progress.behind is None)
