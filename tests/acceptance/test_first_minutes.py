"""The README's program, and what its commands show of it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).parents[2]


def test_the_commands_of_the_readme_show_its_program(tmp_path: Path) -> None:
    code = re.findall(
        r"^```python\n(.*?)^```$",
        (_ROOT / "README.md").read_text("utf-8"),
        re.MULTILINE | re.DOTALL,
    )
    (tmp_path / "bank.py").write_text(code[0], "utf-8")
    environment = {
        **os.environ,
        "PYTHONPATH": str(_ROOT / "src"),
        "RETOLD_DATABASE_URL": "sqlite:///bank.db",
    }

    def run(*arguments: str) -> str:
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        ).stdout

    run("bank.py")
    opened, debited = map(json.loads, run("-m", "retold", "events", "--json").splitlines())
    assert (opened["type"], debited["type"]) == ("bank.Opened", "bank.Debited")
    shown = run("-m", "retold", "show", f"bank.Account/{opened['entity_id']}", "--app", "bank")
    lines = [line.partition("Z ")[2] or line for line in shown.splitlines()]
    assert lines == [
        "Opened(owner='ann', balance=100)",
        "  Account(balance=100)",
        "Debited(amount=30)",
        "  Account(balance=70)",
    ]
