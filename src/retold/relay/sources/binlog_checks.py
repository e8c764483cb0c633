"""What a relay needs of MySQL or MariaDB, beside the table itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from retold.errors import AccessDenied, StoreError
from retold.relay.checks import Check, failed, ok, warning
from retold.store.driver import Statement

if TYPE_CHECKING:
    from retold.store.driver import Plan

SETTINGS = (
    *("version", "log_bin", "binlog_format", "server_id", "binlog_row_image"),
    *("binlog_row_metadata", "sync_binlog", "innodb_flush_log_at_trx_commit", "gtid_mode"),
    *("binlog_expire_logs_seconds", "expire_logs_days"),
    *("binlog_transaction_compression", "log_bin_compress"),
    *("log_replica_updates", "log_slave_updates", "wsrep_on"),
)
ENGINE = "SELECT engine FROM information_schema.tables WHERE table_schema = %s AND table_name = %s"
SHORTEST_S = 3 * 86_400
"""A log that is kept for less does not outlive a weekend."""
_IN_THE_CONFIGURATION = "in the server's configuration too"


def settings_checks(values: Mapping[str, str]) -> list[Check]:
    """values: the server's global variables, of those named in SETTINGS the ones that it has."""
    if values["log_bin"] not in ("ON", "1"):
        found = "is off, so the server writes no binary log"
        return [failed("log_bin", found, "start it with --log-bin and --server-id")]
    checks = [ok("log_bin", "ON"), *_contents(values), *_durability(values), _retention(values)]
    if values["server_id"] == "0":
        found = "is 0, so the server sends its log to nobody"
        checks.append(failed("server_id", found, _set("server_id", "1")))
    else:
        checks.append(ok("server_id", values["server_id"]))
    checks.append(ok("GTIDs", "are MariaDB's own") if _is_mariadb(values) else _gtids(values))
    return checks


def _contents(values: Mapping[str, str]) -> Iterator[Check]:
    form = values["binlog_format"]
    if form == "ROW":
        yield ok("binlog_format", form)
    else:
        yield failed(
            "binlog_format",
            f"is {form}, so the log holds statements and not rows",
            _set("binlog_format", "ROW"),
        )
    image = values.get("binlog_row_image", "FULL")
    if image in ("FULL", "FULL_NODUP"):
        yield ok("binlog_row_image", image)
    else:
        yield warning(
            "binlog_row_image",
            f"is {image}, so an INSERT that names only some columns stops the relay",
            _set("binlog_row_image", "FULL"),
        )
    metadata = values.get("binlog_row_metadata", "not known to this server")
    if metadata == "FULL":
        yield ok("binlog_row_metadata", metadata)
    else:
        yield warning(
            "binlog_row_metadata",
            f"is {metadata}, so the log names no columns, and the relay stops where it cannot tell "
            "what an ALTER TABLE of events has changed",
            _set("binlog_row_metadata", "FULL")
            if "binlog_row_metadata" in values
            else "stop the relay, caught up, for the time of such a change",
        )


def _durability(values: Mapping[str, str]) -> Iterator[Check]:
    for name in ("sync_binlog", "innodb_flush_log_at_trx_commit"):
        if values[name] == "1":
            yield ok(name, 1)
        else:
            yield warning(
                name,
                f"is {values[name]}, so a crash of the server may lose events that Kafka has "
                "already",
                _set(name, "1"),
            )


def _retention(values: Mapping[str, str]) -> Check:
    days = float(values.get("expire_logs_days", 0))
    seconds = max(int(values.get("binlog_expire_logs_seconds", 0)), round(days * 86_400))
    name = "binlog retention"
    if not seconds:
        return ok(name, "has no end")
    if seconds >= SHORTEST_S:
        return ok(name, f"is {seconds / 86_400:.4g} days")
    known = "binlog_expire_logs_seconds" in values
    return warning(
        name,
        f"is {seconds / 3600:.4g} hours: a relay that is down for longer needs a resync",
        _set("binlog_expire_logs_seconds", "1209600") if known else _set("expire_logs_days", "14"),
    )


def _gtids(values: Mapping[str, str]) -> Check:
    mode = values.get("gtid_mode", "OFF")
    if mode == "ON":
        return ok("gtid_mode", mode)
    return warning(
        "gtid_mode",
        f"is {mode}, so after a failover the relay cannot tell where to go on, and needs a resync",
        "switch it on as MySQL's manual says under 'Enabling GTID Transactions Online'",
    )


def compression_checks(values: Mapping[str, str]) -> Iterator[Check]:
    """What is compressed in the log can be read, if need be by another package."""
    if values.get("log_bin_compress", "OFF") == "ON":
        yield ok("log_bin_compress", "is on, and can be read")
    if values.get("binlog_transaction_compression", "OFF") == "OFF":
        return
    if find_spec("zstandard"):
        yield ok("binlog_transaction_compression", "is on, and zstandard is installed")
    else:
        yield failed(
            "binlog_transaction_compression",
            "is on, and the package zstandard is not installed",
            "run: pip install 'retold[relay]'",
        )


def engine_check(engine: str | None) -> Check:
    """engine: of the events table."""
    if engine == "InnoDB":
        return ok("engine of events", engine)
    return failed(
        "engine of events",
        f"is {engine or 'not known'}, so what is rolled back stays in the table and in the log",
        "run: ALTER TABLE events ENGINE = InnoDB",
    )


def filter_check(schema: str, only: str, never: str) -> Check:
    """only, never: the databases that the server writes to its log, and those that it does not."""
    chosen = [name for name in only.split(",") if name]
    if (chosen and schema not in chosen) or schema in never.split(","):
        return failed(
            "binary log",
            f"leaves the database {schema} out",
            "change binlog-do-db or binlog-ignore-db, and restart the server",
        )
    return ok("binary log", f"holds the database {schema}")


def logs_what_it_replicates(values: Mapping[str, str]) -> bool:
    return _setting_for_replicas(values)[1] in ("ON", "1")


def _setting_for_replicas(values: Mapping[str, str]) -> tuple[str, str]:
    """Its name on this server, and its value."""
    name = "log_replica_updates"
    name = name if name in values else "log_slave_updates"
    return name, values.get(name, "OFF")


def replica_check(values: Mapping[str, str], *, follows: bool = False) -> Check:
    """follows: whether the server replicates another one."""
    name, value = _setting_for_replicas(values)
    if logs_what_it_replicates(values):
        return ok(name, value)
    mend = f"start the server with --{name.replace('_', '-')}"
    if values.get("wsrep_on") == "ON":
        found = "is OFF, so what other nodes of the cluster write never comes into this log"
        return failed(name, found, mend)
    if follows:
        mariadb = _is_mariadb(values)
        found = "is OFF, and this is a replica: what it replicates never comes into its log"
        forget = "RESET SLAVE ALL" if mariadb else "RESET REPLICA ALL"
        return failed(name, found, f"{mend}; or if it is the primary by now, run: {forget}")
    return ok(name, "is OFF, and this is no replica")


def _is_mariadb(values: Mapping[str, str]) -> bool:
    return "mariadb" in values["version"].lower()


def _set(name: str, value: str) -> str:
    return f"run: SET GLOBAL {name} = {value}, and set it {_IN_THE_CONFIGURATION}"


def log_checks(schema: str, table: str) -> Plan[list[Check]]:
    """What a server says of its log, and of the engine of the events table."""
    (found,) = yield [Statement("SHOW GLOBAL VARIABLES WHERE variable_name IN %s", (SETTINGS,))]
    values = {str(name): str(value) for name, value in found.rows}
    checks = [*settings_checks(values), *compression_checks(values)]
    (found,) = yield [Statement(ENGINE, (schema, table))]
    if found.rows:
        checks.append(engine_check(found.rows[0][0]))
    if checks[0].outcome == "failed":
        return checks
    checks.append((yield from _filters(schema)))
    if checks[-1].outcome != "failed":
        checks.append((yield from _replica(values)))
    return checks


def _filters(schema: str) -> Plan[Check]:
    try:
        rows = yield from _rows_of("SHOW MASTER STATUS", "SHOW BINARY LOG STATUS")
    except StoreError as error:
        return failed(
            "binary log",
            f"may not be looked at: {error.reason}",
            "grant this user REPLICATION CLIENT (MariaDB: BINLOG MONITOR) ON *.*",
        )
    return filter_check(schema, *map(str, rows[0][2:4]))


def _replica(values: Mapping[str, str]) -> Plan[Check]:
    if logs_what_it_replicates(values):
        return replica_check(values)
    if not _is_mariadb(values):
        rows = yield from _rows_of("SHOW REPLICA STATUS", "SHOW SLAVE STATUS")
        return replica_check(values, follows=bool(rows))
    try:
        rows = yield from _rows_of("SHOW ALL SLAVES STATUS")
    except AccessDenied:  # BINLOG MONITOR does not go so far; whether it runs, everybody may know
        rows = yield from _rows_of("SHOW GLOBAL STATUS LIKE 'Slaves_running'")
        rows = [row for row in rows if int(row[1])]
    return replica_check(values, follows=bool(rows))


def _rows_of(*spellings: str) -> Plan[Sequence[Sequence[Any]]]:
    """The rows of the first statement that this version of the server knows."""
    for spelling in spellings[:-1]:
        try:
            (found,) = yield [Statement(spelling)]
        except StoreError as error:
            if not error.reason.startswith("1064,"):
                raise
        else:
            return found.rows
    (found,) = yield [Statement(spellings[-1])]
    return found.rows
