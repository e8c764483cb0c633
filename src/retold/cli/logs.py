"""What a process that runs for long writes: lines for people on a terminal, JSON elsewhere."""

from __future__ import annotations

import logging
import os
import sys
from datetime import UTC, datetime
from typing import TextIO

import msgspec

from retold.errors import InvalidValue


class _JSON(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line).decode()


class _Text(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S")


class StatusLine(logging.StreamHandler[TextIO]):
    """Log lines, and below them one line that is written again and again."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._status = ""

    def show(self, status: str) -> None:
        self.acquire()
        try:
            self._status = status
            self._draw()
        finally:
            self.release()

    def emit(self, record: logging.LogRecord) -> None:
        self.stream.write("\r\x1b[K")
        super().emit(record)
        self._draw()

    def _draw(self) -> None:
        if self._status:
            # A line that wraps could not be written over.
            self.stream.write(f"\r\x1b[K{self._status[: _columns(self.stream) - 1]}")
            self.flush()

    def end(self) -> None:
        """Leave the line as it is and go on below it."""
        if self._status:
            self._status = ""
            self.stream.write("\n")
            self.flush()


def _columns(stream: TextIO) -> int:
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except OSError:
        return 80


def start_logging(form: str) -> StatusLine | None:
    """Log to standard error. The status line, where there is a terminal to show it on.

    form: "text", "json", or "auto": text on a terminal.
    """
    if form not in ("auto", "text", "json"):
        raise InvalidValue(f"--log-format is auto, text or json, not {form!r}")
    terminal = sys.stderr.isatty()
    handler: logging.StreamHandler[TextIO]
    status = StatusLine(sys.stderr) if terminal and form != "json" else None
    handler = status or logging.StreamHandler(sys.stderr)
    text = form == "text" or (form == "auto" and terminal)
    handler.setFormatter(_Text() if text else _JSON())
    root = logging.getLogger("retold")
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    return status
