"""The callback handler that stops a real tool before it is called, unless it is named."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler

from cm2_agent.errors import ToolError
from cm2_agent.types.run_attributes import TOOL_BACKEND

from ..backends.tool_backends import REAL


class RealToolGuard(BaseCallbackHandler):
    """A callback handler that stops a tool before it runs unless it is named, wherever a graph calls it from.

    It reaches the LangChain tools that plain function nodes and sub-agents call, too; stand-ins are let through.
    `stopped` holds the names of the tools that were stopped, since a graph may catch the error and go on. `run` puts
    one into every rollout; give it to other graphs as `config={"callbacks": [guard]}`.

    Args:
        allow_real: The names of the tools that may run.

    Raises:
        ToolError: From within the call of a tool that is not named.

    >>> from langchain_core.tools import tool
    >>> from cm2_agent import CM2Error
    >>> from cm2_agent.graphs import RealToolGuard
    >>> @tool
    ... def refund(order_id: int) -> str:
    ...     "Pay an order back."
    ...     return "paid"
    >>> guard = RealToolGuard(allow_real=["get_order"])
    >>> try:
    ...     refund.invoke({"order_id": 7}, {"callbacks": [guard]})
    ... except CM2Error as error:
    ...     print(error)
    tool 'refund' was not called: a run calls no real tool that is not in allow_real=['get_order']
    >>> guard.stopped
    {'refund'}
    """

    raise_error = True
    run_inline = True
    # called for tools alone: every event that it ignores is dispatched faster
    ignore_llm = ignore_chain = ignore_retriever = ignore_chat_model = ignore_custom_event = ignore_retry = property(
        lambda self: True
    )

    def __init__(self, allow_real: Iterable[str]) -> None:
        self.allowed = frozenset(allow_real)
        self.stopped: set[str] = set()

    def on_tool_start(self, serialized: dict[str, Any], input_str: str, *, run_id: UUID, **kwargs: Any) -> None:
        name = str(kwargs.get("name") or (serialized or {}).get("name") or "")
        backend = (kwargs.get("metadata") or {}).get(TOOL_BACKEND)
        if backend is not None and backend not in REAL:
            return  # a stand-in, which calls nothing real
        if name not in self.allowed:
            self.stopped.add(name)
            raise ToolError(
                f"tool {name!r} was not called: a run calls no real tool that is not in"
                f" allow_real={sorted(self.allowed)}"
            )


__all__ = ["RealToolGuard"]
