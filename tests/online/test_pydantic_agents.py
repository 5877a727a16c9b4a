"""pydantic-ai agents that are watched: run, stream and iter; tools, retries, structured output, several agents."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.memory import InMemorySaver
from opentelemetry import trace as otel
from opentelemetry.sdk.trace import TracerProvider
from pydantic import BaseModel
from pydantic_ai import Agent, ModelRetry
from pydantic_ai.agent import WrapperAgent
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.models.instrumented import InstrumentationSettings
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from cm2_agent import Checklist, Item, SQLStore, Trace, flush, watch
from tests.dialects.order_server import MODEL, REPLIES, SYSTEM, TURNS, get_order, running


def desk(base_url: str) -> Agent[None, str]:
    model = OpenAIChatModel(MODEL, provider=OpenAIProvider(base_url=base_url, api_key="none"))
    agent = Agent(model, system_prompt=SYSTEM, name="desk")
    agent.tool_plain(get_order)
    return agent


def scripted(*answers: ModelResponse | Exception) -> FunctionModel:
    """A model that answers in order."""
    left = list(answers)

    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        found = left.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    return FunctionModel(answer)


def call(name: str, identity: str, /, **arguments: Any) -> ModelResponse:
    return ModelResponse(parts=[ToolCallPart(name, arguments, tool_call_id=identity)])


def says(text: str) -> ModelResponse:
    return ModelResponse(parts=[TextPart(text)])


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'cm2.db'}"


def stored(url: str) -> list[Trace]:
    assert flush(60)
    return list(SQLStore(url).traces())


def test_runs_of_a_conversation_are_stored_and_scored(url: str) -> None:
    checklist = Checklist(Item("looks", check={"called": "get_order"}, turn=0), name="desk")
    with running() as server:
        given = desk(server.base_url)
        agent = watch(given, checklist, store=url)
        first = agent.run_sync(TURNS[0])
        second = agent.run_sync(TURNS[1], message_history=first.all_messages())
    assert (first.output, second.output) == REPLIES
    assert given.instrument is None
    assert type(agent) is Agent
    (trace,) = stored(url)
    assert [message.role for message in trace.messages] == [
        *("system", "user", "assistant", "tool", "assistant"),
        *("user", "assistant", "tool", "tool", "assistant"),
    ]
    assert [run.name for run in trace.runs] == ["desk", "desk"]
    assert [[one.call_id for one in run.tools] for run in trace.runs] == [["call_1"], ["call_2", "call_3"]]
    assert [one.name for one in trace.calls[0].tools] == ["get_order"]
    score = SQLStore(url).score(trace.id)
    assert score is not None
    assert score.reward == 1.0


def test_the_dialogue_has_the_hash_that_a_watched_graphs_has(url: str, tmp_path: Path) -> None:
    other = f"sqlite:///{tmp_path / 'graph.db'}"
    with running() as server:
        agent = watch(desk(server.base_url), store=url)
        history: list[ModelMessage] = []
        model = ChatOpenAI(model=MODEL, base_url=server.base_url, api_key="none")  # type: ignore[arg-type]
        made: Any = create_agent(model, [tool(get_order)], system_prompt=SYSTEM, checkpointer=InMemorySaver())
        graph = watch(made, store=other)
        for turn in TURNS:
            history = agent.run_sync(turn, message_history=history).all_messages()
            graph.invoke({"messages": [("user", turn)]}, {"configurable": {"thread_id": "t"}})
    assert [one.content_hash for one in stored(url)] == [one.content_hash for one in stored(other)]


def test_streams_and_iterations(url: str) -> None:
    async def main(base_url: str) -> list[str]:
        agent = watch(desk(base_url), store=url)
        async with agent.run_stream(TURNS[0]) as streamed:
            said = "".join([piece async for piece in streamed.stream_text(delta=True)])
        async with agent.iter(TURNS[0]) as steps:
            async for _ in steps:
                pass
        assert steps.result is not None
        return [said, steps.result.output]

    with running() as server:
        assert asyncio.run(main(server.base_url)) == [REPLIES[0]] * 2
    traces = stored(url)
    assert [[message.role for message in one.messages] for one in traces] == [
        ["system", "user", "assistant", "tool", "assistant"]
    ] * 2
    assert {one.content_hash for one in traces} == {traces[0].content_hash}


def test_a_stream_that_is_left_early_is_a_run_all_the_same(url: str) -> None:
    async def main(base_url: str) -> None:
        agent = watch(desk(base_url), store=url)
        async with agent.run_stream(TURNS[0]) as streamed:
            async for _ in streamed.stream_text(delta=True):
                break

    with running() as server:
        asyncio.run(main(server.base_url))
    (trace,) = stored(url)
    assert [message.role for message in trace.messages][:4] == ["system", "user", "assistant", "tool"]


def test_retries_of_a_tool_are_answers_that_failed(url: str) -> None:
    model = scripted(call("find", "c1", name="ada"), call("find", "c2", name="Ada"), says("found her"))
    agent = Agent(model, name="finder")

    @agent.tool_plain(retries=2)
    def find(name: str) -> str:
        if name.islower():
            raise ModelRetry("names begin with a capital letter")
        return "Ada Lovelace"

    watch(agent, store=url).run_sync("who is ada?")
    (trace,) = stored(url)
    run = trace.runs[0]
    assert [message.role for message in run.messages] == ["user", "assistant", "tool", "assistant", "tool", "assistant"]
    failed, found = [part for message in run.messages for part in message.responses]
    assert "names begin with a capital letter" in str(failed.response)
    assert (failed.error, found.error) == (True, False)
    assert [(one.call_id, one.error is None) for one in run.tools] == [("c1", False), ("c2", True)]


class City(BaseModel):
    name: str
    people: int


def test_structured_output_is_the_call_that_gave_it(url: str) -> None:
    wrong = call("final_result", "c1", name="Paris", people="many")
    agent = Agent(scripted(wrong, call("final_result", "c2", name="Paris", people=2_100_000)), output_type=City)
    result = watch(agent, store=url).run_sync("the capital of France?")
    assert result.output == City(name="Paris", people=2_100_000)
    (trace,) = stored(url)
    calls = [one for message in trace.messages for one in message.tool_calls]
    assert [(one.id, one.arguments) for one in calls] == [
        ("c1", {"name": "Paris", "people": "many"}),
        ("c2", {"name": "Paris", "people": 2_100_000}),
    ]
    answers = [part for message in trace.messages for part in message.responses]
    assert [part.id for part in answers] == ["c1", "c2"]


def test_an_agent_that_another_one_asks_is_off_the_main_line(url: str) -> None:
    expert = Agent(scripted(says("forty-two")), name="expert")
    agent = Agent(scripted(call("ask", "c1", question="what?"), says("it is forty-two")), name="desk")

    @agent.tool_plain
    async def ask(question: str) -> str:
        return (await expert.run(question)).output

    asked = watch(agent, store=url)
    expert.instrument = asked.instrument
    asked.run_sync("the answer?")
    (trace,) = stored(url)
    assert [message.text for message in trace.messages] == ["the answer?", "", "", "it is forty-two"]
    assert [(one.agent, one.message) for one in trace.calls] == [("desk", 1), ("expert", None), ("desk", 3)]


def test_a_model_that_fails_is_the_runs_failure(url: str) -> None:
    agent = watch(Agent(scripted(RuntimeError("no route; api_key=abcdef0123456"))), store=url)
    with pytest.raises(RuntimeError):
        agent.run_sync("hello?")
    (trace,) = stored(url)
    assert trace.runs[0].status == "error"
    assert trace.failure is not None
    assert trace.failure.kind == "ModelError"
    assert "abcdef0123456" not in trace.failure.message
    assert [message.text for message in trace.messages] == ["hello?"]


def test_runs_at_once_are_kept_apart(url: str) -> None:
    async def main(base_url: str) -> None:
        agent = watch(desk(base_url), store=url)
        await asyncio.gather(*(agent.run(TURNS[0]) for _ in range(8)))

    with running() as server:
        asyncio.run(main(server.base_url))
    traces = stored(url)
    assert len(traces) == 8
    assert {one.content_hash for one in traces} == {traces[0].content_hash}


def test_a_span_of_the_applications_around_it_does_not_hold_the_run_back(url: str) -> None:
    agent = watch(Agent(scripted(says("hi"))), store=url)
    with otel.use_span(TracerProvider().get_tracer("app").start_span("request"), end_on_exit=False):
        agent.run_sync("hello")
        (trace,) = stored(url)
    assert [message.text for message in trace.messages] == ["hello", "hi"]


def test_what_cannot_be_watched_is_refused(url: str) -> None:
    agent = Agent(scripted(says("hi")))
    watched = watch(agent, store=url)
    with pytest.raises(ValueError, match="watched already"):
        watch(watched, store=url)
    with pytest.raises(TypeError, match="expected an Agent: watch the one that it wraps"):
        watch(WrapperAgent(agent), store=url)
    with pytest.raises(TypeError, match="input= and output="):
        watch(agent, store=url, input="question")
    agent.instrument = InstrumentationSettings(version=6)
    with pytest.raises(ValueError, match=r"capture the provider"):
        watch(agent, store=url)
    assert watch(Agent(scripted()), store=url, enabled=False).instrument is None
