"""`cm2 serve`: a collector of OpenTelemetry spans, and a proxy of a chat API."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cm2_agent.cli.common import PROJECT, STORE, ProjectOption, StoreOption, echo_err, open_store
from cm2_agent.errors import ModelError, StoreError, require_extra

if TYPE_CHECKING:
    from cm2_agent.server.chat_request import Upstream

_NEEDED = ("aiohttp", "fastapi", "uvicorn", "google.protobuf", "opentelemetry.proto", "orjson")


def register(app: typer.Typer) -> None:
    short = "Receive OpenTelemetry spans; store and score them as runs."
    help = (
        "Receive OpenTelemetry spans over HTTP (POST /v1/traces, protobuf or JSON) and store and score them as runs."
        " An answer is sent when the spans are committed. Without a token (cm2 token create) it serves this machine"
        " alone. With --proxy it also stands in front of a chat API, whose calls become runs. SIGTERM finishes what"
        " came and ends."
    )
    app.command("serve", help=help, short_help=short)(serve)


def serve(
    host: Annotated[str, typer.Option("--host", help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="The port; 0 picks a free one.")] = 4318,
    checklist: Annotated[
        Path | None, typer.Option("--checklist", metavar="FILE", help="A checklist that scores every trace.")
    ] = None,
    checks: Annotated[
        str | None,
        typer.Option("--checks", metavar="MODULE", help="A module or .py file with the checklist's functions."),
    ] = None,
    proxy: Annotated[
        str | None,
        typer.Option("--proxy", metavar="URL", help="Also stand in front of this server of OpenAI's chat API."),
    ] = None,
    server: Annotated[
        str, typer.Option("--server", help="How that server is asked for token ids: auto, vllm, sglang or none.")
    ] = "auto",
    logprobs_mode: Annotated[
        str | None,
        typer.Option(
            "--logprobs-mode", metavar="MODE", help="What it takes logprobs of: raw, scaled or processed, if known."
        ),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option("--policy", metavar="NAME", help="Names the weights behind what is received; no client may."),
    ] = None,
    quiet: Annotated[
        float, typer.Option("--quiet", min=0.0, help="Seconds without a new span after which a trace is complete.")
    ] = 5.0,
    late: Annotated[
        float,
        typer.Option("--late", min=0.0, help="Seconds for which spans are kept, for others that come late."),
    ] = 3600.0,
    max_mb: Annotated[int, typer.Option("--max-mb", min=1, help="The largest request, in MB as it is sent.")] = 16,
    rate: Annotated[
        float | None,
        typer.Option("--rate", min=0.001, help="Spans a second that each project may send (default: any number)."),
    ] = None,
    store: StoreOption = STORE,
    project: ProjectOption = PROJECT,
) -> None:
    require_extra("server", "The collector and the proxy", *_NEEDED)
    from cm2_agent.cli.score import load_checklist_and_checks
    from cm2_agent.server.access import is_loopback
    from cm2_agent.server.serving import run_server
    from cm2_agent.server.settings import Settings
    from cm2_agent.server.upstream_client import base_url
    from cm2_agent.store.access_tokens import tokens

    _, chosen = load_checklist_and_checks(checklist, checks)
    settings = Settings(
        quiet=quiet, late=late, most_body=max_mb << 20, most_unpacked=max_mb << 22, spans_per_second=rate
    )
    upstream = _upstream(server, logprobs_mode, policy)
    proxy = None if proxy is None else base_url(proxy)
    with open_store(store, project=project, create=True) as opened:
        if not is_loopback(host) and not any(token.revoked is None for token in tokens(opened, every_project=True)):
            raise StoreError(
                f"--host {host} can be reached from other machines, and the store has no token: anybody could send"
                f" traces. Type first: cm2 token create --store {opened.url}"
            )
        run_server(
            opened,
            host=host,
            port=port,
            checklist=chosen,
            policy=policy,
            settings=settings,
            say=echo_err,
            proxy_url=proxy,
            upstream=upstream,
        )


def _upstream(server: str, logprobs_mode: str | None, policy: str | None) -> Upstream:
    from cm2_agent.models.endpoint_sampling import TOKEN_ID_KEYS, logprobs_kind
    from cm2_agent.server.chat_request import Upstream

    known = ("auto", *TOKEN_ID_KEYS, "none")
    if server not in known:
        raise ModelError(f"--server {server!r}; expected one of: {', '.join(known)}")
    try:
        logprobs_kind(logprobs_mode)
    except ValueError as error:
        raise ModelError(str(error)) from error
    return Upstream(server=server, logprobs_mode=logprobs_mode, model_version=policy)
