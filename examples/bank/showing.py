"""How far the transfers are, drawn on a terminal or told line by line."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


class Bar(Protocol):
    def show(self, done: int) -> None: ...
    def say(self, text: str) -> None: ...


class _RichBar:
    def __init__(self, progress: Progress, total: int) -> None:
        self._progress = progress
        self._task = progress.add_task("transfers", total=total)

    def show(self, done: int) -> None:
        self._progress.update(self._task, completed=done)

    def say(self, text: str) -> None:
        self._progress.console.print(text, highlight=False)


class _PlainBar:
    """A line for every tenth, where no terminal is there to draw on."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._tenths = 0

    def show(self, done: int) -> None:
        if (tenths := done * 10 // self._total) > self._tenths:
            self._tenths = tenths
            self.say(f"{done:,} of {self._total:,} transfers")

    def say(self, text: str) -> None:
        print(text, flush=True)


@contextmanager
def bar(console: Console, total: int) -> Generator[Bar]:
    if not console.is_terminal:
        yield _PlainBar(total)
        return
    columns = (TextColumn("{task.description}"), BarColumn(None), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        yield _RichBar(progress, total)
