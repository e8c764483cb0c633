"""A world for a relay: a real table, its log, and a broker in memory, which fail as a schedule says.

The database is SQLite, whose `position` is the order of commits: `LogSource` reads it as a log, and
the real PollingSource polls it. Whatever a relay does to the broker is checked at once: that the
checkpoint covers exactly what is visible.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, Self

from retold.brokers.base import Published, Record
from retold.drivers import open_driver
from retold.errors import (
    BrokerUnavailable,
    ConnectionLost,
    Fenced,
    LogReplaced,
    LogRewound,
    LogUnreadable,
    RetoldError,
)
from retold.relay.positions import (
    Checkpoint,
    PollingPosition,
    Position,
    WalPosition,
    decode_checkpoint,
)
from retold.relay.progress import Progress
from retold.relay.relay import Choices, Parts, Relay
from retold.relay.source import Chunk, Source
from retold.relay.sources.polling import PollingSource
from retold.relay.table import Table
from retold.store.migrations import index_for_polling
from retold.store.url import parse_url

Fault = Literal[
    "", "write", "away", "crash", "stop", "done, away", "done, crash", "fenced", "rival"
]
"""What happens at a place: nothing, somebody writes, it is away, the process dies, it is told to
stop; the transaction becomes visible although the call fails or the process dies; another relay of
the name begins, or begins and publishes."""
Where = Literal["begin", "publish", "start", "read", "mark"]


_FOREVER = 1 << 62


class Crash(BaseException):
    """The process ends here and now."""


class Stop(threading.Event):
    """Told to stop; pauses between two epochs are left out."""

    def wait(self, timeout: float | None = None) -> bool:
        return self.is_set()


class Schedule:
    """What happens, in order, at each place; nothing once it is used up."""

    def __init__(self, faults: Mapping[Where, Iterable[Fault]] | None = None) -> None:
        self._faults = {place: list(some) for place, some in (faults or {}).items()}

    def next(self, place: Where) -> Fault:
        left = self._faults.get(place)
        return left.pop(0) if left else ""


@dataclass
class Broker:
    """Kafka: what is visible, in order, and who may write."""

    visible: list[Record] = field(default_factory=list[Record])
    checkpoint: bytes | None = None
    topics: dict[str, int] = field(default_factory=dict[str, int])
    epoch: int = 0
    reads: int = 0

    def ids(self, entity: str = "") -> list[str]:
        """The events that are visible, all of them or those of an entity, in order."""
        return [
            dict(record.headers)["id"].decode()
            for record in self.visible
            if entity in ("", record.key.decode()) and record.headers
        ]

    # --- as a TopicReader

    def read(
        self, topics: Iterable[str], behind: Mapping[tuple[str, int], int] | None = None
    ) -> Iterator[Sequence[Published]]:
        wanted = set(topics)
        self.reads += 1
        for number, record in enumerate(self.visible):
            if record.topic in wanted:
                yield [Published(record.topic, 0, number, record.key, record.value, {})]

    def partitions(self, topics: Iterable[str]) -> dict[str, int]:
        return {topic: self.topics[topic] for topic in topics if topic in self.topics}

    def offsets_at(self, topics: Iterable[str], time: int) -> dict[tuple[str, int], int]:
        return {(topic, 0): 0 for topic in topics}


class Publisher:
    def __init__(self, world: World, schedule: Schedule, stop: Stop) -> None:
        self._world = world
        self._broker = world.broker
        self._schedule = schedule
        self._stop = stop
        self._epoch = -1

    def begin(self) -> bytes | None:
        self._strike("begin")
        self._broker.epoch += 1
        self._epoch = self._broker.epoch
        return self._broker.checkpoint

    def partitions(self, topics: Iterable[str]) -> dict[str, int]:
        for topic in topics:
            self._broker.topics.setdefault(topic, 12)
        return self._broker.partitions(topics)

    def publish(self, records: Sequence[Record], checkpoint: bytes) -> None:
        fault = self._strike("publish")
        if fault == "fenced":
            self._broker.epoch += 1
        elif fault == "rival":
            self._world.rival()
        if self._epoch != self._broker.epoch:
            raise Fenced("another one began")
        self._commit(records, checkpoint)
        if fault == "done, away":
            raise BrokerUnavailable("commit")
        if fault == "done, crash":
            raise Crash

    def _strike(self, place: Where) -> Fault:
        fault = self._schedule.next(place)
        self._world.strike(fault, self._stop, BrokerUnavailable(place))
        return fault

    def _commit(self, records: Sequence[Record], checkpoint: bytes) -> None:
        assert {record.topic for record in records} <= self._broker.topics.keys()
        self._broker.visible += records
        self._broker.checkpoint = checkpoint
        self._world.check(decode_checkpoint("r", checkpoint))

    def close(self) -> None:
        self._epoch = -1


class LogSource:
    """The table in the order of commits, as a log."""

    def __init__(self, world: World, schedule: Schedule, stop: Stop) -> None:
        self._world = world
        self._schedule = schedule
        self._stop = stop
        self._at = 0

    def now(self) -> WalPosition:
        return _at(self._world.end())

    def skip(self) -> WalPosition:
        return self.now()

    def check(self, position: Position) -> None:
        if not isinstance(position, WalPosition):
            raise LogReplaced("another kind")
        if position.lsn > self._world.end():
            raise LogRewound(f"the log ends at {self._world.end()}")

    def start(self, position: Position) -> None:
        self.check(position)
        assert isinstance(position, WalPosition)
        self._world.strike(self._schedule.next("start"), self._stop)
        self._at = position.lsn

    def read(self, wait: float) -> Chunk | None:
        self._world.strike(self._schedule.next("read"), self._stop)
        rows = self._world.log(self._at, self._world.readable, self._world.chunk)
        if not rows and self._at == self._world.readable:
            raise LogUnreadable("what is it?", f"{self._at}")
        if not rows:
            self._world.idle(self._stop)
            return None
        self._at = rows[-1][0]
        return Chunk([(*row[1:7], None) for row in rows], _at(self._at))

    def keepalive(self) -> None:
        pass

    def reached(self, position: Position) -> bool:
        assert isinstance(position, WalPosition)
        return self._at >= position.lsn

    def confirm(self, position: Position) -> None:
        checkpoint = decode_checkpoint("r", self._world.broker.checkpoint or b"")
        assert isinstance(position, WalPosition)
        assert isinstance(checkpoint.position, WalPosition)
        assert position.lsn <= checkpoint.position.lsn, "confirmed, and not published"

    def close(self) -> None:
        pass


def _at(number: int) -> WalPosition:
    return WalPosition("s", 1, "slot", number)


class Polling(PollingSource):
    """The real one; its looks at the table and its marks fail as the schedule says."""

    def __init__(self, world: World, schedule: Schedule, stop: Stop) -> None:
        super().__init__(world.driver)
        self._world = world
        self._schedule = schedule
        self._stop = stop

    def start(self, position: Position) -> None:
        self._world.strike(self._schedule.next("start"), self._stop)
        super().start(position)

    def read(self, wait: float) -> Chunk | None:
        self._world.strike(self._schedule.next("read"), self._stop)
        chunk = super().read(0.01)
        if chunk is None:
            self._world.idle(self._stop)
        return chunk

    def confirm(self, position: Position) -> None:
        self._world.strike(self._schedule.next("mark"), self._stop)
        super().confirm(position)


class Leads:
    """Leads always, until it is told that it does not."""

    def __init__(self) -> None:
        self.lost: RetoldError | None = None

    def acquire(self, stop: threading.Event) -> bool:
        return True

    def check(self) -> None:
        if self.lost:
            raise self.lost

    def release(self) -> None:
        pass


class MakesSource(Protocol):
    def __call__(self, world: World, schedule: Schedule, stop: Stop) -> Source: ...


class World:
    """See the top of this module. planned: the entity of each event still to be written."""

    def __init__(
        self,
        folder: Path,
        makes_source: MakesSource = LogSource,
        planned: Iterable[str] = (),
        *,
        chunk: int = 3,
    ) -> None:
        self.broker = Broker()
        self.chunk = chunk
        url = parse_url(f"sqlite:///{folder / 'world.db'}?synchronous=normal")
        self.driver = open_driver(url)
        self.driver.run(index_for_polling(self.driver.dialect))
        self.table = Table(self.driver)
        self.leadership = Leads()
        # Behind here, the log makes no sense.
        self.readable = _FOREVER
        # Events that no relay is to publish, and entities whose order does not matter.
        self.left_out: set[str] = set()
        self.disorderly: set[str] = set()
        self._makes_source = makes_source
        self._planned = list(planned)[::-1]
        self._raw = sqlite3.connect(
            url.database, isolation_level=None, check_same_thread=False, timeout=10
        )
        self._lock = threading.Lock()
        self._written = Counter[str]()
        self._made = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.driver.close()
        self._raw.close()

    # --- the database

    def write(self, entity: str = "", event_id: str = "") -> str:
        """Commit an event: the next one planned, or one of an entity; its id."""
        with self._lock:
            if not entity:
                if not self._planned:
                    return ""
                entity = self._planned.pop()
            self._made += 1
            self._written[entity] += 1
            # Entities have clocks of their own: across entities, ids are in no order of commits.
            clock = self._written[entity] * 1000 + sum(entity.encode()) * 7 % 1000
            event_id = event_id or f"{clock:016x}-{self._made:016x}"
            self._raw.execute(
                "INSERT INTO events (event_id, event_type, event_data, entity_type, entity_id) "
                "VALUES (?, 'world.Written', ?, 'world.Thing', ?)",
                (event_id, f'{{"n":{self._made}}}', entity),
            )
            return event_id

    def log(self, behind: int, until: int, limit: int = 1_000_000) -> list[tuple[Any, ...]]:
        with self._lock:
            return self._raw.execute(
                "SELECT position, event_id, event_type, event_data, entity_type, entity_id, "
                "metadata FROM events WHERE position > ? AND position <= ? "
                "ORDER BY position LIMIT ?",
                (behind, until, limit),
            ).fetchall()

    def end(self) -> int:
        rows = self.log(0, _FOREVER)
        return int(rows[-1][0]) if rows else 0

    def ids(self) -> list[str]:
        """All events, in the order of commits."""
        return [row[1] for row in self.log(0, _FOREVER)]

    def marked(self) -> set[str]:
        with self._lock:
            found = self._raw.execute("SELECT event_id FROM events WHERE published = 1")
            return {id for (id,) in found}

    def execute(self, sql: str, *params: object) -> None:
        with self._lock:
            self._raw.execute(sql, params)

    # --- what happens

    def strike(self, fault: Fault, stop: Stop, away: RetoldError | None = None) -> None:
        if fault == "write":
            self.write()
        elif fault == "away":
            raise away or ConnectionLost("the schedule says so")
        elif fault == "crash":
            raise Crash
        elif fault == "stop":
            stop.set()

    def idle(self, stop: Stop) -> None:
        """Nothing is left to read: somebody writes, or it is the end."""
        if not self.write() and self.is_done():
            stop.set()
        time.sleep(0.0002)

    def is_done(self) -> bool:
        """Whether the relay has nothing left to do."""
        text = self.broker.checkpoint
        catching_up = text is None or decode_checkpoint("r", text).catching_up
        wanted = set(self.ids()) - self.left_out
        return not catching_up and set(self.broker.ids()) == wanted

    def check(self, checkpoint: Checkpoint) -> None:
        """What holds whenever something becomes visible."""
        visible = self.broker.ids()
        assert len(visible) == len(set(visible)), "twice"
        for entity in {record.key.decode() for record in self.broker.visible} - self.disorderly:
            assert self.broker.ids(entity) == sorted(self.broker.ids(entity)), "out of order"
        if checkpoint.catching_up:
            return
        match checkpoint.position:
            case WalPosition(lsn=lsn):
                covered = {row[1] for row in self.log(0, lsn)}
                assert set(visible) == covered - self.left_out
            case PollingPosition(ids=ids):
                marked = self.marked() - self.left_out
                assert marked <= set(visible) <= marked | set(ids)
            case _:
                raise AssertionError(checkpoint)

    # --- relays

    def relay(
        self,
        schedule: Schedule | None = None,
        choices: Choices | None = None,
        *,
        stop: Stop | None = None,
        progress: Progress | None = None,
        source: Source | None = None,
    ) -> Relay:
        schedule, stop = schedule or Schedule(), stop or Stop()
        parts = Parts(
            source=source or self._makes_source(self, schedule, stop),
            publisher=Publisher(self, schedule, stop),
            topics=self.broker,
            table=self.table,
            leadership=self.leadership,
        )
        return Relay(parts, progress or Progress("r"), choices)

    def run(self, schedule: Schedule | None = None, choices: Choices | None = None) -> Progress:
        """Run one relay until all is published, or it is told to stop."""
        stop, progress = Stop(), Progress("r")
        self.relay(schedule, choices, stop=stop, progress=progress).run(stop)
        return progress

    def run_to_the_end(self, faults: Mapping[Where, Iterable[Fault]]) -> None:
        """Run relays, one after the other as each ends, until all is published."""
        schedule = Schedule(faults)
        while not self.is_done():
            with suppress(Crash):
                self.run(schedule)

    def rival(self) -> None:
        """Another relay of the name takes over, publishes what is there, and ends."""
        planned, self._planned = self._planned, []
        self.run()
        self._planned = planned
