"""The schema: numbered SQL files per dialect, applied once and in order.

Two processes may migrate at once; the second waits and finds nothing to do. Tables of Eventuate's
own making are recognised and kept as they are; any other table of one of our names is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files

from retold.errors import SchemaForeign
from retold.ids import wall_clock
from retold.store.dialects import Dialect
from retold.store.driver import Plan, Statement

EVENTUATE = {
    "events": {
        "event_id",
        "event_type",
        "event_data",
        "entity_type",
        "entity_id",
        "triggering_event",
        "metadata",
        "published",
    },
    "entities": {"entity_type", "entity_id", "entity_version"},
    "snapshots": {
        "entity_type",
        "entity_id",
        "entity_version",
        "snapshot_type",
        "snapshot_json",
        "triggering_events",
    },
}


@dataclass(frozen=True, slots=True)
class Migration:
    """One numbered step. `statements` are complete, names filled in; each says which table it is
    about."""

    number: int
    name: str
    statements: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        return f"{self.number:04d}_{self.name}"


def migrations(dialect: Dialect, collation: str = "utf8mb4_bin") -> list[Migration]:
    """Every step of a dialect, in order."""
    folder = files("retold.store") / "sql" / dialect.name / "migrations"
    steps: list[Migration] = []
    for file in sorted(folder.iterdir(), key=lambda entry: entry.name):
        number, _, name = file.name.removesuffix(".sql").partition("_")
        text = file.read_text("utf-8")
        steps.append(Migration(int(number), name, tuple(_statements(dialect, text, collation))))
    return steps


def _statements(dialect: Dialect, text: str, collation: str) -> Iterator[tuple[str, str]]:
    names = {
        **dialect.tables,
        "events_idx": dialect.quoted("events_idx"),
        "parked_idx": dialect.quoted("parked_idx"),
        "collation": collation,
    }
    sql = "\n".join(line for line in text.splitlines() if not line.startswith("--"))
    for part in sql.split(";\n"):
        statement = part.strip().rstrip(";")
        if statement:
            table = next(name for name in dialect.tables if "{" + name + "}" in statement)
            yield table, statement.format_map(names)


def migrate(dialect: Dialect) -> Plan[list[str]]:
    """Bring the schema up to date; the names of the steps that were applied.

    Raises SchemaForeign, before anything is changed, when a table of one of our names was made by
    something else.
    """
    sql = dialect.queries
    yield [Statement(part) for part in sql["migrations_begin"].split(";")]
    try:
        steps = migrations(dialect, (yield from collation(dialect)))
        applied, adopted = yield from _inspect(dialect)
        if not applied:
            if dialect.create_schema:
                yield [Statement(dialect.create_schema)]
            yield [Statement(sql["migrations_table"])]
        done: list[str] = []
        for step in steps:
            if step.number in applied:
                continue
            yield [Statement(text) for table, text in step.statements if table not in adopted]
            row = (step.number, step.name, wall_clock())
            yield [Statement(sql["migrations_record"], row)]
            done.append(str(step))
    except Exception:
        yield [Statement(sql["migrations_abort"])]
        raise
    yield [Statement(sql["migrations_end"])]
    return done


def index_for_polling(dialect: Dialect) -> Plan[list[str]]:
    """Make the index on events not marked as published, unless it is there; what was made.

    It is no numbered step, because every append would pay for it, and only a polling relay wants
    it. Eventuate's own tables have one.
    """
    (found,) = yield [Statement(dialect.queries["polling_index_exists"])]
    if found.rows:
        return []
    yield [Statement(dialect.queries["polling_index"])]
    return ["the index for polling"]


def pending(dialect: Dialect) -> Plan[list[str]]:
    """The names of the steps not yet applied."""
    applied, _ = yield from _inspect(dialect)
    return [str(step) for step in migrations(dialect) if step.number not in applied]


def step_names(dialect: Dialect) -> list[str]:
    """The names of all steps."""
    return [str(step) for step in migrations(dialect)]


def collation(dialect: Dialect) -> Plan[str]:
    """The collation that compares text by bytes and pads nothing, as this server calls it."""
    (found,) = yield [Statement(dialect.queries["collation"])]
    return str(found.rows[0][0])


def script(dialect: Dialect, collation: str) -> str:
    """Every statement, for somebody who runs them by hand."""
    lines = [dialect.queries["migrations_table"] + ";"]
    if dialect.create_schema:
        lines.insert(0, dialect.create_schema + ";")
    for step in migrations(dialect, collation):
        lines.append(f"-- {step}")
        lines += [text + ";" for _, text in step.statements]
        record = f"VALUES ({step.number}, '{step.name}', 0)"
        lines.append(dialect.queries["migrations_record"].partition("VALUES")[0] + record + ";")
    return "\n\n".join(lines) + "\n"


def columns_of_tables(dialect: Dialect) -> Plan[dict[str, set[str]]]:
    """The columns of every table that is there, by its bare name; all in lower case."""
    (result,) = yield [Statement(dialect.queries["columns"])]
    found: dict[str, set[str]] = {}
    for table, column in result.rows:
        found.setdefault(str(table).lower(), set()).add(str(column).lower())
    return found


def _inspect(dialect: Dialect) -> Plan[tuple[set[int], set[str]]]:
    """The numbers of the steps applied, and which tables Eventuate made."""
    found = yield from columns_of_tables(dialect)
    ours = {dialect.bare(name).lower(): name for name in dialect.tables}
    present = {ours[table]: columns for table, columns in found.items() if table in ours}
    if "retold_migrations" in present:
        (rows,) = yield [Statement(dialect.queries["migrations_applied"])]
        applied = {int(row[0]) for row in rows.rows}
        if applied:
            return applied, set()
    else:
        applied = set[int]()
    adopted = {name for name in EVENTUATE if name in present}
    foreign = [name for name in present if not _is_eventuate(name, present[name])]
    if foreign and "retold_migrations" not in present:
        raise SchemaForeign(repr(dialect.bare(foreign[0])))
    return applied, adopted


def _is_eventuate(name: str, columns: set[str]) -> bool:
    return EVENTUATE.get(name, {""}) <= columns
