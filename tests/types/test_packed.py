"""Packed numbers behave as the tuple of them, whatever buffers they lie in, and share memory with what they were cut
from."""

from __future__ import annotations

import copy
import pickle
from array import array
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm2_agent.types.packed import Packed

IDS = st.lists(st.integers(-3, 3), max_size=6)


@st.composite
def packed(draw: st.DrawFn) -> tuple[Packed[int], tuple[int, ...]]:
    """A sequence in one or several buffers, some of which went on after it, and the tuple of its numbers."""
    found: Packed[int] = Packed()
    plain: tuple[int, ...] = ()
    for _ in range(draw(st.integers(0, 4))):
        if draw(st.booleans()):
            cut = draw(st.integers(0, len(plain)))
            found, plain = found[:cut], plain[:cut]
        more = draw(IDS)
        grown = found.followed_by(array("i", more))
        if draw(st.booleans()):
            found, plain = grown, (*plain, *more)
    return found, plain


@given(packed(), packed(), st.slices(8), st.integers(-8, 8))
def test_it_is_the_tuple_of_its_numbers(
    one: tuple[Packed[int], tuple[int, ...]], other: tuple[Packed[int], tuple[int, ...]], part: slice, place: int
) -> None:
    (mine, plain), (theirs, others) = one, other
    assert mine == plain
    assert plain == mine
    assert mine != list(plain)
    assert (mine == theirs) == (plain == others)
    assert [mine < theirs, mine <= theirs, mine > theirs, mine >= theirs] == [
        plain < others,
        plain <= others,
        plain > others,
        plain >= others,
    ]
    assert [mine < others, mine >= others] == [plain < others, plain >= others]
    assert hash(mine) == hash(plain)
    assert repr(mine) == repr(plain)
    assert len(mine) == len(plain)
    assert list(mine) == list(plain)
    assert mine[part] == plain[part]
    assert mine.joined(theirs) == plain + others == mine + theirs == plain + theirs == mine + others
    assert mine.begins_with(theirs) == (plain[: len(others)] == others)
    assert mine.begins_with(others) == (plain[: len(others)] == others)
    assert [mine.count(one) for one in range(-3, 4)] == [plain.count(one) for one in range(-3, 4)]
    assert (place in mine) == (place in plain)
    if -len(plain) <= place < len(plain):
        assert mine[place] == plain[place]
    else:
        with pytest.raises(IndexError):
            mine[place]


@given(packed())
def test_copies_pickles_and_arrays_hold_the_same_numbers(one: tuple[Packed[int], tuple[int, ...]]) -> None:
    mine, plain = one
    for again in (copy.copy(mine), copy.deepcopy(mine), pickle.loads(pickle.dumps(mine)), mine.joined(Packed())):
        assert again == plain
    assert np.asarray(mine).tolist() == list(plain)
    assert np.array(mine, dtype=np.float64).tolist() == list(plain)


def test_what_goes_on_is_the_same_memory() -> None:
    """A dialogue that is read call by call is one buffer, and nobody writes into it through an array."""
    first = Packed.of(array("i", [1, 2]))
    second = first.followed_by(array("i", [3]))
    assert np.shares_memory(np.asarray(first), np.asarray(second))
    assert second[1:].begins_with(second[1:2])
    fork = first.followed_by(array("i", [9]))  # the buffer has gone on with 3
    assert [tuple(one) for one in (first, second, fork)] == [(1, 2), (1, 2, 3), (1, 2, 9)]
    with pytest.raises(ValueError, match="read-only"):
        np.asarray(first)[0] = 7


@pytest.mark.parametrize(("ids", "kind"), [([0, 2**31 - 1], "int32"), ([2**31], "int64"), ([-(2**40)], "int64")])
def test_ids_of_any_size(ids: list[int], kind: str) -> None:
    assert Packed.of_ids(ids) == tuple(ids)
    assert str(np.asarray(Packed.of_ids(ids)).dtype) == kind


@pytest.mark.parametrize("wrong", [[0.5], ["a"], [None]])
def test_what_is_no_id_is_refused(wrong: list[Any]) -> None:
    with pytest.raises(TypeError):
        Packed.of_ids(wrong)


def test_logprobs_are_of_float32() -> None:
    logprobs = Packed.of(array("f", [-0.1, -2.5]))
    assert logprobs == tuple(np.array([-0.1, -2.5], dtype=np.float32).tolist())
    assert np.asarray(logprobs, dtype=np.float64).tolist() == list(logprobs)
