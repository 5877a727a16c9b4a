"""The tiny policy: its vocabulary, its drill, and a cold start that is the same twice. (What it reaches is the
quickstart's own figure.)"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from cm2_agent.quickstart import policy
from cm2_agent.quickstart.config import CONFIG, ColdStartConfig, Config, PolicyConfig
from cm2_agent.quickstart.demonstrations import demonstrations
from cm2_agent.quickstart.order_desk import orders
from cm2_agent.quickstart.tasks import heldout_tasks
from cm2_agent.trainers.cold_start import drill_batches
from tests.fuzzing import examples

SMALL = Config(
    policy=PolicyConfig(hidden=32, layers=1, heads=2, kv_heads=1, head_dim=16, ffn=32),
    cold_start=replace(ColdStartConfig(), drill_steps=3, demonstrations=24, steps=3, batch=4),
)
WORDS = policy.tokenizer()


@settings(max_examples=examples(50))
@given(st.text())
def test_the_shops_vocabulary_still_holds_any_text(text: Any) -> None:
    text = text.encode("utf-8", "replace").decode()
    assert WORDS.decode(WORDS.encode(text)) == text


def test_dialogues_are_short_and_heldout_ids_are_spelled_with_known_words() -> None:
    shown = policy.tools()
    lengths = [len(WORDS.apply_chat_template(d, tools=shown, return_dict=False)) for d in demonstrations(60, 0.0, 0)]
    assert max(lengths) < 256
    for order in orders("heldout")[:20]:
        assert len(WORDS.encode(order.id)) == 3
        assert len(WORDS.encode(order.item)) == 3
    spelled = [WORDS.encode(text) for task in heldout_tasks(0) for text in task.turns]
    assert max(map(len, spelled)) < 20


def test_the_drill_spells_no_order_and_no_item() -> None:
    cold = CONFIG.cold_start
    sizes = {"steps": cold.drill_steps, "batch": cold.drill_batch, "length": cold.drill_words}
    batches = drill_batches(WORDS, policy.drill_words(), seed=0, **sizes)
    text = " ".join(WORDS.decode(row.tolist()) for batch in batches for row in batch)
    assert not [
        order for book in ("training", "heldout") for order in orders(book) if order.id in text or order.item in text
    ]


@pytest.mark.slow
def test_a_cold_start_loads_again_and_the_same_seed_gives_the_same_bits(tmp_path: Any) -> None:
    torch.set_num_threads(1)
    told = []
    paths = [
        policy.cold_start(seed, tmp_path / name, lambda *step: told.append(step), SMALL)
        for seed, name in ((0, "a"), (0, "b"), (1, "c"))
    ]
    assert paths[0] == tmp_path / "a"
    first, again, other = (AutoModelForCausalLM.from_pretrained(path).state_dict() for path in paths)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    assert AutoTokenizer.from_pretrained(paths[0]).encode("order KL-117") == WORDS.encode("order KL-117")
    assert (paths[0] / "model.safetensors").exists()
    assert told[2] == ("copy drill", 3, 3)
    assert told[5] == ("imitating demonstrations", 3, 3)


def test_learning_rates_fall_from_the_first_round_to_the_last() -> None:
    rounds = CONFIG.rounds
    rates = [rounds.learning_rate(number) for number in range(1, rounds.rounds + 1)]
    assert rates[0] == rounds.lr
    assert rates[-1] == pytest.approx(rounds.last_lr)
    assert rates == sorted(rates, reverse=True)
    assert replace(rounds, rounds=1).learning_rate(1) == rounds.lr
