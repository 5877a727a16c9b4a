"""The proxy: what goes upstream, what the client gets, and the runs that the calls become."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("aiohttp", reason='needs the extra: pip install "cm2-agent[server]"')
pytest.importorskip("langchain_openai", reason='needs the extra: pip install "cm2-agent[openai]"')

from cm2_agent.errors import ModelError
from cm2_agent.server.chat_request import Upstream, asked_of
from cm2_agent.server.upstream_client import base_url
from cm2_agent.store import SQLStore
from cm2_agent.store.access_tokens import create_token
from tests.chat_server import ChatServer, Fault, last_message
from tests.fuzzing import examples
from tests.models.vllm_server import PROMPT, TOKENS, Server, response, running
from tests.server.running import Running, collecting
from tests.strategies import jsons

VLLM = Upstream(server="vllm")
ASKED = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
KEY = {"Authorization": "Bearer sk-clients-own"}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SQLStore]:
    with SQLStore(f"sqlite:///{tmp_path / 'cm2.db'}") as opened:
        yield opened


@pytest.fixture
def server() -> Iterator[Server]:
    with running() as one:
        yield one


def ask(proxy: Running, body: dict[str, Any], path: str = "/v1/chat/completions", **headers: str) -> httpx.Response:
    return proxy.client.post(path, json=body, headers={**KEY, **headers})


def test_an_answer_is_that_of_the_server_without_what_was_added(store: SQLStore, server: Server) -> None:
    with collecting(store, proxy_url=server.address, upstream=VLLM) as proxy:
        answer = ask(proxy, {**ASKED, "temperature": 0.5})
        expected = response()
        del expected["prompt_token_ids"], expected["choices"][0]["token_ids"]
        expected["choices"][0]["logprobs"] = None
        assert answer.json() == expected
        (sent,) = server.asked
        assert (sent["return_token_ids"], sent["logprobs"], sent["temperature"], sent["top_p"]) == (
            True,
            True,
            0.5,
            1.0,
        )
        assert server.keys == ["Bearer sk-clients-own"]
        proxy.flush()
    (call,) = next(store.traces()).calls
    assert (call.prompt_ids, call.completion_ids) == (tuple(PROMPT), (7, 8, 9))
    assert call.sampling["temperature"] == 0.5
    assert (call.model, call.model_version) == ("served", "served")
    files = b"".join(path.read_bytes() for path in store.database.files())
    assert b"sk-clients-own" not in files


def test_what_the_client_asked_for_it_gets(store: SQLStore, server: Server) -> None:
    with collecting(store, proxy_url=server.address, upstream=VLLM) as proxy:
        answer = ask(proxy, {**ASKED, "logprobs": True, "return_token_ids": True})
        assert answer.json() == response()


@pytest.mark.parametrize("usage", [False, True])
def test_a_stream_passes_chunk_by_chunk(store: SQLStore, server: Server, usage: bool) -> None:
    body = {**ASKED, "stream": True, **({"stream_options": {"include_usage": True}} if usage else {})}
    with collecting(store, proxy_url=server.address, upstream=VLLM) as proxy:
        answer = ask(proxy, body)
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
        assert events[-1] == "[DONE]"
        chunks = [json.loads(event) for event in events[:-1]]
        assert "token_ids" not in answer.text
        assert all(choice["logprobs"] is None for chunk in chunks for choice in chunk["choices"])
        text = "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])
        assert text == "Hello there"
        assert [chunk for chunk in chunks if chunk.get("usage")] == ([chunks[-1]] if usage else [])
        proxy.flush()
    (trace,) = store.traces()
    assert [message.text for message in trace.messages] == ["Hi", "Hello there"]
    (call,) = trace.calls
    assert call.untrainable is None
    assert (call.completion_ids, call.usage["output_tokens"]) == (tuple(number for number, _, _ in TOKENS), 3)


def test_other_paths_pass_through(store: SQLStore) -> None:
    with ChatServer(lambda body: "Hi") as upstream, collecting(store, proxy_url=upstream.base_url) as proxy:
        answer = proxy.client.get("/v1/models", headers=KEY)
        assert answer.status_code == 404  # what this server says of it
        assert "Invalid URL" in answer.text
        assert proxy.client.get("/elsewhere").status_code == 404
        assert proxy.client.post("/v1/chat/completions", content=b"[]").status_code == 400


def tool_agent(messages: list[dict[str, Any]], proxy: Running, headers: dict[str, str]) -> list[dict[str, Any]]:
    """A client that keeps its own conversation: it calls tools until there is a reply."""
    while True:
        answer = ask(proxy, {"model": "stub", "messages": messages}, **headers).json()["choices"][0]["message"]
        messages = [*messages, {key: value for key, value in answer.items() if key != "refusal"}]
        if not answer.get("tool_calls"):
            return messages
        messages += [
            {"role": "tool", "tool_call_id": call["id"], "content": "shipped"} for call in answer["tool_calls"]
        ]


def desk(body: dict[str, Any]) -> Fault | str:
    if body["messages"][-1]["role"] == "tool":
        return f"It is {last_message(body)}."
    number = len(body["messages"])
    call = {"id": f"c{number}", "type": "function", "function": {"name": "look", "arguments": '{"key": 7}'}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    choice = {"index": 0, "finish_reason": "tool_calls", "message": message}
    return Fault(
        body=json.dumps({"id": "c", "object": "chat.completion", "created": 1, "model": "s", "choices": [choice]})
    )


@pytest.mark.parametrize("headers", [{}, {"x-cm2-thread": "t7"}])
def test_calls_of_a_conversation_are_one_trace_with_a_run_a_turn(store: SQLStore, headers: dict[str, str]) -> None:
    with ChatServer(desk) as upstream, collecting(store, proxy_url=upstream.base_url) as proxy:
        messages: list[dict[str, Any]] = [{"role": "system", "content": "Be brief."}]
        for asked in ("Where is order 7?", "And now?"):
            messages = tool_agent([*messages, {"role": "user", "content": asked}], proxy, headers)
            proxy.flush()
    (trace,) = store.traces()
    assert [len(run.calls) for run in trace.runs] == [2, 2]
    roles = ["user", "assistant", "tool", "assistant"]
    assert [message.role for message in trace.messages if message.role != "system"] == [*roles, *roles]
    assert len(trace.turns) == 2
    assert (trace.id == "t7") == bool(headers)


def test_a_path_names_the_dialogue(store: SQLStore) -> None:
    with ChatServer(lambda body: "Hi") as upstream, collecting(store, proxy_url=upstream.base_url) as proxy:
        for _ in range(2):
            ask(proxy, {**ASKED, "model": "stub"}, path="/t/thread%209/v1/chat/completions")
        proxy.flush()
    assert [(trace.id, len(trace.calls)) for trace in store.traces()] == [("thread 9", 2)]


def test_refusals_and_broken_answers_reach_the_client_and_are_kept_as_failed_calls(store: SQLStore) -> None:
    faults = [
        Fault(status=429, body='{"error": {"message": "slow down"}}', headers={"Retry-After": "3"}),
        Fault(drop=True),
    ]
    with (
        ChatServer(lambda body: "Hi", faults=faults) as upstream,
        collecting(store, proxy_url=upstream.base_url) as proxy,
    ):
        first = ask(proxy, {**ASKED, "model": "stub"})
        assert (first.status_code, first.headers["retry-after"], first.json()["error"]["message"]) == (
            429,
            "3",
            "slow down",
        )
        assert ask(proxy, {**ASKED, "model": "stub"}).status_code == 502
        assert ask(proxy, {**ASKED, "model": "stub"}).status_code == 200
        proxy.flush()
    errors = sorted(str(call.error) for trace in store.traces() for call in trace.calls)
    assert len(errors) == 3
    assert errors.count("None") == 1


@contextmanager
def saying(answer: bytes | None) -> Iterator[tuple[str, threading.Event, threading.Event]]:
    """A server that gives one connection this answer, or (None) none at all, and notes when a
    request came and when the other side is gone."""
    begun, gone = threading.Event(), threading.Event()

    def serve(listener: socket.socket) -> None:
        with listener.accept()[0] as connection:
            connection.recv(1 << 16)
            begun.set()
            if answer is not None:
                connection.sendall(answer)
            else:
                while connection.recv(1 << 16):
                    pass
                gone.set()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1", begun, gone
        thread.join(30)


PLAIN = Upstream(server="none")


def test_a_client_that_leaves_before_the_answer_takes_its_request_back(store: SQLStore) -> None:
    with saying(None) as (url, begun, gone), collecting(store, proxy_url=url, upstream=PLAIN) as proxy:
        body = json.dumps(ASKED).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        host, _, port = proxy.address.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port))) as client:
            client.sendall(head.encode() + body)
            assert begun.wait(30)
        assert gone.wait(30)
        proxy.flush()
    assert [call.error for trace in store.traces() for call in trace.calls] == ["the client left"]


@pytest.mark.parametrize(
    ("kind", "body", "why"),
    [
        ("text/event-stream", 'data: {"error": {"message": "boom"}}\n\ndata: [DONE]\n\n', "error within"),
        ("application/json", '{"error":{"message":"boom"}}', "error within"),
        ("text/html", "<html>Sorry</html>", "no answer"),
    ],
)
def test_an_error_with_status_200_is_a_failed_call(store: SQLStore, kind: str, body: str, why: str) -> None:
    chunk = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": "half"}}]}
    sent = (f"data: {json.dumps(chunk)}\n\n" if "stream" in kind else "") + body
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(sent)}\r\n\r\n"
    with (
        saying((head + sent).encode()) as (url, _, _),
        collecting(store, proxy_url=url, upstream=PLAIN) as proxy,
    ):
        assert ask(proxy, {**ASKED, "stream": "stream" in kind}).text == sent
        proxy.flush()
    ((trace,),) = [store.traces()]
    assert [why in str(call.error) for call in trace.calls] == [True]
    assert trace.runs[0].status == "error"
    assert not [message for message in trace.messages if message.role == "assistant"]


@settings(max_examples=examples(40), deadline=None)
@given(
    st.sampled_from(
        ["tools", "temperature", "stream_options", "extra_body", "response_format", "n", "stop", "logprobs"]
    ),
    jsons(2),
)
def test_settings_of_any_kind_are_the_servers_to_refuse(name: str, value: Any) -> None:
    """What cannot be read raises nothing but what the proxy passes on."""
    for upstream in (PLAIN, VLLM):
        with suppress(TypeError, ValueError, AttributeError):
            assert asked_of({**ASKED, name: value}, upstream).given[name] == value


@pytest.mark.parametrize("broken", [{"tools": 7}, {"temperature": "hot"}, {"extra_body": 7}, {"tools": ["f"]}])
def test_a_request_of_no_kind_gets_the_servers_answer(store: SQLStore, broken: dict[str, Any]) -> None:
    head = b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nContent-Length: 13\r\n\r\n"
    with (
        saying(head + b'{"error": 40}') as (url, _, _),
        collecting(store, proxy_url=url, upstream=PLAIN) as proxy,
    ):
        answer = ask(proxy, {**ASKED, **broken})
    assert (answer.status_code, answer.text) == (400, '{"error": 40}')


@pytest.mark.parametrize(
    "url",
    [
        *("localhost:8000/v1", "ftp://host/v1", "nonsense", "", "http://", "http://host:port/v1"),
        *("http://host:99999/v1", "http://host/v1?key=x", "http://host/v1/chat/completions", "http://[::1/v1"),
    ],
)
def test_what_is_no_address_of_a_server_is_refused(url: str) -> None:
    with pytest.raises(ModelError, match="expected one as http://localhost:8000/v1"):
        base_url(url)


def test_no_path_leads_out_of_the_api(store: SQLStore) -> None:
    with ChatServer(lambda body: "Hi") as upstream, collecting(store, proxy_url=upstream.base_url) as proxy:
        for path in ("/v1/%2e%2e/secret", "/v1/models/%2E./%2e./x", "/t/a/v1/..%2fsecret"):
            assert proxy.client.get(path).status_code == 404


def test_a_server_that_is_not_there_is_said(store: SQLStore) -> None:
    with collecting(store, proxy_url="http://127.0.0.1:9/v1") as proxy:
        answer = ask(proxy, ASKED)
        assert answer.status_code == 502
        assert "does not answer" in answer.json()["error"]["message"]


def test_a_token_is_needed_once_there_is_one(store: SQLStore) -> None:
    token, _ = create_token(store.in_project("mine"))
    with ChatServer(lambda body: "Hi") as upstream, collecting(store, proxy_url=upstream.base_url) as proxy:
        assert ask(proxy, {**ASKED, "model": "stub"}).status_code == 401
        assert ask(proxy, {**ASKED, "model": "stub"}, **{"x-cm2-token": token}).status_code == 200
        proxy.flush()
    assert store.projects() == ["mine"]


def test_a_server_of_token_ids_names_itself(store: SQLStore, server: Server) -> None:
    with collecting(store, proxy_url=server.address) as proxy:  # it has no list of models: nothing is added
        ask(proxy, ASKED)
        assert "return_token_ids" not in server.asked[0]
