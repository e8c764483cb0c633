"""Running a verb to its end, blocking and awaited: all there is of the difference."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Protocol, TypeVar

from retold.store.driver import Pause, Plan, Verb, adrive, drive

T = TypeVar("T")


class Perform(Protocol):
    """Runs a verb to its end."""

    def __call__(self, verb: Verb[T], /) -> T: ...


class PerformAsync(Protocol):
    """The same, awaited."""

    def __call__(self, verb: Verb[T], /) -> Awaitable[T]: ...


def performing(run: Callable[[Plan[Any]], Any]) -> Perform:
    """Run its plans with `run`, and sleep where it pauses."""

    def do(step: Plan[Any] | Pause) -> Any:
        if isinstance(step, Pause):
            return time.sleep(step.seconds)
        return run(step)

    return partial(drive, do)


def performing_async(run: Callable[[Plan[Any]], Awaitable[Any]]) -> PerformAsync:
    """The same, awaited."""

    def do(step: Plan[Any] | Pause) -> Awaitable[Any]:
        return asyncio.sleep(step.seconds) if isinstance(step, Pause) else run(step)

    return partial(adrive, do)
