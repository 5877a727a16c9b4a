"""`cm2 run --through-proxy`: an agent on ChatOpenAI that knows nothing of us has rows to train on, the same as with our
own model of the endpoint."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("aiohttp", reason='needs the extra: pip install "cm2-agent[server]"')
pytest.importorskip("langchain_openai", reason='needs the extra: pip install "cm2-agent[openai]"')
from langchain_openai import ChatOpenAI

from cm2_agent import flush, watch
from cm2_agent.cli.app import app
from cm2_agent.graphs import agent
from cm2_agent.server.chat_request import Upstream
from cm2_agent.server.local_proxy import local_proxy
from cm2_agent.store import SQLStore
from cm2_agent.types.run import ModelCall
from tests.cli_runner import CliRunner
from tests.models.vllm_server import Server, running

VLLM = Upstream(server="vllm", logprobs_mode="raw", model_version="v7")


def call_of(model: Any, url: str, *, stream: bool) -> ModelCall:
    graph = watch(agent(model, []), store=url)
    asked = {"messages": [("user", "Hi")]}
    if stream:
        list(graph.stream(asked, stream_mode="messages"))
    else:
        graph.invoke(asked)
    flush()
    with SQLStore(url) as store:
        (call,) = next(store.traces()).calls
    return call


def timeless(call: ModelCall) -> ModelCall:
    output = None if call.output is None else replace(call.output, extra={})
    return replace(call, span_id="", started=0, ended=0, output=output)


@pytest.mark.parametrize("stream", [False, True])
def test_a_proxied_call_is_that_of_our_own_model(tmp_path: Path, stream: bool) -> None:
    with running() as server:
        own = server.model(model_version="v7", logprobs_mode="raw", streaming=stream)
        ours = call_of(own, f"sqlite:///{tmp_path / 'own.db'}", stream=stream)
        with local_proxy(server.address, VLLM) as proxy:
            theirs = call_of(
                ChatOpenAI(model="m", api_key="none", temperature=1.0, stream_usage=True, max_retries=0),  # type: ignore[arg-type]
                f"sqlite:///{tmp_path / 'theirs.db'}",
                stream=stream,
            )
            assert proxy.calls == 1
    assert theirs.untrainable is None
    assert (theirs.prompt_ids, theirs.completion_ids, theirs.logprobs) == (
        ours.prompt_ids,
        ours.completion_ids,
        ours.logprobs,
    )
    assert timeless(theirs) == timeless(ours)
    assert "OPENAI_BASE_URL" not in os.environ


AGENT = """
from langchain_openai import ChatOpenAI
from cm2_agent.graphs import agent

def graph():
    return agent(ChatOpenAI(model="m", api_key="none", max_retries=0{more}), [])
"""


def run(server: Server, folder: Path, more: str) -> Any:
    module = folder / f"own_app{len(more)}.py"
    module.write_text(AGENT.format(more=more))
    tasks = folder / "tasks.jsonl"
    tasks.write_text('{"id": "t1", "turns": ["Hi"]}\n')
    options = ["--base-url", server.address, "--token-ids", "--through-proxy", "--json"]
    store = f"sqlite:///{folder / 'cm2.db'}"
    result = CliRunner().invoke(app, ["run", str(tasks), "--agent", f"{module}:graph", *options, "--store", store])
    assert result.exit_code == 0, result.output
    return result


def test_cm2_run_through_a_proxy_gives_rows_to_train_on(tmp_path: Path) -> None:
    with running() as server:
        result = run(server, tmp_path, "")
    assert json.loads(result.stdout)["proxied_calls"] == 1
    with SQLStore(f"sqlite:///{tmp_path / 'cm2.db'}") as store:
        (call,) = next(store.traces()).calls
    assert call.untrainable is None


def test_an_agent_with_a_url_of_its_own_is_said(tmp_path: Path) -> None:
    with running() as server:
        result = run(server, tmp_path, f', base_url="{server.address}"')
    assert json.loads(result.stdout)["proxied_calls"] == 0
    assert "no call came through the proxy" in result.stderr
