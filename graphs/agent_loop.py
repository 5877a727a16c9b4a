"""The agent: a chat model and tools in the loop every agent has, as a LangGraph state machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, SystemMessage
from langchain_core.runnables import RunnableConfig, RunnableLambda
from langchain_core.tools import BaseTool
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode

from cm2_agent.types.json_values import canonical_json
from cm2_agent.types.task import Task

from .conversation_setup import given_system
from .parse_errors import parse_errors, with_call_ids
from .tools.declared import declared


def agent(
    model: BaseChatModel,
    tools: Sequence[BaseTool | Callable[..., Any]],
    *,
    system: str | None = None,
    checkpointer: Any = None,
    context_schema: type[Any] | None = None,
) -> Any:
    """A compiled graph: the model speaks, its tool calls run in a ToolNode, until it replies to the user.

    A call that could not be read (LangChain's `invalid_tool_calls`) is answered by an error that says what is wrong,
    and the model goes on; calls beside it that can be read are run. Calls without an id get one.

    Args:
        model: A chat model; with tools it must have `bind_tools`.
        tools: LangChain tools or typed functions; FunctionTools and McpTools are such lists.
        system: Prepended where the conversation has no system message of its own.
        checkpointer: LangGraph's.
        context_schema: LangGraph's: the type of the runtime context that tools may ask for.

    The state is `{"messages": […]}`.

    >>> from langchain_core.language_models import GenericFakeChatModel
    >>> from cm2_agent.graphs import agent
    >>> model = GenericFakeChatModel(messages=iter(["It was shipped."]))
    >>> agent(model, []).invoke({"messages": [("user", "Where is order 7?")]})["messages"][-1].content
    'It was shipped.'
    """
    bound = model.bind_tools(list(tools)) if tools else model

    def prompt(messages: Sequence[BaseMessage]) -> list[BaseMessage]:
        if system is None or any(isinstance(message, SystemMessage) for message in messages):
            return list(messages)
        return [SystemMessage(system), *messages]

    def speak(state: MessagesState, config: RunnableConfig) -> dict[str, Any]:
        return {"messages": [with_call_ids(bound.invoke(prompt(state["messages"]), config), len(state["messages"]))]}

    async def aspeak(state: MessagesState, config: RunnableConfig) -> dict[str, Any]:
        answer = await bound.ainvoke(prompt(state["messages"]), config)
        return {"messages": [with_call_ids(answer, len(state["messages"]))]}

    node = ToolNode(list(tools)) if tools else None
    names = list(node.tools_by_name) if node is not None else []

    def refuse(state: MessagesState) -> dict[str, Any]:
        asked = next(message for message in reversed(state["messages"]) if isinstance(message, AIMessage))
        return {"messages": parse_errors(asked, names)}

    def route(state: MessagesState) -> list[str]:
        """Both at once: a turn's limit of steps counts the model's messages."""
        last = state["messages"][-1]
        if not isinstance(last, AIMessage):
            return [END]
        asked = [("parse_errors", last.invalid_tool_calls), ("tools", node is not None and last.tool_calls)]
        return [to for to, calls in asked if calls] or [END]

    graph = StateGraph(MessagesState, context_schema=context_schema)
    graph.add_node("model", RunnableLambda(speak, aspeak, name="model"))
    graph.add_edge(START, "model")
    graph.add_node("parse_errors", refuse)
    graph.add_edge("parse_errors", "model")
    if node is not None:
        graph.add_node("tools", node)
        graph.add_edge("tools", "model")
    graph.add_conditional_edges("model", route, ["parse_errors", END, *(["tools"] if node is not None else [])])
    return graph.compile(checkpointer=checkpointer)


def agents(model: BaseChatModel) -> Callable[[Task], Any]:
    """A function that makes, for each task, an agent with the tools that the task declares and nobody has implemented.

    It is for `run(agents(model), tasks, tools="hybrid", simulator=…)`, where recordings or a model answer the tools.
    A system message that a task's own graph wrote (`{"system": "graph"}` in its metadata) is this agent's too. Tasks
    with the same tools and prompt share a graph. `model` must have `bind_tools` where a task declares tools.

    >>> from langchain_core.language_models import GenericFakeChatModel
    >>> from cm2_agent import Task
    >>> from cm2_agent.graphs import agents
    >>> graph_of = agents(GenericFakeChatModel(messages=iter([])))
    >>> graph_of(Task(id="a", turns=["Hi"])) is graph_of(Task(id="b", turns=["Hello"]))
    True
    """
    made: dict[str, Any] = {}

    def of(task: Task) -> Any:
        system = None if given_system(task) == task.system else task.system
        key = canonical_json([system, *(asdict(tool) for tool in task.tools)])
        if key not in made:
            made[key] = agent(model, declared(task.tools), system=system)
        return made[key]

    return of


__all__ = ["agent", "agents"]
