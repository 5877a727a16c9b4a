"""ChatText: a policy's words as tokens and back, each piece of the chat template rendered once for a whole round."""

from __future__ import annotations

from collections.abc import Sequence

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool

from cm2_agent.errors import ModelError
from cm2_agent.models.chat_template import template_messages
from cm2_agent.models.control_words import ControlWords
from cm2_agent.models.dialogue_tokens import SENTINEL, DialogueTokens
from cm2_agent.models.local import LocalChatModel
from cm2_agent.models.stop_tokens import stop_tokens
from cm2_agent.tracing.llm_results import tool_specs
from cm2_agent.types.json_values import JSON


class ChatText:
    """How one policy reads and writes the dialogues of a desk, as a `LocalChatModel` does it.

    It holds for chat templates that render a message alike whatever stands before it, as the bundled one does.

    Args:
        model: the policy.
        tools: what it is offered.

    Raises:
        ModelError: the template renders nothing after an assistant's words, or not what the words end with.
    """

    def __init__(self, model: LocalChatModel, tools: Sequence[BaseTool]) -> None:
        self.model, self.tokenizer = model, model.tokenizer
        self.tools = [convert_to_openai_tool(tool) for tool in tools]
        self.specs = tool_specs(self.tools)
        self.stops = stop_tokens(model.model, model.tokenizer, model.template_kwargs).ids
        self.context = int(model.model.config.get_text_config().max_position_embeddings)
        self.max_tokens, self.temperature = model.max_tokens, model.temperature
        self.model_name, self.model_version = model.model_name, model.model_version
        self.sampling: dict[str, JSON] = {
            "temperature": model.temperature,
            "max_tokens": model.max_tokens,
            "top_p": 1.0,
            "top_k": 0,
            "logprobs": "processed" if model.temperature > 0 else "raw",
        }
        if model.top_p < 1 or model.top_k > 0:
            raise ModelError(
                f"top_p {model.top_p}, top_k {model.top_k}; expected 1 and 0: what is sampled here is not truncated"
            )
        self._tokens = DialogueTokens(self.tokenizer, stop_ids=self.stops, template_kwargs=model.template_kwargs)
        self._words = ControlWords(self.tokenizer)
        self._first: dict[tuple[str, ...], list[int]] = {}
        self._after: dict[tuple[tuple[str, ...], ...], list[int]] = {}

    def first(self, messages: Sequence[BaseMessage]) -> list[int]:
        """The ids of a dialogue's first prompt."""
        key = tuple(message.text for message in messages)
        if key not in self._first:
            self._first[key] = self._tokens.prompt_ids(messages, self.tools, written_by=self.model_name)
        return list(self._first[key])

    def after(self, messages: Sequence[BaseMessage], *, stopped: bool) -> list[int]:
        """The ids from the end of an answer to the beginning of the next, with these messages between; `stopped`:
        the answer drew its stop token."""
        key = (("stopped", str(stopped)), *((message.type, message.name or "", message.text) for message in messages))
        if key not in self._after:
            self._after[key] = self._rendered(messages, stopped)
        return self._after[key]

    def read(self, ids: Sequence[int], prompt: Sequence[int], *, salt: str) -> AIMessage:
        """The message that an answer means; the ids of its calls follow `salt`."""
        return self._tokens.parse(prompt, ids, (), salt, self.tools)

    def _rendered(self, messages: Sequence[BaseMessage], stopped: bool) -> list[int]:
        template = self._tokens.template
        rendered = self._tokens.rendered(
            template_messages([HumanMessage("-"), AIMessage(SENTINEL), *messages], template), self.tools
        )
        _, found, rest = rendered.text.partition(SENTINEL)
        ending = next((end for stop in self.stops if rest.startswith(end := self.tokenizer.decode([stop]))), None)
        if not found or ending is None:
            raise ModelError(
                f"the chat template of {self.model_name!r} does not end an answer with one of the model's stop tokens;"
                " expected one that does: take the LangGraph path for this model"
            )
        return self._words.encode(rendered.part(rest.removeprefix(ending) if stopped else rest))
