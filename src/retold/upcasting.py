"""Upcasting: reading events whose shape has changed since they were written.

The stored name *is* the schema version. A renamed class lists its old names in `formerly=`; a
changed shape gets a new name, and a function registered for the old name says what an old event
means today: one event, several, or none. Results that are themselves old are cast on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from retold.events import Event, event_classes
from retold.registry import check_name, full_name

if TYPE_CHECKING:
    from retold.codecs import Codec

_MAX_CHAIN = 100


@dataclass(frozen=True, slots=True)
class Raw:
    """An event as stored: its name and its JSON object. What an upcaster may return to cast on."""

    name: str
    data: dict[str, Any]


Upcast = Event | Raw | Sequence[Event | Raw] | None
Upcaster = Callable[[dict[str, Any]], Upcast]
F = TypeVar("F", bound=Upcaster)

_upcasters: dict[str, Upcaster] = {}


class UnknownName(LookupError):
    """No class and no upcaster is known for a stored name."""


def upcast(name: str, /) -> Callable[[F], F]:
    """Register a function for events stored as `name`; it gets their JSON object.

    It returns today's event, a `Raw` of a later name, a sequence of these (1→N), or None to drop
    it. Raises DefinitionError when a class or another function already reads the name.
    """
    check_name("an event to upcast", name)

    def register(function: F) -> F:
        event_classes.claim_without_class(name, full_name(function))
        _upcasters[name] = function
        return function

    return register


def is_upcast(name: str) -> bool:
    return name in _upcasters


def upcast_names() -> tuple[str, ...]:
    return tuple(_upcasters)


def read_event(codec: Codec, name: str, data: str) -> tuple[Event, ...]:
    """Today's events for a stored one. Raises UnknownName, or what decoding raises."""
    if name in _upcasters:
        return tuple(_cast(codec, Raw(name, msgspec.json.decode(data, type=dict[str, Any])), 0))
    cls = event_classes.get(name)
    if cls is None:
        raise UnknownName(name)
    return (codec.decoder(cls)(data),)


def _cast(codec: Codec, old: Event | Raw, depth: int) -> Iterator[Event]:
    if isinstance(old, Event):
        yield old
        return
    if depth > _MAX_CHAIN:
        raise ValueError(f"upcasters of {old.name!r} go round in a circle")
    caster = _upcasters.get(old.name)
    if caster is None:
        yield from read_event(codec, old.name, codec.encode(old.data).decode())
        return
    cast = caster(dict(old.data))
    if cast is None:
        return
    parts = cast if isinstance(cast, Sequence) and not isinstance(cast, str) else (cast,)
    for part in parts:
        if not isinstance(part, (Event, Raw)):
            raise TypeError(
                f"the upcaster of {old.name!r} returned {type(part).__name__}; it returns an "
                "event, a Raw, a list of these, or None"
            )
        yield from _cast(codec, part, depth + 1)
