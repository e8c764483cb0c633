"""The command line: `retold COMMAND`, one module for each command.

Exit codes: 0 for done, 1 where the answer to a check is no, 2 for an error; those that run for long
have more. An error is one line that says what happened and one that says what to do.
"""

from __future__ import annotations

import argparse
import sys
from inspect import cleandoc
from typing import TYPE_CHECKING

from retold.cli import doctor, migrate, move, parked, relay, run, schema, verify
from retold.errors import RetoldError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_COMMANDS = (migrate, run, parked, move, relay, verify, doctor, schema)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit code."""
    parser = argparse.ArgumentParser(prog="retold", description="Operate an event store.")
    commands = parser.add_subparsers(metavar="COMMAND")
    for command in _COMMANDS:
        command.add_to(commands)
    chosen = parser.parse_args(arguments)
    if "run" not in chosen:
        parser.print_help()
        return 0
    try:
        code: int = chosen.run(chosen)
    except RetoldError as error:
        print("error: " + "\n".join(explained(error)), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return code


def explained(error: RetoldError) -> Iterator[str]:
    """What happened, then what to do, a line each.

    The first sentence is found in the class's text, before it is filled in: what it quotes from a
    database has full stops of its own.
    """
    template = cleandoc(type(error).__doc__ or "{0}")
    for text in template.partition(". ")[::2]:
        if text:
            yield " ".join(text.format_map(vars(error)).split())
