"""LangChainModel: a LangChain chat model spoken to as a pydantic-ai one."""

from __future__ import annotations

from typing import Any, Literal

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage
from langchain_core.runnables import Runnable, RunnableSequence
from pydantic_ai.messages import (
    ModelMessage,
    ModelRequest,
    ModelResponse,
    ModelResponsePart,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    UserPromptPart,
)
from pydantic_ai.models import Model, ModelRequestParameters
from pydantic_ai.output import OutputObjectDefinition
from pydantic_ai.profiles import ModelProfile
from pydantic_ai.settings import ModelSettings
from pydantic_ai.usage import RequestUsage

from cm2_agent.errors import ModelError
from cm2_agent.llm.failures import AnswerRefused, NoSchema

_METHODS = {"native": "json_schema", "prompted": "json_mode"}
"""pydantic-ai's ways to hold a reply to a schema, as `with_structured_output` names them."""
_ENDS: dict[str, Literal["length", "content_filter"]] = {
    "length": "length",
    "max_tokens": "length",
    "MAX_TOKENS": "length",
    "content_filter": "content_filter",
    "refusal": "content_filter",
    "SAFETY": "content_filter",
}
"""What providers say of a reply that was cut off or withheld."""


class LangChainModel(Model):
    """A chat model asked for text, or for a reply of a schema where its class has `with_structured_output`. Images are
    not shown to it."""

    def __init__(self, chat: BaseChatModel, *, is_local: bool = False) -> None:
        """`is_local`: it runs in this process, and costs nothing."""
        structured = type(chat).with_structured_output is not BaseChatModel.with_structured_output
        super().__init__(
            profile=ModelProfile(supports_json_schema_output=structured, supports_json_object_output=structured)
        )
        self.chat, self.is_local = chat, is_local
        self._structured: dict[tuple[str, str | None], Runnable[Any, Any]] = {}

    @property
    def model_name(self) -> str:
        named = [getattr(self.chat, name, None) for name in ("model_version", "model_name", "model")]
        return next((name for name in named if isinstance(name, str)), type(self.chat).__name__)

    @property
    def system(self) -> str:
        return "langchain"

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        """Raises NoSchema, before anything is sent, where the model has no such way to hold its reply to a schema."""
        given = dict(model_settings or {})
        known: dict[str, Any] = {name: given[name] for name in ("temperature", "max_tokens", "top_p") if name in given}
        method, held = _METHODS.get(model_request_parameters.output_mode), model_request_parameters.output_object
        asked: Runnable[Any, Any] = self.chat if method is None or held is None else self._bound(method, held)
        answer = await asked.ainvoke(_messages(messages), **known)
        if not isinstance(answer, AIMessage):
            raise ModelError(f"the chat model answered a {type(answer).__name__}; expected an AIMessage")
        refusal = answer.additional_kwargs.get("refusal")
        if refusal:
            raise AnswerRefused(str(refusal))
        said = answer.response_metadata
        ended = said.get("finish_reason") or said.get("stop_reason") or said.get("done_reason")
        return ModelResponse(
            parts=_parts(answer),
            usage=_usage(answer),
            model_name=str(said.get("model_version") or said.get("model_name") or self.model_name),
            provider_name="langchain",
            finish_reason=_ENDS.get(str(ended), "stop"),
        )

    def _bound(self, method: str, held: OutputObjectDefinition) -> Runnable[Any, Any]:
        """The chat model bound to the schema, without the parser behind it."""
        key = (method, held.name)
        if key not in self._structured:
            schema = {"title": held.name or "reply", "description": "The reply.", **held.json_schema}
            try:
                chain: Any = self.chat.with_structured_output(schema, method=method)
            except Exception as error:  # each class refuses in its own way what it cannot do
                raise NoSchema(f"{type(self.chat).__name__} has no {method}: {error}") from error
            if not isinstance(chain, RunnableSequence):
                raise NoSchema(f"{type(self.chat).__name__} gives no reply that could be read with {method}")
            self._structured[key] = chain.first
        return self._structured[key]


def _messages(messages: list[ModelMessage]) -> list[BaseMessage]:
    asked: list[BaseMessage] = []
    instructions: str | None = None
    for message in messages:
        if isinstance(message, ModelRequest):
            if message.instructions:
                instructions = message.instructions
            asked += [HumanMessage(_only_text(part)) for part in message.parts if isinstance(part, UserPromptPart)]
        else:
            asked.append(AIMessage("".join(part.content for part in message.parts if isinstance(part, TextPart))))
    if instructions is not None:  # every request of a dialogue carries them; they are sent once
        asked.insert(0, SystemMessage(instructions))
    return asked


def _parts(answer: AIMessage) -> list[ModelResponsePart]:
    parts: list[ModelResponsePart] = [TextPart(content=str(answer.text))]
    thought = answer.additional_kwargs.get("reasoning_content")
    if isinstance(thought, str) and thought:
        parts.insert(0, ThinkingPart(content=thought))
    parts += [ToolCallPart(call["name"], call["args"]) for call in answer.tool_calls]
    return parts


def _usage(answer: AIMessage) -> RequestUsage:
    used: Any = answer.usage_metadata or {}
    read: Any = used.get("input_token_details") or {}
    made: Any = used.get("output_token_details") or {}
    return RequestUsage(
        input_tokens=used.get("input_tokens") or 0,
        output_tokens=used.get("output_tokens") or 0,
        cache_read_tokens=read.get("cache_read") or 0,
        cache_write_tokens=read.get("cache_creation") or 0,
        details={"reasoning_tokens": made.get("reasoning") or 0},
    )


def _only_text(part: UserPromptPart) -> str:
    if isinstance(part.content, str):
        return part.content
    if not all(isinstance(piece, str) for piece in part.content):
        raise ModelError(
            "images were to be shown to a LangChain model, which takes text alone here; leave images=False"
        )
    return "\n".join(str(piece) for piece in part.content)


__all__ = ["LangChainModel"]
