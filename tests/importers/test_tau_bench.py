"""tau-bench records into traces that form groups, by hand-written recordings and, where they are at hand, the real
ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cm2_agent.errors import TraceError
from cm2_agent.importers import OFFICIAL, Imported, Problem, read_recordings
from cm2_agent.types.group import group_key
from cm2_agent.types.messages import ToolCall
from cm2_agent.types.run_attributes import CUT, ROLLOUT, TASK_TURNS
from cm2_agent.types.trace import Trace
from tests.importers.recordings import SYSTEM, call, cancelling, dialogues, recordings, saved, say


def imported(path: Path, **options: Any) -> list[Imported]:
    found = list(read_recordings("tau-bench", path, **options))
    assert all(isinstance(one, Imported) for one in found)
    return [one for one in found if isinstance(one, Imported)]


def test_the_trials_of_a_task_are_one_group(tmp_path: Path) -> None:
    found = imported(saved(tmp_path))
    keys = [group_key(one.trace, "r") for one in found]
    assert keys[0] == keys[3]
    assert keys[1] == keys[4]
    assert keys[0] != keys[1]
    assert [one.trace.attributes[ROLLOUT] for one in found] == [0, 0, 0, 1, 1, 1]
    assert len({one.trace.id for one in found}) == 6
    assert [one.trace.outcomes for one in found] == [{OFFICIAL: 1.0}] * 3 + [{OFFICIAL: 0.0}] * 3


def test_a_record_becomes_a_whole_trace(tmp_path: Path) -> None:
    trace = imported(saved(tmp_path, [recordings()[2]]))[0].trace
    assert trace.messages[0].text == SYSTEM
    assert [len(turn.steps) for turn in trace.turns] == [
        3,
        3,
    ]  # the leave-taking is answered by nobody and opens no turn
    step = trace.turns[1].steps[0]
    assert step.message.tool_calls[0].arguments["payment_id"] == "gift_card_9"
    assert step.responses[0].error
    assert step.call is not None
    assert (step.call.output, step.call.untrainable) == (step.message, "no token ids")
    assert step.call.input == trace.messages[: step.call.message]
    failed = [run for run in trace.runs[0].tools if run.error is not None]
    assert [(run.name, run.error, run.result) for run in failed] == [
        ("update_reservation_flights", "Error: payment method not found", None)
    ]
    assert TASK_TURNS not in trace.attributes  # the user was simulated
    assert CUT not in trace.attributes
    assert Trace.from_json(json.loads(json.dumps(trace.to_json()))) == trace


def test_the_task_is_what_the_record_says(tmp_path: Path) -> None:
    with_, without = imported(saved(tmp_path), checklists=True), imported(saved(tmp_path))
    task = with_[0].task
    assert task is not None
    assert (task.id, task.persona, task.system, task.turns) == ("tau-airline-1", "You are ada_1, errand 1.", SYSTEM, ())
    assert task.scripted_turns is None
    assert task.outcome == {
        "actions": [{"name": "cancel_reservation", "arguments": {"reservation_id": "QQ7AA1"}}],
        "outputs": [],
    }
    assert task == with_[3].task
    assert task.own_checklist() is not None
    assert without[0].task is not None
    assert without[0].task.checklist is None


def test_the_same_record_has_the_same_id_in_any_file(tmp_path: Path) -> None:
    one = cancelling(0, extra=False)
    pretty = tmp_path / "pretty.json"
    pretty.write_text(json.dumps([one], indent=1, sort_keys=True))
    assert imported(saved(tmp_path, [one]))[0].trace.id == imported(pretty)[0].trace.id
    assert imported(saved(tmp_path, [{**one, "trial": 5}]))[0].trace.id != imported(pretty)[0].trace.id


@pytest.mark.parametrize(
    "last",
    [say("user", "Wait, and my bags?"), say("assistant", "One moment."), *call("think", {"thought": "x"}, "")[1:]],
)
def test_a_dialogue_without_an_end_was_cut(tmp_path: Path, last: dict[str, Any]) -> None:
    one = cancelling(0, extra=False)
    trace = imported(saved(tmp_path, [{**one, "traj": [*one["traj"][:-1], last]}]))[0].trace
    assert trace.attributes[CUT] == "limit of steps"


def test_a_transfer_is_an_end(tmp_path: Path) -> None:
    one = cancelling(0, extra=False)
    handed = [*one["traj"][:-2], *call("transfer_to_human_agents", {"summary": "s"}, "Transfer successful")]
    assert CUT not in imported(saved(tmp_path, [{**one, "traj": handed}]))[0].trace.attributes


def test_arguments_that_are_not_json_stay_text(tmp_path: Path) -> None:
    one = cancelling(0, extra=False)
    for text in ('{"reservation_id": ', "[" * 400 + "]" * 400, '{"a": NaN}', '{"a": 1e999}'):
        broken = [*one["traj"][:-1], *call("cancel_reservation", text, "Error: bad arguments"), one["traj"][-1]]
        trace = imported(saved(tmp_path, [{**one, "traj": broken}]))[0].trace
        assert trace.steps[-1].message.tool_calls[0] == ToolCall(id="call_1", name="cancel_reservation", arguments=text)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"traj": []}, "traj"),
        ({"traj": "hello"}, "traj"),
        ({"traj": [{"role": "wizard", "content": "x"}]}, "message 0: has role str 'wizard'"),
        ({"traj": [{"role": "user", "content": 7}]}, "message 0: has content int 7"),
        ({"traj": ["hello"]}, "message 0: is str 'hello'"),
        ({"traj": [{"role": "assistant", "tool_calls": [{"function": {}}]}]}, "a function with a name"),
        ({"traj": [{"role": "user", "content": "x", "tool_calls": [{"function": {"name": "f"}}]}]}, "its role is user"),
        ({"traj": [{"role": "tool", "tool_call_id": 3.5, "content": "x"}]}, "tool_call_id float 3.5"),
        ({"task_id": None}, "task_id"),
        ({"trial": -1}, "trial"),
        ({"reward": "good"}, "reward"),
        ({"reward": [1]}, "reward"),
        ({"info": {"task": {"actions": [{"kwargs": {}}]}}}, "info.task.actions"),
    ],
)
def test_a_wrong_record_is_told_and_skipped(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    good = recordings()
    first, problem, last = list(
        read_recordings("tau-bench", saved(tmp_path, [good[0], {**good[1], **change}, good[2]]))
    )
    assert isinstance(first, Imported)
    assert isinstance(last, Imported)
    assert isinstance(problem, Problem)
    assert problem.number == 2
    assert reason in problem.reason


def test_what_is_no_record_at_all(tmp_path: Path) -> None:
    found = list(read_recordings("tau-bench", saved(tmp_path, [1, None, "x", [1], recordings()[0]])))
    assert [type(one) for one in found] == [Problem] * 4 + [Imported]


def test_an_unknown_desk_gets_no_checklist_and_says_so(tmp_path: Path) -> None:
    one = cancelling(0, extra=False)
    one["traj"][0] = say("system", "You are a bookshop.")
    one["info"]["task"]["actions"] = [{"name": "sell_book", "kwargs": {}}]
    found = imported(saved(tmp_path, [one]), checklists=True)[0]
    assert found.task is not None
    assert found.task.checklist is None
    assert "the airline desk has no tool sell_book" in (found.note or "")  # the file's name says airline
    bookshop = saved(tmp_path, [one]).rename(tmp_path / "bookshop.json")
    (other,) = imported(bookshop, checklists=True)
    assert other.task is not None
    assert other.task.checklist is None
    assert "no table of write tools" in (other.note or "")


def test_unknown_formats_are_named() -> None:
    with pytest.raises(TraceError, match=r"expected one of .*tau-bench, .*openai"):
        read_recordings("xml", "file")


def test_a_file_of_results_is_read_whole(tmp_path: Path) -> None:
    """The real dialogues where they are at hand: four trials a task, each group whole."""
    found = imported(dialogues(tmp_path), checklists=True)
    groups: dict[str, int] = {}
    for one in found:
        key = group_key(one.trace, "r")
        assert key is not None
        groups[json.dumps(key)] = groups.get(json.dumps(key), 0) + 1
        assert one.note is None
    assert len(set(groups.values())) == 1
    assert sum(groups.values()) == len({one.trace.id for one in found}) == len(found)


def test_a_desk_of_another_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "chat.jsonl"
    path.write_text('{"messages": [{"role": "user", "content": "q"}]}')
    for named in (None, "openai"):
        with pytest.raises(TraceError, match="is of format openai; a desk is for tau-bench's files"):
            read_recordings(named, path, desk="airline")
    assert imported(saved(tmp_path), desk="airline")[0].trace.attributes
