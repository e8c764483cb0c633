"""Every error retold raises, as one tree.

The docstring of a class is its message: what happened, then what to do next. Fields are plain
attributes, errors survive pickling, and `retriable` says whether the same call may succeed later.
They stand in one file, though it is a long one, because it is read as a list.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from inspect import cleandoc
from typing import Any, ClassVar


class RetoldError(Exception):
    """Something went wrong in retold."""

    retriable: ClassVar[bool] = False

    def __str__(self) -> str:
        template = type(self).__doc__
        if template is None or sys.flags.optimize > 1:  # -OO: dataclass makes up docstrings
            return f"{type(self).__name__}: {vars(self)}"
        return " ".join(cleandoc(template).format_map(vars(self)).split())

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), dict(vars(self)))


def _restore(cls: type[RetoldError], fields: dict[str, Any]) -> RetoldError:
    error = cls.__new__(cls)
    error.__dict__.update(fields)
    return error


# --- mistakes in the program ---------------------------------------------------------------------


@dataclass(eq=False)
class DefinitionError(RetoldError, TypeError):
    """{problem}"""

    problem: str


@dataclass(eq=False)
class UsageError(RetoldError, TypeError):
    """{problem}"""

    problem: str


@dataclass(eq=False)
class MissingExtra(RetoldError, ImportError):
    """{need} needs the package {package!r}, which is not installed. Run: pip install
    'retold[{extra}]'"""

    need: str
    package: str
    extra: str


@dataclass(eq=False)
class InvalidURL(RetoldError, ValueError):
    """{url!r} is not a database URL retold can use: {problem}. Expected sqlite:///path,
    postgresql://user:password@host:port/database or mysql://user:password@host:port/database."""

    url: str
    problem: str


@dataclass(eq=False)
class InvalidValue(RetoldError, ValueError):
    """{problem}"""

    problem: str


@dataclass(eq=False)
class NoApplier(RetoldError):
    """{entity_type} emitted {event_type} but has no applier for it. Add a method with @applies, or
    list the event in ignores=(…) on the aggregate if it does not change the state."""

    entity_type: str
    event_type: str


@dataclass(eq=False)
class NothingEmitted(RetoldError):
    """The command {command} emitted no event, so there is no {entity_type} to create. A command
    passed to create must emit at least one event."""

    entity_type: str
    command: str


# --- values that cannot be kept -----------------------------------------------------------------


@dataclass(eq=False)
class NotStorable(RetoldError, ValueError):
    """{what} cannot be stored: {reason}. Nothing was written. Use a value that survives JSON, or
    teach the store your type with Codec().add(…)."""

    what: str
    reason: str
    field: str = ""


@dataclass(eq=False)
class EventTooLarge(RetoldError, ValueError):
    """{event_type} is {size} bytes of JSON, more than max_event_bytes={limit}. Nothing was
    written. Keep large content elsewhere and store a reference to it in the event, or raise
    max_event_bytes together with the broker's message limit."""

    event_type: str
    size: int
    limit: int


@dataclass(eq=False)
class ValueTooLong(RetoldError, ValueError):
    """The database refused a value that does not fit its column: {reason}. Nothing was written.
    Shorten the value, or widen the column (tables made by `retold migrate` have wide ones)."""

    reason: str


# --- what the store holds -----------------------------------------------------------------------


@dataclass(eq=False)
class NotFound(RetoldError, LookupError):
    """There is no {entity_type} with id {entity_id!r}. Check the id, or create it first."""

    entity_type: str
    entity_id: str


@dataclass(eq=False)
class EntityExists(RetoldError):
    """{entity_type} {entity_id!r} exists already{hint}. Update it, or create with another id."""

    entity_type: str
    entity_id: str
    hint: str = ""


@dataclass(eq=False)
class VersionConflict(RetoldError):
    """{entity_type} {entity_id!r} was changed by somebody else: expected version {expected}, found
    {actual}. Load it again and decide again."""

    retriable: ClassVar[bool] = True
    entity_type: str
    entity_id: str
    expected: str
    actual: str


@dataclass(eq=False)
class KeyReused(RetoldError):
    """The key {key!r} was already used on {entity_type} {entity_id!r} for the command {recorded},
    and now comes with {command}. A key names one request: use a new key for another command."""

    entity_type: str
    entity_id: str
    key: str
    command: str
    recorded: str


@dataclass(eq=False)
class AmbiguousTrigger(RetoldError):
    """{entity_type} {entity_id!r} is changed twice while handling event {event_id}, so a redelivery
    could not tell the two apart. Name them: delivery.step("fee").update(…)."""

    entity_type: str
    entity_id: str
    event_id: str


@dataclass(eq=False)
class NoResult(RetoldError):
    """The key {key!r} was handled before, so the command was not run again and has no result. Look
    at .duplicate first; .state is the entity as it is now."""

    key: str


@dataclass(eq=False)
class UnknownEvent(RetoldError):
    """Event {event_id} of {entity_type} {entity_id!r} has the type {event_type!r}, which no class
    in this process declares. Import the module that declares it, or, if it was renamed, add
    formerly=({event_type!r},) to its new class or an @upcast({event_type!r})."""

    event_id: str
    entity_type: str
    entity_id: str
    event_type: str


@dataclass(eq=False)
class UnreadableEvent(RetoldError):
    """Event {event_id} of {entity_type} {entity_id!r} ({event_type}) cannot be read: {reason}. If
    the shape of the event changed, give the new shape a new name and add an
    @upcast({event_type!r})."""

    event_id: str
    entity_type: str
    entity_id: str
    event_type: str
    reason: str


@dataclass(eq=False)
class Rejected(RetoldError):
    """Projection {projection!r} refused a change of {entity_type} {entity_id!r}: {constraint} holds
    such a value already. Nothing was stored. Tell whoever asked for it, or change what they asked
    for."""

    projection: str
    entity_type: str
    entity_id: str
    constraint: str


# --- the database -------------------------------------------------------------------------------


@dataclass(eq=False)
class StoreError(RetoldError):
    """The database reported: {reason}"""

    reason: str


@dataclass(eq=False)
class StoreUnavailable(StoreError):
    """The database cannot be reached: {reason}. Check that it is there and that the URL is right,
    then try again."""

    retriable: ClassVar[bool] = True


@dataclass(eq=False)
class ConnectionLost(StoreUnavailable):
    """The connection to the database broke: {reason}. Try again."""


@dataclass(eq=False)
class AccessDenied(StoreError):
    """The database refused this user: {reason}. Check user, password and grants."""


@dataclass(eq=False)
class DatabaseMissing(StoreError):
    """The database does not exist: {reason}. Create it, or correct the URL."""


@dataclass(eq=False)
class SchemaMissing(StoreError):
    """retold's tables are missing or behind in this database ({reason}). Run: retold migrate
    --database URL"""


@dataclass(eq=False)
class LogMissing(SchemaMissing):
    """This database keeps no log that subscriptions could read ({reason}). Run: retold migrate
    --subscriptions --database URL"""


@dataclass(eq=False)
class TriggerRefused(StoreError):
    """MySQL lets this user make no trigger while it writes a binary log: {reason}. Nothing was lost.
    Let an administrator run SET GLOBAL log_bin_trust_function_creators = 1 for the time of retold
    migrate --subscriptions, or run that as a user with the privilege SUPER."""


@dataclass(eq=False)
class SchemaForeign(StoreError):
    """A table named {reason} exists that retold did not make. Nothing was changed. Keep the two
    apart with ?schema=… (PostgreSQL) or ?prefix=… in the URL."""


@dataclass(eq=False)
class ReadOnlyStore(StoreError):
    """The database is read-only: {reason}. Connect to the primary, or make the file and its folder
    writable."""


@dataclass(eq=False)
class StoreBusy(StoreError):
    """Waited too long for a lock in the database: {reason}. Look for a long transaction, then try
    again."""

    retriable: ClassVar[bool] = True


@dataclass(eq=False)
class StoreFull(StoreError):
    """The database cannot grow: {reason}. Nothing was written. Free space on its disk, then try
    again."""


@dataclass(eq=False)
class StatementTooLarge(StoreError):
    """The statement is larger than the server accepts: {reason}. Nothing was written. Emit fewer or
    smaller events in one command, or raise the server's limit (MySQL: max_allowed_packet)."""


@dataclass(eq=False)
class StoreCorrupt(StoreError):
    """The database file is damaged or is no database: {reason}. Restore it from a backup."""


@dataclass(eq=False)
class OutcomeUnknown(RetoldError):
    """The connection broke while the change was being committed, and the database did not come back
    to tell whether it was: {reason}. Repeat the call with once(key), or look at the entity first;
    a blind repeat could apply the command twice."""

    reason: str


@dataclass(eq=False)
class TransactionRolledBack(RetoldError):
    """The database rolled the transaction back ({reason}). Run the whole transaction again;
    store.transact(work) does that by itself."""

    retriable: ClassVar[bool] = True
    reason: str


# --- subscriptions ------------------------------------------------------------------------------


@dataclass(eq=False)
class HandlerFailed(RetoldError):
    """{handler} of subscription {subscription!r} failed {attempts} times on event {event_id}
    ({event_type} of {entity_type} {entity_id!r}): {reason}. The subscription stopped before this
    event, nothing was skipped. Mend the handler and start it again."""

    subscription: str
    handler: str
    event_id: str
    event_type: str
    entity_type: str
    entity_id: str
    attempts: int
    reason: str


@dataclass(eq=False)
class ParkedQueueFull(RetoldError):
    """{limit} events of {entity_type} {entity_id!r} are parked for subscription {subscription!r},
    and one more came. The subscription stopped before it, nothing was skipped. Mend what failed,
    then retold parked retry, or skip the first one, and start the subscription again."""

    subscription: str
    entity_type: str
    entity_id: str
    limit: int


@dataclass(eq=False)
class NotParked(RetoldError, LookupError):
    """No event {event_id!r} is parked for subscription {subscription!r}. See: retold parked list"""

    subscription: str
    event_id: str


@dataclass(eq=False)
class Outgrown(RetoldError):
    """A newer version of subscription {subscription!r} also handles {names}, and this one does not.
    It stopped before such an event, so that none is skipped. Deploy the newer version everywhere;
    if that was withdrawn for good, run retold subscriptions accept {subscription}"""

    subscription: str
    names: str


@dataclass(eq=False)
class NotSubscribed(RetoldError, LookupError):
    """No subscription {subscription!r} has ever started on this database. See: retold subscriptions
    list"""

    subscription: str


@dataclass(eq=False)
class NothingOffered(RetoldError, LookupError):
    """No member of subscription {subscription!r} stands by because it handles less than what was
    handled before. There is nothing to accept: start the version that is to go on, and wait until it
    says that it stands by."""

    subscription: str


@dataclass(eq=False)
class NothingMissed(RetoldError, LookupError):
    """Subscription {subscription!r} has missed no event {event_type!r}, or that was backfilled. See:
    retold subscriptions list"""

    subscription: str
    event_type: str


@dataclass(eq=False)
class AssignmentLost(RetoldError):
    """Another process took over subscription {subscription!r}; this one may no longer save its
    position."""

    retriable: ClassVar[bool] = True
    subscription: str


@dataclass(eq=False)
class NotCaughtUp(RetoldError, TimeoutError):
    """Projection {projection!r} did not come to version {version} of {entity_type} {entity_id!r}
    within {seconds} s. Check that a member of it runs, that it does not lag (retold projections
    list), and that no event of this entity is parked (retold parked list)."""

    retriable: ClassVar[bool] = True
    projection: str
    entity_type: str
    entity_id: str
    version: str
    seconds: float


@dataclass(eq=False)
class MembersAtWork(RetoldError):
    """{count} members of subscription {subscription!r} are at work on this database. Nothing was
    changed. Stop them first; one that was killed on another machine is missed after 30 s."""

    subscription: str
    count: int


@dataclass(eq=False)
class NotMoved(RetoldError):
    """Subscription {subscription!r} has handled events with this database as its broker, and Kafka
    does not know which. Nothing was handled. Stop its members there and run: retold move
    {subscription} --database URL"""

    subscription: str


@dataclass(eq=False)
class MovedToKafka(RetoldError):
    """Subscription {subscription!r} was moved to Kafka. Nothing was handled here. Say where Kafka
    is: kafka=… of the store, or retold run --kafka HOST:PORT."""

    subscription: str


@dataclass(eq=False)
class UnreadableRecord(RetoldError):
    """Record {offset} in partition {partition} of topic {topic!r} holds no event: {reason}. Nothing
    was skipped. Find out who writes to this topic; where the record is parked, retold parked skip
    goes on behind it."""

    topic: str
    partition: int
    offset: int
    reason: str


@dataclass(eq=False)
class PositionGone(RetoldError):
    """Partition {partition} of topic {topic!r} no longer holds the place where subscription
    {subscription!r} goes on: {reason}. Nothing was skipped. Either the topic was made anew, or its
    retention removed events before they were handled. Set the consumer group's offset while no
    member runs; what is missing is in the events table."""

    subscription: str
    topic: str
    partition: int
    reason: str


# --- the relay ----------------------------------------------------------------------------------


@dataclass(eq=False)
class RelayStopped(RetoldError):
    """The relay stopped, and skipped nothing: {reason}"""

    reason: str


@dataclass(eq=False)
class LogUnsuitable(RelayStopped):
    """The database's log cannot be followed: {reason}. Run retold doctor to see all that a relay
    needs."""


@dataclass(eq=False)
class LogUnreadable(RelayStopped):
    """The log holds what the relay must not guess at, at {place}: {reason}. Nothing behind it was
    published. Mend the cause, then run retold relay --resync, which publishes from the table what
    is missing."""

    place: str


@dataclass(eq=False)
class LogPurged(RelayStopped):
    """The database no longer has its log from the saved position on: {reason}. Run retold relay
    --resync, which publishes from the table what is missing, and let the database keep its log for
    longer than a relay may be down."""


@dataclass(eq=False)
class LogReplaced(RelayStopped):
    """The saved position belongs to another log: {reason}. Check the URL and the relay's name. If
    the database was moved or restored on purpose, run retold relay --resync."""


@dataclass(eq=False)
class LogRewound(RelayStopped):
    """The database was set back to before what is published already: {reason}. Kafka holds events
    that the database has lost. Restore them, or run retold relay --accept-rewind, which lists them
    and goes on."""


@dataclass(eq=False)
class PositionMissing(RelayStopped):
    """Kafka holds no position of the relay {name!r}, but {topic!r} holds events: {reason}. Check
    the relay's name. If the position is lost, run retold relay --resync, which publishes from the
    table what is missing."""

    name: str
    topic: str


@dataclass(eq=False)
class PositionUnreadable(RelayStopped):
    """The position of the relay {name!r} cannot be read: {reason}. A newer retold may have written
    it. Use that one, or run retold relay --resync."""

    name: str


@dataclass(eq=False)
class TopicChanged(RelayStopped):
    """The topic {topic!r} had {was} partitions and has {now} now, so the events of an entity would
    go on in another partition than they began: {reason}. Make a new topic with a relay of another
    name, or move the events yourself and run retold relay --accept-partitions."""

    topic: str
    was: int
    now: int


@dataclass(eq=False)
class EventsOutOfOrder(RelayStopped):
    """{count} events are missing in Kafka behind later ones of their entities: {reason}. Published
    now they would be out of order. Everything else is published. If out of order is better than
    missing, run retold relay --resync --fill-holes-out-of-order."""

    count: int


@dataclass(eq=False)
class RecordTooLarge(RelayStopped):
    """Kafka refused event {event_id} of {entity_type} {entity_id!r} as too large: {reason}. Raise
    max.message.bytes of its topic (and message.max.bytes of the relay), then start the relay
    again."""

    event_id: str
    entity_type: str
    entity_id: str


@dataclass(eq=False)
class BrokerRefused(RelayStopped):
    """Kafka refused: {reason}. Mend the topic, the setting or the permission it names, then start
    again."""


@dataclass(eq=False)
class BrokerUnavailable(RetoldError):
    """Kafka cannot be reached: {reason}. Check the address and the security settings, then try
    again."""

    retriable: ClassVar[bool] = True
    reason: str


@dataclass(eq=False)
class Fenced(RetoldError):
    """Another relay of this name began to publish: {reason}. This one may publish no more."""

    retriable: ClassVar[bool] = True
    reason: str


@dataclass(eq=False)
class LeadershipLost(RetoldError):
    """The lock that makes this relay the leader was lost: {reason}. Start it again, to stand by."""

    retriable: ClassVar[bool] = True
    reason: str
