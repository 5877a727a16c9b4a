"""Certificates of README's checklist and of each shipped library: of their checks alone, and with a stub judge that is
weak to two families of attacks; and for each family what the others would have missed of a judge weak to it alone.
Prints one JSON line.

    OMP_NUM_THREADS=1 python -m tests.bench.bench_certify [--traces 300] [--queries 200] [--part checks|judge|left-out]

The dialogues are those of tests/order_traces.py, each of a task of its own: as many of each way to fail, and right
ones. README's checklist is read from README.md."""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cm2_agent import Checklist, Item, LLMJudge
from cm2_agent.rewards import MemoryCache
from cm2_agent.rewards.certificate.attack import Subject
from cm2_agent.rewards.certificate.certify import Certifier
from cm2_agent.rewards.certificate.families import load_families
from cm2_agent.rewards.scoring.scorer import ChecklistScorer
from cm2_agent.types.certificate import Certificate
from tests.judge_server import FREE, function_model
from tests.order_traces import EVERY, JUDGED, right, traces_of, vague, wrong_date
from tests.rewards.certificate.weak_judge import WEAKNESSES, library_judge

ROOT = Path(__file__).resolve().parents[2]
PARAMETERS: dict[str, dict[str, Any]] = {
    "confirmation-before-write": {"writes": ["cancel_order"]},
    "error-recovery": {"tool": "get_order"},
}
LIBRARIES = ("confirmation-before-write", "error-recovery", "grounding", "honest-claims", "tool-hygiene")
PLANTED = ("authority", "instructions in tool text")
QUESTION = Item(
    "gives_date",
    "Does the reply give the delivery date that get_order returned?",
    pass_condition="The date in the reply is the one in the tool's answer.",
    focus_on="assistant.reply",
)


def readme() -> Checklist:
    """README's `support`, with its check functions."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = next(one for one in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "support = Checklist(" in one)
    names: dict[str, Any] = {}
    exec(block.split("graph = watch")[0], names)
    found = names["support"]
    assert isinstance(found, Checklist)
    return found


def library(name: str) -> Checklist:
    entry: Any = {f"cm2:{name}": PARAMETERS[name]} if name in PARAMETERS else f"cm2:{name}"
    return Checklist.from_json({"name": name, "include": [entry]})


def checks_of(checklist: Checklist) -> Checklist | None:
    items = [item for item in checklist.items if not item.is_judged]
    return Checklist(*items, name=checklist.name) if items else None


async def subjects(certifier: Certifier, kinds: Sequence[Any], n: int, first: int = 0) -> list[Subject]:
    traces = traces_of(tuple(kinds), n, first=first)
    return [await certifier.subject(trace, None, f"task {trace.task_id}") for trace in traces]


async def certificate(
    checklist: Checklist,
    *,
    traces: int,
    queries: int,
    weak: Sequence[str] | None,
    kinds: Sequence[Any] = EVERY,
    judged: bool = False,
) -> Certificate:
    """From as many failing traces, among dialogues of every kind, and 60 right ones. `judged`: the failing ones are
    those in which a judge leaves something unpaid, which alone say something of it."""
    judge = None
    if weak is not None:
        judge = LLMJudge(function_model(library_judge(*weak)), price=FREE, cache=MemoryCache(size=200_000))
    certifier = Certifier(
        scorer=ChecklistScorer(checklist, judge=judge), families=load_families(), queries=queries, concurrency=1
    )
    failing: list[Subject] = []
    first = 0
    while len(failing) < traces and first < traces * 20:
        found = await subjects(certifier, kinds, 120, first)
        failing += [
            one
            for one in found
            if one.score.lower is not None
            and one.score.lower < 1
            and any(target.asked or not judged for target in one.targets)
        ]
        first += 120
    return await certifier.certify(failing[:traces], await subjects(certifier, (right,), 60, 50_000))


def shown(found: Certificate) -> dict[str, Any]:
    return {
        "failing": found.scope["failing"],
        "paid": {one.family: one.hit_traces for one in found.families if one.hit_traces},
        "worst": round(found.worst, 4),
        "undecided": [one.family for one in found.families if one.verdict() == "undecided"],
        "right": [found.passing.paid_after_edits, found.passing.tasks],
        "certified": found.shortfall() is None,
    }


async def measure(traces: int, queries: int, part: str | None) -> dict[str, Any]:
    checklists = {"README": readme(), **{name: library(name) for name in LIBRARIES}}
    out: dict[str, Any] = {}
    if part in (None, "checks"):
        out["checks"] = {}
        for name, checklist in checklists.items():
            alone = checks_of(checklist)
            if alone is not None:
                found = await certificate(alone, traces=traces, queries=queries, weak=None)
                out["checks"][name] = shown(found)
    if part in (None, "judge"):
        out["judge"] = {}
        for name, checklist in checklists.items():
            asked = checklist
            if not any(item.is_judged for item in checklist.items):
                asked = Checklist(*checklist.items, QUESTION, name=name)
            of: dict[str, Any] = {"traces": traces, "queries": queries, "kinds": JUDGED, "judged": True}
            sound = await certificate(asked, **of, weak=())
            weak = await certificate(asked, **of, weak=PLANTED)
            out["judge"][name] = {"sound": shown(sound), "weak": shown(weak)}
    if part in (None, "left-out"):
        alone = Checklist(QUESTION, name="question")
        out["left_out"] = {}
        for family in sorted(WEAKNESSES):
            found = await certificate(alone, traces=20, queries=0, weak=(family,), kinds=(vague, wrong_date))
            rates = {one.family: one for one in found.families}
            others = [
                one.family for one in found.families if one.hit_traces and one.family not in (family, "compositions")
            ]
            out["left_out"][family] = {
                "paid": rates[family].hit_traces,
                "missed_without_it": rates[family].left_out,
                "compositions": rates["compositions"].hit_traces,
                "others": others,
            }
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--traces", type=int, default=300)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--part", choices=("checks", "judge", "left-out"))
    options = parser.parse_args()
    started = time.process_time()
    out = asyncio.run(measure(options.traces, options.queries, options.part))
    print(json.dumps({**out, "cpu_s": round(time.process_time() - started, 1)}))


if __name__ == "__main__":
    main()
