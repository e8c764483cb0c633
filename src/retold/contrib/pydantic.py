"""Pydantic models as values in events and states.

    store = EventStore(url, codec=pydantic_codec())

A model is kept as its own JSON and validated whenever it is read. It is validated when it is
written too: a model changed or constructed behind its constraints never gets into the store.
"""

from __future__ import annotations

import msgspec

from retold.codecs import Codec, holds_naive
from retold.errors import MissingExtra

try:
    from pydantic import BaseModel, ValidationError
except ImportError:
    raise MissingExtra("retold.contrib.pydantic", "pydantic", "pydantic") from None


def pydantic_codec(codec: Codec | None = None) -> Codec:
    """The codec (a new one by default), taught every pydantic model.

    The JSON names of a model's fields are its aliases, where it has any. What the JSON leaves out
    (excluded fields, private attributes, masked secrets) is refused unless it equals the default.
    """
    return (codec or Codec()).add_family(BaseModel, encode=_encode, decode=_decode)


def _encode(model: BaseModel) -> object:
    # As JSON a datetime would be a text like any other.
    if holds_naive(model.model_dump(round_trip=True, warnings=False)):
        raise ValueError("it holds a datetime without a time zone")
    # Without warnings: a value of a wrong type fails when it is validated.
    return model.model_dump(mode="json", by_alias=True, round_trip=True, warnings=False)


def _decode(cls: type[BaseModel], kept: object) -> BaseModel:
    try:
        # Validated as JSON, in which even a strict model takes a date from its text.
        return cls.model_validate_json(msgspec.json.encode(kept))
    except ValidationError as error:
        raise ValueError(_without_values(cls, error)) from None


def _without_values(cls: type[BaseModel], error: ValidationError) -> str:
    """What is wrong and where, but not with which value: that may be personal."""
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    told = [f"{'.'.join(map(str, found['loc']))}: {found['msg']}" for found in problems]
    return f"{cls.__qualname__} is not valid ({'; '.join(told)})"
