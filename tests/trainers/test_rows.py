"""Rows: every recorded model token exactly once, prompts and tools masked, forks split, reasons for what is none."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm2_agent.errors import TrainError
from cm2_agent.trainers.rows import TEXT_ONLY, rows_of, untrainable_reason
from cm2_agent.types.messages import Message
from cm2_agent.types.run import Run
from cm2_agent.types.trace import Trace
from tests.trainers.dialogues import GOOD, call, merged


def test_calls_that_extend_each_other_are_one_row_over_turns_and_runs() -> None:
    (row,) = rows_of(merged(), lambda turn, step: turn + step / 10)
    assert row.ids == (1, 2, 10, 11, 3, 12, 4, 5, 13, 14, 15)
    assert row.mask == (0, 0, 1, 1, 0, 1, 0, 0, 1, 1, 1)
    assert row.places == (None, None, (0, 0), (0, 0), None, (0, 1), None, None, (1, 0), (1, 0), (1, 0))
    assert row.advantages == (0, 0, 0, 0, 0, 0.1, 0, 0, 1, 1, 1)
    assert row.logprobs == (None, None, -0.6, -0.61, None, -0.62, None, None, -0.63, -0.64, -0.65)
    assert (row.trace_id, row.temperature, row.policy, row.exact, row.trainable_by_grpo) == ("t", 1.0, "v1", True, True)


def test_a_prompt_that_rewrites_the_past_begins_a_new_row() -> None:
    trace = merged()
    rewritten = replace(
        trace.runs[1], calls=(call([1, 2, 99, 3, 12, 4, 5], [13], 1),)
    )  # the first call's tokens are gone
    rows = rows_of(replace(trace, runs=(trace.runs[0], rewritten)))
    assert [row.ids for row in rows] == [(1, 2, 10, 11, 3, 12), (1, 2, 99, 3, 12, 4, 5, 13)]
    assert [row.mask for row in rows] == [(0, 0, 1, 1, 0, 1), (0, 0, 0, 0, 0, 0, 0, 1)]
    assert rows[1].places[-1] == (1, 0)


def test_calls_off_the_main_line_are_not_trained_on() -> None:
    trace = merged()
    sub_agent = call([7, 7], [8, 8], None)
    failed = call([1], [9], None, error="rate limit", completion_ids=None)
    run = replace(trace.runs[0], calls=(sub_agent, trace.runs[0].calls[0], failed, trace.runs[0].calls[1]))
    assert rows_of(replace(trace, runs=(run, trace.runs[1]))) == rows_of(trace)


def test_a_step_that_the_graph_wrote_itself_is_masked() -> None:
    trace = merged()
    run = replace(trace.runs[0], calls=trace.runs[0].calls[1:])  # no call wrote the first step: its words are only read
    (row,) = rows_of(replace(trace, runs=(run, trace.runs[1])))
    assert row.mask == (0, 0, 0, 0, 0, 1, 0, 0, 1, 1, 1)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"prompt_ids": None}, TEXT_ONLY),
        ({"completion_ids": (), "logprobs": ()}, "empty completion"),
        ({"prompt_ids": ()}, "empty prompt"),
        ({"logprobs": None}, "no logprobs"),
        ({"logprobs": (-1.0,)}, "no logprobs"),
        ({"error": "time-out"}, "failed call"),
        ({"sampling": {**GOOD, "temperature": 0}}, "temperature 0"),
        ({"sampling": {"logprobs": "processed"}}, "unknown temperature"),
        ({"sampling": {"temperature": 0.7, "logprobs": "raw"}}, "logprobs are not those of the sampling distribution"),
        ({"sampling": {**GOOD, "temperature": 0.7}}, "several temperatures in one dialogue"),
        ({"model_version": "v2"}, "several policies in one dialogue"),
    ],
)
def test_one_untrainable_step_leaves_out_the_whole_rollout(changed: dict[str, Any], reason: str) -> None:
    trace = merged()
    run = replace(trace.runs[0], calls=(replace(trace.runs[0].calls[0], **changed), trace.runs[0].calls[1]))
    trace = replace(trace, runs=(run, trace.runs[1]))
    assert untrainable_reason(trace) == reason
    with pytest.raises(TrainError, match=reason):
        rows_of(trace)


def test_imitation_needs_only_ids() -> None:
    trace = merged()
    greedy = [replace(one, logprobs=None, sampling={"temperature": 0}) for one in trace.runs[0].calls]
    trace = replace(trace, runs=(replace(trace.runs[0], calls=tuple(greedy)), trace.runs[1]))
    assert untrainable_reason(trace) is not None
    (row,) = rows_of(trace, imitation=True)
    assert row.mask == (0, 0, 1, 1, 0, 1, 0, 0, 1, 1, 1)
    assert not row.trainable_by_grpo


def test_a_truncated_distribution_is_trainable_but_not_exact() -> None:
    trace = merged()
    nucleus = tuple(replace(one, sampling={**GOOD, "top_p": 0.9}) for one in trace.runs[0].calls)
    (row,) = rows_of(Trace(id="t", runs=(replace(trace.runs[0], calls=nucleus),)))
    assert row.trainable_by_grpo
    assert not row.exact


@st.composite
def dialogues(draw: st.DrawFn) -> Trace:
    """Any number of runs, steps, forks, greetings and off-line calls; completions are numbered so that each token is
    known again."""
    fresh = iter(range(1000, 100000))
    held: list[int] = []
    runs = []
    for number in range(draw(st.integers(1, 3))):
        messages, calls = [Message.of("user", "u")], []
        for _ in range(draw(st.integers(0, 4))):
            if not held or draw(st.integers(0, 3)) == 0:
                prompt = [next(fresh) for _ in range(draw(st.integers(1, 3)))]  # a fork
            else:
                prompt = held + draw(st.lists(st.integers(1, 9), max_size=3))
            completion = [next(fresh) for _ in range(draw(st.integers(1, 4)))]
            messages.append(Message.of("assistant", "a"))
            if draw(st.booleans()):
                calls.append(call([next(fresh)], [next(fresh)], None))
            calls.append(call(prompt, completion, len(messages) - 1))
            held = prompt + completion
        runs.append(Run(id=f"r{number}", thread="t", messages=tuple(messages), calls=tuple(calls)))
    return Trace(id="t", runs=tuple(runs))


@given(dialogues())
def test_every_model_token_is_trained_exactly_once_in_its_own_context(trace: Trace) -> None:
    main = [one for run in trace.runs for one in run.calls if one.message is not None]
    if not main:
        assert untrainable_reason(trace) is not None
        return
    rows = rows_of(trace, lambda turn, step: 10.0 * turn + step + 1)
    trained = [token for row in rows for token, mask in zip(row.ids, row.mask, strict=True) if mask]
    assert trained == [token for one in main for token in one.completion_ids or ()]
    spans = [(row, span) for row in rows for span in row.spans]
    assert len(spans) == len(main)
    for (row, span), one, step in zip(spans, main, trace.steps, strict=True):
        assert row.ids[: span.start] == one.prompt_ids
        assert row.ids[span.start : span.stop] == one.completion_ids
        assert span.logprobs == one.logprobs
        assert (span.turn, span.step, span.advantage) == (step.turn, step.index, 10.0 * step.turn + step.index + 1)
    assert all(one == 0 for row in rows for one, mask in zip(row.advantages, row.mask, strict=True) if not mask)


def test_rows_of_one_agent() -> None:
    """Another agent's calls are read and not trained, and what they lack leaves nothing out."""
    trace = merged()
    (first, second), last = trace.runs[0].calls, trace.runs[1]
    named = replace(
        trace,
        runs=(
            replace(
                trace.runs[0], calls=(replace(first, agent="triage", logprobs=None), replace(second, agent="sales"))
            ),
            replace(last, calls=tuple(replace(one, agent="sales") for one in last.calls)),
        ),
    )
    whole = rows_of(trace)[0]
    (row,) = rows_of(named, agent="sales")
    assert (row.ids, row.spans) == (whole.ids, whole.spans[1:])
    assert row.policy == whole.policy
    assert untrainable_reason(named) == untrainable_reason(named, agent="triage") == "no logprobs"
    assert untrainable_reason(named, agent="boss") == "no step of the agent boss"
