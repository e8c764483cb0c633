"""What type checkers must accept (right.py) and refuse (wrong.py), mypy and pyright alike."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
BIN = Path(sys.executable).parent

Found = dict[tuple[str, int], str]
"""The first complaint about each line: (file, number) → message."""

pytestmark = pytest.mark.skipif(
    not (BIN / "pyright").exists(), reason="the type checkers are not in this environment"
)


def run_mypy(folder: Path) -> Found:
    run = subprocess.run(
        [BIN / "mypy", "--no-error-summary", HERE / "right.py", HERE / "wrong.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert not run.stderr, run.stderr
    found: Found = {}
    for line in run.stdout.splitlines():
        if match := re.fullmatch(r".*?(\w+\.py):(\d+): error: (.*)", line):
            found.setdefault((match[1], int(match[2])), match[3])
    return found


def run_pyright(folder: Path) -> Found:
    # pyright leaves out what a project excludes even when it is named, so this is another project.
    for file in (HERE / "right.py", HERE / "wrong.py"):
        copy = folder / file.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, copy)
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pyright"]
    config |= {"include": ["tests"], "exclude": [], "extraPaths": [str(ROOT / "src")]}
    del config["venv"], config["venvPath"]
    (folder / "pyrightconfig.json").write_text(json.dumps(config))
    run = subprocess.run(
        [BIN / "pyright", "--outputjson", "--pythonpath", sys.executable],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    found: Found = {}
    for told in json.loads(run.stdout)["generalDiagnostics"]:
        if told["severity"] == "error":
            line = told["range"]["start"]["line"] + 1
            found.setdefault((Path(told["file"]).name, line), told["message"])
    return found


def wrong_lines() -> dict[tuple[str, int], str]:
    lines = (HERE / "wrong.py").read_text().splitlines()
    return {("wrong.py", n): line for n, line in enumerate(lines, 1) if line.endswith("# error")}


@pytest.mark.parametrize("check", [run_mypy, run_pyright])
def test_wrong_lines_are_refused_and_right_ones_accepted(
    check: Callable[[Path], Found], tmp_path: Path
) -> None:
    found, wrong = check(tmp_path), wrong_lines()
    accepted = {where: line for where, line in wrong.items() if where not in found}
    refused = {where: message for where, message in found.items() if where not in wrong}
    assert (accepted, refused) == ({}, {})
