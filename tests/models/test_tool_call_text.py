"""Tool calls in text: what is read, and what looks like a call and is none, with the reason."""

from __future__ import annotations

import pytest

from cm2_agent.models.tool_call_text import find_calls

READ = {
    "plain": ('<tool_call>\n{"name": "a", "arguments": {"id": 7}}\n</tool_call>', {"id": 7}),
    "parameters": ('<tool_call>{"name": "a", "parameters": {"id": 7}}</tool_call>', {"id": 7}),
    "a string of JSON": ('<tool_call>{"name": "a", "arguments": "{\\"id\\": 7}"}</tool_call>', {"id": 7}),
    "no arguments": ('<tool_call>{"name": "a"}</tool_call>', {}),
    "the closing tag in an argument": (
        '<tool_call>{"name": "a", "arguments": {"text": "uses </tool_call> tags"}}</tool_call>',
        {"text": "uses </tool_call> tags"},
    ),
}
BROKEN = {
    "not closed": ('<tool_call>{"name": "a", "arguments": {}}', "a", "not closed"),
    "not JSON": ('<tool_call>{"name": "a", "arguments": {"id": 7}</tool_call>', "a", "not JSON"),
    "a line break in a string": ('<tool_call>{"name": "a", "arguments": {"t": "x\ny"}}</tool_call>', "a", "not JSON"),
    "other keys": ('<tool_call>{"name": "a", "args": {"id": 7}}</tool_call>', "a", "unknown keys args"),
    "both": ('<tool_call>{"name": "a", "arguments": {}, "parameters": {}}</tool_call>', "a", "both"),
    "a key twice": (
        '<tool_call>{"name": "a", "arguments": {"id": 7, "id": 8}}</tool_call>',
        "a",
        "'id' is given twice",
    ),
    "a name twice": (
        '<tool_call>{"name": "a", "name": "b", "arguments": {}}</tool_call>',
        "a",
        "'name' is given twice",
    ),
    "twice, in a string": (
        '<tool_call>{"name": "a", "arguments": "{\\"i\\": 1, \\"i\\": 2}"}</tool_call>',
        "a",
        "twice",
    ),
    "no number": ('<tool_call>{"name": "a", "arguments": {"id": NaN}}</tool_call>', "a", "NaN is no JSON number"),
    "too large": ('<tool_call>{"name": "a", "arguments": {"id": 1e999}}</tool_call>', "a", "1e999 is too large"),
    "a list": ('<tool_call>[{"name": "a", "arguments": {}}]</tool_call>', "a", "a list of calls"),
    "Qwen3-Coder": ("<tool_call>\n<function=a>\n</function>\n</tool_call>", None, "not JSON"),
    "Llama 3": ('{"name": "a", "parameters": {"id": 7}}', "a", "not marked"),
    "Llama 3, several": ('[{"name": "a", "parameters": {}}]', "a", "not marked"),
    "Llama, marked": ('<|python_tag|>{"name": "a", "parameters": {}}', "a", "Llama"),
    "Mistral": ('[TOOL_CALLS] [{"name": "a", "arguments": {}}]', "a", "Mistral"),
    "Mistral, newer": ("[TOOL_CALLS]a[ARGS]{}", None, "Mistral"),
    "Granite": ('<|tool_call|>[{"name": "a", "arguments": {}}]', "a", "Granite"),
    "DeepSeek": ("<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>a<｜tool▁sep｜>{}<｜tool▁call▁end｜>", None, "DeepSeek"),
    "gpt-oss": ("<|channel|>commentary to=functions.a<|constrain|>json<|message|>{}", None, "gpt-oss"),
    "Gemma": ("```tool_code\na(id=7)\n```", None, "Gemma"),
    "Python": ("[a(id=7), b()]", "a", "not marked"),
    "the opening tag is missing": ('{"name": "a", "arguments": {}}</tool_call>', "a", "not marked"),
}
REPLIES = (
    "Your order was shipped.",
    '{"name": "Ada", "age": 36}',
    "[1, 2]",
    "[see(7)]",
    "[]",
    "{broken",
    "Use a(id=7), as in [a(id=7)].",
    "```python\na(id=7)\n```",
)


@pytest.mark.parametrize("kind", READ)
def test_calls_are_read(kind: str) -> None:
    text, arguments = READ[kind]
    said, (call,) = find_calls(f"One moment. {text}")
    assert (said, call.name, call.arguments, call.error) == ("One moment.", "a", arguments, None)


@pytest.mark.parametrize("kind", BROKEN)
def test_what_looks_like_a_call_is_no_reply(kind: str) -> None:
    text, name, problem = BROKEN[kind]
    said, (call,) = find_calls(text)
    assert (said, call.name, call.arguments) == ("", name, None)
    assert call.error is not None
    assert problem in call.error


@pytest.mark.parametrize("text", REPLIES)
def test_a_reply_is_no_call(text: str) -> None:
    assert find_calls(text) == (text, [])


def test_several_calls_each_in_its_place() -> None:
    said, calls = find_calls('a<tool_call>{"name": "x"}</tool_call>b<tool_call>{</tool_call>c')
    assert said == "abc"
    assert [(call.name, call.error is None) for call in calls] == [("x", True), (None, False)]
