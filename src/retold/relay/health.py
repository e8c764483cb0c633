"""Health over HTTP: `/health` for probes, `/metrics` for Prometheus."""

from __future__ import annotations

import socket
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import accumulate
from typing import TYPE_CHECKING

import msgspec

from retold.errors import InvalidValue, MissingExtra

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client import Metric

    from retold.relay.progress import Histogram, Progress

try:
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
    )
    from prometheus_client.exposition import CONTENT_TYPE_LATEST
except ImportError:
    raise MissingExtra("--listen", "prometheus_client", "relay") from None

_COUNTERS = {
    "events": "Events published.",
    "transactions": "Kafka transactions committed.",
    "epochs": "Times the relay began to publish.",
    "reconnects": "Times the relay began again because database or broker were away.",
    "fences": "Times the relay began again because Kafka had fenced it.",
    "holes": "Events found missing behind a later one of their entity.",
}
_TIMEOUT_S = 10.0
"""How long a client may take."""
_TICK_S = 0.05
"""How often the server looks whether it is to end."""
_ROLES = ("starting", "standby", "catching up", "leading", "stopped")


class Metrics:
    """Progress as Prometheus wants it; read when it is asked for."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def collect(self) -> Iterator[Metric]:
        progress = self._progress
        relay = progress.name
        with progress.lock:
            counts = dict(progress.counts)
            batches, seconds = progress.batches.copy(), progress.seconds.copy()
        for name, text in _COUNTERS.items():
            counter = CounterMetricFamily(f"retold_relay_{name}", text, labels=["relay"])
            counter.add_metric([relay], counts.get(name, 0))
            yield counter
        role = GaugeMetricFamily(
            "retold_relay_role", "1 for what the relay is doing.", labels=["relay", "role"]
        )
        for name in _ROLES:
            role.add_metric([relay, name], float(progress.role == name))
        yield role
        for name, text, value in (
            ("lag_seconds", "Age of the newest event published while others wait.", progress.lag()),
            ("lag_bytes", "Bytes of the database's log behind the position.", progress.behind),
            ("caught_up", "1 when nothing waits.", float(progress.caught_up)),
            ("failing", "1 while something is away and tried again.", float(bool(progress.error))),
            ("published_timestamp_seconds", "When the last one was committed.", progress.published),
        ):
            gauge = GaugeMetricFamily(f"retold_relay_{name}", text, labels=["relay"])
            if value is not None:
                gauge.add_metric([relay], value)
            yield gauge
        yield _histogram("batch_events", "Events in a transaction.", relay, batches)
        yield _histogram("transaction_seconds", "How long a transaction took.", relay, seconds)


def _histogram(name: str, text: str, relay: str, values: Histogram) -> Metric:
    family = HistogramMetricFamily(f"retold_relay_{name}", text, labels=["relay"])
    bounds = [*(f"{bound:g}" for bound in values.bounds), "+Inf"]
    family.add_metric(
        [relay], list(zip(bounds, accumulate(values.counts), strict=True)), values.sum
    )
    return family


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, handler)


class Health:
    """A server in threads of its own. address: `host:port`, or a port on the loopback."""

    def __init__(self, address: str, progress: Progress) -> None:
        host, _, port = address.rpartition(":")
        if not port.isdigit():
            raise InvalidValue(f"--listen {address!r}: write HOST:PORT, or a port")
        host = host.strip("[]") or "127.0.0.1"
        registry = CollectorRegistry()
        registry.register(Metrics(progress))

        class Handler(BaseHTTPRequestHandler):
            timeout = _TIMEOUT_S

            def do_GET(self) -> None:
                if self.path == "/health":
                    status, body = health(progress)
                    self._answer(status, "application/json", body)
                elif self.path == "/metrics":
                    self._answer(HTTPStatus.OK, CONTENT_TYPE_LATEST, generate_latest(registry))
                else:
                    self._answer(HTTPStatus.NOT_FOUND, "text/plain", b"/health or /metrics\n")

            def _answer(self, status: HTTPStatus, kind: str, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
                """Probes come every few seconds; they are not worth a line."""

        try:
            self._server = _Server((host, int(port)), Handler)
        except (OSError, OverflowError) as error:
            raise InvalidValue(f"--listen {address!r}: {error}") from None
        self.port: int = self._server.server_address[1]
        threading.Thread(
            target=self._server.serve_forever,
            args=(_TICK_S,),
            name="retold relay health",
            daemon=True,
        ).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def health(progress: Progress) -> tuple[HTTPStatus, bytes]:
    """200 while the relay does its work, leading or standing by; 503 when it has stopped, or tries
    again because something is away."""
    well = progress.role != "stopped" and not progress.error
    answer = {
        "live": progress.role != "stopped",
        "leading": progress.role in ("leading", "catching up"),
        "caught_up": progress.caught_up,
        "role": progress.role,
        "lag_seconds": round(progress.lag(), 3),
        "lag_bytes": progress.behind,
        "error": progress.error,
    }
    status = HTTPStatus.OK if well else HTTPStatus.SERVICE_UNAVAILABLE
    return status, msgspec.json.encode(answer)
