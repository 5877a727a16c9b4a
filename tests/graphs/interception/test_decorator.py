"""`switchable`: tools that plain function nodes call, outside a run as they are, inside it as the run's backends
say."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import subprocess
import sys
import threading
from typing import Annotated, Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import BaseTool, StructuredTool, ToolException, tool
from langchain_core.utils.function_calling import convert_to_openai_tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import InjectedState, ToolNode
from langgraph.types import Command, interrupt
from pydantic import ValidationError

from cm2_agent.errors import ToolError
from cm2_agent.graphs.backends.backends import TOOLS, Backends
from cm2_agent.graphs.interception.decorator import switchable
from cm2_agent.graphs.interception.discovery import discover_tools, require_allowed, tools_of, undiscovered_tools
from cm2_agent.graphs.interception.real_tool_guard import RealToolGuard
from cm2_agent.graphs.interception.tool_node import switched
from tests.graphs.interception.node_tools import CALLED, afind, fetch, find, look, simulated, within
from tests.graphs.interception.switched_app import app as with_tools
from tests.graphs.interception.switched_app import driven, says


@pytest.fixture(autouse=True)
def nothing_called() -> None:
    CALLED.clear()


def test_outside_a_run_it_is_what_it_wraps() -> None:
    assert (look(3), look(key=4, note="n")) == ("real 3", "real 4")
    assert CALLED == [(3, ""), (4, "n")]
    assert str(inspect.signature(look)) == "(key: 'int', note: 'str' = '') -> 'str'"
    assert (look.__name__, look.__doc__) == ("look", "Look a key up.")
    assert asyncio.run(fetch(5)) == {"key": 5}
    assert inspect.iscoroutinefunction(fetch)
    with pytest.raises(KeyError, match="no key -1"):
        look(-1)
    with pytest.raises(TypeError, match="nothing"):
        look(1, nothing=2)  # type: ignore[call-arg]


def test_a_tool_stays_a_tool() -> None:
    plain = StructuredTool.from_function(find.tool.func)  # type: ignore[attr-defined]
    assert isinstance(find, BaseTool)
    assert convert_to_openai_tool(find) == convert_to_openai_tool(plain)
    assert find.invoke({"key": 1}) == find.run({"key": 1}) == "found 1"
    call: Any = {"name": "find", "args": {"key": 1}, "id": "c", "type": "tool_call"}
    assert find.invoke(call) == ToolMessage(content="found 1", name="find", tool_call_id="c")
    assert asyncio.run(afind.ainvoke({"key": 2})) == asyncio.run(afind.arun({"key": 2})) == {"key": 2}
    with pytest.raises(ToolException, match="no key -1"):
        find.invoke({"key": -1})
    with pytest.raises(ValidationError):
        find.invoke({"key": "x"})
    assert switchable(find) is find
    assert switchable(look) is look


def test_a_run_without_backends_is_outside_too() -> None:
    assert within(lambda: (look(1), find.invoke({"key": 1})), None)[0] == ("real 1", "found 1")


def test_a_functions_answer_is_the_backends() -> None:
    backends = simulated("invented")
    value, (span,) = within(lambda: look(7, note="n"), backends)
    assert (value, CALLED) == ("invented", [])
    assert (span.name, span.arguments, span.result, span.backend) == (
        "look",
        {"key": 7, "note": "n"},
        "invented",
        "simulate",
    )
    assert [(entry.request.arguments, entry.answer.content) for entry in backends.log.entries] == [
        ({"key": 7, "note": "n"}, "invented")
    ]
    assert [message.text for message in backends.simulator.asked[0].messages] == ["go"]  # type: ignore[union-attr]


def test_an_async_function_is_awaited_and_its_answer_read_as_its_annotation() -> None:
    async def work() -> Any:
        return await fetch(7)

    value, (span,) = within(work, simulated('{"key": 9}'))
    assert (value, span.backend, CALLED) == ({"key": 9}, "simulate", [])


def test_a_sync_function_in_an_async_node() -> None:
    async def work() -> Any:
        return look(7)

    assert within(work, simulated("invented"))[0] == "invented"


def test_a_tools_answer_is_the_backends() -> None:
    call: Any = {"name": "find", "args": {"key": 7}, "id": "c9", "type": "tool_call"}
    (plain, message), spans = within(lambda: (find.invoke({"key": 7}), find.invoke(call)), simulated("one", "two"))
    assert (plain, message.content, message.tool_call_id, message.name) == ("one", "two", "c9", "find")
    assert [(span.call_id, span.backend, span.result) for span in spans] == [
        (None, "simulate", "one"),
        ("c9", "simulate", "two"),
    ]
    assert CALLED == []

    async def work() -> Any:
        return await afind.ainvoke({"key": 1}), await afind.arun({"key": 1})

    assert within(work, simulated('{"key": 5}', '{"key": 6}'))[0] == ({"key": 5}, {"key": 6})


def test_a_real_tool_is_called_only_where_it_is_named() -> None:
    def work() -> Any:
        for use in (lambda: look(1), lambda: find.invoke({"key": 1})):
            with pytest.raises(ToolError, match="was not called"):
                use()

    guard = RealToolGuard([])
    within(work, Backends(), guard)
    assert (CALLED, guard.stopped) == ([], {"look", "find"})
    assert within(lambda: (look(1), find.invoke({"key": 1})), Backends(), RealToolGuard(["look", "find"]))[0] == (
        "real 1",
        "found 1",
    )
    assert within(lambda: (look(1), find.invoke({"key": 1})), simulated("a", "b"), RealToolGuard([]))[0] == ("a", "b")


def test_backends_in_the_runtime_context() -> None:
    assert within(lambda: look(1), None, context={TOOLS: simulated("invented")})[0] == "invented"


def test_an_interrupt_inside_a_real_tool_is_an_interrupt() -> None:
    @switchable
    def ask(question: str) -> str:
        "Ask a human."
        return f"human said {interrupt(question)}"

    def node(state: MessagesState) -> dict[str, Any]:
        return {"messages": [AIMessage(ask("Really?"))]}

    app = StateGraph(MessagesState).add_node("work", node).add_edge(START, "work").compile(checkpointer=InMemorySaver())
    config: Any = {"configurable": {"thread_id": "t", TOOLS: Backends()}}
    assert app.invoke({"messages": [HumanMessage("go")]}, config)["__interrupt__"][0].value == "Really?"
    assert app.invoke(Command(resume="yes"), config)["messages"][-1].content == "human said yes"


def test_in_a_tool_node_the_nodes_own_switch_decides() -> None:
    script = [says(("find", {"key": 1}), ("afind", {"key": 2}))]
    graph = with_tools(*script, tools=(find, afind))
    told, _ = asyncio.run(driven(graph, None))
    assert [message.content for message in told] == ["found 1", '{"key": 2}']
    backends = simulated("a", "b")
    for app in (switched(graph), graph):  # the tools switch themselves where the node does not
        backends = simulated("a", "b")
        told, (run,) = asyncio.run(driven(app, backends))
        assert [message.content for message in told] == ["a", "b"]
        assert [span.backend for span in run.tools] == ["simulate", "simulate"]
        assert len(backends.log.entries) == 2
    real = Backends()
    told, (run,) = asyncio.run(driven(switched(graph), real))
    assert [message.content for message in told] == ["found 1", '{"key": 2}']
    assert [span.backend for span in run.tools] == ["real", "real"]
    assert len(real.log.entries) == 2
    assert discover_tools(graph).switchable == ("afind", "find")


def test_a_thread_of_the_nodes_own_needs_the_context() -> None:
    def work() -> Any:
        given: list[str] = []
        for target in (
            lambda: given.append(look(1)),
            functools.partial(contextvars.copy_context().run, lambda: given.append(look(2))),
        ):
            thread = threading.Thread(target=target)
            thread.start()
            thread.join()
        return given

    assert within(work, simulated("invented"))[0] == ["real 1", "invented"]


def test_it_is_seen_and_its_real_use_must_be_named() -> None:
    def node(state: MessagesState) -> dict[str, Any]:
        return {"messages": [look(1), find.invoke({"key": 1})]}

    graph = StateGraph(MessagesState).add_node("work", node).add_edge(START, "work").compile()
    assert undiscovered_tools(graph) == {}
    assert sorted(tools_of(graph)) == ["find", "look"]
    assert discover_tools(graph).nodes == {"find": "work", "look": "work"}
    with pytest.raises(ToolError, match="--allow-real find --allow-real look"):
        require_allowed(graph, [])
    assert sorted(require_allowed(graph, ["look"], {"find": "simulate"})) == ["find", "look"]


def test_what_has_no_schema_is_refused() -> None:
    class Desk:
        def look(self, key: int) -> str:
            "Look."
            return ""

    def star(*keys: int) -> str:
        "Star."
        return ""

    def silent(key: int):  # type: ignore[no-untyped-def]
        "Silent."

    def opaque(lock: threading.Event) -> str:
        "Opaque."
        return ""

    def stream(key: int) -> Any:
        "Stream."
        yield key

    wrongs = (
        (Desk.look, "is a method"),
        (star, "keys"),
        (silent, "what it returns"),
        (opaque, "'opaque'"),
        (stream, "generator"),
        (7, "int"),
    )
    for wrong, told in wrongs:
        with pytest.raises(ToolError, match=told):
            switchable(wrong)


def test_a_tool_node_still_injects_what_it_injects() -> None:
    @switchable
    @tool
    def count(key: int, state: Annotated[dict[str, Any], InjectedState]) -> str:
        "Count."
        return f"{key} of {len(state['messages'])}"

    asked = AIMessage("", tool_calls=[{"name": "count", "args": {"key": 1}, "id": "c", "type": "tool_call"}])
    graph = StateGraph(MessagesState).add_node("tools", ToolNode([count])).add_edge(START, "tools").compile()
    assert graph.invoke({"messages": [asked]})["messages"][-1].content == "1 of 1"
    config: Any = {"configurable": {TOOLS: simulated("many")}}
    assert switched(graph).invoke({"messages": [asked]}, config)["messages"][-1].content == "many"


def test_production_imports_nothing_heavy() -> None:
    heavy = (
        "accelerate",
        "datasets",
        "matplotlib",
        "mcp",
        "pydantic_ai",
        "scipy",
        "sqlalchemy",
        "torch",
        "transformers",
        "trl",
    )
    code = (
        f"import sys; from cm2_agent.graphs import switchable; print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
