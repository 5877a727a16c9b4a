"""A run without personal data: what a redactor makes of everything in it that user, agent and tools wrote."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cm2_agent.redaction.redactor import Redactor
from cm2_agent.types.json_values import JSON
from cm2_agent.types.messages import (
    Blob,
    Message,
    Other,
    Part,
    Reasoning,
    Text,
    ToolCall,
    ToolCallResponse,
    ToolSpec,
    Uri,
)
from cm2_agent.types.run import ModelCall, Run, RunFailure, ToolRun
from cm2_agent.types.trace import Trace

__all__ = ["redacted_message", "redacted_run", "redacted_trace"]


def redacted_run(run: Run, redactor: Redactor) -> Run:
    """The run with its messages, history, prompts, tool arguments, results and artifacts, input and output, metadata,
    tags and error texts redacted.

    The ids of thread, user, session, trace and branch stay what a person's traces are found and erased by: what is
    personal in them, such as an e-mail address, is replaced by what joins later runs to them (`Redactor.redact_id`).
    Pictures and files by value stay too; nothing here looks into them. Token ids spell the text: a model call whose
    prompt, answer or tools changed loses its ids and logprobs, and cannot be trained on.

    >>> from cm2_agent import Message, Redactor, Run
    >>> run = Run(id="r1", user="u7", messages=(Message.of("user", "I am ada@x.org"),))
    >>> redacted = redacted_run(run, Redactor(key=b"a secret of yours"))
    >>> "ada@x.org" in str(redacted), redacted.user
    (False, 'u7')
    """
    return _Redaction(redactor).run(run)


def redacted_trace(trace: Trace, redactor: Redactor) -> Trace:
    """The trace with its runs redacted; its id and outcomes stay."""
    return replace(trace, runs=tuple(redacted_run(run, redactor) for run in trace.runs))


def redacted_message(message: Message, redactor: Redactor) -> Message:
    """The message with its texts, tool arguments and results redacted; the same object where nothing is replaced."""
    return _Redaction(redactor).message(message)


class _Redaction:
    """One pass over a run. The prompts of its calls share their messages and tools: each is redacted once."""

    def __init__(self, redactor: Redactor) -> None:
        self.redactor, self.text, self.json = redactor, redactor.redact, redactor.redact_json
        self._known: dict[int, tuple[Any, Any]] = {}

    def run(self, run: Run) -> Run:
        failure = run.failure
        return replace(
            run,
            thread=self.id(run.thread),
            user=self.id(run.user),
            session=self.id(run.session),
            trace=self.id(run.trace),
            branch=None
            if run.branch is None
            else replace(run.branch, parent=self.redactor.redact_id(run.branch.parent)),
            failure=None if failure is None else RunFailure(kind=failure.kind, message=self.text(failure.message)),
            messages=self.messages(run.messages),
            history=self.messages(run.history),
            input=self.json(run.input),
            output=self.json(run.output),
            tags=tuple(map(self.text, run.tags)),
            calls=tuple(map(self.call, run.calls)),
            tools=tuple(map(self.tool, run.tools)),
            attributes=self.attributes(run),
        )

    def attributes(self, run: Run) -> dict[str, JSON]:
        """The caller's metadata, and of our own attributes those that hold messages: the others are ids and names."""
        ours = {
            name: value if isinstance(value, str | int | float) else self.json(value)
            for name, value in run.attributes.items()
            if name.startswith("cm2.")
        }
        return {**ours, **self.json(run.metadata)}

    def messages(self, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        return tuple(map(self.message, messages))

    def message(self, message: Message) -> Message:
        known = self._known.get(id(message))
        if known is not None:
            return known[1]  # type: ignore[no-any-return]  # of the type that went in
        new = replace(
            message,
            parts=tuple(map(self.part, message.parts)),
            name=self.optional(message.name),
            extra=self.json(message.extra),
        )
        new = message if new == message else new
        self._known[id(message)] = (message, new)
        return new

    def part(self, part: Part) -> Part:
        match part:
            case Text() | Reasoning():
                return replace(part, content=self.text(part.content), extra=self.json(part.extra))
            case ToolCall():
                return replace(
                    part, id=self.optional(part.id), arguments=self.json(part.arguments), extra=self.json(part.extra)
                )
            case ToolCallResponse():
                return replace(
                    part, id=self.optional(part.id), response=self.json(part.response), extra=self.json(part.extra)
                )
            case Uri():
                by_value = part.uri[:5].lower() == "data:"
                return replace(part, uri=part.uri if by_value else self.text(part.uri), extra=self.json(part.extra))
            case Blob():
                return replace(part, extra=self.json(part.extra))
            case Other():
                return Other(data={**self.json(part.data), **({"type": part.type} if "type" in part.data else {})})

    def spec(self, spec: ToolSpec) -> ToolSpec:
        known = self._known.get(id(spec))
        if known is None:
            new = replace(spec, description=self.text(spec.description), parameters=self.json(spec.parameters))
            known = self._known[id(spec)] = (spec, spec if new == spec else new)
        return known[1]

    def call(self, call: ModelCall) -> ModelCall:
        new = replace(
            call,
            input=self.messages(call.input),
            output=None if call.output is None else self.message(call.output),
            tools=tuple(map(self.spec, call.tools)),
            error=self.optional(call.error),
        )
        if (new.input, new.output, new.tools) == (call.input, call.output, call.tools):
            return new
        return replace(new, prompt_ids=None, completion_ids=None, logprobs=None, changed=call.changed or "redacted")

    def tool(self, tool: ToolRun) -> ToolRun:
        return replace(
            tool,
            call_id=self.optional(tool.call_id),
            arguments=self.json(tool.arguments),
            result=self.json(tool.result),
            artifact=self.json(tool.artifact),
            error=self.optional(tool.error),
        )

    def id(self, text: str | None) -> str | None:
        return None if text is None else self.redactor.redact_id(text)

    def optional(self, text: str | None) -> str | None:
        return None if text is None else self.text(text)
