"""The relay: follows a database's log and publishes every event once, in the order of commits.

    stand by ─▶ lead ─▶ begin an epoch ─▶ (catch up with the table) ─▶ follow the log
                 ▲            │ the broker or the database is away, or Kafka fenced us
                 └────────────┘ wait, begin again at the position that Kafka holds

Events and the position that covers them are one Kafka transaction. So whatever breaks, and when, the
next epoch begins exactly behind the last visible event: beginning again is the only way to recover,
and the usual way to start. Only one thing stops a relay for good: a RelayStopped, which says what a
person has to decide.
"""

from __future__ import annotations

import logging
import random
import time
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from retold.brokers.published import topic_name
from retold.errors import (
    Fenced,
    LeadershipLost,
    LogPurged,
    PositionMissing,
    PositionUnreadable,
    RetoldError,
    TopicChanged,
)
from retold.relay.catching_up import CatchUp, Lost
from retold.relay.positions import Checkpoint, decode_checkpoint, encode_checkpoint
from retold.relay.reader import Reader

if TYPE_CHECKING:
    import threading
    from collections.abc import Mapping

    from retold.brokers.base import Publisher, Record, TopicReader
    from retold.relay.leadership import Leadership
    from retold.relay.positions import Position
    from retold.relay.progress import Progress
    from retold.relay.source import Source
    from retold.relay.table import Table

_log = logging.getLogger("retold.relay")

_TAKE_S = 0.25
_REST_S = 0.001
"""Kafka goes on with a transaction for a moment after it was committed. Who begins the next one
meanwhile is refused, and librdkafka asks again only after 20 ms."""
_PARTITIONS_S = 10.0
"""How often the topics' numbers of partitions are looked at."""
_LONGEST_PAUSE_S = 10.0


@dataclass(frozen=True, slots=True)
class Choices:
    """What the operator decided.

    from_now: a first start leaves out what the table holds already. resync: publish from the table
    what is missing before going on. fill_holes: publish missing events also behind later ones of
    their entity. accept_partitions: go on with a topic whose number of partitions has changed.
    accept_rewind: with resync: list what Kafka holds and the database has lost, and let what is
    missing come behind it.
    """

    from_now: bool = False
    resync: bool = False
    fill_holes: bool = False
    accept_partitions: bool = False
    accept_rewind: bool = False


@dataclass(frozen=True, slots=True)
class Parts:
    """What a relay is put together from."""

    source: Source
    publisher: Publisher
    topics: TopicReader
    table: Table
    leadership: Leadership


class Relay:
    """One relay. `run` returns when it is told to stop."""

    def __init__(self, parts: Parts, progress: Progress, choices: Choices | None = None) -> None:
        self._source = parts.source
        self._publisher = parts.publisher
        self._topics = parts.topics
        self._table = parts.table
        self._leadership = parts.leadership
        self._progress = progress
        self._choices = choices or Choices()
        self._partitions: dict[str, int] = {}
        self._published = 0.0
        self._looked = 0.0

    def run(self, stop: threading.Event) -> None:
        """Stand by, lead, publish, until `stop` is set; the transaction in hand is finished first.

        Raises RelayStopped, and LeadershipLost when another relay may be leading by now.
        """
        progress = self._progress
        with ExitStack() as stack:
            for end in (self._leadership.release, self._publisher.close, self._source.close):
                stack.callback(end)
            stack.callback(setattr, progress, "role", "stopped")
            progress.role = "standby"
            if self._leadership.acquire(stop):
                self._lead(stop)

    def _lead(self, stop: threading.Event) -> None:
        counts = self._progress.counts
        tries = 0
        while not stop.is_set():
            published = counts["transactions"]
            try:
                self._epoch(stop)
            except RetoldError as error:
                if not error.retriable or isinstance(error, LeadershipLost):
                    raise
                self._leadership.check()
                counts["fences" if isinstance(error, Fenced) else "reconnects"] += 1
                tries = 1 if counts["transactions"] > published else tries + 1
                # full jitter, doubling from 100 ms to 10 s
                pause = random.uniform(0.02, min(0.1 * (1 << min(tries, 7)), _LONGEST_PAUSE_S))
                self._progress.error = str(error)
                _log.warning("beginning again in %.1f s: %s", pause, error)
                stop.wait(pause)

    def _epoch(self, stop: threading.Event) -> None:
        """From fencing others to the first thing that breaks."""
        self._progress.counts["epochs"] += 1
        checkpoint = self._begin()
        self._leadership.check()
        self._progress.error = ""
        self._partitions = dict(checkpoint.partitions) if checkpoint else {}
        self._check_partitions()
        # The publisher counts them too, before it publishes.
        self._compare(self._publisher.partitions(self._partitions))
        if checkpoint is None and self._choices.from_now and not self._choices.resync:
            checkpoint = Checkpoint(self._source.skip(), {})
            self._publisher.publish([], encode_checkpoint(checkpoint))
        if checkpoint is None or checkpoint.catching_up or self._choices.resync:
            self._check_not_set_back(checkpoint)
            self._catch_up(checkpoint, stop)
            return
        self._source.start(checkpoint.position)
        self._follow(checkpoint.position, stop)

    def _begin(self) -> Checkpoint | None:
        """Fence others; the checkpoint saved last. A resync can do without one."""
        try:
            saved = self._publisher.begin()
            return decode_checkpoint(self._progress.name, saved) if saved else None
        except (PositionMissing, PositionUnreadable):
            if not self._choices.resync:
                raise
            return None

    # --- a first start, a resync -----------------------------------------------------------------

    def _check_not_set_back(self, checkpoint: Checkpoint | None) -> None:
        """Catching up anew needs no log from a position on, but it goes on with the log it began with.

        A resync compares what Kafka holds with the table instead. Raises LogRewound, LogReplaced.
        """
        if checkpoint is None or self._choices.resync:
            return
        with suppress(LogPurged):
            self._source.check(checkpoint.catching_up or checkpoint.position)

    def _catch_up(self, checkpoint: Checkpoint | None, stop: threading.Event) -> None:
        self._progress.role = "catching up"
        with closing(self._new_catch_up()) as catching_up:
            if checkpoint is None and not self._choices.resync:
                self._check_first_start()
            position = self._source.now()
            # Before anything is saved: what stops here must be found again by the next start.
            for _ in catching_up.read_topics(self._partitions):
                self._leadership.check()
                if stop.is_set():
                    return
            self._save(position, [], position)
            with closing(catching_up.rows()) as parts:
                for part in parts:
                    self._leadership.check()
                    if stop.is_set():
                        return
                    if part:
                        self._save(position, part, catching_up.end)
            catching_up.check_holes()
            self._source.start(position)
            self._follow(position, stop, catching_up)

    def _new_catch_up(self) -> CatchUp:
        # A resync may be one on another log, whose positions tell nothing of what was lost.
        lost: Lost = "stop" if self._choices.resync else "trust"
        return CatchUp(
            self._source,
            self._topics,
            self._table,
            fill_holes=self._choices.fill_holes,
            lost="list" if self._choices.accept_rewind else lost,
            progress=self._progress,
        )

    def _check_first_start(self) -> None:
        """A first start finds no events in Kafka; otherwise the position was lost."""
        topics = [topic_name(entity_type) for entity_type in self._table.entity_types()]
        for some in self._topics.read(topics):
            if some:
                raise PositionMissing(
                    "this does not look like a first start", self._progress.name, some[0].topic
                )

    # --- following -------------------------------------------------------------------------------

    def _follow(
        self, position: Position, stop: threading.Event, catching_up: CatchUp | None = None
    ) -> None:
        progress = self._progress
        known = catching_up.until() if catching_up else None
        with closing(Reader(self._source, position, known)) as reader:
            progress.role = "catching up" if catching_up else "leading"
            progress.error = ""
            while not stop.is_set():
                self._leadership.check()
                self._look_at_partitions()
                time.sleep(max(0.0, self._published + _REST_S - time.monotonic()))
                batch = reader.take(_TAKE_S)
                progress.caught_up = batch is None
                if batch is None:
                    continue
                end = catching_up.end if catching_up and not batch.last else None
                self._save(batch.position, batch.records, end, committed=batch.committed)
                self._source.confirm(batch.position)
                if batch.last and known is not None:
                    known.close()
                    catching_up = None
                    progress.role = "leading"
                    self._choices = replace(self._choices, resync=False, accept_rewind=False)

    def _save(
        self,
        position: Position,
        records: list[Record],
        catching_up: Position | None,
        *,
        committed: float = 0.0,
    ) -> None:
        """Publish records and the checkpoint that covers them."""
        began = time.monotonic()
        new = {record.topic for record in records} - self._partitions.keys()
        if new:
            self._partitions.update(self._publisher.partitions(new))
        checkpoint = Checkpoint(position, self._partitions, catching_up)
        self._publisher.publish(records, encode_checkpoint(checkpoint))
        self._published = time.monotonic()
        self._progress.add(len(records), position, committed, began)

    # --- partitions ------------------------------------------------------------------------------

    def _look_at_partitions(self) -> None:
        if time.monotonic() - self._looked > _PARTITIONS_S:
            self._check_partitions()

    def _check_partitions(self) -> None:
        """Raises TopicChanged. A resync makes anew what is gone."""
        now = self._topics.partitions(self._partitions) if self._partitions else {}
        gone = [topic for topic in self._partitions if topic not in now]
        if gone and not self._choices.resync:
            reason = "it is gone; retold relay --resync makes it anew"
            raise TopicChanged(reason, gone[0], self._partitions[gone[0]], 0)
        for topic in gone:
            del self._partitions[topic]
        self._compare(now)
        self._looked = time.monotonic()

    def _compare(self, now: Mapping[str, int]) -> None:
        """With another number of partitions, keys lie elsewhere."""
        for topic, was in self._partitions.items():
            if now[topic] != was and not self._choices.accept_partitions:
                reason = "the relay has published to it before"
                raise TopicChanged(reason, topic, was, now[topic])
        self._partitions.update(now)
