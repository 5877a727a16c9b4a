"""The switch as middleware for `langchain.agents.create_agent`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from cm2_agent.errors import MissingExtra

from . import tool_node as switch

try:
    from langchain.agents.middleware import AgentMiddleware
except ImportError as error:
    raise MissingExtra("langchain", "agents of langchain.agents") from error


class ToolSwitch(AgentMiddleware[Any, Any, Any]):
    """Runs the agent's tool calls, or their stand-ins', as the run's `Backends` say; where a run has none, nothing
    changes.

    `create_agent(model, tools, middleware=[…, ToolSwitch()])`: last, so that other middleware sees what the switch
    answered. An agent that `switched(graph)` was applied to needs it not, and is not harmed by it: a call is switched
    once."""

    def wrap_tool_call(self, request: Any, handler: Callable[[Any], Any]) -> Any:
        return switch.wrap_tool_call(request, handler)

    async def awrap_tool_call(self, request: Any, handler: Callable[[Any], Awaitable[Any]]) -> Any:
        return await switch.awrap_tool_call(request, handler)


__all__ = ["ToolSwitch"]
