"""Walking through a command line: the commands of a parser, and the verbs of those that have some."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any, cast


def below(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The commands, or verbs, of a parser; empty where it has none."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            choices = cast("Any", action).choices
            return dict(choices)
    return {}


def leaves(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """The parsers that have no others below them."""
    found = below(parser)
    for each in found.values():
        yield from leaves(each)
    if not found:
        yield parser
