"""A store behind FastAPI: errors as HTTP answers, and versions as entity tags.

    app = FastAPI(exception_handlers=error_handlers())

    @app.get("/accounts/{id}")
    def account(id: str, response: Response) -> Balance:
        account = accounts.find(id)
        response.headers["ETag"] = etag(account)
        return Balance(balance=account.state.balance)

    @app.post("/accounts/{id}/debits")
    def debit(id: str, amount: int, version: IfMatch) -> Balance:
        changed = accounts.expecting(version).update(id, Account.debit, amount)

Works with Starlette's own applications too. An answer holds the problem as RFC 9457 has it: what
happened, and to which entity; never what was in the store or where it is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Mapping
from typing import Annotated, Any

from retold.errors import (
    EntityExists,
    KeyReused,
    MissingExtra,
    NotFound,
    OutcomeUnknown,
    RetoldError,
    StoreBusy,
    StoreUnavailable,
    TransactionRolledBack,
    VersionConflict,
)

try:
    from fastapi import Depends, Header, HTTPException, Request
    from fastapi.responses import JSONResponse, Response
except ImportError:
    raise MissingExtra("retold.contrib.fastapi", "fastapi", "fastapi") from None

_log = logging.getLogger("retold.http")

_LATER = {"Retry-After": "1"}

ErrorHandler = Callable[[Request, Any], Coroutine[Any, Any, Response]]


def error_handlers() -> dict[int | type[Exception], ErrorHandler]:
    """What to pass to FastAPI as `exception_handlers`.

    404 NotFound, 409 EntityExists, 422 KeyReused; VersionConflict is 412 for a request that said
    If-Match, otherwise 409. 503 with Retry-After where the database is away or too busy; 504
    OutcomeUnknown: only a request with an idempotency key may be sent again then. Other errors of
    retold's are the program's: they are left to the framework, which answers 500.
    """
    return {
        NotFound: _not_found,
        EntityExists: _exists,
        VersionConflict: _conflict,
        KeyReused: _key_reused,
        StoreUnavailable: _unavailable,
        StoreBusy: _unavailable,
        TransactionRolledBack: _unavailable,
        OutcomeUnknown: _unknown,
    }


def etag(entity: Any) -> str:
    """The strong entity tag of an Entity or of what `create` or `update` returned: its version."""
    return f'"{entity.version}"'


def _version(if_match: Annotated[str | None, Header()] = None) -> str:
    if if_match is None:
        raise HTTPException(428, "say in If-Match which version you have seen: its ETag")
    if len(if_match) < 3 or if_match[0] != '"' or if_match.find('"', 1) != len(if_match) - 1:
        raise HTTPException(400, "If-Match is to be one strong entity tag, as an ETag had it")
    return if_match[1:-1]


IfMatch = Annotated[str, Depends(_version)]
"""The version that the request's If-Match names, for `expecting`. 428 where there is none, 400
where it is not one entity tag."""


async def _not_found(request: Request, error: NotFound) -> JSONResponse:
    return _problem(404, "not found", error)


async def _exists(request: Request, error: EntityExists) -> JSONResponse:
    return _problem(409, "exists already", error)


async def _conflict(request: Request, error: VersionConflict) -> JSONResponse:
    if "if-match" in request.headers:
        return _problem(412, "was changed since that version", error)
    return _problem(409, "is being changed by others", error, _LATER)


async def _key_reused(request: Request, error: KeyReused) -> JSONResponse:
    return _problem(422, "the key was used for something else", error)


async def _unavailable(request: Request, error: RetoldError) -> JSONResponse:
    _log.warning("%s %s: %s", request.method, request.url.path, error)
    return _problem(503, "the store is not available", error, _LATER)


async def _unknown(request: Request, error: OutcomeUnknown) -> JSONResponse:
    _log.warning("%s %s: %s", request.method, request.url.path, error)
    return _problem(504, "nobody knows whether the change was made", error)


def _problem(
    status: int, title: str, error: RetoldError, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    found = {
        name: vars(error)[name] for name in ("entity_type", "entity_id") if name in vars(error)
    }
    return JSONResponse(
        {"status": status, "title": title, **found},
        status,
        headers,
        media_type="application/problem+json",
    )
