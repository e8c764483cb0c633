"""Who works which Kafka partition, as the store's database knows it.

Kafka alone knows who has a partition, and a member that stood still may believe for a while that it
does. So a member writes into the row of a partition, before it handles anything of it, a word that
nobody else knows: its *claim*. Whoever parks looks whether that still stands there.

A claim must not overwrite a later one. Therefore the words are read first, then Kafka is asked
whether this member is still one of the group, and then each word is replaced only if it is as read.
Who claims later in the order of the group's generations reads later than Kafka said yes here.

The row also gives the partition its number. The consumer's callers know partitions by it, and so
do parked events, so it stays the same whatever topics a member wants.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping
from typing import NamedTuple

from retold.brokers.kafka_cluster import Place
from retold.brokers.kafka_places import Share
from retold.errors import AssignmentLost
from retold.store.connections import BlockingDriver
from retold.store.driver import Plan, Statement


class Claim(NamedTuple):
    """number: of the partition. word: what stands in its row."""

    number: int
    word: str


class Claims:
    """The claims of one member."""

    def __init__(self, driver: BlockingDriver, name: str) -> None:
        self._driver = driver
        self._sql = driver.dialect.queries
        self._name = name

    def read(self, places: Collection[Place]) -> dict[Place, Claim]:
        """What stands in the rows of partitions; a row that is missing is made."""
        return self._driver.run(_read(self._sql, self._name, places)) if places else {}

    def take(self, read: Mapping[Place, Claim], shares: Mapping[Place, Share]) -> None:
        """Claim partitions that Kafka has confirmed since they were read. Raises AssignmentLost."""
        if not read:
            return
        for share in shares.values():
            share.word = secrets.token_hex(8)
        self._driver.run(_take(self._sql, self._name, read, shares))

    def owned(self, number: int, share: Share | None) -> Statement:
        """As Consumer.owned."""
        word = share.word if share is not None else ""
        return Statement(self._sql["claimed"], (self._name, number, word))


def _read(sql: Mapping[str, str], name: str, places: Collection[Place]) -> Plan[dict[Place, Claim]]:
    while True:
        (found,) = yield [Statement(sql["claims"], (name,))]
        rows = {
            (topic, int(partition)): Claim(int(number), word)
            for topic, partition, number, word in found.rows
        }
        if not (missing := sorted(set(places) - rows.keys())):
            return {at: rows[at] for at in places}
        # Nothing where another member has made it, or has taken the number, meanwhile.
        yield [Statement(sql["claim_begin"], (name, *at, name)) for at in missing]


def _take(
    sql: Mapping[str, str], name: str, read: Mapping[Place, Claim], shares: Mapping[Place, Share]
) -> Plan[None]:
    # In ascending order, so that two members that claim at once cannot wait for one another.
    wanted = sorted((claim.number, claim.word, shares[at]) for at, claim in read.items())
    claims = yield [
        Statement(sql["claim"], (share.word, share.saved, name, number, word))
        for number, word, share in wanted
    ]
    if any(claimed.rowcount != 1 for claimed in claims):
        raise AssignmentLost(name)
