"""The example bank under chaos: members, a relay and servers that end, stall and come at any moment.

All that is decided by chance comes from one seed, which is printed: RETOLD_CHAOS_SEED=… does the
same again, as far as the machine does.
"""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

from examples.bank.audit import audit
from examples.bank.domain import Transfer
from examples.bank.processes import open_accounts, orders
from retold import EventStore
from retold.errors import OutcomeUnknown, RetoldError
from tests.conformance.raw import rows
from tests.relay.chaos import LOST_THE_LOCK
from tests.relay.comparison import compare
from tests.relay.processes import PATIENCE_S, Command, Relay, eventually, verify
from tests.rig import Private

SESSION_S = 2.0
"""How soon Kafka misses a member."""
QUICK = {
    "RETOLD_KAFKA_SESSION_TIMEOUT_MS": str(int(SESSION_S * 1000)),
    "RETOLD_KAFKA_HEARTBEAT_INTERVAL_MS": "300",
    "RETOLD_KAFKA_TOPIC_METADATA_REFRESH_INTERVAL_MS": "500",
}
ERROR = 2
_ENDED = "SELECT count(*) FROM events WHERE event_type IN ('bank.TransferCompleted', 'bank.TransferRefused')"
_MOST_MEMBERS = 5
_MOST_OPEN = 150
_ACCOUNTS = 20


class Customers(threading.Thread):
    """Request transfers until told to stop, so many at most that they are not ended."""

    def __init__(self, url: str, accounts: Sequence[str], chance: random.Random) -> None:
        super().__init__(daemon=True)
        self._url = url
        # Some accounts are in most transfers, so that there is an order to be kept between them.
        self._accounts = [*accounts, *list(accounts[:3]) * len(accounts)]
        self._chance = chance
        self._end = threading.Event()
        self.requested = set[str]()
        self.ended = 0
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            with closing(EventStore(self._url)) as store:  # the database may be away
                for order in orders(self._accounts, self._chance):
                    while len(self.requested) - self.ended >= _MOST_OPEN:
                        if self._end.wait(0.05):
                            return
                    if self._end.is_set():
                        return
                    self._request(store, *order)
        except BaseException as error:
            self.failure = error

    def _request(self, store: EventStore, source: str, target: str, amount: int) -> None:
        try:
            made = store.repository(Transfer).create(Transfer.request, source, target, amount)
        except RetoldError as error:
            # The database is away. What it was told last, it may have stored.
            if not (error.retriable or isinstance(error, OutcomeUnknown)):
                raise
            self._end.wait(0.05)
        else:
            self.requested.add(made.id)

    def stop(self) -> None:
        self._end.set()
        self.join()
        if self.failure is not None:
            raise self.failure


class Member(Command):
    """`retold run`, for the bank."""

    def __init__(self, url: str, kafka: str, subscription: str, log: Path) -> None:
        environment = QUICK if kafka else None
        options = (subscription, "--log-format", "text")
        super().__init__("run", url, kafka, *options, log=log, environment=environment)
        self._starts = 0

    def start(self) -> None:
        super().start()
        self._starts += 1

    def stop(self) -> None:
        """Tell it to, once it has begun to listen."""
        eventually(lambda: self.output.count("INFO    running") == self._starts or not self.runs())
        code = self.terminate()
        assert code == 0, f"told to stop, it ended with {code}: {self.last_words()}"


class Operator(threading.Thread):
    """Has everything tried again that is parked, all the time."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self._url = url
        self._end = threading.Event()
        self.retried = 0
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            with closing(EventStore(self._url)) as store:
                while not self._end.wait(0.1):
                    try:
                        self.retried += store.parked().retry("transfers")
                    except RetoldError as error:
                        if not (error.retriable or isinstance(error, OutcomeUnknown)):
                            raise
        except BaseException as error:
            self.failure = error

    def stop(self) -> None:
        self._end.set()
        self.join()
        if self.failure is not None:
            raise self.failure


class Chaos:
    """Members of the bank's subscription, without end killed, stopped, frozen and added.

    kafka: where they consume from, with a relay that is killed too; from the database without.
    servers: what is killed and started again. flaky: handlers fail, what they fail at is parked, and
    an operator has it tried again.
    """

    def __init__(
        self,
        url: str,
        kafka: str,
        folder: Path,
        dice: random.Random,
        stack: ExitStack,
        *,
        servers: Sequence[Private] = (),
        flaky: bool = False,
    ) -> None:
        self._url, self._kafka, self._folder, self._dice = url, kafka, folder, dice
        self._stack = stack
        self._subscription = "examples.bank.transfers:transfers"
        self._operator: Operator | None = None
        if flaky:
            self._subscription = "tests.consuming.flaky:transfers"
            self._operator = Operator(url)
            stack.callback(self._operator.stop)
        self._thaws: list[threading.Timer] = []
        self._count = 0
        self.happened = dict[str, int]()
        with EventStore(url) as store:
            store.migrate(subscriptions=not kafka)
            accounts = open_accounts(store, _ACCOUNTS)
        self._paid_in = 1000 * (_ACCOUNTS - _ACCOUNTS // 20)
        if self._operator is not None:
            self._operator.start()
        self.relay: Relay | None = None
        if kafka:
            self.relay = Relay(url, kafka, log=folder / "relay.log")
            stack.callback(self.relay.close)
            self.relay.start()
        self.members = list[Member]()
        for _ in range(3):
            self._add()
        self.customers = Customers(url, accounts, random.Random(dice.getrandbits(32)))
        self.customers.start()
        stack.callback(self.customers.stop)
        self.events: dict[Callable[[], None], float] = {
            self._kill: 5,
            self._stop: 3,
            self._freeze: 4,
            self._add: 2,
        }
        if kafka:
            self.events[self._kill_the_relay] = 2
        self._servers = servers
        if servers:
            self.events[self._kill_a_server] = 2

    # --- the storm --------------------------------------------------------------------------------

    def blow(self, seconds: float, pause: float = 1.5) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.check()
            (what,) = self._dice.choices(list(self.events), list(self.events.values()))
            name = what.__name__.removeprefix("_")
            self.happened[name] = self.happened.get(name, 0) + 1
            what()
            self._look_for(self._dice.uniform(0, 2 * pause))

    def _look_for(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._look()
            time.sleep(min(left, 0.2))

    def _look(self) -> None:
        if self.relay is not None and self.relay.code() == LOST_THE_LOCK:
            self.relay.start()  # as whoever runs relays does
        ((ended,),) = rows(self._url, _ENDED)
        self.customers.ended = int(str(ended))

    def check(self) -> None:
        """Whoever was not told to end goes on."""
        for server in self._servers:
            server.check()
        for member in self.members:
            if member.code() != ERROR or not self._servers:
                member.check()
            else:  # no server was there when it began
                assert "Try again" in member.last_words() or "try again" in member.last_words()
                member.start()
        if self.relay is not None and self.relay.code() != LOST_THE_LOCK:
            self.relay.check()
        if self.customers.failure is not None:
            raise self.customers.failure

    def _add(self) -> None:
        if len(self.members) == _MOST_MEMBERS:
            return
        self._count += 1
        log = self._folder / f"member-{self._count}.log"
        member = Member(self._url, self._kafka, self._subscription, log)
        self._stack.callback(member.close)
        self.members.append(member)
        member.start()

    def _leave(self) -> Member:
        return self.members.pop(self._dice.randrange(len(self.members)))

    def _kill(self) -> None:
        self._leave().kill()
        self._refill()

    def _stop(self) -> None:
        self._leave().stop()
        self._refill()

    def _refill(self) -> None:
        while len(self.members) < 3:
            self._add()

    def _freeze(self) -> None:
        """For a moment, or for longer than it is waited for."""
        member = self._dice.choice(self.members)
        seconds = self._dice.choice((0.1, 1, SESSION_S + 1, SESSION_S + 4))
        member.send(signal.SIGSTOP)
        thaw = threading.Timer(seconds, member.send, [signal.SIGCONT])
        self._thaws.append(thaw)
        thaw.start()

    def _kill_the_relay(self) -> None:
        assert self.relay is not None
        self.relay.kill()
        self.relay.start()

    def _kill_a_server(self) -> None:
        server = self._dice.choice(self._servers)
        if self._dice.random() < 0.7:
            server.kill()
            time.sleep(self._dice.choice((0, 1, 4)))
        server.restart()

    # --- and behind it ----------------------------------------------------------------------------

    def settle(self) -> None:
        """Let everything come to its end, and see that all is well."""
        for thaw in self._thaws:
            thaw.join()
        self.customers.stop()
        ((requested,),) = rows(
            self._url, "SELECT count(*) FROM events WHERE event_type = 'bank.TransferRequested'"
        )
        wanted = int(str(requested))
        self._look()
        ended, until = self.customers.ended, time.monotonic() + PATIENCE_S
        while ended < wanted:
            self.check()
            time.sleep(0.1)
            self._look()
            if self.customers.ended > ended:
                ended, until = self.customers.ended, time.monotonic() + PATIENCE_S
            assert time.monotonic() < until, f"{wanted - ended} transfers stay open"
        retried = self._empty_the_queues()
        print(f"{wanted} transfers; {self.happened}; {retried} times tried again")
        problems = [problem for claim in audit(self._url) for problem in claim.problems]
        assert problems == []
        self._see_that_nothing_is_lost()
        if self.relay is not None:
            report = verify(self._url, self._kafka, "--patience", str(int(PATIENCE_S)))
            assert report["sound"], report
            _, wrong = compare(self._url, self._kafka)
            assert not wrong, str(wrong)
            assert self.relay.terminate() == 0
        for member in self.members:
            member.stop()

    def _empty_the_queues(self) -> int:
        if self._operator is None:
            return 0
        # What failed behind its change is parked while the transfer goes on.
        eventually(lambda: rows(self._url, "SELECT count(*) FROM parked") == [(0,)])
        self._operator.stop()
        return self._operator.retried

    def _see_that_nothing_is_lost(self) -> None:
        ids = {
            str(id)
            for (id,) in rows(
                self._url,
                "SELECT entity_id FROM events WHERE event_type = 'bank.TransferRequested'",
            )
        }
        assert self.customers.requested <= ids
