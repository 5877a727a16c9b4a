"""Tool calls in the format of each family: read whole, or a call in error; never a guess, never a reply."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm2_agent.models.call_formats import FORMATS
from cm2_agent.models.call_values import python_calls, typed
from cm2_agent.models.chat_template import parse_completion

BY_NAME = {form.name: form for form in FORMATS}
TOOL = {
    "type": "function",
    "function": {
        "name": "get_order",
        "parameters": {
            "type": "object",
            "properties": {"order_id": {"type": "integer"}, "note": {"type": "string"}},
        },
    },
}
WRITTEN = {
    "hermes": ['<tool_call>\n{"name": "get_order", "arguments": {"order_id": 7}}\n</tool_call>'],
    "qwen3-coder": [
        "<tool_call>\n<function=get_order>\n<parameter=order_id>\n7\n</parameter>\n</function>\n</tool_call>",
        "<tool_call><function=get_order><parameter=order_id>7</parameter></function></tool_call>",
    ],
    "glm": [
        "<tool_call>get_order\n<arg_key>order_id</arg_key>\n<arg_value>7</arg_value>\n</tool_call>",
        "<tool_call>get_order<arg_key>order_id</arg_key><arg_value>7</arg_value></tool_call>",
    ],
    "llama": [
        '{"name": "get_order", "parameters": {"order_id": 7}}',
        '{"type": "function", "name": "get_order", "parameters": {"order_id": 7}}',
        '<|python_tag|>{"name": "get_order", "parameters": {"order_id": 7}}<|eom_id|>',
    ],
    "mistral": [
        '[TOOL_CALLS] [{"name": "get_order", "arguments": {"order_id": 7}}]',
        '[TOOL_CALLS][{"name": "get_order", "arguments": {"order_id": 7}, "id": "a1B2c3D4e"}]</s>',
        '[TOOL_CALLS]get_order[ARGS]{"order_id": 7}',
        '[TOOL_CALLS]get_order[CALL_ID]a1B2c3D4e[ARGS]{"order_id": 7}',
    ],
    "granite": [
        '<|tool_call|>[{"name": "get_order", "arguments": {"order_id": 7}}]',
        '<|tool_call|>[{"name": "get_order", "arguments": {"order_id": 7}}]<|/tool_call|>',
    ],
    "deepseek": [
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_order\n```json\n"
        '{"order_id": 7}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>'
    ],
    "deepseek-3.1": [
        '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_order<｜tool▁sep｜>{"order_id": 7}<｜tool▁call▁end｜>'
        "<｜tool▁calls▁end｜>"
    ],
    "kimi": [
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_order:0<|tool_call_argument_begin|>"
        '{"order_id": 7}<|tool_call_end|><|tool_calls_section_end|>'
    ],
    "harmony": [
        '<|channel|>commentary to=functions.get_order <|constrain|>json<|message|>{"order_id": 7}<|call|>',
        ' to=functions.get_order<|channel|>commentary json<|message|>{"order_id": 7}',
        "<|channel|>analysis<|message|>Look.<|end|><|start|>assistant<|channel|>commentary to=functions.get_order"
        '<|constrain|>json<|message|>{"order_id": 7}<|call|>',
    ],
    "pythonic": [
        "[get_order(order_id=7)]",
        "<|tool_call_start|>[get_order(order_id=7)]<|tool_call_end|>",
        "<|python_start|>[get_order(order_id=7)]<|python_end|>",
    ],
    "lfm2.5": ["<|tool_call_start|>[get_order(order_id=7)]<|tool_call_end|>"],
    "gemma-tool-code": ["```tool_code\nget_order(order_id=7)\n```"],
    "invoke": [
        '<minimax:tool_call>\n<invoke name="get_order">\n<parameter name="order_id">7</parameter>\n</invoke>\n'
        "</minimax:tool_call>",
    ],
}
CASES = [(name, text) for name, texts in WRITTEN.items() for text in texts]
NOT_NEEDED = (
    *("<|eom_id|>", "<|call|>", "</s>", "<|/tool_call|>", "<｜tool▁calls▁end｜>", "<|tool_calls_section_end|>"),
    "</minimax:tool_call>",
)
"""What may be missing: the JSON before it is whole, or the mark is one of the whole group's."""
LETTERS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
WORDS = st.text(st.sampled_from(list("ab7 {}[]()<>\"'\\,:=/|`\n｜▁")), max_size=12)


def test_every_format_has_cases() -> None:
    assert set(WRITTEN) == set(BY_NAME)


@pytest.mark.parametrize(("name", "text"), CASES)
def test_a_call_is_read(name: str, text: str) -> None:
    message = parse_completion(text, form=BY_NAME[name], tools=[TOOL])
    assert [(call["name"], call["args"]) for call in message.tool_calls] == [("get_order", {"order_id": 7})]
    assert (message.content, message.invalid_tool_calls) == ("", [])


@pytest.mark.parametrize(("name", "text"), CASES)
def test_a_call_that_was_cut_is_never_run(name: str, text: str) -> None:
    """Whatever is left of it: no call but the whole one, whose closing mark may be missing where it has none."""
    whole = {"get_order": {"order_id": 7}}
    for length in range(len(text)):
        message = parse_completion(text[:length], form=BY_NAME[name], tools=[TOOL])
        assert all(whole[call["name"]] == call["args"] for call in message.tool_calls)
        if message.tool_calls:
            assert any(mark.endswith(text[length:].strip()) for mark in NOT_NEEDED)


@pytest.mark.parametrize(("name", "text"), CASES)
def test_another_familys_call_is_an_error_and_no_reply(name: str, text: str) -> None:
    for other, form in BY_NAME.items():
        message = parse_completion(text, form=form, tools=[TOOL])
        read = [(call["name"], call["args"]) for call in message.tool_calls]
        assert read in ([], [("get_order", {"order_id": 7})])
        if other == name:
            continue
        assert message.invalid_tool_calls or read


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("mistral", '[TOOL_CALLS][{"name": "get_order", "arguments": {"order_id": 7}'),
        ("mistral", '[TOOL_CALLS]get_order[ARGS]{"order_id": 7} and more'),
        ("mistral", "[TOOL_CALLS]get_order"),
        ("llama", 'Sure: {"name": "get_order", "parameters": {"order_id": 7}}'),
        ("llama", '{"name": "get_order", "parameters": {"order_id": 7}} Done.'),
        ("llama", "<|python_tag|>get_order.call(order_id=7)"),
        ("qwen3-coder", "<tool_call>\n<function=get_order>\n<parameter=order_id>\n7\n</function>\n</tool_call>"),
        ("qwen3-coder", '<tool_call>{"name": "get_order", "arguments": {"order_id": 7}}</tool_call>'),
        (
            "qwen3-coder",
            "<tool_call><function=get_order><parameter=order_id>7</parameter><parameter=order_id>8</parameter>"
            "</function></tool_call>",
        ),
        ("glm", "<tool_call>get_order<arg_key>order_id</arg_key><arg_value>7</tool_call>"),
        ("pythonic", "[get_order(7)]"),
        ("pythonic", "[get_order(order_id=__import__('os').getpid())]"),
        ("pythonic", "[get_order(order_id=1e999)]"),
        (
            "deepseek-3.1",
            '<｜tool▁call▁begin｜>get_order<｜tool▁sep｜>{"order_id": 7, "order_id": 8}<｜tool▁call▁end｜>',
        ),
        ("granite", '<|tool_call|>[{"name": "get_order", "args": {"order_id": 7}}]'),
        ("harmony", '<|channel|>commentary to=functions.get_order<|message|>{"order_id": NaN}<|call|>'),
    ],
)
def test_a_broken_call_says_why(name: str, text: str) -> None:
    message = parse_completion(text, form=BY_NAME[name], tools=[TOOL])
    assert message.tool_calls == []
    assert message.invalid_tool_calls[0]["error"]


@given(st.sampled_from(sorted(BY_NAME)), st.lists(st.one_of(WORDS, st.sampled_from([t for _, t in CASES])), max_size=4))
def test_nothing_is_raised_and_arguments_are_json(name: str, pieces: list[str]) -> None:
    message = parse_completion("".join(pieces), form=BY_NAME[name], tools=[TOOL])
    for call in message.tool_calls:
        assert json.loads(json.dumps(call["args"], allow_nan=False)) == call["args"]


@given(LETTERS)
def test_any_text_is_an_argument(text: str) -> None:
    """As JSON in the formats that have JSON; its own marks in it too."""
    written = json.dumps({"note": text})
    for name, around in (
        ("mistral", f"[TOOL_CALLS]get_order[ARGS]{written}"),
        ("llama", f'{{"name": "get_order", "parameters": {written}}}'),
        ("deepseek-3.1", f"<｜tool▁call▁begin｜>get_order<｜tool▁sep｜>{written}<｜tool▁call▁end｜>"),
        ("pythonic", f"[get_order(note={text!r})]"),
    ):
        said, calls = BY_NAME[name].read(around, [TOOL])
        assert (said, [(call.name, call.arguments) for call in calls]) == ("", [("get_order", {"note": text})])


@pytest.mark.parametrize(
    ("text", "types", "value"),
    [
        ("007", {"string"}, "007"),
        ("7", {"integer"}, 7),
        ("7", {"integer", "null"}, 7),
        ("None", {"integer", "null"}, None),
        ("null", {"string", "null"}, None),
        ("7", {"string", "null"}, "7"),
        ("7", {"string", "integer"}, 7),
        ("[1, 2]", {"array"}, [1, 2]),
        ("{'a': True}", {"object"}, {"a": True}),
        ("True", {"boolean"}, True),
        ("many", {"integer"}, "many"),
        ("Rome", set(), "Rome"),
    ],
)
def test_a_schema_gives_types_to_text(text: str, types: set[str], value: object) -> None:
    assert typed(text, frozenset(types)) == value


def test_python_is_read_and_never_run() -> None:
    assert python_calls("a.b(x=-1, y={'k': [None, True]})\nc()") == [
        ("a.b", {"x": -1, "y": {"k": [None, True]}}),
        ("c", {}),
    ]
    assert "no literal" in str(python_calls("[a(x=open('f'))]"))
    assert "keyword" in str(python_calls("[a(x=1, x=2)]")) or "twice" in str(python_calls("[a(x=1, x=2)]"))
    assert isinstance(python_calls("[" * 5000), str)
