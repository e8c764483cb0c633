"""The connection on which a server sends its log, as it would to a replica."""

from __future__ import annotations

import selectors
import socket
import ssl
import struct
import time
from contextlib import suppress
from importlib import import_module
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from retold.drivers.mysql import translate
from retold.errors import ConnectionLost
from retold.relay.positions import BinlogPosition
from retold.relay.sources.binlog_gtid import GtidSet
from retold.relay.sources.binlog_server import connect
from retold.store.url import DatabaseURL

HEARTBEAT_S = 1
"""How often the server says that it is there when there is nothing to send."""
SILENCE_S = 10.0
"""How long nothing may come before the connection is given up."""
_BUFFER = 1 << 16
_DUMP, _DUMP_GTID = 0x12, 0x1E
_THROUGH_GTIDS = 4
# A relay may have to wait for Kafka, and takes nothing meanwhile; the default is a minute.
_PATIENCE_S = 3600


class Stream:
    """Bytes from the server. Raises ConnectionLost when they end or the server falls silent."""

    def __init__(
        self, url: DatabaseURL, position: BinlogPosition, server_id: int, *, gtids: bool
    ) -> None:
        self._raw = connect(url)
        library: Any = import_module("pymysql")
        try:
            self._introduce(position, server_id, gtids)
            self._request(position, server_id, gtids)
        except library.Error as error:
            self._raw.close()
            raise translate(error) from error
        except OSError as error:
            self._raw.close()
            raise ConnectionLost(str(error)) from error
        self._socket: socket.socket = self._raw._sock
        self._socket.setblocking(False)
        # One without a descriptor of its own, that another thread's close() could pull away.
        self._selector = getattr(selectors, "PollSelector", selectors.SelectSelector)()
        self._selector.register(self._socket, selectors.EVENT_READ)
        self._heard = time.monotonic()

    def _introduce(self, position: BinlogPosition, server_id: int, gtids: bool) -> None:
        # Who connects with an id ends the stream of the one before. Old and new names of the same.
        nanoseconds = HEARTBEAT_S * 1_000_000_000
        id = str(uuid5(NAMESPACE_URL, f"retold:{server_id}"))
        settings: dict[str, object] = {"SESSION net_write_timeout": _PATIENCE_S}
        for word in ("master", "source"):
            settings[f"@{word}_heartbeat_period"] = nanoseconds
        for word in ("slave", "replica"):
            settings[f"@{word}_uuid"] = id
        if position.flavour == "mariadb":
            settings["@mariadb_slave_capability"] = 4
            if gtids:
                settings["@slave_connect_state"] = position.gtid
                settings["@slave_gtid_strict_mode"] = 0
                settings["@slave_gtid_ignore_duplicates"] = 0
        with self._raw.cursor() as cursor:
            for name, value in settings.items():
                cursor.execute(f"SET {name} = %s", (value,))
            for word in ("master", "source"):
                cursor.execute(f"SET @{word}_binlog_checksum = @@global.binlog_checksum")

    def _request(self, position: BinlogPosition, server_id: int, gtids: bool) -> None:
        name = position.file.encode()
        if gtids and position.flavour == "mysql":
            known = GtidSet.parse(position.gtid).encode()
            body = struct.pack("<HIIQI", _THROUGH_GTIDS, server_id, 0, 4, len(known)) + known
            self._raw._execute_command(_DUMP_GTID, body)
        elif gtids:
            self._raw._execute_command(_DUMP, struct.pack("<IHI", 4, 0, server_id))
        else:
            body = struct.pack("<IHI", position.offset, 0, server_id) + name
            self._raw._execute_command(_DUMP, body)

    def receive(self, wait: float) -> bytes:
        """What is there; nothing if there is nothing after `wait` seconds."""
        deadline = time.monotonic() + wait if wait else 0.0
        while True:
            try:
                data = self._socket.recv(_BUFFER)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                if not wait:
                    return b""
            except OSError as error:
                raise ConnectionLost(str(error)) from error
            else:
                if not data:
                    raise ConnectionLost("the server closed the stream of its log")
                self._heard = 0.0
                return data
            now = time.monotonic()
            if not self._heard:
                self._heard = now
            elif now - self._heard > SILENCE_S:
                raise ConnectionLost(f"the server sent nothing for {SILENCE_S:.0f} seconds")
            if now >= deadline:
                return b""
            self._selector.select(min(deadline - now, SILENCE_S))

    def close(self) -> None:
        """A `receive` in another thread ends soon."""
        with suppress(OSError):
            # The plain one: TLS's own would take the connection from under a receive.
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
        self._raw.close()
