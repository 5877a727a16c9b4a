"""Whatever nodes write, replace, remove and summarise: the dialogue is what was said, and runs continue each other."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, HumanMessage, RemoveMessage, SystemMessage, ToolMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.graph.message import REMOVE_ALL_MESSAGES

from tests.tracing.apps import ScriptedModel, says
from tests.tracing.conftest import Watched
from tests.tracing.dialogues import THREAD, history, lines, user

KINDS = "reply, words, tools, edit, draft, rewrite, moderate, take back, trim, summary, clear, remind"
OPS = st.sampled_from(KINDS.split(", "))


@dataclass
class Teller:
    """Does what nodes do, one operation a step, and notes what was said by it."""

    ops: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)  # in this run
    spoken: list[str] = field(default_factory=list)  # in the runs before
    answered: dict[str, str] = field(default_factory=dict)  # a call's text → the line it became
    taken: bool = False  # the last reply was taken back, and nobody has spoken since
    _numbers: Any = field(default_factory=itertools.count)

    def step(self, state: MessagesState) -> dict[str, Any]:
        messages = state["messages"]
        last = messages[-1] if messages else None
        open_reply = last is not None and self.said[-1] == f"assistant: {last.text}" and not self.taken
        return {"messages": getattr(self, self.ops.pop(0).replace(" ", "_"))(messages, last, open_reply)}

    def text(self, kind: str) -> str:
        return f"{kind} {next(self._numbers)}"

    def say(self, line: str) -> None:
        if self.taken and line.startswith("assistant"):
            self.replace(line)
        else:
            self.said.append(line)
        self.taken = False

    def replace(self, line: str) -> None:
        for text, became in self.answered.items():
            if became == self.said[-1]:
                self.answered[text] = line
        self.said[-1] = line

    def reply(self, messages: Any, last: Any, open_reply: bool) -> list[Any]:
        answer = says(self.text("reply")).invoke(messages or [HumanMessage("?")])
        self.say(f"assistant: {answer.text}")
        self.answered[answer.text] = f"assistant: {answer.text}"
        return [answer]

    def words(self, messages: Any, last: Any, open_reply: bool) -> list[Any]:
        text = self.text("words")
        self.say(f"assistant: {text}")
        return [AIMessage(text)]

    def tools(self, messages: Any, last: Any, open_reply: bool) -> list[Any]:
        id = self.text("call")
        asked: Any = [{"name": "look", "args": {"key": 1}, "id": id, "type": "tool_call"}]
        answer = ScriptedModel(script=[AIMessage(id, tool_calls=asked)] * 99).invoke(messages or [HumanMessage("?")])
        self.say(f"assistant: {id}")
        self.said.append(f"tool: {id}")
        self.answered[id] = f"assistant: {id}"
        return [answer, ToolMessage("value 1", tool_call_id=id)]

    def edit(self, messages: Any, last: Any, open_reply: bool) -> list[Any]:
        """The last reply by another of the same id."""
        if not open_reply or last.type != "ai":
            return []
        text = self.text("edited")
        self.replace(f"assistant: {text}")
        return [AIMessage(text, id=last.id)]

    def rewrite(self, messages: Any, last: Any, open_reply: bool) -> list[Any]:
        """The last reply by another of another id."""
        if not open_reply or last.type != "ai":
            return []
        text = self.text("rewritten")
        self.replace(f"assistant: {text}")
        return [RemoveMessage(id=last.id), AIMessage(text)]

    def moderate(self, messages: Any, last: Any, open_reply: bool) -> list[Any]:
        """The last reply in place."""
        if open_reply and last.type == "ai":
            last.content = self.text("moderated")
            self.replace(f"assistant: {last.content}")
        return []

    def draft(self, messages: Any, last: Any, open_reply: bool) -> list[Any]:
        """An answer that is never written."""
        says(self.text("side")).invoke([SystemMessage("You grade."), HumanMessage("Is it right?")])
        return []

    def take_back(self, messages: Any, last: Any, open_reply: bool) -> list[Any]:
        if not open_reply or last.type != "ai":
            return []
        self.taken = True
        return [RemoveMessage(id=last.id)]

    def trim(self, messages: Any, last: Any, open_reply: bool) -> list[Any]:
        return [RemoveMessage(id=message.id) for message in messages[:-1]]

    def summary(self, messages: Any, last: Any, open_reply: bool) -> list[Any]:
        if len(messages) < 2 or self.taken:
            return []
        return [RemoveMessage(id=REMOVE_ALL_MESSAGES), HumanMessage(self.text("summary")), *messages[-1:]]

    def clear(self, messages: Any, last: Any, open_reply: bool) -> list[Any]:
        if self.taken:
            return []
        return [RemoveMessage(id=REMOVE_ALL_MESSAGES)]

    def remind(self, messages: Any, last: Any, open_reply: bool) -> list[Any]:
        """For the model to read: after the user's words or a tool's answer."""
        return [] if self.said[-1].startswith("assistant") else [HumanMessage(self.text("remind"))]


RUNS = st.lists(st.lists(OPS, min_size=1, max_size=8), min_size=1, max_size=4)


@given(RUNS)
def test_the_dialogue_is_what_was_said(runs: list[list[str]]) -> None:
    watched, teller = Watched(), Teller()
    graph: Any = StateGraph(MessagesState)
    graph.add_node("step", teller.step)
    graph.add_edge(START, "step")
    graph.add_conditional_edges("step", lambda state: "step" if teller.ops else "__end__")
    compiled = graph.compile(checkpointer=InMemorySaver()).with_config(callbacks=[watched.handler])
    for number, ops in enumerate(runs):
        teller.ops, teller.said, teller.answered, teller.taken = list(ops), [f"user: question {number}"], {}, False
        compiled.invoke(user(f"question {number}"), THREAD)
        run = watched.runs[-1]
        assert lines(run) == teller.said
        for call in run.calls:
            assert call.output is not None
            became = None if call.message is None else lines(run)[call.message]
            assert became == teller.answered.get(call.output.text)
            assert (call.changed is None) == (became in (None, f"assistant: {call.output.text}"))
        said_before = {line for line in history(run) if not line.startswith("assistant: moderated")}
        assert said_before <= set(teller.spoken)
        counts = [mark.messages for mark in run.states]
        assert counts == sorted(counts)
        assert (counts[0], counts[-1]) == (0, len(run.messages))
        if number:
            assert run.states[0].hash == watched.runs[-2].states[-1].hash
        teller.spoken += teller.said
    watched.check()
