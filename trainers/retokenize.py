"""Rows from words alone: text-only traces through a tokenizer's chat template, for imitation and never for GRPO."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from cm2_agent.types.messages import Message, ToolSpec
from cm2_agent.types.run import NOT_TO_LEARN
from cm2_agent.types.trace import Step, Trace

from .rows import Credit, Row, StepTokens, join
from .template_steps import REFUSED, StepText, TemplateRefused, TemplateSteps, is_cut

__all__ = ["REFUSED", "TemplateRefused", "retokenised_rows", "rows_by_words", "rows_from_text"]


def retokenised_rows(
    trace: Trace, tokenizer: Any, credit: Credit | None = None, *, agent: str | None = None
) -> list[Row]:
    """Token rows of a trace's words: the assistant's messages (of one agent, where asked for) in spans with the stop
    token, all else masked; `retokenised` is set.

    Where a step's model call was recorded with its prompt, the model is shown that prompt; else the dialogue so far. An
    answer that was cut off is given no end. A message without words, or with a call that is no JSON, is read and not
    trained on.

    `tokenizer` is a transformers tokenizer with a chat template. Raises TrainError where there is no template, or it
    ends the assistant's messages with no token; TemplateRefused where it refuses the dialogue, or does not show a
    message whole.
    """
    return rows_by_words(trace, TemplateSteps(tokenizer), credit, agent=agent)


def rows_from_text(
    tokenizer: Any, *, agent: str | None = None, stops: tuple[int, ...] = ()
) -> Callable[[Trace, Credit | None], list[Row] | str]:
    """`retokenised_rows` by one tokenizer, for whole data sets: a dialogue that the template refuses gives a reason.
    `stops` are the model's stop tokens besides the tokenizer's.
    """
    steps = TemplateSteps(tokenizer, stops)

    def make(trace: Trace, credit: Credit | None = None) -> list[Row] | str:
        try:
            return rows_by_words(trace, steps, credit, agent=agent)
        except TemplateRefused as refused:
            return refused.reason

    return make


def rows_by_words(
    trace: Trace, steps: TemplateSteps, credit: Credit | None = None, *, agent: str | None = None
) -> list[Row]:
    """`retokenised_rows` through a template that is known already."""
    shown = trace.unwritten  # elsewhere, or by the client
    happened = iter(trace.steps)
    tools = tools_of(trace)
    found: list[StepTokens] = []
    last: StepText | None = None
    broken_off = _broken_off(trace)
    for place, message in enumerate(trace.messages):
        if message.role != "assistant":
            continue
        step = next(happened)
        call = step.call
        text = steps.step(
            call.input if call is not None and call.input else trace.messages[:place],
            message,
            tools if call is None or not call.tools else call.tools,
            cut=place in broken_off or _was_cut(step),
            last=last,
            trace_id=trace.id,
        )
        if text is None:
            continue
        last = text
        to_learn = call is None or call.sampling.get("untrainable") != NOT_TO_LEARN
        if to_learn and step.number not in shown and (agent is None or step.agent == agent):
            found.append(StepTokens(prompt=text.prompt, completion=text.completion, turn=step.turn, step=step.index))
    return join(found, credit, trace_id=trace.id, retokenised=True)


def turn_by_words(
    prompt: Sequence[Message],
    turn: Sequence[Message],
    tools: Sequence[ToolSpec],
    steps: TemplateSteps,
    *,
    trace_id: str,
) -> list[Row]:
    """The rows of the assistant's messages of a turn after `prompt`, as turn 0; the prompt is read alone.

    Raises TemplateRefused.
    """
    found: list[StepTokens] = []
    last: StepText | None = None
    dialogue = [*prompt, *turn]
    for place in range(len(prompt), len(dialogue)):
        message = dialogue[place]
        if message.role != "assistant":
            continue
        cut = is_cut(message.finish_reason)
        text = steps.step(dialogue[:place], message, tools, cut=cut, last=last, trace_id=trace_id)
        if text is not None:
            last = text
            found.append(StepTokens(prompt=text.prompt, completion=text.completion, turn=0, step=len(found)))
    return join(found, None, trace_id=trace_id, retokenised=True)


def tools_of(trace: Trace) -> tuple[ToolSpec, ...]:
    """The tools that the first call of the dialogue was offered, as far as recorded."""
    return next((call.tools for call in trace.calls if call.message is not None and call.tools), ())


def _was_cut(step: Step) -> bool:
    """Whether the step's answer was cut off: by its finish reason, its number of tokens, an error or a stop string."""
    call = step.call
    if is_cut(step.message.finish_reason):
        return True
    if call is None:
        return False
    reason = call.finish_reason or step.message.finish_reason
    written, most = call.usage.get("output_tokens"), call.sampling.get("max_tokens")
    if is_cut(reason) or (reason is None and most is not None and written == most):
        return True
    return call.error is not None or str(call.sampling.get("untrainable") or "").startswith("a stop string cut")


def _broken_off(trace: Trace) -> set[int]:
    """The places in the dialogue of the answers during which a run was cancelled."""
    found, place = set(), 0
    for before, run in zip(trace.shown_before, trace.runs, strict=True):
        place += len(before) + len(run.messages)
        if run.status == "cancelled" and run.messages and run.messages[-1].role == "assistant":
            found.add(place - 1)
    return found
