"""Checks written as data answer in one pass what asking them anew after every step would answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cm2_agent.rewards.scoring.scorer import ChecklistScorer
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.checklist_item import Item
from cm2_agent.types.json_values import same_json
from cm2_agent.types.messages import Message, ToolCall, ToolCallResponse
from cm2_agent.types.tool_errors import FAILURE_UNKNOWN
from cm2_agent.types.tool_use import ToolUse
from cm2_agent.types.trace import Step, Trace
from cm2_agent.types.view import View, as_text, occurs
from tests.rewards.talk import call, say, trace, trace_of_runs, turn

TOOLS = st.sampled_from(["look", "book", "pay"])
VALUES = st.sampled_from([1, 1.0, True, "1", "A-9", "a", [1, 2], None, "Order 7"])
WISHES = VALUES | st.sampled_from([{"from": "user"}, {"from": "tool"}])
WITH = st.dictionaries(st.sampled_from(["v", "w"]), WISHES, max_size=2)


def two_calls(one: str, other: str, value: Any, answered: bool) -> list[Message]:
    """A step that calls two tools, of which one or both are answered."""
    calls = [ToolCall(id="1", name=one, arguments={"v": value}), ToolCall(id="2", name=other, arguments={"w": value})]
    answers = [ToolCallResponse(id="2", response="A-9"), ToolCallResponse(id="1", response=value)]
    return [Message.of("assistant", "", calls), Message(role="tool", parts=tuple(answers[: 1 + answered]))]


steps = st.one_of(
    st.builds(
        lambda tool, result, error, arguments, text: call(tool, result, error=error, text=text, **arguments),
        TOOLS,
        VALUES | st.just({"next": "A-9", "n": 1}),
        st.booleans(),
        st.dictionaries(st.sampled_from(["v", "w"]), VALUES, max_size=2),
        st.sampled_from(["", "One moment"]),
    ),
    st.builds(two_calls, TOOLS, TOOLS, VALUES, st.booleans()),
    st.builds(say, st.sampled_from(["Here you are", "1", "", "A-9, as you wish"])),
)
users = st.sampled_from(["Go on", "Order 7", "It is 1", "a\nb", "A-9?"])
turns = st.builds(lambda user, own: turn(user, *own), users, st.lists(steps, max_size=4))
runs = st.lists(st.lists(turns, min_size=1, max_size=2), min_size=1, max_size=3)

called = st.builds(
    lambda tool, with_, more: {"called": tool, **({"with": with_} if with_ else {}), **more},
    TOOLS,
    WITH,
    st.sampled_from([{}, {"before": "reply"}, {"succeeded": True}, {"failed": "allowed"}]),
)
before_tool = st.builds(
    lambda tool, with_, other: {"called": tool, "before": other, "with": {"v": 1} if tool == other else with_},
    TOOLS,
    WITH,
    TOOLS,
)
lasting = st.one_of(
    called,
    before_tool,
    st.just({"replied": True}),
    st.sampled_from(["1", "(?i)a-9", "x"]).map(lambda p: {"reply_matches": p}),
    st.sampled_from(["1", "(?i)order", "a.b"]).map(lambda p: {"user_matches": p}),
)
ends_decided = st.one_of(
    st.builds(lambda tools: {"never_called": tools}, TOOLS | st.lists(TOOLS, min_size=1, max_size=2)),
    st.builds(lambda n: {"at_most": n}, st.integers(0, 3)),
    st.builds(lambda limits: {"at_most": limits}, st.dictionaries(TOOLS, st.integers(0, 2), min_size=1)),
    st.builds(lambda tools: {"no_tool_error": tools}, st.just(True) | TOOLS | st.lists(TOOLS, min_size=1, max_size=2)),
    st.builds(
        lambda listed, among: {"only_called": listed, "among": among},
        st.lists(st.builds(lambda tool, with_: {"called": tool, "with": with_}, TOOLS, WITH), max_size=3),
        st.lists(TOOLS, min_size=1, max_size=3),
    ),
)


def texts_of(value: Any) -> list[str]:
    """The values of a JSON value as texts, those that nobody spells out left out."""
    if isinstance(value, list | dict):
        inner = value.values() if isinstance(value, dict) else value
        return [text for one in inner for text in texts_of(one)]
    return [] if value is None or isinstance(value, bool) else [as_text(value)]


def stands(value: Any, texts: list[str]) -> bool:
    """Whether every value of the argument stands in one of the texts; a lone letter tells nothing."""
    wanted = texts_of(value)
    return bool(wanted) and all(one != "a" and any(occurs(one, text) for text in texts) for one in wanted)


class Plainly:
    """A check asked about the first `seen` steps of a scope, by the words of its definition."""

    def __init__(self, one: Trace, at: int | None, seen: int) -> None:
        scope = one.turns if at is None else one.turns[at : at + 1]
        so_far = one.turns if at is None else one.turns[: at + 1]
        own = [step for part in scope for step in part.steps][:seen]
        self.steps: Sequence[Step] = own
        self.earlier = [] if at is None else [step for part in one.turns[:at] for step in part.steps]
        self.user = "\n".join(message.text for part in so_far for message in part.user)
        self.calls = [(number, use) for number, step in enumerate(own) for use in step.tool_uses]
        self.user_messages = [
            message.text for part in scope if part.steps and part.steps[0] in own for message in part.user
        ]
        self.replies = [(n, s.message.text) for n, s in enumerate(own) if s.is_reply]

    def fits(self, number: int, use: ToolUse, wanted: dict[str, Any]) -> bool:
        before = [*self.earlier, *self.steps[:number]]
        texts = [leaf for s in before for r in s.responses if not r.error for leaf in texts_of(r.response)]
        for key, value in wanted.items():
            if key not in use.arguments:
                return False
            argument = use.arguments[key]
            if value == {"from": "user"}:
                if not stands(argument, [self.user]):
                    return False
            elif value == {"from": "tool"}:
                if not stands(argument, texts):
                    return False
            elif not same_json(argument, value):
                return False
        return True

    def answer(self, check: dict[str, Any]) -> bool:
        names = [use.call.name for _, use in self.calls]
        if "called" in check:
            limit = len(self.steps)
            if check.get("before") == "reply":
                limit = min((n for n, _ in self.replies), default=limit)
            elif "before" in check:
                limit = min((n for n, use in self.calls if use.call.name == check["before"]), default=limit)
            return any(
                use.call.name == check["called"]
                and n < limit
                and self.fits(n, use, check.get("with", {}))
                and (
                    use.status == "ok"
                    or ("failed" in check and use.status == "failed")
                    or (check.get("kind") == "avoid" and "succeeded" not in check)
                )
                for n, use in self.calls
            )
        if "never_called" in check:
            banned = check["never_called"]
            return not set(names) & set([banned] if isinstance(banned, str) else banned)
        if "at_most" in check:
            most = check["at_most"]
            return len(names) <= most if isinstance(most, int) else all(names.count(t) <= n for t, n in most.items())
        if "no_tool_error" in check:
            tools = check["no_tool_error"]
            own = names if tools is True else [tools] if isinstance(tools, str) else tools
            return not any(use.status == "failed" and use.call.name in own for _, use in self.calls)
        if "only_called" in check:
            done = [(n, use) for n, use in self.calls if use.call.name in check["among"] and use.status == "ok"]
            return self.assigned(done, list(check["only_called"]))
        if "replied" in check:
            return bool(self.replies)
        if "user_matches" in check:
            return any(re.search(check["user_matches"], text) for text in self.user_messages)
        return any(re.search(check["reply_matches"], text) for _, text in self.replies)

    def assigned(self, done: list[tuple[int, ToolUse]], listed: list[dict[str, Any]]) -> bool:
        """Some way of giving each call a listed one of its own."""
        if not done:
            return True
        (number, use), rest = done[0], done[1:]
        return any(
            one["called"] == use.call.name
            and self.fits(number, use, one["with"])
            and self.assigned(rest, listed[:at] + listed[at + 1 :])
            for at, one in enumerate(listed)
        )


def expected(one: Trace, at: int | None, check: dict[str, Any], kind: str) -> tuple[bool, int | None]:
    """Value and first true row, by asking after every step."""
    steps = len(one.steps if at is None else one.turns[at].steps)
    if not steps:
        return False, None
    answers = [Plainly(one, at, seen).answer({**check, "kind": kind}) for seen in range(1, steps + 1)]
    if kind == "reach":
        return any(answers), answers.index(True) + 1 if any(answers) else None
    good = answers[-1] if kind == "hold" else not any(answers)
    return good, steps if good else None


def holds_as_defined(parts: list[list[Any]], check: Any, definition: dict[str, Any], as_kind: str, **keys: Any) -> None:
    one = trace_of_runs(parts)
    items = [Item("each", check=check, **keys), Item("block", check=check, turn="trace", **keys)]
    score = ChecklistScorer(Checklist(*items), check_timeout=60).score_sync(one)
    found = [(scope.turn, scope.verdicts[0].value, scope.verdicts[0].step) for scope in score.turns]
    scopes: list[int | None] = [*range(len(one.turns)), None]
    assert found == [(at, *expected(one, at, definition, as_kind)) for at in scopes]


KINDS = st.sampled_from(["reach", "hold", "avoid"])


@given(runs, lasting, KINDS)
def test_lasting_checks(parts: list[list[Any]], check: dict[str, Any], kind: str) -> None:
    holds_as_defined(parts, check, check, kind, kind=kind)


@given(runs, ends_decided)
def test_checks_that_are_decided_at_the_end(parts: list[list[Any]], check: dict[str, Any]) -> None:
    holds_as_defined(parts, check, check, "hold")


@given(runs, lasting, KINDS)
def test_a_function_of_a_view_answers_the_same(parts: list[list[Any]], check: dict[str, Any], kind: str) -> None:
    """What a view says of one prefix after another, from what all of them share."""
    assume("called" not in check or kind != "avoid")  # where a call is forbidden, one that failed counts too

    def asks(view: View) -> bool:
        if "called" in check:
            keys: dict[str, Any] = {
                "with_": check.get("with"),
                "before": check.get("before"),
                "failed": "failed" in check,
            }
            return view.called(check["called"], **keys)
        if "replied" in check:
            return bool(view.replies)
        if "user_matches" in check:
            seen = {step.number for step in view.steps}
            turns = [part for part in (view.turns if view.turn is None else view.turns[-1:]) if part.steps]
            opened = [part for part in turns if part.steps[0].number in seen]
            return any(re.search(check["user_matches"], m.text) for part in opened for m in part.user)
        return any(re.search(check["reply_matches"], text) for text in view.replies)

    holds_as_defined(parts, asks, check, kind, kind=kind)


def test_more_calls_than_are_listed_are_no_matching() -> None:
    listed = {"only_called": [{"called": "pay"}], "among": ["pay"]}
    for calls, value in ((1, True), (2, False)):
        score = ChecklistScorer(Checklist(Item("it", check=listed))).score_sync(
            trace(turn("Pay", *(call("pay") for _ in range(calls))))
        )
        assert score.verdicts[0].value is value


def test_two_calls_of_one_step_are_none_before_the_other() -> None:
    both = turn("Go on", two_calls("look", "pay", 1, True), call("look"))
    holds_as_defined([[both]], {"called": "look", "before": "pay"}, {"called": "look", "before": "pay"}, "reach")
    holds_as_defined([[both]], {"called": "pay", "before": "look"}, {"called": "pay", "before": "look"}, "reach")


# -- what became of the calls

CALLS = st.lists(st.tuples(TOOLS, st.sampled_from(["ok", "answered", "failed", "not_run", "invalid"])), max_size=4)


def outcome(name: str, status: str) -> list[Message]:
    """A step with one call of that status."""
    call = ToolCall(id="c", name=name, arguments="{broken" if status == "invalid" else {"v": "A-9"})
    answer = {
        "ok": ToolCallResponse(id="c", response="done"),
        "answered": ToolCallResponse(id="c", response="done", extra={FAILURE_UNKNOWN: True}),
        "failed": ToolCallResponse(id="c", response="no", error=True),
        "invalid": ToolCallResponse(id="c", response="cannot be read", error=True),
    }.get(status)
    said = [] if answer is None else [Message(role="tool", parts=(answer,))]
    return [Message.of("assistant", "", [call]), *said]


def verdict(check: Any, calls: list[tuple[str, str]], **keys: Any) -> tuple[bool | None, str | None]:
    one = trace(turn("A-9", *(outcome(*call) for call in calls), say("Done")))
    assert [call.status for call in View.of(one).all_calls] == [status for _, status in calls]
    [found] = ChecklistScorer(Checklist(Item("it", check=check, **keys))).score_sync(one).verdicts
    return found.value, found.reason


@given(CALLS, TOOLS)
def test_what_became_of_a_call_decides_what_it_counts_for(calls: list[tuple[str, str]], tool: str) -> None:
    own = [status for name, status in calls if name == tool]
    assert verdict({"called": tool}, calls)[0] is any(status in ("ok", "answered") for status in own)
    assert verdict({"called": tool, "failed": "allowed"}, calls)[0] is any(
        status in ("ok", "answered", "failed") for status in own
    )
    known = True if "ok" in own else None if "answered" in own else False
    assert verdict({"called": tool, "succeeded": True}, calls)[0] is known
    assert verdict({"never_called": tool}, calls)[0] is (not own)
    assert verdict({"at_most": {tool: 1}}, calls)[0] is (len(own) <= 1)
    clean = False if {"failed", "invalid"} & {*own} else None if "answered" in own else True
    assert verdict({"no_tool_error": tool}, calls)[0] is clean
    writes = {"only_called": [{"called": tool}], "among": [tool]}
    done = [status for status in own if status in ("ok", "answered")]
    assert verdict(writes, calls)[0] is (True if len(done) <= 1 else None if done.count("ok") <= 1 else False)


@given(CALLS, st.integers(0, 3), st.sampled_from(["failed", "not_run", "invalid"]), lasting)
def test_a_call_that_breaks_never_earns_anything(
    calls: list[tuple[str, str]], at: int, status: str, check: dict[str, Any]
) -> None:
    if at < len(calls):
        broken = [(name, status if place == at else before) for place, (name, before) in enumerate(calls)]
        if "failed" in check:
            broken = [(name, "not_run" if became == "failed" else became) for name, became in broken]
        assert not (verdict(check, broken)[0] and verdict(check, calls)[0] is False)
        for forbidden in ({"never_called": "look"}, {"at_most": 1}, {"at_most": {"look": 1}}):
            assert verdict(forbidden, broken) == verdict(forbidden, calls)
        assert verdict({"called": "look"}, broken, kind="avoid") == verdict({"called": "look"}, calls, kind="avoid")


def test_an_unknown_failure_is_a_null_of_the_recording() -> None:
    one = trace(turn("Hi", outcome("pay", "answered"), say("Done")))
    [found] = ChecklistScorer(Checklist(Item("it", check={"no_tool_error": True}))).score_sync(one).verdicts
    assert (found.value, found.reason, found.cause) == (None, "failure not recorded", "infrastructure")
    assert "--error-pattern" in (found.explanation or "")


def test_words_that_read_like_an_error_earn_nothing_and_excuse_nothing() -> None:
    """A tool may answer with the agent's own words."""
    echo = call("note", "Error: nothing happened", text="Error: nothing happened")
    one = trace(turn("Hi", echo, say("Done")))

    def value(check: dict[str, Any]) -> bool | None:
        return ChecklistScorer(Checklist(Item("it", check=check))).score_sync(one).verdicts[0].value

    assert value({"called": "note"}) is False
    assert value({"never_called": "note"}) is False
    assert value({"only_called": [], "among": ["note"]}) is False
    assert value({"at_most": 0}) is False
    assert value({"no_tool_error": True}) is False


@pytest.mark.parametrize("answered", [True, False])
def test_a_call_that_was_broken_is_no_clean_one_whatever_came_of_it(answered: bool) -> None:
    broken = Message(role="assistant", parts=(ToolCall(id="c", name="get_order", arguments="{bad"),))
    answer = [Message(role="tool", parts=(ToolCallResponse(id="c", response="fine"),))] if answered else []
    one = trace(turn("Where is 7?", [broken, *answer], say("Soon.")))
    [found] = ChecklistScorer(Checklist(Item("it", check={"no_tool_error": True}))).score_sync(one).verdicts
    assert found.value is False
