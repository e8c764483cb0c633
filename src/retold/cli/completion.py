"""`retold completion`: what a shell needs to complete commands and options."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from retold.cli.parsers import below

_BASH = """\
_retold() {{
    local before="${{COMP_WORDS[*]:1:COMP_CWORD-1}}" word="${{COMP_WORDS[COMP_CWORD]}}" words="{top}"
    case "$before" in
{cases}
    esac
    [[ $word == -* || $COMP_CWORD == 1 || $words != -* ]] && COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _retold retold
"""


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "completion",
        help="a script that completes commands and options",
        description="Print a script for bash: source <(retold completion bash). zsh understands it "
        "after autoload -U bashcompinit; bashcompinit.",
    )
    parser.add_argument("shell", choices=("bash",))
    parser.set_defaults(run=run)


def run(chosen: argparse.Namespace) -> int:
    from retold.cli import command_line

    print(_bash(command_line()), end="")
    return 0


def _bash(parser: argparse.ArgumentParser) -> str:
    # The longest first: `parked list` before `parked`.
    cases = [
        f'        "{path}"|"{path} "*) words="{" ".join(words)}" ;;'
        for path, words in sorted(_words(parser), key=lambda each: -len(each[0]))
        if path
    ]
    top = " ".join(below(parser))
    return _BASH.format(top=top, cases="\n".join(cases))


def _words(parser: argparse.ArgumentParser, path: str = "") -> Iterator[tuple[str, list[str]]]:
    """Each command and verb, with what may stand behind it."""
    names = below(parser)
    options = [
        option
        for action in parser._actions
        for option in action.option_strings
        if option.startswith("--")
    ]
    yield path, [*names, *options]
    for name, each in names.items():
        yield from _words(each, f"{path} {name}".strip())
