"""What a client gets of an answer, and what is read of it, wherever it is cut and whatever the server sends."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("orjson", reason='needs the extra: pip install "cm2-agent[server]"')

from cm2_agent.incidents import Incidents
from cm2_agent.server.call_spans import spans_of
from cm2_agent.server.chat_answer import Answer
from cm2_agent.server.chat_call import ProxiedCall
from cm2_agent.server.chat_request import Asked, Upstream, asked_of
from cm2_agent.server.dialogues import Dialogues
from cm2_agent.server.event_stream import EventSplitter, data_of, split_events
from cm2_agent.server.wire_json import dumps, loads
from tests.fuzzing import examples
from tests.strategies import jsons

VLLM = Upstream(server="vllm")
TEXTS = st.text(max_size=6) | st.sampled_from(
    ["data: [DONE]", "\n\n", '"logprobs"', "token_ids", "é", "\U0001f600", "\\u0041"]
)
ENDS = st.sampled_from(["\n", "\r\n", "\r"])
SETTINGS = settings(max_examples=examples(60), deadline=None)


def asked(**more: Any) -> Asked:
    return asked_of({"model": "m", "messages": [{"role": "user", "content": "Hi"}], "stream": True, **more}, VLLM)


@st.composite
def chunks(draw: st.DrawFn) -> dict[str, Any]:
    """A chunk of vLLM: text or a piece of a call, with ids and logprobs, or the usage at the end."""
    if draw(st.booleans()) and draw(st.booleans()):
        return {"id": "c", "choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 1}}
    text = draw(TEXTS)
    function = {"name": None, "arguments": draw(TEXTS)}
    delta: dict[str, Any] = draw(
        st.sampled_from(
            [{"content": text}, {"reasoning_content": text}, {"tool_calls": [{"index": 0, "function": function}]}]
        )
    )
    choice: dict[str, Any] = {"index": 0, "delta": delta, "finish_reason": draw(st.sampled_from([None, "stop"]))}
    if draw(st.booleans()):
        entry = {"token": text, "logprob": -0.5, "bytes": list(text.encode()), "top_logprobs": []}
        choice |= {"token_ids": [draw(st.integers(0, 9))], "logprobs": {"content": [entry]}}
    chunk = {"id": "c", "model": "m", "choices": [choice]}
    return {**chunk, "prompt_token_ids": [1, 2]} if draw(st.booleans()) else chunk


@st.composite
def streams(draw: st.DrawFn) -> tuple[list[dict[str, Any]], bytes]:
    """The chunks, and their stream: with comments, other fields and either kind of JSON between its lines."""
    sent, end = draw(st.lists(chunks(), max_size=5)), draw(ENDS)
    lines: list[str] = []
    for chunk in sent:
        lines += draw(st.sampled_from([[], [": keep-alive", ""], ["event: chunk"], [": data: 1"]]))
        lines += ["data: " + json.dumps(chunk, ensure_ascii=draw(st.booleans())), ""]
    return sent, end.join([*lines, "data: [DONE]", "", ""]).encode()


def pieces(draw: st.DataObject, whole: bytes) -> list[bytes]:
    cuts = sorted(draw.draw(st.sets(st.integers(0, len(whole)), max_size=8)))
    return [whole[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(whole)], strict=True)]


def passed(asked: Asked, given: list[bytes], mark: str | None = None) -> tuple[bytes, Answer]:
    answer = Answer(asked, mark=mark)
    answer.stream = True
    return b"".join([*map(answer.feed, given), answer.end()]), answer


def call_of(asked: Asked, raw: bytes, *, stream: bool = True) -> ProxiedCall:
    return ProxiedCall(asked=asked, raw=raw, stream=stream, started=0, ended=1)


def without(chunk: dict[str, Any]) -> dict[str, Any]:
    """What a client that asked for nothing more gets of a chunk."""
    out = {key: value for key, value in chunk.items() if key != "prompt_token_ids"}
    out["choices"] = [
        {key: None if key == "logprobs" else value for key, value in choice.items() if key != "token_ids"}
        for choice in chunk["choices"]
    ]
    return out


@SETTINGS
@given(st.data(), streams())
def test_a_stream_that_was_asked_for_as_it_is_passes_byte_for_byte(draw: st.DataObject, made: Any) -> None:
    sent, whole = made
    wanted = asked(logprobs=True, return_token_ids=True, stream_options={"include_usage": True})
    out, answer = passed(wanted, pieces(draw, whole))
    assert out == answer.raw == whole
    assert answer.finished
    assert list(call_of(wanted, answer.raw).parts) == sent


@SETTINGS
@given(st.data(), streams())
def test_what_was_not_asked_for_is_taken_out_wherever_the_stream_is_cut(draw: st.DataObject, made: Any) -> None:
    sent, whole = made
    out, answer = passed(asked(), pieces(draw, whole))
    read = [loads(data) for event in split_events(out) if (data := data_of(event)) not in (None, b"[DONE]")]
    assert read == [without(chunk) for chunk in sent if chunk["choices"]]
    assert out.count(b": keep-alive") == whole.count(b": keep-alive")
    assert answer.finished
    assert list(call_of(asked(), answer.raw).parts) == sent


@SETTINGS
@given(st.data(), st.lists(st.sampled_from([b"\r", b"\n", b"\r\n", b"data: a", b": b", b"\xc3\xa9"]), max_size=12))
def test_events_are_the_same_wherever_the_stream_is_cut(draw: st.DataObject, tokens: list[bytes]) -> None:
    whole = b"".join(tokens)
    splitter = EventSplitter()
    found = [splitter.feed(piece) for piece in pieces(draw, whole)]
    assert b"".join([*found, splitter.rest]) == whole
    cut = [event for part in found for event in split_events(part)] + ([splitter.rest] if splitter.rest else [])
    assert [data for event in cut if (data := data_of(event))] == [
        data for event in split_events(whole) if (data := data_of(event))
    ]


def test_a_mark_is_the_id_of_every_message() -> None:
    chunk = {"choices": [{"index": index, "delta": {"content": "a"}} for index in (0, 1)]}
    out, _ = passed(asked(n=2), [b"data: " + dumps(chunk) + b"\n\n"], mark="m7")
    (data,) = (data_of(event) for event in split_events(out))
    assert [choice["delta"]["id"] for choice in loads(data or b"")["choices"]] == ["m7-0", "m7-1"]


def test_a_broken_stream_is_not_finished_though_its_text_says_so() -> None:
    said = {"choices": [{"index": 0, "delta": {"content": "data: [DONE]"}}]}
    for wanted in (asked(), asked(logprobs=True, return_token_ids=True, stream_options={"include_usage": True})):
        assert not passed(wanted, [b"data: " + dumps(said) + b"\n\n"])[1].finished


@SETTINGS
@given(
    jsons(3), st.booleans(), st.sampled_from(["choices", "error", "usage", "model", "delta", "logprobs", "token_ids"])
)
def test_an_answer_of_any_kind_costs_no_other_call(value: Any, stream: bool, name: str) -> None:
    choice: dict[str, Any] = {"index": 0, "delta": {"content": "a"}, "message": {"content": "a"}, "token_ids": [1]}
    body: Any = {"model": "m", "choices": [{**choice, name: value}], "usage": {"prompt_tokens": 1}}
    for one in (value, {**body, name: value}, body):
        raw = dumps(one) if not stream else b"data: " + dumps(one) + b"\n\ndata: [DONE]\n\n"
        found = spans_of(call_of(asked(), raw, stream=stream), Dialogues(), Incidents())
        assert found.spans
        out = Answer(asked())
        out.stream = stream
        assert out.feed(raw) + out.end() or stream


@pytest.mark.parametrize("text", ['{"a": NaN}', '{"a": -Infinity}', '{"a": "\\ud800"}'])
def test_json_that_servers_send_though_orjson_refuses_it(text: str) -> None:
    assert str(loads(dumps(loads(text.encode())))) in (str(json.loads(text)), "{'a': None}")
