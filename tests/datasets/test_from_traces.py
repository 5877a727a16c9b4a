"""A trace becomes a task: what is taken over, what is left out and why; then which tasks are kept, and who is held
out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm2_agent.datasets import (
    Redactor,
    Selection,
    UnfitTrace,
    distinct,
    entities_of,
    split,
    task_from_trace,
    unfit,
    with_content_id,
)
from cm2_agent.errors import TaskError
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.checklist_item import Item
from cm2_agent.types.messages import Blob, Message, Text, ToolCall, ToolCallResponse, ToolSpec
from cm2_agent.types.run import ModelCall, Run, ToolRun
from cm2_agent.types.score import Score
from cm2_agent.types.task import RecordedCall, Task, load_tasks, save_tasks
from cm2_agent.types.trace import Trace
from tests.rewards.talk import call, say, trace, trace_of_runs, turn
from tests.strategies import clean, messages

MAIL = "ada@x.org"


def redactor() -> Redactor:
    return Redactor(key=b"a key for the tests")


def compiled(given: Trace, **options: Any) -> Task:
    return task_from_trace(given, **{"redactor": redactor(), **options})


def test_what_a_task_takes_from_a_dialogue() -> None:
    spec = ToolSpec(
        name="get_order", description="Looks up.", parameters={"type": "object", "properties": {"order_id": {}}}
    )
    looked_up = call("get_order", '{"order_id": 7, "user": {"id": "Ada"}}', order_id=7)
    messages = [
        Message.of("system", "Be kind."),
        *turn("Hello", looked_up, say("Shipped.")),
        Message.of("user", "One more:"),
        Message.of("user", "refund it"),
        *call("refund", "no such order", error=True, id=3),
        *say("Sorry."),
        Message.of("user", "Anyone?"),
    ]
    run = Run(id="r", messages=tuple(messages), calls=(ModelCall(span_id="s", model="m", message=2, tools=(spec,)),))
    score = Score(trace_id="r", reward_version="v", reward=0.5)
    got = compiled(Trace(id="r", runs=(run,), outcomes={"success": 1.0}), score=score)
    assert got.system == "Be kind."
    assert got.turns == ("Hello", "One more:\nrefund it")
    assert [tool.name for tool in got.tools] == ["get_order"]  # nobody offered a refund
    assert got.tools[0].parameters == spec.parameters
    unspecified = compiled(Trace(id="r", runs=(replace(run, calls=()),)))
    assert {tool.name: tool.parameters for tool in unspecified.tools} == {
        "get_order": {"type": "object"},
        "refund": {"type": "object"},
    }
    assert [(one.name, one.arguments, one.result, one.error) for one in got.recorded] == [
        ("get_order", {"order_id": 7}, '{"order_id": 7, "user": {"id": "Ada"}}', None),
        ("refund", {"id": 3}, None, "no such order"),
    ]
    assert got.entities == ("id:3", "order:7", "user:ada")
    assert got.outcome == 1.0
    assert got.metadata == {
        "source": "trace",
        "trace": "r",
        "model": "m",
        "outcome": "success",
        "score": 0.5,
        "reward": "v",
    }
    assert got.version == 1
    assert got.scripted_turns == 2


def test_an_id_is_that_of_the_content() -> None:
    first = compiled(trace(turn("Where is order 7?", say("Here."))))
    assert first.id == compiled(trace(turn("Where is order 7?", say("There.")))).id, (
        "what the agent said is no part of the task"
    )
    assert first.id != compiled(trace(turn("Where is order 8?", say("Here.")))).id
    assert first.id == with_content_id(first.model_copy(update={"id": "other"})).id
    assert first.id != compiled(trace(turn("Where is order 7?", say("Here."))), metadata={"desk": 1}).id


def test_answers_are_as_the_agent_was_told_them() -> None:
    blocks = [{"type": "text", "text": "two"}, {"type": "image", "url": "x"}]
    calls = [call("a", {"x": [1.0, None]}), call("b", blocks), call("c", None), call("d", blocks, error=True)]
    got = compiled(trace(turn("Hi", *calls, say("ok"))))
    assert [one.result for one in got.recorded] == ['{"x":[1.0,null]}', blocks, "", blocks]
    assert [one.error for one in got.recorded] == [None, None, None, "two"]


def test_calls_that_never_reached_a_tool_are_left_out() -> None:
    asked = Message(
        role="assistant",
        parts=(
            ToolCall(id="1", name="a", arguments="{not json"),
            ToolCall(id="2", name="b", arguments={}),
            ToolCall(id="3", name="c", arguments={}),
        ),
    )
    answered = Message(
        role="tool", parts=(ToolCallResponse(id="1", response="bad"), ToolCallResponse(id="3", response="good"))
    )
    got = compiled(trace([Message.of("user", "Hi"), asked, answered, *say("ok")]))
    assert [one.name for one in got.recorded] == ["c"]
    assert [tool.name for tool in got.tools] == ["a", "b", "c"]


def test_a_recorded_call_has_the_arguments_that_ran() -> None:
    """A person changed the second order; both calls have one id."""
    asked = Message.of("assistant", "", [ToolCall(id="cancel", name="cancel", arguments={"order": n}) for n in (1, 2)])
    answers = tuple(ToolCallResponse(id="cancel", response=text) for text in ("cancelled 1", "cancelled 7"))
    ran = tuple(
        ToolRun(span_id=f"s{n}", name="cancel", call_id="cancel", arguments={"order": n}, result=f"cancelled {n}")
        for n in (1, 7)
    )
    messages = (Message.of("user", "Hi"), asked, Message(role="tool", parts=answers), Message.of("assistant", "ok"))
    got = compiled(Trace.of(Run(id="r", messages=messages, tools=ran)))
    assert [(one.arguments, one.result) for one in got.recorded] == [
        ({"order": 1}, "cancelled 1"),
        ({"order": 7}, "cancelled 7"),
    ]


def test_personal_data_is_replaced_alike_in_all_of_it() -> None:
    items = Checklist(
        Item(
            "tells",
            "Is ada@x.org told?",
            turn=0,
            evidence=[{"turn": 0, "step": 0, "from": "user", "snippet": "I am Ada@X.org"}],
        ),
        Item("looks", check={"called": "find", "with": {"mail": MAIL}}, turn=0),
        name="support",
    )
    said = trace(turn("I am Ada@X.org", call("find", '{"mail": "ada@x.org"}', mail=MAIL), say("Hello")))
    got = compiled(said, checklist=items)
    mail = redactor().redact(MAIL)
    assert got.turns == (f"I am {mail}",)
    assert got.recorded[0].arguments == {"mail": mail}
    assert got.recorded[0].result == f'{{"mail": "{mail}"}}'
    own = got.own_checklist()
    assert own is not None
    assert own.by_id["tells"].question == f"Is {mail} told?"
    assert own.by_id["tells"].evidence[0]["snippet"] == f"I am {mail}"
    assert own.by_id["looks"].check == {"called": "find", "with": {"mail": mail}}
    assert own.name.startswith("support-"), "other content under the same name and version would contradict the store"
    kept = compiled(said, checklist=items, redactor=None)
    assert kept.turns == ("I am Ada@X.org",)
    unchanged = kept.own_checklist()
    assert unchanged is not None
    assert unchanged.hash == items.hash


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (trace(turn("Hi", say("Hello")), failure="ToolError"), "failed (ToolError)"),
        (trace(turn("Hi", say("Hello")), status="cancelled"), "ended as cancelled"),
        (trace(say("Hello")), "no user message"),
        (Trace(id="t", runs=()), "no user message"),
        (trace([Message.of("user", "Hi")]), "no user message was answered"),
        (
            trace([Message(role="user", parts=(Text(content="Look"), Blob(content="AA=="))), *say("ok")]),
            "a user message is not text alone",
        ),
        (trace(turn("", say("Hello"))), "a user turn without words"),
        (trace(turn("Hi \ud800", say("Hello"))), "text that is not Unicode"),
        (trace(turn("Hi", call("a", "\ud800", error=True), say("Hello"))), "text that is not Unicode"),
        (trace(turn("Hi", call("a", x=float("nan")), say("Hello"))), "not JSON"),
    ],
)
def test_what_cannot_be_a_task_says_why(given: Trace, reason: str) -> None:
    with pytest.raises(UnfitTrace, match="cannot be a task") as caught:
        compiled(given)
    assert caught.value.reason == reason


def test_a_result_nested_too_deep_says_so() -> None:
    value: Any = "x"
    for _ in range(100_000):
        value = [value]
    with pytest.raises(UnfitTrace) as caught:
        compiled(trace(turn("Hi", call("a", value), say("Hello"))))
    assert caught.value.reason == "nested too deep"


@given(clean(), st.lists(messages(), max_size=4), st.booleans())
def test_any_dialogue_is_a_task_that_loads_or_says_why(words: str, between: list[Message], strange: bool) -> None:
    answered = [] if strange else [call("get", words, mail=words), say("ok")]
    said = Trace(id="t", runs=(Run(id="t", messages=(*turn("Hi " + words, *answered), *between, *say("bye"))),))
    try:
        task = compiled(said)
    except UnfitTrace as error:
        if not between:
            raise AssertionError("nothing here is strange") from error
        return
    assert unfit(said) is None
    assert Task.model_validate_json(task.model_dump_json()) == task


def test_a_megabyte_of_result_is_compiled(tmp_path: Any) -> None:
    text = '{"note": "' + "x" * 10**6 + '", "mail": "ada@x.org", "order_id": "' + "9" * 10**5 + '"}'
    got = compiled(trace(turn("Hi " + "y " * 500_000, call("find", text), say("Hello"))))
    assert MAIL not in got.recorded[0].result
    assert len(got.entities[0]) < 100
    assert load_tasks(save_tasks([got], tmp_path / "t.jsonl")) == [got]


# Entities


def task(id: str, *entities: str, **fields: Any) -> Task:
    return Task(**{"id": id, "turns": [id], "entities": entities, **fields})


@pytest.mark.parametrize(
    ("arguments", "result", "wanted"),
    [
        ({"orderId": 7}, None, ("order:7",)),
        ({"order_id": "A 7 "}, '{"order_id": "a 7"}', ("order:a 7",)),
        ({"order_id": 7.0}, {"id": True, "user_id": None}, ("order:7",)),
        ({}, '{"orders": [{"id": 7}, {"id": 8}], "flight_number": "HAT1"}', ("flight:hat1", "order:7", "order:8")),
        ({}, {"payment_methods": {"card_1": {"id": "card_1"}}}, ("payment_method:card_1",)),
        ({"order_ids": [1, 2]}, [{"type": "text", "text": '{"user_id": "x"}'}], ("order:1", "order:2", "user:x")),
        ({"paid": 3, "width": 4}, "order_id: 7", ()),
    ],
)
def test_the_ids_in_calls_and_answers(arguments: dict[str, Any], result: Any, wanted: Sequence[str]) -> None:
    given = task("t", recorded=[RecordedCall(name="x", arguments=arguments, result=result)])
    assert entities_of(given) == tuple(wanted)
    assert entities_of(given, keys=["nothing"]) == ()


# Selection and duplicates


def test_what_is_chosen() -> None:
    said = trace_of_runs([[turn("Hi", call("a"), say("Hello"))], [turn("And?", say("No"))]])
    scored = Score(trace_id="t", reward_version="v", reward=0.5)
    assert Selection().against(said, None) is None
    exact = Selection(min_score=0.5, max_score=0.5, min_turns=2, max_turns=2, min_calls=1, max_calls=1, tools=("a",))
    assert exact.against(said, scored) is None
    assert Selection(min_score=0.6).against(said, scored) == "score out of bounds"
    assert Selection(min_score=0.0).against(said, None) == "no score"
    assert Selection(max_turns=1).against(said, None) == "number of turns out of bounds"
    assert Selection(tools=("a", "b")).against(said, None) == "tool not called"
    assert Selection(models=("m",)).against(said, None) == "another model"
    assert Selection(since=5).against(said, None) == "no time"
    assert Selection(min_outcome=1).against(said, None) == "no outcome"
    ended = Trace(
        id="t", runs=tuple(Run(**{**run.__dict__, "started": 10}) for run in said.runs), outcomes={"a": 1.0, "b": 0.0}
    )
    assert Selection(since=10, until=10, min_outcome=1, outcome="a").against(ended, None) is None
    assert Selection(until=9).against(ended, None) == "time out of bounds"
    assert Selection(min_outcome=0).against(ended, None) == "no outcome", "which of two is not said"


def test_of_the_same_tasks_the_best_is_kept_and_nothing_is_merged() -> None:
    calls = [RecordedCall(name="get", arguments={"id": number}, result=str(number)) for number in range(4)]
    low = task("low", turns=["Where is  it?"], recorded=calls[:1], metadata={"score": 0.2})
    high = task("high", turns=["where is it? "], recorded=calls[1:2], metadata={"score": 0.9})
    unscored = task(
        "unscored",
        turns=["WHERE IS IT?"],
        recorded=calls[2:3],
        tools=[ToolSpec(name="get", parameters={"type": "object"})],
    )
    other = task("other", turns=["Where is it?"], tools=[ToolSpec(name="get", description="Gets.")])
    got = distinct([low, high, unscored, other])
    assert got.selected == (high, other)
    assert got.dropped == (("low", "high"), ("unscored", "high"))
    assert got.selected[0].recorded == tuple(calls[1:2])


# Splitting


@given(
    st.lists(
        st.frozensets(st.sampled_from([f"{name}:{number}" for name in "abc" for number in range(8)]), max_size=4),
        max_size=25,
    ),
    st.floats(0, 0.99),
    st.integers(0, 5),
    st.sampled_from([None, 0.1, 0.5]),
    st.sampled_from([(), ("a",), ("a:*", "b:1")]),
)
def test_no_entity_is_on_both_sides(
    given: list[frozenset[str]], fraction: float, seed: int, most: float | None, ignore: tuple[str, ...]
) -> None:
    tasks = [task(f"t{number}", *sorted(entities)) for number, entities in enumerate(given)]
    got = split(tasks, fraction=fraction, seed=seed, most=most, ignore=ignore)
    mine = {entity for one in got.train for entity in one.entities}
    theirs = {entity for one in got.held_out for entity in one.entities}
    assert not mine & theirs
    assert sorted(one.id for one in (*got.train, *got.held_out)) == sorted(one.id for one in tasks)
    assert len(got.held_out) <= fraction * len(tasks) + 1e-6
    assert (got.note is None) == (len(got.held_out) >= int(fraction * len(tasks) + 1e-9))
    assert sum(got.components) == len(tasks)
    assert got.entities == len(mine | theirs)
    again = split(tasks[::-1], fraction=fraction, seed=seed, most=most, ignore=ignore)
    assert {one.id for one in again.held_out} == {one.id for one in got.held_out}, (
        "the order of the tasks does not matter"
    )


def test_a_seed_changes_who_is_held_out() -> None:
    tasks = [task(f"t{number}", f"order:{number}") for number in range(100)]
    sides = [{one.id for one in split(tasks, fraction=0.3, seed=seed).held_out} for seed in range(3)]
    assert [len(side) for side in sides] == [30, 30, 30]
    assert sides[0] != sides[1]


def test_one_large_component_is_told_with_what_links_it() -> None:
    tasks = [
        task(f"t{number}", f"order:{number}", "flight:hat1", *(["user:ada"] if number < 5 else []))
        for number in range(10)
    ]
    got = split(tasks, fraction=0.2)
    assert got.held_out == ()
    assert got.note is not None
    assert "0 of the 2 tasks wanted" in got.note
    assert "one component holds 10 of 10" in got.note
    assert "flight:hat1, in 10" in got.note
    freed = split(tasks, fraction=0.2, ignore=["flight"])
    assert (len(freed.held_out), freed.ignored, freed.components[0]) == (2, 1, 5)
    assert split(tasks, fraction=0.2, most=0.4).ignored == 2


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_a_fraction_is_a_share(fraction: float) -> None:
    with pytest.raises(TaskError, match="expected a share"):
        split([], fraction=fraction)
