"""A member among members of other versions: what it says when it starts, and how it stands by."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

from retold.brokers.wants import LOOK_S, Wants
from retold.errors import RetoldError
from retold.events import Event
from retold.store.generations import Pair
from retold.store.lag import count_missed
from retold.subscriptions.handling import Routes
from retold.subscriptions.retry import Retry
from retold.upcasting import upcast_names

if TYPE_CHECKING:
    from retold.store.connections import BlockingDriver

AGAIN_S = 60.0
"""After this time a member that stands by tries to go on: another one may have handled the event."""
_WAIT = Retry()
_log = logging.getLogger("retold.subscriptions")


def stored_names(event_class: type[Event]) -> tuple[str, ...]:
    """Every name an event class is stored under, old ones included."""
    return event_class.__event_names__


def handled(routes: Routes) -> frozenset[Pair]:
    """What a member handles. An upcaster may make any event of any stored one, so every name that is
    cast up belongs to each of its entity types."""
    named = {(topic, name) for topic, cls in routes for name in stored_names(cls)}
    cast = {(topic, name) for topic, _ in routes for name in upcast_names()}
    return frozenset(named | cast)


def names(pairs: Iterable[Pair]) -> tuple[list[str], list[str]]:
    """The entity types, and the event types."""
    pairs = list(pairs)
    return sorted({topic for topic, _ in pairs}), sorted({kind for _, kind in pairs})


def begin(driver: BlockingDriver, wants: Wants, stop: threading.Event, *, again: bool) -> None:
    """Tell what this member handles, and say what was missed of it.

    Where that was done before (`again`) it waits for a database that is busy or away.
    """
    failures = 0
    while not stop.is_set():
        try:
            _begin(driver, wants)
            break
        except RetoldError as error:
            if not (again and error.retriable):
                raise
            _log.warning("%s: %s", wants.name, error)
        failures += 1
        stop.wait(_WAIT.seconds(failures))


def _begin(driver: BlockingDriver, wants: Wants) -> None:
    wants.register()
    if wants.in_database:
        for row in wants.missed():
            if row.events is None and row.up_to is not None:
                events, whole = driver.run(count_missed(driver.dialect, row))
                wants.counted(row.pair, events, whole=whole)


def stand_by(wants: Wants, stop: threading.Event) -> None:
    """Until this member handles all that is wanted, is told to stop, or some time has passed."""
    kinds = ", ".join(sorted({kind for _, kind in wants.others}))
    _log.warning(
        "%s: a newer version also handles %s, and this one does not. It stands by before such an "
        "event; nothing is skipped. If the newer version was withdrawn for good: retold "
        "subscriptions accept %s",
        *(wants.name, kinds, wants.name),
    )
    until = time.monotonic() + AGAIN_S
    offered = False
    while wants.others and not stop.is_set() and time.monotonic() < until:
        with suppress(RetoldError):
            if not offered:
                wants.offer()
                offered = True
            wants.look()
        stop.wait(LOOK_S)
