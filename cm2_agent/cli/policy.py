"""`cm2 policy`: what becomes of a trained policy."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cm2_agent.cli import policies, policy_evaluate
from cm2_agent.cli.common import JsonOption, command_group, print_result, printable
from cm2_agent.cli.simulator_options import MODEL_KEY

if TYPE_CHECKING:
    from cm2_agent.models.deployment import Deployment


def register(app: typer.Typer) -> None:
    group = command_group("Deploy or evaluate policies, list them, or roll back.")
    policies.register(group)
    short = "Load a trained adapter into the vLLM or SGLang server that answers."
    help = (
        "Load a trained LoRA adapter into a running vLLM or SGLang server under the policy's own name, see that it"
        f" answers, and print the line for the app. The server's key is read from {MODEL_KEY}. vLLM takes adapters if"
        " it was started with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, SGLang with --enable-lora."
    )
    group.command("deploy", help=help, short_help=short)(deploy)
    short = "Write an adapter and the model below it as one model."
    help = (
        "Write a LoRA adapter and the model below it as one model, in that model's dtype, with the tokenizer: for"
        " servers that load whole weights only. Rounding makes it another policy, with a version of its own: sample"
        " anew before training it on."
    )
    group.command("merge", help=help, short_help=short)(merge)
    group.command("evaluate", help=policy_evaluate.HELP, short_help=policy_evaluate.SHORT)(policy_evaluate.evaluate)
    app.add_typer(group, name="policy")


def deploy(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder that LoRA training wrote.")],
    url: Annotated[str, typer.Option("--url", metavar="URL", help="The server: http://HOST:PORT/v1.")],
    name: Annotated[
        str | None,
        typer.Option(
            "--name", help="The adapter's name there (default: the policy's version, which tells its rollouts apart)."
        ),
    ] = None,
    replace: Annotated[
        str | None,
        typer.Option("--replace", metavar="NAME", help="Unload this adapter when the new one answers."),
    ] = None,
    path: Annotated[
        str | None,
        typer.Option("--path", metavar="PATH", help="Where the server finds FOLDER, if it runs elsewhere."),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            "--base", metavar="NAME", help="The served base model, where the adapter knows it by another name."
        ),
    ] = None,
    server: Annotated[
        str | None, typer.Option("--server", help="vllm or sglang (default: what its list of models says).")
    ] = None,
    timeout: Annotated[float, typer.Option("--timeout", min=1, help="Seconds for each request.")] = 120.0,
    as_json: JsonOption = False,
) -> None:
    from cm2_agent.models.deployment import deploy as load

    done = load(
        folder,
        url,
        name=name,
        replace=replace,
        path=path,
        base=base,
        server=server,
        api_key=os.environ.get(MODEL_KEY),
        timeout=timeout,
    )
    print_result({**asdict(done), "line": done.line, "notes": done.notes}, as_json=as_json, lines=_lines(done))


def merge(
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER", help="The folder that LoRA training wrote.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder for the model.")],
    base: Annotated[
        str | None,
        typer.Option("--base", metavar="MODEL", help="The model below, where it is not the one that ADAPTER names."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    from cm2_agent.models.local import LocalChatModel
    from cm2_agent.models.merging import merge_adapter

    merged = merge_adapter(adapter, out, base=base)
    before = LocalChatModel.load(adapter, base=base).model_version
    after = LocalChatModel.load(merged).model_version
    lines = [printable(f"{merged}: policy {after}, of adapter {before}")]
    print_result({"out": str(merged), "adapter": before, "version": after}, as_json=as_json, lines=lines)


def _lines(done: Deployment) -> Iterator[str]:
    yield printable(f"{'loaded' if done.loaded else 'was loaded already'}: {done.name} on {done.base}, {done.server}")
    if done.replaced is not None and done.replaced != done.name:
        yield printable(f"unloaded: {done.replaced}")
    yield printable(f"answers as {done.model}; put into the app:")
    yield printable(f"  model = {done.line}")
    for note in done.notes:
        yield printable(f"note: {note}")
