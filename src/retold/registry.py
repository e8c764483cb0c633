"""Stored names and the classes that own them.

A stored name outlives every deployment, so two classes must never share one: the second would read
the first one's history.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Generic, TypeVar

from retold.errors import DefinitionError

T = TypeVar("T")

_NAME = re.compile(r"[A-Za-z0-9._$-]{1,200}")


def check_name(kind: str, name: object) -> str:
    """A stored name, or DefinitionError. Names become Kafka topics, hence the alphabet."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise DefinitionError(
            f"{name!r} cannot name {kind}: use 1 to 200 letters, digits, dots, dashes, underscores "
            "or dollar signs"
        )
    return name


def full_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


class Names(Generic[T]):
    """One name space: stored name → class."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._classes: dict[str, type[T]] = {}

    def claim(self, name: str, cls: type[T]) -> None:
        """Raises DefinitionError when another class has the name.

        A class of the same module and qualified name is the same class defined again (a reload, a
        notebook cell, a test function run twice) and replaces the old one.
        """
        owner = self._classes.get(name)
        if owner is not None and full_name(owner) != full_name(cls):
            raise DefinitionError(
                f"{full_name(cls)} and {full_name(owner)} are both stored as {name!r}. Give one of "
                "them another name"
            )
        self._classes[name] = cls

    def get(self, name: str) -> type[T] | None:
        return self._classes.get(name)

    def __iter__(self) -> Iterator[type[T]]:
        return iter(tuple(self._classes.values()))
