"""What the store weighs, what it counts, and that what each call added is all that is kept."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm2_agent.store import HEAD, SQLStore
from cm2_agent.store.codec import seal, shared_prefix, unseal
from cm2_agent.types.messages import Message, ToolCall, ToolCallResponse, ToolSpec
from cm2_agent.types.run import ModelCall, Run, RunFailure, ToolRun
from cm2_agent.types.score import Score, TurnScore, Verdict
from cm2_agent.types.trace import Trace
from tests import strategies


@pytest.fixture
def store(store_url: str) -> Iterator[SQLStore]:
    with SQLStore(store_url) as opened:
        yield opened


def long_rollout(turns: int, seed: int) -> Trace:
    """One run a turn, two calls a turn, each call's prompt is all that was said before; the tools' answers are long."""
    dice = random.Random(seed)
    said = [Message.of("system", "You are the order desk. " * 20)]
    tools = tuple(
        ToolSpec(name=f"tool_{number}", description="What it does. " * 10, parameters={"type": "object"})
        for number in range(6)
    )
    tokens = [dice.randrange(50_000) for _ in range(900)]
    runs = []
    for turn in range(turns):
        start = len(said)
        calls: list[ModelCall] = []
        said.append(Message.of("user", f"question {seed} {turn}"))
        tokens += [dice.randrange(50_000) for _ in range(30)]
        for asked in ((ToolCall(id=f"{turn}", name="tool_0", arguments={"turn": turn}),), ()):
            completion = tuple(dice.randrange(50_000) for _ in range(40))
            output = Message.of("assistant", "" if asked else f"answer {seed} {turn}", asked)
            calls.append(
                ModelCall(
                    span_id=f"{turn}{len(calls)}",
                    model_version="v",
                    input=tuple(said),
                    output=output,
                    tools=tools,
                    prompt_ids=tuple(tokens),
                    completion_ids=completion,
                    logprobs=tuple(-dice.randrange(64) / 64 for _ in completion),
                    message=len(said) - start,
                    sampling={"temperature": 1.0, "logprobs": "processed"},
                )
            )
            said.append(output)
            tokens += completion
            for call in asked:
                said.append(
                    Message(
                        role="tool", parts=(ToolCallResponse(id=call.id, response="found " * 30 + str(dice.random())),)
                    )
                )
                tokens += [dice.randrange(50_000) for _ in range(60)]
        runs.append(
            Run(id=f"{seed}-{turn}", thread=f"t{seed}", messages=tuple(said[start:]), calls=tuple(calls), started=turn)
        )
    return Trace(id=f"t{seed}", runs=tuple(runs))


@pytest.mark.parametrize("live", [False, True])
def test_a_long_rollout_weighs_what_its_calls_added(tmp_path: Path, live: bool) -> None:
    path = tmp_path / "cm2.db"
    traces = [long_rollout(40, seed) for seed in range(3)]
    with SQLStore(f"sqlite:///{path}") as store:
        for trace in traces:
            if live:  # run by run, as they are captured
                for run in trace.runs:
                    store.save_run(run)
            else:
                store.save_trace(trace)
        with store._db.reading() as connection:
            blobs = connection.exec_driver_sql(
                "SELECT sum(length(prompt_ids)), sum(length(completion_ids)), sum(length(logprobs)) FROM model_calls"
            ).one()
            digests = connection.exec_driver_sql("SELECT sum(length(input)) FROM model_calls").scalar_one()
        assert [store.trace(trace.id) for trace in traces] == traces
    ids, sampled = 900 + 40 * 30 + 40 * 60, 80 * 40
    marks = 3 * 80  # each call says how many bytes an id of its has
    assert list(blobs) == [3 * 2 * ids + marks, 3 * 2 * sampled + marks, 3 * 4 * sampled]
    # the system message and the user's; later prompts add the run's own messages, whose number is one byte
    assert digests == 3 * (2 * 32 + 79)
    full = sum(len(json.dumps(trace.to_json())) for trace in traces)
    SQLStore(f"sqlite:///{tmp_path / 'empty.db'}").close()
    assert path.stat().st_size - (tmp_path / "empty.db").stat().st_size < full / 25


def test_calls_of_sub_agents_between_do_not_break_the_chain(store: SQLStore) -> None:
    main, calls = tuple(range(500)), []
    for number in range(6):
        calls.append(ModelCall(span_id=f"m{number}", prompt_ids=main, completion_ids=(number,), message=0))
        calls.append(ModelCall(span_id=f"s{number}", prompt_ids=tuple(range(9000, 9100)), completion_ids=(number,)))
        main = (*main, number, 5)
    run = Run(id="r", calls=tuple(calls))
    store.save_run(run)
    assert store.trace("r") == Trace.of(run)
    with store._db.reading() as connection:
        stored = connection.exec_driver_sql("SELECT sum(length(prompt_ids)) FROM model_calls").scalar_one()
    assert stored == 2 * (500 + 5 * 1 + 100) + 7  # and a byte for each of the seven that add any


@given(
    left=st.lists(st.integers(0, 2), max_size=40),
    right=st.lists(st.integers(0, 2), max_size=40),
    same=st.lists(st.integers(0, 2), max_size=40),
)
def test_the_shared_prefix_is_the_longest(left: list[int], right: list[int], same: list[int]) -> None:
    one, two = bytes(same + left), bytes(same + right)
    expected = next((i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))
    assert shared_prefix(one, two, 1) == expected
    quad_one, quad_two = (b"".join(bytes([0, 1, 2, each]) for each in blob) for blob in (one, two))
    assert shared_prefix(quad_one, quad_two, 4) == expected


@given(text=strategies.texts(30))
def test_sealed_text_is_what_a_database_takes(text: str) -> None:
    sealed = seal(text)
    assert unseal(sealed) == text
    assert "\0" not in sealed
    sealed.encode()
    assert sealed == text or sealed.startswith("b64:")


def test_health_counts_what_doctor_tells(store: SQLStore) -> None:
    trainable = ModelCall(
        span_id="1", prompt_ids=(1,), completion_ids=(2,), logprobs=(-1.0,), sampling={"temperature": 1.0}
    )
    calls = (
        trainable,
        trainable,
        replace(trainable, sampling={"temperature": 0}),
        ModelCall(span_id="2"),
        ModelCall(span_id="3", error="time-out"),
    )
    tools = (ToolRun(span_id="t", name="a"), ToolRun(span_id="u", name="b", error="boom"))
    run = Run(id="a", calls=calls, tools=tools, status="error", failure=RunFailure(kind="ToolError", message="boom"))
    verdicts = (Verdict(item="x", value=None, weight=1.0, cause="content"), Verdict(item="y", value=True, weight=0.0))
    turn = TurnScore(turn=0, reached=True, steps=1, reward=None, verdicts=verdicts)
    store.save_dialogue(
        [run], Score(trace_id="a", reward_version="v", reward=None, null_reason="failure: ToolError", turns=(turn,))
    )
    store.save_runs([Run(id="b"), Run(id="c")])
    store.save_score(Score(trace_id="b", reward_version="v", reward=0.0))
    store.count_incident("dropped score", "queue full", 3)
    store.count_incident("dropped score", "queue still full")
    health = store.health()
    assert json.loads(json.dumps(health)) == health
    told = {key: health[key] for key in health if key not in {"url", "incidents"}}
    assert told == {
        "schema": {"revision": HEAD, "head": HEAD},
        "traces": 3,
        "projects": {"default": 3},
        "runs": 3,
        "run_statuses": {"ok": 2, "error": 1},
        "failed_runs": {"ToolError": 1},
        "model_calls": {"trainable": 2, "failed call": 1, "no token ids": 1, "temperature 0": 1},
        "failed_calls": 1,
        "tool_runs": 2,
        "tool_runs_by_backend": {"unknown": 2},
        "failed_tool_runs": 1,
        "contents": 0,
        "tasks": 0,
        "checklists": 0,
        "scores": 2,
        "null_rewards": {"failure: ToolError": 1},
        "unscored_traces": 1,
        "verdicts": 2,
        "null_verdicts": {"content": 1},
        "null_verdict_reasons": {"unknown": 1},
        "known_verdicts": 0,
        "dialogues_under_way": 0,
        "judging": {},
    }
    incident = health["incidents"]["dropped score"]
    assert (incident["count"], incident["detail"]) == (4, "queue still full")
    assert 0 < incident["first"] <= incident["last"]
