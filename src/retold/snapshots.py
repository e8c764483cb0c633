"""Snapshots: a state kept so that a long history need not be replayed.

A snapshot is a cache. It is found by the aggregate's name and a fingerprint of its schema, so old
and new code of a rolling deploy each see their own, and one that cannot be read is replaced by a
replay.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeVar, cast

import msgspec
from msgspec import inspect

from retold.codecs import without_value
from retold.errors import DefinitionError, InvalidValue, NotStorable
from retold.personal import record_fields
from retold.registry import full_name

if TYPE_CHECKING:
    from retold.aggregates import Aggregate
    from retold.codecs import Codec

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
    info = cast("inspect.StructType", inspect.type_info(cls))
    fields = [field for field in info.fields if field.name != "_bound"]
    given = [field for field in fields if field.default is not msgspec.NODEFAULT]
    shape = [_shape(fields, ()), cls.__snapshot_version__]
    try:
        defaults = {field.name: _default(field.default, codec) for field in given}
        canonical = codec.encode([defaults, shape])
    except TypeError as error:
        raise DefinitionError(
            f"{full_name(cls)} cannot be kept as a snapshot: {error}. Teach the store the type with "
            "Codec().add(…), or leave out snapshots="
        ) from None
    return f"{cls.__entity_type__}/{hashlib.sha256(canonical).hexdigest()[:16]}"


def _default(value: object, codec: Codec) -> object:
    """A default whose sets are in the same order in every process."""
    if isinstance(value, frozenset):
        items = cast("frozenset[object]", value)
        return sorted(codec.encode(_default(item, codec)) for item in items)
    if isinstance(value, tuple):
        return [_default(item, codec) for item in cast("tuple[object, ...]", value)]
    names = record_fields(value)
    return value if names is None else [_default(getattr(value, name), codec) for name in names]


def _shape(part: object, above: tuple[object, ...]) -> object:
    """A type as JSON: what decides whether an old snapshot still fits it, and nothing else (no
    docstrings, no addresses)."""
    if isinstance(part, (list, tuple)):
        return [_shape(item, above) for item in cast("list[object]", part)]
    if isinstance(part, inspect.Field):
        return [part.encode_name, _shape(part.type, above)]
    if isinstance(part, inspect.Metadata):  # a description
        return _shape(part.type, above)
    if isinstance(part, inspect.Type):
        if any(part is outer for outer in above):
            return type(part).__name__
        inner = [_shape(getattr(part, n), (*above, part)) for n in part.__struct_fields__]
        return [type(part).__name__, *inner]
    if isinstance(part, type):
        values = [repr(member.value) for member in part] if issubclass(part, Enum) else []
        return [part.__qualname__, *values]
    return repr(part)


def encode_state(state: Aggregate, codec: Codec) -> str | None:
    """The JSON of a state, or None (and a warning) for one that does not survive JSON."""
    bound = state._bound
    # the binding is no part of the state
    state._bound = cast("Any", msgspec.UNSET)
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
            without_value(error),
        )
        return None
