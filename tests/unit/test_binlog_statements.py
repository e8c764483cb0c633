from __future__ import annotations

import pytest

from retold.relay.sources.binlog_statements import (
    Kind,
    Mentions,
    begins_transaction,
    keeps_columns,
    kind_of,
    savepoint,
)

KINDS = {
    "BEGIN": Kind.BEGIN,
    "START TRANSACTION": Kind.BEGIN,
    "COMMIT": Kind.COMMIT,
    "ROLLBACK": Kind.ROLLBACK,
    "ROLLBACK TO `a`": Kind.ROLLBACK_TO,
    "SAVEPOINT `a`": Kind.SAVEPOINT,
    "XA START X'61',X'',1": Kind.XA_START,
    "XA END X'61',X'',1": Kind.XA_END,
    "XA COMMIT X'61',X'',1": Kind.XA_DONE,
    "XA ROLLBACK X'61',X'',1": Kind.XA_DONE,
    "create table events (a int)": Kind.SCHEMA,
    "/* from an ORM */ ALTER TABLE t ADD x INT": Kind.SCHEMA,
    "-- why\nDROP TABLE t": Kind.SCHEMA,
    "/*!50003 CREATE TRIGGER t BEFORE INSERT ON u FOR EACH ROW SET @a = 1 */": Kind.SCHEMA,
    "SET PASSWORD = 'x'": Kind.SCHEMA,
    "INSERT INTO events VALUES (1)": Kind.ROWS,
    "/* app */ insert into events values (1)": Kind.ROWS,
    "# why\nUPDATE events SET a = 1": Kind.ROWS,
    "(SELECT f())": Kind.ROWS,
    "WITH x AS (SELECT 1) DELETE FROM t": Kind.ROWS,
    "SET STATEMENT max_statement_time=1 FOR INSERT INTO t VALUES (1)": Kind.ROWS,
    "/*!40000 REPLACE INTO t VALUES (1) */": Kind.ROWS,
    "": Kind.ROWS,
    "/* never closed": Kind.ROWS,
}


@pytest.mark.parametrize(("text", "kind"), KINDS.items())
def test_a_statement_is_told_by_its_first_words(text: str, kind: Kind) -> None:
    assert kind_of(text.encode()) is kind


@pytest.mark.parametrize(
    "text",
    [
        "INSERT INTO events VALUES (1)",
        "insert into `Events` values (1)",
        "INSERT INTO shop.events VALUES (1)",
        "INSERT INTO `shop`.`events` VALUES (1)",
        "INSERT /* a */ INTO/* b */events VALUES (1)",
        "UPDATE other JOIN events USING (a) SET b = 'x'",
        "INSERT INTO other VALUES ('it''s', 'a\\'b'); INSERT INTO events VALUES (1)",
        '/*!50000 INSERT INTO events VALUES ("x") */',
        'INSERT INTO "events" VALUES (1)',
    ],
)
def test_a_statement_that_names_the_table_is_found(text: str) -> None:
    assert Mentions("shop", "events")(b"shop", text.encode())


@pytest.mark.parametrize(
    "text",
    [
        "INSERT INTO other VALUES (1)",
        "INSERT INTO my_events VALUES (1)",
        "INSERT INTO events2 VALUES (1)",
        "INSERT INTO log VALUES ('the events of today')",
        "INSERT INTO log VALUES ('it''s events', 'a\\' events')",
        "/* events */ INSERT INTO log VALUES (1)",
        "INSERT INTO log VALUES (1) -- events",
    ],
)
def test_a_statement_that_only_holds_the_word_is_not(text: str) -> None:
    assert not Mentions("shop", "events")(b"shop", text.encode())


def test_the_table_of_another_database_is_another_table() -> None:
    mentions = Mentions("shop", "events")
    assert not mentions(b"other", b"INSERT INTO events VALUES (1)")
    assert mentions(b"other", b"INSERT INTO shop.events VALUES (1)")
    assert not mentions(b"", b"INSERT INTO other.events VALUES (1)")


def test_a_table_made_from_a_select_is_told_from_one_that_is_only_read() -> None:
    fills = Mentions("shop", "events").fills
    assert fills(b"CREATE TABLE events AS SELECT * FROM old")
    assert fills(b"CREATE TABLE IF NOT EXISTS `shop`.`events` (a INT) SELECT 1")
    assert not fills(b"CREATE VIEW latest AS SELECT * FROM events")
    assert not fills(b"CREATE TABLE events (a INT)")


def test_a_table_created_with_its_rows_begins_a_transaction() -> None:
    assert begins_transaction(b"CREATE TABLE `t` (`a` int) START TRANSACTION")
    assert not begins_transaction(b"CREATE TABLE `t` (`a` int)")


def test_a_savepoint_is_the_same_however_it_is_written() -> None:
    names = {
        savepoint(text) for text in (b"SAVEPOINT `One`", b"SAVEPOINT one", b"ROLLBACK TO `one`")
    }
    assert names == {savepoint(b"ROLLBACK TO SAVEPOINT ONE;")} == {b"one"}


@pytest.mark.parametrize(
    ("text", "keeps"),
    {
        "ALTER TABLE events ADD note INT": True,
        "ALTER TABLE events ADD INDEX (published)": True,
        "TRUNCATE TABLE events": True,
        "CREATE INDEX i ON events (entity_type)": True,
        "GRANT SELECT ON events TO a": True,
        "CREATE TRIGGER t AFTER INSERT ON events FOR EACH ROW SET @a = NEW.event_id": True,
        "ALTER TABLE events ADD note INT FIRST": False,
        "ALTER TABLE events MODIFY entity_id VARCHAR(300)": False,
        "ALTER TABLE events RENAME COLUMN a TO b": False,
        "RENAME TABLE new TO events": False,
        "CREATE TABLE events (a INT)": False,
        "DROP TABLE events": False,
    }.items(),
)
def test_changes_that_may_move_the_columns_are_told(text: str, keeps: bool) -> None:
    assert keeps_columns(text.encode()) is keeps


def test_quotes_that_never_end_take_no_time() -> None:
    text = b"INSERT INTO log VALUES (" + b"'\\" * 200_000 + b" events"
    Mentions("shop", "events")(b"shop", text)
    assert kind_of(b"/*" * 200_000) is Kind.ROWS
