"""`cm2 import openai-evals`: graders become a checklist whose verdicts on the recorded items are the recorded ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rapidfuzz import fuzz, utils

from cm2_agent import SQLStore
from cm2_agent.cli.app import app
from cm2_agent.errors import TraceError
from cm2_agent.importers.openai_evals import read_graders
from tests.cli_runner import CliRunner

OUTPUT, ANSWER = "{{ sample.output_text }}", "{{ item.answer }}"
PAIRS = [
    ("It was shipped.", "shipped"),
    ("It was SHIPPED.", "Shipped"),
    ("shipped", "shipped"),
    ("It is lost", "shipped"),
    ("It was shiped.", "It was shipped!"),
    ("On Friday, by van", "by van on Friday"),
    ("", "shipped"),
]


def check(name: str, operation: str) -> dict[str, Any]:
    return {"type": "string_check", "name": name, "input": OUTPUT, "reference": ANSWER, "operation": operation}


SIMILAR = {
    "type": "text_similarity",
    "name": "like the answer",
    "input": OUTPUT,
    "reference": ANSWER,
    "evaluation_metric": "fuzzy_match",
    "pass_threshold": 0.8,
}
GRADERS = [check("same", "eq"), check("other", "ne"), check("has", "like"), check("has, any case", "ilike"), SIMILAR]


def expected(said: str, answer: str) -> dict[str, bool]:
    return {
        "same": said == answer,
        "other": said != answer,
        "has": answer in said,
        "has_any_case": answer.lower() in said.lower(),
        "like_the_answer": fuzz.WRatio(said, answer, processor=utils.default_process) >= 80,
    }


def cm2(*arguments: str, code: int = 0) -> dict[str, Any]:
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert done.exit_code == code, done.output
    read: dict[str, Any] = json.loads(done.stdout) if code == 0 else {"error": done.stderr}
    return read


def test_recorded_items_pass_and_fail_as_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("support.json").write_text(json.dumps({"name": "support", "testing_criteria": GRADERS}))
    wrote = cm2("import", "openai-evals", "support.json")
    assert wrote == {"items": 5, "checklist": "support.yaml", "checks": "support_checks.py"}
    assert cm2("import", "openai-evals", "support.json") == wrote  # rerunning is safe
    items = [
        {
            "object": "eval.run.output_item",
            "id": str(number),
            "datasource_item": {"question": "Where?", "answer": answer},
            "sample": {
                "input": [{"role": "user", "content": "Where?"}],
                "output": [{"role": "assistant", "content": said}],
            },
            "results": [{"name": name, "passed": value} for name, value in expected(said, answer).items()],
        }
        for number, (said, answer) in enumerate(PAIRS)
    ]
    Path("items.jsonl").write_text("\n".join(map(json.dumps, items)))
    assert cm2("import", "items.jsonl", "--store", "sqlite:///e.db")["imported"] == len(PAIRS)
    cm2("score", "support.yaml", "--checks", "support_checks.py", "--store", "sqlite:///e.db")
    with SQLStore("sqlite:///e.db") as store:
        traces = {trace.id: trace for trace in store.traces()}
        scores = list(store.scores())
    assert len(scores) == len(PAIRS)
    for score in scores:
        recorded = traces[score.trace_id].outcomes
        verdicts = {verdict.item: verdict.value for verdict in score.verdicts}
        assert {name: float(bool(value)) for name, value in verdicts.items()} == recorded


def test_models_become_questions_and_sums_become_weights() -> None:
    said = [{"role": "system", "content": "Score politeness."}, {"role": "user", "content": OUTPUT}]
    score = {
        "type": "score_model",
        "name": "polite",
        "model": "m",
        "input": said,
        "range": [0, 1],
        "pass_threshold": 0.5,
    }
    label = {"type": "label_model", "name": "kind", "input": said, "labels": ["a", "b"], "passing_labels": ["a"]}
    first, second = read_graders({"testing_criteria": [score, label]}).checklist.items
    assert first.question == (
        "Score politeness. the assistant's last reply On a scale from 0 to 1: is the score at least 0.5?"
    )
    assert "Of the labels a, b: is the right one a?" in (second.question or "")
    multi = {
        "type": "multi",
        "name": "both",
        "graders": {"a": check("a", "eq"), "b": check("b", "like")},
        "calculate_output": "(0.5 * a + b * 1.5) / 2",
    }
    assert [(item.id, item.weight) for item in read_graders(multi).checklist.items] == [("a", 0.25), ("b", 0.75)]


@pytest.mark.parametrize(
    ("grader", "reason"),
    [
        ({**SIMILAR, "evaluation_metric": "bleu"}, "measures bleu: OpenAI computes it by means"),
        ({**SIMILAR, "evaluation_metric": "cosine"}, "measures cosine"),
        ({"type": "python", "name": "p", "source": "def grade(a, b): return 1"}, "Code of a file is never run"),
        (check("x", "regex"), "operation 'regex'; expected eq, ne, like or ilike"),
        (
            {"type": "score_model", "name": "s", "input": [{"content": ANSWER}]},
            "a judge of dialogues does not see",
        ),
        ({"type": "multi", "name": "m", "graders": {"a": check("a", "eq")}, "calculate_output": "a ** 2"}, "a sum of"),
        ({"type": "multi", "name": "m", "graders": {}, "calculate_output": "__import__('os')"}, "a sum of"),
        ({}, "is of type None"),
    ],
)
def test_what_cannot_be_exact_is_refused_by_name(grader: dict[str, Any], reason: str) -> None:
    with pytest.raises(TraceError, match=reason.replace("(", r"\(")):
        read_graders([grader])
