"""`retold show`: the events of one entity, each with the state after it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from retold.aggregates import Aggregate, Replay, aggregate_classes
from retold.cli.apps import add_app, codec_of
from retold.cli.settings import add_database, open_store
from retold.cli.showing import (
    AS_STORED,
    entity_named,
    fields_of,
    in_words,
    note,
    print_json,
    print_line,
    time_of,
    without_personal,
)
from retold.errors import NotFound, UsageError
from retold.personal import masked
from retold.store.listing import StoredEvent, Wanted, page_of

if TYPE_CHECKING:
    import argparse

    from retold.codecs import Codec
    from retold.store.event_store import EventStore


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "show",
        help="the events of one entity, with its states",
        description="Show each event of an entity, and with --app the state after it. Without "
        "--app nobody knows which fields are personal: events are shown as they are stored.",
        epilog="Exit codes: 0 shown; 2 an error, such as an entity that is not there.",
    )
    parser.add_argument("entity", metavar="TYPE/ID", help="such as bank.Account/ann")
    add_database(parser)
    add_app(parser, "which knows the state and masks personal fields")
    parser.add_argument("--json", action="store_true", help="print JSON Lines")
    parser.set_defaults(run=run)


def run(chosen: argparse.Namespace) -> int:
    entity_type, entity_id = entity_named(chosen.entity)
    codec = codec_of(chosen.app)
    replay = None if codec is None else Replay(_aggregate(entity_type, chosen.app), codec)
    store = open_store(chosen)
    try:
        shown = 0
        state = replay.blank(entity_id) if replay is not None else None
        for event in _history(store, entity_type, entity_id):
            if replay is not None and state is not None:
                replay.apply(state, [event[:3]])
            _print(codec, event, state, as_json=chosen.json)
            shown += 1
    finally:
        store.close()
    if not shown:
        raise NotFound(entity_type, entity_id)
    if codec is None:
        note(AS_STORED)
    return 0


def _aggregate(entity_type: str, apps: list[str]) -> type[Aggregate]:
    found = aggregate_classes.get(entity_type)
    if found is None:
        known = ", ".join(sorted(cls.__entity_type__ for cls in aggregate_classes)) or "none"
        raise UsageError(
            f"{' and '.join(apps)} declares no aggregate {entity_type!r}. It declares: {known}"
        )
    return found


def _history(store: EventStore, entity_type: str, entity_id: str) -> Iterator[StoredEvent]:
    wanted, ahead = Wanted(entity_type, entity_id), ""
    while True:
        page = store.driver.run(page_of(store.driver.dialect, wanted, ahead))
        yield from page.events
        if page.ahead is None:
            return
        ahead = page.ahead


def _print(
    codec: Codec | None, event: StoredEvent, state: Aggregate | None, *, as_json: bool
) -> None:
    if as_json:
        fields = fields_of(codec, event)
        if state is not None:
            fields["state"] = without_personal(state)
        print_json(codec, fields)
        return
    print_line(f"{time_of(event)} {in_words(codec, event)}")
    if state is not None:
        print_line(f"  {masked(state)}")
