"""A trace as a trainer sees it: which tokens are trained, masked or lost and why, how each call goes on from the ones
before it, and which items earned each step's advantage."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from cm2_agent.types.group import Group
from cm2_agent.types.json_values import JSON
from cm2_agent.types.run import ModelCall
from cm2_agent.types.trace import Step, Trace

from .boundaries import Boundary, CallTokens, boundary
from .dataset import WHOLE_ROUND, by_level, check_credit
from .item_shares import ExplainedStep, explained_steps
from .previous_round import PreviousRound
from .retokenize import rows_from_text
from .round_credits import RoundCredits
from .rows import TEXT_ONLY, TOO_LONG, Credit, Row, rows_of, untrainable_reason
from .token_text import token_texts

Fate: TypeAlias = Literal["trained", "masked", "lost"]
NO_GROUP = "it stands in no group of scored rollouts"
OFF_LINE = "a sub-agent's call: it wrote no step of the dialogue"
SAME_WORTH = "all rollouts of its group are worth the same here"
"""Why GRPO without a KL term leaves a group out."""
READ, AGAIN, WROTE = "read, not written by the model", "read again", "written by the model"


@dataclass(frozen=True, kw_only=True)
class Part:
    """Neighbouring tokens of one fate. `texts` says what each reads as, where a tokenizer is known; `again`: they stand
    in an earlier call too."""

    fate: Fate
    why: str
    ids: Sequence[int]
    texts: tuple[str, ...] | None = None
    logprobs: Sequence[float] | None = None
    again: bool = False

    def to_json(self) -> dict[str, JSON]:
        out: dict[str, JSON] = {"fate": self.fate, "why": self.why, "tokens": len(self.ids)}
        if not self.again:
            out["ids"] = list(self.ids)
            out |= {"texts": list(self.texts)} if self.texts is not None else {}
            out |= {"logprobs": list(self.logprobs)} if self.logprobs is not None else {}
        return out


@dataclass(frozen=True, kw_only=True)
class ExplainedCall:
    """One model call: its tokens in order, prompt and answer, and how it goes on from an earlier one (`boundary`; None
    for the first, and for those without ids). `turn` and `step` are those that it wrote, `row` the row it is in."""

    number: int
    agent: str | None
    turn: int | None
    step: int | None
    row: int | None
    boundary: Boundary | None
    parts: tuple[Part, ...]
    advantage: float | None = None

    def to_json(self) -> dict[str, JSON]:
        return {
            **{name: getattr(self, name) for name in ("number", "agent", "turn", "step", "row", "advantage")},
            "boundary": None if self.boundary is None else dict(self.boundary.__dict__),
            "parts": [part.to_json() for part in self.parts],
        }


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """What becomes of a trace. `left_out` says why no token of it is trained, None where some are. `reward` is its
    `Score.lower`, `mean` that of its group of `size` rollouts. `credit`, at levels `lambda` and `auto`, is which level
    and λ the round was given, and why."""

    trace_id: str
    level: str
    norm: str
    reward: float | None
    mean: float | None
    size: int
    left_out: str | None
    rows: tuple[Row, ...]
    calls: tuple[ExplainedCall, ...]
    steps: tuple[ExplainedStep, ...]
    credit: Mapping[str, JSON] = field(default_factory=dict)

    def count(self, fate: Fate) -> int:
        """How many tokens have this fate; those that are read again count once."""
        parts = (part for call in self.calls for part in call.parts if not part.again)
        return sum(len(part.ids) for part in parts if part.fate == fate)

    @property
    def boundaries(self) -> Mapping[str, int]:
        """How many boundaries there are of each kind."""
        found: dict[str, int] = {}
        for call in self.calls:
            if call.boundary is not None:
                found[call.boundary.kind] = found.get(call.boundary.kind, 0) + 1
        return found

    def to_json(self) -> dict[str, JSON]:
        plain = ("trace_id", "level", "norm", "reward", "mean", "size", "left_out")
        fates: tuple[Fate, ...] = ("trained", "masked", "lost")
        return {
            **{name: getattr(self, name) for name in plain},
            **({"credit": dict(self.credit)} if self.credit else {}),
            "rows": len(self.rows),
            "tokens": {fate: self.count(fate) for fate in fates},
            "boundaries": dict(self.boundaries),
            "calls": [call.to_json() for call in self.calls],
            "steps": [step.to_json() for step in self.steps],
        }


def explain(
    trace: Trace,
    group: Group | None = None,
    *,
    level: str = "trajectory",
    norm: str = "none",
    lam: float | None = None,
    whole_round: Iterable[Group] = (),
    before: PreviousRound | None = None,
    imitation: bool = False,
    agent: str | None = None,
    tokenizer: Any = None,
    max_length: int | None = None,
) -> Explanation:
    """What a trainer makes of a trace: GRPO beside the other rollouts of its group, or (`imitation`) SFT.

    Args:
        trace: the dialogue.
        group: the scored rollouts that it stands among; without it GRPO trains on nothing of it.
        level: where credit is given.
        norm: what advantages are divided by.
        lam: λ of level `lambda` (default: λ̂ of the round before, else 1).
        whole_round: of levels `lambda` and `auto`, whose advantages follow from all of them: the groups of the training
            run, in its order.
        before: the round before.
        imitation: as SFT reads it: neither group nor logprobs matter.
        agent: the steps of the agent of this name alone.
        tokenizer: says what tokens read as, and makes rows of words for imitation where there are no ids.
        max_length: rollouts with a longer row are left out.

    Raises:
        TrainError: an unknown level or norm, or a group that cannot be compared.

    >>> from cm2_agent import Message, ModelCall, Run, Trace
    >>> from cm2_agent.trainers.explain import explain
    >>> said = (Message.of("user", "A or B?"), Message.of("assistant", "A"))
    >>> call = ModelCall(span_id="s", message=1, prompt_ids=(1, 2), completion_ids=(65, 3))
    >>> found = explain(Trace.of(Run(id="r", messages=said, calls=(call,))), imitation=True)
    >>> [(part.fate, part.ids) for part in found.calls[0].parts]
    [('masked', (1, 2)), ('trained', (65, 3))]
    """
    rollouts = () if group is None else group.rollouts
    place = next((at for at, one in enumerate(rollouts) if one.trace.id == trace.id), None)
    credit: Credit | None = None
    left_out: str | None = None
    of_round: Mapping[str, JSON] = {}
    if not imitation:
        check_credit(level, norm, lam=lam, contrast=None)
        if group is None or place is None:
            left_out = NO_GROUP
        else:
            given: Sequence[Credit | str]
            if level in WHOLE_ROUND:
                credits = RoundCredits(level=level, norm=norm, lam=lam, before=before)
                given, of_round = _of_round(credits, group, whole_round)
            else:
                given = by_level(level, norm)(group)
            found = given[place]
            if isinstance(found, str):
                left_out = found
            else:
                credit = found
                if not _informative(group, given):
                    left_out = SAME_WORTH
    reason = untrainable_reason(trace, imitation=imitation, agent=agent)
    rows: list[Row] | str = []
    if reason == TEXT_ONLY and imitation and tokenizer is not None:
        rows = rows_from_text(tokenizer, agent=agent)(trace, None)
    elif reason is None:
        rows = rows_of(trace, credit, imitation=imitation, agent=agent)
    else:
        rows = reason
    if isinstance(rows, str):
        left_out, rows = left_out or rows, []
    if max_length is not None and any(len(row.ids) > max_length for row in rows):
        left_out = left_out or TOO_LONG
    calls = _by_words(rows, tokenizer) if rows and rows[0].retokenised else _calls(trace, rows, left_out, tokenizer)
    score = None if place is None else rollouts[place].score
    lowers = [one.score.lower for one in rollouts if one.score.lower is not None]
    return Explanation(
        trace_id=trace.id,
        level=level,
        norm=norm,
        reward=None if score is None else score.lower,
        mean=math.fsum(lowers) / len(lowers) if lowers else None,
        size=len(rollouts),
        left_out=left_out,
        rows=tuple(rows) if left_out is None else (),
        calls=tuple(calls),
        steps=tuple(explained_steps(trace, score, [one.score for one in rollouts], credit)),
        credit=of_round,
    )


def _of_round(
    credits: RoundCredits, group: Group, whole_round: Iterable[Group]
) -> tuple[list[Credit | str], Mapping[str, JSON]]:
    """What the rollouts of a group are given as one of their round (as a round of its own, where it is not in it), and
    which level and λ the round was given."""
    names = [rollout.trace.id for rollout in group.rollouts]
    place, number, given = None, 0, dict[str, Credit | str]()
    for other in whole_round:
        checked, others = credits(other), [rollout.trace.id for rollout in other.rollouts]
        if place is None and set(others) == set(names):
            place, given = number, dict(zip(others, checked, strict=True))
        number += 1
    if place is None:
        place, given = number, dict(zip(names, credits(group), strict=True))
    found = dict(zip(given, credits.advantages()[place].rollouts, strict=True))
    which = {name: value for name, value in credits.report.items() if name != "estimate"}
    return [one if isinstance(one := given[name], str) else found[name] for name in names], which


def _informative(group: Group, given: Sequence[Credit | str]) -> bool:
    return any(
        not isinstance(credit, str) and any(credit(step.turn, step.index) != 0 for step in rollout.trace.steps)
        for rollout, credit in zip(group.rollouts, given, strict=True)
    )


# -- tokens


def _calls(trace: Trace, rows: Sequence[Row], left_out: str | None, tokenizer: Any) -> Iterator[ExplainedCall]:
    """All recorded calls with token ids, by run."""
    placed = {(span.turn, span.step): (at, span) for at, row in enumerate(rows) for span in row.spans}
    line: list[CallTokens] = []  # of the dialogue; sub-agents' calls are compared with none
    numbers: list[int] = []
    for number, (call, step) in enumerate(_recorded(trace)):
        if call.prompt_ids is None:
            continue
        before: Boundary | None = None
        wrote: Sequence[int] = call.completion_ids or ()
        if step is None:
            why = call.untrainable or OFF_LINE if call.error is not None else OFF_LINE
            if line:
                before = Boundary(kind="PARALLEL", why=OFF_LINE, after=numbers[-1], shared=0)
        else:
            line.append(
                CallTokens(
                    prompt=call.prompt_ids,
                    completion=wrote,
                    agent=step.agent,
                    finish_reason=call.finish_reason or step.message.finish_reason,
                    started=call.started,
                    ended=call.ended,
                )
            )
            numbers.append(number)
            before = boundary(line, len(line) - 1, tokenizer, numbers=numbers) if len(line) > 1 else None
            why = left_out or "a step of another agent"
        row, span = (None, None) if step is None else placed.get((step.turn, step.index), (None, None))
        trained = span is not None and left_out is None
        yield ExplainedCall(
            number=number,
            agent=call.agent if step is None else step.agent,
            turn=None if step is None else step.turn,
            step=None if step is None else step.index,
            row=row if trained else None,
            boundary=before,
            parts=tuple(_parts(call, wrote, before, WROTE if trained else why, trained, tokenizer)),
            advantage=span.advantage if span is not None and trained and span.logprobs is not None else None,
        )


def _parts(
    call: ModelCall, wrote: Sequence[int], before: Boundary | None, why: str, trained: bool, tokenizer: Any
) -> Iterator[Part]:
    prompt: Sequence[int] = call.prompt_ids or ()
    shared = 0 if before is None else before.shared
    if shared:
        yield Part(fate="masked", why=AGAIN, ids=prompt[:shared], again=True)
    if len(prompt) > shared:
        yield _part("masked", READ, prompt[shared:], tokenizer)
    if wrote:
        yield _part("trained" if trained else "lost", why, wrote, tokenizer, call.logprobs)


def _part(fate: Fate, why: str, ids: Sequence[int], tokenizer: Any, logprobs: Sequence[float] | None = None) -> Part:
    texts = None if tokenizer is None else token_texts(tokenizer, ids)
    return Part(fate=fate, why=why, ids=ids, texts=texts, logprobs=logprobs)


def _by_words(rows: Sequence[Row], tokenizer: Any) -> Iterator[ExplainedCall]:
    """The steps of rows that were made from words."""
    number = 0
    for at, row in enumerate(rows):
        end = 0
        for span in row.spans:
            why = "no ids were recorded: the words as this tokenizer writes them"
            before = Boundary(kind="RETOKENISED", why=why, after=number - 1, shared=end) if number else None
            parts = [Part(fate="masked", why=AGAIN, ids=row.ids[:end], again=True)] if end else []
            parts.append(_part("masked", READ, row.ids[end : span.start], tokenizer))
            parts.append(_part("trained", WROTE, row.ids[span.start : span.stop], tokenizer))
            yield ExplainedCall(
                number=number,
                agent=None,
                turn=span.turn,
                step=span.step,
                row=at,
                boundary=before,
                parts=tuple(parts),
            )
            number, end = number + 1, span.stop


def _recorded(trace: Trace) -> Iterator[tuple[ModelCall, Step | None]]:
    """The model calls of a trace by run, each with the step that it wrote, where it wrote one."""
    steps = iter([step for step in trace.steps if step.call is not None])
    for run in trace.runs:
        writers = {call.message: call for call in run.calls if call.message is not None}
        wrote: dict[int, Step] = {}
        for place, message in enumerate(run.messages):
            if message.role == "assistant" and place in writers:
                wrote[id(writers[place])] = next(steps)
        for call in run.calls:
            step = wrote.get(id(call))
            yield (call if step is None or step.call is None else step.call), step
