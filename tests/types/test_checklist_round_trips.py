"""Checklists, scores and tasks through JSON and YAML lose nothing (hypothesis)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from cm2_agent.types.checklist import Checklist
from cm2_agent.types.checklist_item import Item
from cm2_agent.types.checklist_yaml import dump_checklist, read_checklist
from cm2_agent.types.score import Score, TurnScore, Verdict
from cm2_agent.types.task import Task, load_tasks, save_tasks
from cm2_agent.types.yaml_source import read_yaml, write_yaml

names = st.text("abcXYZ019_.:-", min_size=1, max_size=8)
words = st.text(max_size=20)
texts = st.text(min_size=1, max_size=20)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(10**12), 10**12)
    | st.floats(allow_nan=False, allow_infinity=False)
    | words
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3), max_leaves=6
)
checks = st.one_of(
    st.builds(lambda tool, wanted: {"called": tool, "with": wanted}, texts, st.dictionaries(words, values, max_size=2)),
    st.builds(lambda tools: {"never_called": tools}, st.lists(texts, min_size=1, max_size=2)),
    st.builds(lambda most: {"at_most": most}, st.integers(0, 9)),
    st.just({"no_tool_error": True}),
    st.just({"replied": True}),
    names,
)
sources = st.sampled_from(["user", "tool.content", "assistant.reply"])
evidence = st.fixed_dictionaries(
    {"turn": st.integers(0, 3), "step": st.integers(0, 9), "from": sources, "snippet": words}
)


questions = st.builds("Is it {}?".format, words)
"""No name of a function."""


@st.composite
def items(draw: st.DrawFn, id: str, earlier: list[Item]) -> Item:
    check = draw(st.none() | checks)
    decided = isinstance(check, dict) and not {"called", "replied"} & set(check)
    turn: Any = draw(st.sampled_from([0, 1, "each", "trace"]))
    mates = [
        one.id for one in earlier if one.turn == turn and one.kind == "reach" and one.focus_on is None and one.is_judged
    ]
    when = draw(st.none() | st.just("applies") | questions | st.just({"user_matches": "x"}))
    if draw(st.booleans()) and mates:
        return Item(
            id,
            any_of=draw(st.lists(st.sampled_from(mates), min_size=1, unique=True)),
            turn=turn,
            when=when,
            otherwise=None if when is None else draw(st.sampled_from([None, "unpaid", "paid"])),
        )
    return Item(
        id,
        draw(texts if check is None else st.none() | words),
        check=check,
        turn=turn,
        kind=None if decided else draw(st.sampled_from([None, "reach", "hold", "avoid"])),
        pass_condition=draw(st.none() | words),
        failure_examples=draw(st.lists(words, max_size=2)),
        focus_on=draw(st.sampled_from([None, "assistant.reasoning", "assistant.tool_calls"])),
        evidence=draw(st.lists(evidence, max_size=2)),
        required_for_next_turn=turn != "trace" and draw(st.booleans()),
        depends_on=[]
        if isinstance(check, dict) or not mates
        else [
            {"item": name, "soft": soft} if soft else name
            for name in draw(st.lists(st.sampled_from(mates), max_size=2, unique=True))
            for soft in (draw(st.none() | st.floats(0.001, 0.999)),)
        ],
        when=when,
        otherwise=None if when is None else draw(st.sampled_from([None, "unpaid", "paid"])),
        weight=draw(st.floats(0.001, 1e6)),
        facet=draw(st.sampled_from([None, "context", "tool_usage"])),
        level=draw(st.sampled_from([None, "task", "parameter"])),
        part_of=draw(st.sampled_from([None, *(one.id for one in earlier)])),
    )


@st.composite
def checklists(draw: st.DrawFn) -> Checklist:
    made: list[Item] = []
    for id in draw(st.lists(names, min_size=1, max_size=4, unique=True)):
        made.append(draw(items(id, made)))
    return Checklist(*made, name=draw(texts), version=draw(st.integers(1, 99)))


@given(checklists())
def test_a_checklist_through_json(checklist: Checklist) -> None:
    again = Checklist.from_json(json.loads(json.dumps(checklist.to_json())))
    assert again == checklist
    assert again.hash == checklist.hash


@given(checklists())
def test_a_checklist_through_yaml(checklist: Checklist) -> None:
    again = read_checklist(dump_checklist(checklist))
    assert again == checklist
    assert again.hash == checklist.hash


@given(st.dictionaries(words, values, max_size=4))
def test_yaml_loses_nothing(data: dict[str, Any]) -> None:
    assert json.dumps(read_yaml(write_yaml(data)).data, sort_keys=True) == json.dumps(data, sort_keys=True)


verdicts = st.builds(
    Verdict,
    item=names,
    value=st.none() | st.booleans(),
    weight=st.floats(0, 1),
    step=st.none() | st.integers(1, 9),
    paid=st.none() | st.booleans(),
    depends_on=st.lists(st.integers(0, 5), max_size=3).map(tuple),
    reason=st.none() | words,
    cause=st.sampled_from([None, "infrastructure", "content"]),
    explanation=st.none() | words,
    evidence=st.lists(st.dictionaries(words, scalars, max_size=3), max_size=2).map(tuple),
)
turn_scores = st.builds(
    TurnScore,
    turn=st.none() | st.integers(0, 9),
    reached=st.booleans(),
    steps=st.integers(0, 9),
    reward=st.none() | st.floats(0, 1),
    verdicts=st.lists(verdicts, max_size=3).map(tuple),
)
scores = st.builds(
    Score,
    trace_id=names,
    reward_version=names,
    reward=st.none() | st.floats(0, 1),
    checklist=st.none() | names,
    turns=st.lists(turn_scores, max_size=3).map(tuple),
    runs=st.integers(1, 9),
    null_reason=st.none() | words,
    components=st.dictionaries(names, st.none() | st.floats(0, 1), max_size=2),
)


@given(scores)
def test_a_score_through_json(score: Score) -> None:
    assert Score.from_json(json.loads(json.dumps(score.to_json()))) == score


tasks = st.builds(
    Task,
    id=names,
    version=st.integers(1, 9),
    system=st.none() | words,
    turns=st.lists(words, max_size=3).map(tuple),
    persona=st.none() | words,
    max_turns=st.none() | st.integers(1, 9),
    tools=st.lists(
        st.fixed_dictionaries(
            {"name": names, "description": words, "parameters": st.dictionaries(words, values, max_size=2)}
        ),
        max_size=2,
        unique_by=lambda tool: str(tool["name"]),
    ).map(tuple),
    recorded=st.lists(
        st.fixed_dictionaries(
            {"name": names, "arguments": st.dictionaries(words, values, max_size=2), "result": values}
        ),
        max_size=2,
    ).map(tuple),
    checklist=st.none() | checklists().map(lambda one: one.to_json()),
    entities=st.lists(words, max_size=2).map(tuple),
    outcome=values,
    metadata=st.dictionaries(words, values, max_size=2),
)


@given(st.lists(tasks, min_size=1, max_size=3, unique_by=lambda task: task.id))
def test_tasks_through_their_file(tmp_path: Path, made: list[Task]) -> None:
    path = save_tasks(made, tmp_path / "tasks.jsonl")
    again = load_tasks(path)
    assert [task.to_json() for task in again] == [task.to_json() for task in made]
    for old, new in zip(made, again, strict=True):
        old_list, new_list = old.own_checklist(), new.own_checklist()
        assert (old_list is None) == (new_list is None)
        assert old_list is None or new_list is None or old_list.hash == new_list.hash
