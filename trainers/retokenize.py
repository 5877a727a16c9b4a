"""Rows from words alone: text-only traces through a tokenizer's chat template, for imitation and never for GRPO.

The dialogue is rendered once a step, the way a model would have been asked, and what the template adds for the
assistant's message is the span; templates need no generation marks for that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from cm2_agent.errors import TrainError
from cm2_agent.models.control_words import ControlWords, Rendered
from cm2_agent.types.messages import Message, ToolSpec
from cm2_agent.types.trace import Trace
from cm2_agent.types.view import as_text

from .rows import Credit, Row, StepTokens, join

REFUSED = "the chat template refused the dialogue"


class TemplateRefused(TrainError):
    """The template cannot render this dialogue; others it may."""


def retokenised_rows(
    trace: Trace, tokenizer: Any, credit: Credit | None = None, *, agent: str | None = None
) -> list[Row]:
    """Token rows of a trace's words: the assistant's messages (of one agent, where asked for) in spans with the stop
    token, all else masked; `retokenised` is set.

    `tokenizer` is a transformers tokenizer with a chat template. Raises TrainError where there is no template,
    TemplateRefused where it refuses the dialogue.
    """
    _expect_template(tokenizer)
    return _rows(trace, ControlWords(tokenizer), credit, agent)


def _expect_template(tokenizer: Any) -> None:
    if not getattr(tokenizer, "chat_template", None):
        raise TrainError(
            "the tokenizer has no chat template; set tokenizer.chat_template, or take an instruction-tuned model's"
        )


def _rows(trace: Trace, words: ControlWords, credit: Credit | None, agent: str | None) -> list[Row]:
    messages: list[dict[str, Any]] = []
    steps: list[StepTokens] = []
    shown = trace.unwritten  # elsewhere, or by the client
    happened = iter(trace.steps)
    tools = [_tool(spec) for spec in _tools(trace)] or None
    text = ""  # what the row holds so far, as text and as ids
    ids: list[int] = []
    for message in trace.messages:
        if message.role != "assistant":
            messages.extend(template_messages(message))
            continue
        step = next(happened)
        prompt = _render(words, messages, tools, asks=True, trace=trace)
        messages.extend(template_messages(message))
        whole = _render(words, messages, tools, asks=False, trace=trace)
        if not whole.text.startswith(prompt.text):
            raise TemplateRefused(
                f"trace {trace.id!r}: {REFUSED}: its generation prompt is no beginning of the finished message."
                " Expected a template that only adds; set another tokenizer.chat_template."
            )
        written = _up_to_stop(whole.text[len(prompt.text) :], words.tokenizer)
        # What is already in the row keeps its ids: encoding again may cut words elsewhere at the seams.
        if ids and prompt.text.startswith(text):
            prompt_ids = [*ids, *words.encode(prompt.part(prompt.text[len(text) :]), after=ids[-1])]
        else:
            prompt_ids = words.encode(prompt)
        completion = words.encode(whole.part(written), after=prompt_ids[-1] if prompt_ids else None)
        if not completion or not prompt_ids:
            continue
        if step.number not in shown and (agent is None or step.agent == agent):
            steps.append(StepTokens(prompt=prompt_ids, completion=completion, turn=step.turn, step=step.index))
        text, ids = prompt.text + written, [*prompt_ids, *completion]
    return join(steps, credit, trace_id=trace.id, retokenised=True)


def rows_from_text(tokenizer: Any, *, agent: str | None = None) -> Callable[[Trace, Credit | None], list[Row] | str]:
    """`retokenised_rows` by one tokenizer, for whole data sets: a dialogue that the template refuses gives a reason."""

    words = ControlWords(tokenizer)

    def make(trace: Trace, credit: Credit | None = None) -> list[Row] | str:
        _expect_template(tokenizer)
        try:
            return _rows(trace, words, credit, agent)
        except TemplateRefused:
            return REFUSED

    return make


def _render(
    words: ControlWords, messages: Sequence[dict[str, Any]], tools: Any, *, asks: bool, trace: Trace
) -> Rendered:
    shown, offered, hidden = words.hide(messages, tools)
    try:
        text = words.tokenizer.apply_chat_template(shown, tools=offered, tokenize=False, add_generation_prompt=asks)
        return Rendered(str(text), hidden)
    except Exception as error:  # jinja's own errors and the template's raise_exception share no base
        raise TemplateRefused(f"trace {trace.id!r}: {REFUSED}: {error}") from error


def _up_to_stop(text: str, tokenizer: Any) -> str:
    """The message up to and with the stop token: what a template writes after it (a line break) no model would say."""
    stop = getattr(tokenizer, "eos_token", None)
    before, found, _ = text.rpartition(stop) if stop else ("", "", "")
    return before + found if found else text


def _tools(trace: Trace) -> tuple[ToolSpec, ...]:
    return next((call.tools for call in trace.calls if call.message is not None and call.tools), ())


def _tool(spec: ToolSpec) -> dict[str, Any]:
    return {
        "type": "function",
        "function": {"name": spec.name, "description": spec.description, "parameters": dict(spec.parameters)},
    }


def template_messages(message: Message) -> list[dict[str, Any]]:
    """One GenAI message as chat templates want it; a tool message becomes one entry a response."""
    if message.role == "tool":
        return [
            {
                "role": "tool",
                "content": as_text(response.response),
                **({"tool_call_id": response.id} if response.id else {}),
            }
            for response in message.responses
        ]
    entry: dict[str, Any] = {"role": message.role, "content": message.text}
    if message.role == "assistant":
        if message.reasoning:
            entry["reasoning_content"] = message.reasoning
        if message.tool_calls:
            entry["tool_calls"] = [
                {"type": "function", "id": call.id, "function": {"name": call.name, "arguments": call.arguments}}
                for call in message.tool_calls
            ]
    return [entry]
