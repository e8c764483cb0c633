"""Real servers for the tests: private ones, started on demand, or given by environment variables.

    python -m tests.rig postgres18 mysql8

starts servers for a person or a benchmark, and prints their URLs.
"""

from __future__ import annotations

import os
from concurrent.futures import Future
from threading import Lock, Thread
from typing import TYPE_CHECKING, Self

from tests.rig.kafka import GivenKafka, Kafka
from tests.rig.servers import (
    Given,
    MariaDB,
    MySQL,
    NotPrivate,
    PgBouncer,
    Postgres,
    Private,
    Server,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "DATABASES",
    "KINDS",
    "SERVERS",
    "VARIABLES",
    "Given",
    "GivenKafka",
    "Kafka",
    "MariaDB",
    "MySQL",
    "NotPrivate",
    "PgBouncer",
    "Postgres",
    "Private",
    "Rig",
    "Server",
]

# The environment variable that gives a running server instead.
VARIABLES = {
    "mysql8": "RETOLD_TEST_MYSQL_URL",
    "mariadb": "RETOLD_TEST_MARIADB_URL",
    "postgres15": "RETOLD_TEST_POSTGRES_URL",
    "postgres18": "RETOLD_TEST_POSTGRES18_URL",
    "pgbouncer": "RETOLD_TEST_PGBOUNCER_URL",
    "kafka": "RETOLD_TEST_KAFKA",
}
# The database servers, and the databases.
SERVERS = tuple(name for name in VARIABLES if name != "kafka")
DATABASES = ("sqlite", *SERVERS)
# All that a test may need.
KINDS = (*DATABASES, "kafka")


class Rig:
    """The servers by name. Each is started when it is first wanted; all end together."""

    def __init__(self) -> None:
        self._servers: dict[str, Future[Server]] = {}
        self._lock = Lock()

    def want(self, names: Iterable[str]) -> None:
        """Start these at the same time, without waiting for them."""
        with self._lock:
            for name in names:
                if name not in VARIABLES:
                    raise ValueError(f"no server is called {name!r}: {', '.join(VARIABLES)}")
                if name not in self._servers:
                    future = Future[Server]()
                    self._servers[name] = future
                    Thread(target=self._start, args=(name, future), daemon=True).start()

    def __getitem__(self, name: str) -> Server:
        self.want([name])
        return self._servers[name].result()

    @property
    def kafka(self) -> Kafka | GivenKafka:
        server = self["kafka"]
        assert isinstance(server, Kafka | GivenKafka)
        return server

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for future in self._servers.values():
            if future.exception() is None:
                future.result().stop()

    def _start(self, name: str, future: Future[Server]) -> None:
        try:
            server = self._make(name)
            server.start()
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(server)

    def _make(self, name: str) -> Server:
        if url := os.environ.get(VARIABLES[name]):
            return GivenKafka(url) if name == "kafka" else Given(url)
        match name:
            case "mysql8":
                return MySQL()
            case "mariadb":
                return MariaDB()
            case "postgres15":
                return Postgres(15)
            case "postgres18":
                return Postgres(18)
            case "kafka":
                return Kafka()
            case _:
                return PgBouncer(self["postgres15"])
