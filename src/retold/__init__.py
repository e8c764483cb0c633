"""retold: an event store for Python on the SQL database you already run."""

from retold.aggregates import Aggregate, applies
from retold.codecs import Codec
from retold.entity import Changed, Entity
from retold.errors import (
    EntityExists,
    KeyReused,
    NotFound,
    OutcomeUnknown,
    Rejected,
    RetoldError,
    StoreUnavailable,
    TransactionRolledBack,
    UnknownEvent,
    VersionConflict,
)
from retold.events import Event
from retold.metadata import metadata
from retold.personal import Personal
from retold.recorded import Recorded
from retold.snapshots import every
from retold.store.event_store import AsyncEventStore, EventStore
from retold.store.parked import ParkedEvent
from retold.store.repository import AsyncRepository, Repository
from retold.store.transactions import AsyncTransaction, Transaction
from retold.subscriptions.delivery import AsyncDelivery, Delivery
from retold.subscriptions.projection import Cursor, Projection
from retold.subscriptions.retry import Retry
from retold.subscriptions.subscription import Subscription
from retold.upcasting import Raw, upcast

__all__ = [
    "Aggregate",
    "AsyncDelivery",
    "AsyncEventStore",
    "AsyncRepository",
    "AsyncTransaction",
    "Changed",
    "Codec",
    "Cursor",
    "Delivery",
    "Entity",
    "EntityExists",
    "Event",
    "EventStore",
    "KeyReused",
    "NotFound",
    "OutcomeUnknown",
    "ParkedEvent",
    "Personal",
    "Projection",
    "Raw",
    "Recorded",
    "Rejected",
    "Repository",
    "RetoldError",
    "Retry",
    "StoreUnavailable",
    "Subscription",
    "Transaction",
    "TransactionRolledBack",
    "UnknownEvent",
    "VersionConflict",
    "applies",
    "every",
    "metadata",
    "upcast",
]
