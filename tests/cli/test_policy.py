"""`cm2 policy deploy`: from a folder to rollouts of the policy that answers, and what it says where it cannot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

pytest.importorskip("langchain_openai", reason='needs the extra: pip install "cm2-agent[openai]"')

from cm2_agent.cli.app import app
from cm2_agent.store import SQLStore
from tests.models.lora_servers import VLLM, Server, SGLang
from tests.models.test_deploy import adapter

BOTH = pytest.mark.parametrize("kind", [VLLM, SGLang])


@BOTH
def test_rollouts_of_two_policies_are_told_apart(kind: type[Server], tmp_path: Path) -> None:
    tasks, store = tmp_path / "tasks.jsonl", f"sqlite:///{tmp_path / 'cm2.db'}"
    tasks.write_text('{"id": "t", "turns": ["Where is order 7?"]}\n')
    versions: list[str] = []
    with kind(mode="scaled", api_key="k1") as server:
        for number in range(2):
            folder = adapter(tmp_path / f"policy{number}", weights=bytes([number]))
            replace = ("--replace", versions[-1]) if versions else ()
            words = ["policy", "deploy", str(folder), "--url", server.url, *replace, "--json"]
            done = CliRunner(env={"CM2_MODEL_API_KEY": "k1"}).invoke(app, words)
            assert done.exit_code == 0, done.output
            deployed = json.loads(done.stdout)
            versions.append(deployed["version"])
            words = ["run", str(tasks), "--model", deployed["model"], "--base-url", server.url, "--token-ids"]
            words += ["--server", deployed["server"], "--logprobs-mode", deployed["logprobs_mode"]]
            words += ["--group", "2", "--store", store]
            done = CliRunner(env={"CM2_MODEL_API_KEY": "k1"}).invoke(app, words)
            assert done.exit_code == 0, done.output
        assert list(server.adapters) == versions[1:]
    with SQLStore(store) as opened:
        traces = list(opened.traces())
    calls = [step.call for trace in traces for step in trace.steps]
    assert len(traces) == 4
    named = versions if kind is VLLM else [f"base:{version}" for version in versions]
    assert sorted({str(call and call.model_version) for call in calls}) == sorted(named)
    assert all(call is not None and call.untrainable is None for call in calls)


def test_what_is_printed_goes_into_the_app(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "policy")
    with VLLM() as server:
        done = CliRunner().invoke(app, ["policy", "deploy", str(folder), "--url", server.url, "--name", "desk"])
        again = CliRunner().invoke(app, ["policy", "deploy", str(folder), "--url", server.url])
    lines = done.stdout.splitlines()
    assert lines[:2] == ["loaded: desk on base, vllm", "answers as desk; put into the app:"]
    assert lines[2].startswith(f'  model = openai_compatible("{server.url}", "desk", token_ids=True, model_version="')
    assert lines[3].startswith("note: logprobs are raw: only temperature 1")
    assert again.exit_code == 0


@BOTH
def test_refusals_exit_2_and_never_print_the_key(kind: type[Server], tmp_path: Path) -> None:
    folder = adapter(tmp_path / "policy", base="org/other")
    with kind(api_key="secret-key") as server:
        for key, words in (("wrong-key", "refused the key"), ("secret-key", "trained on 'org/other'")):
            done = CliRunner(env={"CM2_MODEL_API_KEY": key}).invoke(
                app, ["policy", "deploy", str(folder), "--url", server.url]
            )
            assert done.exit_code == 2
            assert words in done.stderr
            assert key not in done.output
    done = CliRunner().invoke(app, ["policy", "deploy", str(tmp_path), "--url", server.url])
    assert "holds no adapter_config.json" in done.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--logprobs-mode", "raw"), "--base-url names none"),
        (("--base-url", "http://localhost:1/v1", "--logprobs-mode", "cooked"), "logprobs_mode 'cooked'"),
        (("--base-url", "http://localhost:1/v1", "--server", "tgi"), "server 'tgi'"),
    ],
)
def test_what_cm2_run_is_told_of_a_server(options: tuple[str, ...], words: str, tmp_path: Path) -> None:
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text('{"id": "t", "turns": ["Hi"]}\n')
    done = CliRunner().invoke(
        app, ["run", str(tasks), "--model", "m", *options, "--store", f"sqlite:///{tmp_path}/a.db"]
    )
    assert done.exit_code == 2
    assert words in done.stderr
