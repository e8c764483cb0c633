"""The audit of a bank's file: reads the tables as they are, without retold.

    python -m examples.bank.audit bank.db

What retold and the example's own code claim is of no interest here; balances are derived anew from
the rows, and each transfer's story is checked step by step.
"""

from __future__ import annotations

import json
import sqlite3
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import Any, NamedTuple

_DEBITED, _CREDITED, _REFUNDED = "AccountDebited", "AccountCredited", "AccountRefunded"
_COMPLETED, _REFUSED = "TransferCompleted", "TransferRefused"


class Row(NamedTuple):
    """One row of the events table; `type` without the `bank.` in front."""

    id: str
    type: str
    entity: str
    data: dict[str, Any]


class Claim(NamedTuple):
    """Something that must be true of the bank, and what contradicts it."""

    text: str
    problems: list[str]


def audit(path: str, shown: Mapping[str, int] | None = None) -> list[Claim]:
    """Every claim about a bank's file. `shown`: the balances the bank tells its customers."""
    with closing(sqlite3.connect(path)) as database:
        rows = [
            Row(id, event_type.removeprefix("bank."), entity, json.loads(data))
            for id, event_type, entity, data in database.execute(
                "SELECT event_id, event_type, entity_id, event_data FROM events ORDER BY position"
            )
        ]
        twice = list(_handled_twice(database))
        versions = list(_wrong_versions(database))
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
        Claim("no event was handled twice", twice),
        Claim("every entity's version is its last event, in the order of commits", versions),
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


def _handled_twice(database: sqlite3.Connection) -> Iterator[str]:
    """In this bank the handling of an event changes an entity by one event."""
    for entity, cause, times in database.execute(
        "SELECT entity_id, triggering_event, count(*) FROM events "
        "WHERE triggering_event IS NOT NULL "
        "GROUP BY entity_type, entity_id, triggering_event HAVING count(*) > 1"
    ):
        yield f"event {cause} changed {entity} {times} times"


def _wrong_versions(database: sqlite3.Connection) -> Iterator[str]:
    last: dict[tuple[str, str], str] = {}
    for kind, entity, event in database.execute(
        "SELECT entity_type, entity_id, event_id FROM events ORDER BY position"
    ):
        if event <= last.get((kind, entity), ""):
            yield f"{kind} {entity}: event {event} is out of order"
        last[kind, entity] = event
    for kind, entity, version in database.execute(
        "SELECT entity_type, entity_id, entity_version FROM entities"
    ):
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
