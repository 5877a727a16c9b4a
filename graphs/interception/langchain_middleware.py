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
    """Middleware that lets stand-ins answer the tool calls of a `create_agent` agent, as the run's backends say.

    Where a run has no backends (production) nothing changes. It comes last, so that other middleware sees the answers.
    `run` switches the agents that it is given by itself, so only an agent that is built anew in a node needs it; a call
    is switched once.

        create_agent(model, tools, middleware=[…, ToolSwitch()])

    >>> from langchain.agents import create_agent
    >>> from langchain_core.language_models import GenericFakeChatModel
    >>> from cm2_agent.graphs import ToolSwitch
    >>> model = GenericFakeChatModel(messages=iter(["It was shipped."]))
    >>> graph = create_agent(model, [], middleware=[ToolSwitch()])
    >>> graph.invoke({"messages": [("user", "Where is order 7?")]})["messages"][-1].content
    'It was shipped.'
    """

    def wrap_tool_call(self, request: Any, handler: Callable[[Any], Any]) -> Any:
        return switch.wrap_tool_call(request, handler)

    async def awrap_tool_call(self, request: Any, handler: Callable[[Any], Awaitable[Any]]) -> Any:
        return await switch.awrap_tool_call(request, handler)


__all__ = ["ToolSwitch"]
