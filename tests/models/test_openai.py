"""OpenAI-compatible endpoints, against a real HTTP server on loopback that answers as vLLM does."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("langchain_openai", reason='needs the extra: pip install "cm2-agent[openai]"')

from cm2_agent import EndpointChatModel
from cm2_agent.models import openai_compatible
from tests.models.lora_servers import VLLM
from tests.models.vllm_server import (
    CHUNKS,
    PROMPT,
    TOKENS,
    USAGE,
    Server,
    counted,
    entries,
    piece,
    response,
    running,
    said,
    streamed,
)
from tests.openai_protocol import SGLANG as SGLANG_KEYS
from tests.openai_protocol import STANDARD

PLAIN = {
    "temperature": 0.5,
    "top_p": 1.0,
    "top_k": -1,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "logprobs": "unknown",
}


@pytest.fixture
def server() -> Iterator[Server]:
    with running() as one:
        yield one


def check(meta: Any) -> None:
    assert (meta["prompt_ids"], meta["completion_ids"]) == (PROMPT, [7, 8, 9])
    assert meta["logprobs"] == [-0.5, -0.25, -1.0]
    assert (meta["model_name"], meta["model_version"]) == ("served", "v7")
    assert meta["sampling"] == PLAIN
    assert meta["finish_reason"] == "stop"
    assert "untrainable" not in meta


def test_token_ids_and_logprobs_are_recorded(server: Server) -> None:
    message: Any = server.model(model_version="v7", temperature=0.5).invoke("Hi")
    assert message.content == "Hello there"
    check(message.response_metadata)
    assert message.usage_metadata["output_tokens"] == 3
    (body,) = server.asked
    assert {key: body[key] for key in PLAIN if key != "logprobs"} == {k: v for k, v in PLAIN.items() if k != "logprobs"}
    assert (body["return_token_ids"], body["logprobs"]) == (True, True)
    assert server.keys == ["Bearer none"]


async def test_a_streams_chunks_add_up_to_the_same(server: Server) -> None:
    model = server.model(api_key="k", model_version="v7", temperature=0.5)
    whole: Any = None
    async for chunk in model.astream("Hi"):
        whole = chunk if whole is None else whole + chunk
    assert whole.content == "Hello there"
    check(whole.response_metadata)
    assert whole.usage_metadata["output_tokens"] == 3
    assert server.keys == ["Bearer k"]
    check(streamed(model).response_metadata)
    check((await server.model(streaming=True, model_version="v7", temperature=0.5).ainvoke("Hi")).response_metadata)


def test_a_stream_that_is_broken_off_has_no_ids(server: Server) -> None:
    chunks = server.model().stream("Hi")
    whole = next(chunks) + next(chunks)
    chunks.close()
    assert whole.content == "Hello"
    assert not {"prompt_ids", "completion_ids"} & set(whole.response_metadata)


def test_a_server_that_gives_no_ids_gives_text_only_messages(server: Server) -> None:
    server.body = response() | {"prompt_token_ids": None}
    del server.body["choices"][0]["token_ids"]
    server.knows = STANDARD  # as OpenAI: no key of vLLM's may be sent
    message: Any = server.model(token_ids=False).invoke("Hi")
    assert message.content == "Hello there"
    assert not {"prompt_ids", "completion_ids", "untrainable"} & set(message.response_metadata)
    assert message.response_metadata["model_version"] == "served"
    assert message.response_metadata["sampling"] == {"temperature": 1.0, "top_p": 1.0, "logprobs": "unknown"}
    assert (server.asked[0]["temperature"], server.asked[0]["top_p"]) == (1.0, 1.0)


def test_hosted_models_are_sent_nothing_that_they_refuse() -> None:
    for address in (
        "https://api.openai.com/v1",
        "https://mine.openai.azure.com/openai/v1",
        "https://api.anthropic.com/v1",
    ):
        model: Any = openai_compatible(address, "m", api_key="k")
        assert (model.temperature, model.top_p, model.extra_body) == (None, None, None)
    assert openai_compatible("https://api.openai.com/v1", "m", api_key="k", temperature=0.3).temperature == 0.3  # type: ignore[attr-defined]


@pytest.mark.parametrize("streaming", [False, True])
def test_what_a_call_gives_wins_and_is_recorded(server: Server, streaming: bool) -> None:
    def sampling(model: Any, settings: Any, **call: Any) -> Any:
        bound = model.bind(**settings) if settings else model
        meta = (streamed(bound) if streaming else bound.invoke("Hi", **call)).response_metadata
        return meta["sampling"], server.asked[-1], meta.get("untrainable")

    model = server.model(temperature=1.0, max_tokens=50, seed=3)
    found, body, _ = sampling(model, {"temperature": 0.2, "top_p": 0.3, "presence_penalty": 2.0, "max_tokens": 9})
    assert (found["temperature"], found["top_p"], found["presence_penalty"], found["max_tokens"]) == (0.2, 0.3, 2.0, 9)
    assert (body["temperature"], body["top_p"], body["max_completion_tokens"]) == (0.2, 0.3, 9)
    assert found["seed"] == body["seed"] == 3
    found, body, _ = sampling(model, {"extra_body": {"top_k": 1}, "stop": ["x"], "logit_bias": {"5": 100}})
    assert (found["top_k"], found["stop"], found["bias"]) == (1, ["x"], {"5": 100})
    assert (body["top_k"], body["min_p"], body["return_token_ids"]) == (1, 0.0, True)
    found, body, _ = sampling(model, {"top_k": 5, "min_p": 0.1})
    assert (found["top_k"], found["min_p"], body["top_k"], body["min_p"]) == (5, 0.1, 5, 0.1)
    found, body, _ = sampling(model, {"extra_body": {"temperature": 0.4}})
    assert found["temperature"] == body["temperature"] == 0.4
    found, _, _ = sampling(model, {"guided_json": {"type": "object"}})
    assert found["grammar"] == {"type": "object"}
    found, _, _ = sampling(model, {"tools": [TOOL], "tool_choice": "required"})
    assert found["tool_choice"] == "required"
    assert "tool_choice" not in sampling(model, {"tools": [TOOL], "tool_choice": "auto"})[0]
    server.knows = server.knows | {"mirostat"}
    assert sampling(model, {"mirostat": 2})[2] == "not plain sampling: mirostat"
    if not streaming:
        assert sampling(model, {}, temperature=0.0)[0]["temperature"] == 0.0
        found, _, _ = sampling(model, {"response_format": {"type": "json_object"}})
        assert found["grammar"] == {"type": "json_object"}
    found, body, _ = sampling(server.model(temperature=1.0, model_kwargs={"top_p": 0.5}), {})
    assert found["top_p"] == body["top_p"] == 0.5
    model = server.model(logit_bias={5: 1}, top_k=7, extra_body={"repetition_penalty": 1.3})
    found, body, _ = sampling(model, {})
    assert (found["bias"], found["top_k"], found["repetition_penalty"]) == ({"5": 1}, 7, 1.3)


TOOL = {"type": "function", "function": {"name": "a", "parameters": {}}}
STRICT = {"type": "function", "function": {"name": "a", "parameters": {}, "strict": True}}


@pytest.mark.parametrize(
    ("settings", "grammar", "reason"),
    [
        ({"tools": [TOOL]}, None, None),
        ({"tools": [TOOL], "parallel_tool_calls": True}, None, None),
        ({"tools": [TOOL], "parallel_tool_calls": False}, "at most one call", None),
        ({"tools": [TOOL, STRICT]}, "strict tools", None),
        ({"tools": [STRICT], "tool_choice": "none"}, None, None),
        ({"response_format": {"type": "json_object"}, "tools": [STRICT]}, {"type": "json_object"}, None),
        ({"temperature": 0.005}, None, "not plain sampling: temperature below 0.01"),
        ({"vllm_xargs": {"scorer": "mine"}}, None, "not plain sampling: vllm_xargs"),
        ({"stop_token_ids": [7]}, None, None),
    ],
)
def test_what_holds_the_model_to_a_form_is_recorded(
    server: Server, settings: Any, grammar: Any, reason: str | None
) -> None:
    server.knows = server.knows | {"vllm_xargs"}
    meta = server.model(temperature=1.0).bind(**settings).invoke("Hi").response_metadata
    assert (meta["sampling"].get("grammar"), meta.get("untrainable")) == (grammar, reason)
    if "stop_token_ids" in settings:
        assert meta["sampling"]["stop_token_ids"] == server.asked[0]["stop_token_ids"] == [7]


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        (None, "unknown"),
        ("raw", "raw"),
        ("raw_logprobs", "raw"),
        ("scaled", "scaled"),
        ("processed", "processed"),
        ("processed_logprobs", "processed"),
    ],
)
def test_the_kind_of_logprobs_is_recorded(server: Server, mode: str | None, kind: str) -> None:
    model = server.model(logprobs_mode=mode)
    assert model.invoke("Hi").response_metadata["sampling"]["logprobs"] == kind
    assert streamed(model).response_metadata["sampling"]["logprobs"] == kind


@pytest.mark.parametrize("mode", ["cooked", "raw_logits", "processed_logits", ""])
def test_a_kind_of_logprobs_that_there_is_not_is_refused(server: Server, mode: str) -> None:
    with pytest.raises(ValueError, match="logprobs_mode"):
        server.model(logprobs_mode=mode)
    with pytest.raises(ValueError, match="expected 'vllm' or 'sglang'"):
        server.model(server="tgi")


def test_one_model_answers_in_one_event_loop_after_another() -> None:
    """A server that holds connections open, as vLLM does; `Server` above closes each."""
    with VLLM(mode="processed") as server:
        one: Any = openai_compatible(server.url, "base", token_ids=True, max_retries=0)
        for model in (one, one, openai_compatible(server.url, "base", token_ids=True, max_retries=0)):
            answers = asyncio.run(asked_twice(model))
            assert [bool(answer.response_metadata["completion_ids"]) for answer in answers] == [True, True]
        assert len(one._of_loop) == 1, "a loop that has ended is let go"


async def asked_twice(model: Any) -> list[Any]:
    whole: Any = None
    async for chunk in model.astream("Hi"):
        whole = chunk if whole is None else whole + chunk
    return [await model.ainvoke("Hi"), whole]


def without_ids(chunk: Any) -> Any:
    """A chunk or a response as SGLang sends it: logprobs with the words, ids in none of its choices."""
    choices = [{key: value for key, value in choice.items() if key != "token_ids"} for choice in chunk["choices"]]
    return {key: value for key, value in chunk.items() if key != "prompt_token_ids"} | {"choices": choices}


EXTENSION = {"input_ids": PROMPT, "output_ids": [[number for number, _, _ in TOKENS]]}
SGLANG = [*map(without_ids, CHUNKS[:-1]), piece() | {"choices": [], "sglext": EXTENSION}, CHUNKS[-1]]


def test_sglang_gives_the_ids_at_the_end(server: Server) -> None:
    server.knows = STANDARD | SGLANG_KEYS
    server.chunks, server.body = SGLANG, without_ids(response()) | {"sglext": EXTENSION}
    model = server.model(server="sglang", model_version="v7", temperature=0.5, logprobs_mode="scaled")
    for meta in (model.invoke("Hi").response_metadata, streamed(model).response_metadata):
        assert (meta["prompt_ids"], meta["completion_ids"]) == (PROMPT, [7, 8, 9])
        assert meta["logprobs"] == [-0.5, -0.25, -1.0]
        assert meta["sampling"] == PLAIN | {"logprobs": "scaled"}
        assert "untrainable" not in meta
    assert all("return_token_ids" not in body for body in server.asked)


@pytest.mark.parametrize(
    ("chunks", "reason"),
    [
        ([*SGLANG[:2], *SGLANG[3:]], "3 token ids and 2 logprobs"),
        ([*SGLANG[:3], *SGLANG[4:]], "ended before the completion did"),
        (
            [
                SGLANG[0],
                piece({"content": "Good"}) | {"choices": [SGLANG[1]["choices"][0] | {"delta": {"content": "x"}}]},
                *SGLANG[2:],
            ],
            "do not decode",
        ),
        (SGLANG[:-1], "no usage"),
    ],
)
def test_incomplete_ids_of_an_sglang_stream(server: Server, chunks: Any, reason: str) -> None:
    server.knows, server.chunks = STANDARD | SGLANG_KEYS, chunks
    assert reason in streamed(server.model(server="sglang")).response_metadata["untrainable"]


def test_an_sglang_that_gives_no_ids_gives_text_only_messages(server: Server) -> None:
    server.knows, server.chunks = STANDARD | SGLANG_KEYS, [*SGLANG[:-2], SGLANG[-1]]
    server.body = without_ids(response())
    model = server.model(server="sglang")
    for meta in (model.invoke("Hi").response_metadata, streamed(model).response_metadata):
        assert not {"prompt_ids", "completion_ids", "untrainable"} & set(meta)


def tokens(*texts: str) -> Any:
    return [(number, text, -0.1) for number, text in enumerate(texts)]


FIT: dict[str, Any] = {
    "no stop token": response("Hello there", tokens("Hello", " there")),
    "stripped": response("Hello", tokens("\n", "Hello", "\n", "</s>")),
    "half characters": response("ok 👍 yes", tokens("ok ", "\ufffd", "\ufffd", " yes", "</s>")),
    "placeholders": response("Hello", choice={"logprobs": {"content": [{"token": "t", "logprob": -1.0}] * 3}}),
    "numbers": response(
        "Hello", choice={"logprobs": {"content": [{"token": f"token_id:{n}", "logprob": -1.0} for n, _, _ in TOKENS]}}
    ),
    "thinking in the text": response("<think>hm</think>Yes.", tokens("<think>", "hm", "</think>", "Yes.", "</s>")),
    "thinking apart": response(
        "Yes.", tokens("<think>", "hm", "</think>", "Yes.", "</s>"), message={"reasoning_content": "hm"}
    ),
    "a call": response(
        None,
        tokens("<tool_call>", '{"name": "a", "arguments": {}}', "</tool_call>", "</s>"),
        message={"tool_calls": [{"id": "1", "type": "function", "function": {"name": "a", "arguments": "{}"}}]},
    ),
    "silence": response("", tokens("</s>")),
}
UNFIT: dict[str, tuple[Any, str]] = {
    "another text": (response("Good bye"), "do not decode to the text"),
    "a cut text": (response("Hello"), "do not decode to the text"),
    "another call": (
        response(
            None,
            tokens("<tool_call>", '{"name": "b"}', "</tool_call>"),
            message={"tool_calls": [{"id": "1", "type": "function", "function": {"name": "a", "arguments": "{}"}}]},
        ),
        "do not decode to the text",
    ),
    "words": (
        response(
            "Good bye", choice={"logprobs": {"content": [{"token": w, "logprob": -1.0} for w in ("He", "l", "o")]}}
        ),
        "do not decode",
    ),
    "more than the usage": (
        response(usage={**USAGE, "completion_tokens": 6}),
        "3 token ids of the completion, and a usage of 6",
    ),
    "another prompt": (response(usage={**USAGE, "prompt_tokens": 9}), "3 token ids of the prompt, and a usage of 9"),
    "no usage": (response(usage=None), "no usage"),
    "a logprob missing": (response(choice={"logprobs": entries(TOKENS[:2])}), "3 token ids and 2 logprobs"),
    "no logprobs": (response(choice={"logprobs": None}), "3 token ids and 0 logprobs"),
}


@pytest.mark.parametrize("kind", FIT)
def test_ids_that_agree_with_the_text(server: Server, kind: str) -> None:
    server.body = FIT[kind]
    assert "untrainable" not in server.model().invoke("Hi").response_metadata


@pytest.mark.parametrize("kind", UNFIT)
def test_ids_that_do_not(server: Server, kind: str) -> None:
    server.body, reason = UNFIT[kind]
    assert reason in server.model().invoke("Hi").response_metadata["untrainable"]


STREAMS: dict[str, tuple[Any, str | None]] = {
    "prompt ids in every chunk": ([chunk | {"prompt_token_ids": PROMPT} for chunk in CHUNKS], None),
    "empty choices between": ([CHUNKS[0], piece() | {"choices": []}, *CHUNKS[1:]], None),
    "two prompts": ([*CHUNKS[:2], CHUNKS[2] | {"prompt_token_ids": [4]}, *CHUNKS[3:]], "two prompts"),
    "text without ids": ([*CHUNKS[:2], piece({"content": " there"}), *CHUNKS[3:]], "without token ids"),
    "a gap in the logprobs": (
        [
            *CHUNKS[:2],
            piece({"content": " there"}, TOKENS[1:2]) | {"choices": [{**CHUNKS[2]["choices"][0], "logprobs": None}]},
            *CHUNKS[3:],
        ],
        "3 token ids and 2 logprobs",
    ),
    "fewer than the usage": ([*CHUNKS[:4], counted(completion_tokens=6)], "a usage of 6"),
    "no usage": (CHUNKS[:4], "no usage"),
    "no end": ([*CHUNKS[:3], counted(completion_tokens=2)], "ended before the completion did"),
    "another text": ([CHUNKS[0], said("Good", TOKENS[:1]), *CHUNKS[2:]], "do not decode"),
}


@pytest.mark.parametrize("kind", STREAMS)
def test_incomplete_ids_of_a_stream(server: Server, kind: str) -> None:
    server.chunks, reason = STREAMS[kind]
    meta = streamed(server.model()).response_metadata
    assert meta["prompt_ids"] == PROMPT
    assert (meta.get("untrainable") is None) if reason is None else (reason in meta["untrainable"])


@pytest.mark.parametrize("blocked", ["torch", "langchain_openai"])
def test_it_needs_langchain_openai_and_not_torch(blocked: str) -> None:
    code = (
        "import sys\n"
        f"sys.modules[{blocked!r}] = None\n"
        "from cm2_agent.errors import MissingExtra\n"
        "try:\n"
        "    from cm2_agent import openai_compatible\n"
        "    print(type(openai_compatible('http://localhost:1/v1', 'm')).__name__)\n"
        "except MissingExtra as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    missing = 'OpenAI-compatible endpoints need an extra: pip install "cm2-agent[openai]"'
    assert done.stdout.strip() == {"torch": EndpointChatModel.__name__, "langchain_openai": missing}[blocked], (
        done.stderr
    )
