"""What judging takes: calls a turn, CPU-ms a verdict, verdicts a second from a warm cache, and how busy 64 calls at a
time are kept over HTTP. Prints one JSON line. The dialogues are tau-bench's where `CM2_TEST_DATA` (default:
../shared/data) has them, else our own.

    OMP_NUM_THREADS=1 python -m tests.bench.bench_judge [--part calls|cpu|http] [--slow 3.0] [--waves 10]

Every ratio is of figures from one run on one machine. The stub server is a process of its own; the bare client is httpx
sending the very bodies that the judge sent."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, TextPart, UserPromptPart
from pydantic_ai.models import Model
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.usage import RequestUsage

from cm2_agent.importers.tau_bench import read_tau_bench
from cm2_agent.llm.limits import RateLimits
from cm2_agent.llm.usage import Usage
from cm2_agent.rewards.judges.cache import NamespacedCache
from cm2_agent.rewards.judges.client import openai_judge_model
from cm2_agent.rewards.judges.llm_judge import LLMJudge
from cm2_agent.runner.rescore import score_traces
from cm2_agent.store import SQLStore
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.checklist_item import Item
from cm2_agent.types.messages import Message, ToolCall, ToolCallResponse
from cm2_agent.types.run import Run
from cm2_agent.types.trace import Trace
from tests.judge_server import FREE, Asked, JudgeServer, answer, honest, reply

ROOT = Path(__file__).resolve().parents[2]
QUESTIONS = {
    "understood": "Did the assistant address what the user asked for in this turn?",
    "looked_up": "Did the assistant look up what it needed before it told the user anything?",
    "grounded": "Is what the assistant says about the user's data in a tool result?",
    "policy": "Does the assistant follow the policy of its system message?",
    "clear": "Is it clear to the user what happened, or what happens next?",
}
FIVE = Checklist(*(Item(name, question, turn="each") for name, question in QUESTIONS.items()), name="five")
QUOTE = "Order 7 was shipped on May 3 and comes on May 7."


def dialogues() -> tuple[str, list[Trace]]:
    data = Path(os.environ.get("CM2_TEST_DATA", ROOT.parent / "shared" / "data")) / "tau-bench"
    files = sorted(data.glob("*.json"))
    if not files:
        return "synthetic", [dialogue(number, turns=5) for number in range(100)]
    records = [record for path in files for record in json.loads(path.read_text(encoding="utf-8"))]
    return "tau-bench", [read_tau_bench(record, source="bench", checklists=False).trace for record in records]


def dialogue(number: int, turns: int) -> Trace:
    """Turns of two steps: a lookup and a reply."""
    messages = []
    for turn in range(turns):
        call = ToolCall(id=f"c{turn}", name="get_order", arguments={"order_id": 7, "request": f"{number}.{turn}"})
        found = ToolCallResponse(id=f"c{turn}", response={"shipped": "May 3", "due": "May 7"})
        messages += [Message.of("user", f"Where is order 7? ({number}.{turn})"), Message.of("assistant", calls=[call])]
        messages += [Message(role="tool", parts=(found,)), Message.of("assistant", QUOTE)]
    return Trace.of(Run(id=f"d{number}", messages=tuple(messages)))


async def score(traces: Sequence[Trace], judge: LLMJudge, store: SQLStore | None, concurrency: int = 64) -> int:
    """Score all and return the number of verdicts."""
    scoring = score_traces(traces, FIVE, judge=judge, store=store, concurrency=concurrency)
    verdicts = sum([len(score.verdicts) async for _, score in scoring])
    await judge.aclose()
    return verdicts


@contextmanager
def stored(traces: Sequence[Trace]) -> Iterator[SQLStore]:
    with tempfile.TemporaryDirectory() as folder, SQLStore(f"sqlite:///{folder}/cm2.db") as store:
        store.save_runs([run for trace in traces for run in trace.runs])
        yield store


def first_pass(usage: Usage) -> int:
    return usage.calls - usage.re_asks


def calls() -> dict[str, Any]:
    """Calls a turn against a counting server, and the paper's protocol on the same dialogues."""
    name, traces = dialogues()
    turns = sum(len(trace.turns) for trace in traces)
    with JudgeServer(keep=False) as server, stored(traces) as store:

        def judge(**options: Any) -> LLMJudge:
            return LLMJudge(
                openai_judge_model(server.base_url, "stub"), price=FREE, limits=RateLimits(concurrency=64), **options
            )

        ours = judge(cache=store.verdict_cache())
        verdicts = asyncio.run(score(traces, ours, store))
        made = server.calls
        again = judge(cache=store.verdict_cache())
        asyncio.run(score(traces, again, store))
        second = server.calls - made
        paper = judge(protocol="per_step")
        before = server.calls
        asyncio.run(score(traces, paper, None))
        return {
            "data": name,
            "dialogues": len(traces),
            "turns": turns,
            "verdicts": verdicts,
            "first_pass_calls_per_turn": round(first_pass(ours.usage) / turns, 4),
            "re_asks": ours.usage.re_asks,
            "calls_of_a_second_run": second,
            "paper_calls": server.calls - before,
            "share_of_paper": round(first_pass(ours.usage) / first_pass(paper.usage), 4),
        }


class Recorded:
    """An in-process model that costs next to nothing: it gives again what a careful one said of the same transcript."""

    def __init__(self) -> None:
        self.said: dict[tuple[str, str], str] = {}

    def model(self) -> Model:
        async def function(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
            (request,) = messages
            assert isinstance(request, ModelRequest)
            content = next(part.content for part in request.parts if isinstance(part, UserPromptPart))
            assert isinstance(content, str)
            shown, _, tail = content.rpartition("END OF TRANSCRIPT ")
            judged = re.search(r"^Judged: .*", tail, re.MULTILINE)
            assert judged is not None
            key = (shown, judged[0])
            if key not in self.said:
                self.said[key] = json.dumps(honest(Asked.of(content)))
            said = self.said[key]
            # Counted as a provider would tell them; left out, pydantic-ai estimates them with a regex over the whole
            # transcript.
            usage = RequestUsage(input_tokens=len(content) // 4, output_tokens=len(said) // 4)
            return ModelResponse(parts=[TextPart(content=said)], usage=usage, model_name="in-process")

        return FunctionModel(function, model_name="in-process")


def cpu() -> dict[str, Any]:
    """CPU-ms a verdict with prompts, validation, evidence and SQL rows; then the same from a warm cache."""
    out: dict[str, Any] = {}
    name, real = dialogues()
    for label, traces in ((name, real), ("small", [dialogue(number, turns=5) for number in range(200)])):
        recorded = Recorded()
        asyncio.run(score(traces, LLMJudge(recorded.model(), price=FREE), None))
        figures = []
        with stored(traces) as store:
            cache = store.verdict_cache()
            for attempt in ("0", "1", "2"):
                judge = LLMJudge(recorded.model(), price=FREE, cache=NamespacedCache(cache, attempt))
                started = time.process_time()
                verdicts = asyncio.run(score(traces, judge, store))
                figures.append((time.process_time() - started) / verdicts)
                same = judge.usage.cached  # dialogues that begin alike share the verdicts of their first turn
            warm = []
            for attempt in ("0", "1", "2"):
                judge = LLMJudge(recorded.model(), price=FREE, cache=NamespacedCache(cache, attempt))
                started = time.process_time()
                verdicts = asyncio.run(score(traces, judge, store))
                warm.append(verdicts / (time.process_time() - started))
                assert judge.usage.calls == 0
        out[label] = {
            "verdicts": verdicts,
            "known_within_a_run": same,
            "cpu_ms_per_verdict": round(1e3 * min(figures), 4),
            "warm_verdicts_per_cpu_s": round(max(warm)),
        }
    return out


@contextmanager
def serving(latency: float) -> Iterator[str]:
    """A stub server in a process of its own; gives its URL."""
    command = [sys.executable, "-m", "tests.bench.bench_judge", "--serve", str(latency)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.stdin.close()
        process.wait(20)


def serve(latency: float) -> None:
    """Answers yes with an honest quote of `dialogue`, read from the tail of the prompt alone."""
    ids = list(QUESTIONS)

    class Quick(JudgeServer):
        async def _answer(self, body: dict[str, Any]) -> bytes | None:
            content = body["messages"][-1]["content"]
            last = int(re.findall(r"^Judged: steps? (?:\d+ to )?(\d+)", content, re.MULTILINE)[-1])
            self.answerer = lambda asked: reply(*(answer(id, "yes", last, "assistant.reply", QUOTE) for id in ids))
            return await super()._answer(body)

    with Quick(latency=latency, keep=False) as server:
        print(server.base_url, flush=True)
        sys.stdin.read()


async def _bare(url: str, bodies: Sequence[dict[str, Any]]) -> float:
    """Calls a second of an httpx client that keeps 64 under way."""
    limits = httpx.Limits(max_connections=64, max_keepalive_connections=64)
    key = {"Authorization": "Bearer none"}
    async with httpx.AsyncClient(limits=limits, timeout=60, headers=key) as client:
        waiting = iter(bodies)

        async def work() -> None:
            for body in waiting:
                (await client.post(f"{url}/chat/completions", json=body)).json()["choices"][0]["message"]["content"]

        started = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(64)))
        return len(bodies) / (time.perf_counter() - started)


def http(slow: float, waves: int) -> dict[str, Any]:
    """64 calls at a time: the share of the ideal with a slow stub, and of a bare client's rate with a quick one."""
    out: dict[str, Any] = {}
    with serving(slow) as url:
        traces = [dialogue(number, turns=1) for number in range(64 * waves)]
        judge = LLMJudge(openai_judge_model(url, "stub"), price=FREE, limits=RateLimits(concurrency=64))
        started = time.perf_counter()
        asyncio.run(score(traces, judge, None))
        took = time.perf_counter() - started
        assert first_pass(judge.usage) == len(traces)
        out["slow"] = {"latency_s": slow, "waves": waves, "share_of_ideal": round(slow * waves / took, 4)}
    with JudgeServer() as counting:
        asyncio.run(
            score([dialogue(0, turns=1)], LLMJudge(openai_judge_model(counting.base_url, "stub"), price=FREE), None)
        )
        (body,) = counting.bodies
    with serving(0.05) as url:
        traces = [dialogue(number, turns=1) for number in range(1000)]
        rates: dict[str, list[float]] = {"bare": [], "judge": []}
        for _ in range(3):  # turn about, so that a busy moment of the machine hits both
            rates["bare"].append(asyncio.run(_bare(url, [body] * len(traces))))
            judge = LLMJudge(openai_judge_model(url, "stub"), price=FREE, limits=RateLimits(concurrency=64))
            started, used = time.perf_counter(), time.process_time()
            asyncio.run(score(traces, judge, None))
            rates["judge"].append(len(traces) / (time.perf_counter() - started))
            busy = time.process_time() - used
        best = {name: max(values) for name, values in rates.items()}
        out["quick"] = {
            "latency_s": 0.05,
            "bare_calls_per_s": round(best["bare"], 1),
            "judge_calls_per_s": round(best["judge"], 1),
            "judge_cpu_ms_per_call": round(1e3 * busy / len(traces), 3),
            "share_of_bare": round(best["judge"] / best["bare"], 4),
        }
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=("calls", "cpu", "http"), help="one part alone")
    parser.add_argument("--slow", type=float, default=3.0, help="seconds of the slow stub")
    parser.add_argument("--waves", type=int, default=10)
    parser.add_argument("--serve", type=float, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve is not None:
        serve(given.serve)
        return
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "calls": calls,
        "cpu": cpu,
        "http": lambda: http(given.slow, given.waves),
    }
    chosen = parts if given.part is None else {given.part: parts[given.part]}
    print(json.dumps({"bench": "judge", **{name: part() for name, part in chosen.items()}}))


if __name__ == "__main__":
    main()
