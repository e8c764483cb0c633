"""The seams between the relay, a message broker, and those who handle events.

A *publisher* writes records and the checkpoint that covers them, all or nothing:

* Epoch. `begin` ends whatever an earlier publisher of the same name had under way, so that it can
  make nothing visible any more, and returns the checkpoint saved last: it covers exactly the
  records that are visible.
* Transaction. `publish` writes records in their order, and the checkpoint, in one transaction,
  durable when the call returns. If it raises, begin again: the checkpoint tells whether the
  transaction was committed.
* Reading. Readers see records of committed transactions only (`read_committed`).
* Waiting. Every call waits for a broker that is away, but for a bounded time, and not much longer
  than until the process is told to stop: then it raises BrokerUnavailable. A transaction in hand
  is given some seconds to finish.

A *consumer* hands the messages of some topics to one member of a subscription:

* Partition. Every message belongs to one partition; all messages of one entity (topic and key) to
  the same. Within a partition `poll` returns messages in order, none left out, each again until its
  position is committed.
* Assignment. At any time a partition is assigned to at most one member; a member may have none,
  and then `poll` returns nothing. The first `poll` asks for an assignment; from then on it may
  change at any moment, and `held` tells what there is. Messages of a partition that is lost are not
  returned any more; what was returned before may be committed only for some seconds more, if at all.
  A partition that is given up for another member has nothing in hand: no message was returned that
  is not committed yet. If that takes too long, it is given up all the same.
* Position. It says "everything before this place, in this partition"; positions grow. It means
  something to consumers of the same subscription and topics only.
* Commit. `commit({partition: position})` says that every message up to the position is handled.
  It is durable when the call returns. For a partition assigned to somebody else by now it raises
  AssignmentLost and saves nothing.
* Redelivery. After a crash or a lost assignment, the messages behind the committed position come
  again, to this member or another: at least once. Handlers are exactly once in effect because their
  updates keep the message's key.
* Waiting. `poll` returns as soon as there is one message, and never waits for more. `wake` makes a
  waiting poll return. `wake` and `commit` may be called from any thread, `wake` after `close` too.
* Generations. From the first event on that only newer members of the subscription handle, nothing
  is handed out and no position saved: `poll` raises Outgrown. See wants.py.
* Parking. `owned` lets the store's database refuse what a member that lost a partition would park.
* Places. Who keeps positions elsewhere, beside what handlers write, passes `Places`. It is asked
  whenever partitions are assigned, and what it says is where they go on, whatever was committed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import msgspec

from retold.store.driver import Statement


class Message(msgspec.Struct, frozen=True, gc=False):
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


class Record(NamedTuple):
    """What a publisher writes: an event as its readers get it."""

    topic: str
    key: bytes
    value: bytes
    headers: list[tuple[str, bytes]]


class Published(NamedTuple):
    """A record as readers find it in a topic."""

    topic: str
    partition: int
    offset: int
    key: bytes
    value: bytes
    headers: Mapping[str, bytes]


class TopicReader(Protocol):
    """Reads what stands in topics, beside all consumers and without a trace."""

    def read(
        self, topics: Iterable[str], behind: Mapping[tuple[str, int], int] | None = None
    ) -> Iterator[Sequence[Published]]:
        """Every record that is visible now, some at a time, in order within each partition.

        behind: (topic, partition) → the first offset wanted. A topic that does not exist holds
        none. Raises BrokerUnavailable, BrokerRefused.
        """
        ...

    def partitions(self, topics: Iterable[str]) -> dict[str, int]:
        """The number of partitions of each topic that exists."""
        ...

    def offsets_at(self, topics: Iterable[str], time: int) -> dict[tuple[str, int], int]:
        """(topic, partition) → an offset before which all records are older than a time.

        time: in milliseconds since the epoch, as the records have it: when they were handed to
        Kafka, or appended to the topic if it is set so.
        """
        ...


class Publisher(Protocol):
    """Publishes for one relay. Used by one thread."""

    def begin(self) -> bytes | None:
        """Begin an epoch; the checkpoint saved last, None where this name never saved one.

        Raises BrokerUnavailable, BrokerRefused, and PositionMissing where one was saved and is gone:
        then the epoch has begun all the same.
        """
        ...

    def partitions(self, topics: Iterable[str]) -> dict[str, int]:
        """The number of partitions of each topic; a missing one is made first.

        Raises BrokerUnavailable, and BrokerRefused where it may not be made.
        """
        ...

    def publish(self, records: Sequence[Record], checkpoint: bytes) -> None:
        """One transaction. Raises BrokerUnavailable, Fenced, RecordTooLarge, BrokerRefused."""
        ...

    def close(self) -> None:
        """End at once; a transaction under way is left to the next epoch to abort."""
        ...


class Places(Protocol):
    """Keeps positions elsewhere than the broker does."""

    def claim(self, places: Sequence[str]) -> Mapping[str, int]:
        """Where partitions that were just assigned go on, by their places; 0 is the beginning."""
        ...


class Consumer(Protocol):
    """One member's share of a subscription."""

    @property
    def assigned(self) -> bool:
        """Whether any partition is assigned to this member."""
        ...

    @property
    def held(self) -> Mapping[int, object]:
        """The partitions that are assigned to this member, each with an object that stands for this
        time: one that was lost and came back has another."""
        ...

    def place(self, partition: int) -> str:
        """A name of the partition that stays the same, whatever else a subscription reads."""
        ...

    def reached(self) -> Mapping[int, int]:
        """For partitions of which nothing is waiting to be polled: everything before this position
        was polled, or nobody wants it."""
        ...

    def owned(self, partition: int) -> Statement:
        """A statement that, in a transaction of the store's database, returns the position saved
        of a partition, and nothing where it is not this member's; until the transaction ends it
        stays so. A position saved later than the partition was assigned may be missing.
        """
        ...

    def poll(self, limit: int, timeout: float) -> Sequence[Message]:
        """Up to `limit` next messages; none after `timeout` seconds. With no time, what is there.

        With a limit of 0 it hands out nothing, but keeps its assignment as any poll does."""
        ...

    def commit(self, positions: Mapping[int, int]) -> None:
        """Save positions, never backwards; those of partitions still assigned also where it raises
        AssignmentLost for another one."""
        ...

    def wake(self) -> None: ...

    def close(self) -> None:
        """Give up the assignment, so that another member can go on at once."""
        ...
