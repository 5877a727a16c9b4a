"""What a conversation is given (its setup and limits), the state it keeps between turns, and how it ends."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeAlias, TypedDict

from langchain_core.messages import BaseMessage
from langgraph.channels import UntrackedValue

from cm2_agent.errors import TaskError
from cm2_agent.types.json_values import JSON
from cm2_agent.types.protocols import User
from cm2_agent.types.run import RunFailure
from cm2_agent.types.run_attributes import SYSTEM
from cm2_agent.types.task import Task

from .conversation_state import MessageEncoder

Gate: TypeAlias = "Callable[[int], Awaitable[bool | None]]"
"""Asked before the next user message: may it come, after this turn? None where a strict item has no verdict."""
Reason: TypeAlias = Literal["done", "gate", "verdict", "steps", "turns", "time", "tokens", "context", "crash", "error"]
TURNS = 30
"""User messages at most, of a user who is not scripted and whom nothing else bounds."""


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How a dialogue ended. `reason` is "done"; "gate" (at the gate after `turn`) or "verdict" (the gate had none); a
    limit of ours ("steps", "turns", "time", "tokens") or of the model ("context"), which is no failure of the agent; a
    tool's "crash" that the same call brings about again; or "error". `failure` describes a crash and an error.

    >>> from cm2_agent.graphs import Ending
    >>> Ending(reason="gate", turn=1).to_json()["how"]
    'gate'
    """

    reason: Reason
    turn: int
    failure: RunFailure | None = None

    def to_json(self) -> dict[str, JSON]:
        return {
            "how": self.reason,
            "turn": self.turn,
            "failure": None if self.failure is None else self.failure.to_json(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, JSON]) -> Ending:
        return cls(
            reason=data["how"],
            turn=data["turn"],
            failure=None if data["failure"] is None else RunFailure(**data["failure"]),
        )


@dataclass(frozen=True, kw_only=True)
class RolloutLimits:
    """What a dialogue may take: `run(…, limits=RolloutLimits(max_steps=8))`. Where a limit cuts a dialogue, that is no
    failure of the agent: what it did not reach counts as unpaid.

    Args:
        max_steps: The model's messages in a turn.
        max_turns: User messages.
        max_seconds: Seconds of the user and the agent together, without the judge's at the gate.
        max_tokens: Tokens of all the agent's model calls, by their reported usage (a call without usage counts its
            token ids, or nothing).

    Raises:
        TaskError: A limit of 0 or less; None means no limit.

    >>> from cm2_agent import RolloutLimits
    >>> RolloutLimits(max_turns=3).max_steps
    24
    """

    max_steps: int = 24
    max_turns: int | None = None
    max_seconds: float | None = None
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        for name, limit in vars(self).items():
            if limit is not None and not limit > 0:
                raise TaskError(f"{name} is {limit}; expected more than 0, or None for no limit")


@dataclass(kw_only=True)
class ConversationSetup:
    """What one dialogue needs beside its state: LangGraph's runtime context of the conversation graph, one object for
    each dialogue.

    Args:
        graph: The agent, a compiled graph.
        task: Its system message and turns.
        config: The agent's config (thread, callbacks, metadata).
        context: The agent's runtime context.
        gate: Asked between turns whether the next one may come.
        user: Writes the user's messages; None: the task's turns.
        limits: What the dialogue may take.
        failed: Asked after each turn for a failure that is not the agent's.
        checkpoint: What the checkpointer keeps beside the messages: JSON of each run that ended since it was last
            called, and any further JSON.
        answerable: Whether somebody can answer a graph that interrupts for a human; if not, an interrupt is an error.
    """

    graph: Any
    task: Task
    config: Mapping[str, Any]
    context: Any = None
    gate: Gate | None = None
    user: User | None = None
    limits: RolloutLimits = field(default_factory=RolloutLimits)
    failed: Callable[[], Exception | None] | None = None
    checkpoint: Callable[[], tuple[Sequence[JSON], JSON]] | None = None
    answerable: bool = True
    encoder: MessageEncoder = field(default_factory=MessageEncoder, init=False, repr=False)
    started: bool = field(default=False, init=False, repr=False)
    """Whether the graph was invoked in this process."""

    @property
    def thread(self) -> str:
        return str(self.config["configurable"]["thread_id"])

    @property
    def max_turns(self) -> int | None:
        """User messages at most; None where the task's turns are used up to the last."""
        if self.user is None:
            return self.limits.max_turns
        limits = [number for number in (self.limits.max_turns, self.task.max_turns) if number is not None]
        return min(limits) if limits else max(TURNS, len(self.task.turns))


def given_system(task: Task) -> str | None:
    """The task's system message where the dialogue has to bring it: a task compiled from a trace may hold the one that
    the graph writes itself, which must not be sent twice."""
    own = task.metadata.get(SYSTEM.removeprefix("cm2.")) == "graph"
    return None if own else task.system


class ConversationStart(TypedDict):
    """What a dialogue's state always holds: the number of its finished turns, and what they took."""

    turn: int
    runs: list[bytes]
    seconds: float
    tokens: int
    facts: str


class ConversationState(ConversationStart, total=False):
    """`messages` is there while the process lives; `said` is the same as bytes that come back exactly, as `runs` and
    `memory` are (`conversation_state.dump`), and None where that cannot be. `last`: the user is done once the turn
    under way is answered."""

    messages: Annotated[list[BaseMessage], UntrackedValue]
    said: list[bytes] | None
    memory: bytes
    waiting: list[dict[str, Any]] | None
    answers: dict[str, Any] | None
    last: bool
    end: dict[str, JSON] | None


__all__ = [
    "ConversationSetup",
    "ConversationStart",
    "ConversationState",
    "Ending",
    "Gate",
    "Reason",
    "RolloutLimits",
    "given_system",
]
