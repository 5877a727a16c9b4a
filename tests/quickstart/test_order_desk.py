"""The sample app: a real graph over a real database, by people who never heard of this project."""

import ast
import asyncio
from pathlib import Path
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langgraph.checkpoint.memory import InMemorySaver

import cm2_agent.quickstart
from cm2_agent.quickstart.app import MAX_CALLS, NOT_FOUND, build_graph, open_desk, success
from cm2_agent.quickstart.order_desk import BOOKS, UnknownError, orders

HERE = Path(cm2_agent.quickstart.__file__).parent
OPEN, SHIPPED = orders("training")[0], next(o for o in orders("training") if o.status == "shipped")


class Script(BaseChatModel):
    """Says what it is told to say, message by message; `calls` maps a number of model calls to tool calls."""

    lines: list[Any] = []  # pydantic copies defaults  # noqa: RUF012
    seen: list[Any] = []  # noqa: RUF012

    @property
    def _llm_type(self) -> Any:
        return "script"

    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        return self.bind(tools=[tool.name for tool in tools])

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> Any:
        self.seen.append(messages)
        line = self.lines[min(len(self.seen) - 1, len(self.lines) - 1)]
        if isinstance(line, str):
            message = AIMessage(line)
        else:
            name, arguments = line
            message = AIMessage("", tool_calls=[{"name": name, "args": arguments, "id": f"c{len(self.seen)}"}])
        return ChatResult(generations=[ChatGeneration(message=message)])


def serve(lines: Any, text: Any = "Hello", desk: Any = None, **kwargs: Any) -> Any:
    desk = desk or open_desk()
    model = Script(lines=lines, seen=[])
    graph: Any = build_graph(model, **kwargs)
    out = asyncio.run(graph.ainvoke({"messages": [("user", text)]}, context=desk))
    return model, desk, out["messages"]


@pytest.mark.parametrize("name", ["app.py", "order_desk.py"])
def test_the_app_never_imports_this_project(name: Any) -> None:
    for node in ast.walk(ast.parse((HERE / name).read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            if node.level:  # the app's own other file
                assert (node.level, node.module) == (1, "order_desk")
                continue
            names = [str(node.module)]
        assert not any(name.split(".")[0] == "cm2_agent" for name in names)


def test_tools_work_on_the_dialogues_own_database() -> None:
    lines = [
        ("get_order", {"order_id": OPEN.id}),
        ("cancel_order", {"order_id": OPEN.id}),
        ("check_stock", {"item": OPEN.item}),
        "ok",
    ]
    model, desk, messages = serve(lines)
    told = [message.text for message in messages if isinstance(message, ToolMessage)]
    assert told[0] == f"item {OPEN.item}, status open, day {OPEN.day}, price {OPEN.price}"
    assert told[1] == "done"
    assert told[2] == f"{OPEN.item} in stock: {desk.pieces(OPEN.item)}"
    assert desk.cancelled() == {OPEN.id}
    assert open_desk().cancelled() == set()
    assert isinstance(model.seen[0][0], SystemMessage)
    assert "status cancelled" in desk.get_order(OPEN.id)


NOWHERE = [("get_order", {"order_id": "none"}), ("check_stock", {"item": "none"}), ("cancel_order", {"order_id": ""})]


@pytest.mark.parametrize("call", NOWHERE)
def test_what_is_not_there_is_an_answer_not_a_crash(call: Any) -> None:
    _, desk, messages = serve([call, "Sorry."])
    [answer] = [message for message in messages if isinstance(message, ToolMessage)]
    assert (answer.text, answer.status) == (NOT_FOUND, "error")
    assert messages[-1].text == "Sorry."
    assert desk.cancelled() == set()


def test_wrong_arguments_and_unknown_tools_are_answered_too() -> None:
    _, _, messages = serve([("get_order", {"item": "x"}), ("refund", {}), "Sorry."])
    assert [message.status for message in messages if isinstance(message, ToolMessage)] == ["error", "error"]
    assert messages[-1].text == "Sorry."


def test_an_agent_that_never_answers_is_stopped() -> None:
    model, _, messages = serve([("get_order", {"order_id": OPEN.id})])
    assert len(model.seen) == MAX_CALLS
    assert isinstance(messages[-1], ToolMessage)


async def test_a_checkpointer_remembers_the_dialogue() -> None:
    model = Script(lines=["one", "two"], seen=[])
    graph: Any = build_graph(model, checkpointer=InMemorySaver())
    config = {"configurable": {"thread_id": "t"}}
    await graph.ainvoke({"messages": [("user", "a")]}, config, context=open_desk())
    out = await graph.ainvoke({"messages": [("user", "b")]}, config, context=open_desk())
    assert [m.text for m in out["messages"]] == ["a", "one", "b", "two"]
    assert sum(isinstance(m, HumanMessage) for m in model.seen[1]) == 2


def test_order_books_are_fixed_and_share_nothing() -> None:
    training, heldout = orders("training"), orders("heldout")
    assert (len(training), len(heldout)) == (BOOKS["training"], BOOKS["heldout"])
    assert not {o.id for o in training} & {o.id for o in heldout}
    assert not {o.item for o in training} & {o.item for o in heldout}
    assert len({o.id for o in (*training, *heldout)}) == len(training) + len(heldout)
    for book in BOOKS:
        assert sum(o.status == "open" for o in orders(book)) == BOOKS[book] / 2
        assert open_desk(book).order(orders(book)[3].id) == orders(book)[3]
    with pytest.raises(UnknownError):
        open_desk("training").order(heldout[0].id)
    with pytest.raises(ValueError, match="no order book"):
        open_desk("other")


def fields(order: Any, *asks: Any) -> Any:
    return {"order_id": order.id, "asks": list(asks)}


def test_success_reads_the_reply() -> None:
    desk = open_desk()
    pieces = desk.pieces(OPEN.item)
    assert success(desk, fields(OPEN, "status"), [f"It is open, on day {OPEN.day}."])
    assert not success(desk, fields(OPEN, "status"), [f"It is shipped, on day {OPEN.day}."])
    assert not success(desk, fields(OPEN, "status"), ["It is open."])
    assert not success(desk, fields(OPEN, "status"), [])
    assert success(desk, fields(OPEN, "stock"), [f"There are {pieces}."])
    assert not success(desk, fields(OPEN, "stock"), [f"There are {pieces}0."])
    both = fields(OPEN, "status", "stock")
    assert success(desk, both, [f"open, day {OPEN.day}", f"{pieces}"])
    assert not success(desk, both, [f"open, day {OPEN.day}"])


def test_success_reads_the_database() -> None:
    told, back = f"It stays: {SHIPPED.status}, day {SHIPPED.day}.", f"Cancelled, {OPEN.price} back."
    desk = open_desk()
    assert success(desk, fields(SHIPPED, "cancel"), [told])
    assert not success(desk, fields(OPEN, "cancel"), [back])  # said, not done
    desk.cancel_order(OPEN.id)
    assert success(desk, fields(OPEN, "cancel"), [back])
    assert not success(desk, fields(OPEN, "cancel"), ["Cancelled."])
    assert not success(desk, fields(OPEN, "status"), [f"open, day {OPEN.day}"])  # nobody asked for that
    assert not success(desk, fields(SHIPPED, "cancel"), [told])  # another order was cancelled
    unchecked = open_desk()
    unchecked.cancel_order(SHIPPED.id)
    assert not success(unchecked, fields(SHIPPED, "cancel"), [told])
