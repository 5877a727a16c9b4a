"""A dialogue as a LangGraph state machine: a user's turns put to a graph one after another, with the gate between them
(method.md §7); apart from the runs that make many of them.

One super-step is one user turn. Where the machine has a checkpointer, everything of a finished turn is in its state, so
that a dialogue that was killed goes on after its last finished turn; the turn under way begins again. The graph is
invoked with a config of its own, so each turn is a root run of its own thread, as it is in production."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeAlias, TypedDict

from langchain_core.messages import BaseMessage, HumanMessage, SystemMessage
from langchain_core.runnables.config import var_child_runnable_config
from langgraph.channels import UntrackedValue
from langgraph.errors import GraphRecursionError
from langgraph.graph import START, StateGraph
from langgraph.runtime import Runtime
from langgraph.types import Command, interrupt

from cm2_agent.errors import BudgetExhausted, TaskError
from cm2_agent.langchain_messages import from_langchain
from cm2_agent.types.json_values import JSON
from cm2_agent.types.protocols import User
from cm2_agent.types.task import Task
from cm2_agent.types.trace import RunFailure

from .conversation_state import Written, dump
from .token_limit import Meter

Gate: TypeAlias = "Callable[[int], Awaitable[bool | None]]"
"""Asked before the next user message: may it come, after this turn? None where a strict item has no verdict."""
How: TypeAlias = Literal["done", "gate", "verdict", "steps", "turns", "time", "tokens", "error"]
Next: TypeAlias = Command[Literal["turn", "ask", "__end__"]]
TURNS = 30
"""User messages at most, of a user who is not scripted and whom nothing else bounds."""
_STEPS = 1_000_000
"""Super-steps of the machine: LangGraph wants a number, the limits are ours."""


@dataclass(frozen=True, kw_only=True)
class End:
    """How a dialogue ended: `done`; at the `gate` after `turn`, or without the gate's `verdict`; cut by a limit
    (`steps`, `turns`, `time`, `tokens`), which is ours and no failure of the agent's; or by an `error`, told by
    `failure`."""

    how: How
    turn: int
    failure: RunFailure | None = None

    def to_json(self) -> dict[str, JSON]:
        return {"how": self.how, "turn": self.turn, "failure": None if self.failure is None else self.failure.to_json()}

    @classmethod
    def from_json(cls, data: Mapping[str, JSON]) -> End:
        return cls(
            how=data["how"],
            turn=data["turn"],
            failure=None if data["failure"] is None else RunFailure(**data["failure"]),
        )


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a dialogue may take: the model's messages in a turn, user turns, seconds of the user and the agent together
    (what a judge takes at the gate is not the dialogue's), tokens of all model calls as their usage tells them (a call
    that tells nothing counts nothing). Raises TaskError for a limit of 0 or less."""

    max_steps: int = 24
    max_turns: int | None = None
    max_seconds: float | None = None
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        for name, limit in vars(self).items():
            if limit is not None and not limit > 0:
                raise TaskError(f"{name} is {limit}; expected more than 0, or None for no limit")


@dataclass(kw_only=True)
class Talk:
    """What one dialogue needs beside its state: LangGraph's runtime context of the machine, one object for each
    dialogue.

    `config` is the graph's own (thread, callbacks, metadata), `context` its runtime context. Without `user` the task's
    turns are said. `failed` tells of a failure that is not the agent's, after each turn. `keep` gives what the
    machine's checkpointer is to keep beside the messages: JSON of each run that ended since it was last asked, and any
    further JSON. `answerable`: whether somebody can answer a graph that interrupts for a human; if not, that is an
    error."""

    graph: Any
    task: Task
    config: Mapping[str, Any]
    context: Any = None
    gate: Gate | None = None
    user: User | None = None
    limits: Limits = field(default_factory=Limits)
    failed: Callable[[], Exception | None] | None = None
    keep: Callable[[], tuple[Sequence[JSON], JSON]] | None = None
    answerable: bool = True
    written: Written = field(default_factory=Written, init=False, repr=False)
    met: bool = field(default=False, init=False, repr=False)
    """Whether the graph was asked in this process."""

    @property
    def thread(self) -> str:
        return str(self.config["configurable"]["thread_id"])

    @property
    def max_turns(self) -> int | None:
        """User messages at most; None where the task's turns are said to their end."""
        given = [number for number in (self.limits.max_turns, self.task.max_turns) if number is not None]
        if self.user is None:
            return self.limits.max_turns
        return min(given) if given else max(TURNS, len(self.task.turns))


class Begun(TypedDict):
    """What a dialogue's state always holds: the number of its finished turns, and what they took."""

    turn: int
    runs: list[bytes]
    seconds: float
    tokens: int
    facts: str


class State(Begun, total=False):
    """`messages` is there while the process lives; `said` is the same as bytes that come back exactly, as `runs` and
    `memory` are (`keeping.dump`), and None where that cannot be."""

    messages: Annotated[list[BaseMessage], UntrackedValue]
    said: list[bytes] | None
    memory: bytes
    waiting: list[dict[str, Any]] | None
    answers: dict[str, Any] | None
    end: dict[str, JSON] | None


def dialogue(checkpointer: Any = None) -> Any:
    """The compiled machine. Its state is `State`, its runtime context a `Talk`; start it with `begin()`, and a dialogue
    that a graph's interrupt stopped with LangGraph's `Command(resume=…)`. With a checkpointer all it needs is kept
    after each turn.

    >>> from langchain_core.language_models import GenericFakeChatModel
    >>> from cm2_agent.graphs import agent
    >>> graph = agent(GenericFakeChatModel(messages=iter(["It was shipped.", "With pleasure."])), [])
    >>> task = Task(id="t", turns=["Where is order 7?", "Thanks!"])
    >>> talk = Talk(graph=graph, task=task, config={"configurable": {"thread_id": "1"}})
    >>> state = asyncio.run(dialogue().ainvoke(begin(), {"configurable": {"thread_id": "1"}}, context=talk))
    >>> state["end"]["how"], [message.text for message in state["messages"]][-1]
    ('done', 'With pleasure.')
    """
    keeping = checkpointer is not None

    async def turn(state: State, runtime: Runtime[Talk]) -> Next:
        token = var_child_runnable_config.set(
            None
        )  # the graph is nobody's child: its run is a root, its thread its own
        try:
            return await _Turn(state, runtime.context, keeping).take()
        finally:
            var_child_runnable_config.reset(token)

    async def ask(state: State) -> Next:
        answers = {one["id"]: interrupt(one["value"]) for one in state.get("waiting") or ()}
        return Command(update={"answers": answers, "waiting": None}, goto="turn")

    machine = StateGraph(State, context_schema=Talk)
    machine.add_node("turn", turn, destinations=("turn", "ask", "__end__"))
    machine.add_node("ask", ask, destinations=("turn",))
    machine.add_edge(START, "turn")
    return machine.compile(checkpointer=checkpointer)


def begin(facts: str = "") -> State:
    """The state before the first turn. `facts` is kept beside it, for whoever resumes to compare."""
    return {"turn": 0, "runs": [], "seconds": 0.0, "tokens": 0, "facts": facts}


async def converse(talk: Talk, machine: Any = None, *, facts: str = "", resumed: bool = False) -> End:
    """One whole dialogue, and how it ended. `machine`: one with a checkpointer, where the dialogue is to survive its
    process; `resumed`: go on from what that one holds. Never raises what the graph or the user raised (it is in the
    End); raises what the gate raised, and BudgetExhausted, the user's or the tools': the finished turns stay in the
    checkpointer then."""
    chosen = machine if machine is not None else _plain()
    options = {} if chosen.checkpointer is None else {"durability": "sync"}
    state = await chosen.ainvoke(
        None if resumed else begin(facts), machine_config(talk.thread), context=talk, **options
    )
    return End.from_json(state["end"])


def machine_config(thread: str) -> dict[str, Any]:
    """The machine's own config. Its thread is not the graph's, whose checkpointer may write to the same tables."""
    return {"configurable": {"thread_id": f"dialogue:{thread}"}, "callbacks": [], "recursion_limit": _STEPS}


@functools.cache
def _plain() -> Any:
    return dialogue()


class _OverTime(Exception):
    """The dialogue's seconds are used up."""


class _Turn:
    """One super-step: the user speaks, the gate is asked about the turn before, the graph answers."""

    def __init__(self, state: State, talk: Talk, keeping: bool) -> None:
        self.state, self.talk, self.keeping = state, talk, keeping
        self.number = state["turn"]
        self.seconds = state["seconds"]
        self.messages: list[BaseMessage] = _messages(state, talk)
        limit = talk.limits.max_tokens
        self.meter = None if limit is None else Meter(limit, state["tokens"])

    async def take(self) -> Next:
        talk, limits = self.talk, self.talk.limits
        if limits.max_seconds is not None and self.seconds >= limits.max_seconds:
            return self._end("time", before=True)
        answers = self.state.get("answers")
        said: str | None = None
        if answers is None:
            try:
                async with self._clock():
                    said = await self._words()
            except _OverTime:
                return self._end("time", before=True)
            except BudgetExhausted:
                raise
            except Exception as error:  # a user that fails is not the agent's doing, and ends no other dialogue
                return self._end(
                    "error",
                    RunFailure(kind=type(error).__name__, message=f"the user failed: {error}"[:500]),
                    before=True,
                )
            if said is None:
                if self.number == 0:
                    return self._end(
                        "error",
                        RunFailure(kind="TaskError", message=f"the user of task {talk.task.id!r} said nothing at all"),
                    )
                return self._end("done", before=True)
            if talk.gate is not None and self.number > 0:
                passed = await talk.gate(self.number - 1)
                if passed is not True:
                    return self._end("gate" if passed is False else "verdict", before=True)
        try:
            async with self._clock():
                given: Any = Command(resume=answers) if said is None else {"messages": await self._new(said)}
                talk.met = True
                answered = await talk.graph.ainvoke(
                    given, self._config(), **({} if talk.context is None else {"context": talk.context})
                )
                await self._refuse_breakpoints(answered)
        except Exception as error:  # whatever a user's graph raises is this dialogue's end, and no other's
            return self._raised(error)
        return self._answered(answered)

    async def _words(self) -> str | None:
        """What the user says next, None where the user is done."""
        talk = self.talk
        if talk.user is None:
            return talk.task.turns[self.number] if self.number < len(talk.task.turns) else None
        return await talk.user([from_langchain(message) for message in self.messages])

    async def _new(self, words: str) -> list[BaseMessage]:
        """What the graph is given: the user's message alone where its own thread knows the rest, else the whole
        dialogue."""
        talk, said = self.talk, self.messages
        keeper = getattr(talk.graph, "checkpointer", None)
        if keeper and not talk.met:
            held = len((await talk.graph.aget_state(self._config())).values.get("messages", ()))
            if held and held != len(said):  # what it knows of a turn that was cut short
                try:
                    await keeper.adelete_thread(talk.thread)
                except NotImplementedError:
                    raise TaskError(
                        f"the graph's checkpointer ({type(keeper).__name__}) holds {held} messages of thread"
                        f" {talk.thread!r}, {len(said)} were expected, and it cannot delete a thread; delete it there,"
                        " or run under another name"
                    ) from None
            if held != len(said):
                keeper = None
        if keeper and self.number:
            return [HumanMessage(words)]
        system = [SystemMessage(talk.task.system)] if talk.task.system and not said else []
        return [*system, *said, HumanMessage(words)]

    async def _refuse_breakpoints(self, answered: Any) -> None:
        """A graph compiled with breakpoints stops without saying so: its turn looks finished, and is not."""
        graph = self.talk.graph
        if getattr(graph, "interrupt_before_nodes", ()) or getattr(graph, "interrupt_after_nodes", ()):
            stopped = () if "__interrupt__" in answered else (await graph.aget_state(self._config())).next
            if stopped:
                raise TaskError(
                    f"the graph stopped at a breakpoint before {', '.join(stopped)}; compile it without"
                    " interrupt_before/after"
                )

    def _config(self) -> dict[str, Any]:
        config = {**self.talk.config, "recursion_limit": 2 * self.talk.limits.max_steps + 1}
        if self.meter is not None:
            config["callbacks"] = [self.meter, *config.get("callbacks", ()), self.meter.stop]
        return config

    @asynccontextmanager
    async def _clock(self) -> AsyncIterator[None]:
        """Counts the seconds within, and cancels what is within when they are used up."""
        limit = self.talk.limits.max_seconds
        began = time.monotonic()
        try:
            async with asyncio.timeout(None if limit is None else limit - self.seconds) as timeout:
                yield
        except TimeoutError:
            if timeout.expired():
                raise _OverTime from None
            raise
        finally:
            self.seconds += time.monotonic() - began

    def _raised(self, error: Exception) -> Next:
        failure = self._failure()
        if failure is not None:
            return self._end("error", failure)
        if isinstance(error, _OverTime):
            return self._end("time")
        if isinstance(error, GraphRecursionError):
            return self._end("steps")
        if self.meter is not None and self.meter.stopped:
            return self._end("tokens")
        return self._end("error", RunFailure(kind=type(error).__name__, message=str(error)[:500]))

    def _answered(self, answered: Any) -> Next:
        talk = self.talk
        failure = self._failure()
        if failure is not None:
            return self._end("error", failure)
        waiting = answered.get("__interrupt__") if isinstance(answered, Mapping) else None
        if waiting:
            asked = [{"id": one.id, "value": one.value} for one in waiting]
            if talk.answerable:
                return self._go("ask", {"waiting": asked, "turn": self.number})
            told = (
                f"the graph interrupted for a human, {str(asked[0]['value'])[:200]!r}, and in a run nobody can answer"
            )
            return self._end("error", RunFailure(kind="GraphInterrupt", message=told))
        said = answered.get("messages") if isinstance(answered, Mapping) else None
        if not isinstance(said, list):
            told = (
                f"the graph's final state, a {type(answered).__name__}, has no list of `messages`; expected a graph"
                " that keeps one"
            )
            return self._end("error", RunFailure(kind="TaskError", message=told))
        self.messages = said
        if talk.user is None and self.number + 1 >= len(talk.task.turns):
            return self._end("done")
        if self.meter is not None and self.meter.spent >= self.meter.limit:
            return self._end("tokens")
        if talk.max_turns is not None and self.number + 1 >= talk.max_turns:
            return self._end("turns")
        return self._go("turn", {"turn": self.number + 1})

    def _failure(self) -> RunFailure | None:
        error = self.talk.failed() if self.talk.failed is not None else None
        if isinstance(error, BudgetExhausted):
            raise error
        return None if error is None else RunFailure(kind="ToolError", message=str(error)[:500])

    def _end(self, how: How, failure: RunFailure | None = None, *, before: bool = False) -> Next:
        """`before`: the turn never began, so the one before it was the last."""
        end = End(how=how, turn=self.number - 1 if before else self.number, failure=failure)
        return self._go("__end__", {"end": end.to_json()})

    def _go(self, to: Literal["turn", "ask", "__end__"], update: dict[str, Any]) -> Next:
        update["messages"] = self.messages
        update["seconds"] = self.seconds
        update["answers"] = None
        if self.meter is not None:
            update["tokens"] = self.meter.spent
        if self.keeping and self.state.get("said", ()) is not None:
            try:
                runs, memory = self.talk.keep() if self.talk.keep is not None else ((), None)
                update["said"] = self.talk.written.blobs(self.messages)
                update["runs"] = [*self.state["runs"], *(dump(run) for run in runs)]
                update["memory"] = dump(memory)
            except (TypeError, ValueError):  # not JSON: this dialogue cannot be resumed, which is no reason to end it
                update["said"] = None
        return Command(update=update, goto=to)


def _messages(state: State, talk: Talk) -> list[BaseMessage]:
    if "messages" in state:
        return state["messages"]
    blobs = state.get("said")
    return [] if blobs is None else talk.written.messages(blobs)


__all__ = ["End", "Gate", "How", "Limits", "State", "Talk", "begin", "converse", "dialogue", "machine_config"]
