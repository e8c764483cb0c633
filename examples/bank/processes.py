"""What the demo's processes do: some request transfers, others carry them out."""

from __future__ import annotations

import random
from collections.abc import Sequence

from examples.bank.domain import Account, Transfer
from examples.bank.transfers import transfers
from retold import EventStore


def open_accounts(store: EventStore, count: int) -> list[str]:
    """Open accounts, one in twenty without money and closed again; their ids."""
    accounts = store.repository(Account)
    ids: list[str] = []
    for number in range(count):
        closed = number % 20 == 19
        account = accounts.create(Account.open, f"customer {number}", 0 if closed else 1000)
        if closed:
            accounts.update(account.id, Account.close)
        ids.append(account.id)
    return ids


def request(url: str, accounts: Sequence[str], count: int, seed: int) -> None:
    """Request transfers: small and large ones, to oneself, and some to nobody."""
    chance = random.Random(seed)
    with EventStore(url) as store:
        repository = store.repository(Transfer)
        for _ in range(count):
            source, target = chance.choice(accounts), chance.choice(accounts)
            match chance.randrange(100):
                case 0:
                    source = "nobody"
                case 1:
                    target = "nobody"
                case 2:
                    target = source
                case _:
                    pass
            repository.create(Transfer.request, source, target, chance.randint(1, 100))


def work(url: str) -> None:
    """Carry out transfers until told to stop."""
    with EventStore(url) as store:
        store.run(transfers)
