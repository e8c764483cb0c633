"""`retold relay` and `retold verify` as processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO, Any

from confluent_kafka import Consumer, KafkaException, TopicPartition

PATIENCE_S = 60.0
_ROOT = Path(__file__).parent.parent.parent


def eventually(what: Callable[[], bool], patience: float = PATIENCE_S) -> None:
    """Wait until it is so."""
    deadline = time.monotonic() + patience
    while not what():
        assert time.monotonic() < deadline, f"not in {patience} s"
        time.sleep(0.02)


class Command:
    """A command of retold as a process, started again and again; what it says goes on in one place.

    log: the file for it; one that nobody sees without.
    """

    def __init__(
        self,
        command: str,
        url: str,
        kafka: str,
        *options: str,
        log: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._command = (command, *options)
        self._environment = {"RETOLD_DATABASE_URL": url, "RETOLD_KAFKA": kafka} | dict(
            environment or {}
        )
        self._log: IO[bytes] = log.open("w+b") if log else tempfile.TemporaryFile()  # noqa: SIM115
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = _retold(*self._command, stderr=self._log, environment=self._environment)

    @property
    def _started(self) -> subprocess.Popen[bytes]:
        assert self._process is not None
        return self._process

    @property
    def pid(self) -> int:
        return self._started.pid

    # --- what it says

    @property
    def output(self) -> str:
        size = os.fstat(self._log.fileno()).st_size
        return os.pread(self._log.fileno(), size, 0).decode(errors="replace")

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.output.splitlines()]

    def says(self, text: str) -> None:
        """Wait until it has said something."""
        eventually(lambda: text in self.output or not self.runs())
        assert text in self.output, self.output

    def last_words(self) -> str:
        return "\n".join(self.output.splitlines()[-15:])

    # --- whether it runs

    def code(self) -> int | None:
        """The exit code, None while it runs."""
        return self._started.poll()

    def runs(self) -> bool:
        return self.code() is None

    def check(self) -> None:
        """Fail when it has ended."""
        code = self.code()
        assert code is None, f"{self._command[0]} ended with {code}:\n{self.last_words()}"

    # --- its end

    def send(self, what: signal.Signals) -> None:
        self._started.send_signal(what)

    def ends(self) -> int:
        """Wait for its end; its exit code."""
        return self._started.wait(PATIENCE_S)

    def terminate(self) -> int:
        """End it in order; its exit code."""
        self.send(signal.SIGTERM)
        return self.ends()

    def kill(self) -> None:
        """Whatever it does, and whether it runs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def close(self) -> None:
        self.kill()
        self._log.close()


class Relay(Command):
    """`retold relay`."""

    def __init__(
        self,
        url: str,
        kafka: str,
        *options: str,
        log: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__("relay", url, kafka, *options, log=log, environment=environment)


@contextmanager
def relay(url: str, kafka: str, *options: str, **environment: str) -> Generator[Relay]:
    with closing(Relay(url, kafka, *options, environment=environment)) as process:
        process.start()
        yield process


def verify(url: str, kafka: str, *options: str) -> dict[str, Any]:
    """What `retold verify --json` says, and its exit code as `code`."""
    where = ("--database", url, "--kafka", kafka)
    process = _retold("verify", *where, "--json", *options, stdout=subprocess.PIPE)
    said, _ = process.communicate()
    found: dict[str, Any] = json.loads(said)
    return found | {"code": process.returncode}


def _retold(
    *arguments: str,
    stdout: int | None = None,
    stderr: IO[bytes] | None = None,
    environment: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    inherited = {key: text for key, text in os.environ.items() if not key.startswith("RETOLD_")}
    return subprocess.Popen(
        [sys.executable, "-m", "retold", *arguments],
        env=inherited | {"PYTHONPATH": f"{_ROOT / 'src'}:{_ROOT}"} | dict(environment or {}),
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
    )


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
