"""Items of OpenAI's Responses API, its input and its output, as chat messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from cm2_agent.types.json_values import JSON, json_text

_CALLS: Final = frozenset(
    {"function_call", "custom_tool_call", "local_shell_call", "shell_call", "apply_patch_call", "computer_call"}
)
"""Calls that the caller runs and answers: their status says whether they were written to their end."""
_ANSWERS: Final = frozenset(f"{call}_output" for call in _CALLS)
_ITS_OWN: Final[Mapping[str, tuple[str, ...]]] = {
    "web_search_call": ("action",),
    "file_search_call": ("queries",),
    "code_interpreter_call": ("code", "container_id"),
    "image_generation_call": ("prompt",),
    "mcp_call": ("arguments",),
    "mcp_list_tools": ("server_label",),
}
"""Calls of the provider's own tools, answered within the item, and their arguments."""
_TYPES: Final = _CALLS | _ANSWERS | _ITS_OWN.keys() | {"reasoning"}


def is_responses(item: Mapping[str, JSON]) -> bool:
    """Whether it is an item: a call, its output, thinking, or a message of `output_text` or `input_text`."""
    kind = str(item.get("type"))
    if kind in _TYPES and "role" not in item:
        return True
    content = item.get("content")
    blocks = content if isinstance(content, list) else []
    typed = any(isinstance(one, Mapping) and str(one.get("type")) in {"output_text", "input_text"} for one in blocks)
    return typed or (kind == "message" and "role" in item)


def responses_to_chat(items: Sequence[Mapping[str, JSON]]) -> list[JSON]:
    """The items as chat messages: what the model wrote in a row, thinking, text and calls, is one message of its."""
    found: list[JSON] = []
    open_step: dict[str, JSON] | None = None

    def step() -> dict[str, JSON]:
        nonlocal open_step
        if open_step is None:
            open_step = {"role": "assistant", "content": [], "tool_calls": []}
            found.append(open_step)
        return open_step

    for item in items:
        kind = str(item.get("type"))
        if kind == "reasoning" and "role" not in item:
            step()["content"] += [
                {"type": "reasoning", "reasoning": text} for text in _thinking(item) if isinstance(text, str) and text
            ]
        elif kind in _CALLS and "role" not in item:
            step()["tool_calls"].append(_call(item))
        elif kind in _ITS_OWN and "role" not in item:
            arguments = item.get("arguments") or {key: item[key] for key in _ITS_OWN[kind] if key in item}
            name = str(item.get("name") or kind.removesuffix("_call"))
            step()["tool_calls"].append({"id": item.get("id"), "name": name, "arguments": arguments})
            answer = _result(item)
            if answer is not None:
                found.append(answer)
                open_step = None
        elif kind in _ANSWERS and "role" not in item:
            found.append(_answer(item.get("call_id", item.get("id")), item.get("output")))
            open_step = None
        elif item.get("role") == "assistant":
            content = item.get("content")
            text: list[JSON] = content if isinstance(content, list) else [content] if content else []
            if open_step is not None and not open_step["tool_calls"]:
                open_step["content"] += text
            else:
                open_step = None
                step()["content"] += text
            step()["tool_calls"] += item["tool_calls"] if isinstance(item.get("tool_calls"), list) else []
            if item.get("weight") is not None:
                step()["weight"] = item["weight"]
        else:
            open_step = None
            found.append({key: value for key, value in item.items() if key not in ("type", "status", "id")})
    return found


def _thinking(item: Mapping[str, JSON]) -> list[JSON]:
    """Its thinking: the text where it is given, else the summary; an encrypted one has neither."""
    for key in ("content", "summary"):
        blocks = item.get(key)
        if isinstance(blocks, list) and blocks:
            return [block.get("text") if isinstance(block, Mapping) else block for block in blocks]
    return []


def _call(item: Mapping[str, JSON]) -> dict[str, JSON]:
    identity = item.get("call_id", item.get("id"))
    if item.get("type") == "custom_tool_call":
        return {"id": identity, "custom": {"name": item.get("name"), "input": item.get("input")}}
    if item.get("type") == "function_call":
        return {"id": identity, "name": item.get("name"), "arguments": item.get("arguments")}
    return {
        "id": identity,
        "name": str(item.get("type")).removesuffix("_call"),
        "arguments": item.get("action", item.get("operation")),
    }


def _result(item: Mapping[str, JSON]) -> dict[str, JSON] | None:
    """What a call of the provider's own tool gave; None where it did not run to its end. One that ended and tells no
    result, as searches do unless they are asked to, gives its status."""
    action = item.get("action")
    found = (item.get(key) for key in ("output", "outputs", "result", "tools"))
    result = next((one for one in found if one is not None), None)
    if item.get("results") is not None:  # pieces of files, whose texts alone would tell less
        result = json_text(item["results"])
    if result is None and isinstance(action, Mapping):
        result = action.get("sources")
    status = item.get("status")
    if item.get("error") or status == "failed":
        told = item.get("error") or result
        return _answer(item.get("id"), {"status": status} if told is None else told, failed=True)
    if result is None and status != "completed":
        return None
    answer = _answer(item.get("id"), {"status": status} if result is None else result)
    return {**answer, "is_error": False} if status == "completed" else answer


def _answer(identity: JSON, output: JSON, *, failed: bool = False) -> dict[str, JSON]:
    text = output if isinstance(output, str | list) else json_text(output)
    return {"role": "tool", "tool_call_id": identity, "content": text, **({"is_error": True} if failed else {})}


__all__ = ["is_responses", "responses_to_chat"]
