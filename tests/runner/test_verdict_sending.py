"""Verdicts on their way back to Langfuse, Phoenix and LangSmith, each by its own SDK, to servers on loopback."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("langfuse", reason='needs the extra: pip install "cm2-agent[langfuse]"')
pytest.importorskip("phoenix.client", reason='needs the extra: pip install "cm2-agent[phoenix]"')

from cm2_agent import Score, SentCounts, SQLStore, TurnScore, Verdict, send_verdicts
from cm2_agent.cli.app import app
from cm2_agent.importers import Imported, read_recordings
from cm2_agent.integrations.verdict_feedback import COMMENT, REWARD
from cm2_agent.types.json_values import JSON
from tests.cli_runner import CliRunner
from tests.importers.foreign_files import openai, written
from tests.importers.test_span_exports import langfuse, langsmith, phoenix
from tests.integrations.tool_servers import SECRET, SERVERS, ToolServer

TRACES = {
    "langfuse": ["a" * 32, "b" * 32, "c" * 32],
    "phoenix": ["a" * 32, "b" * 32, "c" * 32],
    "langsmith": [f"00000000-0000-4000-8000-00000000000{number}" for number in range(3)],
}
PROJECT = "11111111-2222-4333-8444-555555555555"
QUOTE = {"turn": 0, "step": 1, "from": "assistant.reply", "snippet": "On Friday.", "judge": "judge-1"}
VERDICTS = (
    Verdict(item="looks_up", value=True, weight=0.25, step=1, paid=True),
    Verdict(
        item="tells_day", value=False, weight=0.25, explanation="It says Friday to ann@example.net.", evidence=(QUOTE,)
    ),
    Verdict(item="polite", value=None, weight=0.25, reason="judge failed", cause="infrastructure"),
    Verdict(item="refuses", value=None, weight=0.25, reason="not applicable"),
)


def export(tool: str) -> list[dict[str, Any]]:
    """Three traces of the tool, and one chat of nobody's."""
    rows = {"langfuse": langfuse, "phoenix": phoenix, "langsmith": langsmith}[tool]()
    names = {"langfuse": '"t"', "phoenix": '"t"', "langsmith": '"root"'}
    text = json.dumps([{**row, "session_id": PROJECT} for row in rows] if tool == "langsmith" else rows)
    every = []
    for number, trace in enumerate(TRACES[tool]):
        one = text.replace(names[tool], json.dumps(trace))
        if tool == "phoenix":
            one = one.replace('"context.span_id": "', f'"context.span_id": "{number}')
        every += json.loads(one)
    return every


def score_of(trace: str, reward: float | None = 0.5, verdicts: tuple[Verdict, ...] = VERDICTS) -> Score:
    turn = TurnScore(turn=0, reached=True, steps=2, reward=reward, verdicts=verdicts)
    return Score(trace_id=trace, reward_version="r:1", reward=reward, turns=(turn,))


any_tool = pytest.mark.parametrize("tool", ["langfuse"], indirect=True)
"""For what is the same for all of them."""


@pytest.fixture(params=sorted(SERVERS))
def tool(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def store(tool: str, tmp_path: Path) -> Iterator[SQLStore]:
    """Three dialogues of the tool and one of no tool's, all scored."""
    with SQLStore(f"sqlite:///{tmp_path / 'cm2.db'}") as opened:
        for file in (written(tmp_path, *export(tool)), written(tmp_path, openai(), name="chat.jsonl")):
            for found in read_recordings(None, file):
                assert isinstance(found, Imported)
                opened.save_trace(found.trace)
        opened.save_scores([score_of(trace.id) for trace in opened.traces()])
        yield opened


def sent(store: SQLStore, tool: str, server: ToolServer, monkeypatch: pytest.MonkeyPatch, **options: Any) -> SentCounts:
    with server.running() as variables, monkeypatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        return send_verdicts(store, tool, **options)


def plain(tool: str, server: ToolServer) -> list[dict[str, JSON]]:
    """What the server holds, in the words that all three have."""
    out: list[dict[str, JSON]] = []
    for kept in server.kept.values():
        if tool == "langfuse":
            words = {"on": kept["traceId"], "name": kept["name"], "value": kept["value"], "why": kept.get("comment")}
            judge = kept["metadata"].get("judge")
        elif tool == "phoenix":
            result = kept["result"]
            words = {"on": kept["span_id"], "name": kept["name"], "value": result["score"]}
            words["why"] = result.get("explanation")
            judge = kept["metadata"].get("judge")
            assert (kept["annotator_kind"] == "LLM") == (judge is not None)
        else:
            words = {"on": kept["run_id"], "name": kept["key"], "value": kept["score"], "why": kept.get("comment")}
            judge = kept["feedback_source"]["metadata"].get("judge")
            assert (kept["feedback_source"]["type"] == "model") == (judge is not None)
            assert kept["session_id"] == PROJECT
        out.append({**words, "judge": judge})
    return out


def test_what_the_tool_holds_then(tool: str, store: SQLStore, monkeypatch: pytest.MonkeyPatch) -> None:
    server = SERVERS[tool]()
    done = sent(store, tool, server, monkeypatch)
    assert done == SentCounts(traces=3, verdicts=6, rewards=3, elsewhere=1, null=3)
    places = ["01", "11", "21"] if tool == "phoenix" else TRACES[tool]
    why = "It says Friday to ann@example.net.\n“On Friday.” (assistant.reply)"
    expected = [
        {"on": place, "name": name, "value": value, "why": why if name == "tells_day" else None, "judge": judge}
        for place in places
        for name, value, judge in (("looks_up", 1, None), ("tells_day", 0, "judge-1"), (REWARD, 0.5, None))
    ]
    assert sorted(plain(tool, server), key=str) == sorted(expected, key=str)
    assert "When does order" not in json.dumps([one.body for one in server.requests]), "no dialogue is sent"


def test_a_second_sending_sends_what_changed_in_place_of_what_was(
    tool: str, store: SQLStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = SERVERS[tool]()
    sent(store, tool, server, monkeypatch)
    asked, held = len(server.requests), len(server.kept)
    assert sent(store, tool, server, monkeypatch) == SentCounts(unchanged=3, elsewhere=1, null=3)
    assert len(server.requests) == asked
    again = sent(store, tool, server, monkeypatch, again=True)
    assert (again.traces, len(server.kept)) == (3, held)
    other = (replace(VERDICTS[0], value=False, paid=False), *VERDICTS[1:])
    store.save_scores([replace(score_of(trace.id, 0.25, other), reward_version="r:2") for trace in store.traces()])
    newer = sent(store, tool, server, monkeypatch)
    assert (newer.traces, newer.unchanged, len(server.kept)) == (3, 0, held)
    assert [one["value"] for one in plain(tool, server) if one["name"] in (REWARD, "looks_up")] == [0, 0.25] * 3


@pytest.mark.parametrize("tool", ["phoenix"], indirect=True)
def test_a_sending_that_broke_off_goes_on(
    tool: str, store: SQLStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cm2_agent.runner.verdict_sending.AT_ONCE", 1)
    server = SERVERS[tool](most=2)
    words = ["verdicts", "send", tool, "--store", f"sqlite:///{tmp_path / 'cm2.db'}", "--json"]
    with server.running() as variables:
        broken = CliRunner().invoke(app, words, env=variables)
        assert broken.exit_code == 1, broken.stderr
        assert "503" in broken.stderr
        assert "type the same command again" in broken.stderr
        server.most = None
        done = CliRunner().invoke(app, words, env=variables)
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["traces"] == 1
    assert json.loads(done.stdout)["unchanged"] == 2
    assert len(server.kept) == 9
    assert SECRET not in broken.stderr + done.stderr + done.stdout


def test_what_the_tool_does_not_have(tool: str, store: SQLStore, monkeypatch: pytest.MonkeyPatch) -> None:
    known = ["01", "21"] if tool == "phoenix" else TRACES[tool][::2]
    server = SERVERS[tool](known=known)
    done = sent(store, tool, server, monkeypatch)
    assert (done.traces, sum(done.refused.values()), len(server.kept)) == (2, 3, 6)
    server.known = None
    assert sent(store, tool, server, monkeypatch).traces == 1, "it is tried again"


def test_a_wrong_key_is_said_once_and_shown_nowhere(
    tool: str, store: SQLStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = SERVERS[tool]()
    url = f"sqlite:///{tmp_path / 'cm2.db'}"
    with server.running() as variables:
        wrong = {name: value if "http" in value else f"wrong-{value}" for name, value in variables.items()}
        refused = CliRunner().invoke(app, ["verdicts", "send", tool, "--store", url], env=wrong)
    assert (refused.exit_code, server.kept) == (1, {})
    assert "401" in refused.stderr
    assert "wrong-" not in refused.stderr + refused.stdout
    words = ["verdicts", "send", tool, "--store", url, "--url", "http://wrong-user:wrong-word@127.0.0.1:1/"]
    gone = CliRunner().invoke(app, words, env=wrong)
    assert gone.exit_code == 1
    assert "at http://127.0.0.1:1 cannot be reached" in gone.stderr
    assert "wrong" not in gone.stderr + gone.stdout


@any_tool
def test_comments_are_redacted_where_asked_and_never_too_long(
    tool: str, store: SQLStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = (replace(VERDICTS[1], explanation="x" * 9_000),)
    store.save_scores([replace(score_of(trace.id, 0.5, long), reward_version="r:2") for trace in store.traces()])
    server = SERVERS[tool]()
    sent(store, tool, server, monkeypatch, prefix="desk.")
    assert [len(str(one["why"])) for one in plain(tool, server) if one["why"] is not None] == [COMMENT] * 3
    assert {str(one["name"]) for one in plain(tool, server)} == {"desk.tells_day", "desk.reward"}
    with server.running() as variables:
        words = ["verdicts", "send", tool, "--store", store.url, "--reward", "r:1", "--redact"]
        assert CliRunner().invoke(app, words, env=variables).exit_code == 0
    body = json.dumps(server.requests[-1].body)
    assert "It says Friday to " in body
    assert "ann@example.net" not in body


@any_tool
def test_a_dry_run_sends_nothing(tool: str, store: SQLStore, monkeypatch: pytest.MonkeyPatch) -> None:
    server = SERVERS[tool]()
    done = sent(store, tool, server, monkeypatch, dry_run=True)
    assert (done.traces, done.verdicts, server.requests) == (3, 6, [])
    with server.running() as variables:
        words = ["verdicts", "send", tool, "--store", store.url, "--json", "--dry-run"]
        for chosen, traces in ((["--failed", "tells_day"], 3), (["--until", "2020-01-01"], 0)):
            found = CliRunner().invoke(app, [*words, *chosen], env=variables)
            assert json.loads(found.stdout)["traces"] == traces
    assert server.requests == []
    assert sent(store, tool, server, monkeypatch).traces == 3


def test_a_dry_run_needs_no_keys(tool: str, store: SQLStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LANGFUSE_PUBLIC_KEY", "LANGFUSE_SECRET_KEY", "LANGSMITH_API_KEY", "LANGCHAIN_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    words = ["verdicts", "send", tool, "--store", store.url, "--json", "--dry-run"]
    found = CliRunner().invoke(app, words)
    assert (found.exit_code, json.loads(found.stdout)["traces"]) == (0, 3)
    assert send_verdicts(store, tool, dry_run=True).traces == 3


@any_tool
def test_an_erased_trace_is_forgotten(tool: str, store: SQLStore, monkeypatch: pytest.MonkeyPatch) -> None:
    sent(store, tool, SERVERS[tool](), monkeypatch)
    assert store.erase(everything=True).removed["sent"] == 3


@pytest.mark.parametrize(
    ("words", "variables", "message"),
    [
        (["mlflow"], {}, "expected one of: langfuse, phoenix, langsmith"),
        (["langfuse"], {}, "set LANGFUSE_PUBLIC_KEY and LANGFUSE_SECRET_KEY"),
        (["langsmith"], {}, "set LANGSMITH_API_KEY"),
    ],
)
def test_what_cannot_be_sent_says_what_to_type(
    words: list[str], variables: dict[str, str], message: str, tmp_path: Path
) -> None:
    done = CliRunner().invoke(app, ["verdicts", "send", *words, "--store", f"sqlite:///{tmp_path / 'no.db'}"])
    assert (done.exit_code, done.stdout) == (2, "")
    assert message in done.stderr
