"""Micro-batches: what bounds them, what they cost in padding, and that no loss or gradient knows of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cm2_agent.errors import TrainError
from cm2_agent.trainers.collator import Sample
from cm2_agent.trainers.grpo import GRPO
from cm2_agent.trainers.micro_batches import PADDING, MicroBatches, buckets, padded, padded_tokens
from cm2_agent.trainers.rows import Row, Span
from tests.trainers.loop import SGD, Sampler, apart, logprobs_of, trained, trainer_of

LOSS_TYPES = ("grpo", "dr_grpo", "bnpo", "dapo", "cispo", "sapo", "vespo", "luspo")
lengths = st.lists(st.one_of(st.integers(1, 12), st.integers(1, 5000)), min_size=1, max_size=80)
limits = st.builds(
    MicroBatches,
    rows=st.none() | st.integers(1, 90),
    tokens=st.none() | st.integers(1, 90_000),
    parts=st.integers(1, 9),
)


@pytest.mark.hypothesis
@given(lengths=lengths, rows=st.integers(1, 32), tokens=st.none() | st.integers(1, 9000))
def test_buckets_hold_every_row_once_and_little_padding(lengths: list[int], rows: int, tokens: int | None) -> None:
    found = buckets(lengths, rows=rows, tokens=tokens)
    assert sorted(index for bucket in found for index in bucket) == list(range(len(lengths)))
    assert all(1 <= len(bucket) <= rows for bucket in found)
    assert sum(padded(lengths, bucket) for bucket in found) <= PADDING * sum(lengths)
    assert all(len(bucket) == 1 or tokens is None or padded(lengths, bucket) <= tokens for bucket in found)


@pytest.mark.hypothesis
@given(lengths=lengths, limits=limits)
def test_micro_batches_hold_every_row_once_within_their_limits(lengths: list[int], limits: MicroBatches) -> None:
    found = limits.split(lengths)
    assert sorted(index for part in found for index in part) == list(range(len(lengths)))
    for part in found:
        assert len(part) <= min(limits.rows or len(lengths), -(-len(lengths) // limits.parts))
        if limits.tokens is not None and len(part) > 1:
            assert padded_tokens([lengths[index] for index in part]) <= limits.tokens


# -- the loss


def ragged(seed: int, count: int, vocabulary: int = 250) -> list[Sample]:
    """Rows of 4 to 60 tokens with one to three spans; advantages, weights and ratios as far apart as they come."""
    draw = torch.Generator().manual_seed(seed)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=draw))

    samples = []
    for name in range(count):
        ids, spans = [number(0, vocabulary - 1) for _ in range(number(1, 20))], []
        for turn in range(number(1, 3)):
            start, size = len(ids), number(1, 9)
            ids += [number(0, vocabulary - 1) for _ in range(size + number(0, 4))]
            logprobs = tuple((-5.5 + 0.4 * torch.randn(size, generator=draw, dtype=torch.float64)).tolist())
            advantage = float(torch.randn((), generator=draw))
            spans.append(
                Span(start=start, stop=start + size, turn=turn, step=0, logprobs=logprobs, advantage=advantage)
            )
        row = Row(trace_id=str(name), ids=tuple(ids), spans=tuple(spans))
        samples.append(Sample(row=row, advantages=row.token_advantages, old=row.mu, ref=row.mu + 0.1))
    return samples


def by_hand(model: Any, samples: Sequence[Sample], kind: str, beta: float, entropy: float) -> torch.Tensor:
    """Each loss type over all rows at once, from its paper: per token, then over a row, then over rows."""
    rows = []
    for one in samples:
        now = logprobs_of(model, one.row)
        advantage, old, ref = (torch.from_numpy(values) for values in (one.advantages, one.old, one.ref))
        ratio = torch.exp(now - old)
        clipped = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.28) * advantage)
        if kind == "cispo":
            token = ratio.clamp(max=0.28).detach() * advantage * now  # its upper bound is epsilon_high itself
        elif kind == "sapo":
            heat = torch.where(advantage > 0, 1.0, 1.05)
            token = torch.sigmoid(heat * (ratio - 1)) * 4 / heat * advantage
        elif kind == "vespo":
            k, decay = torch.where(advantage >= 0, 2.0, 3.0), torch.where(advantage >= 0, 3.0, 2.0)
            log_weight = (now - old).clamp(-20, 20).sum().clamp(-18.420680743952367, 20).detach()
            token = torch.exp(decay + k * log_weight - decay * torch.exp(log_weight)) * advantage * now
        else:
            token = clipped
        kl = torch.exp(ref - now) - (ref - now) - 1
        ids = torch.tensor([one.row.ids])
        places = torch.from_numpy(one.row.positions) - 1
        whole = torch.log_softmax(model(input_ids=ids).logits[0].double(), -1)[places]
        rows.append((-token + beta * ratio * kl, -(whole.exp() * whole).sum(-1)))
    values, uncertain = torch.cat([row for row, _ in rows]), torch.cat([row for _, row in rows])
    if kind in ("grpo", "sapo"):
        loss = torch.stack([row.mean() for row, _ in rows]).mean()
    elif kind == "luspo":
        loss = torch.stack([row.sum() for row, _ in rows]).mean()
    elif kind == "dr_grpo":
        loss = values.sum() / (len(rows) * 512)  # GRPOConfig's max_completion_length
    else:
        loss = values.mean()
    return loss - entropy * uncertain.mean()


@pytest.mark.hypothesis
@settings(max_examples=24, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(LOSS_TYPES),
    count=st.integers(1, 19),
    seed=st.integers(0, 1000),
    limits=st.builds(
        MicroBatches,
        rows=st.none() | st.integers(1, 7),
        tokens=st.none() | st.integers(1, 300),
        parts=st.integers(1, 5),
    ),
    beta=st.sampled_from([0.0, 0.1]),
    entropy=st.sampled_from([0.0, 0.05]),
)
def test_no_loss_type_knows_of_micro_batches(
    policy: Callable[..., Any],
    tokenizer: Any,
    kind: str,
    count: int,
    seed: int,
    limits: MicroBatches,
    beta: float,
    entropy: float,
) -> None:
    """The loss and the gradient of a step in micro-batches are those of a loop over all rows in float64."""
    model, samples = policy(1), ragged(seed, count)
    exact = copy.deepcopy(model).double()
    expected = by_hand(exact, samples, kind, beta, entropy)
    torch.autograd.backward(expected)
    loss, found = stepped(model, tokenizer, samples, limits, beta=beta, loss_type=kind, entropy_coef=entropy)
    # VESPO weighs by exp(λ + k·log w − λ·w) of a whole row, which float32 itself knows to 1e-5 only.
    bound = 1e-5 if kind == "vespo" else 2e-6  # float32 against float64; luspo sums whole rows
    assert loss == pytest.approx(float(expected.detach()), abs=bound, rel=bound)
    for change, right in zip(found, exact.parameters(), strict=True):
        assert float((change.double() - right.grad).abs().max()) <= bound * max(1.0, float(right.grad.abs().max()))


def stepped(
    model: Any, tokenizer: Any, samples: list[Sample], limits: MicroBatches, *, beta: float = 0.0, **args: Any
) -> tuple[float, list[torch.Tensor]]:
    """The loss of one step on a copy of the model, and its gradient (SGD with a learning rate of 1)."""
    twin = copy.deepcopy(model)
    with TemporaryDirectory() as folder:
        trainer = trainer_of(twin, tokenizer, [samples], Path(folder), micro_batches=limits, **args)
        trainer.beta = beta
        trainer.train()
    changes = [(old - new).detach() for old, new in zip(model.parameters(), twin.parameters(), strict=True)]
    return trainer.history[0]["loss"], changes


@pytest.mark.parametrize(
    "args",
    [
        {"importance_sampling_level": "sequence"},
        {"top_entropy_quantile": 0.3},
        {"top_entropy_quantile": 0.3, "loss_type": "grpo", "entropy_coef": 0.05},
        {"off_policy_mask_threshold": 0.05},
        {"delta": 1.5, "use_bias_correction_kl": False},
    ],
)
def test_options_that_look_at_rows_or_at_all_tokens_are_as_in_one_piece(
    policy: Callable[..., Any], tokenizer: Any, args: dict[str, Any]
) -> None:
    model, samples = policy(1), ragged(5, 13)
    whole, expected = stepped(model, tokenizer, samples, MicroBatches(), beta=0.1, **args)
    parts, found = stepped(model, tokenizer, samples, MicroBatches(rows=3), beta=0.1, **args)
    assert parts == pytest.approx(whole, abs=1e-6)
    for change, right in zip(found, expected, strict=True):
        assert torch.allclose(change, right, atol=1e-6)
    without, _ = stepped(model, tokenizer, samples, MicroBatches(rows=3))
    assert abs(parts - without) > 1e-4  # the option does something here


def test_the_entropy_controller_moves_as_in_one_piece(
    policy: Callable[..., Any], tokenizer: Any, tmp_path: Path
) -> None:
    """The weight of the entropy goes up by `entropy_coef_delta` where the entropy of the step is below the target."""
    found = []
    for rows in (None, 2):
        model, samples = policy(1), ragged(5, 9)
        args = {"use_adaptive_entropy": True, "entropy_coef": 0.1, "entropy_target": 9.0, "entropy_coef_delta": 0.05}
        trainer = trainer_of(
            model,
            tokenizer,
            [samples] * 3,
            tmp_path,
            micro_batches=MicroBatches(rows=rows),
            loss_type="grpo",
            **args,
        )
        trainer.train()
        found.append([*(step["loss"] for step in trainer.history), trainer.entropy_coef, trainer._last_world_entropy])
    assert found[1] == pytest.approx(found[0], abs=1e-5)
    assert found[0][3] == pytest.approx(0.25)


# -- what the settings mean


class Passes:
    """What passed through a model: the rows and padded tokens of each forward pass, by backward pass."""

    def __init__(self, model: Any) -> None:
        self.steps: list[list[torch.Size]] = [[]]
        model.base_model.register_forward_pre_hook(self._forward, with_kwargs=True)
        next(model.base_model.parameters()).register_post_accumulate_grad_hook(lambda _: self.steps.append([]))

    def _forward(self, module: Any, args: Any, kwargs: Any) -> None:
        if torch.is_grad_enabled():
            self.steps[-1].append(kwargs["input_ids"].shape)

    @property
    def rows(self) -> list[int]:
        return [sum(rows for rows, _ in step) for step in self.steps if step]

    @property
    def tokens(self) -> list[int]:
        return [sum(rows * width for rows, width in step) for step in self.steps if step]


def test_rows_and_tokens_of_a_pass_are_bounded(
    policy: Callable[..., Any], sample: Sampler, tokenizer: Any, tmp_path: Path
) -> None:
    from trl import GRPOConfig

    model = policy(1)
    groups = sample(model, groups=4, size=5)
    files = []
    limits: list[tuple[dict[str, Any], int]] = [
        ({}, 20),
        ({"args": {**SGD, "per_device_train_batch_size": 3}}, 3),
        ({"args": {**SGD, "per_device_train_batch_size": 1}}, 1),
        ({"args": {**SGD, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 3}}, 1),
        ({"args": {**SGD, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 4}}, 5),
        ({"args": {**SGD, "gradient_accumulation_steps": 4}}, 5),
        ({"tokens_per_micro_batch": 300}, 300),
    ]
    for number, (options, most) in enumerate(limits):
        twin = copy.deepcopy(model)
        passes = Passes(twin)
        options = {"args": SGD, "steps": 1, "learning_rate": 0.5, **options}
        folder = GRPO(twin, tmp_path / str(number), tokenizer=tokenizer, **options).train(groups)
        assert sum(passes.rows) == 20
        found = passes.tokens if "tokens_per_micro_batch" in options else passes.rows
        assert most / 2 < max(found) <= most
        files.append(trained(folder))
    assert all(apart(files[0], other) < 1e-6 for other in files[1:])
    passes = Passes(twin := copy.deepcopy(model))
    config = GRPOConfig(
        output_dir=str(tmp_path / "trl"), per_device_train_batch_size=5, num_generations=5, max_steps=1, bf16=False
    )
    GRPO(twin, tmp_path / "config", tokenizer=tokenizer, args=config).train(groups)
    assert max(passes.rows) == 5  # a GRPOConfig decides alone


@pytest.mark.parametrize("wrong", [0, -1, "4", 1.5])
def test_a_number_of_rows_that_is_none_is_refused_in_our_words(
    policy: Callable[..., Any], sample: Sampler, tokenizer: Any, tmp_path: Path, wrong: Any
) -> None:
    groups = sample(policy(1), groups=1, size=2)
    grpo = GRPO(policy(1), tmp_path / "out", tokenizer=tokenizer, args={"per_device_train_batch_size": wrong})
    with pytest.raises(TrainError, match=r"per_device_train_batch_size .*; expected 1 or more: the most rows"):
        grpo.train(groups)


def test_steps_that_share_a_batch_take_its_rows_in_turn(
    policy: Callable[..., Any], sample: Sampler, tokenizer: Any, tmp_path: Path
) -> None:
    model = policy(1)
    passes = Passes(model)
    groups = sample(model, groups=2, size=5)
    args = {**SGD, "steps_per_generation": 4, "gradient_accumulation_steps": 2}
    grpo = GRPO(model, tmp_path / "out", tokenizer=tokenizer, learning_rate=0.5, args=args)
    grpo.train(groups)
    assert grpo.report["steps"] == 2  # one pass
    assert [sorted(passes.rows[:2]), sorted(passes.rows[2:])] == [[2, 3], [2, 3]]
    with pytest.raises(TrainError, match="steps_per_generation 5 and gradient_accumulation_steps 2"):
        GRPO(model, tmp_path / "no", tokenizer=tokenizer, args={**args, "steps_per_generation": 5}).train(groups)
