"""Result files of the Berkeley Function Calling Leaderboard: what a model called, and (multi-turn) what it was asked.

Source: github.com/ShishirPatil/gorilla (`berkeley-function-call-leaderboard`, `result/MODEL/BFCL_v4_*_result.json`)."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping

from cm2_agent.errors import TraceError
from cm2_agent.importers.chat import Chat, mapping_of, text_of
from cm2_agent.importers.openai_messages import arguments_of, read_messages
from cm2_agent.types.json_values import JSON

MOST = 1_000_000
"""Characters of a text that is read as calls."""


def is_bfcl(record: JSON) -> bool:
    """Whether it is a result: an id of a test, and what the model answered."""
    if not isinstance(record, Mapping) or not isinstance(record.get("id"), str) or "result" not in record:
        return False
    known = ("inference_log", "input_token_count", "output_token_count", "latency", "reasoning_content")
    return isinstance(record["result"], list) or any(key in record for key in known)


def read_bfcl(record: JSON) -> Chat:
    """One result → its dialogue: without a log the calls alone, since the file names neither the question nor the
    functions. Raises TraceError."""
    if not isinstance(record, Mapping) or "result" not in record:
        raise TraceError("holds no result; expected id and result, as bfcl generate writes them")
    result, log = record["result"], record.get("inference_log")
    if isinstance(result, str) and result.startswith("Error during inference"):
        raise TraceError(f"the model was not asked: {result[:120]}; there is nothing to import")
    logged = [*_logged(log)]
    messages = logged or [*_turns(result)]
    if not messages:
        raise TraceError("the result is empty: the model called nothing and wrote nothing")
    identity = text_of(record.get("id"))
    return Chat(
        messages=read_messages(messages, unmarked=True),
        key=["bfcl", identity, result],
        prefix=f"bfcl-{identity}",
        name="bfcl",
        task=identity,
        note=None if logged else "a BFCL result without inference_log holds the calls alone, without what was asked",
    )


def _turns(result: JSON) -> Iterator[JSON]:
    """Turns of steps (multi-turn), one list of calls, or one text."""
    if isinstance(result, list) and result and all(isinstance(turn, list) for turn in result):
        for turn in result:
            yield from (_step(step) for step in turn)
    elif isinstance(result, str | list) and result:
        yield _step(result)


def _step(step: JSON) -> dict[str, JSON]:
    """What the model wrote in one step: calls as text (`ls(a=True)`), as objects by name, or words."""
    calls = [call for one in (step if isinstance(step, list) else [step]) for call in _calls(one)]
    if calls:
        return {"role": "assistant", "content": None, "tool_calls": calls}
    return {"role": "assistant", "content": step if isinstance(step, str) else "\n".join(map(str, step))}


def _calls(one: JSON) -> list[JSON]:
    if isinstance(one, Mapping):
        return [{"name": str(name), "arguments": arguments_of(arguments)} for name, arguments in one.items()]
    return python_calls(one) if isinstance(one, str) else []


def python_calls(text: str) -> list[JSON]:
    """The calls that a text of Python is (`f(x=1)`, `[f(x=1), g()]`), none where it is anything else. Nothing is run.
    Arguments without a name are named by their place, `"0"` and on.

    >>> python_calls("[ls(a=True), cd('x')]")
    [{'name': 'ls', 'arguments': {'a': True}}, {'name': 'cd', 'arguments': {'0': 'x'}}]
    >>> python_calls("I cannot do that.")
    []
    """
    if len(text) > MOST:
        return []
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        found = [_call(node) for node in (tree.elts if isinstance(tree, ast.List | ast.Tuple) else [tree])]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    return found


def _call(node: ast.expr) -> JSON:
    if not isinstance(node, ast.Call):
        raise ValueError("no call")
    arguments: dict[str, JSON] = {str(place): _literal(value) for place, value in enumerate(node.args)}
    for keyword in node.keywords:
        if keyword.arg is None:
            raise ValueError("arguments by a mapping")
        arguments[keyword.arg] = _literal(keyword.value)
    return {"name": ast.unparse(node.func), "arguments": arguments}


def _literal(node: ast.expr) -> JSON:
    """The value that is written out; an expression stays the text that it is."""
    try:
        value = ast.literal_eval(node)
    except (ValueError, TypeError):
        return ast.unparse(node)
    return (
        _json(value) if isinstance(value, str | int | float | bool | list | tuple | dict | type(None)) else repr(value)
    )


def _json(value: object) -> JSON:
    if isinstance(value, list | tuple):
        return [_json(one) for one in value]
    if isinstance(value, dict):
        return {str(key): _json(one) for key, one in value.items()}
    return value if isinstance(value, str | int | float | bool | type(None)) else repr(value)


def _logged(log: JSON) -> Iterator[JSON]:
    """The messages of a multi-turn log: each turn's question, and of each step what model and functions said."""
    if not isinstance(log, list):
        return
    for turn in log:
        if not isinstance(turn, Mapping):
            continue
        yield from (one for one in _list(turn.get("begin_of_turn_query")) if isinstance(one, Mapping) and "role" in one)
        steps = sorted(
            (key for key in turn if key.startswith("step_")),
            key=lambda key: int(key[5:] or 0) if (key[5:].isdecimal()) else 0,
        )
        for key in steps:
            yield from _logged_step(_list(turn[key]))


def _logged_step(entries: list[JSON]) -> Iterator[JSON]:
    """A step's messages. Where the benchmark's handler read calls in words of the model that we do not read so (a fence
    of code, JSON), these are its calls."""
    entries = [mapping_of(entry) for entry in entries]
    for place, entry in enumerate(entries):
        content = entry.get("content")
        if entry.get("role") == "assistant":
            said = _step(content if content is not None else "")
            handled = entries[place + 1] if place + 1 < len(entries) else {}
            decoded = handled.get("model_response_decoded") if handled.get("role") == "handler_log" else None
            if "tool_calls" not in said and isinstance(decoded, list) and decoded:
                read = _step(decoded)
                said = {**read, **said}
            yield {**said, "reasoning_content": entry.get("reasoning_content")}
        elif entry.get("role") == "tool":
            yield {"role": "tool", "tool_call_id": entry.get("tool_call_id"), "content": content}


def _list(value: JSON) -> list[JSON]:
    return value if isinstance(value, list) else []


__all__ = ["is_bfcl", "python_calls", "read_bfcl"]
