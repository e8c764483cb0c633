"""Verification: is every event of the table in its topic, once, in order, unchanged, and nothing else?

Reads only, while everything goes on. First a view of the table is opened, then what the topics hold
is noted in a scratch file; what the table has and the topics lack is looked for again for a while,
because the relay is always a little behind. What the topics have and the view lacks was committed
later, or is nowhere in the table.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from retold.brokers.published import PublishedEvent, events_in, topic_name
from retold.ids import milliseconds
from retold.relay.catching_up import share
from retold.relay.scratch import open_scratch, writing
from retold.relay.wire import IGNORED

if TYPE_CHECKING:
    from retold.brokers.base import Published, TopicReader
    from retold.relay.source import Row
    from retold.relay.table import Table

PROBLEMS = (
    "missing",
    "duplicated",
    "out of order",
    "altered",
    "in another topic",
    "in another partition",
    "not in the table",
    "unreadable",
)
_EXAMPLES = 10
_AGAIN_S = 1.0
_APART_MS = 3_600_000
"""How far the clock that made an id may be ahead of the one that made the record's time."""

# What the topics hold, by event id; the last event of each entity, and its partition; what the table
# has and the topics lack. A digest that was found equal, or was complained of, is set to NULL.
_TABLES = """
    CREATE TABLE seen (id TEXT PRIMARY KEY, digest BLOB) WITHOUT ROWID;
    CREATE TABLE last (entity TEXT PRIMARY KEY, partition INTEGER, id TEXT) WITHOUT ROWID;
    CREATE TABLE missing (id TEXT PRIMARY KEY, digest BLOB, entity TEXT) WITHOUT ROWID;
"""


@dataclass
class Report:
    """What was found. problems: kind → how many; examples: a few of each, in words."""

    events: int = 0
    records: int = 0
    problems: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PROBLEMS, 0))
    examples: dict[str, list[str]] = field(default_factory=dict[str, list[str]])

    @property
    def sound(self) -> bool:
        return not any(self.problems.values())

    def add(self, kind: str, example: str) -> None:
        self.problems[kind] += 1
        examples = self.examples.setdefault(kind, [])
        if len(examples) < _EXAMPLES:
            examples.append(example)


def verify(
    table: Table,
    topics: TopicReader,
    *,
    patience: float = 30.0,
    since: str = "",
    show: Callable[[str, float], None] = lambda what, fraction: None,
) -> Report:
    """Compare the table with its topics.

    patience: how many seconds a missing event may still come. since: leave out events with lower
    ids, and do not read what was published long before. show: called with what is being done, and
    how far it is (0 to 1).
    """
    # A record is made after its event, maybe much later, so what is older than the time in `since`
    # is a record of an older event. Only clocks that are far apart could make it otherwise: then
    # events seem to be missing, and are looked for from the beginning.
    begin = max(0, milliseconds(since) - _APART_MS) if since else 0
    report = _compared(_Comparison(table, topics, since, begin, show), patience)
    if begin and report.problems["missing"]:
        report = _compared(_Comparison(table, topics, since, 0, show), patience)
    return report


def _compared(comparison: _Comparison, patience: float) -> Report:
    with closing(comparison), writing():
        comparison.run(patience)
    return comparison.report


class _Comparison:
    def __init__(
        self,
        table: Table,
        topics: TopicReader,
        since: str,
        begin: int,
        show: Callable[[str, float], None],
    ) -> None:
        """begin: leave out records of before, in milliseconds since the epoch."""
        self.report = Report()
        self._table = table
        self._topics = topics
        self._since = since
        self._begin = begin
        self._show = show
        self._partitions: dict[str, int] = {}
        self._ends: dict[tuple[str, int], int] = {}
        self._scratch = open_scratch(_TABLES, cache_kb=16_000)

    def run(self, patience: float) -> None:
        with self._table.view() as view:
            names = {topic_name(kind) for kind in self._table.entity_types()}
            if self._begin:
                self._ends = dict(self._topics.offsets_at(names, self._begin))
            self._note_topics(names)
            first, last = view.first(), view.last()
            for page in view.pages(self._since[:-1]):
                self._compare(page)
                self._show("table", share(first, page[-1][0], last))
        deadline = time.monotonic() + patience
        while self._still_missing() and time.monotonic() < deadline:
            time.sleep(_AGAIN_S)
            self._note_topics(names)
            self._drop_found()
        self._report_missing()
        self._report_unknown()

    # --- the topics ------------------------------------------------------------------------------

    def _note_topics(self, names: set[str]) -> None:
        """Note what stands in the topics behind what was noted before."""
        # A topic that had no event yet may have been made meanwhile.
        self._partitions = self._topics.partitions(names)
        for some in self._topics.read(names, self._ends):
            for record in some:
                self._ends[record.topic, record.partition] = record.offset + 1
                self._note(record)
            self._show("topics", 0.0)

    def _note(self, record: Published) -> None:
        place = f"{record.topic}[{record.partition}]@{record.offset}"
        try:
            events = events_in(record.value)
        except ValueError:
            self.report.add("unreadable", place)
            return
        for event in events:
            if event.id >= self._since:
                self.report.records += 1
                # A batch goes by the key of its first event.
                key = record.key if len(events) == 1 else event.entityId.encode()
                self._note_event(event, record, key, f"{event.id} at {place}")

    def _note_event(self, event: PublishedEvent, record: Published, key: bytes, where: str) -> None:
        report, scratch = self.report, self._scratch
        row = (event.id, _digest(event, key))
        if scratch.execute("INSERT OR IGNORE INTO seen VALUES (?, ?)", row).rowcount == 0:
            report.add("duplicated", where)
            return
        if record.topic != topic_name(event.entityType):
            report.add("in another topic", where)
            return
        entity = f"{event.entityType}\0{event.entityId}"
        last = scratch.execute(
            "SELECT partition, id FROM last WHERE entity = ?", (entity,)
        ).fetchone()
        if last is None:
            count = self._partitions.get(record.topic, 1)
            last = partition_of(event.entityId.encode(), count), ""
        partition, before = last
        if record.partition != partition:
            report.add("in another partition", where)
        elif event.id < before:
            report.add("out of order", f"{where}, behind {before}")
        else:
            scratch.execute(
                "INSERT OR REPLACE INTO last VALUES (?, ?, ?)", (entity, partition, event.id)
            )

    # --- the table -------------------------------------------------------------------------------

    def _compare(self, page: list[Row]) -> None:
        for event_id, name, data, kind, key, metadata, _ in page:
            if kind == IGNORED or event_id < self._since:
                continue
            self.report.events += 1
            event = PublishedEvent(event_id, key, kind, data, name, None, metadata)
            digest = _digest(event, key.encode())
            found = self._scratch.execute(
                "SELECT digest FROM seen WHERE id = ?", (event_id,)
            ).fetchone()
            if found is None:
                row = (event_id, digest, f"{kind} {key}")
                self._scratch.execute("INSERT INTO missing VALUES (?, ?, ?)", row)
            else:
                self._check(event_id, digest, found[0], f"{kind} {key}")

    def _check(self, event_id: str, wanted: bytes, digest: bytes, entity: str) -> None:
        if wanted != digest:
            self.report.add("altered", f"{event_id} of {entity}")
        self._scratch.execute("UPDATE seen SET digest = NULL WHERE id = ?", (event_id,))

    def _still_missing(self) -> bool:
        return self._scratch.execute("SELECT 1 FROM missing LIMIT 1").fetchone() is not None

    def _drop_found(self) -> None:
        found = (
            "SELECT m.id, m.digest, s.digest, m.entity FROM missing m JOIN seen s ON s.id = m.id "
            "LIMIT 1000"
        )
        while rows := self._scratch.execute(found).fetchall():
            for event_id, wanted, digest, entity in rows:
                self._check(event_id, wanted, digest, entity)
                self._scratch.execute("DELETE FROM missing WHERE id = ?", (event_id,))

    def _report_missing(self) -> None:
        for event_id, entity in self._scratch.execute("SELECT id, entity FROM missing ORDER BY id"):
            self.report.add("missing", f"{event_id} of {entity}")

    def _report_unknown(self) -> None:
        """What the topics hold and the view does not: committed later, or no event of the table."""
        for some in self._unmatched():
            there = self._table.existing(some)
            for event_id in some:
                if event_id not in there:
                    self.report.add("not in the table", event_id)

    def _unmatched(self) -> Iterator[list[str]]:
        rows = self._scratch.execute("SELECT id FROM seen WHERE digest IS NOT NULL")
        while some := rows.fetchmany(500):
            yield [id for (id,) in some]

    def close(self) -> None:
        self._scratch.close()


def _digest(event: PublishedEvent, key: bytes) -> bytes:
    """What must be equal in table and topic."""
    parts = (event.entityType, event.entityId, event.eventType, event.eventData, event.metadata)
    return hashlib.blake2b(msgspec.json.encode((*parts, key)), digest_size=16).digest()


def partition_of(key: bytes, count: int) -> int:
    """Where Kafka's default partitioner puts a key: murmur2 of its bytes, as Java computes it."""
    mask, seed = 0xFFFFFFFF, 0x9747B28C
    m = 0x5BD1E995
    h = (seed ^ len(key)) & mask
    whole = len(key) & ~3
    for at in range(0, whole, 4):
        k = int.from_bytes(key[at : at + 4], "little") * m & mask
        k ^= k >> 24
        h = (h * m & mask) ^ (k * m & mask)
    if tail := key[whole:]:
        h = (h ^ int.from_bytes(tail, "little")) * m & mask
    h ^= h >> 13
    h = h * m & mask
    h ^= h >> 15
    return (h & 0x7FFFFFFF) % count
