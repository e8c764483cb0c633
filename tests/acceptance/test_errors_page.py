"""docs/errors.md has every error, in the words of its class."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from retold import errors
from retold.errors import RetoldError

_PAGE = (Path(__file__).parents[2] / "docs" / "errors.md").read_text("utf-8")
_SECTIONS = dict(re.findall(r"^### (\w+)\n(.*?)(?=^##|\Z)", _PAGE, re.MULTILINE | re.DOTALL))
_CLASSES: dict[str, type[RetoldError]] = {
    name: cls
    for name, cls in vars(errors).items()
    if inspect.isclass(cls) and issubclass(cls, RetoldError) and cls is not RetoldError
}


def test_the_page_has_each_error_once_and_no_other() -> None:
    assert list(_SECTIONS) == list(_CLASSES)
    assert _PAGE.count("\n### ") == len(_CLASSES)


@pytest.mark.parametrize("name", list(_CLASSES))
def test_a_section_says_what_the_class_says(name: str) -> None:
    cls, section = _CLASSES[name], _SECTIONS[name]
    quoted = " ".join(line[2:] for line in section.splitlines() if line.startswith("> "))
    message = " ".join(inspect.cleandoc(cls.__doc__ or "").split())
    assert quoted == ("" if message == "{problem}" else re.sub(r"{(\w+)(!r)?}", r"*\1*", message))
    assert ("**Retriable.**" in section) == cls.retriable
    base = cls.__bases__[0]
    assert (f"A kind of [{base.__name__}]" in section) == (base is not RetoldError)
    others = [other.__name__ for other in cls.__bases__[1:]]
    assert re.findall(r"Also an? `(\w+)`", " ".join(section.split())) == others
