"""Events, states and metadata to JSON and back.

Whatever cannot come back equal is refused when it is written: an event that can be appended can be
loaded. msgspec does the work; `Codec().add(…)` teaches it one's own types.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from datetime import datetime
from typing import Any, TypeVar, cast

import msgspec

from retold.errors import NotStorable

T = TypeVar("T")

_REFUSALS = (
    msgspec.MsgspecError,
    TypeError,
    ValueError,  # UnicodeEncodeError (a lone surrogate) is one
    OverflowError,
    RecursionError,
)


class Codec:
    """JSON for events and states, extensible by type. Configure it before the first use."""

    def __init__(self) -> None:
        self._encodes: dict[type, Callable[[Any], Any]] = {}
        self._decodes: dict[type, Callable[[Any], Any]] = {}
        self._encoder = msgspec.json.Encoder(enc_hook=self._encode_own)
        # Classes come and go in tests and notebooks; a decoder goes with its class.
        self._decoders: weakref.WeakKeyDictionary[type, msgspec.json.Decoder[Any]] = (
            weakref.WeakKeyDictionary()
        )
        self._dated: weakref.WeakKeyDictionary[type, bool] = weakref.WeakKeyDictionary()

    def add(self, cls: type[T], *, encode: Callable[[T], Any], decode: Callable[[Any], T]) -> Codec:
        """Keep values of `cls` (and its subclasses) as what `encode` makes of them.

        `encode` returns anything JSON has (or another type the codec knows), `decode` gets that
        back. Values are compared with `==` after a round trip, so the type needs an `__eq__`.
        """
        self._encodes[cls] = encode
        self._decodes[cls] = decode
        return self

    def _encode_own(self, value: Any) -> Any:
        for cls in type(value).__mro__:
            encode = self._encodes.get(cls)
            if encode is not None:
                return encode(value)
        raise TypeError(f"no JSON form is known for {type(value).__qualname__}")

    def _decode_own(self, cls: type, value: Any) -> Any:
        for known in cls.__mro__:
            decode = self._decodes.get(known)
            if decode is not None:
                return decode(value)
        raise TypeError(f"no JSON form is known for {cls.__qualname__}")

    def encode(self, value: object) -> bytes:
        """JSON of a value, unchecked."""
        return self._encoder.encode(value)

    def decoder(self, cls: type[T]) -> Callable[[str | bytes], T]:
        decoder = self._decoders.get(cls)
        if decoder is None:
            decoder = msgspec.json.Decoder(cls, dec_hook=self._decode_own)
            self._decoders[cls] = decoder
        return cast("Callable[[str | bytes], T]", decoder.decode)

    def encode_checked(self, value: object, what: str) -> bytes:
        """JSON of a value that is certain to decode to an equal one.

        Raises NotStorable for what JSON loses: NaN and infinities, lone surrogates, naive
        datetimes, a value of another type than its field declares.
        """
        cls: type = type(value)
        try:
            encoded = self._encoder.encode(value)
            same = self.decoder(cls)(encoded) == value
            naive = self._may_hold_datetimes(cls) and self._naive_datetime(value)
        except _REFUSALS as error:
            raise NotStorable(what, str(error)) from error
        if not same:
            raise NotStorable(what, f"it is not equal to itself after JSON{self._culprit(value)}")
        if naive:
            raise NotStorable(what, "it holds a datetime without a time zone")
        return encoded

    def _culprit(self, value: object) -> str:
        """The first field that a round trip changes; fields only, values may be personal."""
        fields: tuple[str, ...] = getattr(type(value), "__struct_fields__", ())
        decoded = self.decoder(type(value))(self._encoder.encode(value))
        for name in fields:
            if getattr(decoded, name) != getattr(value, name):
                return f" (field {name!r})"
        return ""

    def _may_hold_datetimes(self, cls: type) -> bool:
        dated = self._dated.get(cls)
        if dated is None:
            dated = _mentions_datetimes(msgspec.inspect.type_info(cls), set())
            self._dated[cls] = dated
        return dated

    def _naive_datetime(self, value: object) -> bool:
        plain = msgspec.to_builtins(value, builtin_types=(datetime,), enc_hook=self._encode_own)
        return _holds_naive(plain)


def _mentions_datetimes(info: object, seen: set[int]) -> bool:
    """Whether a value of this type could hold a datetime; unsure counts as yes."""
    if id(info) in seen:
        return False
    seen.add(id(info))
    if isinstance(
        info,
        (msgspec.inspect.DateTimeType, msgspec.inspect.AnyType, msgspec.inspect.CustomType),
    ):
        return True
    if not isinstance(info, (msgspec.inspect.Type, msgspec.inspect.Field)):
        return False
    for name in info.__struct_fields__:
        part = getattr(info, name)
        parts = cast("tuple[object, ...]", part) if isinstance(part, tuple) else (part,)
        if any(_mentions_datetimes(p, seen) for p in parts):
            return True
    return False


def _holds_naive(value: object) -> bool:
    if isinstance(value, datetime):
        return value.tzinfo is None
    if isinstance(value, dict):
        items = cast("dict[object, object]", value)
        return any(_holds_naive(k) or _holds_naive(v) for k, v in items.items())
    if isinstance(value, (list, tuple, set, frozenset)):
        return any(_holds_naive(item) for item in cast("list[object]", value))
    return False
