"""The pytest plugin: a fixture `store`, an empty event store on a SQLite file of its own.

A top-level module, and one that imports retold only when a test asks for the fixture: pytest loads
its plugins before coverage begins to count, and in every run of everybody who installed retold.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from retold import EventStore
    from retold.testing import Clock


@pytest.fixture
def store_clock() -> Clock:
    """The clock of the fixture `store`; it stands still until `clock.advance(seconds=…)`."""
    from retold.testing import Clock

    return Clock()


@pytest.fixture
def store(tmp_path: Path, store_clock: Clock) -> Iterator[EventStore]:
    """An empty event store with deterministic ids: every run writes the same ones."""
    from retold import EventStore
    from retold.testing import fixed_ids

    with EventStore(f"sqlite:///{tmp_path / 'events.db'}", ids=fixed_ids(store_clock)) as opened:
        yield opened
