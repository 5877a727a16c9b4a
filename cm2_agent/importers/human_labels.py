"""What people said of traces, read from a file: a label a line, or DevAI's judgements, where a line holds the people's
consensus and a recorded judge's verdict. Apart from the readers of dialogues, since a file of labels brings no trace.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cm2_agent.importers.json_records import Problem, read_records
from cm2_agent.types.human_labels import Label

DEVAI = "devai"
"""The prefix of the ids of traces that DevAI's judgements speak of: `devai/AGENT/TASK`."""


class LabelModel(BaseModel):
    """A line of our own format; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", strict=True)

    trace: str = Field(min_length=1)
    """The trace's id."""
    item: str = Field(min_length=1)
    """The item's id."""
    rater: str = Field(min_length=1)
    """Who judged."""
    value: bool | None
    """The verdict; `null`: the rater could not tell."""
    turn: int | None = Field(default=None, ge=0)
    """0-based; left out for the closing block, or where none is named."""
    task: str | None = None
    """The task's id."""
    note: str | None = None
    """The rater's words."""

    def labels(self) -> tuple[Label, ...]:
        return (
            Label(
                trace_id=self.trace,
                item=self.item,
                rater=self.rater,
                value=self.value,
                turn=self.turn,
                task=self.task,
                note=self.note,
            ),
        )


class DevaiModel(BaseModel):
    """A line of DevAI's judgements (Zhuge et al., Agent-as-a-Judge, arXiv 2410.10934): one requirement of one task, met
    by one agent's work or not, by the consensus of people and by a judge."""

    model_config = ConfigDict(extra="forbid", strict=True)

    agent: str = Field(min_length=1)
    task: str = Field(min_length=1)
    id: int = Field(ge=0)
    criteria: str
    dependence: list[int]
    category: str
    human: bool | None
    judge: bool | None

    def labels(self) -> tuple[Label, ...]:
        shared: dict[str, Any] = {
            "trace_id": f"{DEVAI}/{self.agent}/{self.task}",
            "item": f"{self.task}.{self.id}",
            "task": self.task,
            "note": self.criteria,
        }
        return (Label(rater="human", value=self.human, **shared), Label(rater="judge", value=self.judge, **shared))


def read_labels(path: str | Path) -> Iterator[tuple[Label, ...] | Problem]:
    """The labels of each line of a file, or why the line was skipped. Each line says by its keys which of the two
    formats it is of.

    Raises TraceError: a file that cannot be opened or is empty.
    """
    for record in read_records(path):
        if isinstance(record, Problem):
            yield record
            continue
        model = (
            DevaiModel if isinstance(record.value, dict) and {"human", "judge"} <= record.value.keys() else LabelModel
        )
        try:
            yield model.model_validate(record.value).labels()
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"])) or "the record"
            expected = "expected {trace, item, rater, value (true, false or null)} and at most {turn, task, note}"
            yield Problem(line=record.line, number=record.number, reason=f"{where}: {first['msg']}; {expected}")


__all__ = ["DEVAI", "DevaiModel", "LabelModel", "read_labels"]
