"""What was said between two runs of a trace, where nobody recorded it: it stands in the history of the later one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cm2_agent.store import SQLStore
from cm2_agent.types.run import Branch
from tests.store.test_lineage import ONE, TALK, TWO, lines, run, saved


@pytest.fixture
def store(store_url: str) -> Iterator[SQLStore]:
    with SQLStore(store_url) as opened:
        yield opened


def test_what_was_said_between_two_runs_is_part_of_the_dialogue(store: SQLStore) -> None:
    """A person answers by `update_state`, or a turn runs where nobody records it; then the conversation goes on."""
    elsewhere = ("two", "A person's answer.")
    saved(store, run(*ONE, states="- a b"), run("three", "Third.", states="x y z", history=(*ONE, *elsewhere)))
    said = [*ONE, *elsewhere, "three", "Third."]
    assert lines(store) == {"t": (said, None)}
    trace = store.trace("t")
    assert trace is not None
    assert [step.message.text for step in trace.steps if step.number in trace.unwritten] == ["A person's answer."]
    assert [len(turn.steps) for turn in trace.turns] == [1, 1, 1]
    # It goes on from there, by state and by words, and forks are counted with it.
    saved(store, run("four", "Fourth.", states="z zz", history=tuple(said)))
    assert lines(store)["t"][0] == [*said, "four", "Fourth."]
    saved(store, run("other", "Other.", states="z q", history=tuple(said)))
    assert lines(store)["t~1"] == ([*said, "other", "Other."], Branch(parent="t", messages=6, reason="person"))


def test_a_client_s_turns_that_were_not_recorded_are_in_the_thread_s_dialogue(store: SQLStore) -> None:
    said = [*ONE, "two", "Elsewhere.", "three", "Third."]
    saved(store, run(*ONE), run("three", "Third.", history=(*ONE, "two", "Elsewhere.")))
    assert lines(store) == {"t": (said, None)}
    saved(store, run("four", "Fourth.", history=tuple(said)))
    assert lines(store) == {"t": ([*said, "four", "Fourth."], None)}
    saved(store, run("again", "Again.", history=(*ONE, "two", "Elsewhere.")))
    assert lines(store)["t~1"] == (
        [*ONE, "two", "Elsewhere.", "again", "Again."],
        Branch(parent="t", messages=4, reason="person"),
    )


def test_a_history_that_is_sent_to_a_thread_that_holds_it_is_said_once(store: SQLStore) -> None:
    saved(store, run(*ONE, states="- a b"), run(*TWO, states="x y z", history=(*ONE, *ONE)))
    assert lines(store) == {"t": (TALK, None)}
