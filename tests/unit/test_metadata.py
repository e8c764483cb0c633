from __future__ import annotations

import asyncio
from typing import Any

import pytest

from retold import metadata
from retold.errors import InvalidValue
from retold.metadata import MAX_BYTES, current_metadata, decode_metadata, encode_metadata


def test_blocks_nest_and_the_inner_one_wins() -> None:
    assert current_metadata() == {}
    with metadata(user="ann", correlation_id="c"):
        with metadata(user="bob"):
            assert current_metadata() == {"user": "bob", "correlation_id": "c"}
        assert current_metadata() == {"user": "ann", "correlation_id": "c"}
    assert current_metadata() == {}


def test_a_block_ends_with_an_error_too() -> None:
    with pytest.raises(KeyError), metadata(user="ann"):
        raise KeyError
    assert current_metadata() == {}


def test_tasks_do_not_see_one_another_s() -> None:
    async def work(user: str) -> str:
        with metadata(user=user):
            await asyncio.sleep(0)
            return current_metadata()["user"]

    async def both() -> list[str]:
        return list(await asyncio.gather(work("ann"), work("bob")))

    assert asyncio.run(both()) == ["ann", "bob"]


@pytest.mark.parametrize("value", [1, None, b"x", ["a"]])
def test_values_are_text(value: Any) -> None:
    with pytest.raises(InvalidValue, match=r"metadata 'n' is .*text only"), metadata(n=value):
        pass


def test_keys_of_retold_are_reserved() -> None:
    with pytest.raises(InvalidValue, match="retold_ are reserved"), metadata(retold_time="1"):
        pass


def test_what_does_not_fit_the_column_is_refused() -> None:
    with metadata(note="x" * (MAX_BYTES - 11)):
        pass
    with pytest.raises(InvalidValue, match="64001 bytes of JSON"), metadata(note="x" * 63_990):
        pass
    with metadata(one="x" * 40_000), pytest.raises(InvalidValue), metadata(two="x" * 40_000):
        pass
    with pytest.raises(InvalidValue, match="not valid Unicode"), metadata(note="\ud800"):
        pass


def test_the_column() -> None:
    assert encode_metadata({}) is None
    assert decode_metadata(None) == decode_metadata("") == {}
    assert decode_metadata(encode_metadata({"a": "ä"})) == {"a": "ä"}


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ('{"n":1,"s":"x"}', {"n": "1", "s": "x"}),
        ('{"n":{"a":null}}', {"n": "{'a': None}"}),
        ("[1]", {"metadata": "[1]"}),
        ("not JSON", {"metadata": "not JSON"}),
    ],
)
def test_what_another_writer_left_there_is_read_as_text(text: str, read: dict[str, str]) -> None:
    assert decode_metadata(text) == read
