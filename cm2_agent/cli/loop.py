"""`cm2 loop`: rounds of run, score, train, evaluate and promote, which go on wherever they were stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cm2_agent.cli.common import (
    PROJECT,
    STORE,
    JsonOption,
    ProjectOption,
    StoreOption,
    echo_err,
    format_number,
    open_store,
    print_result,
    printable,
)
from cm2_agent.cli.judge_options import BaseUrlOption, CallsOption, JudgeOption, JudgeOptions, PriceOption, UsdOption
from cm2_agent.cli.run import load_function
from cm2_agent.cli.score import load_checklist_and_checks
from cm2_agent.cli.simulator_options import ToolsOption, backends
from cm2_agent.cli.train import check_certificate
from cm2_agent.cli.training_options import (
    AlgorithmOption,
    CertificateOption,
    LambdaOption,
    LearningRateOption,
    LevelOption,
    LoraOption,
    NormOption,
    RolloutsPerStepOption,
    SetOption,
    StepsOption,
)
from cm2_agent.errors import TaskError, TrainError, require_extra
from cm2_agent.types.certificate import MAX_ATTACK_RATE, MIN_PASS_RATE

if TYPE_CHECKING:
    from cm2_agent.loop.task_sets import TaskSets
    from cm2_agent.store import SQLStore

TRAINER_OPTIONS = ("level", "lam", "norm", "steps", "learning_rate", "rollouts_per_step")
"""The options that a trainer gets as keyword arguments, where they were typed."""
PIECES = 4
"""How often a stage says how far it is."""


def register(app: typer.Typer) -> None:
    short = "Train in rounds, and promote what is better."
    help = (
        "Run rounds with an agent: hold dialogues with the promoted policy, score them, train a candidate, compare both"
        " on promotion tasks, and promote the candidate only where it is better by more than chance. At the end the"
        " first and the last policy are compared on test tasks, which nothing else reads. Stopped or killed, the same"
        " command goes on after the last finished stage. cm2 policy list shows the policies."
    )
    app.command("loop", help=help, short_help=short)(loop)


def loop(
    context: typer.Context,
    tasks: Annotated[Path, typer.Argument(metavar="TASKS.jsonl", help="The tasks to train on, or all tasks.")],
    out: Annotated[Path, typer.Option("--out", help="The folder of the loop: what is finished, weights, result.json.")],
    model: Annotated[
        str | None,
        typer.Option("--model", help="The policy to begin with: a folder or hub name (default: the promoted one)."),
    ] = None,
    agent: Annotated[
        str | None,
        typer.Option(
            "--agent",
            metavar="MODULE:FUNCTION",
            help="A function that makes your LangGraph graph of a chat model (default: an agent of each task's tools).",
        ),
    ] = None,
    name: Annotated[
        str, typer.Option("--name", help="The agent's name, under which its policies are registered.")
    ] = "agent",
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Rounds.")] = 4,
    promotion_tasks: Annotated[
        Path | None,
        typer.Option("--promotion-tasks", metavar="FILE", help="Tasks to compare policies on (default: a split)."),
    ] = None,
    test_tasks: Annotated[
        Path | None, typer.Option("--test-tasks", metavar="FILE", help="Tasks of the final test (default: a split).")
    ] = None,
    promotion_share: Annotated[
        float, typer.Option("--promotion-share", help="Without files: the share of TASKS to compare policies on.")
    ] = 0.2,
    test_share: Annotated[
        float, typer.Option("--test-share", help="Without files: the share of TASKS for the final test.")
    ] = 0.2,
    tasks_per_round: Annotated[
        int | None, typer.Option("--tasks-per-round", min=1, help="Training tasks of a round (default: all).")
    ] = None,
    group: Annotated[int, typer.Option("--group", min=2, help="Rollouts per training task.")] = 8,
    evaluations: Annotated[
        int, typer.Option("--evaluations", min=1, help="Dialogues of each policy per task that it is compared on.")
    ] = 4,
    alpha: Annotated[
        float, typer.Option("--alpha", help="The chance to promote anything where nothing is better, at most.")
    ] = 0.05,
    fresh_tasks: Annotated[
        bool, typer.Option("--fresh-tasks", help="Compare on other promotion tasks in each round, a part of them.")
    ] = False,
    by: Annotated[str, typer.Option("--by", help="What counts: reward, or an outcome of --verify.")] = "reward",
    checklist: Annotated[
        Path | None, typer.Option("--checklist", metavar="FILE", help="A checklist (default: each task's own).")
    ] = None,
    checks: Annotated[str | None, typer.Option("--checks", metavar="MODULE", help="The checklist's functions.")] = None,
    judge: JudgeOption = None,
    judge_base_url: BaseUrlOption = None,
    budget_usd: UsdOption = None,
    budget_calls: CallsOption = None,
    price: PriceOption = None,
    require_certificate: CertificateOption = False,
    tools: ToolsOption = None,
    context_: Annotated[
        str | None,
        typer.Option("--context", metavar="MODULE:NAME", help="A function world(task) that opens a dialogue's world."),
    ] = None,
    verify: Annotated[
        str | None,
        typer.Option("--verify", metavar="MODULE:NAME", help="A function that returns its outcomes."),
    ] = None,
    allow_real: Annotated[
        list[str] | None,
        typer.Option("--allow-real", metavar="NAME", help="A real tool that may be called; repeatable."),
    ] = None,
    max_steps: Annotated[
        int, typer.Option("--max-steps", min=1, help="At most this many assistant messages per turn.")
    ] = 24,
    answer_tokens: Annotated[
        int, typer.Option("--answer-tokens", min=1, help="At most this many tokens per assistant message.")
    ] = 256,
    concurrency: Annotated[int, typer.Option("--concurrency", min=1, help="Dialogues that advance together.")] = 64,
    algorithm: AlgorithmOption = "grpo",
    lora: LoraOption = None,
    level: LevelOption = "trajectory",
    lam: LambdaOption = None,
    norm: NormOption = "none",
    steps: StepsOption = None,
    learning_rate: LearningRateOption = None,
    rollouts_per_step: RolloutsPerStepOption = 64,
    set_: SetOption = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of all dialogues and trainings.")] = 0,
    store: StoreOption = STORE,
    project: ProjectOption = PROJECT,
    as_json: JsonOption = False,
) -> None:
    require_extra("train", "Loops", "torch", "transformers", "trl", "accelerate", "datasets")
    from transformers.utils import logging

    from cm2_agent.graphs.agent_loop import agents
    from cm2_agent.graphs.conversation_setup import RolloutLimits
    from cm2_agent.loop.graph_rollouts import GraphRollouts
    from cm2_agent.loop.loop import Loop
    from cm2_agent.loop.settings import LoopSettings

    typed = {
        name: value
        for name, value in context.params.items()
        if name in TRAINER_OPTIONS and (source := context.get_parameter_source(name)) and source.name != "DEFAULT"
    }
    settings = LoopSettings(
        rounds=rounds,
        group=group,
        tasks=tasks_per_round,
        evaluations=evaluations,
        alpha=alpha,
        fresh=fresh_tasks,
        by=by,
        seed=seed,
    )
    sets = task_sets(tasks, promotion_tasks, test_tasks, promotion_share, test_share, seed)
    if sets.shared_entities:
        shared = ", ".join(sets.shared_entities[:3])
        echo_err(
            printable(f"warning: {len(sets.shared_entities)} entities of training tasks are compared on too: {shared}")
        )
    _, chosen = load_checklist_and_checks(checklist, checks)
    world, verifier = load_function(context_, "context"), load_function(verify, "verify")
    options = JudgeOptions(
        model=judge,
        base_url=judge_base_url,
        votes=None,
        protocol=None,
        budget_usd=budget_usd,
        budget_calls=budget_calls,
        concurrency=None,
        rpm=None,
        tpm=None,
        price=price,
    )
    logging.disable_progress_bar()
    with open_store(store, project=project, create=True) as opened:
        rollouts = GraphRollouts(
            agent=agents if agent is None else load_function(agent, "agent"),
            store=opened,
            checklist=chosen,
            judge=options.make(),
            model={"max_tokens": answer_tokens},
            options=lambda seed: {
                "tools": backends(tools),
                "allow_real": allow_real or (),
                "context": world,
                "verify": verifier,
                "limits": RolloutLimits(max_steps=max_steps),
            },
            concurrency=concurrency,
        )
        with closing(rollouts):
            check = certified(opened, rollouts.reward) if require_certificate else None
            result = Loop(
                name=name,
                start=model or _promoted(opened, name, out),
                folder=out,
                store=opened,
                tasks=sets,
                rollouts=rollouts,
                train=training(algorithm, lora, typed, set_ or (), check),
                settings=settings,
                training={"algorithm": algorithm, "lora": lora, **typed, "set": list(set_ or ())},
                environment={
                    "agent": agent,
                    "tools": list(tools or ()),
                    "allow_real": list(allow_real or ()),
                    "context": context_,
                    "verify": verify,
                    "max_steps": max_steps,
                    "answer_tokens": answer_tokens,
                },
                progress=_say,
            ).run()
    print_result(result, as_json=as_json, lines=_lines(result))


def task_sets(
    tasks: Path, promotion: Path | None, test: Path | None, promotion_share: float, test_share: float, seed: int
) -> TaskSets:
    """The three sets: from three files, or one file split by entities. Raises TaskError."""
    from cm2_agent.loop.task_sets import TaskSets, split_tasks
    from cm2_agent.types.task import load_tasks

    if (promotion is None) != (test is None):
        raise TaskError(
            "--promotion-tasks and --test-tasks belong together; give both files, or neither: TASKS is split then"
        )
    if promotion is None or test is None:
        return split_tasks(load_tasks(tasks), promotion=promotion_share, test=test_share, seed=seed)
    return TaskSets(training=load_tasks(tasks), promotion=load_tasks(promotion), test=load_tasks(test))


def certified(store: SQLStore, reward: str) -> Callable[[Any], None]:
    """What refuses groups for whose policies the reward's certificate does not hold (any more). Raises TrainError at
    once where there is none that is enough."""

    def check(groups: Any) -> None:
        check_certificate(store, [reward], {key["policy"] for key in groups.keys}, MAX_ATTACK_RATE, MIN_PASS_RATE)

    check_certificate(store, [reward], set(), MAX_ATTACK_RATE, MIN_PASS_RATE)
    return check


def training(
    algorithm: str,
    lora: str | None,
    typed: Mapping[str, Any],
    settings: Iterable[str],
    check: Callable[[Any], None] | None = None,
) -> Any:
    """What trains a candidate, as `cm2 train` would with these options; `check` may refuse a round's groups. Raises
    TrainError on options that cannot be meant before anything is done."""
    from cm2_agent.cli.algorithms import load_algorithm, make_trainer, parse_settings, report_of, train_on

    made, given = load_algorithm(algorithm), dict(typed)
    if lora is not None:
        from cm2_agent.trainers.lora import parse_lora

        given["peft_config"] = parse_lora(lora)
    parsed = parse_settings(list(settings))

    def trainer(policy: str, out: Path, seed: int) -> Any:
        return make_trainer(algorithm, made, {**given, "model": policy, "out": out, "seed": seed}, parsed)

    needs = str(getattr(trainer("unknown", Path("unknown"), 0), "needs", "groups"))

    def train(policy: str, out: Path, groups: Any, *, seed: int, advance: Callable[[], object]) -> Mapping[str, Any]:
        if check is not None:
            check(groups)
        one = trainer(policy, out, seed)
        data = (rollout for group in groups for rollout in group.rollouts) if needs == "scored" else groups
        path = train_on(one, data, advance)
        if path.resolve() != out.resolve():
            raise TrainError(f"algorithm {algorithm} wrote to {path}; expected {out}, the folder that it was given")
        return report_of(one)

    return train


def _promoted(store: SQLStore, name: str, out: Path) -> str:
    """The policy to begin with: the one that a loop in `out` began with, else the promoted one. Raises TrainError."""
    from cm2_agent.loop.folder import read

    began = out / "start.json"
    if began.exists():
        return str(read(began)["folder"])
    promoted = store.promoted(name)
    if promoted is None or promoted.folder is None:
        raise TrainError(
            f"no policy of {name!r} is promoted in {store.url}; give the policy to begin with: --model FOLDER"
        )
    return promoted.folder


def _say(what: str, done: int, total: int) -> None:
    """A line on stderr as a stage begins and ends, and a few between."""
    if ": dialogues" in what or ": steps" in what:
        if total and done < total and done % max(1, total // PIECES) == 0:
            echo_err(printable(f"  {what}: {done}/{total}"))
    elif done != 1:
        echo_err(printable(what if done == 0 else f"{what}: finished"))


def _lines(result: Mapping[str, Any]) -> Iterator[str]:
    for one in result["rounds"]:
        verdict = f"promoted {one['candidate']}" if one["promoted"] else "kept"
        gain = format_number(one["gain"], one["interval"])
        left_out = f"; {one['left_out']} tasks left out" if one["left_out"] else ""
        yield printable(f"round {one['round']}: {verdict}; gain {gain}; {one['why']}{left_out}")
    test = result["test"]
    what = test["by"].replace("_", " ")
    if result["promotions"]:
        gain = format_number(test["gain"], test["interval"])
        yield printable(f"test, {test['tasks']} tasks: {what} {test['start']:.3f} → {test['end']:.3f}, gain {gain}")
    else:
        yield printable(f"test, {test['tasks']} tasks: {what} {test['start']:.3f}; nothing was promoted")
    yield printable(f"promoted policy of {result['name']}: {result['promoted']} in {result['folder']}")
    yield f"{result['tokens']} tokens drawn, {result['usd']:.4g} USD for judges, {result['seconds']:g} s"
