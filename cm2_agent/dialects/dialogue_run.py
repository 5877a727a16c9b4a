"""One run out of the spans of one agent, or of one dialogue outside of any."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import is_

from cm2_agent.dialects.nameless_executions import with_call_ids
from cm2_agent.dialects.prompt_dialogue import PromptDialogue
from cm2_agent.dialects.readings import AgentReading, ChatReading, Facts, ToolReading
from cm2_agent.dialects.seen_message import SeenMessage
from cm2_agent.dialects.span_failure import failure_of, span_error, stated_status, status_of
from cm2_agent.dialects.span_record import SpanRecord
from cm2_agent.dialects.span_tree import Node
from cm2_agent.types.json_values import JSON, canonical_json
from cm2_agent.types.messages import Message, ToolCallResponse
from cm2_agent.types.run import ModelCall, Run, Status, ToolRun
from cm2_agent.types.run_attributes import SYSTEM
from cm2_agent.types.tool_errors import FAILURE_UNKNOWN


@dataclass(frozen=True, kw_only=True)
class Extent:
    """The spans of one run: its agent's, if it has one, and those of model calls, tools and agents below. `around` is
    the topmost span of the trace where no agent holds the calls."""

    agent: Node | None = None
    inner: tuple[Node, ...] = ()
    around: SpanRecord | None = None

    @classmethod
    def of(cls, agent: Node, below: Sequence[Node]) -> Extent:
        return cls(agent=agent, inner=tuple(below))

    @classmethod
    def loose(cls, nodes: Sequence[Node], around: SpanRecord | None) -> Extent:
        return cls(inner=tuple(sorted(nodes, key=lambda node: node.span.start)), around=around)

    def nodes(self) -> Iterator[Node]:
        if self.agent is not None:
            yield self.agent
        yield from self.inner


@dataclass(eq=False)
class _Chat:
    node: Node
    reading: ChatReading
    input: Sequence[SeenMessage]
    output: SeenMessage | None
    agent: str | None = None


@dataclass(eq=False)
class _Tool:
    node: Node
    reading: ToolReading
    error: str | None
    agent: str | None = None
    interrupted: bool = False

    @property
    def name(self) -> str:
        return self.reading.name

    @property
    def call_id(self) -> str | None:
        return self.reading.call_id

    @property
    def result(self) -> JSON:
        return self.reading.result


@dataclass(eq=False)
class _Around:
    input_messages: Sequence[SeenMessage] | None
    final_messages: Sequence[SeenMessage] | None
    facts: Mapping[str, JSON] = field(default_factory=dict)
    resumed: bool = False
    interrupted: bool = False


def build(extent: Extent) -> Run | None:
    """The run; None where no span of it holds a message. Its id is the trace id and the span id of its first span, so
    that the same spans give the same run again."""
    top = extent.agent if extent.agent is not None else extent.inner[0]
    agent = top.reading if isinstance(top.reading, AgentReading) else None
    chats = _chats(extent.inner)
    tools = [_tool(node, reading) for node, reading in with_call_ids(extent.inner)]
    _name_agents(extent, chats, tools)
    status = _status(extent, agent)
    facts = _facts(extent)
    own = [chat for chat in chats if not chat.node.in_tool]
    given = () if agent is None else agent.input
    if agent is not None and not given and not any(chat.input or chat.output for chat in own):
        given = _since_answer(agent.output)  # the calls show nothing, as where the first one failed
        own = []
    outer = [tool for tool in tools if not tool.node.in_tool]
    around = _Around(
        _seen(given) if given else None,
        _final(agent, own),
        facts.attributes,
        resumed=agent is None,
        interrupted=status == "interrupted",
    )
    entries = PromptDialogue(around, own, outer).entries
    added = [entry for entry in entries if entry.added]
    written = {id(entry.call): number for number, entry in enumerate(added) if entry.call is not None}
    messages = _marked(tuple([entry.seen.message for entry in added]), tools)
    if not messages:
        return None
    attributes = dict(facts.attributes)
    if agent is not None and _writes_its_prompt(agent, messages):
        attributes[SYSTEM] = "graph"
    spans = [node.span for node in extent.nodes()]
    return Run(
        id=f"{top.span.trace_id}{top.span.span_id}",
        thread=facts.thread,
        name=_run_name(extent, agent),
        status=status,
        failure=failure_of(None if agent is None else top.span, extent.inner) if status == "error" else None,
        messages=messages,
        history=tuple([entry.seen.message for entry in entries if not entry.added]),
        user=facts.user,
        session=facts.session,
        tags=facts.tags,
        calls=tuple([_model_call(chat, written.get(id(chat))) for chat in chats]),
        tools=tuple([_tool_run(tool) for tool in tools]),
        attributes=attributes,
        started=top.span.start if agent is not None else min(span.start for span in spans),
        ended=top.span.end if agent is not None else max(span.end for span in spans),
    )


def _status(extent: Extent, agent: AgentReading | None) -> Status:
    """How the run ended: as our own exporter says, by the span of its agent, or by its last model call."""
    if agent is not None and extent.agent is not None:
        return stated_status(agent.status) or status_of(extent.agent.span)
    chats = [node.span for node in extent.inner if isinstance(node.reading, ChatReading)]
    return status_of((chats or [node.span for node in extent.inner])[-1])


def _chats(nodes: Sequence[Node]) -> list[_Chat]:
    """The model calls. What a prompt has in common with the one before it, message by message, is there once."""
    chats: list[_Chat] = []
    asked: Sequence[Message] = ()
    seen: list[SeenMessage] = []
    for node in nodes:
        reading = node.reading
        if isinstance(reading, ChatReading):
            goes_on = len(asked) <= len(reading.input) and all(map(is_, asked, reading.input))
            seen = [*seen, *_seen(reading.input[len(asked) :])] if goes_on else _seen(reading.input)
            asked = reading.input
            output = None if reading.output is None else SeenMessage(reading.output, None)
            chats.append(_Chat(node, reading, seen, output))
    return chats


def _tool(node: Node, reading: ToolReading) -> _Tool:
    error = span_error(node.span)
    if error is None and reading.failed:
        error = reading.result if isinstance(reading.result, str) else canonical_json(reading.result)
    return _Tool(node, reading, error, interrupted=status_of(node.span) == "interrupted")


def _seen(messages: Sequence[Message]) -> list[SeenMessage]:
    return [SeenMessage(message, None) for message in messages]


def _since_answer(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The messages since the assistant's last one."""
    places = [place for place, message in enumerate(messages) if message.role == "assistant"]
    return tuple(messages[places[-1] + 1 :] if places else messages)


def _final(agent: AgentReading | None, chats: Sequence[_Chat]) -> list[SeenMessage] | None:
    """The messages that the agent ended with, where they show what its model calls answered: else an output is
    something that was made of the answers."""
    if agent is None or not agent.output:
        return None
    final = _seen(agent.output)
    answers = {chat.output.key for chat in chats if chat.output is not None}
    if not answers:
        return _seen([*agent.input, *agent.output]) if agent.input and agent.output[0].role == "assistant" else final
    return final if any(seen.key in answers for seen in final) else None


def _writes_its_prompt(agent: AgentReading, messages: Sequence[Message]) -> bool:
    given = any(message.role == "system" for message in agent.input)
    return not given and any(message.role == "system" for message in messages)


def _marked(messages: tuple[Message, ...], tools: Sequence[_Tool]) -> tuple[Message, ...]:
    """The messages with the answers marked that tell of a failed execution: spans show the answers as texts alone."""
    ran: defaultdict[str, list[_Tool]] = defaultdict(list)
    for tool in tools:
        if tool.call_id is not None:
            ran[tool.call_id].append(tool)
    if not any(tool.error is not None for own in ran.values() for tool in own):
        return messages
    marked: list[Message] = []
    for message in messages:
        part = message.parts[0] if message.role == "tool" and message.parts else None
        if isinstance(part, ToolCallResponse) and part.id is not None and ran[part.id]:
            failed = ran[part.id].pop(0).error is not None
            if failed and not part.error:
                extra = {key: value for key, value in part.extra.items() if key != FAILURE_UNKNOWN}
                message = replace(message, parts=(replace(part, error=True, extra=extra), *message.parts[1:]))
        marked.append(message)
    return tuple(marked)


def _facts(extent: Extent) -> Facts:
    """The facts of the run: the agent's own, else the first of its spans that says so."""
    every = [node.reading.facts for node in extent.nodes()]
    attributes = every[0].attributes if extent.agent is not None else {}
    return Facts(
        thread=next((facts.thread for facts in every if facts.thread is not None), None),
        user=next((facts.user for facts in every if facts.user is not None), None),
        session=next((facts.session for facts in every if facts.session is not None), None),
        tags=next((facts.tags for facts in every if facts.tags), ()),
        attributes=attributes or next((facts.attributes for facts in every if facts.attributes), {}),
    )


def _run_name(extent: Extent, agent: AgentReading | None) -> str:
    if agent is not None:
        return agent.name
    if extent.around is not None and extent.around.name:
        return extent.around.name
    service = extent.inner[0].span.resource.get("service.name")
    return service if isinstance(service, str) and service and not service.startswith("unknown_service") else "chat"


def _name_agents(extent: Extent, chats: Sequence[_Chat], tools: Sequence[_Tool]) -> None:
    """Whose steps they are, where the run holds several agents; a tool is used by whoever called it."""
    main = extent.agent.reading if extent.agent is not None else None
    own = main.name if isinstance(main, AgentReading) and main.named else None
    callers: dict[str, str | None] = {}
    for chat in chats:
        chat.agent = _agent_above(chat.node) or own
        for call in () if chat.reading.output is None else chat.reading.output.tool_calls:
            if call.id is not None:
                callers[call.id] = chat.agent
    for tool in tools:
        known = tool.call_id is not None and tool.call_id in callers
        tool.agent = callers[tool.call_id] if known and tool.call_id is not None else _agent_above(tool.node) or own
    everyone: list[_Chat | _Tool] = [*chats, *tools]
    if {one.agent for one in everyone} == {own}:  # the only one: the run has its name
        for one in everyone:
            one.agent = None


def _agent_above(node: Node) -> str | None:
    """The nearest agent by its name; what a tool does without one goes by the tool's."""
    for above in node.above():
        reading = above.reading
        if isinstance(reading, AgentReading) and reading.named:
            return reading.name
        if isinstance(reading, ToolReading) and isinstance(node.reading, ChatReading):
            return reading.name
    return None


def _model_call(chat: _Chat, message: int | None) -> ModelCall:
    reading, span = chat.reading, chat.node.span
    error = span_error(span)
    if error is None and reading.output is None:
        error = "no answer was recorded"
    return ModelCall(
        span_id=span.span_id,
        model=reading.model,
        model_version=reading.model_version,
        input=reading.input,
        output=reading.output,
        tools=reading.tools,
        prompt_ids=reading.prompt_ids,
        completion_ids=reading.completion_ids,
        logprobs=reading.logprobs,
        sampling=reading.sampling,
        usage=reading.usage,
        finish_reason=reading.finish_reason,
        error=error,
        message=message,
        agent=chat.agent,
        started=span.start,
        ended=span.end,
    )


def _tool_run(tool: _Tool) -> ToolRun:
    reading, span = tool.reading, tool.node.span
    return ToolRun(
        span_id=span.span_id,
        name=reading.name,
        call_id=reading.call_id,
        arguments=reading.arguments,
        result=None if tool.error is not None else reading.result,
        error=tool.error,
        backend=reading.backend,
        fault=reading.fault,
        agent=tool.agent,
        started=span.start,
        ended=span.end,
    )


__all__ = ["Extent", "build"]
