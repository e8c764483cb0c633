from __future__ import annotations

import re
from collections import Counter
from importlib.resources import files

import pytest

from retold.store.dialects import TABLES, Dialect, dialect_for
from retold.store.url import parse_url

KINDS = ("sqlite", "postgresql", "mysql")


def dialect(kind: str, options: str = "") -> Dialect:
    return dialect_for(parse_url(f"{kind}:///bank{options}"))


@pytest.mark.parametrize("kind", KINDS)
def test_every_query_is_complete(kind: str) -> None:
    for name, sql in dialect(kind).queries.items():
        assert sql, name
        assert not re.search(r"[{}]|--", sql), name


def test_sqlite_and_mysql_answer_the_same_questions() -> None:
    """Both append step by step."""
    assert dialect("sqlite").append is dialect("mysql").append
    shared = {"update_entity", "insert_entity", "insert_event", "begin", "commit", "rollback"}
    for kind in ("sqlite", "mysql"):
        assert shared <= dialect(kind).queries.keys()


@pytest.mark.parametrize("kind", KINDS)
def test_what_verbs_ask_every_database_answers(kind: str) -> None:
    assert dialect(kind).queries.keys() >= {
        "load",
        "load_until",
        "load_many",
        "load_with_snapshot",
        "history",
        "entities",
        "entity_version",
        "event_exists",
        "handled",
        "insert_handled",
        "insert_snapshot",
        "prune_snapshots",
        "forget_handled",
    }


@pytest.mark.parametrize(
    ("kind", "options", "events"),
    [
        ("sqlite", "", '"events"'),
        ("sqlite", "?prefix=es_", '"es_events"'),
        ("postgresql", "", '"events"'),
        ("postgresql", "?schema=s&prefix=es_", '"s"."es_events"'),
        ("mysql", "", "`events`"),
        ("mysql", "?schema=s&prefix=es_", "`s`.`es_events`"),
    ],
)
def test_tables_are_quoted_with_schema_and_prefix(kind: str, options: str, events: str) -> None:
    made = dialect(kind, options)
    assert made.tables["events"] == events
    assert made.tables.keys() == set(TABLES)
    assert f" {events} " in made.queries["load"] + " "
    assert made.bare("events") == events.split(".")[-1].strip('"`')
    assert made.quoted("events") == events.split(".")[-1]


@pytest.mark.parametrize("kind", KINDS)
def test_every_table_in_a_query_carries_the_prefix(kind: str) -> None:
    for name, sql in dialect(kind, "?prefix=zz_").queries.items():
        for table in TABLES:
            # A column or an alias may have a table's name, but never in quotes.
            assert f'"{table}"' not in sql, name
            assert f"`{table}`" not in sql, name


def test_only_postgresql_makes_a_schema() -> None:
    assert dialect("postgresql", "?schema=s").create_schema == 'CREATE SCHEMA IF NOT EXISTS "s"'
    assert dialect("postgresql").create_schema == ""
    assert dialect("mysql", "?schema=s").create_schema == ""


def test_many_ids_are_one_parameter() -> None:
    ids = ["a", 'b"', "ä"]
    assert dialect("sqlite").many_ids(ids) == '["a","b\\"","ä"]'
    assert dialect("postgresql").many_ids(ids) == ids
    assert dialect("mysql").many_ids(ids) == tuple(ids)


@pytest.mark.parametrize("kind", ["postgresql", "mysql"])
def test_a_percent_sign_in_sql_is_a_placeholder(kind: str) -> None:
    """Both clients format with it, so any other would be an error when the query runs."""
    for name, sql in dialect(kind).queries.items():
        assert not re.search(r"%(?![s%]|\()", sql), name


@pytest.mark.parametrize("kind", ["sqlite", "postgres", "mysql"])
def test_no_two_blocks_of_sql_have_one_name(kind: str) -> None:
    folder = files("retold.store") / "sql" / kind
    texts = [file.read_text("utf-8") for file in folder.iterdir() if file.name.endswith(".sql")]
    names = re.findall(r"^-- (\w+) --$", "\n".join(texts), re.MULTILINE)
    assert [name for name, count in Counter(names).items() if count > 1] == []
