"""The bank's two aggregates: accounts, and the transfers between them.

An account decides about each transfer once and records the decision, a refusal too: whoever asks
again (a redelivered event, a second worker) finds the decision instead of making another one.
"""

from __future__ import annotations

from typing import Literal

from retold import Aggregate, Event, applies

# --- accounts ------------------------------------------------------------------------------------


class AccountOpened(Event, name="bank.AccountOpened"):
    owner: str
    balance: int


class AccountClosed(Event, name="bank.AccountClosed"):
    pass


class AccountDebited(Event, name="bank.AccountDebited"):
    transfer: str
    amount: int


class DebitRefused(Event, name="bank.DebitRefused"):
    transfer: str
    reason: str


class AccountCredited(Event, name="bank.AccountCredited"):
    transfer: str
    amount: int


class CreditRefused(Event, name="bank.CreditRefused"):
    transfer: str
    reason: str


class AccountRefunded(Event, name="bank.AccountRefunded"):
    transfer: str
    amount: int
    reason: str


class AccountNotEmpty(Exception):
    """An account is closed only when its money is gone."""


class Account(Aggregate, name="bank.Account", ignores=(DebitRefused, CreditRefused)):
    balance: int = 0
    closed: bool = False

    def open(self, owner: str, balance: int) -> None:
        self.emit(AccountOpened(owner, balance))

    def close(self) -> None:
        if self.balance:
            raise AccountNotEmpty(self.balance)
        self.emit(AccountClosed())

    def debit(self, transfer: str, amount: int) -> None:
        if self.closed:
            self.emit(DebitRefused(transfer, "source account is closed"))
        elif amount > self.balance:
            self.emit(DebitRefused(transfer, "insufficient funds"))
        else:
            self.emit(AccountDebited(transfer, amount))

    def credit(self, transfer: str, amount: int) -> None:
        if self.closed:
            self.emit(CreditRefused(transfer, "target account is closed"))
        else:
            self.emit(AccountCredited(transfer, amount))

    def refund(self, transfer: str, amount: int, reason: str) -> None:
        """Take back what a transfer could not deliver; even a closed account must."""
        self.emit(AccountRefunded(transfer, amount, reason))

    @applies
    def _opened(self, event: AccountOpened) -> None:
        self.balance = event.balance

    @applies
    def _closed(self, event: AccountClosed) -> None:
        self.closed = True

    @applies
    def _debited(self, event: AccountDebited) -> None:
        self.balance -= event.amount

    @applies
    def _received(self, event: AccountCredited | AccountRefunded) -> None:
        self.balance += event.amount


# --- transfers -----------------------------------------------------------------------------------


class TransferRequested(Event, name="bank.TransferRequested"):
    source: str
    target: str
    amount: int


class TransferCompleted(Event, name="bank.TransferCompleted"):
    pass


class TransferRefused(Event, name="bank.TransferRefused"):
    reason: str


class InvalidAmount(ValueError):
    """Money moves in whole positive amounts."""


class Transfer(Aggregate, name="bank.Transfer"):
    source: str = ""
    target: str = ""
    amount: int = 0
    status: Literal["requested", "completed", "refused"] = "requested"

    def request(self, source: str, target: str, amount: int) -> None:
        if amount <= 0:
            raise InvalidAmount(amount)
        self.emit(TransferRequested(source, target, amount))

    def complete(self) -> None:
        self.emit(TransferCompleted())

    def refuse(self, reason: str) -> None:
        self.emit(TransferRefused(reason))

    @applies
    def _requested(self, event: TransferRequested) -> None:
        self.source, self.target, self.amount = event.source, event.target, event.amount

    @applies
    def _completed(self, event: TransferCompleted) -> None:
        self.status = "completed"

    @applies
    def _refused(self, event: TransferRefused) -> None:
        self.status = "refused"
