"""Personal data: `Annotated[str, Personal("customer_id")]` marks a field as belonging to a person.

Marked values are masked wherever retold shows an event or a state (repr, logs, errors, tools). The
subject names the field that identifies the person; it decides whose key will encrypt the value
(docs/adr/0007-personal-data.md).
"""

from __future__ import annotations

from dataclasses import dataclass, is_dataclass
from functools import cache
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import msgspec

MASK = "‹personal›"


@dataclass(frozen=True, slots=True)
class Personal:
    """Marks a field as personal data of whoever the field `subject` identifies."""

    subject: str


@cache
def personal_fields(cls: type) -> dict[str, Personal]:
    """The marked fields of a class, by name."""
    try:
        hints = get_type_hints(cls, include_extras=True)
    except NameError:  # a class local to a function whose annotations are text
        hints = dict(getattr(cls, "__annotations__", {}))
    marked = {name: _marker(hint) for name, hint in hints.items()}
    return {name: marker for name, marker in marked.items() if marker is not None}


def _marker(hint: object) -> Personal | None:
    if isinstance(hint, str):
        return Personal("?") if "Personal(" in hint else None
    if get_origin(hint) is Annotated:
        for extra in get_args(hint)[1:]:
            if isinstance(extra, Personal):
                return extra
    for part in get_args(hint):
        if isinstance(part, type) or get_origin(part) is not None:
            found = _marker(part)
            if found is not None:
                return found
    return None


def masked(value: Any) -> str:
    """`repr` of a value with every personal field, however deep, masked."""
    cls: type = type(value)  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, msgspec.Struct):
        names = [name for name in cls.__struct_fields__ if not name.startswith("_")]  # type: ignore[attr-defined]
    elif is_dataclass(cls):
        names = list(cls.__dataclass_fields__)
    elif isinstance(value, (list, tuple)):
        inner = ", ".join(masked(item) for item in value)  # pyright: ignore[reportUnknownVariableType]
        return f"[{inner}]" if isinstance(value, list) else f"({inner})"
    elif isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {masked(item)}" for key, item in value.items()) + "}"  # pyright: ignore[reportUnknownVariableType]
    else:
        return repr(value)
    marked = personal_fields(cls)
    shown = (f"{n}={MASK if n in marked else masked(getattr(value, n))}" for n in names)
    return f"{cls.__name__}({', '.join(shown)})"
