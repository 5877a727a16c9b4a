"""`cm2 recertify`: whether what a new policy was paid for is right, so that the certificate holds for it too."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
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
    tracked,
)
from cm2_agent.cli.eval import reward_version
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
from cm2_agent.cli.known_outcomes import KnownTrace, outcome_name, spread
from cm2_agent.cli.redaction import RedactOption, redactor_of
from cm2_agent.cli.score import load_checklist_and_checks
from cm2_agent.errors import BudgetExhausted, ChecklistError, StoreError
from cm2_agent.types.certificate import MIN_PAID, Certificate, PaidCheck, policies_of
from cm2_agent.types.cluster import cluster_of
from cm2_agent.types.human_labels import DIALOGUE, PeopleFound
from cm2_agent.types.score_bounds import IN_FULL

if TYPE_CHECKING:
    from cm2_agent.rewards.scoring.scorer import ChecklistScorer
    from cm2_agent.store import SQLStore
    from cm2_agent.types.trace import Trace


def register(app: typer.Typer) -> None:
    short = "Check what a new policy was paid for, and renew the certificate."
    help = (
        "Check what a new policy was paid for: paid dialogues are drawn, and labels, an outcome or another judge say"
        " whether they are right. The certificate of the reward version then holds for the policy. Exit 1 where too"
        " many are wrong, or it is not known of all. --write gives people the dialogues that nobody judged."
    )
    app.command("recertify", help=help, short_help=short)(recertify)


def recertify(
    checklist: Annotated[Path, typer.Argument(metavar="CHECKLIST.yaml", help="The checklist, for --judge.")],
    checks: ChecksOption = None,
    reward: Annotated[
        str | None, typer.Option("--reward", metavar="VERSION", help="The reward version (default: the newest).")
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option("--policy", metavar="VERSION", help="The policy (default: the only one that was not certified)."),
    ] = None,
    paid: Annotated[
        int,
        typer.Option("--paid", min=MIN_PAID, help="Paid dialogues to draw, one a task before any gives its second."),
    ] = MIN_PAID,
    outcome: Annotated[
        str | None,
        typer.Option("--outcome", metavar="NAME", help="The outcome that is 1 where a dialogue is right."),
    ] = None,
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
    write: Annotated[
        Path | None,
        typer.Option("--write", metavar="FILE", help="Write dialogues that nobody judged, for `cm2 import labels`."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the draw.")] = 0,
    store: StoreOption = STORE,
    project: ProjectOption = PROJECT,
    as_json: JsonOption = False,
) -> None:
    import asyncio

    from cm2_agent.rewards.scoring.scorer import ChecklistScorer

    functions, chosen = load_checklist_and_checks(checklist, checks)
    assert chosen is not None
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
        version = reward_version(opened, reward)
        certificate = opened.certificate(version)
        if certificate is None:
            raise StoreError(f"{version} has no certificate to renew; type first: cm2 certify {checklist}")
        other = options.make(redactor_of(opened).redact if redact else None)
        scorer = None
        if other is not None:
            other.cache = opened.verdict_cache()
            scorer = ChecklistScorer(chosen, judge=other, functions=functions)
            if scorer.version == version:
                raise ChecklistError(f"--judge {judge} is the judge of {version}; name another one")
        draw = PaidDraw.of(opened, certificate, policy, paid, seed)
        draw.ask_people(opened, [item.id for item in chosen.items], outcome)
        try:
            if scorer is not None:
                asyncio.run(draw.ask_judge(opened, scorer, str(judge)))
        except BudgetExhausted as error:
            echo_err(printable(f"STOPPED: {error}; what was judged is kept: run it again"))
            raise typer.Exit(1) from None
        if write is not None:
            draw.write(opened, write)
        found = draw.result()
        if not draw.unknown:
            now = opened.certificate(version) or certificate  # a judge takes its time: another policy's may be renewed
            opened.save_certificate(replace(now, renewals=(*now.renewals, found)))
    if other is not None:
        echo_err(printable(f"judged by {other.name}: {usage_text(other.usage.to_json())}"))
    unknown = len(draw.unknown)
    shortfall = f"nobody said of {unknown} of them whether they are right" if unknown else found.shortfall()
    result = {"reward_version": version, **found.to_json(), "unknown": unknown, "shortfall": shortfall}
    print_result({**result, "wrong_traces": draw.wrong[:20]}, as_json=as_json, lines=_lines(result, draw, write))
    if shortfall is not None:
        raise typer.Exit(1)


@dataclass(kw_only=True)
class PaidDraw:
    """Paid dialogues of a policy, and who says of each whether it is right."""

    policy: str | None
    drawn: Sequence[KnownTrace]
    answers: dict[str, tuple[bool, str]]

    @classmethod
    def of(cls, store: SQLStore, certificate: Certificate, policy: str | None, count: int, seed: int) -> PaidDraw:
        """Raises StoreError where it is not clear which policy is meant, or too few of its dialogues are paid."""
        version = certificate.reward_version
        paid: dict[str | None, list[KnownTrace]] = {}
        for trace in tracked(store.traces(reward=version), "reading"):
            score = store.score(trace.id, version)
            in_full = score is not None and score.lower is not None and score.lower >= IN_FULL
            for one in policies_of([trace]):  # where several wrote, each had its share in what was paid
                of = paid.setdefault(one, [])
                if in_full:
                    of.append(KnownTrace(id=trace.id, cluster=cluster_of(trace.id, trace.task_id), right=None))
        new = sorted(paid.keys() - set(certificate.policies), key=str)
        if policy is None and len(new) != 1:
            names = ", ".join(map(str, new or paid)) or "none"
            raise StoreError(f"it is not clear which policy is meant; name one of {names} with --policy")
        chosen = new[0] if policy is None else policy
        found = paid.get(chosen, [])
        if len(found) < count:
            raise StoreError(
                f"{len(found)} dialogues of policy {chosen} are paid in full under {version}; expected {count} or more:"
                " run and score more of its dialogues"
            )
        ordered = [one for one, _ in zip(spread(found, seed), range(count), strict=False)]
        return cls(policy=chosen, drawn=ordered, answers={})

    @property
    def unknown(self) -> list[str]:
        """The dialogues of which nobody says whether they are right."""
        return [one.id for one in self.drawn if one.id not in self.answers]

    @property
    def wrong(self) -> list[str]:
        return [one.id for one in self.drawn if one.id in self.answers and not self.answers[one.id][0]]

    def ask_people(self, store: SQLStore, items: Sequence[str], outcome: str | None) -> None:
        """What people's labels say, and the outcome; who denies it is believed."""
        people, name = PeopleFound(store.labels()), outcome_name(store, outcome)
        for trace in store.traces(ids=[one.id for one in self.drawn]):
            value = trace.outcomes.get(name) if name is not None else None
            said = [(value >= IN_FULL, f"outcome {name}")] if value is not None else []
            if (right := people.right(trace.id, items)) is not None:
                said.append((right, "human labels"))
            if said:
                self.answers[trace.id] = min(said)

    async def ask_judge(self, store: SQLStore, scorer: ChecklistScorer, name: str) -> None:
        """What another judge pays of the others: in full, or it is wrong. What it cannot decide stays unknown. Raises
        BudgetExhausted."""
        try:
            for trace in store.traces(ids=self.unknown):
                task = None if trace.task_id is None else store.task(trace.task_id, trace.task_version)
                score = await scorer(trace, task)
                if not score.pending:
                    self.answers[trace.id] = (score.lower is not None and score.lower >= IN_FULL, f"judge {name}")
        finally:
            aclose: Any = getattr(scorer.judge, "aclose", None)
            if aclose is not None:
                await aclose()

    def write(self, store: SQLStore, path: Path) -> None:
        """The dialogues that nobody judged, as labels to be filled in, in an order that tells nothing. Raises
        StoreError."""
        lines = [json.dumps(_blank(trace), ensure_ascii=False) for trace in store.traces(ids=self.unknown)]
        random.Random(0).shuffle(lines)
        try:
            path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        except OSError as error:
            raise StoreError(
                f"cannot write {path}: {error.strerror or error}; name a file that can be written"
            ) from None

    def result(self) -> PaidCheck:
        from cm2_agent.analysis.rates import upper

        wrong = set(self.wrong)
        tasks = {one.cluster for one in self.drawn}
        hit = {one.cluster for one in self.drawn if one.id in wrong}
        return PaidCheck(
            policy=self.policy,
            paid=len(self.drawn),
            wrong=len(wrong),
            tasks=len(tasks),
            wrong_tasks=len(hit),
            bound=upper(len(hit), len(tasks)),
            by=dict(Counter(who for _, who in self.answers.values())),
            made=datetime.now(UTC).isoformat(timespec="seconds"),
        )


def _blank(trace: Trace) -> dict[str, Any]:
    """A label without a value; the dialogue is its note."""
    said = "\n".join(
        f"{message.role}: {text}" for message in trace.messages for text in [_shown(message)] if text.strip()
    )
    return {"trace": trace.id, "item": DIALOGUE, "rater": "", "value": None, "note": said}


def _shown(message: Any) -> str:
    from cm2_agent.types.json_values import canonical_json

    calls = [f"[{call.name} {canonical_json(call.arguments)}]" for call in message.tool_calls]
    answers = [
        one.response if isinstance(one.response, str) else canonical_json(one.response) for one in message.responses
    ]
    return " ".join([message.text, *calls, *answers]).strip()


def _lines(result: Mapping[str, Any], draw: PaidDraw, write: Path | None) -> Iterator[str]:
    who = ", ".join(f"{name} {count}" for name, count in result["by"].items()) or "nobody"
    yield printable(f"{result['paid']} dialogues of policy {result['policy']} that {result['reward_version']} paid")
    share = f"; up to {result['bound']:.3f} of {result['tasks']} tasks" if not result["unknown"] else ""
    yield printable(f"wrong: {result['wrong']}, by {who}{share}")
    for id in draw.wrong[:5]:
        yield printable(f"  {id}")
    if result["unknown"] and write is not None:
        yield printable(f"{write}: fill in rater and value, then cm2 import labels {write}, and run this again")
    if result["shortfall"] is None:
        yield "the certificate holds for the policy"
    else:
        yield printable(f"not renewed: {result['shortfall']}")


__all__ = ["PaidDraw", "recertify", "register"]
