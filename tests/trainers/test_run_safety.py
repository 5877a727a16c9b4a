"""What a run may never do: save a policy that went astray, replace another run's, or leave half of one."""

from __future__ import annotations

import fcntl
import json
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cm2_agent.errors import TrainError
from cm2_agent.trainers.dpo import DPO
from cm2_agent.trainers.grpo import GRPO
from cm2_agent.trainers.output_folder import saving, whole_folder
from cm2_agent.trainers.rft import RFT
from cm2_agent.trainers.sft import SFT
from tests.trainers.loop import Sampler, stripped


def nothing_but(folder: Path, *names: str) -> bool:
    return sorted(one.name for one in folder.iterdir()) == sorted(names)


# -- astray


@pytest.mark.parametrize("kind", [GRPO, SFT])
def test_a_loss_that_is_no_number_stops_before_anything_is_saved(
    kind: Any, policy: Callable[..., Any], sample: Sampler, tokenizer: Any, tmp_path: Path
) -> None:
    groups = sample(policy(1), groups=2)
    out = tmp_path / "out"
    kind(policy(1), out, tokenizer=tokenizer, steps=1).train(groups)
    before = (out / "model.safetensors").read_bytes()
    for args in ({"max_grad_norm": 0.0}, {"save_steps": 3}):
        wild = kind(policy(1), out, tokenizer=tokenizer, steps=3, learning_rate=1e30, overwrite=True, args=args)
        with pytest.raises(TrainError, match=r"(the loss|the norm of the gradient) of step \d is (nan|inf)|not finite"):
            wild.train(groups)
        assert (out / "model.safetensors").read_bytes() == before
    assert not list(tmp_path.rglob("*checkpoint*"))


def test_weights_that_broke_in_the_last_step_are_not_saved(
    policy: Callable[..., Any], sample: Sampler, tokenizer: Any, tmp_path: Path
) -> None:
    """No later loss shows it: the only step is a number, what it leaves is not."""
    for kind in (GRPO, SFT):
        args = {"optim": "sgd", "max_grad_norm": 0.0, "weight_decay": 1e30}
        run = kind(policy(1), tmp_path / "out", tokenizer=tokenizer, steps=1, learning_rate=1e30, args=args)
        with pytest.raises(TrainError, match=r"weights of .* are not finite after training; nothing was saved"):
            run.train(sample(policy(1), groups=2))
    assert nothing_but(tmp_path)


def test_gradients_that_are_no_numbers_stop_before_the_step(
    policy: Callable[..., Any], sample: Sampler, tokenizer: Any, tmp_path: Path
) -> None:
    model = policy(1)
    groups = sample(model, groups=2)
    before = {name: values.clone() for name, values in model.named_parameters()}
    model.model.embed_tokens.weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(TrainError, match=r"the norm of the gradient of step 1 is (nan|inf)"):
        GRPO(model, tmp_path / "out", tokenizer=tokenizer, steps=1, learning_rate=1.0).train(groups)
    assert all(torch.equal(values, before[name]) for name, values in model.named_parameters())


@pytest.mark.parametrize("rate", [float("inf"), float("nan"), 1e45, -1.0, "fast"])
def test_a_learning_rate_that_is_none_is_refused(
    rate: Any, policy: Callable[..., Any], sample: Sampler, tokenizer: Any, tmp_path: Path
) -> None:
    with pytest.raises(TrainError, match=r"learning_rate .*; expected a number of 0 or more"):
        GRPO(policy(1), tmp_path / "out", tokenizer=tokenizer, steps=1, learning_rate=rate).train(
            sample(policy(1), groups=2)
        )
    assert nothing_but(tmp_path)


def test_the_kl_is_limited_after_the_steps_as_well_as_before(
    policy: Callable[..., Any], sample: Sampler, tokenizer: Any, tmp_path: Path
) -> None:
    groups = sample(policy(1), groups=2)
    free = GRPO(policy(1), tmp_path / "free", tokenizer=tokenizer, steps=4, learning_rate=1e-2)
    free.train(groups)
    reached = free.report["off_policy_after"]["kl_per_rollout"]
    assert free.report["off_policy"]["kl_per_rollout"] < reached / 2
    bound = GRPO(policy(1), tmp_path / "out", tokenizer=tokenizer, steps=4, learning_rate=1e-2, max_kl=reached / 2)
    with pytest.raises(TrainError, match=r"nats a rollout after 4 steps, above max_kl .*; nothing was saved"):
        bound.train(groups)
    assert nothing_but(tmp_path, "free")
    GRPO(
        policy(1),
        tmp_path / "out",
        tokenizer=tokenizer,
        steps=4,
        learning_rate=1e-2,
        max_kl=2 * reached,
        overwrite=True,
    ).train(groups)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (
        tmp_path / "free" / "model.safetensors"
    ).read_bytes()


def test_a_policy_whose_logprobs_are_no_numbers_is_refused(
    policy: Callable[..., Any], sample: Sampler, tokenizer: Any, tmp_path: Path
) -> None:
    groups = sample(policy(1), groups=2, version="older")
    broken = policy(1)
    with torch.no_grad():
        broken.get_output_embeddings().weight[5] = float("nan")
    with pytest.raises(TrainError, match="log-probabilities of the stored tokens are not finite before training"):
        GRPO(broken, tmp_path / "out", tokenizer=tokenizer, steps=1).train(groups)
    assert nothing_but(tmp_path)


def test_rollouts_with_a_logprob_that_is_no_number_are_left_out(
    policy: Callable[..., Any], sample: Sampler, tokenizer: Any, tmp_path: Path
) -> None:
    groups = sample(policy(1), groups=3)

    def broken(value: float) -> Any:
        one = groups[0]
        call = one.rollouts[0].trace.runs[0].calls[0]
        logprobs = (value, *(call.logprobs or ())[1:])
        run = replace(one.rollouts[0].trace.runs[0], calls=(replace(call, logprobs=logprobs),))
        trace = replace(one.rollouts[0].trace, runs=(run, *one.rollouts[0].trace.runs[1:]))
        return replace(one, rollouts=(replace(one.rollouts[0], trace=trace), *one.rollouts[1:]))

    for number, value in enumerate((float("nan"), -float("inf"))):
        grpo = GRPO(policy(1), tmp_path / str(number), tokenizer=tokenizer, steps=1)
        grpo.train([broken(value), *groups[1:]])
        assert grpo.report["left_out"] == {"a stored logprob is no number": 1}
        assert np.isfinite(grpo.report["history"][0]["loss"])
    nowhere = [stripped(one, logprobs=None) for one in groups]
    with pytest.raises(TrainError, match="nothing is left"):
        GRPO(policy(1), tmp_path / "none", tokenizer=tokenizer, steps=1).train(nowhere)


# -- no room


@contextmanager
def small_files(most: int) -> Iterator[Callable[..., None]]:
    """A progress after whose call with step `at` no file may become larger, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def progress(step: int, total: int, metrics: dict[str, float], *, at: int = 2) -> None:
        if step == at:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))

    try:
        yield progress
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("kind", [GRPO, SFT])
@pytest.mark.parametrize("args", [{}, {"save_steps": 1}])
def test_a_full_disk_leaves_nothing_half(
    kind: Any, args: Any, policy: Callable[..., Any], sample: Sampler, tokenizer: Any, tmp_path: Path
) -> None:
    groups = sample(policy(1), groups=1)

    def run() -> Any:
        return kind(policy(1), tmp_path / "out", tokenizer=tokenizer, steps=2, learning_rate=1e-3, args=args)

    with small_files(8192) as progress, pytest.raises(TrainError, match=r"cannot be written: .*\. Make room or name"):
        run().train(groups, progress=progress)
    assert nothing_but(tmp_path, *(["out.run"] if args else []))
    seen: list[int] = []
    run().train(groups, progress=lambda step, *_: seen.append(step))
    assert seen == ([2] if args else [1, 2])
    assert (tmp_path / "out" / "report.json").exists()


@pytest.mark.parametrize("kind", [GRPO, SFT])
def test_a_folder_that_cannot_be_made_is_said(
    kind: Any, policy: Callable[..., Any], sample: Sampler, tokenizer: Any, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainError, match=r"file/out' cannot be written"):
        kind(policy(1), tmp_path / "file" / "out", tokenizer=tokenizer, steps=1).train(sample(policy(1), groups=1))


def written_by_torch(path: Path) -> None:
    torch.save(torch.zeros(10_000), path)


def written_by_torch_in_its_old_format(path: Path) -> None:
    torch.save(torch.zeros(10_000), path, _use_new_zipfile_serialization=False)


def written_into_a_file(path: Path) -> None:
    with path.open("wb") as file:
        torch.save(torch.zeros(10_000), file)


def written_by_safetensors(path: Path) -> None:
    save_file({"a": torch.zeros(10_000)}, path)


WRITERS = [written_by_torch, written_by_torch_in_its_old_format, written_into_a_file, written_by_safetensors]


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("why", ["full", "no folder", "a folder"])
def test_whatever_the_disk_refuses_is_said_to_be_the_disks(
    write: Callable[[Path], None], why: str, tmp_path: Path
) -> None:
    path = {"full": tmp_path / "x", "no folder": tmp_path / "none" / "x", "a folder": tmp_path}[why]
    with small_files(8192) as progress:
        if why == "full":
            progress(2, 2, {})
        with pytest.raises(TrainError, match=r"cannot be written: .*\. Make room or name another folder"), saving(path):
            write(path)


def shares_memory(path: Path) -> None:
    values = torch.zeros(4)
    save_file({"a": values, "b": values}, path)


def computes_wrongly(path: Path) -> None:
    torch.save(torch.zeros(2, 3) @ torch.zeros(2, 3), path)


def runs_out_of_memory(path: Path) -> None:
    torch.save(torch.zeros(2**60), path)


@pytest.mark.parametrize("write", [shares_memory, computes_wrongly, runs_out_of_memory])
def test_what_is_not_the_disks_stays_what_it_is(write: Callable[[Path], None], tmp_path: Path) -> None:
    with pytest.raises(RuntimeError) as raised, saving(tmp_path / "x"):
        write(tmp_path / "x")
    assert "Make room" not in str(raised.value)


# -- another run's


@pytest.mark.parametrize("kind", [GRPO, SFT])
def test_another_runs_policy_is_replaced_only_when_told(
    kind: Any, policy: Callable[..., Any], sample: Sampler, tokenizer: Any, tmp_path: Path
) -> None:
    groups, out = sample(policy(1), groups=2), tmp_path / "out"

    def train(**settings: Any) -> bytes:
        kind(policy(settings.pop("weights", 1)), out, tokenizer=tokenizer, **{"steps": 1, **settings}).train(
            settings.pop("on", groups)
        )
        return (out / "model.safetensors").read_bytes()

    first = train()
    assert train() == first  # the very same run may write its own again
    others: list[tuple[dict[str, Any], str]] = [
        ({"steps": 2}, "max_steps 1 there, 2 here"),
        ({"seed": 3}, "seed 0 there, 3 here"),
        ({"args": {"weight_decay": 0.5}}, r"weight_decay 0\.0 there, 0\.5 here"),
        ({"weights": 2}, "model .* there, .* here"),
        ({"on": groups[:1]}, "other rollouts"),
    ]
    for other, word in others:
        settings = dict(other)
        given = settings.pop("on", groups)
        model = policy(settings.pop("weights", 1))
        refused = kind(model, out, tokenizer=tokenizer, **{"steps": 1, **settings})
        with pytest.raises(TrainError, match=f"holds the policy of another run .*{word}.*overwrite=True"):
            refused.train(given)
        assert (out / "model.safetensors").read_bytes() == first
    assert train(steps=2, learning_rate=1e-2, overwrite=True) != first
    assert nothing_but(tmp_path, "out")


def test_a_policy_of_an_unknown_run_is_not_replaced_either(
    policy: Callable[..., Any], sample: Sampler, tokenizer: Any, tmp_path: Path
) -> None:
    """As the first versions wrote it: a report, and nothing that says of which run."""
    groups, out = sample(policy(1), groups=2), tmp_path / "out"
    GRPO(policy(1), out, tokenizer=tokenizer, steps=1).train(groups)
    (out / "run.json").write_text('{"algorithm": 1')
    with pytest.raises(TrainError, match=r"of another run .it does not say which"):
        GRPO(policy(1), out, tokenizer=tokenizer, steps=1).train(groups)
    GRPO(policy(1), out, tokenizer=tokenizer, steps=1, overwrite=True).train(groups)
    assert json.loads((out / "run.json").read_text())["algorithm"] == "grpo"


# -- half of one


def test_two_processes_never_write_the_same_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with whole_folder(out) as folder:
        (folder / "report.json").write_text("{}")
        with pytest.raises(TrainError, match="another process is writing out"), whole_folder(out):
            pass
        assert (folder / "report.json").exists()  # the one that was refused removed nothing
    assert nothing_but(tmp_path, "out")


def test_what_a_killed_process_left_is_cleared_away_and_its_victim_put_back(tmp_path: Path) -> None:
    """Killed between the two renames: `out` is gone, the policy that was there lies beside it."""
    out, scratch = tmp_path / "out", tmp_path / ".out.writing"
    for name in ("old", "new", "trl"):
        (scratch / name).mkdir(parents=True)
    (scratch / "old" / "report.json").write_text('{"steps": 7}')
    (scratch / "new" / "half.safetensors").write_text("")
    (scratch / "lock").touch()
    neighbour = tmp_path / ".out-2.writing"
    neighbour.mkdir()
    seen: list[object] = []

    def interrupted() -> None:
        with whole_folder(out) as folder:
            seen.extend([(out / "report.json").read_text(), list(folder.iterdir())])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert seen == ['{"steps": 7}', []]
    assert nothing_but(tmp_path, "out", ".out-2.writing")
    assert (out / "report.json").read_text() == '{"steps": 7}'


def test_a_lock_outlives_no_process(tmp_path: Path) -> None:
    """A child takes the lock and is killed; the kernel lets go of it."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        (tmp_path / ".out.writing").mkdir()
        handle = os.open(tmp_path / ".out.writing" / "lock", os.O_RDWR | os.O_CREAT)
        fcntl.flock(handle, fcntl.LOCK_EX)
        os.write(write, b"x")
        os.kill(os.getpid(), 9)
    assert os.read(read, 1) == b"x"
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -9
    with whole_folder(tmp_path / "out") as folder:
        (folder / "report.json").write_text("{}")
    assert nothing_but(tmp_path, "out")


@pytest.mark.parametrize("kind", [GRPO, SFT, RFT, DPO])
def test_counts_that_cannot_be_meant_are_refused(kind: Any, tmp_path: Path) -> None:
    with pytest.raises(TrainError, match="steps 2 and epochs 1 were both given; give one of them"):
        kind("policy", tmp_path / "out", steps=2, epochs=1)
    with pytest.raises(TrainError, match="epochs 0; expected at least 1"):
        kind("policy", tmp_path / "out", epochs=0)
