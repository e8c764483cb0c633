"""The pytest plugin, in a run of its own."""

from __future__ import annotations

import pytest

pytest_plugins = ["pytester"]

DOMAIN = """
import pytest
from retold import Aggregate, Event, EventStore, applies

class Opened(Event, name="plugin.Opened"):
    n: int

class Account(Aggregate, name="plugin.Account"):
    n: int = 0

    def open(self, n):
        self.emit(Opened(n))

    @applies
    def _opened(self, event: Opened):
        self.n = event.n
"""


# Importing these takes longer than a run.
PLAIN = ("-q", "-p", "no:randomly", "-p", "no:hypothesispytest", "-p", "no:pytest_cov")


def run(pytester: pytest.Pytester, tests: str) -> pytest.RunResult:
    pytester.makepyfile(DOMAIN + tests)
    return pytester.runpytest_subprocess(*PLAIN, "-W", "error")


def test_the_store_is_empty_and_its_own_in_every_test(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
@pytest.mark.parametrize("n", [1, 2])
def test_it(store, n):
    accounts = store.repository(Account)
    assert list(accounts.entities()) == []
    assert accounts.create(Account.open, n).state.n == n
""",
    )
    result.assert_outcomes(passed=2)


def test_ids_and_times_are_the_same_in_every_run(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
def test_it(store, store_clock):
    accounts = store.repository(Account)
    first = accounts.create(Account.open, 1)
    assert first.id == "0000018cc251f400-0000000000000000"
    assert first.version == "0000018cc251f400-0000000000000001"
    store_clock.advance(seconds=1)
    second = accounts.update(first.id, Account.open, 2)
    assert second.version == "0000018cc251f7e8-0000000000000000"
    times = [recorded.time for recorded in accounts.history(first.id)]
    assert (times[1] - times[0]).total_seconds() == 1
""",
    )
    result.assert_outcomes(passed=1)


def test_the_store_lies_in_the_test_s_own_folder(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
def test_it(store, tmp_path):
    store.repository(Account).create(Account.open, 1)
    with EventStore(f"sqlite:///{tmp_path}/events.db") as other:
        assert len(list(other.repository(Account).entities())) == 1
""",
    )
    result.assert_outcomes(passed=1)


def test_a_project_may_have_a_store_fixture_of_its_own(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
@pytest.fixture
def store():
    return "mine"

def test_it(store):
    assert store == "mine"
""",
    )
    result.assert_outcomes(passed=1)


def test_the_fixtures_are_listed_with_what_they_are(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_subprocess("--fixtures", *PLAIN)
    result.stdout.fnmatch_lines(["store -- *", "*An empty event store with deterministic ids*"])
    result.stdout.fnmatch_lines(["store_clock -- *"])


def test_a_run_that_asks_for_no_store_imports_nothing_of_retold(
    pytester: pytest.Pytester,
) -> None:
    """Coverage begins to count after the plugins are loaded."""
    pytester.makepyfile(
        """
        import sys

        def test_it():
            assert not [name for name in sys.modules if name.split(".")[0] == "retold"]
        """
    )
    pytester.runpytest_subprocess(*PLAIN).assert_outcomes(passed=1)
