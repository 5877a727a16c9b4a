"""A named run takes stored dialogues for its own only where they are: another model, seed, tools, user or gate is
refused by name, and nothing is run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm2_agent import Checklist, Item, Message, RecordedCall, Run, SQLStore, Task, Trace, run
from cm2_agent.errors import TaskError
from cm2_agent.graphs.backends.faults import Faults
from cm2_agent.runner.same_run import made_with, require_same_run
from cm2_agent.types.json_values import JSON
from cm2_agent.types.run_attributes import FAULTS, GATE, MADE_WITH, SIMULATOR, TASK_ID, TASK_TURNS, TOOL_BACKENDS, USER
from tests.runner.test_run import finished, reply
from tests.tracing import apps

REPLIES = Checklist(Item("replies", check={"replied": True}), name="r")
STRICT = Checklist(Item("replies", check={"replied": True}, required_for_next_turn=True), name="s")
TASK = Task(id="t", turns=("Hello", "Thanks"))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SQLStore]:
    with SQLStore(f"sqlite:///{tmp_path / 'same.db'}") as made:
        yield made


async def held(store: SQLStore, *, model: str = "v1", tasks: Any = (TASK,), **more: Any) -> list[str]:
    """The last words of the dialogues of the run `nightly`."""
    app = apps.agent(apps.ScriptedModel(script=[reply(f"{model} speaking")], per_turn=True, model_name=model))
    given = {"checklist": REPLIES, "allow_real": ["look", "ask_human"], "name": "nightly", "store": store, **more}
    return [trace.messages[-1].text for trace, _ in await finished(run(app, tasks, **given))]


@pytest.mark.parametrize(
    ("changed", "there", "here"),
    [
        ({"model": "v2"}, "models v1", "models v2"),
        ({"seed": 7}, "seed 0", "seed 7"),
        ({"model": "v2", "seed": 7}, "models v1, seed 0", "models v2, seed 7"),
        (
            {"tools": "replay", "recording": [RecordedCall(name="look", arguments={}, result="x")]},
            'tools answered by {"ask_human":"real","look":"real"}',
            'tools answered by {"ask_human":"replay","look":"replay"}',
        ),
        ({"faults": Faults.parse("timeout=0.5")}, "faults none", "faults "),
        ({"checklist": STRICT}, "the gate of checklist none", f"the gate of checklist {STRICT.hash}"),
    ],
)
async def test_dialogues_of_another_run_are_not_taken_for_its_own(
    store: SQLStore, changed: dict[str, Any], there: str, here: str
) -> None:
    assert await held(store) == ["v1 speaking"]
    stored = [trace.to_json() for trace in store.traces()]
    with pytest.raises(TaskError) as refused:
        await held(store, **changed)
    said = str(refused.value)
    assert said.startswith("the name 'nightly' is of another run: its dialogue 'nightly/t@1/0' is stored, and was held")
    assert f"held with {there}; this run has {here}" in said
    assert said.endswith("Give this run a name of its own (name=, --name), or what that one had")
    assert [trace.to_json() for trace in store.traces()] == stored
    assert await held(store, **{**changed, "name": "another"}) == [f"{changed.get('model', 'v1')} speaking"]


async def test_the_same_run_goes_on_with_more_tasks_and_rollouts(store: SQLStore) -> None:
    more = Task(id="u", turns=("Hello",))
    assert await held(store) == ["v1 speaking"]
    assert await held(store, tasks=(TASK, more), group=2, concurrency=3) == ["v1 speaking"] * 4
    with pytest.raises(TaskError, match="models v1; this run has models v2"):
        await held(store, model="v2", tasks=(TASK, more), group=3)


async def test_an_unnamed_run_and_one_without_a_store_say_nothing_of_it(store: SQLStore) -> None:
    await held(store, name=None)
    assert all(MADE_WITH not in trace.attributes for trace in store.traces())
    app = apps.agent(apps.ScriptedModel(script=[reply("hi")]))
    real: dict[str, Any] = {"allow_real": ["look", "ask_human"]}
    ((trace, _),) = await finished(run(app, [TASK], checklist=REPLIES, name="nightly", **real))
    assert MADE_WITH not in trace.attributes


async def test_dialogues_of_before_that_say_neither_models_nor_seed_are_taken(store: SQLStore, tmp_path: Path) -> None:
    await held(store)
    with SQLStore(f"sqlite:///{tmp_path / 'old.db'}") as old:
        for trace in store.traces():
            for one in trace.runs:
                kept = {name: value for name, value in one.attributes.items() if name != MADE_WITH}
                old.save_run(replace(one, attributes=kept))
        assert await held(old, model="v2") == ["v1 speaking"]
        with pytest.raises(TaskError, match="faults none"):
            await held(old, faults=Faults.parse("timeout=0.5"))


FACTS: dict[str, Callable[[int], JSON]] = {
    TOOL_BACKENDS: lambda n: f'{{"look":"{n}"}}',
    SIMULATOR: str,
    FAULTS: str,
    USER: str,
    GATE: str,
    TASK_TURNS: int,
    MADE_WITH: lambda n: made_with([f"v{n}"], n),
}
facts = st.fixed_dictionaries({}, optional={name: st.integers(0, 2).map(make) for name, make in FACTS.items()})


@given(facts, facts)
def test_what_differs_is_refused_and_named_and_nothing_else(before: dict[str, JSON], now: dict[str, JSON]) -> None:
    trace = Trace.of(Run(id="r", messages=(Message.of("user", "Hi"),), attributes={TASK_ID: "t", **before}))
    differs = {name for name in {**before, **now} if before.get(name) != now.get(name)}
    if MADE_WITH not in before or MADE_WITH not in now:
        differs.discard(MADE_WITH)
    if not differs:
        require_same_run(trace, now, "n")
        return
    with pytest.raises(TaskError) as refused:
        require_same_run(trace, now, "n")
    words = {TOOL_BACKENDS: "tools answered by", SIMULATOR: "simulator", FAULTS: "faults", USER: "user",
             GATE: "the gate", TASK_TURNS: "scripted turns", MADE_WITH: "models"}  # fmt: skip
    for name, word in words.items():
        assert (f"{word} " in str(refused.value)) == (name in differs)


def test_nothing_is_compared_of_what_no_run_wrote() -> None:
    bare = Trace.of(Run(id="r", messages=()))
    assert not bare.attributes
    require_same_run(bare, {TOOL_BACKENDS: "{}", GATE: "g"}, "n")  # raises where anything is compared
