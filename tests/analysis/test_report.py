"""The report's figures on small hand-made scores, and its page in a real browser: hostile dialogues are read, never
run."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given

from cm2_agent.analysis.report import Report, report
from cm2_agent.analysis.report_html import page
from cm2_agent.cli.app import app
from cm2_agent.store import SQLStore
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.checklist_item import Item
from cm2_agent.types.messages import Message
from cm2_agent.types.run import ModelCall, Run
from cm2_agent.types.run_attributes import TASK_ID
from cm2_agent.types.score import Score, TurnScore, Verdict
from cm2_agent.types.trace import Trace
from tests.analysis.scored_pairs import ScoredPairs
from tests.cli_runner import CliRunner
from tests.strategies import scores

ITEMS = Checklist(
    Item("looks", check={"called": "look"}, facet="tool_usage", level="action"),
    Item("tells", "Is the date told?", facet="context", level="task"),
    Item("tells_day", "Is the day told?", facet="context", level="parameter", part_of="tells"),
    Item("polite", "Is it polite?", turn="trace", facet="context"),
    name="items",
)
HOSTILE = "</title></style><script>document.title = 'owned'</script><img src=x onerror=\"document.title='owned'\">"


def verdict(item: str, value: bool | None, **more: Any) -> Verdict:
    return Verdict(item=item, value=value, weight=0.5, **more)


def pair(
    number: int, *, looks: bool, tells: bool | None, day: bool, polite: bool = True, task: str = "t", **more: Any
) -> tuple[Trace, Score]:
    """A trace of one turn and two steps, with its score."""
    said = more.pop("said", "It comes on Monday.")
    messages = (
        Message.of("user", f"Where is order {number}?"),
        Message.of("assistant", "Let me see."),
        Message.of("assistant", said),
    )
    call = ModelCall(span_id="s", usage={"input_tokens": 10, "output_tokens": 2})
    trace = Trace(
        id=f"r{number}", runs=(Run(id=f"r{number}", messages=messages, calls=(call,), attributes={TASK_ID: task}),)
    )
    turns = (
        TurnScore(
            turn=0,
            reached=True,
            steps=2,
            reward=None,
            verdicts=(
                verdict("looks", looks),
                verdict("tells", tells, cause="content" if tells is None else None, reason=more.pop("why", None)),
                verdict("tells_day", day, evidence=more.pop("evidence", ())),
            ),
        ),
        TurnScore(turn=None, reached=True, steps=2, reward=1.0, verdicts=(verdict("polite", polite),)),
    )
    values = [value for turn in turns for one in turn.verdicts if (value := one.value) is not None]
    reward = None if None in (looks, tells, day) else sum(values) / len(values)
    reason = "verdicts" if reward is None else None
    made = Score(
        trace_id=trace.id, reward_version="v", reward=reward, checklist=ITEMS.hash, turns=turns, null_reason=reason
    )
    return trace, replace(made, **more)


def reported(*pairs: tuple[Trace, Score]) -> Report:
    return report(ScoredPairs(pairs), {ITEMS.hash: ITEMS}.get)


def example() -> Report:
    quote = {"turn": 0, "step": 0, "from": "assistant.reply", "snippet": "Let me see.", "judge": "m"}
    return reported(
        pair(0, looks=True, tells=True, day=True, task="a"),
        pair(
            1,
            looks=False,
            tells=False,
            day=False,
            task="a",
            evidence=(quote,),
            usage={"calls": 2, "input_tokens": 500, "usd": 0.25},
        ),
        pair(2, looks=False, tells=True, day=False, task="b", usage={"calls": 1, "input_tokens": 100, "usd": 0.5}),
        pair(3, looks=True, tells=None, day=True, task="b", why="abstained"),
        pair(4, looks=True, tells=True, day=True, polite=False, task="c"),
    )


def test_items_facets_and_levels() -> None:
    found = example()
    assert (found.version, found.traces, found.rewarded, found.null_rewards) == ("v", 5, 4, {"verdicts": 1})
    assert found.mean_reward == pytest.approx((1 + 0.25 + 0.5 + 0.75) / 4)
    assert found.reward_interval is not None
    assert found.histogram == (0, 0, 1, 0, 0, 1, 0, 1, 0, 1)
    by_name = {rate.name: rate for rate in found.items}
    assert [rate.name for rate in found.items] == ["looks", "tells_day", "tells", "polite"]  # the worst first
    assert (by_name["tells"].n, by_name["tells"].passed, by_name["tells"].nulls, by_name["tells"].rate) == (
        4,
        3,
        1,
        0.75,
    )
    assert (by_name["tells"].question, by_name["tells"].facet, by_name["tells"].level) == (
        "Is the date told?",
        "context",
        "task",
    )
    for rate in found.items:
        assert rate.interval is not None
        assert rate.rate is not None
        assert 0 <= rate.interval[0] <= rate.rate <= rate.interval[1] <= 1
    assert {rate.name: (rate.n, rate.passed) for rate in found.facets} == {"context": (14, 10), "tool_usage": (5, 3)}
    assert {rate.name for rate in found.levels} == {"action", "task", "parameter", "none"}
    assert found.null_causes == {"content: abstained": 1}


def test_where_it_fails_first_and_what_fails_with_what() -> None:
    found = example()
    assert [(first.turn, first.step, first.n) for first in found.first] == [(0, 1, 1), (0, 2, 1), (None, 2, 1)]
    assert found.first_items == {"tells_day": 1, "looks": 1, "polite": 1}
    assert found.without_failure == 2
    (together,) = [one for one in found.together if {one.left, one.right} == {"looks", "tells_day"}]
    assert (together.n, together.both) == (5, 2)
    assert (together.expected, together.phi) == pytest.approx((0.8, 1.0))


def test_the_worst_traces_show_what_was_said() -> None:
    worst = example().worst
    assert [(one.trace, one.reward) for one in worst] == [("r1", 0.25), ("r2", 0.5), ("r4", 0.75)]
    assert worst[0].opening == "Where is order 1?"
    assert [(failed.item, failed.quotes, failed.said) for failed in worst[0].failed] == [
        ("looks", (), "It comes on Monday."),
        ("tells", (), "It comes on Monday."),
        ("tells_day", ("Let me see.",), None),
    ]


def test_cost_and_consistency_of_levels() -> None:
    found = example()
    assert found.cost["agent_calls"] == 5
    assert found.cost["agent_input_tokens"] == 50
    assert (found.cost["judged_traces"], found.cost["judge_calls"], found.cost["judge_usd"]) == (2, 3, 0.75)
    (row,) = found.consistency
    assert (row.parent, row.children, row.n) == ("tells", ("tells_day",), 4)
    assert (row.parent_alone, row.children_alone, row.rate) == (1, 0, 0.75)
    unknown = reported(pair(0, looks=True, tells=True, day=True, usage={"calls": 1, "usd": None}))
    assert unknown.cost["judge_usd"] is None
    assert "judge_usd" not in reported(pair(0, looks=True, tells=True, day=True)).cost
    trace, score = pair(0, looks=True, tells=True, day=True)
    run = replace(trace.runs[0], calls=(ModelCall(span_id="s"),))
    assert reported((replace(trace, runs=(run,)), score)).cost == {"agent_calls": 1, "agent_calls_of_unknown_usage": 1}


def test_what_something_else_decided_is_no_failure_of_the_item() -> None:
    made = pair(0, looks=False, tells=False, day=True, why="dependency")
    found = reported(made)
    (tells,) = [rate for rate in found.items if rate.name == "tells"]
    assert (tells.n, tells.decided, tells.rate, tells.interval) == (0, 1, None, None)
    assert found.first_items == {"looks": 1}
    assert [failed.item for failed in found.worst[0].failed] == ["looks"]


@pytest.mark.slow
@given(scores())
def test_any_score_can_be_reported_and_shown(score: Score) -> None:
    found = report(ScoredPairs([(Trace(id=score.trace_id, runs=(Run(id="r"),)), score)]), lambda _: None)
    json.dumps(found.to_json(), allow_nan=False)
    assert "Content-Security-Policy" in page(found)
    assert found.rewarded + sum(found.null_rewards.values()) == 1


@pytest.fixture
def store(tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path}/cm2.db"
    with SQLStore(url) as opened:
        opened.save_checklist(ITEMS)
        pairs = [
            pair(0, looks=True, tells=True, day=True, task="a"),
            pair(1, looks=False, tells=False, day=False, task="b", said=HOSTILE),
            pair(2, looks=False, tells=None, day=False, task="c"),
        ]
        for trace, score in pairs:
            opened.save_trace(trace)
            opened.save_score(score)
    return url


def test_the_command_tells_writes_and_refuses(store: str, tmp_path: Path) -> None:
    run = CliRunner().invoke
    done = run(app, ["report", "--store", store, "--json"])
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["traces"], found["rewarded"], found["items"][0]["name"]) == (3, 2, "looks")
    done = run(app, ["report", "--store", store, "--html", str(tmp_path / "report.html")])
    assert done.exit_code == 0, done.stderr
    assert "3 traces, mean reward 0.625" in done.stdout
    assert "worst traces" in done.stdout
    assert (tmp_path / "report.html").read_text().count("<svg") >= 5
    for arguments, told in (
        (["--html", str(tmp_path / "no" / "report.html")], "does not exist; make it"),
        (["--reward", "other"], "expected one of: v"),
    ):
        refused = run(app, ["report", "--store", store, *arguments])
        assert refused.exit_code == 2
        assert told in refused.stderr


def dumped(path: Path, tmp_path: Path) -> str:
    """The page's DOM after a real browser has run all that it would run."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no browser: install Chromium (apt-get install chromium)")
    command = [
        browser,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--virtual-time-budget=3000",
        f"--user-data-dir={tmp_path}/profile",
    ]
    done = subprocess.run(
        [*command, "--dump-dom", path.as_uri()], capture_output=True, text=True, timeout=600, check=True
    )
    return done.stdout


def test_a_hostile_reply_is_shown_and_not_run(store: str, tmp_path: Path) -> None:
    control = tmp_path / "control.html"
    control.write_text(f"<!doctype html><title>control{HOSTILE}")
    assert "<title>owned</title>" in dumped(control, tmp_path)  # the browser does run it where nobody is careful
    path = tmp_path / "report.html"
    assert CliRunner().invoke(app, ["report", "--store", store, "--html", str(path)]).exit_code == 0
    shown = dumped(path, tmp_path)
    assert "<title>CM2 report</title>" in shown
    assert "<script" not in shown
    assert "<img" not in shown
    assert "&lt;script&gt;document.title = 'owned'" in shown
    # and were something not escaped, the policy would still stop it
    policy = re.search(r"<meta http-equiv=[^>]*>", path.read_text())
    assert policy is not None
    careless = tmp_path / "careless.html"
    careless.write_text(f"<!doctype html><head>{policy.group()}<title>careless{HOSTILE}")
    assert "<title>careless</title>" in dumped(careless, tmp_path)


def test_the_page_asks_nobody_for_anything() -> None:
    text = page(example())
    assert "script" not in text
    assert not re.search(r"(?:src|href|action)=", text)
    assert "url(" not in text
    assert "http://" not in text
    assert "https://" not in text
