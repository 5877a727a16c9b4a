"""`cm2 work`: score traces as they are stored, by any number of processes that share a store on PostgreSQL."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cm2_agent.cli.checklist_options import ChecklistArgument, ChecksOption
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
)
from cm2_agent.cli.judge_options import (
    BaseUrlOption,
    JudgeOption,
    JudgeOptions,
    PriceOption,
    ProtocolOption,
    RpmOption,
    TpmOption,
    VotesOption,
)
from cm2_agent.cli.redaction import RedactOption, redactor_of
from cm2_agent.cli.score import load_checklist_and_checks
from cm2_agent.errors import JudgeError, StoreError

if TYPE_CHECKING:
    from cm2_agent.rewards.scoring.scorer import ChecklistScorer
    from cm2_agent.store import SQLStore
    from cm2_agent.workers.worker import ScoringWorker


def register(app: typer.Typer) -> None:
    short = "Score traces as they are stored, by any number of processes."
    help = (
        "Score traces as they are stored, by a checklist or each trace by its own task's, in any number of processes"
        " that share a store on PostgreSQL. What was stored before is scored too, after what is new. Rate and budget"
        " hold for all workers of the reward. Killed at any point, another worker goes on; each trace has one score."
    )
    app.command("work", help=help, short_help=short)(work)


def work(
    checklist: ChecklistArgument = None,
    checks: ChecksOption = None,
    judge: JudgeOption = None,
    judge_base_url: BaseUrlOption = None,
    votes: VotesOption = None,
    protocol: ProtocolOption = None,
    budget_usd: Annotated[
        float | None, typer.Option("--budget-usd", min=0, help="What all workers may spend on this reward.")
    ] = None,
    budget_calls: Annotated[
        int | None, typer.Option("--budget-calls", min=0, help="How often all workers may ask the judge.")
    ] = None,
    concurrency: Annotated[int, typer.Option("--concurrency", min=1, help="Traces at a time in this process.")] = 16,
    rpm: RpmOption = None,
    tpm: TpmOption = None,
    price: PriceOption = None,
    drain: Annotated[
        bool, typer.Option("--drain", help="End when no job is left (exit 1 where the judge lets them rest).")
    ] = False,
    new_only: Annotated[
        bool, typer.Option("--new-only", help="Leave alone what was stored before the first worker.")
    ] = False,
    lease: Annotated[
        float, typer.Option("--lease", min=1, help="Seconds without a sign of life until others do a worker's jobs.")
    ] = 30.0,
    status: Annotated[
        bool, typer.Option("--status", help="Print the jobs, what holds them up and what was spent; do none.")
    ] = False,
    retire: Annotated[
        str | None, typer.Option("--retire", metavar="REWARD", help="Score no further trace by this reward version.")
    ] = None,
    redact: RedactOption = False,
    store: StoreOption = STORE,
    project: ProjectOption = PROJECT,
    as_json: JsonOption = False,
) -> None:
    from cm2_agent.workers.job_tables import install, require_postgres

    with open_store(store, project=project) as opened:
        require_postgres(opened)
        if status:
            print_status(opened, as_json=as_json)
            return
        if retire is not None:
            print_result({"reward": retire, "dropped": retired(opened, retire)}, as_json=as_json)
            return
        options = JudgeOptions(
            model=judge,
            base_url=judge_base_url,
            votes=votes,
            protocol=protocol,
            budget_usd=budget_usd,
            budget_calls=budget_calls,
            concurrency=None if judge is None else concurrency,
            rpm=rpm,
            tpm=tpm,
            price=price,
        )
        functions, chosen = load_checklist_and_checks(checklist, checks)
        redactor = redactor_of(opened).redact if redact else None

        from cm2_agent.rewards.scoring.scorer import ChecklistScorer
        from cm2_agent.workers.ledger import QueueLedger
        from cm2_agent.workers.queue import ScoringQueue
        from cm2_agent.workers.worker import ScoringWorker

        ledger = QueueLedger(opened.database)

        def scorer() -> ChecklistScorer:
            made = options.make(redactor, ledger=ledger)
            if made is not None:
                made.cache = opened.verdict_cache()
            return ChecklistScorer(chosen, judge=made, functions=functions)

        reward = scorer().version
        if chosen is None and not any(task.checklist is not None for task in opened.tasks()):
            raise JudgeError(
                f"no checklist was named and no task in {opened.url} has one of its own; type: cm2 work CHECKLIST.yaml"
            )
        install(opened.database)
        if chosen is not None:
            opened.save_checklist(chosen)
        queue = ScoringQueue(opened, reward)
        ledger.queue = queue.name
        queue.open({"budget_usd": budget_usd, "budget_calls": budget_calls, "rpm": rpm, "tpm": tpm})
        enqueued = 0 if new_only else queue.enqueue_missing()
        echo_err(printable(f"scoring by {reward}; {enqueued} traces were waiting"))
        worker = ScoringWorker(
            store=opened, queue=queue, scorer=scorer, concurrency=concurrency, lease=lease, drain=drain
        )
        done = run_worker(worker)
    result: dict[str, Any] = {"reward": reward, "enqueued": enqueued, **done.__dict__}
    print_result(result, as_json=as_json)
    if done.parked is not None:
        echo_err(printable(f"PARKED, its jobs wait: {done.parked}"))
        raise typer.Exit(1 if drain else 0)


def run_worker(worker: ScoringWorker) -> Any:
    """Run it until it is done, or SIGINT or SIGTERM ask it to finish what is under way."""
    import asyncio
    import logging
    import signal

    logging.getLogger("procrastinate").setLevel(logging.CRITICAL)  # each failure is in the job's status, or ours to say

    async def working() -> Any:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, worker.stop)
        return await worker.run()

    return asyncio.run(working())


def print_status(store: SQLStore, *, as_json: bool) -> None:
    """Print what the workers of a project have to do."""
    from cm2_agent.workers.status import statuses

    found = statuses(store)
    lines = [printable(line) for one in found for line in one.lines()]
    print_result(
        {"rewards": [one.to_json() for one in found]},
        as_json=as_json,
        lines=lines or ["no reward is scored by workers; start one: cm2 work CHECKLIST.yaml"],
    )


def retired(store: SQLStore, reward: str) -> int:
    """Retire a reward version; how many jobs were dropped. Raises StoreError where no worker scored by it."""
    from cm2_agent.workers.queue import ScoringQueue
    from cm2_agent.workers.status import statuses

    known = [one.reward for one in statuses(store)]
    if reward not in known:
        raise StoreError(
            f"--retire {reward!r}: workers score by {', '.join(known) or 'no reward'}; see: cm2 work --status"
        )
    return ScoringQueue(store, reward).close()
