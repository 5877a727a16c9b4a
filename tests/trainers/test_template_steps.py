"""Steps by words: no end that the model did not write, nothing after it, and the ids of the whole text at the seams."""

from __future__ import annotations

import string
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cm2_agent.errors import TrainError
from cm2_agent.trainers.retokenize import rows_by_words, rows_from_text
from cm2_agent.trainers.rows import Row
from cm2_agent.trainers.template_steps import FILES, LOST, REFUSED, TemplateRefused, TemplateSteps, is_cut
from cm2_agent.types.messages import Message, Part, Reasoning, Text, ToolCall, ToolCallResponse, ToolSpec, Uri
from cm2_agent.types.run import ModelCall, Run
from cm2_agent.types.trace import Trace
from tests.fuzzing import examples
from tests.models.shipped_templates import NAMES, STOPS, byte_level, shipped
from tests.trainers.templates import CHATML, LLAMA2, SPECIAL, ZEPHYR, sentencepiece

TOOLS = (ToolSpec(name="get_order", parameters={"type": "object", "properties": {"id": {"type": "integer"}}}),)
WORDS = st.text(string.ascii_letters + string.digits + " .,!?", min_size=1, max_size=12)


def user(text: str) -> Message:
    return Message.of("user", text)


def says(*parts: Part | str, finish: str | None = None) -> Message:
    written = tuple(Text(content=part) if isinstance(part, str) else part for part in parts)
    return Message(role="assistant", parts=written, finish_reason=finish)


def call(arguments: Any = None, id: str = "call_abc12345678") -> ToolCall:
    return ToolCall(id=id, name="get_order", arguments={"id": 7} if arguments is None else arguments)


def answer(text: str = "sent", id: str | None = "call_abc12345678") -> Message:
    return Message(role="tool", parts=(ToolCallResponse(id=id, response=text),))


def talk(*messages: Message, calls: tuple[ModelCall, ...] = (), status: Any = "ok") -> Trace:
    return Trace.of(Run(id="r", messages=messages, calls=calls, status=status))


def trained(rows: list[Row], tokenizer: Any) -> list[str]:
    return [tokenizer.decode(row.ids[span.start : span.stop]) for row in rows for span in row.spans]


def steps_of(name: str) -> TemplateSteps:
    tokenizer = shipped(name)
    known = tokenizer.get_vocab()
    return TemplateSteps(tokenizer, [known[stop] for stop in STOPS if stop in known])


BY_WORDS = [name for name in NAMES if not name.startswith(("idefics3", "llava_next", "smolvlm")) and name != "glm4moe"]


@pytest.mark.parametrize("name", BY_WORDS)
def test_every_template_that_trl_ships_ends_an_answer_once_and_a_cut_one_never(name: str) -> None:
    steps = steps_of(name)
    dialogue = (user("Hi"), says("Hello"), user("More?"), says("The refund will be", finish="length"), user("Go on."))
    first, cut, last = trained(rows_by_words(talk(*dialogue, says("Bye")), steps), steps.tokenizer)
    stops = [steps.tokenizer.decode([id_]) for id_ in steps.used]
    assert first.endswith(tuple(f"Hello{stop}" for stop in [*stops, *(f"<|END_RESPONSE|>{stop}" for stop in stops)]))
    assert last.endswith(tuple(f"Bye{stop}" for stop in [*stops, *(f"<|END_RESPONSE|>{stop}" for stop in stops)]))
    assert cut.endswith("The refund will be")


def test_templates_that_lose_words_calls_or_ends_are_refused_by_reason() -> None:
    with pytest.raises(TrainError, match=r"writes '' after an assistant's message.*would never stop"):
        steps_of("glm4moe")
    with pytest.raises(TemplateRefused, match="the user's 'Hi'"):
        rows_by_words(talk(user("Hi"), says("Hello")), steps_of("idefics3"))
    for name in ("llama3", "gemma", "phi3"):
        with pytest.raises(TemplateRefused, match="0 of 1 calls of get_order"):
            rows_by_words(talk(user("Hi"), says(call()), answer(), says("Sent.")), steps_of(name))
    one_call = byte_level(
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% if m.tool_calls %}"
        "{{ m.tool_calls[0].function.name }}{{ m.tool_calls[0].function.arguments | tojson }}{% endif %}<eos>"
        "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}",
        ["<|user|>", "<|assistant|>", "<|tool|>"],
    )
    two = talk(user("Hi"), says(call(id="a"), call({"id": 8}, id="b")), answer(id="a"), answer(id="b"), says("Both."))
    assert rows_from_text(one_call)(two, None) == LOST
    assert trained(rows_by_words(talk(user("Hi"), says(call())), TemplateSteps(one_call)), one_call) == [
        'get_order{"id": 7}<eos>'
    ]
    one_call.chat_template = "{{ raise_exception('roles must alternate') }}"
    assert rows_from_text(one_call)(two, None) == REFUSED


@pytest.mark.parametrize("scheme", ["first", "always"])
@pytest.mark.parametrize("template", [CHATML, ZEPHYR, LLAMA2], ids=["chatml", "zephyr", "llama2"])
@settings(max_examples=examples(20))
@given(words=st.lists(WORDS, min_size=2, max_size=6))
def test_a_sentencepiece_row_is_the_whole_text(template: str, scheme: str, words: list[str]) -> None:
    tokenizer = sentencepiece(template, scheme)
    words = [word.strip() or "x" for word in words[: len(words) // 2 * 2]]
    messages = [user(word) if number % 2 == 0 else says(word) for number, word in enumerate(words)]
    (row,) = rows_by_words(talk(*messages), TemplateSteps(tokenizer))
    text = tokenizer.apply_chat_template([{"role": one.role, "content": one.text} for one in messages], tokenize=False)
    eos = SPECIAL[template][1]
    whole = tokenizer.encode(text, add_special_tokens=False)
    end = max(place for place, token in enumerate(whole) if token == tokenizer.eos_token_id) + 1
    assert list(row.ids) == whole[:end]
    said = [tokenizer.convert_ids_to_tokens(list(row.ids[span.start : span.stop])) for span in row.spans]
    written = [[*one.text.replace(" ", "▁"), *(["▁"] if template is LLAMA2 else []), eos] for one in messages[1::2]]
    assert [one[1:] if template is LLAMA2 else one for one in said] == written


@pytest.mark.parametrize("reason", ["length", "max_tokens", "MAX_TOKENS", "FinishReason.MAX_TOKENS", "content_filter"])
def test_reasons_of_cut_answers(reason: str, tokenizer: Any) -> None:
    assert is_cut(reason)
    for trace in (
        talk(user("Hi"), says("I will s", finish=reason)),
        talk(user("Hi"), says("I will s"), calls=(ModelCall(span_id="s", message=1, finish_reason=reason),)),
    ):
        assert trained(rows_by_words(trace, TemplateSteps(tokenizer)), tokenizer) == ["I will s"]


def test_an_answer_of_as_many_tokens_as_it_may_have_was_cut_and_so_was_a_cancelled_one(tokenizer: Any) -> None:
    steps, limits = TemplateSteps(tokenizer), {"max_tokens": 4}
    full = ModelCall(span_id="s", message=1, usage={"output_tokens": 4}, sampling=limits)
    ended = ModelCall(span_id="s", message=1, usage={"output_tokens": 4}, sampling=limits, finish_reason="stop")
    stopped = ModelCall(span_id="s", message=1, sampling={"untrainable": "a stop string cut the text: more"})
    for calls, status, wanted in [
        ((full,), "ok", "Yes"),
        ((ended,), "ok", "Yes<|im_end|>"),
        ((stopped,), "ok", "Yes"),
        ((), "cancelled", "Yes"),
        ((), "ok", "Yes<|im_end|>"),
    ]:
        rows = rows_by_words(talk(user("Hi"), says("Yes"), calls=calls, status=status), steps)
        assert trained(rows, tokenizer) == [wanted]


def test_a_prompt_that_loses_what_was_said_is_refused_and_so_is_one_about_a_picture(tokenizer: Any) -> None:
    deaf = byte_level(
        "{% for m in messages %}{% if m.role != 'tool' %}<|{{ m.role }}|>{{ m.content }}"
        "{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}<eos>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}",
        ["<|user|>", "<|assistant|>"],
    )
    with pytest.raises(TemplateRefused, match="the tool's 'sent on Monday'"):
        rows_by_words(talk(user("Hi"), says(call()), answer("sent on Monday"), says("Sent.")), TemplateSteps(deaf))
    words = talk(user("Hi"), says(call()), answer(" sent <|im_end|> on Monday\n"), says("Sent."))
    assert len(rows_by_words(words, TemplateSteps(tokenizer))) == 1
    picture = Message(role="user", parts=(Text(content="What is this?"), Uri(modality="image", uri="file:///a.png")))
    assert rows_from_text(tokenizer)(talk(picture, says("A lamp.")), None) == FILES


def test_what_cannot_be_imitated_is_read_and_not_trained(tokenizer: Any) -> None:
    steps = TemplateSteps(tokenizer)
    broken = talk(user("Hi"), says(call('{"id": 7')), answer("No JSON."), says("Sorry."))
    (row,) = rows_by_words(broken, steps)
    assert trained([row], tokenizer) == ["Sorry.<|im_end|>"]
    assert '{"id": 7<|im_end|>' in tokenizer.decode(row.ids)
    cut = talk(user("Hi"), says(call(), finish="length"), answer(), says(Reasoning(content="hm"), finish="length"))
    assert rows_by_words(cut, steps) == []


def test_the_prompt_is_what_the_call_was_shown(tokenizer: Any) -> None:
    shown = (Message.of("system", "Be brief."), user("(summary) They asked."), user("And now?"))
    calls = (ModelCall(span_id="s", message=1, input=shown, tools=TOOLS),)
    (row,) = rows_by_words(talk(user("And now?"), says("Sent."), calls=calls), TemplateSteps(tokenizer))
    read = tokenizer.decode(row.ids[: row.spans[0].start])
    assert "Be brief." in read
    assert "(summary)" in read
    assert "get_order" in read


def test_ids_and_names_that_a_template_wants_are_there() -> None:
    strict = byte_level(
        "{% for m in messages %}{% if m.role == 'tool' %}{% if m.tool_call_id | length != 9 %}"
        "{{ raise_exception('nine characters') }}{% endif %}<|tool|>{{ m.name }}:{{ m.content }}"
        "{% else %}<|{{ m.role }}|>{{ m.content }}{% for c in m.tool_calls or [] %}{% if c.id | length != 9 %}"
        "{{ raise_exception('nine characters') }}{% endif %}{{ c.function.name }}{{ c.function.arguments | tojson }}"
        "{% endfor %}<eos>{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}",
        ["<|user|>", "<|assistant|>", "<|tool|>"],
    )
    for id in ("call_abc12345678", None):
        (row,) = rows_by_words(talk(user("Hi"), says(call()), answer(id=id), says("Sent.")), TemplateSteps(strict))
        assert trained([row], strict) == ['get_order{"id": 7}<eos>', "Sent.<eos>"]
        assert "<|tool|>get_order:sent" in strict.decode(row.ids)


def test_thinking_that_the_prompt_opens_is_closed() -> None:
    steps = steps_of("deepseek_r1_distill")
    rows = rows_by_words(talk(user("Hi"), says(Reasoning(content="hm"), "Hello")), steps)
    assert trained(rows, steps.tokenizer) == ["hm\n</think>\n\nHello<｜end▁of▁sentence｜>"]
    assert steps.tokenizer.decode(rows[0].ids).count("<think>") == 1


def test_a_past_that_the_template_rewrites_for_a_finished_message_alone() -> None:
    """Two answers in a row: as a prompt the first is the last message, and has room for thinking; later it has none."""
    steps = steps_of("qwen3")
    rows = rows_by_words(talk(user("Hi"), says("One."), says("Two.")), steps)
    assert [text.rpartition("\n")[2] for text in trained(rows, steps.tokenizer)] == ["One.<|im_end|>", "Two.<|im_end|>"]
