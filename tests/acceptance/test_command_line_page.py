"""docs/reference/command-line.md has every command with its options, and no other."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest

from retold.cli import command_line
from retold.cli.parsers import leaves

_PAGE = (Path(__file__).parents[2] / "docs/reference/command-line.md").read_text("utf-8")
_SECTIONS = dict(
    re.findall(r"^### (retold [\w ]+)\n(.*?)(?=^##|\Z)", _PAGE, re.MULTILINE | re.DOTALL)
)
_COMMANDS = {parser.prog: parser for parser in leaves(command_line())}
_EVERYWHERE = {"--help", "--debug"}


def _options(parser: argparse.ArgumentParser) -> set[str]:
    return {
        option
        for action in parser._actions
        for option in action.option_strings
        if option.startswith("--")
    } - _EVERYWHERE


def test_the_page_has_every_command_in_the_order_of_the_help() -> None:
    assert list(_SECTIONS) == list(_COMMANDS)


@pytest.mark.parametrize("name", list(_COMMANDS))
def test_a_section_has_the_options_of_its_command(name: str) -> None:
    # Options of other commands are named with them: `retold migrate --subscriptions`.
    own = re.sub(r"`retold [a-z]+ [^`]*`", "", _SECTIONS[name])
    assert set(re.findall(r"`(--[a-z-]+)`", own)) == _options(_COMMANDS[name])


def test_every_command_says_what_it_is_for() -> None:
    for parser in _COMMANDS.values():
        # A verb's purpose stands in the help of its command.
        assert parser.description or len(parser.prog.split()) > 2


def test_the_help_shows_every_command_once() -> None:
    shown = re.findall(
        r"^  ([a-z]+) ", command_line().format_help().partition("Set up:")[2], re.MULTILINE
    )
    assert shown == list(dict.fromkeys(name.split()[1] for name in _COMMANDS))
