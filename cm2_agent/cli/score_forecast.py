"""What `cm2 score --dry-run` says: the judge's calls, tokens and dollars that scoring would take, and what nobody knows
of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cm2_agent.cli.common import console, progress

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cm2_agent.rewards.judges.forecast import Forecast
    from cm2_agent.rewards.judges.llm_judge import LLMJudge
    from cm2_agent.rewards.scoring.scorer import ChecklistScorer
    from cm2_agent.store import SQLStore
    from cm2_agent.types.task import Task
    from cm2_agent.types.trace import Trace

ON_TOP = (
    "how often a reply or its evidence must be asked for again, absences that are asked in reverse, and calls that"
    " fail: they come on top"
)


@dataclass(kw_only=True)
class ScoreForecast:
    """The forecast of a command: by checklist, and in all."""

    judge: str
    total: Forecast
    by_checklist: dict[str, Forecast] = field(default_factory=dict)
    traces: Counter[str] = field(default_factory=Counter)
    known: int = 0
    unknown: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return {
            "judge": self.judge,
            **self.total.__dict__,
            "traces": self.traces.total(),
            "known": self.known,
            "checklists": {
                name: {"traces": self.traces[name], **one.__dict__} for name, one in self.by_checklist.items()
            },
            "unknown": self.unknown,
        }

    def lines(self) -> list[str]:
        """The totals as text."""
        return [
            f"{name.replace('_', ' ')}: {'unknown' if value is None else value}"
            for name, value in self.to_json().items()
            if name not in {"checklists", "unknown"}
        ]

    def print(self) -> None:
        """The forecast as a table on stderr."""
        from rich.table import Table

        table = Table(title=f"{self.judge} would be asked", title_justify="left")
        for name in ("checklist", "traces", "calls", "questions", "tokens in", "tokens out", "USD"):
            table.add_column(name, justify="left" if name == "checklist" else "right", overflow="fold")
        for name, one in {**self.by_checklist, "(all)": self.total}.items():
            number = self.traces.total() if name == "(all)" else self.traces[name]
            cells = (number, one.calls, one.questions, one.input_tokens, one.output_tokens)
            table.add_row(name, *map(str, cells), "unknown" if one.usd is None else f"{one.usd:.4g}")
        out = console(err=True)
        out.print(table)
        if self.known:
            out.print(f"{self.known} verdicts are known already")
        for what in self.unknown:
            out.print(f"not known: {what}", soft_wrap=True)


async def forecast(store: SQLStore, traces: Iterable[Trace], scorer: ChecklistScorer, judge: LLMJudge) -> ScoreForecast:
    """What scoring the traces would ask of the judge, which asks nobody from then on. Checks run; nothing is stored."""
    from cm2_agent.rewards.judges.forecast import Forecast

    total = judge.forecast()
    found = ScoreForecast(judge=judge.name, total=total)
    with progress("forecasting") as advance:
        for trace in traces:
            before = judge.forecast()
            task = None if trace.task_id is None else store.task(trace.task_id, trace.task_version)
            await scorer(trace, task)
            name = _checklist_name(scorer, task)
            found.by_checklist[name] = found.by_checklist.get(name, Forecast()) + (judge.forecast() - before)
            found.traces[name] += 1
            advance()
    found.total, found.known = judge.forecast(), judge.usage.cached
    if found.total.usd is None:
        found.unknown.append(f"the price of {judge.name}: give --price INPUT,OUTPUT")
    if found.total.calls:
        found.unknown.append(ON_TOP)
        found.unknown.append("what the provider's cache of prompts saves")
    if found.total.calls and judge.images:
        found.unknown.append("the tokens of images")
    return found


def _checklist_name(scorer: ChecklistScorer, task: Task | None) -> str:
    own = scorer.checklist if scorer.checklist is not None or task is None else task.own_checklist()
    return "no checklist" if own is None else f"{own.name}@{own.version}"


__all__ = ["ScoreForecast", "forecast"]
