"""The schema of an application's events: what a later release must still be able to read.

Names, fields, types, defaults and upcasters as plain JSON, the same for the same classes: a file of
it beside the code tells in review and in CI what a change does to stored events. Where a class lives
and what it is called in Python is no part of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, TypeAlias, cast

import msgspec
from msgspec import inspect

from retold.errors import InvalidValue
from retold.events import Event
from retold.personal import personal_fields

FORMAT = 1

Shape: TypeAlias = Any
"""A type as JSON: a word ("int"), or an object whose "is" is the word and whose rest is its parts."""

Fields: TypeAlias = dict[str, dict[str, Any]]
"""By JSON name: "type", "default" where there is one, "personal" with the subject where marked."""

# Types that are told apart in Python, but neither in JSON nor in what they mean.
_WORDS = {
    "NoneType": "None",
    "VarTupleType": "list",
    "CollectionType": "list",
    "FrozenSetType": "set",
    "FrozenDictType": "dict",
    "ByteArrayType": "bytes",
    "MemoryViewType": "bytes",
    "DateTimeType": "datetime",
    "LiteralType": "one of",
    "EnumType": "one of",
}
_LEFT_OUT = {"left out": True}


class EventSchema(msgspec.Struct, omit_defaults=True):
    """One event: its fields, and the names it had before."""

    fields: Fields
    formerly: list[str] = []


class Schema(msgspec.Struct, rename={"format": "retold_schema"}):
    """All events by stored name, and the old names that upcasters read."""

    events: dict[str, EventSchema]
    upcasters: list[str]
    format: int = FORMAT

    def to_json(self) -> str:
        """Canonical: equal schemas are equal texts."""
        builtins = msgspec.to_builtins(self)
        return json.dumps(builtins, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def read_schema(text: str | bytes) -> Schema:
    """Raises InvalidValue for what `to_json` has not made."""
    try:
        schema = msgspec.json.decode(text, type=Schema)
    except msgspec.MsgspecError as error:
        raise InvalidValue(f"this is no schema of events ({error}); write it anew") from None
    if schema.format != FORMAT:
        raise InvalidValue(
            f"this schema has the format {schema.format}, and this retold knows {FORMAT}: use the "
            "retold that wrote it, or write it anew"
        )
    return schema


def schema_of(classes: Iterable[type[Event]], upcasters: Iterable[str] = ()) -> Schema:
    """The schema of event classes and of the names that are upcast."""
    events = {
        cls.__event_name__: EventSchema(event_fields(cls), sorted(cls.__event_names__[1:]))
        for cls in classes
    }
    return Schema(events, sorted(upcasters))


def event_fields(cls: type[Event]) -> Fields:
    """The fields of an event class. Raises InvalidValue where an annotation cannot be read."""
    try:
        info = cast("inspect.StructType", inspect.type_info(cls))
    except (NameError, TypeError) as error:
        raise InvalidValue(f"the fields of {cls.__qualname__} cannot be read: {error}") from None
    return _fields(info.fields, cls, (info,))


def _fields(fields: Iterable[inspect.Field], cls: type, above: tuple[object, ...]) -> Fields:
    marked = personal_fields(cls)
    found: Fields = {}
    for field in fields:
        described: dict[str, Any] = {"type": _shape(field.type, above)}
        if not field.required:
            described["default"] = _default(field)
        if field.name in marked:
            described["personal"] = marked[field.name].subject
        found[field.encode_name] = described
    return found


def _default(field: inspect.Field) -> object:
    if field.default_factory is not msgspec.NODEFAULT:
        factory: Any = field.default_factory
        if factory in (list, dict, set):
            return cast("object", factory())
        return {"made by": getattr(factory, "__name__", type(factory).__name__)}
    if field.default is msgspec.NODEFAULT or field.default is msgspec.UNSET:
        return _LEFT_OUT
    return _plain(field.default)


def _plain(value: object) -> object:
    return msgspec.to_builtins(value, order="deterministic", enc_hook=repr)


def _shape(part: inspect.Type, above: tuple[object, ...]) -> Shape:
    if isinstance(part, inspect.Metadata):
        return _shape(part.type, above)
    name = type(part).__name__
    word = _WORDS.get(name, name.removesuffix("Type").lower())
    if isinstance(part, inspect.UnionType):
        members = [_shape(member, above) for member in part.types]
        return {"is": "union", "of": sorted(members, key=_canonical)}
    if isinstance(part, inspect.LiteralType):
        return {"is": word, "values": sorted(part.values, key=_canonical)}
    if isinstance(part, inspect.EnumType):
        values = [member.value for member in part.cls]
        return {"is": word, "values": sorted(values, key=_canonical)}
    if isinstance(part, inspect.CustomType):
        return {"is": word, "name": part.cls.__qualname__}
    if isinstance(
        part,
        (inspect.StructType, inspect.DataclassType, inspect.TypedDictType, inspect.NamedTupleType),
    ):
        return _record(part, above)
    shape: dict[str, Any] = {}
    for key in part.__struct_fields__:
        value = getattr(part, key)
        if isinstance(value, inspect.Type):
            shape[key.removesuffix("_type")] = _shape(value, above)
        elif key == "item_types":
            shape["items"] = [_shape(item, above) for item in value]
        elif value is not None:
            shape[key] = value
    return {"is": word, **shape} if shape else word


def _record(
    part: inspect.StructType
    | inspect.DataclassType
    | inspect.TypedDictType
    | inspect.NamedTupleType,
    above: tuple[object, ...],
) -> Shape:
    for levels, outer in enumerate(reversed(above), 1):
        if outer is part:
            return {"is": "record above", "levels": levels}
    record: dict[str, Any] = {
        "is": "record",
        "fields": _fields(part.fields, part.cls, (*above, part)),
    }
    if isinstance(part, inspect.NamedTupleType) or getattr(part, "array_like", False):
        record["order"] = [field.encode_name for field in part.fields]
    if getattr(part, "tag", None) is not None:
        record["tag"] = [getattr(part, "tag_field", None), getattr(part, "tag", None)]
    return record


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True)
