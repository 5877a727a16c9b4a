"""What `watch` takes: a graph whose calls LangChain's callbacks show in this process."""

from __future__ import annotations

import inspect
from typing import Any

from langchain_core.runnables import Runnable
from langchain_core.runnables.base import RunnableBindingBase
from langgraph.graph import StateGraph
from langgraph.pregel.protocol import PregelProtocol
from langgraph.pregel.remote import RemoteGraph

_EXPECTED = "expected a compiled LangGraph graph"


def check_watchable(graph: object) -> None:
    """Raises TypeError for what has no callbacks to listen to, and says what to do instead. Runnables that are no
    graphs (chains, models) are taken: each of their invocations is a run.

    >>> check_watchable(print)
    Traceback (most recent call last):
        ...
    TypeError: watch was given the function print; expected a compiled LangGraph graph: make it one with \
langgraph.func.entrypoint, or wrap it as RunnableLambda(print)
    """
    inner: Any = graph
    while isinstance(inner, RunnableBindingBase):
        inner = inner.bound
    kind = type(inner)
    module = kind.__module__.partition(".")[0]
    if isinstance(inner, type):
        problem = f"the class {inner.__name__}; {_EXPECTED}: give an instance"
    elif isinstance(inner, RemoteGraph):
        problem = (
            f"a RemoteGraph, whose calls run in another process; {_EXPECTED}: watch the graph in the application that"
            " serves it, or call the remote graph in a node of a graph here"
        )
    elif isinstance(inner, StateGraph):
        problem = f"a {kind.__name__} that is not compiled; {_EXPECTED}: call graph.compile() first"
    elif isinstance(inner, Runnable | PregelProtocol):
        return
    elif module == "pydantic_ai":
        problem = f"a pydantic-ai {kind.__name__}; expected a compiled LangGraph graph or a pydantic-ai Agent"
    elif callable(getattr(inner, "compile", None)):
        problem = f"a {kind.__name__}; {_EXPECTED}: call .compile() first"
    elif inspect.isroutine(inner):
        name = getattr(inner, "__name__", kind.__name__)
        problem = (
            f"the function {name}; {_EXPECTED}: make it one with langgraph.func.entrypoint, or wrap it as"
            f" RunnableLambda({name})"
        )
    else:
        problem = (
            f"a {kind.__module__}.{kind.__qualname__}; {_EXPECTED}: call graph.compile() first, or call the object in a"
            " node of a graph and say with input= and output= which keys hold the user's message and the reply"
        )
    raise TypeError(f"watch was given {problem}")
