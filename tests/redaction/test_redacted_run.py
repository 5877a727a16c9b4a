"""Everything in a run that somebody wrote is redacted, and what is an id or a number of ours stays."""

from __future__ import annotations

import json
from typing import Any

from cm2_agent.datasets import Redactor, Rule
from cm2_agent.redaction.redacted_run import redacted_message, redacted_run
from cm2_agent.types.messages import (
    Blob,
    Message,
    Other,
    Reasoning,
    Text,
    ToolCall,
    ToolCallResponse,
    ToolSpec,
    Uri,
)
from cm2_agent.types.run import Branch, ModelCall, Run, RunFailure, StateMark, ToolRun

MAIL = "ada@x.org"
KEY = b"a key for the tests"


def written(where: str) -> dict[str, Any]:
    """A value of each JSON kind with the address in it."""
    return {f"x-{where}": [f"write to {MAIL}", {MAIL: 1}]}


def message(role: Any = "user") -> Message:
    parts = (
        Text(content=f"I am {MAIL}", extra=written("text")),
        Reasoning(content=f"{MAIL} wants", extra=written("reasoning")),
        ToolCall(id=MAIL, name="send", arguments={"to": MAIL}, extra=written("call")),
        ToolCallResponse(id=MAIL, response=[{"type": "text", "text": MAIL}], extra=written("response")),
        Uri(uri=f"https://x.org/?to={MAIL}", extra=written("uri")),
        Blob(content="AAAA", extra=written("blob")),
        Other(data={"type": "citation", "of": MAIL}),
    )
    return Message(role=role, parts=parts, name=MAIL, finish_reason="stop", extra=written("message"))


def full_run() -> Run:
    """A run that holds the address in every place that can hold a text."""
    call = ModelCall(
        span_id="s1",
        model="m",
        input=(message(),),
        output=message("assistant"),
        tools=(ToolSpec(name="send", description=f"as {MAIL}", parameters=written("schema")),),
        prompt_ids=(1, 2),
        completion_ids=(3,),
        logprobs=(-0.5,),
        sampling={"temperature": 1.0, "seed": 4111111111111111},
        error=f"to {MAIL}",
    )
    tool = ToolRun(
        span_id="s2",
        name="send",
        call_id=MAIL,
        arguments={"to": MAIL},
        result=MAIL,
        error=f"no {MAIL}",
        artifact=written("artifact"),
    )
    return Run(
        id="r1",
        thread="thread-7",
        user="user-7",
        session="session-7",
        status="error",
        failure=RunFailure(kind="ValueError", message=f"no {MAIL}"),
        messages=(message(),),
        history=(message(),),
        input=written("input"),
        output=MAIL,
        trace="thread-7~1",
        branch=Branch(parent="thread-7", messages=2),
        states=(StateMark(hash="ab", messages=1),),
        tags=(MAIL,),
        calls=(call,),
        tools=(tool,),
        attributes={"cm2.task.id": "t1", "cm2.guard.rejected": [{"attempt": "1", "messages": [MAIL]}], "by": MAIL},
    )


def test_no_text_of_a_run_is_left_out() -> None:
    run, redactor = full_run(), Redactor(key=KEY)
    redacted = redacted_run(run, redactor)
    assert MAIL in json.dumps(run.to_json())
    assert MAIL not in json.dumps(redacted.to_json())
    expected = json.dumps(run.to_json()).replace(MAIL, redactor.redact(MAIL))
    found = json.dumps(redacted.to_json())
    for ids in ('"prompt_ids": [1, 2]', '"completion_ids": [3]', '"logprobs": [-0.5]'):
        expected = expected.replace(ids, f"{ids.partition(':')[0]}: null")
    assert found.replace('"changed": "redacted", ', "") == expected, "and nothing else has changed"
    assert Run.from_json(redacted.to_json()) == redacted


def test_redacting_twice_changes_nothing() -> None:
    once = redacted_run(full_run(), Redactor(key=KEY))
    assert redacted_run(once, Redactor(key=KEY)) == once
    assert redacted_run(once, Redactor(key=b"another")) == once
    assert redacted_run(full_run(), Redactor(key=KEY)) == once, "the same key, the same placeholders"


def test_only_calls_whose_text_changed_lose_their_ids() -> None:
    hello, answer = Message.of("user", "Hello"), Message.of("assistant", "Hi")
    known: dict[str, Any] = {"prompt_ids": (1,), "completion_ids": (2,), "logprobs": (-1.0,)}
    known |= {"sampling": {"temperature": 1.0, "logprobs": "processed"}}
    calls = (
        ModelCall(span_id="a", input=(hello,), output=answer, **known),
        ModelCall(span_id="b", input=(hello,), output=Message.of("assistant", MAIL), **known),
        ModelCall(span_id="c", input=(Message.of("system", MAIL),), output=answer, **known),
        ModelCall(span_id="d", input=(hello,), output=Message.of("assistant", MAIL), changed="edited", **known),
    )
    redacted = redacted_run(Run(id="r", calls=calls), Redactor(key=KEY)).calls
    assert redacted[0] == calls[0]
    assert redacted[0].untrainable is None
    assert [call.prompt_ids for call in redacted[1:]] == [None, None, None]
    assert [call.untrainable for call in redacted[1:]] == [
        "redacted after it was sampled",
        "redacted after it was sampled",
        "edited after it was sampled",
    ]


def test_files_by_value_stay_and_so_does_the_kind_of_a_part() -> None:
    redactor = Redactor([Rule("word", "(?:user|blob|citation|data)")], key=KEY)
    parts = (Uri(uri=f"data:text/plain,{MAIL}"), Blob(content="data"), Other(data={"type": "citation", "x": "user"}))
    found = redacted_message(Message(role="user", parts=parts), redactor)
    assert found.role == "user"
    assert found.parts[:2] == parts[:2]
    assert found.parts[2].type == "citation"
    assert found.parts[2] != parts[2]


def test_a_message_without_personal_data_is_the_same_object() -> None:
    hello = Message.of("user", "Where is order 7?")
    assert redacted_message(hello, Redactor(key=KEY)) is hello
