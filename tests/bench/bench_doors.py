"""One agent through every door, a folder of foreign files, and the graders of OpenAI's evaluations:

    python -m tests.bench.bench_doors [FOLDER]

`doors`: whether the one dialogue has the same `Trace.content_hash` by each door (tests/bench/doors.py says what each is
given). `files`: how many files of FOLDER are imported, which are read in part, and which are refused, by the first
reason. `graders`: on how many drawn items the verdicts of the imported checklist are what the graders define."""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cm2_agent import SQLStore
from cm2_agent.errors import CM2Error
from cm2_agent.importers import Problem, read_recordings
from cm2_agent.importers.json_records import read_records
from cm2_agent.importers.openai_evals import read_graders
from tests.bench.doors import DOORS, expected, through
from tests.cli.test_import_graders import GRADERS, cm2
from tests.cli.test_import_graders import expected as by_definition

ITEMS = 500
WORDS = ("shipped", "Shipped", "on Friday", "by van", "it was", "lost", "7", "")


def doors() -> dict[str, bool]:
    """Whether the dialogue that each door stored has the hash of the one that was held."""
    same: dict[str, bool] = {}
    for door in DOORS:
        with tempfile.TemporaryDirectory() as folder:
            found = through(door, Path(folder))
        same[door] = [trace.content_hash for trace in found] == [expected().content_hash]
    return same


def files(folder: Path) -> dict[str, Any]:
    """What becomes of each file."""
    refused: dict[str, str] = {}
    partly: dict[str, int] = {}
    names = sorted(path for path in folder.iterdir() if path.is_file())
    for path in names:
        try:
            found = list(read_recordings(None, path))
        except CM2Error as error:
            reason = _graders_of(path) or str(error)
            if reason != "graders":
                refused[path.name] = _short(reason.removeprefix(f"{path}: "))
            continue
        broken = [one for one in found if isinstance(one, Problem)]
        if len(broken) == len(found):
            refused[path.name] = _short(broken[0].reason if broken else "holds no record")
        elif broken:
            partly[path.name] = len(broken)
    return {"files": len(names), "imported": len(names) - len(refused), "partly": partly, "refused": refused}


def _graders_of(path: Path) -> str | None:
    """`graders` where the file holds those of an evaluation, else why it does not; None where it is no such file."""
    try:
        (record,) = read_records(path)
        if isinstance(record, Problem) or not isinstance(record.value, dict | list):
            return None
        read_graders(record.value)
    except (CM2Error, ValueError) as error:
        return str(error) if "grader" in path.name else None
    return "graders"


def _short(text: str) -> str:
    return " ".join(text.split())[:100]


def graders(items: int = ITEMS) -> dict[str, int]:
    """Verdicts of `cm2 import openai-evals`' checklist on drawn items, against the graders' definitions."""
    draw = random.Random(0)

    def words() -> str:
        return " ".join(draw.choice(WORDS) for _ in range(draw.randrange(1, 4))).strip()

    pairs = [(words(), draw.choice(WORDS)) for _ in range(items)]
    lines = [
        {
            "object": "eval.run.output_item",
            "id": str(number),
            "datasource_item": {"question": "Where?", "answer": answer},
            "sample": {
                "input": [{"role": "user", "content": "Where?"}],
                "output": [{"role": "assistant", "content": said}],
            },
            "results": [{"name": name, "passed": value} for name, value in by_definition(said, answer).items()],
        }
        for number, (said, answer) in enumerate(pairs)
    ]
    with tempfile.TemporaryDirectory() as folder, _inside(folder):
        Path("support.json").write_text(json.dumps({"name": "support", "testing_criteria": GRADERS}), encoding="utf-8")
        Path("items.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        cm2("import", "openai-evals", "support.json")
        cm2("import", "items.jsonl", "--store", "sqlite:///e.db")
        cm2("score", "support.yaml", "--checks", "support_checks.py", "--store", "sqlite:///e.db")
        verdicts = agreeing = 0
        with SQLStore("sqlite:///e.db") as store:
            outcomes = {trace.id: trace.outcomes for trace in store.traces()}
            for score in store.scores():
                for verdict in score.verdicts:
                    verdicts += 1
                    agreeing += float(bool(verdict.value)) == outcomes[score.trace_id][verdict.item]
    return {"items": len(outcomes), "verdicts": verdicts, "agreeing": agreeing}


@contextmanager
def _inside(folder: str) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def measure(folder: Path | None) -> dict[str, Any]:
    begun = time.process_time()
    same = doors()
    return {
        "benchmark": "doors",
        "doors": same,
        "same_hash": sum(same.values()),
        "graders": graders(),
        "files": None if folder is None else files(folder),
        "cpu_seconds": round(time.process_time() - begun, 1),
        "load": os.getloadavg()[0],
    }


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]) if sys.argv[1:] else None)))
