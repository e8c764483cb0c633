"""Database URLs, in the forms people already have."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote, urlsplit

from retold.errors import InvalidURL

# scheme → database, client library; what stands behind a + names another tool's client
_SCHEMES = {
    "sqlite": ("sqlite", "sqlite3"),
    "postgres": ("postgres", "psycopg"),
    "postgresql": ("postgres", "psycopg"),
    "mysql": ("mysql", "pymysql"),
    "mariadb": ("mysql", "pymysql"),
}
_PORTS = {"postgres": 5432, "mysql": 3306}
# A misspelt option must not be left out in silence: it might have asked for encryption. PostgreSQL's
# are libpq's, which refuses those it does not know.
_OPTIONS = {
    "sqlite": {"prefix", "timeout", "synchronous"},
    "mysql": {
        "prefix",
        "schema",
        "connect_timeout",
        "read_timeout",
        "write_timeout",
        "unix_socket",
        "ssl_ca",
        "ssl_cert",
        "ssl_key",
        "charset",  # always utf8mb4, whatever it says
    },
}
_SECONDS = {"timeout", "connect_timeout", "read_timeout", "write_timeout"}
# PostgreSQL cuts names off at 63 characters, and the longest table is {prefix}retold_migrations.
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,45}")


@dataclass(frozen=True, slots=True)
class DatabaseURL:
    """A parsed URL. Its repr and str never show the password."""

    database_kind: str
    client: str
    database: str
    host: str = ""
    port: int = 0
    user: str = ""
    password: str = field(default="", repr=False)
    schema: str = ""
    prefix: str = ""
    # libpq takes passwords as options too
    options: dict[str, str] = field(default_factory=dict[str, str], repr=False)

    def __str__(self) -> str:
        if self.database_kind == "sqlite":
            return f"sqlite:///{self.database}"
        return f"{self.database_kind}://{self.user}@{self.host}:{self.port}/{self.database}"


def parse_url(url: str) -> DatabaseURL:
    """Raises InvalidURL, whose message shows the URL without its password."""
    shown = _without_password(url)
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:  # its text may quote a part of the password
        raise InvalidURL(shown, "its host or port cannot be read; " + _ESCAPE) from None
    scheme, _, tool = parts.scheme.partition("+")
    if scheme not in _SCHEMES:
        raise InvalidURL(shown, f"the scheme {parts.scheme!r} names no database retold knows")
    kind, client = _SCHEMES[scheme]
    if "#" in url:
        raise InvalidURL(shown, "what stands behind # would be left out; " + _ESCAPE)
    rest = url.lstrip()[len(parts.scheme) :]
    if kind == "sqlite" and not rest.startswith(":///"):
        raise InvalidURL(shown, "a SQLite path begins after three slashes")
    if not rest.startswith("://"):
        raise InvalidURL(shown, "a host begins after two slashes")
    if kind != "sqlite" and "@" in parts.path + parts.query:
        raise InvalidURL(shown, "its user and password cannot be told from its host; " + _ESCAPE)
    if kind == "mysql" and tool in ("mysqlclient", "mysqldb"):
        client = "mysqlclient"
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    schema, prefix = options.pop("schema", ""), options.pop("prefix", "")
    for name, word in (("schema", schema), ("prefix", prefix)):
        if word and not _WORD.fullmatch(word):
            raise InvalidURL(shown, f"{name}={word!r} is no plain SQL name")
    for name, value in options.items():
        if name not in _OPTIONS.get(kind, options):
            known = ", ".join(sorted(_OPTIONS[kind]))
            raise InvalidURL(shown, f"there is no option {name!r}, only {known}")
        if name in _SECONDS and not re.fullmatch(
            r"\d+(\.\d+)?" if kind == "sqlite" else r"\d+", value
        ):
            raise InvalidURL(shown, f"{name}={value!r} is no number of seconds")
    if kind == "sqlite":
        if schema:
            raise InvalidURL(shown, "SQLite has no schemas, use prefix=")
        path = unquote(parts.path)[1:]
        if not path or path == ":memory:":
            raise InvalidURL(
                shown, "a store needs a file, because every connection to memory is a new database"
            )
        return DatabaseURL(kind, client, path, prefix=prefix, options=options)
    database = unquote(parts.path).lstrip("/")
    if not database:
        raise InvalidURL(shown, "it names no database")
    return DatabaseURL(
        kind,
        client,
        database,
        host=parts.hostname or "localhost",
        port=port or _PORTS[kind],
        user=unquote(parts.username or ""),
        password=unquote(parts.password or ""),
        schema=schema,
        prefix=prefix,
        options=options,
    )


_ESCAPE = "write special characters as %40 (for @), %2F (/), %3A (:), %23 (#), %3F (?)"


def _without_password(url: str) -> str:
    hidden = re.sub(r"(?i)(password|passwd|pwd|sslkey)=[^&]*", r"\1=***", url)
    if "@" in hidden:
        # From the first colon behind the user to the last @: rather too much than too little. What
        # stands before :// is a scheme only if it looks like one of ours: ann://x@h has no scheme.
        known = r"^((?:\s*(?:sqlite|postgres|mysql|mariadb)[^:/]*://)?[^:]*:).*@"
        return re.sub(known, r"\1***@", hidden, flags=re.DOTALL | re.IGNORECASE)
    # The @ was forgotten: what stands where a port would, and is none.
    return re.sub(
        r"^([^:/]*:(?!//)|[^:/]*://[^:/?#\[]*:(?!\d*(?:[/?#]|$))).*",
        r"\1***",
        hidden,
        flags=re.DOTALL,
    )
