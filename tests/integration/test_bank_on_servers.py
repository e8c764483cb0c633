"""The example bank on databases that are their own broker."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable

import pytest

from examples.bank.domain import Account, Transfer
from examples.bank.processes import open_accounts, request, work
from retold import EventStore
from tests.conformance.raw import rows

_PROCESSES = multiprocessing.get_context("forkserver")
_ENDINGS = (
    "SELECT count(*) FROM events"
    " WHERE event_type IN ('bank.TransferCompleted', 'bank.TransferRefused')"
)
TRANSFERS = 150


@pytest.mark.parametrize("kind", ["postgres18", "mysql8"])
def test_the_bank_carries_out_every_transfer_once_though_workers_are_killed(
    kind: str, fresh_database: Callable[[str], str]
) -> None:
    url = fresh_database(kind)
    with EventStore(url) as store:
        store.migrate(subscriptions=True)
        accounts = open_accounts(store, 20)
        requesters = [
            _PROCESSES.Process(target=request, args=(url, accounts, TRANSFERS // 2, seed))
            for seed in range(2)
        ]
        workers = [_PROCESSES.Process(target=work, args=(url,)) for _ in range(3)]
        for process in requesters + workers:
            process.start()
        ended, killed, deadline = 0, 0, time.monotonic() + 50
        try:
            while ended < TRANSFERS:
                assert time.monotonic() < deadline, f"{ended} of {TRANSFERS} transfers"
                ((count,),) = rows(url, _ENDINGS)
                ended = int(str(count))
                if killed < 3 and ended > TRANSFERS * (killed + 1) // 5:
                    workers[0].kill()
                    workers.pop(0).join()
                    killed += 1
                    workers.append(_PROCESSES.Process(target=work, args=(url,)))
                    workers[-1].start()
                time.sleep(0.05)
        finally:
            for process in requesters + workers:
                process.kill()
                process.join()
        found = store.repository(Account).find_many(accounts)
        assert sum(account.state.balance for account in found.values()) == 19_000
        assert min(account.state.balance for account in found.values()) >= 0
        transfers = store.repository(Transfer)
        ids = list(transfers.entities())
        assert len(ids) == TRANSFERS
        statuses = {entity.state.status for entity in transfers.find_many(ids).values()}
        assert statuses == {"completed", "refused"}
        for id in ids:
            assert len(list(transfers.history(id))) == 2
