"""The transfer of money as a process: each step is the reaction to one event.

    TransferRequested ─▶ debit the source ─┬─▶ AccountDebited ─▶ credit the target ─┬─▶ AccountCredited ─▶ completed
                                           └─▶ DebitRefused ─▶ refused              └─▶ CreditRefused
                                                                                          │
                                                    refused ◀─ AccountRefunded ◀─ refund the source

An event may be delivered again after a crash. Nothing happens twice: `delivery.update` keeps the
event's id with the change, in one transaction, and finds it there the second time.
"""

from __future__ import annotations

from examples.bank.domain import (
    Account,
    AccountCredited,
    AccountDebited,
    AccountRefunded,
    CreditRefused,
    DebitRefused,
    Transfer,
    TransferRequested,
)
from retold import Delivery, NotFound, Subscription

transfers = Subscription("transfers")

# An account's id is given out when it is opened, so one that is unknown now stays unknown.


@transfers.on(TransferRequested)
def debit_source(delivery: Delivery[TransferRequested]) -> None:
    transfer, event = delivery.entity_id, delivery.event
    try:
        delivery.update(Account, event.source, Account.debit, transfer, event.amount)
    except NotFound:
        delivery.update(Transfer, transfer, Transfer.refuse, "source account is unknown")


@transfers.on(AccountDebited)
def credit_target(delivery: Delivery[AccountDebited]) -> None:
    id, amount = delivery.event.transfer, delivery.event.amount
    transfer = delivery.find(Transfer, id).state
    try:
        delivery.update(Account, transfer.target, Account.credit, id, amount)
    except NotFound:
        reason = "target account is unknown"
        delivery.update(Account, transfer.source, Account.refund, id, amount, reason)


@transfers.on(CreditRefused)
def refund_source(delivery: Delivery[CreditRefused]) -> None:
    id, reason = delivery.event.transfer, delivery.event.reason
    transfer = delivery.find(Transfer, id).state
    # In a transfer to itself the source is the account that just refused.
    delivery.update(Account, transfer.source, Account.refund, id, transfer.amount, reason)


@transfers.on(AccountCredited)
def complete(delivery: Delivery[AccountCredited]) -> None:
    delivery.update(Transfer, delivery.event.transfer, Transfer.complete)


@transfers.on(DebitRefused)
def refuse(delivery: Delivery[DebitRefused]) -> None:
    delivery.update(Transfer, delivery.event.transfer, Transfer.refuse, delivery.event.reason)


@transfers.on(AccountRefunded)
def refuse_refunded(delivery: Delivery[AccountRefunded]) -> None:
    delivery.update(Transfer, delivery.event.transfer, Transfer.refuse, delivery.event.reason)
