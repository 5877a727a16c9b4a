"""Forecast: how many calls of a judge a certificate takes at most, before any is made."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cm2_agent.llm.client import CHARACTERS_A_TOKEN
from cm2_agent.types.checklist import Checklist

from .attack import Subject, attacked, counted, judged_items
from .benign import benign_edits
from .families import Family

_TOKENS_AROUND = 1_000
"""Of a call beside the dialogue: the instructions and the items."""


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Calls and input tokens of a certificate, where no attack is paid before the last one of its family is tried."""

    calls: int
    input_tokens: int


def forecast(
    checklist: Checklist,
    families: Sequence[Family],
    failing: Iterable[Subject],
    passing: Iterable[Subject],
    *,
    pairs: int,
    queries: int,
) -> Forecast:
    """What a certificate from these traces takes; the subjects need not have been judged."""
    items = {item.id: item for item in checklist.items if item.id in judged_items(checklist)}
    calls = tokens = 0
    searched: set[str] = set()
    for subject in failing:
        judged = {one.item.id for one in subject.targets} & items.keys()
        tries = pairs + len(benign_edits(subject.trace)) + (1 if judged and queries else 0)
        for family in families:
            for template in family.templates:
                if counted(subject, [(family, template)]) and attacked(subject, [template]) is not None:
                    tries += 1
        scopes = _scopes(subject, checklist, items.keys())
        searched |= judged
        calls += scopes * tries
        tokens += scopes * tries * _tokens(subject)
    searching = len(searched) * queries
    for subject in passing:
        scopes = _scopes(subject, checklist, items.keys())
        tries = len(benign_edits(subject.trace))
        calls += scopes * tries
        tokens += scopes * tries * _tokens(subject)
    average = tokens // calls if calls else 0
    return Forecast(calls=calls + searching, input_tokens=tokens + searching * average)


def _scopes(subject: Subject, checklist: Checklist, judged: Iterable[str]) -> int:
    """The turns, and the closing block, that a judge is asked about."""
    asked = set(judged)
    turns = sum(any(item.id in asked for item in checklist.of_turn(turn.index)) for turn in subject.trace.turns)
    return turns + any(item.id in asked for item in checklist.block)


def _tokens(subject: Subject) -> int:
    return _TOKENS_AROUND + len(subject.known) // CHARACTERS_A_TOKEN


__all__ = ["Forecast", "forecast"]
