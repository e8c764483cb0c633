"""Child processes that tell a test what they did, for as long as they live."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

# Children of one clean process that has the imports: many can be started, and killed, quickly.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(
    ["__main__", "retold.drivers.mysql", "retold.drivers.postgres", "tests.integration.tally"]
)


class Worker:
    """A process that runs `work(pipe, *args)`; `sent` is what arrived through its pipe so far."""

    def __init__(self, work: Callable[..., None], *args: object) -> None:
        receiver, sender = processes.Pipe(duplex=False)
        self._process = processes.Process(target=work, args=(sender, *args), daemon=True)
        self._process.start()
        sender.close()
        self.sent: list[Any] = []
        self._reader = threading.Thread(target=self._read, args=(receiver,), daemon=True)
        self._reader.start()

    def _read(self, receiver: Connection) -> None:
        with receiver, suppress(EOFError, OSError):  # OSError: killed in the middle of a message
            while True:
                self.sent.append(receiver.recv())

    def wait_until_sent(self, many: int) -> None:
        while len(self.sent) < many:
            assert self._reader.is_alive(), "the process has ended"
            time.sleep(0.002)

    def kill(self) -> list[Any]:
        """End it with SIGKILL, wherever it is; what it sent until then."""
        self._process.kill()
        self._end()
        return self.sent

    def finish(self) -> list[Any]:
        """Wait for its end; what it sent."""
        self._process.join()
        code = self._process.exitcode
        self._end()
        assert code == 0, f"the process ended with {code}"
        return self.sent

    def _end(self) -> None:
        self._process.join()
        self._process.close()
        self._reader.join()
