"""What differs between databases, as data: SQL texts, and one of two ways to append."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import msgspec

from retold.store.append import Append, append_in_one_statement, append_step_by_step
from retold.store.driver import Plan
from retold.store.url import DatabaseURL

TABLES = (
    "events",
    "entities",
    "snapshots",
    "handled",
    "subscriptions",
    "parked",
    "projections",
    "projection_seen",
    "generations",
    "missed",
    "claims",
    "retold_migrations",
)
BROKER_TABLES = ("unnumbered_events", "event_log", "subscribers", "numbering")
"""What subscriptions on a server's database need beside them."""
CHANNEL = "retold_log"
"""Where PostgreSQL notifies of a log that has grown."""


_APPENDING = ("append", "create", "insert_event")


def _json_array(ids: list[str]) -> object:
    return msgspec.json.encode(ids).decode()


def _once(entity_type: str, entity_id: str) -> tuple[str, ...]:
    return entity_type, entity_id


def _twice(entity_type: str, entity_id: str) -> tuple[str, ...]:
    return entity_type, entity_id, entity_id


@dataclass(frozen=True, slots=True)
class _Kind:
    quote: str
    schema: str
    append: Callable[[Mapping[str, str], Append, bool], Plan[bool]]
    many_ids: Callable[[list[str]], object]
    key: Callable[[str, str], tuple[str, ...]]


_KINDS = {
    "sqlite": _Kind('"', "'main'", append_step_by_step, _json_array, _once),
    "postgres": _Kind('"', "current_schema()", append_in_one_statement, list, _once),
    "mysql": _Kind("`", "DATABASE()", append_step_by_step, tuple, _twice),
}


@dataclass(frozen=True, slots=True)
class Dialect:
    """One database's SQL. `queries` maps the names in queries.sql to texts with tables filled in.

    `append` writes one change and returns whether it did: False means that nothing was written,
    because the version, the entity or the key was not as expected. `many_ids` turns ids into the
    one parameter that stands for them. `key` gives the parameters that stand for an entity: MySQL's
    queries take the id twice, to find it by the index and then to compare it by bytes. `appending`
    are the statements that write events.
    """

    name: str
    schema: str
    prefix: str
    tables: Mapping[str, str]
    queries: Mapping[str, str]
    append: Callable[[Mapping[str, str], Append, bool], Plan[bool]]
    many_ids: Callable[[list[str]], object]
    key: Callable[[str, str], tuple[str, ...]]
    appending: frozenset[str]

    def bare(self, table: str) -> str:
        """A table's name without schema and quotes."""
        return self.prefix + table

    def quoted(self, name: str) -> str:
        quote = _KINDS[self.name].quote
        return f"{quote}{self.prefix}{name}{quote}"

    @property
    def create_schema(self) -> str:
        """The statement that makes the schema, empty where there is nothing to make."""
        if self.name != "postgres" or not self.schema:
            return ""
        return f'CREATE SCHEMA IF NOT EXISTS "{self.schema}"'


def dialect_for(url: DatabaseURL) -> Dialect:
    kind = _KINDS[url.database_kind]
    q = kind.quote
    space = f"{q}{url.schema}{q}." if url.schema else ""
    tables = {name: f"{space}{q}{url.prefix}{name}{q}" for name in TABLES}
    broker_tables = {name: f"{space}{q}{url.prefix}{name}{q}" for name in BROKER_TABLES}
    names = {
        **tables,
        **broker_tables,
        "event_log_idx": f"{q}{url.prefix}event_log_idx{q}",
        "event_log_ids_idx": f"{q}{url.prefix}event_log_ids_idx{q}",
        "log_ids_index_name": f"'{url.prefix}event_log_ids_idx'",
        # MySQL wants it in the table's database, PostgreSQL gives a trigger no schema
        "note_event": f"{space if q == '`' else ''}{q}{url.prefix}note_event{q}",
        "note_event_name": f"'{url.prefix}note_event'",
        "own_unnumbered": f"{q}{url.prefix}unnumbered_events{q}",
        "numbering_name": f"'{broker_tables['numbering']}'",
        "events_name": f"'{tables['events']}'",
        "channel": f"'{CHANNEL}'",
        "schema": f"'{url.schema}'" if url.schema else kind.schema,
        "events_published_idx": f"{q}{url.prefix}events_published_idx{q}",
        "index_name": f"'{url.prefix}events_published_idx'",
    }
    queries = {name: sql.format_map(names) for name, sql in _blocks(url.database_kind).items()}
    return Dialect(
        url.database_kind,
        url.schema,
        url.prefix,
        tables,
        queries,
        kind.append,
        kind.many_ids,
        kind.key,
        frozenset(sql for name, sql in queries.items() if name.startswith(_APPENDING)),
    )


@cache
def _blocks(kind: str) -> dict[str, str]:
    """The `-- name --` blocks of a dialect's files."""
    folder = files("retold.store") / "sql" / kind
    texts = [file.read_text("utf-8") for file in folder.iterdir() if file.name.endswith(".sql")]
    blocks: dict[str, list[str]] = {}
    name = ""
    for line in "\n".join(texts).splitlines():
        if line.startswith("-- ") and line.endswith(" --"):
            name = line[3:-3]
            blocks[name] = []
        elif name and not line.startswith("--"):
            blocks[name].append(line.strip())
    return {name: " ".join(lines).strip() for name, lines in blocks.items()}
