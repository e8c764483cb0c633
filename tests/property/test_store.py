"""A store against a dict: any sequence of verbs leaves both saying the same."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from retold import Aggregate, EntityExists, Event, EventStore, KeyReused, NotFound, applies, every
from retold.errors import NothingEmitted, VersionConflict
from retold.store.repository import Repository
from retold.testing import Clock, fixed_ids

IDS = st.sampled_from(["a", "A", "a ", "ä", "b"])
AMOUNTS = st.integers(-5, 9)
KEYS = st.sampled_from(["k", "K", "l"])


class Moved(Event, name="property.Moved"):
    amount: int


class Purse(Aggregate, name="property.Purse"):
    balance: int = 0
    moves: int = 0

    def move(self, *amounts: int) -> int:
        """One event for each amount; none at all changes nothing."""
        for amount in amounts:
            if self.balance + amount < 0:
                raise ValueError(amount)
            self.emit(Moved(amount))
        return self.balance

    def double(self) -> int:
        return self.move(self.balance)

    @applies
    def _moved(self, event: Moved) -> None:
        self.balance += event.amount
        self.moves += 1


class Kept(Purse, name="property.Kept", snapshots=every(3)):
    """The same behind snapshots."""


@dataclass
class Model:
    """What one entity should be: its amounts, the version after each, and the keys used."""

    amounts: list[int] = field(default_factory=list[int])
    versions: list[str] = field(default_factory=list[str])
    keys: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def state(self) -> tuple[int, int]:
        return sum(self.amounts), len(self.amounts)

    def refuses(self, amounts: list[int]) -> bool:
        return any(sum(self.amounts + amounts[: n + 1]) < 0 for n in range(len(amounts)))


class StoreMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = TemporaryDirectory()
        url = f"sqlite:///{Path(self.folder.name) / 'events.db'}?synchronous=normal"
        self.clock = Clock()
        self.store = EventStore(url, ids=fixed_ids(self.clock))
        self.entities: dict[str, Model] = {}
        self.purses: Repository[Any] = self.store.repository(Purse)

    @initialize(cls=st.sampled_from([Purse, Kept]))
    def choose(self, cls: type[Purse]) -> None:
        self.purses = self.store.repository(cls)

    def teardown(self) -> None:
        self.store.close()
        self.folder.cleanup()

    def done(self, id: str, changed: Any, amounts: list[int]) -> None:
        """A change went through: note it, and hold what was returned against it."""
        model = self.entities.setdefault(id, Model())
        if amounts:
            before = model.versions[-1] if model.versions else ""
            assert changed.version > before
        model.amounts += amounts
        # Those in between are read from the history.
        model.versions += ["?"] * (len(amounts) - 1) + [changed.version] * bool(amounts)
        if "?" in model.versions:
            model.versions = [recorded.id for recorded in self.purses.history(id)]
        assert (changed.id, changed.version) == (id, model.versions[-1])
        assert changed.events == tuple(map(Moved, amounts))
        assert (changed.state.balance, changed.state.moves) == model.state
        assert not changed.duplicate
        assert changed.result == model.state[0]

    # --- changing --------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.001, 1, 3600, -7200]))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(id=IDS, amounts=st.lists(AMOUNTS, max_size=3))
    def create(self, id: str, amounts: list[int]) -> None:
        create = self.purses.with_id(id).create
        if Model().refuses(amounts):
            with pytest.raises(ValueError, match="-"):
                create(Purse.move, *amounts)
        elif not amounts:
            with pytest.raises(NothingEmitted):
                create(Purse.move)
        elif id in self.entities:
            with pytest.raises(EntityExists):
                create(Purse.move, *amounts)
        else:
            self.done(id, create(Purse.move, *amounts), amounts)

    @rule(amount=st.integers(1, 9))
    def create_with_an_id_of_the_store_s(self, amount: int) -> None:
        changed = self.purses.create(Purse.move, amount)
        assert changed.id not in self.entities
        self.done(changed.id, changed, [amount])

    @rule(id=IDS, amounts=st.lists(AMOUNTS, max_size=4))
    def update(self, id: str, amounts: list[int]) -> None:
        if id not in self.entities:
            with pytest.raises(NotFound):
                self.purses.update(id, Purse.move, *amounts)
        elif self.entities[id].refuses(amounts):
            with pytest.raises(ValueError, match="-"):
                self.purses.update(id, Purse.move, *amounts)
        else:
            self.done(id, self.purses.update(id, Purse.move, *amounts), amounts)

    @rule(id=IDS, amounts=st.lists(st.integers(1, 9), min_size=1, max_size=2))
    def create_or_update(self, id: str, amounts: list[int]) -> None:
        self.done(id, self.purses.create_or_update(id, Purse.move, *amounts), amounts)

    @precondition(lambda self: self.entities)
    @rule(data=st.data(), key=KEYS, amounts=st.lists(st.integers(0, 9), max_size=2))
    def update_once(self, data: st.DataObject, key: str, amounts: list[int]) -> None:
        id = data.draw(st.sampled_from(sorted(self.entities)))
        model = self.entities[id]
        command, arguments, emits = data.draw(
            st.sampled_from(
                [("Purse.move", amounts, amounts), ("Purse.double", [], [model.state[0]])]
            )
        )
        once = self.purses.once(key).update
        run: Any = Purse.move if command == "Purse.move" else Purse.double
        if key not in model.keys:
            self.done(id, once(id, run, *arguments), emits)
            model.keys[key] = command
        elif model.keys[key] != command:
            with pytest.raises(KeyReused):
                once(id, run, *arguments)
        else:
            changed = once(id, run, *arguments)
            assert (changed.duplicate, changed.events) == (True, ())
            assert (changed.state.balance, changed.state.moves) == model.state

    @precondition(lambda self: self.entities)
    @rule(data=st.data(), amount=st.integers(1, 9))
    def update_expecting(self, data: st.DataObject, amount: int) -> None:
        id = data.draw(st.sampled_from(sorted(self.entities)))
        version = data.draw(st.sampled_from(self.entities[id].versions))
        update = self.purses.expecting(version).update
        if version == self.entities[id].versions[-1]:
            self.done(id, update(id, Purse.move, amount), [amount])
        else:
            with pytest.raises(VersionConflict) as caught:
                update(id, Purse.move, amount)
            assert caught.value.actual == self.entities[id].versions[-1]

    # --- reading ---------------------------------------------------------------------------------

    @rule(id=IDS)
    def find(self, id: str) -> None:
        model = self.entities.get(id)
        found = self.purses.find(id, default=None)
        assert self.purses.exists(id) == (model is not None)
        if model is None:
            assert found is None
            with pytest.raises(NotFound):
                self.purses.find(id)
        else:
            assert found is not None
            assert (found.version, found.state.balance) == (model.versions[-1], model.state[0])

    @precondition(lambda self: self.entities)
    @rule(data=st.data())
    def find_at_a_version(self, data: st.DataObject) -> None:
        id = data.draw(st.sampled_from(sorted(self.entities)))
        model = self.entities[id]
        n = data.draw(st.integers(0, len(model.versions) - 1))
        found = self.purses.find(id, at=model.versions[n])
        assert found.version == model.versions[n]
        assert (found.state.balance, found.state.moves) == (sum(model.amounts[: n + 1]), n + 1)

    @rule(ids=st.lists(IDS, max_size=4))
    def find_many(self, ids: list[str]) -> None:
        found = self.purses.find_many(ids)
        assert list(found) == [id for id in dict.fromkeys(ids) if id in self.entities]
        for id, entity in found.items():
            assert entity.version == self.entities[id].versions[-1]
            assert entity.state.balance == self.entities[id].state[0]

    @invariant()
    def histories_are_what_was_done(self) -> None:
        assert list(self.purses.entities()) == sorted(self.entities)
        for id, model in self.entities.items():
            history = list(self.purses.history(id))
            assert [recorded.event for recorded in history] == [Moved(n) for n in model.amounts]
            assert [recorded.id for recorded in history] == model.versions
            assert model.versions == sorted(set(model.versions))


TestStore = StoreMachine.TestCase
TestStore.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
