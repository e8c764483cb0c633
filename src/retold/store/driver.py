"""The port between the store's logic and a database client library.

A *plan* is a generator: it yields batches of statements, is sent their results, and returns what
the caller wants. It knows no I/O, so one plan serves every driver, sync and async. A driver
promises:

* A batch runs in order on one connection, in one network trip where the client can, and stops at
  the first error.
* Outside BEGIN … COMMIT every statement is its own transaction, and reads see what was committed
  when the statement began (READ COMMITTED).
* Every exception of the client library arrives as a RetoldError, raised at the `yield`. A plan that
  ends inside a transaction, by error or cancellation, leaves it rolled back.
* `UniqueViolation` leaves a transaction usable on SQLite and MySQL, as those databases do.
* A connection is never shared by two plans at once, nor by a forked child with its parent.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from retold.errors import RetoldError

if TYPE_CHECKING:
    from retold.store.dialects import Dialect

T = TypeVar("T")
Y = TypeVar("Y")
S = TypeVar("S")


class Statement(NamedTuple):
    """SQL in the dialect of the database and its parameters."""

    sql: str
    params: Sequence[object] = ()


ACT = "-- a function"
"""Stands in a batch of its own for a function that is to be called with a DB-API cursor of the
connection, in the transaction: its parameter."""


def acting(work: Callable[[Any], None]) -> Sequence[Statement]:
    """The batch that calls a function. What the client library raises inside arrives translated,
    every other exception as it is. Async clients cannot, and raise UsageError."""
    return [Statement(ACT, (work,))]


class Result(NamedTuple):
    """Rows (empty for a statement that returns none) and the number of rows found or changed."""

    rows: Sequence[Sequence[Any]]
    rowcount: int


Batch = Sequence[Statement]
Plan = Generator[Batch, Sequence[Result], T]


class UniqueViolation(RetoldError):
    """A row with this key exists already."""


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait before going on; no connection is held meanwhile."""

    seconds: float


Verb = Generator["Plan[Any] | Pause", Any, T]
"""What a store's verb is made of: plans, each run on one connection, and pauses between them."""


class Connection(Protocol):
    """One connection inside a transaction that somebody else begins and ends."""

    def execute(self, batch: Batch) -> Sequence[Result]: ...


class AsyncConnection(Protocol):
    """The same, awaited."""

    async def execute(self, batch: Batch) -> Sequence[Result]: ...


class Driver(Protocol):
    """Runs plans on connections of its own."""

    @property
    def dialect(self) -> Dialect: ...
    def open(self) -> None:
        """Connect now instead of at the first use."""
        ...

    def run(self, plan: Plan[T]) -> T:
        """Run a plan on a connection that nobody else uses meanwhile."""
        ...

    def transaction(self) -> AbstractContextManager[Connection]:
        """A connection inside a transaction: committed at the end of the block, rolled back by an
        exception. Raises OutcomeUnknown when the connection breaks at the commit."""
        ...

    def close(self) -> None: ...


class AsyncDriver(Protocol):
    """The same verbs, awaited."""

    @property
    def dialect(self) -> Dialect: ...
    async def open(self) -> None: ...
    async def run(self, plan: Plan[T]) -> T: ...
    def transaction(self) -> AbstractAsyncContextManager[AsyncConnection]: ...
    async def close(self) -> None: ...


def drive(do: Callable[[Y], S], steps: Generator[Y, S, T]) -> T:
    """Run a plan or a verb to its end, with a blocking function that does what it yields."""
    try:
        step = next(steps)
        while True:
            try:
                done = do(step)
            except Exception as error:
                step = steps.throw(error)
            else:
                step = steps.send(done)
    except StopIteration as end:
        result: T = end.value
        return result


async def adrive(do: Callable[[Y], Awaitable[S]], steps: Generator[Y, S, T]) -> T:
    """The same, awaited."""
    try:
        step = next(steps)
        while True:
            try:
                done = await do(step)
            except Exception as error:
                step = steps.throw(error)
            else:
                step = steps.send(done)
    except StopIteration as end:
        result: T = end.value
        return result
