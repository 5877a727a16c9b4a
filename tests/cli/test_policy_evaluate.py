"""`cm2 policy evaluate`: stored rollouts of a tiny policy, and policies near it and far from it."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen3Config, Qwen3ForCausalLM

from cm2_agent.cli.app import app
from cm2_agent.graphs import agent
from cm2_agent.models.local import LocalChatModel
from cm2_agent.models.tokenizer import byte_tokenizer
from cm2_agent.runner.run import run
from cm2_agent.store import SQLStore
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.checklist_item import Item
from cm2_agent.types.policy import Policy
from cm2_agent.types.task import Task
from tests.cli_runner import CliRunner

pytestmark = pytest.mark.slow

LETTERS = Checklist(Item("a_letter", check={"reply_matches": "[a-z]"}), name="letters")
TASKS = [Task(id=f"hello-{number}", turns=(f"Say something, number {number}.",)) for number in range(32)]


def collect(policy: Path, store: SQLStore, group: int) -> float:
    """The mean reward of stored rollouts of the policy."""

    async def held() -> list[float | None]:
        model = LocalChatModel.load(policy, max_tokens=2)
        graph = agent(model, tools=[])
        held = run(graph, TASKS, group=group, checklist=LETTERS, store=store)
        return [None if score is None else score.lower async for _, score in held]

    rewards = [reward for reward in asyncio.run(held()) if reward is not None]
    assert len(rewards) == group * len(TASKS)
    return sum(rewards) / len(rewards)


def nudged(policy: Path, out: Path, by: float) -> Path:
    """The policy with noise on its weights."""
    shutil.copytree(policy, out)
    weights, noise = load_file(out / "model.safetensors"), torch.Generator().manual_seed(1)
    moved = {name: one + by * torch.randn(one.shape, generator=noise) for name, one in sorted(weights.items())}
    save_file(moved, out / "model.safetensors", metadata={"format": "pt"})
    return out


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a policy, policies beside it, and the old one's rollouts: 32 tasks, 4 of each."""
    folder, tokenizer = tmp_path_factory.mktemp("desk"), byte_tokenizer()
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    config = Qwen3Config(vocab_size=len(tokenizer), num_key_value_heads=2, head_dim=16, **size, **ends)
    Qwen3ForCausalLM(config).save_pretrained(folder / "old")
    tokenizer.save_pretrained(folder / "old")
    nudged(folder / "old", folder / "near", 0.01)
    nudged(folder / "old", folder / "far", 0.3)
    with SQLStore(f"sqlite:///{folder / 'cm2.db'}") as store:
        collect(folder / "old", store, 4)
    return folder


def evaluate(desk: Path, *words: str, code: int = 0) -> Any:
    done = CliRunner().invoke(app, ["policy", "evaluate", *words, "--store", f"sqlite:///{desk / 'cm2.db'}"])
    assert done.exit_code == code, (done.stdout, done.stderr, done.exception)
    return done


def test_the_policy_itself_earns_its_own_mean(desk: Path) -> None:
    found = json.loads(evaluate(desk, str(desk / "old"), "--json").stdout)
    assert found["same"]
    assert found["policy"] == found["behaviour"]
    assert (found["rollouts"], found["tasks"], found["left_out"]) == (128, 32, {})
    assert found["effective_share"] == pytest.approx(1)
    assert found["old"]["value"] > 0.02
    for name in ("self_normalised", "doubly_robust"):
        assert found[name]["value"] == pytest.approx(found["old"]["value"], abs=1e-12)
        assert found[name]["gain"] == pytest.approx({"value": 0, "low": 0, "high": 0}, abs=1e-9)


def test_a_policy_near_by_earns_what_is_estimated(desk: Path) -> None:
    done = evaluate(desk, str(desk / "near"), "--json")
    found = json.loads(done.stdout)
    assert not found["same"]
    assert 0.1 < found["effective_share"] < 0.999
    with SQLStore(f"sqlite:///{desk / 'real.db'}") as store:
        real = collect(desk / "near", store, 8)
    for name in ("self_normalised", "doubly_robust"):
        assert found[name]["low"] <= real <= found[name]["high"]
    lines = evaluate(desk, str(desk / "near")).stdout.splitlines()
    assert lines[0].startswith("128 rollouts of 32 tasks by policy ")
    assert lines[-1].startswith("new policy, doubly robust: ")
    assert "; less the old: " in lines[-1]


def test_what_is_refused_exits_1_with_what_is_known(desk: Path) -> None:
    done = evaluate(desk, str(desk / "far"), "--json", code=1)
    found = json.loads(done.stdout)
    assert found["self_normalised"] is found["doubly_robust"] is None
    assert found["old"]["value"] > 0.02
    assert "expected 10% or more" in found["refused"]
    assert "no estimate of the new policy: the effective sample size is" in done.stderr
    assert "new policy, " not in evaluate(desk, str(desk / "far"), code=1).stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--policy", "v9"), "no group of scored rollouts is of --policy v9; there are the policies"),
        (("--reward", "other"), "no scores of reward version 'other'"),
        (("--temperature", "0.3"), "no rollout of 32 groups can be weighed: 128 × sampled at another temperature"),
        (("--agent-name", "sales"), "128 × no step of the agent sales"),
    ],
)
def test_what_cannot_be_meant_exits_2(desk: Path, words: tuple[str, ...], said: str) -> None:
    assert said in evaluate(desk, str(desk / "near"), *words, code=2).stderr


def test_a_registered_version_stands_for_its_folder(desk: Path) -> None:
    with SQLStore(f"sqlite:///{desk / 'cm2.db'}") as store:
        store.save_policy(Policy(name="hello", version="f00d1", folder=str(desk / "old")))
        store.save_policy(Policy(name="hello", version="beef2"))
        store.save_policy(Policy(name="other", version="beef3", folder=str(desk / "old")))
    assert json.loads(evaluate(desk, "f00", "--json").stdout)["same"]
    assert "nobody knows where the weights of policy beef2 are" in evaluate(desk, "beef2", code=2).stderr
    assert "'beef' begins the versions of 2 policies" in evaluate(desk, "beef", code=2).stderr


def test_a_version_of_several_agents_is_one_policy_and_gone_weights_are_named(desk: Path) -> None:
    with SQLStore(f"sqlite:///{desk / 'cm2.db'}") as store:
        store.save_policy(Policy(name="first", version="cafe1", folder=str(desk / "moved away")))
    said = evaluate(desk, "cafe1", code=2).stderr
    assert f"the weights of policy cafe1 are gone: they were in {desk / 'moved away'}" in said.replace("\n", " ")
    with SQLStore(f"sqlite:///{desk / 'cm2.db'}") as store:
        store.save_policy(Policy(name="second", version="cafe1", folder=str(desk / "old")))
    assert json.loads(evaluate(desk, "cafe", "--json").stdout)["same"]


def test_no_policy_there(desk: Path) -> None:
    said = evaluate(desk, str(desk / "gone"), code=2).stderr
    assert "gone" in said
