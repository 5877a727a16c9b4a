"""The commands on one store, from recordings to rows: what each prints, that repeating is safe, and the figures it must
show."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cm2_agent.cli.app import app
from cm2_agent.store import SQLStore
from cm2_agent.types.messages import Message, ToolCall
from cm2_agent.types.run import Branch, ModelCall, Run, ToolRun
from tests.cli_runner import CliRunner
from tests.importers.recordings import dialogues, recordings, saved

ROOT = Path(__file__).parents[2]
AIRLINE = ("cookbook/airline.yaml", "--checks", "cookbook/airline_checks.py")


def cm2(*arguments: str, code: int = 0) -> tuple[str, str]:
    """stdout and stderr of a command in this process."""
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == code, (result.stdout, result.stderr, result.exception)
    return result.stdout, result.stderr


def as_json(*arguments: str, code: int = 0) -> dict[str, Any]:
    """The one line of stdout."""
    out, _ = cm2(*arguments, "--json", code=code)
    (line,) = out.splitlines()
    found = json.loads(line)
    assert isinstance(found, dict)
    return found


@pytest.fixture
def store(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/cm2.db"


@pytest.fixture
def loaded(tmp_path: Path, store: str) -> str:
    """A store with the six recordings, their tasks with checklists."""
    as_json("import", "tau-bench", str(saved(tmp_path)), "--store", store, "--checklists")
    return store


def test_importing_again_changes_nothing(tmp_path: Path, store: str) -> None:
    command = ("import", "tau-bench", str(saved(tmp_path)), "--store", store)
    assert as_json(*command) == {"imported": 6, "skipped": 0, "duplicates": 0}
    assert as_json(*command) == {"imported": 0, "skipped": 0, "duplicates": 6}
    assert as_json(*command, "--checklists") == {"imported": 0, "skipped": 0, "duplicates": 6}
    assert as_json("score", "--store", store)["scored"] == 6  # the tasks came with the third import


def test_a_broken_record_is_told_by_line_and_the_rest_lands(tmp_path: Path, store: str) -> None:
    lines = [json.dumps(one) for one in recordings()]
    lines[1] = lines[1].replace('"traj": [', '"traj": [\x1b[31m', 1)
    lines[5] = lines[5][:-40]
    path = tmp_path / "results.jsonl"
    path.write_text("\n".join(lines))
    out, err = cm2("import", "tau-bench", str(path), "--store", store, "--json")
    assert json.loads(out) == {"imported": 4, "skipped": 2, "duplicates": 0}
    assert "line 2, record 2: not JSON" in err
    assert "line 6, record 6: not JSON" in err
    assert "\x1b" not in out + err


def test_the_gold_checklists_score_every_trace(loaded: str) -> None:
    found = as_json("score", "--store", loaded)
    assert found == {"scored": 6, "unscored": 0, "mean_reward": pytest.approx((3 + 0.5 + 0 + 0.75) / 6)}
    assert as_json("score", "--store", loaded) == found
    agreed = as_json("eval", "--against", "official_reward", "--store", loaded)
    assert {"n", "auc", "auc_within", "pairs", "spearman", "kendall", "ci"} <= agreed.keys()
    assert (agreed["whole"]["mcc"], agreed["differ"]) == (1.0, [])
    assert (agreed["n"], agreed["auc"], agreed["auc_within"], agreed["pairs"]) == (6, 1.0, 1.0, 3)
    assert agreed["ci"]["auc"] == [1.0, 1.0]


def test_each_checklist_is_a_reward_version_of_its_own(loaded: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    cm2("score", "--store", loaded)
    _, err = cm2("eval", "--against", "official_reward", "--store", loaded, "--json")
    gold = err.split()[1]
    assert as_json("score", *AIRLINE, "--store", loaded)["scored"] == 6
    _, err = cm2("eval", "--against", "official_reward", "--store", loaded, "--json")
    assert err.startswith("reward airline-desk@2:")  # the newest
    assert as_json("eval", "--against", "official_reward", "--reward", gold, "--store", loaded)["auc"] == 1.0
    _, err = cm2("eval", "--against", "official_reward", "--reward", "other", "--store", loaded, code=2)
    assert gold in err


@pytest.mark.slow
def test_real_dialogues(tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The figures demanded of both checklists, on the 100 dialogues where `CM2_TEST_DATA` names them, else on our
    six."""
    monkeypatch.chdir(ROOT)
    path = dialogues(tmp_path)
    total = len(json.loads(path.read_text()))
    assert as_json("import", "tau-bench", str(path), "--store", store, "--checklists")["imported"] == total
    assert as_json("score", "--store", store)["scored"] == total
    gold = as_json("eval", "--against", "official_reward", "--store", store)
    assert gold["auc"] >= 0.95
    assert gold["auc_within"] >= 0.95
    assert as_json("score", *AIRLINE, "--store", store)["scored"] == total
    generic = as_json("eval", "--against", "official_reward", "--store", store)
    assert generic["auc_within"] > 0.5
    rows = as_json("train", "--rows-only", "--allow-retokenised", "--store", store)
    assert (rows["rows"], rows["left_out"]) == (total, {})
    tokens = rows["trained_tokens"] + rows["masked_tokens"]
    assert tokens / total < rows["longest_row"] < tokens


def test_a_later_run_goes_on_where_an_earlier_stopped(tmp_path: Path, store: str) -> None:
    records = recordings()
    as_json("import", "tau-bench", str(saved(tmp_path, records[:3])), "--store", store, "--checklists")
    assert as_json("score", "--store", store) == {"scored": 3, "unscored": 0, "mean_reward": 1.0}
    as_json("import", "tau-bench", str(saved(tmp_path, records)), "--store", store, "--checklists")
    assert as_json("score", "--store", store)["scored"] == 6


def test_what_cannot_be_scored_is_counted_and_asked_again(tmp_path: Path, store: str) -> None:
    records = recordings()
    as_json("import", "tau-bench", str(saved(tmp_path, records[:1])), "--store", store, "--checklists")
    as_json("import", "tau-bench", str(saved(tmp_path, records)), "--store", store)
    out, err = cm2("score", "--store", store, "--json")
    assert json.loads(out) == {"scored": 2, "unscored": 4, "mean_reward": 0.75}
    assert "4 without a reward: no checklist" in err
    as_json("import", "tau-bench", str(saved(tmp_path, records)), "--store", store, "--checklists")
    assert as_json("score", "--store", store)["scored"] == 6


def test_level_lambda_says_its_lambda(loaded: str, tmp_path: Path) -> None:
    cm2("score", "--store", loaded)
    rows = as_json("train", "--rows-only", "--level", "lambda", "--lambda", "0.5", "--store", loaded)
    assert (rows["credit"]["level"], rows["credit"]["lambda"]) == ("lambda", 0.5)
    before = tmp_path / "before"
    before.mkdir()
    (before / "report.json").write_text('{"credit": {"estimate": {"lambda": 0.25, "rho2": 0.001}}}')
    rows = as_json("train", "--rows-only", "--level", "lambda", "--model", str(before), "--store", loaded)
    assert (rows["credit"]["lambda"], rows["credit"]["lambda_from"]) == (0.25, "the round before")
    chosen = as_json("train", "--rows-only", "--level", "auto", "--store", loaded)["credit"]
    assert chosen["level"] == "trajectory"
    assert "one counted turn" in chosen["why"]


def test_rows_of_words_are_marked(loaded: str) -> None:
    cm2("score", "--store", loaded)
    bare = as_json("train", "--rows-only", "--store", loaded)
    assert bare == {
        "groups": 3,
        "informative_groups": 3,
        "rows": 0,
        "trained_tokens": 0,
        "masked_tokens": 0,
        "left_out": {"no token ids": 6},
        "longest_row": 0,
        "items": {"always_paid": ["write_1_cancel_reservation", "write_1_update_reservation_flights"]},
    }
    out, err = cm2("train", "--rows-only", "--allow-retokenised", "--store", loaded, "--json")
    rows = json.loads(out)
    assert (rows["rows"], rows["left_out"]) == (6, {})
    assert rows["trained_tokens"] > 0
    assert rows["masked_tokens"] > rows["trained_tokens"]
    assert "not trainable by GRPO" in err


def test_show_lists_and_opens(loaded: str) -> None:
    before = as_json("show", "--store", loaded)
    assert before["total"] == 6
    assert {row["reward"] for row in before["traces"]} == {None}
    cm2("score", "--store", loaded)
    rows = as_json("show", "--store", loaded)["traces"]
    one = next(row for row in rows if row["task"] == "tau-airline-1" and row["outcomes"] == {"official_reward": 0.0})
    assert one["reward"] == 0.5
    opened = as_json("show", one["trace"], "--store", loaded)
    assert opened["trace"]["id"] == one["trace"]
    assert [verdict["value"] for verdict in opened["score"]["turns"][0]["verdicts"]] == [True, False]
    words, _ = cm2("show", one["trace"], "--store", loaded)
    for text in ("Please cancel QQ7AA1", "cancel_reservation", "no_other_write", "reward 0.500", "official_reward: 0"):
        assert text in words
    table, _ = cm2("show", "--store", loaded, "--limit", "2")
    assert "2 of 6 traces" in table


def test_show_says_what_became_of_calls(store: str) -> None:
    asked = (
        ToolCall(id="1", name="cancel", arguments="{not json"),
        ToolCall(id="2", name="cancel", arguments={"order": 2}),
        ToolCall(id="3", name="cancel", arguments={"order": 3}),
    )
    ran = ToolRun(span_id="a", name="cancel", call_id="3", arguments={"order": 30}, error="RuntimeError: desk is down")
    messages = (Message.of("user", "Cancel"), Message.of("assistant", "", asked))
    call = ModelCall(span_id="c", output=messages[1], message=1)
    with SQLStore(store) as opened:
        opened.save_run(Run(id="r", messages=messages, tools=(ran,), calls=(call,)))
        opened.save_run(Run(id="b", branch=Branch(parent="r", messages=1), history=messages[:1], messages=messages[1:]))
    words, _ = cm2("show", "b", "--store", store)
    assert "branch of r after message 1" in words
    assert words.index("Cancel") < words.index("cancel {not json")
    words, _ = cm2("show", "r", "--store", store)
    assert "branch" not in words
    for text in (
        "cancel {not json [invalid]",
        'cancel {"order":2} [not run]',
        'cancel {"order":30} [edited: the model wrote cancel {"order":3}]',
        "RuntimeError: desk is down",
    ):
        assert text in words


def test_what_is_shown_cannot_command_the_terminal(tmp_path: Path, store: str) -> None:
    """Colours, cursor moves, links and rich's own markup in a dialogue come out as text."""
    nasty = "\x1b]8;;http://evil\x07click\x1b[2J [bold red]boo[/] :bomb: \x9b31m \u202egnp \x00 \ud83d\ude00"
    path = tmp_path / "chats.json"
    path.write_text(
        json.dumps(
            [
                {
                    "messages": [{"role": "user", "content": nasty}, {"role": "assistant", "content": nasty}],
                    "task_id": nasty,
                }
            ]
        )
    )
    as_json("import", "openai", str(path), "--store", store)
    name = as_json("show", "--store", store)["traces"][0]["trace"]
    for arguments in (("show",), ("show", name), ("show", "--json"), ("doctor",), ("show", nasty)):
        result = CliRunner().invoke(
            app, [*arguments, "--store", store], env={"FORCE_COLOR": "", "NO_COLOR": "1", "TERM": "dumb"}
        )
        printed = result.stdout + result.stderr
        assert not set(printed) & {"\x1b", "\x07", "\x9b", "\u202e", "\x00"}
    words, _ = cm2("show", name, "--store", store)
    assert "[bold red]boo[/] :bomb:" in words


def test_doctor_tells_what_the_store_is_good_for(loaded: str) -> None:
    found = as_json("doctor", "--store", loaded)
    assert (found["ok"], found["problems"]) == (True, [])
    assert found["calls"]["trainable"] == found["calls"]["failed"] == 0
    assert found["calls"]["text_only"] == sum(
        message["role"] == "assistant" for one in recordings() for message in one["traj"]
    )
    assert found["schema"]["revision"] == found["schema"]["head"]
    words, _ = cm2("doctor", "--store", loaded)
    assert "no problems" in words


def test_doctor_exits_1_on_a_problem(loaded: str) -> None:
    from cm2_agent.store import SQLStore

    with SQLStore(loaded) as opened:
        opened.count_incident("dropped score", "queue full", 3)
    found = as_json("doctor", "--store", loaded, code=1)
    assert found["problems"] == ["3 × dropped score: queue full"]


def test_doctor_tells_of_another_schema(loaded: str) -> None:
    import sqlite3

    connection = sqlite3.connect(loaded.removeprefix("sqlite:///"))
    connection.execute("UPDATE alembic_version SET version_num = '0001'")
    connection.commit()
    connection.close()
    assert "cm2 db upgrade" in as_json("doctor", "--store", loaded, code=1)["problems"][0]


def test_export_writes_whole_traces(tmp_path: Path, loaded: str) -> None:
    from cm2_agent.types.trace import Trace

    cm2("score", "--store", loaded)
    path = tmp_path / "out.jsonl"
    assert as_json("export", str(path), "--store", loaded) == {"exported": 6, "file": str(path)}
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert sorted(line["score"]["reward"] for line in lines) == [0.0, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert len({Trace.from_json(line["trace"]).id for line in lines}) == 6
    assert sorted(found.name for found in tmp_path.glob("*.part")) == []


def test_db_says_and_makes_the_schema(loaded: str) -> None:
    found = as_json("db", "revision", "--store", loaded)
    assert (found["revision"], found["up_to_date"]) == (found["head"], True)
    assert as_json("db", "upgrade", "--store", loaded) == {"before": found["head"], "revision": found["head"]}
