"""What a local model thinks: no reply, no call, and the very tokens all the same."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage

from cm2_agent.langchain_messages import from_langchain
from cm2_agent.models.chat_template import reasoning_of
from cm2_agent.models.tokenizer import CHAT_TEMPLATE, byte_tokenizer
from cm2_agent.types.messages import Reasoning, Text
from tests.models.scripted_network import scripted

CALL = '<tool_call>{"name": "refund", "arguments": {"order_id": 7}}</tool_call>'
TOKENIZER = byte_tokenizer()


def opening() -> Any:
    """A tokenizer whose template opens the thinking, as those of reasoning models do."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE.replace(
        "{{ '<|im_start|>assistant' + nl }}{% endif -%}",
        "{{ '<|im_start|>assistant' + nl + '<think>' + nl }}{% endif -%}",
    )
    assert tokenizer.chat_template != CHAT_TEMPLATE
    return tokenizer


@pytest.mark.parametrize(
    ("text", "thinking", "said"),
    [
        ("<think>\nOn 2026-05-20.\n</think>\n\nI cannot say.", "On 2026-05-20.", "I cannot say."),
        ("<think>\nOn 2026-05-20", "On 2026-05-20", ""),
        ("On 2026-05-20.\n</think>\nI cannot say.", "On 2026-05-20.", "I cannot say."),
        (f"<think>{CALL}? No.</think>I cannot say.", f"{CALL}? No.", "I cannot say."),
    ],
)
def test_thinking_is_a_part_of_its_own(text: str, thinking: str, said: str) -> None:
    message: Any = scripted([f"{text}<|im_end|>"]).invoke("When?")
    assert (message.content, reasoning_of(message), message.tool_calls) == (said, thinking, [])
    assert TOKENIZER.decode(message.response_metadata["completion_ids"]) == f"{text}<|im_end|>"
    parts = from_langchain(message).parts
    assert parts == (Reasoning(content=thinking), *((Text(content=said),) if said else ()))


def test_a_template_that_opens_the_thinking() -> None:
    model = scripted([f"{CALL}, or", f"{CALL}? No.\n</think>\nYes.<|im_end|>"], opening(), max_tokens=40)
    cut: Any = model.invoke("When?")
    assert (cut.content, cut.tool_calls, cut.invalid_tool_calls) == ("", [], [])
    assert reasoning_of(cut).startswith("<tool_call>")
    model = scripted([f"{CALL}? No.\n</think>\nYes.<|im_end|>"], opening())
    message: Any = model.invoke("When?")
    assert (message.content, reasoning_of(message), message.tool_calls) == ("Yes.", f"{CALL}? No.", [])


@pytest.mark.parametrize("tokenizer", [TOKENIZER, opening()], ids=["the model opens", "the prompt opens"])
def test_the_next_prompt_goes_on_from_the_models_own_tokens(tokenizer: Any) -> None:
    model = scripted(["<think>hm</think>Yes.<|im_end|>", "ok</think>Bye.<|im_end|>"], tokenizer)
    first: Any = model.invoke("When?")
    meta = first.response_metadata
    own = meta["prompt_ids"] + meta["completion_ids"]
    assert model.prompt_ids([HumanMessage("When?"), first, HumanMessage("Thanks")])[: len(own)] == own
    edited = first.model_copy(update={"additional_kwargs": {}})
    afresh = tokenizer.decode(model.prompt_ids([HumanMessage("When?"), edited, HumanMessage("Thanks")]))
    assert "hm</think>" not in afresh
    remade = AIMessage("Yes.", additional_kwargs={"reasoning_content": "hm"})
    afresh = tokenizer.decode(model.prompt_ids([HumanMessage("When?"), remade, HumanMessage("Thanks")]))
    assert "<think>hm</think>Yes." in afresh


def test_what_a_user_writes_is_the_users() -> None:
    model = scripted(["Yes.<|im_end|>"])
    said = "<think>I am clever</think>When?"
    message: Any = model.invoke(said)
    assert said in TOKENIZER.decode(message.response_metadata["prompt_ids"])
    assert from_langchain(HumanMessage(said)).parts == (Text(content=said),)


def test_a_text_that_a_stop_string_cut_is_not_what_the_ids_say() -> None:
    model = scripted(["Yes. STOP and more<|im_end|>", "Yes. STO", "Yes, at the end: STOP"], max_tokens=21)
    cut: Any = model.invoke("When?", stop=["STOP"])
    meta = cut.response_metadata
    assert (cut.content, meta["finish_reason"]) == ("Yes.", "stop")
    assert TOKENIZER.decode(meta["completion_ids"]) == "Yes. STOP"
    assert len(meta["logprobs"]) == len(meta["completion_ids"])
    assert "stop string" in meta["untrainable"]
    assert meta["sampling"]["stop"] == ["STOP"]
    whole: Any = scripted(["Yes.<|im_end|>"]).invoke("When?", stop=["STOP"])
    assert "untrainable" not in whole.response_metadata
    last: Any = scripted(["Yes, STOP"], max_tokens=9).invoke("When?", stop=["STOP"])
    assert (last.content, last.response_metadata["finish_reason"]) == ("Yes,", "stop")
