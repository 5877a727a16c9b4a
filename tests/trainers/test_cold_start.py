"""The cold start's helpers: dialogues are written by real tools, the drill is a plain loop, words are tokens."""

from __future__ import annotations

import copy
import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.tools import tool
from transformers import AutoModelForCausalLM, AutoTokenizer

from cm2_agent.errors import TrainError
from cm2_agent.models import LocalChatModel
from cm2_agent.models.tokenizer import byte_tokenizer, word_tokenizer
from cm2_agent.trainers import Demonstration, cold_start, copy_drill, imitate, small_policy
from tests.fuzzing import examples

PLACES = {"AB-12": {"level": "3", "row": "40"}, "CD-34": {"level": "5", "row": "60"}}
WORDS = ["AB", "CD", "12", "34", "3", "5", "40", "60", '{"level": "', '", "row": "', '"plate": "']
SMALL: dict[str, Any] = {"hidden": 32, "layers": 1, "heads": 2, "kv_heads": 1, "head_dim": 16, "ffn": 32}


@tool
def find_car(plate: str) -> dict[str, str]:
    """Look up where a car stands."""
    return PLACES[plate]


def demonstration(plate: str) -> Demonstration:
    shown = Demonstration("You find cars.")
    shown.hear(f"Where is {plate}?")
    shown.call(find_car, plate=plate)
    shown.say(f"It is on level {PLACES[plate]['level']}.")
    return shown


DIALOGUES = [demonstration(plate).messages for plate in PLACES] * 4


def test_a_demonstration_holds_what_the_tool_really_answered() -> None:
    assert [message["role"] for message in DIALOGUES[0]] == ["system", "user", "assistant", "tool", "assistant"]
    call = DIALOGUES[0][2]["tool_calls"][0]["function"]
    assert call == {"name": "find_car", "arguments": '{"plate": "AB-12"}'}
    assert DIALOGUES[0][3] == {"role": "tool", "name": "find_car", "content": '{"level": "3", "row": "40"}'}
    plain = Demonstration()
    assert plain.call(len_of, text="four") == "4"
    assert plain.messages[0]["tool_calls"][0]["function"]["name"] == "len_of"
    with pytest.raises(KeyError):
        plain.call(find_car, plate="XX-99")


def len_of(text: str) -> int:
    return len(text)


@settings(max_examples=examples(50))
@given(st.text())
def test_a_tokenizer_of_words_still_holds_any_text(text: str) -> None:
    text = text.encode("utf-8", "replace").decode()
    tokenizer = word_tokenizer(DIALOGUES, words=WORDS)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_words_said_and_read_are_tokens_and_the_same_dialogues_give_the_same_ids() -> None:
    tokenizer = word_tokenizer(DIALOGUES, words=WORDS, texts=["No such car."])
    for text in (*WORDS, "You find cars.", "No such car.", "Where", " level", "assistant\n"):
        assert len(tokenizer.encode(text)) == 1, text
    again = word_tokenizer(DIALOGUES, words=WORDS, texts=["No such car."])
    assert again.get_vocab() == tokenizer.get_vocab()
    spelled = byte_tokenizer()
    assert len(tokenizer.encode("It is on level 3.")) == 7 < len(spelled.encode("It is on level 3."))


def test_the_drill_is_a_plain_loop_whose_loss_is_on_the_second_time() -> None:
    tokenizer = word_tokenizer(words=WORDS)
    model = small_policy(tokenizer, seed=1, **SMALL)
    twin = copy.deepcopy(model)
    copy_drill(model, tokenizer, WORDS, steps=3, batch=4, length=5, learning_rate=1e-2, seed=2)
    rng = random.Random("drill:2")
    optimizer = torch.optim.AdamW(twin.parameters(), lr=1e-2, betas=(0.9, 0.98), weight_decay=0.0)
    for step in range(3):
        half = torch.tensor([tokenizer.convert_tokens_to_ids(rng.choices(WORDS, k=5)) for _ in range(4)])
        ids = torch.cat([half, half], dim=1)
        logprobs = torch.log_softmax(twin(input_ids=ids).logits, -1)
        loss = -torch.stack([logprobs[:, place, :].gather(1, ids[:, [place + 1]]) for place in range(4, 9)]).mean()
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * min((step + 1) / 10, (3 - step) / 3 * 1.5, 1.0)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
        optimizer.step()
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_imitation_is_of_the_agents_words_alone() -> None:
    """Other users' words change nothing of what is learnt in one step but through what the agent reads."""
    tokenizer = word_tokenizer(DIALOGUES, words=WORDS)
    silent = Demonstration()
    silent.hear("Where is AB-12?")
    model = small_policy(tokenizer, **SMALL)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(Exception, match=r"\w"):
        imitate(model, tokenizer, [silent.messages], steps=1)  # nothing to learn: TRL refuses
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    done: list[tuple[str, int, int]] = []
    imitate(model, tokenizer, DIALOGUES, tools=[find_car], steps=2, progress=lambda *step: done.append(step))
    assert done == [("imitating demonstrations", 1, 2), ("imitating demonstrations", 2, 2)]
    assert any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_cold_start_is_a_folder_that_samples_and_the_same_seed_gives_the_same_bits(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    paths = [
        cold_start(tmp_path / name, DIALOGUES, tools=[find_car], words=WORDS, drill_steps=1, steps=2, seed=seed)
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    first, again, other = ((path / "model.safetensors").read_bytes() for path in paths)
    assert first == again
    assert first != other
    assert AutoModelForCausalLM.from_pretrained(paths[0]).num_parameters() > 0
    assert len(AutoTokenizer.from_pretrained(paths[0]).encode("AB")) == 1
    message = LocalChatModel.load(paths[0], max_tokens=4).bind_tools([find_car]).invoke("Where is AB-12?")
    assert message.response_metadata["completion_ids"]


def test_what_cannot_be_meant_is_refused(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note.txt").write_text("mine")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"dialogues": []}, "no dialogue was given"),
        ({"steps": 0}, "steps 0"),
        ({"drill_steps": -1}, "drill_steps -1"),
        ({"out": tmp_path / "full"}, "holds something"),
    ]
    for wrong, message in cases:
        with pytest.raises(TrainError, match=message):
            cold_start(**{"out": tmp_path / "new", "dialogues": DIALOGUES, "steps": 1, **wrong})
    tokenizer = word_tokenizer(words=["AB"])
    model = small_policy(tokenizer, **SMALL)
    with pytest.raises(TrainError, match="'lamp post' is not one token"):
        copy_drill(model, tokenizer, ["AB", "lamp post"], steps=1)
    with pytest.raises(TrainError, match="no word"):
        copy_drill(model, tokenizer, [], steps=1)
    assert not (tmp_path / "new").exists()
    assert (tmp_path / "full" / "note.txt").read_text() == "mine"


def test_the_pages_environment_needs_at_most_sixty_lines_besides_its_tools_and_tasks() -> None:
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "build-an-environment.md").read_text(encoding="utf-8")
    written = re.findall(r"^```python ?([^\n]*)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert [name for name, _ in written] == ["car_park.py", "", ""]
    lines = [line for _, code in written[1:] for line in code.splitlines() if line.strip()]
    assert len(lines) <= 60
    assert f"The rest is {len(lines)} lines of code." in page
