"""The bundled tokenizer: any text round-trips, tool tags survive, and a longer dialogue never re-renders an earlier
one."""

import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from cm2_agent.errors import MissingExtra
from cm2_agent.models.tokenizer import TAGS, byte_tokenizer
from tests.fuzzing import examples

WORDS = ["get_order", " order", "day ", "17", '{"name": "']
TOKENIZER = byte_tokenizer(WORDS)
TOOL = {"type": "function", "function": {"name": "get_order", "description": "Look up.", "parameters": {}}}


@settings(max_examples=examples(200))
@given(st.text(), st.lists(st.sampled_from([*WORDS, *TAGS, "<|im_end|>", " ", "."]), max_size=4))
def test_any_text_decodes_to_itself(text: Any, parts: Any) -> None:
    whole = "".join(parts) + text + "".join(parts)
    whole = whole.encode("utf-8", "replace").decode()  # lone surrogates are no text
    ids = TOKENIZER.encode(whole)
    assert TOKENIZER.decode(ids) == whole
    assert all(0 <= i < len(TOKENIZER) for i in ids)


def test_extra_words_are_single_tokens_and_the_longest_wins() -> None:
    tokenizer = byte_tokenizer(["or", "order", "order_id"])
    assert [tokenizer.decode([i]) for i in tokenizer.encode("order_id order or")] == [
        "order_id",
        " ",
        "order",
        " ",
        "or",
    ]
    assert len(byte_tokenizer()) == 256 + 3 + len(TAGS)


@pytest.mark.parametrize("word", ["", "é", "a\tb"])
def test_words_that_could_not_be_decoded_are_refused(word: Any) -> None:
    with pytest.raises(ValueError, match="extra word"):
        byte_tokenizer([word])


def test_tool_tags_stay_where_special_tokens_are_skipped() -> None:
    ids = TOKENIZER.encode("<tool_call>{}</tool_call><|im_end|>")
    assert TOKENIZER.decode(ids, skip_special_tokens=True) == "<tool_call>{}</tool_call>"


def dialogue() -> Any:
    call = {"type": "function", "function": {"name": "get_order", "arguments": {"order_id": "é 17"}}}
    return [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Where is it?"},
        {"role": "assistant", "content": "", "tool_calls": [call, call]},
        {"role": "tool", "content": "day 17"},
        {"role": "tool", "content": "day 18"},
        {"role": "assistant", "content": "On day 17."},
        {"role": "user", "content": "Thanks."},
        {"role": "assistant", "content": "Bye."},
    ]


@pytest.mark.parametrize("tools", [None, [TOOL]])
def test_the_template_is_prefix_stable(tools: Any) -> None:
    messages = dialogue()
    whole = TOKENIZER.apply_chat_template(messages, tools=tools, tokenize=False)
    for count in range(1, len(messages)):
        part = TOKENIZER.apply_chat_template(messages[:count], tools=tools, tokenize=False)
        assert whole.startswith(part)
        if messages[count]["role"] == "assistant":
            asked = TOKENIZER.apply_chat_template(
                messages[:count], tools=tools, tokenize=False, add_generation_prompt=True
            )
            assert whole.startswith(asked)


def test_generation_marks_cover_the_assistants_messages_and_nothing_else() -> None:
    out = TOKENIZER.apply_chat_template(dialogue(), tools=[TOOL], return_dict=True, return_assistant_tokens_mask=True)
    covered = TOKENIZER.decode([i for i, mask in zip(out["input_ids"], out["assistant_masks"], strict=True) if mask])
    call = '<tool_call>{"name": "get_order", "arguments": {"order_id": "é 17"}}</tool_call>'
    assert covered == f"{call}{call}<|im_end|>On day 17.<|im_end|>Bye.<|im_end|>"


def test_arguments_may_be_a_json_string() -> None:
    as_object = dialogue()[:3]
    as_string = dialogue()[:3]
    for call in as_string[2]["tool_calls"]:
        call["function"]["arguments"] = '{"order_id": "é 17"}'
    render = TOKENIZER.apply_chat_template
    assert render(as_object, tokenize=False) == render(as_string, tokenize=False)


def test_it_is_the_same_after_saving(tmp_path: Any) -> None:
    TOKENIZER.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    text = "get_order 17 ordering <tool_call> 日本<|im_end|>"
    assert again.encode(text) == TOKENIZER.encode(text)
    assert again.decode(again.encode(text)) == text
    assert again.chat_template == TOKENIZER.chat_template
    assert again.eos_token_id == TOKENIZER.eos_token_id


def test_without_transformers_it_says_which_extra_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtra, match=r'pip install "cm2-agent\[train\]"'):
        byte_tokenizer()
