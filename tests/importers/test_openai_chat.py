"""OpenAI chats into traces: both spellings of everything, samples of one task, images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cm2_agent.importers import OFFICIAL, Imported, Problem, read_recordings
from cm2_agent.types.group import group_key
from cm2_agent.types.messages import Blob, Other, Reasoning, Text, Uri
from tests.importers.recordings import call, say

CHAT = [
    say("system", "Be kind."),
    say("user", "Where is order 7?"),
    *call("get_order", {"order_id": 7}, {"status": "sent"}),
    say("assistant", "Sent."),
]
TOOL = {"type": "function", "function": {"name": "get_order", "description": "d", "parameters": {"type": "object"}}}


def imported(folder: Path, *records: Any) -> list[Imported]:
    path = folder / "chats.jsonl"
    path.write_text("\n".join(json.dumps(one) for one in records))
    found = list(read_recordings("openai", path))
    assert not [one for one in found if isinstance(one, Problem)]
    return [one for one in found if isinstance(one, Imported)]


def test_a_bare_chat(tmp_path: Path) -> None:
    (found,) = imported(tmp_path, CHAT)
    assert [step.message.text for step in found.trace.steps] == ["", "Sent."]
    assert found.trace.runs[0].tools[0].name == "get_order"
    assert found.trace.outcomes == {}
    assert group_key(found.trace, "r") is None
    assert found.task is None


def test_thinking_in_the_text_is_a_part_of_its_own(tmp_path: Path) -> None:
    asked = "Where is <think>order 7</think>?"
    replies = ("<think>hm</think>\nSent.", "hm\n</think>\nSent.", "<think>hm")
    chats = [[say("user", asked), say("assistant", reply)] for reply in replies]
    found = imported(tmp_path, *chats)
    assert [one.trace.messages[0].text for one in found] == [asked] * 3
    parts = [one.trace.messages[1].parts for one in found]
    assert parts == [(Reasoning(content="hm"), Text(content="Sent."))] * 2 + [(Reasoning(content="hm"),)]


def test_one_id_twice_in_a_message(tmp_path: Path) -> None:
    """The second call has its own arguments and its own answer; ids that are missing count by position."""
    for own in ("cancel", None):
        functions = [
            {"type": "function", "function": {"name": "cancel", "arguments": json.dumps({"order_id": order})}}
            for order in (1, 2)
        ]
        asked = [function if own is None else {**function, "id": own} for function in functions]
        answers = [
            {"role": "tool", "content": text, **({} if own is None else {"tool_call_id": own})}
            for text in ("cancelled 1", "2 was shipped")
        ]
        chat = [say("user", "Cancel both"), {"role": "assistant", "content": None, "tool_calls": asked}, *answers]
        (found,) = imported(tmp_path, [*chat, say("assistant", "One is cancelled.")])
        (run,) = found.trace.runs
        assert [(tool.arguments, tool.result) for tool in run.tools] == [
            ({"order_id": 1}, "cancelled 1"),
            ({"order_id": 2}, "2 was shipped"),
        ]
        uses = found.trace.steps[0].tool_uses
        assert [(use.arguments, use.response and use.response.response) for use in uses] == [
            ({"order_id": 1}, "cancelled 1"),
            ({"order_id": 2}, "2 was shipped"),
        ]


def test_a_chat_that_nobody_answered(tmp_path: Path) -> None:
    (found,) = imported(tmp_path, [say("user", "Hello?")])
    assert found.trace.turns == ()


def test_a_custom_tool_takes_text(tmp_path: Path) -> None:
    asked = {"id": "1", "type": "custom", "custom": {"name": "shell", "input": "ls -l"}}
    chat = [say("user", "List"), {"role": "assistant", "content": None, "tool_calls": [asked]}]
    (found,) = imported(tmp_path, [*chat, {"role": "tool", "tool_call_id": "1", "content": "a b"}])
    (use,) = found.trace.steps[0].tool_uses
    assert (use.arguments, use.status) == ("ls -l", "answered")


def test_what_is_known_about_a_chat_is_kept(tmp_path: Path) -> None:
    record = {
        "messages": CHAT,
        "tools": [TOOL],
        "task_id": 12,
        "reward": 0.5,
        "model": "m-1",
        "temperature": 0.7,
        "rollout": 3,
    }
    (found,) = imported(tmp_path, record)
    trace = found.trace
    assert trace.outcomes == {OFFICIAL: 0.5}
    assert trace.policy == "m-1"
    assert trace.task_id == "12"
    assert trace.calls[0].sampling == {"temperature": 0.7}
    assert trace.calls[0].tools[0].name == "get_order"
    assert trace.attributes["cm2.rollout"] == 3


def test_samples_of_a_task_are_a_group_even_when_equal(tmp_path: Path) -> None:
    record = {"messages": CHAT, "task_id": "t"}
    found = imported(tmp_path, record, record, record)
    assert len({one.trace.id for one in found}) == 3
    assert [one.trace.attributes["cm2.rollout"] for one in found] == [0, 1, 2]
    assert len({json.dumps(group_key(one.trace, "r")) for one in found}) == 1
    assert [one.trace.id for one in imported(tmp_path, record, record, record)] == [one.trace.id for one in found]


def test_other_prompts_and_tools_are_other_groups(tmp_path: Path) -> None:
    other = [say("system", "Be brief."), *CHAT[1:]]
    records = [
        {"messages": CHAT, "task_id": "t"},
        {"messages": other, "task_id": "t"},
        {"messages": CHAT, "tools": [TOOL], "task_id": "t"},
    ]
    assert len({json.dumps(group_key(one.trace, "r")) for one in imported(tmp_path, *records)}) == 3


def test_equal_chats_without_a_task_are_the_same_chat(tmp_path: Path) -> None:
    first, second = imported(tmp_path, CHAT, {"messages": CHAT})
    assert first.trace.id == second.trace.id


def test_parts_of_every_kind(tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = [
        {"type": "text", "text": "look"},
        {"type": "image_url", "image_url": {"url": "https://x/y.png"}},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
        {"type": "input_audio", "input_audio": {"data": "BBBB", "format": "mp3"}},
        {"type": "file", "file": {"file_data": "data:application/pdf;base64,CCCC"}},
        {"type": "hologram", "x": 1},
    ]
    answer = {"role": "assistant", "content": "ok", "reasoning_content": "hm", "annotations": []}
    (found,) = imported(tmp_path, [{"role": "developer", "content": "d"}, {"role": "user", "content": seen}, answer])
    system, user, assistant = found.trace.messages
    assert system.role == "system"
    assert user.parts == (
        Text(content="look"),
        Uri(uri="https://x/y.png", modality="image"),
        Blob(content="AAAA", modality="image", mime_type="image/png"),
        Blob(content="BBBB", modality="audio", mime_type="audio/mp3"),
        Blob(content="CCCC", modality="file", mime_type="application/pdf"),
        Other(data=seen[5]),
    )
    assert assistant.parts == (Reasoning(content="hm"), Text(content="ok"))
    assert assistant.extra == {"annotations": []}


def test_the_formats_first_spelling(tmp_path: Path) -> None:
    old = [
        say("user", "7?"),
        {"role": "assistant", "content": None, "function_call": {"name": "get_order", "arguments": '{"order_id": 7}'}},
        {"role": "function", "name": "get_order", "content": "sent"},
        say("assistant", "Sent."),
    ]
    (found,) = imported(tmp_path, old)
    step = found.trace.steps[0]
    assert step.message.tool_calls[0].arguments == {"order_id": 7}
    assert found.trace.runs[0].tools[0].result == "sent"


def test_a_truncated_last_line_costs_itself_only(tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps(CHAT) + "\n" + json.dumps({"messages": CHAT})[:-20])
    first, problem = list(read_recordings("openai", path))
    assert isinstance(first, Imported)
    assert isinstance(problem, Problem)
    assert problem.line == 2


def test_wrong_records_are_told(tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    wrong: list[Any] = [
        {},
        {"messages": []},
        {"messages": CHAT, "tools": [7]},
        {"messages": CHAT, "tools": 3},
        5,
        {"messages": CHAT, "reward": "good"},
    ]
    path.write_text("\n".join(json.dumps(one) for one in wrong))
    found = list(read_recordings("openai", path))
    assert [one.line for one in found if isinstance(one, Problem)] == [1, 2, 3, 4, 5, 6]
