"""`retold relay` as a process, with what it says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager
from typing import Any

from confluent_kafka import Consumer, KafkaException, TopicPartition

PATIENCE_S = 40.0


def eventually(what: Callable[[], bool], patience: float = PATIENCE_S) -> None:
    """Wait until it is so."""
    deadline = time.monotonic() + patience
    while not what():
        assert time.monotonic() < deadline, f"not in {patience} s"
        time.sleep(0.02)


class RelayProcess:
    """A relay that runs; its log lines as they come."""

    def __init__(self, url: str, kafka: str, *options: str, **environment: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "retold", "relay", *options],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            env=os.environ | {"RETOLD_DATABASE_URL": url, "RETOLD_KAFKA": kafka} | environment,
            text=True,
        )
        self.output = ""
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()

    def _read(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as output:
            for line in output:
                self.output += line

    @property
    def pid(self) -> int:
        return self._process.pid

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.output.splitlines()]

    def says(self, text: str) -> None:
        """Wait until it has said something."""
        eventually(lambda: text in self.output or not self.runs())
        assert text in self.output, self.output

    def runs(self) -> bool:
        return self._process.poll() is None

    def send(self, what: signal.Signals) -> None:
        self._process.send_signal(what)

    def ends(self) -> int:
        """Wait for its end; its exit code."""
        code = self._process.wait(PATIENCE_S)
        self._reading.join()
        return code

    def kill(self) -> None:
        self._process.kill()
        self.ends()

    def terminate(self) -> int:
        self.send(signal.SIGTERM)
        return self.ends()


@contextmanager
def relay(url: str, kafka: str, *options: str, **environment: str) -> Generator[RelayProcess]:
    process = RelayProcess(url, kafka, *options, **environment)
    try:
        yield process
    finally:
        if process.runs():
            process.kill()


def verify(url: str, kafka: str, *options: str) -> dict[str, Any]:
    """What `retold verify --json` says, and its exit code as `code`."""
    command = [sys.executable, "-m", "retold", "verify", "--database", url, "--kafka", kafka]
    done = subprocess.run(
        [*command, "--json", *options], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found | {"code": done.returncode}


def size(kafka: str, topic: str) -> int:
    """About how many records a topic has: markers of transactions count too."""
    with closing(Consumer({"bootstrap.servers": kafka, "group.id": "size"})) as consumer:
        known = consumer.list_topics(timeout=30).topics
        partitions: list[int] = list(known[topic].partitions) if topic in known else []
        try:
            return sum(
                consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=30)[1]
                for number in partitions
            )
        except KafkaException:  # it is being made
            return 0
