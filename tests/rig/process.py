"""A daemon that ends, and whose files go, when the process that started it does."""

from __future__ import annotations

import contextlib
import os
import pwd
import random
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

# Database servers refuse to run as root.
_NOBODY = pwd.getpwnam("nobody") if os.geteuid() == 0 else None

# The watchman reads process ids until its standard input closes, which the system does however
# the writer ends (SIGKILL too), then kills the last one's group and deletes the folder.
_WATCHMAN = """
while read -r line; do pid=$line; done
[ -z "$pid" ] || kill -s KILL -- "-$pid" 2>/dev/null
rm -rf -- "$1" 2>/dev/null || { sleep 1; rm -rf -- "$1"; }
"""


def free_port() -> int:
    """A free port below those that the system gives to outgoing connections.

    One from that range could be taken by a client while the server is down for a restart.
    """
    while True:
        port = random.SystemRandom().randrange(15000, 30000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def private_folder(parent: Path | None = None) -> Path:
    """A new folder that the servers' user owns."""
    folder = Path(tempfile.mkdtemp(prefix="retold-rig-", dir=parent))
    if _NOBODY:
        os.chown(folder, _NOBODY.pw_uid, _NOBODY.pw_gid)
    return folder


def run(command: Sequence[str], *, folder: Path) -> None:
    """Run a command as the servers' user and wait for it."""
    with tempfile.TemporaryFile() as output:
        if code := _spawn(command, folder=folder, output=output).wait():
            output.seek(0)
            text = output.read().decode(errors="replace")
            raise RuntimeError(f"{command[0]} ended with {code}:\n{text}")


def _spawn(command: Sequence[str], *, folder: Path, output: IO[bytes]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,
        user=_NOBODY and _NOBODY.pw_uid,
        group=_NOBODY and _NOBODY.pw_gid,
        extra_groups=_NOBODY and [],
    )


class Daemon:
    """A server's process, started and ended any number of times on one folder."""

    def __init__(self, command: Sequence[str], *, folder: Path) -> None:
        self._command = command
        self._folder = folder
        self._log = folder / "log"
        self._process: subprocess.Popen[bytes] | None = None
        self._watchman = subprocess.Popen(
            ["sh", "-c", _WATCHMAN, "watchman", folder],
            stdin=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C in a terminal goes to the whole group
        )

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = _spawn(self._command, folder=self._folder, output=log)
        self._tell_watchman(self._process.pid)

    def _tell_watchman(self, pid: int) -> None:
        assert self._watchman.stdin is not None
        self._watchman.stdin.write(b"%d\n" % pid)
        self._watchman.stdin.flush()

    def check(self) -> None:
        """Raise when the process has ended by itself."""
        if self._process is not None and self._process.poll() is not None:
            tail = "\n".join(self._log.read_text(errors="replace").splitlines()[-20:])
            raise RuntimeError(
                f"{self._command[0]} ended with {self._process.returncode}; its log:\n{tail}"
            )

    def send(self, what: signal.Signals) -> None:
        """Send a signal and do not wait."""
        assert self._process is not None, "not running"
        os.kill(self._process.pid, what)

    def end(self, how: signal.Signals) -> None:
        """Send a signal and wait for the end; SIGKILL goes to its children too."""
        process, self._process = self._process, None
        if process is None:
            return
        family = [process.pid]
        if how is signal.SIGKILL:
            family += _children(process.pid)
        for pid in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, how)
        process.wait(timeout=60)
        while any(_runs(pid) for pid in family[1:]):
            time.sleep(0.005)

    def close(self) -> None:
        """End the process at once and delete its folder."""
        assert self._watchman.stdin is not None
        self.end(signal.SIGKILL)
        self._watchman.stdin.close()
        self._watchman.wait()


def _children(pid: int) -> list[int]:
    try:
        return [
            int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ]
    except FileNotFoundError:
        return []


def _runs(pid: int) -> bool:
    try:
        # "pid (command) state …"; a zombie waits for whoever adopted it.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False
