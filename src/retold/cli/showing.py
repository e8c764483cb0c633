"""How commands show stored events: as they are stored, or as the application means them.

Only the application knows which fields are personal. Where its modules are loaded these are masked;
where they are not, an event is shown as it is stored, and that is said.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any, cast

import msgspec

from retold.errors import InvalidValue
from retold.ids import id_since
from retold.metadata import decode_metadata
from retold.personal import MASK, masked, personal_fields, record_fields
from retold.recorded import read_events, recorded_time

if TYPE_CHECKING:
    from datetime import datetime

    from retold.codecs import Codec
    from retold.events import Event
    from retold.store.listing import StoredEvent

AS_STORED = "events are shown as they are stored; with --app MODULE personal fields are masked"


def note(text: str) -> None:
    """Say something beside the output, where a person reads along."""
    if sys.stderr.isatty():
        print(f"note: {text}", file=sys.stderr, flush=True)


def time_of(event: StoredEvent) -> str:
    """When an event was written, in UTC."""
    return iso(recorded_time(event.id, decode_metadata(event.metadata)))


def iso(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def meaning(codec: Codec, event: StoredEvent) -> tuple[Event, ...]:
    """What a stored event means to the application today: one event, several or none.

    Raises UnknownEvent, UnreadableEvent.
    """
    return read_events(codec, event.entity_type, event.entity_id, event.id, event.type, event.data)


def in_words(codec: Codec | None, event: StoredEvent) -> str:
    """What an event says, on one line."""
    if codec is None:
        return f"{event.type} {event.data}"
    today = meaning(codec, event)
    return ", ".join(map(masked, today)) or f"{event.type} (dropped by an upcaster)"


def print_line(text: str) -> None:
    """One line, whatever is in it: what a terminal would take for a command is spelt out."""
    if not text.isprintable():
        text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    print(text)


def fields_of(codec: Codec | None, event: StoredEvent) -> dict[str, object]:
    """An event for JSON: `data` is the JSON that is stored, or what the application makes of it."""
    data: object
    if codec is None:
        data = _stored(event.data)
    else:
        today = [without_personal(one) for one in meaning(codec, event)]
        data = today[0] if len(today) == 1 else today
    return {
        "id": event.id,
        "time": time_of(event),
        "entity_type": event.entity_type,
        "entity_id": event.entity_id,
        "type": event.type,
        "data": data,
        "trigger": event.trigger,
        "metadata": decode_metadata(event.metadata),
    }


def _stored(data: str) -> object:
    try:
        return msgspec.json.decode(data)
    except msgspec.MsgspecError:
        return data  # another writer's, and no JSON


def without_personal(value: Any) -> Any:
    """A value made of what JSON knows and of leaves, every personal field in it masked."""
    names = record_fields(value)
    if names is not None:
        marked = personal_fields(cast("type[object]", type(value)))
        return {n: MASK if n in marked else without_personal(getattr(value, n)) for n in names}
    if isinstance(value, Mapping):
        items = cast("Mapping[object, object]", value).items()
        return {str(key): without_personal(item) for key, item in items}
    if isinstance(value, (Sequence, AbstractSet)) and not isinstance(
        value, (str, bytes, bytearray)
    ):
        return [without_personal(item) for item in cast("Sequence[object]", value)]
    return value


def print_json(codec: Codec | None, value: object) -> None:
    """One line of JSON."""
    encoded = msgspec.json.encode(value) if codec is None else codec.encode(value)
    sys.stdout.write(encoded.decode() + "\n")


def first_id_of(option: str, time: str) -> str:
    """What sorts before the ids of this time or later. Raises InvalidValue for what is no time."""
    from datetime import UTC, datetime

    try:
        moment = datetime.fromisoformat(time)
    except ValueError:
        raise InvalidValue(f"{option} {time!r} is no time. Write 2026-01-31T12:00Z") from None
    return id_since(moment if moment.tzinfo else moment.replace(tzinfo=UTC))


def entity_named(text: str) -> tuple[str, str]:
    """The entity type and id of `bank.Account/ann`. Raises InvalidValue."""
    entity_type, slash, entity_id = text.partition("/")
    if not (entity_type and slash and entity_id):
        raise InvalidValue(f"{text!r} names no entity. Write its type and id: bank.Account/ann")
    return entity_type, entity_id
