"""What one invocation of a graph did: its model calls, its tools' executions, and the run that holds both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from cm2_agent.errors import TraceError
from cm2_agent.types.json_values import JSON
from cm2_agent.types.messages import Message, ToolSpec

Status: TypeAlias = Literal["ok", "error", "interrupted", "cancelled"]
UNFINISHED = "did not end before its run did"
"""The error of a call or an execution that the end of its run broke off."""
NOT_TO_LEARN = "weight 0"
"""Under `untrainable` in the sampling of a call that is read and never trained on: its recording says so."""


# Settings that shape the distribution in ways that a trainer does not follow, each with the values that shape nothing.
_PLAIN: Mapping[str, tuple[JSON, ...]] = {
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "repetition_penalty": (None, 1),
    "length_penalty": (None, 1),
    "bias": (None, {}, []),
    "grammar": (None, False, "", {}),
    "tool_choice": (None, "auto", "none"),
    "n": (None, 1),
    "best_of": (None, 1),
    "beam_search": (None, False),
    "min_tokens": (None, 0),
    "ignore_eos": (None, False),
}
# Those that cut the distribution short: processed logprobs are those of what is left.
_WHOLE: Mapping[str, tuple[JSON, ...]] = {
    "top_p": (None, 1),
    "top_k": (None, 0, -1),
    "min_p": (None, 0),
    "typical_p": (None, 1),
}


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
        logprobs: One natural logarithm for each sampled token, in float32 precision. These three are tuples, or what
            compares and hashes as one: a stored dialogue's calls share the memory of the tokens that they share.
        sampling: temperature, top_p, top_k, max_tokens, penalties, bias, grammar and the like of this call, as far as
            known; under `logprobs` whether they are `processed` (after temperature and truncation), `scaled` (after
            temperature alone), `raw` or `unknown`; under `untrainable` why the model itself says that its token ids are
            not to be trained on.
        usage: Tokens by kind: `input_tokens`, `output_tokens`, and of those `cache_read`, `cache_creation`,
            `reasoning`, … as far as reported.
        finish_reason: The provider's.
        error: Why the call failed.
        message: Index in the run's messages of the assistant message that this call wrote, None for a call off the main
            line (a sub-agent's).
        agent: The agent whose step this is, where a graph holds several; None for the only one that was given no name.
        changed: What was done to the answer before it counted: `edited` (its calls ran with other arguments) or
            `rewritten` (another text reached the user); `redacted` where personal data in answer or prompt was replaced
            before it was stored. None where it counted as it was sampled.
        started: Nanoseconds since the epoch.
        ended: Nanoseconds since the epoch.
    """

    span_id: str
    model: str | None = None
    model_version: str | None = None
    input: tuple[Message, ...] = ()
    output: Message | None = None
    tools: tuple[ToolSpec, ...] = ()
    prompt_ids: Sequence[int] | None = None
    completion_ids: Sequence[int] | None = None
    logprobs: Sequence[float] | None = None
    sampling: Mapping[str, JSON] = field(default_factory=dict)
    usage: Mapping[str, int] = field(default_factory=dict)
    finish_reason: str | None = None
    error: str | None = None
    message: int | None = None
    agent: str | None = None
    changed: Literal["edited", "rewritten", "redacted"] | None = None
    started: int = 0
    ended: int = 0

    @property
    def untrainable(self) -> str | None:
        """Why GRPO cannot train on this call (docs/method.md, "What can be trained on"), or None where it can."""
        if self.error is not None:
            return "failed call"
        if self.changed is not None:
            return f"{self.changed} after it was sampled"
        if self.sampling.get("untrainable"):
            return str(self.sampling["untrainable"])
        if self.prompt_ids is None or self.completion_ids is None:
            return "no token ids"
        if not self.completion_ids:
            return "empty completion"
        if self.logprobs is None or len(self.logprobs) != len(self.completion_ids):
            return "no logprobs"
        read, wrote = self.usage.get("input_tokens"), self.usage.get("output_tokens")
        if read not in (None, len(self.prompt_ids)) or wrote not in (None, len(self.completion_ids)):
            return "token ids disagree with usage"
        temperature = self.sampling.get("temperature")
        if temperature is None:
            return "unknown temperature"
        if temperature == 0:
            return "temperature 0"
        shaped = [name for name, plain in _PLAIN.items() if self.sampling.get(name) not in plain]
        if shaped:
            return f"not plain sampling: {', '.join(shaped)}"
        kind = self.sampling.get("logprobs")
        truncated = [name for name, plain in _WHOLE.items() if self.sampling.get(name) not in plain]
        if kind == "processed" or (not truncated and (temperature == 1 or kind == "scaled")):
            return None
        names = f": {', '.join(truncated)}" if truncated else ""
        if kind == "unknown":
            return f"unknown whether logprobs are those of the sampling distribution{names or ': temperature'}"
        return f"logprobs are not those of the sampling distribution{names}"

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
            **_given(agent=self.agent, changed=self.changed),
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
    agent: str | None = None
    """The agent that called it, likewise (`ModelCall.agent`)."""
    artifact: JSON = None
    """What the tool gave the application beside its answer (LangChain's artifact, MCP's structured content)."""
    started: int = 0
    ended: int = 0

    def to_json(self) -> dict[str, JSON]:
        optional = ("agent", "artifact")
        return {name: value for name, value in self.__dict__.items() if value is not None or name not in optional}

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
class Branch:
    """Where a trace left another: the two share the first `messages` messages of the dialogue of trace `parent`.

    `reason` is `sampled` where the branches are samples of one policy from the same state, and may be compared;
    `person` where somebody regenerated an answer or edited a message."""

    parent: str
    messages: int
    reason: Literal["sampled", "person"] = "person"

    def to_json(self) -> dict[str, JSON]:
        return dict(self.__dict__)


@dataclass(frozen=True, kw_only=True)
class StateMark:
    """A state that a run's graph stood in: `hash` names the state's messages, `messages` counts those of the run's own
    that had been added by then. A later run that begins in this state continues from here."""

    hash: str
    messages: int


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
        history: What the run was shown of the dialogue before that, where it is not in the trace's earlier runs: the
            beginning of a branch, or of a conversation that the caller keeps; what was said elsewhere since.
        input: The graph's input as JSON.
        output: The graph's output as JSON.
        trace: The trace's id where it is neither the thread's nor the run's own: a branch of a thread, or a stored
            conversation that this run continues.
        branch: Where the trace left another one; given by its first run.
        states: The states that the graph's messages stood in, from the run's start to its end.
        user: The application's id of the user, from the config's metadata, `configurable` or context (`user_id` and its
            like).
        session: The application's id of the session (`session_id`, `conversation_id` and their like).
        tags: The caller's tags.
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
    history: tuple[Message, ...] = ()
    input: JSON = None
    output: JSON = None
    trace: str | None = None
    branch: Branch | None = None
    states: tuple[StateMark, ...] = ()
    user: str | None = None
    session: str | None = None
    tags: tuple[str, ...] = ()
    calls: tuple[ModelCall, ...] = ()
    tools: tuple[ToolRun, ...] = ()
    attributes: Mapping[str, JSON] = field(default_factory=dict)
    started: int = 0
    ended: int = 0

    @property
    def trace_id(self) -> str:
        """The trace this run belongs to: its conversation, a branch of it, or itself alone."""
        if self.trace is not None:
            return self.trace
        return self.thread if self.thread is not None else self.id

    @property
    def metadata(self) -> dict[str, JSON]:
        """The caller's metadata: the attributes that are not ours."""
        return {name: value for name, value in self.attributes.items() if not name.startswith("cm2.")}

    def to_json(self) -> dict[str, JSON]:
        return {
            "id": self.id,
            "thread": self.thread,
            "name": self.name,
            "status": self.status,
            "failure": None if self.failure is None else self.failure.to_json(),
            "messages": [message.to_json() for message in self.messages],
            **_given(
                history=[message.to_json() for message in self.history] or None,
                input=self.input,
                output=self.output,
                trace=self.trace,
                branch=None if self.branch is None else self.branch.to_json(),
                states=[[mark.hash, mark.messages] for mark in self.states] or None,
                user=self.user,
                session=self.session,
                tags=list(self.tags) or None,
            ),
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
            failure, branch = known.pop("failure", None), known.pop("branch", None)
            return cls(
                failure=None if failure is None else RunFailure(**failure),
                messages=tuple(Message.from_json(message) for message in known.pop("messages", ())),
                history=tuple(Message.from_json(message) for message in known.pop("history", ())),
                branch=None if branch is None else Branch(**branch),
                states=tuple(StateMark(hash=mark[0], messages=mark[1]) for mark in known.pop("states", ())),
                tags=tuple(known.pop("tags", ())),
                calls=tuple(ModelCall.from_json(call) for call in known.pop("calls", ())),
                tools=tuple(ToolRun.from_json(tool) for tool in known.pop("tools", ())),
                **known,
            )
        except (TypeError, ValueError) as error:
            raise TraceError(f"not a run: {error}; expected the object that Run.to_json writes") from error


def _listed(values: Sequence[Any] | None) -> list[Any] | None:
    return None if values is None else list(values)


def _tupled(values: Any) -> Any:
    return None if values is None else tuple(values)


def _given(**values: JSON) -> dict[str, JSON]:
    """The values that there are: a run without them is written as it was before they existed."""
    return {name: value for name, value in values.items() if value is not None}
