"""Scoring whole traces: every kind × scope × way to end, L, the gate, censoring, failures. All numbers are by hand."""

from __future__ import annotations

import pytest

from cm2_agent.errors import ChecklistError
from cm2_agent.rewards.scoring.scorer import ChecklistScorer
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.checklist_item import Item
from cm2_agent.types.score import Score, TurnScore, Verdict
from cm2_agent.types.task import Task, check_trainable
from cm2_agent.types.trace import Trace
from cm2_agent.types.view import View
from tests.rewards.talk import call, say, trace, trace_of_runs, turn

LOOKS = turn("Where is order 7?", call("get_order", {"date": "May 3"}, order_id=7), say("It comes on May 3."))
TWO = (LOOKS, turn("Cancel.", say("Done.")))


def verdict(score: Score, item: str, at: int | None = 0) -> Verdict:
    scope = next(one for one in score.turns if one.turn == at)
    return next(one for one in scope.verdicts if one.item == item)


def scored(checklist: Checklist, one: Trace, task: Task | None = None) -> Score:
    return ChecklistScorer(checklist).score_sync(one, task)


# -- kinds, in a turn and in the closing block, whole and cut


def polite(view: View) -> bool:
    "True while the last thing said holds a please; undone by the next reply."
    return "please" in view.reply


def promises(view: View) -> bool:
    return any("promise" in reply for reply in view.replies)


KINDS = Checklist(
    *(
        Item(f"{kind}.{check.__name__}.{scope}", check=check, kind=kind, turn=scope)
        for kind in ("reach", "hold", "avoid")
        for check in (polite, promises)
        for scope in (0, "trace")
    )
)
UNDONE = turn("Hi", say("please wait"), call("x"), say("I promise"))
HELD = turn("Hi", call("x"), say("please wait"))


def columns(score: Score) -> dict[str, int | None]:
    return {one.item: one.step for one in score.verdicts}


def test_every_kind_in_turn_and_block_by_hand() -> None:
    assert columns(scored(KINDS, trace(UNDONE))) == {
        "reach.polite.0": 1,
        "reach.polite.trace": 1,  # from the first step on, whatever comes later
        "reach.promises.0": 3,
        "reach.promises.trace": 3,
        "hold.polite.0": None,
        "hold.polite.trace": None,  # undone by the last reply
        "hold.promises.0": 3,
        "hold.promises.trace": 3,
        "avoid.polite.0": None,
        "avoid.polite.trace": None,  # yes at step 1 is the violation
        "avoid.promises.0": None,
        "avoid.promises.trace": None,
    }
    assert columns(scored(KINDS, trace(HELD))) == {
        "reach.polite.0": 2,
        "reach.polite.trace": 2,
        "reach.promises.0": None,
        "reach.promises.trace": None,
        "hold.polite.0": 2,
        "hold.polite.trace": 2,
        "hold.promises.0": None,
        "hold.promises.trace": None,
        "avoid.polite.0": None,
        "avoid.polite.trace": None,
        "avoid.promises.0": 2,
        "avoid.promises.trace": 2,  # in the last row only: step 1 could not know yet
    }


def test_the_scope_of_the_block_is_the_dialogue_and_of_a_turn_the_turn() -> None:
    score = scored(KINDS, trace(HELD, turn("And?", say("I promise"))))
    assert columns(score)["avoid.promises.0"] == 2, "what a later turn does is another turn's"
    assert columns(score)["avoid.promises.trace"] is None
    assert columns(score)["reach.promises.trace"] == 3
    assert columns(score)["hold.polite.trace"] is None
    assert [one.steps for one in score.turns] == [2, 3]


CUT_SHORT = turn("Hi", say("please wait"), call("x"))


def test_a_turn_cut_by_a_limit_keeps_reach_and_loses_hold_and_avoid() -> None:
    score = scored(KINDS, trace(CUT_SHORT, cm2_cut="steps"))
    assert columns(score) == {**dict.fromkeys(columns(score)), "reach.polite.0": 1, "reach.polite.trace": 1}
    assert verdict(score, "avoid.promises.0").reason == "limit"
    assert verdict(score, "hold.promises.trace", None).reason == "limit"
    whole = columns(scored(KINDS, trace(CUT_SHORT)))
    assert whole["avoid.promises.0"] == 2, "without the limit the same steps hold it"


def test_a_limit_after_the_reply_cuts_the_block_alone() -> None:
    score = scored(KINDS, trace(HELD, cm2_cut="turns"))
    assert columns(score)["hold.polite.0"] == 2
    assert columns(score)["hold.polite.trace"] is None
    assert columns(score)["reach.polite.trace"] == 2


def test_a_limit_in_an_earlier_run_cuts_the_turn_it_fell_in_and_not_the_block() -> None:
    both = Checklist(
        Item("quiet", check=promises, kind="avoid"), Item("all_quiet", check=promises, kind="avoid", turn="trace")
    )
    score = scored(both, trace_of_runs([[CUT_SHORT], [turn("Go on", say("fine"))]], first={"cm2_cut": "steps"}))
    assert [one.value for one in score.verdicts] == [False, True, True]
    went_on = trace_of_runs([[CUT_SHORT], [[*say("so it is")]]], first={"cm2_cut": "steps"})
    assert [one.value for one in scored(both, went_on).verdicts] == [True, True], (
        "a turn that a later run finished was not cut"
    )


def test_a_reply_broken_off_by_the_limit_of_tokens_is_no_end_of_the_turn() -> None:
    one = trace(HELD, cm2_cut="tokens")
    broken = (
        one.runs[0]
        .messages[-1]
        .__class__(role="assistant", parts=one.runs[0].messages[-1].parts, finish_reason="length")
    )
    run = one.runs[0].__class__(**{**one.runs[0].__dict__, "messages": (*one.runs[0].messages[:-1], broken)})
    assert columns(scored(KINDS, Trace(id="t", runs=(run,))))["hold.polite.0"] is None


def test_the_gate_cuts_the_block_and_leaves_its_turn_whole() -> None:
    score = scored(KINDS, trace(HELD, cm2_gate_turn=0, cm2_task_turns=2, cm2_gate_checklist=KINDS.hash))
    assert columns(score)["hold.polite.0"] == 2
    assert columns(score)["hold.polite.trace"] is None
    assert verdict(score, "avoid.promises.trace", None).reason == "gate"
    assert columns(score)["reach.polite.trace"] == 2


def test_the_judged_step_is_always_in_the_view() -> None:
    """The paper's released code showed the last turn's judge the user's message alone."""
    seen: list[tuple[int | None, int, str, bool]] = []

    def look(view: View) -> bool:
        seen.append((view.turn, view.seen, view.reply, view.ended))
        return False

    scored(Checklist(Item("each", check=look), Item("end", check=look, turn="trace")), trace(*TWO))
    assert seen == [
        (0, 1, "", False),
        (0, 2, "It comes on May 3.", True),
        (1, 1, "Done.", True),
        (None, 1, "", False),
        (None, 2, "It comes on May 3.", False),
        (None, 3, "Done.", True),
    ]


# -- L, and turns that did not happen

EACH = Item("replied", check={"replied": True})
OWN = Item("cancelled", check={"called": "cancel"}, turn=1)
BLOCK = Item("no_refund", check={"never_called": "refund"}, turn="trace")


@pytest.mark.parametrize(
    ("items", "one", "task", "length", "reward"),
    [
        ([EACH], trace(*TWO), None, 2, 1.0),  # live: the turns that happened
        ([EACH, BLOCK], trace(*TWO), None, 3, 1.0),  # + 1 for the block
        ([EACH, OWN], trace(TWO[0]), None, 2, 0.5),  # largest k + 1
        ([OWN], trace(*TWO), None, 1, 0.0),  # turns without items do not count
        ([EACH, OWN], trace(*TWO, turn("More", say("yes"))), None, 2, 0.75),  # turns beyond L do not, either
        (
            [EACH],
            trace(TWO[0], cm2_task_turns=3, cm2_gate_turn=0),
            None,
            3,
            None,
        ),  # another gate's trace: see censoring
        ([EACH], trace(TWO[0], cm2_task_turns=3, cm2_cut="steps"), None, 3, 1 / 3),  # the task's scripted turns
        ([EACH], trace(TWO[0], cm2_cut="steps"), Task(id="a", turns=("x", "y")), 2, 0.5),
        ([EACH, OWN], trace(TWO[0]), Task(id="a", turns=("x",)), 1, 1.0),  # the task decides, not the items
        ([EACH, BLOCK], trace(TWO[0]), Task(id="a", persona="an angry man"), 2, 1.0),
    ],
)
def test_length_and_reward(items: list[Item], one: Trace, task: Task | None, length: int, reward: float | None) -> None:
    score = scored(Checklist(*items), one, task)
    assert score.length == length
    assert score.reward == (None if reward is None else pytest.approx(reward, abs=1e-12))


def test_an_unreached_turn_is_judged_and_unpaid() -> None:
    score = scored(Checklist(EACH, OWN), trace(TWO[0], cm2_task_turns=2, cm2_cut="steps"))
    assert score.turns[1] == TurnScore(
        turn=1,
        reached=False,
        steps=0,
        reward=0.0,
        verdicts=(
            Verdict(item="replied", value=False, weight=0.5, paid=False, reason="limit"),
            Verdict(item="cancelled", value=False, weight=0.5, paid=False, reason="limit"),
        ),
    )


def test_a_user_message_that_nobody_answers_opens_no_turn() -> None:
    assert scored(Checklist(EACH), trace(*TWO, [*turn("Still there?")])).length == 2


def test_the_order_of_weights_is_relative_within_a_turn() -> None:
    heavy = Checklist(
        Item("a", check={"called": "get_order"}, turn=0, weight=30),
        Item("b", check={"called": "none"}, turn=0, weight=10),
    )
    assert scored(heavy, trace(*TWO)).reward == pytest.approx(0.75)


# -- what has no reward


@pytest.mark.parametrize("kind", ["ToolError", "ModelError", "ZeroDivisionError"])
def test_a_dialogue_that_died_has_no_reward(kind: str) -> None:
    score = scored(Checklist(EACH), trace(*TWO, failure=kind))
    assert (score.reward, score.null_reason, score.turns) == (None, f"failure: {kind}", ())


def test_errors_without_a_failure_and_cancelled_runs_have_none_either() -> None:
    assert scored(Checklist(EACH), trace(*TWO, status="cancelled")).null_reason == "failure: cancelled"
    assert scored(Checklist(EACH), trace(*TWO, status="error")).null_reason == "failure: error"
    assert scored(Checklist(EACH), trace(*TWO, status="interrupted")).reward == 1.0


def test_nothing_happened_and_nothing_counts() -> None:
    assert scored(Checklist(EACH), Trace(id="t", runs=())).null_reason == "no turn"
    assert scored(Checklist(EACH, BLOCK), trace([])).null_reason == "no turn"
    assert scored(Checklist(OWN), trace(*TWO), Task(id="a", turns=("one",))).null_reason == "no turn"
    limited = scored(Checklist(EACH), trace([], cm2_task_turns=2, cm2_cut="tokens"))
    assert limited.reward == 0.0, "a limit before the first step leaves every turn unreached"


def test_without_a_checklist_there_is_no_reward_and_a_tasks_own_serves() -> None:
    scorer = ChecklistScorer()
    assert scorer.score_sync(trace(*TWO)).null_reason == "no checklist"
    items = [{"id": "r", "check": {"replied": True}}]
    own = Task.model_validate({"id": "a", "turns": ["x", "y"], "checklist": {"name": "own", "items": items}})
    score = scorer.score_sync(trace(*TWO), own)
    checklist = own.own_checklist()
    assert checklist is not None
    assert (score.reward, score.checklist) == (1.0, checklist.hash)
    assert score.reward_version == scorer.version == "task-checklists;code=5"


def test_the_version_names_what_could_change_the_number() -> None:
    one = Checklist(EACH, name="support", version=3)
    versions = {
        ChecklistScorer(one).version,
        ChecklistScorer(one, tolerance=0.1).version,
        ChecklistScorer(Checklist(EACH, BLOCK, name="support", version=3)).version,
        ChecklistScorer(Checklist(EACH, name="support", version=4)).version,
    }
    assert len(versions) == 4
    assert ChecklistScorer(one).version == f"support@3:{one.hash[:12]};code=5"


# -- the gate and censoring

STRICT = Checklist(
    Item("looked_up", check={"called": "get_order"}, turn=0, required_for_next_turn=True), EACH, name="strict"
)
LOOSER = Checklist(Item("looked_up", check={"called": "get_order"}, turn=0), EACH, name="strict", version=2)


async def test_the_gate_asks_the_strict_items_of_its_turn() -> None:
    scorer = ChecklistScorer(STRICT)
    assert await scorer.gate(trace(TWO[0]), 0) is True
    assert await scorer.gate(trace(turn("Where?", say("No idea"))), 0) is False
    assert await scorer.gate(trace(*TWO), 1) is True, "no strict item in that turn"
    assert await scorer.gate(trace([]), 0) is False, "nothing was answered"
    assert await scorer.gate(trace(TWO[0], failure="ToolError"), 0) is None
    assert (scorer.gate_hash(), ChecklistScorer(LOOSER).gate_hash(), ChecklistScorer().gate_hash()) == (
        STRICT.hash,
        None,
        None,
    )


async def test_a_strict_item_counts_after_its_dependencies() -> None:
    ordered = Checklist(
        Item("first", check={"called": "a"}, turn=0),
        Item("then", check={"called": "b"}, turn=0, depends_on=["first"], required_for_next_turn=True),
    )
    gate = ChecklistScorer(ordered).gate
    assert await gate(trace(turn("x", call("a"), call("b"), say("y"))), 0) is True
    assert await gate(trace(turn("x", call("b"), call("a"), say("y"))), 0) is True, "satisfied, though unpaid"
    assert await gate(trace(turn("x", call("b"), say("y"))), 0) is False, "false with its prerequisite"


async def test_a_strict_item_without_a_verdict_leaves_the_rollout_unscored() -> None:
    judged = Checklist(Item("kind", "Is it kind?", turn=0, required_for_next_turn=True), EACH, EACH_TWO, EACH_THREE)
    scorer = ChecklistScorer(judged)
    assert await scorer.gate(trace(TWO[0]), 0) is None
    waiting = trace(TWO[0], cm2_task_turns=2, cm2_gate_checklist=judged.hash)
    assert scorer.score_sync(waiting).null_reason == "gate undecided", (
        "an unreached turn must not count as 0 for a judge's failure"
    )
    assert scorer.score_sync(trace(*TWO, cm2_task_turns=2)).reward == 1.0, (
        "1 of 8 is within the tolerance once both turns happened"
    )
    assert scorer.score_sync(trace(TWO[0], cm2_task_turns=2, cm2_cut="verdict")).null_reason == "gate undecided"


EACH_TWO = Item("quiet", check={"never_called": "refund"})
EACH_THREE = Item("clean", check={"no_tool_error": True})


def test_a_gated_trace_is_censored_where_another_gate_would_have_passed() -> None:
    stopped = trace(turn("Where?", say("No idea")), cm2_task_turns=2, cm2_gate_turn=0, cm2_gate_checklist=STRICT.hash)
    assert scored(STRICT, stopped).reward == pytest.approx((0.5 + 0) / 2)
    censored = scored(LOOSER, stopped)
    assert (censored.reward, censored.null_reason) == (None, "censored")
    harder = Checklist(
        *STRICT.items,
        Item("ended", check={"called": "bye"}, turn=0, required_for_next_turn=True),
        name="strict",
        version=3,
    )
    assert scored(harder, stopped).reward == pytest.approx((1 / 3 + 0) / 2), "this gate would have closed too"
    assert scored(LOOSER, trace(*TWO, cm2_task_turns=2, cm2_gate_checklist=STRICT.hash)).reward == 1.0, (
        "the gate never closed"
    )


# -- what may be trained on


def test_a_simulated_user_takes_trace_items_only() -> None:
    simulated = Task(id="a", persona="an angry man")
    with pytest.raises(ChecklistError, match=r"replied.*turn: trace"):
        check_trainable(Checklist(EACH, BLOCK), simulated)
    check_trainable(Checklist(BLOCK), simulated)
    check_trainable(Checklist(EACH), Task(id="a", turns=("x",)))
    with pytest.raises(ChecklistError, match=r"no item in the 1 turns.*cancelled"):
        check_trainable(Checklist(OWN), Task(id="a", turns=("x",)))
    with pytest.raises(ChecklistError, match="has no checklist"):
        check_trainable(None, simulated)


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ChecklistError, match="tolerance is 1"):
        ChecklistScorer(Checklist(EACH), tolerance=1)
