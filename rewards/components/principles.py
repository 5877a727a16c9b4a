"""Principles: a constitution as text becomes judged items about the whole dialogue, and these a reward."""

from __future__ import annotations

import re

from cm2_agent.errors import ChecklistError
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.checklist_item import Item
from cm2_agent.types.protocols import Judge
from cm2_agent.types.score import Component
from cm2_agent.types.trace import Trace

from ..scoring.scorer import ChecklistScorer
from .component import Context, RewardComponent

_MARK = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s+")
_SLUG = re.compile(r"[^a-z0-9]+")


def principle_items(text: str) -> tuple[Item, ...]:
    """One `trace` item a principle, to stand in a checklist of yours: `Checklist(*items, *principle_items(text))`.

    The principles are the text's list entries (lines that begin with -, *, • or a number, with what follows indented or
    unmarked up to the next), or, in a text without a list, its paragraphs. They hold at the end of the dialogue or they
    do not. Raises ChecklistError for a text without any.

    >>> from cm2_agent.rewards import principle_items
    >>> [item.id for item in principle_items("- Never guess.\\n- Say what you do not know.")]
    ['never_guess', 'say_what_you_do_not_know']
    """
    found = _principles(text)
    if not found:
        raise ChecklistError(
            "a constitution without a principle; expected a list, one principle an entry, or paragraphs"
        )
    items: list[Item] = []
    used: set[str] = set()
    for number, principle in enumerate(found, 1):
        slug = "_".join(_SLUG.sub(" ", principle.lower()).split()[:6])[:40].rstrip("_") or f"principle_{number}"
        name = slug if slug not in used else f"{slug}_{number}"
        used.add(name)
        question = (
            f"Does everything that the assistant does and says in the dialogue agree with this principle: {principle}"
        )
        condition = "Nothing in the dialogue goes against the principle; where it does not apply, the answer is yes."
        items.append(Item(name, question, turn="trace", kind="hold", pass_condition=condition))
    return tuple(items)


def principles(text: str, *, judge: Judge, name: str = "principles", version: int = 1) -> RewardComponent:
    r"""A reward: the share of the principles that the judge finds respected over the whole dialogue.

    NULL where the judge leaves too much open (docs/method.md §4).

    Args:
        text: The principles, as `principle_items` reads them: a list, or paragraphs.
        judge: Answers one question a principle.
        name: Under which the value is stored.
        version: Of the text; its items' hash is part of the stored version too.

    Raises:
        ChecklistError: A text without a principle.

    >>> from cm2_agent import LLMJudge
    >>> from cm2_agent.rewards import principles
    >>> constitution = "- Never guess.\n- Say what you do not know."
    >>> principles(constitution, judge=LLMJudge("test")).name
    'principles'
    """
    scorer = ChecklistScorer(Checklist(*principle_items(text), name=name, version=version), judge=judge)

    async def share_respected(trace: Trace, context: Context) -> Component:
        score = await scorer(trace, context.task)
        broken = ", ".join(verdict.item for verdict in score.verdicts if verdict.value is False)
        why = score.null_reason or (f"not kept: {broken}" if broken else None)
        known = {"value": score.reward, "lower": score.lower, "upper": score.upper}
        return Component(name=name, version=scorer.version, explanation=why, cause="infrastructure", **known)

    return RewardComponent(share_respected, name=name, version=scorer.version)


def _principles(text: str) -> list[str]:
    lines = text.splitlines()
    if not any(_MARK.match(line) for line in lines):
        return [" ".join(part.split()) for part in re.split(r"\n\s*\n", text) if part.strip()]
    found: list[list[str]] = []
    for line in lines:
        if _MARK.match(line):
            found.append([_MARK.sub("", line).strip()])
        elif found and line.strip():
            found[-1].append(line.strip())
    return [" ".join(parts) for parts in found if any(parts)]


__all__ = ["principle_items", "principles"]
