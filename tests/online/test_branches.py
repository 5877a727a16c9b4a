"""Watched graphs whose conversations go back: time travel, regenerated and edited turns, clients that keep the
history."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langgraph.checkpoint.memory import InMemorySaver

from cm2_agent import Checklist, Item, Trace, watch
from cm2_agent.dialects.seen_message import state_hash
from cm2_agent.online.watch import flush
from cm2_agent.store import SQLStore
from cm2_agent.store.lineage import EMPTY_STATE
from cm2_agent.types.run import Branch

CONFIG: Any = {"configurable": {"thread_id": "t"}}
REPLIED = Checklist(Item("replied", check={"replied": True}, turn="each"), name="replied")


class Counting(BaseChatModel):
    """Answers `a1`, `a2`, … to whatever it is asked; an entry of `broken` is the number of an answer that fails."""

    broken: tuple[int, ...] = ()
    count: int = 0

    @property
    def _llm_type(self) -> str:
        return "counting"

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
        self.count += 1
        if self.count in self.broken:
            raise RuntimeError("rate limit")
        return ChatResult(generations=[ChatGeneration(message=AIMessage(f"a{self.count}"))])


class Conversation:
    """A watched agent and what was stored of it."""

    def __init__(self, folder: Path, *, checkpointer: bool = True, broken: tuple[int, ...] = ()) -> None:
        self.url = f"sqlite:///{folder / 'cm2.db'}"
        plain = create_agent(Counting(broken=broken), [], checkpointer=InMemorySaver() if checkpointer else None)
        self.graph: Any = watch(plain, REPLIED, store=self.url)

    def say(self, *texts: str, config: Any = CONFIG, **options: Any) -> None:
        """The user's and the agent's words in turn; the last is the user's."""
        messages = [("user" if place % 2 == 0 else "assistant", text) for place, text in enumerate(texts)]
        with contextlib.suppress(RuntimeError):
            self.graph.invoke({"messages": messages}, config, **options)

    def at(self, messages: int, after: str | None = None) -> Any:
        """The checkpoint with so many messages, before the node `after`."""
        history = self.graph.get_state_history(CONFIG)
        found = [
            state
            for state in history
            if len(state.values.get("messages", ())) == messages and (after is None or state.next == (after,))
        ]
        return found[-1].config if after is None else found[0].config

    def stored(self) -> dict[str, tuple[list[str], Branch | None]]:
        assert flush(300)
        with SQLStore(self.url) as store:
            found = {trace.id: trace for trace in store.traces()}
            for trace in found.values():
                score = store.score(trace.id)
                assert score is not None, trace.id
                assert len(score.turns) == len(trace.turns)
        return {name: (words(trace), trace.branch) for name, trace in found.items()}


def words(trace: Trace) -> list[str]:
    return [message.text for message in trace.messages]


def test_time_travel(tmp_path: Path) -> None:
    talk = Conversation(tmp_path)
    talk.say("one")
    talk.say("two")
    talk.say("two, otherwise", config=talk.at(2))
    talk.say("on")  # the thread's last state is the branch's
    talk.graph.invoke(None, talk.at(3, after="model"))
    talk.say("one, edited", config=talk.at(0))
    assert talk.stored() == {
        "t": (["one", "a1", "two", "a2"], None),
        "t~1": (["one", "a1", "two, otherwise", "a3", "on", "a4"], Branch(parent="t", messages=2)),
        "t~2": (["one", "a1", "two, otherwise", "a5"], Branch(parent="t~1", messages=3)),
        "t~3": (["one, edited", "a6"], Branch(parent="t", messages=0)),
    }


@pytest.mark.parametrize("durability", ["sync", "exit"])
def test_a_message_that_is_sent_again_after_a_failure(tmp_path: Path, durability: Any) -> None:
    talk = Conversation(tmp_path, broken=(2, 3))
    for text in ("one", "two", "two", "two"):
        talk.say(text, durability=durability)
    with SQLStore(talk.url) as store:
        assert flush(300)
        (trace,) = store.traces()
    assert [[message.text for message in turn.user] for turn in trace.turns] == [["one"], ["two"]]
    assert [step.message.text for step in trace.steps] == ["a1", "a4"]


def test_a_retry_from_the_last_checkpoint(tmp_path: Path) -> None:
    talk = Conversation(tmp_path, broken=(2,))
    talk.say("one")
    talk.say("two")
    talk.graph.invoke(None, CONFIG)
    assert talk.stored() == {"t": (["one", "a1", "two", "a3"], None)}


def test_a_state_that_a_person_changed(tmp_path: Path) -> None:
    """A message was added behind the agent's back: the conversation goes on."""
    talk = Conversation(tmp_path)
    talk.say("one")
    talk.graph.update_state(CONFIG, {"messages": [AIMessage("a note from a person")]})
    talk.say("two")
    assert list(talk.stored()) == ["t"]


def test_an_earlier_state_that_a_person_changed(tmp_path: Path) -> None:
    """The user's second message was edited in its checkpoint, and the agent asked again."""
    talk = Conversation(tmp_path)
    talk.say("one")
    talk.say("two")
    earlier = talk.at(3, after="model")
    second = talk.graph.get_state(earlier).values["messages"][-1]
    edited = talk.graph.update_state(earlier, {"messages": [HumanMessage("two, edited", id=second.id)]})
    talk.graph.invoke(None, edited)
    talk.say("on")
    assert talk.stored() == {
        "t": (["one", "a1", "two", "a2"], None),
        "t~1": (["one", "a1", "two, edited", "a3", "on", "a4"], Branch(parent="t", messages=2)),
    }


@pytest.mark.parametrize("config", [{}, CONFIG], ids=["stateless", "thread"])
def test_a_client_that_sends_the_whole_conversation(tmp_path: Path, config: Any) -> None:
    talk = Conversation(tmp_path, checkpointer=False)
    talk.say("one", config=config)
    talk.say("one", "a1", "two", config=config)
    talk.say("one", "a1", "two", "a2", "three", config=config)
    talk.say("one", "a1", "two, edited", config=config)
    talk.say("one", "a1", "two, edited", "a4", "and", config=config)
    first, second = talk.stored().items()
    assert first[1] == (["one", "a1", "two", "a2", "three", "a3"], None)
    assert second == (
        f"{first[0]}~1",
        (["one", "a1", "two, edited", "a4", "and", "a5"], Branch(parent=first[0], messages=2)),
    )


def test_clients_side_by_side(tmp_path: Path) -> None:
    talk = Conversation(tmp_path, checkpointer=False)
    for text in ("one", "uno"):
        talk.say(text, config={})
    talk.say("uno", "a2", "due", config={})
    talk.say("one", "a1", "two", config={})
    assert sorted(said for said, _ in talk.stored().values()) == [
        ["one", "a1", "two", "a4"],
        ["uno", "a2", "due", "a3"],
    ]


def test_the_mark_of_no_messages_is_the_store_s() -> None:
    assert state_hash(0) == EMPTY_STATE
