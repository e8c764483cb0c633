"""How often, and after which pauses, a handler is tried."""

from __future__ import annotations

import random
from dataclasses import dataclass

from retold.errors import InvalidValue, OutcomeUnknown, RetoldError, StoreError


@dataclass(frozen=True, slots=True)
class Retry:
    """Exponential backoff with full jitter.

    attempts: how often a handler is tried in all. pause: the longest pause after the first failure, in
    seconds; it doubles with each further one up to `longest`, and the real pause is anything
    between nothing and that. give_up: errors that trying again cannot mend, such as a domain's own.

    A database or broker that is busy or away is waited for, and never counts as an attempt.
    """

    attempts: int = 5
    pause: float = 0.1
    longest: float = 5.0
    give_up: tuple[type[Exception], ...] = ()

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise InvalidValue("attempts: a handler is tried at least once")
        if not 0 <= self.pause <= self.longest:
            raise InvalidValue("pause and longest are seconds, and pause is at most longest")

    def gives_up(self, error: Exception, attempt: int) -> bool:
        """Whether an error at this attempt is the last one."""
        return counts(error) and (attempt >= self.attempts or isinstance(error, self.give_up))

    def seconds(self, failures: int) -> float:
        """The pause behind this many failures."""
        return random.uniform(0, min(self.pause * (1 << min(failures - 1, 30)), self.longest))


def counts(error: Exception) -> bool:
    """Whether an error is the handler's, and not a passing trouble of the database or broker."""
    return not (isinstance(error, RetoldError) and (error.retriable or is_unknown(error)))


def is_unknown(error: Exception) -> bool:
    """Whether it is not known if a change was committed; a delivery's key makes trying again safe."""
    return isinstance(error, OutcomeUnknown)


def is_of_the_store(error: Exception) -> bool:
    """Whether an error says more about the database than about the event."""
    return isinstance(error, StoreError)
