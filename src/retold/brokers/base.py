"""The seam between what moves events and what handles them.

A *consumer* hands the messages of some topics to one member of a subscription:

* Partition. Every message belongs to one partition; all messages with one key (entity id) to the
  same. Within a partition `poll` returns messages in order, none left out, each again until its
  position is committed.
* Assignment. At any time a partition is assigned to at most one member; a member may have none,
  and then `poll` returns nothing. Assignments change only inside `poll`.
* Commit. `commit({partition: position})` says that every message up to the position is handled.
  It is durable when the call returns. For a partition assigned to somebody else by now it raises
  AssignmentLost and saves nothing.
* Redelivery. After a crash or a lost assignment, the messages behind the committed position come
  again, to this member or another: at least once. Handlers are exactly once in effect because their
  updates keep the message's key.
* Waiting. `poll` returns as soon as there is one message, and never waits for more. `wake` makes a
  waiting poll return; it may be called from any thread.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Message:
    """One event as published: a row of the events table.

    topic: the entity type. key: the entity id. data, metadata: JSON text.
    """

    topic: str
    key: str
    event_id: str
    event_type: str
    data: str
    metadata: str | None
    partition: int
    position: int


class Consumer(Protocol):
    """One member's share of a subscription."""

    @property
    def assigned(self) -> bool:
        """Whether any partition is assigned to this member."""
        ...

    def poll(self, limit: int, timeout: float) -> Sequence[Message]:
        """Up to `limit` next messages; none after `timeout` seconds."""
        ...

    def commit(self, positions: Mapping[int, int]) -> None:
        """Save positions. Raises AssignmentLost."""
        ...

    def wake(self) -> None: ...

    def close(self) -> None:
        """Give up the assignment, so that another member can go on at once."""
        ...
