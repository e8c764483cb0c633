from __future__ import annotations

import pytest

from retold.errors import DefinitionError
from retold.registry import Names, check_name, full_name


class First:
    pass


class Second:
    pass


@pytest.fixture
def names() -> Names[object]:
    return Names("event")


def test_a_name_finds_the_class_that_claimed_it(names: Names[object]) -> None:
    names.claim("a", First)
    assert names.get("a") is First
    assert names.get("b") is None


def test_a_second_claim_names_both_classes_and_changes_nothing(names: Names[object]) -> None:
    names.claim("a", First)
    with pytest.raises(DefinitionError) as caught:
        names.claim("a", Second)
    for word in ("test_registry.First", "test_registry.Second", "event name 'a'"):
        assert word in str(caught.value)
    assert names.get("a") is First


def test_a_class_defined_again_replaces_itself(names: Names[object]) -> None:
    def define() -> type[object]:
        class Again:
            pass

        return Again

    old, new = define(), define()
    names.claim("a", old)
    names.claim("a", new)
    assert names.get("a") is new
    assert list(names) == [new]


def test_a_function_takes_a_name_that_no_class_reads(names: Names[object]) -> None:
    names.claim_without_class("a", "module.function")
    assert names.get("a") is None
    with pytest.raises(DefinitionError, match=r"module\.function"):
        names.claim("a", First)


def test_a_class_with_two_names_is_listed_once(names: Names[object]) -> None:
    names.claim("a", First)
    names.claim("b", Second)
    names.claim("c", First)
    assert list(names) == [First, Second]


def test_classes_may_be_declared_while_they_are_listed(names: Names[object]) -> None:
    names.claim("a", First)
    for _ in names:
        names.claim("b", Second)
    assert list(names) == [First, Second]


def test_a_name_is_checked_as_a_whole() -> None:
    assert check_name("an event", "a.B-c_0$") == "a.B-c_0$"
    for wrong in ("a\n", "a b", "", None):
        with pytest.raises(DefinitionError, match="cannot name an event: use 1 to 200 letters"):
            check_name("an event", wrong)


def test_a_full_name_is_module_and_qualified_name() -> None:
    assert full_name(First) == f"{__name__}.First"
    assert full_name(check_name) == "retold.registry.check_name"
