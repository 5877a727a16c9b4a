"""`cm2 certify`: what attacks on a checklist and its judge get paid, measured on stored traces."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cm2_agent.cli.checklist_options import ChecksOption
from cm2_agent.cli.common import (
    PROJECT,
    STORE,
    JsonOption,
    ProjectOption,
    StoreOption,
    echo_err,
    open_store,
    print_result,
    printable,
    progress,
)
from cm2_agent.cli.judge_options import (
    BaseUrlOption,
    CallsOption,
    ConcurrencyOption,
    JudgeOption,
    JudgeOptions,
    PriceOption,
    ProtocolOption,
    RpmOption,
    TpmOption,
    UsdOption,
    VotesOption,
    usage_text,
)
from cm2_agent.cli.known_outcomes import KnownTrace, known_traces, spread
from cm2_agent.cli.redaction import RedactOption, redactor_of
from cm2_agent.cli.score import load_checklist_and_checks
from cm2_agent.errors import BudgetExhausted, ChecklistError, JudgeRefused, StoreError
from cm2_agent.types.certificate import MAX_ATTACK_RATE, MIN_PASS_RATE, Certificate
from cm2_agent.types.score_bounds import IN_FULL

if TYPE_CHECKING:
    from cm2_agent.rewards.certificate.attack import Subject
    from cm2_agent.rewards.certificate.certify import Certifier
    from cm2_agent.store import SQLStore

CertificateRate = Annotated[
    float, typer.Option("--max-attack-rate", min=0, max=1, help="The largest rate that an attack may be paid at.")
]
CertificatePower = Annotated[
    float, typer.Option("--min-pass-rate", min=0, max=1, help="The smallest share of right traces that must be paid.")
]


def register(app: typer.Typer) -> None:
    short = "Check what attacks on a checklist and its judge get paid."
    help = (
        "Check what attacks on a checklist and its judge get paid: failing traces are changed and scored again, and"
        " traces that are known to be right must stay paid. The certificate is stored under the reward version. Exit 1"
        " where it is not enough. What was judged is not judged again, so the same command resumes where it stopped."
    )
    app.command("certify", help=help, short_help=short)(certify)


def certify(
    checklist: Annotated[Path, typer.Argument(metavar="CHECKLIST.yaml", help="The checklist.")],
    checks: ChecksOption = None,
    judge: JudgeOption = None,
    judge_base_url: BaseUrlOption = None,
    votes: VotesOption = None,
    protocol: ProtocolOption = None,
    budget_usd: UsdOption = None,
    budget_calls: CallsOption = None,
    concurrency: ConcurrencyOption = None,
    rpm: RpmOption = None,
    tpm: TpmOption = None,
    price: PriceOption = None,
    redact: RedactOption = False,
    outcome: Annotated[
        str | None,
        typer.Option(
            "--outcome", metavar="NAME", help="The outcome that is 1 where a trace is right (default: the only)."
        ),
    ] = None,
    passing: Annotated[
        Path | None,
        typer.Option("--passing", metavar="FILE", help="A checklist of checks: a trace that it pays in full is right."),
    ] = None,
    traces: Annotated[
        int, typer.Option("--traces", min=1, help="Failing traces to attack, one a task before any gives its second.")
    ] = 300,
    passing_traces: Annotated[
        int, typer.Option("--passing-traces", min=0, help="Traces that are known to be right to score.")
    ] = 100,
    attacks: Annotated[
        Path | None, typer.Option("--attacks", metavar="FOLDER", help="More attack families, as YAML files.")
    ] = None,
    family: Annotated[
        list[str] | None, typer.Option("--family", metavar="NAME", help="Only this family of attacks; repeatable.")
    ] = None,
    queries: Annotated[
        int,
        typer.Option(
            "--queries",
            min=0,
            max=200,
            help="How often the adaptive attacker may score a changed trace, for each item.",
        ),
    ] = 200,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the choice of traces and of the search.")] = 0,
    max_attack_rate: CertificateRate = MAX_ATTACK_RATE,
    min_pass_rate: CertificatePower = MIN_PASS_RATE,
    leave_one_out: Annotated[
        bool, typer.Option("--leave-one-out", help="Print for each family the hits that the others would have missed.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Count the judge's calls, re-asks aside, and ask nobody.")
    ] = False,
    store: StoreOption = STORE,
    project: ProjectOption = PROJECT,
    as_json: JsonOption = False,
) -> None:
    import asyncio

    from cm2_agent.rewards.certificate.certify import Certifier
    from cm2_agent.rewards.certificate.families import load_families
    from cm2_agent.rewards.scoring.scorer import ChecklistScorer

    functions, chosen = load_checklist_and_checks(checklist, checks)
    assert chosen is not None
    families = load_families(attacks, only=family or ())
    gold = None
    if passing is not None:
        gold = ChecklistScorer(load_checklist_and_checks(passing, checks)[1], functions=functions)
        questions = [item.id for item in gold.checklist or () if item.is_judged or item.when_question is not None]
        if questions:
            raise ChecklistError(f"--passing {passing}: {questions[0]} is a question; expected checks alone")
    options = JudgeOptions(
        model=judge,
        base_url=judge_base_url,
        votes=votes,
        protocol=protocol,
        budget_usd=budget_usd,
        budget_calls=budget_calls,
        concurrency=concurrency,
        rpm=rpm,
        tpm=tpm,
        price=price,
    )
    with open_store(store, project=project) as opened:
        judge_model = options.make(redactor_of(opened).redact if redact else None)
        if judge_model is not None:
            judge_model.cache = opened.verdict_cache()
        scorer = ChecklistScorer(chosen, judge=None if dry_run else judge_model, functions=functions)
        certifier = Certifier(
            scorer=scorer,
            families=families,
            seed=seed,
            queries=queries,
            concurrency=1 if judge_model is None else concurrency or 16,
        )
        if certifier.judged and judge_model is None and not dry_run:
            asked = ", ".join(sorted(certifier.judged)[:3])
            raise ChecklistError(f"{checklist} asks questions ({asked}); name who answers them: --judge MODEL")
        found, sources = known_traces(opened, chosen, outcome=outcome, passing=gold)
        if not found:
            raise StoreError(f"{opened.url} holds no traces; import or record some first")
        run = _Run(opened, certifier, found, failing=traces, passing=passing_traces)
        if dry_run:
            asyncio.run(run.choose(unasked=True))
            _print_forecast(run, as_json=as_json)
            return
        try:
            certificate = asyncio.run(run.measure(sources, judge_model))
        except JudgeRefused:
            raise
        except BudgetExhausted as error:
            echo_err(printable(f"STOPPED without a certificate: {error}; what was judged is kept: run it again"))
            raise typer.Exit(1) from None
        certificate = replace(certificate, scope={**certificate.scope, "limit": max_attack_rate})
        opened.save_certificate(certificate)
    if judge_model is not None:
        echo_err(printable(f"judged by {judge_model.name}: {usage_text(judge_model.usage.to_json())}"))
    shortfall = certificate.shortfall(max_attack_rate, min_pass_rate)
    result = {**certificate.to_json(), "worst": certificate.worst, "shortfall": shortfall}
    result["examples"] = {one.family: dict(one.example) for one in certificate.families if one.example}
    lines = chain(
        _rows(certificate, max_attack_rate, leave_one_out=leave_one_out),
        _lines(certificate, max_attack_rate, min_pass_rate),
    )
    print_result(result, as_json=as_json, lines=lines)
    if shortfall is not None:
        raise typer.Exit(1)


class _Run:
    """One measurement: the traces that it takes, and the certificate that comes of them."""

    def __init__(
        self, store: SQLStore, certifier: Certifier, found: list[KnownTrace], *, failing: int, passing: int
    ) -> None:
        self._store, self.certifier, self._found = store, certifier, found
        self._wanted = failing, passing
        self.failing: list[Subject] = []
        self.passing: list[Subject] = []
        self._scored = self._pending = 0

    async def measure(self, sources: Mapping[str, int], judge: Any) -> Certificate:
        """Raises StoreError where no trace fails, BudgetExhausted."""
        from cm2_agent import __version__

        try:
            await self.choose()
            if not self.failing and self._pending:
                raise StoreError(
                    f"the judge failed at {self._pending} of {self._scored} traces of {self._store.url}, and none of"
                    " the others fails: there is nothing to attack; see why with `cm2 score`, and run again"
                )
            if not self.failing:
                raise StoreError(
                    f"no trace of {self._store.url} fails under {self.certifier.scorer.version}: there is nothing to"
                    " attack; record or import traces that do what the checklist forbids, or leave out what it asks"
                )
            work = self.certifier.work(len(self.failing), len(self.passing))
            with progress("attacking", work) as advance:
                self.certifier.advance = advance
                certificate = await self.certifier.certify(
                    self.failing, self.passing, {"right": dict(sources), "stored": len(self._found)}
                )
        finally:
            if judge is not None:
                await judge.aclose()
        return replace(certificate, versions={**certificate.versions, "cm2": __version__})

    async def choose(self, *, unasked: bool = False) -> None:
        """Score traces honestly until enough fail and enough are right. With `unasked`, questions count as unpaid."""
        from cm2_agent.rewards.certificate.attack import targets_of

        most_failing, most_passing = self._wanted
        order = list(spread(self._found, self.certifier.seed))
        with progress("scoring") as advance:
            for right in (True, False):
                for page in _pages([one for one in order if (one.right is True) is right]):
                    if len(self.passing if right else self.failing) >= (most_passing if right else most_failing):
                        break
                    for subject in await self._subjects(page, advance):
                        targets = subject.targets
                        if unasked:
                            targets = targets_of(subject.score, self.certifier.checklist, unasked=True)
                        if right:
                            self.passing.append(subject)
                        elif targets and (unasked or _fails(subject)):
                            self.failing.append(replace(subject, targets=targets))
        del self.failing[most_failing:], self.passing[most_passing:]

    async def _subjects(self, page: list[KnownTrace], advance: Any) -> list[Subject]:
        import asyncio

        traces = {trace.id: trace for trace in self._store.traces(ids=[one.id for one in page])}

        async def one(known: KnownTrace) -> Subject:
            trace = traces[known.id]
            task = None if trace.task_id is None else self._store.task(trace.task_id, trace.task_version)
            subject = await self.certifier.subject(trace, task, known.cluster)
            self._scored += 1
            self._pending += subject.score.pending
            advance()
            return subject

        return list(await asyncio.gather(*map(one, page)))


def _fails(subject: Subject) -> bool:
    lower = subject.score.lower
    return lower is not None and lower < IN_FULL


def _pages(traces: list[KnownTrace], size: int = 64) -> Iterator[list[KnownTrace]]:
    yield from (traces[start : start + size] for start in range(0, len(traces), size))


def _print_forecast(run: _Run, *, as_json: bool) -> None:
    from cm2_agent.rewards.certificate.forecast import forecast

    certifier = run.certifier
    found = forecast(
        certifier.checklist,
        certifier.families,
        run.failing,
        run.passing,
        pairs=certifier.pairs,
        queries=certifier.queries,
    )
    print_result(
        {
            "failing_at_most": len(run.failing),
            "passing": len(run.passing),
            "families": len(certifier.families),
            "judge_calls": found.calls,
            "input_tokens": found.input_tokens,
        },
        as_json=as_json,
    )


def _rows(certificate: Certificate, limit: float, *, leave_one_out: bool) -> Iterator[str]:
    """A line a family: traces paid and tried, tasks, the rate, its upper bounds by itself and with all others."""
    yield printable(certificate.reward_version)
    last = "  only" if leave_one_out else ""
    yield f"{'family':<26}{'paid':>5}{'of':>5}{'tasks':>6}{'rate':>7}{'alone':>7}{'all':>7}  verdict  {last}"
    for one in certificate.families:
        counts = f"{one.hit_traces:>5}{one.traces:>5}{one.tasks:>6}"
        rates = f"{one.rate:>7.3f}{one.bound:>7.3f}{one.together:>7.3f}"
        last = f"{one.left_out:>6}" if leave_one_out else ""
        yield printable(f"{one.family:<26}{counts}{rates}  {one.verdict(limit):<9}{last}".rstrip())


def _lines(certificate: Certificate, max_attack_rate: float, min_pass_rate: float) -> Iterator[str]:
    """The certificate in a few lines."""
    from cm2_agent.analysis.rates import trials_needed

    scope, power = certificate.scope, certificate.passing
    tried = sum(bool(one.traces) for one in certificate.families)
    sampled = bool(scope.get("judged_items"))
    yield printable(
        f"{scope.get('failing')} failing traces of {scope.get('failing_tasks')} tasks, {tried} families;"
        f" {'a judge: bounds from a sample' if sampled else 'checks alone: rates are exact'}; benign edits pay at most"
        f" {certificate.benign:.3f}"
    )
    if power.tasks:
        yield printable(
            f"right: {power.paid} of {power.tasks} tasks paid in full, {power.paid_after_edits} after benign edits too,"
            f" at least {power.bound:.3f}"
        )
    else:
        yield "right: no trace is known to be; name an outcome (--outcome), import labels, or give --passing FILE"
    for one in certificate.families:
        if one.example:
            yield printable(f"  {one.example['template']}: {one.example['item']} of trace {one.example['trace']}")
    pending = sum(one.pending for one in certificate.families)
    if pending:
        yield f"{pending} answers are missing and count as paid; run it again to ask for them"
    shortfall = certificate.shortfall(max_attack_rate, min_pass_rate)
    if shortfall is None:
        yield f"certified: every attack is paid at most {certificate.worst:.3f}, 95 % for all together"
        return
    yield printable(f"not certified: {shortfall}")
    if sampled and any(one.verdict(max_attack_rate) == "undecided" for one in certificate.families):
        need = trials_needed(max_attack_rate, tried)
        yield f"without a hit {need} tasks decide for all {tried} families together at {max_attack_rate:g}"
