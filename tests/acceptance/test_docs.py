"""The documentation: what it shows runs, and what it links to is there.

The ```python blocks of a page are one program, run in an empty folder. `python new` begins another
program, `python no-run` is not run. A ```text prints block is what the block before it prints.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import retold
import retold.errors

_ROOT = Path(__file__).parents[2]
_PAGES = sorted([*_ROOT.glob("*.md"), *_ROOT.glob("docs/**/*.md")])
_FENCE = re.compile(r"^```(?P<info>[^\n]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]+\]\((?P<file>[^)#\s]*)(?:#(?P<anchor>[^)\s]+))?\)")
_HEADING = re.compile(r"^#+ +(.+)$", re.MULTILINE)
_END_OF_BLOCK = "\0\n"


@dataclass
class Program:
    """A program of a page. Its lines have the numbers they have on the page, for tracebacks.

    prints: for each block what the page says that it prints, None where it says nothing.
    """

    code: str = ""
    prints: list[str | None] = field(default_factory=list[str | None])

    def add(self, text: str, first_line: int) -> None:
        self.code += "\n" * (first_line - self.code.count("\n")) + text + 'print("\\0")\n'
        self.prints.append(None)


def programs(page: Path) -> list[Program]:
    text = page.read_text("utf-8")
    found: list[Program] = []
    for fence in _FENCE.finditer(text):
        language, _, mark = fence["info"].partition(" ")
        if (language, mark) == ("text", "prints"):
            found[-1].prints[-1] = fence["text"]
        elif language == "python" and mark != "no-run":
            if mark == "new" or not found:
                found.append(Program())
            found[-1].add(fence["text"], text.count("\n", 0, fence.start("text")))
    return found


_PROGRAMS = {
    f"{page.relative_to(_ROOT)}-{number}": program
    for page in _PAGES
    for number, program in enumerate(programs(page), 1)
}


@pytest.mark.parametrize("name", list(_PROGRAMS))
def test_programs_run_and_print_what_the_page_says(name: str, tmp_path: Path) -> None:
    program = _PROGRAMS[name]
    (tmp_path / "page.py").write_text(program.code, "utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "error", "page.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(_ROOT / "src")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    printed = done.stdout.split(_END_OF_BLOCK)[:-1]
    assert len(printed) == len(program.prints)
    for found, expected in zip(printed, program.prints, strict=True):
        assert expected in (None, found)


def test_programs_have_no_type_errors(tmp_path: Path) -> None:
    for name, program in _PROGRAMS.items():
        (tmp_path / (re.sub(r"\W", "_", name) + ".py")).write_text(program.code, "utf-8")
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", f"--config-file={_ROOT / 'pyproject.toml'}", str(tmp_path)],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: str(page.relative_to(_ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in _LINK.finditer(_without_code(page)):
        if link["file"].startswith(("https://", "http://", "mailto:")):
            continue
        target = page.parent / link["file"] if link["file"] else page
        assert target.exists(), link[0]
        if link["anchor"]:
            assert link["anchor"] in _anchors(target), link[0]


def _without_code(page: Path) -> str:
    return _FENCE.sub("", page.read_text("utf-8"))


def _anchors(page: Path) -> set[str]:
    """As GitHub makes them: lower case, dashes for spaces, punctuation left out."""
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in _HEADING.findall(_without_code(page))
    }


def test_every_page_can_be_reached_from_the_index() -> None:
    reached: set[Path] = set()
    ahead = [_ROOT / "README.md"]
    while ahead:
        page = ahead.pop().resolve()
        if page in reached or page.suffix != ".md":
            continue
        reached.add(page)
        links = _LINK.finditer(_without_code(page))
        ahead += [page.parent / link["file"] for link in links if "://" not in link["file"]]
    assert set(_PAGES) <= reached


def test_the_reference_has_every_public_name() -> None:
    pages = "".join(page.read_text("utf-8") for page in _ROOT.glob("docs/reference/*.md"))
    shown = set(re.findall(r"^::: retold\.(\w+)$", pages, re.MULTILINE))
    errors = {name for name in retold.__all__ if hasattr(retold.errors, name)}
    assert shown == {*retold.__all__, "testing"} - errors
