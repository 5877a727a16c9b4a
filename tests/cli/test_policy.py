"""`cm2 policy deploy`: from a folder to rollouts of the policy that answers, and what it says where it cannot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli_runner import CliRunner

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


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("deploy", "empty"), "'{0}/empty' holds no adapter_config.json; expected the folder that LoRA training wrote"),
        (("deploy", "gone"), "'{0}/gone' is not there; expected the folder that LoRA training wrote"),
        (("deploy", "model"), "'{0}/model' holds whole weights, and a server loads those only at its start"),
        (("deploy", "policy"), "refused; is the server up, the url right?"),
        (("deploy", "policy/adapter_config.json"), "adapter_config.json' is a file; expected the folder that"),
        (("merge", "empty"), "'{0}/empty' is no adapter: expected the folder that LoRA training wrote"),
        (("merge", "gone"), "there is no folder '{0}/gone' ('{0}' has empty, model, policy)"),
        (("merge", "model"), "'{0}/model' is no adapter but a whole model, with nothing to merge"),
    ],
)
def test_what_is_no_adapter_or_no_server(command: tuple[str, str], words: str, tmp_path: Path) -> None:
    adapter(tmp_path / "policy")
    for name in ("empty", "model"):
        (tmp_path / name).mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    with VLLM() as server:
        address = server.url  # of a server that is gone when it is asked
    more = ("--url", address) if command[0] == "deploy" else (str(tmp_path / "out"),)
    done = CliRunner().invoke(app, ["policy", command[0], str(tmp_path / command[1]), *more])
    assert done.exit_code == 2
    assert words.format(tmp_path) in done.stderr


def test_servers_that_take_no_adapters(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "policy")

    def refusal(server: Server, *more: str, path: str = "/v1") -> str:
        url = server.url.replace("/v1", path)
        done = CliRunner().invoke(app, ["policy", "deploy", str(folder), "--url", url, *more])
        assert done.exit_code == 2
        return done.stderr

    with VLLM(updating=False) as server:
        assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve org/base --enable-lora" in refusal(server)
        assert "expected the address of vLLM or SGLang" in refusal(server, path="/other")
    with SGLang(enabled=False) as sglang:
        assert "sglang.launch_server --model-path base --enable-lora" in refusal(sglang)
    with VLLM(api_key="k1") as server:
        said = refusal(server)
        assert "wants a key and was given none (status 401); give api_key (cm2 reads CM2_MODEL_API_KEY)" in said
    with VLLM(serves="other", root="org/other") as server:
        said = refusal(server)
        assert "trained on 'org/base'" in said
        assert "serves org/other, other" in said
        assert "give base (--base)" in said


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
