"""Calls whose strings stand between single quotes as they are: read whole, or not at all."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm2_agent.models.quoted_calls import quoted_calls


def block(*calls: tuple[str, dict[str, Any]]) -> str:
    written = [
        f"{name}({', '.join(f'{key}={_value(value)}' for key, value in values.items())})" for name, values in calls
    ]
    return f"<|tool_call_start|>[{', '.join(written)}]<|tool_call_end|>"


def _value(value: Any) -> str:
    return f"'{value}'" if isinstance(value, str) else str(value)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["look", "a.b"]),
            st.dictionaries(
                st.sampled_from(["x", "y"]),
                st.text(st.characters(codec="utf-8", exclude_characters="'"))
                | st.booleans()
                | st.integers()
                | st.lists(st.integers() | st.booleans() | st.none(), max_size=3),
            ),
        ),
        min_size=1,
        max_size=3,
    )
)
def test_what_is_written_is_read(calls: list[tuple[str, dict[str, Any]]]) -> None:
    said, found = quoted_calls(f"One moment.{block(*calls)}", ())
    assert [(call.name, call.arguments) for call in found] == calls
    assert said == "One moment."


@pytest.mark.parametrize(
    ("code", "arguments"),
    [
        ("[look(x='it's 7)')]", {"x": "it's 7)"}),
        ("[look(x=')')]", {"x": ")"}),
        ("[look(x='a\\nb', y=None)]", {"x": "a\\nb", "y": None}),
        ("[look(x=\"it's 7\", y=['a'])]", {"x": "it's 7", "y": ["a"]}),
        ("[look(x={\"a\": [1, '}']})]", {"x": {"a": [1, "}"]}}),
        ("[look(x='<|tool_call_end|>')]", {"x": "<|tool_call_end|>"}),
        ("[look()]", {}),
    ],
)
def test_quotes_and_brackets_within_strings(code: str, arguments: dict[str, Any]) -> None:
    said, (call,) = quoted_calls(f"<|tool_call_start|>{code}<|tool_call_end|>", ())
    assert (said, call.name, call.arguments) == ("", "look", arguments)


@pytest.mark.parametrize(
    "text",
    [
        "<|tool_call_start|>[look(x='a')]",
        "<|tool_call_start|>[look(x='a)]<|tool_call_end|>",
        "<|tool_call_start|>[look('a')]<|tool_call_end|>",
        "<|tool_call_start|>[look(x='a', x='b')]<|tool_call_end|>",
        "<|tool_call_start|>[look(x=open('a'))]<|tool_call_end|>",
        "<|tool_call_start|>[look(x='a') or y]<|tool_call_end|>",
        "<|tool_call_start|>look(x='a')<|tool_call_end|>",
        "<|tool_call_start|>[]<|tool_call_end|>",
        "<|tool_call_start|>[look(x=[1, )]<|tool_call_end|>",
        "<|tool_call_start|>" + "[" * 5000 + "<|tool_call_end|>",
    ],
)
def test_what_is_no_whole_call_is_an_error(text: str) -> None:
    said, (call,) = quoted_calls(text, ())
    assert (said, call.arguments) == ("", None)
    assert call.error


@given(st.text(max_size=80) | st.lists(st.sampled_from("'()[]{},=x 7\\\n"), max_size=40).map("".join))
def test_nothing_is_raised(code: str) -> None:
    said, calls = quoted_calls(f"<|tool_call_start|>{code}<|tool_call_end|>", ())
    assert all((call.arguments is None) == bool(call.error) for call in calls)
    assert calls or not said
