"""Who of a subscription's members works which of its partitions.

A member says every few seconds that it is there. From the list of those that are, each works out how
many partitions are its own: it gives up what it has too much, and claims what is free. A partition
is free when nobody owns it, or an owner that is not there any more. Owning is a row's column, so
there is one owner at any moment, and a position is saved only where the column says so.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from operator import itemgetter
from typing import NamedTuple

from retold.brokers.leases import is_gone, tells_machines_apart
from retold.brokers.moving import MOVED
from retold.brokers.numbered_log import Row, log_state, start_position
from retold.brokers.polling import Start
from retold.errors import MovedToKafka
from retold.store.driver import Plan, Result, Statement


class Share(NamedTuple):
    """held: partition → saved position. leaving: those that others should have, once nothing of
    them is in hand. fair: it is what this member should have. claimed: those that it got just now."""

    held: dict[int, int]
    leaving: frozenset[int]
    members: int
    fair: bool
    claimed: frozenset[int]


def quota(partitions: int, members: Sequence[str], me: str) -> int:
    """How many partitions are a member's, so that all have about the same and nobody's is left."""
    rank = sorted(members).index(me)
    return partitions // len(members) + (rank < partitions % len(members))


def take_share(
    sql: Mapping[str, str],
    name: str,
    me: str,
    lease_ms: int,
    start: Start,
    in_hand: Collection[int] = (),
) -> Plan[Share]:
    """Join, give up what is too much but not what is in hand, claim what is missing.

    Raises LogMissing, MovedToKafka.
    """
    at = (name,)
    partitions = (yield from log_state(sql)).partitions
    # Owners before members: who owned something when it was read had joined by then, and is not taken
    # for dead because it joined a moment later than the members were read.
    reads = [Statement(sql["shares"], at), Statement(sql["clock"]), Statement(sql["members"], at)]
    shares, clock, members = yield reads
    if not shares.rows:
        begin = yield from start_position(sql, start)
        yield [Statement(sql["share_begin"], (name, n, begin)) for n in range(partitions)]
        shares, clock, members = yield reads
    if any(owner is not None and owner.startswith(MOVED) for _, _, owner in shares.rows):
        raise MovedToKafka(name)
    alive = yield from _alive(sql, name, me, clock.rows[0][0], members)
    if me not in {member for member, _ in members.rows}:
        yield [Statement(sql["member_join"], (name, me, lease_ms))]
    fair = quota(len(shares.rows), sorted(alive), me)
    mine = {partition: position for partition, position, owner in shares.rows if owner == me}
    surplus = sorted(mine)[fair:]
    leaving = frozenset(surplus) & set(in_hand)
    if released := [partition for partition in surplus if partition not in leaving]:
        yield [Statement(sql["share_release"], (name, n, me)) for n in released]
        for partition in released:
            del mine[partition]
    claimed = set[int]()
    free = [row for row in shares.rows if row[2] != me and row[2] not in alive]
    wanted = _spread(free, sorted(alive).index(me) * fair)[: max(0, fair - len(mine))]
    if wanted:
        # In ascending order, so that two members that claim at once cannot wait for one another.
        wanted.sort(key=itemgetter(0))
        claims = yield [
            Statement(sql["share_claim"], (me, name, partition, position, owner))
            for partition, position, owner in wanted
        ]
        for (partition, position, _), result in zip(wanted, claims, strict=True):
            if result.rowcount == 1:
                mine[partition] = position
                claimed.add(partition)
    return Share(mine, leaving, len(alive), len(mine) == fair, frozenset(claimed))


def _spread(free: list[Row], by: int) -> list[Row]:
    """The same, begun elsewhere: members that come together do not all want the same."""
    by = by % len(free) if free else 0
    return free[by:] + free[:by]


def _alive(sql: Mapping[str, str], name: str, me: str, now: int, members: Result) -> Plan[set[str]]:
    """The members that are there; those that are not are struck off the list."""
    alive = {me}
    for member, lease_until in members.rows:
        dead = lease_until <= now or (tells_machines_apart() and is_gone(member))
        if member != me and dead:
            # Only as it was read: a member that was heard of meanwhile stays.
            evict = Statement(sql["member_evict"], (name, member, lease_until))
            (evicted,) = yield [evict]
            if evicted.rowcount == 1:
                continue
        alive.add(member)
    return alive


def save_positions(
    sql: Mapping[str, str],
    name: str,
    me: str,
    positions: Mapping[int, int],
    generation: int | None = None,
) -> Plan[dict[int, int] | None]:
    """Save the positions of partitions this member owns, never backwards; what it owns, and where
    that stands now.

    generation: save only while the subscription has this one, and return None where it has not.
    """
    guard, condition, save = list[Statement](), tuple[object, ...](), sql["share_save"]
    if generation is not None:
        # The lock first: the statements behind it see whatever its last holder committed.
        guard = [Statement(sql["generation_shared"], (name,))]
        condition, save = (name, generation), sql["share_save_in"]
    saves = [
        Statement(save, (position, name, partition, me, position, *condition))
        for partition, position in sorted(positions.items())
    ]
    held = Statement(sql["shares_held"], (name, me))
    results = yield [Statement(sql["begin"]), *guard, *saves, held, Statement(sql["commit"])]
    if guard and [row[0] for row in results[1].rows] != [generation]:
        return None
    return {int(partition): int(position) for partition, position in results[-2].rows}


def move_shares(
    sql: Mapping[str, str], name: str, me: str, positions: Mapping[int, int]
) -> Plan[None]:
    """Set the positions of partitions this member owns, backwards too."""
    for partition, position in sorted(positions.items()):
        yield [Statement(sql["share_move"], (position, name, partition, me))]


def renew_lease(sql: Mapping[str, str], name: str, me: str, lease_ms: int) -> Plan[bool]:
    """False when this member was struck off the list."""
    (renewed,) = yield [Statement(sql["member_renew"], (lease_ms, name, me))]
    return renewed.rowcount == 1


def leave(sql: Mapping[str, str], name: str, me: str) -> Plan[None]:
    """Give everything back."""
    yield [
        Statement(sql["begin"]),
        Statement(sql["shares_release"], (name, me)),
        Statement(sql["member_leave"], (name, me)),
        Statement(sql["commit"]),
    ]
