"""Boundaries between calls: each of the six kinds from what was read and written, with and without a tokenizer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm2_agent.models.tokenizer import byte_tokenizer
from cm2_agent.trainers.boundaries import KINDS, CallTokens, boundary, shared_prefix

TOKENIZER: Any = byte_tokenizer(["hello", " order"])


def tokens(text: str) -> list[int]:
    return list(TOKENIZER.encode(text))


def asked(prompt: list[int], completion: list[int], **more: Any) -> CallTokens:
    return CallTokens(prompt=prompt, completion=completion, **more)


FIRST = asked([1, 2, 3], [10, 11, 12])
HELD = [1, 2, 3, 10, 11, 12]


@pytest.mark.parametrize(
    ("calls", "kind", "after", "shared", "gone"),
    [
        ([FIRST, asked([*HELD, 4, 5], [20])], "CLEAN", 0, 6, 0),
        ([FIRST, asked(HELD, [20])], "CLEAN", 0, 6, 0),
        ([replace(FIRST, finish_reason="length"), asked([*HELD, 4], [20])], "TRUNCATED", 0, 6, 0),
        ([replace(FIRST, finish_reason="MAX_TOKENS"), asked([*HELD, 4], [20])], "TRUNCATED", 0, 6, 0),
        ([replace(FIRST, finish_reason="stop"), asked([*HELD, 4], [20])], "CLEAN", 0, 6, 0),
        # the ending alone is another
        ([FIRST, asked([1, 2, 3, 10, 11, 99, 4], [20])], "REALIGNED", 0, 5, 1),
        # thinking is dropped from the answer, and from the one before it
        ([FIRST, asked([1, 2, 3, 12, 4], [20])], "FORK", 0, 3, 3),
        ([FIRST, asked([*HELD, 4], [20]), asked([1, 2, 3, 12, 4, 20, 5], [30])], "FORK", 1, 3, 5),
        # the past is another
        ([FIRST, asked([1, 9, 3, 10, 11, 12, 4], [20])], "FORK", 0, 1, 5),
        ([FIRST, asked([7], [20])], "FORK", 0, 0, 6),
        ([FIRST, asked([1, 2], [20])], "FORK", 0, 2, 4),
        # a window over the dialogue: the first message is left out, the answer is there
        ([FIRST, asked([1, 3, 10, 11, 12, 4], [20])], "TRUNCATED", 0, 1, 1),
        ([FIRST, asked([*HELD, 4], [20]), asked([1, 4, 20, 5], [30])], "TRUNCATED", 1, 1, 5),
        # two agents take turns
        ([FIRST, asked([7, 8], [20]), asked([*HELD, 4], [30])], "PARALLEL", 0, 6, 0),
        (
            [replace(FIRST, agent="a"), asked([1, 8], [20], agent="b")],
            "PARALLEL",
            0,
            1,
            5,
        ),
        # two calls at a time
        ([replace(FIRST, started=1, ended=9), asked([1, 2, 3, 4], [20], started=5, ended=8)], "PARALLEL", 0, 3, 3),
        ([replace(FIRST, started=1, ended=4), asked([1, 2, 3, 4], [20], started=5, ended=8)], "FORK", 0, 3, 3),
    ],
)
def test_kinds(calls: list[CallTokens], kind: str, after: int, shared: int, gone: int) -> None:
    found = boundary(calls, len(calls) - 1)
    assert (found.kind, found.after, found.shared, found.gone) == (kind, after, shared, gone), found.why


def test_what_was_encoded_anew_is_told_by_a_tokenizer() -> None:
    question = tokens("<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n")
    by_bytes = [tokens(letter)[0] for letter in "hello"] + tokens("<|im_end|>")  # though there is a word for it
    by_word = tokens("hello<|im_end|>")
    again = tokens("\n<|im_start|>user\n order<|im_end|>\n<|im_start|>assistant\n")
    assert TOKENIZER.decode(by_bytes) == TOKENIZER.decode(by_word)
    cases = [
        (by_word, by_word, "CLEAN", "CLEAN"),
        (by_bytes, by_bytes, "REALIGNED", "CLEAN"),  # the model's own ids were kept
        (by_bytes, by_word, "RETOKENISED", "FORK"),
        (by_word, by_bytes, "RETOKENISED", "FORK"),
        (by_word, tokens(" order<|im_end|>"), "FORK", "FORK"),
        (by_word, by_word[:-1] + tokens("<|pad|>"), "REALIGNED", "REALIGNED"),
    ]
    other_stop = by_word[:-1] + tokens("<|pad|>")
    cases.append((other_stop, [*other_stop, *tokens("<|im_end|>")], "REALIGNED", "CLEAN"))  # both endings
    for wrote, read, with_tokenizer, without in cases:
        calls = [asked(question, wrote), asked([*question, *read, *again], [5])]
        assert boundary(calls, 1, TOKENIZER).kind == with_tokenizer
        assert boundary(calls, 1).kind == without


def test_other_numbers_of_calls_are_those_that_are_said() -> None:
    found = boundary([FIRST, asked([7, 8], [20]), asked([*HELD, 4], [30])], 2, numbers=[3, 5, 6])
    assert (found.after, found.why) == (3, "goes on from call 3, beside call 5")


IDS = st.lists(st.integers(0, 4), max_size=6)


@given(IDS, IDS)
def test_the_shared_prefix_is_the_longest(left: list[int], right: list[int]) -> None:
    size = shared_prefix(np.array(left, np.int64), np.array(right, np.int64))
    assert left[:size] == right[:size]
    assert size in (len(left), len(right)) or left[size] != right[size]


@given(
    st.lists(
        st.builds(
            CallTokens,
            prompt=st.lists(st.integers(0, 3), min_size=1, max_size=8),
            completion=st.lists(st.integers(0, 3), min_size=1, max_size=3),
            agent=st.sampled_from([None, "a", "b"]),
            finish_reason=st.sampled_from([None, "stop", "length"]),
            started=st.integers(0, 3),
            ended=st.integers(0, 3),
        ),
        min_size=2,
        max_size=5,
    )
)
def test_every_boundary_has_one_kind_and_true_counts(calls: list[CallTokens]) -> None:
    for tokenizer in (None, TOKENIZER):
        for number in range(1, len(calls)):
            found = boundary(calls, number, tokenizer)
            held = calls[found.after].held
            assert found.kind in KINDS
            assert found.after < number
            assert list(calls[number].prompt[: found.shared]) == held[: found.shared].tolist()
            assert found.shared + found.gone <= len(held)
            extends = list(calls[number].prompt[: len(held)]) == held.tolist()
            assert extends == (found.shared == len(held))
            assert extends == (found.gone == 0)
