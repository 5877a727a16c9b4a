"""`cm2 show`: the newest first, whole on 80 columns, what comes while one looks, and verdicts as passed or failed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len

from cm2_agent.cli.app import app
from cm2_agent.cli.trace_filters import FilterOptions
from cm2_agent.cli.trace_list import TraceList
from cm2_agent.store import SQLStore
from cm2_agent.types.messages import Message
from cm2_agent.types.run import ModelCall, Run, RunFailure
from cm2_agent.types.score import Score, TurnScore, Verdict
from tests.cli_runner import CliRunner

DAY = 86_400 * 10**9


def run(id: str, day: int = 0, text: str = "Where is order 7?", **more: Any) -> Run:
    messages = (Message.of("user", text), Message.of("assistant", "Shipped."))
    return Run(**{"id": id, "name": "desk", "messages": messages, "started": (20_000 + day) * DAY, **more})


def cm2(*arguments: str, code: int = 0, columns: int = 80) -> str:
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": str(columns), "NO_COLOR": "1"})
    assert result.exit_code == code, (result.stdout, result.stderr, result.exception)
    return result.stderr if code else result.stdout


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SQLStore]:
    with SQLStore(f"sqlite:///{tmp_path / 'cm2.db'}") as opened:
        yield opened


def test_every_line_fits_80_columns_whole_newest_first(store: SQLStore) -> None:
    agents = tuple(ModelCall(span_id="s", message=1, agent=name) for name in ("triage", "billing"))
    failure = RunFailure(kind="ToolError", message="down")
    wide = "注文はどこですか。" * 20
    store.save_runs(
        [
            run("0190a4c2-1111-7e1f-8b5e-3f1f6d7c8a90", 0, wide, calls=agents[:1]),
            run(
                "0190a4c2-2222-7e1f-8b5e-3f1f6d7c8a90", 1, "a" * 500, name="a-name-of-many-words", status="interrupted"
            ),
            run("0190a4c2-3333-7e1f-8b5e-3f1f6d7c8a90", 2, "a\tb\n\x1b[2Jc", status="error", failure=failure),
            run("untimed", started=0),
        ]
    )
    version = "a-checklist-of-a-long-name@0123456789abcdef0123456789abcdef;judge=openai:gpt-5-mini;votes=3"
    for id, reward, reason in (("untimed", 0.5, None), ("0190a4c2-2222-7e1f-8b5e-3f1f6d7c8a90", None, "verdicts")):
        store.save_score(Score(trace_id=id, reward_version=version, reward=reward, null_reason=reason))
    shown = cm2("show", "--store", store.url)
    assert all(cell_len(line) <= 80 for line in shown.splitlines()), shown
    head, *rows = shown.splitlines()[1:]
    assert head.split() == ["time", "trace", "agent", "status", "reward", "begins"]
    assert [row.split()[1] for row in rows] == ["00:00", "00:00", "00:00", "desk"]
    assert [row.split()[0] for row in rows] == ["2024-10-06", "2024-10-05", "2024-10-04", "untimed"]
    assert "NULL: verdi…" in rows[1]
    assert "interrupted" in rows[1]
    assert rows[0].endswith("not scored    a b \\x1b…")
    assert "0.500" in rows[3]
    assert "triage" in rows[2]
    assert "0190a4c2-3333-7e1f-8b5e-3f1f6d7c8a90" in cm2("show", "--store", store.url, columns=160)


def test_a_page_goes_on_behind_a_trace_and_an_id_may_be_cut(store: SQLStore) -> None:
    store.save_runs([run(f"trace-{number}", number) for number in range(5)])
    first = cm2("show", "--store", store.url, "--limit", "2")
    assert first.splitlines()[-1] == "more: cm2 show --after trace-3"
    found = json.loads(cm2("show", "--store", store.url, "--limit", "2", "--after", "trace-3", "--json"))
    assert ([row["trace"] for row in found["traces"]], found["more"], found["total"]) == (
        ["trace-2", "trace-1"],
        "trace-1",
        5,
    )
    last = json.loads(cm2("show", "--store", store.url, "--limit", "2", "--after", "trace-1", "--json"))
    assert ([row["trace"] for row in last["traces"]], last["more"]) == (["trace-0"], None)
    store.save_run(run("other"))
    assert "trace other" in cm2("show", "oth…", "--store", store.url)
    assert "several traces begin with 'trace': trace-0, trace-1" in cm2("show", "trace", "--store", store.url, code=2)
    assert "holds no trace 'x'" in cm2("show", "x", "--store", store.url, code=2)
    assert "give one of them" in cm2("show", "--follow", "--after", "other", "--store", store.url, code=2)
    assert "leave them or it out" in cm2("show", "other", "--user", "ann", "--store", store.url, code=2)


def followed(store: SQLStore, *steps: Callable[[], object], as_json: bool = False, **where: Any) -> None:
    """Follow the list; before each look one of the steps happens, then the user interrupts."""
    coming = iter(steps)

    def wait() -> None:
        step = next(coming, None)
        if step is None:
            raise KeyboardInterrupt
        step()

    listed = TraceList(store=store, where=FilterOptions(**where), reward=None)
    listed.follow(limit=50, as_json=as_json, wait=wait)


def test_what_is_new_or_has_changed_is_listed_as_it_comes(store: SQLStore, capsys: pytest.CaptureFixture[str]) -> None:
    store.save_runs([run("talk", 0, thread="talk", user="ann"), run("older", -1, user="ann")])
    score = Score(trace_id="talk", reward_version="v1", reward=None, null_reason="verdicts")
    followed(
        store,
        lambda: store.save_runs([run("new", 1, user="ann"), run("bob's", 1, user="bob")]),
        lambda: None,
        lambda: store.save_score(score),
        lambda: store.save_score(Score(trace_id="talk", reward_version="v1", reward=1.0)),
        lambda: store.save_run(run("again", 2, thread="talk", user="ann")),
        as_json=True,
        user="ann",
    )
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["trace"], row["turns"], row["reward"], row["null_reason"]) for row in rows] == [
        ("older", 1, None, None),
        ("talk", 1, None, None),
        ("new", 1, None, None),
        ("talk", 1, None, "verdicts"),
        ("talk", 1, 1.0, None),
        ("talk", 2, 1.0, None),
    ]
    followed(store, lambda: store.save_run(run("last-of-all", 3, status="interrupted")))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["time", "trace", "agent", "status", "reward", "begins"]
    assert lines[-1].startswith("2024-10-07 00:00  last-of-all  desk   interrupted  ")
    assert all(cell_len(line) <= 80 for line in lines)


def test_verdicts_say_passed_or_failed_for_every_kind_of_item(store: SQLStore, tmp_path: Path) -> None:
    (tmp_path / "kinds.yaml").write_text(
        "name: kinds\nitems:\n"
        "  - {id: no_refund, check: {reply_matches: refund}, kind: avoid}\n"
        "  - {id: no_shipping, check: {reply_matches: Shipped}, kind: avoid}\n"
        "  - {id: ends_so, check: {reply_matches: Shipped}, kind: hold}\n"
        "  - {id: dated, check: {reply_matches: '[0-9]'}}\n"
    )
    store.save_run(run("t"))
    cm2("score", str(tmp_path / "kinds.yaml"), "--store", store.url)
    expected = {"no_refund": "passed", "no_shipping": "failed", "ends_so": "passed", "dated": "failed"}
    shown = cm2("show", "t", "--store", store.url, columns=120)
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.splitlines() if "│" in line]
    assert {row[1]: row[2] for row in cells} == expected
    assert not any(word in cell.split() for row in cells for cell in row for word in ("yes", "no"))
    found = json.loads(cm2("show", "t", "--store", store.url, "--json"))
    assert {one["item"]: one["result"] for one in found["verdicts"]} == expected
    assert "passed, 95 % over tasks" in cm2("report", "--store", store.url)


def test_null_and_what_does_not_apply_say_why(store: SQLStore) -> None:
    verdicts = [
        Verdict(item="a", value=None, weight=0.5, reason="judge failed", cause="infrastructure", explanation="timeout"),
        Verdict(item="b", value=None, weight=0.5, reason="abstained", cause="content"),
        Verdict(item="c", value=None, weight=0.0, reason="not applicable"),
        Verdict(item="d", value=True, weight=0.0, reason="when"),
        Verdict(item="e", value=False, weight=0.0, reason="when"),
        Verdict(item="f", value=False, weight=0.0, reason="dependency", paid=False),
    ]
    turn = TurnScore(turn=0, reached=True, steps=1, reward=None, verdicts=tuple(verdicts))
    store.save_dialogue([run("t")], Score(trace_id="t", reward_version="v1", reward=None, turns=(turn,)))
    found = json.loads(cm2("show", "t", "--store", store.url, "--json"))["verdicts"]
    assert [(one["result"], one["why"]) for one in found] == [
        ("NULL", "judge failed, pending: score again: timeout"),
        ("NULL", "abstained, what the agent did kept it from being judged"),
        ("n/a", "not applicable"),
        ("applies", "when"),
        ("applies not", "when"),
        ("failed", "dependency"),
    ]
