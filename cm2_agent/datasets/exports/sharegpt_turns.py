"""A dialogue as turns of ShareGPT's kind, with tools as LLaMA-Factory reads them."""

from __future__ import annotations

import json
from collections.abc import Sequence

from cm2_agent.datasets.exports.chat_messages import Entry, Losses, answer_text, dialogue_messages, tools_of
from cm2_agent.models.reasoning_text import split_reasoning
from cm2_agent.trainers.template_steps import template_tools
from cm2_agent.types.dialogue_content import answers_of
from cm2_agent.types.json_values import JSON
from cm2_agent.types.messages import Message, Reasoning, Text, ToolCall, ToolCallResponse
from cm2_agent.types.trace import Trace

_FROM = {"system": "system", "user": "human", "assistant": "gpt"}
_TAGS = ("<tool_call>", "<tool_response>")


def sharegpt_record(trace: Trace, losses: Losses) -> Entry:
    """The dialogue: `conversations` of `from` and `value`, the system prompt as `system`, the tools as JSON text.

    Calls bear no ids. Those of a message without words are a turn `function_call` (an object, or a list of several),
    those beside words stand in the words, in Hermes' tags; each answer is a turn `observation`, in the calls' order."""
    messages = list(dialogue_messages(trace))
    record: Entry = {"conversations": []}
    if messages and messages[0].role == "system":
        record["system"] = messages.pop(0).text
    record["conversations"] = _turns(messages, losses)
    if tools := tools_of(trace):
        record["tools"] = json.dumps([tool["function"] for tool in template_tools(tools)], ensure_ascii=False)
    return record


def _turns(messages: Sequence[Message], losses: Losses) -> list[JSON]:
    answers = answers_of(messages)
    turns: list[JSON] = []
    answered = 0
    for at, message in enumerate(messages):
        losses["files and parts of other kinds"] += sum(
            not isinstance(part, Text | Reasoning | ToolCall | ToolCallResponse) for part in message.parts
        )
        if message.role == "tool":
            losses["texts and files beside tools' answers"] += any(isinstance(part, Text) for part in message.parts)
            continue  # its answers stand after their calls
        if message.role != "assistant":
            losses["calls that the user's own tools answered"] += len(message.tool_calls)
            losses["thinking of others"] += bool(message.reasoning)
            turns.append({"from": _FROM[message.role], "value": _words(message)})
            answered += sum(place is not None for place in answers.get(at, ()))
            continue
        turns += _said(message, losses)
        places = answers.get(at, [])
        losses["answers of which an earlier one is missing"] += sum(
            place is not None and None in places[:number] for number, place in enumerate(places)
        )
        for place in places:
            if place is not None:
                part = messages[place[0]].responses[place[1]]
                turns.append({"from": "observation", "value": answer_text(part)})
                answered += 1
    losses["answers to no call"] += sum(len(message.responses) for message in messages) - answered
    return turns


def _said(message: Message, losses: Losses) -> list[JSON]:
    """What the agent said and called."""
    words = _words(message)
    losses["texts that hold tags"] += split_reasoning(words) != ("", words) or any(tag in words for tag in _TAGS)
    thinking = "\n".join(part.content for part in message.parts if isinstance(part, Reasoning) and part.content)
    calls = [_call(call, losses) for call in message.tool_calls]
    if thinking:
        words = f"<think>\n{thinking}\n</think>\n\n{words}"
    if not calls:
        return [{"from": "gpt", "value": words}]
    if not words:
        value = calls[0] if len(calls) == 1 else calls
        return [{"from": "function_call", "value": json.dumps(value, ensure_ascii=False)}]
    losses["white space around words beside calls"] += words != words.strip()
    tagged = "".join(f"\n<tool_call>\n{json.dumps(call, ensure_ascii=False)}\n</tool_call>" for call in calls)
    return [{"from": "gpt", "value": words + tagged}]


def _call(call: ToolCall, losses: Losses) -> Entry:
    losses["calls whose arguments are no object"] += not isinstance(call.arguments, dict | None)
    return {"name": call.name, "arguments": {} if call.arguments is None else call.arguments}


def _words(message: Message) -> str:
    return "\n".join(part.content for part in message.parts if isinstance(part, Text) and part.content)


__all__ = ["sharegpt_record"]
