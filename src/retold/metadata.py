"""Metadata: text keys and values written with every event of a block.

`with metadata(user="ann", correlation_id=request_id): accounts.update(…)`. Blocks nest; the inner
one wins. Deliveries set `correlation_id` and `causation_id` for what their handlers write.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import msgspec

from retold.errors import InvalidValue

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

MAX_BYTES = 64_000
"""The most metadata one event may carry, in bytes of JSON."""

TIME = "retold_time"
"""Milliseconds since the epoch at which an event was written, where its id says otherwise."""

_current: ContextVar[Mapping[str, str]] = ContextVar("retold_metadata")
_NONE: Mapping[str, str] = MappingProxyType({})
_decoder = msgspec.json.Decoder(dict[str, str], strict=False)


@contextmanager
def metadata(**values: str) -> Generator[None]:
    """Every event written inside the block carries these keys.

    Raises InvalidValue for a value that is not text, for keys retold keeps for itself
    (`retold_…`) and for more than 64,000 bytes in all.
    """
    for key, value in values.items():
        if not isinstance(value, str):
            raise InvalidValue(
                f"metadata {key!r} is {type(value).__name__}; metadata holds text only, so pass "
                "str(…) of it"
            )
        if key.startswith("retold_"):
            raise InvalidValue(f"metadata {key!r}: keys that begin with retold_ are reserved")
    merged = {**_current.get(_NONE), **values}
    encode_metadata(merged)
    token = _current.set(merged)
    try:
        yield
    finally:
        _current.reset(token)


class CausedBy:
    """A block whose events name the event that caused them; `metadata` without its checks."""

    __slots__ = ("_token", "_values")

    def __init__(self, recorded_id: str, recorded: Mapping[str, str]) -> None:
        correlation = recorded.get("correlation_id", recorded_id)
        self._values = {"correlation_id": correlation, "causation_id": recorded_id}

    def __enter__(self) -> None:
        around = _current.get(_NONE)
        self._token = _current.set({**around, **self._values} if around else self._values)

    def __exit__(self, *error: object) -> None:
        _current.reset(self._token)


def current_metadata() -> Mapping[str, str]:
    return _current.get(_NONE)


def encode_metadata(values: Mapping[str, str]) -> str | None:
    """The column's text, None for no metadata."""
    if not values:
        return None
    try:
        encoded = msgspec.json.encode(values)
    except UnicodeEncodeError as error:
        raise InvalidValue(f"metadata is not valid Unicode: {error.reason}") from None
    if len(encoded) > MAX_BYTES:
        raise InvalidValue(
            f"metadata is {len(encoded)} bytes of JSON, more than {MAX_BYTES}: keep it to ids and "
            "short notes, and put content into the event"
        )
    return encoded.decode()


def decode_metadata(text: str | None) -> dict[str, str]:
    """Metadata of a row. Values that are no text (another writer's) come as their text."""
    if not text:
        return {}
    try:
        return _decoder.decode(text)
    except msgspec.MsgspecError:
        return _foreign(text)


def _foreign(text: str) -> dict[str, str]:
    try:
        found = msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.MsgspecError:
        return {"metadata": text}
    return {key: value if isinstance(value, str) else str(value) for key, value in found.items()}
