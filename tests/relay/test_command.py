"""`retold relay` as a process: signals, exit codes, settings, logs, a terminal, health."""

from __future__ import annotations

import os
import pty
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from urllib.request import urlopen

import pytest

from retold import EventStore
from retold.brokers.kafka import KafkaPublisher
from retold.cli import main
from retold.errors import Fenced
from tests.conformance.raw import rows
from tests.relay.comparison import read_topics, wrong
from tests.relay.processes import eventually, relay, size
from tests.relay.writing import Writer, writing
from tests.rig import GivenKafka, Kafka
from tests.rig.databases import PASSWORD
from tests.rig.process import free_port


@pytest.fixture
def url(fresh_database: Callable[[str], str]) -> str:
    url = fresh_database("sqlite")
    with EventStore(url) as store:
        store.migrate(polling=True)
    return url


@pytest.fixture
def bootstrap(kafka: Kafka | GivenKafka) -> str:
    return kafka.url


@pytest.fixture
def writer(url: str) -> Writer:
    return Writer(url)


def published(bootstrap: str, writer: Writer, count: int) -> Callable[[], bool]:
    topic = writer.topic
    return lambda: size(bootstrap, topic) >= count and len(read_topics(bootstrap, [topic])) >= count


# --- signals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_relay_that_is_told_to_stop_ends_with_0_in_seconds(
    url: str, bootstrap: str, writer: Writer, how: signal.Signals
) -> None:
    writer.write(5)
    with relay(url, bootstrap) as process, writing(url, writer.topic):
        eventually(published(bootstrap, writer, 20))
        began = time.monotonic()
        process.send(how)
        assert process.ends() == 0
        assert time.monotonic() - began < 10
    # What was in hand is finished: nothing is open that would hide later events from readers.
    with relay(url, bootstrap) as process:
        eventually(lambda: not wrong(url, bootstrap))
        assert process.terminate() == 0


def test_it_can_be_stopped_while_it_catches_up(url: str, bootstrap: str, writer: Writer) -> None:
    writer.write(30_000)
    with relay(url, bootstrap) as process:
        eventually(lambda: size(bootstrap, writer.topic) > 1_000)
        assert process.terminate() == 0
    assert wrong(url, bootstrap).lost, "it had come to its end already"
    with relay(url, bootstrap):
        eventually(lambda: not wrong(url, bootstrap))


def test_a_second_relay_stands_by_and_takes_over(url: str, bootstrap: str, writer: Writer) -> None:
    with relay(url, bootstrap) as first, writing(url, writer.topic):
        eventually(published(bootstrap, writer, 1))
        with relay(url, bootstrap) as second:
            second.says("standing by")
            first.kill()
            before = len(read_topics(bootstrap, [writer.topic]))
            eventually(published(bootstrap, writer, before + 50), 10)
            assert second.terminate() == 0
    with relay(url, bootstrap):
        eventually(lambda: not wrong(url, bootstrap))


def test_a_relay_of_another_name_that_polls_the_same_table_stands_by(
    url: str, bootstrap: str, writer: Writer
) -> None:
    writer.write(1)
    with relay(url, bootstrap, "--name", secrets.token_hex(4)):
        eventually(published(bootstrap, writer, 1))
        with relay(url, bootstrap, "--name", secrets.token_hex(4)) as second:
            second.says("standing by")


# --- exit codes ----------------------------------------------------------------------------------


def test_what_a_person_has_to_decide_ends_it_with_3(
    url: str, bootstrap: str, writer: Writer
) -> None:
    writer.write(3)
    with relay(url, bootstrap) as process:
        eventually(lambda: not wrong(url, bootstrap))
        assert process.terminate() == 0
    with relay(url, bootstrap, "--name", secrets.token_hex(4)) as process:
        assert process.ends() == 3
        last = process.lines()[-1]
        assert last["level"] == "error"
        assert "holds no position" in last["message"]
        assert "retold relay --resync" in last["message"]
    assert not wrong(url, bootstrap)


def test_a_table_without_the_index_for_polling_ends_it_with_3(
    fresh_database: Callable[[str], str], bootstrap: str
) -> None:
    url = fresh_database("sqlite")
    with EventStore(url) as store:
        store.migrate()
    with relay(url, bootstrap) as process:
        assert process.ends() == 3
        assert "retold migrate --polling" in process.output


def test_the_loss_of_the_lock_ends_it_with_4(url: str, bootstrap: str, writer: Writer) -> None:
    writer.write(1)
    with relay(url, bootstrap) as process:
        eventually(published(bootstrap, writer, 1))
        rows(url, "UPDATE subscriptions SET owner = 'another' WHERE name LIKE 'relay:%'")
        assert process.ends() == 4
        assert "Start it again, to stand by" in process.lines()[-1]["message"]


@pytest.mark.database("postgres18")
def test_a_frozen_leader_that_wakes_makes_nothing_visible(
    fresh_database: Callable[[str], str], bootstrap: str
) -> None:
    """On a server: frozen while it writes to a SQLite file, it would keep the file's lock."""
    url = fresh_database("postgres18")
    with EventStore(url) as store:
        store.migrate(polling=True)
    writer = Writer(url)
    with relay(url, bootstrap, "--source", "polling") as first, writing(url, writer.topic):
        eventually(published(bootstrap, writer, 20))
        first.send(signal.SIGSTOP)
        with relay(url, bootstrap, "--source", "polling") as second:
            before = len(read_topics(bootstrap, [writer.topic]))
            eventually(published(bootstrap, writer, before + 50))
            first.send(signal.SIGCONT)
            assert first.ends() == 4
            assert second.terminate() == 0
    with relay(url, bootstrap, "--source", "polling"):
        eventually(lambda: not wrong(url, bootstrap))


def test_a_relay_that_was_fenced_and_still_leads_goes_on(
    url: str, bootstrap: str, writer: Writer
) -> None:
    name = secrets.token_hex(4)
    writer.write(1)
    with relay(url, bootstrap, "--name", name) as process:
        eventually(published(bootstrap, writer, 1))
        other = KafkaPublisher(name, bootstrap)
        other.begin()
        writer.write(1)
        eventually(published(bootstrap, writer, 2))
        with pytest.raises(Fenced):
            other.publish([], b"nonsense")
        other.close()
        process.says("Another relay of this name")
        assert process.terminate() == 0
    assert not wrong(url, bootstrap)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--kafka", "x:1"], "no database is named"),
        (["--database", "sqlite:///x.db"], "no Kafka broker is named"),
        (["--database", "nonsense", "--kafka", "x:1"], "nonsense"),
        (["--database", "sqlite:///x.db", "--kafka", "x:1", "--name", "ä"], "--name"),
        (["--database", "sqlite:///x.db", "--kafka", "x:1", "--source", "wal"], "cannot follow"),
        (["--database", "sqlite:///x.db", "--kafka", "x:1", "--listen", "x"], "--listen"),
    ],
)
def test_a_mistake_in_the_settings_ends_it_with_2(
    options: list[str], told: str, tmp_path: Path
) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RETOLD_")}
    done = subprocess.run(
        [sys.executable, "-m", "retold", "relay", *options],
        capture_output=True,
        text=True,
        timeout=30,
        cwd=tmp_path,
        env=environment,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert told in done.stderr
    assert "Traceback" not in done.stderr


# --- settings ------------------------------------------------------------------------------------


def test_all_settings_may_stand_in_a_file(
    url: str, bootstrap: str, writer: Writer, tmp_path: Path
) -> None:
    name, file = secrets.token_hex(4), tmp_path / "relay.toml"
    file.write_text(
        f'name = "{name}"\npartitions = 3\n[kafka-settings]\n"client.id" = "me"\n', "utf-8"
    )
    writer.write(2)
    with relay(url, bootstrap, "--config", str(file)) as process:
        eventually(published(bootstrap, writer, 2))
        process.says(f"made topic retold.relay.{name} with 1 partitions")
        process.says(f"made topic {writer.topic} with 3 partitions")


def test_from_now_leaves_history_out_and_nothing_else(
    url: str, bootstrap: str, writer: Writer
) -> None:
    writer.write(2_500)
    with relay(url, bootstrap, RETOLD_FROM_NOW="yes") as process:
        eventually(lambda: rows(url, "SELECT 1 FROM events WHERE published = 0") == [])
        writer.write(3)
        eventually(published(bootstrap, writer, 3))
        assert process.terminate() == 0
    assert wrong(url, bootstrap).counts() == {"lost": 2_500}
    assert len(read_topics(bootstrap, [writer.topic])) == 3


def test_passwords_are_never_shown(writer: Writer, bootstrap: str) -> None:
    """Neither the database's nor Kafka's, whatever goes wrong with them."""
    secret = "s3cr3t/@:"
    away = f"postgresql://ann:s3cr3t%2F%40%3A@127.0.0.1:{free_port()}/bank"
    with relay(away, bootstrap, "--name", "x") as process:
        process.says("cannot")
        assert process.terminate() == 0
        shown = process.output
    settings = {
        "RETOLD_KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT",
        "RETOLD_KAFKA_SASL_MECHANISM": "PLAIN",
        "RETOLD_KAFKA_SASL_USERNAME": "ann",
        "RETOLD_KAFKA_SASL_PASSWORD": secret,
    }
    with relay(writer.url, bootstrap, "--log-format", "text", **settings) as process:
        process.says("rdkafka")
        assert process.terminate() == 0
        shown += process.output
    assert "s3cr3t" not in shown


@pytest.mark.usefixtures("kafka")
def test_a_login_at_kafka_that_is_refused_stops_or_waits_and_says_why(
    url: str, kafka: Kafka | GivenKafka
) -> None:
    address, login = kafka.login("relay")
    environment = {
        f"RETOLD_KAFKA_{key.upper().replace('.', '_')}": value for key, value in login.items()
    }
    environment["RETOLD_KAFKA_SASL_PASSWORD"] = "wrong" + PASSWORD
    with relay(url, address, **environment) as process:
        process.says("uthentication failed")
        assert process.terminate() == 0
        assert PASSWORD not in process.output


# --- what is away ---------------------------------------------------------------------------------


def test_without_kafka_it_waits_says_so_and_can_be_stopped(url: str) -> None:
    with relay(url, f"127.0.0.1:{free_port()}") as process:
        process.says("refused")
        assert process.runs()
        began = time.monotonic()
        assert process.terminate() == 0
        assert time.monotonic() - began < 10


def test_without_its_database_it_waits_says_so_and_can_be_stopped(bootstrap: str) -> None:
    url = f"postgresql://ann@127.0.0.1:{free_port()}/bank"
    with relay(url, bootstrap) as process:
        process.says("cannot ask for the lock")
        assert process.runs()
        assert process.terminate() == 0
        assert process.output.count("cannot ask for the lock") < 3


# --- logs and health -----------------------------------------------------------------------------


def test_in_a_pipe_every_line_is_json(url: str, bootstrap: str, writer: Writer) -> None:
    writer.write(1)
    with relay(url, bootstrap) as process:
        eventually(published(bootstrap, writer, 1))
        assert process.terminate() == 0
        for line in process.lines():
            assert line.keys() >= {"time", "level", "logger", "message"}


def test_on_a_terminal_there_are_lines_and_a_status(
    url: str, bootstrap: str, writer: Writer
) -> None:
    writer.write(1_234)
    ours, theirs = pty.openpty()
    shown = b""
    command = [sys.executable, "-m", "retold", "relay", "--database", url, "--kafka", bootstrap]
    process = subprocess.Popen(command, stderr=theirs)
    os.close(theirs)
    try:
        while b"leading" not in shown or b"1,234 events" not in shown:
            shown += os.read(ours, 10_000)
        process.terminate()
        with suppress(OSError):  # the terminal is gone
            while more := os.read(ours, 10_000):
                shown += more
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    text = shown.decode()
    assert "INFO    made topic" in text
    assert "{" not in text
    assert "/s" in text
    assert "lag" in text


def test_health_and_metrics(url: str, bootstrap: str, writer: Writer) -> None:
    port, name = free_port(), secrets.token_hex(4)

    def get(path: str) -> str:
        with suppress(OSError), urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            found: str = answer.read().decode()
            return found
        return ""

    writer.write(7)
    with relay(url, bootstrap, "--listen", f"127.0.0.1:{port}", "--name", name) as process:
        eventually(lambda: f'retold_relay_events_total{{relay="{name}"}} 7.0' in get("/metrics"))
        eventually(lambda: '"caught_up":true' in get("/health"))
        eventually(lambda: '"leading":true' in get("/health"))
        with relay(url, bootstrap, "--listen", str(port)) as other:
            assert other.ends() == 2
            assert "in use" in other.output
        assert process.terminate() == 0


def test_the_help_tells_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["relay", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "3 stopped because a person has to decide, 4 another relay took over" in text
