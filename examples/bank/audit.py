"""The audit of a bank: reads the tables as they are, without retold.

    python -m examples.bank.audit URL

What retold and the example's own code claim is of no interest here; balances are derived anew from
the rows, and each transfer's story is checked step by step.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from typing import Any, NamedTuple

from examples.bank.tables import Tables, is_sqlite

_DEBITED, _CREDITED, _REFUNDED = "AccountDebited", "AccountCredited", "AccountRefunded"
_COMPLETED, _REFUSED = "TransferCompleted", "TransferRefused"
_COLUMNS = "event_id, event_type, entity_type, entity_id, triggering_event, event_data"

Entity = tuple[str, str]


class Row(NamedTuple):
    """One row of the events table; `type` without the `bank.` in front."""

    id: str
    type: str
    kind: str
    entity: str
    cause: str | None
    data: dict[str, Any]


class Claim(NamedTuple):
    """Something that must be true of the bank, and what contradicts it."""

    text: str
    problems: list[str]


def audit(url: str, shown: Mapping[str, int] | None = None) -> list[Claim]:
    """Every claim about a bank. `shown`: the balances the bank tells its customers."""
    # On SQLite the order of commits is known; each entity's is that of its ids everywhere.
    order = "position" if is_sqlite(url) else "event_id"
    with closing(Tables(url)) as tables:
        rows = [
            Row(id, name.removeprefix("bank."), kind, entity, cause, json.loads(data))
            for id, name, kind, entity, cause, data in tables.rows(
                f"SELECT {_COLUMNS} FROM events ORDER BY {order}"
            )
        ]
        versions = {
            (kind, entity): version
            for kind, entity, version in tables.rows(
                "SELECT entity_type, entity_id, entity_version FROM entities"
            )
        }
        parked = tables.rows("SELECT event_id, entity_type, entity_id, error FROM parked")
    balances, overdrawn = _balances(rows)
    paid_in = sum(row.data["balance"] for row in rows if row.type == "AccountOpened")
    held = sum(balances.values())
    requested = {row.entity: row.data for row in rows if row.type == "TransferRequested"}
    steps = _steps(rows)
    claims = [
        Claim(
            f"money in = money out: {paid_in:,} paid in, {held:,} on {len(balances):,} accounts",
            [] if paid_in == held else [f"{held - paid_in:+,} from nowhere"],
        ),
        Claim("every balance re-derived, none was ever below zero", overdrawn),
        Claim(
            "each debit, credit and refund happened at most once, as requested",
            list(_wrong_movements(requested, steps)),
        ),
        Claim(
            f"no transfer is left open: {len(requested):,} requested, each completed or refused",
            list(_wrong_endings(requested, steps)),
        ),
        Claim("no event was handled twice", list(_handled_twice(rows))),
        Claim("an entity's events took effect in their order", list(_wrong_order(rows))),
        Claim("every entity's version is its last event", list(_wrong_versions(rows, versions))),
        Claim(
            "no event was given up on",
            [
                f"event {id} of {kind} {entity} is parked: {error}"
                for id, kind, entity, error in parked
            ],
        ),
    ]
    if shown is not None:
        wrong = [id for id in balances.keys() | shown.keys() if balances.get(id) != shown.get(id)]
        claims.append(
            Claim(
                "retold shows every customer the same balance",
                [f"account {id}: {balances.get(id)}, shown {shown.get(id)}" for id in wrong],
            )
        )
    return claims


def _balances(rows: list[Row]) -> tuple[dict[str, int], list[str]]:
    """Balance by account, and every moment at which one was impossible."""
    balances: dict[str, int] = {}
    impossible: list[str] = []
    for row in rows:
        if row.type == "AccountOpened":
            balances[row.entity] = row.data["balance"]
        elif row.type in (_DEBITED, _CREDITED, _REFUNDED):
            sign = -1 if row.type == _DEBITED else 1
            if row.entity not in balances:
                impossible.append(f"event {row.id}: account {row.entity} was never opened")
            balances[row.entity] = balances.get(row.entity, 0) + sign * row.data["amount"]
            if balances[row.entity] < 0:
                impossible.append(f"event {row.id}: account {row.entity} is overdrawn")
    return balances, impossible


Steps = dict[str, dict[str, list[Row]]]


def _steps(rows: list[Row]) -> Steps:
    """What happened to each transfer: transfer → type of event → rows."""
    steps: Steps = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row.type in (_COMPLETED, _REFUSED):
            steps[row.entity][row.type].append(row)
        elif "transfer" in row.data:
            steps[row.data["transfer"]][row.type].append(row)
    return steps


def _wrong_movements(requested: Mapping[str, dict[str, Any]], steps: Steps) -> Iterator[str]:
    for transfer, happened in steps.items():
        if transfer not in requested:
            yield f"transfer {transfer} was never requested"
            continue
        request = requested[transfer]
        for movement, account in (
            (_DEBITED, request["source"]),
            (_CREDITED, request["target"]),
            (_REFUNDED, request["source"]),
        ):
            moved = happened.get(movement, [])
            if len(moved) > 1:
                yield f"transfer {transfer}: {movement} {len(moved)} times"
            for row in moved:
                if (row.entity, row.data["amount"]) != (account, request["amount"]):
                    yield f"transfer {transfer}: {movement} is not as requested (event {row.id})"


def _wrong_endings(requested: Mapping[str, dict[str, Any]], steps: Steps) -> Iterator[str]:
    for transfer in requested:
        happened = steps.get(transfer, {})
        ending = [end for end in (_COMPLETED, _REFUSED) for _ in happened.get(end, [])]
        moved = {step for step in (_DEBITED, _CREDITED, _REFUNDED) if happened.get(step)}
        if not ending:
            yield f"transfer {transfer} is open"
        elif len(ending) > 1:
            yield f"transfer {transfer} ended {len(ending)} times"
        elif ending == [_COMPLETED] and moved != {_DEBITED, _CREDITED}:
            yield f"transfer {transfer} is completed with {sorted(moved)}"
        elif ending == [_REFUSED] and moved not in (set(), {_DEBITED, _REFUNDED}):
            yield f"transfer {transfer} is refused with {sorted(moved)}"


def _handled_twice(rows: Iterable[Row]) -> Iterator[str]:
    """In this bank the handling of an event changes an entity by one event."""
    seen: set[tuple[Entity, str]] = set()
    for row in rows:
        if row.cause is not None:
            effect = (row.kind, row.entity), row.cause
            if effect in seen:
                yield f"event {row.cause} changed {row.entity} again (event {row.id})"
            seen.add(effect)


def _wrong_order(rows: Iterable[Row]) -> Iterator[str]:
    """What the events of one entity caused in another one lies there in the order of its causes."""
    origins = {row.id: (row.kind, row.entity) for row in rows}
    last: dict[tuple[Entity, Entity], str] = {}
    for row in rows:
        if row.cause is None:
            continue
        if row.cause not in origins:
            yield f"event {row.id}: its cause {row.cause} is unknown"
            continue
        pair = origins[row.cause], (row.kind, row.entity)
        if row.cause < last.get(pair, ""):
            yield f"event {row.id} of {row.entity}: event {row.cause} took effect too late"
        last[pair] = row.cause


def _wrong_versions(rows: Iterable[Row], versions: Mapping[Entity, str]) -> Iterator[str]:
    last: dict[Entity, str] = {}
    for row in rows:
        if row.id <= last.get((row.kind, row.entity), ""):
            yield f"{row.kind} {row.entity}: event {row.id} is out of order"
        last[row.kind, row.entity] = row.id
    for (kind, entity), version in versions.items():
        if last.pop((kind, entity), None) != version:
            yield f"{kind} {entity}: version {version} is not its last event"
    for kind, entity in last:
        yield f"{kind} {entity} has events but no version"


def lines(claims: list[Claim]) -> Iterator[str]:
    """The audit as text: a line for each claim, and the first contradictions below it."""
    for claim in claims:
        yield f"{'✗' if claim.problems else '✓'} {claim.text}"
        for problem in claim.problems[:5]:
            yield f"    {problem}"
        if len(claim.problems) > 5:
            yield f"    … and {len(claim.problems) - 5:,} more"


if __name__ == "__main__":
    claims = audit(sys.argv[1])
    print("\n".join(lines(claims)))
    sys.exit(any(claim.problems for claim in claims))
