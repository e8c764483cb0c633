"""Errors as answers, and entity tags as versions, through FastAPI itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI, Response
from fastapi.testclient import TestClient

from retold import Aggregate, Event, EventStore, applies
from retold.contrib.fastapi import IfMatch, error_handlers, etag
from retold.errors import (
    DefinitionError,
    EntityExists,
    KeyReused,
    NotFound,
    OutcomeUnknown,
    RetoldError,
    StoreBusy,
    TransactionRolledBack,
    VersionConflict,
)

_SECRET = "10.1.2.3: password of bob"


class Counted(Event, name="test_fastapi.Counted"): ...


class Counter(Aggregate, name="test_fastapi.Counter"):
    count: int = 0

    def count_up(self) -> None:
        self.emit(Counted())

    @applies
    def _counted(self, event: Counted) -> None:
        self.count += 1


def application(store: EventStore, error: RetoldError | None = None) -> FastAPI:
    app = FastAPI(exception_handlers=error_handlers())
    counters = store.repository(Counter)

    @app.get("/counters/{id}")
    def show(id: str, response: Response) -> int:
        counter = counters.find(id)
        response.headers["ETag"] = etag(counter)
        return counter.state.count

    @app.put("/counters/{id}")
    def create(id: str, response: Response) -> int:
        counter = counters.with_id(id).create(Counter.count_up)
        response.headers["ETag"] = etag(counter)
        return counter.state.count

    @app.post("/counters/{id}")
    def count_up(id: str, version: IfMatch, response: Response) -> int:
        counter = counters.expecting(version).update(id, Counter.count_up)
        response.headers["ETag"] = etag(counter)
        return counter.state.count

    @app.get("/error")
    def fail() -> None:
        assert error is not None
        raise error

    return app


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    with (
        EventStore(f"sqlite:///{tmp_path / 'test.db'}") as store,
        TestClient(application(store)) as client,
    ):
        yield client


def test_a_version_goes_out_as_an_entity_tag_and_comes_back_in_if_match(client: TestClient) -> None:
    made = client.put("/counters/a").headers["ETag"]
    assert client.get("/counters/a").headers["ETag"] == made
    changed = client.post("/counters/a", headers={"If-Match": made})
    assert (changed.status_code, changed.json()) == (200, 2)
    assert client.post("/counters/a", headers={"If-Match": changed.headers["ETag"]}).json() == 3


def test_what_was_changed_since_the_version_seen_is_refused_and_stays(client: TestClient) -> None:
    seen = client.put("/counters/a").headers["ETag"]
    client.post("/counters/a", headers={"If-Match": seen})
    late = client.post("/counters/a", headers={"If-Match": seen})
    assert late.status_code == 412
    assert late.headers["content-type"] == "application/problem+json"
    assert late.json() == {
        "status": 412,
        "title": "was changed since that version",
        "entity_type": "test_fastapi.Counter",
        "entity_id": "a",
    }
    assert client.get("/counters/a").json() == 2


def test_a_request_must_say_which_version_it_has_seen(client: TestClient) -> None:
    client.put("/counters/a")
    assert client.post("/counters/a").status_code == 428


@pytest.mark.parametrize("tag", ["x", '"', '""', '"a", "b"', 'W/"a"', "*", '"a'])
def test_an_if_match_that_is_not_one_strong_tag_is_a_bad_request(
    client: TestClient, tag: str
) -> None:
    client.put("/counters/a")
    assert client.post("/counters/a", headers={"If-Match": tag}).status_code == 400


def test_an_entity_that_is_not_there_is_not_found(client: TestClient) -> None:
    assert client.get("/counters/nobody").status_code == 404
    assert client.post("/counters/nobody", headers={"If-Match": '"x"'}).status_code == 404


def test_an_entity_that_is_there_is_not_made_again(client: TestClient) -> None:
    client.put("/counters/a")
    assert client.put("/counters/a").status_code == 409


@pytest.mark.parametrize(
    ("error", "status", "again"),
    [
        (NotFound("a.B", "1"), 404, False),
        (EntityExists("a.B", "1"), 409, False),
        (VersionConflict("a.B", "1", "x", "y"), 409, True),
        (KeyReused("a.B", "1", "key", "f", "g"), 422, False),
        (StoreBusy(_SECRET), 503, True),
        (TransactionRolledBack(_SECRET), 503, True),
        (OutcomeUnknown(_SECRET), 504, False),
    ],
)
def test_an_answer_says_whether_to_try_again_and_nothing_of_the_store(
    tmp_path: Path, error: RetoldError, status: int, again: bool
) -> None:
    with EventStore(f"sqlite:///{tmp_path / 'test.db'}") as store:
        answer = TestClient(application(store, error)).get("/error")
    assert answer.status_code == status
    assert ("Retry-After" in answer.headers) is again
    assert "password" not in answer.text


def test_a_database_that_is_away_is_not_available() -> None:
    store = EventStore("postgresql://127.0.0.1:1/nothing?connect_timeout=1")
    answer = TestClient(application(store)).get("/counters/a")
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    assert "127.0.0.1" not in answer.text


def test_a_mistake_of_the_program_stays_an_error_of_the_program(tmp_path: Path) -> None:
    with EventStore(f"sqlite:///{tmp_path / 'test.db'}") as store:
        client = TestClient(application(store, DefinitionError("no name")))
        with pytest.raises(DefinitionError):
            client.get("/error")
