"""Messages and their parts in the OpenTelemetry GenAI schema, and the tools that a model is offered.

A message is a role and parts, as the semantic conventions for generative AI write them
(https://opentelemetry.io/docs/specs/semconv/gen-ai/, `gen_ai.input.messages`): text, reasoning, tool_call,
tool_call_response, uri, blob, file. Unknown part types and additional properties stay, so that reading and writing
loses nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Annotated, ClassVar, Final, Literal, TypeAlias

from pydantic import ConfigDict, Field

from cm2_agent.errors import TraceError
from cm2_agent.types.json_values import JSON, content_digest, json_text

Role: TypeAlias = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant", "tool")
OPENAI_ROLES: Mapping[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
"""The roles of OpenAI's chat format → ours."""
SHOWN: Final = "cm2.shown"
"""In a message's `extra`: the application wrote the message into the conversation for the model to read, as it does
with a summary. Nobody said it: it stands in the input of model calls and not in the dialogue."""


@dataclass(frozen=True, kw_only=True)
class Text:
    """What is written for the other side to read."""

    type: ClassVar[str] = "text"
    content: str
    extra: Mapping[str, JSON] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Reasoning:
    """What the model wrote to itself."""

    type: ClassVar[str] = "reasoning"
    content: str
    extra: Mapping[str, JSON] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ToolCall:
    """A call that the model asks for. `arguments` is the parsed JSON value, or the raw text where it was not JSON."""

    type: ClassVar[str] = "tool_call"
    id: str | None = None
    name: str
    arguments: JSON = None
    extra: Mapping[str, JSON] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ToolCallResponse:
    """What the tool answered. `error` is true where the answer tells of a failure that the agent saw."""

    type: ClassVar[str] = "tool_call_response"
    id: str | None = None
    response: JSON = None
    error: bool = False
    extra: Mapping[str, JSON] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Uri:
    """An image, sound, video or file by address. Never fetched by us."""

    type: ClassVar[str] = "uri"
    uri: str
    modality: str | None = None
    mime_type: str | None = None
    extra: Mapping[str, JSON] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Blob:
    """An image, sound, video or file by value: `content` is base64."""

    type: ClassVar[str] = "blob"
    content: str
    modality: str | None = None
    mime_type: str | None = None
    extra: Mapping[str, JSON] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Other:
    """A part of a type that this version does not know, unchanged; `data` holds every key, `type` too."""

    data: Mapping[str, JSON]

    @property
    def type(self) -> str:
        return str(self.data.get("type", ""))


Part: TypeAlias = Text | Reasoning | ToolCall | ToolCallResponse | Uri | Blob | Other
_KINDS: dict[str, type[Text | Reasoning | ToolCall | ToolCallResponse | Uri | Blob]] = {
    kind.type: kind for kind in (Text, Reasoning, ToolCall, ToolCallResponse, Uri, Blob)
}
_REQUIRED = {"text": "content", "reasoning": "content", "tool_call": "name", "uri": "uri", "blob": "content"}
_WRITTEN = {
    kind: [(spec.name, spec.name in {"id", "modality", "mime_type", "error"}) for spec in fields(cls)][:-1]
    for kind, cls in _KINDS.items()
}
"""The properties of each kind of part, without `extra`, which is the last, and whether each is left out when absent."""
_PROPERTIES = {kind: frozenset(name for name, _ in written) for kind, written in _WRITTEN.items()}
_ID = (str, type(None))
_OPTIONAL_TEXT = {
    "tool_call": ("id",),
    "tool_call_response": ("id",),
    "uri": ("modality", "mime_type"),
    "blob": ("modality", "mime_type"),
}


def part_to_json(part: Part) -> dict[str, JSON]:
    """The part as the GenAI conventions write it; absent optional keys are left out."""
    if isinstance(part, Other):
        return dict(part.data)
    out: dict[str, JSON] = {"type": part.type}
    for name, absent in _WRITTEN[part.type]:
        value = getattr(part, name)
        if not absent or (value is not None and value is not False):
            out[name] = value
    return {**part.extra, **out} if part.extra else out


def part_from_json(data: Mapping[str, JSON]) -> Part:
    """Read a part; an unknown type becomes Other. Raises TraceError where a known type lacks its key."""
    if type(data) is not dict and not isinstance(data, Mapping):
        raise TraceError(f"a message part is {type(data).__name__} {str(data)[:60]!r}; expected an object with a type")
    kind = str(data.get("type", ""))
    if kind == "text" and len(data) == 2 and type(data.get("content")) is str:  # most parts
        return Text(content=data["content"])
    cls = _KINDS.get(kind)
    if cls is None:
        return Other(data=dict(data))
    required = _REQUIRED.get(kind)
    if required is not None and not isinstance(data.get(required), str):
        raise TraceError(f"a {kind} part has {required} {data.get(required)!r}; expected text")
    for name in _OPTIONAL_TEXT.get(kind, ()):
        if data.get(name) is not None and not isinstance(data[name], str):
            raise TraceError(f"a {kind} part has {name} {data[name]!r}; expected text or nothing")
    names = _PROPERTIES[kind]
    known = {name: data[name] for name in names if name in data}
    if kind == "tool_call_response":
        known["error"] = known.get("error") is True
        if "result" in data and "response" not in data:  # the key of earlier revisions of the conventions
            known["response"] = data["result"]
            names = names | {"result"}
    return cls(**known, extra={key: value for key, value in data.items() if key not in names and key != "type"})


def other_part(data: Mapping[str, JSON]) -> Other:
    """What is no part that we know, as it is; wrapped where it bears a known type without what that needs, as a text
    block without text does, since it could not be read again."""
    try:
        part_from_json(data)
    except TraceError:
        return Other(data={"type": "unknown", "value": dict(data)})
    return Other(data=dict(data))


@dataclass(frozen=True, kw_only=True)
class Message:
    """One message: who speaks, and the parts.

    >>> from cm2_agent import Message
    >>> Message.of("user", "Where is order 7?").text
    'Where is order 7?'
    """

    role: Role
    parts: tuple[Part, ...] = ()
    name: str | None = None
    finish_reason: str | None = None
    extra: Mapping[str, JSON] = field(default_factory=dict)

    @classmethod
    def of(cls, role: Role, text: str = "", calls: Sequence[ToolCall] = ()) -> Message:
        """A message of one text (left out when empty) and tool calls."""
        return cls(role=role, parts=((Text(content=text),) if text else ()) + tuple(calls))

    @cached_property
    def text(self) -> str:
        """All text parts, joined by line breaks; reasoning is not among them."""
        return "\n".join([part.content for part in self.parts if isinstance(part, Text)])

    @cached_property
    def reasoning(self) -> str:
        return "\n".join(part.content for part in self.parts if isinstance(part, Reasoning))

    @cached_property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        return tuple([part for part in self.parts if isinstance(part, ToolCall)])

    @cached_property
    def responses(self) -> tuple[ToolCallResponse, ...]:
        return tuple([part for part in self.parts if isinstance(part, ToolCallResponse)])

    def to_json(self) -> dict[str, JSON]:
        out: dict[str, JSON] = {**self.extra, "role": self.role, "parts": [part_to_json(part) for part in self.parts]}
        if self.name is not None:
            out["name"] = self.name
        if self.finish_reason is not None:
            out["finish_reason"] = self.finish_reason
        return out

    @classmethod
    def from_json(cls, data: Mapping[str, JSON]) -> Message:
        """Raises TraceError on an unknown role or malformed parts."""
        role = data.get("role") if isinstance(data, Mapping) else None
        if role not in ROLES:
            raise TraceError(f"a message has role {role!r}; expected one of {', '.join(ROLES)}")
        parts = data.get("parts", [])
        if not isinstance(parts, Sequence) or isinstance(parts, str):
            raise TraceError(f"a message's parts are {type(parts).__name__}; expected a list of objects")
        known = {"role", "parts", "name", "finish_reason"}
        return cls(
            role=role,
            parts=tuple(part_from_json(part) for part in parts),
            name=data.get("name"),
            finish_reason=data.get("finish_reason"),
            extra={key: value for key, value in data.items() if key not in known},
        )

    @cached_property
    def digest(self) -> bytes:
        """The content address in 32 bytes. Raises TypeError or ValueError where a part is not JSON."""
        return content_digest(self.to_json())

    @cached_property
    def json_text(self) -> str:
        """What `to_json` gives as text, made once: a history is written again with each run. Raises TypeError or
        ValueError where a part is not JSON."""
        return json_text(self.to_json())

    @property
    def hash(self) -> str:
        """The content address under which the store keeps the message once, as 64 hexadecimal digits."""
        return self.digest.hex()


def reads_back(message: Message) -> bool:
    """Whether it is plain that `from_json` reads what `to_json` writes: False where that has to be tried."""
    if message.role not in ROLES or message.extra:
        return False
    for part in message.parts:
        if isinstance(part, Text):
            plain = type(part.content) is str
        elif isinstance(part, ToolCallResponse):
            plain = type(part.id) in _ID
        elif isinstance(part, ToolCall):
            plain = type(part.name) is str and type(part.id) in _ID
        else:
            return False
        if not plain or part.extra:
            return False
    return True


@dataclass(frozen=True, kw_only=True)
class ToolSpec:
    """A tool as the model sees it, with what a task knows of its results and effects.

    A Task checks the types and refuses an empty name; the tools of a trace are as they were recorded.

    >>> from cm2_agent import ToolSpec
    >>> ToolSpec(name="get_order", parameters={"type": "object"}, reads=True).to_json()["type"]
    'function'
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", revalidate_instances="always")

    name: Annotated[str, Field(min_length=1)]
    """Unique within the task."""
    description: str = ""
    """What the model reads."""
    parameters: Mapping[str, JSON] = field(default_factory=dict)
    """The JSON schema of its arguments."""
    output: Mapping[str, JSON] | None = None
    """The JSON schema of its results, where the tool declares one."""
    reads: bool | None = None
    """True where its calls change nothing, False where they do; None: unknown."""

    @cached_property
    def digest(self) -> bytes:
        """The content address in 32 bytes. Raises TypeError or ValueError where the schema is not JSON."""
        return content_digest(self.to_json())

    def to_json(self) -> dict[str, JSON]:
        """The tool as the GenAI conventions write it and traces store it: without `output` and `reads`."""
        return {
            "type": "function",
            "name": self.name,
            "description": self.description,
            "parameters": dict(self.parameters),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, JSON]) -> ToolSpec:
        """Reads the conventions' flat form and OpenAI's nested one (`{"type": "function", "function": {…}}`). Raises
        TraceError."""
        inner = data.get("function", data) if isinstance(data, Mapping) else None
        if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
            raise TraceError(f"a tool definition is {str(data)[:80]!r}; expected an object with a name")
        parameters = inner.get("parameters") or {}
        if not isinstance(parameters, Mapping):
            raise TraceError(
                f"tool {inner['name']!r} has parameters {str(parameters)[:60]!r}; expected a JSON schema object"
            )
        return cls(name=inner["name"], description=str(inner.get("description") or ""), parameters=dict(parameters))
