"""A database, a relay, Kafka, and the subscriptions of a store: all of it real."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from retold import (
    Aggregate,
    AsyncDelivery,
    AsyncEventStore,
    Delivery,
    Event,
    EventStore,
    Subscription,
    applies,
)
from retold.errors import InvalidValue, MissingExtra, UsageError
from tests.at_work import at_work
from tests.relay.processes import eventually, relay, size
from tests.rig import GivenKafka, Kafka, Rig
from tests.rig.databases import with_parts


class Requested(Event, name="test_stores_on_kafka.Requested"):
    target: str
    amount: int


class Credited(Event, name="test_stores_on_kafka.Credited"):
    amount: int


class AnyAccount(Aggregate, name="test_stores_on_kafka.Account"):
    balance: int = 0

    def credit(self, amount: int) -> None:
        self.emit(Credited(amount))

    @applies
    def _credited(self, event: Credited) -> None:
        self.balance += event.amount


class AnyTransfer(Aggregate, name="test_stores_on_kafka.Transfer", ignores=(Requested,)):
    def request(self, target: str, amount: int) -> None:
        self.emit(Requested(target, amount))


class Bank:
    """Aggregates with entity types, and so topics, of a test's own."""

    def __init__(self) -> None:
        run = secrets.token_hex(4)

        class Account(AnyAccount, name=f"test_stores_on_kafka.Account-{run}"):
            pass

        class Transfer(
            AnyTransfer, name=f"test_stores_on_kafka.Transfer-{run}", ignores=(Requested,)
        ):
            pass

        self.accounts: type[AnyAccount] = Account
        self.transfers: type[AnyTransfer] = Transfer
        self.name = f"subscription-{run}"

    def paying(self) -> Subscription:
        subscription = Subscription(self.name)

        @subscription.on(Requested, of=self.transfers)
        def pay(delivery: Delivery[Requested]) -> None:
            event = delivery.event
            delivery.update(self.accounts, event.target, AnyAccount.credit, event.amount)

        return subscription


@pytest.fixture
def bank() -> Bank:
    return Bank()


@pytest.fixture
def url(kind: str, servers: Rig, fresh_database: Callable[[str], str]) -> str:
    """A database, by a user who may read its log."""
    url = fresh_database(kind)
    if kind != "sqlite":
        url = with_parts(servers[kind].url, database=urlsplit(url).path[1:])
    with EventStore(url) as store:
        store.migrate(polling=kind == "sqlite")
    return url


@pytest.mark.parametrize("kind", ["mariadb", "postgres18"])
def test_an_event_in_the_database_is_handled_once_through_kafka(
    url: str, bank: Bank, kafka: Kafka | GivenKafka
) -> None:
    with EventStore(url, kafka=kafka.url) as store, relay(url, kafka.url) as process:
        ann = store.repository(bank.accounts).create(AnyAccount.credit, 1)
        with at_work(store, subscription := bank.paying()):
            for _ in range(20):
                store.repository(bank.transfers).create(AnyTransfer.request, ann.id, 5)
            eventually(lambda: store.repository(bank.accounts).find(ann.id).state.balance == 101)
        # Whoever comes later begins behind that.
        with at_work(store, subscription):
            store.repository(bank.transfers).create(AnyTransfer.request, ann.id, 7)
            eventually(lambda: store.repository(bank.accounts).find(ann.id).state.balance == 108)
        assert len(list(store.repository(bank.accounts).history(ann.id))) == 22
        assert process.terminate() == 0


@pytest.mark.parametrize("kind", ["sqlite"])
def test_async_handlers_get_events_through_kafka(
    url: str, bank: Bank, kafka: Kafka | GivenKafka
) -> None:
    subscription, seen = Subscription(bank.name), list[int]()

    @subscription.on(Credited, of=bank.accounts)
    async def note(delivery: AsyncDelivery[Credited]) -> None:
        await delivery.find(bank.accounts, delivery.entity_id)
        seen.append(delivery.event.amount)

    async def main() -> None:
        async with AsyncEventStore(url, kafka=kafka.url) as store, store.running(subscription):
            await store.repository(bank.accounts).create(AnyAccount.credit, 3)
            deadline = time.monotonic() + 40
            while not seen:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.02)

    with relay(url, kafka.url):
        asyncio.run(main())
    assert seen == [3]


@pytest.mark.parametrize("kind", ["sqlite"])
def test_drain_handles_what_is_in_kafka(url: str, bank: Bank, kafka: Kafka | GivenKafka) -> None:
    with EventStore(url, kafka=kafka.url) as store, relay(url, kafka.url):
        ann = store.repository(bank.accounts).create(AnyAccount.credit, 1)
        for _ in range(150):
            store.repository(bank.transfers).create(AnyTransfer.request, ann.id, 1)
        eventually(lambda: size(kafka.url, bank.transfers.__entity_type__) >= 150)
        assert store.drain(bank.paying()) == 150
        assert store.repository(bank.accounts).find(ann.id).state.balance == 151


@pytest.mark.parametrize("kind", ["sqlite"])
def test_a_foreign_aggregate_is_known_by_its_name_only(
    url: str, bank: Bank, kafka: Kafka | GivenKafka, tmp_path: Path
) -> None:
    subscription, seen = Subscription(bank.name), list[str]()

    @subscription.on(Requested, of=bank.transfers.__entity_type__)
    def note(delivery: Delivery[Requested]) -> None:
        seen.append(delivery.entity_id)

    with EventStore(url) as producer, relay(url, kafka.url):
        id = producer.repository(bank.transfers).create(AnyTransfer.request, "nobody", 1).id
        with (
            EventStore(f"sqlite:///{tmp_path}/own.db", kafka=kafka.url) as store,
            at_work(store, subscription),
        ):
            eventually(lambda: id in seen)


def test_settings_without_a_kafka_are_refused() -> None:
    with pytest.raises(UsageError, match="kafka="):
        EventStore("sqlite:///bank.db", kafka_settings={"sasl.username": "ann"})


def test_an_unknown_assignor_is_refused() -> None:
    with pytest.raises(InvalidValue, match="cooperative-sticky, range"):
        Subscription("letters", assignor="roundrobin")  # type: ignore[arg-type]


def test_without_the_client_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in [name for name in sys.modules if name.startswith("retold.brokers.kafka")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "confluent_kafka", None)
    with (
        EventStore(f"sqlite:///{tmp_path / 'bank.db'}", kafka="127.0.0.1:1") as store,
        pytest.raises(MissingExtra, match=r"pip install 'retold\[kafka\]'"),
    ):
        store.drain(Bank().paying())


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["mariadb", "postgres18"])
def test_delay_from_the_commit_to_the_handler(
    url: str, bank: Bank, kafka: Kafka | GivenKafka
) -> None:
    """Prints the delay on an idle system."""
    subscription, delays, came = (
        Subscription(bank.name),
        list[float](),
        threading.Event(),
    )
    began, wanted = 0.0, 0

    @subscription.on(Credited, of=bank.accounts)
    def note(delivery: Delivery[Credited]) -> None:
        if delivery.event.amount == wanted:
            delays.append(time.perf_counter() - began)
            came.set()

    with (
        EventStore(url, kafka=kafka.url) as store,
        relay(url, kafka.url),
        at_work(store, subscription),
    ):
        for _ in range(300):
            time.sleep(0.01)
            came.clear()
            wanted = secrets.randbits(40)
            began = time.perf_counter()
            store.repository(bank.accounts).create(AnyAccount.credit, wanted)
            began = time.perf_counter()  # unless it was handled already
            assert came.wait(40)
    own = sorted(delays[50:])
    print(
        f"p50 {1000 * statistics.median(own):.1f} ms, p99 {1000 * own[int(0.99 * len(own))]:.1f} ms"
    )


# --- retold run ----------------------------------------------------------------------------------

_APPLICATION = """
from retold import Aggregate, Delivery, AsyncDelivery, Event, Subscription, applies

class Credited(Event, name="app-{run}.Credited"):
    amount: int

class Account(Aggregate, name="app-{run}.Account"):
    def credit(self, amount: int) -> None:
        self.emit(Credited(amount))

    @applies
    def _credited(self, event: Credited) -> None:
        pass

letters = Subscription("letters-{run}", on_error="stop")

@letters.on(Credited)
def write(delivery: Delivery[Credited]) -> None:
    if delivery.event.amount < 0:
        raise ValueError("negative")
    print(f"letter {{delivery.event.amount}}\\n", end="", flush=True)

def build():
    books = Subscription("books-{run}", attempts=1)

    @books.on(Credited)
    async def book(delivery: AsyncDelivery[Credited]) -> None:
        print(f"book {{delivery.event.amount}}\\n", end="", flush=True)

    return [books]

nothing = 3
"""


class Running:
    """`retold run` as a process."""

    def __init__(self, folder: Path, *arguments: str, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "retold", "run", *arguments],
            cwd=folder,
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def ends(self) -> tuple[int, str]:
        _, errors = self.process.communicate(timeout=40)
        return self.process.returncode, errors


@pytest.fixture
def application(tmp_path: Path) -> Path:
    (tmp_path / "bankapp.py").write_text(_APPLICATION.format(run=secrets.token_hex(4)))
    return tmp_path


@pytest.fixture
def run(application: Path) -> Iterator[Callable[..., Running]]:
    started: list[Running] = []

    def start(*arguments: str, **environment: str) -> Running:
        process = Running(application, *arguments, **environment)
        started.append(process)
        return process

    yield start
    for one in started:
        one.process.kill()
        one.process.communicate()


def write(folder: Path, database: str, *amounts: int) -> None:
    code = "import bankapp, retold\n" + "".join(
        f"retold.EventStore({database!r}).repository(bankapp.Account)"
        f".create(bankapp.Account.credit, {amount})\n"
        for amount in amounts
    )
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_run_handles_events_until_it_is_told_to_stop(
    application: Path, run: Callable[..., Running], how: signal.Signals
) -> None:
    write(application, "sqlite:///bank.db", 7)
    process = run("bankapp:letters", "--database", "sqlite:///bank.db")
    assert process.line() == "letter 7"
    process.process.send_signal(how)
    assert process.ends()[0] == 0


def test_run_takes_several_and_functions_that_make_them(
    application: Path, run: Callable[..., Running]
) -> None:
    write(application, "sqlite:///bank.db", 7)
    process = run("bankapp:letters", "bankapp:build", RETOLD_DATABASE_URL="sqlite:///bank.db")
    assert {process.line(), process.line()} == {"letter 7", "book 7"}
    process.process.send_signal(signal.SIGTERM)
    assert process.ends()[0] == 0


@pytest.mark.parametrize("kind", ["sqlite"])
def test_run_consumes_from_kafka(
    application: Path, run: Callable[..., Running], url: str, kafka: Kafka | GivenKafka
) -> None:
    with relay(url, kafka.url):
        write(application, url, 7)
        process = run(
            "bankapp:letters",
            "--database",
            "sqlite:///other.db",
            "--kafka",
            kafka.url,
            "--kafka-setting",
            "topic.metadata.refresh.interval.ms=200",
        )
        assert process.line() == "letter 7"
        process.process.send_signal(signal.SIGTERM)
        assert process.ends()[0] == 0


def test_an_event_that_a_handler_cannot_handle_ends_it_with_3(
    application: Path, run: Callable[..., Running]
) -> None:
    write(application, "sqlite:///bank.db", -1)
    code, errors = run("bankapp:letters", "--database", "sqlite:///bank.db").ends()
    assert code == 3
    assert "Mend the handler and start it again" in errors


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("bankapp", "write package.module:name"),
        ("nowhere:letters", "there is no module 'nowhere'"),
        ("bankapp:nobody", "has no 'nobody'"),
        ("bankapp:nothing", "bankapp:nothing is not a subscription"),
    ],
)
def test_what_is_no_subscription_ends_it_with_2(
    run: Callable[..., Running], what: str, reason: str
) -> None:
    code, errors = run(what, "--database", "sqlite:///bank.db").ends()
    assert code == 2
    assert reason in errors
