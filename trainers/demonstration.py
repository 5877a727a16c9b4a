"""Demonstrations: dialogues that a script writes with the real tools, for a policy to begin with."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any


class Demonstration:
    """A dialogue that is written down as it goes: what the user asks, what the clerk calls and says.

    `messages` are those of a chat template. Arguments of tool calls are strings of JSON (data sets would merge the
    objects of different tools into one). Write some demonstrations as they should be and more that are sloppy: what the
    policy later does right was then learnt from rewards.

    Args:
        system: the system message, left out where it is empty.

    >>> from cm2_agent.trainers import Demonstration
    >>> def get_order(order_id):
    ...     return f"Order {order_id} was sent."
    >>> shown = Demonstration("Look up the order.")
    >>> shown.hear("Where is order 7?")
    >>> shown.say(shown.call(get_order, order_id="7"))
    >>> [message["role"] for message in shown.messages], shown.messages[-1]["content"]
    (['system', 'user', 'assistant', 'tool', 'assistant'], 'Order 7 was sent.')
    """

    def __init__(self, system: str = "") -> None:
        self.messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []

    def hear(self, text: str) -> None:
        """The user says this."""
        self.messages.append({"role": "user", "content": text})

    def say(self, text: str) -> None:
        """The agent answers this."""
        self.messages.append({"role": "assistant", "content": text})

    def call(self, tool: Any, /, **arguments: Any) -> str:
        """The agent calls a tool, a LangChain tool or a function, which runs; returns its answer as the agent reads
        it, JSON where it is no text. What the tool raises is raised."""
        name, run = _named(tool)
        answer = run(arguments)
        result = answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)
        function = {"name": name, "arguments": json.dumps(arguments)}
        self.messages.append(
            {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}
        )
        self.messages.append({"role": "tool", "name": name, "content": result})
        return result


def _named(tool: Any) -> tuple[str, Callable[[dict[str, Any]], Any]]:
    invoke = getattr(tool, "invoke", None)
    if callable(invoke):
        return str(tool.name), lambda arguments: invoke(arguments)
    return str(tool.__name__), lambda arguments: tool(**arguments)
