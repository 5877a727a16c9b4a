"""Agents of `langchain.agents.create_agent`: switched by middleware, by `switched`, or by both, and each call once."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, ToolRetryMiddleware
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool

from cm2_agent.graphs.backends.backends import TOOLS, Backends
from cm2_agent.graphs.interception.discovery import require_allowed, tools_of, undiscovered_tools
from cm2_agent.graphs.interception.langchain_middleware import ToolSwitch
from cm2_agent.graphs.interception.tool_node import switched
from cm2_agent.tracing.span_processor import capture
from cm2_agent.types.run import Run
from cm2_agent.types.tool_calls import ToolAnswer
from tests.graphs.interception.switched_app import Invents, Recorded, driven, says
from tests.tracing import apps

CALLED: list[int] = []


@tool
def look(key: int) -> str:
    """Look a key up."""
    CALLED.append(key)
    return f"real {key}"


class Louder(AgentMiddleware[Any, Any, Any]):
    """Middleware of the application's own around the tools."""

    async def awrap_tool_call(self, request: Any, handler: Callable[[Any], Any]) -> Any:
        answered = await handler(request)
        return answered.model_copy(update={"content": answered.content.upper()})


@pytest.fixture(autouse=True)
def nothing_called() -> None:
    CALLED.clear()


def agent(*middleware: Any, script: Any = (("look", {"key": 1}),)) -> Any:
    model = apps.ScriptedModel(script=[says(*script), AIMessage("done")])
    return create_agent(model, [look], middleware=list(middleware))


WAYS: dict[str, Callable[[], Any]] = {
    "middleware": lambda: agent(ToolSwitch()),
    "switched": lambda: switched(agent()),
    "both": lambda: switched(agent(ToolSwitch())),
    "twice": lambda: switched(switched(agent())),
    "beside other middleware": lambda: agent(ToolRetryMiddleware(), ToolSwitch()),
    "switched around other middleware": lambda: switched(agent(ToolRetryMiddleware())),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
async def test_a_call_is_answered_by_the_backend_once(way: Callable[[], Any]) -> None:
    backends = Backends("simulate", simulator=Invents())
    (told,), (run,) = await driven(way(), backends)
    assert (told.content, told.status, CALLED) == ("invented 1", "success", [])
    assert [(span.name, span.backend, span.call_id) for span in run.tools] == [("look", "simulate", "c0")]
    assert len(backends.log.entries) == 1


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
async def test_a_real_call_is_made_and_told_once(way: Callable[[], Any]) -> None:
    backends = Backends()
    (told,), (run,) = await driven(way(), backends)
    assert (told.content, CALLED) == ("real 1", [1])
    assert [span.backend for span in run.tools] == ["real"]
    assert [entry.answer.content for entry in backends.log.entries] == ["real 1"]


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_the_same_without_asyncio_and_without_backends(way: Callable[[], Any]) -> None:
    runs: list[Run] = []
    for backends, content in ((Backends("replay", replay=Recorded({1: "recorded"})), "recorded"), (None, "real 1")):
        config: Any = {
            "configurable": {} if backends is None else {TOOLS: backends},
            "callbacks": [capture(runs.append)],
        }
        state = way().invoke({"messages": [HumanMessage("go")]}, config)
        assert [message.content for message in state["messages"] if isinstance(message, ToolMessage)] == [content]
    assert [[span.backend for span in run.tools] for run in runs] == [["replay"], [None]]


async def test_errors_keep_their_form() -> None:
    wrong: tuple[Any, ...] = (("look", {"key": "seven"}), ("nonsense", {}))
    real, _ = await driven(agent(script=wrong), None)
    simulator = Invents(ToolAnswer(content="no such key", error=True, backend="simulate"))
    for app in (agent(ToolSwitch(), script=wrong), switched(agent(script=wrong))):
        told, _ = await driven(app, Backends("simulate", simulator=simulator))
        assert [(one.content, one.status) for one in told] == [(one.content, one.status) for one in real]
        assert simulator.asked == []
    (failed,), _ = await driven(agent(ToolSwitch()), Backends("simulate", simulator=simulator))
    assert (failed.content, failed.status) == ("no such key", "error")


async def test_other_middleware_sees_what_the_switch_answered() -> None:
    for app in (agent(Louder(), ToolSwitch()), switched(agent(Louder()))):
        (told,), (run,) = await driven(app, Backends("simulate", simulator=Invents()))
        assert (told.content, run.tools[0].result) == ("INVENTED 1", "invented 1")


def test_its_tools_are_seen() -> None:
    for app in (agent(), agent(ToolSwitch()), agent(Louder(), ToolSwitch())):
        assert list(tools_of(app)) == ["look"]
        assert undiscovered_tools(app) == {}
        assert list(require_allowed(app, [], {"look": "simulate"})) == ["look"]


def test_many_at_once_keep_their_own_backends() -> None:
    app = agent(ToolSwitch())

    async def ask(number: int) -> Any:
        return (await driven(app, Backends("simulate", simulator=Invents(f"answer {number}"))))[0][0].content

    async def all_of_them() -> list[Any]:
        return list(await asyncio.gather(*(ask(number) for number in range(20))))

    assert asyncio.run(all_of_them()) == [f"answer {number}" for number in range(20)]


def test_without_the_package_the_extra_is_named() -> None:
    code = (
        "import sys; sys.modules['langchain'] = None\n"
        "from cm2_agent.errors import MissingExtra\n"
        "try:\n    import cm2_agent.graphs.interception.langchain_middleware\n"
        "except MissingExtra as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == 'agents of langchain.agents need an extra: pip install "cm2-agent[langchain]"'
