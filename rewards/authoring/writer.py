"""ChecklistWriter: a reference dialogue in, a checklist out that was tried on it.

One call a dialogue writes the items; at most one more shows what failed and has these written anew. An item that fails
again is dropped, and what depended on it no longer does. A dialogue without a checklist (the model failed, it died,
nothing sound was left) gives a reason, never a checklist of what happened to be there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cm2_agent.errors import BudgetExhausted, JudgeError, ModelError
from cm2_agent.llm.limits import RateLimits
from cm2_agent.llm.untrusted_text import nonce
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.checklist_item import Item
from cm2_agent.types.protocols import Judge
from cm2_agent.types.task import RecordedCall, Task
from cm2_agent.types.trace import Trace

from .client import WriterSession
from .prompt import (
    LabelItem,
    Rewritten,
    first_question,
    instructions,
    malformed_question,
    prompt_version,
    read_reply,
    second_question,
)
from .validation import Faults, Trial, lint, run_trials, select

if TYPE_CHECKING:
    from pydantic_ai.models import Model

LABEL = "label"
"""The key of a task's metadata under which it says what its checklist was written from: trace, model, prompt."""


@dataclass(frozen=True, kw_only=True)
class WrittenChecklist:
    """What became of one reference. `checklist` is None where `reason` says why. `written` counts the items of the
    first answer; `rewritten` are the ids of kept items that needed the second call; `dropped` and `unchecked` say why,
    by id; `unlinked` counts the dependencies that went with what they waited for; `corrupted` the wrong dialogues that
    items were tried on."""

    trace_id: str
    checklist: Checklist | None = None
    reason: str | None = None
    written: int = 0
    rewritten: tuple[str, ...] = ()
    dropped: Mapping[str, str] = field(default_factory=dict)
    unchecked: Mapping[str, str] = field(default_factory=dict)
    unlinked: int = 0
    corrupted: int = 0
    calls: int = 0

    @property
    def checked(self) -> int:
        """How many kept items passed every trial."""
        return 0 if self.checklist is None else len(self.checklist.items) - len(self.unchecked)


class ChecklistWriter:
    """Writes checklists with a model, from reference dialogues.

    Raises MissingExtra where the provider's package is not installed, ModelError where the model cannot be used.

    Args:
        model: A pydantic-ai model or its name (`openai:gpt-5-mini`).
        base_url: Address of an OpenAI-compatible server, in place of the provider's.
        api_key: Sent to that server, and no other key is.
        judge: Tries the questions too, on its own budget; without one they stay, reported as unchecked.
        limits: Bound the calls of the writing model.
        settings: pydantic-ai model settings.
        timeout: Seconds a request may take.
        retries: Requests beyond the first where the provider failed.
        backoff: Seconds before the first retry, doubled at each.

    >>> from pydantic_ai.models.function import FunctionModel
    >>> from cm2_agent.rewards import ChecklistWriter
    >>> ChecklistWriter(FunctionModel(lambda messages, info: None, model_name="scripted")).model_name
    'scripted'
    """

    def __init__(
        self,
        model: str | Model,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        judge: Judge | None = None,
        limits: RateLimits | None = None,
        settings: Mapping[str, Any] | None = None,
        timeout: float = 300.0,
        retries: int = 3,
        backoff: float = 1.0,
    ) -> None:
        self.model = _model(model, base_url, api_key)
        self.judge = judge
        self.limits = limits or RateLimits()
        self.call_options: dict[str, Any] = {
            "settings": settings,
            "timeout": timeout,
            "retries": retries,
            "backoff": backoff,
        }

    @property
    def model_name(self) -> str:
        return self.model.model_name

    async def __call__(self, reference: Trace, task: Task | None = None, *, block: bool = False) -> WrittenChecklist:
        """The reference's checklist, named after the task (or the trace) and with the task's version. A task with a
        simulated user, and any other with `block`, gets items of the closing block alone. Raises BudgetExhausted where
        the limits allow no further call: nothing is kept of the trace then."""
        why = _unusable(reference)
        if why is not None:
            return WrittenChecklist(trace_id=reference.id, reason=why)
        draft = _Draft(writer=self, reference=reference, task=task or task_of(reference), block=block)
        try:
            return await draft.done()
        except BudgetExhausted:
            raise
        except (ModelError, JudgeError) as error:
            return WrittenChecklist(trace_id=reference.id, reason=str(error), calls=draft.session.calls)


class _Draft:
    """The checklist of one reference in the making: the conversation with the model, and the items as they stand."""

    def __init__(self, *, writer: ChecklistWriter, reference: Trace, task: Task, block: bool) -> None:
        self.writer, self.reference, self.task = writer, reference, task
        self.block = block or task.scripted_turns is None
        self.tools = {tool.name for tool in task.tools} | {
            call.name for step in reference.steps for call in step.message.tool_calls
        }
        self.mark = nonce()
        self.session = WriterSession(
            writer.model, instructions=instructions(self.block), limits=writer.limits, **writer.call_options
        )
        self.corrupted = 0

    async def done(self) -> WrittenChecklist:
        items, asked_again = await self._first()
        written = len(items)
        faults, trial = await self._tried(items)
        rewritten: tuple[str, ...] = ()
        dropped: dict[str, str] = {}
        unchecked, unlinked = trial.unchecked, 0
        if faults:
            if not asked_again:
                items, rewritten = await self._again(items, faults)
                dropped = {name: "; ".join(reasons) for name, reasons in faults.items() if name not in rewritten}
            items, dropped, unchecked, unlinked = await self._settled(
                items, set(trial.passed) - set(rewritten), dropped
            )
        found: dict[str, Any] = {
            "trace_id": self.reference.id,
            "written": written,
            "dropped": dropped,
            "unchecked": unchecked,
            "unlinked": unlinked,
            "corrupted": self.corrupted,
            "calls": self.session.calls,
            "rewritten": tuple(name for name in rewritten if name not in dropped),
        }
        if not items:
            return WrittenChecklist(
                **found,
                reason="no item was sound: " + "; ".join(f"{name}: {why}" for name, why in dropped.items())[:500],
            )
        return WrittenChecklist(
            **found, checklist=Checklist(*map(Item.from_model, items), name=self.task.id, version=self.task.version)
        )

    async def _first(self) -> tuple[Sequence[LabelItem], bool]:
        """The items, and whether the second call was needed to read any."""
        text = await self.session.ask(first_question(self.reference, self.task.tools, self.mark))
        try:
            return read_reply(text), False
        except ModelError as error:
            text = await self.session.ask(malformed_question(str(error), self.mark))
        try:
            return read_reply(text), True
        except ModelError as error:
            raise ModelError(
                f"{self.writer.model_name} gave no checklist that could be read, twice: {error}"
            ) from error

    async def _tried(self, items: Sequence[LabelItem]) -> tuple[Faults, Trial]:
        """What fails, by lint or by trial, and what came of trying the items that have no lint."""
        faults: Faults = {}
        sound = list(items)
        while sound and (
            found := lint(sound, self.reference, self.tools, block=self.block)
        ):  # weights can be wrong once others are dropped
            faults.update(found)
            sound, _ = select(sound, found)
        trial = await run_trials(sound, self.reference, self.writer.judge) if sound else Trial()
        self.corrupted += trial.corrupted
        return {**faults, **trial.faults}, trial

    async def _again(self, items: Sequence[LabelItem], faults: Faults) -> tuple[list[LabelItem], tuple[str, ...]]:
        """The items with the failed ones as the second call writes them; those that it leaves out, or garbles, are
        out."""
        written = {
            item.id: item.model_dump(mode="json", by_alias=True, exclude_defaults=True)
            for item in items
            if item.id in faults
        }
        text = await self.session.ask(second_question(written, faults, self.mark))
        try:
            new = {item.id: item for item in read_reply(text, Rewritten) if item.id in faults}
        except ModelError:
            new = {}  # nothing was saved; each failed item is dropped for what it failed
        merged = [new.get(item.id, item) for item in items if item.id not in faults or item.id in new]
        return merged, tuple(new)

    async def _settled(
        self, items: Sequence[LabelItem], passed: set[str], failed: Mapping[str, str]
    ) -> tuple[list[LabelItem], dict[str, str], Mapping[str, str], int]:
        """What is left when everything that fails is dropped, until nothing does; each pass drops an item or is the
        last."""
        dropped, unlinked = dict(failed), 0
        left, links = select(items, dropped)
        unlinked += links
        while left:
            faults = lint(left, self.reference, self.tools, block=self.block)
            if not faults:
                open_ = {item.id for item in left} - passed
                trial = await run_trials(left, self.reference, self.writer.judge, open_)
                self.corrupted += trial.corrupted
                passed |= trial.passed & open_
                faults = trial.faults
                if not faults:
                    return left, dropped, trial.unchecked, unlinked
            dropped.update({name: "; ".join(reasons) for name, reasons in faults.items()})
            left, links = select(left, faults)
            unlinked += links
        return left, dropped, {}, unlinked


def task_of(reference: Trace, base: Task | None = None) -> Task:
    """The task that the reference is a dialogue of: `base`, else what the trace shows (its user's words as scripted
    turns, its system message, its tools and the calls that answered)."""
    if base is not None:
        return base
    from ..judges.transcript import user_text

    system = next((message.text for message in reference.messages if message.role == "system"), None)
    tools = {tool.name: tool for call in reference.calls for tool in call.tools}
    recorded = [
        RecordedCall(name=use.call.name, arguments=use.arguments, result=use.response.response)
        for step in reference.steps
        for use in step.tool_uses
        if use.status in ("ok", "answered") and use.response is not None and isinstance(use.arguments, Mapping)
    ]
    return Task(
        id=reference.task_id or reference.id,
        system=system,
        turns=tuple(user_text(turn) for turn in reference.turns),
        tools=tuple(tools.values()),
        recorded=tuple(recorded),
    )


def task_with_checklist(task: Task, found: WrittenChecklist, model: str) -> Task:
    """The task with the checklist that a ChecklistWriter wrote for it.

    Args:
        task: The task; its `metadata` will say under `label` what the checklist was written from.
        found: What the writer answered.
        model: The writer's `model_name`.

    Raises:
        ValueError: No checklist was written; the message says why.

    >>> from cm2_agent import Checklist, Item, Task
    >>> from cm2_agent.rewards import WrittenChecklist, task_with_checklist
    >>> written = Checklist(Item("replies", check={"replied": True}), name="where")
    >>> found = WrittenChecklist(trace_id="t", checklist=written)
    >>> task = task_with_checklist(Task(id="where", turns=["Where is order 7?"]), found, "openai:gpt-5-mini")
    >>> [item.id for item in task.own_checklist()]
    ['replies']
    """
    if found.checklist is None:
        raise ValueError(f"trace {found.trace_id!r} has no checklist: {found.reason}")
    label = {"trace": found.trace_id, "model": model, "prompt": prompt_version(), "unchecked": sorted(found.unchecked)}
    changes = {"checklist": found.checklist.to_json(), "metadata": {**task.metadata, LABEL: label}}
    return Task.model_validate({**task.to_json(), **changes})


def _unusable(reference: Trace) -> str | None:
    if reference.failure is not None:
        return f"the dialogue died ({reference.failure.kind}); a reference must have ended well"
    if not reference.turns:
        return "the dialogue has no turn that the assistant answered; a reference needs one"
    if reference.runs[-1].status in ("error", "cancelled"):
        return f"the dialogue ended with status {reference.runs[-1].status}; a reference must have ended well"
    return None


def _model(model: str | Model, base_url: str | None, api_key: str | None) -> Model:
    from cm2_agent.llm.providers import language_model, openai_model

    if base_url is not None and isinstance(model, str):
        return openai_model(base_url, model, api_key)
    return language_model(model, of="labelling model")


__all__ = ["LABEL", "ChecklistWriter", "WrittenChecklist", "task_of", "task_with_checklist"]
