"""A count whose stored rows tell everything: who added what, in which order, and how often.

`audit` reads the rows by raw SQL and finds out whether they can have come about properly.
"""

from __future__ import annotations

import json
import os
import random
import secrets
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Self

from retold import Aggregate, Event, EventStore, applies
from tests.conformance.raw import rows
from tests.rig import Server


class Added(Event, name="tally.Added"):
    amount: int
    tag: str
    together: int  # how many events the command emitted


class Tally(Aggregate, name="tally.Tally"):
    total: int = 0
    trail: int = 0  # depends on the order, too

    def add(self, tag: str, *amounts: int) -> int:
        for amount in amounts:
            self.emit(Added(amount, tag, len(amounts)))
        return self.total

    def look(self) -> int:
        """Emits nothing."""
        return self.total

    @applies
    def _added(self, event: Added) -> None:
        self.total += event.amount
        self.trail = (self.trail * 31 + event.amount) % 1_000_003


class Ack(NamedTuple):
    """What a writer knows of an update whose call returned."""

    id: str
    tag: str
    version: str
    total: int


@dataclass
class Stored:
    """One entity, derived from its rows."""

    version: str = ""
    total: int = 0
    trail: int = 0
    ids: list[str] = field(default_factory=list[str])
    tags: list[str] = field(default_factory=list[str])
    """One for each change, in order."""
    keys: list[str] = field(default_factory=list[str])
    totals: dict[str, int] = field(default_factory=dict[str, int])
    """What the total was at each version."""


def audit(url: str) -> dict[str, Stored]:
    """Every tally of a database, derived from its rows; fails where a change is there by half.

    Nobody may be writing meanwhile.
    """
    found = defaultdict[str, Stored](Stored)
    begun = Counter[tuple[str, str]]()
    caused: set[tuple[str, str, str]] = set()
    order = "position" if url.startswith("sqlite") else "event_id"
    events = "SELECT entity_id, event_id, event_data, triggering_event FROM events"
    for id, event_id, data, trigger in _texts(url, f"{events} ORDER BY {order}"):
        entity, event = found[id], json.loads(data)
        assert not entity.ids or event_id > entity.ids[-1], f"{id}: {event_id} is out of order"
        entity.ids.append(event_id)
        entity.total += event["amount"]
        entity.trail = (entity.trail * 31 + event["amount"]) % 1_000_003
        entity.totals[event_id] = entity.total
        begun[id, event["tag"]] += 1
        if begun[id, event["tag"]] == event["together"]:
            del begun[id, event["tag"]]
            entity.tags.append(event["tag"])
            if trigger:
                caused.add((id, trigger, event_id))
    assert not begun, "a change of several events is there by half"
    for id, version in _texts(url, "SELECT entity_id, entity_version FROM entities"):
        found[id].version = version
    for id, entity in found.items():
        assert entity.ids, f"{id} is there without an event"
        assert entity.version == entity.ids[-1], f"{id} is not at the version of its last event"
    marked: set[tuple[str, str, str]] = set()
    for id, key, update_id, command in _texts(
        url, "SELECT entity_id, trigger_key, update_id, command FROM handled"
    ):
        found[id].keys.append(key)
        if command != "Tally.look":
            marked.add((id, key, update_id))
    assert marked == caused, "a key is there without its events, or events without their key"
    return dict(found)


def check_acks(stored: dict[str, Stored], acks: Iterable[Ack]) -> None:
    """Every change that was reported as done is there, once, and was done on what was before it."""
    for id, tag, version, total in acks:
        assert stored[id].tags.count(tag) == 1, f"{tag} of {id}"
        assert stored[id].totals[version] == total, f"{tag} of {id} was decided on another state"


def check_found(store: EventStore, stored: dict[str, Stored]) -> None:
    """The store finds what the rows say."""
    found = store.repository(Tally).find_many(stored)
    assert {id: (e.version, e.state.total, e.state.trail) for id, e in found.items()} == {
        id: (s.version, s.total, s.trail) for id, s in stored.items()
    }


def _texts(url: str, statement: str) -> list[tuple[str, ...]]:
    return [tuple(str(value or "") for value in row) for row in rows(url, statement)]


class Databases:
    """One database of each kind with retold's tables, made when it is first wanted."""

    def __init__(self, server_of: Callable[[str], Server], folder: Path) -> None:
        self._server_of = server_of
        self._folder = folder
        self._name = f"tally_{secrets.token_hex(8)}"
        self._urls: dict[str, str] = {}

    def __getitem__(self, kind: str) -> str:
        if kind not in self._urls:
            if kind == "sqlite":
                self._urls[kind] = f"sqlite:///{self._folder / self._name}.db"
            else:
                self._urls[kind] = self._server_of(kind).create_database(f"{self._name}_{kind}")
            with EventStore(self._urls[kind]) as store:
                store.migrate()
        return self._urls[kind]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for kind in self._urls:
            if kind != "sqlite":
                self._server_of(kind).drop_database(f"{self._name}_{kind}")


def new_id() -> str:
    return f"tally-{secrets.token_hex(8)}"


def new_dice() -> random.Random:
    """Randomness that a failed test shows how to repeat."""
    seed = int(os.environ.get("RETOLD_TEST_SEED") or secrets.randbits(32))
    print(f"RETOLD_TEST_SEED={seed} rolls the same dice again")
    return random.Random(seed)
