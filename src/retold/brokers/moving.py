"""Moving a subscription from the database as broker to Kafka: it goes on where it stopped.

The owner of its rows in `subscriptions` becomes a mark, so that no member on the database can save,
park or claim there any more: the positions stay as they are, for ever. With them the numbered log, on
SQLite the events table, says of each event whether it was handled. On Kafka the subscription begins
at the beginning of its topics and leaves out what was.

The mark holds the newest event id there was. Events with greater ids came later, and are not looked
up; so that ends by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec

from retold.brokers.base import Message
from retold.brokers.leases import is_gone, tells_machines_apart
from retold.errors import MembersAtWork, NotMoved, SchemaMissing, UsageError
from retold.store.connections import BlockingDriver
from retold.store.dialects import Dialect
from retold.store.driver import Plan, Statement

MOVED = "kafka/"
"""How the owner of a row begins that nobody on the database owns any more."""


def move(dialect: Dialect, name: str) -> Plan[int]:
    """Hand a subscription over to Kafka; how many of its events are parked, which stay so.

    All or nothing, and again without effect. Raises MembersAtWork, and UsageError where this database
    is no broker of such a subscription.
    """
    sql = dialect.queries
    try:
        if dialect.name != "sqlite":
            yield from _index(sql)
        yield [Statement(sql["begin"])]
        (rows,) = yield [Statement(sql["moving"], (name,))]
    except SchemaMissing:
        rows = None
    if rows is None or not rows.rows:
        raise UsageError(f"there is no subscription {name!r} on this database to be moved")
    at_work = {owner for owner, until, now in rows.rows if _is_at_work(owner, until, now)}
    if at_work:
        raise MembersAtWork(name, len(at_work))
    if not all((owner or "").startswith(MOVED) for owner, _, _ in rows.rows):
        (newest,) = yield [Statement(sql["move_newest"])]
        yield [
            Statement(sql["move"], (MOVED + (newest.rows[0][0] or ""), name)),
            Statement(sql["move_parked"], (name,)),
        ]
    (parked,) = yield [Statement(sql["move_count"], (name,))]
    yield [Statement(sql["commit"])]
    return int(parked.rows[0][0])


def _index(sql: Mapping[str, str]) -> Plan[None]:
    """The log is read by event id from now on."""
    (found,) = yield [Statement(sql["log_ids_index_exists"])]
    if not found.rows:
        yield [Statement(sql["log_ids_index"])]


def _is_at_work(owner: str | None, lease_until: int, now: int) -> bool:
    gone = owner is None or (tells_machines_apart() and is_gone(owner))
    return lease_until > now and not gone


class Cut:
    """Tells what of a subscription was handled before it moved.

    newest: the greatest event id of that time.
    """

    def __init__(self, driver: BlockingDriver, name: str, newest: str) -> None:
        self._driver = driver
        self._sql = driver.dialect.queries
        self._name = name
        self._newest = newest
        many: dict[str, Callable[[list[str]], object]] = {
            "sqlite": lambda ids: msgspec.json.encode(ids).decode(),
            "postgres": list,
            "mysql": tuple,
        }
        self._many = many[driver.dialect.name]

    def new(self, messages: Sequence[Message]) -> Sequence[Message]:
        """Those that were not handled."""
        old = [message.event_id for message in messages if message.event_id <= self._newest]
        if not old:
            return messages
        handled = self._driver.run(self._handled(old))
        return [message for message in messages if message.event_id not in handled]

    def _handled(self, ids: list[str]) -> Plan[set[str]]:
        params = (self._name, self._many(ids))
        (found,) = yield [Statement(self._sql["moved_handled"], params)]
        return {event_id for (event_id,) in found.rows}


def cut_of(driver: BlockingDriver, name: str) -> Cut | None:
    """None for a subscription that this database never served. Raises NotMoved."""
    owners = driver.run(_owners(driver.dialect.queries, name))
    if not owners:
        return None
    mark = min(owners)
    if not mark.startswith(MOVED):
        raise NotMoved(name)
    return Cut(driver, name, mark.removeprefix(MOVED))


def _owners(sql: Mapping[str, str], name: str) -> Plan[set[str]]:
    try:
        (found,) = yield [Statement(sql["moved"], (name,))]
    except SchemaMissing:  # it never was a broker
        return set()
    return {owner or "" for (owner,) in found.rows}


def place_parked(
    sql: Mapping[str, str], name: str, number_of: Callable[[str, str], int | None]
) -> Plan[None]:
    """Give the parked events that came with a move to their partitions on Kafka.

    number_of: of the partition of an entity (type and id), None where it is not the caller's.
    """
    (found,) = yield [Statement(sql["move_unplaced"], (name,))]
    for entity_type, entity_id in found.rows:
        number = number_of(entity_type, entity_id)
        if number is not None:
            yield [Statement(sql["move_place"], (number, name, entity_type, entity_id))]
