"""`cm2 verdicts`: verdicts and rewards, back to the tool that the traces were imported from."""

from __future__ import annotations

from typing import Annotated

import typer

from cm2_agent.cli.common import (
    PROJECT,
    STORE,
    JsonOption,
    ProjectOption,
    StoreOption,
    command_group,
    echo_err,
    open_store,
    print_result,
    printable,
    progress,
)
from cm2_agent.cli.redaction import RedactOption, redactor_of
from cm2_agent.cli.trace_filters import FilterOptions, with_filters
from cm2_agent.errors import SendError, StoreError


def register(app: typer.Typer) -> None:
    group = command_group("Send verdicts to Langfuse, Phoenix or LangSmith.")
    help = (
        "Send the verdicts and rewards of imported traces to the tool that they came from: names, values, and as"
        " comments the reasons and quotes. What was taken is not sent again unless it changed."
    )
    group.command("send", help=help, short_help="Send verdicts to the tool that a trace came from.")(send)
    app.add_typer(group, name="verdicts")


@with_filters
def send(
    tool: Annotated[str, typer.Argument(metavar="TOOL", help="langfuse, phoenix or langsmith.")],
    url: Annotated[
        str | None, typer.Option("--url", help="The tool's address (default: as its environment variables say).")
    ] = None,
    reward: Annotated[
        str | None,
        typer.Option("--reward", metavar="VERSION", help="The reward version (default: each trace's newest)."),
    ] = None,
    prefix: Annotated[str, typer.Option("--prefix", help="Put before every name, such as `support.`.")] = "",
    redact: RedactOption = False,
    again: Annotated[bool, typer.Option("--again", help="Send what was taken before too.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count what would be sent, and send nothing.")] = False,
    *,
    where: FilterOptions,
    store: StoreOption = STORE,
    project: ProjectOption = PROJECT,
    as_json: JsonOption = False,
) -> None:
    from cm2_agent.runner.verdict_sending import receiver_of, send_verdicts

    receiver = receiver_of(tool, url, counting=dry_run)
    with open_store(store, project=project) as opened:
        versions = opened.reward_versions()
        if not versions or (reward is not None and reward not in versions):
            known = f"it has those of {', '.join(versions)}" if versions else "type: cm2 score CHECKLIST.yaml"
            raise StoreError(f"{opened.url} has no score{'' if reward is None else f' of {reward!r}'}; {known}")
        echo_err(printable(f"to {receiver.tool} at {receiver.url}: names, values, reasons and quotes; no dialogue"))
        try:
            chosen = where.trace_filter(reward)
            with progress("sending", opened.count_traces(chosen)) as advance:
                done = send_verdicts(
                    opened,
                    receiver,
                    where=chosen,
                    reward=reward,
                    prefix=prefix,
                    redact=redactor_of(opened).redact if redact else None,
                    again=again,
                    dry_run=dry_run,
                    progress=advance,
                )
        except SendError as error:
            echo_err(printable(f"{error}. What it took is noted; type the same command again"))
            raise typer.Exit(1) from None
    if done.elsewhere:
        echo_err(f"{done.elsewhere} scored traces did not come from {tool}, so nothing of them can be sent there")
    if done.null:
        echo_err(f"{done.null} verdicts and rewards are NULL and were not sent")
    for reason, count in sorted(done.refused.items()):
        echo_err(printable(f"{count} not taken: {reason}"))
    print_result(done.to_json(), as_json=as_json)
    if done.refused and not done.traces:
        raise typer.Exit(1)
