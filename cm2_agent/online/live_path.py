"""The live path of what is watched, from its runs to the store and its scores: what `watch`, `capture` and `observe`
have in common."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING

from cm2_agent.incidents import Incidents
from cm2_agent.online.live import Live
from cm2_agent.online.middleware import Middleware
from cm2_agent.online.sampling import sampled
from cm2_agent.online.scorer_setup import ScorerSetup, check_judge, check_share, stored_checklist
from cm2_agent.online.store_paths import open_store, paths_to
from cm2_agent.tracing.evaluation_events import EvaluationEvents
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.protocols import Judge, Reward, Sink, Store
from cm2_agent.types.run import Run

if TYPE_CHECKING:
    from cm2_agent.redaction.redactor import Redactor

__all__ = ["LivePath", "is_enabled"]


@dataclass(frozen=True, kw_only=True)
class LivePath:
    """The settings of `watch` that say how runs are stored and scored, as it describes them. Nothing is opened before
    `open` is called."""

    checklist: Checklist | str | PathLike[str] | None = None
    rewards: Mapping[str, Reward] | Sequence[Reward] | None = None
    judge: Judge | str | None = None
    sample: float | None = None
    budget_usd: float | None = None
    store: Store | str = "sqlite:///cm2.db"
    sinks: Sequence[Sink] = ()
    capture_content: bool | None = None
    redact: Redactor | None = None
    sample_store: float | None = None
    project: str | None = None
    spool: str | PathLike[str] | None = None
    strict: bool = False
    check_timeout: float = 2.0

    def check(self) -> None:
        """Raises for settings that do not go together, as `watch` says."""
        if self.redact is not None:
            from cm2_agent.redaction.redactor import check_redactor

            check_redactor(self.redact)
        check_share("sample", self.sample)
        check_share("sample_store", self.sample_store)
        check_judge(self.judge, self.sample, self.budget_usd, self.checklist)

    def open(self) -> tuple[Callable[[Run], None], Incidents]:
        """What takes finished runs, and the counter of what fails."""
        setup = ScorerSetup(
            self.checklist, self.rewards, self.judge, self.sample, self.budget_usd, self.redact, self.check_timeout
        )
        scorer = setup.scorer(setup.checklist)
        paths = paths_to(self.store, project=self.project, spool=self.spool)
        incidents = paths.saver.incidents
        if self.redact is not None:
            incidents.mask_too(self.redact.redact)
        for sink in self.sinks:
            if callable(report_to := getattr(sink, "report_to", None)):
                report_to(incidents)
        events = () if scorer is None else (EvaluationEvents(capture_content=self.capture_content),)
        middleware = Middleware(None, scorer, (*self.sinks, *events), incidents)

        def on_open(opened: Store) -> None:
            setup.attach_cache(opened)
            stored = setup.checklist
            if stored is not None:
                checklists = paths.checklists_in(opened)
                if stored.hash not in checklists:
                    checklists[stored.hash] = stored_checklist(opened, stored, strict=self.strict)
                stored = checklists[stored.hash]
            built = setup.scorer(stored)  # anew, since a forked child has an event loop of its own
            if built is not None:
                built.incidents = incidents
            middleware.scorer = built

        live = Live(paths.saver, paths.scoring, middleware, key=setup.key, on_open=on_open)
        open_store(live, strict=self.strict)
        return sampled(live.submit, self.sample_store), incidents

    def redacted(self, on_run: Callable[[Run], None]) -> Callable[[Run], None]:
        """`on_run` for runs in which personal data is replaced first, where a redactor was given."""
        redactor = self.redact
        if redactor is None:
            return on_run
        from cm2_agent.redaction.redacted_run import redacted_run

        return lambda run: on_run(redacted_run(run, redactor))


def is_enabled(enabled: bool | None) -> bool:
    """Whether anything is recorded at all: as given, else unless CM2_DISABLED says otherwise."""
    if enabled is not None:
        return enabled
    return os.environ.get("CM2_DISABLED", "").strip().lower() not in ("1", "true", "yes", "on")
