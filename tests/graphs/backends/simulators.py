"""Tasks, replies and simulators for tests of the simulator; `closed` closes those that a test made."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest

from cm2_agent.graphs.backends.simulate import SimulatedTools
from cm2_agent.llm.prices import Price
from cm2_agent.llm.providers import openai_model
from cm2_agent.types.messages import Message, ToolSpec
from cm2_agent.types.task import RecordedCall, Task
from cm2_agent.types.tool_calls import ToolRequest
from tests.chat_server import ChatServer, Reply, last_message

PARAMETERS = {
    "type": "object",
    "properties": {"order_id": {"type": "integer"}},
    "required": ["order_id"],
    "additionalProperties": False,
}
GET = ToolSpec(name="get_order", description="Looks an order up.", parameters=PARAMETERS)
CANCEL = ToolSpec(name="cancel_order", description="Cancels an order.", parameters=PARAMETERS)
TYPED = replace(
    GET,
    output={
        "type": "object",
        "properties": {"order_id": {"type": "integer"}, "status": {"$ref": "#/$defs/status"}},
        "required": ["order_id", "status"],
        "$defs": {"status": {"enum": ["new", "shipped"]}},
    },
)
RECORDED = tuple(
    RecordedCall(name=name, arguments={"order_id": number}, result=json.dumps({"order_id": number, "status": "new"}))
    for name, number in [("cancel_order", 7), ("get_order", 1), ("get_order", 7), ("get_order", 2)]
)
TASK = Task(id="t", turns=("Where is order 7?",), tools=(GET, CANCEL), recorded=RECORDED)
SHIPPED = {"result": {"order_id": 7, "status": "shipped"}, "error": None}
FREE = Price(input=0.0, output=0.0)

_OPEN: list[SimulatedTools] = []


@pytest.fixture(autouse=True)
async def closed() -> AsyncIterator[None]:
    yield
    while _OPEN:
        await _OPEN.pop().aclose()


def simulating(server: ChatServer, **options: Any) -> SimulatedTools:
    given: dict[str, Any] = {"task": TASK, "backoff": 0.0, **options}
    _OPEN.append(SimulatedTools(openai_model(server.base_url, "stub"), **given))
    return _OPEN[-1]


def call(order: Any = 7, tool: ToolSpec = GET, messages: Iterable[Message] = ()) -> ToolRequest:
    return ToolRequest(tool=tool, arguments={"order_id": order}, messages=tuple(messages))


def always(reply: Reply) -> Callable[[dict[str, Any]], Reply]:
    return lambda body: reply


def one_after_another(*replies: Reply) -> Callable[[dict[str, Any]], Reply]:
    waiting = iter(replies)
    return lambda body: next(waiting)


def shown(body: dict[str, Any]) -> list[dict[str, Any]]:
    """The data lines of a prompt: everything before the line with the mark."""
    text = last_message(body)
    (end,) = re.finditer(r"^END OF DATA ([0-9a-f]{32})$", text, re.MULTILINE)
    assert text.count(end[1]) == 3, "the mark is nowhere but in the prompt's own lines"
    return [json.loads(line) for line in text[: end.start()].splitlines()]
