"""The text of content blocks, and what is none."""

from __future__ import annotations

from typing import Any

import pytest

from cm2_agent.types.dialogue_words import as_text
from cm2_agent.types.tool_content import content_text

TEXT = {"type": "text", "text": "late"}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ([TEXT], "late"),
        ([TEXT, "very", {"type": "image", "url": "u"}], "late\nvery"),
        ([{"type": "text", "text": ""}], ""),
    ],
)
def test_texts_of_content_blocks(value: Any, text: str) -> None:
    assert content_text(value) == as_text(value) == text


@pytest.mark.parametrize(
    "value",
    [None, [], "late", ["a", "b"], [{"type": "order", "text": "late"}], [TEXT, 7], [TEXT, {"id": 1}], {"text": "late"}],
)
def test_other_values_stay(value: Any) -> None:
    assert content_text(value) == value
