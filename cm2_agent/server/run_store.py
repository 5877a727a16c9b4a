"""Complete traces into stored runs, and these to the scorer: the way that the runs of a watched graph go."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike
from typing import Any

from cm2_agent.dialects.span_record import SpanRecord
from cm2_agent.dialects.span_runs import runs_of
from cm2_agent.errors import ConflictError, StoreError, TraceError
from cm2_agent.incidents import Incidents
from cm2_agent.online.forks import DATABASE
from cm2_agent.online.middleware import Middleware
from cm2_agent.online.save_errors import meaning_of
from cm2_agent.online.scorer_setup import ScorerSetup, stored_checklist
from cm2_agent.online.scoring import ScoringPath
from cm2_agent.server.assembly import Complete
from cm2_agent.store.received import ReceivedSpans
from cm2_agent.store.sql_store import SQLStore
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.run import Run

__all__ = ["RunStore"]

_STALLED = 60.0


@dataclass(eq=False)
class _Project:
    """Where the runs of one project go; the scoring path asks for `key` and `middleware`."""

    store: SQLStore
    scoring: ScoringPath
    middleware: Middleware
    key: str | None


class RunStore:
    """Builds, stores and scores runs, each in its own project. `policy` names the weights that wrote what is received:
    the clients are not asked. `keep`: the spans of stored runs stay for those that come late."""

    def __init__(
        self,
        store: SQLStore,
        received: ReceivedSpans,
        incidents: Incidents,
        *,
        checklist: Checklist | str | PathLike[str] | None = None,
        policy: str | None = None,
        keep: bool = True,
    ) -> None:
        self._store, self._received, self._incidents = store, received, incidents
        self._policy, self._keep = policy, keep
        self._setup = ScorerSetup(checklist, None, None, None, None)
        self._checklist = self._setup.checklist
        if self._checklist is not None:
            self._checklist = stored_checklist(store, self._checklist, strict=False)
        self._projects: dict[str, _Project] = {}
        self.saved = 0

    def build(self, complete: Sequence[Complete]) -> list[tuple[str, str]]:
        """Store the runs of these traces; answers which (project, trace) are stored. Raises StoreError where the store
        is away."""
        done: list[tuple[str, str]] = []
        by_project: dict[str, list[Complete]] = {}
        for one in complete:
            by_project.setdefault(one.project, []).append(one)
        for name, traces in by_project.items():
            project = self._project(name)
            built = {one.trace: runs for one in traces if (runs := self._runs(one.spans)) is not None}
            new = [one for one in traces if one.trace in built and not one.again]
            rows = [(name, one.trace, one.batch) for one in new]
            failed = self._save(project, {one.trace: built[one.trace] for one in new}, rows)
            for one in traces:
                if one.trace in built and one.again and not self._save_again(project, one, built[one.trace]):
                    failed.add(one.trace)
            done += [(name, one.trace) for one in traces if one.trace in built and one.trace not in failed]
        return done

    def flush(self, timeout: float) -> bool:
        """Wait until what was stored is scored; False where that took longer than so many seconds."""
        deadline = time.monotonic() + timeout
        waits = [project.scoring.flush(deadline, _STALLED) for project in list(self._projects.values())]
        return all(waits)

    def _project(self, name: str) -> _Project:
        found = self._projects.get(name)
        if found is None:
            store = self._store if name == self._store.project else self._store.in_project(name)
            middleware = Middleware(store, self._setup.scorer(self._checklist), (), self._incidents)
            found = _Project(store, ScoringPath(self._incidents), middleware, self._setup.key)
            self._projects[name] = found
        return found

    def _runs(self, spans: Sequence[SpanRecord]) -> list[Run] | None:
        """The runs of one trace; None where they could not be built, which is counted."""
        try:
            found = runs_of(spans)
        except Exception as error:
            self._incidents.add("received spans could not be built", error)
            return None
        for reason, count in found.unread.items():
            self._incidents.add("received spans are no part of a dialogue", TraceError(reason), number=count)
        return [self._with_policy(run) for run in found.runs]

    def _with_policy(self, run: Run) -> Run:
        if self._policy is None or all(call.model_version is not None for call in run.calls):
            return run
        calls = [
            call if call.model_version is not None else replace(call, model_version=self._policy) for call in run.calls
        ]
        return replace(run, calls=tuple(calls))

    def _save(
        self, project: _Project, built: Mapping[str, Sequence[Run]], rows: Sequence[tuple[str, str, int]]
    ) -> set[str]:
        """Store the runs of new traces, and have them scored; the traces of which one was refused. Their spans, in
        these rows, are settled in the same transaction: after a crash between, spans that come later would make another
        run beside the stored one."""
        runs = [run for own in built.values() for run in own]
        failed: set[str] = set()
        if runs:
            try:
                with DATABASE:
                    self.saved += project.store.save_runs(runs, also=partial(self._settle, rows))
            except Exception as error:
                if meaning_of(error) == "away":
                    raise
                failed, runs = self._save_each(project, built)
            self._score(project, runs)
        return failed

    def _settle(self, rows: Sequence[tuple[str, str, int]], target: Any) -> None:
        self._received.settle_within(target, rows, keep=self._keep)

    def _save_each(self, project: _Project, built: Mapping[str, Sequence[Run]]) -> tuple[set[str], list[Run]]:
        failed: set[str] = set()
        saved: list[Run] = []
        for trace, runs in built.items():
            for run in runs:
                try:
                    saved.append(self._save_one(project, run))
                except Exception as error:
                    if meaning_of(error) == "away":
                        raise
                    self._incidents.add("a run was not saved", error)
                    failed.add(trace)
        return failed, saved

    def _save_one(self, project: _Project, run: Run) -> Run:
        try:
            with DATABASE:
                self.saved += project.store.save_runs([run])
        except ConflictError:  # spans of a run whose own are gone: too late to join them
            first = run.calls[0].span_id if run.calls else run.tools[0].span_id if run.tools else "late"
            run = replace(run, id=f"{run.id}~{first}")
            with DATABASE:
                self.saved += project.store.save_runs([run])
        return run

    def _save_again(self, project: _Project, one: Complete, runs: Sequence[Run]) -> bool:
        """Put the runs of a trace whose spans have become more in the place of what is stored. False where one was
        refused."""
        runs = [*_renamed(runs, self._runs(one.before) or [])]
        with DATABASE:
            stored = project.store.trace_ids([run.id for run in runs])
        failed, saved = self._save_each(project, {one.trace: [run for run in runs if run.id not in stored]})
        known = {run.id: run for run in self._runs(one.before) or []}
        changed = [run for run in runs if run.id in stored and known.get(run.id) != run]
        for run in changed:
            try:
                with DATABASE:
                    trace_id = project.store.replace_run(run)
                    trace = project.store.trace(trace_id)
            except StoreError as error:
                if meaning_of(error) == "away":
                    raise
                self._incidents.add("a late span could not join its run", error)
                return False
            if trace is not None:
                project.scoring.traces.put(trace)
            saved.append(run)
        self._score(project, saved)
        return not failed

    def _score(self, project: _Project, runs: Sequence[Run]) -> None:
        if project.middleware.scorer is None or not runs:
            return
        with DATABASE:
            placed = project.store.trace_ids([run.id for run in runs])
        for run in runs:
            if run.id in placed:
                project.scoring.traces.add(placed[run.id], run)
        project.scoring.submit(project, dict.fromkeys(placed.values()))


def _renamed(runs: Sequence[Run], before: Sequence[Run]) -> list[Run]:
    """The runs under the ids that they are stored by: a span that came late may be the first of a run, which gives it
    another."""
    taken = {run.id for run in runs}
    spans = {span: run.id for run in before if run.id not in taken for span in _spans(run)}
    out = []
    for run in runs:
        old = next((spans[span] for span in _spans(run) if span in spans), None)
        out.append(run if old is None or run.id in {one.id for one in before} else replace(run, id=old))
    return out


def _spans(run: Run) -> list[Any]:
    return [*(call.span_id for call in run.calls), *(tool.span_id for tool in run.tools)]
