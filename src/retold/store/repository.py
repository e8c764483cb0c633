"""Repositories: the verbs for one aggregate class, blocking and awaited.

A repository is an immutable value. `with_id`, `once` and `expecting` return views of it, because a
command's own arguments leave no room for options of ours.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from datetime import datetime
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar, overload
from uuid import UUID

from retold.aggregates import Aggregate
from retold.entity import Changed, Entity
from retold.errors import NotFound, UsageError
from retold.events import Event
from retold.recorded import Recorded
from retold.store.options import Options, check_id, check_key
from retold.store.performing import Perform, PerformAsync
from retold.store.plans import Verbs

A = TypeVar("A", bound=Aggregate)
D = TypeVar("D")
R = TypeVar("R")
T = TypeVar("T")
P = ParamSpec("P")


class _Views(Generic[A]):
    """What both kinds of repository share: the verbs, the options, and views with other options."""

    _verbs: Verbs[A]
    _options: Options

    def _view(self, **changes: Any) -> Self:
        view = object.__new__(type(self))
        view.__dict__.update(self.__dict__)
        given = {name: getattr(self._options, name) for name in Options.__slots__}
        view._options = Options(**{**given, **changes})
        return view

    def with_id(self, id: str | UUID, /) -> Self:
        """A view whose `create` uses this id (1 to 255 characters)."""
        return self._view(id=check_id(id))

    def once(self, key: str, /) -> Self:
        """A view whose next `create` or `update` is idempotent under a key of the caller's.

        A repeated call finds the key, does not run the command, and returns `duplicate=True`.
        Raises KeyReused when the key comes with another command.
        """
        return self._view(key=check_key(key))

    def expecting(self, version: str, /) -> Self:
        """A view whose `update` raises VersionConflict, without a retry, at any other version."""
        return self._view(expected=version)

    def _caused_by(self, trigger: str, key: str, id: str | None = None) -> Self:
        return self._view(trigger=trigger, key=key, id=id)

    def _for_create(self) -> Options:
        options = self._options
        if options.expected is not None:
            raise UsageError("expecting(…) is for update: an entity to be created has no version")
        if options.key is not None and options.id is None:
            return self._view(id=derived_id(self._verbs.entity_type, options.key))._options
        return options

    def _for_update(self, id: str | UUID) -> str:
        if self._options.id is not None:
            raise UsageError("with_id(…) is for create: update takes the id as its first argument")
        return check_id(id)


def derived_id(*parts: str) -> str:
    """An entity id that follows from what caused the entity: the same cause, the same id."""
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    return f"{digest[:16]}-{digest[16:32]}"


class Repository(_Views[A]):
    """Find, create and update entities of one aggregate class. Safe to share between threads."""

    def __init__(self, verbs: Verbs[A], perform: Perform, options: Options | None = None) -> None:
        self._verbs = verbs
        self._perform = perform
        self._options = options or Options()

    def create(
        self, command: Callable[Concatenate[A, P], R], /, *args: P.args, **kwargs: P.kwargs
    ) -> Changed[A, R]:
        """Run a command on a new entity and store what it emits, in one transaction.

        Raises EntityExists for an id in use, NothingEmitted for a command that emits no event.
        """
        return self._perform(self._verbs.create(self._for_create(), command, *args, **kwargs))

    def update(
        self,
        id: str | UUID,
        command: Callable[Concatenate[A, P], R],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Changed[A, R]:
        """Load an entity, run a command on it, append what it emits; again on a conflict.

        Raises NotFound, what the command raises, and VersionConflict when the retries are used up.
        """
        id = self._for_update(id)
        return self._perform(self._verbs.update(id, self._options, command, *args, **kwargs))

    def create_or_update(
        self,
        id: str | UUID,
        command: Callable[Concatenate[A, P], R],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Changed[A, R]:
        """As update, but a missing entity is created by the same command."""
        id = self._for_update(id)
        return self._perform(
            self._verbs.create_or_update(id, self._options, command, *args, **kwargs)
        )

    @overload
    def find(self, id: str | UUID, /, *, at: str | datetime | None = None) -> Entity[A]: ...
    @overload
    def find(
        self, id: str | UUID, /, *, at: str | datetime | None = None, default: D
    ) -> Entity[A] | D: ...
    def find(
        self, id: str | UUID, /, *, at: str | datetime | None = None, default: Any = NotFound
    ) -> Any:
        """The entity as it is, or as it was at a version or an aware datetime.

        Raises NotFound, unless a default is given.
        """
        id = check_id(id)
        found = self._perform(self._verbs.find(id, at))
        if found is None and default is NotFound:
            raise NotFound(self._verbs.entity_type, id)
        return default if found is None else found

    def find_many(self, ids: Iterable[str | UUID], /) -> dict[str, Entity[A]]:
        """Those of the entities that exist, by id, in the order asked for; one query."""
        return self._perform(self._verbs.find_many([check_id(id) for id in ids]))

    def exists(self, id: str | UUID, /) -> bool:
        return self._perform(self._verbs.exists(check_id(id)))

    def history(self, id: str | UUID, /) -> Iterator[Recorded[Event]]:
        """The entity's events in order, read page by page. Raises NotFound."""
        id, after, more = check_id(id), "", True
        while more:
            page, after = self._perform(self._verbs.history(id, after))
            yield from page
            more = after != ""

    def entities(self) -> Iterator[str]:
        """The ids of all entities of this type, in byte order, read page by page."""
        after = ""
        while page := self._perform(self._verbs.entities(after)):
            yield from page
            after = page[-1]


class AsyncRepository(_Views[A]):
    """The same verbs, awaited."""

    def __init__(
        self, verbs: Verbs[A], perform: PerformAsync, options: Options | None = None
    ) -> None:
        self._verbs = verbs
        self._perform = perform
        self._options = options or Options()

    async def create(
        self, command: Callable[Concatenate[A, P], R], /, *args: P.args, **kwargs: P.kwargs
    ) -> Changed[A, R]:
        """As Repository.create."""
        return await self._perform(self._verbs.create(self._for_create(), command, *args, **kwargs))

    async def update(
        self,
        id: str | UUID,
        command: Callable[Concatenate[A, P], R],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Changed[A, R]:
        """As Repository.update."""
        id = self._for_update(id)
        return await self._perform(self._verbs.update(id, self._options, command, *args, **kwargs))

    async def create_or_update(
        self,
        id: str | UUID,
        command: Callable[Concatenate[A, P], R],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Changed[A, R]:
        """As Repository.create_or_update."""
        id = self._for_update(id)
        return await self._perform(
            self._verbs.create_or_update(id, self._options, command, *args, **kwargs)
        )

    @overload
    async def find(self, id: str | UUID, /, *, at: str | datetime | None = None) -> Entity[A]: ...
    @overload
    async def find(
        self, id: str | UUID, /, *, at: str | datetime | None = None, default: D
    ) -> Entity[A] | D: ...
    async def find(
        self, id: str | UUID, /, *, at: str | datetime | None = None, default: Any = NotFound
    ) -> Any:
        """As Repository.find."""
        id = check_id(id)
        found = await self._perform(self._verbs.find(id, at))
        if found is None and default is NotFound:
            raise NotFound(self._verbs.entity_type, id)
        return default if found is None else found

    async def find_many(self, ids: Iterable[str | UUID], /) -> dict[str, Entity[A]]:
        """As Repository.find_many."""
        return await self._perform(self._verbs.find_many([check_id(id) for id in ids]))

    async def exists(self, id: str | UUID, /) -> bool:
        return await self._perform(self._verbs.exists(check_id(id)))

    async def history(self, id: str | UUID, /) -> AsyncIterator[Recorded[Event]]:
        """As Repository.history."""
        id, after, more = check_id(id), "", True
        while more:
            page, after = await self._perform(self._verbs.history(id, after))
            for recorded in page:
                yield recorded
            more = after != ""

    async def entities(self) -> AsyncIterator[str]:
        """As Repository.entities."""
        after = ""
        while page := await self._perform(self._verbs.entities(after)):
            for id in page:
                yield id
            after = page[-1]
