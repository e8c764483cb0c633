"""What a relay writes: lines for people on a terminal, JSON elsewhere."""

from __future__ import annotations

import io
import json
import logging
import os
import pty
import sys
from collections.abc import Iterator
from datetime import datetime

import pytest

from retold.cli import logs
from retold.cli.logs import StatusLine, start_logging
from retold.errors import InvalidValue


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    root = logging.getLogger("retold")
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers, root.level = handlers, level


def test_elsewhere_each_line_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert start_logging("auto") is None
    logging.getLogger("retold.relay").info("%d events, \n%s", 7, "äß")
    (line,) = capsys.readouterr().err.splitlines()
    found = json.loads(line)
    assert datetime.fromisoformat(found.pop("time")).tzinfo is not None
    assert found == {"level": "info", "logger": "retold.relay", "message": "7 events, \näß"}


def test_a_traceback_stays_on_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    start_logging("json")
    try:
        raise ZeroDivisionError
    except ZeroDivisionError:
        logging.getLogger("retold").exception("oh")
    (line,) = capsys.readouterr().err.splitlines()
    assert "ZeroDivisionError" in json.loads(line)["traceback"]


def test_text_can_be_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert start_logging("text") is None
    logging.getLogger("retold.relay").warning("look")
    assert capsys.readouterr().err.endswith(" WARNING look\n")


def test_another_form_is_refused() -> None:
    with pytest.raises(InvalidValue, match="xml"):
        start_logging("xml")


def test_debugging_lines_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    start_logging("text")
    logging.getLogger("retold.relay").debug("nobody wants this")
    assert capsys.readouterr().err == ""


def test_on_a_terminal_there_is_a_status_line(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb", buffering=0), os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        assert isinstance(start_logging("auto"), StatusLine)
        assert start_logging("json") is None


def test_log_lines_stand_above_the_status() -> None:
    output = io.StringIO()
    status = StatusLine(output)
    status.show("7 events")
    status.emit(logging.LogRecord("retold", logging.INFO, "", 0, "a line", (), None))
    status.show("8 events")
    status.end()
    status.end()
    clear = "\r\x1b[K"
    assert output.getvalue() == (f"{clear}7 events{clear}a line\n{clear}7 events{clear}8 events\n")


def test_a_status_does_not_wrap(monkeypatch: pytest.MonkeyPatch) -> None:
    def ten(stream: object) -> int:
        return 10

    monkeypatch.setattr(logs, "_columns", ten)
    output = io.StringIO()
    StatusLine(output).show("0123456789abc")
    assert output.getvalue() == "\r\x1b[K012345678"
