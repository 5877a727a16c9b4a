"""Verdicts from a judge's answers: evidence checked, failures turned into NULLs, steps put together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

from cm2_agent.llm.failures import RequestFailure
from cm2_agent.types.checklist_item import Item
from cm2_agent.types.score import Verdict

from .client import ServedAnswer
from .context import Context
from .evidence import missing_problem, part_problem
from .folding import FoldedText
from .judge_pass import NOT_ASKED
from .prompt import Transcript, Window
from .reply import Quote
from .sentences import NAMES


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Why an answer is no verdict: its quote does not stand there, or leaves out a part of its context. Nothing of the
    judged text is in `text`, which the judge is asked again with; `excerpt` is shown to it as data."""

    kind: Literal["quote", "context"]
    text: str
    excerpt: str = ""
    step: int = 0
    part: str = ""


def to_verdict(item: Item, answered: ServedAnswer, transcript: Transcript, window: Window) -> Verdict | Problem:
    """The verdict that an answer is, or what is wrong with its evidence."""
    answer, judge = answered.answer, {"judge": answered.served}
    if answer.verdict == "cannot_tell":
        return Verdict(
            item=item.id,
            value=None,
            weight=0,
            reason="abstained",
            cause="content",
            explanation=answer.analysis,
            evidence=(judge,),
        )
    yes = answer.verdict == "yes"
    value = yes != (item.kind == "avoid")
    last = window.last - window.first + 1
    if not yes:
        unseen = transcript.unseen(item, window)
        if unseen is not None:
            return unproved_verdict(item, unseen, answered.served)
        return Verdict(
            item=item.id,
            value=value,
            weight=0,
            step=last if value else None,
            explanation=answer.analysis,
            evidence=(judge,),
        )
    quote = answer.evidence
    if quote is None:
        return Problem(kind="quote", text="a yes without a quote")
    found = _shown(item, quote, transcript, window)
    if isinstance(found, Problem):
        return found
    at = transcript.step(quote.step)
    shown = {"turn": at.turn, "step": at.index, "from": quote.part, "snippet": found.snippet, **judge}
    if found.snippet != quote.quote:
        shown["quote"] = quote.quote
    step = None if not value else quote.step - window.first + 1 if item.kind == "reach" else last
    return Verdict(item=item.id, value=value, weight=0, step=step, explanation=answer.analysis, evidence=(shown,))


def _shown(item: Item, quote: Quote, transcript: Transcript, window: Window) -> Context | Problem:
    """What the quote was taken from, or what is wrong with it."""
    if not window.first <= quote.step <= window.last:
        return Problem(kind="quote", text=f"step {quote.step} is not among the judged {window.first} to {window.last}")
    if item.agent is not None and transcript.step(quote.step).agent != item.agent:
        return Problem(
            kind="quote",
            text=f"step {quote.step} is not one of the agent {item.agent}, whose steps alone the item is about",
        )
    if item.kind == "hold" and (last := transcript.last_step(item, window)) != quote.step:
        return Problem(
            kind="quote", text=f"the quote is from step {quote.step}; what holds at the end is shown by step {last}"
        )
    wrong = part_problem(item, quote.part)
    if wrong is not None:
        return Problem(kind="quote", text=wrong)
    problem: Problem | None = None
    for context in transcript.contexts(quote.step, quote.part, quote.quote):
        if _repeats(context.snippet, item):
            problem = problem or Problem(kind="quote", text="the quote only repeats the item's question")
        elif context.missing is None:
            return context
        else:
            problem = Problem(
                kind="context",
                text=f"the quote leaves out {NAMES[context.missing]} that stands in its sentence or the one before",
                excerpt=context.excerpt,
                step=quote.step,
                part=quote.part,
            )
    return problem or Problem(kind="quote", text=missing_problem(quote.part, quote.quote))


def _repeats(snippet: str, item: Item) -> bool:
    """Whether a sentence is the item's own question, which answers nothing."""
    question = item.question or ""
    if abs(len(snippet) - len(question)) > 16 or question[:3].casefold() not in snippet[:12].casefold():
        return False
    return FoldedText(snippet).plain.strip(" ?") == _folded(question)


@lru_cache(maxsize=1024)
def _folded(question: str) -> str:
    return FoldedText(question).plain.strip(" ?")


def failed_verdict(item: Item, failure: RequestFailure) -> Verdict:
    return Verdict(
        item=item.id,
        value=None,
        weight=0,
        reason="judge failed" if failure.asked else NOT_ASKED,
        cause=failure.cause,
        explanation=failure.explanation,
    )


def unproved_verdict(item: Item, problem: str, judge: str | None) -> Verdict:
    """NULL (content): the judge's evidence did not hold, twice."""
    return Verdict(
        item=item.id,
        value=None,
        weight=0,
        reason="judge failed",
        cause="content",
        explanation=f"unverifiable evidence: {problem}",
        evidence=({"judge": judge},),
    )


def contradicted_verdict(item: Item, found: Verdict) -> Verdict:
    """NULL (content): the judge said no, and quoted the violation when it was asked for one."""
    first, *rest = found.evidence
    return Verdict(
        item=item.id,
        value=None,
        weight=0,
        reason="judge failed",
        cause="content",
        explanation="unverifiable absence: the judge said no, and quoted the contrary when asked for it",
        evidence=({**first, "reversed": "found"}, *rest),
    )


def verdict_over_steps(item: Item, rows: Sequence[Verdict]) -> Verdict:
    """One verdict from those after each step, as `shaping.first_true_step` reads answers; a NULL leaves open what it
    could have changed."""
    if item.kind == "hold":
        return rows[-1]
    decisive = item.kind == "reach"  # the value that ends the matter: satisfied for reach, violated for avoid
    for step, verdict in enumerate(rows, 1):
        if verdict.value is decisive:
            return replace(verdict, step=step if decisive else None)
        if verdict.value is None and decisive:
            return verdict
    return next((verdict for verdict in rows if verdict.value is None), rows[-1])


__all__ = ["Problem", "contradicted_verdict", "failed_verdict", "to_verdict", "unproved_verdict", "verdict_over_steps"]
