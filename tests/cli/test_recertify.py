"""`cm2 recertify`: a certificate holds for the policies that it was made on, and for others once their paid dialogues
were looked at."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from cm2_agent.store import SQLStore
from cm2_agent.types.run import ModelCall
from cm2_agent.types.trace import Trace
from tests.cli.test_app_loop import as_json, cm2
from tests.cli.test_certify import ASKS, QUICK, STRICT, written
from tests.judge_server import JudgeServer
from tests.order_traces import invented, right, traces_of, vague
from tests.rewards.certificate.weak_judge import weak_to


def by(policy: str, traces: Iterable[Trace]) -> Iterator[Trace]:
    """The traces as dialogues of a policy of this version."""
    for trace in traces:
        (run,) = trace.runs
        calls = tuple(
            ModelCall(span_id=f"{run.id}#{place}", model="tiny", model_version=policy, output=message, message=place)
            for place, message in enumerate(run.messages)
            if message.role == "assistant"
        )
        named = f"{policy}-{run.id}"
        yield Trace(id=named, runs=(replace(run, id=named, calls=calls),), outcomes=trace.outcomes)


def save(url: str, policy: str, *traces: Iterable[Trace]) -> None:
    with SQLStore(url) as opened:
        for one in traces:
            for trace in by(policy, one):
                opened.save_trace(trace)


def certified(folder: Path) -> tuple[str, str]:
    """A store with a certificate of `STRICT` on dialogues of the policy p0; the store and the checklist."""
    url, checklist = f"sqlite:///{folder}/cm2.db", written(folder, STRICT)
    save(url, "p0", traces_of((invented,), 9), traces_of((right,), 6, first=100))
    found = as_json("certify", checklist, *QUICK, "--store", url)
    assert (found["policies"], found["renewals"]) == (["p0"], [])
    cm2("score", checklist, "--store", url)
    return url, checklist


def test_a_certificate_expires_with_the_policy_and_is_renewed_by_paid_dialogues(tmp_path: Path) -> None:
    url, checklist = certified(tmp_path)
    assert as_json("report", "--store", url)["certificate"]["expired"] is None
    assert "expected 100 or more" in cm2("recertify", checklist, "--policy", "p0", "--store", url, code=2)[1]
    save(url, "p1", traces_of((right,), 110, first=1000))
    group = [*traces_of((right,), 1, first=5000), *traces_of((vague,), 1, first=5000)]
    with SQLStore(url) as opened:
        for number, trace in enumerate(by("p1", group)):
            run = replace(trace.runs[0], attributes={**trace.runs[0].attributes, "cm2.rollout": number})
            opened.save_trace(replace(trace, runs=(run,)))
    cm2("score", checklist, "--store", url)
    said = "it was made on dialogues of policy p0, and policy p1 is another"
    assert f"expired: {said}" in cm2("report", "--store", url)[0]
    gated = ("train", "--rows-only", "--policy", "p1", "--require-certificate", "--store", url)
    assert f"its certificate has expired: {said}" in cm2(*gated, code=2)[1]
    found = as_json("recertify", checklist, "--store", url)
    assert (found["policy"], found["paid"], found["unknown"], found["shortfall"]) == ("p1", 100, 0, None)
    assert found["wrong"] <= 1
    assert found["by"] == {"outcome right": 100}
    assert as_json("report", "--store", url)["certificate"]["expired"] is None
    assert as_json(*gated)["groups"] >= 0


def test_a_policy_that_is_paid_for_what_is_wrong_stays_without_a_certificate(tmp_path: Path) -> None:
    url, checklist = certified(tmp_path)
    save(url, "p1", traces_of((right,), 90, first=1000), traces_of((vague,), 20, first=2000))
    cm2("score", checklist, "--store", url)
    out, _ = cm2("recertify", checklist, "--store", url, code=1)
    assert "paid dialogues are wrong: up to 0." in out
    assert "of policy p1, " in as_json("report", "--store", url)["certificate"]["expired"]
    with SQLStore(url) as opened:
        (version,) = opened.reward_versions()
        certificate = opened.certificate(version)
    assert certificate is not None
    (check,) = certificate.renewals
    assert check.wrong == check.wrong_tasks >= 10
    assert certificate.shortfall() is None  # of the attacks nothing has changed


def test_a_dialogue_of_several_policies_counts_for_each(tmp_path: Path) -> None:
    """As in a graph in which a new policy works beside a model that stays."""
    url, checklist = certified(tmp_path)
    with SQLStore(url) as opened:
        for trace in by("p1", traces_of((right,), 100, first=1000)):
            (run,) = trace.runs
            calls = (replace(run.calls[0], model_version="p0"), *run.calls[1:])
            opened.save_trace(replace(trace, runs=(replace(run, calls=calls),)))
    cm2("score", checklist, "--store", url)
    assert "policy p1 is another" in as_json("report", "--store", url)["certificate"]["expired"]
    found = as_json("recertify", checklist, "--store", url)
    assert (found["policy"], found["paid"], found["shortfall"]) == ("p1", 100, None)
    assert as_json("report", "--store", url)["certificate"]["expired"] is None


def test_two_renewals_at_once_are_both_kept(tmp_path: Path) -> None:
    """While a judge looks at the dialogues of one policy, another's are renewed."""
    url, checklist = certified(tmp_path)
    for policy, first in (("p1", 1000), ("p2", 3000)):
        outcomes = {"p1": {}, "p2": {"right": 1.0}}[policy]
        save(url, policy, (replace(trace, outcomes=outcomes) for trace in traces_of((right,), 100, first=first)))
    cm2("score", checklist, "--store", url)
    asked: list[str] = []

    def judge(body: Any) -> Any:
        if not asked:
            asked.append("first")
            assert as_json("recertify", checklist, "--policy", "p2", "--store", url)["shortfall"] is None
        return weak_to()(body)

    (tmp_path / "asked").mkdir()
    questions = written(tmp_path / "asked", ASKS)
    with JudgeServer(judge, serves={"sound"}) as server:
        sound = ("--judge", "sound", "--judge-base-url", server.base_url)
        cm2("recertify", questions, *sound, "--policy", "p1", "--store", url)
    with SQLStore(url) as opened:
        (version,) = opened.reward_versions()
        certificate = opened.certificate(version)
    assert certificate is not None
    assert [one.policy for one in certificate.renewals] == ["p2", "p1"]


def test_people_are_given_what_nobody_judged(tmp_path: Path) -> None:
    url, checklist = certified(tmp_path)
    save(url, "p1", (replace(trace, outcomes={}) for trace in traces_of((right,), 100, first=1000)))
    cm2("score", checklist, "--store", url)
    sheet = tmp_path / "sheet.jsonl"
    command = ("recertify", checklist, "--store", url, "--write", str(sheet))
    assert "nobody said of 100 of them" in cm2(*command, code=1)[0]
    assert as_json("report", "--store", url)["certificate"]["expired"] is not None
    lines = [json.loads(line) for line in sheet.read_text(encoding="utf-8").splitlines()]
    assert len(lines) == 100
    assert "get_order" in lines[0]["note"]
    assert [one["trace"] for one in lines] != sorted(one["trace"] for one in lines)
    sheet.write_text("".join(json.dumps({**one, "rater": "ann", "value": True}) + "\n" for one in lines))
    cm2("import", "labels", str(sheet), "--store", url)
    found = as_json("recertify", checklist, "--store", url)
    assert (found["by"], found["wrong"], found["shortfall"]) == ({"human labels": 100}, 0, None)


def test_another_judge_looks_at_them(tmp_path: Path) -> None:
    url, checklist = f"sqlite:///{tmp_path}/cm2.db", written(tmp_path, ASKS)
    save(url, "p0", traces_of((vague,), 6), traces_of((right,), 4, first=100))
    with JudgeServer(weak_to("authority"), serves={"weak"}) as server:
        weak = ("--judge", "weak", "--judge-base-url", server.base_url)
        assert as_json("certify", checklist, *weak, *QUICK, "--store", url, code=1)["policies"] == ["p0"]
        unsaid = [replace(trace, outcomes={}) for trace in traces_of((right,), 100, first=1000)]
        save(url, "p1", unsaid)
        cm2("score", checklist, *weak, "--store", url)
        said = cm2("recertify", checklist, *weak, "--store", url, code=2)[1]
        assert "is the judge of" in said
    with JudgeServer(weak_to(), serves={"sound"}) as server:
        sound = ("--judge", "sound", "--judge-base-url", server.base_url)
        found = as_json("recertify", checklist, *sound, "--store", url)
    assert (found["by"], found["wrong"], found["shortfall"]) == ({"judge sound": 100}, 0, None)
