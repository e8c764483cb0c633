"""Personal data: `Annotated[str, Personal("customer_id")]` marks a field as belonging to a person.

Marked values are masked wherever retold shows an event or a state (repr, logs, errors, tools). The
subject names the field that identifies the person; it decides whose key will encrypt the value
(docs/adr/0007-personal-data.md).
"""

from __future__ import annotations

import sys
import weakref
from collections import deque
from dataclasses import dataclass
from inspect import get_annotations
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    ForwardRef,
    Literal,
    cast,
    get_args,
    get_origin,
    is_typeddict,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MASK = "‹personal›"


@dataclass(frozen=True, slots=True)
class Personal:
    """Marks a field as personal data of whoever the field `subject` identifies."""

    subject: str


_UNREADABLE = Personal("?")

_known: weakref.WeakKeyDictionary[type, dict[str, Personal]] = weakref.WeakKeyDictionary()


def personal_fields(cls: type) -> dict[str, Personal]:
    """The marked fields of a class, by name.

    A field whose annotation cannot be read counts as marked: better too little shown than too much.
    """
    marked = _known.get(cls)
    if marked is None:
        marked = dict[str, Personal]()
        for owner in reversed(cls.__mro__):
            for name, hint in get_annotations(owner).items():
                marker = _marker(hint, owner)
                if marker is not None:
                    marked[name] = marker
                else:  # declared anew without the mark
                    marked.pop(name, None)
        _known[cls] = marked
    return marked


def _marker(hint: Any, owner: type, above: tuple[object, ...] = ()) -> Personal | None:
    if isinstance(hint, ForwardRef):
        hint = hint.__forward_arg__
    if isinstance(hint, str):
        module = sys.modules.get(owner.__module__)
        try:
            hint = eval(hint, vars(module) if module else {}, dict(vars(owner)))
        except Exception:  # a class local to a function, or one imported for type checkers only
            return _UNREADABLE
    if any(hint is outer for outer in above):
        return None
    parts: list[Any] = []
    if get_origin(hint) is Annotated:
        inner, *extras = get_args(hint)
        for extra in extras:
            if isinstance(extra, Personal):
                return extra
        parts.append(inner)
    elif get_origin(hint) is not Literal:
        parts += get_args(hint)
    for named in ("__value__", "__supertype__"):  # type X = …, NewType
        if not isinstance(hint, type) and hasattr(hint, named):
            parts.append(getattr(hint, named))
    if is_typeddict(hint):  # its values are plain dicts, which know nothing of their marks
        owner = hint
        parts += hint.__annotations__.values()
    for part in parts:
        found = _marker(part, owner, (*above, hint))
        if found is not None:
            return found
    return None


def record_fields(value: Any) -> tuple[str, ...] | None:
    """The names of a record's fields; None for a value that is no record."""
    cls = cast("Any", type(value))
    if hasattr(cls, "__struct_fields__"):
        names = cls.__struct_fields__
    elif hasattr(cls, "__dataclass_fields__"):
        names = cls.__dataclass_fields__
    elif hasattr(cls, "__attrs_attrs__"):
        names = (field.name for field in cls.__attrs_attrs__)
    elif hasattr(cls, "model_fields"):  # pydantic
        names = cls.model_fields
    elif hasattr(cls, "_fields") and isinstance(value, tuple):
        names = cls._fields
    else:
        return None
    return tuple(name for name in names if name != "_bound")


def masked(value: Any) -> str:
    """`repr` of a value with every personal field, however deep, masked."""
    names = record_fields(value)
    cls = cast("type[object]", type(value))
    if names is not None:
        marked = personal_fields(cls)
        parts = [f"{n}={MASK if n in marked else masked(getattr(value, n))}" for n in names]
        return f"{cls.__name__}({', '.join(parts)})"
    if isinstance(value, dict):
        items = cast("dict[object, object]", value).items()
        return "{" + ", ".join(f"{masked(key)}: {masked(item)}" for key, item in items) + "}"
    if isinstance(value, (*_BRACKETS, deque)) and value:
        parts = [masked(item) for item in cast("Iterable[object]", value)]
        before, after = _BRACKETS.get(cls, (f"{cls.__name__}([", "])"))
        comma = "," if cls is tuple and len(parts) == 1 else ""
        return before + ", ".join(parts) + comma + after
    return repr(value)


_BRACKETS: dict[type, tuple[str, str]] = {
    list: ("[", "]"),
    tuple: ("(", ")"),
    set: ("{", "}"),
    frozenset: ("frozenset({", "})"),
}


class _Text:
    """Something already put into words: rich shows it as it is, without looking inside."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


def shown(value: Any) -> Iterator[tuple[str, _Text]]:
    """The fields of a record as rich may show them."""
    marked = personal_fields(cast("type[object]", type(value)))
    for name in record_fields(value) or ():
        yield name, _Text(MASK if name in marked else masked(getattr(value, name)))
