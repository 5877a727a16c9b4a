"""JSON values: one spelling for all that are equal, and equality as JSON has it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given

from cm2_agent.types.json_values import canonical_json, content_hash, same_json
from tests.strategies import jsons


@given(jsons(6))
def test_the_canonical_spelling_reads_back(value: Any) -> None:
    text = canonical_json(value)
    assert same_json(json.loads(text), value)
    assert canonical_json(json.loads(text)) == text
    assert len(content_hash(value)) == 64


def test_key_order_does_not_change_the_hash() -> None:
    assert content_hash({"a": 1, "b": [2]}) == content_hash({"b": [2], "a": 1})
    assert content_hash({"a": 1}) != content_hash({"a": "1"})
    assert content_hash("\ud800") != content_hash("?")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [float("-inf")]])
def test_what_is_no_json_number_has_no_spelling(value: Any) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical_json(value)


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        (1, 1.0, True),
        (1, True, False),
        (0, False, False),
        ([1, (2,)], [1.0, [2]], True),
        ([1], [1, 2], False),
        ({"a": 1, "b": None}, {"b": None, "a": 1}, True),
        ({"a": 1}, {"a": 1, "b": None}, False),
        ("1", 1, False),
    ],
)
def test_equality_is_that_of_json(left: Any, right: Any, same: bool) -> None:
    assert same_json(left, right) is same
    assert same_json(right, left) is same
