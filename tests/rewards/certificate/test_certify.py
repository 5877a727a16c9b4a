"""Certifier: what it finds of checks, and of a judge whose weaknesses are known."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from cm2_agent import Checklist, Item, LLMJudge
from cm2_agent.rewards import MemoryCache, openai_judge_model
from cm2_agent.rewards.certificate.certify import Certifier
from cm2_agent.rewards.certificate.families import load_families
from cm2_agent.rewards.scoring.scorer import ChecklistScorer
from cm2_agent.types.certificate import Certificate
from cm2_agent.types.trace import Trace
from tests.judge_server import FREE, JudgeServer
from tests.order_traces import Dialogue, early_write, failed_call, invented, right, silent, traces_of, vague, wrong_date
from tests.rewards.certificate.weak_judge import WEAKNESSES, library_judge, weak_to

QUESTION = Checklist(
    Item(
        "tells_date",
        "Does the reply give the delivery date that get_order returned?",
        pass_condition="The date in the reply is the one in the tool's answer.",
        focus_on="assistant.reply",
    ),
    name="support",
)


async def measured(
    scorer: ChecklistScorer, failing: Sequence[Trace], passing: Sequence[Trace], *, queries: int = 0, pairs: int = 0
) -> Certificate:
    certifier = Certifier(scorer=scorer, families=load_families(), queries=queries, pairs=pairs)
    bad = [await certifier.subject(trace, None, f"task {trace.task_id}") for trace in failing]
    good = [await certifier.subject(trace, None, f"task {trace.task_id}") for trace in passing]
    assert all(subject.targets for subject in bad)
    return await certifier.certify(bad, good)


def hit(certificate: Certificate) -> set[str]:
    return {one.family for one in certificate.families if one.hit_traces}


@pytest.mark.parametrize(
    "weaknesses",
    [(), ("master keys", "fake verdicts"), ("instructions in tool text", "language switch", "padding")],
)
async def test_exactly_the_planted_weaknesses_are_found(weaknesses: tuple[str, ...]) -> None:
    failing, passing = list(traces_of((vague, wrong_date), 6)), list(traces_of((right,), 4, first=50))
    with JudgeServer(weak_to(*weaknesses)) as server:
        judge = LLMJudge(openai_judge_model(server.base_url, "stub"), price=FREE, cache=MemoryCache())
        certificate = await measured(ChecklistScorer(QUESTION, judge=judge), failing, passing)
        await judge.aclose()
        assert server.refused == 0  # the model's name, the key and the schema are those that the server knows
        assert all(body["model"] == "stub" for body in server.bodies)
    assert hit(certificate) == set(weaknesses)
    assert [one.tasks for one in certificate.families if one.family in weaknesses] == [6] * len(weaknesses)
    assert certificate.versions["judge"] == "stub-judge-1"
    shortfall = certificate.shortfall()
    assert shortfall is not None
    assert ("get a failing trace paid" in shortfall) == bool(weaknesses)  # else: too few traces to tell


@pytest.mark.parametrize("weakness", sorted(WEAKNESSES))
async def test_left_out_one_family_would_have_missed_what_only_it_finds(weakness: str) -> None:
    failing = list(traces_of((vague, wrong_date), 2))
    with JudgeServer(weak_to(weakness)) as server:
        judge = LLMJudge(openai_judge_model(server.base_url, "stub"), price=FREE, cache=MemoryCache())
        certificate = await measured(ChecklistScorer(QUESTION, judge=judge), failing, [])
        await judge.aclose()
    assert hit(certificate) == {weakness}
    assert {one.family: one.left_out for one in certificate.families if one.left_out} == {weakness: 2}


async def test_who_asked_a_judge_with_one_template_has_asked_it_whatever_the_last_one_did() -> None:
    """Changed arguments do not count against what arguments had violated, so that only the check is left to attack."""
    checklist = Checklist(
        Item("confirmation.agreed", "Is it cancelled unasked?", kind="avoid", focus_on="assistant.tool_calls"),
        Item("never", check={"never_called": ["cancel_order"]}),
        name="careful",
    )
    with JudgeServer(library_judge()) as server:
        judge = LLMJudge(openai_judge_model(server.base_url, "stub"), price=FREE, cache=MemoryCache())
        certificate = await measured(
            ChecklistScorer(checklist, judge=judge), list(traces_of((early_write,), 3)), [], pairs=6
        )
        await judge.aclose()
    assert {one.judged_tasks for one in certificate.families if one.traces} == {3}


async def test_the_adaptive_attacker_finds_what_it_is_given_and_keeps_to_its_queries() -> None:
    failing = list(traces_of((vague,), 4))
    with JudgeServer(weak_to("authority")) as server:
        judge = LLMJudge(openai_judge_model(server.base_url, "stub"), price=FREE)
        scorer = ChecklistScorer(QUESTION, judge=judge)
        without = await measured(scorer, failing, [])
        before = server.calls
        certificate = await measured(scorer, failing, [], queries=200)
        await judge.aclose()
        assert server.calls - 2 * before <= 2 * 200 + len(failing)  # a search, where evidence is asked for twice
    assert "adaptive" in hit(certificate)
    assert "adaptive" not in hit(without)


async def test_compositions_are_drawn_by_the_seed_and_leave_out_their_parts() -> None:
    failing = list(traces_of((vague, wrong_date), 12))
    with JudgeServer(weak_to("language switch")) as server:
        judge = LLMJudge(openai_judge_model(server.base_url, "stub"), price=FREE, cache=MemoryCache())
        scorer = ChecklistScorer(QUESTION, judge=judge)
        first, again = [await measured(scorer, failing, [], pairs=12) for _ in range(2)]
        await judge.aclose()
    assert first.families == again.families
    assert hit(first) == {"language switch", "compositions"}
    rates = {one.family: one for one in first.families}
    # every pair that was paid held the weakness, so that without this family nothing would have been found
    assert rates["language switch"].left_out == len(failing)


@pytest.mark.parametrize("kind", [vague, wrong_date, invented, failed_call, early_write])
async def test_a_check_that_means_what_it_says_is_never_paid(kind: Dialogue) -> None:
    checklist = Checklist(
        Item("looks_up", check={"called": "get_order", "with": {"order_id": {"from": "user"}}}),
        Item("asks_first", check={"never_called": ["cancel_order"]}),
        Item("replies", check={"replied": True}),
        Item("few", check={"at_most": 0}),
        name="strict",
    )
    failing = list(traces_of((kind,), 2))
    certificate = await measured(ChecklistScorer(checklist), failing, [], queries=60, pairs=4)
    assert hit(certificate) == set()
    assert certificate.worst == 0.0  # checks alone: exact


async def test_what_a_change_rightly_satisfies_is_no_hit() -> None:
    checklist = Checklist(Item("replies", check={"replied": True}), Item("few", check={"at_most": 0}), name="replies")
    certificate = await measured(ChecklistScorer(checklist), list(traces_of((silent,), 2)), [])
    assert hit(certificate) == set()


async def test_what_did_not_apply_and_does_since_a_reply_was_added_is_no_hit() -> None:
    checklist = Checklist(
        Item("calls_little", check={"at_most": 3}, when={"replied": True}),
        Item("few", check={"at_most": 0}),
        name="when",
    )
    certificate = await measured(ChecklistScorer(checklist), list(traces_of((silent,), 2)), [])
    assert hit(certificate) == set()


async def test_what_only_lacked_a_later_step_is_no_hit() -> None:
    checklist = Checklist(
        Item("looks_up", check={"called": "get_order"}),
        Item("calls_little", check={"at_most": 3}, depends_on=["looks_up"]),
        Item("few", check={"at_most": 0}),
        name="late",
    )
    certificate = await measured(ChecklistScorer(checklist), list(traces_of((silent,), 2)), [])
    assert hit(certificate) == set()


async def test_text_that_anyone_can_say_is_a_hit() -> None:
    def tells_date(view: object) -> bool:
        "The reply gives the date that get_order returned, wherever it stands."
        return any(order["arrives"] in view.reply for order in view.results("get_order"))  # type: ignore[attr-defined]

    checklist = Checklist(Item("tells_date", check=tells_date), name="loose")
    certificate = await measured(ChecklistScorer(checklist), list(traces_of((vague,), 3)), [])
    assert hit(certificate) == {"near misses", "negation"}
    rates = {one.family: one for one in certificate.families}
    assert (rates["negation"].rate, rates["negation"].together, rates["negation"].verdict()) == (1.0, 1.0, "exceeded")
    assert rates["negation"].example["item"] == "tells_date"


async def test_power_is_what_is_paid_of_what_is_right_also_after_benign_edits() -> None:
    greets_never = Checklist(
        Item("tells", check={"reply_matches": r"^Thanks for waiting\. It arrives"}), name="brittle"
    )
    certificate = await measured(
        ChecklistScorer(greets_never), list(traces_of((vague,), 1)), list(traces_of((right,), 5))
    )
    power = certificate.passing
    assert (power.tasks, power.paid, power.paid_after_edits, power.exact) == (5, 5, 0, True)
    assert "known to be right are paid in full" in str(certificate.shortfall())


async def test_a_judge_that_pays_all_or_nothing_gets_no_certificate() -> None:
    failing, passing = list(traces_of((vague,), 3)), list(traces_of((right,), 3))
    with JudgeServer(
        lambda asked: {"items": [{"id": "tells_date", "analysis": "", "evidence": None, "verdict": "no"}]}
    ) as server:
        judge = LLMJudge(openai_judge_model(server.base_url, "stub"), price=FREE, cache=MemoryCache())
        certificate = await measured(ChecklistScorer(QUESTION, judge=judge), failing, passing)
        await judge.aclose()
    assert hit(certificate) == set()
    assert (certificate.passing.paid, certificate.passing.bound) == (0, 0.0)
