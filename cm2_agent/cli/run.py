"""`cm2 run`: run an agent on tasks; every dialogue is stored and scored."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cm2_agent.cli.common import (
    PROJECT,
    STORE,
    JsonOption,
    ProjectOption,
    StoreOption,
    echo_err,
    open_store,
    print_result,
    progress,
)
from cm2_agent.cli.redaction import RedactOption, redactor_of
from cm2_agent.cli.score import load_checklist_and_checks
from cm2_agent.cli.simulator_options import (
    MODEL_KEY,
    BaseUrlOption,
    BudgetOption,
    FaultsOption,
    PriceOption,
    RecordingOption,
    RecordOption,
    SimulatorModels,
    SimulatorOption,
    ToolsOption,
    UserOption,
    backends,
)
from cm2_agent.errors import TaskError, require_extra

if TYPE_CHECKING:
    from cm2_agent.types.score import Score
    from cm2_agent.types.score_bounds import Bounds
    from cm2_agent.types.trace import Trace


def register(app: typer.Typer) -> None:
    short = "Run an agent on every task; store and score the dialogues."
    help = (
        "Run an agent on every task, --group times each; store and score each dialogue. With --name an interrupted run"
        " resumes where it stopped. No real tool is called unless --allow-real names it."
    )
    app.command("run", help=help, short_help=short)(run_tasks)


def run_tasks(
    tasks: Annotated[Path, typer.Argument(metavar="TASKS.jsonl", help="One task per line.")],
    agent: Annotated[
        str | None,
        typer.Option(
            "--agent",
            envvar="CM2_AGENT",
            metavar="MODULE:GRAPH",
            help="A LangGraph graph: module:graph, file.py:graph.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", metavar="MODEL", help="Instead of an agent: a model (folder or hub name) with each task's tools."
        ),
    ] = None,
    base_url: Annotated[
        str | None,
        typer.Option("--base-url", metavar="URL", help=f"An OpenAI-compatible server of MODEL (key: {MODEL_KEY})."),
    ] = None,
    through_proxy: Annotated[
        bool,
        typer.Option(
            "--through-proxy",
            help="Point the agent's OpenAI client at a proxy of --base-url (or OPENAI_BASE_URL), for token ids.",
        ),
    ] = False,
    token_ids: Annotated[
        bool,
        typer.Option("--token-ids", help="Ask that server for token ids and logprobs, which GRPO needs."),
    ] = False,
    server: Annotated[
        str, typer.Option("--server", help="How that server is asked for token ids: vllm or sglang.")
    ] = "vllm",
    model_version: Annotated[
        str | None,
        typer.Option("--model-version", metavar="NAME", help="Names the weights there (default: the server's name)."),
    ] = None,
    logprobs_mode: Annotated[
        str | None,
        typer.Option(
            "--logprobs-mode", metavar="MODE", help="What it takes logprobs of: raw, scaled or processed, if known."
        ),
    ] = None,
    group: Annotated[int, typer.Option("--group", min=1, help="Rollouts per task.")] = 1,
    tools: ToolsOption = None,
    simulator: SimulatorOption = None,
    user: UserOption = None,
    simulator_base_url: BaseUrlOption = None,
    budget_usd: BudgetOption = None,
    price: PriceOption = None,
    faults: FaultsOption = None,
    recording: RecordingOption = None,
    record: RecordOption = None,
    context: Annotated[
        str | None,
        typer.Option(
            "--context",
            metavar="MODULE:NAME",
            help="A function world(task) that opens a fresh world for each dialogue.",
        ),
    ] = None,
    verify: Annotated[
        str | None,
        typer.Option(
            "--verify", metavar="MODULE:NAME", help="A function verify(task, world, trace) that returns outcomes."
        ),
    ] = None,
    allow_real: Annotated[
        list[str] | None,
        typer.Option("--allow-real", metavar="NAME", help="A real tool that may be called; repeatable."),
    ] = None,
    checklist: Annotated[
        Path | None, typer.Option("--checklist", metavar="FILE", help="A checklist (default: each task's own).")
    ] = None,
    checks: Annotated[
        str | None,
        typer.Option("--checks", metavar="MODULE", help="A module or .py file with the checklist's functions."),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="The run's name; a run of this name resumes where it stopped.")
    ] = None,
    shard: Annotated[
        bool,
        typer.Option("--shard", help="Do a share of the run --name; other processes, on any machines, do the rest."),
    ] = False,
    concurrency: Annotated[int, typer.Option("--concurrency", min=1, help="Concurrent dialogues.")] = 64,
    max_steps: Annotated[
        int, typer.Option("--max-steps", min=1, help="At most this many assistant messages per turn.")
    ] = 24,
    max_turns: Annotated[
        int | None, typer.Option("--max-turns", min=1, help="At most this many user messages.")
    ] = None,
    max_seconds: Annotated[
        float | None, typer.Option("--max-seconds", min=0.001, help="At most this many seconds per dialogue.")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", min=1, help="At most this many model tokens per dialogue.")
    ] = None,
    redact: RedactOption = False,
    seed: Annotated[int, typer.Option("--seed", help="Seed of all dialogues; the same seed repeats the run.")] = 0,
    store: StoreOption = STORE,
    project: ProjectOption = PROJECT,
    as_json: JsonOption = False,
) -> None:
    import asyncio

    from cm2_agent.graphs.backends.faults import Faults
    from cm2_agent.graphs.backends.record import CallRecorder, load_recording
    from cm2_agent.graphs.conversation_setup import RolloutLimits
    from cm2_agent.runner.run import run
    from cm2_agent.types.task import load_tasks

    task_list = load_tasks(tasks)
    _, chosen = load_checklist_and_checks(checklist, checks)
    if shard and name is None:
        raise TaskError("--shard shares a run with other processes; give all of them its name: --name NAME")
    asked = {"token_ids": token_ids, "model_version": model_version, "server": server, "logprobs_mode": logprobs_mode}
    if through_proxy and (simulator is not None or user is not None) and simulator_base_url is None:
        raise TaskError(
            "--through-proxy points every OpenAI client of the process at the agent's server, the simulators' too; give"
            " theirs with --simulator-base-url"
        )
    redactor = redactor_of(tasks) if redact else None
    models = SimulatorModels(
        simulator=simulator,
        user=user,
        base_url=simulator_base_url,
        budget_usd=budget_usd,
        price=price,
        redact=redactor,
    )
    limits = models.limits()
    with ExitStack() as opened:
        proxy = opened.enter_context(agent_proxy(agent, base_url, asked)) if through_proxy else None
        graph = agent_of(agent, model, base_url, asked)
        options: dict[str, Any] = {
            "group": group,
            "checklist": chosen,
            "tools": backends(tools),
            "allow_real": allow_real or (),
            "concurrency": concurrency,
            "faults": None if faults is None else Faults.parse(faults),
            "limits": RolloutLimits(
                max_steps=max_steps, max_turns=max_turns, max_seconds=max_seconds, max_tokens=max_tokens
            ),
            "seed": seed,
            "name": name,
            "context": load_function(context, "context"),
            "verify": load_function(verify, "verify"),
            "redact": redactor,
            "recording": () if recording is None else load_recording(recording),
            "recorder": None if record is None else opened.enter_context(CallRecorder(record)),
        }
        simulate, user_of = models.make(None, seed=seed, limits=limits)
        run(
            graph, task_list, simulator=simulate, user=user_of, **options
        )  # raises on what cannot be run, before there is a store
        results_store = opened.enter_context(open_store(store, project=project, create=True))
        simulate, user_of = models.make(results_store, seed=seed, limits=limits)
        results = run(graph, task_list, simulator=simulate, user=user_of, store=results_store, shard=shard, **options)
        result = asyncio.run(_finished(results, len(task_list) * group))
        if proxy is not None:
            result["proxied_calls"] = proxy.calls
    if simulator is not None or user is not None:
        used = limits.usage
        result["simulated"] = {
            "calls": used.calls,
            "input_tokens": used.input_tokens,
            "output_tokens": used.output_tokens,
            "usd": used.usd,
        }
    if result.get("proxied_calls") == 0 and result["dialogues"]:
        echo_err(
            "no call came through the proxy: the agent gives its client a base URL of its own, or does not speak"
            " OpenAI's chat API. Let the client take OPENAI_BASE_URL (ChatOpenAI does where base_url is left out)"
        )
    print_result(result, as_json=as_json)


def agent_proxy(agent: str | None, base_url: str | None, asked: Mapping[str, Any]) -> Any:
    """The proxy through which an agent's own client calls its server, as a context manager. Raises TaskError,
    MissingExtra."""
    require_extra("server", "The proxy", "aiohttp", "fastapi", "uvicorn")
    from cm2_agent.server.chat_request import Upstream
    from cm2_agent.server.local_proxy import local_proxy

    if agent is None:
        raise TaskError("--through-proxy is for an agent of yours (--agent); a --model is asked for token ids itself")
    url = base_url or os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"
    server = asked["server"] if asked["token_ids"] else "auto"
    upstream = Upstream(server=server, logprobs_mode=asked["logprobs_mode"], model_version=asked["model_version"])
    return local_proxy(url, upstream)


def agent_of(agent: str | None, model: str | None, base_url: str | None, asked: Mapping[str, Any]) -> Any:
    """The graph of `--agent`, or agents of `--model` with each task's declared tools; `asked` is how its server is
    asked. Raises TaskError, ModelError."""
    if (agent is None) == (model is None):
        raise TaskError(
            "expected one of --agent MODULE:GRAPH (your agent) and --model MODEL (an agent of each task's own tools)"
        )
    if base_url is None:
        for name in ("token_ids", "model_version", "logprobs_mode"):
            if asked[name]:
                option = name.replace("_", "-")
                raise TaskError(
                    f"--{option} is of a server, and --base-url names none; a local model gives all this: leave it out"
                )
    if agent is not None:
        return load_graph(agent)
    from cm2_agent.graphs.agent_loop import agents

    assert model is not None
    if base_url is not None:
        from cm2_agent.models.openai import openai_compatible

        try:
            return agents(openai_compatible(base_url, model, api_key=os.environ.get(MODEL_KEY), **asked))
        except ValueError as error:
            raise TaskError(str(error)) from error
    from cm2_agent.models.local import LocalChatModel

    return agents(LocalChatModel.load(model))


def load_graph(spec: str) -> Any:
    """The graph `module.name:attribute` or `file.py:attribute`; a function without parameters is called for it. The
    current folder is on the path. Raises TaskError."""
    graph = _attribute(spec, "agent")
    if not hasattr(graph, "ainvoke") and callable(graph):
        try:
            graph = graph()
        except Exception as error:  # the user's own function
            raise TaskError(
                f"agent {spec!r}: {spec.rpartition(':')[2]}() raised {type(error).__name__}: {error}"
            ) from error
    if not hasattr(graph, "ainvoke"):
        raise TaskError(
            f"agent {spec!r} is a {type(graph).__name__}; expected a compiled LangGraph graph, or a function that"
            " returns one"
        )
    return graph


def load_function(spec: str | None, what: str) -> Any:
    """The function `module:name` or `file.py:name`, None for None. Raises TaskError."""
    if spec is None:
        return None
    found = _attribute(spec, what)
    if not callable(found):
        raise TaskError(f"{what} {spec!r} is {type(found).__name__} {found!r:.60}; expected a function or a class")
    return found


def _attribute(spec: str, what: str) -> Any:
    where, colon, attribute = spec.rpartition(":")
    if not colon or not where or not attribute:
        raise TaskError(f"{what} is {spec!r}; expected MODULE:NAME, such as my_app:name or my_app.py:name")
    module = _module(where, f"{what} {spec!r}")
    if not hasattr(module, attribute):
        names = (
            name
            for name, value in vars(module).items()
            if not name.startswith("_") and not isinstance(value, ModuleType)
        )
        public = ", ".join(names) or "nothing public"
        raise TaskError(f"{what} {spec!r}: {where} has no {attribute!r}; it holds {public}")
    return getattr(module, attribute)


def _module(where: str, source: str) -> ModuleType:
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        if not where.endswith(".py"):
            return importlib.import_module(where)
        path = Path(where).resolve()
        if not path.is_file():
            raise TaskError(f"{source}: there is no file {where}")
        if str(getattr(sys.modules.get(path.stem), "__file__", "")) == str(path):
            return sys.modules[path.stem]  # the agent and its world may share a module
        found = importlib.util.spec_from_file_location(path.stem, path)
        if found is None or found.loader is None:
            raise TaskError(f"{source}: {where} cannot be imported as a Python module")
        module = importlib.util.module_from_spec(found)
        sys.modules[path.stem] = module
        found.loader.exec_module(module)
        return module
    except TaskError:
        raise
    except (Exception, SystemExit) as error:  # an import runs the user's code, which may raise anything
        raise TaskError(f"{source}: {where} cannot be imported: {type(error).__name__}: {error}") from error


async def _finished(results: AsyncIterator[tuple[Trace, Score | None]], total: int) -> dict[str, Any]:
    from cm2_agent.analysis.bootstrap import mean

    rewards: list[float] = []
    bounds: list[Bounds] = []
    answered: Counter[str] = Counter()
    dialogues = failed = 0
    with progress("running", total) as advance:
        async for trace, score in results:
            dialogues += 1
            failed += trace.failure is not None
            answered.update(tool.backend or "real" for run in trace.runs for tool in run.tools)
            if score is not None and score.reward is not None:
                rewards.append(score.reward)
            if score is not None and score.bounds is not None:
                bounds.append(score.bounds)
            advance()
    return {
        "dialogues": dialogues,
        "failed": failed,
        "scored": len(rewards),
        "unscored": dialogues - len(rewards),
        "mean_reward": mean(rewards) if rewards else None,
        "mean_lower": mean([one.lower for one in bounds]) if bounds else None,
        "mean_upper": mean([one.upper for one in bounds]) if bounds else None,
        "tool_calls": dict(sorted(answered.items())),
    }
