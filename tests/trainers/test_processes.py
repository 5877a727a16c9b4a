"""Two processes, launched as users launch them, train as one does."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser  # type: ignore[import-untyped]
from accelerate.utils.launch import prepare_multi_gpu_env  # type: ignore[import-untyped]
from typer.testing import CliRunner

from cm2_agent import DPO, GRPO, SFT, Checklist, Item, LocalChatModel, SQLStore, Task, run
from cm2_agent.cli.app import app
from cm2_agent.errors import TrainError
from cm2_agent.graphs import agent
from cm2_agent.models import fingerprint
from cm2_agent.models.loading import load_policy_model
from cm2_agent.trainers.collator import collate
from cm2_agent.trainers.launch import warn_unsharded
from cm2_agent.trainers.micro_batches import MicroBatches
from cm2_agent.trainers.output_folder import check_run
from cm2_agent.trainers.policy import Policy
from cm2_agent.trainers.run_identity import read_identity
from cm2_agent.types.messages import Message
from cm2_agent.types.run import Run
from cm2_agent.types.trace import Trace
from tests.trainers.loop import apart, ready, rows_of_groups, trained

TOP = Path(__file__).resolve().parents[2]
SGD = {"optim": "sgd", "max_grad_norm": 0.0, "use_cpu": True}


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory, policy: Callable[..., Any], tokenizer: Any) -> Path:
    """A folder with a policy and a store of five groups of five of its dialogues."""
    folder = tmp_path_factory.mktemp("stored")
    policy(0).save_pretrained(folder / "policy")
    tokenizer.save_pretrained(folder / "policy")
    policy(0).bfloat16().save_pretrained(folder / "half")
    tokenizer.save_pretrained(folder / "half")
    letters = Checklist(
        Item("a", check={"reply_matches": "[a-z]"}), Item("b", check={"reply_matches": "[a-m]{2}"}), name="letters"
    )
    tasks = [Task(id=f"t{number}", turns=(f"hi {number}", "more")) for number in range(5)]
    for name in ("policy", "half"):
        model = LocalChatModel.load(folder / name, max_tokens=12)
        store = SQLStore(f"sqlite:///{folder / name}.db")

        async def collect(model: Any = model, store: SQLStore = store) -> None:
            async for _ in run(agent(model, []), tasks, group=5, checklist=letters, store=store, lockstep=True):
                pass

        asyncio.run(collect())
    return folder


RUNS: dict[str, dict[str, Any]] = {
    "dapo": {"model": "policy", "args": SGD},
    "grpo in micro-batches": {"model": "policy", "args": {**SGD, "loss_type": "grpo"}, "tokens_per_micro_batch": 400},
    "bfloat16": {"model": "half", "args": SGD},
    "sharded": {"model": "policy", "args": SGD, "tokens_per_micro_batch": 400},
    "one row at a time": {
        "model": "policy",
        "args": {**SGD, "importance_sampling_level": "sequence"},
        "tokens_per_micro_batch": 1,
        "rollouts_per_step": 5,
        "learning_rate": 1.0,
    },
    "sharded, AdamW": {"model": "policy", "args": {"use_cpu": True}, "learning_rate": 1e-3},
    "sharded bfloat16": {"model": "half", "args": {**SGD, "max_grad_norm": 0.5, "activation_checkpointing": True}},
    "sharded, an adapter": {"model": "half", "args": SGD, "peft_config": {"r": 4, "init_lora_weights": "gaussian"}},
}


@pytest.fixture(scope="module")
def together(stored: Path) -> Path:
    """The folder of the runs, each by two processes that torchrun started: `accelerate launch --cpu` starts one,
    whatever its --num_processes.
    """
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    env = fsdp_env()
    runs = [
        arguments(stored, name) | {"out": str(stored / name), "env": env if name.startswith("sharded") else {}}
        for name in RUNS
    ]
    words = ["-m", "tests.trainers.train_by_process", json.dumps(runs)]
    env = {**os.environ, "PYTHONPATH": str(TOP), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *launcher, *words], cwd=TOP, env=env, capture_output=True, text=True, check=False, timeout=500
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(done.stdout.split()) == ["0/2", "1/2"]
    return stored


def fsdp_env() -> dict[str, str]:
    """What `accelerate launch --config_file fsdp2.yaml` leaves in the environment of its processes, by its own
    reading.
    """
    parsed = launch_command_parser().parse_args(["--config_file", str(TOP / "cookbook" / "fsdp2.yaml"), "train.py"])
    read, _, _ = _validate_launch_command(parsed)
    found = prepare_multi_gpu_env(read)
    return {name: value for name, value in found.items() if name.startswith(("ACCELERATE_", "FSDP_"))}


def arguments(stored: Path, name: str) -> dict[str, Any]:
    settings = {"steps": 2, "learning_rate": 0.05, "rollouts_per_step": 1000, **RUNS[name]}
    model = settings.pop("model")
    return {"store": f"sqlite:///{stored / model}.db", "model": str(stored / model), "settings": settings}


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_two_processes_take_the_steps_of_one(together: Path, tmp_path: Path, name: str) -> None:
    run = arguments(together, name)
    exact = RUNS[name]["model"] == "policy"  # else the sums of gradients are rounded to bfloat16 in another order
    grpo = GRPO(run["model"], tmp_path / "one", **run["settings"])
    grpo.train(SQLStore(run["store"]).groups())
    one: Any = grpo.report
    two = json.loads((together / name / "report.json").read_text())
    losses = [[step["loss"] for step in report["history"]] for report in (one, two)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-6 if exact else 1e-3)
    assert any(abs(loss) > 1e-6 for loss in losses[0])
    assert apart(trained(tmp_path / "one"), trained(together / name)) <= (1e-5 if exact else 4e-3)
    for figure in ("entropy", "clip_ratio/region_mean"):
        assert [step[figure] for step in two["history"]] == pytest.approx(
            [step[figure] for step in one["history"]], abs=1e-5 if exact else 1e-3
        )
    assert two["policy"]["after"] == fingerprint(load_policy_model(str(together / name)))
    identity = read_identity(tmp_path / "one" / "run.json")
    assert identity is not None
    with pytest.raises(TrainError, match="processes 2 there, None here; sharded"):
        check_run(together / name, identity, overwrite=False)
    assert two["off_policy_after"] == pytest.approx(one["off_policy_after"], abs=1e-3 if exact else 3e-2)


@pytest.mark.parametrize("rows", range(1, 12))
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_every_process_gets_a_micro_batch_where_there_are_rows_enough(rows: int, processes: int) -> None:
    lengths = [10 + 7 * number for number in range(rows)]
    parts = MicroBatches(tokens=60, processes=processes).split(lengths)
    assert sorted(index for part in parts for index in part) == list(range(rows))
    assert len(parts) % processes == 0 or all(len(part) == 1 for part in parts)


@pytest.mark.parametrize("trainer", [SFT, DPO])
def test_trainers_that_share_nothing_out_run_in_one_process(
    trainer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(TrainError, match=f"{trainer.__name__} was launched in 2 processes, and runs in one"):
        trainer("policy", tmp_path / "out").train([])


def test_accelerate_itself_does_not_cut_a_model_up() -> None:
    from cm2_agent.trainers.processes import require_data_parallel

    def launched(kind: str) -> Any:
        return SimpleNamespace(distributed_type=SimpleNamespace(value=kind))

    for kind in ("NO", "MULTI_GPU", "MULTI_CPU"):
        require_data_parallel(launched(kind))
    for kind in ("FSDP", "DEEPSPEED"):
        with pytest.raises(TrainError, match=f"launched with {kind}, which cuts the model up"):
            require_data_parallel(launched(kind))


PLAIN = {"save_strategy": "no", "bf16": False, "fp16": False, "sync_ref_model": False}


@pytest.mark.parametrize(
    ("env", "config", "words"),
    [
        ({}, {}, None),
        ({"FSDP_VERSION": "1", "FSDP_RESHARD_AFTER_FORWARD": "FULL_SHARD"}, {}, "fsdp_version: 2"),
        ({"FSDP_RESHARD_AFTER_FORWARD": "false"}, {}, "fsdp_reshard_after_forward: true"),
        ({"FSDP_OFFLOAD_PARAMS": "true"}, {}, "fsdp_offload_params: false"),
        ({"FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}, {}, "fsdp_cpu_ram_efficient_loading: false"),
        ({"FSDP_ACTIVATION_CHECKPOINTING": "true"}, {}, "fsdp_activation_checkpointing: false"),
        ({"FSDP_AUTO_WRAP_POLICY": "SIZE_BASED_WRAP"}, {}, "fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP"),
        ({"FSDP_IGNORED_MODULES": "head"}, {}, "no fsdp_ignored_modules"),
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, {}, "mixed_precision: 'no'"),
        ({}, {"bf16": True}, "no bf16 or fp16"),
        ({}, {"sync_ref_model": True}, "no sync_ref_model"),
        ({}, {"save_strategy": "steps"}, "no save_steps"),
    ],
)
def test_what_fsdp_is_not_done_with_is_refused_with_what_to_set(
    env: dict[str, str], config: dict[str, Any], words: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cm2_agent.trainers.sharding import require_known

    for name, value in {**fsdp_env(), "WORLD_SIZE": "2", **env}.items():
        monkeypatch.setenv(name, value)
    given = SimpleNamespace(**{**PLAIN, **config})
    if words is None:
        require_known(given)
        return
    with pytest.raises(TrainError) as refused:
        require_known(given)
    assert words in str(refused.value)
    assert "cookbook/fsdp2.yaml" in str(refused.value)
    monkeypatch.setenv("WORLD_SIZE", "1")  # nothing is sharded then
    require_known(given)


@pytest.mark.parametrize(("processes", "asked", "said"), [(1, "true", True), (1, "false", False), (2, "true", False)])
def test_one_process_that_was_asked_for_fsdp_says_that_nothing_is_sharded(
    processes: int, asked: str, said: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", asked)
    warn_unsharded()
    assert ("ACCELERATE_USE_FSDP=true asks for FSDP, and there is one process" in caplog.text) is said


@pytest.mark.parametrize("trainer", [GRPO, SFT])
def test_a_trainer_in_one_process_says_so(
    trainer: Any,
    policy: Callable[..., Any],
    sample: Callable[..., Any],
    tokenizer: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    given = policy(0)
    trainer(given, tmp_path / "out", tokenizer=tokenizer, steps=1).train(sample(given, 1, 3))
    assert [record.name for record in caplog.records if "nothing is sharded" in record.message] == ["cm2_agent"]


def test_a_model_that_cannot_be_sharded_is_refused(
    policy: Callable[..., Any], tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cm2_agent.trainers.sharding import shard

    def refusal(model: Any, in_memory: bool = False) -> str:
        found = Policy(model=model, tokenizer=tokenizer, version="v", full_precision=True)
        with pytest.raises(TrainError) as refused:
            shard(found, torch.device("cpu"), in_memory=in_memory)
        return str(refused.value)

    assert refusal(policy(0), in_memory=True).startswith("a model in memory cannot be sharded in place")
    mixed = policy(0)
    mixed.lm_head.bfloat16()
    assert refusal(mixed).startswith("the model's weights are in bfloat16, float32; under FSDP expected all in")
    assert refusal(policy(0).half()).startswith("the model's weights are in float16;")
    monkeypatch.setenv("FSDP_TRANSFORMER_CLS_TO_WRAP", "Block")
    assert refusal(policy(0)).startswith("Qwen3ForCausalLM has no layers of Block; name their class in")


def test_rows_are_filled_up_without_a_token(policy: Callable[..., Any], sample: Callable[..., Any]) -> None:
    samples = ready(rows_of_groups(sample(policy(0), 1, 3)))
    batch, filled = collate(samples, pad_id=0), collate(samples, pad_id=0, rows=5)
    assert filled["tool_mask"].shape[0] == 5
    assert filled["tool_mask"][3:].sum() == 0
    assert int(filled["num_items_in_batch"]) == int(batch["num_items_in_batch"])
    for name in ("completion_ids", "advantages", "tool_mask"):
        assert torch.equal(filled[name][:3], batch[name])


def test_processes_share_gradients_refuse_different_rollouts_and_end_together(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.trainers.one_of_processes", str(tmp_path / "meeting")]
    env = {**os.environ, "PYTHONPATH": str(TOP), "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2"}
    both = [
        subprocess.Popen(
            command, cwd=TOP, env={**env, "RANK": str(place)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for place in range(2)
    ]
    for place, process in enumerate(both):
        out, err = process.communicate(timeout=500)
        assert process.returncode == 0, err[-2000:]
        found = json.loads(out.splitlines()[-1])
        # An optimizer passes over a parameter without a gradient, as it does in one process.
        assert found["gradients"] == [[1.5, 1.5], [0.5, 0.5], None]
        same, rollouts, weights = found["said"]
        assert same == "same"
        assert rollouts.startswith("process 1 has other rollouts than process 0; expected the same in all 2")
        assert weights.startswith("process 1 has other weights than process 0")
        own = "its disk is full"
        assert found["ended"] == (own if place == 1 else f"process 1 stopped the run: {own}")


def test_a_gradient_is_the_mean_over_processes_only_where_there_are_several() -> None:
    from cm2_agent.trainers.processes import from_all, from_first, mean_gradients, share

    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.grad = torch.tensor([1.0, 2.0])
    mean_gradients([parameter])
    assert parameter.grad.tolist() == [1.0, 2.0]
    assert from_first("a") == "a"
    assert from_all("a") == ["a"]
    assert share([1, 2, 3]) == [1, 2, 3]


def test_the_command_prints_its_report_in_process_0_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("own_trainer.py").write_text(
        "class Own:\n"
        "    needs = 'traces'\n"
        "    def __init__(self, model, out):\n        self.out, self.report = out, {}\n"
        "    def train(self, traces):\n        self.out.mkdir(exist_ok=True)\n        return self.out\n"
    )
    store = SQLStore("sqlite:///cm2.db")
    messages = (Message.of("user", "Hi"), Message.of("assistant", "Hello"))
    store.save_trace(Trace.of(Run(id="a", messages=messages)))
    command = ["train", "--algorithm", "own_trainer:Own", "--model", "m", "--out", "o", "--store", "sqlite:///cm2.db"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    for place, printed in (("0", True), ("1", False)):
        monkeypatch.setenv("RANK", place)
        result = CliRunner().invoke(app, [*command, "--json"])
        assert result.exit_code == 0, result.output
        assert bool(result.stdout.strip()) is printed
