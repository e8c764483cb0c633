"""The events table as the relay reads it: whole, as of one moment, in the order of ids.

In one consistent view, because the log goes on where the view ends: of an entity's events a view
holds the first ones, without a gap, and the log brings the rest.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from retold.relay.source import Row
from retold.store.driver import Statement

if TYPE_CHECKING:
    from retold.store.connections import BlockingDriver, OwnConnection
    from retold.store.driver import Plan

_PAGE_ROWS = 2_000
_PAGE_BYTES = 1_000_000


class Table:
    """The events table of one database."""

    def __init__(self, driver: BlockingDriver) -> None:
        self._driver = driver
        self._sql = driver.dialect.queries

    def entity_types(self) -> list[str]:
        """Every entity type that has events."""
        return self._driver.run(_entity_types(self._sql))

    def existing(self, ids: list[str]) -> set[str]:
        """Those of the ids that are events of the table now."""
        many = self._driver.dialect.many_ids(ids)
        return {row[0] for row in self._driver.run(rows_of(self._sql["existing"], many))}

    @contextmanager
    def view(self) -> Generator[View]:
        """The table as it is now, whatever is written during the block."""
        with self._driver.connection() as connection:
            for part in self._sql["view_begin"].split(";"):
                connection.execute([Statement(part.strip())])
            view = View(self._sql, connection)
            view.first()  # it begins with the first read
            yield view


class View:
    """The table as of one moment."""

    def __init__(self, sql: Mapping[str, str], connection: OwnConnection) -> None:
        self._sql = sql
        self._connection = connection

    def first(self) -> str:
        """The lowest event id, empty where there is none."""
        return self._id("view_first")

    def last(self) -> str:
        """The highest event id, empty where there is none."""
        return self._id("view_last")

    def pages(self, after: str = "") -> Iterator[list[Row]]:
        """All rows behind an id, in the order of ids, page by page."""
        while sizes := self._rows("view_sizes", after, _PAGE_ROWS):
            rows = self._rows("view_page", after, fitting(sizes, _PAGE_BYTES))
            after = rows[-1][0]
            yield [(*row[:5], row[5], None) for row in rows]

    def _id(self, query: str) -> str:
        ((id,),) = self._rows(query)
        return id or ""

    def _rows(self, query: str, *params: object) -> Sequence[Sequence[Any]]:
        (result,) = self._connection.execute([Statement(self._sql[query], params)])
        return result.rows


def fitting(sizes: Iterable[Sequence[Any]], most: int) -> int:
    """How many of the first rows have at most so many bytes, but at least one.

    sizes: id and size of each row. Without asking first, a page of large events would not fit into
    memory.
    """
    rows = 0
    for _, size in sizes:
        most -= size
        if most < 0:
            break
        rows += 1
    return rows or 1


def _entity_types(sql: Mapping[str, str]) -> Plan[list[str]]:
    found: list[str] = []
    while True:
        rows = yield from rows_of(sql["next_entity_type"], found[-1] if found else "")
        if not rows or rows[0][0] is None:
            return found
        found.append(rows[0][0])


def rows_of(sql: str, *params: object) -> Plan[Sequence[Sequence[Any]]]:
    """The rows of one statement."""
    (result,) = yield [Statement(sql, params)]
    return result.rows
