"""Typed functions as tools: what the model is told of them, what they are given, and that their results are JSON."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import enum
import json
import socket
from collections.abc import Callable
from decimal import Decimal
from typing import Annotated, Any

import jsonschema
import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import InjectedToolArg, InjectedToolCallId, ToolException
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, ToolRuntime
from langgraph.types import Command
from pydantic import BaseModel, Field

from cm2_agent.errors import ToolError
from cm2_agent.graphs.agent_loop import agent
from cm2_agent.graphs.tools.functions import FunctionTools
from tests.tracing.apps import ScriptedModel


class Speed(enum.Enum):
    FAST = "fast"
    SLOW = "slow"


class Address(BaseModel):
    street: str
    country: str = "NL"


class Order(BaseModel):
    order_id: int
    to: Address = Field(serialization_alias="shipTo")
    speed: Speed = Speed.FAST


@dataclasses.dataclass
class Stock:
    item: str
    left: int
    day: datetime.date


def get_order(order_id: int, full: bool = False) -> Order:
    """Look an order up.

    With everything there is to know."""
    return Order(order_id=order_id, to=Address(street="Dam 1"), speed=Speed.SLOW if full else Speed.FAST)


async def count_stock(item: Annotated[str, Field(description="What to count.")], at: datetime.date) -> list[Stock]:
    """Count what is left."""
    await asyncio.sleep(0)
    return [Stock(item, 3, at)]


def move(address: Address, speed: Speed, notes: list[str] | None = None) -> str:
    """Move to an address."""
    return f"{type(address).__name__} {address.country} {speed.name} {notes}"


Secret = Annotated[str, InjectedToolArg]


def who(call_id: Annotated[str, InjectedToolCallId], runtime: ToolRuntime, secret: Secret = "s", x: int = 0) -> Any:
    """Who is calling?"""
    return {"call": call_id, "state": len(runtime.state["messages"]), "x": x}


TOOLS = FunctionTools(get_order, count_stock, move, who, reads=["get_order", "count_stock"])


def calling(*calls: tuple[str, dict[str, Any]]) -> AIMessage:
    asked: list[Any] = [
        {"name": name, "args": args, "id": f"c{number}", "type": "tool_call"}
        for number, (name, args) in enumerate(calls)
    ]
    return AIMessage(content="", tool_calls=asked)


async def answers(tools: FunctionTools, *calls: tuple[str, dict[str, Any]]) -> list[ToolMessage]:
    """What a real graph's tool node makes of the calls."""
    graph = agent(ScriptedModel(script=[calling(*calls), AIMessage("done")]), tools)
    state = await graph.ainvoke({"messages": [HumanMessage("?")]})
    return [message for message in state["messages"] if isinstance(message, ToolMessage)]


def test_what_a_task_writes_down() -> None:
    specs = {spec.name: spec for spec in TOOLS.specs}
    assert list(specs) == ["get_order", "count_stock", "move", "who"]
    assert specs["get_order"].description == "Look an order up.\n\nWith everything there is to know."
    assert specs["get_order"].parameters["required"] == ["order_id"]
    assert specs["get_order"].parameters["properties"]["full"]["default"] is False
    assert specs["count_stock"].parameters["properties"]["item"]["description"] == "What to count."
    assert specs["who"].parameters["properties"].keys() == {"x"}  # injected arguments are not the model's
    assert [spec.reads for spec in specs.values()] == [True, True, False, False]
    assert specs["move"].output is None
    assert specs["who"].output is None
    assert [spec.reads for spec in FunctionTools(get_order).specs] == [None]


async def test_results_are_json_that_fits_the_output_schema() -> None:
    specs = {spec.name: spec for spec in TOOLS.specs}
    got, stock = await answers(
        TOOLS, ("get_order", {"order_id": 7, "full": True}), ("count_stock", {"item": "é", "at": "2026-05-20"})
    )
    assert json.loads(got.text) == {"order_id": 7, "shipTo": {"street": "Dam 1", "country": "NL"}, "speed": "slow"}
    assert stock.content == '[{"item": "é", "left": 3, "day": "2026-05-20"}]'
    for message in (got, stock):
        output = specs[str(message.name)].output
        assert output is not None
        jsonschema.validate(json.loads(message.text), dict(output))


async def test_arguments_are_what_the_annotations_say() -> None:
    moved, named, broken = await answers(
        TOOLS,
        ("move", {"address": {"street": "a"}, "speed": "slow"}),
        ("who", {"x": 2, "secret": "from the model"}),
        ("move", {"address": {}, "speed": "never"}),
    )
    assert moved.content == "Address NL SLOW None"
    assert json.loads(named.text) == {"call": "c1", "state": 2, "x": 2}
    assert broken.status == "error"
    assert "street" in broken.text


def test_sync_functions_run_in_sync_graphs() -> None:
    node = ToolNode(FunctionTools(get_order))
    graph = StateGraph(MessagesState).add_node("tools", node).add_edge(START, "tools").compile()
    state = graph.invoke({"messages": [calling(("get_order", {"order_id": 1}))]})
    assert json.loads(state["messages"][-1].content)["order_id"] == 1


def divide(by: int) -> float:
    """Divide."""
    return 1 / by


class Desk:
    """A world of its own: its methods are tools."""

    def __init__(self) -> None:
        self.orders: dict[int, str] = {}

    def put(self, order_id: int, status: str) -> None:
        """Put an order."""
        self.orders[order_id] = status

    async def get(self, order_id: int) -> str | None:
        """Get an order."""
        return self.orders.get(order_id)


async def test_as_a_plug() -> None:
    desk = Desk()
    tools = FunctionTools(desk.put, desk.get, get_order)
    assert await tools("put", {"order_id": "7", "status": "open"}) is None
    assert desk.orders == {7: "open"}
    assert await tools("get", {"order_id": 7}) == "open"
    assert (await tools("get_order", {"order_id": 7}))["order_id"] == 7
    with pytest.raises(ToolError, match="there is no tool 'refund'; the tools are get, get_order, put"):
        await tools("refund", {})
    with pytest.raises(ToolException, match="order_id"):
        await tools("get", {"order_id": "x"})
    with pytest.raises(ToolException, match="arguments of get are list"):
        await tools("get", [7])
    with pytest.raises(ZeroDivisionError):
        await FunctionTools(divide)("divide", {"by": 0})


class Model(BaseModel):
    anything: Any


@pytest.mark.parametrize(
    ("result", "kind"),
    [
        (object(), "object"),
        (float("nan"), "float"),
        ([1, {"a": float("inf")}], "list"),
        (Model(anything=float("nan")), "Model"),
        (Stock("x", float("nan"), datetime.date.today()), "Stock"),  # type: ignore[arg-type]
        (b"\xff", "bytes"),
        (Model(anything=object()), "Model"),
        (lambda: 1, "function"),
    ],
)
async def test_results_that_are_no_json(result: Any, kind: str) -> None:
    def give() -> Any:
        """Give."""
        return result

    async def wait() -> Any:
        """Wait."""
        return result

    for name in ("give", "wait"):
        with pytest.raises(ToolError, match=rf"tool '{name}' returned {kind}, which is not JSON"):
            await answers(FunctionTools(give, wait), (name, {}))


async def test_a_socket_and_a_cycle_are_no_json() -> None:
    def connect() -> Any:
        """Connect."""
        return open_socket

    def cycle() -> list[Any]:
        """Go round."""
        ring: list[Any] = []
        ring.append(ring)
        return ring

    tools = FunctionTools(connect, cycle)
    with socket.socket() as open_socket, pytest.raises(ToolError, match="tool 'connect' returned socket"):
        await tools("connect", {})
    with pytest.raises(ToolError, match="tool 'cycle' returned list, which is not JSON: Circular"):
        await tools("cycle", {})


async def test_what_pydantic_can_serialise_is_json() -> None:
    def various() -> Any:
        """Various."""
        return {
            "d": Decimal("1.10"),
            "when": datetime.datetime(2026, 5, 20, tzinfo=datetime.UTC),
            "s": {Speed.FAST},
            1: (None, "é"),
        }

    assert await FunctionTools(various)("various", {}) == {
        "d": "1.10",
        "when": "2026-05-20T00:00:00Z",
        "s": ["fast"],
        "1": [None, "é"],
    }


async def test_a_command_updates_the_graph() -> None:
    def note(text: str, call_id: Annotated[str, InjectedToolCallId]) -> Command[Any]:
        """Note something."""
        return Command(update={"messages": [ToolMessage(f"noted {text}", tool_call_id=call_id)]})

    tools = FunctionTools(note)
    assert tools.specs[0].output is None
    (message,) = await answers(tools, ("note", {"text": "x"}))
    assert message.content == "noted x"


def bare(x, y: int) -> str:  # type: ignore[no-untyped-def]
    """Bare."""
    return f"{x}{y}"


def undocumented(x: int) -> str:
    return str(x)


def many(*x: int) -> str:
    """Many."""
    return str(x)


def open_ended(**x: int) -> str:
    """Open ended."""
    return str(x)


def by_place(x: int, /) -> str:
    """By place."""
    return str(x)


def lost(x: Nowhere) -> str:  # type: ignore[name-defined]  # noqa: F821
    """Lost."""
    return str(x)


def plug_in() -> socket.socket:
    """Plug in."""
    return socket.socket()


def call_back() -> Callable[[], int]:
    """Call back."""
    return lambda: 1


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        (bare, "function 'bare': parameter 'x' has no annotation"),
        (undocumented, "'undocumented' has no docstring"),
        (many, r"'many': parameter .\*x: 'int'. cannot be given by name"),
        (open_ended, r"'open_ended': parameter .* by name"),
        (by_place, "'by_place': parameter .* by name"),
        (lost, "'lost': an annotation cannot be resolved .*Nowhere"),
        (plug_in, "tool 'plug_in' returns .*socket.*, which cannot be JSON"),
        (call_back, "tool 'call_back' returns .*Callable"),
        (TOOLS[0], "is a tool already"),
        (7, "int '7' is no function"),
        (Desk(), "is no function"),
    ],
)
def test_what_cannot_be_a_tool(function: Any, problem: str) -> None:
    with pytest.raises(ToolError, match=problem):
        FunctionTools(function)


def test_names_are_unique_and_known() -> None:
    with pytest.raises(ToolError, match="two tools are named 'get_order'"):
        FunctionTools(get_order, move, get_order)
    with pytest.raises(ToolError, match="reads names gte_order, but the functions are get_order, move"):
        FunctionTools(get_order, move, reads=["gte_order"])


def test_a_sequence_of_langchain_tools() -> None:
    assert len(TOOLS) == 4
    assert [tool.name for tool in TOOLS[1:3]] == ["count_stock", "move"]
    assert TOOLS[-1].name == "who"
    assert TOOLS[0] in TOOLS
    assert repr(TOOLS) == "FunctionTools(get_order, count_stock, move, who)"
    assert not FunctionTools()
