"""What SFT and DPO share: defaults, what is given twice, the size of a step, and where a run goes on."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from trl import DPOConfig, SFTConfig

from cm2_agent.errors import TrainError
from cm2_agent.trainers import DPO, GRPO, RFT, SFT
from cm2_agent.trainers.trl_config import LEARNING_RATES
from cm2_agent.types.messages import Message
from tests.trainers.loop import Sampler
from tests.trainers.test_dpo import dialogue, group
from tests.trainers.test_resume import Stop, stopping

LORA = {"r": 4, "lora_alpha": 8}


def rated() -> Any:
    answers = ("Sent.", "On its way.", "It was lost, sorry.", "No.")
    traces = [dialogue(answer, Message.of("assistant", answer)) for answer in answers]
    return [group(*zip(traces, (1.0, 0.75, 0.5, 0.0), strict=True))]


@pytest.mark.parametrize("kind", [SFT, RFT, DPO, GRPO])
def test_a_seed_in_args_is_the_seed(kind: Any) -> None:
    assert kind("m", "out", args={"seed": 3}).seed == 3
    assert kind("m", "out", seed=3, args={"seed": 3}).seed == 3
    with pytest.raises(TrainError, match="seed 4 and args with seed 3 were given; give one of them"):
        kind("m", "out", seed=4, args={"seed": 3})


@pytest.mark.parametrize(("kind", "config"), [(SFT, SFTConfig), (DPO, DPOConfig)])
def test_what_args_say_of_a_keyword_is_heard(kind: Any, config: Any) -> None:
    name = "rows_per_step" if kind is SFT else "pairs_per_step"
    assert kind("m", "out", args={"max_length": 50}).max_length == 50
    assert kind("m", "out", args=config(bf16=False, use_cpu=True, max_length=50)).max_length == 50
    assert kind("m", "out", args=config(bf16=False, use_cpu=True)).max_length is None
    with pytest.raises(TrainError, match="max_length 40 and args with max_length 50 were given"):
        kind("m", "out", max_length=40, args={"max_length": 50})
    for settings, message in [
        (
            {name: 4, "args": {"per_device_train_batch_size": 2}},
            f"{name} 4 and args with per_device_train_batch_size 2",
        ),
        (
            {name: 6, "args": {"gradient_accumulation_steps": 4}},
            f"gradient_accumulation_steps 4 does not divide {name} 6",
        ),
    ]:
        with pytest.raises(TrainError, match=message):
            kind("m", "out", **settings)._micro_batch()
    both = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 3}
    assert kind("m", "out", args=both)._micro_batch() == 4


def test_dialogues_are_not_packed(policy: Callable[..., Any], tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(TrainError, match="packing was asked for, and a row is a dialogue"):
        SFT(policy(1), tmp_path / "out", tokenizer=tokenizer, args={"packing": True}).train(rated())


@pytest.mark.parametrize("kind", [SFT, DPO, GRPO])
@pytest.mark.parametrize(
    "settings",
    [
        {"steps": 2, "args": {"num_train_epochs": 3}},
        {"epochs": 3, "args": {"max_steps": 2}},
        {"args": {"max_steps": 2, "num_train_epochs": 3}},
    ],
)
def test_steps_and_passes_are_one_or_the_other(
    kind: Any, settings: Any, policy: Callable[..., Any], sample: Sampler, tokenizer: Any, tmp_path: Path
) -> None:
    groups = sample(policy(1), groups=1, size=2) if kind is GRPO else rated()
    with pytest.raises(TrainError, match=r"2 optimizer steps .* and 3 passes .*give one of the two"):
        kind(policy(1), tmp_path / "out", tokenizer=tokenizer, **settings).train(groups)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", [SFT, DPO, GRPO])
def test_an_adapter_has_a_learning_rate_of_its_own(
    kind: Any, policy: Callable[..., Any], sample: Sampler, tokenizer: Any, tmp_path: Path
) -> None:
    groups = sample(policy(1), groups=1, size=2) if kind is GRPO else rated()
    full, adapter = LEARNING_RATES[kind.__name__.lower()]
    assert adapter == pytest.approx(10 * full)

    def rate(name: str, model: Any = None, **settings: Any) -> float:
        made = kind(model or policy(1), tmp_path / name, tokenizer=tokenizer, steps=1, **settings)
        made.train(groups)
        kept = json.loads((tmp_path / name / "run.json").read_text())["settings"]["learning_rate"]
        assert made.report["learning_rate"] == kept
        return float(kept)

    assert rate("full") == full
    assert rate("adapter", peft_config=LORA) == adapter
    assert rate("given", peft_config=LORA, learning_rate=full) == full
    assert rate("args", peft_config=LORA, args={"learning_rate": 5e-6}) == 5e-6
    if kind is SFT:  # a second round trains the adapter that is there
        policy(1).save_pretrained(tmp_path / "base")
        tokenizer.save_pretrained(tmp_path / "base")
        rate("first", str(tmp_path / "base"), peft_config=LORA)
        assert rate("second", str(tmp_path / "first")) == adapter


def test_a_step_in_parts_is_the_step(policy: Callable[..., Any], tokenizer: Any, tmp_path: Path) -> None:
    losses = []
    for name, args in (("whole", {}), ("parts", {"gradient_accumulation_steps": 2})):
        dpo = DPO(policy(1), tmp_path / name, tokenizer=tokenizer, pairs_per_step=4, learning_rate=1e-3, args=args)
        dpo.train(rated())
        losses.append([one["loss"] for one in dpo.report["history"]])
        assert dpo.report["steps"] == len(losses[-1]) == 2  # of six pairs
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)


class Watching:
    """The progress of a run that wants to know from where it goes on."""

    def __init__(self) -> None:
        self.seen: list[tuple[Any, ...]] = []

    def __call__(self, step: int, total: int, metrics: dict[str, float]) -> None:
        self.seen.append((step, total))

    def resumed(self, step: int, total: int, checkpoint: Path) -> None:
        self.seen.append((step, total, checkpoint))


@pytest.mark.parametrize("kind", [SFT, DPO, GRPO])
def test_a_run_says_from_where_it_goes_on(
    kind: Any,
    policy: Callable[..., Any],
    sample: Sampler,
    tokenizer: Any,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    groups = sample(policy(1), groups=1, size=2) if kind is GRPO else rated()

    def one(name: str) -> Any:
        settings = {"steps": 4, "learning_rate": 1e-3, "args": {"save_steps": 1}}
        return kind(policy(1), tmp_path / name, tokenizer=tokenizer, **settings)

    for name in ("heard", "logged"):
        with pytest.raises(Stop):
            one(name).train(groups, progress=stopping(3))
    watching = Watching()
    with caplog.at_level(logging.WARNING, logger="cm2_agent"):
        one("heard").train(groups, progress=watching)
        assert "going on" not in caplog.text
        one("logged").train(groups)
    newest = sorted((tmp_path / "heard.run").glob("checkpoint-*"))[-1]
    start = watching.seen[0][0]
    assert watching.seen[0] == (start, 4, tmp_path / "heard.run" / f"checkpoint-{start}")
    assert newest.name == "checkpoint-4"
    assert watching.seen[1:] == [(step, 4) for step in range(start + 1, 5)]
    assert f"going on from step {start} of 4 ({tmp_path / 'logged.run' / f'checkpoint-{start}'})" in caplog.text
    for left, right in zip(*(sorted((tmp_path / name).iterdir()) for name in ("heard", "logged")), strict=True):
        assert left.read_bytes() == right.read_bytes()
    assert not list(tmp_path.rglob("README.md"))
