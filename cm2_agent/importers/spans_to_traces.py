"""The spans of one trace of another tool into dialogues, and the values on them (what a model was asked, what it
answered) into messages."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TypeAlias

from cm2_agent.dialects import semconv
from cm2_agent.dialects.conversations import Conversations
from cm2_agent.dialects.span_record import SpanRecord
from cm2_agent.dialects.span_runs import runs_of
from cm2_agent.errors import TraceError
from cm2_agent.importers.answer_pairs import answer_of
from cm2_agent.importers.chat import mapping_of
from cm2_agent.importers.failures import by_executions, marked
from cm2_agent.importers.json_records import parse_json
from cm2_agent.importers.message_styles import any_messages, style_of
from cm2_agent.types.imported import ImportedDialogue
from cm2_agent.types.json_values import JSON
from cm2_agent.types.messages import Message
from cm2_agent.types.run import Run
from cm2_agent.types.run_attributes import SOURCE
from cm2_agent.types.trace import Trace

PROJECT = "project.id"
"""In a span's resource: the id of the tool's project that it lies in."""
_ASKED = ("messages", "input", "prompt", "prompts", "question", "query", "contents")
_INSTRUCTIONS = ("system", "instructions", "system_prompt", "systemInstruction", "system_instruction")
_WHOLE = frozenset({"candidates", "generations", "choices"})
"""Keys of a model's whole answers."""
_ANSWERED = ("messages", "output", "answer", "response", "completion", "text")


@dataclass(frozen=True, kw_only=True)
class TraceSpans:
    """One trace as its reader found it: its spans, what it was worth, the `tool` that kept it, where verdicts can go
    back there, and of the executions that tell it (by their spans' ids) whether they failed."""

    spans: Sequence[SpanRecord]
    outcomes: Mapping[str, float] = field(default_factory=dict)
    tool: str | None = None
    failed: Mapping[str, bool] = field(default_factory=dict)


ReadSpans: TypeAlias = Callable[[JSON], TraceSpans]
"""What a reader of spans is: the rows of one trace → its spans. It raises TraceError."""


class SpanTraces:
    """The importer of one file of spans, whose traces come in the order of their time. Model calls outside of agents
    are often a trace each: what goes on with an earlier dialogue of the file is a run of that one's trace."""

    def __init__(self, read: ReadSpans) -> None:
        self._read = read
        self._known = Conversations()

    def __call__(self, record: JSON, *, source: str, checklists: bool) -> list[ImportedDialogue]:
        """The rows of one trace → its dialogues, the runs of one conversation together, and on each run where it lies
        in the tool that kept it (SOURCE). Raises TraceError where there is none, with what was not understood."""
        given = self._read(record)
        found = runs_of(given.spans, conversations=self._known)
        if not found.runs:
            reasons = "; ".join(f"{reason} ({count})" for reason, count in list(found.unread.items())[:3])
            raise TraceError(f"its spans hold no dialogue: {reasons or 'no model call, tool or agent among them'}")
        traces: dict[str, Trace] = {}
        for run in found.runs if given.tool is None else _placed(found.runs, given.spans, given.tool):
            run = by_executions(run, given.failed)
            known = traces.get(run.trace_id)
            traces[run.trace_id] = Trace(id=run.trace_id, runs=(run,)) if known is None else known.with_run(run)
        outcomes = dict(given.outcomes)
        return [ImportedDialogue(trace=Trace(id=one.id, runs=one.runs, outcomes=outcomes)) for one in traces.values()]


def _placed(runs: Iterable[Run], spans: Sequence[SpanRecord], tool: str) -> Iterator[Run]:
    """The runs, each with the ids of its trace and of the span above all its spans."""
    by_id = {(span.trace_id, span.span_id): span for span in spans}
    first = {f"{span.trace_id}{span.span_id}": span for span in spans}
    for run in runs:
        top, passed = first[run.id], set[str]()
        while top.parent_id is not None and top.span_id not in passed:
            passed.add(top.span_id)
            top = by_id.get((top.trace_id, top.parent_id), top)
        place: dict[str, JSON] = {"tool": tool, "trace": top.trace_id, "span": top.span_id}
        if isinstance(project := top.resource.get(PROJECT), str):
            place["project"] = project
        yield replace(run, attributes={**run.attributes, SOURCE: place})


def chat_attributes(asked: JSON, answered: JSON, *, tools: JSON = None, model: JSON = None) -> dict[str, JSON]:
    """The GenAI attributes of a model call. Raises TraceError where its messages cannot be read."""
    found: dict[str, JSON] = {
        semconv.OPERATION: semconv.CHAT,
        semconv.INPUT_MESSAGES: [message.to_json() for message in asked_messages(asked)],
        semconv.OUTPUT_MESSAGES: [message.to_json() for message in answered_messages(answered)],
    }
    tools = mapping_of(asked).get("tools") if tools is None else tools
    if isinstance(tools, list) and tools:
        found[semconv.TOOL_DEFINITIONS] = tools
    if isinstance(model, str):
        found[semconv.REQUEST_MODEL] = model
    return found


def tool_attributes(name: JSON, arguments: JSON, result: JSON, identity: JSON = None) -> dict[str, JSON]:
    """The GenAI attributes of a tool's execution."""
    answer = unpacked(result)
    if isinstance(answer, Mapping) and set(answer) == {"output"}:
        answer = answer["output"]
    if isinstance(answer, Mapping) and style_of([answer]) is not None:
        (message,) = any_messages([answer])
        responses = message.responses
        answer = responses[0].response if responses else message.text
        identity = identity or (responses[0].id if responses else None)
    return {
        semconv.OPERATION: semconv.EXECUTE_TOOL,
        semconv.TOOL_NAME: str(name),
        semconv.TOOL_CALL_ID: identity,
        semconv.TOOL_ARGUMENTS: unpacked(arguments),
        semconv.TOOL_RESULT: answer,
    }


def told_failure(result: JSON) -> bool | None:
    """Whether the message that an execution gave is marked as failed; None where it is no message, or unmarked."""
    answer = unpacked(result)
    return marked(answer) if isinstance(answer, Mapping) and style_of([answer]) is not None else None


def unpacked(value: JSON) -> JSON:
    """A value; of a text that is a JSON object or list, or Python's spelling of one, that. Nothing is run."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("{", "["):
        return value
    try:
        return parse_json(value, strict=False)
    except ValueError:
        pass
    try:
        read = ast.literal_eval(value.strip()) if len(value) < 100_000 else value
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        return value
    return read if isinstance(read, dict | list) else value


def asked_messages(value: JSON) -> tuple[Message, ...]:
    """What a model was asked: messages, lists of lists of them, an object that holds them, or text of the user's."""
    return _messages(value, _ASKED, "user")


def answered_messages(value: JSON) -> tuple[Message, ...]:
    """What a model answered, likewise; a chat completion, a response, LangChain's generations."""
    value = unpacked(value)
    known = mapping_of(value)
    if isinstance(known.get("candidates"), list) and known["candidates"]:  # Gemini's
        return _messages(mapping_of(known["candidates"][0]).get("content"), _ANSWERED, "assistant")
    generations = known.get("generations")
    while isinstance(generations, list) and generations and isinstance(generations[0], list):
        generations = generations[0]
    if isinstance(generations, list) and generations:
        first = mapping_of(generations[0])
        return _messages(first.get("message", first.get("text")), _ANSWERED, "assistant")
    if isinstance(known.get("choices"), list) or isinstance(known.get("output"), list):
        return answer_of(value)
    if isinstance(value, list) and value and all("message" in mapping_of(one) for one in value):
        return answer_of({"choices": value})
    return _messages(value, _ANSWERED, "assistant")


def _messages(value: JSON, keys: tuple[str, ...], role: str) -> tuple[Message, ...]:
    value = unpacked(value)
    while isinstance(value, list) and len(value) == 1 and isinstance(value[0], list):
        value = value[0]
    if value is None or value == "" or value == []:
        return ()
    if isinstance(value, str):
        return any_messages([{"role": role, "content": value}])
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return any_messages([{"role": role, "content": one} for one in value])
    if isinstance(value, Mapping):
        if style_of([value]) is not None:
            return any_messages([value])
        key = next((key for key in keys if value.get(key)), None)
        if key is not None:
            before = _before(value) if role == "user" else ()
            found = _messages(value[key], keys, role)
            return (*(() if found[:1] and found[0].role == "system" else before), *found)
        texts = [one for one in value.values() if isinstance(one, str) and one]
        if len(texts) == 1:  # the one field of a chain
            return any_messages([{"role": role, "content": texts[0]}])
        if "content" in value:
            return any_messages([{**value, "role": role}])
        raise TraceError(f"holds no messages: an object with the keys {', '.join(map(str, list(value)[:8]))}")
    return any_messages(value)


def left_over(value: JSON, role: str) -> dict[str, JSON]:
    """What an object holds beside the messages that `asked_messages` (of a `user`) or `answered_messages` (of an
    `assistant`) reads of it."""
    value = unpacked(value)
    if not isinstance(value, Mapping) or style_of([value]) is not None:
        return {}
    keys = _ASKED if role == "user" else _ANSWERED
    texts = [key for key, one in value.items() if isinstance(one, str) and one]
    read = next((key for key in keys if value.get(key)), texts[0] if len(texts) == 1 else "content")
    used = {read, *_WHOLE}
    if role == "user":
        system = next((key for key in _INSTRUCTIONS if value.get(key)), None)
        used |= {
            "tools",
            *([system] if system else []),
            *(["chat_history"] if style_of(value.get("chat_history")) else []),
        }
    return {key: one for key, one in value.items() if key not in used and one is not None}


def _before(asked: Mapping[str, JSON]) -> tuple[Message, ...]:
    """What a request holds beside its messages, which a model read before them: its system prompt, and a history."""
    system = next((asked[key] for key in _INSTRUCTIONS if asked.get(key)), None)
    if isinstance(system, Mapping):  # Gemini's
        system = system.get("parts", [system])
    if isinstance(system, list):
        system = [{"type": "text", **one} if isinstance(one, Mapping) else one for one in system]
    shown = any_messages([{"role": "system", "content": system}]) if isinstance(system, str | list) else ()
    earlier = asked.get("chat_history")
    return (*shown, *(any_messages(earlier) if style_of(earlier) is not None else ()))


def nanoseconds(value: JSON) -> int:
    """A time as nanoseconds since the epoch: a number of seconds, milli-, micro- or nanoseconds, or ISO 8601; 0 for
    none."""
    if isinstance(value, str):
        if value.isdecimal():
            return nanoseconds(int(value)) if len(value) < 20 else 0
        try:
            read = datetime.fromisoformat(value)
        except ValueError:
            return 0
        read = read if read.tzinfo is not None else read.replace(tzinfo=UTC)
        return int(read.timestamp() * 1_000_000) * 1_000
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 2**63:
        return 0
    for scale, largest in ((1_000_000_000, 1e11), (1_000_000, 1e14), (1_000, 1e17)):
        if value < largest:
            return int(value * scale)
    return int(value)


__all__ = [
    "PROJECT",
    "ReadSpans",
    "SpanTraces",
    "TraceSpans",
    "answered_messages",
    "asked_messages",
    "chat_attributes",
    "left_over",
    "nanoseconds",
    "told_failure",
    "tool_attributes",
    "unpacked",
]
