"""What a relay needs of PostgreSQL, beside the table itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from retold.relay.checks import Check, direct_check, failed, ok, warning
from retold.store.driver import Statement

if TYPE_CHECKING:
    from retold.store.driver import Plan

OLDEST = 14
UNREAD_BYTES = 1 << 30
"""So much log kept for a slot that nobody reads is worth a word."""
# A publication and a slot outlive this connection, so nothing is left behind by asking.
_SETTINGS = """
    SELECT current_setting('server_version_num')::int / 10000 AS major,
           current_setting('wal_level'),
           current_setting('max_slot_wal_keep_size'),
           current_setting('max_replication_slots')::int,
           (SELECT count(*) FROM pg_replication_slots),
           current_setting('max_wal_senders')::int,
           (SELECT count(*) FROM pg_stat_get_wal_senders())
"""
_IDLE = "SELECT set_config('idle_session_timeout', '6s', true)"
_KEPT = """
    SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint
    FROM pg_replication_slots WHERE slot_name = %s
"""


def server_checks(*, direct: bool, major: int, wal_level: str) -> Iterator[Check]:
    """direct: no pooler stands between us and the server."""
    yield direct_check(direct)
    if major >= OLDEST:
        yield ok("PostgreSQL", major)
    else:
        yield failed("PostgreSQL", f"{major} is older than {OLDEST}", "upgrade the server")
    if wal_level == "logical":
        yield ok("wal_level", wal_level)
    else:
        yield failed(
            "wal_level",
            f"is {wal_level}, so the log does not hold what a relay reads",
            "run: ALTER SYSTEM SET wal_level = 'logical', and restart the server (on RDS: set"
            " rds.logical_replication = 1)",
        )


def settings_checks(*, direct: bool) -> Plan[list[Check]]:
    """All that the server says of itself."""
    (found,) = yield [Statement(_SETTINGS)]
    major, level, keep, slots, slots_used, senders, senders_used = found.rows[0]
    checks = list(server_checks(direct=direct, major=major, wal_level=level))
    if major >= OLDEST:
        yield [Statement(_IDLE)]
        checks.append(ok("idle_session_timeout", "can be set"))
    checks.append(slot_room(keep))
    checks.append(_free("max_replication_slots", slots, slots_used, "slot"))
    checks.append(_free("max_wal_senders", senders, senders_used, "connection"))
    return checks


def standby_checks() -> Plan[list[Check]]:
    """A relay waits for a standby to become the primary; somebody has to see to that."""
    (found,) = yield [Statement("SELECT pg_is_in_recovery()")]
    if not found.rows[0][0]:
        return []
    return [failed("server", "is a standby, and a relay follows the primary", "correct the URL")]


def slot_room(keep: str) -> Check:
    """keep: max_slot_wal_keep_size."""
    name = "max_slot_wal_keep_size"
    if keep != "-1":
        return ok(name, f"is {keep}: when it is used up the slot is lost, and a resync needed")
    return warning(
        name,
        "is -1, so the log fills the disk while no relay reads it",
        "run: ALTER SYSTEM SET max_slot_wal_keep_size = '20GB' (what the disk has to spare), then"
        " SELECT pg_reload_conf()",
    )


def _free(name: str, limit: int, used: int, what: str) -> Check:
    found = f"is {limit}, of which {used} in use"
    if used < limit:
        return ok(name, found)
    # The relay's own may be among them.
    mend = f"raise {name} and restart the server, or end a {what} that nobody needs any more"
    return warning(name, found, mend)


def slot_checks(slot: Mapping[str, Any] | None, lost: str, kept: int) -> list[Check]:
    """slot: a row of pg_replication_slots. lost: why it has lost its log, empty where it has not.
    kept: how many bytes of log the server keeps for it."""
    if slot is None:
        return [ok("replication slot", "is made at the first start")]
    name = f"slot {slot['slot_name']}"
    if lost:
        resync = "run: retold relay --resync, which makes a new one and publishes what is missing"
        return [failed(name, f"has lost its log: {lost}", resync)]
    found = f"keeps {kept / 1e6:,.1f} MB of log"
    if slot["wal_status"] == "unreserved":
        return [warning(name, f"{found} and is about to be lost", "let a relay catch up now")]
    if not slot["active"] and kept > UNREAD_BYTES:
        drop = f"start the relay, or run: SELECT pg_drop_replication_slot('{slot['slot_name']}')"
        return [warning(name, f"{found}, and nobody reads it", drop)]
    return [ok(name, found + (", and is being read" if slot["active"] else ""))]


def kept_for(slot: str) -> Plan[int]:
    """How many bytes of log the server keeps for a slot."""
    (found,) = yield [Statement(_KEPT, (slot,))]
    return int(found.rows[0][0] or 0) if found.rows else 0
