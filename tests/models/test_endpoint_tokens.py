"""Token ids of endpoints: what real servers send beside the plain case, and why each cannot be trained on."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.messages import HumanMessage

pytest.importorskip("langchain_openai", reason='needs the extra: pip install "cm2-agent[openai]"')

from tests.models.vllm_server import CHUNKS, PROMPT, TOKENS, counted, entries, piece, response, running, said, streamed


def asked(body: Any, **settings: Any) -> dict[str, Any]:
    """The metadata of a call that a server answers with `body`."""
    with running() as server:
        server.body = body
        metadata: dict[str, Any] = server.model(**settings).invoke("Hi").response_metadata
    return metadata


def told(chunks: Any) -> dict[str, Any]:
    """The metadata of a stream of these chunks."""
    with running() as server:
        server.chunks = chunks
        metadata: dict[str, Any] = streamed(server.model()).response_metadata
    return metadata


def with_logprobs(*values: float | None) -> Any:
    found = entries()
    for entry, value in zip(found["content"], values, strict=True):
        entry["logprob"] = value
    return found


@pytest.mark.parametrize("unknown", [-9999.0, None])
def test_a_token_without_a_logprob(unknown: float | None) -> None:
    """vLLM sends -9999 for a logprob that it does not have, SGLang null for minus infinity."""
    logprobs = with_logprobs(-0.5, unknown, -1.0)
    assert asked(response(choice={"logprobs": logprobs}))["untrainable"] == "1 of 3 tokens without a logprob"
    chunk = said(" there", TOKENS[1:2])
    chunk["choices"][0]["logprobs"]["content"][0]["logprob"] = unknown
    assert told([*CHUNKS[:2], chunk, *CHUNKS[3:]])["untrainable"] == "1 of 3 tokens without a logprob"


@pytest.mark.parametrize("reason", ["abort", "error", "content_filter", "repetition"])
def test_what_the_server_ended(reason: str) -> None:
    found = asked(response(choice={"finish_reason": reason}))
    assert found["untrainable"] == f"the server ended the completion with {reason!r}, not the model"
    assert told([*CHUNKS[:-2], piece({}, TOKENS[2:], reason), counted()])["untrainable"] == found["untrainable"]


@pytest.mark.parametrize("reason", ["stop", "length", "tool_calls"])
def test_what_the_model_ended_or_its_limit(reason: str) -> None:
    assert "untrainable" not in asked(response(choice={"finish_reason": reason}))


def test_a_stop_string_is_named() -> None:
    """The ids hold the words that the text was cut before; a stop token is a number, and no text."""
    found = asked(response("Hello", choice={"stop_reason": " there"}))
    assert found["untrainable"] == "a stop string cut the text: the token ids hold more of it"
    assert "untrainable" not in asked(response(choice={"stop_reason": 9}))
    assert "untrainable" not in asked(response(choice={"matched_stop": 9}))


def test_weights_that_changed_on_the_way() -> None:
    one = {"start": 0, "end": 3, "version": "1"}
    assert "untrainable" not in asked(response(choice={"weight_versions": [one]}))
    found = asked(response(choice={"weight_versions": [one, one | {"version": "2"}]}))
    assert found["untrainable"] == "the server's weights changed while it was sampled"


def test_logprobs_of_the_prompt_begin_with_none() -> None:
    more: dict[str, Any] = {
        "prompt_logprobs": [None, {"2": {"logprob": -0.1, "rank": 1, "decoded_token": "b"}}],
        "metrics": None,
    }
    found = asked(response(**more, service_tier=None, kv_transfer_params=None))
    assert found["prompt_ids"] == PROMPT
    assert found["logprobs"] == [-0.5, -0.25, -1.0]
    assert "untrainable" not in found


def test_several_choices_share_a_usage() -> None:
    """It counts the tokens of all choices; each has its own ids, and sampling says that there were several."""
    body = response()
    second = {**body["choices"][0], "index": 1}
    body["choices"].append(second)
    body["usage"] = {"prompt_tokens": 3, "completion_tokens": 6, "total_tokens": 9}
    with running() as server:
        server.body = body
        result = server.model(n=2).generate([[HumanMessage("Hi")]])
    for generation in result.generations[0]:
        found = generation.message.response_metadata
        assert found["completion_ids"] == [7, 8, 9]
        assert found["sampling"]["n"] == 2
        assert "untrainable" not in found


def test_several_choices_in_one_stream() -> None:
    chunk = said(" there", TOKENS[1:2])
    chunk["choices"][0]["index"] = 1
    assert told([*CHUNKS[:2], chunk, *CHUNKS[3:]])["untrainable"] == "several completions came in one stream"


def test_an_empty_list_of_tools_is_not_sent() -> None:
    with running() as server:
        assert server.model().bind_tools([]).invoke("Hi").text == "Hello there"
        assert server.model().bind_tools([], tool_choice=None, parallel_tool_calls=False).invoke("Hi").text
        assert [set(body) & {"tools", "tool_choice", "parallel_tool_calls"} for body in server.asked] == [set(), set()]


@pytest.mark.parametrize(
    "setting",
    [{"repetition_detection": {"max_pattern_size": 3}}, {"vllm_xargs": {"own": 1}}, {"thinking_token_budget": 5}],
)
def test_samplers_of_vllm_that_no_trainer_follows(setting: dict[str, Any]) -> None:
    found = asked(response(), **setting)
    assert found["untrainable"] == f"not plain sampling: {', '.join(setting)}"


def test_settings_of_vllm_go_into_its_extra_body() -> None:
    with running() as server:
        server.model(skip_special_tokens=False, truncate_prompt_tokens=5).invoke("Hi")
        assert (server.asked[0]["skip_special_tokens"], server.asked[0]["truncate_prompt_tokens"]) == (False, 5)
