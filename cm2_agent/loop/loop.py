"""Loop: rounds of run, score, train, evaluate and promote, each stage finished once, whenever the process is killed."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from cm2_agent.errors import ConflictError, ModelError, StoreError, TrainError
from cm2_agent.loop.dialogues import Dialogues, Progress, RunOf, spent
from cm2_agent.loop.folder import RESULT, LoopFolder
from cm2_agent.loop.promotion import Decision, mean_gain, paired
from cm2_agent.loop.rollouts import Rollouts
from cm2_agent.loop.settings import LoopSettings
from cm2_agent.loop.task_sets import TaskSets
from cm2_agent.store import SQLStore, StoredGroups
from cm2_agent.types.group import Group
from cm2_agent.types.json_values import JSON, content_hash
from cm2_agent.types.policy import Policy, require_name

STAGES = ("run", "score", "train", "evaluate", "promote")


class Train(Protocol):
    """Trains the policy in a folder on groups, writes the new one to `out` and returns a report."""

    def __call__(
        self, policy: str, out: Path, groups: StoredGroups, *, seed: int, advance: Callable[[], object]
    ) -> Mapping[str, JSON]: ...


@dataclass(kw_only=True)
class Loop:
    """A loop in a folder. Started again with the same settings, it goes on after the last stage that was finished.

    The store holds dialogues, scores and policies; the folder a file a finished stage, the policies' weights and
    `result.json`. Round r holds `group` dialogues on each of its training tasks with the promoted policy, trains a
    candidate on them, holds `evaluations` dialogues with both on each promotion task, and promotes the candidate only
    where it is better by more than chance (`PromotionRule`); else the promoted policy stays. At the end the first and
    the last promoted policy are compared on the test tasks, which nothing else reads.

    Args:
        name: the agent's, under which its policies are registered.
        start: the folder (or hub name) of the policy to begin with.
        folder: of the loop.
        store: for dialogues, scores and policies.
        tasks: to train on, to promote by, and for the test.
        rollouts: holds the dialogues and scores them.
        train: trains a candidate.
        settings: the loop's numbers.
        training: the settings of the training, which stand in the policies' rows.
        environment: what else decides what comes of it: limits, tools. With others than it began with a loop is
            refused.
        progress: called with what is being done, how much of it is done, and how much there is.
    """

    name: str
    start: str
    folder: Path
    store: SQLStore
    tasks: TaskSets
    rollouts: Rollouts
    train: Train
    settings: LoopSettings = field(default_factory=LoopSettings)
    training: Mapping[str, JSON] = field(default_factory=dict)
    environment: Mapping[str, JSON] = field(default_factory=dict)
    progress: Progress = field(default=lambda what, done, total: None)

    def run(self) -> dict[str, Any]:
        """Carry out what is left; returns what stands in `result.json`.

        Raises:
            StoreError: the folder holds another loop, another process runs it, or another policy of this name is
                promoted than the loop begins with or (ConflictError) goes on from.
            TrainError: a round cannot be trained on, no task could be scored or compared, or there are too few
                promotion tasks for the rounds.
        """
        require_name(self.name)
        self._require_enough()
        files = LoopFolder(self.folder)
        with files.held():
            start = self.rollouts.version(self.start)
            facts = {
                "name": self.name,
                "start": start,
                "reward": self.rollouts.reward,
                "tasks": self.tasks.hashes,
                "settings": dict(self.settings.__dict__),
                "training": dict(self.training),
                "environment": dict(self.environment),
            }
            self._id = f"{self.name}-{content_hash(facts)[:8]}"
            if not files.finished("start"):
                self._require_promoted(start)
            files.claim({**facts, "store": self.store.url, "project": self.store.project})
            first = files.stage("start", lambda: self._begin(start))
            now: Mapping[str, Any] = first
            rounds = []
            for number in range(1, self.settings.rounds + 1):
                done = self._round(files, number, now)
                now = done["promoted"]
                rounds.append(done["summary"])
            return files.stage(RESULT.removesuffix(".json"), lambda: self._end(files, first, now, rounds))

    @property
    def _dialogues(self) -> Dialogues:
        return Dialogues(rollouts=self.rollouts, store=self.store, by=self.settings.by, progress=self.progress)

    def _require_enough(self) -> None:
        rule = self.settings.rule
        for number in range(1, rule.rounds + 1):
            there = len(self.tasks.compared(number, rule.rounds, fresh=rule.fresh))
            if there < rule.least_tasks:
                raise TrainError(
                    f"round {number} compares policies on {there} promotion tasks; with {rule.rounds} rounds and alpha"
                    f" {rule.alpha:g} fewer than {rule.least_tasks} cannot show that one is better, whatever they say:"
                    " give more tasks, fewer rounds, or a larger alpha"
                )

    def _require_promoted(self, version: str) -> None:
        """Raises StoreError where another policy of this name is promoted than the one to begin with."""
        promoted = self.store.promoted(self.name)
        if promoted is not None and promoted.version != version:
            raise StoreError(
                f"policy {promoted.version} of {self.name!r} is promoted ({promoted.folder}), and the loop was to begin"
                f" with {version}; begin with the promoted one (leave --model out), or give the agent another name"
                " (--name)"
            )

    def _require_still(self, *versions: str | None) -> None:
        """Raises ConflictError where none of these is the promoted policy: somebody else promoted or rolled back."""
        promoted = self.store.promoted(self.name)
        if promoted is not None and promoted.version not in versions:
            raise ConflictError(
                f"policy {promoted.version} is promoted now, and this loop goes on from {versions[0]}; nothing was"
                f" changed. Promote {versions[0]} again to go on (cm2 policy promote {versions[0]} --name {self.name}),"
                " or begin a loop in another folder with the promoted one (--out)"
            )

    def _begin(self, version: str) -> dict[str, Any]:
        """Register the first policy, and promote it where none of this name is."""
        folder = str(Path(self.start).resolve()) if Path(self.start).is_dir() else self.start
        if self.store.promoted(self.name) is None:
            if self.store.policy(self.name, version) is None:
                self.store.save_policy(Policy(name=self.name, version=version, folder=folder))
            self.store.promote(self.name, version, reason={"why": "the first of a loop"})
        return {"version": version, "folder": folder}

    def _round(self, files: LoopFolder, number: int, now: Mapping[str, Any]) -> dict[str, Any]:
        """Carry out round `number` from the promoted policy `now`: which one is promoted after it, and in short what
        came of it."""
        settings = self.settings
        name = f"{self._id}-round-{number}"
        tasks = self.tasks.round(number, settings.tasks)
        run = RunOf(name=f"{name}-{now['version']}", tasks=tasks, group=settings.group)
        if not files.finished(f"round-{number}/evaluate"):  # until then a round promotes nothing
            self._require_still(now["version"])
        found: dict[str, dict[str, Any]] = {}
        work: dict[str, Callable[[], dict[str, Any]]] = {
            "run": lambda: self._dialogues.hold(run, now, seed=self._seed(number, "run")),
            "score": lambda: self._dialogues.score([run]),
            "train": lambda: self._train(number, now, run),
            "evaluate": lambda: self._evaluate(number, now, found["train"], name),
            "promote": lambda: self._promote(number, now, found["train"], found["evaluate"]),
        }
        for stage in STAGES:
            found[stage] = self._staged(files, f"round-{number}/{stage}", work[stage])
        decision, trained = found["promote"], found["train"]
        return {
            "promoted": trained if decision["promoted"] else now,
            "summary": {
                "round": number,
                "reward": found["score"]["mean_reward"],
                "candidate": trained["version"],
                **{name: decision[name] for name in ("promoted", "why", "tasks", "left_out")},
                "candidate_mean": decision["candidate"],
                "promoted_mean": decision["before"],
                **{name: decision[name] for name in ("gain", "interval", "p", "share")},
                **spent(list(found.values())),
                "seconds": round(sum(one["seconds"] for one in found.values()), 1),
            },
        }

    def _staged(self, files: LoopFolder, place: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """A stage with its time; progress is called before it, once its work is done and not written down, and when it
        is."""
        what = place.replace("/", ": ").replace("-", " ")

        def timed() -> dict[str, Any]:
            self.progress(what, 0, 2)
            clock = time.monotonic()
            done = work()
            self.progress(what, 1, 2)
            return {**done, "seconds": round(time.monotonic() - clock, 1)}

        before = files.finished(place)
        found = files.stage(place, timed)
        if not before:
            self.progress(what, 2, 2)
        return found

    def _train(self, number: int, now: Mapping[str, Any], run: RunOf) -> dict[str, Any]:
        reward, out = self.rollouts.reward, self.folder / "policies" / f"round-{number}"
        groups = self.store.stream_groups(reward=reward, policy=now["version"]).of_run(run.name)
        seen: list[JSON] = []
        differs = False
        for group in groups:
            seen += [[one.trace.id, one.score.lower] for one in group.rollouts]
            differs = differs or _differs(group)
        if not differs:
            return {"version": None, "skipped": "within each group all rollouts are worth the same"}
        known = self._registered(out, run)
        if known is not None:  # training again could give other weights, in the folder that the row names
            trained = known.metrics.get("training")
            return {"version": known.version, "folder": known.folder, "skipped": None, "report": trained}
        shutil.rmtree(out, ignore_errors=True)  # of a training that was not written down
        out.parent.mkdir(exist_ok=True)
        steps = 0

        def advance() -> None:
            nonlocal steps
            steps += 1
            self.progress(f"{run.name}: steps", steps, 0)

        report = self.train(now["folder"], out, groups, seed=self._seed(number, "train"), advance=advance)
        version = self.rollouts.version(str(out))
        if version == now["version"]:
            return {"version": None, "skipped": "training changed nothing", "report": report}
        certificate = self.store.certificate(reward)
        self.store.save_policy(
            Policy(
                name=self.name,
                version=version,
                folder=str(out.resolve()),
                parent=now["version"],
                reward=reward,
                certificate=None if certificate is None else certificate.made,
                data={"runs": [run.name], "tasks": len(run.tasks), "rollouts": len(seen), "hash": content_hash(seen)},
                settings=dict(self.training),
                metrics={"training": dict(report)},
            )
        )
        return {"version": version, "folder": str(out.resolve()), "skipped": None, "report": report}

    def _registered(self, out: Path, run: RunOf) -> Policy | None:
        """The candidate in `out` that an interrupted stage had trained on this run and registered, None where there is
        none."""
        folder = str(out.resolve())
        rows = [one for one in self.store.policies(self.name) if one.folder == folder]
        rows = [one for one in rows if one.data.get("runs") == [run.name]]
        if not rows or not out.is_dir():
            return None
        try:
            there = self.rollouts.version(folder)
        except ModelError:  # half written by a training after that one
            return None
        return next((one for one in rows if one.version == there), None)

    def _evaluate(self, number: int, now: Mapping[str, Any], trained: Mapping[str, Any], name: str) -> dict[str, Any]:
        """Both policies on the promotion tasks with the same random numbers, which no other round uses."""
        if trained["version"] is None:
            return {"candidate": {}, "promoted": {}}
        settings = self.settings
        tasks = self.tasks.compared(number, settings.rounds, fresh=settings.fresh)
        found = self._dialogues.compare(
            {"candidate": trained, "promoted": now},
            tasks,
            name,
            group=settings.evaluations,
            seed=self._seed(number, "evaluate"),
        )
        if not paired(found["candidate"], found["promoted"])[0]:  # a judge that is down is no verdict on a candidate
            raise TrainError(
                f"round {number}: none of {len(tasks)} promotion tasks could be compared, since every one lacks a"
                " value; see that the judge or --verify answers, and repeat the command"
            )
        return found

    def _promote(
        self, number: int, now: Mapping[str, Any], trained: Mapping[str, Any], evaluated: Mapping[str, Any]
    ) -> dict[str, Any]:
        rule, version = self.settings.rule, trained["version"]
        self._require_still(now["version"], version)
        if version is None:
            return Decision(
                promoted=False, why=f"no candidate: {trained['skipped']}", share=rule.share(number)
            ).to_json()
        seed = self._seed(number, "promote")
        decision = rule.decide(number, evaluated["candidate"], evaluated["promoted"], seed=seed)
        row = self.store.policy(self.name, version)
        if row is None:
            raise StoreError(f"policy {version} of {self.name!r} was removed from {self.store.url}; begin a new loop")
        found = {"loop": self._id, "round": number, "by": self.settings.by, **decision.to_json()}
        self.store.save_policy(replace(row, metrics={**row.metrics, "evaluation": found}))
        if decision.promoted:
            self.store.promote(self.name, version, reason=found, instead_of=now["version"])
        else:
            self.store.reject(self.name, version)
        return decision.to_json()

    def _end(
        self, files: LoopFolder, first: Mapping[str, Any], now: Mapping[str, Any], rounds: Sequence[Mapping[str, Any]]
    ) -> dict[str, Any]:
        tested = self._staged(files, "test", lambda: self._test(first, now))
        return {
            "name": self.name,
            "start": first["version"],
            "promoted": now["version"],
            "folder": now["folder"],
            "promotions": sum(bool(one["promoted"]) for one in rounds),
            "rounds": list(rounds),
            "test": tested["compared"],
            **spent([*rounds, tested]),
            "seconds": round(sum(one["seconds"] for one in (*rounds, tested)), 1),
        }

    def _test(self, first: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
        """The first and the last promoted policy on the test tasks."""
        policies = {"start": first, "end": now} if now["version"] != first["version"] else {"start": first}
        group, seed = self.settings.evaluations, self._seed(0, "test")
        found = self._dialogues.compare(policies, self.tasks.test, f"{self._id}-test", group=group, seed=seed)
        pairs, left_out = paired(found.get("end", found["start"]), found["start"])
        if not pairs:
            raise TrainError("no test task could be compared: every one lacks a value; score again, then repeat")
        differences = [after - before for after, before in pairs.values()]
        gain, interval = mean_gain(differences) if "end" in policies else (0.0, None)
        compared = {
            "by": self.settings.by,
            "tasks": len(pairs),
            "left_out": left_out,
            "start": sum(before for _, before in pairs.values()) / len(pairs),
            "end": sum(after for after, _ in pairs.values()) / len(pairs),
            "gain": gain,
            "interval": None if interval is None else list(interval),
        }
        row = self.store.policy(self.name, now["version"])
        if row is not None and "end" in policies:
            self.store.save_policy(replace(row, metrics={**row.metrics, "test": compared}))
        return {**found, "compared": compared}

    def _seed(self, number: int, what: str) -> int:
        digest = hashlib.sha256(f"{self.settings.seed}:{number}:{what}".encode()).digest()
        return int.from_bytes(digest[:4], "big") >> 1


def _differs(group: Group) -> bool:
    """Whether its rollouts differ in what they, or any of their turns, are worth."""
    worth = {(one.score.lower, *(turn.reward for turn in one.score.turns)) for one in group.rollouts}
    return len(worth) > 1
