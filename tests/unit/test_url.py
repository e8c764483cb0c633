from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from retold import EventStore
from retold.errors import InvalidURL
from retold.store.url import DatabaseURL, parse_url


@pytest.mark.parametrize(
    ("url", "kind", "client"),
    [
        ("sqlite:///bank.db", "sqlite", "sqlite3"),
        ("sqlite+pysqlite:///bank.db", "sqlite", "sqlite3"),
        ("sqlite+aiosqlite:///bank.db", "sqlite", "sqlite3"),
        ("postgresql://h/bank", "postgres", "psycopg"),
        ("postgres://h/bank", "postgres", "psycopg"),
        ("postgresql+psycopg://h/bank", "postgres", "psycopg"),
        ("postgresql+psycopg2://h/bank", "postgres", "psycopg"),
        ("postgresql+asyncpg://h/bank", "postgres", "psycopg"),
        ("POSTGRESQL://h/bank", "postgres", "psycopg"),
        ("mysql://h/bank", "mysql", "pymysql"),
        ("mariadb://h/bank", "mysql", "pymysql"),
        ("mysql+pymysql://h/bank", "mysql", "pymysql"),
        ("mysql+aiomysql://h/bank", "mysql", "pymysql"),
        ("mysql+mysqlclient://h/bank", "mysql", "mysqlclient"),
        ("mysql+mysqldb://h/bank", "mysql", "mysqlclient"),
        ("mariadb+mysqldb://h/bank", "mysql", "mysqlclient"),
    ],
)
def test_the_scheme_chooses_database_and_client(url: str, kind: str, client: str) -> None:
    parsed = parse_url(url)
    assert (parsed.database_kind, parsed.client) == (kind, client)


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///bank.db", "bank.db"),
        ("sqlite:////var/lib/bank.db", "/var/lib/bank.db"),
        ("sqlite:///data/a%20b%3Fc%23d.db", "data/a b?c#d.db"),
        ("sqlite:///C:/data/bank.db", "C:/data/bank.db"),
        ("sqlite:///bank@home.db", "bank@home.db"),
        ("sqlite:///bank.db?timeout=5", "bank.db"),
    ],
)
def test_a_sqlite_path_stands_behind_three_slashes(url: str, path: str) -> None:
    assert parse_url(url).database == path


def test_all_parts_of_a_server_s_url() -> None:
    assert parse_url(
        "mysql://ann:secret@db.example:3307/bank?schema=s&prefix=es_&read_timeout=5&ssl_ca=/ca.pem"
    ) == DatabaseURL(
        "mysql",
        "pymysql",
        "bank",
        host="db.example",
        port=3307,
        user="ann",
        password="secret",
        schema="s",
        prefix="es_",
        options={"read_timeout": "5", "ssl_ca": "/ca.pem"},
    )


@pytest.mark.parametrize(("scheme", "port"), [("postgresql", 5432), ("mysql", 3306)])
def test_what_is_left_out_has_a_default(scheme: str, port: int) -> None:
    parsed = parse_url(f"{scheme}:///bank")
    assert (parsed.host, parsed.port) == ("localhost", port)
    assert (parsed.user, parsed.password, parsed.schema, parsed.prefix) == ("", "", "", "")
    assert parsed.options == {}


def test_user_password_and_database_may_be_escaped() -> None:
    parsed = parse_url("postgresql://a%40b:p%40%2F%3A%23%3F%25%C3%A4@[::1]:5433/my%20bank")
    assert (parsed.user, parsed.password) == ("a@b", "p@/:#?%ä")
    assert (parsed.host, parsed.port, parsed.database) == ("::1", 5433, "my bank")


def test_postgresql_s_options_are_left_to_libpq() -> None:
    parsed = parse_url("postgresql:///bank?host=/run/postgresql&sslmode=require&application_name=")
    assert parsed.options == {
        "host": "/run/postgresql",
        "sslmode": "require",
        "application_name": "",
    }


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("", "the scheme '' names no database"),
        ("bank.db", "the scheme '' names no database"),
        ("oracle://h/bank", "the scheme 'oracle' names no database"),
        ("jdbc:mysql://h/bank", "the scheme 'jdbc' names no database"),
        ("sqlite://bank.db", "begins after three slashes"),
        ("sqlite://", "begins after three slashes"),
        ("sqlite:bank.db", "begins after three slashes"),
        ("sqlite:/bank.db", "begins after three slashes"),
        ("sqlite:///", "a store needs a file"),
        ("sqlite:///:memory:", "every connection to memory is a new database"),
        ("sqlite:///bank.db?schema=s", "SQLite has no schemas, use prefix="),
        ("sqlite:///bank.db?timeuot=5", "no option 'timeuot', only prefix, synchronous, timeout"),
        ("sqlite:///bank.db?timeout=soon", "timeout='soon' is no number of seconds"),
        ("sqlite:///bank.db?timeout=-1", "timeout='-1' is no number of seconds"),
        ("sqlite:///bank#1.db", "behind # would be left out"),
        ("mysql://h/bank?sslmode=require", "no option 'sslmode'"),
        ("mysql://h/bank?connect_timeout=1.5", "connect_timeout='1.5' is no number of seconds"),
        ("mysql://h/bank?prefix=a-b", "prefix='a-b' is no plain SQL name"),
        ("mysql://h/bank?prefix=" + "a" * 49, "is no plain SQL name"),
        ("mysql://h/bank#1", "behind # would be left out"),
        ('postgresql://h/bank?schema=a"b', "is no plain SQL name"),
        ("postgresql://h/bank?schema=1a", "schema='1a' is no plain SQL name"),
        ("postgresql:bank", "a host begins after two slashes"),
        ("postgresql:/h/bank", "a host begins after two slashes"),
        ("postgresql://h", "it names no database"),
        ("postgresql://h/", "it names no database"),
        ("mysql://h:port/bank", "host or port cannot be read"),
        ("mysql://h:99999/bank", "host or port cannot be read"),
        ("mysql://[::1/bank", "host or port cannot be read"),
        ("mysql://ann:p/w@h/bank", "host or port cannot be read"),
        ("mysql://ann:1/w@h/bank", "cannot be told from its host"),
        ("mysql://ann:1/a?w@h/bank", "cannot be told from its host"),
    ],
)
def test_what_is_no_url_is_refused_with_the_forms_that_are(url: str, problem: str) -> None:
    with pytest.raises(InvalidURL) as caught:
        parse_url(url)
    assert problem in caught.value.problem
    assert "Expected sqlite:///path, postgresql://user:password@host:port/database" in str(
        caught.value
    )


def test_a_password_that_must_be_escaped_is_told_how() -> None:
    with pytest.raises(InvalidURL, match=r"%40 \(for @\), %2F \(/\), %3A \(:\), %23 \(#\)"):
        parse_url("mysql://ann:p/w@h/bank")


def test_the_message_shows_the_url_without_its_password() -> None:
    with pytest.raises(InvalidURL) as caught:
        parse_url("oracle://ann:secret@h:1521/bank?a=b")
    assert caught.value.url == "oracle:***@h:1521/bank?a=b"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql+asyncpg://ann:secret@h/bank?sslmode=require", "postgres://ann@h:5432/bank"),
        ("mysql://ann:secret@h:1/bank", "mysql://ann@h:1/bank"),
        ("sqlite:////var/bank.db?timeout=5", "sqlite:////var/bank.db"),
    ],
)
def test_the_text_of_a_url_says_which_database_it_is(url: str, shown: str) -> None:
    assert str(parse_url(url)) == shown
    assert repr(EventStore(url)) == f"<EventStore {shown}>"


SECRET = "Geheim7"
SPECIAL = st.text(st.sampled_from("@/:#?&=%[]+ 1a\n\\"), max_size=6)
TEMPLATES = [
    "{scheme}://ann:{password}@h:1/bank",
    "{scheme}://ann:{password}@h/bank?prefix=p_&read_timeout=x",
    "{scheme}://:{password}@h/bank",
    "{scheme}://ann:{password}@",
    "{scheme}://ann:{password}@h",
    "{scheme}://an/n:{password}@h/bank",
    "{scheme}://ann:{password}/bank",
    "{scheme}://ann:{password}",
    "{scheme}:/ann:{password}@h/bank",
    "{scheme}:ann:{password}@h/bank",
    "{scheme}:ann:{password}",
    "ann:{password}@h/bank",
    "ann:{password}",
    " {scheme}://ann:{password}@h/bank",
    "{scheme}://h/bank?user=ann&password={password}",
    "jdbc:{scheme}://h/bank?user=ann&PASSWORD={password}",
    "host=h user=ann password={password}",
]


@settings(max_examples=1500, deadline=None)
@given(
    st.sampled_from(TEMPLATES),
    st.sampled_from(
        ["sqlite", "postgresql", "postgresql+asyncpg", "mysql", "oracle", "my:sql", ""]
    ),
    SPECIAL,
    SPECIAL,
)
@example("{scheme}://ann:{password}@h/bank", "mysql", "12?", "")
@example("ann:{password}@h/bank", "mysql", "//", ":")
@example("{scheme}://ann:{password}@h/bank", "postgresql", "@", "/a?b=c")
@example("{scheme}://h/bank?user=ann&password={password}", "postgresql", "a@", "")
def test_no_malformation_shows_the_password(
    template: str, scheme: str, before: str, after: str
) -> None:
    if "@" not in template:
        before = ""  # or it may look like a host and a port
    if "password={" in template.lower():
        before = before.replace("&", "")  # where one option ends and the next begins
    url = template.format(scheme=scheme, password=before + SECRET + after)
    try:
        parsed = parse_url(url)
    except InvalidURL as error:
        shown = f"{error} {error!r} {error.__cause__}"
    else:
        shown = f"{parsed} {parsed!r}"
    assert SECRET.lower() not in shown.lower()
