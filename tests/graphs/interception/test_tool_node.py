"""The switch: one graph, unchanged, whose tools are real, replayed or simulated as a run says."""

from __future__ import annotations

import time
from typing import Annotated, Any, cast

import pytest
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import BaseTool, ToolException, tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import InjectedState, ToolNode
from langgraph.types import Command
from pydantic import BaseModel

from cm2_agent.errors import ToolError
from cm2_agent.graphs.backends.backends import TOOLS, Backends
from cm2_agent.graphs.interception.discovery import tool_nodes, tools_of
from cm2_agent.graphs.interception.real_tool_guard import RealToolGuard
from cm2_agent.graphs.interception.tool_node import switched
from cm2_agent.tracing.span_processor import capture
from cm2_agent.types.run import Run
from cm2_agent.types.tool_calls import CallLog, ToolAnswer, ToolRequest
from tests.graphs.interception.switched_app import CALLED, Fault, Invents, Recorded, app, driven, look, says, write


@pytest.fixture(autouse=True)
def nothing_called() -> None:
    CALLED.clear()


async def test_without_backends_the_graph_runs_as_it_would() -> None:
    graph = app(says(("look", {"key": 1})))
    (plain,), (run,) = await driven(graph, None)
    (told,), (switched_run,) = await driven(switched(graph), None)
    assert plain.content == told.content == "real 1"
    assert [one.backend for one in run.tools] == [one.backend for one in switched_run.tools] == [None]


async def test_each_tool_has_its_own_backend_and_the_span_says_which() -> None:
    simulator = Invents()
    backends = Backends({"look": "simulate"}, simulator=simulator)
    (looked, written), (run,) = await driven(switched(app(says(("look", {"key": 1}), ("write", {"key": 2})))), backends)
    assert (looked.content, written.content) == ("invented 1", "written")
    assert CALLED == [(2, "x")]
    assert {one.name: (one.backend, one.result) for one in run.tools} == {
        "look": ("simulate", "invented 1"),
        "write": ("real", "written"),
    }
    assert [message.role for message in simulator.asked[0].messages] == ["user", "assistant"]
    assert simulator.asked[0].tool.parameters["properties"]["key"]["type"] == "integer"


async def test_the_graph_itself_is_left_alone() -> None:
    graph = app(says(("look", {"key": 1})))
    switched(graph)
    (told,), _ = await driven(graph, Backends("simulate", simulator=Invents()))
    assert told.content == "real 1"


async def test_hybrid_replays_what_is_recorded_and_simulates_the_rest() -> None:
    backends = Backends("hybrid", replay=Recorded({1: "recorded"}), simulator=Invents())
    (one, two), (run,) = await driven(switched(app(says(("look", {"key": 1}), ("look", {"key": 2})))), backends)
    assert (one.content, two.content) == ("recorded", "invented 2")
    assert sorted((tool_run.backend, tool_run.result) for tool_run in run.tools) == [
        ("replay", "recorded"),
        ("simulate", "invented 2"),
    ]
    assert CALLED == []


async def test_invalid_arguments_get_the_real_error_and_nobody_is_asked() -> None:
    simulator = Invents()
    graph = app(says(("look", {"key": "seven"}), ("nonsense", {})))
    real, _ = await driven(graph, None)
    told, _ = await driven(switched(graph), Backends("simulate", simulator=simulator))
    assert [(message.content, message.status) for message in told] == [
        (message.content, message.status) for message in real
    ]
    assert [message.status for message in told] == ["error", "error"]
    assert simulator.asked == []


async def test_arguments_are_read_as_the_tool_would_read_them() -> None:
    simulator = Invents()
    backends = Backends("hybrid", replay=Recorded({1: "recorded"}), simulator=simulator)
    one, two = (await driven(switched(app(says(("look", {"key": "1"}), ("look", {"key": "2"})))), backends))[0]
    assert (one.content, two.content) == ("recorded", "invented 2")
    assert simulator.asked[0].arguments == {"key": 2}


async def test_an_error_of_the_tools_own_is_told_to_the_agent() -> None:
    backends = Backends(
        "simulate", simulator=Invents(ToolAnswer(content="no such key", error=True, backend="simulate"))
    )
    (told,), (run,) = await driven(switched(app(says(("look", {"key": 1})))), backends)
    assert (told.content, told.status) == ("no such key", "error")
    assert (run.tools[0].error, run.status, backends.failure) == ("no such key", "ok", None)


@pytest.mark.parametrize("handle_errors", [True, False])
async def test_a_failed_simulator_is_noted_whatever_the_graph_makes_of_it(handle_errors: bool) -> None:
    backends = Backends("simulate", simulator=Invents(ToolError("the simulator timed out")))
    graph = switched(app(says(("look", {"key": 1})), handle_errors=handle_errors))
    runs: list[Run] = []
    config: Any = {"configurable": {TOOLS: backends}, "callbacks": [capture(runs.append)]}
    if handle_errors:
        await graph.ainvoke({"messages": [HumanMessage("go")]}, config)
    else:
        with pytest.raises(ToolError, match="timed out"):
            await graph.ainvoke({"messages": [HumanMessage("go")]}, config)
        assert runs[0].failure is not None
        assert runs[0].failure.kind == "ToolError"
    assert isinstance(backends.failure, ToolError)


def test_the_sync_path_is_switched_too() -> None:
    backends = Backends("simulate", simulator=Invents())
    graph = switched(app(says(("look", {"key": 1}), ("look", {"key": 2}))))
    state = graph.invoke({"messages": [HumanMessage("go")]}, {"configurable": {TOOLS: backends}})
    assert [message.content for message in state["messages"] if isinstance(message, ToolMessage)] == [
        "invented 1",
        "invented 2",
    ]
    assert CALLED == []


async def test_of_two_same_calls_at_once_the_second_hears_what_the_first_heard() -> None:
    class Remembers(Invents):
        async def answer(self, call: ToolRequest, log: CallLog) -> ToolAnswer:
            known = next((entry.answer for entry in log.entries if entry.request.key == call.key), None)
            return known or await super().answer(call, log)

    simulator = Remembers("first", "second")
    backends = Backends("simulate", simulator=simulator)
    told, _ = await driven(switched(app(says(("look", {"key": 1}), ("look", {"key": 1.0})))), backends)
    assert [message.content for message in told] == ["first", "first"]
    assert len(simulator.asked) == 1


@pytest.mark.parametrize("chosen", ["real", "simulate"])
async def test_a_fault_comes_before_the_tool_or_changes_what_it_says(chosen: Any) -> None:
    for kind, content, called in (("error", "look: error", False), ("empty", "", chosen == "real")):
        CALLED.clear()
        simulator = Invents()
        backends = Backends(chosen, simulator=simulator, faults=Fault(kind))
        (told,), (run,) = await driven(switched(app(says(("look", {"key": 1})))), backends)
        assert (told.content, told.status) == (content, "error" if kind == "error" else "success")
        assert (run.tools[0].fault, run.tools[0].backend) == (kind, chosen)
        assert bool(CALLED) is called
        assert run.messages[-2].responses[0].response == content
        assert backends.log.count(backends.log.entries[0].request.key) == 1


async def test_real_calls_are_recorded_where_that_is_asked_for() -> None:
    class Keeps:
        def __init__(self) -> None:
            self.kept: list[tuple[str, Any, ToolAnswer, float]] = []

        def add(self, call: ToolRequest, answer: ToolAnswer, seconds: float) -> None:
            self.kept.append((call.tool.name, call.arguments, answer, seconds))

    recorder: Any = Keeps()
    backends = Backends({"look": "record"}, recorder=recorder)
    await driven(switched(app(says(("look", {"key": 1}), ("write", {"key": 1})))), backends)
    ((name, arguments, answer, seconds),) = recorder.kept
    assert (name, arguments, answer.content, answer.error) == ("look", {"key": 1}, "real 1", False)
    assert seconds > 0
    assert len(backends.log.entries) == 2


async def test_a_call_that_cannot_be_recorded_is_a_failure_of_ours() -> None:
    class Full:
        def add(self, call: ToolRequest, answer: ToolAnswer, seconds: float) -> None:
            raise ToolError("the disk is full")

    backends = Backends("record", recorder=cast("Any", Full()))
    await driven(switched(app(says(("look", {"key": 1})))), backends)  # the app hands every error to the model
    assert str(backends.failure) == "the disk is full"


async def test_a_users_own_wrapper_stays_around_the_switch() -> None:
    seen: list[str] = []

    def wrap(request: Any, execute: Any) -> Any:
        seen.append(request.tool_call["name"])
        answered = execute(request)
        answered.content += "!"
        return answered

    async def awrap(request: Any, execute: Any) -> Any:
        seen.append("async")
        answered = await execute(request)
        answered.content += "?"
        return answered

    def one(**wrappers: Any) -> Any:
        graph = StateGraph(MessagesState)
        graph.add_node("tools", ToolNode([look], **wrappers))
        graph.add_edge(START, "tools")
        return switched(graph.compile())

    asked = {"messages": [says(("look", {"key": 1}))]}

    def config() -> Any:
        return {"configurable": {TOOLS: Backends("simulate", simulator=Invents())}}

    assert (await one(wrap_tool_call=wrap).ainvoke(asked, config()))["messages"][-1].content == "invented 1!"
    assert one(wrap_tool_call=wrap).invoke(asked, config())["messages"][-1].content == "invented 1!"
    assert (await one(wrap_tool_call=wrap, awrap_tool_call=awrap).ainvoke(asked, config()))["messages"][
        -1
    ].content == "invented 1?"
    assert seen == ["look", "look", "async"]


async def test_tools_in_subgraphs_and_sequences_are_switched() -> None:
    inner = app(says(("look", {"key": 1})))
    graph = StateGraph(MessagesState)
    graph.add_node("inner", inner)
    graph.add_node("piped", ToolNode([write]).with_config(tags=["x"]))
    graph.add_edge(START, "inner")
    outer = graph.compile(checkpointer=InMemorySaver())
    assert sorted(path for path, _ in tool_nodes(outer)) == ["inner.tools", "piped"]
    (told,), _ = await driven(switched(outer), Backends("simulate", simulator=Invents()))
    assert told.content == "invented 1"
    assert CALLED == []


class Desk(BaseModel):
    name: str
    cm2_tools: Any = None


@pytest.mark.parametrize("how", ["context", "mapping", "attribute"])
async def test_backends_come_through_the_runtime_context_too(how: str) -> None:
    backends = Backends("simulate", simulator=Invents())
    context: Any = {"context": backends, "mapping": {TOOLS: backends}, "attribute": Desk(name="d", cm2_tools=backends)}[
        how
    ]
    state = await switched(app(says(("look", {"key": 1})))).ainvoke({"messages": [HumanMessage("go")]}, context=context)
    assert [message.content for message in state["messages"] if isinstance(message, ToolMessage)] == ["invented 1"]


async def test_what_the_graph_injects_is_no_argument_of_the_call() -> None:
    @tool
    def who(key: int, state: Annotated[dict[str, Any], InjectedState]) -> str:
        """Who?"""
        return "real"

    simulator = Invents()
    (told,), (run,) = await driven(
        switched(app(says(("who", {"key": 3})), tools=(who,))), Backends("simulate", simulator=simulator)
    )
    assert told.content == "invented 3"
    assert simulator.asked[0].arguments == {"key": 3}
    assert list(simulator.asked[0].tool.parameters["properties"]) == ["key"]
    assert run.tools[0].arguments == {"key": 3}


async def test_a_tool_that_commands_the_graph_is_logged_by_its_message() -> None:
    @tool
    def go(key: int) -> Any:
        """Go."""
        return Command(update={"messages": [ToolMessage("gone", tool_call_id="c0")]})

    backends = Backends("real")
    (told,), _ = await driven(switched(app(says(("go", {"key": 1})), tools=(go,))), backends)
    assert told.content == "gone"
    assert [entry.answer.content for entry in backends.log.entries] == ["gone"]


async def test_the_guard_lets_stand_ins_pass_and_stops_the_real() -> None:
    graph = switched(app(says(("look", {"key": 1}), ("write", {"key": 2}))))
    guard = RealToolGuard([])
    runs: list[Run] = []
    backends = Backends({"look": "simulate"}, simulator=Invents())
    config: Any = {"configurable": {TOOLS: backends}, "callbacks": [guard, capture(runs.append)]}
    await graph.ainvoke({"messages": [HumanMessage("go")]}, config)
    assert guard.stopped == {"write"}
    assert CALLED == []


@pytest.mark.parametrize(
    ("chosen", "given", "complaint"),
    [
        ("imagined", {}, "names the backend 'imagined'; expected one of real"),
        ({"look": "made-up"}, {}, "expected one of real"),
        ("replay", {}, "without recorded calls to replay"),
        ("simulate", {}, "without a simulator"),
        ("hybrid", {"simulator": Invents()}, "without recorded calls"),
        ({"look": "record"}, {}, "without a recorder"),
    ],
)
def test_backends_that_lack_what_they_need_are_refused(chosen: Any, given: Any, complaint: str) -> None:
    with pytest.raises(ToolError, match=complaint):
        Backends(chosen, **given)


async def test_the_tools_own_forms_of_failure_stay() -> None:
    class Key(BaseModel):
        key: int

    class Fussy(BaseTool):
        name: str = "fussy"
        description: str = "Fussy."
        args_schema: Any = Key
        handle_validation_error: Any = "that is no key"

        def _run(self, key: int) -> str:
            raise ToolException("never called")

    graph = app(says(("fussy", {"key": "x"})), tools=(Fussy(),))
    (real,), _ = await driven(graph, None)
    (told,), _ = await driven(switched(graph), Backends("simulate", simulator=Invents()))
    assert (told.content, told.status) == (real.content, real.status) == ("that is no key", "error")


def test_time_is_told_in_seconds() -> None:
    kept: list[float] = []

    class Keeps:
        def add(self, call: ToolRequest, answer: ToolAnswer, seconds: float) -> None:
            kept.append(seconds)

    @tool
    def slow(key: int) -> str:
        """Slow."""
        time.sleep(0.02)
        return "ok"

    graph = switched(app(says(("slow", {"key": 1})), tools=(slow,)))
    graph.invoke(
        {"messages": [HumanMessage("go")]}, {"configurable": {TOOLS: Backends("record", recorder=cast("Any", Keeps()))}}
    )
    assert kept[0] >= 0.02
    assert set(tools_of(graph)) == {"slow"}
