"""How many bytes of the log lie behind the relay's position: asked for now and then, in a thread of
its own, so that neither publishing nor whoever looks at the metrics waits for the database."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from retold.errors import RetoldError
from retold.relay.positions import BinlogPosition, WalPosition
from retold.relay.table import rows_of

if TYPE_CHECKING:
    from retold.relay.positions import Position
    from retold.relay.progress import Progress
    from retold.store.connections import BlockingDriver
    from retold.store.driver import Plan

_EVERY_S = 5.0


class Backlog:
    """Keeps `progress.behind` up to date."""

    def __init__(
        self, driver: BlockingDriver, progress: Progress, *, every: float = _EVERY_S
    ) -> None:
        """every: how often it looks, in seconds."""
        self._driver = driver
        self._progress = progress
        self._every = every
        self._ended = threading.Event()
        threading.Thread(target=self._run, name="retold relay backlog", daemon=True).start()

    def _run(self) -> None:
        progress = self._progress
        while not self._ended.wait(self._every):
            position = progress.position
            if position is None:
                continue
            try:
                progress.behind = self._driver.run(bytes_behind(position))
            except RetoldError:  # whoever follows the log will say so
                progress.behind = None

    def close(self) -> None:
        """The question that is under way, if any, is not waited for."""
        self._ended.set()


def bytes_behind(position: Position) -> Plan[int | None]:
    """None where a log has no bytes, or the position is not in it."""
    if isinstance(position, WalPosition):
        rows = yield from rows_of("SELECT pg_current_wal_lsn() - '0/0'::pg_lsn")
        return max(0, int(rows[0][0]) - position.lsn)
    if isinstance(position, BinlogPosition):
        rows = yield from rows_of("SHOW BINARY LOGS")
        files = [(str(row[0]), int(row[1])) for row in rows]
        for number, (name, _) in enumerate(files):
            if name == position.file:
                return max(0, sum(size for _, size in files[number:]) - position.offset)
    return None
