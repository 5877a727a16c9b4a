"""People's labels of traces: a label a line, or DevAI's judgements, where a line holds the people's consensus and a
recorded judge's verdict."""

from __future__ import annotations

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cm2_agent.errors import TraceError
from cm2_agent.types.human_labels import DIALOGUE, Label
from cm2_agent.types.json_values import JSON
from cm2_agent.types.text import first_problem

DEVAI = "devai"
"""The prefix of the ids of traces that DevAI's judgements speak of: `devai/AGENT/TASK`."""


class LabelModel(BaseModel):
    """A line of our own format; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", strict=True)

    trace: str = Field(min_length=1)
    """The trace's id."""
    item: str = Field(default=DIALOGUE, min_length=1)
    """The item's id; left out where the label speaks of the whole dialogue."""
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

    @model_validator(mode="after")
    def _whole_dialogue_has_no_turn(self) -> Self:
        if self.item == DIALOGUE and self.turn is not None:
            raise ValueError("a turn and no item; name the item, or leave out the turn: the whole dialogue is meant")
        return self

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
    criteria: str | None = None
    dependence: list[int] | None = None
    category: str | None = None
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


def read_label(record: JSON, **options: Any) -> tuple[Label, ...]:
    """The labels of a record. Its keys say which of the two formats it is of. Raises TraceError.

    >>> read_label({"trace": "t", "item": "polite", "rater": "ann", "value": True})[0].value
    True
    """
    model = DevaiModel if isinstance(record, dict) and {"human", "judge"} <= record.keys() else LabelModel
    try:
        return model.model_validate(record).labels()
    except ValidationError as error:
        raise TraceError(
            f"{first_problem(error, whole='the record')}; expected {{trace, rater, value (true, false or null)}}"
            " and at most {item, turn, task, note}"
        ) from error


__all__ = ["DEVAI", "DevaiModel", "LabelModel", "read_label"]
