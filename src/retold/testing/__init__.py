"""The test kit: `given(Account, Opened("ann", 100)).when(Account.debit, 30).then(Debited(30))`.

Domain tests need no store. Tests with one take the pytest fixture `store`, whose ids and clock are
the same in every run.
"""

from retold.testing.clock import Clock, fixed_ids
from retold.testing.delivering import deliver
from retold.testing.replaying import ReplayFailure, ReplayReport, replay
from retold.testing.scenario import Scenario, given
from retold.testing.stores import temporary_async_store, temporary_store
from retold.testing.storming import StormReport, storm

__all__ = [
    "Clock",
    "ReplayFailure",
    "ReplayReport",
    "Scenario",
    "StormReport",
    "deliver",
    "fixed_ids",
    "given",
    "replay",
    "storm",
    "temporary_async_store",
    "temporary_store",
]
