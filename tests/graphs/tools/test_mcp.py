"""Tools of real MCP servers, over stdio and streamable HTTP: what they say, how they fail, and that they are closed
whatever happens."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import ToolException
from langgraph.prebuilt import ToolNode

from cm2_agent.errors import MissingExtra, ToolError
from cm2_agent.graphs.agent_loop import agent
from cm2_agent.graphs.tools.mcp import McpTools
from tests.tracing.apps import ScriptedModel

pytestmark = pytest.mark.slow

HERE = Path(__file__).resolve().parent
SERVER, ODD = str(HERE / "mcp_server.py"), str(HERE / "mcp_odd_server.py")
TOKEN, KEY = "hush-hush-4711", "in-the-address-0815"
Make = Callable[..., McpTools]


@pytest.fixture
def http_server() -> Iterator[str]:
    """The address of a server of its own."""
    server = subprocess.Popen([sys.executable, SERVER, "http"], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        yield f"http://127.0.0.1:{server.stdout.readline().strip()}/mcp?key={KEY}"
    finally:
        server.kill()
        server.wait()
        server.stdout.close()


@pytest.fixture(params=["stdio", "http"])
def shop(request: pytest.FixtureRequest) -> Make:
    """Makes the shop's tools, by either way."""
    if request.param == "stdio":
        return lambda **how: McpTools.stdio(sys.executable, SERVER, env={"SHOP_TOKEN": TOKEN}, **how)
    address: str = request.getfixturevalue("http_server")
    return lambda **how: McpTools.http(address, headers={"X-Shop-Token": TOKEN}, **how)


def alive(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    return True


async def answers(tools: Any, *calls: tuple[str, dict[str, Any]]) -> list[ToolMessage]:
    """What a real graph's tool node makes of the calls."""
    asked: list[Any] = [
        {"name": name, "args": args, "id": f"c{number}", "type": "tool_call"}
        for number, (name, args) in enumerate(calls)
    ]
    graph = agent(ScriptedModel(script=[AIMessage("", tool_calls=asked), AIMessage("done")]), tools)
    state = await graph.ainvoke({"messages": [HumanMessage("?")]})
    return [message for message in state["messages"] if isinstance(message, ToolMessage)]


async def test_what_the_tools_say(shop: Make) -> None:
    async with shop() as tools:
        specs = {spec.name: spec for spec in tools.specs}
        assert set(specs) == {
            "get_order",
            "cancel_order",
            "list_orders",
            "count_orders",
            "draw",
            "sing",
            "pid",
            "secrets",
            "hang",
            "die",
        }
        assert specs["get_order"].description == "Look an order up."
        assert specs["get_order"].parameters["required"] == ["order_id"]
        assert specs["get_order"].parameters["properties"]["full"]["default"] is False
        assert (specs["get_order"].output or {})["properties"].keys() == {"order_id", "status"}
        assert (specs["count_orders"].output or {})["type"] == "integer"
        assert {name for name, spec in specs.items() if spec.output} == {"get_order", "count_orders"}
        assert {name: spec.reads for name, spec in specs.items() if spec.reads is not None} == {
            "get_order": True,
            "cancel_order": False,
        }
        got, listed, drawn, revealed, failed, broken = await answers(
            tools,
            ("get_order", {"order_id": 7}),
            ("list_orders", {}),
            ("draw", {}),
            ("secrets", {}),
            ("cancel_order", {"order_id": 9}),
            ("cancel_order", {"order_id": "x"}),
        )
        assert json.loads(got.text) == {"order_id": 7, "status": "shipped"}
        assert listed.content == "7\n8"
        assert drawn.content == [
            {"type": "text", "text": "a picture"},
            {"type": "image", "base64": "cG5n", "mime_type": "image/png"},
        ]
        assert revealed.content == TOKEN
        assert (failed.status, broken.status, got.status) == ("error", "error", "success")
        assert failed.content == "Error executing tool cancel_order: no order 9"
        assert "valid integer" in broken.text
        with pytest.raises(ToolError, match=r"'sing' of the MCP server .* sound"):
            await answers(tools, ("sing", {}))


async def test_one_session_keeps_its_state(shop: Make) -> None:
    async with shop() as tools:
        assert await tools("pid", {}) == await tools("pid", {})
        assert await tools("cancel_order", {"order_id": 7}) == "cancelled"
        assert json.loads(await tools("get_order", {"order_id": 7}))["status"] == "cancelled"
        with pytest.raises(ToolException, match="no order 9"):
            await tools("cancel_order", {"order_id": 9})
        with pytest.raises(ToolError, match="there is no tool 'refund'; the tools are cancel_order, "):
            await tools("refund", {})
        together = await asyncio.gather(*(tools("get_order", {"order_id": 7 + number % 2}) for number in range(20)))
        assert [json.loads(one)["order_id"] for one in together] == [7 + number % 2 for number in range(20)]


async def test_a_server_that_dies_in_the_middle_of_a_call(shop: Make) -> None:
    async with shop() as tools:
        waiting = asyncio.ensure_future(tools("hang", {}))
        await tools("pid", {})
        with pytest.raises(ToolError, match=r"tool 'die' of the MCP server .* failed: the connection"):
            await answers(tools, ("die", {}))
        with pytest.raises(ToolError, match=r"tool 'hang' of the MCP server .* failed: the connection"):
            await waiting
        with pytest.raises(ToolError, match=r"tool 'pid' of the MCP server .* failed: the connection"):
            await tools("pid", {})


async def test_a_server_that_hangs(shop: Make) -> None:
    async with shop(timeout=5) as tools:
        process = await tools("pid", {})
        with pytest.raises(ToolError, match=r"tool 'hang' of the MCP server .* failed: no answer within 5 s"):
            await answers(tools, ("hang", {}))
        assert await tools("pid", {}) == process  # the session goes on


async def test_a_process_is_ended_whatever_happens() -> None:
    tools = McpTools.stdio(sys.executable, SERVER, timeout=300)
    async with tools:
        process = await tools("pid", {})
        assert alive(process)
    assert not alive(process)
    async with tools:  # and may be started again
        other = await tools("pid", {})
        assert other != process
        with pytest.raises(ToolError, match="open already"):
            await tools.__aenter__()
        assert await tools("pid", {}) == other
    assert not alive(other)
    process = ""
    with pytest.raises(ZeroDivisionError):  # noqa: PT012  the block is what is tried
        async with tools:
            process = await tools("pid", {})
            raise ZeroDivisionError
    assert process
    assert not alive(process)

    reached = asyncio.Event()
    processes: list[str] = []

    async def work() -> None:
        async with tools:
            processes.append(await tools("pid", {}))
            reached.set()
            await tools("hang", {})

    task = asyncio.ensure_future(work())
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not alive(processes[0])


async def test_entered_in_one_task_and_left_in_another() -> None:
    tools = McpTools.stdio(sys.executable, SERVER)
    await asyncio.ensure_future(tools.__aenter__())
    process = await tools("pid", {})
    await asyncio.ensure_future(tools.__aexit__(None, None, None))
    assert not alive(process)


async def test_errors_of_the_protocol() -> None:
    async with McpTools.stdio(sys.executable, ODD) as tools:
        assert [tool.name for tool in tools] == ["get_order", "strict", "ill", "lie", "keep"]  # a page each
        ToolNode(tools)
        assert await tools("get_order", {}) == "odd order"
        assert await tools("keep", {}) == '{"n": 7}'
        (refused,) = await answers(tools, ("strict", {"x": 1}))  # the arguments are the agent's
        assert (refused.status, refused.content) == ("error", "strict takes no ['x']")
        with pytest.raises(ToolError, match=r"'ill' of the MCP server .* failed: error -32603: out of ink"):
            await answers(tools, ("ill", {}))
        with pytest.raises(ToolError, match=r"'lie' of the MCP server .* failed: Invalid structured content"):
            await answers(tools, ("lie", {}))


async def test_several_servers() -> None:
    two = McpTools.join(McpTools.stdio(sys.executable, SERVER), McpTools.stdio(sys.executable, ODD))
    with pytest.raises(ToolError, match=r"two tools are named 'get_order'.*mcp_server\.py.*mcp_odd_server\.py.*prefix"):
        await two.__aenter__()
    apart = McpTools.join(McpTools.stdio(sys.executable, SERVER), McpTools.stdio(sys.executable, ODD, prefix="odd"))
    async with apart as tools:
        assert "odd_get_order" in [spec.name for spec in tools.specs]
        assert await tools("odd_get_order", {}) == "odd order"
        assert json.loads(await tools("get_order", {"order_id": 8}))["status"] == "open"
        process = await tools("pid", {})
    assert not alive(process)


async def test_servers_that_cannot_be_opened(tmp_path: Path) -> None:
    for tools, problem in (
        (McpTools.stdio(str(tmp_path / "nothing")), r"nothing could not be opened: No such file"),
        (McpTools.stdio(sys.executable, ODD, "quits"), r"mcp_odd_server.py could not be opened: Connection closed"),
        (
            McpTools.stdio(sys.executable, ODD, "silent", start_timeout=1),
            r"could not be opened: it was not ready within 1 s",
        ),
        (
            McpTools.http("http://127.0.0.1:9/mcp"),
            r"http://127.0.0.1:9/mcp could not be opened: the connection broke \(ConnectError\)",
        ),
    ):
        with pytest.raises(ToolError, match=problem):
            await tools.__aenter__()


async def test_an_address_where_no_mcp_is_spoken(http_server: str) -> None:
    with pytest.raises(ToolError, match="could not be opened: "):
        await McpTools.http(http_server.replace("/mcp", "/other"), start_timeout=20).__aenter__()


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: McpTools.http("ftp://x/mcp"), "ftp://x is no address"),
        (lambda: McpTools.http("x"), "no scheme://no host"),
        (lambda: McpTools.http("http://h:port/"), "cannot be read"),
        (lambda: McpTools.http("http://h/", headers={"X-Token": f"{TOKEN}\n"}), "header 'X-Token'"),
        (lambda: McpTools.stdio("x", env={"SHOP_TOKEN": 7}), "SHOP_TOKEN that is no text"),  # type: ignore[dict-item]
        (lambda: McpTools.stdio("x", timeout=0), "timeout=0"),
        (lambda: McpTools.http("http://h/", start_timeout=True), "start_timeout=True"),
    ],
)
def test_what_names_no_server(make: Make, problem: str) -> None:
    with pytest.raises(ToolError, match=problem) as raised:
        make()
    assert TOKEN not in str(raised.value)


async def test_outside_of_its_block_there_are_no_tools() -> None:
    tools = McpTools.stdio(sys.executable, ODD)
    for use in (
        lambda: len(tools),
        lambda: list(tools),
        lambda: tools.specs,
        lambda: agent(ScriptedModel(script=[]), tools),
    ):
        with pytest.raises(ToolError, match="are not open; use their tools within"):
            use()
    async with tools:
        kept = list(tools)
    with pytest.raises(ToolError, match="it was closed"):
        await kept[0].ainvoke({})
    with pytest.raises(ToolError, match="not open"):
        await tools("get_order", {})


async def test_a_session_belongs_to_its_event_loop() -> None:
    async with McpTools.stdio(sys.executable, ODD) as tools:
        kept = list(tools)
        with pytest.raises(ToolError, match="another event loop"):
            await asyncio.to_thread(lambda: asyncio.run(kept[0].ainvoke({})))
        assert await tools("get_order", {}) == "odd order"


async def test_secrets_stay_secret(
    shop: Make, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []
    with caplog.at_level(logging.DEBUG):  # the packages' own talk, too
        made = shop(timeout=300)
        async with made as tools:
            said += [repr(tools), repr(tools.specs), repr(list(tools)), str(made)]
            for name in ("die", "pid"):
                with pytest.raises(ToolError) as raised:
                    await tools(name, {})
                said.append("".join(traceback.format_exception(raised.value)))
    gc.collect()  # what was left behind would complain now
    out, err = capfd.readouterr()
    assert "of the MCP server" in "".join(said)
    assert TOKEN not in "".join([*said, caplog.text, out, err])
    assert KEY not in "".join(said)


BLOCKED = """
import sys
sys.modules["langchain_mcp_adapters"] = None
import cm2_agent
from cm2_agent.errors import MissingExtra
from cm2_agent.graphs.tools.mcp import McpTools
assert "mcp" not in sys.modules
for make in (lambda: McpTools.stdio("x"), lambda: McpTools.http("http://x/")):
    try:
        make()
    except MissingExtra as error:
        print(error)
"""


def test_without_the_package_the_extra_is_named() -> None:
    """In a process of its own, where the package cannot be imported."""
    done = subprocess.run([sys.executable, "-c", BLOCKED], capture_output=True, text=True, check=False)
    assert done.stdout == 2 * f"{MissingExtra('mcp', 'MCP servers')}\n", done.stderr
