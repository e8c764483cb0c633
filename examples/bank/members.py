"""The bank's processes: members that carry out transfers, a relay where there is Kafka, and customers.

Members and relay are `retold run` and `retold relay`, as a deployment would start them; database and
Kafka they get from the environment.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from importlib import import_module
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from examples.bank.processes import request
from retold.cli.settings import Settings

_SPAWN = multiprocessing.get_context("spawn")
_MEMBER = ("run", "examples.bank.transfers:transfers")
# The shortest that brokers allow by default: so soon a killed member is missed.
_SESSION = {"RETOLD_KAFKA_SESSION_TIMEOUT_MS": "6000"}


class Failed(Exception):
    """The demo cannot go on."""


class Process:
    """A command of retold; what it says goes to a file."""

    def __init__(self, command: Sequence[str], environment: dict[str, str], log: Path) -> None:
        self._log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "retold", *command],
                env=os.environ | environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                process_group=0,  # Ctrl-C is for the demo
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def kill(self) -> None:
        """SIGKILL, as a crash or the kernel's out-of-memory killer would."""
        self._process.kill()
        self._process.wait()

    def check(self, what: str) -> None:
        if self._process.poll() is not None:
            said = self._log.read_text(errors="replace").splitlines()[-15:]
            raise Failed("\n".join([f"{what} ended with {self._process.returncode}:", *said]))

    def tell_to_stop(self) -> None:
        self._process.terminate()

    def end(self) -> None:
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self.kill()


class Processes:
    """All processes of one bank; `close` ends those that still run."""

    def __init__(self, url: str, kafka: str, folder: Path) -> None:
        self._url = url
        self._environment = {"RETOLD_DATABASE_URL": url, "RETOLD_KAFKA": kafka}
        self._folder = folder
        self._members: list[Process] = []
        self._relay: Process | None = None
        self._customers: list[SpawnProcess] = []

    def start_member(self) -> Process:
        log = self._folder / "members.log"
        self._members.append(Process(_MEMBER, self._environment | _SESSION, log))
        return self._members[-1]

    def start_relay(self) -> None:
        self._relay = Process(["relay"], self._environment, self._folder / "relay.log")

    def start_customer(self, accounts: Sequence[str], count: int, seed: int) -> None:
        args = (self._url, accounts, count, seed)
        self._customers.append(_started(_SPAWN.Process(target=request, args=args)))

    def kill_member(self, pid: int | None = None) -> int:
        """One that is chosen, or the first; its process id."""
        (member,) = [each for each in self._members if pid in (each.pid, None)][:1]
        self._members.remove(member)
        member.kill()
        return member.pid

    def kill_relay(self) -> int:
        assert self._relay is not None
        self._relay.kill()
        return self._relay.pid

    def check(self) -> None:
        """Raises Failed when a process ended that should not have."""
        for member in self._members:
            member.check("a member")
        if self._relay is not None:
            self._relay.check("the relay")
        if any(customer.exitcode for customer in self._customers):
            raise Failed("a customer's process failed; its error is above")

    def close(self) -> None:
        everyone = self._members + ([self._relay] if self._relay else [])
        for process in everyone:
            process.tell_to_stop()
        for customer in self._customers:
            customer.kill()
            customer.join()
        for process in everyone:
            process.end()
        self._members, self._relay, self._customers = [], None, []


def topics(kafka: str) -> Sequence[str]:
    """The topics that Kafka has."""
    client: Any = import_module("confluent_kafka")  # only who has a Kafka needs it
    admin: Any = import_module("confluent_kafka.admin")
    settings = {"bootstrap.servers": kafka, "log_level": 0} | Settings(argparse.Namespace()).kafka()
    try:
        return list(admin.AdminClient(settings).list_topics(timeout=30).topics)
    except client.KafkaException as error:
        raise Failed(f"Kafka at {kafka} does not answer: {error.args[0].str()}") from None


def verify(url: str, kafka: str) -> tuple[bool, str]:
    """Whether `retold verify` finds the topics to be as the table, and what it says."""
    done = subprocess.run(
        [sys.executable, "-m", "retold", "verify"],
        env=os.environ | {"RETOLD_DATABASE_URL": url, "RETOLD_KAFKA": kafka},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode == 0, done.stdout.strip()


def _started(process: SpawnProcess) -> SpawnProcess:
    """Start a process that leaves Ctrl-C to this one."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process.start()
    finally:
        signal.signal(signal.SIGINT, before)
    return process
