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
    """Stops a tool that is not named before it runs, wherever it is called from (a plain function node, a sub-agent).

    LangChain tells callbacks of a tool before calling it; raising there is what keeps the call from happening.
    `stopped` remembers the names, since a graph may catch the error and go on."""

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
