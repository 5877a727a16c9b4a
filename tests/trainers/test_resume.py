"""A run that was killed goes on from its last whole checkpoint, to the same bytes; and what a checkpoint may hold."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from cm2_agent import Checklist, Item, LocalChatModel, SQLStore, Task, run
from cm2_agent.cli.app import app
from cm2_agent.errors import TrainError
from cm2_agent.graphs import agent
from cm2_agent.trainers.checkpoints import check_checkpoint
from cm2_agent.trainers.dpo import DPO
from cm2_agent.trainers.grpo import GRPO
from cm2_agent.trainers.sft import SFT
from cm2_agent.types.group import Group
from cm2_agent.types.messages import Message
from tests.cli_runner import CliRunner
from tests.trainers.loop import Sampler
from tests.trainers.test_dpo import dialogue, group

KILLED = """
import os
import signal

from cm2_agent.cli.algorithms import load_algorithm, make_trainer


def killed(name):
    kind = load_algorithm(name)

    class Killed(kind):
        def train(self, groups, progress=None):
            def step(number, total, metrics):
                if number == 5:
                    os.kill(os.getpid(), signal.SIGKILL)

            return super().train(groups, progress=step)

    return lambda **given: make_trainer(name, Killed, {}, given)


grpo, sft = killed("grpo"), killed("sft")
"""
LETTERS = Checklist(
    Item("a_letter", check={"reply_matches": "[a-z]"}), Item("two", check={"reply_matches": "[a-m]{2}"}), name="letters"
)


def files(folder: Path) -> dict[str, bytes]:
    return {one.name: one.read_bytes() for one in folder.iterdir()}


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory, policy: Callable[..., Any], tokenizer: Any) -> Path:
    """A folder with the policy `start` and cm2.db, what it wrote."""
    folder = tmp_path_factory.mktemp("run")
    policy(1).save_pretrained(folder / "start")
    tokenizer.save_pretrained(folder / "start")
    (folder / "killed.py").write_text(KILLED)
    store = SQLStore(f"sqlite:///{folder / 'cm2.db'}")
    model = LocalChatModel.load(str(folder / "start"), max_tokens=6)

    async def collect() -> None:
        tasks = [Task(id=f"t{number}", turns=(f"Say {number}.",)) for number in range(4)]
        async for _ in run(agent(model, tools=[]), tasks, group=4, checklist=LETTERS, store=store, lockstep=True):
            pass

    asyncio.run(collect())
    store.close()
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["grpo", "sft"])
def test_a_killed_run_goes_on_to_the_same_bytes(algorithm: str, started: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command dies by SIGKILL at step 5 of 7; typed again, in another process, it goes on from step 4, and gives
    what an undisturbed run gives.
    """
    words = ["train", "--store", "sqlite:///cm2.db", "--model", "start"]
    words += ["--steps", "7", "--learning-rate", "0.01", "--set", "save_steps=2", "--set", "warmup_steps=3"]
    words += ["--set", "lr_scheduler_type=cosine"]
    if algorithm == "grpo":
        words += ["--rollouts-per-step", "4", "--set", "rollouts_per_load=8", "--set", "beta=0.1", "--seed", "3"]
    else:
        words += ["--set", "select=all", "--set", "rows_per_step=4"]
    out = f"{algorithm}-killed"
    path = os.pathsep.join(filter(None, (str(started), os.environ.get("PYTHONPATH", ""))))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "LANGSMITH_TRACING": "false"}
    command = [sys.executable, "-c", "from cm2_agent.cli import main; main()", *words]
    command += ["--algorithm", f"killed:{algorithm}", "--out", out]
    done = subprocess.run(command, cwd=started, env=environment, capture_output=True, check=False, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (started / out).exists()
    kept = started / f"{out}.run"
    assert sorted(one.name for one in kept.iterdir() if one.is_dir()) == ["checkpoint-2", "checkpoint-4"]
    (kept / "checkpoint-2" / "model.safetensors").unlink()  # not what it goes on from

    monkeypatch.chdir(started)
    for name in (out, f"{algorithm}-whole"):
        result = CliRunner().invoke(app, [*words, "--algorithm", algorithm, "--out", name])
        assert result.exit_code == 0, (result.output, result.exception)
        goes_on = f"going on from step 4 of 7 ({out}.run/checkpoint-4)" in result.stderr
        assert goes_on == (name == out)
    assert files(started / out) == files(started / f"{algorithm}-whole")
    assert json.loads((started / out / "report.json").read_text())["steps"] == 7
    assert not list(started.glob(".*.writing"))


class Stop(Exception):
    """Ends a run from within."""


def stopping(at: int) -> Callable[[int, int, dict[str, float]], None]:
    def progress(step: int, total: int, metrics: dict[str, float]) -> None:
        if step == at:
            raise Stop

    return progress


@pytest.mark.parametrize(
    ("stop", "settings"),
    [
        (5, {}),
        (3, {"rollouts_per_load": 8}),
        (5, {"rollouts_per_load": 12, "args": {"num_iterations": 2}}),
        (6, {"args": {"num_iterations": 2, "steps_per_generation": 2}}),
        (6, {"args": {"beta": 0.1, "sync_ref_model": True, "ref_model_sync_steps": 2, "ref_model_mixup_alpha": 0.5}}),
        (5, {"args": {"use_adaptive_entropy": True, "entropy_coef": 0.01, "entropy_target": 9.0}}),
        (4, {"importance_weighting": "direct", "args": {"save_strategy": "epoch"}, "steps": None, "epochs": 2}),
        (7, {"args": {"report_to": "none", "logging_steps": 3, "optim": "sgd"}}),
        (5, {"peft_config": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "lora_dropout": 0.1}}),
        (5, {"half": True}),
    ],
)
def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(
    stop: int,
    settings: dict[str, Any],
    policy: Callable[..., Any],
    sample: Sampler,
    tokenizer: Any,
    tmp_path: Path,
) -> None:
    groups = sample(policy(1), groups=6, stale=0.2, version="older")

    def grpo(name: str) -> GRPO:
        given = {"steps": 7, "rollouts_per_step": 8, "learning_rate": 3e-3, "ratio_band": None, **settings}
        given["args"] = {"save_steps": 2, **settings.get("args", {})}
        model = policy(1).to(torch.bfloat16) if given.pop("half", False) else policy(1)
        return GRPO(model, tmp_path / name, tokenizer=tokenizer, **given)

    whole = grpo("whole")
    whole.train(groups)
    with pytest.raises(Stop):
        grpo("stopped").train(groups, progress=stopping(stop))
    assert not (tmp_path / "stopped").exists()
    assert list((tmp_path / "stopped.run").glob("checkpoint-*"))
    seen: list[int] = []
    again = grpo("stopped")
    again.train(groups, progress=lambda step, total, metrics: seen.append(step))
    assert seen[0] > 1
    assert seen == list(range(seen[0], len(whole.report["history"]) + 1))
    assert files(tmp_path / "stopped") == files(tmp_path / "whole")
    # Killed after the last step, before the policy was written: nothing is left to train.
    shutil.rmtree(tmp_path / "stopped")
    last = grpo("stopped")
    last.train(groups, progress=lambda step, total, metrics: seen.append(-step))
    assert seen[-1] > 0
    assert files(tmp_path / "stopped") == files(tmp_path / "whole")


@pytest.mark.parametrize("kind", [SFT, DPO])
def test_imitation_and_preference_go_on_to_the_same_bytes(
    kind: Any, policy: Callable[..., Any], tokenizer: Any, tmp_path: Path
) -> None:
    def rated(name: str, *answers: str) -> Group:
        traces = [dialogue(f"{name}-{answer}", Message.of("assistant", answer)) for answer in answers]
        return group(*zip(traces, (1.0, 0.5, 0.0), strict=True))

    groups = [rated("a", "Sent.", "On its way.", "No."), rated("b", "Lost.", "Here it is.", "Why?")]
    number = {SFT: "rows_per_step", DPO: "pairs_per_step"}[kind]

    def one(name: str) -> Any:
        settings = {number: 2, "steps": 7, "learning_rate": 1e-3, "args": {"save_steps": 2}}
        return kind(policy(1), tmp_path / name, tokenizer=tokenizer, **settings)

    one("whole").train(groups)
    with pytest.raises(Stop):
        one("stopped").train(groups, progress=stopping(4))
    seen: list[int] = []
    one("stopped").train(groups, progress=lambda step, *_: seen.append(step))
    assert min(seen) > 1
    assert files(tmp_path / "stopped") == files(tmp_path / "whole")


def saved(policy: Callable[..., Any], tokenizer: Any, out: Path, **settings: Any) -> GRPO:
    given = {"steps": 4, "learning_rate": 1e-3, **settings}
    given["args"] = {"save_steps": 1, **settings.get("args", {})}
    return GRPO(policy(1), out, tokenizer=tokenizer, **given)


def test_a_checkpoint_that_was_cut_off_is_not_used(
    policy: Callable[..., Any], sample: Sampler, tokenizer: Any, tmp_path: Path
) -> None:
    groups = sample(policy(1), groups=2)
    with pytest.raises(Stop):
        saved(policy, tokenizer, tmp_path / "out").train(groups, progress=stopping(4))
    newest = tmp_path / "out.run" / "checkpoint-3"
    (newest / "state.json").unlink()  # written last
    (newest / "optimizer.pt").write_bytes(b"half")
    seen: list[int] = []
    saved(policy, tokenizer, tmp_path / "out").train(groups, progress=lambda step, *_: seen.append(step))
    assert seen == [3, 4]


def test_only_as_many_checkpoints_stay_as_asked_and_none_unasked(
    policy: Callable[..., Any], sample: Sampler, tokenizer: Any, tmp_path: Path
) -> None:
    groups = sample(policy(1), groups=2)
    saved(policy, tokenizer, tmp_path / "two", args={"save_total_limit": 2}).train(groups)
    saved(policy, tokenizer, tmp_path / "none", args={"save_steps": 500, "save_strategy": "no"}).train(groups)
    assert sorted(one.name for one in (tmp_path / "two.run").iterdir()) == [
        "checkpoint-3",
        "checkpoint-4",
        "run.json",
    ]
    assert sorted(one.name for one in tmp_path.iterdir()) == ["none", "two", "two.run"]
    folder = tmp_path / "two.run" / "checkpoint-4"
    assert not [one.name for one in folder.rglob("*") if one.suffix in (".bin", ".pkl")]
    assert {one.name for one in folder.iterdir() if one.suffix in (".pt", ".pth")} == {
        *("optimizer.pt", "scheduler.pt", "rng_state.pth")
    }
    shared = saved(policy, tokenizer, tmp_path / "shared", args={"num_iterations": 3, "save_steps": 2})
    shared.train(groups)  # steps 1 to 3 share a batch, and so do 4 to 6
    assert sorted(one.name for one in (tmp_path / "shared.run").glob("checkpoint-*")) == [
        "checkpoint-3",
        "checkpoint-4",
    ]


def test_another_runs_checkpoints_are_replaced_only_when_told(
    policy: Callable[..., Any], sample: Sampler, tokenizer: Any, tmp_path: Path
) -> None:
    groups, out = sample(policy(1), groups=2), tmp_path / "out"
    with pytest.raises(Stop):
        saved(policy, tokenizer, out).train(groups, progress=stopping(4))
    with pytest.raises(TrainError, match=r"checkpoints of another run \(learning_rate 0\.001 there, 0\.002 here\)"):
        saved(policy, tokenizer, out, learning_rate=2e-3).train(groups)
    named = str(tmp_path / "out.run" / "checkpoint-2")
    with pytest.raises(TrainError, match=r"resume_from_checkpoint .* is of another run \(other rollouts\)"):
        saved(policy, tokenizer, tmp_path / "b", args={"resume_from_checkpoint": named}).train(groups[:1])
    with pytest.raises(TrainError, match="is not a whole checkpoint of CM2"):
        saved(policy, tokenizer, out, args={"resume_from_checkpoint": str(tmp_path / "nowhere")}).train(groups)
    seen: list[int] = []
    saved(policy, tokenizer, tmp_path / "c", args={"resume_from_checkpoint": named}).train(
        groups, progress=lambda step, *_: seen.append(step)
    )
    assert seen == [3, 4]
    saved(policy, tokenizer, out, args={"resume_from_checkpoint": False}).train(
        groups, progress=lambda step, *_: seen.append(step)
    )
    assert seen == [3, 4, 1, 2, 3, 4]
    assert files(out) == files(tmp_path / "c")
    saved(policy, tokenizer, out, learning_rate=2e-3, overwrite=True).train(
        groups, progress=lambda step, *_: seen.append(step)
    )
    assert seen[-4:] == [1, 2, 3, 4]
    (tmp_path / "out.run" / "run.json").unlink()
    with pytest.raises(TrainError, match=r"holds checkpoints, and no run\.json"):
        saved(policy, tokenizer, out, learning_rate=2e-3, overwrite=True).train(groups)


class Hostile:
    """Writes a file when it is unpickled."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> Any:
        return Path.touch, (self.witness,)


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
        "scaler.pt",
        "training_args.bin",
        "pytorch_model.bin",
        "x.pkl",
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_a_strangers_pickle_never_runs(
    name: str, zipped: bool, policy: Callable[..., Any], sample: Sampler, tokenizer: Any, tmp_path: Path
) -> None:
    groups, out, witness = sample(policy(1), groups=1), tmp_path / "out", tmp_path / "run"
    with pytest.raises(Stop):
        saved(policy, tokenizer, out).train(groups, progress=stopping(3))
    file = tmp_path / "out.run" / "checkpoint-2" / name
    if zipped:
        torch.save({"state": Hostile(witness)}, file)
    else:
        file.write_bytes(pickle.dumps(Hostile(witness)))
    if name == "training_args.bin":  # nobody reads it
        saved(policy, tokenizer, out).train(groups)
    else:
        with pytest.raises(TrainError, match=rf"{name}.*nothing of it was run"):
            saved(policy, tokenizer, out).train(groups)
        assert not out.exists()
    assert not witness.exists()


def test_looking_through_a_checkpoint_reads_no_optimizer_state(tmp_path: Path) -> None:
    """It is twice the size of the model, and read again when the run goes on."""
    save_file({"weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    state = {"state": {0: {"exp_avg": torch.zeros(2**22), "step": torch.tensor(1.0)}}, "param_groups": [{"lr": 0.1}]}
    torch.save(state, tmp_path / "optimizer.pt")
    check_checkpoint(tmp_path)  # imports what it needs

    def read() -> int:
        fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
        return int(fields["rchar"])

    before = read()
    check_checkpoint(tmp_path)
    assert read() - before < 2**20 < (tmp_path / "optimizer.pt").stat().st_size


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("state.json", b'{"history": [{"loss": "x"}, {}]}'),
        ("state.json", b'{"history": []}'),
        ("state.json", b"[1]"),
        ("state.safetensors", b"half"),
        ("trainer_state.json", b'{"global_step": "2"}'),
        ("trainer_state.json", b"{"),
        ("optimizer.pt", b""),
    ],
)
def test_broken_checkpoints_say_which_to_remove(
    name: str, content: bytes, policy: Callable[..., Any], sample: Sampler, tokenizer: Any, tmp_path: Path
) -> None:
    groups, out = sample(policy(1), groups=1), tmp_path / "out"
    with pytest.raises(Stop):
        saved(policy, tokenizer, out).train(groups, progress=stopping(3))
    (tmp_path / "out.run" / "checkpoint-2" / name).write_bytes(content)
    with pytest.raises(TrainError, match=r"(?i)remove"):
        saved(policy, tokenizer, out).train(groups)
    shutil.rmtree(tmp_path / "out.run" / "checkpoint-2")
    seen: list[int] = []
    saved(policy, tokenizer, out).train(groups, progress=lambda step, *_: seen.append(step))
    assert seen == [2, 3, 4]


@pytest.mark.parametrize("kind", [GRPO, SFT])
def test_a_policy_that_goes_astray_leaves_no_checkpoint(
    kind: Any, policy: Callable[..., Any], sample: Sampler, tokenizer: Any, tmp_path: Path
) -> None:
    args = {"save_steps": 1, "optim": "sgd", "max_grad_norm": 0.0, "weight_decay": 1e30}
    wild = kind(policy(1), tmp_path / "out", tokenizer=tokenizer, steps=2, learning_rate=1e30, args=args)
    with pytest.raises(TrainError, match="not finite"):
        wild.train(sample(policy(1), groups=1))
    assert not list(tmp_path.rglob("checkpoint-*"))
    if kind is GRPO:
        far = GRPO(
            policy(1),
            tmp_path / "far",
            tokenizer=tokenizer,
            steps=4,
            learning_rate=0.1,
            max_kl=0.5,
            args={"save_steps": 1},
        )
        with pytest.raises(TrainError, match=r"nats a rollout after [1-4] steps, above max_kl 0\.5; nothing was saved"):
            far.train(sample(policy(1), groups=1))
        kept = sorted(int(one.name.partition("-")[2]) for one in (tmp_path / "far.run").glob("checkpoint-*"))
        assert len(kept) < 4
