"""Generations of a subscription: which events it handles, kept so that members of several versions
can work side by side, as plans.

A member that starts tells what it handles. If that is more than what is known, the subscription gets
a new generation. Positions are saved only by members that know the generation, so none passes an
event that a newer one wants: see docs/adr/0020-generations.md.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import msgspec

from retold.errors import NothingOffered, NotSubscribed, SchemaMissing
from retold.store.driver import Plan, Statement

Pair = tuple[str, str]
"""An entity type, and an event type of it."""
Places = Mapping[str, int]
"""Position by partition, named as all consumers of a log name it."""

_decode = msgspec.json.Decoder(list[Pair]).decode
_decode_places = msgspec.json.Decoder(dict[str, int]).decode


class Generation(NamedTuple):
    """What is known of a subscription. begun: it has settled where it begins, on Kafka."""

    number: int
    wanted: frozenset[Pair]
    paused: bool
    begun: bool


@dataclass(frozen=True, slots=True)
class Missed:
    """Events of one name that a subscription passed before it handled that name.

    They are at positions above `behind`, where that is known, up to and with `up_to`; None where that
    is to be found out. events: how many, at least, and `whole`: exactly.
    """

    entity_type: str
    event_type: str
    generation: int
    behind: Places | None
    up_to: Places | None
    events: int | None
    whole: bool
    backfilled: bool

    @property
    def pair(self) -> Pair:
        return self.entity_type, self.event_type


def encoded(pairs: Iterable[Pair]) -> str:
    return msgspec.json.encode(sorted(pairs)).decode()


def decoded(text: str) -> frozenset[Pair]:
    return frozenset(_decode(text))


def generation(sql: Mapping[str, str], name: str) -> Plan[Generation | None]:
    """None where no member has ever started."""
    (found,) = yield [Statement(sql["generation"], (name,))]
    if not found.rows:
        return None
    number, wanted, paused_at, begun = found.rows[0]
    return Generation(number, decoded(wanted), paused_at is not None, bool(begun))


def changes(sql: Mapping[str, str], name: str) -> Plan[tuple[int, bool] | None]:
    """The generation's number, and whether the subscription is paused: what may change at any time."""
    (found,) = yield [Statement(sql["generation_changes"], (name,))]
    if not found.rows:
        return None
    number, paused_at = found.rows[0]
    return number, paused_at is not None


def register(
    sql: Mapping[str, str], name: str, own: frozenset[Pair], *, in_database: bool
) -> Plan[bool]:
    """Tell what a member handles; whether there is a new generation because of it.

    in_database: the positions are in this database; what was passed by then is noted as missed.
    """
    (found,) = yield [Statement(sql["generation"], (name,))]
    if found.rows and own <= decoded(found.rows[0][1]):
        return False
    yield [Statement(sql["begin"])]
    begun, found = yield [
        Statement(sql["generation_begin"], (name, encoded(own))),
        Statement(sql["generation_locked"], (name,)),
    ]
    number, text, _ = found.rows[0]
    wanted = decoded(text)
    new = own - wanted
    if begun.rowcount != 1 and new:
        number += 1
        yield [Statement(sql["generation_set"], (number, encoded(wanted | own), name))]
        places = (yield from _places(sql, name)) if in_database else None
        if places != {}:
            yield from _note(sql, name, new, number, places)
    yield [Statement(sql["commit"])]
    return begun.rowcount != 1 and bool(new)


def _places(sql: Mapping[str, str], name: str) -> Plan[dict[str, int]]:
    (found,) = yield [Statement(sql["positions"], (name,))]
    return {str(partition): position for partition, position, _ in found.rows}


def _note(
    sql: Mapping[str, str], name: str, pairs: Iterable[Pair], number: int, up_to: Places | None
) -> Plan[None]:
    """Note that what a subscription passed so far of these names is missed."""
    known = {row.pair: row for row in (yield from missed(sql, name))}
    for pair in sorted(pairs):
        behind = known[pair].behind if pair in known else None
        yield [
            Statement(sql["missed_forget"], (name, *pair)),
            Statement(sql["missed_note"], (name, *pair, number, _text(behind), _text(up_to))),
        ]


def _text(places: Places | None) -> str | None:
    return None if places is None else msgspec.json.encode(places).decode()


def missed(sql: Mapping[str, str], name: str) -> Plan[list[Missed]]:
    """What a subscription has passed of each name that it came to handle later."""
    (found,) = yield [Statement(sql["missed"], (name,))]
    return [
        Missed(
            entity_type,
            event_type,
            number,
            None if behind is None else _decode_places(behind),
            None if up_to is None else _decode_places(up_to),
            events,
            bool(whole),
            at is not None,
        )
        for entity_type, event_type, number, behind, up_to, events, whole, at in found.rows
    ]


def measured(sql: Mapping[str, str], name: str, cuts: Mapping[Pair, Places]) -> Plan[None]:
    """Say up to where names were passed, for those of which that was to be found out."""
    yield [Statement(sql["begin"]), Statement(sql["generation_locked"], (name,))]
    for row in (yield from missed(sql, name)):
        if row.up_to is None and row.pair in cuts:
            values = (name, *row.pair, row.generation, _text(row.behind), _text(cuts[row.pair]))
            yield [
                Statement(sql["missed_forget"], (name, *row.pair)),
                Statement(sql["missed_note"], values),
            ]
    yield [Statement(sql["commit"])]


def counted(sql: Mapping[str, str], name: str, pair: Pair, events: int, whole: bool) -> Plan[None]:
    yield [Statement(sql["missed_counted"], (events, int(whole), name, *pair))]


def backfilled(sql: Mapping[str, str], name: str, event_type: str) -> Plan[None]:
    """Note that what was missed of a name is handled."""
    now = time.time_ns() // 1_000_000
    yield [Statement(sql["missed_backfilled"], (now, name, event_type))]


def begun(sql: Mapping[str, str], name: str) -> Plan[None]:
    yield [Statement(sql["generation_begun"], (name,))]


def offer(sql: Mapping[str, str], name: str, own: frozenset[Pair]) -> Plan[None]:
    """Tell what a member handles that stands by because it is less than what is wanted."""
    yield [Statement(sql["generation_offer"], (encoded(own), name))]


def positions(sql: Mapping[str, str], name: str) -> Plan[list[tuple[int, int, str | None]]]:
    """Partition, position and owner; nothing where Kafka keeps the positions."""
    try:
        (found,) = yield [Statement(sql["positions"], (name,))]
    except SchemaMissing:
        return []
    return [(partition, position, owner) for partition, position, owner in found.rows]


# --- what an operator does ------------------------------------------------------------------------


def pause(sql: Mapping[str, str], name: str, *, paused: bool) -> Plan[None]:
    """Raises NotSubscribed."""
    if (yield from changes(sql, name)) is None:
        raise NotSubscribed(name)
    at = time.time_ns() // 1_000_000 if paused else None
    yield [Statement(sql["generation_pause"], (at, name))]


def accept(sql: Mapping[str, str], name: str) -> Plan[list[Pair]]:
    """Make what a member that stands by handles all that is wanted; what is given up by that.

    Raises NotSubscribed, NothingOffered.
    """
    in_database = bool((yield from positions(sql, name)))
    yield [Statement(sql["begin"])]
    (found,) = yield [Statement(sql["generation_locked"], (name,))]
    if not found.rows:
        raise NotSubscribed(name)
    number, text, offered = found.rows[0]
    if offered is None:
        raise NothingOffered(name)
    left, wanted = decoded(text), decoded(offered)
    yield [Statement(sql["generation_set"], (number + 1, encoded(wanted), name))]
    places = (yield from _places(sql, name)) if in_database else None
    known = {row.pair: row for row in (yield from missed(sql, name))}
    for pair in sorted(left - wanted):
        # Of what is not handled from now on only that is missed, unless something was before.
        open_ = pair in known and not known[pair].backfilled and known[pair].up_to is not None
        behind = known[pair].behind if open_ else places
        yield [
            Statement(sql["missed_forget"], (name, *pair)),
            Statement(sql["missed_note"], (name, *pair, number + 1, _text(behind), None)),
        ]
    yield [Statement(sql["commit"])]
    return sorted(left - wanted)
