"""What can be seen of a graph's tools, by looking at its code and calling nothing of it."""

from __future__ import annotations

import functools
import types
from collections import UserDict, deque
from typing import Any, ClassVar

import pytest
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableLambda, RunnableParallel
from langchain_core.tools import BaseTool, StructuredTool, tool
from langgraph.func import entrypoint, task
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from pydantic import BaseModel

from cm2_agent.errors import ToolError
from cm2_agent.graphs import agent
from cm2_agent.graphs.interception.discovery import discover_tools, require_allowed, tools_of, undiscovered_tools
from cm2_agent.runner.run import run
from cm2_agent.types.task import Task
from tests.tracing import apps


@tool
def look(key: int) -> str:
    """Look a key up."""
    raise AssertionError("a tool was called")


@tool
def erase(key: int) -> str:
    """Erase a key."""
    raise AssertionError("a tool was called")


BY_NAME = {"look": look, "erase": erase}
FROZEN = types.MappingProxyType({"look": look})
MODEL = apps.ScriptedModel(script=[AIMessage("done")])


def graph(node: Any, *tools: BaseTool, name: str = "work") -> Any:
    built = StateGraph(MessagesState)
    built.add_node(name, node)
    built.add_edge(START, name)
    if tools:
        built.add_node("tools", ToolNode(list(tools)))
    return built.compile()


def by_global(state: MessagesState) -> dict[str, Any]:
    return {"messages": [look.invoke({"key": 1})]}


def by_dict(state: MessagesState) -> dict[str, Any]:
    return {"messages": [BY_NAME[call["name"]].invoke(call) for call in state["messages"][-1].tool_calls]}  # type: ignore[union-attr]


def by_call(state: MessagesState) -> dict[str, Any]:
    return by_global(state)


async def by_async(state: MessagesState) -> dict[str, Any]:
    return {"messages": [await look.ainvoke({"key": 1})]}


def by_comprehension(state: MessagesState) -> dict[str, Any]:
    return {"messages": [(lambda key: look.invoke({"key": key}))(key) for key in range(2)]}


def by_import(state: MessagesState) -> dict[str, Any]:
    from tests.tracing.apps import look as imported

    return {"messages": [imported.invoke({"key": 1})]}


def by_module(state: MessagesState) -> dict[str, Any]:
    return {"messages": [apps.look.invoke({"key": 1})]}


def by_default(state: MessagesState, used: Any = look) -> dict[str, Any]:
    return {"messages": [used.invoke({"key": 1})]}


def by_frozen(state: MessagesState) -> dict[str, Any]:
    return {"messages": [FROZEN["look"].invoke({"key": 1})]}


def in_closure(held: Any) -> Any:
    def node(state: MessagesState) -> dict[str, Any]:
        return {"messages": [held]}

    return node


class Desk:
    kept: ClassVar[dict[str, BaseTool]] = {"erase": erase}

    def __init__(self, *tools: BaseTool) -> None:
        self.tools = tools

    def node(self, state: MessagesState) -> dict[str, Any]:
        return {"messages": [self.tools[0].invoke({"key": 1})]}

    def through_another(self, state: MessagesState) -> dict[str, Any]:
        return self._hidden(state)

    def _hidden(self, state: MessagesState) -> dict[str, Any]:
        return {"messages": [look.invoke({"key": 1})]}

    @property
    def first(self) -> BaseTool:
        return look

    def by_property(self, state: MessagesState) -> dict[str, Any]:
        return {"messages": [self.first.invoke({"key": 1})]}

    def by_class(self, state: MessagesState) -> dict[str, Any]:
        return {"messages": [self.kept["erase"].invoke({"key": 1})]}


class CallableDesk(Desk):
    def __call__(self, state: MessagesState) -> dict[str, Any]:
        return self._hidden(state)


class Slotted:
    __slots__ = ("empty", "used")

    def __init__(self) -> None:
        self.used = look

    def node(self, state: MessagesState) -> dict[str, Any]:
        return {"messages": [self.used.invoke({"key": 1})]}


def by_making(state: MessagesState) -> dict[str, Any]:
    return Desk()._hidden(state)


def prepare(state: MessagesState) -> dict[str, Any]:
    return {}


called = agent(MODEL, [look])


def by_graph(state: MessagesState) -> dict[str, Any]:
    return {"messages": called.invoke(state)["messages"]}


FIRST: Any = RunnableLambda(prepare)
NODES: dict[str, Any] = {
    "global": by_global,
    "a function it calls": by_call,
    "async": by_async,
    "inner code": by_comprehension,
    "an import inside": by_import,
    "a module's attribute": by_module,
    "a default": by_default,
    "a frozen mapping": by_frozen,
    "a closure": in_closure(look),
    "a list": in_closure([look]),
    "a tuple in a dict": in_closure({"some": (look,)}),
    "a deque of sets": in_closure(deque([frozenset({1}), (look,)])),
    "a dict of the user's": in_closure(UserDict({"look": look})),
    "a namespace": in_closure(types.SimpleNamespace(used=look)),
    "a partial": functools.partial(lambda used, state: {"messages": [used]}, look),
    "a partial's keywords": functools.partial(by_default, used=look),
    "a cached function": in_closure(functools.lru_cache(by_global)),
    "a bound method": in_closure(look.invoke),
    "a method's instance": Desk(look).node,
    "a method it calls": Desk().through_another,
    "a property": Desk().by_property,
    "slots": Slotted().node,
    "a callable object": CallableDesk(),
    "an object it makes": by_making,
    "a tool as a node": look,
    "a lambda": RunnableLambda(by_global),
    "a sequence": FIRST | by_global,
    "a parallel": RunnableParallel(one=RunnableLambda(by_global)),
    "fallbacks": FIRST.with_fallbacks([RunnableLambda(by_global)]),
    "a bound model": in_closure(MODEL.bind_tools([look])),
    "a bound model as a node": MODEL.bind_tools([look]),
    "a compiled graph it calls": by_graph,
    "a tool node it calls": in_closure(ToolNode([look])),
}


@pytest.mark.parametrize("node", NODES.values(), ids=NODES.keys())
def test_a_tool_that_a_function_node_refers_to_is_found(node: Any) -> None:
    app = graph(node)
    assert undiscovered_tools(app) == {"look": "work"}
    assert tools_of(app) == {}
    with pytest.raises(ToolError, match=r"look \(node work\).*ToolNode.*switchable.*allow_real=\['look'\]"):
        require_allowed(app, [])
    assert require_allowed(app, ["look"]) == {}


def test_every_tool_of_a_dict_is_found() -> None:
    assert undiscovered_tools(graph(by_dict)) == {"erase": "work", "look": "work"}
    assert undiscovered_tools(graph(Desk().by_class)) == {"erase": "work"}


def test_a_tool_that_a_tool_node_has_is_seen_wherever_it_is_named_too() -> None:
    app = graph(in_closure(MODEL.bind_tools([look, erase])), look)
    sight = discover_tools(app)
    assert (list(sight.tools), sight.nodes, sight.unseen) == (["look"], {"look": "tools"}, {"erase": "work"})
    assert undiscovered_tools(agent(MODEL, [look, erase])) == {}


def test_a_subgraph_as_a_node_is_seen_and_its_function_nodes_are_looked_at() -> None:
    inner = graph(by_dict, look, name="inner")
    sight = discover_tools(graph(inner, name="research"))
    assert sight.nodes == {"look": "research.tools"}
    assert sight.unseen == {"erase": "research.inner"}


def test_conditional_edges_are_code_too() -> None:
    def route(state: MessagesState) -> str:
        erase.invoke({"key": 1})
        return "work"

    built = StateGraph(MessagesState)
    built.add_node("work", prepare)
    built.add_conditional_edges(START, route, ["work"])
    assert undiscovered_tools(built.compile()) == {"erase": "__start__"}


def test_entrypoints_and_tasks() -> None:
    @task
    def step(key: int) -> str:
        return str(look.invoke({"key": key}))

    @entrypoint()
    def flow(key: int) -> str:
        return step(key).result()

    assert undiscovered_tools(flow) == {"look": "flow"}


def test_what_a_seen_tool_calls_is_unseen_while_that_tool_is_real() -> None:
    @tool
    def research(key: int) -> str:
        """Look and erase."""
        return str(by_dict({"messages": []}))

    app = graph(prepare, research)
    assert undiscovered_tools(app) == {"erase": "tools.research", "look": "tools.research"}
    with pytest.raises(ToolError, match=r"erase \(node tools.research\)"):
        require_allowed(app, ["research"])
    assert list(require_allowed(app, [], {"research": "simulate"})) == ["research"]


def test_a_tool_class_of_the_applications_own() -> None:
    class Both(BaseTool):
        name: str = "both"
        description: str = "Does both."

        def _run(self, key: int) -> str:
            return self.helper(key)

        def helper(self, key: int) -> str:
            return str(erase.invoke({"key": key}))

    assert undiscovered_tools(graph(prepare, Both())) == {"erase": "tools.both"}


def test_schemas_that_are_only_parsed_are_no_tools() -> None:
    class Route(BaseModel):
        """Where to go."""

        to: str

    routed = MODEL.with_structured_output(Route)
    assert undiscovered_tools(graph(in_closure(routed))) == {}
    assert undiscovered_tools(graph(in_closure(MODEL.bind_tools([Route])))) == {"Route": "work"}


def test_a_providers_own_tool_is_named_by_its_type() -> None:
    assert undiscovered_tools(graph(in_closure(MODEL.bind(tools=[{"type": "web_search"}])))) == {"web_search": "work"}


def plain_refund(order: int) -> str:
    """Refund an order."""
    raise AssertionError("a tool was called")


PLAIN = [plain_refund]


def by_late_binding(state: MessagesState) -> dict[str, Any]:
    return {"messages": [MODEL.bind_tools(PLAIN).invoke(state["messages"])]}


def test_plain_functions_are_named_where_a_model_is_bound_with_them() -> None:
    assert undiscovered_tools(graph(by_late_binding)) == {"plain_refund": "work"}
    assert undiscovered_tools(graph(in_closure(MODEL.bind_tools(PLAIN)))) == {"plain_refund": "work"}


def test_what_the_walk_does_not_find_is_what_it_says() -> None:
    """Named at run time, and a plain function that no model is bound with."""
    made = "lo" + "ok"
    assert undiscovered_tools(graph(lambda state: {"messages": [globals()[made].invoke({"key": 1})]})) == {}
    assert undiscovered_tools(graph(lambda state: {"messages": [plain_refund(7)]})) == {}
    assert undiscovered_tools(graph(in_closure([*range(10_000), look]))) == {}
    assert undiscovered_tools(graph(in_closure([*range(9_999), look]))) == {"look": "work"}


def test_an_unused_tool_of_the_module_is_not_named() -> None:
    assert undiscovered_tools(graph(by_global)) == {"look": "work"}
    assert undiscovered_tools(graph(prepare)) == {}


def test_only_real_tools_must_be_named() -> None:
    app = agent(MODEL, [look, erase])
    for backend in ("replay", "simulate", "hybrid"):
        assert set(require_allowed(app, [], dict.fromkeys(("look", "erase"), backend))) == {"look", "erase"}
    real: tuple[Any, ...] = ("real", "record")
    for backend in real:
        with pytest.raises(ToolError, match="real tools that are not named: erase"):
            require_allowed(app, [], {"look": "simulate", "erase": backend})
        assert set(require_allowed(app, ["erase"], {"look": "simulate", "erase": backend})) == {"look", "erase"}
    with pytest.raises(ToolError, match="not named: look"):
        require_allowed(app, [], {"erase": "simulate"})


def test_a_refusal_tells_everything_at_once() -> None:
    app = graph(by_dict, StructuredTool.from_function(plain_refund))
    with pytest.raises(ToolError) as refused:
        require_allowed(app, [])
    for told in ("--allow-real plain_refund", "erase (node work)", "look (node work)"):
        assert told in str(refused.value)
    with pytest.raises(
        ToolError, match="allow_real names nothing, but the graph's tools are erase, look, plain_refund"
    ):
        require_allowed(app, ["plain_refund", "erase", "look", "nothing"])


def test_a_run_is_refused_before_it_begins() -> None:
    with pytest.raises(ToolError, match=r"look \(node work\)"):
        run(graph(by_global), [Task(id="a", turns=("x",))])
