"""Events: immutable facts with a stored name.

An event is a frozen msgspec Struct. Its name is written with every row and must never change
meaning; a new shape gets a new name (upcasting.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import msgspec

from retold.errors import DefinitionError
from retold.personal import masked, shown
from retold.registry import Names, check_name, full_name

Rename = Literal["lower", "upper", "camel", "pascal", "kebab"] | Mapping[str, str]

if TYPE_CHECKING:
    from typing import dataclass_transform

    @dataclass_transform(frozen_default=True, field_specifiers=(msgspec.field,))
    class Event:
        """A fact about an entity: `class Opened(Event, name="bank.Opened")` with typed fields.

        name: the stored name, 1–200 characters of `[A-Za-z0-9._$-]`; required, kept for ever.
        formerly: older stored names of the same shape, still read as this class.
        rename: JSON names of the fields, as in msgspec (`"camel"` for Java's habits).

        Raises DefinitionError for a missing, malformed or doubly used name.
        """

        __event_name__: ClassVar[str]
        __event_names__: ClassVar[tuple[str, ...]]
        __struct_fields__: ClassVar[tuple[str, ...]]

        def __init_subclass__(
            cls, *, name: str, formerly: Sequence[str] = (), rename: Rename | None = None
        ) -> None: ...

else:

    class _EventMeta(msgspec.StructMeta):
        # msgspec's metaclass calls its own first argument `name`, so ours is taken off here.
        def __new__(mcs, cls_name, bases, namespace, /, *, name=None, formerly=(), **options):
            root = not any(isinstance(base, _EventMeta) for base in bases)
            if not root:
                if name is None:
                    raise DefinitionError(
                        f"{cls_name} needs a stored name: class {cls_name}(Event, name=…). It is "
                        "written with every event and must never change"
                    )
                for stored in (name, *formerly):
                    check_name(f"the event {cls_name}", stored)
            cls = super().__new__(mcs, cls_name, bases, namespace, frozen=True, **options)
            if not root:
                cls.__event_name__ = name
                cls.__event_names__ = (name, *formerly)
                # all or nothing: a refused class must leave no name behind
                for stored in cls.__event_names__:
                    event_classes.check_free(stored, full_name(cls))
                for stored in cls.__event_names__:
                    event_classes.claim(stored, cls)
            return cls

        def __init__(cls, cls_name, bases, namespace, /, **options):
            super().__init__(cls_name, bases, namespace)

    class Event(msgspec.Struct, metaclass=_EventMeta):
        __event_name__ = ""

        def __repr__(self) -> str:
            return masked(self)

        def __rich_repr__(self) -> Iterator[tuple[str, Any]]:
            yield from shown(self)


event_classes: Names[Event] = Names("event")


def event_name(event: Event | type[Event]) -> str:
    """The stored name of an event or event class."""
    return event.__event_name__
