"""Where a command's settings come from: its options, then the environment, then a file.

An option `--from-now` is `RETOLD_FROM_NOW` in the environment and `from-now` in the file: TOML, the
table `[tool.retold]` where there is one. Without `--config` that is `pyproject.toml` here, if it has
such a table. What begins with `RETOLD_KAFKA_` goes to the Kafka client: `RETOLD_KAFKA_SASL_PASSWORD`
is its `sasl.password`.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retold.errors import InvalidValue, UsageError
from retold.store.event_store import EventStore

if TYPE_CHECKING:
    import argparse

_KAFKA = "RETOLD_KAFKA_"
_TRUE = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


class Settings:
    """The settings of one run of a command."""

    def __init__(self, chosen: argparse.Namespace) -> None:
        self._chosen = vars(chosen)
        self._file = _read(self._chosen.get("config") or os.environ.get("RETOLD_CONFIG"))

    def text(self, name: str, default: str = "") -> str:
        found = self._find(name)
        if found is None:
            return default
        if not isinstance(found, (str, int)) or isinstance(found, bool):
            raise InvalidValue(f"{name} is a text, not {found!r}")
        return str(found)

    def number(self, name: str, default: int) -> int:
        found = self.text(name)
        if not found:
            return default
        try:
            return int(found)
        except ValueError:
            raise InvalidValue(f"{name} is a number, not {found!r}") from None

    def flag(self, name: str) -> bool:
        found = self._find(name)
        if isinstance(found, str):
            if found.lower() not in _TRUE:
                raise InvalidValue(f"{name} is true or false, not {found!r}")
            return _TRUE[found.lower()]
        return bool(found)

    def required(self, name: str, what: str) -> str:
        """Raises UsageError for a setting that is nowhere."""
        found = self.text(name)
        if not found:
            raise UsageError(f"no {what} is named: pass --{name} or set {variable(name)}")
        return found

    def kafka(self) -> dict[str, str]:
        """Settings for the Kafka client, in its own names."""
        table: dict[str, Any] = self._file.get("kafka-settings", {})
        found = {
            str(key): str(value).lower() if isinstance(value, bool) else str(value)
            for key, value in table.items()
        }
        for key, value in os.environ.items():
            if key.startswith(_KAFKA):
                found[key.removeprefix(_KAFKA).lower().replace("_", ".")] = value
        for pair in self._chosen.get("kafka_setting") or ():
            key, equals, value = pair.partition("=")
            if not equals:
                raise InvalidValue(f"--kafka-setting {pair!r}: write NAME=VALUE")
            found[key] = value
        return found

    def _find(self, name: str) -> object:
        given = self._chosen.get(name.replace("-", "_"))
        if given not in (None, False):
            return given
        return os.environ.get(variable(name)) or self._file.get(name)


def add_database(parser: argparse.ArgumentParser) -> None:
    """Where the database is."""
    parser.add_argument("--database", metavar="URL", help="default: $RETOLD_DATABASE_URL")
    parser.add_argument("--config", metavar="FILE", help="a TOML file; default: pyproject.toml")


def open_store(chosen: argparse.Namespace) -> EventStore:
    """The store that `add_database` chose. Raises UsageError where none is named."""
    return EventStore(Settings(chosen).required("database", "database"))


def variable(name: str) -> str:
    """The environment variable of a setting."""
    if name == "database":
        return "RETOLD_DATABASE_URL"
    return "RETOLD_" + name.upper().replace("-", "_")


def _read(path: str | None) -> dict[str, Any]:
    if path is None and not Path("pyproject.toml").is_file():
        return {}
    file = Path(path or "pyproject.toml")
    try:
        content = tomllib.loads(file.read_text("utf-8"))
    except OSError as error:
        raise InvalidValue(f"the file {file} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidValue(f"the file {file} is no TOML: {error}") from None
    table: dict[str, Any] = content.get("tool", {}).get("retold", {})
    return table or (content if path is not None else {})
