"""A policy that collapsed is not saved, whichever trainer it came from; ordinary ones are."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm2_agent.errors import TrainError
from cm2_agent.trainers import DPO, GRPO, RFT, SFT
from cm2_agent.trainers.collapse import LIMIT, PAIR_LIMIT, reinforced, require_sound
from cm2_agent.trainers.off_policy import some
from cm2_agent.trainers.rows import Row, Span
from cm2_agent.types.messages import Message
from tests.trainers.loop import Sampler
from tests.trainers.test_dpo import dialogue, group


@pytest.mark.parametrize("lora", [None, {"r": 4, "lora_alpha": 8}])
def test_grpo_saves_no_collapsed_policy_unless_told(
    lora: Any, policy: Callable[..., Any], sample: Sampler, tokenizer: Any, tmp_path: Path
) -> None:
    wide = {"initializer_range": 0.4}  # logits of tens: the policy has something to lose
    groups = sample(policy(1, **wide), groups=3)

    def grpo(out: str, **settings: Any) -> GRPO:
        given = {"steps": 2, "learning_rate": 10.0, "peft_config": lora, **settings}
        return GRPO(policy(1, **wide), tmp_path / out, tokenizer=tokenizer, **given)

    grpo("out", steps=1, learning_rate=1e-3).train(groups)
    before = (tmp_path / "out" / "report.json").read_bytes()
    for args in (None, {"save_steps": 1}):
        with pytest.raises(
            TrainError, match=r"the policy has collapsed: after \d steps? .* nats .*pass max_kl="
        ) as said:
            grpo("out", overwrite=True, args=args).train(groups)
        assert "learning_rate (now 10)" in str(said.value)
        assert (tmp_path / "out" / "report.json").read_bytes() == before
    assert not list(tmp_path.rglob("checkpoint-*"))
    told = grpo("told", max_kl=math.inf)
    told.train(groups)
    assert told.report["off_policy_after"]["kl_per_rollout"] > 50


@pytest.mark.parametrize("kind", [SFT, DPO])
def test_imitation_and_preference_save_none_either(
    kind: Any, policy: Callable[..., Any], tokenizer: Any, tmp_path: Path
) -> None:
    answers = ("Sent.", "On its way.", "No.")
    traces = [dialogue(answer, Message.of("assistant", answer)) for answer in answers]
    groups = [group(*zip(traces, (1.0, 0.5, 0.0), strict=True))]

    def astray(**settings: Any) -> None:
        kind(policy(1), tmp_path / "out", tokenizer=tokenizer, steps=2, learning_rate=10.0, **settings).train(groups)

    for limit in (None, 0.5):
        with pytest.raises(TrainError, match=r"collapsed: .* nats less likely, .*Nothing was saved.*max_fall=") as said:
            astray(max_fall=limit)
        assert f"expected at most {limit or {SFT: LIMIT, DPO: PAIR_LIMIT}[kind]:g} a token" in str(said.value)
        assert not list(tmp_path.iterdir())
    astray(max_fall=math.inf)
    assert (tmp_path / "out" / "model.safetensors").exists()
    shutil.rmtree(tmp_path / "out")
    kind(policy(1), tmp_path / "out", tokenizer=tokenizer, steps=4, learning_rate=1e-2).train(groups)
    assert (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.parametrize("wrong", [-1, True, "inf", float("nan")])
def test_a_limit_that_is_none_is_refused(wrong: Any) -> None:
    for kind in (SFT, RFT, DPO):
        with pytest.raises(TrainError, match=r"max_fall .*; expected nats a token, 0 or more"):
            kind("m", "out", max_fall=wrong)
    with pytest.raises(TrainError, match=r"max_kl .*; expected nats a rollout, 0 or more"):
        GRPO("m", "out", max_kl=wrong)


def row(advantages: list[float], start: int = 1) -> Row:
    """A row of one step a token, each with its advantage."""
    spans = tuple(
        Span(start=start + place, stop=start + place + 1, turn=0, step=place, advantage=advantage, logprobs=(-1.0,))
        for place, advantage in enumerate(advantages)
    )
    return Row(trace_id="t", ids=tuple(range(start + len(advantages))), spans=spans)


values = st.lists(st.tuples(st.floats(-2, 2), st.floats(-9, 0), st.floats(-9, 0)), min_size=1, max_size=12)


@given(st.lists(values, min_size=1, max_size=4))
def test_only_what_is_reinforced_counts(rows: list[list[tuple[float, float, float]]]) -> None:
    made = [row([advantage for advantage, _, _ in one]) for one in rows]
    before = {id(one): np.array([value for _, value, _ in values]) for one, values in zip(made, rows, strict=True)}
    now = {id(one): np.array([value for _, _, value in values]) for one, values in zip(made, rows, strict=True)}
    flat = [token for one in rows for token in one]
    counted = [token for token in flat if token[0] > 0] or flat
    expected = sum(old - new for _, old, new in counted) / len(counted)
    assert reinforced(made, before, now) == pytest.approx(expected, abs=1e-9)
    unknown = row([1.0])
    assert reinforced([*made, unknown], before, now) == pytest.approx(expected, abs=1e-9)


@given(st.integers(0, 1000))
def test_at_most_64_rows_are_looked_at(count: int) -> None:
    found = some(range(count))
    assert len(found) <= 64
    assert len(found) >= min(count, 32)


def test_no_number_is_a_collapse() -> None:
    require_sound(LIMIT, LIMIT, what="it", learning_rate=1.0)
    for fell in (LIMIT + 1e-9, math.nan, math.inf):
        with pytest.raises(TrainError, match="it became"):
            require_sound(fell, LIMIT, what="it", learning_rate=1.0)
