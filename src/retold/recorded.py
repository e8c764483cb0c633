"""Recorded events: an event together with what the store knows about it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

import msgspec

from retold.codecs import without_value
from retold.errors import RetoldError, UnknownEvent, UnreadableEvent
from retold.events import Event
from retold.ids import milliseconds, moment
from retold.metadata import TIME, decode_metadata
from retold.upcasting import UnknownName, read_event

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from retold.codecs import Codec

E_co = TypeVar("E_co", bound=Event, covariant=True)


class Recorded(msgspec.Struct, Generic[E_co], frozen=True):
    """One event as recorded.

    id: the event id. name: the stored event type. time: when it was written (aware, UTC).
    trigger: the id or key whose handling caused it. part: 0, or the place among the events an
    upcaster made of one stored event.
    """

    id: str
    name: str
    event: E_co
    entity_type: str
    entity_id: str
    time: datetime
    metadata: Mapping[str, str]
    trigger: str | None
    part: int = 0


def read_row(
    codec: Codec,
    entity_type: str,
    entity_id: str,
    event_id: str,
    event_type: str,
    event_data: str,
    trigger: str | None,
    metadata: str | None,
) -> list[Recorded[Event]]:
    """What a row of the events table means today: one recorded event, several, or none."""
    found = decode_metadata(metadata)
    time = recorded_time(event_id, found)
    events = read_events(codec, entity_type, entity_id, event_id, event_type, event_data)
    made: list[Recorded[Event]] = []
    for part, event in enumerate(events):
        made.append(
            Recorded(
                event_id, event_type, event, entity_type, entity_id, time, found, trigger, part
            )
        )
    return made


def read_events(
    codec: Codec, entity_type: str, entity_id: str, event_id: str, event_type: str, event_data: str
) -> tuple[Event, ...]:
    """Decode and upcast, with errors that name the row."""
    try:
        return read_event(codec, event_type, event_data)
    except UnknownName as error:
        raise UnknownEvent(event_id, entity_type, entity_id, str(error)) from None
    except RetoldError:
        raise
    except msgspec.MsgspecError as error:
        reason = without_value(error)
        raise UnreadableEvent(event_id, entity_type, entity_id, event_type, reason) from None
    except Exception as error:  # an upcaster is the application's code
        raise UnreadableEvent(
            event_id, entity_type, entity_id, event_type, f"{type(error).__name__}: {error}"
        ) from error


def recorded_time(event_id: str, metadata: Mapping[str, str]) -> datetime:
    """When an event was written: its id's time, or the true one where a fast clock raised the id."""
    true_time = metadata.get(TIME)
    return moment(int(true_time) if true_time else milliseconds(event_id))
