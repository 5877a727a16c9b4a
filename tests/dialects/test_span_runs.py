"""Trees of spans by hand: what no recording holds."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cm2_agent.dialects.conversations import Conversations
from cm2_agent.dialects.span_record import SpanEvent, SpanRecord
from cm2_agent.dialects.span_runs import DIALECTS, read_span, runs_of
from cm2_agent.errors import TraceError
from tests.fuzzing import examples


def text(role: str, said: str) -> dict[str, Any]:
    return {"role": role, "parts": [{"type": "text", "content": said}]}


def asks(identity: str, name: str = "look", **arguments: Any) -> dict[str, Any]:
    return {
        "role": "assistant",
        "parts": [{"type": "tool_call", "id": identity, "name": name, "arguments": arguments}],
    }


def answers(identity: str, response: Any) -> dict[str, Any]:
    return {"role": "tool", "parts": [{"type": "tool_call_response", "id": identity, "response": response}]}


def span(identity: int, parent: int | None, at: int, name: str = "", **attributes: Any) -> SpanRecord:
    return SpanRecord(
        trace_id="t",
        span_id=str(identity),
        parent_id=None if parent is None else str(parent),
        name=name,
        start=at,
        end=at + 1,
        attributes=attributes,
    )


def chat(identity: int, parent: int | None, at: int, prompt: list[Any], answer: Any, **more: Any) -> SpanRecord:
    said = {"gen_ai.input.messages": json.dumps(prompt), "gen_ai.output.messages": json.dumps([answer])}
    return span(identity, parent, at, "chat", **{"gen_ai.operation.name": "chat", **said, **more})


def agent(identity: int, parent: int | None, at: int, name: str) -> SpanRecord:
    return span(identity, parent, at, **{"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": name})


def tool(identity: int, parent: int | None, at: int, name: str, call: str, result: str) -> SpanRecord:
    own = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": name, "gen_ai.tool.call.id": call}
    return span(identity, parent, at, **own, **{"gen_ai.tool.call.result": result})


def test_two_dialogues_under_one_span_are_two_runs() -> None:
    """A batch job: its span holds calls that have nothing to do with each other."""
    spans = [span(1, None, 0, "job")]
    for number in range(3):
        spans.append(chat(number + 2, 1, number + 1, [text("user", f"q{number}")], text("assistant", f"a{number}")))
    runs = runs_of(spans).runs
    assert [[message.text for message in run.messages] for run in runs] == [[f"q{i}", f"a{i}"] for i in range(3)]
    assert {run.name for run in runs} == {"job"}
    assert len({run.trace_id for run in runs}) == 3


def test_a_loop_under_one_span_is_one_run_with_its_tools() -> None:
    prompt = [text("user", "q")]
    spans = [
        span(1, None, 0, "request"),
        chat(2, 1, 1, prompt, asks("c1", key=1)),
        tool(3, 1, 2, "look", "c1", "value 1"),
        chat(4, 1, 3, [*prompt, asks("c1", key=1), answers("c1", "value 1")], text("assistant", "it is 1")),
    ]
    (run,) = runs_of(spans).runs
    assert [message.role for message in run.messages] == ["user", "assistant", "tool", "assistant"]
    assert [(one.name, one.result) for one in run.tools] == [("look", "value 1")]


def test_two_clients_that_say_the_same_are_not_mixed_up() -> None:
    """Two conversations with the same first words, told from each other by what the agent answered."""
    known = Conversations()
    first = [text("user", "hi")]
    traces: dict[str, str] = {}
    for name in "ab":
        one = replace(chat(1, None, 0, first, asks(name, key=name)), trace_id=f"{name}1")
        traces[name] = runs_of([one], conversations=known).runs[0].trace_id
    for name in "ba":
        grown = [*first, asks(name, key=name), answers(name, "x")]
        two = replace(chat(1, None, 5, grown, text("assistant", "done")), trace_id=f"{name}2")
        (run,) = runs_of([two], conversations=known).runs
        assert run.trace_id == traces[name]
        assert [message.role for message in run.messages] == ["tool", "assistant"]
        assert run.history == ()


def test_what_goes_on_twice_from_one_place_keeps_its_history() -> None:
    known = Conversations()
    first = [text("user", "hi")]
    begun = runs_of([chat(1, None, 0, first, text("assistant", "hello"))], conversations=known).runs[0]
    grown = [*first, text("assistant", "hello"), text("user", "more")]
    later = [
        runs_of(
            [replace(chat(1, None, at, grown, text("assistant", str(at))), trace_id=str(at))], conversations=known
        ).runs[0]
        for at in (5, 6)
    ]
    assert [run.trace_id == begun.id for run in later] == [True, False]
    assert [len(run.history) for run in later] == [0, 2]


def test_a_retry_after_a_failure_is_the_same_dialogue() -> None:
    prompt = [text("user", "q")]
    asked = {"gen_ai.operation.name": "chat", "gen_ai.input.messages": json.dumps(prompt)}
    error = {"exception.type": "openai.APIError", "exception.message": "no"}
    failed = replace(
        span(2, 1, 1, **asked),
        status="error",
        events=(SpanEvent(name="exception", attributes=error),),
    )
    (run,) = runs_of([span(1, None, 0, "job"), failed, chat(3, 1, 2, prompt, text("assistant", "a"))]).runs
    assert [message.text for message in run.messages] == ["q", "a"]
    assert [call.error for call in run.calls] == ["APIError: no", None]
    assert run.status == "ok"
    (run,) = runs_of([failed]).runs
    assert (run.status, run.failure and run.failure.kind) == ("error", "ModelError")


def test_several_agents_are_named() -> None:
    spans = [
        agent(1, None, 0, "desk"),
        chat(2, 1, 1, [text("user", "q")], asks("c1", "expert")),
        tool(3, 1, 2, "expert", "c1", "yes"),
        agent(4, 3, 3, "expert"),
        chat(5, 4, 4, [text("user", "is it?")], text("assistant", "yes")),
        chat(6, 1, 6, [text("user", "q"), asks("c1", "expert"), answers("c1", "yes")], text("assistant", "it is")),
    ]
    (run,) = runs_of(spans).runs
    assert [message.text for message in run.messages] == ["q", "", "", "it is"]
    assert [(call.agent, call.message) for call in run.calls] == [("desk", 1), ("expert", None), ("desk", 3)]
    assert [one.agent for one in run.tools] == ["desk"]


def test_a_call_that_two_instrumentations_recorded_counts_once() -> None:
    prompt, answer = [text("user", "q")], text("assistant", "a")
    found = runs_of([chat(1, None, 0, prompt, answer), chat(2, 1, 0, prompt, answer)])
    assert len(found.runs[0].calls) == 1
    assert found.unread == {"genai: the span around it recorded the same": 1}


@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
def test_executions_that_name_no_call_are_those_of_its_tool_and_arguments(order: tuple[int, int]) -> None:
    """A failed one marks its own call's answer, in whichever order they began."""
    both = asks("c1", key=1)
    both["parts"] += asks("c2", key=2)["parts"]
    prompt = [text("user", "q")]
    own = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "look"}
    runs = [
        span(3 + place, 1, 2 + place, **own, **{"gen_ai.tool.call.arguments": json.dumps({"key": key})})
        for place, key in enumerate(order)
    ]
    runs = [replace(one, status="error") if f'"key": {2}' in str(one.attributes) else one for one in runs]
    spans = [
        agent(1, None, 0, "desk"),
        chat(2, 1, 1, prompt, both),
        *runs,
        chat(9, 1, 9, [*prompt, both, answers("c1", "yes"), answers("c2", "well")], text("assistant", "a")),
    ]
    (run,) = runs_of(spans).runs
    assert {one.call_id: one.arguments for one in run.tools} == {"c1": {"key": 1}, "c2": {"key": 2}}
    answered = [part for message in run.messages for part in message.responses]
    assert [(part.id, part.error) for part in answered] == [("c1", False), ("c2", True)]


def test_an_execution_of_a_tool_that_no_call_asked_for_has_no_call() -> None:
    own = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "other", "gen_ai.tool.call.result": "x"}
    spans = [agent(1, None, 0, "desk"), chat(2, 1, 1, [text("user", "q")], asks("c1")), span(3, 1, 2, **own)]
    (run,) = runs_of(spans).runs
    assert [one.call_id for one in run.tools] == [None]
    assert [message.role for message in run.messages] == ["user", "assistant"]


def test_traceloops_entities() -> None:
    """As its documentation writes them: workflow, agent, task and tool."""

    def entity(identity: int, parent: int | None, at: int, kind: str, name: str, **more: Any) -> SpanRecord:
        own = {"traceloop.span.kind": kind, "traceloop.entity.name": name}
        thread = {"traceloop.association.properties.session_id": "s", "traceloop.association.properties.user_id": "ada"}
        return span(identity, parent, at, **own, **thread, **more)

    asked = {"gen_ai.prompt.0.role": "user", "gen_ai.prompt.0.content": "q"}
    called = {"gen_ai.completion.0.role": "assistant", "gen_ai.completion.0.tool_calls.0.id": "c1"}
    named = {
        f"gen_ai.completion.0.tool_calls.0.{key}": value for key, value in {"name": "look", "arguments": "{}"}.items()
    }
    values = {"traceloop.entity.input": '{"args": [], "kwargs": {"key": 1}}', "traceloop.entity.output": '"value 1"'}
    spans = [
        entity(1, None, 0, "workflow", "desk"),
        entity(2, 1, 1, "task", "think"),
        span(3, 2, 2, **asked, **called, **named),
        entity(4, 1, 3, "tool", "look", **values),
    ]
    found = runs_of(spans)
    (run,) = found.runs
    assert (run.name, run.thread, run.user, found.dialects) == ("desk", "s", "ada", {"traceloop": 4})
    assert [message.role for message in run.messages] == ["user", "assistant", "tool"]
    assert [(one.name, one.arguments, one.result) for one in run.tools] == [("look", {"key": 1}, "value 1")]


def test_reasons_name_the_dialect() -> None:
    spans = [
        span(1, None, 0, **{"gen_ai.operation.name": "embeddings"}),
        span(2, None, 0, **{"openinference.span.kind": "RETRIEVER"}),
        span(
            3,
            None,
            0,
            **{"gen_ai.operation.name": "chat", "gen_ai.input.messages": '[{"role": "parrot", "parts": []}]'},
        ),
        replace(span(4, None, 0), scope="http"),
    ]
    found = runs_of(spans)
    assert found.runs == ()
    assert sorted(found.unread) == [
        "genai: a message on a span has role 'parrot'; expected one of system, developer, user, assistant, tool,"
        " function, human, ai, model",
        "genai: the operation 'embeddings' is no part of a dialogue",
        "no attribute of a known dialect (scope http)",
        "openinference: a span of kind RETRIEVER is no part of a dialogue",
    ]


def test_a_circle_of_parents_ends() -> None:
    spans = [
        replace(chat(1, 2, 0, [text("user", "q")], text("assistant", "a")), trace_id="t"),
        span(2, 1, 0, **{"gen_ai.operation.name": "execute_tool"}),
    ]
    assert runs_of(spans).unread is not None


_TEXTS = st.sampled_from(["[{}]", '{"role": 1}', "[[1]]", '[{"role": "tool", "parts": [{"type": "text"}]}]'])
_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(["[{}]", '{"role": 1}', "[[1]]"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
_NAMES = st.sampled_from(
    [
        *("gen_ai.operation.name", "gen_ai.input.messages", "gen_ai.output.messages", "gen_ai.system_instructions"),
        *("gen_ai.tool.definitions", "gen_ai.tool.name", "gen_ai.tool.call.result", "gen_ai.prompt.0.role"),
        *("gen_ai.prompt.0.content", "gen_ai.completion.0.tool_calls.0.name", "openinference.span.kind", "metadata"),
        *("llm.input_messages.0.message.role", "llm.output_messages.0.message.contents.0.message_content.type"),
        *("input.value", "output.value", "ai.operationId", "ai.prompt", "ai.prompt.messages", "ai.response.toolCalls"),
        *("traceloop.span.kind", "traceloop.entity.input", "cm2.prompt_ids", "cm2.logprobs", "cm2.sampling", "events"),
    ]
)
_WORDS = st.sampled_from(["chat", "execute_tool", "invoke_agent", "LLM", "TOOL", "CHAIN", "ai.toolCall", "workflow"])


@settings(max_examples=examples(200))
@given(st.lists(st.dictionaries(_NAMES, _VALUES | _WORDS, max_size=6), min_size=1, max_size=5), st.randoms())
def test_hostile_attributes_are_counted_and_never_raise(attributes: list[dict[str, Any]], chance: Any) -> None:
    spans = []
    for number, own in enumerate(attributes):
        parent = chance.choice([None, *range(len(attributes))])
        spans.append(span(number, parent, chance.randrange(5), **own))
    found = runs_of(spans)
    assert sum(found.dialects.values()) <= len(spans)
    for one in spans:
        read_span(one)
    for run in found.runs:
        assert run.messages


def test_a_span_is_read_back_from_its_json() -> None:
    one = replace(
        chat(1, 2, 0, [text("user", "q")], text("assistant", "a")), events=(SpanEvent(name="e", attributes={"k": [1]}),)
    )
    assert SpanRecord.from_json(json.loads(json.dumps(one.to_json()))) == one
    with pytest.raises(TraceError, match="not a span"):
        SpanRecord.from_json({"trace": 1})


def test_dialects_have_names() -> None:
    assert [dialect.NAME for dialect in DIALECTS] == ["vercel", "openinference", "traceloop", "genai"]
