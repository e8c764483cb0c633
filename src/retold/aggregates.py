"""Aggregates: state, the commands that decide, and the appliers that change it.

An aggregate is a mutable msgspec Struct of declared fields. Commands check rules and `emit`;
appliers alone change state, so that replaying the events gives the same state again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Generic,
    TypeVar,
    cast,
    get_args,
    get_type_hints,
    overload,
)

import msgspec

from retold.errors import DefinitionError, NoApplier, RetoldError, UsageError
from retold.events import Event, event_classes, event_name
from retold.personal import masked, shown
from retold.recorded import read_events
from retold.registry import Names, check_name
from retold.upcasting import is_upcast

A = TypeVar("A", bound="Aggregate")
S = TypeVar("S")
E = TypeVar("E", bound=Event)

Applier = Callable[[Any, Any], None]


class Binding:
    """What ties a state to an entity: its id, and the events emitted but not yet stored."""

    __slots__ = ("applying", "emitted", "id")

    def __init__(self, id: str) -> None:
        self.id = id
        self.emitted: list[Event] = []
        self.applying = False


if TYPE_CHECKING:
    from typing import dataclass_transform

    from retold.codecs import Codec
    from retold.snapshots import SnapshotStrategy

    @dataclass_transform(kw_only_default=True, field_specifiers=(msgspec.field,))
    class Aggregate:
        """An entity's state and rules: `class Account(Aggregate, name="bank.Account")`.

        name: the stored entity type, and the topic its events are published to; kept for ever.
        ignores: events of this aggregate that change no state, so that they need no applier.
        snapshots: when to keep a snapshot, `every(100)` for one; none are kept by default.
        snapshot_version: raise it when appliers change what they make of old events.

        State is declared as fields, each with a default. Raises DefinitionError for a missing or
        doubly used name, a field without default, or a mutable default that is not empty.
        """

        _bound: Binding
        __appliers__: ClassVar[dict[type[Event], Applier]]
        __entity_type__: ClassVar[str]
        __ignores__: ClassVar[frozenset[type[Event]]]
        __snapshots__: ClassVar[SnapshotStrategy | None]
        __snapshot_version__: ClassVar[int]
        __struct_fields__: ClassVar[tuple[str, ...]]

        def __init_subclass__(
            cls,
            *,
            name: str,
            ignores: Sequence[type[Event]] = (),
            snapshots: SnapshotStrategy | None = None,
            snapshot_version: int = 1,
        ) -> None: ...

        @property
        def id(self) -> str:
            """The entity's id."""
            ...

        def emit(self, event: Event, /) -> None:
            """Apply an event and keep it to be stored when the command returns.

            Raises NoApplier where the aggregate neither applies nor ignores it.
            """

else:

    class _AggregateMeta(msgspec.StructMeta):
        def __new__(
            mcs,
            cls_name,
            bases,
            namespace,
            /,
            *,
            name=None,
            ignores=(),
            snapshots=None,
            snapshot_version=1,
        ):
            root = not any(isinstance(base, _AggregateMeta) for base in bases)
            if not root:
                if name is None:
                    raise DefinitionError(
                        f"{cls_name} needs a stored name: class {cls_name}(Aggregate, name=…)"
                    )
                check_name(f"the aggregate {cls_name}", name)
                for taken in ("id", "emit", "_bound"):
                    if taken in namespace or taken in namespace.get("__annotations__", {}):
                        raise DefinitionError(
                            f"{cls_name}.{taken} hides a name every aggregate has; call the field "
                            "something else"
                        )
            try:
                cls = super().__new__(
                    mcs, cls_name, bases, namespace, kw_only=True, eq=False, weakref=True
                )
                if not root:
                    cls()
            except TypeError as error:
                raise DefinitionError(
                    f"{cls_name}: every field of the state needs an immutable or empty default, "
                    f"so that an entity can begin without events ({error})"
                ) from None
            for default in cls.__struct_defaults__:
                if type(default).__hash__ is None:
                    raise DefinitionError(
                        f"{cls_name}: the default {default!r} is mutable, and all entities would "
                        "share it. Use msgspec.field(default_factory=…)"
                    )
            appliers = {}
            for base in reversed(cls.__mro__):
                appliers.update(getattr(base, "__appliers__", {}))
            for method in namespace.values():
                if (marked := getattr(method, "__applies__", None)) is not None:
                    for event_class in marked or _annotated_events(cls_name, method):
                        appliers[event_class] = method
            cls.__appliers__ = appliers
            cls.__ignores__ = frozenset(ignores)
            cls.__snapshots__ = snapshots
            cls.__snapshot_version__ = snapshot_version
            cls.__entity_type__ = name
            if not root:
                aggregate_classes.claim(name, cls)
            return cls

        def __init__(cls, cls_name, bases, namespace, /, **options):
            super().__init__(cls_name, bases, namespace)

    class Aggregate(msgspec.Struct, metaclass=_AggregateMeta):
        # UNSET fields are left out of JSON, so a snapshot holds the declared state alone.
        _bound: msgspec.UnsetType = msgspec.UNSET

        @property
        def id(self):
            if self._bound is msgspec.UNSET:
                raise UsageError(f"this {type(self).__name__} belongs to no entity, it has no id")
            return self._bound.id

        def emit(self, event, /):
            bound = self._bound
            if bound is msgspec.UNSET or bound.applying:
                raise UsageError(
                    f"{type(self).__name__}.emit is for commands, which a repository runs; an "
                    "applier must not emit"
                )
            applier = self.__appliers__.get(type(event))
            if applier is not None:
                bound.applying = True
                try:
                    applier(self, event)
                finally:
                    bound.applying = False
            elif not isinstance(event, Event):
                raise UsageError(f"emit takes an event, not {event!r}")
            elif type(event) not in self.__ignores__:
                raise NoApplier(self.__entity_type__, event_name(event))
            bound.emitted.append(event)

        def __eq__(self, other):
            if type(other) is not type(self):
                return NotImplemented
            names = state_fields(type(self))
            return all(getattr(self, name) == getattr(other, name) for name in names)

        __hash__ = None

        def __repr__(self):
            return masked(self)

        def __rich_repr__(self):
            yield from shown(self)


aggregate_classes: Names[Aggregate] = Names("aggregate")


def _annotated_events(cls_name: str, method: Callable[..., object]) -> tuple[type[Event], ...]:
    try:
        hints = get_type_hints(method)
    except NameError as error:
        raise DefinitionError(
            f"{cls_name}.{method.__name__}: the annotation cannot be read here ({error}). For a "
            "class local to a function write @applies(EventClass)"
        ) from None
    hints.pop("return", None)
    annotations = list(hints.values())
    classes = get_args(annotations[0]) or (annotations[0],) if len(annotations) == 1 else ()
    if not classes or not all(isinstance(c, type) and issubclass(c, Event) for c in classes):
        raise DefinitionError(
            f"{cls_name}.{method.__name__}: an applier takes one event and annotates its class: "
            "def _opened(self, event: Opened) -> None"
        )
    return classes


@overload
def applies(
    *event_classes: type[E],
) -> Callable[[Callable[[S, E], None]], Callable[[S, E], None]]: ...
@overload
def applies(method: Callable[[S, E], None], /) -> Callable[[S, E], None]: ...
def applies(*marked: Any) -> Any:
    """Mark a method as the applier of the event its parameter is annotated with.

    `@applies(Opened)` names the event where an annotation cannot (classes local to a function).
    """
    if all(isinstance(item, type) for item in marked):

        def mark(method: Any) -> Any:
            method.__applies__ = marked
            return method

        return mark
    (method,) = marked
    method.__applies__ = ()
    return method


def state_fields(cls: type[Aggregate]) -> tuple[str, ...]:
    """The declared fields of a state."""
    return tuple(name for name in cls.__struct_fields__ if name != "_bound")


Rows = Iterable[Sequence[Any]]


class Replay(Generic[A]):
    """Rebuilds the state of one aggregate class from stored events."""

    def __init__(self, aggregate_class: type[A], codec: Codec) -> None:
        self.aggregate_class = aggregate_class
        self.entity_type = aggregate_class.__entity_type__
        self._codec = codec
        self._appliers = aggregate_class.__appliers__
        self._steps: dict[str, tuple[Callable[[str], Event], Applier]] = {}

    def blank(self, entity_id: str) -> A:
        state = self.aggregate_class()
        state._bound = Binding(entity_id)
        return state

    def apply(self, state: A, rows: Rows) -> str | None:
        """Apply rows (event_id, event_type, event_data) in order; the last id, None without rows.

        Raises UnknownEvent, UnreadableEvent, NoApplier.
        """
        bound = state._bound
        bound.applying = True
        steps = self._steps
        event_id = name = data = ""
        try:
            for event_id, name, data in rows:
                step = steps.get(name)
                if step is not None:
                    step[1](state, step[0](data))
                else:
                    self._first_of_its_name(state, event_id, name, data)
        except RetoldError:
            raise
        except Exception:
            # Read again, slowly, for the error that names the row; an applier's own error stays.
            read_events(self._codec, self.entity_type, bound.id, event_id, name, data)
            raise
        finally:
            bound.applying = False
        return event_id or None

    def _first_of_its_name(self, state: A, event_id: str, name: str, data: str) -> None:
        """Apply an event the slow way, and remember the fast way where there is one."""
        bound = state._bound
        for event in read_events(self._codec, self.entity_type, bound.id, event_id, name, data):
            applier = self._appliers.get(type(event))
            if applier is not None:
                applier(state, event)
            elif type(event) not in self.aggregate_class.__ignores__:
                raise NoApplier(self.entity_type, event_name(event))
        cls = event_classes.get(name)
        if cls is None or is_upcast(name):
            return
        applier = self._appliers.get(cls, _nothing)
        self._steps[name] = (cast("Callable[[str], Event]", self._codec.decoder(cls)), applier)


def _nothing(state: Any, event: Any) -> None:
    """The applier of an ignored event."""


def check_aggregate(cls: object) -> type[Aggregate]:
    if not (isinstance(cls, type) and issubclass(cls, Aggregate)):
        raise UsageError(f"{cls!r} is not an Aggregate class")
    return cls


def appliers_of(event_class: type[Event]) -> tuple[type[Aggregate], ...]:
    """The aggregates of this process that apply or ignore an event."""
    return tuple(
        cls
        for cls in aggregate_classes
        if event_class in cls.__appliers__ or event_class in cls.__ignores__
    )
