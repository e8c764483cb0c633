"""The key that tells an encrypted value from a plain one cannot come from an application."""

from __future__ import annotations

from typing import Any

import pytest

from retold import Codec, Event
from retold.errors import NotStorable


class Noted(Event, name="test_reserved_key.Noted"):
    note: Any


@pytest.mark.parametrize("note", [{"$personal": 1}, [{"deep": {"$personal": {}}}]])
def test_the_key_is_refused(note: object) -> None:
    with pytest.raises(NotStorable, match=r"\$personal"):
        Codec().encode_checked(Noted(note), "Noted")


@pytest.mark.parametrize("note", ["$personal", '{"$personal": 1}', '"$personal":', ["$personal"]])
def test_a_text_may_mention_it(note: object) -> None:
    assert Codec().encode_checked(Noted(note), "Noted")
