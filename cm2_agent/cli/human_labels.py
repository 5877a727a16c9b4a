"""A judge measured by people's labels, for `cm2 eval --against human` and `cm2 train --min-kappa`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cm2_agent.cli.common import format_number, printable
from cm2_agent.errors import StoreError

if TYPE_CHECKING:
    from cm2_agent.analysis.agreement import Reliability
    from cm2_agent.store import SQLStore
    from cm2_agent.types.human_labels import Label, LabelKey

HUMAN = "human"
"""The name of people's consensus in `cm2 eval --against`."""
SHOWN = 20
"""The number of items that are listed one by one."""
FIGURES = ("agreement", "kappa", "tpr", "tnr", "prevalence", "judged")


@dataclass(frozen=True, kw_only=True)
class JudgeVsPeople:
    """A judge's verdicts (`answers`, None for NULL) beside people's consensus (`truth`) at the same places."""

    judge: str
    truth: Mapping[LabelKey, bool]
    answers: Mapping[LabelKey, bool | None]
    clusters: Mapping[str, str]
    labels: list[Label]
    unclear: int = 0

    @property
    def places(self) -> list[LabelKey]:
        return [place for place in self.truth if place in self.answers]

    def reliability(self, item: str | None = None, *, draws: int = 2000) -> Reliability:
        """Agreement over all places, or those of one item."""
        from cm2_agent.analysis.agreement import reliability

        places = [place for place in self.places if item is None or place[2] == item]
        return reliability(
            [self.answers[place] for place in places],
            [self.truth[place] for place in places],
            [self.clusters[place[0]] for place in places],
            draws=draws,
        )


def compare_with_people(store: SQLStore, *, reward: str | None = None, rater: str | None = None) -> JudgeVsPeople:
    """A reward version's verdicts, or a rater's labels, beside the labels of (other) people. By default the newest
    reward version with verdicts on the same places, else the only recorded judge. Raises StoreError where there is
    nothing to compare."""
    from cm2_agent.types.human_labels import DIALOGUE, consensus, tasks_of, verdicts_at

    labels = store.labels()
    truth = consensus(label for label in labels if label.rater != rater)
    if rater is None:
        truth = {place: value for place, value in truth.items() if place[2] != DIALOGUE}
    if not truth:
        raise StoreError(
            f"{store.url} holds no labels of people{_other_than(rater)}; import some first: cm2 import labels"
            f" FILE --store {store.url}"
        )
    clusters = tasks_of(labels, store.labelled_tasks())
    shared: dict[str, Any] = {"truth": truth, "clusters": clusters, "labels": labels}
    if rater is not None:
        return _by_rater(store, rater, shared)
    ids = list(dict.fromkeys(place[0] for place in truth))
    versions = store.reward_versions()
    if reward is not None and reward not in versions:
        raise StoreError(
            f"{store.url} holds no scores of reward version {reward!r}; expected one of:"
            f" {', '.join(versions) or 'none'}"
        )
    for version in versions if reward is None else [reward]:
        scores = (score for id in ids if (score := store.score(id, version)) is not None)
        answers, unclear = verdicts_at(scores, truth)
        if answers:
            return JudgeVsPeople(judge=version, answers=answers, unclear=unclear, **shared)
    judges = sorted({label.rater for label in labels if label.by_judge})
    if reward is None and len(judges) == 1:
        return _by_rater(store, judges[0], shared)
    asked = "no reward version" if reward is None else f"reward version {reward!r}"
    hint = f"; recorded judges for --rater: {', '.join(judges)}" if judges else ""
    raise StoreError(
        f"{asked} in {store.url} gave a verdict where people gave a label (same trace, turn and item){hint}"
    )


def _by_rater(store: SQLStore, rater: str, shared: Mapping[str, Any]) -> JudgeVsPeople:
    answers = {label.key: label.value for label in shared["labels"] if label.rater == rater}
    if not shared["truth"].keys() & answers.keys():
        known = ", ".join(sorted({label.rater for label in shared["labels"]}))
        raise StoreError(
            f"rater {rater!r} judged no place in {store.url} that other people judged; its raters: {known}"
        )
    return JudgeVsPeople(judge=rater, answers=answers, **shared)


def agreement_report(found: JudgeVsPeople, versus: JudgeVsPeople | None = None) -> dict[str, Any]:
    """The result of `cm2 eval --against human`, as JSON."""
    from cm2_agent.analysis.agreement import alpha
    from cm2_agent.analysis.bootstrap import wilson
    from cm2_agent.types.human_labels import by_rater

    whole = found.reliability()
    places = found.places
    people = by_rater(label for label in found.labels if not label.by_judge and label.rater != found.judge)
    units = [people[place] for place in people]
    with_judge = [
        {**people[place], f"judge {found.judge}": verdict}
        for place in places
        if (verdict := found.answers[place]) is not None
    ]
    among, _ = alpha(units, [found.clusters[place[0]] for place in people], draws=0)
    every, interval = alpha(
        with_judge, [found.clusters[place[0]] for place in places if found.answers[place] is not None]
    )
    items: dict[str, Any] = {}
    counted: defaultdict[str, int] = defaultdict(int)
    for place in places:
        counted[place[2]] += 1
    for item in sorted(counted):
        one = found.reliability(item, draws=0)
        agreed = None if one.agreement is None else round(one.agreement * one.n)
        items[item] = {
            "n": one.n,
            "nulls": one.nulls,
            **{name: getattr(one, name) for name in FIGURES},
            "agreement_ci": None if agreed is None else list(wilson(agreed, one.n)),
        }
    result: dict[str, Any] = {
        "judge": found.judge,
        "n": whole.n,
        "nulls": whole.nulls,
        "unjudged": len(found.truth) - len(places),
        "unclear": found.unclear,
        **{name: getattr(whole, name) for name in FIGURES},
        "alpha": every,
        "alpha_people": among,
        "raters": len({rater for unit in units for rater in unit}),
        "ci": {**{name: _listed(interval) for name, interval in whole.ci.items()}, "alpha": _listed(interval)},
        "items": items,
    }
    if versus is not None:
        result["drift"] = _drift(found, versus)
    return result


def _drift(new: JudgeVsPeople, old: JudgeVsPeople) -> dict[str, Any]:
    from cm2_agent.analysis.agreement import drift

    places = list(new.answers.keys() & old.answers.keys())
    places.sort(key=lambda place: (place[0], place[2], -1 if place[1] is None else place[1]))
    found = drift(
        [old.answers[place] for place in places],
        [new.answers[place] for place in places],
        [new.truth.get(place) for place in places],
        [new.clusters[place[0]] for place in places],
    )
    names = ("n", "to_true", "to_false", "kappa_between", "labelled", "kappa_old", "kappa_new", "change")
    return {
        "old": old.judge,
        **{name: getattr(found, name) for name in names},
        "ci": {k: _listed(v) for k, v in found.ci.items()},
    }


def report_lines(result: Mapping[str, Any]) -> Iterator[str]:
    """The report as text."""
    yield (
        f"places       {result['n']}  (NULL: {result['nulls']}, not judged: {result['unjudged']}, no turn named:"
        f" {result['unclear']})"
    )
    for name in (*FIGURES, "alpha"):
        yield f"{name:<12} {format_number(result[name], result['ci'][name])}"
    if result["raters"] > 1:
        yield f"alpha of the {result['raters']} people: {format_number(result['alpha_people'])}"
    worst = sorted(
        result["items"].items(), key=lambda pair: (pair[1]["agreement"] is None, pair[1]["agreement"], -pair[1]["n"])
    )
    for item, one in worst[:SHOWN]:
        yield printable(
            f"  {item}: agreement {format_number(one['agreement'], one['agreement_ci'])},"
            f" kappa {format_number(one['kappa'])}, n {one['n']}"
        )
    if len(worst) > SHOWN:
        yield f"  … and {len(worst) - SHOWN} more items"
    drift = result.get("drift")
    if drift is not None:
        yield printable(
            f"against {drift['old']}: {drift['to_true']} turned true and {drift['to_false']} false of {drift['n']}"
        )
        change = format_number(drift["change"], drift["ci"]["change"])
        yield f"kappa        {format_number(drift['kappa_old'])} → {format_number(drift['kappa_new'])}, change {change}"


def kappa_shortfall(kappa: float | None, minimum: float | None) -> str | None:
    """Why a judge agrees too little with people; None where it does not, or no minimum is set."""
    if minimum is None or (kappa is not None and kappa >= minimum):
        return None
    return f"kappa is {format_number(kappa)}, expected at least {minimum:g}"


def _other_than(rater: str | None) -> str:
    return "" if rater is None else f" besides {rater!r}"


def _listed(interval: tuple[float, float] | None) -> list[float] | None:
    return None if interval is None else list(interval)
