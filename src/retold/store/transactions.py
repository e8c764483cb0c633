"""Transactions over several entities, the store's own or joined ones of the user's."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from retold.aggregates import Aggregate, check_aggregate
from retold.errors import StoreError, TransactionRolledBack, UsageError
from retold.store.dialects import Dialect
from retold.store.driver import AsyncConnection, Connection, Plan, adrive, drive
from retold.store.options import Settings
from retold.store.performing import performing, performing_async
from retold.store.plans import Verbs
from retold.store.repository import AsyncRepository, Repository

A = TypeVar("A", bound=Aggregate)
T = TypeVar("T")


class Kept:
    """Verbs by aggregate class, for one dialect and one way of running."""

    def __init__(self, dialect: Dialect, settings: Settings, *, owned: bool) -> None:
        self.dialect = dialect
        self.settings = settings
        self._owned = owned
        self._verbs: dict[type[Aggregate], Verbs[Any]] = {}

    def verbs(self, aggregate_class: type[A]) -> Verbs[A]:
        verbs = self._verbs.get(aggregate_class)
        if verbs is None:
            check_aggregate(aggregate_class)
            verbs = Verbs(aggregate_class, self.dialect, self.settings, owned=self._owned)
            self._verbs[aggregate_class] = verbs
        return verbs


class _Whole:
    """Keeps a transaction of the store's own from being committed in part.

    What a plan refuses (a conflict, an existing entity) it leaves in order. An error of the
    database, or an interruption in the middle of a plan, may have undone the transaction or left
    half a change in it, and the caller may have caught that.
    """

    _owned: bool
    _cause: BaseException | None = None

    def _note(self, error: BaseException) -> None:
        broken = isinstance(error, (StoreError, TransactionRolledBack))
        if self._owned and (broken or not isinstance(error, Exception)):
            self._cause = error

    def _check_whole(self) -> None:
        if self._cause is not None:
            reason = f"after an error inside it: {self._cause!r}"
            raise TransactionRolledBack(reason) from self._cause


class Transaction(_Whole):
    """Repositories inside one transaction. Conflicts are not retried here."""

    def __init__(self, kept: Kept, connection: Connection, *, owned: bool = False) -> None:
        self._kept = kept
        self._connection: Connection | None = connection
        self._owned = owned
        self._perform = performing(self._run)

    def repository(self, aggregate_class: type[A], /) -> Repository[A]:
        return Repository(self._kept.verbs(aggregate_class), self._perform)

    def _run(self, plan: Plan[T]) -> T:
        if self._connection is None:
            raise UsageError("this transaction has ended; begin another")
        self._check_whole()
        try:
            return drive(self._connection.execute, plan)
        except BaseException as error:
            self._note(error)
            raise

    def _close(self) -> None:
        self._connection = None


class AsyncTransaction(_Whole):
    """Repositories inside one transaction, awaited."""

    def __init__(self, kept: Kept, connection: AsyncConnection, *, owned: bool = False) -> None:
        self._kept = kept
        self._connection: AsyncConnection | None = connection
        self._owned = owned
        self._perform = performing_async(self._run)

    def repository(self, aggregate_class: type[A], /) -> AsyncRepository[A]:
        return AsyncRepository(self._kept.verbs(aggregate_class), self._perform)

    async def _run(self, plan: Plan[T]) -> T:
        if self._connection is None:
            raise UsageError("this transaction has ended; begin another")
        self._check_whole()
        running = adrive(self._connection.execute, plan)
        try:
            return await (running if self._owned else _undisturbed(running))
        except BaseException as error:
            self._note(error)
            raise

    def _close(self) -> None:
        self._connection = None


async def _undisturbed(running: Coroutine[Any, Any, T]) -> T:
    """Go on to the end also when cancelled: the user may commit what a plan has left behind."""
    task = asyncio.ensure_future(running)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        task.exception()  # nobody waits for it any more
        raise cancelled
    return task.result()
