"""A guard around a graph: each turn that the agent writes is checked before anyone sees it.

The guarded graph is a graph of one node that runs the inner one, as often as it takes, and lets one turn into the
state. What did not pass is recorded as facts of the run (`cm2.guard.rejected`), so that it is stored with the trace and
can be paired with what did."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias
from uuid import uuid4

from langchain_core.callbacks import adispatch_custom_event, dispatch_custom_event
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, RemoveMessage
from langchain_core.runnables import RunnableConfig, RunnableLambda
from langgraph.channels.binop import BinaryOperatorAggregate
from langgraph.graph import END, START, StateGraph
from langgraph.runtime import get_runtime
from langgraph.types import Overwrite

from cm2_agent.errors import GuardError
from cm2_agent.langchain_messages import from_langchain
from cm2_agent.types.json_values import JSON
from cm2_agent.types.messages import Message
from cm2_agent.types.run_attributes import FACTS, GUARD, GUARD_ATTEMPT, GUARD_OUTCOME

OnViolation: TypeAlias = Literal["block", "retry", "best_of"]
NOTE = "Your last answer to this was not sent, since it failed: {failed}. Answer again, so that this holds."


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What was found of a turn: the strict items that it breaks, `{id: question}`, and what it is worth beside other
    attempts."""

    failed: Mapping[str, str] = field(default_factory=dict)
    worth: float = 0.0
    unchecked: bool = False
    """Whether the check of a strict item raised: nobody knows whether the turn breaks it."""

    @property
    def rank(self) -> tuple[bool, float]:
        """What attempts that break nothing known are chosen by, the best one highest."""
        return not self.unchecked, self.worth


Look: TypeAlias = Callable[[Sequence[Message]], Finding]
"""Looks at a dialogue whose last turn was just written."""


@dataclass(frozen=True, kw_only=True)
class _Attempt:
    id: str
    added: tuple[BaseMessage, ...]
    """What the agent added to the dialogue."""
    update: Mapping[str, Any]
    finding: Finding


class _Guard:
    def __init__(
        self, graph: Any, look: Look, on_violation: OnViolation, n: int, blocked: str | None, note: str
    ) -> None:
        # it keeps nothing of its own: the outer graph's checkpointer has the dialogue, and a rejected turn leaves no
        # trace in it
        self.inner = graph.copy(update={"checkpointer": False})
        self.look, self.on_violation, self.blocked, self.note = look, on_violation, blocked, note
        self.attempts = {"block": 1, "retry": n + 1, "best_of": n}[on_violation]
        self.folding = {
            name for name, channel in graph.channels.items() if isinstance(channel, BinaryOperatorAggregate)
        }

    def run(self, state: Any, config: RunnableConfig) -> dict[str, Any]:
        tried: list[_Attempt] = []
        while not self._enough(tried):
            asked, marked = self._asked(state, tried), _marked(config)
            tried.append(
                self._attempt(state, asked, marked, self.inner.invoke(asked, marked, context=get_runtime().context))
            )
        chosen, facts, update = self._chosen(tried)
        if facts:
            dispatch_custom_event(FACTS, facts, config=config)
        return self._let(chosen, update)

    async def arun(self, state: Any, config: RunnableConfig) -> dict[str, Any]:
        tried: list[_Attempt] = []
        while not self._enough(tried):
            asked, marked = self._asked(state, tried), _marked(config)
            tried.append(
                self._attempt(
                    state, asked, marked, await self.inner.ainvoke(asked, marked, context=get_runtime().context)
                )
            )
        chosen, facts, update = self._chosen(tried)
        if facts:
            await adispatch_custom_event(FACTS, facts, config=config)
        return self._let(chosen, update)

    def _enough(self, tried: Sequence[_Attempt]) -> bool:
        if len(tried) >= self.attempts:
            return True
        return bool(tried) and self.on_violation != "best_of" and not tried[-1].finding.failed

    def _asked(self, state: Any, tried: Sequence[_Attempt]) -> dict[str, Any]:
        given = {**state}
        if tried and self.on_violation == "retry":
            failed = "; ".join(tried[-1].finding.failed.values())
            given["messages"] = [
                *state["messages"],
                HumanMessage(self.note.format(failed=failed), id=f"cm2-guard-{uuid4().hex}"),
            ]
        return given

    def _attempt(
        self, state: Any, asked: Mapping[str, Any], marked: RunnableConfig, result: Mapping[str, Any]
    ) -> _Attempt:
        before = {message.id: message for message in state["messages"]}
        shown = {message.id for message in asked["messages"]}
        added = tuple(message for message in result["messages"] if message.id not in shown)
        left = {message.id for message in result["messages"]}
        removed = [RemoveMessage(id=str(id)) for id in before if id not in left]
        changed = [message for message in result["messages"] if message.id in before and message != before[message.id]]
        update = {
            name: (
                Overwrite(value) if name in self.folding else value
            )  # a fold of the whole into the whole would count twice
            for name, value in result.items()
            if name not in ("messages", "__interrupt__")
        }
        finding = self.look([from_langchain(message) for message in (*state["messages"], *added)])
        update["messages"] = [*removed, *changed]
        return _Attempt(id=marked.get("metadata", {})[GUARD_ATTEMPT], added=added, update=update, finding=finding)

    def _chosen(self, tried: Sequence[_Attempt]) -> tuple[_Attempt, dict[str, JSON], tuple[BaseMessage, ...]]:
        passed = [attempt for attempt in tried if not attempt.finding.failed]
        # of equals the first; of none that passes the last, which knew most of what was wrong
        chosen = max(passed, key=lambda attempt: attempt.finding.rank) if passed else tried[-1]
        # every rejected attempt is recorded, so that the trace does not take it for the dialogue
        rejected = [attempt for attempt in tried if attempt is not chosen] if passed else tried
        if not rejected:
            return chosen, {}, chosen.added
        rejections: list[JSON] = [
            {
                "attempt": attempt.id,
                "failed": sorted(attempt.finding.failed),
                "worth": attempt.finding.worth - chosen.finding.worth,
                "messages": [from_langchain(message).to_json() for message in attempt.added],
            }
            for attempt in rejected
        ]
        facts: dict[str, JSON] = {GUARD: rejections, GUARD_OUTCOME: "accepted" if passed else "blocked"}
        return chosen, facts, chosen.added if passed else _blocked(chosen.added, self.blocked)

    def _let(self, chosen: _Attempt, added: tuple[BaseMessage, ...]) -> dict[str, Any]:
        if chosen.finding.failed and self.blocked is None:
            broken = ", ".join(chosen.finding.failed)
            raise GuardError(
                f"the reply was blocked, since it breaks the strict items {broken}; blocked='…' would answer in its"
                " place"
            )
        return {**chosen.update, "messages": [*chosen.update["messages"], *added]}


def _marked(config: RunnableConfig) -> RunnableConfig:
    """The node's config for one attempt, whose model calls and tools then say which it was."""
    return {**config, "metadata": {**config.get("metadata", {}), GUARD_ATTEMPT: uuid4().hex}}


def _blocked(added: tuple[BaseMessage, ...], words: str | None) -> tuple[BaseMessage, ...]:
    """The turn with the guard's words in place of the reply: the tools did run, so their calls stay in the dialogue."""
    calls = added[:-1] if added and isinstance(added[-1], AIMessage) else added
    return (*calls, AIMessage(words or "", id=f"cm2-guard-{uuid4().hex}"))


def guarded_graph(
    graph: Any,
    look: Look,
    *,
    on_violation: OnViolation = "block",
    n: int = 2,
    blocked: str | None = "I can't help with that.",
    note: str = NOTE,
) -> Any:
    """The graph, guarded: a compiled graph with the same state, context, checkpointer and store, and one node.

    Tools run in every attempt, so guard agents whose tools may run twice. The inner graph's steps are not checkpointed,
    so a node that interrupts for a human is asked again from the turn's start. Token streams show rejected attempts
    too. `cm2_agent.guard` makes such a graph from a checklist.

    Args:
        graph: A compiled graph with `messages` in its state.
        look: Finds what a turn breaks, and what it is worth.
        on_violation: "block": `blocked` replaces the reply. "retry": up to `n` more attempts, then as block.
            "best_of": of `n` attempts that break nothing the one worth most, else as block.
        n: Attempts, 1 or more.
        blocked: The words in place of a blocked reply; None: GuardError is raised.
        note: What a retry is asked with; `{failed}` stands for what failed. The dialogue never shows it.

    Raises:
        GuardError: A graph that is not compiled or has no `messages`, or a setting out of its range.

    >>> from langchain_core.language_models import GenericFakeChatModel
    >>> from cm2_agent.graphs import agent
    >>> def no_promise(messages):
    ...     promised = "guarantee" in messages[-1].text
    ...     return Finding(failed={"no_promise": "Is nothing guaranteed?"} if promised else {})
    >>> graph = agent(GenericFakeChatModel(messages=iter(["I guarantee it."])), [])
    >>> safe = guarded_graph(graph, no_promise, blocked="I can't promise that.")
    >>> safe.invoke({"messages": [("user", "Will it work?")]})["messages"][-1].content
    "I can't promise that."
    """
    if not hasattr(graph, "builder") or "messages" not in getattr(graph, "channels", {}):
        raise GuardError(
            f"a guard was given a {type(graph).__name__}; expected a compiled graph whose state has `messages`"
        )
    if on_violation not in ("block", "retry", "best_of") or n < 1:
        raise GuardError(
            f"on_violation is {on_violation!r} with n {n}; expected block, retry or best_of, and n of 1 or more"
        )
    guard, built = _Guard(graph, look, on_violation, n, blocked, note), graph.builder
    outer = StateGraph(
        built.state_schema,
        context_schema=built.context_schema,
        input_schema=built.input_schema,
        output_schema=built.output_schema,
    )
    outer.add_node("guarded", RunnableLambda(guard.run, guard.arun, name="guarded"))
    outer.add_edge(START, "guarded")
    outer.add_edge("guarded", END)
    return outer.compile(checkpointer=graph.checkpointer, store=graph.store, name=graph.name)


__all__ = ["NOTE", "Finding", "Look", "OnViolation", "guarded_graph"]
