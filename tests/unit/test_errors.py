from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass

import pytest

from retold import RetoldError, errors
from retold.errors import (
    AmbiguousTrigger,
    AssignmentLost,
    ConnectionLost,
    DefinitionError,
    EntityExists,
    EventTooLarge,
    InvalidURL,
    InvalidValue,
    KeyReused,
    MissingExtra,
    NotFound,
    NotStorable,
    OutcomeUnknown,
    SchemaMissing,
    StoreBusy,
    StoreError,
    StoreUnavailable,
    TransactionRolledBack,
    UnknownEvent,
    UsageError,
    ValueTooLong,
    VersionConflict,
)


def _below(cls: type[RetoldError]) -> Iterator[type[RetoldError]]:
    for sub in cls.__subclasses__():
        if sub.__module__ == errors.__name__:
            yield sub
            yield from _below(sub)


EVERY = sorted(set(_below(RetoldError)), key=lambda cls: cls.__name__)


def example(cls: type[RetoldError]) -> RetoldError:
    assert is_dataclass(cls)
    error = cls(*[7 if f.type == "int" else f"<{f.name}>" for f in fields(cls)])
    assert isinstance(error, RetoldError)
    return error


@pytest.mark.parametrize("cls", EVERY)
def test_an_error_survives_pickling(cls: type[RetoldError]) -> None:
    error = example(cls)
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is cls
    assert vars(back) == vars(error)
    assert (str(back), back.retriable) == (str(error), error.retriable)


@pytest.mark.parametrize("cls", EVERY)
def test_the_message_is_one_line_that_holds_every_field(cls: type[RetoldError]) -> None:
    error = example(cls)
    message = str(error)
    assert "{" not in message
    assert message == " ".join(message.split())
    for name, value in vars(error).items():
        # NotStorable's reason names the field already.
        assert str(value) in message or (cls, name) == (NotStorable, "field")


@pytest.mark.parametrize("cls", EVERY)
def test_the_message_says_what_to_do(cls: type[RetoldError]) -> None:
    template = " ".join((cls.__doc__ or "").split())
    if template.endswith("}"):
        return  # worded where it is raised
    _, *advice = template.split(". ")
    assert advice or cls is AssignmentLost  # the subscription goes on by itself


def test_those_are_retriable_where_the_same_call_may_succeed_later() -> None:
    retriable = {cls for cls in EVERY if cls.retriable}
    assert retriable >= {ConnectionLost, StoreBusy, StoreUnavailable, TransactionRolledBack}
    assert retriable >= {VersionConflict, AssignmentLost}
    # A blind repetition could apply a command twice.
    assert OutcomeUnknown not in retriable
    assert not retriable & {NotFound, EntityExists, KeyReused, UsageError, SchemaMissing}


@pytest.mark.parametrize(
    ("cls", "builtin"),
    [
        (DefinitionError, TypeError),
        (UsageError, TypeError),
        (MissingExtra, ImportError),
        (InvalidURL, ValueError),
        (InvalidValue, ValueError),
        (NotStorable, ValueError),
        (EventTooLarge, ValueError),
        (ValueTooLong, ValueError),
        (NotFound, LookupError),
        (StoreUnavailable, StoreError),
    ],
)
def test_some_are_also_what_python_calls_them(
    cls: type[RetoldError], builtin: type[Exception]
) -> None:
    assert issubclass(cls, builtin)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            NotFound("bank.Account", "a-1"),
            ("There is no bank.Account with id 'a-1'. Check the id, or create it first."),
        ),
        (
            EntityExists("bank.Account", "a-1"),
            ("bank.Account 'a-1' exists already. Update it, or create with another id."),
        ),
        (
            VersionConflict("bank.Account", "a-1", "1-1", "1-2"),
            (
                "bank.Account 'a-1' was changed by somebody else: expected version 1-1, found 1-2. "
                "Load it again and decide again."
            ),
        ),
        (
            KeyReused("bank.Account", "a-1", "k", "Account.debit", "Account.credit"),
            (
                "The key 'k' was already used on bank.Account 'a-1' for the command Account.credit, "
                "and now comes with Account.debit. A key names one request: use a new key for another "
                "command."
            ),
        ),
        (
            AmbiguousTrigger("bank.Account", "a-1", "1-1"),
            (
                "bank.Account 'a-1' is changed twice while handling event 1-1, so a redelivery could "
                'not tell the two apart. Name them: delivery.step("fee").update(…).'
            ),
        ),
        (
            MissingExtra("a mysql:// URL", "pymysql", "mysql"),
            (
                "a mysql:// URL needs the package 'pymysql', which is not installed. Run: pip install "
                "'retold[mysql]'"
            ),
        ),
        (
            UnknownEvent("1-1", "bank.Account", "a-1", "bank.Gone"),
            (
                "Event 1-1 of bank.Account 'a-1' has the type 'bank.Gone', which no class in this "
                "process declares. Import the module that declares it, or, if it was renamed, add "
                "formerly=('bank.Gone',) to its new class or an @upcast('bank.Gone')."
            ),
        ),
        (
            SchemaMissing("no such table: events"),
            (
                "retold's tables are missing or behind in this database (no such table: events). Run: "
                "retold migrate --database URL"
            ),
        ),
        (
            TransactionRolledBack("deadlock"),
            (
                "The database rolled the transaction back (deadlock). Run the whole transaction "
                "again; store.transact(work) does that by itself."
            ),
        ),
    ],
)
def test_messages(error: RetoldError, message: str) -> None:
    assert str(error) == message


def test_braces_in_a_value_are_no_placeholders() -> None:
    assert "'{entity_type}'" in str(NotFound("bank.Account", "{entity_type}"))


def test_errors_are_told_apart_as_exceptions_are() -> None:
    """Two equal messages are two errors: tracebacks and exception groups rely on it."""
    assert NotFound("A", "1") != NotFound("A", "1")
    assert len({NotFound("A", "1"), NotFound("A", "1")}) == 2


def test_a_message_without_docstrings_shows_the_fields() -> None:
    program = "from retold import NotFound; print(NotFound('bank.Account', 'a-1'))"
    run = subprocess.run(
        [sys.executable, "-OO", "-c", program], capture_output=True, text=True, check=True
    )
    assert run.stdout == "NotFound: {'entity_type': 'bank.Account', 'entity_id': 'a-1'}\n"
