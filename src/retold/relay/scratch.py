"""Scratch files: what a relay or a verification has to look up again, while memory stays flat."""

from __future__ import annotations

import sqlite3
from collections.abc import Generator
from contextlib import contextmanager

from retold.errors import StoreFull

_FAST = "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;"


def open_scratch(tables: str, *, cache_kb: int) -> sqlite3.Connection:
    """A file with these tables, in one transaction that never ends. Closed, it leaves nothing.

    Several threads may use it, one after the other.
    """
    # Without a name it is a file that SQLite deletes at once.
    file = sqlite3.connect("", isolation_level=None, check_same_thread=False)
    file.executescript(f"{_FAST} PRAGMA cache_size = -{cache_kb}; {tables} BEGIN;")
    return file


@contextmanager
def writing() -> Generator[None]:
    """Raises StoreFull where the scratch file cannot grow."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise StoreFull(f"a scratch file in the folder for temporary files: {error}") from error
