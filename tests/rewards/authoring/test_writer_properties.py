"""Laws of labelling: whatever a model writes, what is kept is paid in full on the reference and fails on each of its
corruptions."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cm2_agent.rewards.authoring.perturbation import corruptions
from cm2_agent.rewards.scoring.scorer import ChecklistScorer
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.checklist_item import Item
from cm2_agent.types.messages import Message
from tests.fuzzing import examples
from tests.rewards.authoring.writing import Data, at, label
from tests.rewards.talk import call, say, trace, turn

TOOL = st.sampled_from(["get", "put", "none"])
WITH = st.dictionaries(
    st.sampled_from(["a", "b"]), st.sampled_from([1, "x", {"from": "user"}, {"from": "tool"}]), max_size=2
)
CHECK = st.one_of(
    st.builds(lambda tool, wanted: {"called": tool, "with": wanted}, TOOL, WITH),
    st.builds(lambda tool, wanted: {"called": tool, "with": wanted, "succeeded": True}, TOOL, WITH),
    st.builds(lambda tool: {"never_called": [tool]}, TOOL),
    st.builds(lambda tool, most: {"at_most": {tool: most}}, TOOL, st.integers(0, 2)),
    st.builds(
        lambda tool, wanted: {"only_called": [{"called": tool, "with": wanted}], "among": ["get", "put"]}, TOOL, WITH
    ),
    st.sampled_from(
        [
            {"no_tool_error": True},
            {"replied": True},
            {"reply_matches": "x"},
            {"reply_matches": ""},
            {"reply_matches": "1|2"},
        ]
    ),
)
STEP = st.one_of(
    st.builds(
        lambda name, bad, a: call(name, f"{a} x", error=bad, a=a),
        st.sampled_from(["get", "put"]),
        st.booleans(),
        st.integers(1, 2),
    ),
    st.builds(say, st.sampled_from(["x", "1", "hello"])),
)
TURNS = st.lists(st.lists(STEP, min_size=1, max_size=3), min_size=1, max_size=2)
CALLED = st.builds(lambda tool, a: {"called": tool, **({"with": {"a": a}} if a else {})}, TOOL, st.integers(0, 2))
DRAWN = st.tuples(st.one_of(CALLED, CALLED, CHECK), st.sampled_from([0, 0, 0, 1]), st.booleans(), st.integers(0, 2))


@example([[call("get"), call("put"), say("x")]], [({"called": "put"}, 0, False, 1), ({"called": "get"}, 0, True, 1)])
@given(TURNS, st.lists(DRAWN, min_size=1, max_size=6))
@settings(max_examples=examples(100))
async def test_whatever_is_written_the_reference_is_paid_in_full_and_each_corruption_fails(
    turns: list[list[list[Message]]], drawn: list[tuple[Data, int, bool, int]]
) -> None:
    reference = trace(*(turn("hello 1 x", *steps) for steps in turns))
    items = [
        {
            "id": f"i{n}",
            "question": f"Is it so, number {n}?",
            "turn": place,
            "check": check,
            "evidence": at(0, 0, "user", "hello"),
            "depends_on": [f"i{n - 1}"] if waits and n else [],
            "weight": weight,
        }
        for n, (check, place, waits, weight) in enumerate(drawn)
    ]
    found, _ = await label(items, items, reference=reference)
    if found.checklist is None:
        assert "no item was sound" in str(found.reason)
        return
    score = ChecklistScorer(found.checklist).score_sync(reference)
    assert score.reward == pytest.approx(1.0)
    assert set(found.checklist.by_id) | set(found.dropped) == {one["id"] for one in items}
    for item in found.checklist:
        wrong = corruptions(item, reference)
        assert bool(wrong) != (item.id in found.unchecked)
        for one in wrong:
            alone = Checklist(Item(item.id, check=item.check, turn=item.turn), name="alone")
            assert [verdict.value for verdict in ChecklistScorer(alone).score_sync(one.trace).verdicts] == [False], (
                one.what
            )
