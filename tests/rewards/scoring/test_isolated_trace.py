"""The copy of a trace that checks are given: it looks like the trace, shares none of it, and shows what was changed."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from cm2_agent.rewards.scoring.isolated_trace import IsolatedTrace
from cm2_agent.types.trace import Trace
from cm2_agent.types.view import View
from tests.fuzzing import examples
from tests.strategies import traces


def looked_at(trace: Trace) -> list[Any]:
    """All that a check can see."""
    views = [
        View(trace=trace, turn=turn, seen=seen)
        for turn in (*range(len(trace.turns)), None)
        for seen in range(len(trace.scope(turn).steps) + 1)
    ]
    seen = [
        (v.steps, v.all_calls, v.replies, v.user, v.user_text, v.turns, v.dialogue_steps, v.results(), v.failed_calls)
        for v in views
    ]
    prompts = [(call.input, call.tools) for call in trace.calls]
    return [seen, prompts, trace.attributes, trace.messages, trace.steps, trace.run_ends, trace.to_json()]


def containers(value: Any, found: dict[int, Any]) -> None:
    """All that can be changed in what a check sees: dicts, lists, and the frozen objects' own fields."""
    if id(value) in found:
        return
    if isinstance(value, dict | list) or is_dataclass(value):
        found[id(value)] = value
    inner: Any = ()
    if isinstance(value, dict):
        inner = value.values()
    elif isinstance(value, list | tuple):
        inner = value
    elif is_dataclass(value):
        inner = [getattr(value, one.name) for one in fields(value)]
    for one in inner:
        containers(one, found)


def reachable(trace: Trace) -> dict[int, Any]:
    found: dict[int, Any] = {}
    for scope in (*range(len(trace.turns)), None):
        containers(trace.scope(scope).steps, found)
        containers(trace.scope(scope).calls, found)
    for part in (trace.runs, trace.turns, trace.attributes, trace.outcomes, trace.run_ends):
        containers(part, found)
    return found


@settings(max_examples=examples(25))
@given(traces())
def test_a_copy_looks_like_the_trace_and_shares_none_of_it(trace: Trace) -> None:
    copy = IsolatedTrace(trace)
    assert repr(looked_at(copy)).replace("_IsolatedCall", "ModelCall") == repr(looked_at(trace))
    assert copy.is_unchanged
    assert not reachable(copy).keys() & reachable(trace).keys()


@settings(max_examples=examples(25))
@given(traces(), st.data())
def test_every_change_is_seen(trace: Trace, data: st.DataObject) -> None:
    copy = IsolatedTrace(trace)
    looked_at(copy)
    places = list(reachable(copy).values())
    if not places:
        return
    at = data.draw(st.integers(0, len(places) - 1))
    place = places[at]
    before = trace.to_json()
    if isinstance(place, dict):
        place["a key of its own"] = 1
    elif isinstance(place, list):
        place.append("more")
    else:
        name = data.draw(st.sampled_from([one.name for one in fields(place)]))
        object.__setattr__(place, name, "another value of its own")
    assert not copy.is_unchanged
    assert trace.to_json() == before
