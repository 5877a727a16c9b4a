"""ReplyModes: how a model is made to hold its reply to a schema, and what is tried where a server cannot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, TypeAlias, cast

from pydantic_ai.messages import ModelMessage, ModelRequest
from pydantic_ai.models import Model, ModelRequestParameters
from pydantic_ai.output import OutputObjectDefinition
from pydantic_ai.settings import ModelSettings

from cm2_agent.llm.failures import may_lack_schemas, says_no_schema
from cm2_agent.types.json_values import JSON, canonical_json

ReplyMode: TypeAlias = Literal["json_schema", "json_mode", "text"]
"""The server holds the reply to the schema; to any JSON object, the schema standing in the prompt; to nothing."""


@dataclass(frozen=True, kw_only=True)
class Schema:
    """What a reply is held to where the provider can. `strict`: the schema keeps to what OpenAI's strict mode
    allows."""

    name: str
    body: Mapping[str, JSON]
    strict: bool = True

    @cached_property
    def instruction(self) -> str:
        """The schema as part of a prompt."""
        return f"Reply with JSON alone, one object that fits this JSON schema: {canonical_json(dict(self.body))}"

    @cached_property
    def native(self) -> ModelRequestParameters:
        """What has the server hold the reply to it; made once, as nothing changes it."""
        return ModelRequestParameters(output_mode="native", output_object=self._held)

    @cached_property
    def prompted(self) -> ModelRequestParameters:
        """What has the server hold the reply to any JSON object."""
        return ModelRequestParameters(output_mode="prompted", output_object=self._held, prompted_output_template=False)

    @property
    def _held(self) -> OutputObjectDefinition:
        return OutputObjectDefinition(json_schema=dict(self.body), name=self.name, strict=self.strict)


_FREE = ModelRequestParameters()


class ReplyModes:
    """The modes that one model may be asked in, best first. `mode` is the one in use: what a server cannot do is not
    asked of it again."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self.sends_schema = bool(getattr(model, "sends_schema", False))
        """Whether the model's own settings hold the reply's schema already."""
        self._modes: list[ReplyMode] = ["text"]
        if self.sends_schema or model.profile.get("supports_json_object_output"):
            self._modes.insert(0, "json_mode")
        if self.sends_schema or model.profile.get("supports_json_schema_output"):
            self._modes.insert(0, "json_schema")
        self._proved = False

    @property
    def mode(self) -> ReplyMode:
        return self._modes[0]

    def below(self, mode: ReplyMode, error: Exception) -> ReplyMode | None:
        """The mode to try after `error` in this one; None where another mode would not help. Once a mode has worked, it
        is left only where the server says that it cannot hold replies to a schema."""
        if mode == "text":
            return None
        named = says_no_schema(error)
        if mode not in self._modes:  # another request has found out meanwhile
            return self.mode if named or may_lack_schemas(error) else None
        if not named and (self._proved or not may_lack_schemas(error)):
            return None
        lower = self._modes[self._modes.index(mode) + 1]
        if named:
            self._settle(lower, proved=False)
        return lower

    def worked(self, mode: ReplyMode) -> None:
        """Note that a request in this mode was answered."""
        if not self._proved and mode in self._modes:
            self._settle(mode, proved=True)

    def prepared(
        self, mode: ReplyMode, messages: Sequence[ModelMessage], schema: Schema | None, settings: ModelSettings | None
    ) -> tuple[list[ModelMessage], ModelSettings | None, ModelRequestParameters]:
        """Messages, settings and parameters of a request in this mode."""
        shown = list(messages)
        if mode != "json_schema" and schema is not None:
            shown = _with_instruction(shown, schema.instruction)
        if self.sends_schema:
            if mode != "json_schema":
                other: dict[str, Any] = dict(getattr(self._model, "other_extra_body", {}))
                body = {"response_format": {"type": "json_object"}, **other} if mode == "json_mode" else other
                settings = cast(ModelSettings, {"extra_body": body, **(settings or {})})
            return shown, settings, _FREE
        if schema is None or mode == "text":
            return shown, settings, _FREE
        return shown, settings, schema.native if mode == "json_schema" else schema.prompted

    def _settle(self, mode: ReplyMode, *, proved: bool) -> None:
        del self._modes[: self._modes.index(mode)]
        self._proved = proved


def _with_instruction(messages: list[ModelMessage], instruction: str) -> list[ModelMessage]:
    """The messages, with the instruction after those that the last request has."""
    for place in range(len(messages) - 1, -1, -1):
        message = messages[place]
        if isinstance(message, ModelRequest):
            given = f"{message.instructions}\n\n{instruction}" if message.instructions else instruction
            messages[place] = replace(message, instructions=given)
            break
    return messages


__all__ = ["ReplyMode", "ReplyModes", "Schema"]
