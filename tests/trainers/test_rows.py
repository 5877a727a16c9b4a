"""Rows: every recorded model token exactly once, prompts and tools masked, forks split, what is left out counted with
its reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm2_agent.errors import TrainError
from cm2_agent.trainers.dataset import build_dataset
from cm2_agent.trainers.retokenize import REFUSED, retokenised_rows, rows_from_words
from cm2_agent.trainers.rows import TEXT_ONLY, TOO_LONG, Row, rows_of, untrainable_reason
from cm2_agent.trainers.validation import too_long
from cm2_agent.types.group import Group, Rollout
from cm2_agent.types.messages import Message, Reasoning, Text, ToolCall, ToolCallResponse, ToolSpec
from cm2_agent.types.score import Score, TurnScore, Verdict
from cm2_agent.types.trace import ModelCall, Run, RunFailure, Trace

GOOD = {"temperature": 1.0, "logprobs": "processed"}


def call(prompt: list[int], completion: list[int], message: int | None, **changed: Any) -> ModelCall:
    made = ModelCall(
        span_id=f"s{message}",
        model_version="v1",
        prompt_ids=tuple(prompt),
        completion_ids=tuple(completion),
        logprobs=tuple(-0.5 - token / 100 for token in completion),
        sampling=GOOD,
        message=message,
    )
    return replace(made, **changed)


def tool_turn(first: ModelCall, second: ModelCall, run: str = "r1") -> Run:
    """A user message, a tool call, its result, the reply."""
    messages = (
        Message.of("user", "Where is order 7?"),
        Message.of("assistant", calls=[ToolCall(id="c", name="get_order", arguments={"id": 7})]),
        Message(role="tool", parts=(ToolCallResponse(id="c", response={"status": "sent"}),)),
        Message.of("assistant", "It was sent."),
    )
    return Run(id=run, thread="t", messages=messages, calls=(first, second))


def merged() -> Trace:
    """Two runs, three calls, each prompt an extension of all that was before."""
    one = tool_turn(call([1, 2], [10, 11], 1), call([1, 2, 10, 11, 3], [12], 3))
    two = Run(
        id="r2",
        thread="t",
        messages=(Message.of("user", "Thanks"), Message.of("assistant", "Bye")),
        calls=(call([1, 2, 10, 11, 3, 12, 4, 5], [13, 14, 15], 1),),
    )
    return Trace(id="t", runs=(one, two))


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


def test_too_long_is_left_out_and_never_cut() -> None:
    assert build_dataset([group([1.0, 0.0])], drop=[too_long(11)]).report.left_out == {}
    assert build_dataset([group([1.0, 0.0])], drop=[too_long(10)]).report.left_out == {TOO_LONG: 2}


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


# -- from words


def words() -> Trace:
    run = tool_turn(call([1], [2], None), call([1], [2], None))  # no call is on the main line: text only
    tools = (ToolSpec(name="get_order", parameters={"type": "object"}),)
    asked = ModelCall(span_id="x", tools=tools, message=1)
    return Trace(id="t", runs=(replace(run, calls=(asked,)),))


def test_retokenised_rows_train_on_the_assistants_words_alone(tokenizer: Any) -> None:
    (row,) = retokenised_rows(words(), tokenizer)
    said = [tokenizer.decode(row.ids[span.start : span.stop]) for span in row.spans]
    assert said == [
        '<tool_call>{"name": "get_order", "arguments": {"id": 7}}</tool_call><|im_end|>',
        "It was sent.<|im_end|>",
    ]
    assert [(span.turn, span.step) for span in row.spans] == [(0, 0), (0, 1)]
    read = tokenizer.decode([token for token, mask in zip(row.ids, row.mask, strict=True) if not mask])
    assert "Where is order 7?" in read
    assert '{"status":"sent"}' in read
    assert "<tools>" in read
    assert row.retokenised
    assert not row.trainable_by_grpo


def test_retokenised_rows_fork_where_a_template_rewrites_the_past(tokenizer: Any) -> None:
    import copy

    forgetful = copy.deepcopy(tokenizer)
    # As Qwen3's own: thinking is shown after the last user message only.
    forgetful.chat_template = (
        "{% set last = namespace(user=0) %}{% for message in messages %}{% if message.role == 'user' %}{% set last.user"
        " = loop.index0 %}{% endif %}{% endfor %}{% for message in messages %}{{ message.role }}:{% if"
        " message.reasoning_content and loop.index0 > last.user %}{{ message.reasoning_content }} {% endif %}{{"
        " message.content }}<|im_end|>{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    )
    thought = Message(role="assistant", parts=(Reasoning(content="hm"), Text(content="one")))
    talk = (Message.of("user", "a"), thought, Message.of("user", "b"), Message.of("assistant", "two"))
    rows = retokenised_rows(Trace.of(Run(id="r", messages=talk)), forgetful)
    assert [forgetful.decode(row.ids[row.spans[0].start :]) for row in rows] == ["hm one<|im_end|>", "two<|im_end|>"]
    assert "hm" not in forgetful.decode(rows[1].ids)


def test_a_template_that_refuses_says_which_trace_and_why(tokenizer: Any) -> None:
    import copy

    strict = copy.deepcopy(tokenizer)
    strict.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(TrainError, match=r"'t'.*roles must alternate"):
        retokenised_rows(words(), strict)
    refused = build_dataset([group([1.0, 0.0], [merged(), words()])], from_words=rows_from_words(strict))
    assert refused.report.left_out == {REFUSED: 1}
    strict.chat_template = None
    with pytest.raises(TrainError, match="no chat template"):
        retokenised_rows(words(), strict)


# -- groups


def group(rewards: list[float | None], traces: list[Trace] | None = None, **key: Any) -> Group:
    made = traces or [replace(merged(), id=f"t{number}") for number in range(len(rewards))]
    return Group(
        key={"task": "a", "policy": "v1", "reward": "r1", **key},
        rollouts=tuple(
            Rollout(
                trace=trace,
                score=Score(
                    trace_id=trace.id,
                    reward_version="r1",
                    reward=reward,
                    null_reason="failure: ToolError: x" if reward is None else None,
                ),
            )
            for trace, reward in zip(made, rewards, strict=True)
        ),
    )


def test_the_report_counts_what_is_trained_and_why_the_rest_is_not() -> None:
    text_only = replace(words(), id="t3")
    mixed = group([1.0, 0.0, None, 0.5], [replace(merged(), id=f"t{n}") for n in range(3)] + [text_only])
    flat = group([0.5, 0.5])
    dataset = build_dataset([mixed, flat])
    assert dataset.report.to_json() == {
        "groups": 2,
        "informative_groups": 1,
        "rows": 4,
        "trained_tokens": 24,
        "masked_tokens": 20,
        "left_out": {"no reward: failure": 1, TEXT_ONLY: 1},
    }
    json.dumps(dataset.report.to_json())
    assert [span.advantage for row in dataset.groups[0].rows for span in row.spans] == pytest.approx(
        [0.5] * 3 + [-0.5] * 3
    )


def test_with_a_tokenizer_text_only_traces_become_marked_rows(tokenizer: Any) -> None:
    dataset = build_dataset(
        [group([1.0, 0.0], [merged(), replace(words(), id="w")])], from_words=rows_from_words(tokenizer)
    )
    assert [row.retokenised for row in dataset.groups[0].rows] == [False, True]
    assert dataset.report.to_json()["retokenised_rows"] == 1
    assert dataset.report.left_out == {}
    assert build_dataset(
        [group([1.0, 0.0], [merged(), words()])], from_words=rows_from_words(tokenizer), drop=[too_long(20)]
    ).report.left_out == {TOO_LONG: 1}


def test_advantages_are_of_all_scored_rollouts_also_of_those_left_out() -> None:
    dataset = build_dataset([group([1.0, 0.0, 0.2], [merged(), words(), words()])])
    assert dataset.groups[0].rows[0].spans[0].advantage == pytest.approx(0.6)


def test_advantages_of_a_level_reach_the_steps_they_are_for() -> None:
    def by_turn(group: Group) -> list[Callable[[int, int], float]]:
        return [lambda turn, step: 1.0 if (turn, step) == (0, 1) else -2.0 for _ in group.rollouts]

    (row,) = build_dataset([group([1.0])], credits=by_turn).groups[0].rows
    assert row.advantages == (0, 0, -2, -2, 0, 1, 0, 0, -2, -2, -2)


def test_the_turn_level_gives_each_turn_its_own_advantage() -> None:
    def score(trace: Trace, paid: tuple[bool, bool]) -> Score:
        turns = tuple(
            TurnScore(
                turn=number,
                reached=True,
                steps=steps,
                reward=float(yes),
                verdicts=(Verdict(item=f"i{number}", value=yes, weight=1.0, step=1 if yes else None, paid=yes),),
            )
            for number, (yes, steps) in enumerate(zip(paid, (2, 1), strict=True))
        )
        return Score(trace_id=trace.id, reward_version="r1", reward=sum(paid) / 2, turns=turns)

    given = group([0.5, 0.5])
    scored = tuple(
        replace(one, score=score(one.trace, paid))
        for one, paid in zip(given.rollouts, ((True, False), (False, True)), strict=True)
    )
    made = replace(given, rollouts=scored)
    assert not build_dataset([made]).groups[0].informative  # worth the same as a whole
    first, second = build_dataset([made], level="turn").groups[0].rows
    assert first.advantages == (0, 0, 0.5, 0.5, 0, 0.5, 0, 0, -0.5, -0.5, -0.5)
    assert second.advantages == tuple(-value for value in first.advantages)


def test_no_group_no_rollout_and_mixed_rewards_are_refused() -> None:
    with pytest.raises(TrainError, match="no group"):
        build_dataset([])
    with pytest.raises(TrainError, match="none holds a rollout"):
        build_dataset([group([])])
    with pytest.raises(TrainError, match="2 reward versions: r1, r2"):
        build_dataset([group([1.0, 0.0]), group([1.0], reward="r2")])


def test_a_failed_dialogue_is_left_out_by_its_missing_reward() -> None:
    crashed = replace(
        merged(), runs=(replace(merged().runs[0], failure=RunFailure(kind="ToolError", message="x"), status="error"),)
    )
    dataset = build_dataset([group([1.0, None, 0.0], [merged(), crashed, merged()])])
    assert dataset.report.left_out == {"no reward: failure": 1}
    assert all(isinstance(row, Row) for row in dataset.groups[0].rows)
