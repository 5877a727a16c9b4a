"""`cm2 train --algorithm`: which trainer is made, with what, and what is refused before anything is trained."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from cm2_agent.cli.algorithms import FLAGS, StepsDone, load_algorithm, make_trainer, parse_settings, train_on
from cm2_agent.cli.app import app
from cm2_agent.cli.train import TRAINER_OPTIONS
from cm2_agent.errors import TrainError
from cm2_agent.store import SQLStore
from cm2_agent.trainers import DPO, GRPO, RFT, SFT
from cm2_agent.trainers.trl_config import LEARNING_RATES
from cm2_agent.types.messages import Message
from cm2_agent.types.run import Run
from cm2_agent.types.score import Score
from tests.cli_runner import CliRunner

OWN = '''
from pathlib import Path


class Best:
    """Writes down the best rollout of each group."""

    def __init__(self, model, out, *, seed=0, note="none"):
        self.model, self.out, self.report = model, Path(out), {"seed": seed, "note": note}

    def train(self, groups, progress=None):
        self.out.mkdir()
        best = [max(group.rollouts, key=lambda one: one.score.reward).trace.id for group in groups]
        (self.out / "best.txt").write_text(" ".join(best))
        if progress is not None:
            progress(1, 1, {})
        return self.out


class Nowhere(Best):
    def train(self, groups):
        return None


class Elsewhere(Best):
    def train(self, groups):
        return "elsewhere"


class Chatty(Best):
    def train(self, groups):
        self.report = {"loss": float("nan"), "config": {1, 2}, "out": "not here", "history": [1]}
        return super().train(groups)


class Interrupted(Best):
    def train(self, groups):
        raise KeyboardInterrupt


def not_a_trainer(model=None, out=None):
    return model
'''


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with trainers of one's own, and a store with a group of two rollouts."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("own_trainers.py").write_text(OWN, encoding="utf-8")
    store = SQLStore("sqlite:///cm2.db")
    for name, reward in (("a", 0.25), ("b", 0.75)):
        attributes = {"cm2.task.id": "t", "cm2.task.version": 1, "cm2.rollout": ord(name), "cm2.group": "g"}
        messages = (Message.of("user", "Hi"), Message.of("assistant", name))
        store.save_run(Run(id=name, thread=name, messages=messages, attributes=attributes))
        store.save_score(Score(trace_id=name, reward_version="r:1", reward=reward))
    return tmp_path


def train(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["train", "--reward", "r:1", *arguments])
    return result.exit_code, result.stdout, result.stderr


def test_a_trainer_of_ones_own_gets_what_was_typed(here: Path) -> None:
    code, out, err = train(
        *("--algorithm", "own_trainers:Best", "--model", "m", "--out", "new", "--set", "note=two", "--json")
    )
    assert code == 0, err
    assert json.loads(out) == {"out": "new", "seed": 0, "note": "two"}
    assert Path("new/best.txt").read_text() == "b"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--algorithm", "ppo"), "algorithm 'ppo' is unknown; expected grpo, sft, rft, dpo, or a trainer of"),
        (("--algorithm", "no_such:X"), "no_such cannot be imported"),
        (("--algorithm", "own_trainers:Worst"), "own_trainers:Worst"),
        (("--algorithm", "own_trainers:not_a_trainer", "--model", "m"), "made a str; expected an object with train"),
        (("--algorithm", "own_trainers:Nowhere", "--model", "m", "--out", "o"), "returned a NoneType; expected the"),
        (("--algorithm", "own_trainers:Elsewhere", "--model", "m", "--out", "o"), "'elsewhere', and there is no such"),
        (("--algorithm", "own_trainers:Best", "--model", "m"), "--out not given; type: cm2 train --algorithm own_tr"),
        (
            ("--algorithm", "own_trainers:Best", "--model", "m", "--out", "o", "--level", "trajectory"),
            "--level was given, and algorithm own_trainers:Best takes no 'level'; expected one of model, out, seed",
        ),
        (("--algorithm", "sft", "--model", "m", "--out", "o", "--set", "form=1"), "--set form was given"),
        (("--algorithm", "rft", "--model", "m", "--out", "o", "--set", "form=1"), "--set form was given"),
        (("--model", "m", "--out", "o", "--seed", "1", "--set", "seed=1"), "--seed and --set seed were both given"),
        (("--model", "m", "--out", "o", "--set", "seed"), "--set 'seed'; expected NAME=VALUE"),
        (
            ("--model", "m", "--out", "o", "--policy", "p", "--backend", "replay"),
            "no group of scored rollouts is of --policy p --backend replay; there are the policies none and the"
            " backends none",
        ),
        (("--rows-only", "--algorithm", "sft"), "--rows-only counts the rows of GRPO"),
        (
            ("--level", "token", "--model", "m", "--out", "o"),
            "level is 'token'; expected one of trajectory, turn, step, return_to_go, evidence, lambda, auto",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(here: Path, arguments: tuple[str, ...], message: str) -> None:
    code, out, err = train(*arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert not Path("o").exists()


def test_an_interrupted_run_says_whether_it_goes_on(here: Path) -> None:
    typed = ("--algorithm", "own_trainers:Interrupted", "--model", "m", "--out", "new")
    code, out, err = train(*typed)
    assert (code, out) == (130, "")
    assert "interrupted; new is as it was, and no checkpoint was kept: the same command begins anew." in err
    Path("new.run/checkpoint-2").mkdir(parents=True)
    assert "begins anew" in train(*typed)[2]  # cut off
    Path("new.run/checkpoint-2/state.json").touch()
    code, out, err = train(*typed)
    assert (code, out) == (130, "")
    assert "The same command goes on from the newest checkpoint in new.run" in err


def test_a_report_that_is_no_json_is_printed_all_the_same(here: Path) -> None:
    code, out, err = train("--algorithm", "own_trainers:Chatty", "--model", "m", "--out", "new", "--json")
    assert code == 0, err
    assert json.loads(out) == {"out": "new", "loss": "nan", "config": "{1, 2}"}


def test_the_algorithms_that_ship_are_the_public_classes() -> None:
    assert load_algorithm("grpo") is GRPO
    assert load_algorithm("sft") is SFT
    assert load_algorithm("rft") is RFT
    assert load_algorithm("dpo") is DPO
    assert make_trainer("rft", RFT, {"model": "m", "out": "o"}, {}).select == "best"  # type: ignore[attr-defined]
    sft = make_trainer("sft", SFT, {"model": "m", "out": "o"}, parse_settings(["select=0.5", "epochs=2"]))
    assert isinstance(sft, SFT)
    assert (sft.select, sft.epochs, sft.rows_per_step) == (0.5, 2, 16)


def test_set_reaches_the_fields_of_the_trl_config(here: Path) -> None:
    typed = ["beta=0.1", "save_steps=2", "max_weight=3", 'args={"weight_decay": 0.5}', "report_to=none"]
    grpo = make_trainer("grpo", GRPO, {"model": "m", "out": "o", "overwrite": True}, parse_settings(typed))
    assert isinstance(grpo, GRPO)
    assert grpo.args == {"weight_decay": 0.5, "beta": 0.1, "save_steps": 2, "report_to": "none"}
    assert (grpo.max_weight, grpo.overwrite) == (3, True)
    sft = make_trainer("sft", SFT, {"model": "m", "out": "o"}, parse_settings(["weight_decay=0.5"]))
    assert isinstance(sft, SFT)
    assert sft.args == {"weight_decay": 0.5}
    for wrong, message in [
        (
            "top_p=0.5",
            "top_p 0.5 was given and cannot be meant: nothing is generated while stored rollouts are trained",
        ),
        ("betta=0.1", "--set betta was given, and algorithm grpo takes no 'betta'; expected one of"),
        ("scale_rewards=batch", "scale_rewards 'batch'; expected 'group'"),
        ("save_strategy=best", "save_strategy 'best'; expected 'steps', 'epoch'"),
    ]:
        code, out, err = train("--model", "m", "--out", "o", "--set", wrong)
        assert (code, out) == (2, ""), err
        assert message in err
    with pytest.raises(TrainError, match="--set beta was given, and args holds beta too"):
        make_trainer("grpo", GRPO, {"model": "m", "out": "o"}, {"beta": 0.1, "args": {"beta": 0.2}})


def test_every_option_of_a_trainer_is_called_by_its_flag() -> None:
    (command,) = [one for name, one in get_command(app).commands.items() if name == "train"]  # type: ignore[attr-defined]
    flags = {one.name: one.opts[0] for one in command.params}
    assert {*FLAGS} == {*TRAINER_OPTIONS, "peft_config"}
    for name in TRAINER_OPTIONS:
        assert FLAGS[name] == flags[name]
    assert FLAGS["peft_config"] == flags["lora"]
    (rate,) = [one.help for one in command.params if one.name == "learning_rate"]
    for algorithm, (full, adapter) in LEARNING_RATES.items():
        shown = re.search(rf"{algorithm}[a-z ]* ([0-9e.-]+)", rate)
        assert shown is not None
        assert float(shown.group(1)) == full
        assert adapter == pytest.approx(10 * full)


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (("--agent-name", "a", "--set", "agent=b"), "--agent-name and --set agent were both given"),
        (("--norm", "none", "--set", "scale_rewards=group"), "--norm none and scale_rewards 'group' were both given"),
        (("--norm", "none", "--set", 'args={"scale_rewards": true}'), "--norm none and scale_rewards True were both"),
        (("--norm", "std", "--set", "scale_rewards=none"), "--norm std and scale_rewards 'none' were both given"),
        (("--steps", "2", "--set", "epochs=2"), "steps 2 and epochs 2 were both given"),
        (("--set", "max_kl=inf"), "max_kl 'inf'; expected nats a rollout, 0 or more, for example 20, or math.inf"),
        (("--algorithm", "dpo", "--set", "pairs=guard"), "--set pairs=guard takes the attempts that a guard rejected"),
    ],
)
def test_contradictions_are_refused_in_words(here: Path, typed: tuple[str, ...], message: str) -> None:
    code, out, err = train("--model", "m", "--out", "o", *typed)
    assert (code, out) == (2, "")
    assert message in err


def test_what_agrees_is_accepted() -> None:
    for options, settings in [({"norm": "std"}, "scale_rewards=group"), ({"norm": "none"}, "scale_rewards=none")]:
        made = make_trainer("grpo", GRPO, {"model": "m", "out": "o", **options}, parse_settings([settings]))
        assert isinstance(made, GRPO)
        assert made.norm == options["norm"]
    free = make_trainer("grpo", GRPO, {"model": "m", "out": "o"}, parse_settings(["max_kl=Infinity"]))
    assert isinstance(free, GRPO)
    assert free.max_kl == math.inf


def test_the_bar_begins_where_the_run_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    done: list[int] = []
    steps = StepsDone(lambda: done.append(1))
    steps.resumed(3, 5, Path("out.run/checkpoint-3"))
    steps(4, 5, {})
    assert len(done) == 4
    assert capsys.readouterr().err == "going on from step 3 of 5 (out.run/checkpoint-3)\n"


def test_settings_are_json_or_text() -> None:
    assert parse_settings(["a=1", "b=best", 'c={"d": null}', "e=x=y"]) == {
        "a": 1,
        "b": "best",
        "c": {"d": None},
        "e": "x=y",
    }
    with pytest.raises(TrainError, match="given twice"):
        parse_settings(["a=1", "a=2"])


def test_options_pass_through_keywords(tmp_path: Path) -> None:
    class Open:
        def __init__(self, **keywords: Any) -> None:
            self.keywords = keywords

        def train(self, groups: Any) -> Path:
            return tmp_path

    steps: list[int] = []
    made = make_trainer("m:Open", Open, {"level": "turn"}, {"beta": 0.1})
    assert isinstance(made, Open)
    assert made.keywords == {"level": "turn", "beta": 0.1}
    assert train_on(made, [], lambda: steps.append(1)) == tmp_path
    assert steps == []
