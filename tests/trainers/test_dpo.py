"""DPO on stored preferences: its loss is that of a plain loop, by ids or by words, and what is no pair is counted."""

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
from cm2_agent.trainers.dpo import DPO
from cm2_agent.trainers.imitation import RowMaker
from cm2_agent.trainers.pair_rows import PairRow, PairRows
from cm2_agent.trainers.sft import SFT
from cm2_agent.types.group import Group, Rollout
from cm2_agent.types.messages import Message, ToolCall, ToolCallResponse, ToolSpec
from cm2_agent.types.run import ModelCall, Run
from cm2_agent.types.run_attributes import GUARD, GUARD_OUTCOME
from cm2_agent.types.score import Score
from cm2_agent.types.trace import Trace
from tests.trainers.loop import SGD, Sampler, apart, logprobs_of, trained

LOOKED = (
    Message.of("assistant", calls=[ToolCall(id="c", name="get_order", arguments={"id": 7})]),
    Message(role="tool", parts=(ToolCallResponse(id="c", response="sent on Monday"),)),
    Message.of("assistant", "It was sent on Monday."),
)
TOOLS = (ToolSpec(name="get_order", parameters={"type": "object"}),)


def dialogue(name: str, *turn: Message, before: tuple[Message, ...] = ()) -> Trace:
    calls = (ModelCall(span_id=name, tools=TOOLS, message=len(before) + 1),)
    return Trace.of(Run(id=name, messages=(*before, Message.of("user", "Where is it?"), *turn), calls=calls))


def group(*rated: tuple[Trace, float | None], version: str = "r1") -> Group:
    return Group(
        key={"task": "t", "reward": version},
        rollouts=tuple(
            Rollout(trace=trace, score=Score(trace_id=trace.id, reward_version=version, reward=reward))
            for trace, reward in rated
        ),
    )


def pairs_of(given: list[Any], tokenizer: Any, **settings: Any) -> PairRows:
    make = RowMaker(tokenizer, vocabulary=len(tokenizer), words=settings.pop("words", False))
    found = PairRows(make, **{"margin": 0.25, "most": None, **settings})
    found.read(given)
    return found


def spoken(sampled: Group, tokenizer: Any) -> Group:
    """A sampled group whose messages say what the ids do."""
    rollouts = []
    for one in sampled.rollouts:
        (run,) = one.trace.runs
        text = tokenizer.decode(list(run.calls[0].completion_ids or ()))
        said = (run.messages[0], Message.of("assistant", text.removesuffix("<|im_end|>")))
        rollouts.append(replace(one, trace=replace(one.trace, runs=(replace(run, messages=said),))))
    return replace(sampled, rollouts=tuple(rollouts))


def plain_dpo(model: Any, pairs: list[PairRow], *, beta: float, steps: int, lr: float) -> list[float]:
    """Equation 7 of arXiv 2305.18290 on all pairs at once, in float64, one unpadded row at a time; SGD."""

    def difference(one: Any, pair: PairRow) -> torch.Tensor:
        return logprobs_of(one, pair.chosen).sum() - logprobs_of(one, pair.rejected).sum()

    with torch.no_grad():
        reference = [difference(model, pair) for pair in pairs]
    losses = []
    for _ in range(steps):
        gains = [difference(model, pair) - before for pair, before in zip(pairs, reference, strict=True)]
        loss = -torch.nn.functional.logsigmoid(beta * torch.stack(gains)).mean()
        model.zero_grad()
        torch.autograd.backward(loss)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= lr * parameter.grad
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("words", [False, True])
def test_the_loss_is_that_of_a_plain_loop(
    policy: Callable[..., Any], sample: Sampler, tokenizer: Any, tmp_path: Path, words: bool
) -> None:
    """By ids on sampled tokens; by words on a turn with a tool's answer in its midst, beside one that is padded."""
    model = policy(1, attention_dropout=0.1)
    given: list[Any] = (
        [group((dialogue("a", *LOOKED), 1.0), (dialogue("b", Message.of("assistant", "No idea.")), 0.0))]
        if words
        else [spoken(one, tokenizer) for one in sample(model, groups=2, size=3, turns=1)]
    )
    twin = copy.deepcopy(model).eval()
    pairs = pairs_of(given, tokenizer, margin=0.01).pairs
    assert {row.retokenised for pair in pairs for row in pair.sides} == {words}
    wanted = plain_dpo(twin, pairs, beta=0.5, steps=2, lr=0.1)
    seen: list[float] = []
    settings: dict[str, Any] = {"beta": 0.5, "margin": 0.01, "pairs_per_group": None, "pairs_per_step": 16, "steps": 2}
    dpo = DPO(model, tmp_path / "out", tokenizer=tokenizer, learning_rate=0.1, args=dict(SGD), **settings)
    path = dpo.train(given, progress=lambda step, total, metrics: seen.append(metrics["loss"]))
    assert seen == pytest.approx(wanted, abs=2e-4)  # TRL logs four digits
    assert apart(trained(path), twin) < 1e-5
    assert json.loads((path / "report.json").read_text()) == dpo.report
    assert dpo.report["pairs"] == len(pairs)
    assert dpo.report["pairs_from"]["ids" if not words else "words"] == len(pairs)


def test_only_the_models_own_tokens_of_the_turn_count(tokenizer: Any) -> None:
    before = (Message.of("user", "Hi"), Message.of("assistant", "Hello."))
    better = dialogue("a", *LOOKED, before=before)
    worse = dialogue("b", Message.of("assistant", "No idea."), before=before)
    later = (Message.of("user", "Thanks"), Message.of("assistant", "Bye."))
    better = replace(better, runs=(replace(better.runs[0], messages=(*better.runs[0].messages, *later)),))
    (pair,) = pairs_of([group((better, 1.0), (worse, 0.0))], tokenizer).pairs
    said = [
        [tokenizer.decode(row.ids[span.start : span.stop]) for span in row.spans]
        for row in (pair.chosen, pair.rejected)
    ]
    assert said == [
        [
            '<tool_call>{"name": "get_order", "arguments": {"id": 7}}</tool_call><|im_end|>',
            "It was sent on Monday.<|im_end|>",
        ],
        ["No idea.<|im_end|>"],
    ]
    assert "Hello." in tokenizer.decode(pair.chosen.ids)
    assert "get_order" in tokenizer.decode(pair.rejected.ids)  # the tools were offered
    assert "Bye." not in tokenizer.decode(pair.chosen.ids)


def test_both_sides_are_by_words_where_one_has_no_ids(
    policy: Callable[..., Any], sample: Sampler, tokenizer: Any
) -> None:
    (sampled,) = sample(policy(1), groups=1, size=2, turns=1)
    better, worse = spoken(sampled, tokenizer).rollouts
    better, worse = (
        replace(one, score=replace(one.score, reward=reward)) for one, reward in ((better, 1.0), (worse, 0.0))
    )
    found = pairs_of([replace(sampled, rollouts=(better, worse))], tokenizer)
    assert found.report["pairs_from"] == {"ids": 1, "words": 0, "words_because": {}}
    run = worse.trace.runs[0]
    worded = replace(worse, trace=replace(worse.trace, runs=(replace(run, calls=()),)))
    found = pairs_of([replace(sampled, rollouts=(better, worded))], tokenizer)
    assert found.report["pairs_from"] == {"ids": 0, "words": 1, "words_because": {"no token ids": 1}}
    assert {row.retokenised for pair in found.pairs for row in pair.sides} == {True}


def test_attempts_of_a_guard_are_pairs_without_a_score(
    policy: Callable[..., Any], tokenizer: Any, tmp_path: Path
) -> None:
    attempt = {
        "attempt": "x",
        "failed": ["no_promise"],
        "worth": 0.0,
        "messages": [Message.of("assistant", "Refund!").to_json()],
    }
    run = dialogue("a", Message.of("assistant", "It was sent.")).runs[0]
    guarded = Trace.of(replace(run, attributes={GUARD: [attempt], GUARD_OUTCOME: "accepted"}))
    found = pairs_of([guarded, dialogue("b", Message.of("assistant", "Yes."))], tokenizer)
    (pair,) = found.pairs
    assert tokenizer.decode(pair.chosen.ids).endswith("It was sent.<|im_end|>")
    assert tokenizer.decode(pair.rejected.ids).endswith("Refund!<|im_end|>")
    assert found.report["left_out"] == {"no attempt that a guard rejected": 1}
    dpo = DPO(policy(1), tmp_path / "out", tokenizer=tokenizer, pairs="guard", steps=3, learning_rate=1e-2)
    assert dpo.needs == "traces"
    dpo.train([guarded])
    history: Any = dpo.report["history"]
    assert history[0]["loss"] == pytest.approx(0.6931, abs=1e-3)
    assert history[2]["loss"] < history[0]["loss"]
    assert history[2]["accuracy"] == 1.0


def test_what_is_left_out_and_what_is_refused(policy: Callable[..., Any], tokenizer: Any, tmp_path: Path) -> None:
    good, bad = (dialogue(name, Message.of("assistant", name)) for name in ("good", "bad"))
    other = Trace.of(Run(id="o", messages=(Message.of("user", "When?"), Message.of("assistant", "good"))))
    apart = group((good, 1.0), (other, 0.0))
    equal = group((good, 1.0), (bad, 0.9))
    broken = replace(bad, runs=(replace(bad.runs[0], messages=(bad.messages[0], Message.of("assistant", ""))),))
    empty = group((good, 1.0), (broken, 0.0))
    found = pairs_of([apart, equal, empty, group((good, 1.0), (bad, None))], tokenizer)
    assert found.pairs == []
    assert found.report["left_out"] == {
        "no assistant step": 1,
        "no two rollouts of the group with a pair": 3,
    }
    assert pairs_of([group((good, 1.0), (bad, 0.0))], tokenizer, max_length=20).report["left_out"] == {
        "longer than max_length": 1
    }
    several = group(*((dialogue(f"x{n}", Message.of("assistant", f"x{n}")), n / 4) for n in range(5)))
    most = pairs_of([several], tokenizer, most=3)
    assert (len(most.pairs), most.report["mean_margin"]) == (3, pytest.approx((1 + 0.75 + 0.75) / 3))
    with pytest.raises(TrainError, match="no pair was found in 1 groups: 1 × no two rollouts"):
        DPO(policy(1), tmp_path / "out", tokenizer=tokenizer).train([equal])
    with pytest.raises(TrainError, match="mix 2 reward versions"):
        pairs_of([equal, group((good, 1.0), version="r2")], tokenizer)
    with pytest.raises(TrainError, match="a Rollout was given"):
        pairs_of([equal.rollouts[0]], tokenizer)
    with pytest.raises(TrainError, match=r"no group was given, .* --set pairs=guard"):
        pairs_of([], tokenizer)
    with pytest.raises(TrainError, match=r"no pair was found in 1 traces: 1 × no attempt .*give traces of a guarded"):
        pairs_of([good], tokenizer).require_pairs()
    with pytest.raises(TrainError, match=r"in 1 groups and 1 traces: .*take a smaller margin.*of a guarded graph"):
        pairs_of([equal, good], tokenizer).require_pairs()
    for wrong, message in [
        ({"margin": 0}, "margin 0"),
        ({"pairs": "all"}, "expected 'groups' or 'guard'"),
        ({"beta": 0}, "beta 0"),
        ({"steps": 1, "epochs": 1}, "both given"),
        ({"pairs_per_group": 0}, "pairs_per_group 0"),
    ]:
        with pytest.raises(TrainError, match=message):
            DPO("m", tmp_path / "out", **wrong)  # type: ignore[arg-type]
    with pytest.raises(TrainError, match="sync_ref_model"):
        DPO(policy(1), tmp_path / "out", tokenizer=tokenizer, args={"sync_ref_model": True}).train(
            [group((good, 1.0), (bad, 0.0))]
        )
    assert not (tmp_path / "out").exists()


def test_the_same_seed_gives_the_same_bits(policy: Callable[..., Any], tokenizer: Any, tmp_path: Path) -> None:
    given = [
        group(*((dialogue(f"{n}-{k}", Message.of("assistant", f"x{k}")), k / 3) for k in range(4))) for n in range(2)
    ]
    files = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        dpo = DPO(policy(1), tmp_path / name, tokenizer=tokenizer, seed=seed, pairs_per_step=4, learning_rate=1e-3)
        files.append((dpo.train(given) / "model.safetensors").read_bytes())
    assert files[0] == files[1]
    assert files[0] != files[2]


def test_a_policy_that_went_astray_is_not_saved(policy: Callable[..., Any], tokenizer: Any, tmp_path: Path) -> None:
    pair = group((dialogue("a", *LOOKED), 1.0), (dialogue("b", Message.of("assistant", "No.")), 0.0))
    for made in (
        DPO(policy(1), tmp_path / "out", tokenizer=tokenizer, steps=3, learning_rate=1e20),
        SFT(policy(1), tmp_path / "out", tokenizer=tokenizer, steps=3, learning_rate=1e20),
    ):
        with pytest.raises(TrainError, match="lower learning_rate"):
            made.train([pair])
        assert not (tmp_path / "out").exists()
