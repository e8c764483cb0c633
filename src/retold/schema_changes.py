"""What a change of the code does to stored events: what can be read no more, and what to write.

An addition is safe when everything that is stored is still read, and means what it meant: a new
event, a field with a default, one more type in a union, one more value in an enum. Everything else
needs a new name and an upcaster (docs/adr/0010-stored-names.md).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from retold.events import Event
from retold.schema import EventSchema, Fields, Schema, Shape, schema_of

_PARTS = {"item", "key", "value"}
_VERSION = re.compile(r"(.+)\.v(\d+)")


@dataclass(frozen=True, slots=True)
class Problem:
    """Stored events of one name that today's code does not read as what they were.

    name: the stored name. reasons: what changed. advice: what to write, in lines.
    """

    name: str
    reasons: tuple[str, ...]
    advice: str

    def __str__(self) -> str:
        return f"{self.name}: {'; '.join(self.reasons)}\n{self.advice}"


def problems(
    locked: Schema, classes: Iterable[type[Event]], upcasters: Iterable[str]
) -> Iterator[Problem]:
    """What stands between the events stored under a schema and today's classes and upcasters."""
    upcast = set(upcasters)
    readers = {name: cls for cls in classes for name in cls.__event_names__}
    today = schema_of(dict.fromkeys(readers.values()))
    known = {name for entry, event in locked.events.items() for name in (entry, *event.formerly)}
    fresh = {
        name: cls
        for name, cls in readers.items()
        if name == cls.__event_name__ and name not in known
    }
    for current, event in sorted(locked.events.items()):
        for name in (current, *event.formerly):
            if name in upcast:
                continue
            cls = readers.get(name)
            if cls is None:
                yield _unread(name, event, fresh, today)
                continue
            found = today.events[cls.__event_name__].fields
            # A reason is told once, under the name that events are written with.
            if name == current or readers.get(current) is not cls:
                reasons = tuple(_field_changes(event.fields, found))
                if reasons:
                    yield Problem(name, reasons, _advice(name, cls, event.fields, found))
    for name in locked.upcasters:
        if name in upcast:
            continue
        if name in readers:
            reason = f"it was upcast, and now {readers[name].__name__} reads it as it is stored"
        else:
            reason = "its upcaster is gone, and nothing else reads events of this name"
        yield Problem(name, (reason,), _indented(_dropping(name)))


# --- what changed --------------------------------------------------------------------------------


def _field_changes(old: Fields, new: Fields, inside: str = "") -> Iterator[str]:
    for name, was in old.items():
        where = inside + name
        if name not in new:
            yield f"the field {where} is gone"
            continue
        now = new[name]
        yield from _type_changes(was["type"], now["type"], where)
        if "default" in was and "default" not in now:
            yield f"{where} has lost its default, and events may be stored without it"
        elif "default" in was and was["default"] != now["default"]:
            yield (
                f"the default of {where} was {was['default']!r} and is {now['default']!r}: events "
                "stored without it would mean something else"
            )
        if "personal" in was and was["personal"] != now.get("personal"):
            mark = now.get("personal")
            yield (
                f"{where} was personal data of {was['personal']!r} and is "
                + (f"of {mark!r}" if mark else "marked no more")
            )
    for name, now in new.items():
        if name not in old and "default" not in now:
            yield f"the field {inside + name} is new and has no default, and events are stored without it"


def _type_changes(old: Shape, new: Shape, where: str) -> Iterator[str]:
    was, now = _parts(old), _parts(new)
    if was == now:
        return
    changed = f"{where} was {_shown(old)} and is {_shown(new)}"
    if "union" in (was["is"], now["is"]):
        if not all(any(_fits(o, n) for n in _members(now)) for o in _members(was)):
            yield changed
    elif was["is"] == now["is"] == "one of":
        if not all(value in now["values"] for value in was["values"]):
            yield changed
    elif was["is"] == now["is"] == "record":
        if _frame(was) != _frame(now):
            yield changed
        else:
            yield from _field_changes(was["fields"], now["fields"], f"{where}.")
    elif was["is"] == now["is"] and was["is"] in ("list", "set", "dict"):
        if _bounds(was) != _bounds(now):
            yield changed
        else:
            for part in sorted(_PARTS & was.keys()):
                yield from _type_changes(was[part], now[part], f"{where}[]")
    else:
        yield changed


def _fits(old: Shape, new: Shape) -> bool:
    return not any(_type_changes(old, new, ""))


def _parts(shape: Shape) -> dict[str, Any]:
    return cast("dict[str, Any]", shape) if isinstance(shape, dict) else {"is": shape}


def _members(parts: dict[str, Any]) -> list[Shape]:
    return cast("list[Shape]", parts["of"]) if parts["is"] == "union" else [parts]


def _shown(shape: Shape) -> str:
    parts = _parts(shape)
    word = str(parts["is"])
    if word == "union":
        return " | ".join(map(_shown, parts["of"]))
    if word == "one of":
        return f"one of {', '.join(map(repr, parts['values']))}"
    if word == "record":
        return f"{{{', '.join(parts['fields'])}}}"
    if word == "custom":
        return str(parts["name"])
    inner = [_shown(parts[part]) for part in ("item", "key", "value") if part in parts]
    inner += map(_shown, parts.get("items", ()))
    bounds = [f"{name}={value!r}" for name, value in _bounds(parts).items()]
    word += f"[{', '.join(inner)}]" if inner else ""
    return f"{word} ({', '.join(bounds)})" if bounds else word


def _bounds(parts: dict[str, Any]) -> dict[str, Any]:
    """What is said of a type beside its parts, such as the least number it allows."""
    return {name: parts[name] for name in sorted(parts.keys() - _PARTS - {"is", "items"})}


def _frame(record: dict[str, Any]) -> dict[str, Any]:
    """What is said of a record beside its fields. In one without names the order is the meaning."""
    return {name: record[name] for name in record.keys() - {"fields"}}


# --- what to write -------------------------------------------------------------------------------


def _advice(name: str, cls: type[Event], old: Fields, new: Fields) -> str:
    if all("personal data" in reason for reason in _field_changes(old, new)):
        return "  Mark it again, or, if that is meant, write the schema anew."
    found = _VERSION.fullmatch(name)
    later = f"{found[1]}.v{int(found[2]) + 1}" if found else f"{name}.v2"
    parts = ["**old"] if old else []
    for field, now in new.items():
        was = old.get(field)
        if was is None:
            parts += [f'"{field}": ...'] if "default" not in now else []
        elif not _fits(was["type"], now["type"]):
            parts.append(f'"{field}": ...')
        elif "default" in was and was["default"] != now.get("default", ...):
            default: object = was["default"]
            known = "..." if isinstance(default, dict) else repr(default)
            parts.append(f'"{field}": old.get("{field}", {known})')
    today = "old" if parts == ["**old"] else f"{{{', '.join(parts)}}}"
    code = [
        f'class {cls.__name__}(Event, name="{later}"): ...',
        "",
        f'@upcast("{name}")',
        f"def {_function(name)}(old: dict[str, Any]) -> Raw:",
        f'    return Raw("{later}", {today})',
    ]
    return (
        "  Undo that, or give the new shape a new name, and say what stored JSON means today:\n"
        + _indented(code)
    )


def _unread(
    name: str, event: EventSchema, fresh: Mapping[str, type[Event]], today: Schema
) -> Problem:
    lines: list[str] = []
    for later, cls in fresh.items():
        fields = today.events[later].fields
        if fields and not any(_field_changes(event.fields, fields)):
            lines += [
                f"# if {cls.__name__} is its new name",
                f'class {cls.__name__}(Event, name="{later}", formerly=("{name}",)): ...',
                "",
                "# if not",
            ]
            break
    reason = "no class and no upcaster reads events of this name any more"
    advice = "  Bring its class back, or say what a stored event means today:\n"
    return Problem(name, (reason,), advice + _indented([*lines, *_dropping(name)]))


def _dropping(name: str) -> list[str]:
    return [
        f'@upcast("{name}")',
        f"def {_function(name)}(old: dict[str, Any]) -> Event | None:",
        "    return None  # drops it; or return the event it is today",
    ]


def _function(name: str) -> str:
    last = _VERSION.sub(r"\1_v\2", name).rpartition(".")[2]
    return "_" + re.sub(r"\W+", "_", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", last)).lower()


def _indented(lines: Iterable[str]) -> str:
    return "\n".join(f"    {line}".rstrip() for line in lines)
