"""Inline projections on real databases: the read model changes with the append, or neither does."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import psycopg
import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from retold import AsyncEventStore, Cursor, Delivery, EventStore, Projection, Rejected
from retold.contrib.sqlalchemy import using as using_session
from retold.errors import StoreBusy, UsageError
from retold.store.url import parse_url
from tests.conformance.raw import path_of, rows
from tests.integration.accounts import Account, Balances, Opened, folded, marks, table
from tests.rig import DATABASES

EVERY = pytest.mark.parametrize("kind", [kind for kind in DATABASES if kind != "postgres15"])
SQLITE = pytest.mark.parametrize("kind", ["sqlite"])
POSTGRES = pytest.mark.parametrize("kind", ["postgres18"])
WRITERS = 8


def unique_emails(url: str) -> Projection:
    """Holds every address once."""
    emails, mark = Projection("emails", inline=True, tables=["emails"]), marks(url)

    @emails.on(Opened, of=Account)
    def opened(delivery: Delivery[Opened], db: Cursor) -> None:
        db.execute(
            f"INSERT INTO emails VALUES ({mark}, {mark})",
            (delivery.event.email, delivery.entity_id),
        )

    return emails


@pytest.fixture
def url(kind: str, fresh_database: Callable[[str], str]) -> str:
    url = fresh_database(kind)
    with EventStore(url) as store:
        store.migrate()
    rows(url, "CREATE TABLE emails (address VARCHAR(100) PRIMARY KEY, id VARCHAR(255) NOT NULL)")
    return url


@pytest.fixture
def store(url: str) -> Iterator[EventStore]:
    with EventStore(url, projections=[unique_emails(url)]) as opened:
        yield opened


def addresses(url: str) -> list[str]:
    return [str(address) for (address,) in rows(url, "SELECT address FROM emails ORDER BY 1")]


def accounts(url: str) -> list[str]:
    return [str(id) for (id,) in rows(url, "SELECT entity_id FROM entities ORDER BY 1")]


@EVERY
def test_of_eight_writers_one_gets_an_email_address(url: str, store: EventStore) -> None:
    together = threading.Barrier(WRITERS)

    def open_accounts(writer: int) -> list[int]:
        won = list[int]()
        for n in range(10):
            together.wait(30)
            with suppress(Rejected):
                store.repository(Account).create(Account.open, f"{n}@example.org")
                won.append(n)
        return won

    with ThreadPoolExecutor(WRITERS) as pool:
        won = [n for each in pool.map(open_accounts, range(WRITERS)) for n in each]
    assert sorted(won) == list(range(10))
    assert addresses(url) == [f"{n}@example.org" for n in range(10)]
    owners = {str(id) for (id,) in rows(url, "SELECT id FROM emails")}
    assert owners == set(accounts(url))
    assert len(rows(url, "SELECT event_id FROM events")) == 10


@EVERY
def test_nothing_of_a_rejected_change_is_stored_and_its_key_is_free(
    url: str, store: EventStore
) -> None:
    repository = store.repository(Account)
    repository.with_id("ann").create(Account.open, "ann@example.org")
    with pytest.raises(Rejected, match="emails") as rejected:
        repository.with_id("bob").once("k").create(Account.open, "ann@example.org")
    assert "ann@example.org" not in str(rejected.value)
    assert accounts(url) == ["ann"]
    assert not rows(url, "SELECT trigger_key FROM handled")
    repository.with_id("bob").once("k").create(Account.open, "bob@example.org")
    again = repository.with_id("bob").once("k").create(Account.open, "bob@example.org")
    assert again.duplicate
    assert addresses(url) == ["ann@example.org", "bob@example.org"]


@EVERY
def test_an_update_of_several_events_is_projected_whole_and_in_order(url: str) -> None:
    balances = Balances(url, inline=True)
    rows(url, "CREATE TABLE balances (id VARCHAR(255) PRIMARY KEY, balance BIGINT, trail BIGINT)")
    with EventStore(url, projections=[unique_emails(url), balances.projection]) as store:
        repository = store.repository(Account)
        repository.with_id("ann").create(Account.open, "ann@example.org")
        repository.update("ann", Account.pay, 3, 5, 7)
        balances.failing = {9}
        with pytest.raises(ZeroDivisionError, match="no paper"):
            repository.update("ann", Account.pay, 4, 9)
        repository.update("ann", Account.pay, 6)
        repository.update("ann", Account.close)
    assert table(url) == folded(url)
    assert table(url)["ann"][0] == 21


@EVERY
def test_rivals_for_one_entity_decide_again_and_the_read_model_follows(url: str) -> None:
    balances = Balances(url, inline=True)
    rows(url, "CREATE TABLE balances (id VARCHAR(255) PRIMARY KEY, balance BIGINT, trail BIGINT)")
    with EventStore(url, projections=[balances.projection]) as store:
        store.repository(Account).with_id("ann").create(Account.open, "ann@example.org")
        with ThreadPoolExecutor(4) as pool:
            for done in [
                pool.submit(store.repository(Account).update, "ann", Account.pay, n)
                for n in range(1, 41)
            ]:
                done.result()
    assert table(url) == folded(url)


@EVERY
def test_in_a_transaction_over_several_entities_all_goes_together(
    url: str, store: EventStore
) -> None:
    with store.transaction() as tx:
        repository = tx.repository(Account)
        repository.with_id("ann").create(Account.open, "ann@example.org")
        with pytest.raises(Rejected):
            repository.with_id("bob").create(Account.open, "ann@example.org")
        repository.with_id("eve").create(Account.open, "eve@example.org")
    assert accounts(url) == ["ann", "eve"]
    assert addresses(url) == ["ann@example.org", "eve@example.org"]
    with pytest.raises(KeyError), store.transaction() as tx:  # noqa: PT012
        tx.repository(Account).with_id("joe").create(Account.open, "joe@example.org")
        raise KeyError
    assert "joe@example.org" not in addresses(url)


@EVERY
def test_an_async_store_projects_too(url: str) -> None:
    async def main() -> None:
        async with AsyncEventStore(url, projections=[unique_emails(url)]) as store:
            repository = store.repository(Account)
            await repository.with_id("ann").create(Account.open, "ann@example.org")
            with pytest.raises(Rejected):
                await repository.with_id("bob").create(Account.open, "ann@example.org")
            async with store.transaction() as tx:
                await tx.repository(Account).with_id("eve").create(Account.open, "eve@example.org")

    asyncio.run(main())
    assert addresses(url) == ["ann@example.org", "eve@example.org"]
    assert accounts(url) == ["ann", "eve"]


@pytest.mark.parametrize("kind", ["sqlite", "postgres18", "mysql8"])
def test_in_the_transaction_of_a_session_it_commits_with_the_session(
    url: str, store: EventStore
) -> None:
    parsed = parse_url(url)
    scheme = {"sqlite": "sqlite", "postgres": "postgresql+psycopg", "mysql": "mysql+pymysql"}
    engine = create_engine(
        f"sqlite:///{path_of(url)}"
        if parsed.database_kind == "sqlite"
        else url.replace(url.partition("://")[0], scheme[parsed.database_kind])
    )
    try:
        with Session(engine) as session:
            repository = using_session(store, session).repository(Account)
            repository.with_id("ann").create(Account.open, "ann@example.org")
            with pytest.raises(Rejected):
                repository.with_id("bob").create(Account.open, "ann@example.org")
            session.commit()
            using_session(store, session).repository(Account).with_id("eve").create(
                Account.open, "eve@example.org"
            )
            session.rollback()
    finally:
        engine.dispose()
    assert (accounts(url), addresses(url)) == (["ann"], ["ann@example.org"])


@POSTGRES
def test_in_a_transaction_of_ones_own_a_refusal_leaves_it_usable(
    url: str, store: EventStore
) -> None:
    with psycopg.connect(url) as raw:
        repository = store.using(raw).repository(Account)
        repository.with_id("ann").create(Account.open, "ann@example.org")
        with pytest.raises(Rejected):
            repository.with_id("bob").create(Account.open, "ann@example.org")
        repository.with_id("eve").create(Account.open, "eve@example.org")
    assert accounts(url) == ["ann", "eve"]


@POSTGRES
def test_a_connection_that_is_async_cannot_carry_it(url: str) -> None:
    async def main() -> None:
        async with (
            AsyncEventStore(url, projections=[unique_emails(url)]) as store,
            await psycopg.AsyncConnection.connect(url) as raw,
        ):
            repository = store.using(raw).repository(Account)
            with pytest.raises(UsageError, match="async"):
                await repository.with_id("ann").create(Account.open, "ann@example.org")

    asyncio.run(main())
    assert accounts(url) == []


@pytest.mark.parametrize("kind", ["postgres18", "mysql8", "mariadb"])
def test_while_its_tables_are_exchanged_nothing_is_appended(url: str, store: EventStore) -> None:
    rows(
        url,
        "INSERT INTO projections (name, place, position, owner) VALUES ('emails', '', 0, 'switch/1')",
    )
    with pytest.raises(StoreBusy, match="exchanged"):
        store.repository(Account).create(Account.open, "ann@example.org")
    assert accounts(url) == []


@SQLITE
def test_a_handler_that_ends_the_transaction_is_found_out(url: str) -> None:
    ending = Projection("ending", inline=True)

    @ending.on(Opened, of=Account)
    def opened(delivery: Delivery[Opened], db: Any) -> None:
        db.execute("ROLLBACK")

    with (
        EventStore(url, projections=[ending]) as store,
        pytest.raises(UsageError, match="ended the transaction"),
    ):
        store.repository(Account).create(Account.open, "ann@example.org")
    assert accounts(url) == []
