"""Stored names and the classes that own them.

A stored name outlives every deployment, so two classes must never share one: the second would read
the first one's history.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Generic, TypeVar

from retold.errors import DefinitionError

if TYPE_CHECKING:
    from collections.abc import Iterator

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


def full_name(cls: object) -> str:
    """Module and qualified name of a class or function."""
    return f"{cls.__module__}.{getattr(cls, '__qualname__', cls)}"


class Names(Generic[T]):
    """One name space: stored name → the class that reads it, or the function that upcasts it."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._classes: dict[str, type[T]] = {}
        self._owners: dict[str, str] = {}

    def check_free(self, name: str, owner: str) -> None:
        """Raises DefinitionError when another class or function has the name.

        A class of the same module and qualified name is the same class defined again (a reload, a
        notebook cell, a test function run twice) and replaces the old one.
        """
        other = self._owners.get(name, owner)
        if other != owner:
            raise DefinitionError(
                f"{owner} and {other} both claim the {self._kind} name {name!r}: one of them would "
                "read what the other one stored. Give one of them another name"
            )

    def claim(self, name: str, cls: type[T]) -> None:
        """Make a class the one that reads a name. Raises DefinitionError as check_free does."""
        self.claim_without_class(name, full_name(cls))
        self._classes[name] = cls

    def claim_without_class(self, name: str, owner: str) -> None:
        """The same for a function: no class reads this name any more."""
        self.check_free(name, owner)
        self._owners[name] = owner

    def get(self, name: str) -> type[T] | None:
        return self._classes.get(name)

    def __iter__(self) -> Iterator[type[T]]:
        return iter(tuple(dict.fromkeys(self._classes.values())))
