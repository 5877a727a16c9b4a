"""`observe` on a client of the Responses API: the same dialogue as through the chat API, however its items are sent."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI, BadRequestError, OpenAI
from pydantic import BaseModel

from cm2_agent import SQLStore, Trace, flush, observe
from tests.dialects import order_server
from tests.dialects.order_server import MODEL, REPLIES, SYSTEM, TURNS, get_order, loop
from tests.dialects.response_server import RESPONSE_TOOLS, ResponseServer, responding

TURN = ["system", "user", "assistant", "tool", "assistant"]
STREAMS = [False, True]


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'cm2.db'}"


@pytest.fixture
def server() -> Iterator[ResponseServer]:
    with responding() as found:
        yield found


@pytest.fixture(scope="module")
def chat_hash(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The hash of the dialogue through the chat API."""
    url = f"sqlite:///{tmp_path_factory.mktemp('chat') / 'cm2.db'}"
    with order_server.running() as chat:
        desk = observe(OpenAI(base_url=chat.base_url, api_key="none"), store=url)
        messages: list[Any] = [{"role": "system", "content": SYSTEM}]
        for turn in (0, 1):
            loop(desk.chat.completions.create, turn, messages)
    (trace,) = stored(url)
    return trace.content_hash


def client(server: ResponseServer, url: str) -> Any:
    return observe(OpenAI(base_url=server.base_url, api_key="none", max_retries=0), store=url)


def stored(url: str) -> list[Trace]:
    assert flush(60)
    return list(SQLStore(url).traces())


def roles(trace: Trace) -> list[str]:
    return [message.role for message in trace.messages]


def outputs(response: Any, look: Any = get_order) -> list[Any]:
    """The items that answer the calls of a response."""
    return [
        {"type": "function_call_output", "call_id": item.call_id, "output": look(**json.loads(item.arguments))}
        for item in response.output
        if item.type == "function_call"
    ]


def final(found: Any) -> Any:
    """The response, of a stream the last event's."""
    return [*found][-1].response if hasattr(found, "__next__") else found


def dialogue(create: Any, way: str, stream: bool, look: Any = get_order) -> None:
    """Both turns of the desk; `way` is how the dialogue goes on: with every item sent again, or kept by the server."""
    items: list[Any] = []
    last: str | None = None
    for said in TURNS:
        new: Any = [{"role": "user", "content": said}]
        while new:
            items += new
            more: dict[str, Any] = {"input": items if way == "items" else new}
            if way == "previous" and last is not None:
                more["previous_response_id"] = last
            if way == "conversation":
                more["conversation"] = "conv_1"
            asked = {"model": MODEL, "instructions": SYSTEM, "tools": RESPONSE_TOOLS, **more}
            response = final(create(**asked, **({"stream": True} if stream else {})))
            last = response.id
            items += response.output  # the client's own objects, as its documentation has it
            new = outputs(response, look)


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("way", ["items", "previous", "conversation"])
def test_the_dialogue_is_that_of_the_chat_api(
    url: str, server: ResponseServer, chat_hash: str, way: str, stream: bool
) -> None:
    dialogue(client(server, url).responses.create, way, stream)
    (trace,) = stored(url)
    assert roles(trace) == [*TURN, "user", "assistant", "tool", "tool", "assistant"]
    assert trace.content_hash == chat_hash
    assert [(call.model, call.finish_reason) for call in trace.calls] == [(MODEL, "tool_calls"), (MODEL, "stop")] * 2
    assert {call.usage["output_tokens"] for call in trace.calls} == {5}


def test_a_loop_has_turns_steps_and_tools(url: str, server: ResponseServer, chat_hash: str) -> None:
    desk, look = client(server, url), observe(get_order, store=url)

    @observe(store=url, thread="chat")
    def answer(question: str, chat: str, last: str | None = None) -> tuple[str, str]:
        new: Any = question
        while True:
            asked = {"model": MODEL, "instructions": SYSTEM, "tools": RESPONSE_TOOLS, "input": new}
            response = desk.responses.create(**asked, previous_response_id=last, temperature=0.5, max_output_tokens=99)
            new, last = outputs(response, look), response.id
            if not new:
                return response.output_text, response.id

    first, last = answer(TURNS[0], "t1")
    assert [first, answer(TURNS[1], "t1", last)[0]] == list(REPLIES)
    (trace,) = stored(url)
    assert (trace.id, trace.content_hash) == ("t1", chat_hash)
    assert [[one.user[0].text for one in trace.turns], len(trace.steps)] == [list(TURNS), 4]
    ran = [(one.name, one.call_id, one.arguments) for run in trace.runs for one in run.tools]
    assert ran == [("get_order", f"call_{n}", {"order_id": n + 6}) for n in (1, 2, 3)]
    assert trace.calls[0].sampling == {"temperature": 0.5, "max_tokens": 99}
    assert [tool.name for tool in trace.calls[0].tools] == ["get_order"]


def test_an_asynchronous_client(url: str, server: ResponseServer) -> None:
    class Reply(BaseModel):
        order: int

    async def main() -> None:
        desk: Any = observe(AsyncOpenAI(base_url=server.base_url, api_key="none", max_retries=0), store=url)
        asked = {"model": MODEL, "input": TURNS[0], "tools": RESPONSE_TOOLS}
        await desk.responses.create(**asked)
        async for _ in await desk.responses.create(**asked, stream=True):
            pass
        async with desk.responses.stream(**asked) as events:
            async for _ in events:
                pass
        text = {"type": "output_text", "text": '{"order": 7}', "annotations": []}
        server.changes["output"] = [
            {"type": "message", "id": "m", "role": "assistant", "status": "completed", "content": [text]}
        ]
        parsed = await desk.responses.parse(model=MODEL, input=TURNS[0], text_format=Reply)
        assert parsed.output_parsed == Reply(order=7)

    asyncio.run(main())
    traces = stored(url)
    assert [roles(trace) for trace in traces] == [["user", "assistant"]] * 4
    called = [[(one.id, one.arguments) for one in trace.messages[1].tool_calls] for trace in traces]
    assert sorted(called) == [[], *[[("call_1", {"order_id": 7})]] * 3]


def test_a_stream_that_is_left_is_recorded_as_far_as_it_came(url: str, server: ResponseServer) -> None:
    desk = client(server, url)
    said: Any = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "q"},
    ]
    with desk.responses.create(model=MODEL, input=said, stream=True) as stream:
        for event in stream:
            if event.type == "response.output_text.delta":
                break
    with desk.responses.create(model=MODEL, input="call", stream=True) as stream:
        for event in stream:
            if event.type == "response.function_call_arguments.delta":
                break
    found = {trace.messages[-2].text: trace.messages[-1] for trace in stored(url)}
    assert found["q"].text == "Order "
    assert [(call.name, call.arguments) for call in found["call"].tool_calls] == [("get_order", '{"ord')]


def test_the_providers_own_tools_thinking_and_custom_calls(url: str, server: ResponseServer) -> None:
    desk = client(server, url)
    text = {"type": "output_text", "text": "It rains.", "annotations": []}
    server.changes["output"] = [
        {"type": "reasoning", "id": "r", "summary": [{"type": "summary_text", "text": "Look it up."}]},
        {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": "search", "query": "rain"}},
        {"type": "message", "id": "m", "role": "assistant", "status": "completed", "content": [text]},
        {"type": "custom_tool_call", "id": "ct", "call_id": "call_9", "name": "shout", "input": "rain"},
    ]
    first = desk.responses.create(model=MODEL, input="Weather?", tools=[{"type": "web_search"}])
    answered: Any = {"type": "custom_tool_call_output", "call_id": "call_9", "output": "RAIN"}
    for echo in (first.output, [item.model_dump() for item in first.output]):
        desk.responses.create(model=MODEL, input=[{"role": "user", "content": "Weather?"}, *echo, answered])
    (trace, again) = stored(url)
    assert [roles(one) for one in (trace, again)] == [["user", *["assistant", "tool"] * 2, "assistant"]] * 2
    searched, _, said = trace.messages[1:4]
    assert next(use.status for step in trace.steps for use in step.tool_uses) == "ok"
    assert searched.reasoning == "Look it up."
    assert [(call.name, call.arguments) for call in searched.tool_calls] == [
        ("web_search", {"action": {"type": "search", "query": "rain"}})
    ]
    assert (said.text, [(call.id, call.name, call.arguments) for call in said.tool_calls]) == (
        "It rains.",
        [("call_9", "shout", "rain")],
    )


def test_an_answer_that_ends_in_the_providers_own_tool(url: str, server: ResponseServer) -> None:
    desk = client(server, url)
    drawn = {"type": "image_generation_call", "id": "ig_1", "status": "completed", "result": "aGk="}
    server.changes["output"] = [drawn]
    desk.responses.create(model=MODEL, input="Draw.", tools=[{"type": "image_generation"}])
    (trace,) = stored(url)
    assert roles(trace) == ["user", "assistant", "tool", "assistant"]
    assert [use.status for step in trace.steps for use in step.tool_uses] == ["ok"]


def test_failures_and_cut_answers(url: str, server: ResponseServer) -> None:
    desk = client(server, url)
    with pytest.raises(BadRequestError, match="does not exist"):
        desk.responses.create(model="nobody", input="1")
    failed = {"status": "failed", "error": {"code": "server_error", "message": "try again later"}, "output": []}
    server.changes.update(failed)
    desk.responses.create(model=MODEL, input="2")
    server.changes.update(status="incomplete", incomplete_details={"reason": "max_output_tokens"})
    for _ in desk.responses.create(model=MODEL, input="3", stream=True):
        pass
    calls = {trace.messages[0].text: trace.calls[0] for trace in stored(url)}
    assert "does not exist" in str(calls["1"].error)
    assert "server_error: try again later" in str(calls["2"].error)
    assert (calls["3"].error, calls["3"].finish_reason) == (None, "length")


def test_a_response_of_another_client_is_counted_as_unseen(url: str, server: ResponseServer) -> None:
    other = OpenAI(base_url=server.base_url, api_key="none")
    first = other.responses.create(model=MODEL, input=TURNS[0])
    client(server, url).responses.create(model=MODEL, previous_response_id=first.id, input=outputs(first))
    (trace,) = stored(url)
    assert roles(trace) == ["tool", "assistant"]
    assert any("goes on with one that this client has not seen" in kind for kind in SQLStore(url).incidents())
