"""A recorded dialogue replays call by call; what was not recorded is refused or simulated, and writes decide which
recording counts."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import ToolMessage
from langchain_core.tools import StructuredTool, ToolException

from cm2_agent.errors import ToolError
from cm2_agent.graphs.backends.replay import ReplayTools, message_content
from cm2_agent.graphs.backends.tool_backends import Hybrid
from cm2_agent.types.messages import ToolSpec
from cm2_agent.types.task import RecordedCall
from cm2_agent.types.tool_calls import CallLog, ToolAnswer, ToolRequest
from tests.strategies import jsons

GET = ToolSpec(
    name="get_order",
    parameters={"properties": {"id": {"type": "integer"}, "full": {"type": "boolean", "default": False}}},
)
CANCEL = ToolSpec(name="cancel_order", parameters={"properties": {"id": {"type": "integer"}}})
PAY = ToolSpec(name="pay", reads=False)
TOOLS = (GET, CANCEL, PAY)


def get(**arguments: Any) -> ToolRequest:
    return ToolRequest(tool=GET, arguments=arguments)


def cancel(id_: int) -> ToolRequest:
    return ToolRequest(tool=CANCEL, arguments={"id": id_})


def recorded_call(name: str, result: Any = None, error: str | None = None, **arguments: Any) -> RecordedCall:
    return RecordedCall(name=name, arguments=arguments, result=result, error=error)


def log(*answered: ToolRequest, failed: bool = False) -> CallLog:
    made = CallLog()
    for call in answered:
        made.add(call, ToolAnswer(content="done", error=failed))
    return made


def found(tools: ReplayTools, call: ToolRequest, so_far: CallLog | None = None) -> Any:
    answer = tools.find(call, so_far or CallLog())
    return None if answer is None else answer.content


def test_what_was_recorded_is_told_as_it_was_told() -> None:
    blocks = [{"type": "text", "text": "shipped"}, {"type": "image", "url": "x:1"}]
    tools = ReplayTools(
        [
            recorded_call("get_order", "shipped", id=1),
            recorded_call("get_order", blocks, id=2),
            recorded_call("get_order", {"état": "é", "n": [1, None]}, id=3),
            recorded_call("get_order", None, id=4),
            recorded_call("get_order", error="no order 5", id=5),
            recorded_call("get_order", [{"id": 1}], id=6),
            recorded_call("get_order", blocks, "two blocks", id=7),
        ],
        TOOLS,
    )
    assert found(tools, get(id=1)) == "shipped"
    assert found(tools, get(id=2.0, full=False)) == blocks
    assert found(tools, get(id=3)) == '{"état": "é", "n": [1, null]}'
    assert found(tools, get(id=4)) == "null"
    assert tools.find(get(id=5), CallLog()) == ToolAnswer(content="no order 5", error=True, backend="replay")
    assert found(tools, get(id=6)) == '[{"id": 1}]'
    assert tools.find(get(id=7), CallLog()) == ToolAnswer(content=blocks, error=True, backend="replay")
    assert found(tools, get(id=8)) is None
    assert found(tools, cancel(1)) is None


@given(jsons() | st.lists(st.fixed_dictionaries({"type": st.sampled_from(["text", "image", "odd"])}), max_size=2))
def test_results_read_as_langchain_writes_them(result: Any) -> None:
    real = StructuredTool.from_function(lambda: result, name="f", description="f")
    message = real.invoke({"type": "tool_call", "id": "1", "name": "f", "args": {}})
    assert isinstance(message, ToolMessage)
    assert message_content(result) == message.content


async def test_a_call_that_was_not_recorded_is_named_with_its_nearest() -> None:
    tools = ReplayTools([recorded_call("get_order", "a", id=number) for number in (7, 71, 5000, 6000, 8000)], TOOLS)
    with pytest.raises(ToolError) as raised:
        await tools.answer(get(id=72), CallLog())
    text = str(raised.value)
    assert 'get_order({"id": 72})' in text
    assert text.index('get_order({"id": 7})') < text.index('get_order({"id": 71})') < text.index("000})")
    assert text.count("get_order(") == 4
    assert "hybrid" in text
    with pytest.raises(ToolError, match=r"no call of tool 'pay' was recorded.*get_order"):
        await tools.answer(ToolRequest(tool=PAY, arguments={}), CallLog())


@pytest.mark.slow
async def test_a_call_too_deep_to_spell_is_refused_all_the_same() -> None:
    deep: Any = 1
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(ToolError, match="not recorded"):
        await ReplayTools([recorded_call("get_order", "a", id=1)]).answer(get(id=deep), CallLog())


CHANGES = [
    recorded_call("get_order", "open", id=1),
    recorded_call("cancel_order", error="busy", id=1),
    recorded_call("cancel_order", "ok", id=1),
    recorded_call("get_order", "cancelled", id=1),
    recorded_call("cancel_order", "ok", id=2),
    recorded_call("get_order", "cancelled, and 2 too", id=1),
]


def test_the_recording_before_which_the_same_writes_came() -> None:
    tools = ReplayTools(CHANGES, TOOLS)
    assert found(tools, get(id=1)) == "open"
    assert found(tools, get(id=1), log(get(id=1), get(id=2))) == "open"
    assert found(tools, get(id=1), log(cancel(1), failed=True)) == "open"
    assert found(tools, get(id=1), log(cancel(1))) == "cancelled"
    assert found(tools, get(id=1), log(cancel(1), cancel(2))) == "cancelled, and 2 too"
    assert found(tools, get(id=1), log(cancel(2), cancel(1))) == "cancelled, and 2 too"  # in another order


def test_the_last_recording_whose_writes_are_done_else_the_first() -> None:
    tools = ReplayTools(CHANGES, TOOLS)
    assert (
        found(tools, get(id=1), log(cancel(2))) == "open"
    )  # the one after cancelling 1 would tell of what did not happen
    assert found(tools, get(id=1), log(cancel(1), cancel(9))) == "cancelled"
    late = ReplayTools(CHANGES[2:], TOOLS)
    assert found(late, get(id=1)) == "cancelled"  # nothing was read before the first write


def test_a_write_that_was_made_twice() -> None:
    pays = ReplayTools([recorded_call("pay", f"balance {left}", amount=10) for left in (20, 10, 0)], TOOLS)
    so_far = CallLog()
    heard: list[Any] = []
    for _ in range(4):
        call = ToolRequest(tool=PAY, arguments={"amount": 10})
        answer = pays.find(call, so_far)
        assert answer is not None
        so_far.add(call, answer)
        heard.append(answer.content)
    assert heard == ["balance 20", "balance 10", "balance 0", "balance 0"]


def test_keys_follow_the_schema_of_the_tool_that_is_called() -> None:
    bare = ReplayTools(
        [
            recorded_call("get_order", "a", id=1, full=False),
            recorded_call("cancel_order", "ok", id=1),
            recorded_call("get_order", "b", id=1),
        ]
    )
    assert found(bare, get(id=1)) == "a"
    assert found(bare, get(id=1), log(cancel(1))) == "b"
    plain = ToolRequest(tool=ToolSpec(name="get_order"), arguments={"id": 1})
    assert found(bare, plain) == "b"  # without a schema the first is another call
    assert found(bare, get(id=1)) == "a"


names = st.sampled_from(["get_order", "cancel_order", "pay"])
recordings = st.lists(
    st.builds(recorded_call, names, jsons(2), st.none() | st.just("failed"), id=st.integers(0, 2)), max_size=12
)


@given(recordings, st.lists(st.tuples(names, st.integers(0, 2)), max_size=12))
def test_the_same_call_gives_the_same_answer_until_a_write(
    recorded: list[RecordedCall], asked: list[tuple[str, int]]
) -> None:
    tools = ReplayTools(recorded, TOOLS)
    so_far = CallLog()
    heard: dict[tuple[str, int], Any] = {}
    by_name = {tool.name: tool for tool in TOOLS}
    for name, number in asked:
        call = ToolRequest(tool=by_name[name], arguments={"id": number})
        answer = tools.find(call, so_far)
        assert (answer is None) == (not any(one.name == name and one.arguments == {"id": number} for one in recorded))
        if answer is not None:
            assert heard.setdefault((call.key, so_far.writes_before), answer) == answer
            so_far.add(call, answer)


@given(recordings)
def test_a_recorded_dialogue_replays_to_the_letter(recorded: list[RecordedCall]) -> None:
    """Where the recording itself was consistent, each of its calls gives what it gave."""
    tools = ReplayTools(recorded, TOOLS)
    by_name = {tool.name: tool for tool in TOOLS}
    world: dict[tuple[str, int], RecordedCall] = {}
    so_far = CallLog()
    for one in recorded:
        call = ToolRequest(tool=by_name[one.name], arguments=one.arguments)
        if world.setdefault((call.key, so_far.writes_before), one) != one:
            return  # the world itself said two things of one call
        answer = tools.find(call, so_far)
        assert answer is not None
        assert answer.error == (one.error is not None)
        if one.error is None or (one.result and isinstance(one.result, list)):
            assert answer.content == message_content(one.result)
        else:
            assert answer.content == one.error
        so_far.add(call, answer)


async def test_as_a_plug() -> None:
    tools = ReplayTools(CHANGES, TOOLS)
    assert await tools("get_order", {"id": 1.0}) == "open"
    with pytest.raises(ToolException, match="busy"):
        await tools("cancel_order", {"id": 1})
    assert await tools("cancel_order", {"id": 2}) == "ok"
    assert await tools("get_order", {"id": 1}) == "open"
    assert await tools("cancel_order", {"id": 1}) == "ok"  # of what was recorded before 2 was cancelled, the last
    assert await tools("get_order", {"id": 1}) == "cancelled, and 2 too"
    with pytest.raises(ToolError, match="no call of tool 'nothing' was recorded"):
        await tools("nothing", None)


def test_two_tools_of_one_name_are_refused() -> None:
    with pytest.raises(ToolError, match="two tools are named 'pay'"):
        ReplayTools([], [PAY, PAY])


class Simulated:
    """A simulator that counts what it is asked."""

    def __init__(self) -> None:
        self.asked: list[ToolRequest] = []

    async def answer(self, call: ToolRequest, log: CallLog) -> ToolAnswer:
        self.asked.append(call)
        return ToolAnswer(content=f"invented {len(self.asked)}", backend="simulate")


async def test_hybrid_asks_the_simulator_only_for_what_was_not_recorded() -> None:
    simulated = Simulated()
    tools = Hybrid(ReplayTools(CHANGES, TOOLS), simulated)
    assert await tools.answer(get(id=1), CallLog()) == ToolAnswer(content="open", backend="replay")
    assert not simulated.asked
    assert await tools.answer(get(id=3), CallLog()) == ToolAnswer(content="invented 1", backend="Simulated")
    assert tools.find(get(id=3), CallLog()) is None
