"""`retold migrate`: create or update the store's tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from retold.cli.settings import add_database, open_store

if TYPE_CHECKING:
    import argparse

VARIABLE = "RETOLD_DATABASE_URL"


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "migrate",
        help="create or update the store's tables",
        description="Create or update the store's tables. Safe to repeat, and to run twice at once.",
        epilog=f"A password in --database shows in the list of processes; in {VARIABLE} it does not.",
    )
    add_database(parser)
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--check", action="store_true", help="change nothing; exit 1 when something is pending"
    )
    what.add_argument(
        "--sql", action="store_true", help="change nothing; print all statements, for a run by hand"
    )
    parser.add_argument(
        "--polling", action="store_true", help="also make the index for a relay that polls"
    )
    parser.add_argument(
        "--subscriptions",
        action="store_true",
        help="also make what subscriptions need on a server's database (SQLite has it)",
    )
    parser.set_defaults(run=run)


def run(chosen: argparse.Namespace) -> int:
    store = open_store(chosen)
    try:
        if chosen.sql:
            print(store.migration_script(), end="")
            return 0
        if chosen.check:
            steps = store.pending_migrations()
        else:
            steps = store.migrate(polling=chosen.polling, subscriptions=chosen.subscriptions)
    finally:
        store.close()
    for step in steps:
        print("pending" if chosen.check else "applied", step)
    if not steps:
        print("nothing to do: the tables are up to date")
    return 1 if chosen.check and steps else 0
