"""Pairs for DPO from groups: what is preferred, what is no pair, and that TRL takes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cm2_agent.errors import TrainError
from cm2_agent.trainers.preference_pairs import pairs_of
from cm2_agent.types.group import Group, Rollout
from cm2_agent.types.score import Score
from cm2_agent.types.trace import Trace
from tests.rewards.talk import call, say, trace, turn


def group(*rated: tuple[Trace, float | None], version: str = "v1") -> Group:
    rollouts = tuple(
        Rollout(trace=one, score=Score(trace_id=one.id, reward_version=version, reward=reward)) for one, reward in rated
    )
    return Group(key={"task": "t"}, rollouts=rollouts)


def texts(pairs: list[Any]) -> list[tuple[str, str]]:
    return [(pair["chosen"][-1]["content"], pair["rejected"][-1]["content"]) for pair in pairs]


ONE = [trace(turn("Where?", say(text)), id=text) for text in ("good", "fair", "poor", "lost")]


def test_pairs_lie_apart_by_the_margin_widest_first() -> None:
    found = pairs_of(group((ONE[1], 0.5), (ONE[0], 1.0), (ONE[2], 0.2), (ONE[3], None)), margin=0.3)
    assert texts(found) == [("good", "poor"), ("good", "fair"), ("fair", "poor")]
    assert found[0]["prompt"] == [{"role": "user", "content": "Where?"}]
    assert texts(pairs_of(group((ONE[1], 0.5), (ONE[0], 1.0)), margin=0.6)) == []
    assert texts(pairs_of(group((ONE[1], 0.5), (ONE[0], 1.0), (ONE[2], 0.2)), margin=0.3, most=1)) == [("good", "poor")]


def test_dialogues_are_paired_at_the_turn_in_which_they_part() -> None:
    first = turn("Where?", call("look"), say("There"))
    better = trace(first, turn("Cancel it.", call("cancel"), say("Done")), turn("Bye", say("Bye")), id="a")
    worse = trace(first, turn("Cancel it.", say("No")), turn("Bye", say("Bye")), id="b")
    (pair,) = pairs_of(group((better, 1.0), (worse, 0.0)), margin=0.5)
    assert [message["role"] for message in pair["prompt"]] == ["user", "assistant", "tool", "assistant", "user"]
    assert [message["role"] for message in pair["chosen"]] == ["assistant", "tool", "assistant"]
    assert texts([pair]) == [("Done", "No")]


def test_what_is_no_pair() -> None:
    apart = trace(turn("When?", say("good")), id="other")
    assert pairs_of(group((ONE[0], 1.0), (apart, 0.0)), margin=0.5) == []  # another user, another question
    again = trace(turn("Where?", say("good")), id="again")
    assert pairs_of(group((ONE[0], 1.0), (again, 0.0)), margin=0.5) == []
    later = trace(turn("Where?", say("good")), turn("And?", say("x")), id="later")
    assert pairs_of(group((ONE[0], 1.0), (later, 0.0)), margin=0.5) == []
    with pytest.raises(TrainError, match="above 0"):
        pairs_of(group((ONE[0], 1.0)), margin=0)
    mixed = Group(
        key={"task": "t"}, rollouts=group((ONE[0], 1.0)).rollouts + group((ONE[1], 0.0), version="v2").rollouts
    )
    with pytest.raises(TrainError, match="score all its traces under one of them"):
        pairs_of(mixed, margin=0.5)


@pytest.mark.slow
def test_trl_trains_on_them(policy: Any, tokenizer: Any, tmp_path: Path) -> None:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    talks = [
        trace(turn("Where?", call("look", order_id=7), say("good")), id="a"),
        trace(turn("Where?", say("poor")), id="b"),
        trace(turn("Where?", say("lost")), id="c"),
    ]
    pairs = pairs_of(group((talks[0], 1.0), (talks[1], 0.5), (talks[2], 0.0)), margin=0.3)
    assert len(pairs) == 3
    config = DPOConfig(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=3,
        learning_rate=1e-3,
        report_to=[],
        use_cpu=True,
        bf16=False,
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        seed=0,
    )
    model = tmp_path / "policy"
    policy(1).save_pretrained(model)  # TRL loads its reference model from where the policy came
    trainer = DPOTrainer(str(model), args=config, train_dataset=Dataset.from_list(pairs), processing_class=tokenizer)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[0] == pytest.approx(0.6931, abs=1e-3)
    assert losses[1] < losses[0]
