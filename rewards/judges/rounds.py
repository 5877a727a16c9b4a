"""Rounds: asking about a window's items until each has a verdict whose evidence holds, or has none.

The first call asks for all. What cannot be used is asked again once, and once more where a second answer's quote stands
there but leaves out what turns it. A share of the absences is asked in reverse."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from cm2_agent.errors import BudgetExhausted
from cm2_agent.llm.failures import RequestFailure
from cm2_agent.types.checklist_item import Item
from cm2_agent.types.score import Verdict

from .client import JudgeClient, ServedAnswer
from .known_verdicts import KnownVerdicts
from .prompt import Transcript, Window
from .verdicts import Problem, contradicted_verdict, failed_verdict, to_verdict, unproved_verdict

AGAIN = (
    "You were asked these items before. Your answers could not be used: {problems}. Answer anew. Quote verbatim from"
    " the judged steps, or answer no or cannot_tell."
)
EXCERPTS = (
    " Where a quote left something out, the transcript's last lines show the sentence and the one before it; judge by"
    " both, and where the answer is still yes, quote what was left out too."
)
REVERSED = (
    "You found nothing for these items before. Look the other way now: quote the violation, or what comes nearest to a"
    " yes, if there is one. Answer yes only with such a quote; otherwise answer no."
)

Asked = Sequence[tuple[Item, str]]
"""Items with the lines that show them to the judge."""


@dataclass(frozen=True, kw_only=True)
class Reversals:
    """Which absences are asked in reverse: a share of them, drawn by what was judged and a seed."""

    share: float = 0.1
    seed: int = 0

    def draws(self, window: Window, line: str) -> bool:
        """Whether this item is asked in reverse in this window; the same answer every time.

        >>> window = Window(text="", first=1, last=1, turn=0, digest="d")
        >>> Reversals(share=0.0).draws(window, "x"), Reversals(share=1.0).draws(window, "x")
        (False, True)
        """
        text = f"{self.seed}\0{window.digest}\0{window.turn}:{window.first}-{window.last}\0{line}"
        drawn = int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big")
        return drawn < self.share * 2**64


@dataclass(kw_only=True)
class Rounds:
    """The calls about the items of one window."""

    client: JudgeClient
    known: KnownVerdicts
    transcript: Transcript
    window: Window
    vote: int
    reversals: Reversals

    async def verdicts(self, items: Asked) -> dict[str, Verdict]:
        """A verdict for each item, by its id. Raises BudgetExhausted where the budget stops it; what was judged by then
        is known, whatever ends the asking."""
        settled: dict[str, Verdict] = {}
        try:
            return await self._verdicts(items, settled)
        finally:
            self.known.put(self.window, items, settled, self.vote)  # at once: each time is a transaction

    async def _verdicts(self, items: Asked, settled: dict[str, Verdict]) -> dict[str, Verdict]:
        """Those about which nothing more is asked go into `settled` as they come."""
        answers: dict[str, ServedAnswer | RequestFailure] = {}
        try:
            await self.client.verdicts(self.window, {item.id: line for item, line in items}, answers)
        except BudgetExhausted:
            paid = [(item, line) for item, line in items if item.id in answers]
            settled |= self._settled(paid, self._read(paid, answers)[0])
            raise
        verdicts, problems = self._read(items, answers)
        settled |= self._settled(items, verdicts)
        before: dict[str, Problem] = {}
        while open_problems := {
            name: problem for name, problem in problems.items() if _is_asked_again(problem, before.get(name))
        }:
            again = [(item, line) for item, line in items if item.id in open_problems]
            given_up = {name: problem for name, problem in problems.items() if name not in open_problems}
            settled |= self._unproved(items, given_up)
            before |= open_problems
            found, problems = self._read(again, await self._again(again, open_problems))
            settled |= self._settled(again, found)
            verdicts |= found
        settled |= self._unproved(items, problems)
        reversed_ = await self._reversed(items, verdicts)
        settled |= reversed_
        return verdicts | settled

    def _read(
        self, items: Asked, answers: Mapping[str, ServedAnswer | RequestFailure]
    ) -> tuple[dict[str, Verdict], dict[str, Problem]]:
        """Verdicts by id, and what is wrong with the answers that are none."""
        verdicts: dict[str, Verdict] = {}
        problems: dict[str, Problem] = {}
        for item, _ in items:
            answered = answers[item.id]
            if isinstance(answered, RequestFailure):
                verdicts[item.id] = failed_verdict(item, answered)
                continue
            self.known.answered_by(answered.served)
            made = to_verdict(item, answered, self.transcript, self.window)
            if isinstance(made, Problem):
                problems[item.id] = made
            else:
                verdicts[item.id] = made
        return verdicts, problems

    def _settled(self, items: Asked, verdicts: Mapping[str, Verdict]) -> dict[str, Verdict]:
        """The verdicts about which nothing more is asked."""
        return {
            item.id: verdicts[item.id]
            for item, line in items
            if item.id in verdicts and not self._is_reversed(item, line, verdicts[item.id])
        }

    def _unproved(self, items: Asked, problems: Mapping[str, Problem]) -> dict[str, Verdict]:
        return {
            item.id: unproved_verdict(item, problems[item.id].text, self.known.served)
            for item, _ in items
            if item.id in problems
        }

    async def _again(self, items: Asked, problems: Mapping[str, Problem]) -> dict[str, ServedAnswer | RequestFailure]:
        note = AGAIN.format(problems="; ".join(f"{name}: {problem.text}" for name, problem in problems.items()))
        excerpts = [
            self.transcript.excerpt(name, problem.step, problem.part, problem.excerpt)
            for name, problem in problems.items()
            if problem.kind == "context"
        ]
        window = replace(self.window, text="\n".join([self.window.text, *excerpts])) if excerpts else self.window
        answers: dict[str, ServedAnswer | RequestFailure] = {}
        await self.client.verdicts(
            window,
            {item.id: line for item, line in items},
            answers,
            note=note + EXCERPTS if excerpts else note,
            re_ask=True,
        )
        return answers

    async def _reversed(self, items: Asked, verdicts: Mapping[str, Verdict]) -> dict[str, Verdict]:
        """The verdicts on the absences that are asked in reverse."""
        drawn = [(item, line) for item, line in items if self._is_reversed(item, line, verdicts.get(item.id))]
        if not drawn:
            return {}
        answers: dict[str, ServedAnswer | RequestFailure] = {}
        await self.client.verdicts(
            self.window, {item.id: line for item, line in drawn}, answers, note=REVERSED, re_ask=True
        )
        found: dict[str, Verdict] = {}
        for item, _ in drawn:
            absence, answered = verdicts[item.id], answers[item.id]
            if isinstance(answered, RequestFailure):
                found[item.id] = failed_verdict(item, answered)
                continue
            made = to_verdict(item, answered, self.transcript, self.window)
            if isinstance(made, Verdict) and answered.answer.verdict == "yes":
                found[item.id] = contradicted_verdict(item, made)
            else:
                first, *rest = absence.evidence
                found[item.id] = replace(absence, evidence=({**first, "reversed": "nothing found"}, *rest))
        return found

    def _is_reversed(self, item: Item, line: str, verdict: Verdict | None) -> bool:
        """Whether the verdict is an absence that is asked in reverse."""
        absent = (
            verdict is not None and verdict.value is (item.kind == "avoid") and "snippet" not in verdict.evidence[0]
        )
        return absent and self.reversals.draws(self.window, line)


def _is_asked_again(problem: Problem, before: Problem | None) -> bool:
    return before is None or (problem.kind == "context" and before.kind != "context")


__all__ = ["AGAIN", "EXCERPTS", "REVERSED", "Reversals", "Rounds"]
