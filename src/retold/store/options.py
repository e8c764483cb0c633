"""What the verbs share, and how one call may differ; the checks on what a caller passes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from uuid import UUID

from retold.codecs import Codec
from retold.errors import InvalidValue, UsageError
from retold.ids import EventIds

if TYPE_CHECKING:
    from retold.store.inline import InlineProjection


@dataclass(frozen=True, slots=True)
class KafkaAddress:
    """Where a relay publishes the store's events. settings: librdkafka's own; may hold secrets."""

    bootstrap: str
    settings: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Settings:
    """What a store's verbs share.

    retries: how often an update lost to another one is tried again.
    settle_tries: how often the database is asked for an unknown outcome, about a second apart.
    projections: the inline ones, which go along with every append.
    """

    codec: Codec
    ids: EventIds
    max_event_bytes: int
    retries: int
    settle_tries: int = 12
    projections: Sequence[InlineProjection] = ()
    counts: Counter[str] = field(default_factory=Counter[str])


@dataclass(frozen=True, slots=True)
class Options:
    """How one call differs from the default; the views of a repository set these."""

    id: str | None = None
    key: str | None = None
    expected: str | None = None
    trigger: str | None = None


def check_id(value: str | UUID) -> str:
    """An entity id as stored. Raises InvalidValue for what no database could keep."""
    id = str(value) if isinstance(value, UUID) else value
    if not isinstance(id, str):
        raise UsageError(f"an entity id is a str or a UUID, not {type(value).__name__}")
    if not 0 < len(id) <= 255 or "\0" in id:
        raise InvalidValue("an entity id is 1 to 255 characters without NUL")
    try:
        id.encode()
    except UnicodeEncodeError:
        raise InvalidValue("an entity id must be valid Unicode") from None
    return id


def check_key(key: str) -> str:
    if not isinstance(key, str) or not 0 < len(key) <= 255 or "\0" in key:
        raise InvalidValue("a key is a text of 1 to 255 characters without NUL")
    return key
