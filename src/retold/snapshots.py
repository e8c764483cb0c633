"""Snapshots: a state kept so that a long history need not be replayed.

A snapshot is a cache. It is found by the aggregate's name and a fingerprint of its schema, so old
and new code of a rolling deploy each see their own, and one that cannot be read is replaced by a
replay.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import msgspec

from retold.codecs import Codec
from retold.errors import InvalidValue, NotStorable

if TYPE_CHECKING:
    from retold.aggregates import Aggregate

A = TypeVar("A", bound="Aggregate")

SnapshotStrategy = Callable[[int], bool]
"""Given the number of events since the last snapshot, whether to keep one now."""

KEPT = 2
"""Snapshots kept for each entity and fingerprint."""

_log = logging.getLogger("retold.snapshots")


def every(events: int) -> SnapshotStrategy:
    """Keep a snapshot after this many events."""
    if events < 1:
        raise InvalidValue(f"every({events}): a snapshot needs at least one event")
    return lambda since: since >= events


def snapshot_type(cls: type[Aggregate], codec: Codec) -> str:
    """What marks a snapshot as this class's: its name, and a fingerprint of its schema."""
    schema = msgspec.json.schema(cls, schema_hook=lambda own: {"type": f"own {own.__qualname__}"})
    canonical = msgspec.json.encode([schema, cls.__snapshot_version__], order="deterministic")
    return f"{cls.__entity_type__}/{hashlib.sha256(canonical).hexdigest()[:16]}"


def encode_state(state: Aggregate, codec: Codec) -> str | None:
    """The JSON of a state, or None (and a warning) for one that does not survive JSON."""
    bound = state._bound  # pyright: ignore[reportPrivateUsage]
    state._bound = msgspec.UNSET  # type: ignore[assignment] # pyright: ignore
    try:
        return codec.encode_checked(state, f"a snapshot of {state.__entity_type__}").decode()
    except NotStorable as error:
        _log.warning("no snapshot of %s %s: %s", state.__entity_type__, bound.id, error.reason)
        return None
    finally:
        state._bound = bound


def decode_state(cls: type[A], entity_id: str, text: str, codec: Codec) -> A | None:
    """A state from its snapshot, or None (and a warning) for one that cannot be read."""
    try:
        return codec.decoder(cls)(text)
    except (msgspec.MsgspecError, TypeError, ValueError) as error:
        _log.warning(
            "the snapshot of %s %s cannot be read (%s); replaying all its events instead",
            cls.__entity_type__,
            entity_id,
            error,
        )
        return None
