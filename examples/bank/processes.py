"""What the demo's processes do: some request transfers, `retold run` carries them out."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from examples.bank.domain import Account, Transfer
from retold import EventStore

Order = tuple[str, str, int]
"""Source, target, amount."""


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


def orders(accounts: Sequence[str], chance: random.Random) -> Iterator[Order]:
    """Transfers without end: small and large ones, to oneself, and some to nobody."""
    while True:
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
        yield source, target, chance.randint(1, 100)


def request(url: str, accounts: Sequence[str], count: int, seed: int) -> None:
    """Request transfers."""
    with EventStore(url) as store:
        repository = store.repository(Transfer)
        for _, order in zip(range(count), orders(accounts, random.Random(seed)), strict=False):
            repository.create(Transfer.request, *order)
