"""The ids of events that are published already, in a scratch file: memory stays flat.

A first start or a resync asks for each row of the table, and then for each row of the log up to
where the table was read, whether it is in Kafka.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import msgspec

from retold.relay.scratch import open_scratch, writing

if TYPE_CHECKING:
    from collections.abc import Callable

    from retold.relay.source import Row


_TABLES = """
    CREATE TABLE ids (id TEXT PRIMARY KEY) WITHOUT ROWID;
    CREATE TABLE last (entity TEXT PRIMARY KEY, id TEXT NOT NULL) WITHOUT ROWID;
"""


class KnownIds:
    """Ids of published events, and the last one of each entity. Closed, it leaves nothing."""

    def __init__(self) -> None:
        self._file = open_scratch(_TABLES, cache_kb=8_000)
        self.count = 0

    def add(self, ids: Iterable[str]) -> None:
        before = self._file.total_changes
        with writing():
            self._file.executemany("INSERT OR IGNORE INTO ids VALUES (?)", [(id,) for id in ids])
        self.count += self._file.total_changes - before

    def add_published(self, found: Iterable[tuple[str, str, str]]) -> None:
        """Add events found in a topic: entity type, entity id, event id."""
        events = [(_entity(kind, key), id) for kind, key, id in found]
        self.add(id for _, id in events)
        with writing():
            self._file.executemany(
                "INSERT INTO last VALUES (?, ?) ON CONFLICT DO UPDATE SET id = excluded.id "
                "WHERE excluded.id > id",
                events,
            )

    def missing(self, rows: Sequence[Row]) -> list[Row]:
        """Those of the rows whose ids are not known."""
        wanted = msgspec.json.encode([row[0] for row in rows]).decode()
        found = {
            id
            for (id,) in self._file.execute(
                "SELECT id FROM ids WHERE id IN (SELECT value FROM json_each(?))", (wanted,)
            )
        }
        return [row for row in rows if row[0] not in found]

    def behind(self, rows: Sequence[Row]) -> list[Row]:
        """Those of the rows that come before an event of their entity that is published."""
        found: list[Row] = []
        for row in rows:
            last = self._file.execute(
                "SELECT id FROM last WHERE entity = ?", (_entity(row[3], row[4]),)
            ).fetchone()
            if last is not None and row[0] < last[0]:
                found.append(row)
        return found

    def close(self) -> None:
        self._file.close()


def _entity(entity_type: str, entity_id: str) -> str:
    return f"{entity_type}\0{entity_id}"


class KnownUntil:
    """Drops known rows of the log until a place that was noted when the table was read."""

    def __init__(self, known: KnownIds, reached: Callable[[], bool]) -> None:
        self._known = known
        self.reached = reached
        self.close = known.close

    def missing(self, rows: Sequence[Row]) -> Sequence[Row]:
        return self._known.missing(rows) if rows else rows
