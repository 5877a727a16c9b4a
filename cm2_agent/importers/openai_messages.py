"""OpenAI chat messages into ours, and a dialogue of them into a Run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from cm2_agent.errors import TraceError
from cm2_agent.importers.failures import marked, tool_answer
from cm2_agent.importers.json_records import parse_json
from cm2_agent.importers.named_answers import in_call_order
from cm2_agent.models.reasoning_text import split_reasoning
from cm2_agent.types.json_values import JSON, content_hash
from cm2_agent.types.messages import (
    OPENAI_ROLES,
    Blob,
    Message,
    Part,
    Reasoning,
    Role,
    Text,
    ToolCall,
    ToolCallResponse,
    ToolSpec,
    Uri,
    other_part,
)
from cm2_agent.types.run import ModelCall, Run, ToolRun
from cm2_agent.types.tool_use import pair_answers

MOST_INPUTS = 2_000
"""Model calls of a dialogue with more messages than this are recorded without their prompts, whose number grows with
its square."""
ROLES: Mapping[str, Role] = {
    **OPENAI_ROLES,
    "human": "user",
    "ai": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "chatbot": "assistant",
    "gpt": "assistant",
    "tool_result": "tool",
    "observation": "tool",
}
"""The roles of chats as OpenAI and others write them → ours."""
_READ = {
    "role",
    "content",
    "name",
    "tool_calls",
    "tool_call_id",
    "function_call",
    "reasoning_content",
    "reasoning",
    "refusal",
}


def read_messages(
    data: JSON, *, failed: Callable[[str], bool] | None = None, unmarked: bool = False
) -> tuple[Message, ...]:
    """The messages of a chat; keys that the chat format does not know are kept.

    A tool's answer is an error where it is marked as one, else where `failed` says so of its text, or (None) where it
    reads like one. `unmarked`: other answers without a mark may have failed too (status `answered`). Raises TraceError
    naming the message that is not one."""
    if not isinstance(data, Sequence) or isinstance(data, str) or not data:
        raise TraceError(f"the messages are {_shown(data)}; expected a list of at least one message")
    failures = _Failures(failed, unmarked)
    read: list[Message] = []
    for index, item in enumerate(data):
        try:
            results, rest = _tool_results(item, failures)
            read.extend(results)
            if rest is not None:
                read.append(_message(rest, failures))
        except TraceError as error:
            raise TraceError(f"message {index}: {error}") from error
    return in_call_order(read)


@dataclass(frozen=True)
class _Failures:
    """How answers of tools are read: what says of a text that it is an error, and whether others may have failed."""

    failed: Callable[[str], bool] | None
    unmarked: bool

    def answer(self, identity: str | None, content: JSON, *, mark: bool | None, told: bool = False) -> ToolCallResponse:
        if mark is None and self.failed is not None:
            mark = isinstance(content, str) and self.failed(content)
        return tool_answer(identity, content, failed=mark, told=told or not self.unmarked)


def read_tools(data: JSON) -> tuple[ToolSpec, ...]:
    """Tool definitions in the chat format, in Anthropic's or the Responses API's, or as JSON text of them. Raises
    TraceError."""
    if isinstance(data, str) and data.strip():
        try:
            data = parse_json(data)
        except ValueError as error:
            raise TraceError(f"the tools are text that is not JSON ({error}); expected a list of definitions") from None
    if data is None or data == "":
        return ()
    if isinstance(data, Mapping):
        data = list(data.values()) if all(isinstance(one, Mapping) for one in data.values()) else [data]
    if not isinstance(data, Sequence) or isinstance(data, str):
        raise TraceError(f"the tools are {_shown(data)}; expected a list of tool definitions")
    return tuple(_tool(tool) for entry in data for tool in _declared(entry))


def _declared(entry: JSON) -> Sequence[JSON]:
    """The definitions of one entry: Gemini writes a list of them."""
    inner = (
        entry.get("functionDeclarations", entry.get("function_declarations")) if isinstance(entry, Mapping) else None
    )
    return inner if isinstance(inner, list) else [entry]


def _tool(data: JSON) -> ToolSpec:
    if isinstance(data, str):
        return ToolSpec(name=data)
    if isinstance(data, Mapping) and "input_schema" in data and "parameters" not in data:  # Anthropic's
        data = {**data, "parameters": data["input_schema"]}
    if isinstance(data, Mapping) and isinstance(data.get("type"), str) and not isinstance(data.get("name"), str):
        inner = data.get("function")
        if not isinstance(inner, Mapping):
            return ToolSpec(name=data["type"])  # a tool of the provider's own, such as web_search
    return ToolSpec.from_json(data)


def run_of(
    trace_id: str,
    messages: tuple[Message, ...],
    *,
    name: str,
    attributes: Mapping[str, JSON],
    tools: tuple[ToolSpec, ...] = (),
    model: str | None = None,
    sampling: Mapping[str, JSON] | None = None,
    backend: str | None = None,
) -> Run:
    """The dialogue as one run: a text-only model call an assistant message (its input is everything before it), and a
    tool run an answer.

    The record tells no times and no token ids: times are 0, ids None.
    """
    calls: list[ModelCall] = []
    runs: list[ToolRun] = []
    asked = _asked(messages)
    for index, message in enumerate(messages):
        span = content_hash([trace_id, index])[:16]
        if message.role == "assistant":
            calls.append(
                ModelCall(
                    span_id=span,
                    model=model,
                    model_version=model,
                    input=messages[:index] if len(messages) <= MOST_INPUTS else (),
                    output=message,
                    tools=tools,
                    sampling=sampling or {},
                    message=index,
                )
            )
        for position, response in enumerate(message.responses):
            call = asked.get((index, position))
            runs.append(
                ToolRun(
                    span_id=content_hash([trace_id, index, position])[:16],
                    name=call.name if call is not None else message.name or "unknown",
                    call_id=response.id if call is None else call.id,
                    arguments=None if call is None else call.arguments,
                    result=None if response.error else response.response,
                    error=str(response.response) if response.error else None,
                    backend=backend,
                )
            )
    return Run(
        id=trace_id, name=name, messages=messages, calls=tuple(calls), tools=tuple(runs), attributes=dict(attributes)
    )


def _asked(messages: Sequence[Message]) -> dict[tuple[int, int], ToolCall]:
    """The call that each answer belongs to, by the answer's message and its place in it."""
    found: dict[tuple[int, int], ToolCall] = {}
    steps = [index for index, message in enumerate(messages) if message.role == "assistant"]
    for start, end in pairwise([*steps, len(messages)]):
        places = [(at, place) for at in range(start, end) for place in range(len(messages[at].responses))]
        answered = [messages[at].responses[place].id for at, place in places]
        calls = messages[start].tool_calls
        for call, answer in zip(calls, pair_answers([call.id for call in calls], answered), strict=True):
            if answer is not None:
                found[places[answer]] = call
    return found


def _thinking_apart(parts: Iterable[Part]) -> Iterator[Part]:
    """A model's parts, with the thinking that it wrote into its text as parts of their own."""
    for part in parts:
        thinking, said = split_reasoning(part.content) if isinstance(part, Text) else ("", "")
        if not isinstance(part, Text) or (not thinking and said == part.content):
            yield part
            continue
        if thinking:
            yield Reasoning(content=thinking)
        if said:
            yield Text(content=said, extra=part.extra)


def _message(data: JSON, failures: _Failures) -> Message:
    if not isinstance(data, Mapping):
        raise TraceError(f"is {_shown(data)}; expected an object with a role")
    role = ROLES.get(data["role"].casefold()) if isinstance(data.get("role"), str) else None
    if role is None:
        raise TraceError(f"has role {_shown(data.get('role'))}; expected one of {', '.join(OPENAI_ROLES)}")
    name = data.get("name")
    if name is not None and not isinstance(name, str):
        raise TraceError(f"has name {_shown(name)}; expected text")
    extra = {key: value for key, value in data.items() if key not in _READ}
    if role == "tool":
        return Message(role=role, parts=tuple(_responses(data, failures)), name=name, extra=extra)
    parts: list[Part] = []
    for key in ("reasoning_content", "reasoning"):
        if isinstance(data.get(key), str) and data[key]:
            parts.append(Reasoning(content=data[key]))
            break
    content = _content(data.get("content"))
    parts.extend(_thinking_apart(content) if role == "assistant" else content)
    if isinstance(data.get("refusal"), str):
        parts.append(Text(content=data["refusal"], extra={"refusal": True}))
    calls = data.get("tool_calls")
    if calls is not None:
        if not isinstance(calls, Sequence) or isinstance(calls, str):
            raise TraceError(f"has tool_calls {_shown(calls)}; expected a list of calls")
        parts.extend(map(_call, calls))
    if data.get("function_call") is not None:  # the format's first spelling
        parts.append(_call({"function": data["function_call"]}))
    message = Message(role=role, parts=tuple(parts), name=name, extra=extra)
    if message.tool_calls and role != "assistant":
        raise TraceError(f"has tool calls, but its role is {role}")
    return message


def _content(content: JSON) -> list[Part]:
    if content is None or content == "":
        return []
    if isinstance(content, str):
        return [Text(content=content)]
    if not isinstance(content, Sequence):
        raise TraceError(f"has content {_shown(content)}; expected text or a list of parts")
    return [_part(part) for part in content]


def _part(part: JSON) -> Part:
    if isinstance(part, str):
        return Text(content=part)
    if not isinstance(part, Mapping):
        raise TraceError(f"has a content part {_shown(part)}; expected an object with a type")
    kind = part.get("type")
    if not isinstance(kind, str | None):
        return other_part(part)
    if kind in {"tool_use", "server_tool_use", "mcp_tool_use"} and isinstance(part.get("name"), str):
        arguments = arguments_of(part.get("input"))
        return ToolCall(id=_identity(part.get("id"), "a tool call with id"), name=part["name"], arguments=arguments)
    if kind in {"thinking", "reasoning"} and isinstance(part.get(kind, part.get("text")), str):
        return Reasoning(content=part.get(kind, part.get("text")))
    source = part.get("source")
    if kind in {"image", "document"} and isinstance(source, Mapping):  # Anthropic's
        modality = "image" if kind == "image" else "file"
        if isinstance(source.get("url"), str):
            return Uri(uri=source["url"], modality=modality)
        if source.get("type") == "base64" and isinstance(source.get("data"), str):
            mime = source.get("media_type")
            return Blob(content=source["data"], modality=modality, mime_type=mime if isinstance(mime, str) else None)
    if kind in {"text", "input_text", "output_text", "refusal", "summary_text"} or (kind is None and "text" in part):
        text = part.get("refusal" if kind == "refusal" else "text")
        if not isinstance(text, str):
            raise TraceError(f"has a text part with {_shown(text)}; expected text")
        return Text(content=text, extra={"refusal": True} if kind == "refusal" else {})
    if kind in {"image_url", "input_image"} or (kind == "image" and isinstance(part.get("image"), str)):
        image = part.get("image_url", part.get("image"))
        address = image.get("url") if isinstance(image, Mapping) else image
        if not isinstance(address, str):
            raise TraceError(f"has an image part with {_shown(image)}; expected an address")
        head, comma, body = address.partition(";base64,")
        if head.startswith("data:") and comma:
            return Blob(content=body, modality="image", mime_type=head.removeprefix("data:") or None)
        return Uri(uri=address, modality="image")
    return _file(part) or other_part(part)


def _file(part: Mapping[str, JSON]) -> Blob | None:
    """A sound or a file by value."""
    sound, file = part.get("input_audio"), part.get("file")
    if part.get("type") == "input_audio" and isinstance(sound, Mapping) and isinstance(sound.get("data"), str):
        return Blob(content=sound["data"], modality="audio", mime_type=f"audio/{sound.get('format') or 'wav'}")
    if part.get("type") == "file" and isinstance(file, Mapping) and isinstance(file.get("file_data"), str):
        head, comma, body = file["file_data"].partition(";base64,")
        mime = head.removeprefix("data:") or None
        return Blob(content=body if comma else file["file_data"], modality="file", mime_type=mime if comma else None)
    return None


def _call(data: JSON) -> ToolCall:
    """A call in the chat format, or flat, as LangChain and others write it: `{"name": …, "args": …}`."""
    if not isinstance(data, Mapping):
        raise TraceError(f"has a tool call {_shown(data)}; expected an object with a function")
    inner, key = (
        (data["custom"], "input") if isinstance(data.get("custom"), Mapping) else (data.get("function"), "arguments")
    )
    if not isinstance(inner, Mapping):
        name = data.get("name", inner)
        inner = {"name": name, "arguments": data.get("arguments", data.get("args", data.get("input")))}
    if not isinstance(inner.get("name"), str):
        raise TraceError(f"has a tool call {_shown(data)}; expected a function with a name")
    arguments = inner.get(key)
    if key == "arguments":
        arguments = arguments_of(arguments)
    extra = {"custom": True} if key == "input" else {}  # its argument is text of any form, not a broken object
    if data.get("error"):
        extra["error"] = data["error"]
    return ToolCall(
        id=_identity(data.get("id"), "a tool call with id"), name=inner["name"], arguments=arguments, extra=extra
    )


def arguments_of(value: JSON) -> JSON:
    """A call's arguments: of text the JSON that it is, as agents read it (nothing is no argument, a text may hold line
    breaks as they are). What is not JSON stays the text that it is: a malformed call is a fact of the dialogue, and
    is never paid."""
    if not isinstance(value, str):
        return value
    if not value.strip():
        return {}
    with contextlib.suppress(ValueError):
        return parse_json(value, strict=False)
    return value


def _identity(value: JSON, what: str) -> str | None:
    """An id as text; some write numbers. Raises TraceError."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if value is not None and not isinstance(value, str):
        raise TraceError(f"has {what} {_shown(value)}; expected text")
    return value


def _responses(data: Mapping[str, JSON], failures: _Failures) -> Iterator[Part]:
    """What a tool's message answers: one call, or (blocks of Anthropic's kind) several."""
    content = data.get("content")
    blocks = content if isinstance(content, Sequence) and not isinstance(content, str) else ()
    results = [one for one in blocks if isinstance(one, Mapping) and one.get("type") == "tool_result"]
    if results and len(results) == len(blocks):
        yield from (_tool_result(block, failures) for block in results)
        return
    identity = _identity(data.get("tool_call_id"), "tool_call_id")
    yield failures.answer(identity, _answered(content), mark=marked(data))


def _answered(content: JSON) -> JSON:
    """What a tool answered: of a list of texts the texts, one a line."""
    if isinstance(content, Sequence) and not isinstance(content, str):
        parts = _content(content)
        if all(isinstance(part, Text) for part in parts):
            return "\n".join(part.content for part in parts if isinstance(part, Text))
    return content


def _tool_results(data: JSON, failures: _Failures) -> tuple[list[Message], JSON | None]:
    """The tools' answers that a user's message holds, as Anthropic writes them, and what else it holds. These blocks
    mark every failure (`is_error`)."""
    content = data.get("content") if isinstance(data, Mapping) and data.get("role") == "user" else None
    if not isinstance(content, list):
        return [], data
    blocks = [one for one in content if isinstance(one, Mapping) and one.get("type") == "tool_result"]
    if not blocks:
        return [], data
    results: list[Message] = []
    for block in blocks:
        results.append(Message(role="tool", parts=(_tool_result(block, failures),)))
    rest = [one for one in content if one not in blocks]
    return results, {**data, "content": rest} if rest else None


def _tool_result(block: Mapping[str, JSON], failures: _Failures) -> ToolCallResponse:
    identity = _identity(block.get("tool_use_id", block.get("id")), "tool_use_id")
    return failures.answer(identity, _answered(block.get("content")), mark=marked(block), told=True)


def _shown(value: JSON) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '…'}"
