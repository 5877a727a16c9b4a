"""`evaluate_policy` with a small transformer: of the policy itself, of another one by hand and against what that one
earns, and what is left out and refused."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cm2_agent.errors import TrainError
from cm2_agent.trainers import GRPO, evaluate_policy
from cm2_agent.trainers.weighed_rollouts import CUT_OFF, OTHER_TEMPERATURE, OUTSIDE
from cm2_agent.types.group import Group, Rollout
from cm2_agent.types.trace import Step
from tests.trainers.turns import score, turn

Sampler = Callable[..., list[Group]]


def paid_for(groups: Sequence[Group], tokens: Collection[int] = range(0, 1000, 2)) -> list[Group]:
    """Rewards by turn that follow from what was sampled: a turn is paid where its first token is one of these."""

    def rewarded(rollout: Rollout) -> Rollout:
        turns = [turn(at, 1, 1 if first_token(step) in tokens else None) for at, step in enumerate(rollout.trace.steps)]
        return replace(rollout, score=score(*turns, id=rollout.trace.id, reward_version="checklist:1"))

    return [replace(group, rollouts=tuple(rewarded(one) for one in group.rollouts)) for group in groups]


def first_token(step: Step) -> int:
    assert step.call is not None
    assert step.call.completion_ids is not None
    return step.call.completion_ids[0]


def rewards(groups: Sequence[Group]) -> list[float]:
    return [one.score.lower for group in groups for one in group.rollouts if one.score.lower is not None]


def perturbed(make: Callable[..., Any], by: float) -> Any:
    """The policy of seed 0 with noise on its weights."""
    model = make(0)
    noise = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for one in model.parameters():
            one.add_(by * torch.randn(one.shape, generator=noise))
    return model


@pytest.fixture(scope="module")
def groups(policy: Callable[..., Any], sample: Sampler) -> list[Group]:
    return paid_for(sample(policy(0), 40, 4, tokens=2))


def test_the_policy_itself_weighs_one(policy: Callable[..., Any], tokenizer: Any, groups: list[Group]) -> None:
    model = policy(0)
    before = {name: one.clone() for name, one in model.state_dict().items()}
    found = evaluate_policy(model, iter(groups), tokenizer=tokenizer)
    mean = float(np.mean(rewards(groups)))
    assert 0.2 < mean < 0.8
    assert found.same
    assert found.by_turn
    assert found.refused is None
    assert found.policy == found.behaviour == groups[0].key["policy"]
    assert (found.values.rollouts, found.values.tasks) == (160, 40)
    assert found.values.effective == pytest.approx(160)
    assert found.self_normalised is not None
    assert found.doubly_robust is not None
    assert found.self_normalised.value == pytest.approx(mean, abs=1e-12)
    assert found.doubly_robust.value == pytest.approx(mean, abs=1e-12)
    gain = found.values.gain_doubly_robust
    assert (gain.value, gain.low, gain.high) == pytest.approx((0, 0, 0), abs=1e-12)
    assert (found.left_out, found.left_out_mean) == ({}, None)
    assert found.recomputed is not None
    assert found.recomputed["mean_abs"] < 1e-4
    assert model.training == policy(0).training
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())
    told = found.to_json()
    assert told["refused"] is None
    assert told["effective_share"] == pytest.approx(1)


def test_recomputed_ratios_of_the_policy_itself_are_one(
    policy: Callable[..., Any], tokenizer: Any, groups: list[Group]
) -> None:
    seen: list[tuple[int, int]] = []
    found = evaluate_policy(
        policy(0), groups, tokenizer=tokenizer, checks=0, progress=lambda done, total, _: seen.append((done, total))
    )
    assert not found.same
    assert found.values.effective == pytest.approx(160, rel=1e-6)
    assert found.values.gain_self_normalised.value == pytest.approx(0, abs=1e-4)
    assert seen[-1][0] == seen[-1][1]
    assert len(seen) > 1


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_ratios_by_hand(policy: Callable[..., Any], tokenizer: Any, sample: Sampler, temperature: float) -> None:
    """The product over all sampled tokens of π_new/μ, at the temperature that sampled."""
    groups = paid_for(sample(policy(0), 30, 1, tokens=3, temperature=temperature))
    other = perturbed(policy, 0.01)
    weights, earned = [], []
    for group in groups:
        log = 0.0
        for step in group.rollouts[0].trace.steps:
            call = step.call
            assert call is not None
            prompt, drawn = list(call.prompt_ids or ()), list(call.completion_ids or ())
            with torch.no_grad():
                logits = other(torch.tensor([[*prompt, *drawn]])).logits[0, len(prompt) - 1 : -1]
            logps = torch.log_softmax(logits / temperature, dim=-1)[torch.arange(len(drawn)), drawn]
            log += float(logps.double().sum()) - float(np.sum(call.logprobs or ()))
        weights.append(np.exp(log))
        earned.append(group.rollouts[0].score.lower or 0.0)
    found = evaluate_policy(other, groups, tokenizer=tokenizer)
    rho = np.array(weights)
    assert np.ptp(rho) > 0.01
    assert found.temperature == temperature
    assert found.values.effective == pytest.approx(rho.sum() ** 2 / (rho**2).sum(), rel=1e-4)
    assert found.values.weight.value == pytest.approx(rho.mean(), rel=1e-4)
    assert found.values.self_normalised.value == pytest.approx(rho @ np.array(earned) / rho.sum(), rel=1e-4)


def test_a_perturbed_policy_earns_what_was_estimated(
    policy: Callable[..., Any], tokenizer: Any, sample: Sampler
) -> None:
    other, sampled = perturbed(policy, 0.02), sample(policy(0), 100, 12, tokens=1)
    prompts = [step.call.prompt_ids for group in sampled[:10] for step in group.rollouts[0].trace.steps if step.call]
    with torch.no_grad():
        now, before = (
            torch.stack([model(torch.tensor([prompt])).logits[0, -1].softmax(-1) for prompt in prompts]).sum(0)
            for model in (other, policy(0))
        )
    liked = set(torch.nonzero(now > before).flatten().tolist())  # so that it earns more, as a trained policy would
    old = paid_for(sampled, liked)
    found = evaluate_policy(other, old, tokenizer=tokenizer)
    assert found.refused is None
    assert 0.2 < found.values.share < 0.95
    real = float(np.mean(rewards(paid_for(sample(other, 100, 12, tokens=1), liked))))
    values = found.values
    assert abs(real - values.old.value) > 0.1, "a policy that earns the same would show nothing"
    for one in (values.self_normalised, values.doubly_robust):
        assert one.low is not None
        assert one.high is not None
        assert one.low <= real <= one.high
        assert one.value == pytest.approx(real, abs=0.05)
    assert values.gain_doubly_robust.value * (real - values.old.value) > 0


def test_a_reward_that_is_not_of_turns_counts_for_the_whole_dialogue(
    policy: Callable[..., Any], tokenizer: Any, sample: Sampler
) -> None:
    groups = sample(policy(0), 30, 3, tokens=2)  # scores without turns
    other = perturbed(policy, 0.01)
    found = evaluate_policy(other, groups, tokenizer=tokenizer)
    assert not found.by_turn
    assert found.refused is None
    mean = float(np.mean(rewards(groups)))
    assert found.values.old.value == pytest.approx(mean)
    assert found.values.doubly_robust.value == pytest.approx(found.values.self_normalised.value, abs=0.05)


def test_two_groups_of_a_task_are_one_cluster(policy: Callable[..., Any], tokenizer: Any, groups: list[Group]) -> None:
    again = [
        replace(group, key={**group.key, "group": name}, rollouts=group.rollouts[part])
        for group in groups
        for name, part in (("first", slice(0, 2)), ("second", slice(2, 4)))
    ]
    other = perturbed(policy, 0.01)
    one, two = (evaluate_policy(other, given, tokenizer=tokenizer) for given in (groups, again))
    assert two.values == one.values


# -- what is left out


def changed(group: Group, place: int, **fields: Any) -> Group:
    """With the first call of one of its rollouts changed."""
    rollouts = list(group.rollouts)
    run, *rest = rollouts[place].trace.runs
    call = replace(run.calls[0], **fields)
    trace = replace(rollouts[place].trace, runs=(replace(run, calls=(call, *run.calls[1:])), *rest))
    rollouts[place] = replace(rollouts[place], trace=trace)
    return replace(group, rollouts=tuple(rollouts))


def test_what_is_left_out_is_counted(policy: Callable[..., Any], tokenizer: Any, groups: list[Group]) -> None:
    cut, outside, none, pending, text, *rest = groups
    cut = replace(
        cut,
        rollouts=tuple(
            changed(
                replace(cut, rollouts=(one,)), 0, sampling={"temperature": 1.0, "logprobs": "processed", "top_p": 0.9}
            ).rollouts[0]
            if place < 2
            else one
            for place, one in enumerate(cut.rollouts)
        ),
    )
    first = outside.rollouts[0].trace
    summary = replace(first.runs[0].calls[0], span_id="summary", message=None)
    asked = replace(first, runs=(replace(first.runs[0], calls=(*first.runs[0].calls, summary)), *first.runs[1:]))
    failed = replace(
        first, runs=(replace(first.runs[0], calls=(*first.runs[0].calls, replace(summary, error="x"))), *first.runs[1:])
    )
    other = replace(
        first,
        runs=(
            replace(first.runs[0], calls=(*first.runs[0].calls, replace(summary, model_version="judge"))),
            *first.runs[1:],
        ),
    )
    traces = [asked, failed, other]
    outside = replace(
        outside,
        rollouts=(
            *(
                replace(one, trace=replace(trace, id=one.trace.id))
                for one, trace in zip(outside.rollouts, traces, strict=False)
            ),
            outside.rollouts[3],
        ),
    )
    none = changed(none, 3, logprobs=None)
    dead = replace(pending.rollouts[0].score, reward=None, lower=None, upper=None, null_reason="failure: ToolError: x")
    pending = replace(pending, rollouts=(replace(pending.rollouts[0], score=dead), *pending.rollouts[1:]))
    text = changed(text, 1, prompt_ids=None, completion_ids=None, logprobs=None)
    found = evaluate_policy(perturbed(policy, 0.01), [cut, outside, none, pending, text, *rest], tokenizer=tokenizer)
    assert found.left_out == {
        CUT_OFF: 2,
        OUTSIDE: 1,
        "no logprobs": 1,
        "no reward: failure": 1,
        "another rollout of its group is pending": 3,
        "no token ids": 1,
    }
    assert found.values.rollouts == 160 - 9
    assert found.values.tasks == 39
    lost = [*cut.rollouts[:2], outside.rollouts[0], none.rollouts[3], *pending.rollouts[1:], text.rollouts[1]]
    assert found.left_out_mean == pytest.approx(np.mean([one.score.lower or 0.0 for one in lost]))


def test_a_verdict_that_the_policy_kept_from_being_known_is_unpaid(
    policy: Callable[..., Any], tokenizer: Any, groups: list[Group]
) -> None:
    def broken(rollout: Rollout) -> Rollout:
        return replace(
            rollout, score=score(turn(0, 1, "?"), turn(1, 1, 1), id=rollout.trace.id, reward_version="checklist:1")
        )

    hidden = [replace(group, rollouts=tuple(map(broken, group.rollouts))) for group in groups]
    assert evaluate_policy(policy(0), hidden, tokenizer=tokenizer).values.old.value == pytest.approx(0.5)


def test_temperatures_and_policies_are_one(
    policy: Callable[..., Any], tokenizer: Any, sample: Sampler, groups: list[Group]
) -> None:
    model, cooler = policy(0), paid_for(sample(policy(0), 31, 1, temperature=0.5, tokens=2))
    with pytest.raises(TrainError, match=r"at temperatures 0\.5, 1\.0.*--temperature T"):
        evaluate_policy(model, [*groups, *cooler], tokenizer=tokenizer)
    found = evaluate_policy(model, [*groups, *cooler], tokenizer=tokenizer, temperature=0.5)
    assert (found.values.rollouts, found.temperature) == (31, 0.5)
    assert found.left_out == {OTHER_TEMPERATURE: 160}
    another = [
        replace(changed(group, 0, model_version="v9"), key={**group.key, "policy": "v9"}) for group in groups[:1]
    ]
    with pytest.raises(TrainError, match=r"of 2 policies: .*v9.*--policy VERSION"):
        evaluate_policy(model, [*groups, *another], tokenizer=tokenizer)


def test_nothing_to_weigh_is_an_error(policy: Callable[..., Any], tokenizer: Any, groups: list[Group]) -> None:
    bare = [changed(replace(group, rollouts=group.rollouts[:1]), 0, logprobs=None) for group in groups]
    with pytest.raises(TrainError, match="no rollout of 40 groups can be weighed: 40 × no logprobs"):
        evaluate_policy(policy(0), bare, tokenizer=tokenizer)
    with pytest.raises(TrainError, match="no group was given"):
        evaluate_policy(policy(0), [], tokenizer=tokenizer)


def test_logprobs_that_the_policy_does_not_give_again_are_refused(
    policy: Callable[..., Any], tokenizer: Any, sample: Sampler
) -> None:
    stale = paid_for(sample(policy(0), 30, 2, tokens=2, stale=0.5))
    with pytest.raises(TrainError, match="stored logprobs are not this policy's"):
        evaluate_policy(policy(0), stale, tokenizer=tokenizer)


def test_few_tasks_and_far_policies_have_no_estimate(
    policy: Callable[..., Any], tokenizer: Any, groups: list[Group]
) -> None:
    few = evaluate_policy(policy(0), groups[:29], tokenizer=tokenizer)
    assert few.refused is not None
    assert "29 tasks are covered, expected 30 or more" in few.refused
    assert few.self_normalised is None
    assert few.doubly_robust is None
    assert few.to_json()["doubly_robust"] is None
    far = evaluate_policy(policy(7), groups, tokenizer=tokenizer)
    assert far.values.share < 0.1
    assert far.refused is not None
    assert "expected 10% or more" in far.refused


@pytest.mark.slow
def test_what_was_trained_is_evaluated_from_its_folder(
    policy: Callable[..., Any], tokenizer: Any, groups: list[Group], tmp_path: Path
) -> None:
    """All weights, and an adapter over them: on the rewards that it was trained on, it seems better."""
    base = tmp_path / "base"
    policy(0).save_pretrained(base)
    tokenizer.save_pretrained(base)
    keys: dict[str, Any] = {"steps": 6, "seed": 1, "level": "turn"}
    trained = [
        GRPO(base, tmp_path / "whole", learning_rate=2e-3, **keys).train(groups),
        GRPO(base, tmp_path / "lora", learning_rate=2e-2, peft_config={"r": 4, "lora_alpha": 8}, **keys).train(groups),
    ]
    for folder in trained:
        found = evaluate_policy(folder, groups)
        assert found.policy != found.behaviour
        assert found.refused is None
        assert found.values.share < 0.999
        assert found.values.gain_self_normalised.value > 0.01
        assert found.values.gain_doubly_robust.value > 0.01


def test_in_half_precision_the_policy_itself_still_weighs_one(
    policy: Callable[..., Any], tokenizer: Any, sample: Sampler
) -> None:
    """Its logprobs come out otherwise in another batch: what was stored counts."""
    half = policy(0).to(torch.bfloat16)
    groups = paid_for(sample(half, 30, 2, tokens=2))
    found = evaluate_policy(half, groups, tokenizer=tokenizer)
    assert found.same
    assert found.values.effective == pytest.approx(60)
