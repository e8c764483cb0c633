"""Positions in Kafka: what is written beside an offset, and where a member must not save any more."""

from __future__ import annotations

import pytest

from retold.brokers.kafka_places import (
    Share,
    committed_as,
    place,
    read_committed,
    read_generation,
)


@pytest.mark.parametrize("generation", [None, 1, 12])
@pytest.mark.parametrize("handled", [0, 3])
def test_a_position_and_its_generation_are_read_as_they_were_committed(
    handled: int, generation: int | None
) -> None:
    offset, note = committed_as(place(7, handled), generation)
    assert offset == 7
    assert read_committed(offset, note) == place(7, handled)
    assert read_generation(note) == generation


@pytest.mark.parametrize("note", [None, "", "3", "3:4", "somebody's", "retold:", "retold:x:y"])
def test_a_note_of_somebody_else_says_nothing(note: str | None) -> None:
    assert read_committed(7, note) == place(7)
    assert read_generation(note) is None


def test_no_position_is_saved_behind_the_first_event_that_only_others_handle() -> None:
    share = Share(("t", 0), 0, place(9), place(9))
    for offset in (2, 4, 6):
        share.leave_out("Closed", place(offset))
    share.stop_before("Closed", cut=place(1))
    assert share.behind(place(9)) == place(2)
    assert not share.passed


def test_where_only_the_last_one_is_known_to_be_behind_the_cut_it_stops_at_the_cut() -> None:
    share = Share(("t", 0), 0, place(9), place(9))
    for offset in (2, 6):
        share.leave_out("Closed", place(offset))
    share.stop_before("Closed", cut=place(4))
    assert share.behind(place(9)) == place(4)


def test_what_was_passed_before_the_cut_stops_nobody() -> None:
    share = Share(("t", 0), 0, place(9), place(9))
    share.leave_out("Closed", place(2))
    share.stop_before("Closed", cut=place(3))
    assert share.behind(place(9)) == place(9)


def test_who_got_a_partition_behind_the_cut_saves_nothing_more() -> None:
    """The member before may have passed some."""
    share = Share(("t", 0), place(5), place(9), place(9), until=place(5))
    share.stop_before("Closed", cut=place(4))
    assert share.behind(place(9)) < share.saved
