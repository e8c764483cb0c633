"""Running a verb to its end, blocking and awaited: all there is of the difference."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from retold.store.driver import Pause, Plan, Verb

T = TypeVar("T")


def perform(run: Callable[[Plan[Any]], Any], verb: Verb[T]) -> T:
    """Run a verb to its end, sleeping where it pauses."""
    try:
        step = next(verb)
        while True:
            try:
                if isinstance(step, Pause):
                    time.sleep(step.seconds)
                    result: Any = None
                else:
                    result = run(step)
            except Exception as error:
                step = verb.throw(error)
            else:
                step = verb.send(result)
    except StopIteration as done:
        value: T = done.value
        return value


async def aperform(run: Callable[[Plan[Any]], Awaitable[Any]], verb: Verb[T]) -> T:
    """The same, awaited."""
    try:
        step = next(verb)
        while True:
            try:
                if isinstance(step, Pause):
                    await asyncio.sleep(step.seconds)
                    result: Any = None
                else:
                    result = await run(step)
            except Exception as error:
                step = verb.throw(error)
            else:
                step = verb.send(result)
    except StopIteration as done:
        value: T = done.value
        return value
