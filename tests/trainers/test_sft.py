"""SFT on stored traces: who is chosen, what is a label, and that the loss is that of a plain loop."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cm2_agent.errors import TrainError
from cm2_agent.models.local import LocalChatModel
from cm2_agent.store import SQLStore
from cm2_agent.trainers.retokenize import retokenised_rows
from cm2_agent.trainers.rft import RFT
from cm2_agent.trainers.rows import Row, rows_of
from cm2_agent.trainers.sft import SFT
from cm2_agent.types.group import Group, Rollout
from cm2_agent.types.messages import Message
from cm2_agent.types.run import ModelCall, Run, RunFailure
from cm2_agent.types.score import Score, TurnScore, Verdict
from cm2_agent.types.trace import Trace
from tests.trainers.loop import SGD, Sampler, apart, logprobs_of, stripped, trained


def talk(number: int, reply: str) -> Trace:
    said = (Message.of("user", f"Where is order {number}?"), Message.of("assistant", reply))
    return Trace.of(Run(id=f"w{number}-{reply}", messages=said))


def group(rewards: list[float | None], number: int = 0) -> Group:
    """Text-only dialogues whose replies tell their reward."""
    return Group(
        key={"task": str(number), "policy": None, "reward": "r1"},
        rollouts=tuple(
            Rollout(trace=trace, score=Score(trace_id=trace.id, reward_version="r1", reward=reward))
            for reward in rewards
            for trace in [talk(number, f"worth {reward}")]
        ),
    )


@pytest.mark.parametrize(
    ("select", "rewards", "chosen", "left_out"),
    [
        ("all", [1.0, 0.2, None], 3, {}),
        ("best", [0.4, 0.4, 0.1, None], 2, {"no reward": 1, "not the best of its group": 1}),
        ("best", [0.3, 0.9, 0.1], 1, {"not the best of its group": 2}),
        (0.5, [1.0, 0.5, 0.49, None], 2, {"below the score asked for": 1, "no reward": 1}),
    ],
)
def test_who_is_imitated(
    policy: Callable[..., Any],
    tokenizer: Any,
    tmp_path: Path,
    select: Any,
    rewards: list[float | None],
    chosen: int,
    left_out: dict[str, int],
) -> None:
    sft = SFT(policy(1), tmp_path / "out", tokenizer=tokenizer, select=select, steps=1)
    sft.train([group(rewards)])
    assert (sft.report["rollouts"], sft.report["left_out"], sft.report["retokenised_rows"]) == (
        chosen,
        left_out,
        chosen,
    )


@pytest.mark.parametrize("select", ["best", 0.5])
def test_what_the_policy_kept_from_being_judged_is_not_imitated(
    policy: Callable[..., Any], tokenizer: Any, tmp_path: Path, select: Any
) -> None:
    """The stored reward of the second is 1.0: within the tolerance, what is missing counts with the rest."""
    full, broken = group([0.9, 1.0]).rollouts
    known = Verdict(item="a", value=True, weight=0.4, step=1, paid=True)
    missing = Verdict(item="b", value=None, weight=0.6, cause="content")
    turn = TurnScore(turn=0, reached=True, steps=1, reward=None, verdicts=(known, missing))
    score = Score(trace_id=broken.trace.id, reward_version="r1", reward=1.0, turns=(turn,))
    sft = SFT(policy(1), tmp_path / "out", tokenizer=tokenizer, select=select, steps=1)
    sft.train([replace(group([]), rollouts=(full, replace(broken, score=score)))])
    assert sft.report["rollouts"] == 1
    assert sft.report["lower"] == pytest.approx(0.65)


def test_a_failed_dialogue_and_a_group_that_earned_nothing_are_not_imitated(
    policy: Callable[..., Any], tokenizer: Any, tmp_path: Path
) -> None:
    good = group([1.0, 0.0])
    crashed = replace(
        talk(1, "x"), runs=(replace(talk(1, "x").runs[0], failure=RunFailure(kind="ToolError", message="down")),)
    )
    first = replace(good, rollouts=(replace(good.rollouts[0], trace=crashed), good.rollouts[1]))
    sft = SFT(policy(1), tmp_path / "out", tokenizer=tokenizer, select="all", steps=1)
    sft.train([first])
    assert sft.report["left_out"] == {"the dialogue failed": 1}
    with pytest.raises(
        TrainError, match=r"nothing is left to imitate of 1 groups: 2 × the best of its group earned nothing"
    ):
        SFT(policy(1), tmp_path / "none", tokenizer=tokenizer, select="best").train([group([0.0, 0.0])])
    assert not (tmp_path / "none").exists()


def test_the_loss_is_the_mean_over_the_models_own_tokens(
    policy: Callable[..., Any], sample: Sampler, tokenizer: Any, tmp_path: Path
) -> None:
    model = policy(1)
    groups = sample(model, groups=1, size=4)
    rows: list[Row] = [row for one in groups[0].rollouts for row in rows_of(one.trace)]
    twin = copy.deepcopy(model)
    losses = []
    for _ in range(2):
        loss = -torch.cat([logprobs_of(twin, row) for row in rows]).mean()
        twin.zero_grad()
        torch.autograd.backward(loss)
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter -= 1.0 * parameter.grad
        losses.append(float(loss.detach()))
    seen: list[float] = []
    sft = SFT(model, tmp_path / "out", tokenizer=tokenizer, steps=2, rows_per_step=4, learning_rate=1.0, args=dict(SGD))
    path = sft.train(groups, progress=lambda step, total, metrics: seen.append(metrics["loss"]))
    assert seen == pytest.approx(losses, abs=1e-4)
    assert apart(trained(path), twin) < 1e-5
    assert json.loads((path / "report.json").read_text()) == sft.report
    assert "retokenised_rows" not in sft.report


def test_greedy_calls_without_logprobs_can_be_imitated(
    policy: Callable[..., Any], sample: Sampler, tokenizer: Any, tmp_path: Path
) -> None:
    groups = [stripped(one, logprobs=None, sampling={"temperature": 0}) for one in sample(policy(1), groups=1)]
    sft = SFT(policy(1), tmp_path / "out", tokenizer=tokenizer, select="all", epochs=1)
    sft.train(groups)
    assert sft.report["rows"] == 4


def test_words_are_learnt_from_text_only_traces(policy: Callable[..., Any], tokenizer: Any, tmp_path: Path) -> None:
    groups = [group([1.0, 0.0], number) for number in range(8)]
    sft = SFT(
        policy(1), tmp_path / "out", tokenizer=tokenizer, select="best", steps=30, rows_per_step=8, learning_rate=2e-2
    )
    path = sft.train(groups)
    model = trained(path)
    prompt = tokenizer.encode("<|im_start|>user\nWhere is order 3?<|im_end|>\n<|im_start|>assistant\n")
    said = model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)[0, len(prompt) :]
    assert tokenizer.decode(said).startswith("worth 1.0<|im_end|>")


def recorded(*calls: ModelCall, said: str = "Yes") -> Trace:
    """A question and its answer, the answer with these calls."""
    return Trace.of(Run(id="r", messages=(Message.of("user", "Hi"), Message.of("assistant", said)), calls=calls))


def test_ids_that_cannot_be_trusted_give_way_to_the_words(
    policy: Callable[..., Any], tokenizer: Any, tmp_path: Path
) -> None:
    prompt = tuple(tokenizer.encode("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"))
    written = tuple(tokenizer.encode("Yes<|im_end|>"))
    good = ModelCall(span_id="s", message=1, prompt_ids=prompt, completion_ids=written)
    found = {
        "ids": good,
        "edited after it was sampled": replace(good, changed="edited"),
        "redacted after it was sampled": replace(good, changed="redacted"),
        "they are incomplete": replace(good, sampling={"untrainable": "they are incomplete"}),
        "token ids disagree with usage": replace(good, usage={"output_tokens": 3}),
        "token ids of another tokenizer": replace(good, completion_ids=(1, 2)),
        "no token ids": replace(good, completion_ids=None),
        "empty prompt": replace(good, prompt_ids=()),
    }
    foreign = replace(good, completion_ids=(*written[:-1], len(tokenizer) + 5))
    traces = [replace(recorded(call), id=name) for name, call in found.items()] + [recorded(foreign)]
    sft = SFT(policy(1), tmp_path / "out", tokenizer=tokenizer, steps=1, args=dict(SGD))
    losses: list[float] = []
    sft.train(traces, progress=lambda step, total, metrics: losses.append(metrics["loss"]))
    because = {name: 1 + (name == "token ids of another tokenizer") for name in sorted(found) if name != "ids"}
    assert sft.report["rows_from"] == {"ids": 1, "words": 8, "words_because": because}
    assert (sft.report["groups"], sft.report["rollouts"], sft.report["left_out"]) == (0, 9, {})
    alone: list[float] = []
    by_ids = SFT(policy(1), tmp_path / "ids", tokenizer=tokenizer, steps=1, args=dict(SGD))
    by_ids.train([recorded(good)], progress=lambda step, total, metrics: alone.append(metrics["loss"]))
    assert losses == pytest.approx(alone, abs=1e-5)  # the words are the same tokens here
    words = SFT(policy(1), tmp_path / "words", tokenizer=tokenizer, steps=1, retokenise=True)
    words.train([recorded(good)])
    assert words.report["rows_from"] == {"ids": 0, "words": 1, "words_because": {"retokenise=True": 1}}


def test_traces_without_scores_and_rollouts_without_groups(
    policy: Callable[..., Any], tokenizer: Any, tmp_path: Path
) -> None:
    traces = [talk(number, "Sent.") for number in range(3)]
    with SQLStore(f"sqlite:///{tmp_path / 'mine.db'}", project="mine") as store:
        for trace in traces[:2]:
            store.save_trace(trace)
        with SQLStore(store.url, project="theirs") as other:
            other.save_trace(traces[2])
        sft = SFT(policy(1), tmp_path / "out", tokenizer=tokenizer, steps=1)
        assert sft.needs == "traces"
        sft.train(store.traces())
    assert (sft.report["rollouts"], sft.report["rows"], sft.report["groups"]) == (2, 2, 0)
    rollouts = [
        Rollout(trace=trace, score=Score(trace_id=trace.id, reward_version="r1", reward=reward))
        for trace, reward in zip(traces, (1.0, 0.4, 0.9), strict=True)
    ]
    above = RFT(policy(1), tmp_path / "above", tokenizer=tokenizer, steps=1, select=0.9)
    assert above.needs == "scored"
    above.train(rollouts)
    assert (above.report["rollouts"], above.report["left_out"]) == (2, {"below the score asked for": 1})
    with pytest.raises(TrainError, match="came without a group; expected groups of scored rollouts"):
        RFT(policy(1), tmp_path / "best", tokenizer=tokenizer, steps=1).train(rollouts)
    with pytest.raises(TrainError, match="came without one; expected scored rollouts"):
        SFT(policy(1), tmp_path / "best", tokenizer=tokenizer, steps=1, select=0.5).train(traces)
    with pytest.raises(TrainError, match="a str was given"):
        SFT(policy(1), tmp_path / "best", tokenizer=tokenizer).train(["trace"])  # type: ignore[list-item]
    mixed = [*rollouts, replace(rollouts[0], score=replace(rollouts[0].score, reward_version="r2"))]
    with pytest.raises(TrainError, match="mix 2 reward versions"):
        RFT(policy(1), tmp_path / "mixed", tokenizer=tokenizer, select=0.5).train(mixed)


def test_rejection_sampling_is_imitation_of_the_best(
    policy: Callable[..., Any], tokenizer: Any, tmp_path: Path
) -> None:
    groups = [group([1.0, 0.5, 1.0], number) for number in range(3)]
    paths = [
        made.train(groups)
        for made in (
            RFT(policy(1), tmp_path / "rft", tokenizer=tokenizer, steps=2),
            SFT(policy(1), tmp_path / "sft", tokenizer=tokenizer, steps=2, select="best"),
        )
    ]
    assert paths[0].joinpath("model.safetensors").read_bytes() == paths[1].joinpath("model.safetensors").read_bytes()
    with pytest.raises(TrainError, match="'all' chooses nothing"):
        RFT(policy(1), tmp_path / "all", tokenizer=tokenizer, select="all").train(groups)


def test_the_end_of_an_answer_is_trained_where_padding_has_its_id(
    policy: Callable[..., Any], tokenizer: Any, tmp_path: Path
) -> None:
    """Rows of two lengths, so that the shorter is padded: the loss is that of a plain loop over the rows."""
    padded = copy.deepcopy(tokenizer)
    padded.pad_token = padded.eos_token
    traces = [talk(1, "Yes."), talk(2, "It was sent on Monday, with the order of May.")]
    model = policy(1)
    rows = [row for trace in traces for row in retokenised_rows(trace, padded)]
    assert [row.ids[-1] for row in rows] == [padded.pad_token_id] * 2
    wanted = float(-torch.cat([logprobs_of(model, row) for row in rows]).mean().detach())
    seen: list[float] = []
    sft = SFT(model, tmp_path / "out", tokenizer=padded, steps=1, args=dict(SGD))
    sft.train(traces, progress=lambda step, total, metrics: seen.append(metrics["loss"]))
    assert seen == pytest.approx([wanted], abs=1e-4)


def test_a_base_checkpoint_stops_where_its_template_ends_an_answer(
    policy: Callable[..., Any], tokenizer: Any, tmp_path: Path
) -> None:
    """Its eos ends a text; the template's turns end otherwise. Imitation teaches that end, and the sampler knows it."""
    base = copy.deepcopy(tokenizer)
    base.eos_token = base.pad_token
    model = policy(1)
    model.config.eos_token_id = model.generation_config.eos_token_id = base.eos_token_id
    groups = [group([1.0], number) for number in range(4)]
    sft = SFT(model, tmp_path / "out", tokenizer=base, steps=40, rows_per_step=4, learning_rate=2e-2)
    path = sft.train(groups)
    assert sft.report["stops_added"] == ["<|im_end|>"]
    message = LocalChatModel.load(path, temperature=0.0, max_tokens=24).invoke("Where is order 2?")
    assert message.content == "worth 1.0"
    assert message.response_metadata["finish_reason"] == "stop"


def test_the_same_seed_gives_the_same_bits(policy: Callable[..., Any], tokenizer: Any, tmp_path: Path) -> None:
    groups = [group([1.0, 0.5], number) for number in range(6)]
    files = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        path = SFT(
            policy(1), tmp_path / name, tokenizer=tokenizer, seed=seed, rows_per_step=4, learning_rate=1e-3
        ).train(groups)
        files.append((path / "model.safetensors").read_bytes())
    assert files[0] == files[1]
    assert files[0] != files[2]


def test_settings_that_cannot_be_meant_are_refused(tmp_path: Path, policy: Callable[..., Any], tokenizer: Any) -> None:
    for wrong, message in [
        ({"select": "some"}, "'all', 'best', 'best-turn', or the least reward"),
        ({"select": True}, "'all', 'best', 'best-turn', or the least reward"),
        ({"select": 1.5}, "expected a reward in"),
        ({"steps": 1, "epochs": 2}, "both given"),
        ({"rows_per_step": 0}, "rows_per_step 0"),
    ]:
        with pytest.raises(TrainError, match=message):
            SFT("m", tmp_path / "out", **wrong)  # type: ignore[arg-type]
    with pytest.raises(TrainError, match="no group was given"):
        SFT(policy(1), tmp_path / "out", tokenizer=tokenizer).train([])
    long = SFT(policy(1), tmp_path / "out", tokenizer=tokenizer, max_length=10)
    with pytest.raises(TrainError, match="2 × longer than max_length"):
        long.train([group([1.0, 0.5])])
