"""Files of other tools: the format is seen, one dialogue has one hash whatever wrote it, and what is unknown or broken
is named with what to type."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cm2_agent.errors import TraceError
from cm2_agent.importers import FORMATS, OFFICIAL, Imported, Problem, read_recordings, recording_format
from cm2_agent.types.messages import Message, Reasoning, Text, ToolCall, ToolCallResponse
from cm2_agent.types.run import NOT_TO_LEARN
from tests.fuzzing import examples
from tests.importers.foreign_files import REPLY, WHOLE, inspect, only, openai, read, swe_agent, tau2, written
from tests.strategies import jsons


def problem(path: Path, format: str | None = None) -> str:
    (found,) = [one for one in read_recordings(format, path) if isinstance(one, Problem)]
    return found.reason


@pytest.mark.parametrize("name", WHOLE)
def test_one_dialogue_has_one_hash_whichever_tool_wrote_it(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, WHOLE[name]())
    assert recording_format(path).name == name.split(" ")[0]
    (found,) = read(path)
    assert found.trace.content_hash == only(tmp_path, openai()).trace.content_hash
    assert [step.message.text for step in found.trace.steps] == ["", REPLY]
    (use,) = found.trace.steps[0].tool_uses
    assert use.response is not None
    assert use.status in ("ok", "answered")


@pytest.mark.parametrize("name", WHOLE)
def test_a_list_of_records_and_an_indented_file_are_the_same(tmp_path: Path, name: str) -> None:
    record = WHOLE[name]()
    listed = tmp_path / "list.json"
    listed.write_text(json.dumps([record, record], indent=1))
    assert {one.trace.content_hash for one in read(listed)} == {only(tmp_path, record).trace.content_hash}
    assert len(read(listed)) == 2


def test_a_dialogue_imported_twice_is_the_same_trace(tmp_path: Path) -> None:
    for make in WHOLE.values():
        path = written(tmp_path, make())
        assert [one.trace for one in read(path)] == [one.trace for one in read(path)]


def test_an_unknown_file_says_what_it_holds_and_what_to_type(tmp_path: Path) -> None:
    with pytest.raises(TraceError) as raised:
        recording_format(written(tmp_path, {"mesages": [], "tols": []}))
    assert "keys 'mesages', 'tols'. Nearest: openai" in str(raised.value)
    assert "cm2 import openai FILE" in str(raised.value)
    with pytest.raises(TraceError, match="holds no messages"):
        recording_format(written(tmp_path, {"messages": []}))
    (tmp_path / "x.db").write_bytes(b"SQLite format 3\x00")
    with pytest.raises(TraceError, match="is an SQLite database"):
        recording_format(tmp_path / "x.db")


def test_inspect_scores_errors_and_limits(tmp_path: Path) -> None:
    log = inspect()
    (sample,) = log["samples"]
    sample["scores"] = {"match": {"value": "I"}, "judge": {"value": 0.25}, "words": {"value": "good"}}
    sample["messages"][3] |= {"error": {"type": "timeout", "message": "too slow"}, "content": ""}
    sample["limit"] = {"type": "token", "limit": 5}
    found = only(tmp_path, log)
    assert found.trace.outcomes == {OFFICIAL: 0.0, "match": 0.0, "judge": 0.25}
    (use,) = found.trace.steps[0].tool_uses
    assert use.status == "failed"
    assert found.trace.attributes["cm2.cut"] == "limit of token"
    assert found.trace.task_id == "orders-1"


def test_weights_of_fine_tuning_are_kept_from_training(tmp_path: Path) -> None:
    messages = openai()["messages"]
    messages[-1]["weight"] = 0
    path = written(tmp_path, {"messages": messages})
    assert "fine-tuning" in recording_format(path).reason
    (found,) = read(path)
    first, last = found.trace.calls
    assert (first.sampling, last.sampling) == ({}, {"untrainable": NOT_TO_LEARN})


@pytest.mark.parametrize("reward", [True, 1, "1.0", 1.0, "true"])
def test_rewards_of_any_spelling(tmp_path: Path, reward: Any) -> None:
    assert only(tmp_path, {**openai(), "reward": reward}).trace.outcomes == {OFFICIAL: 1.0}


def test_a_reward_that_is_no_number_is_refused(tmp_path: Path) -> None:
    wrong: list[Any] = ["good", [1], "nan", {}]
    for reward in wrong:
        assert "expected a finite number" in problem(written(tmp_path, {**openai(), "reward": reward}))


@pytest.mark.parametrize(
    ("text", "arguments", "status"),
    [
        ("", {}, "answered"),
        ('{"a": "x\ny"}', {"a": "x\ny"}, "answered"),
        ('{"a": 1', '{"a": 1', "invalid"),
        (json.dumps('{"a": 1}'), '{"a": 1}', "invalid"),
        ("[1]", [1], "invalid"),
    ],
)
def test_arguments(tmp_path: Path, text: str, arguments: Any, status: str) -> None:
    record = openai()
    record["messages"][2]["tool_calls"][0]["function"]["arguments"] = text
    (use,) = only(tmp_path, record).trace.steps[0].tool_uses
    assert use.call.arguments == arguments
    assert use.status == status


def test_marks_of_failed_calls(tmp_path: Path) -> None:
    for mark in ({"is_error": True}, {"status": "error"}, {"error": "gone"}):
        record = openai()
        record["messages"][3] |= mark
        (use,) = only(tmp_path, record).trace.steps[0].tool_uses
        assert use.status == "failed"


def test_thinking_and_refusals(tmp_path: Path) -> None:
    thinking = {"type": "thinking", "thinking": "Hm.", "signature": "s"}
    blocks = [thinking, {"type": "text", "text": "No."}]
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": blocks}]
    assert only(tmp_path, chat).trace.messages[1].parts == (Reasoning(content="Hm."), Text(content="No."))
    refused = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": None, "refusal": "No."}]
    (part,) = only(tmp_path, refused).trace.messages[1].parts
    assert part == Text(content="No.", extra={"refusal": True})


def test_preference_pairs_are_two_rollouts_of_one_task(tmp_path: Path) -> None:
    user, good, bad = ({"role": "user", "content": "Hi"}, [{"role": "assistant", "content": "Hello"}], "Go away")
    bad_list = [{"role": "assistant", "content": bad}]
    shapes: list[Any] = [
        {"input": {"messages": [user], "tools": []}, "preferred_output": good, "non_preferred_output": bad_list},
        {"prompt": "Hi", "chosen": "Hello", "rejected": bad},
        {"prompt": [user], "chosen": good, "rejected": bad_list},
        {"chosen": [user, *good], "rejected": [user, *bad_list]},
        {"conversations": [{"from": "human", "value": "Hi"}], "chosen": good[0], "rejected": bad_list[0]},
        {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello", "rejected": f"\n\nHuman: Hi\n\nAssistant: {bad}"},
    ]
    hashes = set()
    for shape in shapes:
        path = written(tmp_path, shape)
        assert recording_format(path).name == "dpo"
        better, worse = read(path)
        assert (better.trace.outcomes, worse.trace.outcomes) == ({OFFICIAL: 1.0}, {OFFICIAL: 0.0})
        assert better.trace.task_id == worse.trace.task_id
        assert better.trace.attributes["cm2.rollout"] == 0
        assert worse.trace.attributes["cm2.rollout"] == 1
        hashes.add((better.trace.content_hash, worse.trace.content_hash))
    assert len(hashes) == 1


def test_a_batch_s_output(tmp_path: Path) -> None:
    body = {"model": "m", "choices": [{"message": {"role": "assistant", "content": "Hello"}}]}
    good = {"id": "b", "custom_id": "r1", "response": {"status_code": 200, "body": body}, "error": None}
    bad = {"id": "c", "custom_id": "r2", "response": {"status_code": 500, "body": {}}, "error": {"code": "x"}}
    path = written(tmp_path, good, bad)
    assert recording_format(path).name == "openai-batch"
    found, failed = read_recordings(None, path)
    assert isinstance(found, Imported)
    assert found.trace.messages == (Message.of("assistant", "Hello"),)
    assert found.trace.attributes["custom_id"] == "r1"
    assert "the request failed (status 500)" in str(failed)


def test_a_user_s_calls_in_tau2_are_the_user_s(tmp_path: Path) -> None:
    results = tau2()
    messages = results["simulations"][0]["messages"]
    call = {"id": "1", "name": "toggle", "arguments": {}, "requestor": "user"}
    messages += [
        {"role": "user", "content": None, "tool_calls": [call]},
        {"role": "tool", "id": "1", "content": "off", "requestor": "user", "error": False},
        {"role": "user", "content": "Done. ###STOP###"},
    ]
    found = only(tmp_path, results)
    asked, answered = found.trace.messages[-3:-1]
    assert asked == Message(role="user", parts=(ToolCall(id="1", name="toggle", arguments={}),))
    assert answered == Message(role="user", parts=(ToolCallResponse(id="1", response="off"),))
    assert [use.call.name for step in found.trace.steps for use in step.tool_uses] == ["get_order"]
    assert found.trace.outcomes == {OFFICIAL: 1.0}
    assert found.task is not None
    assert found.task.persona == "Ask for A7."


def test_a_broken_simulation_costs_itself(tmp_path: Path) -> None:
    results = tau2()
    results["simulations"].insert(0, {"id": "bad", "task_id": "t1", "messages": [{"role": "wizard"}]})
    broken, found = read_recordings(None, written(tmp_path, results))
    assert isinstance(found, Imported)
    assert "simulation bad: message 0: has role str 'wizard'" in str(broken)


def test_actions_as_text_are_calls_of_the_shell(tmp_path: Path) -> None:
    record = swe_agent()
    action = {"role": "assistant", "content": "I look.\n```\nls\n```", "thought": "I look.", "action": "ls"}
    submit = {"role": "assistant", "content": "Done.", "thought": "Done.", "action": "submit"}
    record["history"][2:] = [action, {"role": "user", "content": "a.py", "message_type": "observation"}, submit]
    record["trajectory"] = [{"action": "submit", "observation": "diff", "thought": "Done."}]
    found = only(tmp_path, record)
    uses = [use for step in found.trace.steps for use in step.tool_uses]
    assert [(use.call.name, use.call.arguments) for use in uses] == [
        ("bash", {"command": "ls"}),
        ("bash", {"command": "submit"}),
    ]
    assert [use.response.response if use.response else None for use in uses] == ["a.py", "diff"]
    del record["history"]
    assert [step.message.text for step in only(tmp_path, record).trace.steps] == ["Done."]


def test_bfcl_calls_are_read_and_not_run(tmp_path: Path) -> None:
    multi = {"id": "multi_turn_base_0", "result": [[["ls(a=True)", "cd('x')"]], [["Done."]]], "latency": 1}
    single = {"id": "simple_1", "result": "[f(x=[1, 2], y={'a': None}), __import__('os').system('x')]", "latency": 1}
    objects = {"id": "parallel_2", "result": [{"play": '{"artist": "A"}'}], "latency": 1}
    found = read(written(tmp_path, multi, single, objects))
    calls = [[(call.name, call.arguments) for m in one.trace.messages for call in m.tool_calls] for one in found]
    assert calls[0] == [("ls", {"a": True}), ("cd", {"0": "x"})]
    assert calls[1][0] == ("f", {"x": [1, 2], "y": {"a": None}})
    assert calls[2] == [("play", {"artist": "A"})]
    assert [one.trace.task_id for one in found] == ["multi_turn_base_0", "simple_1", "parallel_2"]
    log = [
        {
            "begin_of_turn_query": [{"role": "user", "content": "List."}],
            "step_0": [
                {"role": "assistant", "content": ["ls(a=True)"]},
                {"role": "handler_log", "content": "x"},
                {"role": "tool", "content": "[]"},
            ],
        }
    ]
    (logged,) = read(written(tmp_path, {**multi, "inference_log": log}))
    assert [message.role for message in logged.trace.messages] == ["user", "assistant", "tool"]


def test_dialogues_by_their_names_and_lists_in_a_wrapper(tmp_path: Path) -> None:
    chat = openai()["messages"]
    assert len(read(written(tmp_path, {"put": chat, "take": chat[:2]}))) == 2
    assert len(read(written(tmp_path, {"object": "list", "data": [openai(), openai()]}))) == 2


def test_a_dialogue_of_very_many_messages(tmp_path: Path) -> None:
    chat = [{"role": role, "content": "x"} for role in ("user", "assistant")] * 5_000
    assert len(only(tmp_path, chat).trace.steps) == 5_000


KEYS = st.sampled_from(
    [
        "messages",
        "role",
        "content",
        "tool_calls",
        "function",
        "name",
        "arguments",
        "conversations",
        "from",
        "value",
        "input",
        "output",
        "prompt",
        "completion",
        "chosen",
        "rejected",
        "type",
        "data",
        "kwargs",
        "lc",
        "id",
        "kind",
        "parts",
        "part_kind",
        "history",
        "trajectory",
        "tasks",
        "simulations",
        "eval",
        "samples",
        "result",
        "traj",
        *("inputs", "outputs", "run_type", "traceId", "observations", "spans", "info", "trace_id", "attributes"),
        *("span_id", "context", "llm", "input_messages", "generations", "resourceSpans", "scopeSpans", "scores"),
        "task_id",
        "reward",
        "custom_id",
        "response",
        "choices",
        "message",
        "tools",
        "system",
        "text",
        "args",
    ]
)
WORDS = st.sampled_from(
    ["user", "assistant", "tool", "system", "human", "ai", "gpt", "text", "function_call", "tool_use", "request"]
)
RECORDS = st.recursive(
    WORDS | jsons(1) | st.integers(0, 2),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=14,
)


@settings(max_examples=examples(60), deadline=None)
@given(
    RECORDS,
    st.sampled_from(sorted(FORMATS.keys() - {"labels"})),
)
def test_no_record_breaks_a_reader(tmp_path_factory: pytest.TempPathFactory, record: Any, name: str) -> None:
    path = written(tmp_path_factory.mktemp("r"), record, openai())
    for format in (None, name):
        for one in read_recordings(format, path):
            if isinstance(one, Problem):
                assert not one.reason.startswith(("AttributeError", "KeyError", "TypeError", "IndexError")), one.reason
            else:
                assert isinstance(one, Imported)
                assert len(one.trace.content_hash) == 64
