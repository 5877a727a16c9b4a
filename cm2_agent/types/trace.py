"""What happened: model calls, tool runs, runs and the trace they form (docs/method.md, "Run, trace, turn, step")."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, TypeAlias

from cm2_agent.errors import TraceError
from cm2_agent.types.json_values import JSON
from cm2_agent.types.messages import Message, ToolCall, ToolCallResponse, ToolSpec
from cm2_agent.types.run_attributes import TASK_ID

Status: TypeAlias = Literal["ok", "error", "interrupted", "cancelled"]


@dataclass(frozen=True, kw_only=True)
class ModelCall:
    """One answer of a chat model.

    Args:
        span_id: The span that recorded it.
        model: The model's name.
        model_version: Names the weights; rollouts of a group share it.
        input: The messages of the prompt.
        output: The assistant message, None for a failed call.
        tools: The tools that were offered.
        prompt_ids: Token ids of the whole prompt, None where the model did not give them: such a call is text-only and
            cannot be trained on by GRPO.
        completion_ids: Token ids of what was sampled.
        logprobs: One natural logarithm for each sampled token, in float32 precision.
        sampling: temperature, top_p, top_k, penalties, grammar and max_tokens as far as known; under `logprobs` whether
            they are `processed` (after temperature and truncation) or `raw`.
        usage: Tokens by kind.
        finish_reason: The provider's.
        error: Why the call failed.
        message: Index in the run's messages of the assistant message that this call wrote, None for a call off the main
            line (a sub-agent's).
        started: Nanoseconds since the epoch.
        ended: Nanoseconds since the epoch.
    """

    span_id: str
    model: str | None = None
    model_version: str | None = None
    input: tuple[Message, ...] = ()
    output: Message | None = None
    tools: tuple[ToolSpec, ...] = ()
    prompt_ids: tuple[int, ...] | None = None
    completion_ids: tuple[int, ...] | None = None
    logprobs: tuple[float, ...] | None = None
    sampling: Mapping[str, JSON] = field(default_factory=dict)
    usage: Mapping[str, int] = field(default_factory=dict)
    finish_reason: str | None = None
    error: str | None = None
    message: int | None = None
    started: int = 0
    ended: int = 0

    @property
    def untrainable(self) -> str | None:
        """Why GRPO cannot train on this call (docs/method.md, "What can be trained on"), or None where it can."""
        if self.error is not None:
            return "failed call"
        if self.prompt_ids is None or self.completion_ids is None:
            return "no token ids"
        if not self.completion_ids:
            return "empty completion"
        if self.logprobs is None or len(self.logprobs) != len(self.completion_ids):
            return "no logprobs"
        temperature = self.sampling.get("temperature")
        if temperature is None:
            return "unknown temperature"
        if temperature == 0:
            return "temperature 0"
        if self.sampling.get("logprobs") == "processed":
            return None
        top_p, top_k = self.sampling.get("top_p"), self.sampling.get("top_k")
        shaped = any(self.sampling.get(key) for key in ("grammar", "presence_penalty", "frequency_penalty", "min_p"))
        if temperature == 1 and top_p in (None, 1, 1.0) and top_k in (None, 0, -1) and not shaped:
            return None
        return "logprobs are not those of the sampling distribution"

    def to_json(self) -> dict[str, JSON]:
        return {
            "span_id": self.span_id,
            "model": self.model,
            "model_version": self.model_version,
            "input": [message.to_json() for message in self.input],
            "output": None if self.output is None else self.output.to_json(),
            "tools": [tool.to_json() for tool in self.tools],
            "prompt_ids": _listed(self.prompt_ids),
            "completion_ids": _listed(self.completion_ids),
            "logprobs": _listed(self.logprobs),
            "sampling": dict(self.sampling),
            "usage": dict(self.usage),
            "finish_reason": self.finish_reason,
            "error": self.error,
            "message": self.message,
            "started": self.started,
            "ended": self.ended,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, JSON]) -> ModelCall:
        known = dict(data)
        output = known.pop("output", None)
        return cls(
            input=tuple(Message.from_json(message) for message in known.pop("input", ())),
            output=None if output is None else Message.from_json(output),
            tools=tuple(ToolSpec.from_json(tool) for tool in known.pop("tools", ())),
            **{name: _tupled(known.pop(name, None)) for name in ("prompt_ids", "completion_ids", "logprobs")},
            **known,
        )


@dataclass(frozen=True, kw_only=True)
class ToolRun:
    """One execution of a tool: `call_id` is the id of the tool call that asked for it, where there was one."""

    span_id: str
    name: str
    call_id: str | None = None
    arguments: JSON = None
    result: JSON = None
    error: str | None = None
    backend: str | None = None
    fault: str | None = None
    """The fault that was injected into this call, if one was (TOOL_FAULT)."""
    started: int = 0
    ended: int = 0

    def to_json(self) -> dict[str, JSON]:
        return dict(self.__dict__)

    @classmethod
    def from_json(cls, data: Mapping[str, JSON]) -> ToolRun:
        return cls(**data)


@dataclass(frozen=True, kw_only=True)
class RunFailure:
    """Why a run ended badly: `kind` is ToolError, ModelError, or the crash's exception name."""

    kind: str
    message: str

    def to_json(self) -> dict[str, JSON]:
        return {"kind": self.kind, "message": self.message}


@dataclass(frozen=True, kw_only=True)
class Run:
    """One invocation of a graph: one root span.

    Args:
        id: Unique in a store.
        thread: The conversation id that joins runs into a trace; None for a run that is a trace by itself.
        name: The graph's.
        status: `ok`, `error`, `interrupted` or `cancelled`.
        failure: Why a run of status `error` ended.
        messages: What this run added to the dialogue, in order: the user's message, then each assistant message with
            its tool responses (a system message where it is new).
        calls: The model's answers, in order.
        tools: The tools' executions, in order.
        attributes: The `cm2.*` attributes (`run_attributes.py`) and the caller's metadata.
        started: Nanoseconds since the epoch.
        ended: Nanoseconds since the epoch.

    >>> from cm2_agent import Message, Run
    >>> run = Run(id="run-1", messages=(Message.of("user", "Hello"), Message.of("assistant", "Hello, how can I help?")))
    >>> run.trace_id, Run.from_json(run.to_json()) == run
    ('run-1', True)
    """

    id: str
    thread: str | None = None
    name: str = "agent"
    status: Status = "ok"
    failure: RunFailure | None = None
    messages: tuple[Message, ...] = ()
    calls: tuple[ModelCall, ...] = ()
    tools: tuple[ToolRun, ...] = ()
    attributes: Mapping[str, JSON] = field(default_factory=dict)
    started: int = 0
    ended: int = 0

    @property
    def trace_id(self) -> str:
        """The trace this run belongs to: its conversation, or itself alone."""
        return self.thread if self.thread is not None else self.id

    def to_json(self) -> dict[str, JSON]:
        return {
            "id": self.id,
            "thread": self.thread,
            "name": self.name,
            "status": self.status,
            "failure": None if self.failure is None else self.failure.to_json(),
            "messages": [message.to_json() for message in self.messages],
            "calls": [call.to_json() for call in self.calls],
            "tools": [tool.to_json() for tool in self.tools],
            "attributes": dict(self.attributes),
            "started": self.started,
            "ended": self.ended,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, JSON]) -> Run:
        """Raises TraceError on a malformed record."""
        try:
            known = dict(data)
            failure = known.pop("failure", None)
            return cls(
                failure=None if failure is None else RunFailure(**failure),
                messages=tuple(Message.from_json(message) for message in known.pop("messages", ())),
                calls=tuple(ModelCall.from_json(call) for call in known.pop("calls", ())),
                tools=tuple(ToolRun.from_json(tool) for tool in known.pop("tools", ())),
                **known,
            )
        except (TypeError, ValueError) as error:
            raise TraceError(f"not a run: {error}; expected the object that Run.to_json writes") from error


@dataclass(frozen=True, kw_only=True)
class Step:
    """One assistant message with the tool responses that follow it. `call` is the model call that wrote it, where it
    was recorded."""

    turn: int
    index: int
    """0-based within the turn."""
    number: int
    """0-based within the dialogue."""
    message: Message
    responses: tuple[ToolCallResponse, ...] = ()
    call: ModelCall | None = None

    @property
    def is_reply(self) -> bool:
        """True where the step speaks to the user: text and no tool call."""
        return not self.message.tool_calls and bool(self.message.text.strip())

    def response_to(self, call: ToolCall) -> ToolCallResponse | None:
        """The response to one of this step's calls: by id, or by position where the ids are missing."""
        if call.id is not None:
            for response in self.responses:
                if response.id == call.id:
                    return response
        position = next((i for i, own in enumerate(self.message.tool_calls) if own is call), None)
        if position is not None and position < len(self.responses):
            response = self.responses[position]
            return response if response.id is None or call.id is None else None
        return None


@dataclass(frozen=True, kw_only=True)
class Turn:
    """From the user's message (several where nobody answered in between) to the assistant's reply."""

    index: int
    user: tuple[Message, ...]
    steps: tuple[Step, ...]


@dataclass(frozen=True, kw_only=True)
class Trace:
    """A dialogue: the runs of one conversation in order. `outcomes` are results known from elsewhere, such as a
    benchmark's own reward.

    >>> from cm2_agent import Message, Run, Trace
    >>> hello = (Message.of("user", "Hello"), Message.of("assistant", "Hello, how can I help?"))
    >>> trace = Trace.of(Run(id="run-1", messages=hello))
    >>> len(trace.turns), trace.turns[0].user[0].text, trace.steps[0].is_reply
    (1, 'Hello', True)
    """

    id: str
    runs: tuple[Run, ...]
    outcomes: Mapping[str, float | None] = field(default_factory=dict)

    @classmethod
    def of(cls, run: Run) -> Trace:
        """The trace of a single run."""
        return cls(id=run.trace_id, runs=(run,))

    @cached_property
    def attributes(self) -> dict[str, JSON]:
        """The runs' attributes, later runs over earlier ones."""
        return {key: value for run in self.runs for key, value in run.attributes.items()}

    @property
    def task_id(self) -> str | None:
        value = self.attributes.get(TASK_ID)
        return None if value is None else str(value)

    @property
    def failure(self) -> RunFailure | None:
        """Why the dialogue ended badly: the failure of its last run."""
        return self.runs[-1].failure if self.runs else None

    @cached_property
    def messages(self) -> tuple[Message, ...]:
        return tuple(message for run in self.runs for message in run.messages)

    @cached_property
    def turns(self) -> tuple[Turn, ...]:
        """The dialogue cut at user messages. A user message that no assistant step answers opens no
        turn."""
        return _turns(self.runs)

    @property
    def steps(self) -> tuple[Step, ...]:
        return tuple(step for turn in self.turns for step in turn.steps)

    @property
    def calls(self) -> tuple[ModelCall, ...]:
        return tuple(call for run in self.runs for call in run.calls)

    @property
    def policy(self) -> str | None:
        """The one policy version that wrote every step, None where it is unknown or there were several."""
        versions = {call.model_version for call in self.calls if call.message is not None}
        return versions.pop() if len(versions) == 1 else None

    def with_run(self, run: Run) -> Trace:
        """The trace with one more run, or with the run of that id replaced."""
        others = tuple(other for other in self.runs if other.id != run.id)
        return replace(self, runs=(*others, run))

    def to_json(self) -> dict[str, JSON]:
        return {"id": self.id, "runs": [run.to_json() for run in self.runs], "outcomes": dict(self.outcomes)}

    @classmethod
    def from_json(cls, data: Mapping[str, JSON]) -> Trace:
        """Raises TraceError on a malformed record."""
        if not isinstance(data, Mapping) or not isinstance(data.get("id"), str):
            raise TraceError(f"not a trace: {str(data)[:80]!r}; expected the object that Trace.to_json writes")
        return cls(
            id=data["id"],
            runs=tuple(Run.from_json(run) for run in data.get("runs", ())),
            outcomes=dict(data.get("outcomes") or {}),
        )


def _turns(runs: tuple[Run, ...]) -> tuple[Turn, ...]:
    turns: list[Turn] = []
    users: list[Message] = []
    steps: list[Step] = []
    number = 0

    def close() -> None:
        nonlocal users, steps
        if steps:
            turns.append(Turn(index=len(turns), user=tuple(users), steps=tuple(steps)))
            users, steps = [], []

    spoken = False  # a greeting before the first user message belongs to that user's turn
    for run in runs:
        writers = {call.message: call for call in run.calls if call.message is not None}
        for position, message in enumerate(run.messages):
            if message.role == "user":
                if spoken:
                    close()
                spoken = True
                users.append(message)
            elif message.role == "assistant":
                step = Step(
                    turn=len(turns), index=len(steps), number=number, message=message, call=writers.get(position)
                )
                steps.append(step)
                number += 1
            elif message.role == "tool" and steps:
                steps[-1] = replace(steps[-1], responses=(*steps[-1].responses, *message.responses))
    close()
    return tuple(turns)


def _listed(values: tuple[Any, ...] | None) -> list[Any] | None:
    return None if values is None else list(values)


def _tupled(values: Any) -> Any:
    return None if values is None else tuple(values)
