"""Catching up with the table: one algorithm for a first start, a resync and a rebuild.

Note the end of the log; read what the topics hold; publish from one view of the table what is
missing, in the order of ids; then follow the log from the noted place, dropping what is published,
until past the place where the log ended when the view was made. A crash anywhere begins it again.

Why nothing is lost: an event is either in the view, or committed behind the noted place. Why none
comes twice: up to the second place everything is looked up. Why the order holds: of each entity the
view holds the first events, in the order of ids, and the log brings the later ones.

All three ask of a log's end, as a source's `now` tells it, that whatever is before it is visible to
whoever looks afterwards, and that whatever was visible before is before it. Logs do not give that
away: a transaction is in the log a moment before others see it.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable, Iterator
from typing import TYPE_CHECKING, Literal

from retold.brokers.published import events_in, topic_name
from retold.errors import EventsOutOfOrder, LogRewound
from retold.relay.known import KnownIds, KnownUntil
from retold.relay.wire import records

if TYPE_CHECKING:
    from retold.brokers.base import Record, TopicReader
    from retold.brokers.published import PublishedEvent
    from retold.relay.positions import Position
    from retold.relay.progress import Progress
    from retold.relay.source import Row, Source
    from retold.relay.table import Table

Lost = Literal["trust", "stop", "list"]
"""What to do about events that Kafka holds and the table does not: trust that there are none, stop
before anything is published, or list them and go on."""
_NAMED = 20
"""How many holes are named in the log."""
_log = logging.getLogger("retold.relay")


class CatchUp:
    """One run of the algorithm."""

    def __init__(
        self,
        source: Source,
        topics: TopicReader,
        table: Table,
        *,
        fill_holes: bool,
        lost: Lost = "trust",
        progress: Progress,
    ) -> None:
        self._source = source
        self._topics = topics
        self._table = table
        self._fill_holes = fill_holes
        self._lost: Lost = lost
        self._first_lost: PublishedEvent | None = None
        self._progress = progress
        self.end: Position | None = None
        """Where the log ended when the view of the table was made; None before."""
        self._holes: list[Row] = []
        self._count = 0
        self._known = KnownIds()

    def rows(self) -> Generator[list[Record]]:
        """The records to publish, in order. Some at a time, and none now and then, so that the
        caller can look around. The topics have been read before."""
        known, progress = self._known, self._progress
        with self._table.view() as view:
            self.end = self._source.now()
            first, last = view.first(), view.last()
            for page in view.pages():
                missing = known.missing(page)
                holes = known.behind(missing)
                if holes:
                    self._note(holes)
                    if not self._fill_holes:
                        held = {row[0] for row in holes}
                        missing = [row for row in missing if row[0] not in held]
                yield records(missing)
                known.add(row[0] for row in page)
                progress.fraction = share(first, page[-1][0], last)

    def read_topics(self, topics: Iterable[str]) -> Iterator[None]:
        """Learn what Kafka holds, in steps. topics: further ones that may hold events.

        Raises LogRewound where it holds what the table has lost.
        """
        types = self._table.entity_types()
        for some in self._topics.read({*topics, *map(topic_name, types)}):
            found: list[PublishedEvent] = []
            for record in some:
                try:
                    events = events_in(record.value)
                except ValueError as error:
                    place = f"{record.topic}[{record.partition}]@{record.offset}"
                    _log.warning("%s holds no event: %s", place, error)
                else:
                    found += events
            if self._lost != "trust" and found:
                found = self._without_lost(found)
            self._known.add_published(map(_who, found))
            yield
        lost, first = self._progress.counts["lost"], self._first_lost
        if first is not None and self._lost == "stop":
            raise LogRewound(
                f"of what Kafka holds the table lacks {lost} events, the first is {first.id} "
                f"({first.eventType} of {first.entityType} {first.entityId!r})"
            )
        if self._known.count:
            _log.info("Kafka holds %d events already", self._known.count)

    def _without_lost(self, found: list[PublishedEvent]) -> list[PublishedEvent]:
        """Leave out what the database has no more: what comes after it is in order."""
        there = self._table.existing([event.id for event in found])
        for event in found:
            if event.id not in there:
                self._first_lost = self._first_lost or event
                self._progress.counts["lost"] += 1
                if self._lost == "list":
                    _log.warning(
                        "event %s (%s of %s %s) is in Kafka, and the database has lost it",
                        event.id,
                        event.eventType,
                        event.entityType,
                        event.entityId,
                    )
        return [event for event in found if event.id in there]

    def _note(self, holes: list[Row]) -> None:
        self._count += len(holes)
        self._progress.counts["holes"] += len(holes)
        for row in holes[: _NAMED - len(self._holes)]:
            event_id, name, _, entity_type, entity_id, *_ = row
            self._holes.append(row)
            _log.warning(
                "event %s (%s of %s %s) is missing behind a later one",
                event_id,
                name,
                entity_type,
                entity_id,
            )

    def check_holes(self) -> None:
        """Raises EventsOutOfOrder when events are missing that were not published."""
        if self._holes and not self._fill_holes:
            event_id, name, _, entity_type, entity_id, *_ = self._holes[0]
            raise EventsOutOfOrder(
                f"the first is {event_id} ({name} of {entity_type} {entity_id!r})", self._count
            )

    def until(self) -> KnownUntil:
        """What is known of the log up to where it ended when the view was made."""
        end = self.end
        assert end is not None
        return KnownUntil(self._known, lambda: self._source.reached(end))

    def close(self) -> None:
        self._known.close()


def _who(event: PublishedEvent) -> tuple[str, str, str]:
    return event.entityType, event.entityId, event.id


def share(first: str, here: str, last: str) -> float:
    """How far an id is from the first to the last, by the times in them: 0 to 1."""
    try:
        begin, now, end = (int(id[:16], 16) for id in (first, here, last))
    except ValueError:
        return 0.0
    return min(1.0, (now - begin) / (end - begin)) if end > begin else 1.0
