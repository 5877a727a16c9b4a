"""Verdicts from a judge's answers: evidence checked, failures turned into NULLs, steps put together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from cm2_agent.llm.failures import RequestFailure
from cm2_agent.types.checklist_item import Item
from cm2_agent.types.score import Verdict

from .client import ServedAnswer
from .evidence import quote_problem
from .prompt import Transcript, Window


def to_verdict(item: Item, answered: ServedAnswer, transcript: Transcript, window: Window) -> Verdict | str:
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
        return "a yes without a quote"
    if not window.first <= quote.step <= window.last:
        return f"step {quote.step} is not among the judged {window.first} to {window.last}"
    if item.agent is not None and transcript.step(quote.step).agent != item.agent:
        return f"step {quote.step} is not one of the agent {item.agent}, whose steps alone the item is about"
    wrong = quote_problem(item, quote.part, quote.quote, transcript.texts(quote.step, quote.part))
    if wrong is not None:
        return wrong
    at = transcript.step(quote.step)
    shown = {"turn": at.turn, "step": at.index, "from": quote.part, "snippet": quote.quote, **judge}
    step = None if not value else quote.step - window.first + 1 if item.kind == "reach" else last
    return Verdict(item=item.id, value=value, weight=0, step=step, explanation=answer.analysis, evidence=(shown,))


def failed_verdict(item: Item, failure: RequestFailure) -> Verdict:
    return Verdict(
        item=item.id, value=None, weight=0, reason="judge failed", cause=failure.cause, explanation=failure.explanation
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


__all__ = ["failed_verdict", "to_verdict", "unproved_verdict", "verdict_over_steps"]
