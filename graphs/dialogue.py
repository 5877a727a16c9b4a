"""A dialogue: one task's user turns, put to a graph one after another, with the gate between them (method.md §7)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from langchain_core.messages import BaseMessage, HumanMessage, SystemMessage
from langgraph.errors import GraphRecursionError

from cm2_agent.task import Task

Gate: TypeAlias = "Callable[[int], Awaitable[bool | None]]"
"""Asked after each turn's reply: may the next user message come? None where a strict item has no verdict."""


@dataclass(frozen=True, kw_only=True)
class End:
    """How a dialogue ended: `done`, at the `gate` of `turn`, cut by the limit of steps, without a gate's `verdict`, or by an `error`."""

    how: Literal["done", "gate", "steps", "verdict", "error"]
    turn: int
    error: Exception | None = None


async def converse(
    graph: Any,
    task: Task,
    *,
    config: Mapping[str, Any],
    context: Any = None,
    gate: Gate | None = None,
    max_steps: int = 24,
) -> End:
    """Put the task's turns to the graph, each as one run of the same thread.

    A graph with a checkpointer gets each user message alone; one without gets the dialogue so far, which its state must keep under
    `messages`. `max_steps` bounds the model's messages in one turn. Never raises what the graph raised: it is in the End.
    """
    keeps_history = bool(getattr(graph, "checkpointer", None))
    said: Sequence[BaseMessage] = [SystemMessage(task.system)] if task.system else []
    limited = {**config, "recursion_limit": 2 * max_steps + 1}
    extra = {} if context is None else {"context": context}
    for turn, words in enumerate(task.turns):
        new: list[BaseMessage] = [*said, HumanMessage(words)] if not keeps_history or turn == 0 else [HumanMessage(words)]
        try:
            state = await graph.ainvoke({"messages": new}, limited, **extra)
        except GraphRecursionError as error:
            return End(how="steps", turn=turn, error=error)
        except Exception as error:  # whatever a user's graph raises is this dialogue's end, and no other's
            return End(how="error", turn=turn, error=error)
        said = state["messages"]
        if gate is not None and turn + 1 < len(task.turns):
            passed = await gate(turn)
            if passed is not True:
                return End(how="gate" if passed is False else "verdict", turn=turn)
    return End(how="done", turn=len(task.turns) - 1)


__all__ = ["End", "Gate", "converse"]
