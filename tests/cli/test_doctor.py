"""`cm2 doctor --agent`: what it says of an app that knows nothing of us equals what the app's own ledger says."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.messages import ToolCall as Asked

from cm2_agent.cli.app import app
from cm2_agent.online.watch import flush, watch
from cm2_agent.runner.run import run
from cm2_agent.store import SQLStore
from cm2_agent.types.messages import Message, ToolCall
from cm2_agent.types.run import ModelCall, Run, ToolRun
from cm2_agent.types.task import Task
from tests.cli_runner import CliRunner
from tests.graphs import plain_app
from tests.graphs.interception.switched_app import Invents
from tests.models.test_local import chat_model, network
from tests.tracing.apps import ScriptedModel

AGENT = "tests.graphs.plain_app:graph"


def calling(*asked: tuple[str, Any]) -> AIMessage:
    """An assistant message that asks for tools; each has one argument."""
    named = {"get_order": "order_id", "refund": "order_id", "search": "words"}
    calls: list[Asked] = [
        {"name": name, "args": {named[name]: value}, "id": f"{name}-{value}", "type": "tool_call"}
        for name, value in asked
    ]
    return AIMessage(content="", tool_calls=calls)


SCRIPT = [
    calling(("get_order", 7), ("refund", 7), ("get_order", 8)),
    calling(("search", "refunds"), ("search", "dates")),
    calling(("refund", 8)),
    AIMessage("All done."),
    AIMessage("Yours."),
]


class Wordy(GenericFakeChatModel):
    """A model that gives no token ids."""

    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        return self


def doctor(*arguments: str, code: int) -> Any:
    result = CliRunner().invoke(app, ["doctor", *arguments, "--json"])
    assert result.exit_code == code, (result.stdout, result.stderr, result.exception)
    return json.loads(result.stdout)


def streamed(graph: Any, thread: str) -> None:
    """One question, its tokens consumed as a chat page would."""

    async def read() -> int:
        config: Any = {"configurable": {"thread_id": thread}}
        asked: Any = {"messages": [HumanMessage("Where is order 7?")]}
        return len([part async for part in graph.astream(asked, config, stream_mode="messages")])

    assert asyncio.run(read()) > 0


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    plain_app.LEDGER.clear()
    return plain_app.LEDGER


def test_the_app_never_imports_us() -> None:
    source = Path(plain_app.__file__).read_text(encoding="utf-8")
    assert "cm2" not in source


def test_what_the_doctor_counts_is_what_happened(ledger: Any, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'live.db'}"
    small = network()
    small.config.max_position_embeddings = 2048  # its tools are shown to it byte by byte
    local = chat_model(model=small, max_tokens=8, seed=1)
    trainable = 0
    for number, model in enumerate([ScriptedModel(script=SCRIPT), local, ScriptedModel(script=SCRIPT), local]):
        before = ledger["model"]
        streamed(watch(plain_app.build(model), store=url), f"t{number}")
        trainable += ledger["model"] - before
    wordy = Wordy(messages=iter([AIMessage("I do not know."), AIMessage("Yours.")]))
    streamed(watch(plain_app.build(wordy), store=url), "wordy")
    assert flush(300)

    found = doctor("--agent", AGENT, "--store", url, code=1)
    assert found["switch"] == {
        "seen": ["search"],
        "switchable": [],
        "unseen": {"get_order": "run_tools", "refund": "think"},
    }
    assert ledger == {"model": 16, "get_order": 4, "refund": 4, "search": 4}
    assert (found["traces"], found["runs"]) == (5, 5)
    assert trainable == 14
    assert found["calls"] == {
        "trainable": trainable,
        "text_only": ledger["model"] - trainable,
        "failed": 0,
        "other": {},
    }
    assert found["tools"] == {
        "get_order": {"asked": ledger["get_order"], "ran": ledger["get_order"]},
        "refund": {"asked": ledger["refund"], "ran": 0},
        "search": {"asked": ledger["search"], "ran": ledger["search"]},
    }
    assert found["tool_runs"] == 8
    assert found["tool_runs_by_backend"] == {"unknown": 8}
    assert [line.partition(":")[0] for line in found["problems"]] == [
        "the switch cannot see the tools that plain function nodes call",
        "refund was asked for 4 times and left no span",
    ]
    assert "get_order (node run_tools), refund (node think)" in found["problems"][0]
    words = CliRunner().invoke(app, ["doctor", "--agent", AGENT, "--store", url]).stdout
    sentences = (
        "switch: seen search",
        "switch: unseen get_order, refund",
        "tool: refund asked for 4 times, left 0 spans",
    )
    for told in (*sentences, "PROBLEM: refund was asked for 4 times"):
        assert told in " ".join(words.split())


async def test_tool_runs_are_counted_by_backend(ledger: Any, tmp_path: Path) -> None:
    """The same app in a run: what the switch sees is simulated, what it cannot see runs for real where it is named."""
    url = f"sqlite:///{tmp_path / 'run.db'}"
    graph = plain_app.build(ScriptedModel(script=SCRIPT))
    task = Task(id="a", turns=("Where is order 7?",))
    options: dict[str, Any] = {
        "tools": {"search": "simulate"},
        "simulator": lambda task: Invents("one", "two"),
        "group": 2,
    }
    with SQLStore(url) as store:
        async for trace, _ in run(graph, [task], store=store, allow_real=["get_order", "refund"], **options):
            assert trace.failure is None
        found = await asyncio.to_thread(doctor, "--agent", AGENT, "--store", url, code=1)
    assert ledger == {"model": 10, "get_order": 4, "refund": 4}
    assert found["tool_runs_by_backend"] == {"simulate": 4, "unknown": 4}
    assert found["tools"]["search"] == {"asked": 4, "ran": 4}
    assert found["calls"]["trainable"] == ledger["model"]


def test_an_agent_alone_needs_no_store(ledger: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = doctor("--agent", AGENT, code=1)
    assert set(found) == {"ok", "problems", "switch"}
    assert (found["ok"], len(found["problems"])) == (False, 1)
    (tmp_path / "mine.py").write_text(
        "from cm2_agent.graphs import agent\nfrom cm2_agent.graphs import switchable\nfrom langchain_core.tools"
        " import tool\nfrom langgraph.graph import START, MessagesState, StateGraph\nfrom tests.tracing.apps import"
        " ScriptedModel, look\n@switchable\ndef stamp(key: int) -> str:\n    'Stamp.'\n    return 'x'\ndef mark(state):"
        " return {'messages': [stamp(1)]}\ninner = agent(ScriptedModel(script=[]), [look])\ngraph ="
        " StateGraph(MessagesState).add_node('mark', mark).add_node('inner', inner).add_edge(START, 'mark').compile()\n"
    )
    monkeypatch.setattr(sys, "path", [*sys.path])
    found = doctor("--agent", "mine.py:graph", code=0)
    assert found == {
        "ok": True,
        "problems": [],
        "switch": {"seen": ["look", "stamp"], "unseen": {}, "switchable": ["stamp"]},
    }
    assert not ledger


def test_a_store_that_is_named_must_be_there(ledger: Any) -> None:
    for arguments in (("--agent", AGENT, "--store", "sqlite:///none.db"), ()):
        result = CliRunner().invoke(app, ["doctor", *arguments])
        assert result.exit_code == 2
        assert ".db" in result.stderr
    assert "expected MODULE:" in CliRunner().invoke(app, ["doctor", "--agent", "nothing"]).stderr


def test_asked_and_ran_are_counted_from_messages_and_spans(store_url: str) -> None:
    """Calls of sub-agents count once, messages that no recorded call wrote count too, and odd names survive."""
    odd = "lo\x00ok\ud800"
    asked = Message.of(
        "assistant", "", [ToolCall(id="1", name="a"), ToolCall(id="2", name="a"), ToolCall(id="3", name=odd)]
    )
    again = Message.of("assistant", "", [ToolCall(id="4", name="a")])
    silent = Message.of("assistant", "no calls, though it says tool_call")
    first = Run(
        id="1",
        messages=(Message.of("user", "go"), asked, silent, again),
        calls=(
            ModelCall(span_id="c", output=asked, message=1),
            ModelCall(span_id="s", output=again),
            ModelCall(span_id="f", error="down"),
        ),
        tools=(ToolRun(span_id="t", name="a", backend="real"), ToolRun(span_id="u", name="b", backend="replay")),
    )
    second = Run(id="2", messages=(asked,), tools=(ToolRun(span_id="v", name=odd),))
    third = Run(id="3", messages=(again,), calls=(ModelCall(span_id="d", output=again, message=0),))
    with SQLStore(store_url) as store:
        store.save_runs([first, second, third])
        assert store.count_tools() == {
            "a": {"asked": 2 + 1 + 1 + 2 + 1, "ran": 1},
            "b": {"asked": 0, "ran": 1},
            odd: {"asked": 2, "ran": 1},
        }
        assert store.health()["tool_runs_by_backend"] == {"real": 1, "replay": 1, "unknown": 1}
