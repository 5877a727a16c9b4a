"""Thinking in a model's text: what is split off, and what only looks like it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm2_agent.models.chat_template import parse_completion, reasoning_of, template_messages
from cm2_agent.models.reasoning_text import ReasoningStream, opening_tag, split_reasoning

CALL = '<tool_call>{"name": "refund", "arguments": {"order_id": 7}}</tool_call>'
HARMONY = '<|start|>assistant to=functions.look<|channel|>commentary json<|message|>{"id": 7}<|call|>'
MUSE = "<|start|>assistant to=user<|message|>Yes."
SPLIT = {
    "a block": ("<think>\nhm\n</think>\n\nYes.", "hm", "Yes."),
    "never closed": ("<think>\nhm, 2026-05-20", "hm, 2026-05-20", ""),
    "only the end": ("hm, 2026-05-20\n</think>\nYes.", "hm, 2026-05-20", "Yes."),
    "nothing but the end": ("hm</think>", "hm", ""),
    "an empty block": ("<think>\n\n</think>\n\nYes.", "", "Yes."),
    "two blocks": ("<think>a</think>One. <think>b</think>Two.", "a\nb", "One. Two."),
    "a block in the middle, never closed": ("One. <think>b", "b", "One."),
    "twice opened": ("<think><think>a</think>Yes.", "<think>a", "Yes."),
    "an end after a block": ("<think>a</think>b</think>Yes.", "a\nb", "Yes."),
    "capitals": ("<Think>a</THINK>Yes.", "a", "Yes."),
    "thinking": ("<thinking>a</thinking>Yes.", "a", "Yes."),
    "reasoning": ("<reasoning>a</reasoning>Yes.", "a", "Yes."),
    "thought": ("<thought>a</thought>Yes.", "a", "Yes."),
    "Seed": ("<seed:think>a</seed:think>Yes.", "a", "Yes."),
    "Magistral": ("[THINK]a[/THINK]Yes.", "a", "Yes."),
    "Kimi": ("◁think▷a◁/think▷Yes.", "a", "Yes."),
    "Cohere": ("<|START_THINKING|>a<|END_THINKING|>Yes.", "a", "Yes."),
    "OpenThinker": ("<|begin_of_thought|>a<|end_of_thought|>Yes.", "a", "Yes."),
    "LongCat": ("<longcat_think>a</longcat_think>Yes.", "a", "Yes."),
    "Apertus": ("<|inner_prefix|>a<|inner_suffix|>Yes.", "a", "Yes."),
    "Muse": (" to=self<|message|>a<|eom|><|start|>assistant to=user<|message|>Yes.", "a", MUSE),
    "Muse, twice": (
        "<|start|>assistant to=self<|message|>a<|eom|><|start|>assistant to=self<|message|>b<|eot|>Yes.",
        "a\nb",
        "Yes.",
    ),
    "Muse, cut off": (" to=self<|message|>a, b", "a, b", ""),
    "gpt-oss, a call": (f"<|channel|>analysis<|message|>a<|end|>{HARMONY}", "a", HARMONY),
    "gpt-oss": (
        "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>Yes.<|return|>",
        "a",
        "Yes.",
    ),
    "gpt-oss, cut off": ("<|channel|>analysis<|message|>a, b", "a, b", ""),
    "a drafted call": (f"<think>{CALL} or not</think>Yes.", f"{CALL} or not", "Yes."),
    "a drafted call, only the end": (f"{CALL} or not</think>Yes.", f"{CALL} or not", "Yes."),
    "half a drafted call": ("I could <tool_call> but no.</think>Yes.", "I could <tool_call> but no.", "Yes."),
    "code in the thinking": ("<think>```py\nx\n</think>See:\n```py\ny\n```", "```py\nx", "See:\n```py\ny\n```"),
    "code in the thinking, only the end": ("```py\nx\n</think>See:\n```py\ny\n```", "```py\nx", "See:\n```py\ny\n```"),
    "two halves of a tag": ("<tool_<think>a</think>call>", "a", "<tool_\ncall>"),
}
UNCHANGED = {
    "no tag": " Yes, 3 < 4. ",
    "inline code": "Write `<think>` and end with `</think>`.",
    "fenced code": "So:\n```xml\n<think>a</think>\n```\nDone.",
    "an argument of a call": '<tool_call>{"name": "note", "arguments": {"text": "<think>a</think>"}}</tool_call>',
    "an end in an argument": '<tool_call>{"name": "note", "arguments": {"text": "ends with </think>"}}</tool_call>',
    "another tag": "<thinker>a</thinker>",
}


@pytest.mark.parametrize("kind", SPLIT)
def test_thinking_is_split_off(kind: str) -> None:
    text, thinking, said = SPLIT[kind]
    assert split_reasoning(text) == (thinking, said)
    assert split_reasoning(said) == ("", said)


@pytest.mark.parametrize("kind", UNCHANGED)
def test_what_is_no_thinking_stays(kind: str) -> None:
    assert split_reasoning(UNCHANGED[kind]) == ("", UNCHANGED[kind])


@pytest.mark.parametrize("tag", ["<think>", "[THINK]", "◁think▷", "<|channel|>analysis<|message|>"])
def test_a_prompt_that_opens_thinking(tag: str) -> None:
    assert opening_tag(f"<|im_start|>assistant\n{tag}\n") == tag
    end = {"<think>": "</think>", "[THINK]": "[/THINK]", "◁think▷": "◁/think▷"}.get(
        tag, "<|end|><|start|>assistant<|channel|>final<|message|>"
    )
    assert split_reasoning(f"hm {CALL}{end}Yes.", tag) == (f"hm {CALL}", "Yes.")
    assert split_reasoning(f"hm {CALL}", tag) == (f"hm {CALL}", "")


def test_a_prompt_that_opens_none() -> None:
    assert opening_tag("<|im_start|>assistant\n") == opening_tag("<think>\n\n</think>\n\n") == opening_tag("") == ""


def test_a_call_drafted_in_thinking_is_none_and_thinking_is_no_content() -> None:
    message = parse_completion(f"<think>Shall I {CALL}?</think>On Friday.")
    assert (message.content, message.tool_calls, message.invalid_tool_calls) == ("On Friday.", [], [])
    assert reasoning_of(message) == f"Shall I {CALL}?"
    both = parse_completion(f"<think>Shall I {CALL}?</think>{CALL}")
    assert [call["args"] for call in both.tool_calls] == [{"order_id": 7}]
    opened = parse_completion(f"{CALL} perhaps", prompt="<think>")
    assert (opened.content, opened.tool_calls, opened.invalid_tool_calls) == ("", [], [])


def test_a_template_is_given_the_thinking_as_such() -> None:
    message = parse_completion("<think>hm</think>Yes.")
    assert template_messages([message]) == [{"role": "assistant", "content": "Yes.", "reasoning_content": "hm"}]


@given(
    st.lists(st.sampled_from([*"ab `\n", "<think>", "</think>", "[THINK]", "<tool_call>", CALL, "```\n"]), max_size=12)
)
def test_nothing_is_lost_and_no_tag_is_left(pieces: list[str]) -> None:
    text = "".join(pieces)
    thinking, said = split_reasoning(text)
    for letter in "ab":
        assert text.count(letter) == (thinking + said).count(letter)
    assert split_reasoning(said)[0] == "" or "`" in text  # code that was cut in two may no longer be code


@given(
    st.lists(st.sampled_from(["a", " b", "<think>", "</think>", "[THINK]", "[/THINK]", "<", "x>"]), max_size=12),
    st.lists(st.integers(1, 4), min_size=1),
)
def test_a_stream_splits_as_the_whole_does(pieces: list[str], sizes: list[int]) -> None:
    text = "".join(pieces)
    stream = ReasoningStream()
    thinking = said = ""
    position = number = 0
    while position < len(text):
        size = sizes[number % len(sizes)]
        more_thinking, more_said = stream.feed(text[position : position + size])
        thinking, said = thinking + more_thinking, said + more_said
        position, number = position + size, number + 1
    last_thinking, last_said = stream.end()
    # an end without its beginning cannot be known of beforehand: it stays in the text, so that the whole tells
    whole = split_reasoning(text)
    again = split_reasoning(said + last_said)
    assert "".join((again[1]).split()) == "".join(whole[1].split())
    assert sorted("".join((thinking + last_thinking + again[0]).split())) == sorted("".join(whole[0].split()))


@pytest.mark.parametrize("piece", ["<think>", "</think>", '<tool_call>{"a":"', "```\n", "```py\n<think>", "`"])
def test_a_long_hostile_text_comes_to_an_end(piece: str) -> None:
    thinking, said = split_reasoning(piece * 100_000 + "<think>a")
    assert "a" in thinking + said
