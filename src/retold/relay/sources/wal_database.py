"""What a relay needs of a PostgreSQL server: two connections, a publication, a slot."""

from __future__ import annotations

import hashlib
import re
import threading
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.errors import (
    ConfigurationLimitExceeded,
    DuplicateObject,
    InsufficientPrivilege,
)

from retold.drivers.postgres import _conninfo, _literal, _refused, translate
from retold.errors import LogUnsuitable, SchemaMissing, StoreError, StoreUnavailable
from retold.relay.checks import Check, failed, ok, require
from retold.relay.sources.wal_checks import kept_for, server_checks, slot_checks
from retold.relay.sources.wal_pgoutput import NEEDED
from retold.store.dialects import dialect_for
from retold.store.driver import Batch, Result, drive

if TYPE_CHECKING:
    from retold.store.url import DatabaseURL

TIMEOUT_S = 20
"""After this time without an answer the server ends a stream, and frees its slot."""

# A broken network is noticed by the system within this time; the user's options win.
_NETWORK: dict[str, Any] = {
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "20000",
}
_REPLICATION: dict[str, Any] = {"replication": "database"}
_SERVER = """
    SELECT pg_backend_pid(), current_setting('server_version_num')::int / 10000,
           current_setting('wal_level'), pg_is_in_recovery(), quote_ident(current_user)
"""
_SESSION = """
    SELECT set_config('lock_timeout', '30s', false),
           set_config('idle_session_timeout', '0', false),
           set_config('synchronous_commit', 'local', false),
           set_config('default_transaction_read_only', 'off', false)
"""
_TABLE = """
    SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.oid = to_regclass(%s)
"""
# Rows as JSON, because their columns differ from version to version.
_PUBLICATION = """
    SELECT p.pubinsert, to_jsonb(t),
           ARRAY(SELECT attname::text FROM pg_attribute
                 WHERE attrelid = to_regclass(%s) AND attname = ANY(%s) AND NOT attisdropped)
    FROM pg_publication p LEFT JOIN pg_publication_tables t
    ON t.pubname = p.pubname AND t.schemaname = %s AND t.tablename = %s
    WHERE p.pubname = %s
"""
_PUBLICATION_EXISTS = "SELECT 1 FROM pg_publication WHERE pubname = %s"
_MAY_PUBLISH = """
    SELECT pg_has_role(c.relowner, 'USAGE')
           AND has_database_privilege(current_database(), 'CREATE')
    FROM pg_class c WHERE c.oid = to_regclass(%s)
"""
_SLOT = "SELECT to_jsonb(s), current_database() FROM pg_replication_slots s WHERE slot_name = %s"
_HOLDER = """
    SELECT active_pid, pg_terminate_backend(active_pid) FROM pg_replication_slots
    WHERE slot_name = %s AND active_pid IS NOT NULL
"""


class WalDatabase:
    """One server, as a relay uses it. `ask` may be called from several threads."""

    def __init__(self, url: DatabaseURL, name: str) -> None:
        self._url = url
        self.table = dialect_for(url).tables["events"]
        """The events table, quoted."""
        self.slot = plain_name("retold", name, url.schema, url.prefix)
        # These are known once connected.
        self.names = "", ""
        """Schema and name of the events table, as the server has them."""
        self.publication = ""
        self._user = ""
        self._lock = threading.Lock()
        self._link: psycopg.Connection[Any] | None = None

    # --- connections -----------------------------------------------------------------------------

    def ask(self, query: str, *params: object) -> list[tuple[Any, ...]]:
        """The rows of a statement."""
        try:
            return self._run(query, *params)
        except psycopg.Error as error:
            raise self._translate(error) from error

    def _run(self, query: str, *params: object) -> list[tuple[Any, ...]]:
        with self._lock:
            if self._link is None or self._link.closed:
                self._link = self._connect()
            cursor = self._link.execute(_literal(query), params or None)
            return cursor.fetchall() if cursor.description is not None else []

    def _translate(self, error: psycopg.Error) -> Exception:
        return translate(error, broken=self._link is None or bool(self._link.closed))

    def _connect(self) -> psycopg.Connection[Any]:
        try:
            link: psycopg.Connection[Any] = psycopg.connect(**_NETWORK | _conninfo(self._url))
        except psycopg.Error as error:
            raise _refused(error, self._url) from error
        try:
            self._begin_session(link)
        except BaseException:
            link.close()
            raise
        return link

    def _begin_session(self, link: psycopg.Connection[Any]) -> None:
        """Raises LogUnsuitable, StoreUnavailable, SchemaMissing."""
        server = link.execute(_SERVER).fetchone()
        assert server is not None
        pid, major, wal_level, standby, self._user = server
        direct = pid == link.info.backend_pid
        require(server_checks(direct=direct, major=major, wal_level=wal_level))
        if standby:
            raise StoreUnavailable("it is a standby, and a relay follows the primary")
        link.execute(_SESSION)
        found = link.execute(_TABLE, (self.table,)).fetchone()
        if found is None:
            raise SchemaMissing(f"there is no table {self.table}")
        self.names = found
        self.publication = plain_name("retold", found[0], found[1])

    def replication(self) -> psycopg.Connection[Any]:
        """A connection that can stream. Raises LogUnsuitable, StoreUnavailable, AccessDenied."""
        # Both lead to one server from now on. What is wrong with it is told by the first.
        self.close()
        self.ask("SELECT 1")
        try:
            link: psycopg.Connection[Any] = psycopg.connect(
                **_NETWORK | _conninfo(self._url) | _REPLICATION
            )
        except psycopg.Error as error:
            text = str(error).lower()
            if "wal sender" in text or "walsender" in text:
                raise self._may_not_replicate() from error
            if "max_wal_senders" in text:
                raise LogUnsuitable(
                    "all replication connections are in use, so raise max_wal_senders"
                ) from error
            raise _refused(error, self._url) from error
        try:
            link.execute(_literal(f"SET wal_sender_timeout = '{TIMEOUT_S}s'"))
        except psycopg.Error as error:
            link.close()
            raise translate(error, broken=True) from error
        return link

    def close(self) -> None:
        with self._lock:
            link, self._link = self._link, None
            if link is not None:
                link.close()

    # --- the publication -------------------------------------------------------------------------

    def check_publication(self) -> str:
        """What is wrong with it; empty where nothing is."""
        names = self.table, list(NEEDED), *self.names, self.publication
        found = self.ask(_PUBLICATION, *names)
        if not found:
            return f"the publication {self.publication} does not exist"
        inserts, covers, needed = found[0]
        alter = f"ALTER PUBLICATION {self.publication}"
        if not inserts:
            return (
                f"the publication {self.publication} sends no inserts,"
                f" so run: {alter} SET (publish = 'insert')"
            )
        if covers is None:
            return (
                f"the publication {self.publication} lacks the table {self.table},"
                f" so run: {alter} ADD TABLE {self.table}"
            )
        if covers.get("rowfilter") or not set(needed) <= set(covers.get("attnames", needed)):
            return (
                f"the publication {self.publication} sends a part of the table {self.table},"
                f" so run: {alter} SET TABLE {self.table}"
            )
        return ""

    def make_publication(self) -> None:
        """Where there is none. Raises LogUnsuitable."""
        create = self._create_publication()
        try:
            if not self._run(_PUBLICATION_EXISTS, self.publication):
                self._run(create)
        except DuplicateObject:
            pass
        except InsufficientPrivilege as error:
            raise LogUnsuitable(
                f"user {self._user} may not make the publication, so let the owner of the table"
                f" run: {create}"
            ) from error
        except psycopg.Error as error:
            raise self._translate(error) from error
        if problem := self.check_publication():
            raise LogUnsuitable(problem)

    def _create_publication(self) -> str:
        return (
            f"CREATE PUBLICATION {self.publication} FOR TABLE {self.table}"
            " WITH (publish = 'insert', publish_via_partition_root = true)"
        )

    # --- the slot --------------------------------------------------------------------------------

    def find_slot(self) -> dict[str, Any] | None:
        """The slot's row of pg_replication_slots. Raises LogUnsuitable for one of another kind."""
        found = self.ask(_SLOT, self.slot)
        if not found:
            return None
        slot, database = found[0]
        if slot["plugin"] != "pgoutput" or slot["two_phase"] or slot["temporary"]:
            raise LogUnsuitable(
                f"the replication slot {self.slot} is of another kind than a relay's, so drop it, or"
                " give this relay another name"
            )
        if slot["database"] != database:
            raise LogUnsuitable(
                f"the replication slot {self.slot} belongs to the database {slot['database']}, so"
                " give this relay another name"
            )
        return dict(slot)

    def make_slot(self) -> None:
        """Where there is none, or one that lost its log. Waits for transactions that write.

        Raises LogUnsuitable, StoreBusy.
        """
        slot = self.find_slot()
        if slot is not None and why_lost(slot):
            self.ask("SELECT pg_drop_replication_slot(%s)", self.slot)
        elif slot is not None:
            return
        try:
            self._run("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", self.slot)
        except DuplicateObject:
            pass
        except InsufficientPrivilege as error:
            raise self._may_not_replicate() from error
        except ConfigurationLimitExceeded as error:
            raise LogUnsuitable(
                "all replication slots are in use, so raise max_replication_slots, or drop a slot"
                " that nobody needs any more"
            ) from error
        except psycopg.Error as error:
            raise self._translate(error) from error

    def free_slot(self) -> None:
        """End whoever reads from it. Raises AccessDenied."""
        self.ask(_HOLDER, self.slot)

    # --- for retold doctor -----------------------------------------------------------------------

    def checks(self) -> list[Check]:
        """How publication and slot are, and whether the server streams to this user. Makes none.

        Raises LogUnsuitable for what `server_checks` says too.
        """
        self.ask("SELECT 1")
        checks: list[Check] = []
        try:
            with self.replication():
                checks.append(ok("replication", f"is allowed to {self._user}"))
        except (LogUnsuitable, StoreError) as error:
            found, _, mend = error.reason.partition(", so ")
            mend = mend or "look at pg_hba.conf, and at the server's own log"
            checks.append(failed("replication", f"is refused: {found}", mend))
        checks.append(self._publication_check())
        try:
            slot = self.find_slot()
        except LogUnsuitable as error:
            found, _, mend = error.reason.partition(", so ")
            return [*checks, failed("replication slot", f"cannot be used: {found}", mend)]
        lost = why_lost(slot) if slot is not None else ""
        kept = drive(self._execute, kept_for(self.slot))
        return [*checks, *slot_checks(slot, lost, kept)]

    def _publication_check(self) -> Check:
        name = f"publication {self.publication}"
        if self.ask(_PUBLICATION_EXISTS, self.publication):
            if problem := self.check_publication():
                found, _, mend = problem.partition(", so ")
                return failed("publication", f"is not what it must be: {found}", mend)
            return ok(name, f"holds {self.table}")
        ((may,),) = self.ask(_MAY_PUBLISH, self.table)
        if may:
            return ok(name, "is made at the first start")
        owner = f"let the owner of the table run: {self._create_publication()}"
        return failed(name, f"is missing, and {self._user} may not make it", owner)

    def _execute(self, batch: Batch) -> list[Result]:
        return [Result(self.ask(sql, *params), -1) for sql, params in batch]

    def _may_not_replicate(self) -> LogUnsuitable:
        return LogUnsuitable(
            f"user {self._user} may not replicate, so run: ALTER ROLE {self._user} REPLICATION (on"
            f" RDS: GRANT rds_replication TO {self._user})"
        )


def why_lost(slot: dict[str, Any]) -> str:
    """Why the slot no longer has its log; empty where it has."""
    reason = slot.get("invalidation_reason")
    if reason is None and slot["wal_status"] == "lost":
        reason = "max_slot_wal_keep_size was exceeded"
    return reason or ""


def plain_name(*parts: str) -> str:
    """A name that needs no quotes anywhere; two that would become the same get a digest."""
    wanted = "_".join(part for part in parts if part)
    plain = re.sub(r"[^a-z0-9_]", "_", wanted.lower())
    if plain == wanted and len(plain) <= 63:
        return plain
    return f"{plain[:54]}_{hashlib.sha256(wanted.encode()).hexdigest()[:8]}"
