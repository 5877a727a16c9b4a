"""The agent that tests/runner/test_resume.py runs: a scripted model in the usual loop, a log of the turns that began,
and, where KILL is set to `turn,seconds`, a kill of its own process that long after it began its n-th turn."""

from __future__ import annotations

import os
import signal
import threading
import time
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


turns_begun = 0


def begun(thread: str, turn: int) -> None:
    global turns_begun
    with open(os.environ["LOG"], "a") as log:
        log.write(f"{os.getpid()}\t{thread}\t{turn}\n")
    turns_begun += 1
    if "KILL" in os.environ:
        last, seconds = os.environ["KILL"].split(",")
        if turns_begun == int(last):
            threading.Thread(target=kill_after, args=(float(seconds),), daemon=True).start()


def kill_after(seconds: float) -> None:
    """From within, since a busy machine could keep another process from it until the run is over."""
    time.sleep(seconds)
    os.kill(os.getpid(), signal.SIGKILL)


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
