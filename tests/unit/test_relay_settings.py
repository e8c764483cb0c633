"""Where a command's settings come from, and which of several counts."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import pytest

from retold.cli import relay
from retold.cli.settings import Settings, variable
from retold.errors import InvalidValue, UsageError
from retold.store.url import parse_url


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("RETOLD_")]:
        monkeypatch.delenv(name)


def settings(**chosen: object) -> Settings:
    return Settings(argparse.Namespace(**chosen))


def write(text: str, name: str = "pyproject.toml") -> str:
    Path(name).write_text(text)
    return name


def test_an_option_wins_over_the_environment_and_that_over_the_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write('[tool.retold]\nname = "file"\nkafka = "file"\nlisten = 9000\n')
    monkeypatch.setenv("RETOLD_NAME", "environment")
    monkeypatch.setenv("RETOLD_KAFKA", "environment")
    found = settings(name="option", kafka=None, listen=None)
    assert [found.text(name) for name in ("name", "kafka", "listen", "source")] == [
        "option",
        "environment",
        "9000",
        "",
    ]


def test_a_default_counts_last() -> None:
    assert settings().text("source", "auto") == "auto"
    assert settings().number("partitions", 12) == 12


@pytest.mark.parametrize("text", ["1", "true", "YES"])
def test_a_flag_in_the_environment(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETOLD_FROM_NOW", text)
    assert settings(from_now=False).flag("from-now")


def test_a_flag_of_the_file_can_be_turned_off_in_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write("[tool.retold]\nresync = true\n")
    assert settings(resync=False).flag("resync")
    monkeypatch.setenv("RETOLD_RESYNC", "no")
    assert not settings(resync=False).flag("resync")


def test_the_file_may_be_named_by_an_option_or_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write('[tool.retold]\nname = "here"\n')
    assert settings(config=write('name = "named"\n', "a.toml")).text("name") == "named"
    monkeypatch.setenv("RETOLD_CONFIG", write('[tool.retold]\nname = "other"\n', "b.toml"))
    assert settings().text("name") == "other"


def test_a_pyproject_of_something_else_is_no_settings() -> None:
    write('name = "not ours"\n[tool.ruff]\nline-length = 100\n')
    assert settings().text("name") == ""


def test_settings_for_kafka_are_in_its_own_names(monkeypatch: pytest.MonkeyPatch) -> None:
    write(
        "[tool.retold.kafka-settings]\n"
        '"security.protocol" = "SSL"\n"sasl.username" = "file"\n"socket.timeout.ms" = 5\n'
        '"enable.ssl.certificate.verification" = false\n'
    )
    monkeypatch.setenv("RETOLD_KAFKA", "broker:9092")
    monkeypatch.setenv("RETOLD_KAFKA_SASL_USERNAME", "environment")
    monkeypatch.setenv("RETOLD_KAFKA_SASL_PASSWORD", "a=b")
    found = settings(kafka_setting=["linger.ms=5", "sasl.mechanism=PLAIN=x"]).kafka()
    assert found == {
        "security.protocol": "SSL",
        "socket.timeout.ms": "5",
        "enable.ssl.certificate.verification": "false",
        "sasl.username": "environment",
        "sasl.password": "a=b",
        "linger.ms": "5",
        "sasl.mechanism": "PLAIN=x",
    }


def test_what_is_missing_is_named_with_both_ways_to_give_it() -> None:
    with pytest.raises(UsageError, match="--database or set RETOLD_DATABASE_URL"):
        settings().required("database", "database")
    with pytest.raises(UsageError, match="--kafka or set RETOLD_KAFKA"):
        settings().required("kafka", "Kafka broker")


def test_a_wrong_kind_of_value_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    write("[tool.retold]\nname = true\n")
    with pytest.raises(InvalidValue, match="name is a text, not True"):
        settings().text("name")
    monkeypatch.setenv("RETOLD_PARTITIONS", "many")
    with pytest.raises(InvalidValue, match="partitions is a number, not 'many'"):
        settings().number("partitions", 12)
    monkeypatch.setenv("RETOLD_RESYNC", "perhaps")
    with pytest.raises(InvalidValue, match="resync is true or false, not 'perhaps'"):
        settings().flag("resync")
    with pytest.raises(InvalidValue, match="write NAME=VALUE"):
        settings(kafka_setting=["linger.ms"]).kafka()


def test_a_file_that_cannot_be_used_is_told() -> None:
    with pytest.raises(InvalidValue, match=r"there\.is\.none"):
        settings(config="there.is.none")
    with pytest.raises(InvalidValue, match="is no TOML"):
        settings(config=write("= 1", "broken.toml"))


def test_the_names_of_variables() -> None:
    assert variable("database") == "RETOLD_DATABASE_URL"
    assert variable("fill-holes-out-of-order") == "RETOLD_FILL_HOLES_OUT_OF_ORDER"


# --- what a relay makes of them ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("sqlite:////var/lib/my bank.db", "my-bank"),
        ("postgresql://u:p@h/bank?schema=core", "bank-core"),
        ("mysql://u:p@h/bank?prefix=es_", "bank-es_"),
    ],
)
def test_a_relay_is_called_after_its_database(url: str, name: str) -> None:
    assert relay.relay_name(settings(), parse_url(url)) == name


@pytest.mark.parametrize("name", ["a b", "ä", "x" * 101, "a/b"])
def test_a_name_that_no_topic_can_have_is_refused(name: str) -> None:
    with pytest.raises(InvalidValue, match="--name"):
        relay.relay_name(settings(name=name), parse_url("sqlite:///x.db"))


@pytest.mark.parametrize(
    ("url", "source", "kind"),
    [
        ("sqlite:///x.db", None, "polling"),
        ("postgresql://h/b", "auto", "wal"),
        ("postgresql://h/b", "polling", "polling"),
        ("mysql://h/b", None, "binlog"),
    ],
)
def test_the_source_is_the_best_of_its_database_unless_chosen(
    url: str, source: str | None, kind: str
) -> None:
    assert relay.source_kind(settings(source=source), parse_url(url)) == kind


@pytest.mark.parametrize(("url", "source"), [("sqlite:///x.db", "wal"), ("mysql://h/b", "wal")])
def test_a_source_of_another_database_is_refused(url: str, source: str) -> None:
    with pytest.raises(InvalidValue, match=f"--source {source} cannot follow"):
        relay.source_kind(settings(source=source), parse_url(url))
