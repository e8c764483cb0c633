"""All benchmarks, one after the other: `make bench`, or `python -m benchmarks`.

Each is a program of its own with options: `python -m benchmarks.store --help`.
"""

from __future__ import annotations

import subprocess
import sys

PROGRAMS = ("store", "subscriptions", "brokers", "relay", "consume")


def main() -> int:
    for name in PROGRAMS:
        print(f"\n== benchmarks.{name}", flush=True)
        if code := subprocess.run(
            [sys.executable, "-m", f"benchmarks.{name}"], check=False
        ).returncode:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
