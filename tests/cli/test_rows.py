"""`cm2 rows explain`: a stored trace token by token, in the terminal, as JSON and as a page that runs nothing."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from cm2_agent.cli.app import app
from cm2_agent.models import byte_tokenizer
from cm2_agent.store import SQLStore
from cm2_agent.trainers.explain import explain
from cm2_agent.trainers.explain_page import page
from cm2_agent.types.messages import Message
from cm2_agent.types.run import ModelCall, Run
from cm2_agent.types.run_attributes import ROLLOUT, TASK_ID
from cm2_agent.types.score import Score, TurnScore, Verdict
from cm2_agent.types.trace import Trace
from tests.analysis.test_report import dumped
from tests.cli.test_app_loop import cm2
from tests.cli_runner import CliRunner

HOSTILE = (
    "</title></style></pre><script>document.title = 'owned'</script><img src=x onerror=\"document.title='owned'\">"
    "\u202e\x1b[2J{{7*7}}"
)
TOKENIZER = byte_tokenizer(["Where", " order", "shipped"])


def prompted(*said: str) -> list[int]:
    text = "".join(f"<|im_start|>user\n{words}<|im_end|>\n<|im_start|>assistant\n" for words in said)
    return list(TOKENIZER.encode(text))


def dialogue(name: str, replies: tuple[str, str], rollout: int = 0, user: str = "Where is order 7?") -> list[Run]:
    runs: list[Run] = []
    prompt: list[int] = prompted(user)
    for turn, reply in enumerate(replies):
        completion = list(TOKENIZER.encode(f"{reply}<|im_end|>"))
        call = ModelCall(
            span_id=f"{name}-{turn}",
            model_version="v1",
            prompt_ids=tuple(prompt),
            completion_ids=tuple(completion),
            logprobs=(-0.5,) * len(completion),
            sampling={"temperature": 1.0, "logprobs": "processed"},
            message=1,
        )
        runs.append(
            Run(
                id=f"{name}-{turn}",
                thread=name,
                messages=(Message.of("user", user if turn == 0 else "Thanks"), Message.of("assistant", reply)),
                calls=(call,),
                attributes={TASK_ID: "order-7", ROLLOUT: rollout},
                started=turn + 1,
            )
        )
        prompt = [*prompt, *completion, *TOKENIZER.encode("\n"), *prompted("Thanks")]
    return runs


def score(name: str, found: bool) -> Score:
    verdict = Verdict(item="says_where", value=found, weight=1.0, step=1 if found else None, paid=found)
    turn = TurnScore(turn=0, reached=True, steps=1, reward=float(found), verdicts=(verdict,))
    return Score(trace_id=name, reward_version="orders:1", reward=float(found), turns=(turn,), runs=2)


@pytest.fixture
def url(tmp_path: Path) -> str:
    where = f"sqlite:///{tmp_path}/cm2.db"
    with SQLStore(where) as store:
        for rollout, reply in enumerate(("It was shipped.", "No idea.")):
            name = f"order-7-{rollout}"
            store.save_dialogue(dialogue(name, (reply, "Bye."), rollout), score(name, rollout == 0))
        store.save_runs(dialogue("lone", ("Hello", "Bye.")))
    return where


def test_a_trace_token_by_token_with_what_earned_its_advantage(url: str, tmp_path: Path) -> None:
    TOKENIZER.save_pretrained(tmp_path / "model")
    out, _ = cm2("rows", "explain", "order-7-0", "--store", url, "--model", str(tmp_path / "model"))
    assert out.splitlines()[:4] == [
        "trace order-7-0",
        "as GRPO reads it at level trajectory: reward 1.000, group of 2 mean 0.500",
        "1 row; tokens: 15 trained, 53 masked, 0 lost",
        "boundaries: 1 CLEAN",
    ]
    assert "  trained, 10 tokens: written by the model\n    I·t· ·w·a·s· ·shipped·.·<|im_end|>\n" in out
    assert "CLEAN  begins with all that call 0 read and wrote\ncall 1, turn 1 step 0, row 0, advantage +0.500\n" in out
    assert "turn 0 step 0  +0.500\n  +0.500  says_where: earned, paid 1.00 of weight 1.000, the group 0.50\n" in out


def test_ids_stand_where_no_tokenizer_is_named(url: str) -> None:
    out, _ = cm2("rows", "explain", "order-7-1", "--store", url, "--level", "return_to_go")
    ids = "·".join(map(str, TOKENIZER.encode("Bye.<|im_end|>")))
    assert f"    {ids}\n" in out
    assert "turn 0 step 0  -1.000\n  -0.500  says_where: not earned" in out


def test_levels_of_a_whole_round_say_which_lambda_it_was_given_and_why(url: str, tmp_path: Path) -> None:
    asked = ("rows", "explain", "order-7-1", "--store", url)
    out, _ = cm2(*asked, "--level", "lambda", "--lambda", "0.5")
    assert "\nthe round has level lambda at λ = 0.5: as given\n" in out
    assert "turn 0 step 0  -" in out
    out, _ = cm2(*asked, "--level", "auto")
    assert "\nthe round has level trajectory: one counted turn: there is nothing to share out\n" in out
    assert "turn 0 step 0  -0.500\n" in out
    TOKENIZER.save_pretrained(tmp_path / "model")
    report = {"credit": {"estimate": {"lambda": 0.75, "rho2": 0.1}}}
    (tmp_path / "model" / "report.json").write_text(json.dumps(report))
    out, _ = cm2(*asked, "--level", "lambda", "--model", str(tmp_path / "model"), "--json")
    assert json.loads(out)["credit"] == {"level": "lambda", "lambda": 0.75, "lambda_from": "the round before"}
    for wrong, words in ((("--level", "turn", "--lambda", "0.5"), "only level lambda has a λ"),
                         (("--level", "auto", "--lambda", "0.5"), "auto chooses λ itself")):  # fmt: skip
        done = CliRunner().invoke(app, [*asked, *wrong])
        assert done.exit_code != 0
        assert words in done.stderr


def test_a_trace_that_is_left_out_says_why_and_sft_may_still_read_it(url: str) -> None:
    out, _ = cm2("rows", "explain", "lone", "--store", url)
    assert "left out: it stands in no group of scored rollouts" in out
    assert "lost, 6 tokens: it stands in no group of scored rollouts" in out
    out, _ = cm2("rows", "explain", "lone", "--store", url, "--imitation")
    assert "as SFT reads it\n1 row; tokens: 11 trained" in out


def test_json_has_every_token(url: str) -> None:
    out, _ = cm2("rows", "explain", "order-7-0", "--store", url, "--json")
    found = json.loads(out)
    with SQLStore(url) as store:
        trace = store.trace("order-7-0")
        group = store.group_of("order-7-0")
    assert trace is not None
    assert found == json.loads(json.dumps(explain(trace, group).to_json()))
    trained = [
        id for call in found["calls"] for part in call["parts"] if part["fate"] == "trained" for id in part["ids"]
    ]
    assert trained == [id for call in trace.calls for id in call.completion_ids or ()]


def test_a_trace_that_is_not_there_and_a_folder_that_is_not_there(url: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["rows", "explain", "nobody", "--store", url])
    assert done.exit_code == 2
    assert "holds no trace 'nobody'; cm2 show --store" in done.stderr
    done = CliRunner().invoke(
        app, ["rows", "explain", "lone", "--store", url, "--html", str(tmp_path / "gone" / "a.html")]
    )
    assert done.exit_code == 2
    assert "does not exist" in done.stderr


def test_fates_and_boundaries_have_colours(url: str) -> None:
    """Where the output is a terminal."""
    done = CliRunner().invoke(app, ["rows", "explain", "order-7-0", "--store", url], env={"FORCE_COLOR": "1"})
    assert "\x1b[32m  trained, 10 tokens" in done.stdout
    assert "\x1b[2m  masked, 26 tokens" in done.stdout
    assert "\x1b[36mCLEAN\x1b[0m" in done.stdout
    lone = CliRunner().invoke(app, ["rows", "explain", "lone", "--store", url], env={"FORCE_COLOR": "1"})
    assert "\x1b[1;31m  lost, 6 tokens" in lone.stdout


def hostile_page(tmp_path: Path) -> tuple[Path, str]:
    """The page of a trace whose every word is hostile, and what the terminal shows of it."""
    TOKENIZER.save_pretrained(tmp_path / "model")
    hostile = f"sqlite:///{tmp_path}/hostile.db"
    with SQLStore(hostile) as store:
        for rollout, reply in enumerate((HOSTILE, "No")):
            runs = dialogue(f"{HOSTILE}{rollout}", (reply, HOSTILE), rollout, user=HOSTILE)
            marked = [replaced(run) for run in runs]
            made = score(f"{HOSTILE}{rollout}", rollout == 0)
            store.save_dialogue(marked, made)
    path = tmp_path / "page.html"
    asked = ("rows", "explain", f"{HOSTILE}0", "--store", hostile, "--model", str(tmp_path / "model"))
    out, _ = cm2(*asked, "--html", str(path))
    return path, out


def test_hostile_words_are_only_read(tmp_path: Path) -> None:
    """In the terminal without control characters, in the page without markup; its policy allows its style alone."""
    path, out = hostile_page(tmp_path)
    assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e]", out)
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"<(?:script|img|/title></style)", text.partition("<title>CM2 rows</title>")[2])
    assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e]", text)
    assert "&lt;script&gt;" in text.partition("<h1>")[2].partition("</h1>")[0]
    assert "{{7*7}}" in text.partition("</h1>")[0]
    assert not re.search(r"(?:src|href|action)=\"", text)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None
    assert policy[1].startswith("default-src &#39;none&#39;; style-src &#39;sha256-")


def test_a_browser_runs_nothing_of_them(tmp_path: Path) -> None:
    path, _ = hostile_page(tmp_path)
    shown = dumped(path, tmp_path)
    assert "<title>CM2 rows</title>" in shown
    assert "<script" not in shown
    assert "<img" not in shown


def replaced(run: Run) -> Run:
    """A run whose agent's name is hostile too."""
    return replace(run, calls=tuple(replace(call, agent=HOSTILE) for call in run.calls))


def test_a_page_without_ids_without_scores_and_with_half_a_character() -> None:
    said = (Message.of("user", "hi"), Message.of("assistant", "\ud83d"))
    assert "No call has token ids." in page(explain(Trace.of(Run(id="\ud83d", messages=said)), imitation=True))
