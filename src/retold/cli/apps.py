"""The application's own modules, as commands load them."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

from retold.codecs import Codec
from retold.errors import UsageError
from retold.store.event_store import AsyncEventStore, EventStore

if TYPE_CHECKING:
    import argparse


def load(app: str) -> Any:
    """What `package.module` or `package.module:name` names, from the current folder too.

    Raises UsageError where there is no such module or name. What goes wrong inside the application
    while it is imported is raised as it is: its traceback says where.
    """
    module_name, colon, name = app.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")  # as with python -m; it stays, for what is imported later
    if not all(part.isidentifier() for part in module_name.split(".")):
        raise _no_module(module_name)
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the application's own
        raise _no_module(error.name) from None
    for part in name.split(".") if colon else ():
        if not hasattr(found, part):
            raise UsageError(f"module {module_name!r} has no {name!r}. Look at how it is spelt")
        found = getattr(found, part)
    return found


def _no_module(name: str) -> UsageError:
    return UsageError(
        f"there is no module {name!r} here or installed. Run the command where Python finds it"
    )


def add_app(parser: argparse.ArgumentParser, why: str) -> None:
    """The option --app, which may be left out."""
    parser.add_argument(
        "--app",
        action="append",
        default=[],
        metavar="MODULE",
        help=f"the application's module, {why}; may be repeated. Of package.module:store the "
        "store's codec is used",
    )


def codec_of(apps: list[str]) -> Codec | None:
    """Load modules; the codec of the store that one of them names, None where no module is named.

    Raises UsageError.
    """
    codec = Codec() if apps else None
    for app in apps:
        found = load(app)
        if isinstance(found, (EventStore, AsyncEventStore)):
            codec = found.codec
    return codec
