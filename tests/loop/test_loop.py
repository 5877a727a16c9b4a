"""The loop: it promotes what is better and nothing else, goes on wherever it was stopped, and finishes a stage once."""

from __future__ import annotations

import itertools
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cm2_agent import Policy, SQLStore
from cm2_agent.errors import ConflictError, StoreError, TrainError
from cm2_agent.loop.folder import LoopFolder
from cm2_agent.loop.task_sets import TaskSets
from tests.loop.simulated import SimulatedRollouts, SimulatedTraining, loop, policy, read, tasks, without_times

ROOT = Path(__file__).parents[2]
GAINS = (0.35, -0.3)


class Stopped(BaseException):
    """What ends a loop at a call of its progress, wherever that is."""


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with SQLStore(f"sqlite:///{tmp_path / 'cm2.db'}") as opened:
        yield opened


def test_a_loop_promotes_what_is_better_and_says_why_it_keeps(tmp_path: Path, store: SQLStore) -> None:
    found = loop(tmp_path, store, gains=(0.35, -0.3, 0.0)).run()
    assert [one["promoted"] for one in found["rounds"]] == [True, False, False]
    assert (found["start"], found["promoted"], found["promotions"]) == ("v0", "v0.1", 1)
    assert found["test"]["gain"] == pytest.approx(found["test"]["end"] - found["test"]["start"])
    assert found["test"]["interval"][0] > 0.2
    rows = {one.version: one for one in store.policies("desk")}
    assert {name: one.state for name, one in rows.items()} == {
        "v0": "replaced",
        "v0.1": "promoted",
        "v0.1.2": "rejected",
        "v0.1.3": "rejected",
    }
    first = rows["v0.1"]
    assert (first.parent, first.reward, first.certificate) == ("v0", "simulated@1", None)
    assert first.data["rollouts"] == 24
    assert first.metrics["training"] == {"steps": 2, "rollouts": 24}
    assert first.metrics["evaluation"]["p"] == found["rounds"][0]["p"]
    assert first.metrics["test"]["gain"] == found["test"]["gain"]
    assert Path(str(first.folder)) == tmp_path / "loop" / "policies" / "round-1"
    assert store.promotions("desk")[1].reason["gain"] == found["rounds"][0]["gain"]
    assert found["rounds"][2]["why"].startswith("not better by more than chance")
    assert found["tokens"] == 2 * (3 * (24 + 2 * 48) + 2 * 48)
    assert json.loads((tmp_path / "loop" / "result.json").read_text()) == found


def test_every_set_of_tasks_is_used_for_its_own_end(tmp_path: Path, store: SQLStore) -> None:
    rollouts = SimulatedRollouts(store=store)
    loop(tmp_path, store, gains=GAINS, rollouts=rollouts).run()
    used: dict[str, set[str]] = {}
    for id in rollouts.held:
        run, task, _ = id.split("/")
        kind = "test" if "-test-" in run else "promote" if "candidate" in run or "promoted" in run else "train"
        used.setdefault(kind, set()).add(task.split("-")[0])
    assert used == {"train": {"train"}, "promote": {"promote"}, "test": {"test"}}


def test_both_policies_of_a_round_get_the_same_random_numbers_and_no_two_rounds_do(tmp_path: Path) -> None:
    class Noted(SimulatedRollouts):
        def hold(self, policy: str, tasks: Any, *, seed: int, name: str, **more: Any) -> None:
            seeds.append((name.split("-v0")[0], seed))
            super().hold(policy, tasks, seed=seed, name=name, **more)

    seeds: list[tuple[str, int]] = []
    with SQLStore(f"sqlite:///{tmp_path / 'cm2.db'}") as store:
        loop(tmp_path, store, gains=(0.3, 0.0), rollouts=Noted(store=store)).run()
    found = {name.split("-", 2)[2]: seed for name, seed in seeds}
    assert found["round-1-candidate"] == found["round-1-promoted"]
    assert found["round-2-candidate"] == found["round-2-promoted"]
    assert found["test-start"] == found["test-end"]
    assert len(set(found.values())) == 5  # two rounds' dialogues, two evaluations, the test


def test_stopped_again_and_again_it_ends_as_unbroken(tmp_path: Path) -> None:
    calls = stop_at = 0

    def progress(what: str, done: int, total: int) -> None:
        nonlocal calls
        calls += 1
        if calls == stop_at:
            raise Stopped

    small = {"settings": {"group": 2, "evaluations": 1}, "progress": progress}
    sets = TaskSets(training=tasks("train", 2), promotion=tasks("promote", 7), test=tasks("test", 2))
    with SQLStore(f"sqlite:///{tmp_path / 'whole.db'}") as store:
        (tmp_path / "whole").mkdir()
        whole = loop(tmp_path / "whole", store, gains=GAINS, skill=0.1, tasks=sets, **small).run()
        rows = [(one.version, one.state, one.parent, one.data) for one in store.policies()]
    assert [one["promoted"] for one in whole["rounds"]] == [False, False]
    total, here = calls, tmp_path / "stopped"
    assert total > 60
    here.mkdir()
    with SQLStore(f"sqlite:///{tmp_path / 'stopped.db'}") as store:
        training, rollouts, stops = SimulatedTraining(gains=GAINS), SimulatedRollouts(store=store), 0
        while True:
            calls, stop_at = 0, stops + 1  # a little further each time: in the middle of stages and at their ends
            try:
                found = loop(
                    here, store, gains=GAINS, skill=0.1, tasks=sets, train=training, rollouts=rollouts, **small
                ).run()
                break
            except Stopped:
                stops += 1
        assert stops > 12
        assert without_times(found) == without_times(whole)
        assert [(one.version, one.state, one.parent, one.data) for one in store.policies()] == rows
        assert len(rollouts.held) == len(set(rollouts.held)), "no dialogue is held twice"


def test_a_candidate_that_is_registered_is_not_trained_again(tmp_path: Path, store: SQLStore) -> None:
    """On a GPU no training gives the same weights twice, and a row names a folder: they stay what it says."""

    class Unsteady(SimulatedTraining):
        def __call__(self, policy: str, out: Path, groups: Any, **more: Any) -> Any:
            report = super().__call__(policy, out, groups, **more)
            what = {"skill": 0.4, "version": f"weights {self.trained}"}
            (out / "policy.json").write_text(json.dumps(what), encoding="utf-8")
            return report

    def progress(what: str, done: int, total: int) -> None:
        if (what, done) == ("round 1: train", 1):
            raise Stopped

    training = Unsteady(gains=(0.0,))
    with pytest.raises(Stopped):
        loop(tmp_path, store, gains=(0.0,), train=training, progress=progress).run()
    found = loop(tmp_path, store, gains=(0.0,), train=training).run()
    assert (training.trained, found["rounds"][0]["candidate"]) == (1, "weights 1")
    first = [one for one in store.policies("desk") if one.version != "v0"]
    assert [(one.version, read(str(one.folder))["version"]) for one in first] == [("weights 1", "weights 1")]
    shutil.rmtree(tmp_path / "loop")  # and what a folder held once is not there
    again = loop(tmp_path, store, gains=(0.0,), train=training).run()
    assert (training.trained, again["rounds"][0]["candidate"]) == (2, "weights 2")


def test_a_finished_loop_is_not_done_again(tmp_path: Path, store: SQLStore) -> None:
    first = loop(tmp_path, store, gains=GAINS).run()
    training, rollouts = SimulatedTraining(gains=GAINS), SimulatedRollouts(store=store)
    assert loop(tmp_path, store, gains=GAINS, train=training, rollouts=rollouts).run() == first
    assert (training.trained, rollouts.held) == (0, [])


@pytest.mark.slow
def test_killed_it_goes_on_and_ends_as_unbroken(tmp_path: Path) -> None:
    def run(folder: str, *kill: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "tests.loop.simulated", str(tmp_path / folder), *kill]
        (tmp_path / folder).mkdir(exist_ok=True)
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    whole = json.loads(run("whole").stdout)
    calls = whole.pop("calls")
    for kill in (30, 5):
        assert run("killed", str(kill)).returncode == -signal.SIGKILL
    found = json.loads(run("killed").stdout)
    assert found.pop("calls") < calls
    assert found == whole
    assert whole["promotions"] == 1


def test_what_a_judge_failed_at_is_scored_again(tmp_path: Path, store: SQLStore) -> None:
    names = frozenset(task.id for task in (*tasks("train", 6), *tasks("promote", 24)))
    broken = SimulatedRollouts(store=store, pending=names, failures=10)
    found = loop(tmp_path, store, gains=(0.35,), rollouts=broken).run()
    score = json.loads((tmp_path / "loop" / "round-1" / "score.json").read_text())
    assert (score["scored"], score["pending"]) == (24, 0)
    assert found["rounds"][0]["left_out"] == 0


def test_dialogues_that_stay_without_a_reward_leave_their_task_out(tmp_path: Path, store: SQLStore) -> None:
    broken = SimulatedRollouts(store=store, pending=frozenset(["promote-3", "test-0"]), failures=10_000)
    found = loop(tmp_path, store, gains=(0.4,), rollouts=broken).run()
    assert found["rounds"][0]["promoted"]
    assert (found["rounds"][0]["tasks"], found["rounds"][0]["left_out"]) == (23, 1)
    assert (found["test"]["tasks"], found["test"]["left_out"]) == (23, 1)


def test_an_outcome_may_count_in_place_of_the_reward(tmp_path: Path, store: SQLStore) -> None:
    settings = {"by": "won", "evaluations": 4}
    found = loop(tmp_path, store, gains=(0.5,), skill=0.45, settings=settings).run()
    assert found["rounds"][0]["promoted"]
    assert found["test"]["by"] == "won"
    other = loop(tmp_path / "other", store, gains=(0.5,), name="shop", settings={"by": "unknown"})
    with pytest.raises(TrainError, match="has the outcome 'unknown'"):
        other.run()


def test_a_round_without_a_preference_trains_nothing(tmp_path: Path, store: SQLStore) -> None:
    training = SimulatedTraining(gains=(0.1,))
    found = loop(tmp_path, store, gains=(0.1,), skill=1.0, train=training).run()
    assert training.trained == 0
    assert found["rounds"][0]["why"] == "no candidate: within each group all rollouts are worth the same"
    assert found["promoted"] == "v0"
    assert found["test"]["gain"] == 0
    assert found["test"]["interval"] is None


def test_a_training_that_changes_nothing_is_no_candidate(tmp_path: Path, store: SQLStore) -> None:
    class Idle(SimulatedTraining):
        def __call__(self, policy: str, out: Path, groups: Any, **more: Any) -> Any:
            out.mkdir()
            (out / "policy.json").write_text((Path(policy) / "policy.json").read_text())
            return {}

    found = loop(tmp_path, store, gains=(0.0,), train=Idle(gains=(0.0,))).run()
    assert found["rounds"][0]["why"] == "no candidate: training changed nothing"
    assert [one.version for one in store.policies()] == ["v0"]


def test_the_folder_of_another_loop_or_process_is_refused(tmp_path: Path, store: SQLStore) -> None:
    loop(tmp_path, store, gains=GAINS).run()
    with pytest.raises(StoreError, match="holds a loop with settings seed 0, and 1 was given"):
        loop(tmp_path, store, gains=GAINS, settings={"seed": 1}).run()
    with pytest.raises(StoreError, match="holds a loop with training level None, and 'turn' was given"):
        loop(tmp_path, store, gains=GAINS, training={"level": "turn"}).run()
    with LoopFolder(tmp_path / "loop").held(), pytest.raises(StoreError, match="another process runs the loop"):
        loop(tmp_path, store, gains=GAINS).run()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(StoreError, match=r"holds 'notes.txt' and no loop"):
        loop(tmp_path, store, gains=GAINS, name="shop", folder=tmp_path / "full").run()


def test_a_loop_begins_with_the_promoted_policy_of_its_name(tmp_path: Path, store: SQLStore) -> None:
    first = loop(tmp_path, store, gains=(0.35,)).run()
    with pytest.raises(StoreError, match=r"policy v0\.1 of 'desk' is promoted"):
        loop(tmp_path, store, gains=(0.2,), folder=tmp_path / "next").run()
    found = loop(tmp_path, store, gains=(0.0,), folder=tmp_path / "next", start=first["folder"]).run()
    assert (found["start"], found["promoted"]) == ("v0.1", "v0.1")


def test_a_promotion_from_elsewhere_stops_the_loop(tmp_path: Path, store: SQLStore) -> None:
    other = policy(tmp_path / "other", skill=0.9, version="elsewhere")

    def progress(what: str, done: int, total: int) -> None:
        if (what, done) == ("round 1: evaluate", 2):
            store.save_policy(Policy(name="desk", version="elsewhere", folder=other))
            store.promote("desk", "elsewhere")

    with pytest.raises(ConflictError, match="elsewhere is promoted now"):
        loop(tmp_path, store, gains=(0.4,), progress=progress).run()
    promoted = store.promoted("desk")
    assert promoted is not None
    assert promoted.version == "elsewhere"


@pytest.mark.parametrize("gains", [(0.0, 0.0), (0.4, 0.0)])
@pytest.mark.parametrize(("number", "stage"), [(1, "train"), (1, "promote"), (2, "run"), (2, "promote")])
def test_a_promotion_from_elsewhere_stops_the_loop_whatever_it_finds(
    tmp_path: Path, store: SQLStore, gains: tuple[float, ...], stage: str, number: int
) -> None:
    """Also a loop that would have kept its policy: it would go on from one that nobody is served by."""
    other, there = policy(tmp_path / "other", skill=0.9, version="elsewhere"), (f"round {number}: {stage}", 0)

    def progress(what: str, done: int, total: int) -> None:
        if (what, done) == there:
            store.save_policy(Policy(name="desk", version="elsewhere", folder=other))
            store.promote("desk", "elsewhere")

    sets = TaskSets(training=tasks("train", 2), promotion=tasks("promote", 12), test=tasks("test", 1))
    for watching in (progress, lambda *what: None):  # and when it is started again
        with pytest.raises(ConflictError, match="elsewhere is promoted now"):
            loop(tmp_path, store, gains=gains, tasks=sets, progress=watching).run()
    store.rollback("desk")
    assert loop(tmp_path, store, gains=gains, tasks=sets).run()["promotions"] == sum(gain > 0 for gain in gains)
    assert {one.version: one.state for one in store.policies("desk")}["elsewhere"] == "rolled_back"


@pytest.mark.parametrize("kind", ["train", "promote"])
def test_a_judge_that_is_down_stops_the_loop_and_decides_nothing(tmp_path: Path, store: SQLStore, kind: str) -> None:
    names = frozenset(task.id for task in tasks(kind, 24))
    down = SimulatedRollouts(store=store, pending=names, failures=10_000)
    with pytest.raises(TrainError, match=r"none of .* could be (scored|compared)"):
        loop(tmp_path, store, gains=(0.4,), rollouts=down).run()
    assert loop(tmp_path, store, gains=(0.4,)).run()["rounds"][0]["promoted"]


def test_a_file_that_the_disk_spoilt_is_named(tmp_path: Path, store: SQLStore) -> None:
    loop(tmp_path, store, gains=(0.0,)).run()
    texts = itertools.cycle((b"", b"{", b"[]", bytes(8), b"\xff"))
    for name in ("result", "test", "round-1/promote", "round-1/run", "start", "loop"):
        spoilt = tmp_path / "loop" / f"{name}.json"
        whole = spoilt.read_bytes()
        spoilt.write_bytes(next(texts))
        with pytest.raises(StoreError, match=rf"{name}\.json (cannot be read|holds a list)"):
            loop(tmp_path, store, gains=(0.0,)).run()
        spoilt.write_bytes(whole)
        if name == "result":
            spoilt.unlink()  # while it is there, the test is not read


@pytest.mark.parametrize(
    "name", ["", " ", "desk ", "two\nlines", "\x1b[31mred", "right\u202eleft", "broken\udc80", "\0"]
)
def test_a_name_that_is_no_printable_line_is_refused_before_anything_is_done(
    tmp_path: Path, store: SQLStore, name: str
) -> None:
    with pytest.raises(StoreError, match=r"the agent's name is .* expected a line of printable characters"):
        loop(tmp_path, store, gains=(0.0,), name=name).run()
    assert not (tmp_path / "loop").exists()
    with pytest.raises(StoreError, match="the agent's name is"):
        store.save_policy(Policy(name=name, version="v1"))


def test_too_few_promotion_tasks_are_refused_before_anything_is_done(tmp_path: Path, store: SQLStore) -> None:
    sets = TaskSets(training=tasks("train", 2), promotion=tasks("promote", 6), test=tasks("test", 2))
    with pytest.raises(TrainError, match="fewer than 7 cannot show that one is better"):
        loop(tmp_path, store, gains=GAINS, tasks=sets).run()
    assert not (tmp_path / "loop").exists()
    with pytest.raises(TrainError, match="round 1 compares policies on 3 promotion tasks"):
        loop(tmp_path, store, gains=GAINS, tasks=sets, settings={"fresh": True}).run()


def test_fresh_tasks_are_compared_once(tmp_path: Path, store: SQLStore) -> None:
    rollouts = SimulatedRollouts(store=store)
    found = loop(tmp_path, store, gains=(0.4, 0.1), rollouts=rollouts, settings={"fresh": True}).run()
    assert [one["tasks"] for one in found["rounds"]] == [12, 12]
    assert [one["share"] for one in found["rounds"]] == [0.025, 0.025]
    by_task: dict[str, set[str]] = {}
    for id in rollouts.held:
        run, task, _ = id.split("/")
        if task.startswith("promote"):
            by_task.setdefault(task, set()).add(run.split("-candidate")[0].split("-promoted")[0])
    assert {len(runs) for runs in by_task.values()} == {1}
