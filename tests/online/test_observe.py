"""`observe`: a plain OpenAI client and a hand-written loop, against a server that speaks the protocol."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.memory import InMemorySaver
from openai import APIError, AsyncOpenAI, OpenAI

from cm2_agent import Checklist, Item, SQLStore, Trace, flush, observe, watch
from tests.dialects import order_server
from tests.dialects.order_server import MODEL, REPLIES, SYSTEM, TOOLS, TURNS, OrderServer, get_order, loop, running

IDS: Any = {"temperature": 1.0, "top_p": 1.0, "logprobs": True, "extra_body": {"return_token_ids": True}}
TURN = ["system", "user", "assistant", "tool", "assistant"]


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'cm2.db'}"


@pytest.fixture
def server() -> Iterator[OrderServer]:
    with running() as found:
        yield found


def client(server: OrderServer) -> OpenAI:
    return OpenAI(base_url=server.base_url, api_key="none", max_retries=0)


def stored(url: str) -> list[Trace]:
    assert flush(60)
    return list(SQLStore(url).traces())


def roles(trace: Trace) -> list[str]:
    return [message.role for message in trace.messages]


def test_a_loop_has_turns_steps_and_tools(url: str, server: OrderServer, tmp_path: Path) -> None:
    checklist = Checklist(Item("looks", check={"called": "get_order"}, turn=0), name="desk")
    desk, look = observe(client(server), store=url), observe(get_order, store=url)
    messages: list[Any] = [{"role": "system", "content": SYSTEM}]

    @observe(checklist=checklist, store=url, thread="chat", user="who")
    def answer(turn: int, chat: str, who: str) -> str:
        loop(desk.chat.completions.create, turn, messages, look)
        return str(messages[-1]["content"])

    assert [answer(turn, chat="t1", who="ada") for turn in (0, 1)] == list(REPLIES)
    (trace,) = stored(url)
    assert (trace.id, trace.runs[0].user, trace.runs[0].name) == ("t1", "ada", "answer")
    assert roles(trace) == [*TURN, "user", "assistant", "tool", "tool", "assistant"]
    assert [[one.user[0].text for one in trace.turns], len(trace.steps)] == [list(TURNS), 4]
    ran = [(one.name, one.call_id, one.arguments) for run in trace.runs for one in run.tools]
    assert ran == [("get_order", f"call_{n}", {"order_id": n + 6}) for n in (1, 2, 3)]
    assert [one.message for one in trace.calls] == [2, 4, 1, 4]
    score = SQLStore(url).score("t1")
    assert score is not None
    assert score.reward == 1.0
    assert trace.content_hash == graph_hash(server, tmp_path)


def graph_hash(server: OrderServer, folder: Path) -> str:
    """The hash of the same dialogue through `watch` on a LangGraph agent."""
    other = f"sqlite:///{folder / 'graph.db'}"
    model = ChatOpenAI(model=MODEL, base_url=server.base_url, api_key="none")  # type: ignore[arg-type]
    made: Any = create_agent(model, [tool(get_order)], system_prompt=SYSTEM, checkpointer=InMemorySaver())
    graph = watch(made, store=other)
    for turn in TURNS:
        graph.invoke({"messages": [("user", turn)]}, {"configurable": {"thread_id": "t"}})
    (trace,) = stored(other)
    return trace.content_hash


def test_a_client_alone_is_a_dialogue(url: str, server: OrderServer, tmp_path: Path) -> None:
    given = client(server)
    desk = observe(given, store=url)
    assert type(desk) is OpenAI
    messages: list[Any] = [{"role": "system", "content": SYSTEM}]
    for turn in (0, 1):
        loop(desk.chat.completions.create, turn, messages)
    given.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "not observed"}])
    (trace,) = stored(url)
    assert roles(trace) == [*TURN, "user", "assistant", "tool", "tool", "assistant"]
    assert trace.content_hash == graph_hash(server, tmp_path)


@pytest.mark.parametrize("stream", [False, True])
def test_token_ids_are_kept_where_the_server_gives_them(url: str, server: OrderServer, stream: bool) -> None:
    desk: Any = observe(client(server), store=url)
    said: Any = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": TURNS[0]}]
    call = order_server.ANSWERS[0]
    said += [call, {"role": "tool", "tool_call_id": "call_1", "content": get_order(7)}]
    if stream:
        options: Any = {"stream": True, "stream_options": {"include_usage": True}}
        pieces = [*desk.chat.completions.create(model=MODEL, messages=said, tools=TOOLS, **IDS, **options)]
        assert "".join(one.choices[0].delta.content or "" for one in pieces if one.choices) == REPLIES[0]
    else:
        desk.chat.completions.create(model=MODEL, messages=said, tools=TOOLS, **IDS)
    (trace,) = stored(url)
    (found,) = trace.calls
    tokens = order_server.tokens_of(1)
    assert list(found.prompt_ids or ()) == [0, 1, 2, 3]
    assert list(found.completion_ids or ()) == [identity for identity, _, _ in tokens]
    assert list(found.logprobs or ()) == [-0.5] * len(tokens)
    assert (found.model_version, found.sampling["temperature"]) == (MODEL, 1.0)
    assert found.untrainable in (None, "the token ids do not decode to the text")
    assert found.usage == {"input_tokens": 4, "output_tokens": len(tokens)}


def test_streams_sync_and_async(url: str, server: OrderServer) -> None:
    asked: Any = {"model": MODEL, "messages": [{"role": "user", "content": TURNS[0]}], "tools": TOOLS, "stream": True}
    for piece in observe(client(server), store=url).chat.completions.create(**asked):
        assert piece.model == MODEL

    async def main() -> None:
        desk: Any = observe(AsyncOpenAI(base_url=server.base_url, api_key="none"), store=url)
        assert type(desk) is AsyncOpenAI
        async for _ in await desk.chat.completions.create(**asked):
            pass
        await desk.chat.completions.create(**{**asked, "stream": False})
        async with desk.chat.completions.stream(**{name: asked[name] for name in ("model", "messages")}) as events:
            async for _ in events:
                pass

    asyncio.run(main())
    traces = stored(url)
    assert len(traces) == 4
    for trace in traces:
        assert roles(trace) == ["user", "assistant"]
        assert [(one.id, one.arguments) for one in trace.messages[1].tool_calls] == [("call_1", {"order_id": 7})]


def test_a_stream_that_is_left_is_recorded_as_far_as_it_came(url: str, server: OrderServer) -> None:
    said: Any = [{"role": "user", "content": "q"}, order_server.ANSWERS[1], {"role": "user", "content": "q"}]
    said += [order_server.ANSWERS[1], {"role": "user", "content": "q"}, order_server.ANSWERS[1]]
    desk: Any = observe(client(server), store=url)
    for leave in ("close", "exit", "forget"):
        last = {"role": "user", "content": leave}
        stream = desk.chat.completions.create(model=MODEL, messages=[*said, last], stream=True)
        next(stream)
        next(stream)
        if leave == "close":
            stream.close()
        elif leave == "exit":
            with stream:
                pass
        del stream
        gc.collect()
    traces = stored(url)
    assert sorted(trace.messages[-2].text for trace in traces) == ["close", "exit", "forget"]
    assert {trace.messages[-1].text for trace in traces} == {"Order"}


def test_asynchronous_loops_at_once_are_kept_apart(url: str, server: OrderServer) -> None:
    desk: Any = observe(AsyncOpenAI(base_url=server.base_url, api_key="none"), store=url)
    look = observe(get_order, kind="tool", store=url)

    @observe(store=url, thread="chat")
    async def answer(chat: str) -> str:
        messages: list[Any] = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": TURNS[0]}]
        while True:
            reply = await desk.chat.completions.create(model=MODEL, messages=messages, tools=TOOLS)
            message = reply.choices[0].message
            messages.append(message.model_dump(exclude_none=True))
            if not message.tool_calls:
                return str(message.content)
            for call in message.tool_calls:
                content = look(**json.loads(call.function.arguments))
                messages.append({"role": "tool", "tool_call_id": call.id, "content": content})

    async def main() -> list[str]:
        return list(await asyncio.gather(*(answer(f"t{number}") for number in range(6))))

    assert asyncio.run(main()) == [REPLIES[0]] * 6
    traces = stored(url)
    assert sorted(trace.id for trace in traces) == [f"t{number}" for number in range(6)]
    assert all(roles(trace) == TURN and len(trace.runs[0].tools) == 1 for trace in traces)


def test_functions_that_yield(url: str, server: OrderServer) -> None:
    desk: Any = observe(client(server), store=url)

    @observe(store=url, thread="chat")
    def pieces(chat: str) -> Iterator[str]:
        asked: Any = [{"role": "user", "content": TURNS[0]}, order_server.ANSWERS[1], {"role": "user", "content": chat}]
        for chunk in desk.chat.completions.create(model=MODEL, messages=asked, stream=True):
            yield chunk.choices[0].delta.content or ""

    @observe(store=url, thread="chat")
    async def apieces(chat: str) -> AsyncIterator[str]:
        for piece in pieces(chat):
            yield piece

    async def main() -> str:
        return "".join([piece async for piece in apieces("b")])

    assert "".join(pieces("a")) == asyncio.run(main()) == REPLIES[0]
    assert sorted((trace.id, trace.messages[-1].text) for trace in stored(url)) == [
        ("a", REPLIES[0]),
        ("b", REPLIES[0]),
    ]


def test_failures_are_the_runs(url: str, server: OrderServer) -> None:
    desk: Any = observe(client(server), store=url)
    asked: Any = {"model": MODEL, "messages": [{"role": "user", "content": TURNS[0]}]}

    @observe(store=url, thread="chat")
    def answer(chat: str) -> None:
        if chat == "model":
            server.failures.append(500)
        desk.chat.completions.create(**asked)
        observe(broken, kind="tool", store=url)(7)

    def broken(order_id: int) -> str:
        raise ValueError(f"no order {order_id}")

    for chat, error in (("model", APIError), ("tool", ValueError)):
        with pytest.raises(error):
            answer(chat)
    found = {trace.id: trace for trace in stored(url)}
    assert {name: trace.failure and trace.failure.kind for name, trace in found.items()} == {
        "model": "ModelError",
        "tool": "ToolError",
    }
    assert "try again later" in str(found["model"].calls[0].error)
    assert found["tool"].runs[0].tools[0].error == "ValueError: no order 7"


def test_an_agent_below_another_and_a_step(url: str, server: OrderServer) -> None:
    desk: Any = observe(client(server), store=url)

    def ask(text: str) -> str:
        asked: Any = [{"role": "user", "content": "?"}, order_server.ANSWERS[1], {"role": "user", "content": text}]
        return str(desk.chat.completions.create(model=MODEL, messages=asked).choices[0].message.content)

    expert: Any = observe(lambda question: ask(question), kind="agent", name="expert", store=url)
    step = observe(ask, name="think", store=url)

    @observe(store=url, thread="chat", name="desk")
    def answer(chat: str) -> str:
        return step("first") + str(expert("second"))

    answer("t")
    (trace,) = stored(url)
    assert [one.agent for one in trace.calls] == ["desk", "expert"]


def test_what_cannot_be_observed_is_refused(url: str) -> None:
    with pytest.raises(TypeError, match="observe was given the class OpenAI; expected an OpenAI or AsyncOpenAI client"):
        observe(OpenAI, store=url)
    with pytest.raises(TypeError, match="a str"):
        observe("text", store=url)
    with pytest.raises(ValueError, match="expected a parameter of the function: order_id"):
        observe(get_order, thread="chat", store=url)
    with pytest.raises(ValueError, match="expected 'agent', 'tool' or None"):
        observe(get_order, kind="chain", store=url)  # type: ignore[call-overload]
    assert observe(get_order, store=url, enabled=False) is get_order


def test_a_wrong_call_says_what_python_says(url: str) -> None:
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        observe(get_order, store=url)()  # type: ignore[call-arg]
    assert stored(url) == [] if Path(url.removeprefix("sqlite:///")).exists() else True
