"""Every span attribute name that is written or read, in one file because the GenAI conventions still move.

Names and values follow the OpenTelemetry semantic conventions for generative AI as of `CONVENTIONS`
(https://opentelemetry.io/docs/specs/semconv/gen-ai/); `cm2.*` names are the project's own, for what the conventions
have no name for.
"""

from __future__ import annotations

from typing import Final

CONVENTIONS: Final = "1.44.0"
"""The release of the semantic conventions that the names below were taken from; stamped on every span's instrumentation
scope."""
SCHEMA_URL: Final = f"https://opentelemetry.io/schemas/{CONVENTIONS}"

OPERATION: Final = "gen_ai.operation.name"
INVOKE_AGENT: Final = "invoke_agent"
CHAT: Final = "chat"
EXECUTE_TOOL: Final = "execute_tool"
STEP: Final = "step"
"""Ours: a function that only holds others."""

PROVIDER: Final = "gen_ai.provider.name"
AGENT_NAME: Final = "gen_ai.agent.name"
CONVERSATION: Final = "gen_ai.conversation.id"
REQUEST_MODEL: Final = "gen_ai.request.model"
RESPONSE_MODEL: Final = "gen_ai.response.model"
FINISH_REASONS: Final = "gen_ai.response.finish_reasons"
INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
INPUT_MESSAGES: Final = "gen_ai.input.messages"
OUTPUT_MESSAGES: Final = "gen_ai.output.messages"
INSTRUCTIONS: Final = "gen_ai.system_instructions"
TOOL_DEFINITIONS: Final = "gen_ai.tool.definitions"
TOOL_NAME: Final = "gen_ai.tool.name"
TOOL_TYPE: Final = "gen_ai.tool.type"
TOOL_CALL_ID: Final = "gen_ai.tool.call.id"
TOOL_ARGUMENTS: Final = "gen_ai.tool.call.arguments"
TOOL_RESULT: Final = "gen_ai.tool.call.result"
ERROR_TYPE: Final = "error.type"

EVALUATION_RESULT: Final = "gen_ai.evaluation.result"
"""The name of an event; the next four are its attributes."""
EVALUATION_NAME: Final = "gen_ai.evaluation.name"
EVALUATION_VALUE: Final = "gen_ai.evaluation.score.value"
EVALUATION_LABEL: Final = "gen_ai.evaluation.score.label"
EVALUATION_EXPLANATION: Final = "gen_ai.evaluation.explanation"

REQUEST: Final = {
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "top_k": "gen_ai.request.top_k",
    "max_tokens": "gen_ai.request.max_tokens",
    "presence_penalty": "gen_ai.request.presence_penalty",
    "frequency_penalty": "gen_ai.request.frequency_penalty",
    "seed": "gen_ai.request.seed",
}
"""Our name of a sampling setting → the conventions' name of the attribute."""

# Ours. The last three only ever leave for another CM2 collector (see `token_text.encode_ids`).
STATUS: Final = "cm2.status"
MODEL_VERSION: Final = "cm2.model.version"
SAMPLING: Final = "cm2.sampling"
REWARD_VERSION: Final = "cm2.reward.version"
TURN: Final = "cm2.turn"
PROMPT_IDS: Final = "cm2.prompt_ids"
COMPLETION_IDS: Final = "cm2.completion_ids"
LOGPROBS: Final = "cm2.logprobs"
