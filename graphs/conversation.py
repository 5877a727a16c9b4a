"""A conversation as a LangGraph graph: a user's turns put to an agent one after another, with the gate between them
(docs/method.md §7).

One super-step is one user turn. With a checkpointer, everything of a finished turn is in the conversation's state, so
that a dialogue that was killed goes on after its last finished turn; the turn under way begins again. The agent is
invoked with a config of its own, so each turn is a root run of its own thread, as it is in production."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Literal, TypeAlias

from langchain_core.messages import BaseMessage, HumanMessage, SystemMessage
from langchain_core.runnables.config import var_child_runnable_config
from langgraph.errors import GraphRecursionError
from langgraph.graph import START, StateGraph
from langgraph.runtime import Runtime
from langgraph.types import Command, interrupt

from cm2_agent.errors import BudgetExhausted, TaskError
from cm2_agent.langchain_messages import from_langchain
from cm2_agent.types.protocols import LastMessage
from cm2_agent.types.run import RunFailure
from cm2_agent.types.secrets import error_text

from .conversation_setup import ConversationSetup, ConversationState, Ending, Reason, given_system
from .conversation_state import dump
from .crashes import is_reproduced
from .token_limit import Meter

Next: TypeAlias = Command[Literal["turn", "ask", "__end__"]]
_STEPS = 1_000_000
"""Super-steps of the machine: LangGraph wants a number, the limits are ours."""


def conversation_graph(checkpointer: Any = None) -> Any:
    """The compiled conversation graph. Its state is a `ConversationState`, its runtime context a `ConversationSetup`;
    start it with `begin()`, and a dialogue that an interrupt of the agent stopped with LangGraph's
    `Command(resume=…)`. A checkpointer holds all that the dialogue needs after each turn.

    >>> from langchain_core.language_models import GenericFakeChatModel
    >>> from cm2_agent import Task
    >>> from cm2_agent.graphs import agent
    >>> graph = agent(GenericFakeChatModel(messages=iter(["It was shipped.", "With pleasure."])), [])
    >>> task = Task(id="t", turns=["Where is order 7?", "Thanks!"])
    >>> setup = ConversationSetup(graph=graph, task=task, config={"configurable": {"thread_id": "1"}})
    >>> state = asyncio.run(conversation_graph().ainvoke(begin(), machine_config("1"), context=setup))
    >>> state["end"]["how"], [message.text for message in state["messages"]][-1]
    ('done', 'With pleasure.')
    """
    saving = checkpointer is not None

    async def turn(state: ConversationState, runtime: Runtime[ConversationSetup]) -> Next:
        # the agent is nobody's child: its run is a root, its thread its own
        token = var_child_runnable_config.set(None)
        try:
            return await _Turn(state, runtime.context, saving).take()
        finally:
            var_child_runnable_config.reset(token)

    async def ask(state: ConversationState) -> Next:
        answers = {one["id"]: interrupt(one["value"]) for one in state.get("waiting") or ()}
        return Command(update={"answers": answers, "waiting": None}, goto="turn")

    machine = StateGraph(ConversationState, context_schema=ConversationSetup)
    machine.add_node("turn", turn, destinations=("turn", "ask", "__end__"))
    machine.add_node("ask", ask, destinations=("turn",))
    machine.add_edge(START, "turn")
    return machine.compile(checkpointer=checkpointer)


def begin(facts: str = "") -> ConversationState:
    """The state before the first turn. `facts` stays beside it: a resumed dialogue must have the same."""
    return {"turn": 0, "runs": [], "seconds": 0.0, "tokens": 0, "facts": facts}


async def converse(setup: ConversationSetup, machine: Any = None, *, facts: str = "", resumed: bool = False) -> Ending:
    """Hold one whole dialogue; returns how it ended.

    `machine` is a conversation graph with a checkpointer, for a dialogue that is to survive its process; `resumed`:
    go on from what its checkpointer holds. What the agent or the user raised is in the Ending; what the gate raised,
    and BudgetExhausted of user or tools, is raised, and the finished turns stay in the checkpointer.

    >>> import asyncio
    >>> from langchain_core.language_models import GenericFakeChatModel
    >>> from cm2_agent import Task
    >>> from cm2_agent.graphs import ConversationSetup, agent, converse
    >>> graph = agent(GenericFakeChatModel(messages=iter(["It was shipped."])), [])
    >>> task = Task(id="t", turns=["Where is order 7?"])
    >>> setup = ConversationSetup(graph=graph, task=task, config={"configurable": {"thread_id": "1"}})
    >>> asyncio.run(converse(setup)).reason
    'done'
    """
    chosen = machine if machine is not None else _plain()
    options = {} if chosen.checkpointer is None else {"durability": "sync"}
    state = await chosen.ainvoke(
        None if resumed else begin(facts), machine_config(setup.thread), context=setup, **options
    )
    return Ending.from_json(state["end"])


def machine_config(thread: str) -> dict[str, Any]:
    """The conversation graph's own config. Its thread is not the agent's, whose checkpointer may write to the same
    tables."""
    return {"configurable": {"thread_id": f"dialogue:{thread}"}, "callbacks": [], "recursion_limit": _STEPS}


@functools.cache
def _plain() -> Any:
    return conversation_graph()


class _OverTime(Exception):
    """The dialogue's seconds are used up."""


class _Turn:
    """One super-step: the user speaks, the gate is asked about the turn before, the graph answers."""

    def __init__(self, state: ConversationState, setup: ConversationSetup, saving: bool) -> None:
        self.state, self.setup, self.saving = state, setup, saving
        self.number = state["turn"]
        self.seconds = state["seconds"]
        self.last = state.get("last", False)
        self.messages: list[BaseMessage] = _messages(state, setup)
        limit = setup.limits.max_tokens
        self.meter = None if limit is None else Meter(limit, state["tokens"])

    async def take(self) -> Next:
        setup, limits = self.setup, self.setup.limits
        if limits.max_seconds is not None and self.seconds >= limits.max_seconds:
            return self._end("time", before=True)
        answers = self.state.get("answers")
        text: str | None = None
        if answers is None:
            try:
                async with self._clock():
                    text = await self._words()
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
            if text is None:
                if self.number == 0:
                    return self._end(
                        "error",
                        RunFailure(kind="TaskError", message=f"the user of task {setup.task.id!r} said nothing at all"),
                    )
                return self._end("done", before=True)
            self.last = isinstance(text, LastMessage)
            if setup.gate is not None and self.number > 0:
                passed = await setup.gate(self.number - 1)
                if passed is not True:
                    return self._end("gate" if passed is False else "verdict", before=True)
        try:
            async with self._clock():
                given: Any = Command(resume=answers) if text is None else {"messages": await self._new(text)}
                setup.started = True
                answered = await setup.graph.ainvoke(
                    given, self._config(), **({} if setup.context is None else {"context": setup.context})
                )
                await self._refuse_breakpoints(answered)
        except Exception as error:  # whatever a user's graph raises is this dialogue's end, and no other's
            return self._raised(error)
        return self._answered(answered)

    async def _words(self) -> str | None:
        """The user's next message, None where the user is done."""
        setup = self.setup
        if setup.user is None:
            return setup.task.turns[self.number] if self.number < len(setup.task.turns) else None
        return await setup.user([from_langchain(message) for message in self.messages])

    async def _new(self, words: str) -> list[BaseMessage]:
        """What the graph is given: the user's message alone where its own thread knows the rest, else the whole
        dialogue."""
        setup, messages = self.setup, self.messages
        keeper = getattr(setup.graph, "checkpointer", None)
        if keeper and not setup.started:
            held = len((await setup.graph.aget_state(self._config())).values.get("messages", ()))
            if held and held != len(messages):  # what it knows of a turn that was cut short
                try:
                    await keeper.adelete_thread(setup.thread)
                except NotImplementedError:
                    raise TaskError(
                        f"the graph's checkpointer ({type(keeper).__name__}) holds {held} messages of thread"
                        f" {setup.thread!r}, {len(messages)} were expected, and it cannot delete a thread; delete it"
                        " there, or run under another name"
                    ) from None
            if held != len(messages):
                keeper = None
        if keeper and self.number:
            return [HumanMessage(str(words))]
        system = [SystemMessage(setup.task.system)] if given_system(setup.task) and not messages else []
        return [*system, *messages, HumanMessage(str(words))]

    async def _refuse_breakpoints(self, answered: Any) -> None:
        """A graph compiled with breakpoints stops without saying so: its turn looks finished, and is not."""
        graph = self.setup.graph
        if getattr(graph, "interrupt_before_nodes", ()) or getattr(graph, "interrupt_after_nodes", ()):
            stopped = () if "__interrupt__" in answered else (await graph.aget_state(self._config())).next
            if stopped:
                raise TaskError(
                    f"the graph stopped at a breakpoint before {', '.join(stopped)}; compile it without"
                    " interrupt_before/after"
                )

    def _config(self) -> dict[str, Any]:
        config = {**self.setup.config, "recursion_limit": 2 * self.setup.limits.max_steps + 1}
        if self.meter is not None:
            config["callbacks"] = [self.meter, *config.get("callbacks", ()), self.meter.stop]
        return config

    @asynccontextmanager
    async def _clock(self) -> AsyncIterator[None]:
        """Counts the seconds within, and cancels what is within when they are used up."""
        limit = self.setup.limits.max_seconds
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
            return self._end(*failure)
        if isinstance(error, _OverTime):
            return self._end("time")
        if isinstance(error, GraphRecursionError):
            return self._end("steps")
        if self.meter is not None and self.meter.stopped:
            return self._end("tokens")
        from cm2_agent.llm.failures import says_too_long  # slow to import

        if says_too_long(error):
            return self._end("context")
        crash: Reason = "crash" if is_reproduced(error) else "error"
        return self._end(crash, RunFailure(kind=type(error).__name__, message=error_text(error, 500)))

    def _answered(self, answered: Any) -> Next:
        setup = self.setup
        failure = self._failure()
        if failure is not None:
            return self._end(*failure)
        waiting = answered.get("__interrupt__") if isinstance(answered, Mapping) else None
        if waiting:
            asked = [{"id": one.id, "value": one.value} for one in waiting]
            if setup.answerable:
                return self._go("ask", {"waiting": asked, "turn": self.number})
            problem = (
                f"the graph interrupted for a human, {str(asked[0]['value'])[:200]!r}, and in a run nobody can answer"
            )
            return self._end("error", RunFailure(kind="GraphInterrupt", message=problem))
        messages = answered.get("messages") if isinstance(answered, Mapping) else None
        if not isinstance(messages, list):
            problem = (
                f"the graph's final state, a {type(answered).__name__}, has no list of `messages`; expected a graph"
                " that keeps one"
            )
            return self._end("error", RunFailure(kind="TaskError", message=problem))
        self.messages = messages
        if self.last or (setup.user is None and self.number + 1 >= len(setup.task.turns)):
            return self._end("done")
        if self.meter is not None and self.meter.spent >= self.meter.limit:
            return self._end("tokens")
        if setup.max_turns is not None and self.number + 1 >= setup.max_turns:
            return self._end("turns")
        return self._go("turn", {"turn": self.number + 1})

    def _failure(self) -> tuple[Reason, RunFailure] | None:
        """What the tools' side noted, whatever the graph made of it."""
        error = self.setup.failed() if self.setup.failed is not None else None
        if isinstance(error, BudgetExhausted):
            raise error
        if error is None:
            return None
        failure = RunFailure(kind="ToolError", message=error_text(error, 500))
        return ("crash" if is_reproduced(error) else "error"), failure

    def _end(self, reason: Reason, failure: RunFailure | None = None, *, before: bool = False) -> Next:
        """`before`: the turn never began, so the one before it was the last."""
        end = Ending(reason=reason, turn=self.number - 1 if before else self.number, failure=failure)
        return self._go("__end__", {"end": end.to_json()})

    def _go(self, to: Literal["turn", "ask", "__end__"], update: dict[str, Any]) -> Next:
        update["messages"] = self.messages
        update["seconds"] = self.seconds
        update["answers"] = None
        update["last"] = self.last and to == "ask"
        if self.meter is not None:
            update["tokens"] = self.meter.spent
        if self.saving and self.state.get("said", ()) is not None:
            try:
                runs, memory = self.setup.checkpoint() if self.setup.checkpoint is not None else ((), None)
                update["said"] = self.setup.encoder.blobs(self.messages)
                update["runs"] = [*self.state["runs"], *(dump(run) for run in runs)]
                update["memory"] = dump(memory)
            except (TypeError, ValueError):  # not JSON: this dialogue cannot be resumed, which is no reason to end it
                update["said"] = None
        return Command(update=update, goto=to)


def _messages(state: ConversationState, setup: ConversationSetup) -> list[BaseMessage]:
    if "messages" in state:
        return state["messages"]
    blobs = state.get("said")
    return [] if blobs is None else setup.encoder.messages(blobs)


__all__ = ["begin", "conversation_graph", "converse", "machine_config"]
