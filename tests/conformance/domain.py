"""The bank that the store's tests keep: small aggregates whose commands cover every case."""

from __future__ import annotations

from retold import Aggregate, Event, applies, every


class Opened(Event, name="conformance.Opened"):
    owner: str
    balance: int


class Credited(Event, name="conformance.Credited"):
    amount: int


class Debited(Event, name="conformance.Debited"):
    amount: int


class Noted(Event, name="conformance.Noted"):
    text: str


class InsufficientFunds(Exception):
    pass


class Account(Aggregate, name="conformance.Account"):
    owner: str = ""
    balance: int = 0
    notes: tuple[str, ...] = ()

    def open(self, owner: str, balance: int = 0) -> None:
        self.emit(Opened(owner, balance))

    def credit(self, amount: int) -> int:
        self.emit(Credited(amount))
        return self.balance

    def debit(self, amount: int) -> int:
        if amount > self.balance:
            raise InsufficientFunds(amount)
        self.emit(Debited(amount))
        return self.balance

    def exchange(self, out: int, back: int) -> None:
        """Two events at once."""
        self.emit(Debited(out))
        self.emit(Credited(back))

    def credit_often(self, times: int) -> None:
        for _ in range(times):
            self.emit(Credited(1))

    def note(self, text: str) -> None:
        self.emit(Noted(text))

    def look(self) -> int:
        """Emits nothing."""
        return self.balance

    def credit_then_fail(self, amount: int) -> None:
        self.emit(Credited(amount))
        raise InsufficientFunds(amount)

    async def credit_later(self, amount: int) -> None:
        self.emit(Credited(amount))

    @applies
    def _opened(self, event: Opened) -> None:
        self.owner, self.balance = event.owner, event.balance

    @applies
    def _credited(self, event: Credited) -> None:
        self.balance += event.amount

    @applies
    def _debited(self, event: Debited) -> None:
        self.balance -= event.amount

    @applies
    def _noted(self, event: Noted) -> None:
        self.notes = (*self.notes, event.text)


class Savings(Aggregate, name="conformance.Savings", snapshots=every(5)):
    """Keeps a snapshot after every five events."""

    balance: int = 0

    def credit(self, amount: int) -> int:
        self.emit(Credited(amount))
        return self.balance

    def look(self) -> int:
        return self.balance

    @applies
    def _credited(self, event: Credited) -> None:
        self.balance += event.amount


class Listed(Aggregate, name="conformance.Listed"):
    """Entities that only the tests of `entities` make."""

    balance: int = 0

    def credit(self, amount: int) -> None:
        self.emit(Credited(amount))

    @applies
    def _credited(self, event: Credited) -> None:
        self.balance += event.amount


class Rolling(Aggregate, name="conformance.RollingBase"):
    balance: int = 0

    def credit(self, amount: int) -> None:
        self.emit(Credited(amount))

    @applies
    def _credited(self, event: Credited) -> None:
        self.balance += event.amount


def rolling(*, new_state: bool = False, version: int = 1) -> type[Rolling]:
    """One aggregate as two releases of a service declare it: with another state, or with appliers
    that `snapshot_version` says have changed."""
    if new_state:

        class Rolled(  # pyright: ignore[reportRedeclaration]
            Rolling, name="conformance.Rolling", snapshots=every(2), snapshot_version=version
        ):
            payments: int = 0

            @applies(Credited)
            def counted(self, event: Credited) -> None:
                self.balance += event.amount
                self.payments += 1

    else:

        class Rolled(  # type: ignore[no-redef]
            Rolling, name="conformance.Rolling", snapshots=every(2), snapshot_version=version
        ):
            pass

    return Rolled
