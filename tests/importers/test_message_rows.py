"""Tables whose rows are messages: dialogues whose rows do not stand together or in order, and what cells hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm2_agent.errors import TraceError
from cm2_agent.importers import Imported, Problem, read_recordings, recording_format


def dialogues(path: Path, text: str) -> list[list[tuple[str, str]]]:
    """What each dialogue of a table says; nothing of it is a problem."""
    path.write_text(text, encoding="utf-8")
    found = [one for one in read_recordings(None, path) if isinstance(one, Imported)]
    assert not [str(one) for one in read_recordings(None, path) if isinstance(one, Problem)]
    return [[(message.role, message.text) for message in one.trace.messages] for one in found]


def test_rows_of_a_dialogue_that_do_not_stand_together(tmp_path: Path) -> None:
    text = "id,role,content\n1,user,q\n2,user,r\n2,assistant,b\n1,assistant,a\n3,user,s\n"
    assert dialogues(tmp_path / "rows.csv", text) == [
        [("user", "q"), ("assistant", "a")],
        [("user", "r"), ("assistant", "b")],
        [("user", "s")],
    ]


@pytest.mark.parametrize("column", ["turn", "timestamp"])
@given(data=st.data())
def test_rows_in_any_order(tmp_path_factory: pytest.TempPathFactory, column: str, data: st.DataObject) -> None:
    rows = [(one, at) for one in "ab" for at in range(12)]
    shuffled = data.draw(st.permutations(rows))
    stamps = [str(at) if column == "turn" else f"2026-01-01T00:00:{at:02}Z" for at in range(12)]
    lines = [f"{one},{stamps[at]},{('user', 'assistant')[at % 2]},{one}{at}" for one, at in shuffled]
    path = tmp_path_factory.getbasetemp() / "order.csv"
    found = dialogues(path, "\n".join([f"conversation_id,{column},role,content", *lines]))
    assert sorted([text for _, text in one] for one in found) == [[f"{one}{at}" for at in range(12)] for one in "ab"]


@pytest.mark.parametrize("stamps", [("10:31", "10:30"), ("2", "2"), ("2", "")])
def test_rows_without_a_clear_order_stay_as_they_are(tmp_path: Path, stamps: tuple[str, str]) -> None:
    text = f"id,timestamp,role,content\n1,{stamps[0]},user,q\n1,{stamps[1]},assistant,a\n"
    assert dialogues(tmp_path / "rows.csv", text) == [[("user", "q"), ("assistant", "a")]]


def test_names_of_columns_as_people_write_them(tmp_path: Path) -> None:
    text = "Conversation ID;Role;Content\n1;User;q\n2;User;r\n1;Assistant;a\n"
    found = dialogues(tmp_path / "rows.csv", text)
    assert found == [[("user", "q"), ("assistant", "a")], [("user", "r")]]
    assert dialogues(tmp_path / "pairs.csv", "Question,Answer\nq,a\n") == [[("user", "q"), ("assistant", "a")]]


@pytest.mark.parametrize("said", ["[1, 2]", "['a', 'b']", '{"v": 1}', "{'v': 1}", "[]"])
def test_what_was_said_is_text(tmp_path: Path, said: str) -> None:
    cell = '"' + said.replace('"', '""') + '"'
    assert dialogues(tmp_path / "rows.csv", f"role,content\nuser,{cell}\nassistant,a\n")[0][0] == ("user", said)


def test_a_list_of_parts_is_one(tmp_path: Path) -> None:
    cell = json.dumps([{"type": "text", "text": "hey"}]).replace('"', '""')
    assert dialogues(tmp_path / "rows.csv", f'role,content\nuser,"{cell}"\n') == [[("user", "hey")]]


def test_a_role_that_nobody_knows_costs_its_dialogue(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("id,role,content\n1,user,q\n1,critic,bad\n1,assistant,a\n2,user,r\n")
    found = list(read_recordings(None, path))
    (problem,) = [one for one in found if isinstance(one, Problem)]
    assert "critic" in problem.reason
    assert [one.trace.messages[0].text for one in found if isinstance(one, Imported)] == ["r"]


@pytest.mark.parametrize("write", [json.dumps, str])
def test_a_column_of_messages_as_json_or_as_python_prints_them(tmp_path: Path, write: type[str]) -> None:
    messages = [{"role": "user", "content": "it's \n ü"}, {"role": "assistant", "content": None}]
    cell = write(messages).replace('"', '""')
    found = dialogues(tmp_path / "rows.csv", f'id,messages\n1,"{cell}"\n')
    assert found == [[("user", "it's \n ü"), ("assistant", "")]]


def test_a_text_in_place_of_messages_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('id,messages\n1,hello\n2,"[{""role"": ""user"", ""content"": ""q""}]"\n')
    (problem,) = [one for one in read_recordings(None, path) if isinstance(one, Problem)]
    assert "a text that is no JSON" in problem.reason


ROWS: list[dict[str, Any]] = [
    {"conversation_id": "1", "turn": 0, "role": "user", "content": "q"},
    {"conversation_id": "2", "turn": 0, "role": "user", "content": "r"},
    {"conversation_id": "1", "turn": 1, "role": "assistant", "content": "a"},
]


@pytest.mark.parametrize("shape", ["lines", "list", "wrapped"])
@given(order=st.permutations(ROWS))
def test_rows_of_json(tmp_path_factory: pytest.TempPathFactory, shape: str, order: list[dict[str, Any]]) -> None:
    path = tmp_path_factory.getbasetemp() / f"{shape}.json"
    whole = {"list": order, "wrapped": {"schema": {"version": 1}, "data": order}}
    found = dialogues(path, json.dumps(whole[shape]) if shape in whole else "\n".join(map(json.dumps, order)))
    assert sorted(found) == [[("user", "q"), ("assistant", "a")], [("user", "r")]]


def test_rows_of_json_without_ids_are_one_dialogue_and_calls_are_read(tmp_path: Path) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    rows = [
        {"role": "user", "content": [{"type": "text", "text": "q"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "4"},
        {"role": "assistant", "content": "a"},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("{broken\n" + "\n".join(map(json.dumps, rows)))
    problem, found = read_recordings(None, path)
    assert isinstance(problem, Problem)
    assert isinstance(found, Imported)
    assert [use.call.name for step in found.trace.steps for use in step.tool_uses] == ["f"]
    assert found.trace.messages[-1].text == "a"


def test_a_role_that_nobody_knows_in_the_first_row_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"conversation_id": "1", "role": "Customer", "content": "q"}))
    with pytest.raises(TraceError, match=r"a message of role 'Customer'.*Rename the roles"):
        recording_format(path)


def test_keys_beside_rows_of_messages_are_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({"schema": {"version": 1}, "data": ROWS}))
    notes = [one.note or "" for one in read_recordings(None, path) if isinstance(one, Imported)]
    assert ["`schema`" in note for note in notes] == [True, True]


def test_a_list_of_one_dialogue_s_messages_stays_one(tmp_path: Path) -> None:
    rows = [{"id": f"m{at}", "role": role, "content": role} for at, role in enumerate(("user", "assistant"))]
    for one in (rows, [{**row, "thread_id": "t"} for row in rows]):
        assert dialogues(tmp_path / "list.json", json.dumps(one)) == [[("user", "user"), ("assistant", "assistant")]]
    answer = {"type": "message", "role": "assistant", "stop_reason": "end_turn"}
    both = [{**answer, "id": one, "content": [{"type": "text", "text": one}]} for one in "ab"]
    found = dialogues(tmp_path / "answers.jsonl", "\n".join(map(json.dumps, both)))
    assert found == [[("assistant", "a")], [("assistant", "b")]]
