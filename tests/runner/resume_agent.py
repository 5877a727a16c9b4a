"""The agent that tests/test_resume.py runs and kills: a scripted model in the usual loop, and a file that says when a
turn began."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import tool
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition

from tests.tracing.apps import ScriptedModel, calls


@tool
def look(key: int) -> str:
    """Look a key up."""
    return f"value {key}"


def begun(thread: str, turn: int) -> None:
    with open(os.environ["LOG"], "a") as log:
        log.write(f"{os.getpid()}\t{thread}\t{turn}\n")


def graph() -> Any:
    script = [calls(1), AIMessage(content="one"), calls(2), AIMessage(content="two"), AIMessage(content="bye")]
    model = ScriptedModel(script=script, pause=float(os.environ["PAUSE"])).bind_tools([look])

    async def speak(state: MessagesState, config: RunnableConfig) -> dict[str, Any]:
        said: Sequence[BaseMessage] = state["messages"]
        if said[-1].type == "human":
            turn = sum(message.type == "human" for message in said)
            begun(config.get("configurable", {})["thread_id"], turn)
        return {"messages": [await model.ainvoke(said, config)]}

    plan: Any = StateGraph(MessagesState)
    plan.add_node("speak", speak).add_node("tools", ToolNode([look]))
    return (
        plan.add_edge(START, "speak")
        .add_conditional_edges("speak", tools_condition)
        .add_edge("tools", "speak")
        .compile()
    )
