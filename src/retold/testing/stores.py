"""Stores for tests that want a real one: empty, quick, and gone with the last reference."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from pathlib import Path
from typing import Unpack
from urllib.parse import quote

from retold.store.event_store import AsyncEventStore, EventStore, StoreOptions


def temporary_store(**options: Unpack[StoreOptions]) -> EventStore:
    """An empty store on a SQLite file of its own, which is deleted with the store.

    Commits are not synced to the disk. The options are EventStore's.
    """
    folder = tempfile.mkdtemp(prefix="retold-")
    store = EventStore(_url(folder), **options)
    weakref.finalize(store, shutil.rmtree, folder, ignore_errors=True)
    return store


def temporary_async_store(**options: Unpack[StoreOptions]) -> AsyncEventStore:
    """The same for async code."""
    folder = tempfile.mkdtemp(prefix="retold-")
    store = AsyncEventStore(_url(folder), **options)
    weakref.finalize(store, shutil.rmtree, folder, ignore_errors=True)
    return store


def _url(folder: str) -> str:
    return f"sqlite:///{quote(str(Path(folder, 'events.db')))}?synchronous=normal"
