"""Events, states and metadata to JSON and back.

Whatever cannot come back equal is refused when it is written: an event that can be appended can be
loaded. msgspec does the work; `Codec().add(…)` teaches it one's own types.
"""

from __future__ import annotations

import re
import weakref
from dataclasses import is_dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar, cast

import msgspec

from retold.errors import DefinitionError, NotStorable

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

_REFUSALS = (
    msgspec.MsgspecError,
    TypeError,
    ValueError,  # UnicodeEncodeError (a lone surrogate) is one
    ArithmeticError,  # a signalling NaN, a datetime beyond the calendar
    RecursionError,
)
# A key and never a value: inside a text its quotes are escaped (docs/adr/0007-personal-data.md).
_RESERVED = b'"$personal":'
_QUOTED = re.compile(r"^(Invalid enum value) .*?( - at `[^`]*`)?$", re.DOTALL)
_JSON_PATH = re.compile(r"`\$\.([^.`\[]+)")


class Codec:
    """JSON for events and states, extensible by type. Configure it before the first use."""

    def __init__(self) -> None:
        self._encodes: dict[type, Callable[[Any], Any]] = {}
        self._decodes: dict[type, Callable[[Any, Any], Any]] = {}
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
        Raises DefinitionError for a type that has a JSON form already (dataclasses, enums, …).
        """
        return self.add_family(cls, encode=encode, decode=lambda _, kept: decode(kept))

    def add_family(
        self, cls: type[T], *, encode: Callable[[T], Any], decode: Callable[[type[T], Any], T]
    ) -> Codec:
        """As `add`, for subclasses that differ: `decode` is also told which of them to make."""
        if not isinstance(msgspec.inspect.type_info(cls), msgspec.inspect.CustomType):
            raise DefinitionError(
                f"{cls.__qualname__} is kept as JSON already, field by field, so these functions "
                "would never be called: leave add(…) out, or make it a plain class"
            )
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
                return decode(cls, value)
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
        cls: type[object] = type(value)
        try:
            encoded = self._encoder.encode(value)
            decoded = self.decoder(cls)(encoded)
            same = decoded == value or equal(decoded, value)
            naive = self._may_hold_datetimes(cls) and self._naive_datetime(value)
        except _REFUSALS as error:
            arithmetic = isinstance(error, ArithmeticError)
            reason = (
                "it holds a number or time beyond all bounds"
                if arithmetic
                else without_value(error)
            )
            own = error.__cause__ if isinstance(error, msgspec.MsgspecError) else error
            raise self._refusal(value, what, reason) from own
        if not same:
            raise self._refusal(value, what, "it is not equal to itself after JSON")
        if naive:
            raise self._refusal(value, what, "it holds a datetime without a time zone")
        if _RESERVED in encoded:
            raise self._refusal(value, what, "the key '$personal' is kept for encrypted values")
        return encoded

    def _refusal(self, value: object, what: str, reason: str) -> NotStorable:
        """The error, which names the field but not its value: that may be personal."""
        field = self._culprit(value, reason)
        return NotStorable(what, f"{reason} (field {field!r})" if field else reason, field)

    def _culprit(self, value: object, reason: str) -> str:
        """The first field that JSON loses, '' where that cannot be told."""
        cls: Any = type(value)
        names: tuple[str, ...] = getattr(cls, "__struct_fields__", ())
        for name in names:
            try:
                self._encoder.encode(getattr(value, name))
                if self._naive_datetime(getattr(value, name)):
                    return name
            except _REFUSALS:
                return name
        try:
            decoded = self.decoder(cls)(self._encoder.encode(value))
        except _REFUSALS:
            path = _JSON_PATH.search(reason)
            json_names: tuple[str, ...] = getattr(cls, "__struct_encode_fields__", ())
            if path is not None and path[1] in json_names:
                return names[json_names.index(path[1])]
            return ""
        for name in names:
            try:
                if not equal(getattr(decoded, name), getattr(value, name)):
                    return name
            except _REFUSALS:
                return name
        return ""

    def _may_hold_datetimes(self, cls: type) -> bool:
        dated = self._dated.get(cls)
        if dated is None:
            dated = _mentions_datetimes(msgspec.inspect.type_info(cls), set())
            self._dated[cls] = dated
        return dated

    def _naive_datetime(self, value: object) -> bool:
        plain = msgspec.to_builtins(value, builtin_types=(datetime,), enc_hook=self._encode_own)
        return holds_naive(plain)


def equal(left: object, right: object) -> bool:
    """Whether two values are equal, where datetimes are equal that name the same instant.

    `==` alone says no to every datetime in the hour when clocks are set back, compared across
    time zones (PEP 495), and JSON keeps the offset, not the zone.
    """
    if left == right:
        return True
    if isinstance(left, datetime) and isinstance(right, datetime):
        if left.tzinfo is None or right.tzinfo is None:
            return False
        return left.astimezone(UTC) == right.astimezone(UTC)
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        ours, theirs = cast("dict[object, object]", left), cast("dict[object, object]", right)
        return ours.keys() == theirs.keys() and all(equal(ours[k], theirs[k]) for k in ours)
    if isinstance(left, (list, tuple)):
        these, those = cast("list[object]", left), cast("list[object]", right)
        return len(these) == len(those) and all(map(equal, these, those))
    names: tuple[str, ...] = ()
    if isinstance(left, msgspec.Struct):
        names = left.__struct_fields__
    elif is_dataclass(left):
        names = tuple(left.__dataclass_fields__)
    return names != () and all(equal(getattr(left, n), getattr(right, n)) for n in names)


def without_value(error: Exception) -> str:
    """What an error says, but for the one value that msgspec quotes: it may be personal."""
    return _QUOTED.sub(r"\1\2", str(error))


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


def holds_naive(value: object) -> bool:
    """Whether a datetime without a time zone lies somewhere in builtin containers."""
    if isinstance(value, datetime):
        return value.tzinfo is None
    if isinstance(value, dict):
        items = cast("dict[object, object]", value)
        return any(holds_naive(k) or holds_naive(v) for k, v in items.items())
    if isinstance(value, (list, tuple, set, frozenset)):
        return any(holds_naive(item) for item in cast("list[object]", value))
    return False
