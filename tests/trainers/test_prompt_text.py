"""Whether prompts hold what was said: of templates that trim, quote and normalise, of graphs that summarise, and of
recordings that lost a message."""

from __future__ import annotations

import copy
import html
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, BaseMessage

from cm2_agent.errors import TrainError
from cm2_agent.langchain_messages import from_langchain
from cm2_agent.models.tokenizer import byte_tokenizer
from cm2_agent.trainers.dataset import RolloutRows
from cm2_agent.trainers.grpo import GRPO
from cm2_agent.trainers.prompt_text import LOST, LostWords, lost_words
from cm2_agent.trainers.rows import rows_of
from cm2_agent.trainers.shown_words import shown_words
from cm2_agent.types.group import Group
from cm2_agent.types.messages import Message, ToolCall, ToolCallResponse
from cm2_agent.types.run import ModelCall, Run
from cm2_agent.types.trace import Trace
from tests.fuzzing import examples
from tests.models import test_shipped_dialogues as shipped_dialogues
from tests.trainers.loop import Sampler

TOKENIZER = byte_tokenizer()
Write = Callable[[str], str]
WRITINGS: dict[str, Write] = {
    "as it is": str,
    "trimmed": str.strip,
    "JSON": lambda text: json.dumps(text, ensure_ascii=False),
    "ASCII JSON": json.dumps,
    "HTML": html.escape,
    "upper case": str.upper,
}


def answer(text: str) -> Message:
    return Message(role="tool", parts=(ToolCallResponse(id="c", response=text),))


def made(trace: Trace) -> RolloutRows:
    rows = rows_of(trace)
    return RolloutRows(trace_id=trace.id, rows=tuple(rows), shown=shown_words(trace, rows))


def rollout(messages: Sequence[Message], write: Write = str, **how: Any) -> RolloutRows:
    return made(dialogue(messages, write, **how))


def dialogue(
    messages: Sequence[Message], write: Write = str, *, recorded: bool = True, leave_out: int | None = None
) -> Trace:
    """A dialogue whose calls read what was written before them, less the message of that number."""
    ids: list[int] = []
    calls: list[ModelCall] = []
    for place, message in enumerate(messages):
        if message.role != "assistant":
            words = message.text or "".join(p.response for p in message.parts if isinstance(p, ToolCallResponse))
            if place != leave_out:
                ids += TOKENIZER.encode(f"<|im_start|>{message.role}\n{write(words)}<|im_end|>\n")
            continue
        ids += TOKENIZER.encode("<|im_start|>assistant\n")
        wrote = TOKENIZER.encode(f"{message.text or '<tool_call>'}<|im_end|>")
        calls.append(
            ModelCall(
                span_id=f"s{place}",
                input=tuple(messages[:place]) if recorded else (),
                prompt_ids=tuple(ids),
                completion_ids=tuple(wrote),
                logprobs=(-1.0,) * len(wrote),
                sampling={"temperature": 1.0, "logprobs": "processed"},
                message=place,
            )
        )
        ids += [*wrote, *TOKENIZER.encode("\n")]
    return Trace.of(Run(id="r", messages=tuple(messages), calls=tuple(calls)))


TALK = (
    Message.of("system", "Be kind."),
    Message.of("user", "Where is order 7?"),
    Message.of("assistant", "", [ToolCall(id="c", name="look", arguments={})]),
    answer('It was "shipped"\nto Zürich.'),
    Message.of("assistant", "It was shipped to Zürich."),
    Message.of("user", "Thanks, bye"),
    Message.of("assistant", "Bye."),
)


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize("place", [1, 3, 5])
def test_a_message_that_no_prompt_holds_is_found(place: int, recorded: bool) -> None:
    found = lost_words(rollout(TALK, recorded=recorded, leave_out=place), TOKENIZER)
    if place == 1 and not recorded:
        assert found is None  # nothing says that the ids were made from these words
        return
    assert isinstance(found, LostWords)
    assert (found.role, found.span_id) == (TALK[place].role, f"s{place + 1}")
    assert found.text in ("Where is order 7?", 'It was "shipped"\nto Zürich.', "Thanks, bye")
    assert found.prompt.endswith("<|im_start|>assistant\n")


@pytest.mark.parametrize("writing", WRITINGS)
@settings(max_examples=examples(15))
@given(
    texts=st.lists(st.text(st.characters(codec="utf-8"), max_size=12), min_size=1, max_size=4), lost=st.integers(0, 3)
)
def test_templates_may_trim_quote_and_normalise(writing: str, texts: list[str], lost: int) -> None:
    texts = [f"{number}{text}" for number, text in enumerate(texts)]
    messages = [one for text in texts for one in (Message.of("user", text), Message.of("assistant", "Yes."))]
    assert lost_words(rollout(messages, WRITINGS[writing]), TOKENIZER) is None
    found = lost_words(rollout(messages, WRITINGS[writing], leave_out=2 * (lost % len(texts))), TOKENIZER)
    assert found is not None
    assert found.text == texts[lost % len(texts)]


def test_answers_of_one_message_in_another_order_and_the_same_words_twice() -> None:
    called = Message.of("assistant", "", [ToolCall(name="look", arguments={}), ToolCall(name="look", arguments={})])
    asked, said = Message.of("user", "Both?"), Message.of("assistant", "Yes.")
    both = dialogue([asked, called, answer("first"), answer("second"), said])
    shown = both.runs[0]
    swapped = [replace(call, input=(*call.input[:2], *reversed(call.input[2:]))) for call in shown.calls]
    trace = Trace.of(replace(shown, calls=tuple(swapped)))
    other = made(trace)
    assert lost_words(other, TOKENIZER) is None
    twice = [asked, called, answer("ok"), answer("ok"), said]
    assert lost_words(rollout(twice), TOKENIZER) is None
    assert lost_words(rollout(twice, leave_out=3), TOKENIZER) is not None


def test_what_a_graph_showed_its_model_counts() -> None:
    """A summary in place of the dialogue: the call's recorded input says so."""
    summary = [Message.of("user", "So far: order 7 was shipped."), Message.of("user", "Thanks, bye")]
    talk = dialogue([*summary, Message.of("assistant", "Bye.")])
    (call,) = talk.calls
    trace = Trace.of(Run(id="r", messages=TALK, calls=(replace(call, message=6),)))
    assert lost_words(made(trace), TOKENIZER) is None


def test_a_fork_is_compared_whole_and_words_that_the_tokenizer_does_not_know_are_none() -> None:
    talk = dialogue(TALK)
    calls = talk.calls
    afresh = TOKENIZER.encode("<|im_start|>user\nWhere is order 7?<|im_end|>\n<|im_start|>assistant\n")
    run = talk.runs[0]
    trace = Trace.of(replace(run, calls=(*calls[:-1], replace(calls[-1], prompt_ids=tuple(afresh)))))
    forked = made(trace)
    assert len(forked.rows) == 2
    found = lost_words(forked, TOKENIZER)
    assert found is not None
    assert found.text == 'It was "shipped"\nto Zürich.'


def losing(groups: Sequence[Group], lost: int, tokenizer: Any) -> list[Group]:
    """Groups whose messages are what the prompts hold; the first rollouts of each without the last user's message."""
    ask = tokenizer.encode("\n<|im_start|>assistant\n")
    found = []
    for group in groups:
        rollouts = []
        asked = tokenizer.decode(group.rollouts[0].trace.calls[0].prompt_ids)
        words = asked.partition("user\n")[2].partition("<|im_end|>")[0], "And?"
        for number, one in enumerate(group.rollouts):
            first, last = one.trace.runs
            (begun,), (call,) = first.calls, last.calls
            read = (
                (*(begun.prompt_ids or ()), *(begun.completion_ids or ()), *ask) if number < lost else call.prompt_ids
            )
            last = replace(last, calls=(replace(call, prompt_ids=read),))
            runs = [
                replace(run, messages=(Message.of("user", text), *run.messages[1:]))
                for run, text in zip((first, last), words, strict=True)
            ]
            rollouts.append(replace(one, trace=replace(one.trace, runs=tuple(runs))))
        found.append(replace(group, rollouts=tuple(rollouts)))
    return found


def test_rollouts_that_lost_words_are_left_out_or_all_are_refused(
    policy: Callable[..., Any], sample: Sampler, tokenizer: Any, tmp_path: Path
) -> None:
    model = policy(1)
    groups = sample(model, groups=2, size=4)
    grpo = GRPO(copy.deepcopy(model), tmp_path / "out", tokenizer=tokenizer, steps=1, overwrite=True)
    grpo.train(losing(groups, 0, tokenizer))
    assert grpo.report["left_out"] == {}
    grpo.train(losing(groups, 1, tokenizer))
    assert grpo.report["left_out"] == {LOST: 2}
    with pytest.raises(TrainError, match=r"6 of 8 rollouts have prompts that do not hold.*'And\?'"):
        grpo.train(losing(groups, 3, tokenizer))


@pytest.mark.parametrize("name", ["gemma4", "glm4moe", "gptoss", "llama3_1", "muse_glimmer", "qwen3", "qwen3_5_think"])
@settings(max_examples=examples(4))
@given(data=st.data())
def test_prompts_of_shipped_templates_hold_what_was_said(name: str, data: Any) -> None:
    """Control words, white space and all: a rollout that was sampled with them is never left out."""
    model = shipped_dialogues.model_of(name)
    history: list[BaseMessage] = []
    calls: list[ModelCall] = []
    for message in shipped_dialogues.messages_of(data.draw(shipped_dialogues.talks(name)), None):
        if isinstance(message, AIMessage):
            shown = tuple(map(from_langchain, history))
            own: list[int] = []
            prompt = model.prompt_ids(history, shipped_dialogues.TOOLS)
            read = shipped_dialogues.sampled(model, history, message, own)
            calls.append(
                ModelCall(
                    span_id=f"s{len(history)}",
                    input=shown,
                    prompt_ids=tuple(prompt),
                    completion_ids=tuple(own[len(prompt) :]),
                    logprobs=(-1.0,) * (len(own) - len(prompt)),
                    sampling={"temperature": 1.0, "logprobs": "processed"},
                    message=len(history),
                )
            )
            history.append(read)
        else:
            history.append(message)
    trace = Trace.of(Run(id="r", messages=tuple(map(from_langchain, history)), calls=tuple(calls)))
    assert lost_words(made(trace), model.tokenizer) is None
