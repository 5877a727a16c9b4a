"""The walk over what code refers to: it finds what is there, ends, and runs nothing of the application's."""

from __future__ import annotations

import functools
import gc
import types
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import BaseTool
from langgraph.graph import MessagesState

from cm2_agent.graphs.interception.discovery import undiscovered_tools
from tests.fuzzing import examples
from tests.graphs.interception.test_discovery import Desk, by_default, erase, graph, in_closure, look


class Explosive:
    """An object of which no code may run."""

    def __init__(self) -> None:
        object.__setattr__(self, "used", look)

    def _bang(self, *given: Any) -> Any:
        raise AssertionError("the application's code was run")

    __getattribute__ = __getattr__ = __eq__ = __hash__ = __iter__ = __len__ = __bool__ = __repr__ = _bang
    __class__ = property(_bang)
    value = property(_bang)


class ExplosiveList(list[Any]):
    def __iter__(self) -> Any:
        raise AssertionError("the application's code was run")

    __len__ = __iter__


class ExplosiveDict(dict[str, Any]):
    def items(self) -> Any:
        raise AssertionError("the application's code was run")

    __iter__ = keys = values = __len__ = items


def test_nothing_of_the_application_runs() -> None:
    with pytest.raises(AssertionError):
        list(ExplosiveList())
    assert undiscovered_tools(graph(in_closure((Explosive(),)))) == {"look": "work"}
    assert undiscovered_tools(graph(in_closure((ExplosiveList([look]), ExplosiveDict(erase=erase))))) == {
        "erase": "work",
        "look": "work",
    }


def _around(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        st.lists(inner, min_size=1, max_size=3),
        st.dictionaries(st.text(max_size=3), inner, min_size=1, max_size=3),
        st.tuples(inner),
        inner.map(lambda held: types.SimpleNamespace(held=held)),
        inner.map(lambda held: functools.partial(by_default, held)),
        inner.map(in_closure),
        inner.map(lambda held: Desk(held).node),
        inner.map(lambda held: RunnableLambda(in_closure(held))),
    )


@settings(max_examples=examples(60))
@given(held=st.recursive(st.sampled_from([look, erase, None, 7, "look"]), _around, max_leaves=6))
def test_whatever_holds_a_tool_it_is_found_and_nothing_else_is(held: Any) -> None:
    holds = {name for name, one in (("look", look), ("erase", erase)) if _holds(held, one)}
    assert set(undiscovered_tools(graph(in_closure(held)))) == holds


def _holds(held: Any, wanted: Any) -> bool:
    """The same question, answered by the interpreter's own references."""
    seen: dict[int, Any] = {}
    waiting = [held]
    while waiting:
        one = waiting.pop()
        if one is wanted or id(one) in seen:
            if one is wanted:
                return True
            continue
        seen[id(one)] = one
        if not isinstance(one, BaseTool | type | types.ModuleType) and one is not by_default.__globals__:
            waiting.extend(gc.get_referents(one))
    return False


def test_circles_come_to_an_end() -> None:
    around: list[Any] = [look]
    around.append(around)
    desk = Desk()
    desk.tools = (desk, around)  # type: ignore[assignment]

    def first(state: MessagesState) -> dict[str, Any]:
        return second(state) if around else desk.node(state)

    def second(state: MessagesState) -> dict[str, Any]:
        return first(state) if state else app.invoke(state)

    app = graph(first)
    assert undiscovered_tools(app) == {"look": "work"}
