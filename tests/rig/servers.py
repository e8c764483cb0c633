"""The database servers that the tests use: private ones, or running ones given by a URL."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
import unittest
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar
from urllib.parse import unquote, urlsplit

import psycopg
import pymysql

from tests.rig import databases
from tests.rig.databases import PASSWORD, USER, with_parts
from tests.rig.process import Daemon, free_port, private_folder, run

_DEFAULT_CACHE = "/var/cache/retold-rig" if os.geteuid() == 0 else "~/.cache/retold-rig"
CACHE = Path(os.environ.get("RETOLD_RIG_CACHE", _DEFAULT_CACHE)).expanduser()
_PATIENCE = 60.0


class NotPrivate(unittest.SkipTest):
    """A server that somebody else runs must not be killed: the test is skipped."""


class Server(ABC):
    """A database server; `url` is its administrator's."""

    url: str
    # Who uses a database made here; the administrator when None.
    user: str | None = None

    @abstractmethod
    def start(self) -> None: ...

    @abstractmethod
    def stop(self) -> None: ...

    @abstractmethod
    def kill(self) -> None:
        """End it with SIGKILL, as a crash would."""

    @abstractmethod
    def restart(self) -> None:
        """Start it again with the same data and port; ends it properly if it still runs."""

    @abstractmethod
    def pause(self) -> None:
        """Freeze it with SIGSTOP: connections stay open, and nothing answers."""

    @abstractmethod
    def resume(self) -> None: ...

    def create_database(self, name: str) -> str:
        """The URL of a new, empty database, for a user with rights on that database only."""
        databases.create(self.url, name, owner=self.user)
        if self.user is None:
            return with_parts(self.url, database=name)
        return with_parts(self.url, user=self.user, password=PASSWORD, database=name)

    def drop_database(self, name: str) -> None:
        databases.drop(self.url, name)


class Given(Server):
    """A running server, given by the URL of a user who may create databases."""

    def __init__(self, url: str) -> None:
        self.url = url

    def start(self) -> None:
        databases.query(self.url, "SELECT 1")

    def stop(self) -> None:
        pass

    def kill(self) -> None:
        raise NotPrivate(f"the server at {self.url} is not the tests' own")

    def restart(self) -> None:
        self.kill()

    def pause(self) -> None:
        self.kill()

    def resume(self) -> None:
        self.kill()


class Private(Server):
    """A server of our own: a free port on loopback, a folder that goes at the end.

    `options` are added to the command line, and win over the defaults.
    """

    name: str
    shutdown: ClassVar[signal.Signals] = signal.SIGTERM
    _silence: ClassVar[tuple[type[Exception], ...]] = (pymysql.Error, psycopg.Error)

    def __init__(self, *options: str) -> None:
        self._options = options
        self.port = free_port()
        self._daemon: Daemon | None = None

    @property
    @abstractmethod
    def _binary(self) -> Path: ...

    @abstractmethod
    def _prepare(self, folder: Path) -> None:
        """Put into the folder what the server needs at its first start."""

    @abstractmethod
    def _command(self, folder: Path) -> list[str]: ...

    def _create_user(self) -> None:
        """Make the user of the databases, once the server answers."""

    def start(self) -> None:
        if not self._binary.exists():
            raise RuntimeError(f"{self.name} is not installed: run tests/rig/install.sh servers")
        folder = private_folder()
        self._daemon = Daemon([*self._command(folder), *self._options], folder=folder)
        try:
            self._prepare(folder)
            self._launch()
            self._create_user()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        if self._daemon is not None:
            self._daemon.close()
            self._daemon = None

    def kill(self) -> None:
        assert self._daemon is not None, "not started"
        self._daemon.end(signal.SIGKILL)

    def restart(self) -> None:
        assert self._daemon is not None, "not started"
        self._daemon.end(self.shutdown)
        self._launch()

    def check(self) -> None:
        """Raise when it has ended by itself."""
        assert self._daemon is not None, "not started"
        self._daemon.check()

    def pause(self) -> None:
        assert self._daemon is not None, "not started"
        self._daemon.send(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._daemon is not None, "not started"
        self._daemon.send(signal.SIGCONT)

    def _ask(self) -> None:
        """Raise one of `_silence` while the server does not answer."""
        databases.query(self.url, "SELECT 1")

    def _launch(self) -> None:
        assert self._daemon is not None
        self._daemon.start()
        deadline = time.monotonic() + _PATIENCE
        while True:
            self._daemon.check()
            try:
                self._ask()
            except self._silence:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
            else:
                return


class _WithData(Private):
    """A server with a data directory: initialised once, then kept as a template to copy."""

    user = USER

    @abstractmethod
    def _initialise(self, folder: Path) -> None:
        """Make the data directory `folder / "data"`."""

    def _prepare(self, folder: Path) -> None:
        # With the owners, and without the bytes where the file system can share them.
        template = self._template() / "data"
        subprocess.run(["cp", "-a", "--reflink=auto", template, folder], check=True)

    def _template(self) -> Path:
        # A server that was replaced by another version gets a new template.
        version = int(self._binary.stat().st_mtime)
        template = CACHE / "templates" / f"{self.name}-{version}"
        if template.exists():
            return template
        template.parent.mkdir(parents=True, exist_ok=True)
        folder = private_folder(template.parent)
        try:
            self._initialise(folder)
            folder.rename(template)
        except OSError:
            # Another run may have made it meanwhile.
            if not template.exists():
                raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return template


class _MySQLFamily(_WithData):
    # Every commit reaches the disk, and the binary log holds rows: what production should have.
    # The character set stays the server's own default (MariaDB 10.11: latin1), so that a schema
    # that does not state its own fails here.
    _settings: ClassVar[tuple[str, ...]] = (
        "--bind-address=127.0.0.1",
        "--max-connections=200",
        "--innodb-buffer-pool-size=256M",
        "--innodb-flush-log-at-trx-commit=1",
        "--sync-binlog=1",
        "--log-bin=binlog",
        "--binlog-format=ROW",
        "--server-id=1",
        # Users of one database may make triggers.
        "--log-bin-trust-function-creators=1",
    )

    def __init__(self, *options: str) -> None:
        super().__init__(*options)
        self.url = f"mysql://root@127.0.0.1:{self.port}/"

    def _arguments(self, folder: Path) -> list[str]:
        return [
            str(self._binary),
            "--no-defaults",
            f"--datadir={folder / 'data'}",
            f"--socket={folder / 'socket'}",
            f"--pid-file={folder / 'pid'}",
            # A server that starts deletes what others keep in a folder they share.
            f"--tmpdir={folder}",
            f"--port={self.port}",
            *self._settings,
        ]

    def _create_user(self) -> None:
        databases.query(self.url, f"CREATE USER '{USER}'@'%' IDENTIFIED BY '{PASSWORD}'")


class MySQL(_MySQLFamily):
    name = "mysql8"

    @property
    def _binary(self) -> Path:
        return CACHE / "mysql8/bin/mysqld"

    def _home(self) -> list[str]:
        home = CACHE / "mysql8"
        return [f"--basedir={home}", f"--lc-messages-dir={home / 'share'}"]

    def _initialise(self, folder: Path) -> None:
        command = [str(self._binary), "--no-defaults", "--initialize-insecure"]
        run([*command, f"--datadir={folder / 'data'}", *self._home()], folder=folder)
        # A server's identity: a copy must make its own.
        (folder / "data/auto.cnf").unlink(missing_ok=True)

    def _command(self, folder: Path) -> list[str]:
        return [*self._arguments(folder), *self._home(), "--mysqlx=OFF"]


class MariaDB(_MySQLFamily):
    name = "mariadb"

    @property
    def _binary(self) -> Path:
        return Path(shutil.which("mariadbd") or "/usr/sbin/mariadbd")

    def _initialise(self, folder: Path) -> None:
        command = ["mariadb-install-db", "--no-defaults", f"--datadir={folder / 'data'}"]
        run([*command, "--auth-root-authentication-method=normal", "--skip-test-db"], folder=folder)

    def _command(self, folder: Path) -> list[str]:
        return self._arguments(folder)


class Postgres(_WithData):
    _settings: ClassVar[tuple[str, ...]] = (
        "listen_addresses=127.0.0.1",
        "unix_socket_directories=",
        "max_connections=200",
        "shared_buffers=256MB",
        "fsync=on",
        "synchronous_commit=on",
        "full_page_writes=on",
        "wal_level=logical",
    )
    # The fast shutdown: SIGTERM would wait for the clients to go.
    shutdown = signal.SIGINT

    def __init__(self, major: int, *options: str) -> None:
        super().__init__(*options)
        self.name = f"postgres{major}"
        self.url = with_parts(
            f"postgresql://postgres@127.0.0.1:{self.port}/postgres", password=PASSWORD
        )

    @property
    def _binary(self) -> Path:
        return CACHE / self.name / "bin/postgres"

    def _initialise(self, folder: Path) -> None:
        password = folder / "password"
        password.write_text(PASSWORD)
        initdb = [
            str(self._binary.with_name("initdb")),
            "-D",
            str(folder / "data"),
            "-U",
            "postgres",
        ]
        locale = ["--encoding=UTF8", "--locale=C"]
        run([*initdb, *locale, "--auth=scram-sha-256", f"--pwfile={password}"], folder=folder)

    def _command(self, folder: Path) -> list[str]:
        settings = [part for setting in self._settings for part in ("-c", setting)]
        return [str(self._binary), "-D", str(folder / "data"), "-p", str(self.port), *settings]

    def _create_user(self) -> None:
        databases.query(self.url, f"CREATE ROLE {USER} LOGIN PASSWORD '{PASSWORD}'")


class PgBouncer(Private):
    """Transaction pooling in front of a PostgreSQL, on which the databases are made."""

    name = "pgbouncer"

    def __init__(self, upstream: Server, *options: str) -> None:
        super().__init__(*options)
        self._upstream = upstream
        self.url = with_parts(upstream.url, port=self.port)

    @property
    def _binary(self) -> Path:
        return Path(shutil.which("pgbouncer") or "/usr/sbin/pgbouncer")

    def _prepare(self, folder: Path) -> None:
        upstream = urlsplit(self._upstream.url)
        settings = {
            "listen_addr": "127.0.0.1",
            "listen_port": self.port,
            "unix_socket_dir": "",
            "auth_type": "scram-sha-256",
            "auth_file": folder / "users",
            "pool_mode": "transaction",
            "max_client_conn": 500,
            "default_pool_size": 20,
            "ignore_startup_parameters": "extra_float_digits",
        }
        (folder / "pgbouncer.ini").write_text(
            f"[databases]\n* = host={upstream.hostname} port={upstream.port or 5432}\n[pgbouncer]\n"
            + "".join(f"{key} = {value}\n" for key, value in settings.items())
        )
        users = {
            USER: PASSWORD,
            unquote(upstream.username or ""): unquote(upstream.password or ""),
        }
        (folder / "users").write_text(
            "".join(f'"{user}" "{password}"\n' for user, password in users.items())
        )

    def _command(self, folder: Path) -> list[str]:
        return [str(self._binary), str(folder / "pgbouncer.ini")]

    def create_database(self, name: str) -> str:
        return with_parts(self._upstream.create_database(name), port=self.port)

    def drop_database(self, name: str) -> None:
        self._upstream.drop_database(name)
