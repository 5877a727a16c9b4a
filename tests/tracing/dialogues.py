"""How the tests of the dialogue read a run, and the small graphs they vary."""

from __future__ import annotations

from typing import Any

from langgraph.graph import START, MessagesState, StateGraph

from cm2_agent.types.run import Run
from tests.tracing.apps import says
from tests.tracing.conftest import Watched

THREAD: Any = {"configurable": {"thread_id": "T"}}


def lines(run: Run) -> list[str]:
    """`role: text` of every message, tool calls and answers by their ids."""
    return [_line(message) for message in run.messages]


def history(run: Run) -> list[str]:
    return [_line(message) for message in run.history]


def _line(message: Any) -> str:
    ids = [call.id for call in message.tool_calls] + [response.id for response in message.responses]
    return f"{message.role}: " + (message.text or ",".join(map(str, ids)))


def written(run: Run) -> list[str | None]:
    """What the dialogue holds where each call says it wrote."""
    return [None if call.message is None else run.messages[call.message].text for call in run.calls]


def chain(watched: Watched, *nodes: Any, state: Any = MessagesState, **options: Any) -> Any:
    graph: Any = StateGraph(state)
    for number, node in enumerate(nodes):
        graph.add_node(f"node{number}", node)
        graph.add_edge(START if number == 0 else f"node{number - 1}", f"node{number}")
    return graph.compile(**options).with_config(callbacks=[watched.handler])


def speaker(*texts: str) -> Any:
    """A node that says the texts, one an execution."""
    left = iter(texts)
    return lambda state: {"messages": [says(next(left)).invoke(state["messages"])]}


def user(text: str) -> Any:
    return {"messages": [("user", text)]}
