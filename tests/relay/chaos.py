"""What a run of chaos is made of: writers of every kind, and dice.

All that is decided by chance comes from one seed, which is printed: RETOLD_CHAOS_SEED=… does the
same again, as far as the machine does.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress

import psycopg
import pymysql
from confluent_kafka import Consumer, KafkaException, TopicPartition

from retold import Aggregate, Event, EventStore, RetoldError, applies
from tests.relay.logs import Event as Row
from tests.relay.logs import Link
from tests.relay.processes import PATIENCE_S

STOPPED_FOR_A_PERSON, LOST_THE_LOCK = 3, 4
ODD = ("", "plain", "quote ' \" \\ \\n", "🎈 漢字 ß\u2028", "\x01\x1a\t\r\n%s{}", "x" * 3000)
_BROKEN = (pymysql.Error, psycopg.Error, sqlite3.OperationalError, RetoldError, OSError)


def new_dice() -> random.Random:
    seed = int(os.environ.get("RETOLD_CHAOS_SEED") or secrets.randbits(32))
    print(f"RETOLD_CHAOS_SEED={seed} does the same again")
    return random.Random(seed)


# --- writers --------------------------------------------------------------------------------------


class Written(Event, name="chaos.Written"):
    text: str
    number: int


class Diary(Aggregate, name="chaos.Diary"):
    """Kept under a name of its own in each run: its topic is the run's."""

    count: int = 0

    def write(self, texts: tuple[str, ...]) -> None:
        for text in texts:
            self.emit(Written(text, self.count))

    @applies
    def _written(self, event: Written) -> None:
        self.count += 1


def diary(name: str) -> type[Diary]:
    class Own(Diary, name=name):
        pass

    return Own


class Writer(threading.Thread):
    """Changes events and other tables in every way that people do, until told to stop.

    ids: of entities that all writers change. rough: it also changes the events table.
    """

    def __init__(
        self,
        url: str,
        name: str,
        dice: random.Random,
        stop: threading.Event,
        ids: list[str],
        *,
        rough: bool,
    ) -> None:
        super().__init__(daemon=True)
        self.failure: BaseException | None = None
        self.changes = 0
        self._url = url
        self._type = name
        self._dice = dice
        self._stop_event = stop
        self._ids = ids
        self._store = EventStore(url)
        self._diaries = self._store.repository(diary(name))
        self._link: Link | None = None
        self._node = dice.getrandbits(40) << 16
        self._numbers = itertools.count(1)
        self._last = 0
        self._changes: dict[Callable[[Link], None], float] = {
            self._create: 15,
            self._update: 35,
            self._append_many: 20,
            self._load: 2,
            self._roll_back_to_savepoint: 12,
            self._roll_back: 8,
            self._change_other_tables: 3,
        }
        if rough:
            self._changes[self._change_the_table] = 0.3
        self._next_huge = time.monotonic() + dice.uniform(3, 30)

    def run(self) -> None:
        try:
            while not self._stop_event.is_set():
                try:
                    self._change()
                except _BROKEN as error:
                    self._recover(error)
        except BaseException as error:
            self.failure = error
        finally:
            self._disconnect()
            self._store.close()

    def _change(self) -> None:
        if self._link is None:
            self._link = Link(self._url)
        (change,) = self._dice.choices(list(self._changes), list(self._changes.values()))
        if time.monotonic() > self._next_huge:
            self._next_huge += self._dice.uniform(20, 60)
            change = self._huge
        change(self._link)
        self.changes += 1
        # A relay can go faster than the comparison afterwards.
        self._stop_event.wait(self._dice.uniform(0, 0.02))

    def _recover(self, error: Exception) -> None:
        """The database is away, or another writer was in the way."""
        if isinstance(error, pymysql.ProgrammingError | psycopg.ProgrammingError):
            raise error
        self._disconnect()
        self._stop_event.wait(0.02)

    def _disconnect(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None

    # --- what it writes -----------------------------------------------------------------------

    def _texts(self, most: int = 3) -> tuple[str, ...]:
        return tuple(self._dice.choice(ODD) for _ in range(self._dice.randint(1, most)))

    def _create(self, link: Link) -> None:
        self._ids.append(self._diaries.create(Diary.write, self._texts()).id)

    def _update(self, link: Link) -> None:
        if self._ids:
            self._diaries.update(self._dice.choice(self._ids[-50:]), Diary.write, self._texts())

    def _append_many(self, link: Link) -> None:
        """Several events in one statement; the entity's version goes along."""
        if not self._ids:
            return
        id = self._dice.choice(self._ids[-50:])
        lock = "" if link.family == "sqlite" else " FOR UPDATE"
        with _transaction(link):
            where = f"WHERE entity_type = '{self._type}' AND entity_id = '{id}'"
            ((version,),) = link.execute(f"SELECT entity_version FROM entities {where}{lock}")
            made = self._events(id, self._dice.randint(2, 30), after=version)
            link.execute(f"UPDATE entities SET entity_version = '{made[-1][0]}' {where}")
            link.insert(*made)

    def _load(self, link: Link) -> None:
        """Many new entities with one event each."""
        made = [
            self._events(self._new_id(), 1, data='{"text":"ü","number":1}')[0] for _ in range(100)
        ]
        if link.family == "sqlite":
            with _transaction(link):
                link.insert_many(made)
        else:
            link.load(made)

    def _roll_back_to_savepoint(self, link: Link) -> None:
        id = self._new_id()
        with _transaction(link):
            link.insert(*self._events(id, 2))
            link.execute("SAVEPOINT one")
            link.insert(*self._events(id, 3))
            link.execute("SAVEPOINT two")
            link.insert(*self._events(self._new_id(), 2))
            link.execute("ROLLBACK TO SAVEPOINT two")
            link.insert(*self._events(id, 1))
            if self._dice.random() < 0.7:
                link.execute("ROLLBACK TO SAVEPOINT one")
            link.insert(*self._events(id, 2))

    def _roll_back(self, link: Link) -> None:
        with _transaction(link, end="ROLLBACK"):
            link.insert(*self._events(self._new_id(), self._dice.choice((1, 5, 400))))

    def _huge(self, link: Link) -> None:
        with _transaction(link):
            for _ in range(20):
                link.insert_many(self._events(self._new_id(), 600, data="{}"))

    def _change_other_tables(self, link: Link) -> None:
        table = f"other_{self._node + next(self._numbers):x}"
        link.execute(f"CREATE TABLE {table} (event_id VARCHAR(40), event_data TEXT)")
        link.execute(f"INSERT INTO {table} VALUES ('1', 'events')")
        link.execute(f"ALTER TABLE {table} ADD COLUMN more INTEGER")
        link.execute(f"INSERT INTO {table} VALUES ('2', 'events', 1)")
        link.execute(f"ALTER TABLE {table} RENAME TO {table}_old")
        link.execute(f"DROP TABLE {table}_old")

    def _change_the_table(self, link: Link) -> None:
        column = f"extra_{self._node + next(self._numbers):x}"
        first = " FIRST" if link.family == "mysql" else ""
        link.execute(f"ALTER TABLE events ADD COLUMN {column} INTEGER{first}")
        self._append_many(link)
        link.execute(f"ALTER TABLE events DROP COLUMN {column}")

    def _new_id(self) -> str:
        return f"{self._dice.choice(ODD)[:20]}{self._node:x}-{next(self._numbers)}"

    def _events(self, id: str, count: int, *, after: str = "", data: str = "") -> list[Row]:
        """Events of an entity, with rising ids; the store's own way, written once more."""
        low = int(after[:16], 16) + 1 if after else 0
        self._last = max(time.time_ns() // 1_000_000, low, self._last)
        made: list[Row] = []
        for _ in range(count):
            event_id = f"{self._last:016x}-{self._node + next(self._numbers):016x}"
            text = data or json.dumps({"text": self._dice.choice(ODD), "number": 1})
            metadata = self._dice.choice((None, "{}", '{"by":"🎈"}')) if not data else None
            made.append((event_id, "chaos.Written", text, self._type, id, metadata))
        return made


@contextmanager
def _transaction(link: Link, end: str = "COMMIT") -> Generator[None]:
    link.execute("BEGIN IMMEDIATE" if link.family == "sqlite" else "BEGIN")
    try:
        yield
        link.execute(end)
    except BaseException:
        with suppress(*_BROKEN):
            link.execute("ROLLBACK")
        raise


class Writers:
    """Some writers that work at the same time, each with dice of its own."""

    def __init__(
        self, url: str, name: str, dice: random.Random, count: int = 3, *, rough: bool = False
    ) -> None:
        self._stop = threading.Event()
        ids: list[str] = []
        self.all = [
            Writer(url, name, random.Random(dice.getrandbits(32)), self._stop, ids, rough=rough)
            for _ in range(count)
        ]
        for writer in self.all:
            writer.start()

    def check(self) -> None:
        for writer in self.all:
            if writer.failure is not None:
                raise writer.failure

    def stop(self) -> int:
        """How many changes they made."""
        self._stop.set()
        for writer in self.all:
            writer.join()
        self.check()
        return sum(writer.changes for writer in self.all)


# --- relays ---------------------------------------------------------------------------------------


class Positions:
    """The topic of a relay's positions, as one who looks on sees it: how far it has come."""

    def __init__(self, bootstrap: str, name: str) -> None:
        self._place = TopicPartition(f"retold.relay.{name}", 0)
        self._consumer = Consumer(
            {"bootstrap.servers": bootstrap, "group.id": "chaos", "log_level": 0}
        )

    def end(self) -> int:
        """Grows with each transaction; 0 where there is none, or nobody to ask."""
        with suppress(KafkaException):
            _, end = self._consumer.get_watermark_offsets(self._place, timeout=2, cached=False)
            return max(int(end), 0)
        return 0

    def wait_for(self, end: int, check: Callable[[], None]) -> None:
        until = time.monotonic() + PATIENCE_S
        while self.end() < end:
            check()
            assert time.monotonic() < until, "the relay makes no progress"
            time.sleep(0.002)

    def close(self) -> None:
        self._consumer.close()
