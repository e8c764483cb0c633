"""A replication connection that streams: frames from the server, and the answers it wants.

One thread reads and answers. `confirmed` may be set and `close` called from another.
"""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from contextlib import closing, suppress
from struct import Struct
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.errors import error_from_result
from psycopg.pq import ExecStatus

from retold.drivers.postgres import translate
from retold.errors import ConnectionLost, LogPurged, RetoldError

if TYPE_CHECKING:
    from psycopg.pq.abc import PGconn, PGresult

    from retold.relay.sources.wal_pgoutput import Cut, Decoder

_REPORT_S = 1.0
_ANSWER_S = 0.1
"""At a shutdown the server asks again as soon as it has an answer."""
_ASK_S = 10.0
_SILENCE_S = 30.0

# written, flushed and applied up to; time; whether an answer is wanted
_status = Struct(">cQQQqB").pack
_EPOCH_US = 946_684_800_000_000


class Stream:
    """What comes behind `decoder.end`. confirmed: the server may forget everything up to here."""

    def __init__(self, link: psycopg.Connection[Any], command: str, decoder: Decoder) -> None:
        """Raises psycopg.Error when the server refuses the command."""
        result = link.pgconn.exec_(command.encode())
        if result.status != ExecStatus.COPY_BOTH:
            raise error_from_result(result)
        self.decoder = decoder
        self.confirmed = decoder.end
        self.pressed = False
        """The server has asked for an answer: it may be waiting for us to confirm, to shut down."""
        self._left_out = ""
        link.add_notice_handler(self._notice)
        self._link = link
        self._pgconn: PGconn = link.pgconn
        self._poll = select.poll()
        self._poll.register(self._pgconn.socket, select.POLLIN)
        # A record of TLS may hold more than one read takes.
        self._patience = 3 if self._pgconn.ssl_in_use else 1
        self._lock = threading.Lock()
        self._closed = False
        self._heard = time.monotonic()
        self._reported = 0.0

    def take(self) -> Cut | None:
        """What is there, without waiting. Raises ConnectionLost, LogUnreadable, LogPurged."""
        decoder, pgconn = self.decoder, self._pgconn
        get, consume = pgconn.get_copy_data, pgconn.consume_input
        with self._lock:
            self._check_open()
            quiet = 0
            try:
                while quiet < self._patience and not decoder.full:
                    consume()
                    if decoder.take(get):
                        quiet = 0
                        self._heard = time.monotonic()
                    else:
                        quiet += 1
                    if decoder.ended:
                        raise self._end()
                    if self._left_out:
                        raise LogPurged(self._left_out)
                    self._report()
            except psycopg.Error as error:
                raise self._lost(error) from error
            return decoder.cut()

    def wait(self, seconds: float) -> None:
        """Until something comes, at most for so long."""
        self._poll.poll(seconds * 1000)

    def keepalive(self) -> None:
        """Answer without reading."""
        with self._lock:
            self._check_open()
            self._heard = time.monotonic()  # nobody listens
            try:
                self._report()
            except psycopg.Error as error:
                raise self._lost(error) from error

    def _check_open(self) -> None:
        if self._closed:
            raise ConnectionLost("the relay closed it")

    def _report(self) -> None:
        now = time.monotonic()
        if now - self._reported < (_ANSWER_S if self.decoder.asked else _REPORT_S):
            return
        silence = now - self._heard
        if silence > _SILENCE_S:
            raise ConnectionLost(f"the server was silent for {silence:.0f} s")
        self._send(ask=silence > _ASK_S)
        self._reported = now
        self.pressed = self.pressed or self.decoder.asked
        self.decoder.asked = False

    def _send(self, *, ask: bool) -> None:
        now = time.time_ns() // 1000 - _EPOCH_US
        confirmed = self.confirmed
        status = _status(b"r", self.decoder.end, confirmed, confirmed, now, ask)
        self._pgconn.put_copy_data(status)
        self._pgconn.flush()

    def _notice(self, notice: psycopg.errors.Diagnostic) -> None:
        # Since PostgreSQL 18 events of a missing publication are left out with a warning.
        if notice.sqlstate == "55000":
            self._left_out = f"{notice.message_primary}: {notice.message_detail}"

    def _end(self) -> RetoldError:
        """Why the server ended the stream."""
        result: PGresult | None = self._pgconn.get_result()
        if result is None or result.status != ExecStatus.FATAL_ERROR:
            return ConnectionLost("the server ended the stream")
        return stream_error(error_from_result(result))

    def _lost(self, error: psycopg.Error) -> RetoldError:
        return (
            ConnectionLost("the relay closed it")
            if self._closed
            else stream_error(error, broken=True)
        )

    def close(self) -> None:
        """End the connection; a `wait` in another thread ends now."""
        self._closed = True
        with suppress(OSError, psycopg.OperationalError):  # it is broken already
            twin = socket.socket(fileno=os.dup(self._pgconn.socket))
            with closing(twin):
                twin.shutdown(socket.SHUT_RD)
        with self._lock:
            with suppress(psycopg.OperationalError):
                self._send(ask=False)
            self._link.close()


def stream_error(error: psycopg.Error, *, broken: bool = False) -> RetoldError:
    """retold's error for one that ended a stream, or kept it from beginning."""
    message = str(error).strip().replace("\n", " ")
    # A file of the log, or the publication (as it was at that place of the log), is not there.
    if error.sqlstate in ("58P01", "42704"):
        return LogPurged(message)
    return translate(error, broken=broken)
