"""What the command line is told to run, on SQLite."""

from __future__ import annotations

from tests.integration.accounts import Balances

balances = Balances("sqlite:///").projection
inline = Balances("sqlite:///", "inline", inline=True).projection
