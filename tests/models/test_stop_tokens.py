"""At which tokens a message ends: those of the configuration, the template's own on base checkpoints, or none, which is
said when the model is made."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
from langchain_core.messages import HumanMessage

from cm2_agent.models.stop_tokens import stop_tokens
from tests.models.scripted_network import ScriptedNetwork, scripted
from tests.models.shipped_templates import STOPS, byte_level, shipped

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ZEPHYR = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
WORDS = ["<|im_start|>", "<|im_end|>"]


def configured(*eos: int | None) -> Any:
    return SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=list(eos)))


@pytest.mark.parametrize(
    ("name", "added"),
    [
        ("qwen3", {"<|im_end|>"}),
        ("llama3_1", {"<|eot_id|>"}),
        ("gemma3", {"<end_of_turn>"}),
        ("gptoss", {"<|return|>", "<|call|>"}),
        ("gemma4", {"<turn|>", "<|tool_response>"}),
        ("phi3", {"<|end|>"}),
        ("glm4moe", {"<|user|>", "<|observation|>"}),  # it begins the next message and ends none
        ("cohere2", {"<|END_RESPONSE|>"}),
    ],
)
def test_a_base_checkpoint_stops_where_its_template_ends_a_message(name: str, added: set[str]) -> None:
    tokenizer = shipped(name)
    found = stop_tokens(SimpleNamespace(), tokenizer)
    assert set(found.added) == added
    assert {tokenizer.decode([id_]) for id_ in found.ids} == {"<eos>", *added}
    assert found.problem is None
    known = tokenizer.get_vocab()
    again = stop_tokens(configured(*(known[stop] for stop in STOPS if stop in known)), tokenizer)
    assert again.problem is None
    assert again.added == (("<|END_RESPONSE|>",) if name == "cohere2" else ())


def test_configured_stops_that_end_a_message_are_all() -> None:
    tokenizer = byte_level(CHATML, [*WORDS, "<|endoftext|>"], eos="<|im_end|>")
    two = [tokenizer.convert_tokens_to_ids(word) for word in ("<|im_end|>", "<|endoftext|>")]
    assert stop_tokens(configured(*two), tokenizer).ids == set(two)
    assert stop_tokens(configured(None), tokenizer).ids == {two[0]}
    assert stop_tokens(SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=two[1])), tokenizer).ids == set(
        two
    )
    assert stop_tokens(SimpleNamespace(), byte_level(ZEPHYR, [], eos="<eos>")).added == ()


def test_an_answer_of_a_base_checkpoint_ends_and_the_next_prompt_goes_on_from_it(caplog: Any) -> None:
    tokenizer = byte_level(CHATML, [*WORDS, "<|endoftext|>"], eos="<|endoftext|>")
    with caplog.at_level(logging.WARNING, "cm2_agent"):
        model = scripted(["Hello.<|im_end|>", "Bye.<|endoftext|>"], tokenizer=tokenizer)
    assert caplog.records == []
    asked = HumanMessage("Hi")
    first = model.invoke([asked])
    assert (first.content, first.response_metadata["finish_reason"]) == ("Hello.", "stop")
    second = model.invoke([asked, first, HumanMessage("Bye")])
    read = tokenizer.decode(second.response_metadata["prompt_ids"])
    assert read == CHATML_TALK
    third = model.prompt_ids([asked, first, HumanMessage("Bye"), second, HumanMessage("Well?")])
    assert tokenizer.decode(third) == (
        f"{CHATML_TALK}Bye.<|endoftext|><|im_end|>\n<|im_start|>user\nWell?<|im_end|>\n<|im_start|>assistant\n"
    )


CHATML_TALK = (
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n"
    "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n"
)


@pytest.mark.parametrize(
    ("special", "eos", "problem"),
    [(["<|endoftext|>"], "<|endoftext|>", "no stop token ends a message"), ([], None, "there is no stop token")],
)
def test_a_template_whose_marks_are_no_tokens_is_said_when_the_model_is_made(
    special: list[str], eos: str | None, problem: str, caplog: Any
) -> None:
    tokenizer = byte_level(CHATML, special, eos=eos or "<eos>")
    if eos is None:
        tokenizer.eos_token = None
    assert problem in str(stop_tokens(SimpleNamespace(), tokenizer).problem)
    with caplog.at_level(logging.WARNING, "cm2_agent"):
        scripted([], tokenizer=tokenizer, model_name="base")
    (record,) = caplog.records
    assert record.getMessage().startswith("base: ")
    assert problem in record.getMessage()


def test_a_template_that_raises_ends_nothing_and_raises_nothing() -> None:
    tokenizer = byte_level("{{ raise_exception('never') }}", WORDS)
    assert stop_tokens(ScriptedNetwork(tokenizer, []), tokenizer).problem is not None
