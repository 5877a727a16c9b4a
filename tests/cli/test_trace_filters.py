"""The options that choose traces are the same ones in every command that reads them."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from cm2_agent.cli.app import app
from cm2_agent.cli.times import moment
from cm2_agent.cli.trace_filters import FilterOptions
from cm2_agent.errors import StoreError
from cm2_agent.store import SQLStore
from cm2_agent.types.messages import Message
from cm2_agent.types.run import Run
from tests.cli_runner import CliRunner

CHECKLIST = """name: kind
items:
  - {id: gives_date, check: {reply_matches: '[0-9]'}}
  - {id: greets, check: {reply_matches: '^Hi'}}
"""
DAY = 86_400 * 10**9
OPTIONS = ("since", "until", "user", "session", "tag", "agent", "task", "metadata", "reward-below", "failed")


def cm2(*arguments: str) -> dict[str, Any]:
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, (result.stdout, result.stderr, result.exception)
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found


def refused(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 2, (result.stdout, result.stderr, result.exception)
    return result.stderr


@pytest.fixture
def url(tmp_path: Path) -> str:
    """Three scored dialogues on three days: the second gives no date, the third neither date nor greeting."""
    url = f"sqlite:///{tmp_path / 'cm2.db'}"
    with SQLStore(url) as store:
        for number, reply in enumerate(("Hi, on day 7.", "Hi, soon.", "Soon.")):
            store.save_run(
                Run(
                    id=f"t{number}",
                    name="desk" if number else "shop",
                    user="ann",
                    tags=("beta", f"n{number}"),
                    messages=(Message.of("user", f"When, {number}?"), Message.of("assistant", reply)),
                    attributes={"plan": "gold", "number": number},
                    started=(20_000 + number) * DAY,
                )
            )
    (tmp_path / "kind.yaml").write_text(CHECKLIST, encoding="utf-8")
    cm2("score", str(tmp_path / "kind.yaml"), "--store", url)
    return url


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--since", "2024-10-05T02:00+02:00", "--until", "2024-10-06"], ["t1"]),
        (["--user", "ann", "--tag", "beta", "--tag", "n2"], ["t2"]),
        (["--agent", "shop", "--metadata", "plan=gold", "--metadata", "number=0"], ["t0"]),
        (["--reward-below", "1"], ["t2", "t1"]),
        (["--failed", "gives_date", "--failed", "greets"], ["t2"]),
        (["--task", "none"], []),
    ],
)
def test_the_same_traces_are_chosen(url: str, tmp_path: Path, given: list[str], expected: list[str]) -> None:
    shown = cm2("show", "--store", url, *given)
    assert [row["trace"] for row in shown["traces"]] == expected
    assert shown["total"] == len(expected)
    out = tmp_path / "out.jsonl"
    assert cm2("export", str(out), "--store", url, *given)["exported"] == len(expected)
    assert [json.loads(line)["trace"]["id"] for line in out.read_text().splitlines()] == expected[::-1]
    tasks = ("tasks", "from-traces", str(tmp_path / "tasks.jsonl"), "--store", url, *given)
    if not expected:
        assert "no trace with a score" in refused("report", "--store", url, *given)
        assert "no trace in" in refused("score", str(tmp_path / "kind.yaml"), "--store", url, *given)
        assert "not chosen by the options (3)" in refused(*tasks)
        return
    assert cm2("report", "--store", url, *given)["traces"] == len(expected)
    assert cm2(*tasks)["tasks"] == len(expected)
    (tmp_path / "other.yaml").write_text(CHECKLIST.replace("name: kind", "name: other"), encoding="utf-8")
    assert cm2("score", str(tmp_path / "other.yaml"), "--store", url, *given)["scored"] == len(expected)
    with SQLStore(url) as store:
        assert [score.trace_id for score in store.scores()] == expected[::-1]


def test_a_wrong_value_says_what_to_type(url: str, tmp_path: Path) -> None:
    given = ("show", "--store", url)
    assert "--since is 'yesterday'; expected a date or a time" in refused(*given, "--since", "yesterday")
    assert "is not before --until" in refused(*given, "--since", "2024-10-06", "--until", "2024-10-05")
    assert "expected KEY=VALUE, such as plan=gold" in refused(*given, "--metadata", "plan")
    assert "a trace has one of them" in refused(*given, "--metadata", "plan=a", "--metadata", "plan=b")
    assert "has an item 'give_date'; expected one of its items, such as gives_date" in refused(
        *given, "--failed", "give_date"
    )
    assert "reward_below is nan" in refused(*given, "--reward-below", "nan")
    assert "give one of those too" in refused("score", "--store", url, "--reward", "x", str(tmp_path / "kind.yaml"))


def test_times_are_dates_times_and_ages() -> None:
    for text in ("2026-05-20T10:00Z", "2026-05-20T10:00", "2026-05-20T12:00+02:00", "20260520T100000"):
        assert moment(text, "--since") == datetime(2026, 5, 20, 10, tzinfo=UTC)
    before = datetime.now(UTC)
    week_ago = moment("7d", "--since")
    assert before <= week_ago + timedelta(days=7) <= datetime.now(UTC)
    for wrong in ("", "7 days", "999999w", "2026-13-01", "٣d"):
        with pytest.raises(StoreError, match="expected a date or a time"):
            moment(wrong, "--until")


def test_every_command_that_chooses_traces_has_every_option() -> None:
    assert [name.replace("_", "-") for name in FilterOptions.__dataclass_fields__] == list(OPTIONS)
    for command in (["export"], ["show"], ["score"], ["report"], ["tasks", "from-traces"]):
        shown = CliRunner().invoke(app, [*command, "--help"]).stdout
        assert all(f"--{option} " in shown for option in (*OPTIONS, "project", "reward")), command
