"""One line about work that takes long: on a terminal it is written over, elsewhere there is none."""

from __future__ import annotations

import sys
import time


class Progress:
    def __init__(self, what: str) -> None:
        self._what = what
        self._began = self._shown = time.monotonic()
        self._terminal = sys.stderr.isatty()

    def show(self, done: int, of: int | None = None) -> None:
        now = time.monotonic()
        if not self._terminal or now - self._shown < 0.2:
            return
        self._shown = now
        share = f" of {of:,}" if of else ""
        rate = done / (now - self._began)
        text = f"{self._what}: {done:,}{share}, {rate:,.0f}/s"
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        if self._terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
