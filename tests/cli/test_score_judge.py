"""`cm2 score --judge` against a server on loopback: what it costs, that a budget stops it and a later run goes on, and
second opinions."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from cm2_agent.store import SQLStore
from tests.cli.test_app_loop import as_json, cm2
from tests.judge_server import Asked, Fault, JudgeServer, answer, honest, reply
from tests.rewards.talk import call, say, trace, turn

CHECKLIST = """
name: asked
version: 1
items:
  - {id: helpful, question: "Did the assistant answer?"}
  - {id: grounded, question: "Is the answer in a tool result?", focus_on: tool.content}
"""
DIALOGUES, TURNS = 4, 2


class Moody:
    """Answers honestly, or no to the items it dislikes."""

    def __init__(self) -> None:
        self.dislikes: set[str] = set()

    def __call__(self, asked: Asked) -> Mapping[str, Any]:
        said = honest(asked)["items"]
        return reply(*(answer(one["id"], "no") if one["id"] in self.dislikes else one for one in said))


@pytest.fixture
def mood() -> Moody:
    return Moody()


@pytest.fixture
def server(mood: Moody) -> Iterator[JudgeServer]:
    with JudgeServer(mood) as running:
        yield running


@pytest.fixture
def store(tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path}/cm2.db"
    with SQLStore(url) as opened:
        for number in range(DIALOGUES):
            said = [
                turn(
                    f"Where is order {number}{at}?",
                    call("get", "It comes on May 3.", id=number, at=at),
                    say("It comes on May 3."),
                )
                for at in range(TURNS)
            ]
            opened.save_runs(trace(*said, id=f"t{number}").runs)
    return url


@pytest.fixture
def command(tmp_path: Path, server: JudgeServer, store: str) -> tuple[str, ...]:
    path = tmp_path / "asked.yaml"
    path.write_text(CHECKLIST, encoding="utf-8")
    return (
        "score",
        str(path),
        "--judge",
        "stub",
        "--judge-base-url",
        server.base_url,
        "--price",
        "1,10",
        "--store",
        store,
    )


def test_a_judge_is_asked_once_a_turn_and_never_again(
    command: tuple[str, ...], server: JudgeServer, store: str
) -> None:
    found = as_json(*command)
    judge = found.pop("judge")
    assert found == {"scored": DIALOGUES, "unscored": 0, "mean_reward": 1.0}
    assert (judge["calls"], judge["re_asks"], judge["left"], judge["stopped"]) == (DIALOGUES * TURNS, 0, 0, False)
    assert judge["model"] == "stub-judge-1"
    usd = judge["usd"]
    assert usd == pytest.approx((judge["input_tokens"] + 10 * judge["output_tokens"]) / 1e6)
    assert as_json(*command)["judge"]["calls"] == 0
    assert server.calls == DIALOGUES * TURNS
    (version,) = (judging := as_json("doctor", "--store", store)["judging"])
    assert judging[version]["usd"] == pytest.approx(usd)
    assert judging[version]["calls"] == DIALOGUES * TURNS
    words, _ = cm2("show", "t0", "--store", store)
    assert "judging cost: 2 calls" in words
    assert as_json("show", "t0", "--store", store)["score"]["usage"]["calls"] == TURNS
    assert as_json("show", "--store", store)["judging"]["calls"] == DIALOGUES * TURNS
    words, _ = cm2("show", "--store", store)
    assert "judging cost: 8 calls" in words


def test_a_budget_stops_and_a_later_run_goes_on(command: tuple[str, ...], server: JudgeServer, store: str) -> None:
    out, err = cm2(*command, "--budget-calls", "5", "--concurrency", "1", "--json")
    found = json.loads(out)
    assert (found["judge"]["calls"], found["judge"]["stopped"]) == (5, True)
    assert found["scored"] + found["judge"]["left"] == DIALOGUES
    assert found["judge"]["left"] >= 2
    assert f"STOPPED, {found['judge']['left']} traces left: the judge's budget of 5 calls is spent" in err
    assert as_json("doctor", "--store", store)["null_rewards"] == {}  # what was not scored has no score, not a NULL one
    assert as_json(*command, "--budget-calls", "0")["scored"] == found["scored"]
    assert as_json(*command)["scored"] == DIALOGUES
    assert server.calls == DIALOGUES * TURNS  # nothing was asked twice


def test_a_budget_in_dollars_stops(command: tuple[str, ...], server: JudgeServer) -> None:
    spent = as_json(*command, "--budget-usd", "0.004", "--concurrency", "1")["judge"]
    assert spent["stopped"] is True
    assert 0 < spent["usd"] <= 0.004
    assert server.calls == spent["calls"] < DIALOGUES * TURNS


@pytest.mark.parametrize(
    ("status", "reason"), [(401, "Authentication"), (402, "Quota"), (403, "Authentication"), (404, "NotFound")]
)
def test_a_judge_that_its_provider_refuses_ends_the_command(
    command: tuple[str, ...], server: JudgeServer, store: str, status: int, reason: str
) -> None:
    server.faults.extend([Fault(status=status)] * (DIALOGUES * TURNS))
    _, err = cm2(*command, "--concurrency", "1", "--json", code=1)
    assert "is refused by its provider" in err
    assert reason in err
    assert server.calls <= 2 * DIALOGUES, "a trace's first call, and a plain one where that may tell"
    server.faults.clear()
    assert as_json("doctor", "--store", store)["null_rewards"] == {}  # nothing was judged, so nothing is NULL
    assert as_json(*command)["scored"] == DIALOGUES


def test_a_failing_judge_leaves_nulls_that_are_asked_again(
    command: tuple[str, ...], server: JudgeServer, store: str
) -> None:
    server.faults.extend([Fault(status=409)] * (DIALOGUES * TURNS * 4))
    out, err = cm2(*command, "--json", code=1)
    assert json.loads(out)["scored"] == 0
    assert f"{DIALOGUES} without a reward: verdicts" in err
    assert f"nothing could be judged: all {DIALOGUES * TURNS * 2} verdicts are pending" in err
    assert f"{DIALOGUES * TURNS * 2} verdicts are pending, since the judge failed; the same command asks again" in err
    problems = as_json("doctor", "--store", store, code=1)
    assert problems["null_verdict_reasons"] == {"judge failed": DIALOGUES * TURNS * 2}
    assert "judge failed" in problems["problems"][0]
    assert as_json(*command)["scored"] == DIALOGUES
    assert as_json("doctor", "--store", store)["null_verdicts"] == {}


def test_a_judge_that_writes_prose_judged_nothing_and_the_command_says_so(
    command: tuple[str, ...], server: JudgeServer, store: str
) -> None:
    server.faults.extend([Fault(text="The assistant did well.")] * (DIALOGUES * TURNS * 9))
    out, err = cm2(*command, "--json", code=1)
    assert (json.loads(out)["scored"], json.loads(out)["mean_reward"]) == (0, None)
    assert "nothing could be judged" in err
    assert "not the JSON that was asked for" in err
    server.faults.clear()
    assert as_json(*command)["scored"] == DIALOGUES
    assert as_json(*command)["judge"]["calls"] == 0  # nothing is left to judge, and that is no failure


def test_a_second_opinion_is_a_version_of_its_own_and_its_flips_are_told(
    command: tuple[str, ...], server: JudgeServer, mood: Moody, store: str
) -> None:
    first = as_json(*command)
    mood.dislikes = {"helpful"}
    assert as_json(*command)["mean_reward"] == 1.0  # known already
    out, err = cm2(*command, "--again", "--json")
    found = json.loads(out)
    assert found["reward"].endswith(";again=1")
    assert found["mean_reward"] == 0.5
    assert found["judge"]["calls"] == first["judge"]["calls"]
    flips = found["flips"]
    assert (flips["old"] + ";again=1", flips["traces"]) == (flips["new"], DIALOGUES)
    assert flips["rewards"] == {"up": 0, "down": DIALOGUES, "same": 0, "null": {}}
    helpful, grounded = flips["items"]
    n = DIALOGUES * TURNS
    assert (helpful["item"], helpful["compared"], helpful["true>false"], helpful["changed"]) == ("helpful", n, n, n)
    assert helpful["p"] == pytest.approx(2 / 2**n)
    assert (grounded["changed"], grounded["true>true"], grounded["p"]) == (0, n, 1.0)
    assert "helpful" in err
    assert f"{n} passed→failed" in err
    assert f"rewards: 0 higher, {DIALOGUES} lower, 0 the same" in err
    # interrupted by its budget, a further opinion is gone on with; finished, it is followed by another
    part = as_json(*command, "--again", "--budget-calls", "3", "--concurrency", "1")
    assert part["reward"].endswith(";again=2")
    assert part["judge"]["stopped"] is True
    rest = as_json(*command, "--again")
    assert rest["reward"] == part["reward"]
    assert part["judge"]["calls"] + rest["judge"]["calls"] == n
    assert rest["flips"]["old"].endswith(";again=1")
    assert rest["flips"]["overall"]["changed"] == 0
    assert as_json(*command, "--again")["reward"].endswith(";again=3")
    assert as_json(*command)["judge"]["calls"] == 0  # the first opinion is untouched


def test_the_papers_protocol_is_compared_with_a_call_a_turn(command: tuple[str, ...], server: JudgeServer) -> None:
    first = as_json(*command)
    found = as_json(*command, "--protocol", "per_step", "--again")
    assert "per_step" in found["reward"]
    assert found["judge"]["calls"] > first["judge"]["calls"]
    flips = found["flips"]
    assert flips["overall"]["changed"] == 0
    assert (
        flips["same_step"] == flips["both_true"] == 2 * DIALOGUES * TURNS
    )  # what is true in the same words holds from the same step


def test_another_checklist_is_compared_with_the_one_before(command: tuple[str, ...], store: str) -> None:
    """Under a stricter old gate the dialogue was ended; the new one would have let it go on: censored, and the table
    says so."""
    path = Path(command[1])
    path.write_text(
        "name: gate\nversion: 1\nitems:\n  - {id: looked, check: {called: never}, turn: 0, required_for_next_turn:"
        " true}\n"
    )
    with SQLStore(store) as opened:
        from cm2_agent.types.checklist_yaml import load_checklist

        gated = load_checklist(path)
        ended = trace(
            turn("Hello?", call("get"), say("Hi.")),
            id="gated",
            cm2_gate_checklist=gated.hash,
            cm2_gate_turn=0,
            cm2_task_turns=2,
        )
        opened.save_runs(ended.runs)
    assert as_json("score", str(path), "--store", store)["scored"] == DIALOGUES + 1
    path.write_text(path.read_text().replace("version: 1", "version: 2").replace("never", "get"))
    out, err = cm2("score", str(path), "--store", store, "--again", "--json")
    flips = json.loads(out)["flips"]
    assert flips["rewards"]["null"] == {"a reward → censored": 1}
    assert flips["items"][0]["false>true"] == DIALOGUES + 1
    assert "1 × a reward → censored" in err
    words, _ = cm2("score", str(path), "--store", store, "--again")
    assert "scored: 4" in words


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--votes", "3"), "--votes needs a judge; name one: --judge openai:gpt-5-mini"),
        (("--judge", "nobody:x"), "Expected PROVIDER:MODEL"),
        (("--judge", "stub", "--judge-base-url", "localhost:80"), "expected the server's URL"),
        (
            ("--judge", "stub", "--judge-base-url", "http://127.0.0.1:1/v1", "--budget-usd", "1"),
            "price of 'openai:stub' is not known",
        ),
        (
            ("--judge", "stub", "--judge-base-url", "http://127.0.0.1:1/v1", "--price", "1"),
            "expected US dollars a million tokens",
        ),
        (("--judge", "stub", "--budget-calls", "-1"), "budget-calls"),
    ],
)
def test_wrong_options_are_told_and_change_nothing(
    command: tuple[str, ...], store: str, options: tuple[str, ...], says: str
) -> None:
    _, err = cm2(*command[:2], "--store", store, *options, code=2)
    assert says in " ".join(err.split())
    assert as_json("doctor", "--store", store)["scores"] == 0
