"""Which handler an event of an entity type goes to."""

from __future__ import annotations

from collections.abc import Iterator

from retold.aggregates import Aggregate, appliers_of
from retold.errors import DefinitionError, UsageError
from retold.events import Event, event_name
from retold.registry import full_name
from retold.subscriptions.handling import Handler, Route, Routes
from retold.upcasting import upcast_names


class Handlers:
    """The handlers of a subscription or projection, as they are registered. owner: for errors."""

    def __init__(self, owner: str) -> None:
        self._owner = owner
        self._registered: list[tuple[type[Event], str | None, Route]] = []

    def __iter__(self) -> Iterator[Handler]:
        return (route.handler for _, _, route in self._registered)

    def check(self, event_class: object) -> None:
        """Raises UsageError for what is no event class."""
        if not (isinstance(event_class, type) and issubclass(event_class, Event)):
            raise UsageError(f"on(…) takes an Event class, not {event_class!r}")

    def add(self, event_class: type[Event], of: str | type[Aggregate] | None, route: Route) -> None:
        """Raises DefinitionError for a second handler of the same event."""
        topic = of if of is None or isinstance(of, str) else of.__entity_type__
        for known, known_topic, _ in self._registered:
            if known is event_class and known_topic == topic:
                raise DefinitionError(
                    f"{self._owner} has two handlers for {event_name(event_class)}"
                )
        self._registered.append((event_class, topic, route))

    def routes(self) -> Routes:
        """Raises DefinitionError where it is not clear whose events are meant."""
        if not self._registered:
            raise DefinitionError(f"{self._owner} has no handlers: use @….on(Event)")
        routes: dict[tuple[str, type[Event]], Route] = {}
        for event_class, topic, handled in self._registered:
            route = (topic or self._only_applier(event_class), event_class)
            if route in routes:
                raise DefinitionError(
                    f"{self._owner} has two handlers for {event_name(event_class)} of {route[0]}"
                )
            routes[route] = handled
        return routes

    def _only_applier(self, event_class: type[Event]) -> str:
        found = appliers_of(event_class)
        if len(found) == 1:
            return found[0].__entity_type__
        listed = ", ".join(full_name(cls) for cls in found) or "no aggregate of this process does"
        raise DefinitionError(
            f"{self._owner}: which entities' {event_name(event_class)} is meant? "
            f"Say on(…, of=…). Aggregates that apply it: {listed}"
        )


def wanted_by(routes: Routes) -> tuple[list[str], list[str]]:
    """The entity types and the stored names of events that go to handlers, old names included."""
    types = {name for _, cls in routes for name in cls.__event_names__} | set(upcast_names())
    return sorted({entity_type for entity_type, _ in routes}), sorted(types)
