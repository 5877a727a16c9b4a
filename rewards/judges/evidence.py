"""Evidence: whether a quote stands where the judge says it does.

A quote counts when it has at least 12 characters, or is the whole part, and after NFKC, case-folding and collapsing
white space stands in a part of that step which `focus_on` allows (rapidfuzz partial ratio of 90 or more where it does
not stand there literally)."""

from __future__ import annotations

from collections.abc import Sequence

from rapidfuzz import fuzz

from cm2_agent.types.checklist_item import Item

from .transcript import PARTS, REASONING, folded

SHORTEST = 12
"""Characters of a quote, after folding; a shorter one counts only as the whole part."""
LIKENESS = 90.0
"""rapidfuzz's partial ratio at which a quote that is not literally there still counts."""


def normalised_text(text: str) -> str:
    """Text as quotes are compared. Folding can leave letters that compose anew, so it is repeated until nothing
    changes; ASCII needs none of it."""
    if text.isascii():
        return " ".join(text.lower().split())
    for _ in range(4):
        again = folded(text)
        if again == text:
            break
        text = again
    return text


def stands_in(quote: str, part: str) -> bool:
    """Whether the quote stands in the part; both already normalised.

    >>> stands_in("arrives on may 3", "your order arrives on may 3.")
    True
    >>> stands_in("may 3", "your order arrives on may 3."), stands_in("may 3", "may 3")
    (False, True)
    """
    if not quote or not part:
        return False
    if quote == part:
        return True
    if len(quote) < SHORTEST:
        return False
    if quote in part:
        return True
    if len(quote) > len(part):
        # the partial ratio would look for the part in the quote: any quote that merely holds a short part would pass
        return fuzz.ratio(quote, part, score_cutoff=LIKENESS) >= LIKENESS
    return fuzz.partial_ratio(quote, part, score_cutoff=LIKENESS) >= LIKENESS


def allowed(item: Item) -> tuple[str, ...]:
    """The parts of a step in which the item's evidence may stand: the one it focuses on, else all that it is judged by,
    which is what was said and done."""
    return tuple(part for part in PARTS if part != REASONING) if item.focus_on is None else (item.focus_on,)


def quote_problem(item: Item, part: str, quote: str, texts: Sequence[str]) -> str | None:
    """What is wrong with a quote said to stand in `part`, whose normalised texts these are; None where nothing is."""
    if part not in PARTS:
        return f"the quoted part is none of {', '.join(PARTS)}"
    if part not in allowed(item):
        return f"the quote is from {part}, but the item must be shown by {item.focus_on or 'what was said and done'}"
    needle = normalised_text(quote)
    if any(stands_in(needle, text) for text in texts):
        return None
    if len(needle) < SHORTEST:
        return f"the quote has {len(needle)} characters; expected {SHORTEST} or more, or the whole part"
    return f"the quote does not stand in {part} of that step"


__all__ = ["LIKENESS", "SHORTEST", "allowed", "normalised_text", "quote_problem", "stands_in"]
