"""What files of other tools hold beside one call and its answer: several answers, results of the provider's own tools,
answers out of order, failed executions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cm2_agent.errors import TraceError
from cm2_agent.importers import Imported, Problem, read_recordings, recording_format
from tests.importers.foreign_files import only, read, written
from tests.importers.test_span_exports import langfuse, langfuse_trace, mlflow, phoenix


def outcomes_of_calls(found: Imported) -> list[tuple[str, Any, str]]:
    """Each call with what it was answered and what became of it."""
    return [
        (use.call.name, None if use.response is None else use.response.response, use.status)
        for step in found.trace.steps
        for use in step.tool_uses
    ]


@pytest.mark.parametrize("about", ["", "Paris"])
def test_an_instruction_is_not_lost(tmp_path: Path, about: str) -> None:
    record = {
        "instruction": "Tell me.",
        "input": about,
        "output": "Done.",
        "system": "Be kind.",
        "history": [["a", "b"]],
    }
    found = only(tmp_path, record)
    asked = f"Tell me.\n\n{about}" if about else "Tell me."
    said = [(message.role, message.text) for message in found.trace.messages]
    assert said == [("system", "Be kind."), ("user", "a"), ("assistant", "b"), ("user", asked), ("assistant", "Done.")]
    assert recording_format(written(tmp_path, {**record, "history": None})).name == "prompt-completion"


@pytest.mark.parametrize("history", ["a", [["a"]], [[1, "b"]], [{"a": "b"}]])
def test_a_history_that_is_none_is_named(tmp_path: Path, history: Any) -> None:
    path = written(tmp_path, {"instruction": "x", "input": "", "output": "y", "history": history})
    (found,) = [one for one in read_recordings(None, path) if isinstance(one, Problem)]
    assert "history" in found.reason


@pytest.mark.parametrize("shape", ["batch", "stored"])
def test_every_choice_is_a_dialogue(tmp_path: Path, shape: str) -> None:
    """Equal ones too: they are samples."""
    body = {
        "object": "chat.completion",
        "choices": [{"message": {"role": "assistant", "content": one}} for one in "aab"],
    }
    if shape == "batch":
        record: dict[str, Any] = {"custom_id": "1", "response": {"status_code": 200, "body": body}}
    else:
        record = {"request": {"messages": [{"role": "user", "content": "q"}]}, "response": body}
    found = read(written(tmp_path, record))
    assert [one.trace.messages[-1].text for one in found] == ["a", "a", "b"]
    assert len({one.trace.id for one in found}) == 3


@pytest.mark.parametrize(
    ("call", "result", "content", "status"),
    [
        ("server_tool_use", "web_search_tool_result", [{"type": "web_search_result", "url": "u"}], "ok"),
        ("server_tool_use", "code_execution_tool_result", {"type": "code_execution_result", "stdout": "2"}, "ok"),
        (
            "server_tool_use",
            "web_fetch_tool_result",
            {"type": "web_fetch_tool_result_error", "error_code": "x"},
            "failed",
        ),
        ("mcp_tool_use", "mcp_tool_result", [{"type": "text", "text": "2"}], "ok"),
    ],
)
def test_answers_of_anthropics_own_tools(tmp_path: Path, call: str, result: str, content: Any, status: str) -> None:
    blocks = [
        {"type": "text", "text": "I look."},
        {"type": call, "id": "s1", "name": "look", "input": {"q": 1}},
        {"type": result, "tool_use_id": "s1", "content": content},
        {"type": "text", "text": "Two."},
    ]
    found = only(tmp_path, [{"role": "user", "content": "q"}, {"role": "assistant", "content": blocks}])
    assert [message.role for message in found.trace.messages] == ["user", "assistant", "tool", "assistant"]
    ((_, answer, became),) = outcomes_of_calls(found)
    assert (answer is not None, became) == (True, status)
    assert found.trace.messages[-1].text == "Two."


def test_an_answer_of_anthropics_stands_alone(tmp_path: Path) -> None:
    record = {"id": "m", "type": "message", "role": "assistant", "content": [{"type": "text", "text": "a"}]}
    found = only(tmp_path, {**record, "stop_reason": "end_turn"})
    assert [message.text for message in found.trace.messages] == ["a"]


def test_answers_that_name_their_tool_are_paired_by_it(tmp_path: Path) -> None:
    def tagged(tag: str, *values: Any) -> str:
        return "\n".join(f"<{tag}>\n{json.dumps(one)}\n</{tag}>" for one in values)

    turns = [
        {"from": "human", "value": "q"},
        {"from": "gpt", "value": tagged("tool_call", {"name": "f", "arguments": {}}, {"name": "g", "arguments": {}})},
        {
            "from": "tool",
            "value": tagged("tool_response", {"name": "g", "content": "of g"}, {"name": "f", "content": {"of": "f"}}),
        },
        {"from": "gpt", "value": "a"},
    ]
    found = only(tmp_path, {"conversations": turns})
    assert outcomes_of_calls(found) == [("f", {"of": "f"}, "answered"), ("g", "of g", "answered")]


@pytest.mark.parametrize("state", ["output-error", "output-denied", "input-available"])
def test_calls_of_the_ai_sdk_that_did_not_succeed(tmp_path: Path, state: str) -> None:
    part = {"type": "dynamic-tool", "toolName": "f", "toolCallId": "1", "state": state, "input": {}, "errorText": "no"}
    messages = [{"role": "user", "parts": [{"type": "text", "text": "q"}]}, {"role": "assistant", "parts": [part]}]
    ((_, _, status),) = outcomes_of_calls(only(tmp_path, messages))
    assert status == ("not_run" if state == "input-available" else "failed")


def test_answers_of_the_ai_sdk_out_of_order(tmp_path: Path) -> None:
    calls = [{"type": "tool-call", "toolCallId": one, "toolName": one, "input": {}} for one in "fg"]
    results = [
        {"type": "tool-result", "toolCallId": "g", "toolName": "g", "output": {"type": "error-text", "value": "bad"}},
        {"type": "tool-result", "toolCallId": "f", "toolName": "f", "output": {"type": "json", "value": {"a": 1}}},
    ]
    messages = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": calls},
        {"role": "tool", "content": results},
    ]
    assert outcomes_of_calls(only(tmp_path, messages)) == [("f", {"a": 1}, "ok"), ("g", "bad", "failed")]


def _failed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of a trace with the span of its tool failed, as each tool marks it."""
    text = json.dumps(rows)
    for row in (found := json.loads(text)):
        inner = [*row.get("observations", ()), *row.get("data", {}).get("spans", ()), row]
        for one in inner:
            kinds = (one.get("type"), one.get("span_kind"), one.get("attributes", {}).get("mlflow.spanType"))
            if any(str(kind).strip('"') == "TOOL" for kind in kinds):
                one |= {"level": "ERROR", "statusMessage": "down", "status_code": "ERROR"}
                one["status"] = {"code": "STATUS_CODE_ERROR", "message": "down"}
    return found


@pytest.mark.parametrize("make", [langfuse, langfuse_trace, mlflow, phoenix])
def test_a_failed_execution_without_a_call_s_id_fails_its_call(tmp_path: Path, make: Any) -> None:
    (found,) = read(written(tmp_path, *_failed(make())))
    assert [status for _, _, status in outcomes_of_calls(found)] == ["failed"]
    (whole,) = read(written(tmp_path, *make()))
    assert [status for _, _, status in outcomes_of_calls(whole)] != ["failed"]


def test_a_category_without_numbers_is_no_outcome(tmp_path: Path) -> None:
    (trace,) = langfuse_trace()
    scores = [
        {"name": "mood", "value": 0, "stringValue": "good", "dataType": "CATEGORICAL", "configId": None},
        {"name": "grade", "value": 2, "stringValue": "B", "dataType": "CATEGORICAL", "configId": "c"},
        {"name": "right", "value": 1, "dataType": "BOOLEAN"},
    ]
    found = only(tmp_path, {**trace, "scores": scores})
    assert found.trace.outcomes == {"grade": 2.0, "right": 1.0}


@pytest.mark.parametrize("outcome", ["failed", "denied", "retried", "interrupted", "success", None])
def test_outcomes_of_pydantic_ai_s_tools(tmp_path: Path, outcome: str | None) -> None:
    call = {"part_kind": "tool-call", "tool_name": "f", "args": {}, "tool_call_id": "1"}
    answer = {"part_kind": "tool-return", "tool_name": "f", "tool_call_id": "1", "content": "x"}
    history = [
        {"kind": "request", "parts": [{"part_kind": "user-prompt", "content": "q"}]},
        {"kind": "response", "parts": [call]},
        {"kind": "request", "parts": [answer if outcome is None else {**answer, "outcome": outcome}]},
    ]
    ((_, _, status),) = outcomes_of_calls(only(tmp_path, history))
    assert status == ("ok" if outcome in (None, "success") else "failed")


@pytest.mark.parametrize("shape", ["openai", "gemini"])
@pytest.mark.parametrize("order", ["fg", "gf"])
def test_answers_without_ids_belong_to_the_calls_of_their_tools(tmp_path: Path, shape: str, order: str) -> None:
    record: dict[str, Any]
    if shape == "openai":
        calls = [{"type": "function", "function": {"name": one, "arguments": "{}"}} for one in "fg"]
        answers = [{"role": "tool", "name": one, "content": f"of {one}"} for one in order]
        asked = [{"role": "user", "content": "q"}, {"role": "assistant", "content": None, "tool_calls": calls}]
        record = {"messages": [{"role": "system", "content": "Be kind."}, *asked, *answers]}
    else:
        parts = [{"functionResponse": {"name": one, "response": f"of {one}"}} for one in order]
        contents = [
            {"role": "user", "parts": [{"text": "q"}]},
            {"role": "model", "parts": [{"functionCall": {"name": one, "args": {}}} for one in "fg"]},
            {"role": "user", "parts": parts},
        ]
        tools = [{"functionDeclarations": [{"name": one, "parameters": {"type": "OBJECT"}} for one in "fg"]}]
        record = {"contents": contents, "systemInstruction": {"parts": [{"text": "Be kind."}]}, "tools": tools}
    assert recording_format(written(tmp_path, record)).name == shape
    found = only(tmp_path, record)
    assert outcomes_of_calls(found) == [("f", "of f", "answered"), ("g", "of g", "answered")]
    assert [message.text for message in found.trace.messages if message.role == "system"] == ["Be kind."]
    assert [tool.name for tool in found.trace.calls[0].tools] == (list("fg") if shape == "gemini" else [])


def test_several_scores_of_one_scorer_are_outcomes_each(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    scores = {"both": {"value": {"right": "C", "style": 0.5, "why": "short"}}, "one": {"value": "I"}}
    log = {"eval": {"task": "t"}, "samples": [{"id": 1, "epoch": 1, "messages": messages, "scores": scores}]}
    found = only(tmp_path, log)
    assert found.trace.outcomes == {"both.right": 1.0, "both.style": 0.5, "one": 0.0, "official_reward": 1.0}


def test_demonstrations_that_are_left_out_are_named(tmp_path: Path) -> None:
    said = [("system", "s", False), ("user", "demo", True), ("user", "issue", False), ("assistant", "done", False)]
    history = [{"role": role, "content": text, "agent": "main", "is_demo": demo} for role, text, demo in said]
    found = only(tmp_path, {"history": history, "trajectory": [], "info": {}})
    assert "demo" not in [message.text for message in found.trace.messages]
    assert found.note is not None
    assert "demonstrations" in found.note


def _said(*said: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": text} for role, text in said]


@pytest.mark.parametrize("prompt", ["q", _said(("user", "q")), _said(("system", "s"), ("user", "q"))])
@pytest.mark.parametrize("before", [(), (("system", "s"),)])
def test_a_pair_of_whole_dialogues_holds_its_question_once(tmp_path: Path, prompt: Any, before: Any) -> None:
    """As UltraFeedback's kind writes them, the prompt beside them."""
    before = before if isinstance(prompt, str) or len(prompt) == 1 else (("system", "s"),)
    whole = [_said(*before, ("user", "q"), ("assistant", text)) for text in "ab"]
    found = read(written(tmp_path, {"prompt": prompt, "chosen": whole[0], "rejected": whole[1]}))
    assert [[(one.role, one.text) for one in each.trace.messages] for each in found] == [
        [*before, ("user", "q"), ("assistant", text)] for text in "ab"
    ]
    bare = read(written(tmp_path, {"prompt": [*whole[0][:-1]], "chosen": whole[0][-1:], "rejected": whole[1][-1:]}))
    assert [one.trace.content_hash for one in bare] == [one.trace.content_hash for one in found]


def test_a_pair_s_own_system_prompt_stays(tmp_path: Path) -> None:
    whole = [_said(("user", "q"), ("assistant", text)) for text in "ab"]
    found = read(written(tmp_path, {"system": "s", "prompt": "q", "chosen": whole[0], "rejected": whole[1]}))
    assert [[one.text for one in each.trace.messages] for each in found] == [["s", "q", text] for text in "ab"]


@pytest.mark.parametrize("keys", ["gen_ai.input.messages gen_ai.output.messages", "user_messages reply_messages"])
def test_halves_of_a_dialogue_are_no_dialogues_by_name(tmp_path: Path, keys: str) -> None:
    asked, answered = keys.split()
    path = written(tmp_path, {asked: _said(("user", "q")), answered: _said(("assistant", "a"))})
    with pytest.raises(TraceError, match="of no format that is known"):
        recording_format(path)


def test_input_messages_and_output_messages_are_one_dialogue(tmp_path: Path) -> None:
    record = {"input_messages": _said(("user", "q")), "output_messages": _said(("assistant", "a")), "model": "m"}
    assert [one.text for one in only(tmp_path, record).trace.messages] == ["q", "a"]


@pytest.mark.parametrize("instruction", ["s", {"text": "s"}, {"parts": [{"text": "s"}]}, ["s"], [{"text": "s"}]])
@pytest.mark.parametrize("key", ["systemInstruction", "system_instruction"])
def test_instructions_of_gemini(tmp_path: Path, key: str, instruction: Any) -> None:
    contents = [{"role": "user", "parts": [{"text": "q"}]}, {"role": "model", "parts": [{"text": "a"}]}]
    found = only(tmp_path, {key: instruction, "contents": contents})
    said = [(message.role, message.text) for message in found.trace.messages]
    assert said == [("system", "s"), ("user", "q"), ("assistant", "a")]


@pytest.mark.parametrize("path", [("data",), ("data", "conversation"), ("response", "result", "data")])
def test_wrappers_around_one_record(tmp_path: Path, path: tuple[str, ...]) -> None:
    record: Any = {"messages": _said(("user", "q"), ("assistant", "a"))}
    for key in path:
        record = {key: record}
    assert [one.text for one in only(tmp_path, record).trace.messages] == ["q", "a"]


def test_a_generation_s_choices_and_its_history(tmp_path: Path) -> None:
    row = {"id": "g", "traceId": "t", "type": "GENERATION", "startTime": "2026-01-01T00:00:00Z"}
    asked = {"input": "now?", "chat_history": _said(("user", "q"), ("assistant", "a"))}
    choices = [{"index": 0, "message": {"role": "assistant", "content": "fin"}, "finish_reason": "stop"}]
    found = only(tmp_path, {**row, "input": asked, "output": choices})
    assert [one.text for one in found.trace.messages] == ["q", "a", "now?", "fin"]


def test_a_table_without_rows_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("role,content\n")
    with pytest.raises(TraceError, match="holds no record"):
        recording_format(path)


@pytest.mark.parametrize(
    "asked",
    [
        {"system": "s", "messages": _said(("user", "q"))},
        {"system": [{"type": "text", "text": "s"}], "messages": _said(("user", "q"))},
        {"instructions": "s", "input": "q"},
        {"system_instruction": {"parts": [{"text": "s"}]}, "contents": [{"role": "user", "parts": [{"text": "q"}]}]},
        {"system": "another", "messages": _said(("system", "s"), ("user", "q"))},
    ],
)
@pytest.mark.parametrize(
    "answered",
    [
        {"role": "assistant", "content": "a"},
        {"candidates": [{"content": {"role": "model", "parts": [{"text": "a"}]}}]},
        {"output": [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "a"}]}]},
    ],
)
def test_a_traced_request_s_system_prompt(tmp_path: Path, asked: Any, answered: Any) -> None:
    row = {"id": "g", "traceId": "t", "type": "GENERATION", "startTime": "2026-01-01T00:00:00Z"}
    found = only(tmp_path, {**row, "input": asked, "output": answered})
    said = [(message.role, message.text) for message in found.trace.messages]
    assert said == [("system", "s"), ("user", "q"), ("assistant", "a")]


@pytest.mark.parametrize("wrapped", [True, False])
def test_answers_that_tau2_wraps_as_one(tmp_path: Path, wrapped: bool) -> None:
    calls = [{"id": one, "name": one, "arguments": {}, "requestor": "assistant"} for one in "fg"]
    answers = [{"role": "tool", "id": one, "content": f"of {one}", "error": one == "g"} for one in "gf"]
    shown: list[Any] = [{"role": "tool", "tool_messages": answers}] if wrapped else answers
    messages = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": None, "tool_calls": calls},
        *shown,
        {"role": "assistant", "content": "done"},
    ]
    info = {"environment_info": {"domain_name": "retail", "policy": "p"}}
    simulations = [{"id": "s", "task_id": "1", "trial": 0, "messages": messages}]
    found = only(tmp_path, {"info": info, "tasks": [{"id": "1"}], "simulations": simulations})
    assert outcomes_of_calls(found) == [("f", "of f", "ok"), ("g", "of g", "failed")]


def test_calls_that_bfcl_s_handler_read_in_a_model_s_words(tmp_path: Path) -> None:
    words = "I look first.\n```python\n[ls(a=True), pwd()]\n```"
    step = [
        {"role": "assistant", "content": words},
        {"role": "handler_log", "content": "decoded", "model_response_decoded": ["ls(a=True)", "pwd()"]},
        {"role": "tool", "content": "one"},
        {"role": "tool", "content": "two"},
    ]
    turn = {"begin_of_turn_query": _said(("user", "q")), "step_0": step}
    found = only(tmp_path, {"id": "multi_turn_base_1", "result": [[words]], "inference_log": [turn]})
    assert outcomes_of_calls(found) == [("ls", "one", "answered"), ("pwd", "two", "answered")]
    assert found.trace.steps[0].message.text == words
