"""The work that every contender does: an account that is opened, then debited again and again."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

from retold import Aggregate, Event, applies

if TYPE_CHECKING:
    from collections.abc import Callable

OPENING = 1_000_000


class Opened(Event, name="bench.Opened"):
    owner: str
    amount: int


class Debited(Event, name="bench.Debited"):
    transfer: str
    amount: int


class Account(Aggregate, name="bench.Account"):
    balance: int = 0
    transfers: int = 0

    def open(self, owner: str, amount: int) -> None:
        self.emit(Opened(owner, amount))

    def debit(self, transfer: str, amount: int) -> None:
        if amount > self.balance:
            raise ValueError("not enough money")
        self.emit(Debited(transfer, amount))

    @applies
    def _opened(self, event: Opened) -> None:
        self.balance = event.amount

    @applies
    def _debited(self, event: Debited) -> None:
        self.balance -= event.amount
        self.transfers += 1


class Worker(NamedTuple):
    """What one thread calls; `create` ignores its argument."""

    create: Callable[[str], object]
    update: Callable[[str], object]
    load: Callable[[str], object]


class Contender(Protocol):
    """One way to keep accounts in one database."""

    name: str

    def worker(self) -> Worker:
        """A thread's own worker, with its connection open where it has one of its own."""
        ...

    def reset(self) -> None:
        """Undo all that workers wrote: every account has the history it was made with."""
        ...

    def close(self) -> None: ...
