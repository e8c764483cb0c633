"""Declaring classes whose names and fields a test computes, wrong ones above all."""

from __future__ import annotations

import types
from typing import Any

from retold import Aggregate, Event


def declare_event(
    cls_name: str,
    *,
    module: str = "tests.declared",
    fields: dict[str, Any] | None = None,
    **options: Any,
) -> type[Event]:
    cls: type[Event] = _declare(cls_name, Event, module, fields or {}, {}, options)
    return cls


def declare_aggregate(
    cls_name: str,
    *,
    module: str = "tests.declared",
    fields: dict[str, Any] | None = None,
    body: dict[str, Any] | None = None,
    **options: Any,
) -> type[Aggregate]:
    cls: type[Aggregate] = _declare(cls_name, Aggregate, module, fields or {}, body or {}, options)
    return cls


def _declare(
    cls_name: str,
    base: type,
    module: str,
    fields: dict[str, Any],
    body: dict[str, Any],
    options: dict[str, Any],
) -> Any:
    def fill(namespace: dict[str, Any]) -> None:
        namespace.update(__module__=module, __annotations__=fields, **body)

    return types.new_class(cls_name, (base,), options, fill)
