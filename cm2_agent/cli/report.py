"""`cm2 report`: what fails, where first, together with what, and at what cost; as text, JSON or a page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cm2_agent.cli.common import (
    PROJECT,
    STORE,
    JsonOption,
    ProjectOption,
    StoreOption,
    format_number,
    one_line,
    open_store,
    print_result,
    printable,
    progress,
)
from cm2_agent.cli.eval import reward_version
from cm2_agent.cli.html_page import check_page, write_page
from cm2_agent.cli.null_checks import null_lines
from cm2_agent.cli.trace_filters import FilterOptions, with_filters
from cm2_agent.errors import StoreError

if TYPE_CHECKING:
    from cm2_agent.analysis.report_figures import PassRate, PolicyMean, Report


def register(app: typer.Typer) -> None:
    short = "Report what fails, where first, with what, and the cost."
    help = (
        "Report what fails and why: pass rates by item, facet and level, failures that occur together, the step that"
        " fails first, the worst traces, why verdicts are NULL, and the cost. --html writes the same as one page."
    )
    app.command("report", help=help, short_help=short)(report)


@with_filters
def report(
    reward: Annotated[
        str | None, typer.Option("--reward", metavar="VERSION", help="The reward version (default: the newest).")
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Also write one self-contained page.")
    ] = None,
    labels: Annotated[
        bool, typer.Option("--labels", help="Also correct the mean reward of each policy by people's labels of items.")
    ] = False,
    *,
    where: FilterOptions,
    store: StoreOption = STORE,
    project: ProjectOption = PROJECT,
    as_json: JsonOption = False,
) -> None:
    from cm2_agent.analysis import report as analysis

    check_page(html)
    with open_store(store, project=project) as opened:
        version = reward_version(opened, reward)
        chosen = where.trace_filter(version)
        scored = opened.scored_rows(chosen, reward=version)
        with progress("reading") as advance:
            found = analysis.report(scored, opened.checklist, advance)
        certificate = opened.certificate(version)
        if certificate is not None:
            found = replace(found, certificate=certificate.summary(scored.policies()))
        if labels:
            from cm2_agent.cli.corrected import corrected_means

            found = replace(found, corrected=corrected_means(opened, version, chosen))
    if not found.traces and where.given:
        raise StoreError(f"no trace with a score under {version} meets the options; widen them")
    if not found.traces:
        raise StoreError(f"no trace has a score under {version}; type first: cm2 score CHECKLIST.yaml --store {store}")
    if html is not None:
        from cm2_agent.analysis.report_html import page

        write_page(html, page(found))
    print_result(found.to_json(), as_json=as_json, lines=_lines(found))


def _lines(found: Report) -> Iterator[str]:
    yield printable(f"reward {found.version}")
    mean = format_number(found.mean_reward, found.reward_interval)
    yield f"{found.traces} traces, mean reward {mean} over {found.rewarded}"
    yield from map(_corrected, found.corrected)
    yield from _certificate(found.certificate)
    yield from _counts("no reward because", found.null_rewards)
    for title, rates in (("items", found.items), ("facets", found.facets), ("levels", found.levels)):
        if rates:
            yield f"\n{title}: passed, 95 % over tasks"
            yield from map(_rate, rates)
    yield f"\nfirst failures: {found.without_failure} traces had none"
    for first in found.first[:10]:
        yield f"  {'closing block' if first.turn is None else f'turn {first.turn}'}, step {first.step}: {first.n}"
    yield from _counts("item that failed first", found.first_items)
    if found.together:
        yield "\nfailures that occur together"
        for pair in found.together:
            yield printable(
                f"  {pair.left} + {pair.right}: {pair.both} of {pair.n} traces, {pair.expected:.1f} by chance, phi"
                f" {pair.phi:.2f}"
            )
    if found.worst:
        yield "\nworst traces"
    for worst in found.worst:
        yield printable(f"  {worst.reward:.3f}  {worst.trace}  {one_line(worst.opening, 60)}")
        for failed in worst.failed[:4]:
            quote = failed.quotes[0] if failed.quotes else failed.said
            yield f"         {printable(failed.item)}" + (f": “{one_line(quote, 90)}”" if quote else "")
    yield from _counts("verdicts that are NULL", found.null_causes)
    yield "\nNULL by policy, the oldest first; 95 % over tasks"
    yield from (f"  {line}" for line in null_lines(found.nulls_by_policy))
    for row in found.consistency:
        words = f"parent without a part {row.parent_alone}, parts without the parent {row.children_alone}"
        yield printable(
            f"{row.parent} and its {len(row.children)} parts: consistent {format_number(row.rate)} of {row.n}; {words}"
        )
    spent = [f"{name.replace('_', ' ')} {'unknown' if n is None else f'{n:g}'}" for name, n in found.cost.items()]
    yield "\ncost: " + (", ".join(spent) or "no model calls were recorded")


def _rate(rate: PassRate) -> str:
    extra = "".join(
        f", {count} {what}"
        for what, count in (
            ("decided elsewhere", rate.decided),
            ("not applicable", rate.inapplicable),
            ("NULL", rate.nulls),
        )
        if count
    )
    return printable(f"  {rate.name:<28} {format_number(rate.rate, rate.interval)}  of {rate.n}{extra}")


def _certificate(found: Mapping[str, Any] | None) -> Iterator[str]:
    if found is None:
        yield "no certificate (cm2 certify)"
        return
    of = f"{found['families']} families of attacks on {found['failing_tasks']} tasks, {found['made']}"
    rates = f"attacks paid at most {found['attack_rate_at_most']:.3f}, right traces at least"
    yield printable(f"certificate of {of}: {rates} {found['pass_rate_at_least']:.3f}")
    if found["shortfall"] is not None:
        yield printable(f"  not enough: {found['shortfall']}")
    if found["expired"] is not None:
        yield printable(f"  expired: {found['expired']} (cm2 recertify)")


def _corrected(one: PolicyMean) -> str:
    mean = one.mean
    partly = f"; {one.partly} labelled in part" if one.partly else ""
    if mean is None:
        return printable(f"policy {one.policy}: no trace of it is labelled{partly}")
    few = ", too few to trust the interval" if mean.few else ""
    return printable(
        f"policy {one.policy}: corrected by people {format_number(mean.estimate, mean.interval)}; {mean.n} of"
        f" {mean.n + mean.unlabelled} traces labelled, of {mean.tasks} tasks{few}; there people"
        f" {format_number(mean.people)}, the judge {format_number(mean.judged)}{partly}"
    )


def _counts(title: str, counts: object) -> Iterator[str]:
    if isinstance(counts, dict) and counts:
        yield f"\n{title}"
        yield from (printable(f"  {name}: {count}") for name, count in counts.items())
