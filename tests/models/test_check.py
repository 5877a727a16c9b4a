"""`check_model`: what a folder is found to do and to lose, and the table of the templates that TRL ships."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage

from cm2_agent.errors import ModelError
from cm2_agent.models import byte_tokenizer, check_model
from cm2_agent.models.check import check_tokenizer
from tests.models.scripted_network import scripted
from tests.models.shipped_templates import BEGIN, END, NAMES, PAGE, byte_level, checked, shipped, table
from tests.models.test_template_probe import MISTRAL

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def folder(path: Path, template: str | None = None, **generation: Any) -> Path:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template or tokenizer.chat_template
    tokenizer.save_pretrained(path)
    (path / "generation_config.json").write_text(json.dumps(generation))
    return path


def test_a_whole_dialogue_there_and_back(tmp_path: Path) -> None:
    found = check_model(folder(tmp_path))
    assert (found.ok, found.problems, found.notes) == (True, [], [])
    assert (found.tools, found.calls.partition(":")[0]) == ("shown", "hermes")
    assert list(found.stops.values()) == ["<|im_end|>"]
    sampled = [token.text for token in found.tokens if token.source == "sampled"]
    assert sampled.count("<|im_end|>") == 2
    assert "".join(sampled).count("Ada Lovelace") == 1
    text = "".join(token.text for token in found.tokens)
    assert text.endswith("<|im_start|>user\nThanks <|im_end|><|im_end|>\n<|im_start|>assistant\n")
    assert text.count("It was shipped.") == 1


@pytest.mark.parametrize(
    ("template", "generation", "problem"),
    [
        (CHATML, {}, "it ignores `tools`"),
        (CHATML.replace("<|im_end|>", "<|end|>"), {}, "no stop token ends a message"),
        (CHATML.replace("{{ m.content }}", "{{ m.content if m.role != 'user' or loop.first }}"), {}, "does not hold"),
        (CHATML.replace("{{ m.content }}", "{{ m.content | upper }}"), {}, "is read as words"),
        ("{{ raise_exception('never') }}", {}, "the template refuses"),
    ],
)
def test_what_would_be_lost_is_said(tmp_path: Path, template: str, generation: dict[str, Any], problem: str) -> None:
    found = check_model(folder(tmp_path, template, **generation))
    assert any(problem in one for one in found.problems)


def test_without_tools_a_template_that_ignores_them_is_whole(tmp_path: Path) -> None:
    assert check_model(folder(tmp_path, CHATML), tools=False).problems == []


def test_tools_that_are_shown_with_the_last_question_alone() -> None:
    """As Mistral's templates do: the dialogue's own tokens stay, and the check says what differs."""
    words = ["[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]"]
    found = check_tokenizer(byte_level(MISTRAL, [*words, "[/TOOL_RESULTS]"]), name="mistral")
    assert found.problems == []
    assert any("nine letters" in note for note in found.notes)
    assert any("otherwise than they were sampled" in note for note in found.notes)


def test_a_stop_token_that_is_text_is_said(tmp_path: Path) -> None:
    found = check_model(folder(tmp_path, eos_token_id=[2, 258, 32000]))
    assert found.ok
    assert found.notes == [
        "the configuration stops at '#' (2), which is text in this tokenizer: answers end where they hold it",
        "the configuration stops at token 32000, which this tokenizer does not have",
    ]


def test_a_legacy_schema_is_said(tmp_path: Path) -> None:
    path = folder(tmp_path)
    settings = json.loads((path / "tokenizer_config.json").read_text())
    (path / "tokenizer_config.json").write_text(json.dumps({**settings, "response_schema": {"type": "object"}}))
    assert any("response_schema" in note for note in check_model(path).notes)


def test_no_code_of_a_folder_is_run(tmp_path: Path) -> None:
    path = folder(tmp_path)
    (path / "evil.py").write_text("raise SystemExit('ran')\n")
    settings = json.loads((path / "tokenizer_config.json").read_text())
    settings["auto_map"] = {"AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"]}
    settings["tokenizer_class"] = "Tokenizer"
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    (path / "config.json").write_text(json.dumps({"auto_map": {"AutoModelForCausalLM": "evil.Model"}}))
    found = check_model(path)
    assert any("needs code of its own (auto_map AutoModelForCausalLM: evil.Model" in one for one in found.problems)


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"Expected a folder with tokenizer\.json"):
        check_model(tmp_path)


def test_another_stop_token_is_followed_by_the_templates_own_ending() -> None:
    """The next question is read, and the template's ending stands before it."""
    tokenizer = shipped("gptoss")
    tokenizer.eos_token = "<|return|>"
    answer = "<|channel|>final<|message|>Shipped.<|return|>"
    model = scripted([answer, answer], tokenizer=tokenizer)
    first = model.invoke("Where is it?")
    assert first.content == "Shipped."
    ids = model.prompt_ids([HumanMessage("Where is it?"), first, HumanMessage("And order 8?")])
    own = first.response_metadata["prompt_ids"] + first.response_metadata["completion_ids"]
    assert ids[: len(own)] == own
    after = "<|end|><|start|>user<|message|>And order 8?<|end|><|start|>assistant"
    assert tokenizer.decode(ids[len(own) :]) == after


def test_two_stops_of_a_chatml_model() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHATML
    model = scripted(["Yes.<|pad|>"], tokenizer=tokenizer)
    model._dialogue.stop_ids = frozenset({tokenizer.pad_token_id, tokenizer.eos_token_id})
    first = model.invoke("Where is it?")
    assert isinstance(first, AIMessage)
    ids = model.prompt_ids([HumanMessage("Where is it?"), first, HumanMessage("And <|pad|> order 8?")])
    assert tokenizer.decode(ids).endswith(
        "Yes.<|pad|><|im_end|>\n<|im_start|>user\nAnd <|pad|> order 8?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_the_page_has_the_table() -> None:
    page = PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    assert page.strip() == table(), "type: python -m tests.models.shipped_templates"
    assert all(checked(name).ok or checked(name).problems for name in NAMES)


def test_a_tokenizer_in_memory() -> None:
    assert check_tokenizer(byte_tokenizer(), name="bytes").ok
