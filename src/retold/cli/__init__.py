"""The command line: `retold COMMAND`, one module for each command.

Exit codes: 0 for done, 1 where the answer to a check is no, 2 for an error, 70 for a fault in the
program; those that run for long have more (docs/reference/command-line.md). An error is one line
that says what happened and one that says what to do.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import traceback
from inspect import cleandoc
from typing import TYPE_CHECKING

from retold.cli import (
    completion,
    doctor,
    events,
    export,
    imports,
    migrate,
    move,
    parked,
    projections,
    relay,
    run,
    schema,
    show,
    status,
    subscriptions,
    verify,
)
from retold.cli.parsers import leaves
from retold.errors import RetoldError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_PURPOSES = {
    "Set up": (migrate, schema, doctor, completion),
    "Run": (run, relay),
    "Look": (status, events, show, verify),
    "Mend": (subscriptions, parked, projections),
    "Move": (export, imports, move),
}
_ERROR, _FAULT, _INTERRUPTED, _PIPE_CLOSED = 2, 70, 130, 141


def command_line() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="retold",
        usage="retold [-h] COMMAND …",
        description="Operate an event store.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(prog="retold", metavar="COMMAND", help=argparse.SUPPRESS)
    lines: list[str] = []
    for purpose, modules in _PURPOSES.items():
        before = set(commands.choices)
        for module in modules:
            module.add_to(commands)
        added = [name for name in commands.choices if name not in before]
        helps = {action.dest: action.help for action in commands._choices_actions}
        lines += [f"{purpose}:", *(f"  {name:<12} {helps[name]}" for name in added), ""]
    parser.epilog = "\n".join(
        [*lines, "retold COMMAND --help says more. With --debug an error shows its traceback."]
    )
    for each in leaves(parser):
        each.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit code."""
    parser = command_line()
    chosen = parser.parse_args(arguments)
    if "run" not in chosen:
        parser.print_help()
        return 0
    try:
        code: int = chosen.run(chosen)
        sys.stdout.flush()
    except RetoldError as error:
        if chosen.debug:
            traceback.print_exc()
        print("error: " + "\n".join(explained(error)), file=sys.stderr)
        return _ERROR
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        # What is left in the buffer goes nowhere: at the exit Python would try it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _PIPE_CLOSED
    except Exception:
        traceback.print_exc()
        print("error: the fault above is retold's or the application's own", file=sys.stderr)
        return _FAULT
    return code


_SENTENCE = re.compile(r"\. (?=[A-Z])")


def explained(error: RetoldError) -> Iterator[str]:
    """What happened, then what to do, a line each.

    The first sentence is found in the class's text, before it is filled in: what it quotes from a
    database has full stops of its own.
    """
    template = cleandoc(type(error).__doc__ or "{0}")
    if template == "{problem}":
        yield from _SENTENCE.split(str(error), maxsplit=1)
        return
    for text in template.partition(". ")[::2]:
        if text:
            yield " ".join(text.format_map(vars(error)).split())
