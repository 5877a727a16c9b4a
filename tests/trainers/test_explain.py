"""An explained trace: the fate of every recorded token, and the items that earned each step's advantage."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cm2_agent.models.tokenizer import byte_tokenizer
from cm2_agent.runner.rescore import score_traces
from cm2_agent.store import SQLStore
from cm2_agent.trainers.explain import NO_GROUP, OFF_LINE, SAME_WORTH, Explanation, explain
from cm2_agent.trainers.previous_round import PreviousRound
from cm2_agent.trainers.round_credits import RoundCredits
from cm2_agent.trainers.rows import TEXT_ONLY, TOO_LONG, rows_of, untrainable_reason
from cm2_agent.trainers.token_text import token_texts
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.checklist_item import Item
from cm2_agent.types.messages import Message
from cm2_agent.types.run import ModelCall, Run
from cm2_agent.types.run_attributes import ROLLOUT, TASK_ID
from cm2_agent.types.trace import Trace
from tests.fuzzing import examples
from tests.trainers.dialogues import GOOD, call, group, merged, words
from tests.trainers.trees import Tree

TOKENIZER: Any = byte_tokenizer(["hello"])
numbers = itertools.count()


def tokens(found: Explanation, fate: str) -> list[int]:
    return [id for one in found.calls for part in one.parts if part.fate == fate and not part.again for id in part.ids]


def kinds(found: Explanation) -> list[str]:
    return [one.boundary.kind for one in found.calls if one.boundary is not None]


def test_each_token_of_a_row_with_its_fate() -> None:
    two = group([1.0, 0.0])
    found = explain(two.rollouts[0].trace, two)
    assert kinds(found) == ["CLEAN", "CLEAN"]
    assert [(one.turn, one.step, one.row, one.advantage) for one in found.calls] == [
        (0, 0, 0, 0.5),
        (0, 1, 0, 0.5),
        (1, 0, 0, 0.5),
    ]
    assert tokens(found, "masked") == [1, 2, 3, 4, 5]
    assert tokens(found, "trained") == [10, 11, 12, 13, 14, 15]
    assert (found.reward, found.mean, found.size, found.left_out) == (1.0, 0.5, 2, None)
    assert [found.count(fate) for fate in ("trained", "masked", "lost")] == [6, 5, 0]


@pytest.mark.parametrize(
    ("rewards", "reason"),
    [
        ([0.5, 0.5], SAME_WORTH),
        ([1.0, None], "another rollout of its group is pending"),
        ([None, 1.0], "no reward: failure"),
    ],
)
def test_a_rollout_that_is_left_out_is_lost_and_says_why(rewards: list[float | None], reason: str) -> None:
    given = group(rewards)
    found = explain(given.rollouts[0].trace, given)
    assert found.left_out == reason
    assert found.rows == ()
    assert tokens(found, "lost") == [10, 11, 12, 13, 14, 15]
    assert {part.why for one in found.calls for part in one.parts if part.fate == "lost"} == {reason}


def test_other_reasons() -> None:
    trace = merged()
    assert explain(trace).left_out == NO_GROUP
    given = group([1.0, 0.0], [trace, trace])
    assert explain(replace(trace, id="other"), given).left_out == NO_GROUP
    assert explain(trace, given, max_length=10).left_out == TOO_LONG
    assert explain(trace, given, max_length=11).left_out is None
    greedy = replace(trace.runs[1], calls=(replace(trace.runs[1].calls[0], sampling={**GOOD, "temperature": 0}),))
    given = group([1.0, 0.0], [replace(trace, runs=(trace.runs[0], greedy))] * 2)
    assert explain(given.rollouts[0].trace, given).left_out == "temperature 0"
    assert explain(given.rollouts[0].trace, imitation=True).left_out is None


def test_a_sub_agent_s_calls_and_another_agent_s_steps_are_lost() -> None:
    trace = merged()
    first, second = trace.runs[0].calls
    calls = (replace(first, agent="triage"), call([7], [8, 9], None, agent="helper"), replace(second, agent="sales"))
    named = replace(trace, runs=(replace(trace.runs[0], calls=calls), trace.runs[1]))
    given = group([1.0, 0.0], [named, named])
    found = explain(named, given, agent="sales")
    assert tokens(found, "trained") == [12]
    lost = {part.why: list(part.ids) for one in found.calls for part in one.parts if part.fate == "lost"}
    assert lost == {"a step of another agent": [13, 14, 15], OFF_LINE: [8, 9]}
    assert [(one.number, one.agent, one.row) for one in found.calls] == [
        (0, "triage", None),
        (1, "helper", None),
        (2, "sales", 0),
        (3, None, None),
    ]
    assert kinds(found) == ["PARALLEL", "CLEAN", "CLEAN"]
    assert found.calls[2].boundary is not None
    assert found.calls[2].boundary.after == 0  # not the helper's


def test_words_alone_are_rows_for_imitation_by_a_tokenizer() -> None:
    assert explain(words(), imitation=True).left_out == TEXT_ONLY
    found = explain(words(), imitation=True, tokenizer=TOKENIZER)
    assert found.left_out is None
    assert set(kinds(found)) <= {"RETOKENISED"}
    trained = [part for one in found.calls for part in one.parts if part.fate == "trained"]
    assert trained
    for part in trained:
        assert part.texts == token_texts(TOKENIZER, part.ids)
    assert [row.retokenised for row in found.rows] == [True]


def test_each_step_stands_beside_the_items_that_earned_it(tmp_path: Path) -> None:
    """The shares of all items add up to the advantage of every token, and each stands where it was earned."""
    checklist = Checklist(
        Item("sent", check={"reply_matches": "sent"}, turn=0, weight=3),
        Item("polite", check={"reply_matches": "please"}, turn=0),
        Item("bye", check={"reply_matches": "Bye"}, turn=1),
        Item("thanks", check={"reply_matches": "Thanks"}, turn="trace"),
        name="shares",
    )
    said = [("It was sent.", "Bye"), ("No idea, please wait.", "Bye"), ("It was sent.", "So long")]
    with SQLStore(f"sqlite:///{tmp_path}/cm2.db") as store:
        for number, replies in enumerate(said):
            store.save_runs(
                Run(
                    id=f"{number}-{turn}",
                    thread=f"{number}",
                    messages=(Message.of("user", "u"), Message.of("assistant", reply)),
                    calls=(call([1, 2, *[5, 6] * turn], [5], 1),),
                    attributes={TASK_ID: "a", ROLLOUT: number},
                )
                for turn, reply in enumerate(replies)
            )

        async def score() -> None:
            async for _ in score_traces(store.traces(), checklist, store=store):
                pass

        asyncio.run(score())
        given = store.group_of("0")
    assert given is not None
    for rollout in given.rollouts:
        found = explain(rollout.trace, given)
        lowers = [one.score.lower or 0.0 for one in given.rollouts]
        advantage = (rollout.score.lower or 0.0) - sum(lowers) / 3
        shares = [item.share for step in found.steps for item in step.items]
        assert math.fsum(shares) == pytest.approx(advantage)
        steps = [one.advantage for one in found.steps if one.step is not None]
        assert steps == pytest.approx([advantage] * len(steps))
    first = explain(given.rollouts[0].trace, given, level="evidence")
    assert [(one.turn, one.step, [(item.item, item.satisfied) for item in one.items]) for one in first.steps] == [
        (0, 0, [("sent", True), ("polite", False)]),
        (1, 0, [("bye", True)]),
        (None, None, [("thanks", False)]),
    ]
    sent = first.steps[0].items[0]
    assert [sent.pays, sent.mean, sent.weight] == pytest.approx([1.0, 2 / 3, 0.75])
    assert first.steps[0].advantage != first.steps[1].advantage


@pytest.mark.parametrize("level", ["lambda", "auto"])
@pytest.mark.parametrize("norm", ["none", "others"])
def test_a_round_is_explained_as_it_is_trained_on(level: str, norm: str) -> None:
    groups = Tree(gate=True).sampled(5, 3, seed=1)
    lam = 0.5 if level == "lambda" else None
    before = PreviousRound(lam=0.25, rho2=0.01)
    credits = RoundCredits(level=level, norm=norm, lam=lam, before=before)
    for one in groups:
        credits(one)
    for one, expected in zip(groups, credits.advantages(), strict=True):
        for rollout, credit in zip(one.rollouts, expected.rollouts, strict=True):
            found = explain(
                rollout.trace, one, level=level, norm=norm, lam=lam, before=before, whole_round=iter(groups)
            )
            steps = [step for step in found.steps if step.step is not None]
            assert [step.advantage for step in steps] == [credit(step.turn or 0, step.step or 0) for step in steps]
            assert found.credit["lambda"] == (lam or 0.25)
            assert found.to_json()["credit"]["level"] == "lambda"


def test_a_group_outside_its_round_is_a_round_of_its_own() -> None:
    first, *others = Tree().sampled(4, 3, seed=2)
    alone = explain(first.rollouts[0].trace, first, level="lambda")
    assert explain(first.rollouts[0].trace, first, level="lambda", whole_round=[first]) == alone
    with_others = explain(first.rollouts[0].trace, first, level="lambda", whole_round=others)
    assert with_others.steps != alone.steps


# -- every recorded token


@pytest.fixture(scope="module")
def store() -> Iterator[SQLStore]:
    with SQLStore("sqlite://") as opened:
        yield opened


@st.composite
def recordings(draw: st.DrawFn) -> Trace:
    """Dialogues of one or several agents that take turns or run beside each other; prompts go on from any earlier call,
    or from a part of it (a fork, dropped thinking, a window), or begin anew; answers that were cut; calls off the main
    line; retries that failed."""
    name = f"t{next(numbers)}"
    ids = st.integers(0, 5)
    line: list[list[int]] = []
    runs = []
    for number in range(draw(st.integers(1, 3))):
        messages, calls = [Message.of("user", "u")], []
        for _ in range(draw(st.integers(0, 4))):
            held = draw(st.sampled_from(line)) if line and draw(st.integers(0, 5)) == 0 else line[-1] if line else []
            how = draw(st.sampled_from(["extend", "extend", "extend", "fork", "middle", "anew"]))
            if how == "fork":
                held = held[: draw(st.integers(0, len(held)))]
            elif how == "middle":
                cut = draw(st.integers(0, len(held)))
                held = held[:cut] + held[draw(st.integers(cut, len(held))) :]
            elif how == "anew":
                held = []
            prompt = [*held, *draw(st.lists(ids, min_size=0 if held else 1, max_size=4))]
            completion = draw(st.lists(ids, min_size=1, max_size=4))
            started = draw(st.integers(0, 9))
            more = {
                "logprobs": tuple(-0.5 - token / 64 for token in completion),  # as float32 holds them
                "agent": draw(st.sampled_from([None, None, "a", "b"])),
                "finish_reason": draw(st.sampled_from(["stop", "length", None])),
                "started": started,
                "ended": started + draw(st.integers(0, 5)),
            }
            if draw(st.integers(0, 3)) == 0:
                calls.append(call(draw(st.lists(ids, min_size=1, max_size=3)), completion, None, **more))
            if draw(st.integers(0, 4)) == 0:
                calls.append(call(prompt, [], None, error="rate limit", completion_ids=None, logprobs=None))
            messages.append(Message.of("assistant", "a"))
            calls.append(call(prompt, completion, len(messages) - 1, **more))
            line.append([*prompt, *completion])
        runs.append(
            Run(id=f"{name}-{number}", thread=name, messages=tuple(messages), calls=tuple(calls), started=number + 1)
        )
    return Trace(id=name, runs=tuple(runs))


def main_line(trace: Trace) -> list[ModelCall]:
    return [step.call for step in trace.steps if step.call is not None]


@settings(max_examples=examples(60))
@given(recordings())
def test_rows_reproduce_every_recorded_token_through_the_store(store: SQLStore, trace: Trace) -> None:
    """Each answer of the dialogue stands in exactly one span, behind the very prompt that was recorded, with its
    logprobs; through the store the rows are the same."""
    store.save_runs(trace.runs)
    stored = store.trace(trace.id)
    assert stored is not None
    assert stored == trace
    if untrainable_reason(trace) is not None:
        assert untrainable_reason(stored) == untrainable_reason(trace)
        return
    rows = rows_of(trace)
    assert rows_of(stored) == rows
    spans = {(span.turn, span.step): (row, span) for row in rows for span in row.spans}
    assert len(spans) == sum(len(row.spans) for row in rows) == len(main_line(trace))
    for step in trace.steps:
        row, span = spans[step.turn, step.index]
        assert step.call is not None
        assert row.ids[: span.start] == step.call.prompt_ids
        assert row.ids[span.start : span.stop] == step.call.completion_ids
        assert tuple(span.logprobs or ()) == step.call.logprobs
    for row in rows:
        places = [place for span in row.spans for place in range(span.start, span.stop)]
        assert places == sorted(set(places)) == row.positions.tolist()
        assert row.ids == row.ids[: row.spans[-1].stop]  # a row ends with what the model wrote
        assert row.mu.tolist() == [value for span in row.spans for value in span.logprobs or ()]
        assert np.asarray(row.ids).tolist() == list(row.ids)


@settings(max_examples=examples(60))
@given(recordings(), st.sampled_from([None, "a"]), st.booleans())
def test_every_recorded_token_has_one_fate(trace: Trace, agent: str | None, with_tokenizer: bool) -> None:
    """Calls with ids are all there, prompt and answer; trained are the tokens in the spans of rows, and no others."""
    found = explain(trace, imitation=True, agent=agent, tokenizer=TOKENIZER if with_tokenizer else None)
    recorded = [(number, one) for number, one in enumerate(trace.calls)]
    assert [one.number for one in found.calls] == [number for number, _ in recorded]
    for one, (_, made) in zip(found.calls, recorded, strict=True):
        assert [id for part in one.parts for id in part.ids] == [*(made.prompt_ids or ()), *(made.completion_ids or ())]
        assert [part.fate for part in one.parts][:-1] == ["masked"] * (len(one.parts) - 1)
    if untrainable_reason(trace, imitation=True, agent=agent) is None:
        rows = rows_of(trace, imitation=True, agent=agent)
        spans = sorted((span.turn, span.step) for row in rows for span in row.spans)
        trained = [one for one in found.calls if one.parts[-1].fate == "trained"]
        assert sorted((one.turn, one.step) for one in trained) == spans
        assert sum(row.trained for row in rows) == found.count("trained")
        for one in trained:
            assert one.row is not None
            assert any((span.turn, span.step) == (one.turn, one.step) for span in rows[one.row].spans)
    else:
        assert found.count("trained") == 0


@settings(max_examples=examples(60))
@given(st.text(st.characters(codec="utf-8"), max_size=12))
def test_texts_of_tokens_are_the_text(text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert "".join(token_texts(TOKENIZER, ids)) == TOKENIZER.decode(ids)
    assert len(token_texts(TOKENIZER, ids)) == len(ids)
