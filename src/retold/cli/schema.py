"""`retold schema`: keep the schema of an application's events, and check that code still reads it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from retold.cli.apps import load
from retold.errors import InvalidValue, UsageError
from retold.events import event_classes
from retold.schema import read_schema, schema_of
from retold.schema_changes import problems
from retold.upcasting import upcast_names

if TYPE_CHECKING:
    import argparse


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "schema",
        help="check that new code reads stored events",
        description="Write down the schema of all events that an application declares, and check "
        "later code against it: an event renamed or removed, a field without default, a field gone "
        "or of another type need an upcaster.",
        epilog="Exit codes: 0 stored events are read as they were; 1 some are not; 2 an error.",
    )
    parser.add_argument(
        "--app",
        action="append",
        required=True,
        metavar="MODULE",
        help="what to import, from the current folder too; may be repeated. Of package.module:name "
        "only the module counts",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--write", metavar="FILE", type=Path, help="write the schema to a file")
    what.add_argument("--check", metavar="FILE", type=Path, help="compare the code with that file")
    parser.set_defaults(run=run)


def run(chosen: argparse.Namespace) -> int:
    for app in chosen.app:
        load(app.partition(":")[0])
    classes = tuple(event_classes)
    if not classes:
        raise UsageError(
            f"{', '.join(chosen.app)} declares no event. Name the modules whose import declares them"
        )
    today = schema_of(classes, upcast_names())
    if chosen.write:
        _write(chosen.write, today.to_json())
        print(f"wrote {len(today.events)} events to {chosen.write}")
        return 0
    locked = read_schema(_read(chosen.check))
    found = list(problems(locked, classes, upcast_names()))
    for problem in found:
        print(problem, end="\n\n")
    if found:
        print(f"{len(found)} names of stored events are not read as they were stored")
        return 1
    print("stored events are read as they were stored")
    if locked.to_json() != today.to_json():
        apps = " ".join(f"--app {app}" for app in chosen.app)
        print(f"there are additions; keep them: retold schema {apps} --write {chosen.check}")
    return 0


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidValue(
            f"{path} cannot be read ({error.strerror}). Write it first: --write {path}"
        ) from None


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, "utf-8")
    except OSError as error:
        raise InvalidValue(f"{path} cannot be written: {error.strerror}") from None
