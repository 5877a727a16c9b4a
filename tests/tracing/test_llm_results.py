"""What is read of a model's request and reply, and of a tool's result: settings of the call, tokens by kind, refusals,
content blocks and artifacts."""

from __future__ import annotations

from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult, LLMResult
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, SecretStr

from cm2_agent.tracing.llm_results import read_request, read_response, read_tool_result
from cm2_agent.types.trace import Trace
from cm2_agent.types.view import View
from tests.tracing.apps import ScriptedModel, says
from tests.tracing.conftest import Watched

USAGE: Any = {
    "input_tokens": 100,
    "output_tokens": 20,
    "total_tokens": 120,
    "input_token_details": {"cache_read": 60, "cache_creation": 30, "audio": 0, "ephemeral_1h_input_tokens": 30},
    "output_token_details": {"reasoning": 12, "audio": 4},
}


class Shape(BaseModel):
    answer: str


def requested(model: Any, **call: Any) -> dict[str, Any]:
    """The settings read of the call that a ChatOpenAI, or what is made of it, would send."""
    kwargs: dict[str, Any] = {}
    while not isinstance(model, BaseChatModel):
        kwargs, model = {**model.kwargs, **kwargs}, model.bound
    _, settings = read_request(model._get_invocation_params(**{**kwargs, **call}), {})
    return settings


def test_settings_are_those_of_the_call() -> None:
    model = ChatOpenAI(model="m", api_key=SecretStr("none"), temperature=0.5, top_p=0.9, presence_penalty=0.1, n=1)
    assert requested(model) == {"temperature": 0.5, "top_p": 0.9, "presence_penalty": 0.1}
    bound = model.bind(temperature=1.0, logit_bias={"7": 5}, n=2, extra_body={"guided_json": {"type": "object"}})
    assert requested(bound, temperature=0.0, stop=["END"]) == {
        "temperature": 0.0,
        "top_p": 0.9,
        "presence_penalty": 0.1,
        "stop": ["END"],
        "bias": {"7": 5},
        "grammar": {"type": "object"},
        "n": 2,
    }


@pytest.mark.parametrize(
    ("bound", "name"),
    [
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {}}}}, "grammar"),
        ({"response_format": Shape}, "grammar"),
        ({"extra_body": {"structured_outputs": {"regex": "a+"}}}, "grammar"),
        ({"extra_body": {"repetition_penalty": 1.2}}, "repetition_penalty"),
        ({"extra_body": {"bad_words": ["no"]}}, "bias"),
        ({"extra_body": {"use_beam_search": True}}, "beam_search"),
        ({"extra_body": {"min_tokens": 5}}, "min_tokens"),
        ({"tool_choice": {"type": "function", "function": {"name": "look"}}}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"frequency_penalty": 0.2}, "frequency_penalty"),
        ({"extra_body": {"best_of": 4}}, "best_of"),
    ],
)
def test_what_shapes_sampling_makes_a_call_untrainable(watched: Watched, bound: dict[str, Any], name: str) -> None:
    says("hi").bind(**bound).invoke("hello", {"callbacks": [watched.handler]})
    says("hi").bind(tool_choice="auto", response_format={"type": "text"}, n=1).invoke(
        "hello", {"callbacks": [watched.handler]}
    )
    assert [run.calls[0].untrainable for run in watched.runs] == [f"not plain sampling: {name}", None]


def test_a_model_says_why_its_ids_are_not_to_be_trained_on(watched: Watched) -> None:
    class Cut(ScriptedModel):
        def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
            result = super()._generate(messages)
            result.generations[0].message.response_metadata["untrainable"] = "ids do not spell the text"
            return result

    Cut(script=[AIMessage("hi")]).invoke("hello", {"callbacks": [watched.handler]})
    (call,) = watched.run.calls
    assert (call.sampling["untrainable"], call.untrainable) == ("ids do not spell the text",) * 2


def reply(message: AIMessage, **llm_output: Any) -> LLMResult:
    return LLMResult(generations=[[ChatGeneration(message=message)]], llm_output=llm_output)


def test_tokens_by_kind() -> None:
    _, read = read_response(reply(AIMessage("hi", usage_metadata=USAGE)))
    assert read.usage == {
        "input_tokens": 100,
        "output_tokens": 20,
        "cache_read": 60,
        "cache_creation": 30,
        "ephemeral_1h_input_tokens": 30,
        "reasoning": 12,
        "audio_output": 4,
    }
    reported = {
        "prompt_tokens": 9,
        "completion_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 8},
        "completion_tokens_details": {"reasoning_tokens": 3, "accepted_prediction_tokens": 0},
    }
    expected = {"input_tokens": 9, "output_tokens": 5, "cache_read": 8, "reasoning": 3}
    assert read_response(reply(AIMessage("hi"), token_usage=reported))[1].usage == expected
    _, read = read_response(reply(AIMessage("hi", response_metadata={"token_usage": reported})))
    assert read.usage == expected


@pytest.mark.parametrize(
    "message",
    [
        AIMessage("", additional_kwargs={"refusal": "I cannot help."}),
        AIMessage([{"type": "refusal", "refusal": "I cannot help."}]),
        AIMessage([{"type": "non_standard", "value": {"type": "refusal", "refusal": "I cannot help."}}]),
        AIMessage([{"type": "refusal", "refusal": "I cannot help."}], additional_kwargs={"refusal": "I cannot help."}),
    ],
)
def test_a_refusal_is_what_was_said(watched: Watched, message: AIMessage) -> None:
    class Refuses(ScriptedModel):
        def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
            return ChatResult(generations=[ChatGeneration(message=message)])

    Refuses().invoke("hello", {"callbacks": [watched.handler]})
    view = View.of(Trace.of(watched.run))
    assert view.reply == "I cannot help."
    (part,) = watched.run.messages[1].parts
    assert part.extra == {"refusal": True}  # type: ignore[union-attr]


BLOCKS: Any = [
    {"type": "text", "text": "Order\nA7 is late"},
    {"type": "image", "url": "https://x.org/a.png"},
    {"type": "text", "text": "eta 2026-05-20"},
]


@tool(response_format="content_and_artifact")
def get_order() -> Any:
    """As an adapter of an MCP server answers."""
    return BLOCKS, {"structured_content": {"order": "A7", "late": True}}


def asks(name: str, **args: Any) -> AIMessage:
    return AIMessage("", tool_calls=[{"name": name, "args": args, "id": f"{name}-1"}])


def test_content_blocks_are_text_for_checks_and_keep_their_structure(watched: Watched) -> None:
    @tool
    def cancel(order: str) -> str:
        """Cancel."""
        return "cancelled"

    model = ScriptedModel(script=[asks("get_order"), asks("cancel", order="A7"), AIMessage("Done.")])
    graph: Any = create_agent(model, [get_order, cancel]).with_config(callbacks=[watched.handler])
    graph.invoke({"messages": [("user", "Cancel my late order.")]})
    trace = Trace.of(watched.run)
    view = View.of(trace)
    assert view.results("get_order") == ("Order\nA7 is late\neta 2026-05-20",)
    assert view.called("cancel", with_={"order": {"from": "tool"}})
    blocks = trace.steps[0].responses[0].response
    assert [block["type"] for block in blocks] == ["text", "image", "text"]
    tools = watched.run.tools
    assert [run.artifact for run in tools] == [{"structured_content": {"order": "A7", "late": True}}, None]
    assert tools[0].result == blocks


def test_results_of_tools() -> None:
    failed = ToolMessage([{"type": "text", "text": "denied"}], tool_call_id="1", status="error", artifact=[object])
    read = read_tool_result(failed, None)
    assert (read.error, read.call_id, read.artifact) == ("denied", "1", [str(object)])
    assert read_tool_result(["a", "b"], "2").result == ["a", "b"]
    huge = ToolMessage("ok", tool_call_id="1", artifact={"rows": ["x" * 1000] * 1000})
    assert len(str(read_tool_result(huge, None).artifact)) < 300_000
