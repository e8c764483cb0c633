"""Leases: whoever holds one says so in a row, again and again, until it is done or dead."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable

LEASE_S = 30.0
"""How long a member that is not heard of keeps what it holds; it renews four times as often."""


class Renewer:
    """Calls `renew` four times in the time of a lease, beside handlers that may take longer."""

    def __init__(self, name: str, lease_s: float, renew: Callable[[], None]) -> None:
        self._pause = lease_s / 4
        self._renew = renew
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"{name} lease", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._ended.wait(self._pause):
            self._renew()

    def end(self) -> None:
        self._ended.set()
        self._thread.join()  # it must not use the store any more when this returns


def process_identity(pid: int) -> str:
    """Machine, process namespace, pid and start time; a later process with this pid differs."""
    try:
        namespace = os.readlink("/proc/self/ns/pid")
        started = _stat(pid)[19]
    except (OSError, IndexError):
        namespace, started = "-", "-"
    return f"{socket.gethostname()}{_boot()}/{namespace}/{pid}/{started}"


def _boot() -> str:
    """Tells machines apart that have one name; members on one server's database may be on such."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return "." + file.read(13).replace("-", "")
    except OSError:
        return ""


def _stat(pid: int) -> list[str]:
    """What /proc says of a process, from its state on."""
    with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
        return file.read().rpartition(")")[2].split()


def is_gone(owner: str) -> bool:
    """Whether an owner ran on this machine and provably runs no more."""
    parts = owner.split("/")
    mine = process_identity(os.getpid()).split("/")
    if os.name != "posix" or len(parts) != 5 or parts[:2] != mine[:2] or not parts[2].isdigit():
        return False
    pid, started = int(parts[2]), parts[3]
    try:
        os.kill(pid, 0)
        stat = [] if started == "-" else _stat(pid)
    except (ProcessLookupError, FileNotFoundError):
        return True
    except OSError:  # somebody else's, so it is there
        return False
    # A dead process whose parent has not asked for it yet is gone once its last thread is.
    return bool(stat) and (stat[19] != started or (stat[0] in "ZX" and int(stat[17]) <= 1))


def tells_machines_apart() -> bool:
    """Whether a name that two machines share is no danger."""
    return bool(_boot())
