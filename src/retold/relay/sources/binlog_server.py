"""What a server tells of itself and its binary log, by SQL, on a connection of its own."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

from retold.drivers.mysql import connect_client, translate
from retold.errors import (
    AccessDenied,
    LogUnsuitable,
    MissingExtra,
    SchemaMissing,
    StoreBusy,
    StoreError,
)
from retold.relay.checks import require
from retold.relay.sources.binlog_checks import (
    ENGINE,
    SETTINGS,
    engine_check,
    filter_check,
    settings_checks,
)
from retold.relay.sources.binlog_rows import CHARSETS, WANTED, Column
from retold.store.url import DatabaseURL

_OLD_SYNTAX = 1064
_USE = re.compile(r"(?:use `((?:[^`]|``)*)`; )?(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Facts:
    """What does not change while one is connected.

    server: MySQL's server_uuid, MariaDB's server_id. gtids: whether the server can be asked for
    what is behind a set of transactions. collations: number → character set.
    """

    flavour: str
    server: str
    server_id: int
    gtids: bool
    checksum: bool
    ignore_case: bool
    collations: dict[int, str]


def connect(url: DatabaseURL) -> Any:
    """A connection of PyMySQL's, whichever client the URL chose for the store."""
    try:
        import_module("pymysql")
    except ImportError:
        raise MissingExtra("a relay on MySQL", "pymysql", "mysql") from None
    raw, _ = connect_client(replace(url, client="pymysql"))
    return raw


class Server:
    """Questions to a server; may be used by several threads. Raises retold's errors."""

    def __init__(self, url: DatabaseURL) -> None:
        self._url = url
        self._schema = url.schema or url.database
        self._table = f"{url.prefix}events"
        self._lock = threading.RLock()
        self._raw: Any = None

    def close(self) -> None:
        # Not with the lock: a question may be waiting for its answer in another thread.
        raw, self._raw = self._raw, None
        if raw is not None:
            with suppress(Exception):  # broken already
                raw.close()

    def _ask(self, sql: str, *params: object) -> list[tuple[Any, ...]]:
        with self._lock:
            if self._raw is None:
                self._raw = connect(self._url)
                self._run("SET autocommit = 1")
            return self._run(sql, *params)

    def _run(self, sql: str, *params: object) -> list[tuple[Any, ...]]:
        library: Any = import_module("pymysql")
        try:
            with self._raw.cursor() as cursor:
                cursor.execute(sql, params or None)
                return list(cursor.fetchall())
        except library.Error as error:
            translated = translate(error)
            if not isinstance(error, (library.ProgrammingError, library.OperationalError)) or (
                translated.retriable
            ):
                self.close()
            raise translated from error

    # --- the server ---------------------------------------------------------------------------

    def facts(self) -> Facts:
        """Raises LogUnsuitable where the log does not hold what a relay needs."""
        with self._lock:
            self._check_log()
            ((version, checksum, case, id),) = self._ask(
                "SELECT @@version, @@global.binlog_checksum, @@global.lower_case_table_names, "
                "@@global.server_id"
            )
            mariadb = "mariadb" in str(version).lower()
            gtids, server = True, str(id)
            if not mariadb:
                gtids, server = self._mysql()
            return Facts(
                flavour="mariadb" if mariadb else "mysql",
                server=server,
                server_id=int(id),
                gtids=gtids,
                checksum=checksum != "NONE",
                ignore_case=int(case) != 0,
                collations=self._collations(),
            )

    def _mysql(self) -> tuple[bool, str]:
        variables = self._variables("gtid_mode", "server_uuid", "binlog_transaction_compression")
        if variables.get("binlog_transaction_compression") == "ON":
            try:
                import_module("zstandard")
            except ImportError:
                raise MissingExtra(
                    "MySQL's binlog_transaction_compression", "zstandard", "relay"
                ) from None
        return variables.get("gtid_mode") == "ON", variables["server_uuid"]

    def _variables(self, *names: str) -> dict[str, str]:
        rows = self._ask("SHOW GLOBAL VARIABLES WHERE variable_name IN %s", names)
        return {str(name): str(value) for name, value in rows}

    def _check_log(self) -> None:
        require(settings_checks(self._variables(*SETTINGS)))
        only, never = self._status()[2:4]
        require([filter_check(self._schema, only or "", never or "")])
        found = self._ask(ENGINE, self._schema, self._table)
        require(engine_check(engine) for (engine,) in found)

    def _collations(self) -> dict[int, str]:
        try:  # MariaDB since 10.10; all its collations have a number only there
            rows = self._ask(
                "SELECT id, character_set_name FROM "
                "information_schema.collation_character_set_applicability"
            )
        except StoreError:
            rows = self._ask("SELECT id, character_set_name FROM information_schema.collations")
        return {int(id): str(charset) for id, charset in rows if id is not None}

    # --- the log ------------------------------------------------------------------------------

    def _status(self) -> tuple[Any, ...]:
        try:
            rows = self._ask("SHOW MASTER STATUS")
        except StoreError as error:
            if not error.reason.startswith(f"{_OLD_SYNTAX},"):
                raise
            rows = self._ask("SHOW BINARY LOG STATUS")
        if not rows:
            raise LogUnsuitable("the server writes no binary log")
        return rows[0]

    def files(self) -> dict[str, int]:
        """The files of the log, and their sizes."""
        return {str(row[0]): int(row[1]) for row in self._ask("SHOW BINARY LOGS")}

    def executed(self) -> str:
        """MySQL's set of all transactions."""
        ((gtids,),) = self._ask("SELECT @@global.gtid_executed")
        return str(gtids).replace("\n", "")

    def binlog_state(self) -> str:
        """MariaDB's last transaction of each domain and server."""
        ((state,),) = self._ask("SELECT @@global.gtid_binlog_state")
        return str(state)

    def gtid_at(self, file: str, offset: int) -> str | None:
        """MariaDB's GTID at a place of its log; None if there is no such file."""
        ((gtid,),) = self._ask("SELECT BINLOG_GTID_POS(%s, %s)", file, offset)
        return None if gtid is None else str(gtid)

    def end(self, facts: Facts) -> tuple[str, int, str]:
        """File, offset and GTIDs, such that exactly what is visible to readers now, and perhaps a
        moment longer, is before it.

        A transaction is in the log a little before others see what it changed.
        """
        with self._lock:
            if facts.flavour == "mariadb":
                return self._mariadb_end()
            status = self._status()
            if not facts.gtids:
                self._wait_for_writers()
                return str(status[0]), int(status[1]), ""
            return str(status[0]), int(status[1]), str(status[4]).replace("\n", "")

    def _mariadb_end(self) -> tuple[str, int, str]:
        self._ask("START TRANSACTION WITH CONSISTENT SNAPSHOT")
        rows = self._ask("SHOW STATUS LIKE 'binlog_snapshot_%'")
        self._ask("ROLLBACK")
        place = {str(name).lower(): value for name, value in rows}
        file, offset = str(place["binlog_snapshot_file"]), int(place["binlog_snapshot_position"])
        return file, offset, self.gtid_at(file, offset) or ""

    def _wait_for_writers(self) -> None:
        """Until those who are committing events now have come to the end of it.

        A read lock on the table waits for everybody who writes events, and so for those; it makes
        others wait as well, so not for longer than any commit should take.
        """
        self._ask("SET SESSION lock_wait_timeout = 1")
        try:
            self._ask(f"LOCK TABLES `{self._schema}`.`{self._table}` READ")
        except StoreBusy:
            pass
        except AccessDenied:
            time.sleep(1)
        else:
            self._ask("UNLOCK TABLES")

    # --- the table ----------------------------------------------------------------------------

    def columns(self) -> tuple[Column, ...]:
        """The columns of the events table, none if there is no such table."""
        rows = self._ask(
            "SELECT column_name, data_type, character_set_name FROM information_schema.columns "
            "WHERE table_schema = %s AND table_name = %s ORDER BY ordinal_position",
            self._schema,
            self._table,
        )
        return tuple(
            Column(str(name), str(kind).lower(), str(charset or "")) for name, kind, charset in rows
        )

    def settled_columns(self) -> tuple[Column, ...]:
        """The same, once a change of the table that is under way has come to its end.

        Raises SchemaMissing, LogUnsuitable.
        """
        self._ask(f"SELECT 1 FROM `{self._schema}`.`{self._table}` LIMIT 0")
        columns = self.columns()
        known = {column.name: column for column in columns}
        missing = [name for name in WANTED if name not in known]
        if missing:
            raise SchemaMissing(f"{self._table} has no column {', '.join(missing)}")
        for name in WANTED:
            if known[name].charset not in CHARSETS:
                raise LogUnsuitable(
                    f"column {name} of {self._table} is {known[name].type} "
                    f"{known[name].charset or 'without a character set'}; it must be text in one "
                    f"of {', '.join(CHARSETS)}"
                )
        return columns

    def changes_behind(self, file: str, offset: int) -> Iterator[tuple[bytes, bytes]]:
        """The statements in the log from a place on to its end: database and text."""
        files = list(self.files())
        library: Any = import_module("pymysql")
        cursors: Any = import_module("pymysql.cursors")
        raw = connect(self._url)
        try:
            for name in files[files.index(file) :] if file in files else files:
                with raw.cursor(cursors.SSCursor) as cursor:
                    cursor.execute("SHOW BINLOG EVENTS IN %s FROM %s", (name, offset))
                    for row in cursor:
                        if row[2] in ("Query", "Query_compressed"):
                            found = _USE.match(str(row[5]))
                            yield (
                                ((found[1] or "").encode(), found[2].encode())
                                if found
                                else (b"", b"")
                            )
                offset = 4
        except library.Error as error:
            raise translate(error) from error
        finally:
            raw.close()
