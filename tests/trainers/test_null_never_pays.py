"""What a policy can make of an honest failure: at no level, norm or size does breaking the judge, a check or the gate
do better for a token, in the ranking, in selection or in pairs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm2_agent.trainers.advantage import GroupAdvantages, advantages
from cm2_agent.trainers.preference_pairs import pairs_of
from cm2_agent.types.group import Group, Rollout
from cm2_agent.types.messages import Message
from cm2_agent.types.run import Run
from cm2_agent.types.score import Score, TurnScore, Verdict
from cm2_agent.types.trace import Trace

LEVELS = ("trajectory", "turn", "step", "return_to_go", "evidence")
NORMED = [(level, norm) for level in LEVELS for norm in ("none", "std") if norm == "none" or level in LEVELS[:3]]


@dataclass(frozen=True)
class Scope:
    """A turn's items: weights that sum to 1, their prerequisites with λ (0: hard), which of them are strict, and which
    are any of others (they have no prerequisites here)."""

    weights: tuple[float, ...]
    parents: tuple[tuple[tuple[int, float], ...], ...]
    strict: frozenset[int]
    rests: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class Attempt:
    """How one turn went: its steps, and of each item the step of its own flip, None (it fails) or "?" (NULL)."""

    steps: int
    own: tuple[int | str | None, ...]


def verdicts_of(scope: Scope, attempt: Attempt | None) -> list[Verdict]:
    """The verdicts of a turn, in the order of its items, whose prerequisites come before them (docs/method.md §3–4)."""
    made: list[Verdict] = []
    factors: list[float] = []
    for item, (weight, parents) in enumerate(zip(scope.weights, scope.parents, strict=True)):
        own = None if attempt is None else attempt.own[item]
        if scope.rests and scope.rests[item]:
            made.append(any_of([made[child] for child in scope.rests[item]], item=f"C{item}", weight=weight))
            factors.append(made[-1].pays or 1.0)
            continue
        hard = [made[parent] for parent, share in parents if not share]
        known: Any = {"depends_on": tuple(parent for parent, _ in parents), "item": f"C{item}", "weight": weight}
        if any(share for _, share in parents):
            known["soft"] = tuple(share for _, share in parents)
        factor = 1.0
        for parent, share in parents:
            above = made[parent]
            before = isinstance(own, int) and above.step is not None and above.step < own
            q = (above.pays or 0.0) if before else 0.0
            factor *= q + (1 - q) * share if share else factors[parent]
        factors.append(factor)
        if any(one.value is False for one in hard):
            made.append(Verdict(value=False, paid=False, reason="dependency", **known))
        elif any(one.value is None for one in hard):
            made.append(Verdict(value=None, cause="content", reason="dependency", **known))
        elif own == "?":
            made.append(Verdict(value=None, cause="content", **known))
        elif own is None:
            made.append(Verdict(value=False, paid=False, **known))
        else:
            paid = all(one.step is not None and one.step < int(own) for one in hard)
            payment = factor if paid and factor < 1 else None
            made.append(Verdict(value=True, step=int(own), paid=paid, payment=payment, **known))
    return made


def any_of(items: Sequence[Verdict], **known: Any) -> Verdict:
    """The verdict on what is any of these: satisfied by the earliest that is paid, worth the best paid of them."""
    paid = [one for one in items if one.pays]
    hidden = any(one.value is None or one.reason == "any_of" for one in items)
    if paid:
        worth = max(one.pays or 0.0 for one in paid)
        step = min(one.step or 0 for one in paid)
        payment, reason = worth if worth < 1 else None, "any_of" if hidden else None
        return Verdict(value=True, step=step, paid=True, payment=payment, reason=reason, **known)
    if any(one.value is None for one in items):
        return Verdict(value=None, cause="content", reason="any_of", **known)
    return Verdict(value=False, paid=False, **known)


def score_of(scopes: Sequence[Scope], attempts: Sequence[Attempt], name: str, closing: Scope | None) -> Score:
    """The score of a dialogue that goes on as long as its strict items are true; the closing block's attempt is the
    last."""
    turns: list[TurnScore] = []
    reason, open_ = None, True
    own, block = (attempts[:-1], attempts[-1]) if closing is not None else (attempts, None)
    for number, (scope, attempt) in enumerate(zip(scopes, own, strict=True)):
        verdicts = verdicts_of(scope, attempt if open_ else None)
        steps = attempt.steps if open_ else 0
        turns.append(TurnScore(turn=number, reached=open_, steps=steps, reward=None, verdicts=tuple(verdicts)))
        values = [verdicts[item].value for item in sorted(scope.strict)]
        if open_ and number < len(scopes) - 1 and not all(values):
            open_ = False
            reason = None if False in values else "gate undecided"
    if closing is not None and block is not None:
        steps = sum(turn.steps for turn in turns)
        verdicts = verdicts_of(closing, Attempt(steps, block.own))
        turns.append(TurnScore(turn=None, reached=True, steps=steps, reward=None, verdicts=tuple(verdicts)))
    whole = all(one.pays is not None for turn in turns for one in turn.verdicts)
    earned = math.fsum(one.weight * (one.pays or 0) for turn in turns for one in turn.verdicts) / len(turns)
    return Score(
        trace_id=name,
        reward_version="v1",
        reward=earned if whole and reason is None else None,
        null_reason=reason or (None if whole else "verdicts"),
        turns=tuple(turns),
    )


# -- groups, and what becomes of one rollout


@st.composite
def scope(draw: st.DrawFn, gated: bool) -> Scope:
    items = draw(st.integers(1, 4))
    raw = [draw(st.integers(1, 9)) for _ in range(items)]
    parents = tuple(
        tuple(
            (parent, draw(st.sampled_from([0.0, 0.0, 0.3, 0.6])))
            for parent in sorted(draw(st.sets(st.integers(0, item - 1), max_size=2)) if item else ())
        )
        for item in range(items)
    )
    strict = draw(st.frozensets(st.integers(0, items - 1), max_size=2)) if gated else frozenset[int]()
    rests = tuple(
        tuple(sorted(draw(st.sets(st.integers(0, item - 1), min_size=1, max_size=2))))
        if item and draw(st.integers(0, 3)) == 0
        else ()
        for item in range(items)
    )
    parents = tuple(() if rests[item] else parents[item] for item in range(items))
    return Scope(tuple(weight / sum(raw) for weight in raw), parents, strict, rests)


@st.composite
def broken_groups(draw: st.DrawFn, blocks: bool = True) -> tuple[list[Score], list[Score], int]:
    """A group, the same with some verdicts of one rollout made NULL by its policy, and which rollout that is."""
    gated, block = draw(st.booleans()), blocks and draw(st.booleans())
    scopes = [draw(scope(gated)) for _ in range(draw(st.integers(1, 3)))]
    closing = draw(scope(False)) if block else None
    size = draw(st.integers(2, 6))
    rollouts = []
    for _ in range(size):
        attempts = []
        for one in [*scopes, *([closing] if closing else [])]:
            steps = draw(st.integers(1, 4))
            state = st.none() | st.just("?") | st.integers(1, steps)
            attempts.append(Attempt(steps, tuple(draw(state) for _ in one.weights)))
        rollouts.append(attempts)
    at = draw(st.integers(0, size - 1))
    broken = [
        replace(attempt, own=tuple("?" if draw(st.booleans()) else own for own in attempt.own))
        for attempt in rollouts[at]
    ]
    before = [score_of(scopes, attempts, str(number), closing) for number, attempts in enumerate(rollouts)]
    after = [*before]
    after[at] = score_of(scopes, broken, str(at), closing)
    return before, after, at


def tokens(group: GroupAdvantages, at: int) -> dict[tuple[int, int], float]:
    """The advantage of each step of a rollout's turns."""
    one = group.rollouts[at]
    return {(turn, step): value for turn, values in one.steps.items() for step, value in enumerate(values)}


@pytest.mark.parametrize(("level", "norm"), NORMED)
@given(data=st.data())
def test_no_token_gains_by_a_null(level: Any, norm: Any, data: st.DataObject) -> None:
    before, after, at = data.draw(broken_groups(blocks=level not in ("turn", "step")))
    was, now = advantages(before, level=level, norm=norm), advantages(after, level=level, norm=norm)
    old, new = tokens(was, at), tokens(now, at)
    assert new.keys() <= old.keys(), "a gate that was closed does not open"
    for place, value in new.items():
        assert value <= old[place] + 1e-9, place
    if level == "trajectory":
        assert (now.rollouts[at].scalar or 0.0) <= (was.rollouts[at].scalar or 0.0) + 1e-9


def as_group(scores: Sequence[Score]) -> Group:
    asks = Message.of("user", "Where is order 7?")
    rollouts = [
        Rollout(trace=Trace.of(Run(id=one.trace_id, messages=(asks, Message.of("assistant", one.trace_id)))), score=one)
        for one in scores
    ]
    return Group(key={"task": "where", "reward": "v1"}, rollouts=tuple(rollouts))


@given(broken_groups(), st.sampled_from([0.01, 0.2, 0.5]))
def test_no_rank_and_no_choice_gains_by_a_null(groups: tuple[list[Score], list[Score], int], margin: float) -> None:
    before, after, at = groups

    def better(scores: Sequence[Score]) -> set[str]:
        return {one.trace_id for one in scores if (one.lower or 0) > (scores[at].lower or 0) + 1e-12}

    assert better(before) <= better(after)
    old, new = (pairs_of(as_group(scores), margin=margin) for scores in (before, after))

    def beaten(pairs: list[Any], side: str, other: str) -> set[str]:
        return {pair[other][0]["content"] for pair in pairs if pair[side][0]["content"] == str(at)}

    assert beaten(new, "chosen", "rejected") <= beaten(old, "chosen", "rejected"), (
        "it is preferred to no other than before"
    )
    assert beaten(new, "rejected", "chosen") >= beaten(old, "rejected", "chosen"), "and rejected for all as before"


def test_the_largest_gain_from_breaking_the_judge(capsys: pytest.CaptureFixture[str]) -> None:
    """All groups of up to four rollouts with one item, and of up to three with two where one needs the other; at every
    level and norm. It was +0.33 where a NULL was left out of its item's mean."""
    gains: dict[tuple[str, str], float] = {}
    one = Scope((1.0,), ((),), frozenset())
    two = Scope((0.4, 0.6), ((), ((0, 0.0),)), frozenset())
    for shape, sizes in ((one, (2, 3, 4)), (two, (2, 3))):
        states = [Attempt(2, own) for own in itertools.product((1, 2, None), repeat=len(shape.weights))]
        for size in sizes:
            for drawn in itertools.combinations_with_replacement(states, size - 1):
                others = [score_of([shape], [own], str(number), None) for number, own in enumerate(drawn)]
                for honest in states:
                    group = [score_of([shape], [honest], "own", None), *others]
                    for nulls in itertools.product((False, True), repeat=len(shape.weights)):
                        if not any(nulls):
                            continue
                        own = tuple("?" if null else was for null, was in zip(nulls, honest.own, strict=True))
                        broken = [score_of([shape], [Attempt(2, own)], "own", None), *others]
                        for level, norm in NORMED:
                            was = tokens(advantages(group, level=level, norm=norm), 0)  # type: ignore[arg-type]
                            now = tokens(advantages(broken, level=level, norm=norm), 0)  # type: ignore[arg-type]
                            gain = max(now[place] - was[place] for place in was)
                            gains[level, norm] = max(gain, gains.get((level, norm), -math.inf))
    with capsys.disabled():
        print(
            "\nlargest gain from a NULL:", {f"{level}/{norm}": round(gain, 4) for (level, norm), gain in gains.items()}
        )
    assert set(gains) == set(NORMED)
    assert max(gains.values()) <= 1e-9
