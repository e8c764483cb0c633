"""What the tests that audit whole databases share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.tally import Databases
from tests.rig import DATABASES, Rig

# PgBouncer stands before PostgreSQL 15.
every_database = pytest.mark.parametrize(
    "kind", [kind for kind in DATABASES if kind != "postgres15"]
)


@pytest.fixture(scope="module")
def databases(servers: Rig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Databases]:
    """One database of each kind, which the tests of a module share."""
    with Databases(servers.__getitem__, tmp_path_factory.mktemp("databases")) as databases:
        yield databases


@pytest.fixture
def url(databases: Databases, kind: str) -> str:
    return databases[kind]
