"""`cm2 export`: stored traces as files that CM2 and other tools read."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cm2_agent.cli.common import (
    PROJECT,
    STORE,
    JsonOption,
    ProjectOption,
    StoreOption,
    echo_err,
    open_store,
    print_result,
    tracked,
)
from cm2_agent.cli.eval import reward_version, scored_version
from cm2_agent.cli.trace_filters import FilterOptions, with_filters
from cm2_agent.errors import StoreError
from cm2_agent.types.json_values import JSON

if TYPE_CHECKING:
    from cm2_agent.datasets.exports.chat_messages import Entry
    from cm2_agent.datasets.exports.preferences import PreferencePairs
    from cm2_agent.datasets.exports.records import Format
    from cm2_agent.store import SQLStore
    from cm2_agent.types.score import Score
    from cm2_agent.types.trace import Trace

MARGIN = 0.25


def register(app: typer.Typer) -> None:
    help = (
        "Write stored traces as files: cm2 (all that is stored, which cm2 import reads back), OpenAI's chat, TRL's sft"
        " and dpo, ShareGPT, or parquet. What a format cannot carry is said and counted."
    )
    app.command("export", help=help, short_help="Write stored traces as files that CM2 and others read.")(export)


@with_filters
def export(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="The file to write, replaced only once complete; - is stdout.")
    ],
    format: Annotated[
        Literal["cm2", "chat", "sft", "dpo", "sharegpt", "parquet"],
        typer.Option("--format", help="What to write: docs/how-to/export.md lists the fields."),
    ] = "cm2",
    reward: Annotated[
        str | None, typer.Option("--reward", metavar="VERSION", help="The reward version (default: the newest).")
    ] = None,
    reward_at_least: Annotated[
        float | None, typer.Option("--reward-at-least", metavar="N", help="Only traces whose reward is N or more.")
    ] = None,
    margin: Annotated[
        float | None,
        typer.Option("--margin", metavar="N", help=f"dpo: the least difference of two rewards (default: {MARGIN})."),
    ] = None,
    pairs_per_group: Annotated[
        int | None, typer.Option("--pairs-per-group", min=1, help="dpo: at most this many pairs of a task's rollouts.")
    ] = None,
    *,
    where: FilterOptions,
    store: StoreOption = STORE,
    project: ProjectOption = PROJECT,
    as_json: JsonOption = False,
) -> None:
    from cm2_agent.datasets.exports.files import STDOUT, whole_file, write_lines
    from cm2_agent.datasets.exports.records import FORMATS

    _check(file, format, reward_at_least, margin, pairs_per_group, as_json)
    with open_store(store, project=project) as opened:
        if format == "dpo":
            version = reward_version(opened, reward)
            found = _pairs(opened, version, where, MARGIN if margin is None else margin, pairs_per_group)
            groups = opened.stream_groups(reward=version)
            count = write_lines(file, tracked(found.of(groups), "exporting"))
            result: dict[str, JSON] = {"exported": count, "groups": found.groups, "without_pair": found.without_pair}
            echo_err(
                f"{found.without_pair} of {found.groups} groups had no pair: no two rollouts begin alike and differ"
                f" by {found.margin:g} in reward"
            )
            _say_losses(format, +found.losses, Counter())
        else:
            version_or_none = scored_version(opened, reward)
            chosen = opened.scored_traces(where.trace_filter(version_or_none), reward=version_or_none)
            work = _Records(FORMATS[format], reward_at_least)
            records = work.of(tracked(chosen, "exporting"))
            if format == "parquet":
                from cm2_agent.datasets.exports.tables import write_table

                with whole_file(file) as partial:
                    count = write_table(partial, records)
            else:
                count = write_lines(file, records)
            result = {"exported": count, **({"skipped": work.skipped} if work.skipped else {})}
            work.say()
    if not count:
        echo_err("nothing was chosen: the file holds no record")
    result["file"] = str(file)
    if file == STDOUT:
        echo_err(f"exported: {count}")
    else:
        print_result(result, as_json=as_json)


def _check(
    file: Path,
    format: str,
    reward_at_least: float | None,
    margin: float | None,
    pairs_per_group: int | None,
    as_json: bool,
) -> None:
    """Raises StoreError on options that do not go together, MissingExtra where a format needs one."""
    from cm2_agent.datasets.exports.files import STDOUT

    if format == "parquet":
        from cm2_agent.datasets.exports.tables import require_tables

        require_tables()
        if file == STDOUT:
            raise StoreError("--format parquet cannot be written to stdout; name a file")
    if file == STDOUT and as_json:
        raise StoreError("- and --json both write to stdout; name a file, or leave --json out")
    if format != "dpo" and (margin is not None or pairs_per_group is not None):
        raise StoreError(f"--margin and --pairs-per-group make pairs; type --format dpo, not {format}")
    if format == "dpo" and reward_at_least is not None:
        raise StoreError("--format dpo takes pairs by how far their rewards differ: --margin, not --reward-at-least")
    if reward_at_least is not None and not math.isfinite(reward_at_least):
        raise StoreError(f"--reward-at-least is {reward_at_least}; expected a number in [0, 1]")
    if margin is not None and not 0 < margin <= 1:
        raise StoreError(f"--margin is {margin:g}; expected a difference of rewards above 0, at most 1")


def _pairs(store: SQLStore, version: str, where: FilterOptions, margin: float, most: int | None) -> PreferencePairs:
    from cm2_agent.datasets.exports.preferences import PreferencePairs

    among = frozenset(store.selected(where.trace_filter(version))) if where.given else None
    return PreferencePairs(margin=margin, most=most, among=among)


@dataclass
class _Records:
    """The records of traces, and what came of them."""

    format: Format
    least: float | None
    skipped: int = 0
    losses: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)

    def of(self, traces: Iterable[tuple[Trace, Score | None]]) -> Iterator[Entry]:
        from cm2_agent.datasets.exports.records import left_out

        for trace, score in traces:
            if self.least is not None and (score is None or score.reward is None or score.reward < self.least):
                continue
            record = self.format.make(trace, score, self.losses)
            if record is None:
                self.skipped += 1
                continue
            if self.format.without:
                self.left_out.update(left_out(trace, score) & set(self.format.without))
            yield record

    def say(self) -> None:
        """What was skipped or could not be carried, on stderr."""
        if self.skipped:
            what = "no answer of an agent" if self.format.name == "sft" else "no message"
            echo_err(f"{self.skipped} traces were skipped: they hold {what}")
        if self.format.name == "sft" and self.least is None:
            echo_err("sft holds every dialogue, whatever its reward; --reward-at-least N takes the good ones")
        _say_losses(self.format.name, +self.losses, self.left_out)


def _say_losses(format: str, losses: Counter[str], left_out: Counter[str]) -> None:
    said = [f"{count} {what}" for what, count in losses.most_common()]
    said += [f"{what} (of {count} traces)" for what, count in sorted(left_out.items())]
    if said:
        echo_err(f"{format} does not carry: {', '.join(said)}; docs/how-to/export.md lists what each format holds")
