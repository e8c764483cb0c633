"""A TCP proxy whose connections break at the moment that a test names.

    with Proxy(url) as proxy:
        trap = proxy.cut(re.compile(b"COMMIT"), Cut.DELIVERED)

The next bytes a client sends that match spring the trap. Nothing is known here of what is spoken.
"""

from __future__ import annotations

import enum
import re
import socket
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import Self
from urllib.parse import urlsplit

from tests.rig.databases import with_parts
from tests.rig.process import free_port

_PATIENCE = 60.0
_OVERLAP = 64  # what is matched may come in two pieces


class Cut(enum.Enum):
    """What becomes of the bytes that spring a trap. The client never gets an answer."""

    LOST = "lost"  # the server never gets them
    DELIVERED = "delivered"  # the client loses the connection once the server is done with them
    LATE = "late"  # the client loses it at once, and the server gets them when the test says so


class Trap:
    """A cut that waits for its moment, and happens once."""

    def __init__(self, pattern: re.Pattern[bytes], cut: Cut) -> None:
        self.pattern = pattern
        self.cut = cut
        self.sprung = threading.Event()
        self.done = threading.Event()
        """The server has seen the end of the connection, and closed its own."""
        self._decided = threading.Event()
        self._forward = True

    def deliver(self) -> None:
        """Let the server have the bytes of a LATE cut."""
        self._decided.set()

    def discard(self) -> None:
        """Let the bytes of a LATE cut be lost after all, and the server see its client gone."""
        self._forward = False
        self._decided.set()

    def wait(self) -> bool:
        """Whether the bytes are to be delivered, once that is decided."""
        return self._decided.wait(_PATIENCE) and self._forward


class _Link:
    """One connection through the proxy."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client = client
        self.server = server
        self.trap: Trap | None = None

    def end(self) -> None:
        for side in (self.client, self.server):
            _end(side)


class Proxy:
    """Stands before the server of a URL; `url` is the same database through the proxy."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        self._upstream = parts.hostname, parts.port
        self.port = free_port()
        self.url = with_parts(url, port=self.port)
        self._lock = threading.Lock()
        self._traps: list[Trap] = []
        self._links: list[_Link] = []
        self._threads: list[threading.Thread] = []
        self._listener: socket.socket | None = None

    def __enter__(self) -> Self:
        self.accept()
        return self

    def __exit__(self, *_: object) -> None:
        for trap in self._traps:
            trap.discard()
        self.refuse()
        self.break_all()
        for thread in self._threads:
            thread.join(_PATIENCE)

    def cut(self, pattern: re.Pattern[bytes], cut: Cut) -> Trap:
        """Cut the connection on which a client next sends what matches."""
        trap = Trap(pattern, cut)
        with self._lock:
            self._traps.append(trap)
        return trap

    def accept(self) -> None:
        """Take connections, as at the beginning."""
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self._start(self._listen, self._listener)

    def refuse(self) -> None:
        """Refuse new connections, as a host without the server does."""
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits for connections

    def break_all(self) -> None:
        """Break every connection there is."""
        with self._lock:
            links, self._links = self._links, []
        for link in links:
            link.end()

    def _start(self, work: object, *args: object) -> None:
        assert callable(work)
        thread = threading.Thread(target=work, args=args, name="proxy", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _listen(self, listener: socket.socket) -> None:
        with listener, suppress(OSError):
            while True:
                client = listener.accept()[0]
                try:
                    server = socket.create_connection(self._upstream)
                except OSError:
                    client.close()
                    continue
                for side in (client, server):
                    side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                link = _Link(client, server)
                with self._lock:
                    self._links.append(link)
                self._start(self._requests, link)
                self._start(self._answers, link)

    def _requests(self, link: _Link) -> None:
        before = b""
        with link.client, _a_broken_connection_ends(link):
            while data := link.client.recv(1 << 16):
                trap = self._sprung(before + data)
                if trap is not None:
                    self._cut(link, trap, data)
                    return
                link.server.sendall(data)
                before = data[-_OVERLAP:]
            link.server.shutdown(socket.SHUT_WR)

    def _answers(self, link: _Link) -> None:
        with link.server, _a_broken_connection_ends(link):
            while data := link.server.recv(1 << 16):
                if link.trap is None:
                    link.client.sendall(data)
        _end(link.client)
        if link.trap is not None:
            link.trap.done.set()

    def _sprung(self, sent: bytes) -> Trap | None:
        with self._lock:
            for trap in self._traps:
                if not trap.sprung.is_set() and trap.pattern.search(sent):
                    trap.sprung.set()
                    return trap
        return None

    def _cut(self, link: _Link, trap: Trap, data: bytes) -> None:
        link.trap = trap
        if trap.cut is Cut.LOST:
            link.end()
            return
        if trap.cut is Cut.LATE:
            _end(link.client)
            if not trap.wait():
                link.end()
                return
        # The server closes its side when it has done all that was sent before this end of it.
        link.server.sendall(data)
        link.server.shutdown(socket.SHUT_WR)
        trap.done.wait(_PATIENCE)  # the caller closes the client's side


def _end(side: socket.socket) -> None:
    # Unlike close(), this also wakes the thread that waits for bytes.
    with suppress(OSError):
        side.shutdown(socket.SHUT_RDWR)


@contextmanager
def _a_broken_connection_ends(link: _Link) -> Generator[None]:
    try:
        yield
    except OSError:
        link.end()
