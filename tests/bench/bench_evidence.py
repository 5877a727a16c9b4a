"""What checking evidence does and costs: near misses accepted and true quotes refused, and CPU a verdict beside an
earlier commit of this project in the same run; prints one JSON line.

Two workers, one on this checkout and one on the baseline, take turns block by block, so that both see the same machine.
`checked` is the CPU of turning answers with quotes into verdicts, `judged` that of a whole verdict in process (prompt,
reply, evidence, what is asked again), `stored` that with scores and SQL rows, `served` that of a whole verdict of a
judge behind HTTP on loopback, by the client that users have, the server in a process of its own. `per_answer` counts
answers in place of verdicts, where some are asked twice. The dialogues are tau-bench's where
`CM2_TEST_DATA` (default: ../shared/data) has them, else our own; the answers say yes with a quote of a real sentence,
of a stretch of one or of a whole part. `re_asked` is the share of the verdicts whose quote left out what turns it.

python -m tests.bench.bench_evidence [--baseline 2bc61d1] [--blocks 9]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("LANGSMITH_TRACING", "false")
TOP = Path(__file__).parents[2]
ITEMS = 5
SEEDS = 8
Turn = list[dict[str, Any]]
"""The answers of a turn, by item."""


def dialogues() -> tuple[str, list[list[Any]]]:
    """Dialogues as lists of messages in JSON."""
    from cm2_agent.importers.tau_bench import read_tau_bench

    data = Path(os.environ.get("CM2_TEST_DATA", TOP.parent / "shared" / "data")) / "tau-bench"
    records = [record for path in sorted(data.glob("*.json")) for record in json.loads(path.read_text("utf-8"))]
    if records:
        traces = [read_tau_bench(record, source="bench", checklists=False).trace for record in records]
        return "tau-bench", [[message.to_json() for message in trace.messages] for trace in traces]
    from tests.bench.bench_judge import dialogue

    return "synthetic", [[message.to_json() for message in dialogue(number, turns=5).messages] for number in range(100)]


def answers(messages: list[Any], whole: bool) -> list[Turn]:
    """For each turn, what a judge says of five items: yes, with a quote of a sentence or of all that a part holds."""
    from cm2_agent import Message, Run, Trace
    from cm2_agent.rewards.judges.sentences import sentence_around
    from cm2_agent.rewards.judges.transcript import part_texts

    trace = Trace.of(Run(id="bench", messages=tuple(map(Message.from_json, messages))))
    out = []
    for turn in trace.turns:
        texts = [
            (step.number + 1, part, text)
            for step in turn.steps
            for part in ("assistant.tool_calls", "assistant.reply", "tool.content")
            for text in part_texts(step, part)
            if len(text) >= 12
        ]
        said = []
        for number in range(ITEMS):
            draw = random.Random(f"{turn.index}.{number}.{texts}")
            if not texts:
                said.append({"id": f"i{number}", "analysis": "", "evidence": None, "verdict": "no"})
                continue
            step, part, text = draw.choice(texts)
            quote = text
            if not whole and part == "assistant.reply":
                at = draw.randrange(len(text))
                found = sentence_around(text, at, at + 1)
                quote = text[found.start : found.end].strip()
                words = quote.split(" ")
                if number % 2 and len(words) > 6:  # a stretch of it
                    first = draw.randrange(len(words) // 3)
                    quote = " ".join(words[first : len(words) - draw.randrange(len(words) // 3)])
                quote = quote if len(quote) >= 12 and re.search(r"\w\w", quote) else text
            evidence: Any = {"step": step, "part": part, "quote": quote}
            said.append({"id": f"i{number}", "analysis": "", "evidence": evidence, "verdict": "yes"})
        out.append(said)
    return out


class Worker:
    """One side, with the names of its commit."""

    def __init__(self) -> None:
        def named(*places: str) -> Any:
            for place in places:
                module, _, name = place.partition(":")
                try:
                    return getattr(importlib.import_module(module), name)
                except (ImportError, AttributeError):
                    continue
            raise SystemExit(f"none of {places} is in this checkout")

        self.message = named("cm2_agent:Message", "cm2_agent.messages:Message")
        self.run, self.trace = (named(f"cm2_agent:{name}", f"cm2_agent.trace:{name}") for name in ("Run", "Trace"))
        self.item = named("cm2_agent:Item", "cm2_agent.checklist:Item")
        self.judge = named("cm2_agent.rewards.judges.llm_judge:LLMJudge", "cm2_agent.rewards.llm_judge:LLMJudge")
        self.transcript = named(
            "cm2_agent.rewards.judges.prompt:Transcript", "cm2_agent.rewards.judge_prompt:Transcript"
        )
        self.to_verdict = named("cm2_agent.rewards.judges.verdicts:to_verdict", "cm2_agent.rewards.llm_judge:_verdict")
        self.answered = named("cm2_agent.rewards.judges.client:ServedAnswer", "cm2_agent.rewards.judge_call:Answered")
        self.answer = named("cm2_agent.rewards.judges.reply:ItemAnswer", "cm2_agent.rewards.judge_reply:Answer")
        self.checklist = named("cm2_agent:Checklist", "cm2_agent.checklist:Checklist")
        self.store = named("cm2_agent.store:SQLStore")
        self.served_model = named(
            "cm2_agent.rewards.judges.client:openai_judge_model", "cm2_agent.rewards.judge_models:openai_judge_model"
        )
        self.score_traces = named("cm2_agent.runner.rescore:score_traces", "cm2_agent.runner:score_traces")
        from pydantic_ai.models.function import FunctionModel

        self.model = FunctionModel(self._answer, model_name="bench")
        self.now: dict[str, dict[str, Any]] = {}
        self.recorded: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
        self.again = 0
        self.traces: list[Any] = []
        self.said: list[list[Turn]] = []

    def load(self, path: str) -> dict[str, float]:
        made = json.loads(Path(path).read_text("utf-8"))
        self.recorded.clear()
        self.traces = [
            self.trace.of(self.run(id=f"d{number}", messages=tuple(map(self.message.from_json, one["messages"]))))
            for number, one in enumerate(made)
        ]
        self.said = [one["answers"] for one in made]
        self.items = [self.item(f"i{number}", f"Is it so, for question {number}?") for number in range(ITEMS)]
        return {}

    def checked(self) -> dict[str, float]:
        """CPU-ms of one answer's check, the parts' texts new to it."""
        work = []
        for trace, turns in zip(self.traces, self.said, strict=True):
            shown = self.transcript(trace=trace)
            for number, said in enumerate(turns):
                window = shown.window(number)
                answered = [self.answered(answer=self.answer.model_validate(one), served="bench") for one in said]
                work.append((shown, window, answered))
        gc.collect()
        begun = time.process_time()
        for shown, window, answered in work:
            for item, one in zip(self.items, answered, strict=True):
                self.to_verdict(item, one, shown, window)
        spent = time.process_time() - begun
        return {"ms": 1000 * spent / sum(len(answered) for _, _, answered in work)}

    def judged(self) -> dict[str, float]:
        """CPU-ms of one verdict of a judge in process, and the share of the verdicts that was asked again."""
        before = self.again
        gc.collect()
        begun = time.process_time()
        verdicts = asyncio.run(self._ask_all(self.judge(self.model)))
        return {"ms": 1000 * (time.process_time() - begun) / verdicts, "again": (self.again - before) / verdicts}

    def served(self) -> dict[str, float]:
        """CPU-ms of one verdict of a judge behind HTTP: of this process alone, the server is another."""
        if not self.recorded:
            asyncio.run(self._ask_all(self.judge(self.model)))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "said.json"
            path.write_text(json.dumps([[list(key), said] for key, said in self.recorded.items()]), "utf-8")
            with serving(path) as url:
                gc.collect()
                begun = time.process_time()
                verdicts = asyncio.run(self._ask_all(self.judge(self.served_model(url, "stub"))))
                return {"ms": 1000 * (time.process_time() - begun) / verdicts}

    def stored(self) -> dict[str, float]:
        """CPU-ms of one verdict with its SQL rows: the dialogues scored into a new database."""
        if not self.recorded:
            asyncio.run(self._ask_all(self.judge(self.model)))
        with tempfile.TemporaryDirectory() as folder, self.store(f"sqlite:///{folder}/cm2.db") as store:
            store.save_runs([run for trace in self.traces for run in trace.runs])
            checklist = self.checklist(
                *(self.item(one.id, one.question, turn="each") for one in self.items), name="five"
            )
            judge = self.judge(self.model)

            async def score() -> int:
                scoring = self.score_traces(self.traces, checklist, judge=judge, store=store, concurrency=64)
                return sum([len(score.verdicts) async for _, score in scoring])

            gc.collect()
            begun = time.process_time()
            verdicts = asyncio.run(score())
            return {"ms": 1000 * (time.process_time() - begun) / verdicts}

    async def _ask_all(self, judge: Any) -> int:
        verdicts = 0
        for trace, turns in zip(self.traces, self.said, strict=True):
            for number, said in enumerate(turns):
                self.now = {one["id"]: one for one in said}
                verdicts += len(await judge(trace, number, self.items))
        self.now = {}
        await judge.aclose()
        return verdicts

    async def _answer(self, messages: Any, info: Any) -> Any:
        """What the judge says: of the turn at hand, else what it said of the same transcript before."""
        from pydantic_ai.messages import ModelResponse, TextPart
        from pydantic_ai.usage import RequestUsage

        content = str(messages[-1].parts[-1].content)
        key, tail = asked_of(content)
        text, answered = said_of(self.recorded.setdefault(key, self.now), tail)
        self.again += answered if "asked these items before" in tail else 0
        usage = RequestUsage(input_tokens=len(content) // 4, output_tokens=len(text) // 4)
        return ModelResponse(parts=[TextPart(content=text)], usage=usage, model_name="bench")


def asked_of(content: str) -> tuple[tuple[str, str], str]:
    """What a prompt shows and judges, the same when it is asked again, and what follows the transcript."""
    shown, _, tail = content.rpartition("END OF TRANSCRIPT ")
    judged = re.search("Judged: .*", tail)
    assert judged is not None
    return (shown.split('\n{"excerpt_for"')[0].strip(), judged[0]), tail


def said_of(known: dict[str, dict[str, Any]], tail: str) -> tuple[str, int]:
    """The reply to the items that stand in the tail, and how many they are."""
    asked = [name for name in known if f'"id":"{name}"' in tail]
    return json.dumps({"items": [known[name] for name in asked]}), len(asked)


@contextmanager
def serving(path: Path) -> Iterator[str]:
    """A server in a process of its own that says what the file has; gives its URL."""
    environment = {**os.environ, "PYTHONPATH": str(TOP)}
    process = subprocess.Popen(
        [sys.executable, __file__, "--serve", str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.stdin.close()
        process.wait(60)


def serve(path: Path) -> None:
    """Serve until stdin is closed."""
    from tests.chat_server import ChatServer, last_message

    known = {(shown, judged): said for (shown, judged), said in json.loads(path.read_text("utf-8"))}

    def said(body: dict[str, Any]) -> str:
        key, tail = asked_of(last_message(body))
        return said_of(known[key], tail)[0]

    with ChatServer(said, keep=False) as server:
        print(server.base_url, flush=True)
        sys.stdin.read()


def work() -> None:
    """Answer requests, one JSON line each, on stdin."""
    worker = Worker()
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # nothing else may write between the answers
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(getattr(worker, request["do"])(*request["with"])), file=replies, flush=True)


def counts() -> dict[str, Any]:
    """Near misses accepted, true quotes refused and the upper 95 % bound of their share."""
    from scipy.stats import beta

    from cm2_agent.rewards.judges.evidence import PartText, places
    from tests.rewards.judges.quotes import near_misses, true_quotes

    def stands(one: Any) -> bool:
        return any(True for _ in places(one.quote, PartText(raw=one.part)))

    near = [one for seed in range(SEEDS) for one in near_misses(seed, rounds=5)]
    true = [one for seed in range(SEEDS) for one in true_quotes(seed)]
    refused = sum(not stands(one) for one in true)
    return {
        "near_misses": len(near),
        "accepted": sum(map(stands, near)),
        "true_quotes": len(true),
        "refused": refused,
        "refused_upper_95": round(float(beta.ppf(0.95, refused + 1, len(true) - refused)), 6),
    }


def measure(sides: dict[str, Any], path: Path, blocks: int) -> dict[str, Any]:
    for side in sides.values():
        side.ask("load", str(path))
    out: dict[str, Any] = {}
    for part in ("checked", "judged", "stored", "served"):
        found: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
        for _ in range(blocks):
            for name, side in sides.items():
                found[name].append(side.ask(part))
        out[part] = {f"{name}_ms": round(min(one["ms"] for one in given), 5) for name, given in found.items()}
        if "baseline" in found:
            pairs = zip(found["now"], found["baseline"], strict=True)
            out[part]["ratio"] = round(statistics.median(one["ms"] / other["ms"] for one, other in pairs), 3)
        if part == "judged":
            out["re_asked"] = round(found["now"][0]["again"], 4)
        if part != "checked" and "ratio" in out[part]:
            out[part]["per_answer"] = round(out[part]["ratio"] / (1 + out.get("re_asked", 0.0)), 3)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--baseline", default="2bc61d1", help="a commit; '' measures this checkout alone")
    parser.add_argument("--blocks", type=int, default=9)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work()
        return
    if options.serve is not None:
        serve(options.serve)
        return
    from tests.bench.bench_watch import Side, checked_out

    name, made = dialogues()
    out: dict[str, Any] = {"bench": "evidence", "baseline": options.baseline or None, **counts(), "data": name}
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "baseline"
        base.mkdir()
        sides = {"now": Side(TOP, __file__)}
        if options.baseline:
            sides["baseline"] = Side(checked_out(options.baseline, base), __file__)
        try:
            for label, whole in (("sentences", False), ("whole_parts", True)):
                path = Path(folder) / f"{label}.json"
                path.write_text(
                    json.dumps([{"messages": one, "answers": answers(one, whole)} for one in made]), "utf-8"
                )
                out[label] = measure(sides, path, options.blocks)
        finally:
            for side in sides.values():
                side.close()
    print(json.dumps(out))


if __name__ == "__main__":
    main()
