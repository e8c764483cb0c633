"""The bank's subscription with handlers that fail now and then, before they did anything or behind it."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from examples.bank import transfers as bank
from retold import Delivery, Subscription

_FAILS = 0.03
_chance = random.Random()


class Flake(Exception):
    pass


def transfers() -> Subscription:
    """In lanes, and without a second attempt: a failure parks."""
    flaky = Subscription(bank.transfers.name, lanes=4, attempts=1)
    for (entity_type, event_class), route in bank.transfers._routes().items():
        flaky.on(event_class, of=entity_type)(_failing(route.handler))
    return flaky


def _failing(handler: Callable[[Any], None]) -> Callable[[Delivery[Any]], None]:
    def handle(delivery: Delivery[Any]) -> None:
        if _chance.random() < _FAILS / 2:
            raise Flake("before")
        handler(delivery)
        if _chance.random() < _FAILS / 2:
            raise Flake("behind")

    return handle
