"""`cm2 doctor`: what the store can be used for, and what went wrong where nobody was told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import typer

from cm2_agent.cli.common import STORE, JsonOption, StoreOption, answer, open_store, plain

TEXT_ONLY = "no token ids"
TRAINABLE = "trainable"
FAILED = "failed call"


def register(app: typer.Typer) -> None:
    help = "Check the store: trainable calls, failed writes, dropped scores, schema, NULLs; exits 1 on a problem."
    app.command("doctor", help=help)(doctor)


def doctor(store: StoreOption = STORE, as_json: JsonOption = False) -> None:
    from cm2_agent.store import HEAD, schema_revision

    found = schema_revision(store)
    if found != HEAD:
        what = f"schema {found} is not this version's {HEAD}; back the store up, then type: cm2 db upgrade"
        result: dict[str, Any] = {"ok": False, "problems": [what], "schema": {"revision": found, "head": HEAD}}
    else:
        with open_store(store) as opened:
            health = opened.health()
        calls = calls_of(health["model_calls"])
        problems = problems_of(health)
        result = {"ok": not problems, "problems": problems, "calls": calls, **health}
    answer(result, as_json=as_json, lines=_lines(result))
    if result["problems"]:
        raise typer.Exit(1)


def calls_of(counts: Mapping[str, int]) -> dict[str, Any]:
    """Model calls by what GRPO can do with them: `trainable`, `text_only`, `failed`, and `other` by reason."""
    known = {TRAINABLE, TEXT_ONLY, FAILED}
    return {
        "trainable": counts.get(TRAINABLE, 0), "text_only": counts.get(TEXT_ONLY, 0), "failed": counts.get(FAILED, 0),
        "other": {reason: count for reason, count in counts.items() if reason not in known},
    }  # fmt: skip


def problems_of(health: Mapping[str, Any]) -> list[str]:
    """What somebody has to look at, in sentences. Text-only calls, tool errors that the agent saw and low rewards are no problems."""
    found = []
    if not health["traces"]:
        found.append("the store holds no traces: nothing was captured or imported into it")
    for kind, incident in health["incidents"].items():
        found.append(f"{incident['count']} × {kind}: {incident['detail']}" if incident["detail"] else f"{incident['count']} × {kind}")
    if health["failed_calls"]:
        found.append(f"{health['failed_calls']} model calls failed; cm2 show TRACE names the error")
    for kind, count in health["failed_runs"].items():
        found.append(f"{count} runs died of {kind}: they are stored, and have no reward")
    infrastructure = health["null_verdicts"].get("infrastructure", 0)
    if infrastructure:
        reasons = ", ".join(f"{count} × {reason}" for reason, count in health["null_verdict_reasons"].items())
        why = f"a check or the judge failed, or there was no judge ({reasons})"
        found.append(f"{infrastructure} verdicts are NULL: {why}; cm2 show TRACE says why")
    return [plain(one) for one in found]


def _lines(result: Mapping[str, Any]) -> list[str]:
    shown = {name: value for name, value in result.items() if name not in {"ok", "problems", "incidents"}}
    lines = [f"{name.replace('_', ' '):<18} {_told(value)}" for name, value in shown.items()]
    return [*lines, *(f"PROBLEM: {one}" for one in result["problems"]), "" if result["problems"] else "no problems"]


def _told(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{plain(str(name)).replace('_', ' ')} {_told(item)}" for name, item in value.items() if item != {}) or "none"
    return plain(str(value))
