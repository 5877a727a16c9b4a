"""A compiled task's system message: sent once, whether the graph writes it itself or the caller gives it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, BaseMessage, SystemMessage
from langchain_core.outputs import ChatResult
from langgraph.graph import START, MessagesState, StateGraph

from cm2_agent import Checklist, Item, SQLStore, Task, flush, run, task_from_trace, watch
from cm2_agent.graphs import agent, agents
from cm2_agent.types.run_attributes import SYSTEM

PROMPT = "Be brief."
REPLIES = Checklist(Item("replies", check={"replied": True}), name="c")


class Listening(GenericFakeChatModel):
    """Keeps the system messages of what it is shown."""

    systems: list[list[str]] = []  # noqa: RUF012 (pydantic copies defaults)

    def bind_tools(self, tools: Sequence[Any], **_: Any) -> Any:
        return self

    def _generate(self, messages: list[BaseMessage], *arguments: Any, **options: Any) -> ChatResult:
        self.systems.append([message.text for message in messages if isinstance(message, SystemMessage)])
        return super()._generate(messages, *arguments, **options)


def model() -> Listening:
    return Listening(messages=(AIMessage("Hello.") for _ in itertools.count()), systems=[])


def node(one: Any) -> Any:
    """A graph whose node prepends its prompt to the messages of the state, whatever they are."""

    def speak(state: MessagesState) -> dict[str, Any]:
        return {"messages": [one.invoke([SystemMessage(PROMPT), *state["messages"]])]}

    return StateGraph(MessagesState).add_node("speak", speak).add_edge(START, "speak").compile()


GRAPHS: dict[str, tuple[Callable[[Any], Any], bool]] = {
    "the loop's": (lambda one: agent(one, [], system=PROMPT), True),
    "create_agent's": (lambda one: create_agent(one, [], system_prompt=PROMPT), True),
    "a node's": (node, True),
    "the caller's": (lambda one: agent(one, []), False),
}


def compiled(make: Callable[[Any], Any], own: bool, url: str) -> Task:
    """The task of one watched conversation."""
    graph = watch(make(model()), store=url)
    messages = [("user", "Hi")] if own else [("system", PROMPT), ("user", "Hi")]
    graph.invoke({"messages": messages}, {"configurable": {"thread_id": "t"}})
    assert flush(300)
    with SQLStore(url) as store:
        trace = store.trace("t")
    assert trace is not None
    assert trace.runs[0].attributes.get(SYSTEM) == ("graph" if own else None)
    return task_from_trace(trace, redactor=None)


async def shown(graph: Any, listening: Listening, task: Task) -> list[list[str]]:
    async for trace, _ in run(graph, [task], checklist=REPLIES):
        assert trace.failure is None
        assert [message.text for message in trace.messages if message.role == "system"] == [PROMPT]
    return listening.systems


@pytest.mark.parametrize("kind", GRAPHS)
async def test_a_compiled_tasks_system_message_is_sent_once(kind: str, tmp_path: Path) -> None:
    make, own = GRAPHS[kind]
    task = compiled(make, own, f"sqlite:///{tmp_path}/cm2.db")
    assert (task.system, task.metadata.get("system")) == (PROMPT, "graph" if own else None)
    twice = task.model_copy(update={"turns": ("Hi", "And?")})
    one = model()
    assert await shown(make(one), one, twice) == [[PROMPT], [PROMPT]]
    one = model()
    assert await shown(agents(one), one, twice) == [[PROMPT], [PROMPT]]


async def test_a_written_tasks_system_message_is_the_dialogues() -> None:
    one = model()
    assert await shown(agent(one, []), one, Task(id="t", turns=("Hi",), system=PROMPT)) == [[PROMPT]]
